//! Workers and the coordinator in containers on a real engine: with docker-compose.yml (a separate command for each job, or one job
//! in the background), and with the Swarm stack. The bits must equal those of a local job, and nothing may be left behind, even
//! when a test fails.
//!
//! The suite needs a running Docker Engine and docker-compose. Without them it says that it was skipped.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Process, Start as _, hash, losses, newest_checkpoint, output_of, record, said, signal, succeed};
use tempfile::TempDir;

/// Two cores: one stack at a time.
static ENGINE: Mutex<()> = Mutex::new(());

/// As [`support::wait_for`]. Each question is a process, which takes time from the containers, so that there are only a few in a second.
fn wait_for<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    support::wait_for(what, || {
        let found = found();
        if found.is_none() {
            std::thread::sleep(Duration::from_millis(200));
        }
        found
    })
}

fn docker(arguments: &[&str]) -> String {
    let output = output_of(Command::new("docker").args(arguments));
    assert!(output.status.success(), "docker {arguments:?}:\n{}", said(&output));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn lines(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn runs(program: &str, arguments: &[&str]) -> bool {
    Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
}

/// The compose programs of this machine: docker-compose 1.29 and the second version. One that is missing is spoken of.
fn composes() -> Vec<Vec<String>> {
    let mut found = Vec::new();
    match runs("docker-compose", &["version"]) {
        true => found.push(vec!["docker-compose".to_owned()]),
        false => support::skip("there is no docker-compose"),
    }
    if let Some(second) = std::env::var_os("CONVOY_COMPOSE_V2") {
        found.push(vec![second.to_str().unwrap().to_owned()]);
    } else if runs("docker", &["compose", "version"]) {
        found.push(vec!["docker".to_owned(), "compose".to_owned()]);
    } else {
        support::skip("there is no second version of compose (docker compose, or CONVOY_COMPOSE_V2)");
    }
    found
}

/// Begins the names of everything that these tests make, and labels it. The process id of the tests follows.
const MARK: &str = "convoytest";

/// Whether tests made what has this name, in a process that has ended. Another process of tests may use the engine at this moment.
fn is_left_behind(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(MARK) else { return false };
    let owner = rest.trim_start_matches("-fetch").trim_start_matches('-');
    let owner: String = owner.chars().take_while(char::is_ascii_digit).collect();
    let command = std::fs::read_to_string(format!("/proc/{owner}/cmdline")).unwrap_or_default();
    owner.is_empty() || !command.contains("containers")
}

#[test]
fn only_what_ended_tests_made_is_left_behind() {
    let own = std::process::id();
    let mut ended = Command::new("true").spawn().unwrap();
    ended.wait().unwrap();
    for name in ["{}x0", "{}x0-calm_default", "-{}:1", "-fetch-{}-0"].map(|name| format!("{MARK}{name}")) {
        assert!(!is_left_behind(&name.replace("{}", &own.to_string())), "{name}");
        assert!(is_left_behind(&name.replace("{}", &ended.id().to_string())), "{name}");
    }
    assert!(!is_left_behind("postgres"));
}

/// A file that processes of these tests lock. It may be another user's.
fn lock_file(name: &str) -> File {
    let path = std::env::temp_dir().join(format!("{MARK}-{name}.lock"));
    File::create(&path).or_else(|_| File::open(&path)).unwrap()
}

/// Locked by every process of these tests as long as it runs, together with the others.
fn engine_lock() -> &'static File {
    static USED: OnceLock<File> = OnceLock::new();
    USED.get_or_init(|| {
        let file = lock_file("engine");
        file.lock_shared().unwrap();
        file
    })
}

/// Ends the swarm that these tests have made this machine, if there is one, unless another process of them runs: an engine that leaves a
/// swarm forgets the names of all containers, so that no container finds another one. The last process ends it.
fn leave_swarm() {
    let used = engine_lock();
    // A lock can't be changed from one kind to the other.
    used.unlock().unwrap();
    if used.try_lock().is_ok() {
        if is_our_swarm() {
            runs("docker", &["swarm", "leave", "--force"]);
        }
        used.unlock().unwrap();
    }
    used.lock_shared().unwrap();
}

/// Removes what tests have left behind that were killed before they could. Once, before anything is made.
fn sweep() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        for stack in lines(&docker_or_nothing(&["stack", "ls", "--format", "{{.Name}}"])) {
            if is_left_behind(&stack) {
                runs("docker", &["stack", "rm", &stack]);
            }
        }
        leave_swarm();
        let kinds: [(&[&str], &[&str]); 4] = [
            (&["ps", "--all", "--format", "{{.Names}}"], &["rm", "--force"]),
            (&["network", "ls", "--format", "{{.Name}}"], &["network", "rm"]),
            (&["volume", "ls", "--format", "{{.Name}}"], &["volume", "rm", "--force"]),
            (&["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"], &["image", "rm", "--force"]),
        ];
        for (list, remove) in kinds {
            for name in lines(&docker_or_nothing(list)).iter().filter(|name| is_left_behind(name)) {
                runs("docker", &[remove, &[name.as_str()]].concat());
            }
        }
    });
}

