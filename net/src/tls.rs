//! The TLS identity of a process: its certificate, its key and the CAs that it trusts. TLS is mutual: both ends show a certificate.
//!
//! A certificate names a role, not a machine, because workers move and containers have changing addresses. So a process that connects knows
//! that it has reached a coordinator or a worker of its cluster, and a worker cannot pose as a coordinator.
//!
//! Not here: handshakes (`dial`, `listening`), and making certificates (`authority`).

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig, SignatureScheme,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::fault::{Fault, rough};

/// The longest file of certificates or of a key, in bytes.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// As far as one looks for the time at which a certificate expires.
const CENTURY_SECONDS: u64 = 100 * 365 * 86_400;

/// What the files of encrypted keys have in their first lines.
const ENCRYPTED: &[u8] = b"ENCRYPTED";

/// What a process is to the one that connects to it. Its certificate must name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The coordinator of a job.
    Coordinator,
    /// A worker.
    Worker,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Coordinator => "coordinator",
            Role::Worker => "worker",
        })
    }
}

impl Role {
    /// The DNS name in the certificates of this role.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator.convoy.internal",
            Role::Worker => "worker.convoy.internal",
        }
    }

    /// The same name, for the library.
    pub(crate) fn server_name(self) -> Result<ServerName<'static>, Error> {
        ServerName::try_from(self.name()).map_err(|error| Error::General(error.to_string()))
    }
}

/// What is spoken at an address, as ALPN names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC: jobs and health checks.
    Grpc,
    /// Tensors between two workers.
    Exchange,
    /// HTTP: metrics.
    Http,
}

impl Protocol {
    fn alpn(self) -> Vec<Vec<u8>> {
        let name: &[u8] = match self {
            Protocol::Grpc => b"h2",
            Protocol::Exchange => b"convoy-exchange",
            Protocol::Http => b"http/1.1",
        };
        vec![name.to_owned()]
    }
}

/// The files of an identity, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate of the process, and those of intermediate CAs after it.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// The CAs whose certificates this process trusts.
    pub authorities: PathBuf,
}

/// Why an identity can't be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum TlsError {
    #[error("{flag} {file}: {why}", file = .file.display())]
    File { flag: &'static str, file: PathBuf, why: String },
    #[error("--tls-cert {certificate}: its key is not the one in --tls-key {key}", certificate = .certificate.display(), key = .key.display())]
    KeyMismatch { certificate: PathBuf, key: PathBuf },
    #[error("--tls-cert {}: {why}", .file.display())]
    Unusable { file: PathBuf, why: String },
}

/// The identity of a process.
#[derive(Clone, Debug)]
pub struct Tls {
    of_servers: Arc<WebPkiServerVerifier>,
    client: ClientConfig,
    server: ServerConfig,
    of_clients: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
}

impl Tls {
    /// Loads an identity, and checks it as the other end of a connection will. A process that only connects has no role.
    ///
    /// # Errors
    /// When a file can't be read, the key is not that of the certificate, or the certificate has expired, is not one of the role, or
    /// was not issued by one of the CAs.
    pub fn load(files: &TlsFiles, role: Option<Role>) -> Result<Self, TlsError> {
        let chain = certificates("--tls-cert", &files.certificate)?;
        let roots = certificates("--tls-ca", &files.authorities)?;
        let key_text = read("--tls-key", &files.key)?;
        let is_encrypted = key_text.windows(ENCRYPTED.len()).any(|part| part == ENCRYPTED);
        let wrong_key = |error: pem::Error| match is_encrypted {
            true => file_error("--tls-key", &files.key, "it is encrypted; decrypt it, for example with openssl pkey"),
            false => file_error("--tls-key", &files.key, &no_pem(&error, "key")),
        };
        let key = PrivateKeyDer::from_pem_slice(&key_text).map_err(wrong_key)?;
        let mut store = RootCertStore::empty();
        for root in roots {
            let wrong =
                |_| file_error("--tls-ca", &files.authorities, "it holds something that is not an X.509 certificate");
            store.add(root).map_err(wrong)?;
        }
        let unusable = |why: String| TlsError::Unusable { file: files.certificate.clone(), why };
        let verifiers = Verifiers::new(store).map_err(|why| file_error("--tls-ca", &files.authorities, &why))?;
        verifiers.check(&chain, role).map_err(unusable)?;
        verifiers.identity(chain, key).map_err(|error| match error {
            Error::InconsistentKeys(_) => {
                TlsError::KeyMismatch { certificate: files.certificate.clone(), key: files.key.clone() }
            }
            _ => file_error(
                "--tls-key",
                &files.key,
                "it must be a key of ECDSA (P-256 or P-384), Ed25519, or RSA (2048 bits or more)",
            ),
        })
    }

