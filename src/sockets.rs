//! The files of Unix sockets that this program listens on. The system keeps the file of a process that was killed, and the next process
//! could not listen there. For any other file, the system says "address already in use"; the errors here say what is there.
//!
//! Not here: listening itself (the crates).

use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::Duration;

use convoy_common::address::Address;
use socket2::{Domain, SockAddr, Socket, Type};

/// A process that has made its socket listens within this time. Until then, nobody can connect.
const BEGIN_MAX: Duration = Duration::from_millis(10);
/// How often a process looks whether another one has finished removing a file.
const LOOKS_MAX: usize = 20;

/// The file of a Unix socket that this process is going to listen on. A process that ends in order removes it. If one could not, the next
/// process does, unless somebody listens there.
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

/// Removes the file of a socket on which nobody listens. One process at a time does so: another one may listen there right after.
fn remove_unused(path: &Path) -> io::Result<()> {
    let Some(seen) = unused(path) else { return Ok(()) };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let folder = File::open(folder)?;
    for _ in 0..LOOKS_MAX {
        sleep(BEGIN_MAX);
        if folder.try_lock().is_ok() {
            let is_same = unused(path).is_some_and(|found| (found.dev(), found.ino()) == (seen.dev(), seen.ino()));
            return if is_same { fs::remove_file(path) } else { Ok(()) };
        }
    }
    Ok(())
}

/// The file of a socket on which nobody listens, or is about to listen.
fn unused(path: &Path) -> Option<Metadata> {
    let found = fs::symlink_metadata(path).ok().filter(|found| found.file_type().is_socket())?;
    connect(path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused).then_some(found)
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
    fn a_file_stays_while_another_process_looks_and_one_that_has_just_been_made_is_not_unused() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("x.sock");
        drop(UnixListener::bind(&path).unwrap());
        let other = File::open(folder.path()).unwrap();
        other.lock().unwrap();
        remove_unused(&path).unwrap();
        assert!(path.exists());
        // Another process removes the file and listens before this one gets the lock.
        std::thread::scope(|scope| {
            let removing = scope.spawn(|| remove_unused(&path));
            fs::remove_file(&path).unwrap();
            let _listener = UnixListener::bind(&path).unwrap();
            other.unlock().unwrap();
            removing.join().unwrap().unwrap();
            assert!(path.exists());
        });
    }
}