fn docker_or_nothing(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output();
    output.map_or_else(|_| String::new(), |output| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// An image of the built program, under a name of its own.
struct Image(String);

impl Image {
    /// None where there is no engine, which is said.
    fn build() -> Option<Self> {
        if !runs("docker", &["version"]) {
            support::skip("no Docker Engine answers (docker version fails)");
            return None;
        }
        sweep();
        let image = Self(format!("{MARK}-{}:{}", std::process::id(), unique()));
        let mut command = Command::new("deploy/scratch-image");
        let output = output_of(command.arg(&image.0).env("CONVOY_BINARY", env!("CARGO_BIN_EXE_convoy")));
        assert!(output.status.success(), "{}", said(&output));
        assert!(said(&output).contains(" MB"), "it says how large it is: {}", said(&output));
        Some(image)
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        runs("docker", &["image", "rm", "--force", &self.0]);
        leave_swarm();
    }
}

fn unique() -> usize {
    static NEXT: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);
    NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
}

/// A compose project under a name of its own.
struct Project<'a> {
    compose: &'a [String],
    name: String,
    image: &'a Image,
    folder: &'a Path,
    settings: Vec<(&'static str, String)>,
    files: Vec<&'static str>,
    /// The folder that is mounted as `/runs`. None: a volume.
    runs: Option<PathBuf>,
}

impl<'a> Project<'a> {
    fn new(compose: &'a [String], image: &'a Image, folder: &'a Path) -> Self {
        let name = format!("{MARK}{}x{}", std::process::id(), unique());
        Self { compose, name, image, folder, settings: Vec::new(), files: vec!["docker-compose.yml"], runs: None }
    }

    fn with(mut self, key: &'static str, value: &str) -> Self {
        self.settings.push((key, value.to_owned()));
        self
    }

    /// Runs go to a folder of this machine, where they can be read without the engine.
    fn with_folder(mut self) -> Self {
        use std::os::unix::fs::MetadataExt;
        let runs = self.folder.join(format!("{}-runs", self.name));
        std::fs::create_dir(&runs).unwrap();
        let owner = std::fs::metadata(&runs).unwrap();
        self.settings.push(("CONVOY_MOUNT_RUNS", runs.to_str().unwrap().to_owned()));
        self.settings.push(("CONVOY_USER", format!("{}:{}", owner.uid(), owner.gid())));
        self.runs = Some(runs);
        self
    }

    fn and_file(mut self, file: &'static str) -> Self {
        self.files.push(file);
        self
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.compose[0]);
        command.args(&self.compose[1..]).args(self.files.iter().flat_map(|file| ["-f", file]));
        command.args(["-p", &self.name]).args(arguments);
        support::forget_settings(&mut command);
        command.env("CONVOY_IMAGE", &self.image.0).env("CONVOY_MOUNT_DATA", self.folder).env("CONVOY_OFFLINE", "1");
        command.envs(self.settings.iter().map(|(key, value)| (*key, value)));
        command
    }

    fn run(&self, arguments: &[&str]) {
        self.output(arguments);
    }

    /// What a command prints, without what compose itself says on standard error.
    fn output(&self, arguments: &[&str]) -> String {
        let output = output_of(&mut self.command(arguments));
        assert!(output.status.success(), "{:?} {arguments:?}:\n{}", self.compose, said(&output));
        String::from_utf8(output.stdout).unwrap()
    }

    fn containers(&self, service: &str) -> Vec<String> {
        let project = format!("label=com.docker.compose.project={}", self.name);
        let service = format!("label=com.docker.compose.service={service}");
        lines(&docker(&["ps", "--all", "--quiet", "--no-trunc", "--filter", &project, "--filter", &service]))
    }

    fn wait_healthy(&self, service: &str, count: usize) -> Vec<String> {
        wait_for("healthy workers", || {
            let ids = self.containers(service);
            let healthy = |id: &String| docker(&["inspect", "--format", "{{.State.Health.Status}}", id]) == "healthy";
            (ids.len() == count && ids.iter().all(healthy)).then_some(ids)
        })
    }

    /// The project's runs, as they are now: those of a volume are copied.
    fn runs(&self) -> PathBuf {
        self.runs.clone().unwrap_or_else(|| fetch(&format!("{}_runs", self.name), self.image, self.folder))
    }

    /// What the engine still has of this project.
    fn remains(&self) -> Vec<String> {
        let filter = format!("label=com.docker.compose.project={}", self.name);
        let kinds: [&[&str]; 3] = [&["ps", "--all"], &["network", "ls"], &["volume", "ls"]];
        kinds.iter().flat_map(|kind| lines(&docker(&[kind, &["--quiet", "--filter", &filter][..]].concat()))).collect()
    }
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        // What is still there when a test has failed is for nobody.
        for id in self.containers("worker").iter().chain(&self.containers("coordinator")) {
            runs("docker", &["kill", id]);
        }
        let _ = self.command(&["down", "--volumes", "--remove-orphans", "--timeout", "20"]).output();
    }
}

/// A volume's files, by way of a container that never runs: the image has no tool to copy with.
fn fetch(volume: &str, image: &Image, to: &Path) -> PathBuf {
    let name = format!("{MARK}-fetch-{}-{}", std::process::id(), unique());
    let id = docker(&["create", "--name", &name, "--volume", &format!("{volume}:/runs"), &image.0]);
    let folder = to.join(format!("fetched-{}", unique()));
    let output = output_of(Command::new("docker").args(["cp", &format!("{id}:/runs")]).arg(&folder));
    docker(&["rm", &id]);
    assert!(output.status.success(), "{}", said(&output));
    folder
}

