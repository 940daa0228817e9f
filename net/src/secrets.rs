//! What the processes of a cluster have and others do not.
//!
//! Not here: how a token is checked (the coordinator), and how certificates are (`tls`).

use convoy_common::token::Token;

use crate::tls::Tls;

/// What the processes of a cluster have and others do not.
#[derive(Clone, Debug, Default)]
pub struct Secrets {
    /// The token that workers present, if there is one.
    pub token: Option<Token>,
    /// The identity of this process for TLS. None: connections are not encrypted.
    pub tls: Option<Tls>,
}
