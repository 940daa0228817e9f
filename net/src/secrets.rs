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

impl Secrets {
    /// The command that starts a worker which has the same secrets. Its names of files are to be replaced.
    pub fn command_of_worker(&self, address: &str) -> String {
        let token = if self.token.is_some() { " --token-file TOKEN" } else { "" };
        let tls = if self.tls.is_some() { " --tls-ca CA --tls-cert CERT --tls-key KEY" } else { "" };
        format!("convoy worker --join {address}{token}{tls}")
    }
}