/// The hash of the same job with workers of its own on this machine.
fn embedded(folder: &Path, arguments: &str) -> String {
    let out = folder.join(format!("embedded-{}", unique()));
    succeed(&format!("train --data bundled {arguments}"), &[("--out", &out)]);
    hash(&out)
}

fn setting() -> Option<(Image, TempDir, Vec<Vec<String>>)> {
    let composes = composes();
    if composes.is_empty() {
        support::skip("neither docker-compose nor docker compose is there");
        return None;
    }
    Some((Image::build()?, TempDir::new().unwrap(), composes))
}

/// `up -d worker`, then `run` as often as one likes: each worker a container, which holds the tower that was said.
#[test]
fn workers_in_containers_serve_one_job_after_another() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let whole = embedded(folder.path(), "--steps 60");
    let second = embedded(folder.path(), "--steps 10 --seed 2");
    assert_ne!(second, embedded(folder.path(), "--steps 10"), "another seed has other bits");
    for compose in &composes {
        let project = Project::new(compose, &image, folder.path());
        project.run(&["up", "-d", "worker"]);
        let ids = project.wait_healthy("worker", 2);
        let job = ["run", "--rm", "--no-deps", "--use-aliases", "coordinator", "train", "--data", "bundled"];
        let log = project.output(&[&job[..], &["--steps", "60", "--out", "/runs/one"]].concat());
        project.run(&[&job[..], &["--steps", "10", "--seed", "2", "--out", "/runs/two"]].concat());
        let runs = project.runs();
        assert_eq!((hash(&runs.join("one")), hash(&runs.join("two"))), (whole.clone(), second.clone()), "{compose:?}");

        assert!(exchanges_directly(&runs.join("one")), "{compose:?}: {log}");
        let workers = record(&runs.join("one"))["workers"].as_array().unwrap().clone();
        let hosts: BTreeSet<_> = workers.iter().map(|worker| text(&worker["host"])).collect();
        assert_eq!(hosts, ids.iter().map(|id| id[..12].to_owned()).collect(), "each worker is a container");
        for worker in &workers {
            let (number, host) = (worker["worker"].as_u64().unwrap(), text(&worker["host"]));
            let address =
                docker(&["inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", &host]);
            assert_eq!(text(&worker["address"]).split(':').next(), Some(address.as_str()));
            let towers = &worker["towers"];
            let said = format!("worker {number} tower {} on {host} ", towers[0]);
            assert!(towers.as_array().unwrap().len() == 1 && log.contains(&said), "no \"{said}\" in\n{log}");
            // What the coordinator says of the worker, the worker says of itself: once a job.
            let own = log_of(&host);
            assert!(own.contains(&format!(" worker={number} towers=[{number}]}}")), "no worker={number} in\n{own}");
            assert!(
                !own.contains('\u{1b}') && own.lines().all(|line| line.contains("INFO") || line.contains("WARN")),
                "{own}"
            );
        }
        let all = project.output(&["logs", "--no-color", "worker"]);
        assert!(all.lines().filter(|line| line.contains("assigned")).count() >= 4, "a line a worker and job in\n{all}");
        let after = record(&runs.join("two"))["workers"].as_array().unwrap().clone();
        assert_eq!(
            after.iter().map(|worker| text(&worker["host"])).collect::<BTreeSet<_>>(),
            hosts,
            "they outlived it"
        );
        assert!(!log.contains('\u{1b}') && !log.contains('\r'), "plain lines where there is no terminal:\n{log}");

        project.run(&["down", "--volumes"]);
        assert_eq!(project.remains(), Vec::<String>::new(), "{compose:?}");
    }
}

/// `up` as a whole job: the coordinator is killed in the middle and started again by the engine, and goes on.
#[test]
fn a_whole_job_survives_its_coordinators_death() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let whole = embedded(folder.path(), "--steps 150 --seed 3 --batch 32");
    for compose in &composes {
        let project = Project::new(compose, &image, folder.path()).with_folder().with("CONVOY_CHECKPOINT_EVERY", "10");
        // Any setting may be said in the environment.
        let project = project.with("CONVOY_STEPS", "150").with("CONVOY_SEED", "3").with("CONVOY_BATCH", "32");
        project.run(&["up", "-d"]);
        // It is written while the job goes on: a loss of step 21 does not mean that it is on disk.
        wait_for("the checkpoint of step 20", || {
            let newest = newest_checkpoint(&project.runs().join("job"))?;
            (newest.file_name()? >= OsStr::new("step-000020")).then_some(())
        });
        let [id] = project.containers("coordinator").try_into().unwrap();
        // By the engine it would be a wish, and no accident: it wouldn't be started again.
        let process: u32 = docker(&["inspect", "--format", "{{.State.Pid}}", &id]).parse().unwrap();
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        if process == 0 || name.trim() != "convoy" {
            return support::skip("the engine's processes aren't this machine's: none of its own can be killed");
        }
        signal(process, "KILL");
        assert_eq!(wait_for_end(&project, &id), "0");
        let restarts = docker(&["inspect", "--format", "{{.RestartCount}}", &id]);
        assert_eq!(restarts, "1", "the fault fired");
        let runs = project.runs().join("job");
        assert_eq!(hash(&runs), whole, "{compose:?}");
        assert!(record(&runs)["running"]["resumed"][1].as_u64().unwrap() >= 20, "it went on from a checkpoint");
        assert_eq!(losses(&runs).len(), 150);
    }
}

