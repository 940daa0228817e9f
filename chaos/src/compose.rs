//! A run in containers: the services `coordinator` and `worker` of a compose file, as a project of its own. Faults come from outside,
//! by commands of the engine.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use convoy_common::misdeed::Misdeed;
use serde_json::Value;

use crate::error::{ChaosError, LEAVE_MAX};
use crate::site::{End, Message, Role, Site, listen_to, peak_bytes_of};

/// The run's folder within the folder that is mounted as `/runs`: docker-compose.yml gives its coordinator this name.
const RUN: &str = "job";

const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The compose files, and the settings of the job.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Compose files, in the order of their precedence.
    pub files: Vec<PathBuf>,
    /// Settings of the coordinator, as environment variables.
    pub job: Vec<(String, String)>,
    /// Number of workers.
    pub workers: usize,
}

/// Containers of a compose project.
#[derive(Debug)]
pub struct Compose {
    program: &'static [&'static str],
    project: String,
    setting: Setting,
    /// The folder that is mounted as `/runs`.
    runs: PathBuf,
    /// Whether the engine may have something of this project.
    is_up: bool,
    containers: BTreeMap<Role, Container>,
}

#[derive(Debug)]
struct Container {
    id: String,
    network: String,
    /// Its first process, as this machine sees it.
    process: u32,
    /// When it was started, as the engine writes it.
    since: String,
    /// Follows its log.
    follower: Option<Child>,
}

impl Compose {
    /// A project named `project`, whose runs go to `runs`. Nothing is started yet.
    ///
    /// # Errors
    /// When there is no docker-compose, or a folder can't be made.
    pub fn new(setting: Setting, project: String, runs: PathBuf) -> Result<Self, ChaosError> {
        let program = [&["docker-compose"][..], &["docker", "compose"]].into_iter().find(|program| {
            let mut command = Command::new(program[0]);
            command.args(&program[1..]).arg("version").stdin(Stdio::null());
            command.output().is_ok_and(|output| output.status.success())
        });
        let program = program.ok_or(ChaosError::NoCompose)?;
        std::fs::create_dir_all(&runs).map_err(|source| ChaosError::Folder { path: runs.clone(), source })?;
        Ok(Self { program, project, setting, runs, is_up: false, containers: BTreeMap::new() })
    }

    /// The folder of the coordinator's run.
    pub fn run_folder(runs: &Path) -> PathBuf {
        runs.join(RUN)
    }

    fn compose(&self, arguments: &[&str]) -> Result<String, ChaosError> {
        let mut command = Command::new(self.program[0]);
        command.args(&self.program[1..]);
        for file in &self.setting.files {
            command.arg("-f").arg(file);
        }
        command.args(["-p", &self.project]).args(arguments);
        // The job has a number of steps.
        command.env_remove("CONVOY_EPOCHS").envs(self.setting.job.iter().map(|(name, value)| (name, value)));
        command.env("CONVOY_MOUNT_RUNS", &self.runs);
        if let Ok(folder) = std::fs::metadata(&self.runs) {
            command.env("CONVOY_USER", format!("{}:{}", folder.uid(), folder.gid()));
        }
        succeed(&mut command)
    }

    /// Starts all containers, and finds them.
    fn up(&mut self) -> Result<(), ChaosError> {
        let scale = format!("worker={}", self.setting.workers);
        self.is_up = true;
        self.compose(&["up", "-d", "--scale", &scale])?;
        for (service, needed) in [("coordinator", 1), ("worker", self.setting.workers)] {
            let label = |key: &str, value: &str| format!("label=com.docker.compose.{key}={value}");
            let (project, of_service) = (label("project", &self.project), label("service", service));
            let ids = docker(&["ps", "-a", "--no-trunc", "-q", "--filter", &project, "--filter", &of_service])?;
            let ids: Vec<_> = ids.split_whitespace().map(str::to_owned).collect();
            if ids.len() != needed {
                return Err(ChaosError::Containers { service, found: ids.len(), needed });
            }
            for (number, id) in ids.into_iter().enumerate() {
                let role = if service == "worker" { Role::Worker(number) } else { Role::Coordinator };
                let format = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
                let networks = docker(&["inspect", "--format", format, &id])?;
                let network = networks.split_whitespace().next().unwrap_or_default().to_owned();
                self.containers
                    .insert(role, Container { id, network, process: 0, since: String::new(), follower: None });
            }
        }
        Ok(())
    }

    /// Runs a command of the engine on a container, if it is there. What it says about a container that has ended does not matter.
    fn act(&self, role: Role, command: impl Fn(&Container) -> Vec<&str>) -> bool {
        self.containers.get(&role).is_some_and(|container| docker(&command(container)).is_ok())
    }
}

