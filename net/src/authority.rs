//! A certificate authority (CA) for a cluster, and the certificates that it issues. For people who have no CA of their own.
//!
//! Not here: files (`convoy certs` writes them), and the use of certificates (`tls`).

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use sha2::{Digest, Sha256};
use time::{Duration, OffsetDateTime};

use crate::tls::{Role, is_issued_by};

/// For how long the certificate of a CA is valid.
const AUTHORITY_DAYS: i64 = 3650;
/// Certificates are valid from this long before they are made, because clocks differ.
const CLOCKS_DIFFER: Duration = Duration::hours(1);

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A text is not the key of a CA.
    #[error("it is not a private key in PEM (ECDSA P-256)")]
    Key(#[source] rcgen::Error),
    /// The certificate of an authority is not that of its key.
    #[error("it is not the key of the certificate beside it, or `convoy certs` did not make them")]
    Another,
    /// A text is not a certificate.
    #[error("the certificate beside it is damaged")]
    Damaged,
    /// The library refuses.
    #[error("cannot make a certificate")]
    Make(#[source] rcgen::Error),
}

/// A certificate and its key, both in PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub certificate: String,
    /// Its private key, a secret.
    pub key: String,
}

/// A certificate authority.
pub struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// A new authority, and its certificate and key.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn new() -> Result<(Self, Issued), AuthorityError> {
        let key = key()?;
        let params = params_of_authority(&key);
        let certificate = params.self_signed(&key).map_err(AuthorityError::Make)?;
        let issued = issued(&certificate, &key);
        Ok((Self(Issuer::new(params, key)), issued))
    }

    /// The authority with this certificate and this key, both in PEM.
    ///
    /// # Errors
    /// When the text is not such a key, or the certificate is that of another key.
    pub fn of(certificate: &[u8], key: &str) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key).map_err(AuthorityError::Key)?;
        CertificateDer::from_pem_slice(certificate).map_err(|_| AuthorityError::Damaged)?;
        // Its name follows from its key.
        let authority = Self(Issuer::new(params_of_authority(&key), key));
        let issued = authority.issue(Role::Worker, "test", 1)?;
        match is_issued_by(certificate, issued.certificate.as_bytes()) {
            true => Ok(authority),
            false => Err(AuthorityError::Another),
        }
    }

    /// Issues a certificate for a process with this role. `title` is for people, such as `worker 3`.
    ///
    /// # Errors
    /// When the library refuses.
    pub fn issue(&self, role: Role, title: &str, days: u32) -> Result<Issued, AuthorityError> {
        self.sign(&params_of_process(role, title, i64::from(days))?)
    }

    pub(crate) fn sign(&self, params: &CertificateParams) -> Result<Issued, AuthorityError> {
        let key = key()?;
        let certificate = params.signed_by(&key, &self.0).map_err(AuthorityError::Make)?;
        Ok(issued(&certificate, &key))
    }
}

pub(crate) fn params_of_process(role: Role, title: &str, days: i64) -> Result<CertificateParams, AuthorityError> {
    let mut params = CertificateParams::new([role.name().to_owned()]).map_err(AuthorityError::Make)?;
    params.distinguished_name = named(&format!("Convoy {title}"));
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Both, because workers connect to each other, and a coordinator checks its own health.
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    valid_for(&mut params, days);
    Ok(params)
}

fn key() -> Result<KeyPair, AuthorityError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(AuthorityError::Make)
}

fn issued(certificate: &Certificate, key: &KeyPair) -> Issued {
    Issued { certificate: certificate.pem(), key: key.serialize_pem() }
}

fn params_of_authority(key: &KeyPair) -> CertificateParams {
    use rcgen::PublicKeyData;
    // Another authority has another name, so that the certificates of two can be told apart.
    let digest = Sha256::digest(key.der_bytes());
    let tag: String = digest.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Convoy CA {tag}"));
    // It issues certificates of processes, and no CAs.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, AUTHORITY_DAYS);
    params
}

fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    (params.not_before, params.not_after) = (now - CLOCKS_DIFFER, now + Duration::days(days));
}