/// Workers die in the middle of a job. One that the engine was told to kill isn't started again: the other one takes its tower over.
/// One whose process dies is started again by the engine, and joins the job again.
#[test]
fn a_job_survives_the_deaths_of_its_workers() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let whole = embedded(folder.path(), "--steps 400 --batch 32");
    for compose in &composes {
        let project = Project::new(compose, &image, folder.path()).with_folder().with("CONVOY_PATIENCE", "2");
        let project = project.with("CONVOY_STEPS", "400").with("CONVOY_BATCH", "32");
        project.run(&["up", "-d"]);
        let job = || project.runs().join("job");
        let wait_for_steps = |steps| wait_for("steps", || (losses(&job()).len() > steps).then_some(()));
        wait_for_steps(20);
        let [killed, dies] = project.containers("worker").try_into().unwrap();
        let [coordinator] = project.containers("coordinator").try_into().unwrap();
        docker(&["kill", &killed]);
        let workers = || record(&job())["workers"].as_array().map(Vec::len);
        wait_for("the other worker to take the tower over", || workers().filter(|count| *count == 1));
        let steps = losses(&job()).len();
        wait_for_steps(steps);
        let process: u32 = docker(&["inspect", "--format", "{{.State.Pid}}", &dies]).parse().unwrap();
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        if process == 0 || name.trim() != "convoy" {
            return support::skip("the engine's processes aren't this machine's: none of its own can be killed");
        }
        signal(process, "KILL");
        assert_eq!(wait_for_end(&project, &coordinator), "0", "{}", log_of(&coordinator));
        let restarts = |id: &str| docker(&["inspect", "--format", "{{.RestartCount}}", id]);
        assert_eq!((restarts(&killed), restarts(&dies)), ("0".to_owned(), "1".to_owned()), "the faults fired");
        let runs = job();
        assert_eq!(hash(&runs), whole, "{compose:?}");
        assert_eq!(losses(&runs).len(), 400, "each step is recorded once");
        assert_eq!(record(&runs)["incidents"].as_array().map(Vec::len), Some(2));
    }
}

/// A worker's container is disconnected from its network and connected again, the service is scaled to one worker and back to two, and
/// the coordinator's process is killed twice. The job ends in the same bits.
#[test]
fn a_job_survives_a_disconnected_network_and_a_change_of_scale() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    for compose in &composes {
        // At a constant rate, the end of the job may be set at last, however long the faults take.
        let project = Project::new(compose, &image, folder.path()).with_folder().with("CONVOY_STEPS", "1000000");
        let project = project.with("CONVOY_BATCH", "32").with("CONVOY_CHECKPOINT_EVERY", "20");
        let project =
            project.with("CONVOY_SCHEDULE", "constant").with("CONVOY_LR", "0.01").with("CONVOY_PATIENCE", "3");
        project.run(&["up", "-d"]);
        let job = || project.runs().join("job");
        let wait_for_more_steps = || {
            let steps = losses(&job()).len();
            wait_for("more steps", || (losses(&job()).len() > steps + 10).then_some(()));
        };
        let wait_for_workers = |wanted: usize| {
            let workers = || record(&job())["workers"].as_array().map(Vec::len);
            wait_for(&format!("{wanted} workers to hold the towers"), || workers().filter(|count| *count == wanted));
        };
        wait_for_more_steps();
        wait_for_workers(2);
        let network = format!("{}_default", project.name);
        let cut = project.containers("worker").swap_remove(0);
        docker(&["network", "disconnect", &network, &cut]);
        wait_for_workers(1);
        docker(&["network", "connect", &network, &cut]);
        wait_for_workers(2);
        project.run(&["up", "-d", "--no-recreate", "--scale", "worker=1", "worker"]);
        wait_for_workers(1);
        project.run(&["up", "-d", "--no-recreate", "--scale", "worker=2", "worker"]);
        wait_for_workers(2);
        let incidents = record(&job())["incidents"].as_array().unwrap().clone();
        let kinds: Vec<_> = incidents.iter().map(|incident| text(&incident["kind"])).collect();
        assert_eq!(kinds, ["lost", "left"], "the faults fired: {incidents:?}");
        assert!(text(&incidents[0]["what"]).contains("it did not answer for 5 s"), "{incidents:?}");

        let [coordinator] = project.containers("coordinator").try_into().unwrap();
        for kill in 1..=2 {
            wait_for_more_steps();
            let process: u32 = docker(&["inspect", "--format", "{{.State.Pid}}", &coordinator]).parse().unwrap();
            let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
            if process == 0 || name.trim() != "convoy" {
                return support::skip("the engine's processes aren't this machine's: none of its own can be killed");
            }
            signal(process, "KILL");
            let restarts = || docker(&["inspect", "--format", "{{.RestartCount}}", &coordinator]);
            wait_for("the coordinator to be started again", || (restarts() == kill.to_string()).then_some(()));
        }
        wait_for_more_steps();
        project.run(&["stop", "coordinator"]);
        assert_eq!(record(&job())["status"], "interrupted");
        let at = record(&job())["final"]["steps"].as_u64().unwrap();
        let (end, project) = (at + 5, project.with("CONVOY_STEPS", &(at + 5).to_string()));
        project.run(&["up", "-d"]);
        let [coordinator] = project.containers("coordinator").try_into().unwrap();
        assert_eq!(wait_for_end(&project, &coordinator), "0", "{}", log_of(&coordinator));
        let runs = project.runs().join("job");
        let whole = embedded(folder.path(), &format!("--steps {end} --batch 32 --schedule constant --lr 0.01"));
        assert_eq!((hash(&runs), losses(&runs).len() as u64), (whole, end), "{compose:?}");
        project.run(&["down", "--volumes"]);
        assert_eq!(project.remains(), Vec::<String>::new());
    }
}