impl Site for Compose {
    fn start(&mut self, role: Role, _misdeeds: &[Misdeed], said: &SyncSender<Message>) -> Result<(), ChaosError> {
        if self.containers.is_empty() {
            self.up()?;
        }
        let Some(container) = self.containers.get_mut(&role) else { return Err(ChaosError::NoResult) };
        if let Some(mut follower) = container.follower.take() {
            // It has ended, as its container has.
            let _ = follower.wait();
            docker(&["start", &container.id])?;
        }
        let state = docker(&["inspect", "--format", "{{.State.Pid}} {{.State.StartedAt}}", &container.id])?;
        let (process, since) = state.split_once(' ').unwrap_or(("0", "0"));
        (container.process, container.since) = (process.parse().unwrap_or(0), since.to_owned());
        let mut command = Command::new("docker");
        command.args(["logs", "--follow", "--since", &container.since, &container.id]).process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let follower = listen_to(&mut command, role, said);
        container.follower =
            Some(follower.map_err(|source| ChaosError::Start { what: format!("the log of {role}"), source })?);
        Ok(())
    }

    fn name(&self, role: Role) -> String {
        let container = self.containers.get(&role);
        container.map_or_else(|| role.to_string(), |container| named(&container.id))
    }

    /// The name of a container's machine is the beginning of its id.
    fn named_in(&self, event: &Value) -> Option<String> {
        event["host"].as_str().map(named)
    }

    fn kill(&mut self, role: Role) {
        self.act(role, |container| vec!["kill", &container.id]);
    }

    fn stop(&mut self, worker: usize) {
        self.act(Role::Worker(worker), |container| vec!["pause", &container.id]);
    }

    fn proceed(&mut self, worker: usize) {
        self.act(Role::Worker(worker), |container| vec!["unpause", &container.id]);
    }

    fn cut(&mut self, worker: usize) -> bool {
        self.act(Role::Worker(worker), |Container { id, network, .. }| vec!["network", "disconnect", network, id])
    }

    fn mend(&mut self, worker: usize) {
        self.act(Role::Worker(worker), |Container { id, network, .. }| vec!["network", "connect", network, id]);
    }

    fn hold(&mut self, _worker: usize, _time: Duration) -> bool {
        false
    }

    fn end(&mut self, role: Role) -> Result<End, ChaosError> {
        let Some(container) = self.containers.get(&role) else { return Err(ChaosError::NoResult) };
        // The log has ended, so the container has, or nearly.
        let began = Instant::now();
        loop {
            let format = "{{.State.StartedAt}} {{.State.Status}} {{.State.ExitCode}}";
            let state = docker(&["inspect", "--format", format, &container.id])?;
            let state: Vec<_> = state.split_whitespace().collect();
            let (is_restarted, is_running) =
                (state.first() != Some(&&*container.since), state.get(1) == Some(&"running"));
            if is_restarted {
                let status = "an exit code that is no longer known, since the engine has restarted it".to_owned();
                return Ok(End { is_success: false, was_killed: false, status });
            }
            if !is_running || began.elapsed() > LEAVE_MAX {
                let code = state.get(2).copied().unwrap_or_default();
                let status = format!("exit code {code}");
                return Ok(End { is_success: code == "0", was_killed: code == "137", status });
            }
            thread::sleep(LOOK_EVERY);
        }
    }

    fn peak_bytes(&self, role: Role) -> u64 {
        self.containers.get(&role).map_or(0, |container| peak_bytes_of(container.process))
    }

    fn leave(&mut self) -> Result<(), ChaosError> {
        for role in self.containers.keys() {
            self.act(*role, |container| vec!["unpause", &container.id]);
        }
        self.compose(&["down", "--volumes", "--timeout", "10"])?;
        self.containers.clear();
        self.is_up = false;
        Ok(())
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let mut followers: Vec<Child> =
            self.containers.values_mut().filter_map(|container| container.follower.take()).collect();
        if self.is_up {
            // A container that is left has the project's name, so that a person can find it.
            let _ = self.compose(&["kill"]);
            let _ = self.leave();
        }
        for follower in &mut followers {
            let _ = follower.kill();
            let _ = follower.wait();
        }
    }
}

/// The name of a container in messages: its id, as short as the engine lists it.
fn named(id: &str) -> String {
    format!("container {}", id.get(..12).unwrap_or(id))
}

fn docker(arguments: &[&str]) -> Result<String, ChaosError> {
    succeed(Command::new("docker").args(arguments))
}

/// Runs a command to its end. Ctrl-C reaches this process alone.
fn succeed(command: &mut Command) -> Result<String, ChaosError> {
    let what = command.get_program().to_string_lossy().into_owned();
    let wrong = |source| ChaosError::Start { what, source };
    let Output { status, stdout, stderr } = command.process_group(0).stdin(Stdio::null()).output().map_err(wrong)?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).trim().to_owned());
    }
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let command = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    Err(ChaosError::Engine { command, said: String::from_utf8_lossy(&stderr).trim().replace('\n', "; ") })
}
