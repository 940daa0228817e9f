//! Downloads the files of a data set that a folder lacks, and checks each against its MD5.
//!
//! There are two mirrors, and every wait and every size has a limit. A file gets its name only when it is complete and on
//! disk, so a job that is killed, or two jobs at once, leave no partial file. The MD5 sums, which upstream publishes, protect
//! against damage and not against an attacker.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use md5::{Digest, Md5};

use convoy_common::parameters::hex;

/// Limit for looking up a name, and again for connecting. A machine without a network shouldn't wait long.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Limit for a server to begin its answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for one file from one mirror. The largest has 26 MB, so 3 Mbit/s are enough.
const FILE_TIMEOUT: Duration = Duration::from_secs(90);
const COPY_BUFFER_BYTES: usize = 64 << 10;

/// A file as upstream publishes it.
#[derive(Debug, Clone)]
pub(super) struct RemoteFile {
    pub(super) name: &'static str,
    /// Its size. A longer answer is cut off.
    pub(super) bytes: u64,
    pub(super) md5: &'static str,
}

/// What to download, and from where.
pub(super) struct Remote {
    pub(super) agent: ureq::Agent,
    /// In the order of use. A mirror that fails isn't used again.
    pub(super) mirrors: [String; 2],
    pub(super) files: Vec<RemoteFile>,
}

/// Why a download failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DownloadError {
    #[error("cannot download {url}")]
    Fetch { url: String, source: Box<ureq::Error> },
    #[error("cannot read the body of {url}")]
    Body { url: String, source: io::Error },
    #[error("{url} has MD5 {found}, not {expected}")]
    WrongMd5 { url: String, found: String, expected: &'static str },
    #[error("cannot write {}", file.display())]
    Write { file: PathBuf, source: io::Error },
}

impl Remote {
    /// Fashion-MNIST, from its publisher and from GitHub.
    pub(super) fn fashion_mnist() -> Self {
        let file = |name, bytes, md5| RemoteFile { name, bytes, md5 };
        Remote {
            agent: ureq::Agent::new_with_config(agent_config().build()),
            mirrors: [
                "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/".into(),
                "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/".into(),
            ],
            files: vec![
                file("train-images-idx3-ubyte.gz", 26_421_880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
                file("train-labels-idx1-ubyte.gz", 29_515, "25c81989df183df01b3e8a0aad5dffbe"),
                file("t10k-images-idx3-ubyte.gz", 4_422_102, "bef4ecab320f06d8554ea6380940ec79"),
                file("t10k-labels-idx1-ubyte.gz", 5_148, "bb300cfdad3c16e7a12a480ee83cd310"),
            ],
        }
    }
}

impl Remote {
    /// The same without training images and labels.
    pub(super) fn test_files(mut self) -> Self {
        self.files.retain(|file| file.name.starts_with("t10k"));
        self
    }
}

/// Every wait has a limit. Tests add that they use no proxy.
pub(super) fn agent_config() -> ureq::config::ConfigBuilder<ureq::typestate::AgentScope> {
    ureq::Agent::config_builder()
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(RESPONSE_TIMEOUT))
        .timeout_global(Some(FILE_TIMEOUT))
        .max_redirects(4)
}

/// Downloads every file that the folder lacks. Files that arrived before a failure stay, and aren't downloaded again.
pub(super) fn fetch_missing(folder: &Path, remote: &Remote) -> Result<(), DownloadError> {
    let write = |source| DownloadError::Write { file: folder.to_path_buf(), source };
    fs::create_dir_all(folder).map_err(write)?;
    let mut mirror = 0;
    for file in remote.files.iter().filter(|file| !folder.join(file.name).is_file()) {
        while let Err(error) = fetch(folder, file, &remote.mirrors[mirror], &remote.agent) {
            mirror += 1;
            if mirror == remote.mirrors.len() {
                return Err(error);
            }
            tracing::info!(%error, "trying the next mirror");
        }
    }
    // Renames are on disk only when the folder is synced.
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(write)
}

fn fetch(folder: &Path, file: &RemoteFile, mirror: &str, agent: &ureq::Agent) -> Result<(), DownloadError> {
    let url = format!("{mirror}{}", file.name);
    tracing::info!(%url, bytes = file.bytes, folder = %folder.display(), "downloading");
    let mut response = match agent.get(&url).call() {
        Ok(response) => response,
        Err(error) => return Err(DownloadError::Fetch { url, source: Box::new(error) }),
    };
    let body = response.body_mut().with_config().limit(file.bytes).reader();
    let part = Part::create(folder, file.name)?;
    let found = part.fill(body, &url)?;
    if found != file.md5 {
        return Err(DownloadError::WrongMd5 { url, found, expected: file.md5 });
    }
    part.keep(&folder.join(file.name))
}

/// A file that is written under a temporary name, and removed unless it is kept.
struct Part {
    path: PathBuf,
    file: File,
}

impl Part {
    /// The random name keeps two jobs apart, also in containers, which have the same process ids.
    fn create(folder: &Path, name: &str) -> Result<Self, DownloadError> {
        let path = folder.join(format!(".{name}.{:016x}.part", unguessable()));
        match File::create(&path) {
            Ok(file) => Ok(Part { path, file }),
            Err(source) => Err(DownloadError::Write { file: path, source }),
        }
    }

    /// Writes the whole body and returns its MD5.
    fn fill(&self, mut body: impl Read, url: &str) -> Result<String, DownloadError> {
        let mut md5 = Md5::new();
        let mut buffer = vec![0; COPY_BUFFER_BYTES];
        loop {
            let count = match body.read(&mut buffer) {
                Ok(0) => return Ok(hex(&md5.finalize())),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(source) => return Err(DownloadError::Body { url: url.into(), source }),
            };
            md5.update(&buffer[..count]);
            (&self.file).write_all(&buffer[..count]).map_err(|source| self.failed(source))?;
        }
    }

    fn keep(self, name: &Path) -> Result<(), DownloadError> {
        self.file.sync_all().map_err(|source| self.failed(source))?;
        fs::rename(&self.path, name).map_err(|source| self.failed(source))
    }

    fn failed(&self, source: io::Error) -> DownloadError {
        DownloadError::Write { file: self.path.clone(), source }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // After the rename nothing has this name. A part that can't be removed does no harm.
        let _ = fs::remove_file(&self.path);
    }
}

/// A number that no other process chooses, from the system's random number generator.
///
/// # Panics
/// When the system has none. Linux always has one.
fn unguessable() -> u64 {
    getrandom::u64().expect("the system has a random number generator")
}