/// Waits until a coordinator's container has ended and isn't started again. Its exit code. How long that takes depends on the machine, so
/// only a minute without a step is too long.
fn wait_for_end(project: &Project, id: &str) -> String {
    let steps = || losses(&project.runs().join("job")).len();
    let (mut began, mut before) = (Instant::now(), steps());
    loop {
        let state = docker(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", id]);
        if let Some(code) = state.strip_prefix("exited ") {
            return code.to_owned();
        }
        if began.elapsed() > Duration::from_secs(60) {
            let now = steps();
            assert_ne!(now, before, "no step after {before} for a minute:\n{}", log_of(id));
            (began, before) = (Instant::now(), now);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// `restart` and `down` in the middle: a checkpoint is written within the time of grace, and the job goes on from it.
#[test]
fn down_writes_a_checkpoint_and_leaves_nothing_but_the_runs() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    for compose in &composes {
        // At a constant rate, the end of the job may be set at last: no interruption comes too late, however slow the engine is.
        let project = Project::new(compose, &image, folder.path()).with("CONVOY_STEPS", "1000000");
        let project = project.with("CONVOY_BATCH", "32").with("CONVOY_CHECKPOINT_EVERY", "1000000");
        let project = project.with("CONVOY_SCHEDULE", "constant").with("CONVOY_LR", "0.01");
        project.run(&["up", "-d"]);
        let wait_for_steps = |steps: usize| {
            let done = || losses(&project.runs().join("job")).len() >= steps;
            wait_for("steps of the job", || done().then_some(()));
        };
        wait_for_steps(5);
        project.run(&["restart"]);
        let kept =
            wait_for("the job to go on", || record(&project.runs().join("job"))["running"]["resumed"][1].as_u64());
        assert!(kept >= 5, "restarting lost steps: it went on from {kept}");
        wait_for_steps(kept as usize + 3);
        let began = Instant::now();
        project.run(&["down"]);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(60), "down took {took:?}, the grace is 60 s");
        assert_eq!(project.remains(), vec![format!("{}_runs", project.name)]);
        let runs = project.runs().join("job");
        assert_eq!(record(&runs)["status"], "interrupted");
        let at = record(&runs)["final"]["steps"].as_u64().unwrap();
        assert!(at >= kept + 3, "at step {at}");
        let (end, project) = (at + 5, project.with("CONVOY_STEPS", &(at + 5).to_string()));
        project.run(&["up", "-d"]);
        let [id] = project.containers("coordinator").try_into().unwrap();
        assert_eq!(wait_for_end(&project, &id), "0");
        let runs = project.runs().join("job");
        let whole = embedded(folder.path(), &format!("--steps {end} --batch 32 --schedule constant --lr 0.01"));
        assert_eq!((hash(&runs), &record(&runs)["running"]["resumed"][1]), (whole, &Value::from(at)));
        project.run(&["down", "--volumes"]);
        assert_eq!(project.remains(), Vec::<String>::new());
    }
}

/// Whether the workers of a job send each other tensors directly.
fn exchanges_directly(run: &Path) -> bool {
    let record = record(run);
    record["planned_step_traffic"]["across"].as_u64() > Some(0) && record["incidents"] == serde_json::json!([])
}

/// `--scale worker=4` for a net of four towers, and for two replicas of two towers; and what is wrong is said in words.
#[test]
fn four_workers_hold_four_towers_and_mistakes_are_named() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let model = folder.path().join("four.toml");
    std::fs::write(&model, support::FOUR_TOWERS).unwrap();
    let whole = embedded(folder.path(), &format!("--steps 12 --model {}", model.display()));
    let of_replicas = embedded(folder.path(), "--steps 12");
    for compose in &composes {
        let project = Project::new(compose, &image, folder.path());
        project.run(&["up", "-d", "--scale", "worker=4", "worker"]);
        let ids = project.wait_healthy("worker", 4);
        // The folder of the data is mounted: the model lies beside them.
        project.run(&[&JOB[..], &["--model", "/data/four.toml", "--out", "/runs/four"]].concat());
        let runs = project.runs();
        assert_eq!(hash(&runs.join("four")), whole, "{compose:?}");
        assert_eq!(record(&runs.join("four"))["workers"].as_array().unwrap().len(), 4);
        assert_eq!(project.wait_healthy("worker", 4), ids, "the job took none of them away");
        let mut replicas = project.command(&[&JOB[..], &["--out", "/runs/replicas"]].concat());
        let output = output_of(replicas.env("CONVOY_WORKERS", "4"));
        assert!(output.status.success(), "{}", said(&output));
        let run = project.runs().join("replicas");
        assert_eq!((hash(&run), exchanges_directly(&run)), (of_replicas.clone(), true), "{}", said(&output));
        assert_eq!(record(&run)["running"]["replicas"], 2);

        // Two of the four are too many for two towers: they are spares. The job goes on until both have said so.
        let mut long = project.command(&[&JOB[..7], &["--epochs", "1000", "--out", "/runs/two"]].concat());
        let long = long.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).start();
        wait_for("both spares to say so", || {
            let spares = ids.iter().filter(|id| log_of(id).contains("this worker is a spare")).count();
            (spares == 2).then_some(())
        });
        let [coordinator] = project.containers("coordinator").try_into().unwrap();
        docker(&["kill", "--signal", "INT", &coordinator]);
        let output = support::finish(long);
        assert_eq!(output.status.code(), Some(130), "{}", said(&output));

        let refused = |arguments: &[&str], code: i32, parts: &[&str]| {
            let output = output_of(&mut project.command(&[&JOB[..6], arguments].concat()));
            assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
            parts.iter().for_each(|part| assert!(said(&output).contains(part), "no \"{part}\" in {}", said(&output)));
        };
        refused(&["--workers", "5"], 2, &["--workers 5", "must be at most 4"]);
        refused(&["--out", "/runs/four"], 2, &["/runs/four", "--resume"]);
        refused(&["--model", "/data/five.toml"], 2, &["/data/five.toml", "No such file"]);
        refused(&["--data", "/data"], 1, &["/data/", "has no image files"]);
        project.run(&["down", "--volumes"]);
        assert_eq!(project.remains(), Vec::<String>::new());
    }
}

