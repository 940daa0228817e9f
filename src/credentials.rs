//! The flags for secrets: a token, and the files of TLS. Commands share them.
//!
//! Not here: what the secrets protect (`convoy_net`).

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use convoy_common::address::Address;
use convoy_common::token::{TOKEN_BYTES_MAX, Token, TokenError};
use convoy_coordinator::files::quoted;
use convoy_net::secrets::Secrets;
use convoy_net::tls::{Role, Tls, TlsFiles};

use crate::settings::{Misuse, read_text};

/// The files of TLS: all three, or none.
#[derive(clap::Args)]
pub(crate) struct TlsArguments {
    /// Certificate of this process, in PEM. With these three files, connections over TCP are encrypted, and both ends must show a certificate. `convoy
    /// certs` makes certificates
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key of --tls-cert, in PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Certificates of the CAs that this process trusts, in PEM
    #[arg(long, value_name = "FILE")]
    tls_ca: Option<PathBuf>,
}

/// A token, and the files of TLS.
#[derive(clap::Args)]
pub(crate) struct Credentials {
    /// File with a shared secret, the token. Workers that do not have the same one are refused
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Send the token unencrypted, to other machines too. Whoever can read the network's traffic learns it
    #[arg(long)]
    insecure_token: bool,
    #[command(flatten)]
    tls: TlsArguments,
}

impl TlsArguments {
    fn files(&self) -> Result<Option<TlsFiles>, Misuse> {
        let flags = [("--tls-cert", &self.tls_cert), ("--tls-key", &self.tls_key), ("--tls-ca", &self.tls_ca)];
        match flags.map(|(_, file)| file.clone()) {
            [Some(certificate), Some(key), Some(authorities)] => Ok(Some(TlsFiles { certificate, key, authorities })),
            [None, None, None] => Ok(None),
            _ => {
                let named = |is_given| {
                    let found = flags.iter().filter(|(_, file)| file.is_some() == is_given);
                    found.map(|(flag, _)| *flag).collect::<Vec<_>>().join(" and ")
                };
                Err(Misuse(format!("{} without {}: TLS needs all three files", named(true), named(false))))
            }
        }
    }

    /// The identity of this process, if there are files. A command that only connects has no role.
    pub(crate) fn identity(&self, role: Option<Role>) -> Result<Option<Tls>, Misuse> {
        let loaded = self.files()?.map(|files| Tls::load(&files, role)).transpose();
        loaded.map_err(|error| Misuse(error.to_string()))
    }
}

impl Credentials {
    /// The secrets of a process with this role. `flag` and `addresses` are where the token would be sent or received.
    pub(crate) fn secrets<'a>(
        &self,
        role: Role,
        flag: &str,
        addresses: impl IntoIterator<Item = &'a Address>,
    ) -> Result<Secrets, Misuse> {
        let tls = self.tls.identity(Some(role))?;
        Ok(Secrets { token: self.token(flag, addresses)?, tls })
    }

    /// The token, if there is one and may be sent or received at these addresses.
    pub(crate) fn token<'a>(
        &self,
        flag: &str,
        addresses: impl IntoIterator<Item = &'a Address>,
    ) -> Result<Option<Token>, Misuse> {
        let Some(file) = &self.token_file else { return Ok(None) };
        let mut addresses = addresses.into_iter().peekable();
        if addresses.peek().is_none() {
            return Err(Misuse(format!(
                "--token-file {}: needs {flag}; workers that this command starts need no token",
                file.display()
            )));
        }
        match addresses.find(|address| !address.is_local()) {
            Some(address) if self.tls.files()?.is_none() && !self.insecure_token => Err(Misuse(format!(
                "--token-file with {flag} {address}: the token would cross the network unencrypted; use TLS (--tls-cert, --tls-key and --tls-ca; \
                 `convoy certs` makes the files), or allow it with --insecure-token"
            ))),
            _ => token(file).map(Some),
        }
    }

    /// The files of TLS, if they are given.
    pub(crate) fn tls_files(&self) -> Result<Option<TlsFiles>, Misuse> {
        self.tls.files()
    }

    /// The flags, for another command of this program.
    pub(crate) fn flags(&self) -> Vec<OsString> {
        let TlsArguments { tls_cert, tls_key, tls_ca } = &self.tls;
        let files = [
            ("--token-file", &self.token_file),
            ("--tls-cert", tls_cert),
            ("--tls-key", tls_key),
            ("--tls-ca", tls_ca),
        ];
        let given = files.into_iter().filter_map(|(flag, file)| Some([flag.into(), file.clone()?.into_os_string()]));
        given.flatten().chain(self.insecure_token.then(|| "--insecure-token".into())).collect()
    }

    /// What a worker needs on its command line, besides the address.
    pub(crate) fn for_workers(&self) -> String {
        let token = self.token_file.as_ref().map(|file| format!(" --token-file {}", quoted(file)));
        let insecure = self.insecure_token.then(|| " --insecure-token".to_owned());
        let tls = self.tls.tls_ca.as_ref().map(|ca| format!(" --tls-ca {} --tls-cert CERT --tls-key KEY", quoted(ca)));
        [token, insecure, tls].into_iter().flatten().collect()
    }
}

/// The token in a file.
fn token(path: &Path) -> Result<Token, Misuse> {
    let wrong = |why: String| Misuse(format!("cannot read the token in {}: {why}", path.display()));
    let text = read_text(path, TOKEN_BYTES_MAX as u64 + 3).map_err(|error| wrong(error.to_string()))?;
    text.parse().map_err(|error: TokenError| wrong(error.to_string()))
}
