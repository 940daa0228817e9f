//! TLS between real processes: the same bits, nothing readable on the wire, and one clear sentence for each wrong set-up.
//!
//! Not here: both ends of a handshake within one process (`net`), and compose (`containers`).
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use convoy_net::authority::{Authority, Issued};
use convoy_net::tls::Role;
use support::{
    Images, Process, Start as _, end, finish, free_address, hash, line_with, listening_at, record, said, signal, skip,
    succeed,
};
use tempfile::TempDir;

const JOB: &str = "train --data bundled --batch 16 --steps 12 --schedule constant --trace off";

/// The folder of a CA and certificates.
struct Certs(PathBuf);

impl Certs {
    /// A new CA.
    fn made(folder: &Path, name: &str) -> Self {
        let made = Self(folder.join(name));
        made.make("--workers 2");
        made
    }

    /// Runs the command in this folder.
    fn make(&self, arguments: &str) -> String {
        succeed(&format!("certs {} {arguments}", self.0.display()), &[])
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    /// The flags of a process.
    fn flags(&self, name: &str) -> Vec<String> {
        self.trusting(name, &self.path("ca.pem"))
    }

    /// The flags of a process that trusts other CAs.
    fn trusting(&self, name: &str, authorities: &str) -> Vec<String> {
        let (certificate, key) = (self.path(&format!("{name}.pem")), self.path(&format!("{name}-key.pem")));
        ["--tls-cert", &certificate, "--tls-key", &key, "--tls-ca", authorities].map(str::to_owned).to_vec()
    }
}

fn coordinator(job: &str, flags: &[String], out: &Path) -> Process {
    let mut command = support::convoy();
    command.args(job.split_whitespace()).args(["--listen", "127.0.0.1:0"]).args(flags).arg("--out").arg(out);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

fn worker(address: &str, flags: &[String]) -> Process {
    let mut command = support::convoy();
    command.args(["worker", "--threads", "1", "--join", address]).args(flags);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

/// A Python with gRPC, if there is one.
fn python() -> Option<String> {
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let has = Command::new(&python).args(["-c", "import grpc"]).output().is_ok_and(|found| found.status.success());
    if !has {
        skip(&format!("{python} has no grpcio"));
    }
    has.then_some(python)
}

fn foreign(python: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new(python);
    support::forget_settings(&mut command);
    command.arg("tests/tls/foreign.py").args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).start()
}

/// The hash of a job without a network.
fn undisturbed(folder: &Path) -> String {
    let out = folder.join("undisturbed");
    succeed(JOB, &[("--out", &out)]);
    hash(&out)
}

#[test]
fn a_job_over_tls_ends_in_the_same_bits_and_tells_its_health_and_metrics() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let (certs, expected) = (Certs::made(folder.path(), "certs"), undisturbed(folder.path()));
    for (count, exchange) in [(2, "direct"), (4, "direct"), (2, "relay")] {
        let out = folder.path().join(format!("{count}-{exchange}"));
        let metrics = free_address();
        let job = format!("{JOB} --workers {count} --exchange {exchange} --metrics {metrics}");
        let mut coordinator = coordinator(&job, &certs.flags("coordinator"), &out);
        let address = listening_at(&mut coordinator);
        let health = free_address();
        let first = worker(&address, &[certs.flags("worker-1"), vec!["--health".to_owned(), health.clone()]].concat());
        support::wait_for("the worker's health", || std::net::TcpStream::connect(&health).ok());
        let is_well = |address: &str| {
            let flags = certs.flags("worker-2").join(" ");
            succeed(&format!("health --live {flags} {address}"), &[])
        };
        assert!(is_well(&health).contains("the worker at") && is_well(&address).contains("the coordinator at"));
        succeed(&format!("health --live {} {address}", certs.flags("coordinator").join(" ")), &[]);
        let talk =
            |what: &str, address: &str| said(&finish(foreign(&python, &[what, address, certs.0.to_str().unwrap()])));
        let scraped = talk("scrape", &metrics);
        assert!(scraped.contains("200 OK") && scraped.contains("process_resident_memory_bytes"), "{scraped}");
        // The answer is the number 1 in field 1: SERVING.
        assert_eq!(talk("health", &address), "b'\\x08\\x01'\n");
        let workers: Vec<_> = (1..count).map(|_| worker(&address, &certs.flags("worker-2"))).chain([first]).collect();
        let output = finish(coordinator);
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(hash(&out), expected, "{count} workers, {exchange}");
        assert!(!said(&output).contains("refused"), "health checks are no refusals: {}", said(&output));
        let record = record(&out);
        let across = record["planned_step_traffic"]["across"].as_u64();
        assert_eq!((across > Some(0), &record["incidents"]), (exchange == "direct", &serde_json::json!([])));
        end(workers);
    }
}

/// A worker that is killed in a job with TLS is replaced, and its end reads as without TLS.
#[test]
fn a_worker_is_lost_as_without_tls() {
    let folder = TempDir::new().unwrap();
    let (certs, out) = (Certs::made(folder.path(), "certs"), folder.path().join("run"));
    let mut coordinator = coordinator(JOB, &certs.flags("coordinator"), &out);
    let address = listening_at(&mut coordinator);
    let dies = [certs.flags("worker-1"), vec!["--rehearse".to_owned(), "kill@forward:5".to_owned()]].concat();
    let workers = [&dies, &certs.flags("worker-1"), &certs.flags("worker-2")].map(|flags| worker(&address, flags));
    let output = finish(coordinator);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(hash(&out), undisturbed(folder.path()));
    let incidents = record(&out)["incidents"].to_string();
    assert!(incidents.len() > 2 && !incidents.contains("close_notify"), "{incidents}");
    let [_, others @ ..] = workers;
    assert!(!end(others).contains("close_notify"));
}

/// What crossed the loopback interface during a job with these flags, and the run. None: this user may not look.
fn captured(folder: &Path, name: &str, job: &str, secrets: [Vec<String>; 2]) -> Option<(Vec<u8>, PathBuf)> {
    let (file, out) = (folder.join(format!("{name}.capture")), folder.join(name));
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let may = "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)";
    if !Command::new(&python).args(["-c", may]).output().is_ok_and(|tried| tried.status.success()) {
        skip("this user may not open raw sockets");
        return None;
    }
    let mut command = Command::new(&python);
    command.arg("tests/tls/capture.py").arg(&file).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut capturing = command.start();
    line_with(capturing.stdout.as_mut().unwrap(), "capturing");
    let [own, of_workers] = secrets;
    let mut coordinator = coordinator(job, &own, &out);
    let address = listening_at(&mut coordinator);
    let workers = [(); 2].map(|()| worker(&address, &of_workers));
    let output = finish(coordinator);
    assert!(output.status.success(), "{}", said(&output));
    end(workers);
    drop(capturing.stdin.take());
    let output = finish(capturing);
    assert!(output.status.success(), "{}", said(&output));
    Some((std::fs::read(file).unwrap(), out))
}

/// 32 times the letter a, as headers of HTTP/2 encode it after `Bearer `: eight times 00011 are five bytes (RFC 7541, appendix B).
const TOKEN_IN_HEADERS: [u8; 20] = {
    let [a, b, c, d, e] = [0x18, 0xc6, 0x31, 0x8c, 0x63];
    [a, b, c, d, e, a, b, c, d, e, a, b, c, d, e, a, b, c, d, e]
};

fn holds(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Pieces of a file, each of which is too long to be there by chance.
fn pieces(bytes: &[u8]) -> Vec<&[u8]> {
    const PIECE: usize = 32;
    let step = bytes.len() / 50;
    (1..50)
        .map(|index| &bytes[index * step..][..PIECE])
        .filter(|piece| piece.iter().any(|byte| *byte != piece[0]))
        .collect()
}

#[test]
fn a_capture_of_the_wire_shows_neither_token_nor_images_nor_weights() {
    let folder = TempDir::new().unwrap();
    let certs = Certs::made(folder.path(), "certs");
    let token = folder.path().join("token");
    std::fs::write(&token, "a".repeat(32)).unwrap();
    let token = vec!["--token-file".to_owned(), token.display().to_string()];
    // Images of noise: no piece of them is there by chance.
    let noise = |count: usize, seed: u64| {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        Images { pixels: (0..count * 784).map(|_| next()).collect(), shape: [1, 28, 28], labels: vec![3; count] }
    };
    let (train, test) = (noise(64, 1), noise(16, 2));
    support::write_data(folder.path(), &train, &test);
    let job = format!(
        "train --data {} --batch 16 --steps 8 --schedule constant --trace off --checkpoint-every 4",
        folder.path().display()
    );
    let plain = captured(folder.path(), "plain", &job, [token.clone(), token.clone()]);
    let secrets = ["coordinator", "worker-1"].map(|name| [certs.flags(name), token.clone()].concat());
    let Some(((plain, plain_run), (secret, run))) = plain.zip(captured(folder.path(), "secret", &job, secrets)) else {
        return;
    };
    assert_eq!(hash(&plain_run), hash(&run));
    let weights = std::fs::read(support::checkpoint(&run).join("weights.safetensors")).unwrap();
    let [token, images, weights] = [vec![&TOKEN_IN_HEADERS[..]], pieces(&train.pixels), pieces(&weights)];
    for (what, parts) in [("token", token), ("images", images), ("weights", weights)] {
        let seen = |wire: &[u8]| parts.iter().filter(|part| holds(wire, part)).count();
        let (without, with) = (seen(&plain), seen(&secret));
        assert!(2 * without >= parts.len(), "{what}: a plain wire shows only {without} of {} pieces", parts.len());
        assert_eq!(with, 0, "{what}: a wire with TLS shows {with} of {} pieces", parts.len());
    }
    assert!(secret.len() > plain.len() / 2, "as much was sent");
}

/// A worker that must not get in: its flags, what it says, and what the coordinator says of it.
struct Wrong {
    what: &'static str,
    flags: Vec<String>,
    /// The exit code, if the worker gives up.
    code: Option<i32>,
    says: &'static str,
    said_of: &'static str,
}

#[test]
fn each_wrong_set_up_has_a_sentence_and_the_job_goes_on() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let (certs, other) = (Certs::made(folder.path(), "certs"), Certs::made(folder.path(), "other"));
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    let both = folder.path().join("both.pem");
    std::fs::write(&both, read(certs.path("ca.pem")) + &read(other.path("ca.pem"))).unwrap();
    let wrong = [
        Wrong {
            what: "a certificate of another CA",
            flags: other.trusting("worker-1", both.to_str().unwrap()),
            code: Some(1),
            says: "refuses this worker: no CA in the other process's --tls-ca issued the certificate of this process (--tls-cert)",
            said_of: "its certificate was not issued by a CA in the --tls-ca of this process",
        },
        Wrong {
            what: "another CA",
            flags: other.flags("worker-1"),
            code: None,
            says: "its certificate was not issued by a CA in the --tls-ca of this process; retrying",
            said_of: "no CA in the other process's --tls-ca issued the certificate of this process",
        },
        Wrong {
            what: "no TLS",
            flags: Vec::new(),
            code: None,
            says: "it requires TLS; give this process --tls-cert, --tls-key and --tls-ca too; retrying",
            said_of: "it does not use TLS; start it with --tls-cert, --tls-key and --tls-ca, or this process without them",
        },
    ];
    let out = folder.path().join("run");
    let mut coordinator = coordinator(JOB, &certs.flags("coordinator"), &out);
    let address = listening_at(&mut coordinator);
    for Wrong { what, flags, code, says, .. } in &wrong {
        let mut stranger = worker(&address, flags);
        if code.is_none() {
            let line = line_with(stranger.stderr.as_mut().unwrap(), "cannot connect to a coordinator");
            assert!(line.contains(says), "{what}: {line}");
            signal(stranger.id(), "TERM");
        }
        let output = finish(stranger);
        assert_eq!(output.status.code(), Some(code.unwrap_or(0)), "{what}: {}", said(&output));
        assert!(code.is_none() || said(&output).contains(says), "{what}: {}", said(&output));
    }
    // A certificate that has expired since its process started, and that of a foreign server.
    let (certificate, key) = expired(&certs, folder.path(), Role::Worker);
    let ca = certs.path("ca.pem");
    let output = finish(foreign(&python, &["connect", &address, &ca, &certificate, &key]));
    assert!(said(&output).contains("CERTIFICATE_EXPIRED"), "{}", said(&output));
    let workers = ["worker-1", "worker-2"].map(|name| worker(&address, &certs.flags(name)));
    let output = finish(coordinator);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(hash(&out), undisturbed(folder.path()));
    for said_of in wrong.iter().map(|wrong| wrong.said_of).chain(["its certificate expired "]) {
        let refused = "refused a connection from 127.0.0.1:";
        let line = said(&output).lines().any(|line| line.contains(refused) && line.contains(said_of));
        assert!(line, "no line with \"{said_of}\": {}", said(&output));
    }
    end(workers);
}

/// A certificate that has expired, and its key.
fn expired(certs: &Certs, folder: &Path, role: Role) -> (String, String) {
    let [ca, key] = ["ca.pem", "ca-key.pem"].map(|name| std::fs::read_to_string(certs.path(name)).unwrap());
    let authority = Authority::of(ca.as_bytes(), &key).unwrap();
    let Issued { certificate, key } = authority.issue(role, "test", 0).unwrap();
    // Certificates are valid to the end of a second.
    let second = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let made = second();
    support::wait_for("the next second", || (second() > made).then_some(()));
    let [certificate_path, key_path] = ["expired.pem", "expired-key.pem"].map(|name| folder.join(name));
    std::fs::write(&certificate_path, certificate).unwrap();
    std::fs::write(&key_path, key).unwrap();
    (certificate_path.display().to_string(), key_path.display().to_string())
}

#[test]
fn a_worker_says_why_it_does_not_trust_a_server() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let certs = Certs::made(folder.path(), "certs");
    let complaint = |address: &str| {
        let mut worker = worker(address, &certs.flags("worker-1"));
        let line = line_with(worker.stderr.as_mut().unwrap(), "cannot connect to a coordinator");
        end([worker]);
        line
    };
    let (certificate, key) = expired(&certs, folder.path(), Role::Coordinator);
    let mut server = foreign(&python, &["serve", &certs.path("ca.pem"), &certificate, &key]);
    let port = line_with(server.stdout.as_mut().unwrap(), "");
    let line = complaint(&format!("127.0.0.1:{port}"));
    assert!(line.contains("its certificate expired "), "{line}");
    assert!(said(&finish(server)).contains("CERTIFICATE_EXPIRED"));