/// A job of a few steps on what is bundled.
const JOB: [&str; 9] =
    ["run", "--rm", "--no-deps", "--use-aliases", "coordinator", "train", "--data=bundled", "--steps", "12"];

/// A secret that both sides have from a file; and a coordinator that waits says for whom.
#[test]
fn a_secret_keeps_out_workers_without_it_and_a_lonely_coordinator_says_what_it_waits_for() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let token = folder.path().join("token");
    std::fs::write(&token, "correct-horse\n").unwrap();
    let whole = embedded(folder.path(), "--steps 12");
    for compose in &composes {
        let project = Project::new(compose, &image, folder.path()).and_file("deploy/compose-token.yml");
        let project = project.with("CONVOY_TOKEN", token.to_str().unwrap());
        let mut lonely = project.command(&[&JOB[..], &["--out", "/runs/lonely"]].concat());
        let lonely = lonely.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).start();
        let id = wait_for("the coordinator's container", || {
            project.containers("coordinator").into_iter().find(|id| log_of(id).contains("0 of 2 workers connected"))
        });
        assert!(log_of(&id).contains("convoy worker --join"), "{}", log_of(&id));
        assert_eq!(project.containers("worker"), Vec::<String>::new(), "there are no workers");
        let stranger = ["run", "--rm", "--no-deps", "-e", "CONVOY_TOKEN_FILE=", "worker", "worker"];
        let output = output_of(&mut project.command(&stranger));
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(said(&output).contains("requires a token"), "{}", said(&output));
        project.run(&["up", "-d", "worker"]);
        let output = support::finish(lonely);
        for part in ["was refused: the coordinator requires a token", "1 of 2 workers connected"] {
            assert!(output.status.success() && said(&output).contains(part), "no \"{part}\" in {}", said(&output));
        }
        assert_eq!(hash(&project.runs().join("lonely")), whole);
    }
}

fn log_of(id: &str) -> String {
    let output = output_of(Command::new("docker").args(["logs", id]));
    said(&output)
}

/// Certificates in a folder, for a coordinator and a worker.
fn certificates(folder: &Path) -> String {
    let certs = folder.join("certs");
    support::succeed(&format!("certs {} --workers 1", certs.display()), &[]);
    certs.display().to_string()
}

/// Connections between containers are encrypted, those of health checks too, and the bits are the same.
#[test]
fn containers_with_tls_end_in_the_same_bits() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let (certs, whole) = (certificates(folder.path()), embedded(folder.path(), "--steps 12"));
    for compose in &composes {
        let project = Project::new(compose, &image, folder.path()).and_file("deploy/compose-tls.yml");
        let project = project.with("CONVOY_CERTS", &certs).with_folder();
        project.run(&["up", "-d", "worker"]);
        let ids = project.wait_healthy("worker", 2);
        let health = [
            "exec",
            "-e",
            "CONVOY_TLS_CA=",
            "-e",
            "CONVOY_TLS_CERT=",
            "-e",
            "CONVOY_TLS_KEY=",
            &ids[0],
            "convoy",
            "health",
        ];
        let output = output_of(Command::new("docker").args(health));
        assert!(said(&output).contains("it requires TLS"), "{}", said(&output));
        project.run(&[&JOB[..], &["--out", "/runs/secret"]].concat());
        let run = project.runs().join("secret");
        assert_eq!((hash(&run), exchanges_directly(&run)), (whole.clone(), true), "{compose:?}");
        project.run(&["down", "--volumes"]);
    }
}

/// Starts a job whose coordinator has the name that workers join.
fn start(project: &Project, steps_and_more: &[&str]) -> Process {
    let job = ["run", "--rm", "--no-deps", "--use-aliases", "coordinator", "train", "--data", "bundled", "--steps"];
    let mut command = project.command(&[&job[..], steps_and_more].concat());
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).start()
}