    /// For how long the other ends will accept the certificate, and those of intermediate CAs with it; at most a century. The library tells
    /// only whether they are valid at a time, so this is a search.
    pub fn expires_in(&self) -> Duration {
        let now = UnixTime::now().as_secs();
        let is_valid = |seconds| {
            let at = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
            let parts = self.chain.split_first();
            parts.is_some_and(|(own, between)| self.of_clients.verify_client_cert(own, between, at).is_ok())
        };
        let (mut valid, mut expired) = (now, now.saturating_add(CENTURY_SECONDS));
        while valid + 1 < expired {
            let between = valid.midpoint(expired);
            if is_valid(between) { valid = between } else { expired = between }
        }
        Duration::from_secs(valid - now)
    }

    /// The side that connects to a process that has one of these roles.
    pub(crate) fn connector(&self, protocol: Protocol, roles: &[Role]) -> TlsConnector {
        let mut config = self.client.clone();
        config.alpn_protocols = protocol.alpn();
        let verifier = AnyOf { roles: roles.to_vec(), verifier: self.of_servers.clone() };
        config.dangerous().set_certificate_verifier(Arc::new(verifier));
        Arc::new(config).into()
    }

    /// The side that listens.
    pub(crate) fn acceptor(&self, protocol: Protocol) -> TlsAcceptor {
        let mut config = self.server.clone();
        config.alpn_protocols = protocol.alpn();
        Arc::new(config).into()
    }
}

/// The library of algorithms, with the fastest cipher first: all of them are secure.
fn provider() -> CryptoProvider {
    use ring::cipher_suite::{TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256};
    let cipher_suites = vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    CryptoProvider { cipher_suites, ..ring::default_provider() }
}

/// What checks the certificates of the other end, for both sides of a connection.
struct Verifiers {
    provider: Arc<CryptoProvider>,
    of_servers: Arc<WebPkiServerVerifier>,
    of_clients: Arc<dyn ClientCertVerifier>,
}

impl Verifiers {
    fn new(roots: RootCertStore) -> Result<Self, String> {
        let (provider, roots) = (Arc::new(provider()), Arc::new(roots));
        let of_servers = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
        let of_clients = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        let wrong = |error: rustls::server::VerifierBuilderError| error.to_string();
        Ok(Self {
            of_servers: of_servers.build().map_err(wrong)?,
            of_clients: of_clients.build().map_err(wrong)?,
            provider,
        })
    }