    // A worker's certificate at the address of a coordinator.
    let health = free_address();
    let impostor =
        worker("127.0.0.1:1", &[certs.flags("worker-2"), vec!["--health".to_owned(), health.clone()]].concat());
    support::wait_for("the worker's health", || std::net::TcpStream::connect(&health).ok());
    let line = complaint(&health);
    let names = "its certificate is for worker.convoy.internal; it must have the DNS name coordinator.convoy.internal";
    assert!(line.contains(names), "{line}");
    end([impostor]);

    // A coordinator without TLS.
    let mut plain = coordinator(JOB, &[], &folder.path().join("run"));
    let address = listening_at(&mut plain);
    let line = complaint(&address);
    assert!(line.contains("it does not use TLS; start it with --tls-cert, --tls-key and --tls-ca"), "{line}");
    signal(plain.id(), "INT");
    let output = finish(plain);
    assert!(said(&output).contains("it uses TLS; give this process --tls-cert, --tls-key"), "{}", said(&output));
}

/// A worker speaks to a server of another implementation of gRPC and TLS.
#[test]
fn a_foreign_coordinator_hears_a_worker_over_tls() {
    let Some(python) = python() else { return };
    let folder = TempDir::new().unwrap();
    let certs = Certs::made(folder.path(), "certs");
    let mut server = foreign(&python, &["coordinate", certs.0.to_str().unwrap()]);
    let port = line_with(server.stdout.as_mut().unwrap(), "");
    let worker = worker(&format!("127.0.0.1:{port}"), &certs.flags("worker-1"));
    let heard = said(&finish(server));
    assert!(heard.contains(env!("CARGO_PKG_VERSION")), "its Hello has the version of the program: {heard}");
    end([worker]);
}