/// Starts a job that goes on until it is stopped, as the run `first`, and waits for its first step. Also returns its container.
fn start_endless(project: &Project) -> (Process, String) {
    let job = start(project, &["1000000", "--schedule", "constant", "--lr", "0.01", "--out", "/runs/first"]);
    wait_for("the first job's first step", || (!losses(&project.runs().join("first")).is_empty()).then_some(()));
    let [coordinator] = project.containers("coordinator").try_into().unwrap();
    (job, coordinator)
}

/// Two coordinators by one name: the first has the workers, the second is told so, and has them afterwards.
#[test]
fn a_second_coordinator_learns_who_has_the_workers() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let project = Project::new(&composes[0], &image, folder.path()).with_folder();
    project.run(&["up", "-d", "worker"]);
    let ids = project.wait_healthy("worker", 2);
    // The first job goes on until the second coordinator knows of it.
    let (first, of_first) = start_endless(&project);
    let second = start(&project, &["5", "--out", "/runs/second"]);
    let of =
        |id: &String| format!("the worker on {} is training alexnet-fashion with another coordinator, at ", &id[..12]);
    let told: Vec<_> = ids.iter().map(of).collect();
    wait_for("the second coordinator to be told of both workers", || {
        let others = project.containers("coordinator").into_iter().filter(|id| *id != of_first);
        others.map(|id| log_of(&id)).find(|log| told.iter().all(|line| log.contains(line)))
    });
    docker(&["stop", "--time", "60", &of_first]);
    let (first, second) = (support::finish(first), support::finish(second));
    assert!(second.status.success(), "{}\n{}", said(&first), said(&second));
    let runs = project.runs();
    assert_eq!(record(&runs.join("first"))["status"], "interrupted", "{}", said(&first));
    // A job that is stopped during a recovery ends at its snapshot, before the last loss.
    let steps = record(&runs.join("first"))["final"]["steps"].as_u64().unwrap();
    let whole = embedded(folder.path(), &format!("--steps {steps} --schedule constant --lr 0.01"));
    let recorded = losses(&runs.join("first")).len();
    assert_eq!(hash(&runs.join("first")), whole, "{recorded} losses, {steps} steps: {}", said(&first));
    assert_eq!(hash(&runs.join("second")), embedded(folder.path(), "--steps 5"));
}

/// Four workers, of which the first job needs two. The other two are spares, and serve a second coordinator by the same name.
#[test]
fn spares_of_one_coordinator_serve_another_one() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let project = Project::new(&composes[0], &image, folder.path()).with_folder();
    project.run(&["up", "-d", "--scale", "worker=4", "worker"]);
    project.wait_healthy("worker", 4);
    let job = || project.runs().join("first");
    let (first, of_first) = start_endless(&project);
    let second = support::finish(start(&project, &["5", "--out", "/runs/second"]));
    assert!(second.status.success(), "{}", said(&second));
    assert_eq!(record(&job())["status"], "running", "both jobs had workers at once");
    docker(&["stop", "--time", "60", &of_first]);
    support::finish(first);
    assert_eq!(hash(&project.runs().join("second")), embedded(folder.path(), "--steps 5"));
}

/// Containers are killed, stopped and cut from their network, and so is the coordinator killed: the report finds each fault, and the bits
/// are those of a calm run in containers.
#[test]
fn a_storm_over_containers_changes_no_bits() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, composes)) = setting() else { return };
    let (out, storm) = (folder.path().join("storm"), folder.path().join("storm.json"));
    let fault = |kind: &str, worker: Option<usize>, step: u64, milliseconds: u64| json!({ "kind": kind, "worker": worker, "step": step, "phase": "reported", "milliseconds": milliseconds });
    let faults = [
        fault("kill", Some(1), 20, 0),
        fault("coordinator", None, 45, 0),
        fault("stop", Some(0), 70, 3500),
        fault("freeze", Some(1), 95, 7000),
        fault("cut", Some(0), 120, 7000),
        // The job ends earlier. A worker that is cut off then must be able to leave.
        fault("cut", Some(1), 145, 60_000),
    ];
    std::fs::write(&storm, json!({ "seed": 0, "steps": 200, "workers": 2, "faults": faults }).to_string()).unwrap();
    let name = format!("{MARK}{}x{}", std::process::id(), unique());
    // They remove what is left if this test fails.
    let projects = ["calm", "stormy"].map(|run| {
        let mut project = Project::new(&composes[0], &image, folder.path());
        project.name = format!("{name}-{run}");
        project
    });
    let mut command = support::convoy();
    command.args(["chaos", "--compose", "docker-compose.yml", "--storm"]).arg(&storm).arg("--out").arg(&out);
    let output = output_of(command.env("CONVOY_IMAGE", &image.0).env("COMPOSE_PROJECT_NAME", &name));
    assert!(output.status.success(), "{}", said(&output));
    let text = std::fs::read_to_string(out.join("report.json")).unwrap();
    let report: Value = serde_json::from_str(&text).unwrap();
    for (kind, number) in [("kill", 1), ("stop", 1), ("freeze", 1), ("cut", 2)] {
        assert_eq!(report["kinds"][kind]["named"], number, "{report:#}");
    }
    assert_eq!(report["kinds"]["coordinator"]["fired"], 1, "{report:#}");
    assert_eq!(hash(&out.join("calm/job")), hash(&out.join("stormy/job")));
    for project in &projects {
        assert_eq!(project.remains(), Vec::<String>::new());
    }
}

