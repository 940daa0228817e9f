//! Why a TLS connection failed, in a sentence that says what to change.
//!
//! Not here: the handshake (`tls`, `dial`, `listening`).

use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError, Error};

/// Why a TLS connection failed. "It" is the process at the other end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum Fault {
    /// The other end sent plain bytes.
    #[error("it does not use TLS; start it with --tls-cert, --tls-key and --tls-ca, or this process without them")]
    Plain,
    /// The other end sent the bytes of TLS, and this one expected plain ones.
    #[error(
        "it uses TLS; give this process --tls-cert, --tls-key and --tls-ca too, or start the other one without them"
    )]
    Unexpected,
    /// This end sent plain bytes.
    #[error("it requires TLS; give this process --tls-cert, --tls-key and --tls-ca too")]
    RequiresTls,
    /// The connection ended within the handshake, without a reason.
    #[error("it closed the connection during the TLS handshake; it may not use TLS")]
    Closed,
    /// A client without a certificate.
    #[error("it showed no certificate; start it with --tls-cert and --tls-key")]
    NoCertificate,
    /// A certificate of another CA.
    #[error("its certificate was not issued by a CA in the --tls-ca of this process")]
    Issuer,
    #[error("its certificate expired {} ago; renew it, or set the clock of this machine", rough(*.0))]
    Expired(Duration),
    #[error("its certificate becomes valid only in {}; check the clocks of both machines", rough(*.0))]
    NotYet(Duration),
    /// A certificate of another role or machine.
    #[error("its certificate is for {found}; it must have the DNS name {expected}")]
    Name { found: String, expected: String },
    #[error("its certificate does not allow this use; it must allow the authentication of servers and of clients")]
    Purpose,
    /// The other end has refused the certificate of this process.
    #[error("{0}")]
    Refused(&'static str),
    /// The protocols of both ends differ.
    #[error("the address serves something else, such as metrics")]
    Protocol,
    /// The versions of both ends differ.
    #[error("both processes must support TLS 1.3")]
    Version,
    /// Something else is wrong with a certificate.
    #[error("its certificate is wrong: {0}")]
    Certificate(String),
    #[error("the TLS connection failed: {0}")]
    Other(String),
}

impl Fault {
    /// What went wrong within a handshake. None: the network failed, not TLS.
    pub(crate) fn of_handshake(error: &io::Error) -> Option<Self> {
        match tls_error(error) {
            Some(Error::InvalidMessage(_)) => Some(Fault::Plain),
            Some(error) => Some(Fault::of(error)),
            None if error.kind() == io::ErrorKind::UnexpectedEof => Some(Fault::Closed),
            None => None,
        }
    }

    /// What went wrong after the handshake. None: the network failed, not TLS.
    pub(crate) fn of_io(error: &io::Error) -> Option<Self> {
        tls_error(error).map(Fault::of)
    }

    fn of(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Fault::NoCertificate,
            Error::InvalidCertificate(error) => Fault::of_certificate(error),
            Error::AlertReceived(alert) => Fault::of_alert(*alert),
            Error::PeerIncompatible(_) => Fault::Version,
            other => Fault::Other(other.to_string()),
        }
    }

    /// What is wrong with a certificate.
    pub(crate) fn of_certificate(error: &CertificateError) -> Self {
        match error {
            // A CA of the same name has another key.
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Fault::Issuer,
            CertificateError::ExpiredContext { time, not_after } => {
                Fault::Expired(Duration::from_secs(time.as_secs().saturating_sub(not_after.as_secs())))
            }
            CertificateError::NotValidYetContext { time, not_before } => {
                Fault::NotYet(Duration::from_secs(not_before.as_secs().saturating_sub(time.as_secs())))
            }
            CertificateError::NotValidForNameContext { expected, presented } => {
                Fault::Name { found: names(presented), expected: expected.to_str().into_owned() }
            }
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => Fault::Purpose,
            CertificateError::BadEncoding => Fault::Certificate("it is not an X.509 certificate".to_owned()),
            // The library gives the other reasons only as text.
            other if other.to_string().contains("CaUsedAsEndEntity") => {
                Fault::Certificate("it is that of a CA; the certificate of the process must come first".to_owned())
            }
            other => Fault::Certificate(other.to_string()),
        }
    }

    fn of_alert(alert: AlertDescription) -> Self {
        Fault::Refused(match alert {
            AlertDescription::UnknownCA | AlertDescription::DecryptError => {
                "no CA in the other process's --tls-ca issued the certificate of this process (--tls-cert)"
            }
            AlertDescription::CertificateExpired => {
                "the certificate of this process (--tls-cert) has expired or is not valid yet, by the other machine's clock"
            }
            AlertDescription::CertificateRequired => {
                "it requires a certificate; give this process --tls-cert and --tls-key"
            }
            AlertDescription::BadCertificate => {
                "the certificate of this process (--tls-cert) does not have the DNS name that the other process expects"
            }
            AlertDescription::UnsupportedCertificate => {
                "the certificate of this process (--tls-cert) must allow the authentication of servers and of clients"
            }
            AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::AccessDenied => {
                "the other process refuses the certificate of this process (--tls-cert)"
            }
            AlertDescription::NoApplicationProtocol => return Fault::Protocol,
            AlertDescription::ProtocolVersion => return Fault::Version,
            other => return Fault::Other(format!("the other process ended the handshake with the alert {other:?}")),
        })
    }

    /// Whether the other process has refused the certificate of this one. Another attempt with the same files would fail too.
    pub fn is_refusal(&self) -> bool {
        matches!(self, Fault::Refused(_))
    }
}

/// The error of TLS within an error of a stream.
fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// The names in a certificate, as `rustls` shows them: `DnsName("a")`, `IpAddress(::1)`.
fn names(presented: &[String]) -> String {
    const SHOWN: usize = 4;
    let bare = |name: &String| name.split(['"', '(', ')']).rfind(|part| !part.is_empty()).unwrap_or(name).to_owned();
    let shown: Vec<_> = presented.iter().take(SHOWN).map(bare).collect();
    if shown.is_empty() {
        return "no name".to_owned();
    }
    convoy_common::text::brief(&shown.join(", "), 200)
}

/// A time in its largest whole unit.
pub(crate) fn rough(time: Duration) -> String {
    const UNITS: [(&str, u64); 4] = [("day", 86_400), ("hour", 3_600), ("minute", 60), ("second", 1)];
    let seconds = time.as_secs();
    let unit = UNITS.iter().find(|(_, length)| seconds >= *length).unwrap_or(&UNITS[3]);
    let count = seconds / unit.1;
    format!("{count} {}{}", unit.0, if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rough() {
        let said = [0, 1, 59, 60, 7_200, 86_400, 10 * 86_400].map(|seconds| rough(Duration::from_secs(seconds)));
        assert_eq!(said, ["0 seconds", "1 second", "59 seconds", "1 minute", "2 hours", "1 day", "10 days"]);
    }

    #[test]
    fn names_are_bare_and_few() {
        let presented: Vec<_> = (0..9).map(|n| format!("DnsName(\"n{n}\")")).collect();
        assert_eq!(names(&presented), "n0, n1, n2, n3");
        assert_eq!((names(&["IpAddress(::1)".to_owned()]), names(&[])), ("::1".to_owned(), "no name".to_owned()));
    }
}