/// Listens at a socket as another user, and prints how many bytes the first client sent.
const LISTENS_AS_NOBODY: &str = "
import os, socket, sys
os.setuid(65534)
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
os.chmod(sys.argv[1], 0o777)
listener.listen()
print('listening', flush=True)
client = listener.accept()[0]
print(len(client.recv(1 << 16)), flush=True)
";

#[test]
fn a_worker_tells_nothing_to_a_socket_of_another_user() {
    let folder = TempDir::new().unwrap();
    if std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own)).unwrap() != 0 {
        return skip("only root can listen as another user");
    }
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let (socket, token) = (folder.path().join("socket"), folder.path().join("token"));
    std::fs::write(&token, "correct-horse").unwrap();
    let mut command = Command::new("python3");
    command.args(["-c", LISTENS_AS_NOBODY]).arg(&socket).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut listening = command.start();
    line_with(listening.stdout.as_mut().unwrap(), "listening");
    let flags = ["--token-file".to_owned(), token.display().to_string()];
    let mut worker = worker(&format!("unix:{}", socket.display()), &flags);
    let line = line_with(worker.stderr.as_mut().unwrap(), "cannot connect to a coordinator");
    assert!(line.contains("belongs to user 65534; it must belong to user 0"), "{line}");
    end([worker]);
    assert_eq!(said(&finish(listening)), "0\n");
}

