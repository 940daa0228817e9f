//! The files of Unix sockets that this program listens on. If a process is killed, its socket's file stays, and the next process
//! could not listen there, so this module removes the file. If something else is at the path, the system only says "address already
//! in use"; the errors here say what it is.
//!
//! Not here: listening itself (the crates).

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use convoy_common::address::Address;
use socket2::{Domain, SockAddr, Socket, Type};

/// The most attempts to lock a file that other processes remove meanwhile.
const LOCKS_MAX: usize = 100;

/// The file of a Unix socket that this process is going to listen on. It is removed in the end. A process that was killed leaves
/// it, and the next process removes it. A locked file beside it, whose name ends in `.lock`, ensures that only one process of
/// Convoy uses the socket.
pub(crate) struct SocketFile {
    /// None for another kind of address.
    _held: Option<Held>,
}

struct Held {
    path: PathBuf,
    /// Locked as long as this process may listen.
    lock: PathBuf,
    _locked: File,
}

/// An address at which no socket can be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoSocket {
    /// Something other than a socket is there.
    #[error("cannot listen at unix:{path}: {path} is {what}; give a path that does not exist", path = .path.display())]
    Kind { path: PathBuf, what: &'static str },
    /// Another process of Convoy listens there, or is about to.
    #[error("cannot listen at unix:{path}: the address is in use by another process of Convoy", path = .path.display())]
    InUse { path: PathBuf },
}

impl SocketFile {
    /// The socket's file, if `address` is one of a Unix socket.
    ///
    /// # Errors
    /// When something else is there, or another process of Convoy uses it.
    pub(crate) fn at(address: Option<&Address>) -> Result<Self, NoSocket> {
        let Some(Address::Unix(path)) = address else { return Ok(Self { _held: None }) };
        check_kind(path)?;
        let mut lock = OsString::from(path);
        lock.push(".lock");
        let lock = PathBuf::from(lock);
        if fs::symlink_metadata(&lock).is_ok_and(|found| found.is_symlink()) {
            return Err(NoSocket::Kind { path: lock, what: "a symbolic link" });
        }
        match locked(&lock) {
            Ok(locked) => {
                let held = Held { path: path.clone(), lock, _locked: locked };
                held.remove_unused();
                Ok(Self { _held: Some(held) })
            }
            Err(TryLockError::WouldBlock) => Err(NoSocket::InUse { path: path.clone() }),
            // Where no file can be made, no socket can be made either, and that error names it.
            Err(TryLockError::Error(_)) => Ok(Self { _held: None }),
        }
    }
}

impl Held {
    fn remove_unused(&self) {
        if is_unused(&self.path) {
            // If it can't be removed, it can't be listened on either, and that error names it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.remove_unused();
        let _ = fs::remove_file(&self.lock);
    }
}

/// Locks the file at `path`, which is made if it does not exist.
fn locked(path: &Path) -> Result<File, TryLockError> {
    for _ in 0..LOCKS_MAX {
        // Another user who could open it could lock it.
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path);
        let file = file.map_err(TryLockError::Error)?;
        file.try_lock()?;
        // The process that had locked it may have removed it, and another one may have made a new file.
        let is_there = fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|own| there.ino() == own.ino()));
        if is_there {
            return Ok(file);
        }
    }
    Err(TryLockError::WouldBlock)
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
    Err(NoSocket::Kind { path: path.to_owned(), what })
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// The longest path of a Unix socket on Linux, in bytes.
    const SUN_PATH_MAX: usize = 107;

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

    /// The second process must not take away the socket of the first one, which has not bound it yet.
    #[test]
    fn a_socket_has_one_process_and_its_lock_goes_with_it() {
        let folder = tempfile::TempDir::new().unwrap();
        // The longest path that a socket can have: no other name may be longer.
        let stem = "x".repeat(SUN_PATH_MAX - folder.path().as_os_str().len() - 1);
        let path = folder.path().join(stem);
        let address = Address::Unix(path.clone());
        drop(UnixListener::bind(&path).unwrap());
        let file = SocketFile::at(Some(&address)).unwrap();
        assert!(!path.exists(), "a process left it");
        for _ in 0..2 {
            let error = SocketFile::at(Some(&address)).err().unwrap().to_string();
            assert!(error.contains("in use"), "{error}");
        }
        drop(UnixListener::bind(&path).unwrap());
        drop(file);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        drop(SocketFile::at(Some(&address)).unwrap());
    }

    #[test]
    fn of_many_that_want_a_socket_at_once_one_gets_it() {
        let folder = tempfile::TempDir::new().unwrap();
        let address = Address::Unix(folder.path().join("x.sock"));
        let held = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let Ok(file) = SocketFile::at(Some(&address)) else { continue };
                        assert_eq!(held.fetch_add(1, Ordering::SeqCst), 0, "two have it");
                        held.fetch_sub(1, Ordering::SeqCst);
                        drop(file);
                    }
                });
            }
        });
        assert!(SocketFile::at(Some(&address)).is_ok());
    }
}