    /// Checks a certificate as the other ends of connections will.
    fn check(&self, chain: &[CertificateDer<'static>], role: Option<Role>) -> Result<(), String> {
        let Some((own, between)) = chain.split_first() else { return Err("it has no certificate".to_owned()) };
        let now = UnixTime::now();
        self.of_clients.verify_client_cert(own, between, now).map_err(|error| said(&error))?;
        if let Some(role) = role {
            let name = role.server_name().map_err(|error| said(&error))?;
            self.of_servers.verify_server_cert(own, between, &name, &[], now).map_err(|error| said(&error))?;
        }
        Ok(())
    }

    fn identity(self, chain: Vec<CertificateDer<'static>>, key: PrivateKeyDer<'static>) -> Result<Tls, Error> {
        let mut client = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_webpki_verifier(self.of_servers.clone())
            .with_client_auth_cert(chain.clone(), key.clone_key())?;
        let mut server = ServerConfig::builder_with_provider(self.provider)
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(self.of_clients.clone())
            .with_single_cert(chain.clone(), key)?;
        // Connections are few and long, and each of them checks certificates.
        (client.resumption, server.send_tls13_tickets) = (Resumption::disabled(), 0);
        Ok(Tls { of_servers: self.of_servers, of_clients: self.of_clients, chain, client, server })
    }
}

/// Checks that a certificate is that of one of several roles. Everything else is checked as for one.
#[derive(Debug)]
struct AnyOf {
    roles: Vec<Role>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for AnyOf {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut verdict = Err(Error::InvalidCertificate(CertificateError::NotValidForName));
        for role in &self.roles {
            verdict = self.verifier.verify_server_cert(own, between, &role.server_name()?, ocsp, now);
            if verdict.is_ok() {
                break;
            }
        }
        verdict
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
    }
}

/// Whether the certificate of a CA, in PEM, is that of the CA that issued this one.
pub(crate) fn is_issued_by(authority: &[u8], certificate: &[u8]) -> bool {
    let parsed = |text: &[u8]| CertificateDer::from_pem_slice(text).ok();
    let checked = || {
        let mut roots = RootCertStore::empty();
        roots.add(parsed(authority)?).ok()?;
        Verifiers::new(roots).ok()?.check(&[parsed(certificate)?], None).ok()
    };
    checked().is_some()
}

/// What is wrong with the certificate of this process.
fn said(error: &Error) -> String {
    let Error::InvalidCertificate(error) = error else { return error.to_string() };
    match Fault::of_certificate(error) {
        Fault::Issuer => "no CA in --tls-ca issued this certificate".to_owned(),
        Fault::Name { found, expected } => {
            format!(
                "this certificate is for {found}; the certificate of this process must have the DNS name {expected}"
            )
        }
        Fault::Expired(since) => {
            format!("this certificate expired {} ago; renew it, or set the clock of this machine", rough(since))
        }
        Fault::NotYet(until) => {
            format!("this certificate becomes valid only in {}; set the clock of this machine", rough(until))
        }
        Fault::Purpose => "this certificate must allow the authentication of servers and of clients".to_owned(),
        Fault::Certificate(why) => format!("this certificate is wrong: {why}"),
        other => other.to_string(),
    }
}

fn certificates(flag: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(flag, path)?;
    let wrong = |error: pem::Error| file_error(flag, path, &no_pem(&error, "certificate"));
    let found: Vec<_> = CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(wrong)?;
    if found.is_empty() { Err(wrong(pem::Error::NoItemsFound)) } else { Ok(found) }
}

fn no_pem(error: &pem::Error, what: &str) -> String {
    match error {
        pem::Error::NoItemsFound => format!("it has no {what} in PEM: a block of lines that begins with -----BEGIN"),
        pem::Error::MissingSectionEnd { .. } => "it is damaged: a block has no line -----END".to_owned(),
        // Its text would show a line, perhaps of a key.
        pem::Error::IllegalSectionStart { .. } => "it is damaged: a line -----BEGIN is malformed".to_owned(),
        _ => "it is damaged: a block is not in Base64".to_owned(),
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    let wrong = |error: std::io::Error| file_error(flag, path, &error.to_string());
    // Reading a pipe could take forever.
    if std::fs::metadata(path).map_err(wrong)?.file_type().is_fifo() {
        return Err(file_error(flag, path, "it is a named pipe; give a file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes)).map_err(wrong)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(file_error(flag, path, &format!("it is longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}

fn file_error(flag: &'static str, path: &Path, why: &str) -> TlsError {
    TlsError::File { flag, file: path.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests;