#[test]
fn two_processes_in_one_folder_do_not_mix_their_files() {
    let folder = TempDir::new().unwrap();
    let dir = folder.path().join("certs");
    let made = [(); 4].map(|()| {
        let mut command = support::convoy();
        command.args(["certs", "--workers", "10"]).arg(&dir).stdout(Stdio::piped()).stderr(Stdio::piped()).start()
    });
    for process in made {
        let output = finish(process);
        assert!(output.status.success(), "{}", said(&output));
    }
}

#[test]
fn certificates_stay_until_they_are_renewed_and_damage_is_named() {
    let folder = TempDir::new().unwrap();
    let certs = Certs::made(folder.path(), "certs");
    let read = |name: &str| std::fs::read_to_string(certs.path(name)).unwrap();
    let mode = |name: &str| std::fs::metadata(certs.0.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!(["", "ca-key.pem", "coordinator-key.pem", "worker-1-key.pem"].map(mode), [0o700, 0o600, 0o600, 0o600]);
    let before = ["ca.pem", "coordinator.pem", "worker-2.pem"].map(read);
    let said_again = certs.make("--workers 3");
    assert!(said_again.contains("made 1 certificate,") && said_again.contains("kept 3"), "{said_again}");
    assert_eq!(["ca.pem", "coordinator.pem", "worker-2.pem"].map(read), before);
    assert!(read("worker-3.pem").starts_with("-----BEGIN CERTIFICATE-----"));
    let third = read("worker-3.pem");
    certs.make("--workers 2 --renew");
    let after = ["ca.pem", "coordinator.pem", "worker-2.pem"].map(read);
    assert!(after[0] == before[0] && after[1] != before[1] && after[2] != before[2]);
    assert_ne!(read("worker-3.pem"), third, "all certificates are renewed");

    let refused = |why: &str| {
        let output = support::run(&format!("certs {} --workers 2", certs.0.display()), &[]);
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert!(said(&output).contains(why), "no \"{why}\" in {}", said(&output));
    };
    let key = read("ca-key.pem");
    let restore = |name: &str, text: &str| std::fs::write(certs.path(name), text).unwrap();
    std::fs::remove_file(certs.path("worker-1-key.pem")).unwrap();
    certs.make("--workers 2");
    restore("worker-1-key.pem", &read("worker-2-key.pem"));
    refused("its key is not the one in --tls-key");
    restore("worker-1-key.pem", "");
    refused("worker-1-key.pem: it has no key in PEM");
    certs.make("--workers 2 --renew");
    restore("ca-key.pem", "no key");
    refused("cannot use the key of the CA in");
    std::fs::remove_file(certs.path("ca-key.pem")).unwrap();
    refused("ca-key.pem is missing, although");
    restore("ca-key.pem", &key);
    restore("ca.pem", &std::fs::read_to_string(Certs::made(folder.path(), "other").path("ca.pem")).unwrap());
    refused("ca-key.pem: it is not the key of the certificate beside it");
    let mut file = std::fs::File::create(certs.path("ca.pem")).unwrap();
    file.write_all(&[0; 64]).unwrap();
    refused("ca-key.pem: the certificate beside it is damaged");
    std::fs::remove_file(certs.path("ca.pem")).unwrap();
    std::fs::remove_file(certs.path("ca-key.pem")).unwrap();
    refused("has certificates but no CA: put");
    assert!(!certs.0.join("ca-key.pem").exists(), "no other CA takes its place");
}
