//! The TLS files of this process.
//!
//! Not here: whether the other ends of connections trust them (`addresses`, `workers`).

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use convoy_common::text::counted;
use convoy_net::tls::{Role, Tls, TlsFiles};

use crate::finding::Finding;

/// A certificate that expires sooner is to be renewed now.
const SOON: Duration = Duration::from_secs(14 * 86_400);
const SUBJECT: &str = "TLS";

/// Loads the files as a process with this role would; none: either. Returns the identity if it can be used.
pub fn findings(files: &TlsFiles, role: Option<Role>) -> (Option<Tls>, Vec<Finding>) {
    let tls = match Tls::load(files, role) {
        Ok(tls) => tls,
        Err(error) => {
            let advice = "docs/SECURITY.md says what the files must hold; `convoy certs DIR` makes them";
            return (None, vec![Finding::wrong(SUBJECT, error.to_string(), advice)]);
        }
    };
    let findings = [Some(validity(&files.certificate.display().to_string(), tls.expires_in())), privacy(files)];
    (Some(tls), findings.into_iter().flatten().collect())
}

fn validity(certificate: &str, left: Duration) -> Finding {
    let days = match left.as_secs() / 86_400 {
        0 => "less than a day".to_owned(),
        days => counted(days as usize, "more day", "more days"),
    };
    let found = format!("{certificate} is valid for {days}");
    if left < SOON {
        let advice = "renew it, for example with `convoy certs DIR --renew`, and start the processes again";
        return Finding::warning(SUBJECT, found, advice);
    }
    Finding::ok(SUBJECT, found)
}

/// A key that others can read, if it is one.
fn privacy(files: &TlsFiles) -> Option<Finding> {
    let mode = std::fs::metadata(&files.key).ok()?.permissions().mode();
    let found = format!("other users of this machine can read {}", files.key.display());
    (mode & 0o044 != 0)
        .then(|| Finding::warning(SUBJECT, found, "allow it only to its user (chmod 600, or the mode of the volume)"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Verdict;

    #[test]
    fn a_certificate_that_expires_soon_is_to_be_renewed() {
        let verdicts = [1, 13, 14, 365].map(|days| validity("x.pem", Duration::from_secs(days * 86_400)).verdict);
        assert_eq!(verdicts, [Verdict::Warning, Verdict::Warning, Verdict::Ok, Verdict::Ok]);
        assert!(validity("x.pem", Duration::from_secs(86_400)).found.ends_with("valid for 1 more day"));
    }
}
