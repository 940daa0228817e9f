//! The files of Unix sockets that this program listens on. The system keeps the file of a process that was killed, and the next process
//! could not listen there. For any other file, the system says "address already in use"; the errors here say what is there.
//!
//! Not here: listening itself (the crates).

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use convoy_common::address::Address;
use socket2::{Domain, SockAddr, Socket, Type};

/// A process that has made its socket begins to listen about so soon. Until then, nobody can connect.
const BEGIN_MAX: Duration = Duration::from_millis(10);

/// The file of a Unix socket that this process is going to listen on. It is removed in the end. A process that was
/// killed leaves it, and the next process removes it.
pub(crate) struct SocketFile(Option<PathBuf>);

/// Something other than a socket is where a socket is to be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at unix:{path}: {path} is {what}; give a path that does not exist", path = .path.display())]
pub(crate) struct NoSocket {
    path: PathBuf,
    what: &'static str,
}

impl SocketFile {
    /// The socket's file, if `address` is one of a Unix socket.
    ///
    /// # Errors
    /// When something else is there.
    pub(crate) fn at(address: Option<&Address>) -> Result<Self, NoSocket> {
        let file = Self(address.and_then(|address| match address {
            Address::Unix(path) => Some(path.clone()),
            Address::Tcp(_) => None,
        }));
        if let Some(path) = &file.0 {
            check_kind(path)?;
        }
        file.remove_unused();
        Ok(file)
    }

    fn remove_unused(&self) {
        // If it can't be removed, it can't be listened on either, and that error names it.
        let _ = self.0.as_deref().map(remove_unused);
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        self.remove_unused();
    }
}

fn check_kind(path: &Path) -> Result<(), NoSocket> {
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(()) };
    let kind = found.file_type();
    let what = match () {
        () if kind.is_socket() => return Ok(()),
        () if kind.is_dir() => "a folder",
        () if kind.is_symlink() => "a symbolic link",
        () if kind.is_file() => "a file",
        () => "a device or a pipe",
    };
    Err(NoSocket { path: path.to_owned(), what })
}

/// Removes the file of a socket on which nobody listens.
fn remove_unused(path: &Path) -> io::Result<()> {
    if is_unused(path) { take_away(path) } else { Ok(()) }
}

/// Renames the file of a socket, so that only one process has it, and removes it if nobody listens there. Another process may have made it a
/// moment ago. Then it is put back.
fn take_away(path: &Path) -> io::Result<()> {
    let taken = path.with_file_name(format!(".{}", std::process::id()));
    fs::rename(path, &taken)?;
    sleep(BEGIN_MAX);
    if !is_unused(&taken) {
        fs::hard_link(&taken, path)?;
    }
    fs::remove_file(taken)
}

/// Whether this is the file of a socket on which nobody listens yet, or any more.
fn is_unused(path: &Path) -> bool {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    is_socket && connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Connects without waiting: the queue of a process that is stopped may be full.
fn connect(path: &Path) -> io::Result<()> {
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
        drop(SocketFile::at(Some(&address)).unwrap());
        assert!(path.exists(), "another process listens there");
        drop(listener);
        let file = SocketFile::at(Some(&address)).unwrap();
        assert!(!path.exists(), "a process left it");
        drop(UnixListener::bind(&path).unwrap());
        drop(file);
        assert!(!path.exists(), "this process left it");
        fs::write(&path, "no socket").unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for (path, what) in
            [(&path, "is a file"), (&link, "is a symbolic link"), (&folder.path().into(), "is a folder")]
        {
            let error = SocketFile::at(Some(&Address::Unix(path.clone()))).err().unwrap().to_string();
            assert!(error.contains(what) && fs::symlink_metadata(path).is_ok(), "{error}");
        }
    }

    #[test]
    fn a_file_that_turns_out_to_be_in_use_is_put_back() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("x.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        take_away(&path).unwrap();
        connect(&path).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
