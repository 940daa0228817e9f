//! The address of a coordinator: `HOST:PORT`, or `unix:PATH` on the same machine. Not here: connecting to it.

use std::fmt;
use std::net::{SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::str::FromStr;

/// An address to connect to or to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

/// The longest path that a Unix socket may have on Linux (`sun_path`, less its closing zero).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// An address that can't be read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum AddressError {
    /// It has neither form.
    #[error("address \"{0}\" is neither HOST:PORT, such as 10.0.0.7:7878, nor unix:PATH")]
    Form(String),
    /// No socket can have this path.
    #[error(
        "the path in \"{address}\" has {bytes} bytes; a Unix socket's path may have at most {SOCKET_PATH_BYTES_MAX}"
    )]
    PathTooLong { address: String, bytes: usize },
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError::Form(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.len() {
                0 => Err(wrong()),
                1..=SOCKET_PATH_BYTES_MAX => Ok(Address::Unix(path.into())),
                bytes => Err(AddressError::PathTooLong { address: text.to_owned(), bytes }),
            };
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let is_port = !port.starts_with('+') && port.parse::<u16>().is_ok();
        let is_host = is_name(host) || text.parse::<SocketAddrV6>().is_ok();
        if is_port && is_host { Ok(Address::Tcp(text.to_owned())) } else { Err(wrong()) }
    }
}

impl Address {
    /// Whether it means something on one machine only: a Unix socket, or an address of the loopback interface.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Tcp(text) => {
                let is_loopback = text.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_loopback());
                is_loopback || text.rsplit_once(':').is_some_and(|(host, _)| host == "localhost")
            }
        }
    }
}

/// Whether it is a DNS name or an IPv4 address. Underscores are common in names of containers.
fn is_name(host: &str) -> bool {
    const BYTES_MAX: usize = 253; // RFC 1035, as text.
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    (1..=BYTES_MAX).contains(&host.len()) && host.bytes().all(fits)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => f.write_str(address),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_back_as_they_are_written() {
        let is_local = |text: &str| text.parse::<Address>().unwrap().is_local();
        assert!(
            ["unix:/x", "127.0.0.1:1", "[::1]:1", "localhost:1"].into_iter().all(is_local) && !is_local("10.0.0.7:1")
        );
        for text in ["10.0.0.7:7878", "[::1]:80", "coordinator:1", "unix:/run/x.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        let too_long = format!("{}:80", "x".repeat(254));
        let long_path = format!("unix:{}", "x".repeat(SOCKET_PATH_BYTES_MAX + 1));
        assert!(long_path.parse::<Address>().unwrap_err().to_string().contains("108 bytes"));
        assert!(long_path[..long_path.len() - 1].parse::<Address>().is_ok());
        for text in [
            "",
            "host",
            "host:",
            ":80",
            "host:99999",
            "unix:",
            "http://host:80",
            "::1:80",
            "a b:80",
            "a\n:80",
            "*:80",
            &too_long,
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
