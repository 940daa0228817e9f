//! Values of flags and of environment variables, and the files of secrets.

use std::fmt::Display;
use std::str::FromStr;

use convoy_common::address::Address;
use convoy_common::misdeed::Misdeed;
use convoy_common::schedule::Schedule;
use convoy_common::token::Token;
use convoy_coordinator::job::Order;
use convoy_coordinator::links::Transport;
use convoy_coordinator::trace::Sampling;
use convoy_dataset::{DataSource, Format};
use convoy_net::authority::Authority;
use convoy_net::tls::{Role, Tls, TlsFiles};
use convoy_worker::Isa;

use crate::sets::with_files;
use crate::{check_text, checked};

/// Parses the text as each kind of value. A value that is shown reads back as the same text.
pub fn parse_value(text: &str) {
    again::<Address>(text);
    again::<Misdeed>(text);
    again::<Schedule>(text);
    tried(text.parse::<Sampling>());
    again::<Transport>(text);
    again::<Order>(text);
    again::<Format>(text);
    again::<Isa>(text);
    tried(text.parse::<Token>().map(|token| token.header()));
    tried(text.parse::<DataSource>().map(|source| source.to_string()));
}

fn again<V: FromStr<Err: Display> + Display>(text: &str) {
    if let Some(value) = tried(text.parse::<V>()) {
        let shown = value.to_string();
        let back = tried(shown.parse::<V>()).map(|value| value.to_string());
        assert_eq!(back.as_ref(), Some(&shown), "{text:?} does not read back");
    }
}

/// The value, unless there is an error. The error quotes what the user has typed, so it may hold anything, but it says something.
fn tried<V, E: Display>(result: Result<V, E>) -> Option<V> {
    result.map_err(|error| assert!(!error.to_string().is_empty())).ok()
}

/// Reads the bytes as each of the files of TLS, and as the key of a CA.
pub fn open_secrets(bytes: &[u8]) {
    with_files(&[("secret.pem", bytes)], |folder| {
        let file = folder.join("secret.pem");
        let files = TlsFiles { certificate: file.clone(), key: file.clone(), authorities: file };
        for role in [None, Some(Role::Worker)] {
            checked(Tls::load(&files, role));
        }
    });
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Err(error) = Authority::of(bytes, text)
    {
        check_text(&error.to_string());
    }
}
