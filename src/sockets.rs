//! The files of Unix sockets that this program listens on. The system keeps the file of a process that was killed, and the next process
//! could not listen there.
//!
//! Not here: listening itself (the crates).

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use convoy_common::address::Address;
use socket2::{Domain, SockAddr, Socket, Type};

/// The file of a Unix socket that this process is going to listen on. It is removed in the end, and also in the beginning, unless another
/// process listens there.
pub(crate) struct SocketFile(Option<PathBuf>);

impl SocketFile {
    /// The socket's file, if `address` is one of a Unix socket.
    pub(crate) fn at(address: Option<&Address>) -> Self {
        let file = Self(address.and_then(|address| match address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp(_) => None,
        }));
        file.remove_unused();
        file
    }

    fn remove_unused(&self) {
        // If it can't be removed, it can't be listened on either, and that error names it.
        let _ = self.0.as_deref().filter(|path| is_unused(path)).map(fs::remove_file);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove_unused();
    }
}

/// Whether this is the file of a socket on which no process listens.
fn is_unused(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Connects without waiting: a process that is stopped would not accept.
fn connect(path: &Path) -> std::io::Result<()> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn only_the_file_of_a_socket_without_a_listener_is_removed() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("x.sock");
        let address = Address::Unix(path.clone());
        let listener = UnixListener::bind(&path).unwrap();
        drop(SocketFile::at(Some(&address)));
        assert!(path.exists(), "another process listens there");
        drop(listener);
        let file = SocketFile::at(Some(&address));
        assert!(!path.exists(), "a process left it");
        drop(UnixListener::bind(&path).unwrap());
        drop(file);
        assert!(!path.exists(), "this process left it");
        fs::write(&path, "no socket").unwrap();
        drop(SocketFile::at(Some(&address)));
        assert!(path.exists());
    }
}