/// Whether this machine is a swarm that these tests have made.
fn is_our_swarm() -> bool {
    let format = format!("{{{{index .Spec.Labels \"{MARK}\"}}}}");
    docker_or_nothing(&["node", "inspect", "self", "--format", &format]).trim() == MARK
}

/// A stack on a swarm of one node, which is this machine. If it is none, these tests make it one, and end that later.
struct Swarm {
    name: String,
    /// One process at a time, because a machine is in one swarm at most.
    _lock: File,
}

impl Swarm {
    fn found() -> Self {
        let lock = lock_file("swarm");
        lock.lock().unwrap();
        let active = docker(&["info", "--format", "{{.Swarm.LocalNodeState}}"]) == "active";
        if !active {
            docker(&["swarm", "init", "--advertise-addr", "127.0.0.1", "--listen-addr", "127.0.0.1:2377"]);
            let node = docker(&["node", "inspect", "self", "--format", "{{.ID}}"]);
            docker(&["node", "update", "--label-add", &format!("{MARK}={MARK}"), &node]);
        }
        Self { name: format!("{MARK}{}x{}", std::process::id(), unique()), _lock: lock }
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        runs("docker", &["stack", "rm", &self.name]);
        let began = Instant::now();
        let mine = format!("label=com.docker.stack.namespace={}", self.name);
        let has = |kind: &[&str]| {
            let output = Command::new("docker").args(kind).args(["--quiet", "--filter", &mine]).output();
            output.is_ok_and(|output| !output.stdout.is_empty())
        };
        while (has(&["ps", "--all"]) || has(&["network", "ls"])) && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(100));
        }
        for volume in ["data", "runs"] {
            runs("docker", &["volume", "rm", "--force", &format!("{}_{volume}", self.name)]);
        }
    }
}

#[test]
fn a_swarm_of_one_node_ends_in_the_same_bits() {
    let _one = ENGINE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let Some((image, folder, _)) = setting() else { return };
    let whole = embedded(folder.path(), "--steps 60 --seed 4");
    let certs = certificates(folder.path());
    for files in [&["deploy/swarm.yml"][..], &["deploy/swarm.yml", "deploy/swarm-tls.yml"]] {
        let run = run_on_a_swarm(files, &certs, &image, folder.path());
        assert_eq!(hash(&run), whole, "{files:?}");
        assert_eq!(record(&run)["workers"].as_array().unwrap().len(), 2);
        assert!(exchanges_directly(&run), "over the stack's network");
    }
}

/// Runs a job as a stack of these files. The run.
fn run_on_a_swarm(files: &[&str], certs: &str, image: &Image, folder: &Path) -> PathBuf {
    let swarm = Swarm::found();
    let mut command = Command::new("docker");
    command.args(["stack", "deploy", "--resolve-image", "never"]);
    command.args(files.iter().flat_map(|file| ["--compose-file", file])).arg(&swarm.name);
    support::forget_settings(&mut command);
    command.env("CONVOY_IMAGE", &image.0).env("CONVOY_STEPS", "60").env("CONVOY_DATA", "bundled");
    command.env("CONVOY_CERTS", certs);
    let output = output_of(command.env("CONVOY_SEED", "4").env("CONVOY_OFFLINE", "1"));
    assert!(output.status.success(), "{}", said(&output));
    let service = format!("{}_coordinator", swarm.name);
    wait_for("the job's end", || {
        let states = docker(&["service", "ps", "--format", "{{.CurrentState}}", &service]);
        assert!(!states.contains("Failed"), "{states}\n{}", docker(&["service", "logs", &service]));
        states.contains("Complete").then_some(())
    });
    fetch(&format!("{}_runs", swarm.name), image, folder).join("job")
}

/// Kubernetes' own schemas, where Python has them.
#[test]
fn the_kubernetes_manifests_fit_their_schemas() {
    let python = std::env::var("CONVOY_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if !runs(&python, &["-c", "import kubernetes_validate"]) {
        return support::skip(&format!("{python} has no kubernetes-validate (CONVOY_PYTHON says which Python to ask)"));
    }
    let check = |path: &Path| {
        let script = "import sys, kubernetes_validate.__main__ as m; sys.argv[0] = 'v'; sys.exit(m.main())";
        output_of(Command::new(&python).args(["-c", script, "--strict"]).arg(path))
    };
    for (file, resources) in [("deploy/kubernetes.yaml", 5), ("deploy/kubernetes-tls.yaml", 1)] {
        let output = check(Path::new(file));
        assert!(output.status.success(), "{}", said(&output));
        assert_eq!(said(&output).matches(" passed for resource ").count(), resources, "{}", said(&output));
    }
    let folder = TempDir::new().unwrap();
    let wrong = folder.path().join("wrong.yaml");
    let text = std::fs::read_to_string("deploy/kubernetes.yaml").unwrap();
    std::fs::write(&wrong, text.replace("replicas: 2", "replicas: two")).unwrap();
    assert!(!check(&wrong).status.success(), "a check that passes everything checks nothing");
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}
