//! A run in containers: the services `coordinator` and `worker` of a compose file, as a project of its own. Faults come from outside,
//! by commands of the engine.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::thread;
use std::time::{Duration, Instant};

use convoy_common::misdeed::Misdeed;
use serde_json::Value;

use crate::engine::{docker, succeed};
use crate::error::{ChaosError, ENDED_MAX, LEAVE_MAX};
use crate::place::{End, Message, Place, forget_settings, listen_to, peak_bytes_of};
use crate::role::Role;

/// The run's folder within the folder that is mounted as `/runs`: docker-compose.yml gives its coordinator this name.
const RUN: &str = "job";
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Settings that the caller's environment may give to the containers. They change no bits.
const KEPT: &[&str] = &["CONVOY_IMAGE", "CONVOY_ISA", "CONVOY_OFFLINE", "CONVOY_TOKEN"];

/// The compose files, and the settings of the job.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Compose files, in the order of their precedence.
    pub files: Vec<PathBuf>,
    /// Settings of the coordinator, as environment variables.
    pub job: Vec<(String, String)>,
    /// Number of workers.
    pub workers: usize,
    /// The name of the project.
    pub project: String,
}

/// The commands of a container engine that answers.
#[derive(Clone, Copy, Debug)]
pub struct Tools {
    /// The command for compose projects, in words.
    compose: &'static [&'static str],
}

impl Tools {
    /// Finds the commands. Nothing is started.
    ///
    /// # Errors
    /// When there is no docker-compose, or the engine does not answer.
    pub fn find() -> Result<Self, ChaosError> {
        let compose = [&["docker-compose"][..], &["docker", "compose"]].into_iter().find(|words| {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).arg("version").stdin(Stdio::null());
            command.output().is_ok_and(|output| output.status.success())
        });
        let compose = compose.ok_or(ChaosError::NoCompose)?;
        docker(&["version", "--format", "{{.Server.Version}}"])?;
        Ok(Self { compose })
    }
}

/// Containers of a compose project.
#[derive(Debug)]
pub struct Compose {
    tools: Tools,
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
    networks: Vec<String>,
    /// Its first process, as this machine sees it.
    process: u32,
    /// When it was started, as the engine writes it.
    since: String,
    /// Follows its log.
    follower: Option<Child>,
}

impl Compose {
    /// Containers whose runs go to `runs`. Nothing is started yet.
    ///
    /// # Errors
    /// When a folder can't be made.
    pub fn new(tools: Tools, setting: Setting, runs: PathBuf) -> Result<Self, ChaosError> {
        std::fs::create_dir_all(&runs).map_err(|source| ChaosError::Folder { path: runs.clone(), source })?;
        Ok(Self { tools, setting, runs, is_up: false, containers: BTreeMap::new() })
    }

    /// The folder of the coordinator's run.
    pub fn run_folder(runs: &Path) -> PathBuf {
        runs.join(RUN)
    }

    fn compose(&self, arguments: &[&str]) -> Result<String, ChaosError> {
        let mut command = Command::new(self.tools.compose[0]);
        command.args(&self.tools.compose[1..]);
        for file in &self.setting.files {
            command.arg("-f").arg(file);
        }
        command.args(["-p", &self.setting.project]).args(arguments);
        forget_settings(&mut command, KEPT);
        // The job has a number of steps, even if a file .env says otherwise.
        command.env("CONVOY_EPOCHS", "").envs(self.setting.job.iter().map(|(name, value)| (name, value)));
        let folder = std::fs::metadata(&self.runs);
        let folder = folder.map_err(|source| ChaosError::Folder { path: self.runs.clone(), source })?;
        command.env("CONVOY_MOUNT_RUNS", &self.runs).env("CONVOY_USER", format!("{}:{}", folder.uid(), folder.gid()));
        succeed(&mut command)
    }

    /// What the engine lists of this project.
    fn listed(&self, list: &[&str]) -> Result<Vec<String>, ChaosError> {
        let project = format!("label=com.docker.compose.project={}", self.setting.project);
        let listed = docker(&[list, &["--quiet", "--filter", &project]].concat())?;
        Ok(listed.split_whitespace().map(str::to_owned).collect())
    }

    fn find(&mut self, service: &'static str, needed: usize) -> Result<(), ChaosError> {
        let of_service = format!("label=com.docker.compose.service={service}");
        let ids = self.listed(&["ps", "--all", "--no-trunc", "--filter", &of_service])?;
        if ids.len() != needed {
            return Err(ChaosError::Containers { service, found: ids.len(), needed });
        }
        for (number, id) in ids.into_iter().enumerate() {
            let role = if service == "worker" { Role::Worker(number) } else { Role::Coordinator };
            let format = "{{range $name, $_ := .NetworkSettings.Networks}}{{$name}} {{end}}";
            let networks = docker(&["inspect", "--format", format, &id])?;
            let networks: Vec<_> = networks.split_whitespace().map(str::to_owned).collect();
            self.containers.insert(role, Container { id, networks, process: 0, since: String::new(), follower: None });
        }
        Ok(())
    }

    fn container(&self, role: Role) -> Result<&Container, ChaosError> {
        self.containers.get(&role).ok_or(ChaosError::Absent { role })
    }

    /// Runs a command of the engine on a container. Returns whether the container was running.
    fn act(&self, role: Role, command: &[&str]) -> Result<bool, ChaosError> {
        let id = &self.container(role)?.id;
        match docker(&[command, &[id]].concat()) {
            Ok(_) => Ok(true),
            Err(_) if docker(&["inspect", "--format", "{{.State.Running}}", id])? == "false" => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn on_networks(&self, worker: usize, command: &str) -> Result<bool, ChaosError> {
        let container = self.container(Role::Worker(worker))?;
        let mut is_done = !container.networks.is_empty();
        for network in &container.networks {
            is_done &= self.act(Role::Worker(worker), &["network", command, network])?;
        }
        Ok(is_done)
    }

    /// Removes everything of this project but volumes that another project has made.
    fn remove(&mut self) -> Result<(), ChaosError> {
        self.compose(&["down", "--timeout", "10"])?;
        for volume in self.listed(&["volume", "ls"])? {
            docker(&["volume", "rm", &volume])?;
        }
        let containers = std::mem::take(&mut self.containers);
        for mut follower in containers.into_values().filter_map(|container| container.follower) {
            // Its container is gone, so it ends, if it has not yet.
            let _ = follower.kill();
            let _ = follower.wait();
        }
        self.is_up = false;
        Ok(())
    }
}

impl Place for Compose {
    fn open(&mut self) -> Result<(), ChaosError> {
        if !self.listed(&["ps", "--all"])?.is_empty() {
            return Err(ChaosError::Taken { project: self.setting.project.clone() });
        }
        self.is_up = true;
        let scale = format!("worker={}", self.setting.workers);
        self.compose(&["up", "-d", "--no-build", "--scale", &scale, "worker", "coordinator"])?;
        self.find("coordinator", 1)?;
        self.find("worker", self.setting.workers)
    }

    fn start(&mut self, role: Role, _misdeeds: &[Misdeed], said: &SyncSender<Message>) -> Result<(), ChaosError> {
        let container = self.containers.get_mut(&role).ok_or(ChaosError::Absent { role })?;
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
            Some(follower.map_err(|source| ChaosError::Start { what: format!("docker logs for {role}"), source })?);
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

    /// The containers know it.
    fn on_listening(&mut self, _address: &str) {}

    fn kill(&mut self, role: Role) -> Result<bool, ChaosError> {
        self.act(role, &["kill"])
    }

    fn stop(&mut self, worker: usize) -> Result<bool, ChaosError> {
        self.act(Role::Worker(worker), &["pause"])
    }

    fn proceed(&mut self, worker: usize) -> Result<(), ChaosError> {
        self.act(Role::Worker(worker), &["unpause"]).map(drop)
    }

    fn cut(&mut self, worker: usize) -> Result<bool, ChaosError> {
        self.on_networks(worker, "disconnect")
    }

    fn mend(&mut self, worker: usize) -> Result<(), ChaosError> {
        self.on_networks(worker, "connect").map(drop)
    }

    fn hold(&mut self, _worker: usize, _time: Duration) -> bool {
        false
    }

    fn end(&mut self, role: Role) -> Result<End, ChaosError> {
        let container = self.container(role)?;
        // The log has ended, and the container has ended or is about to.
        let began = Instant::now();
        while began.elapsed() < ENDED_MAX {
            let format = "{{.State.StartedAt}} {{.State.Status}} {{.State.ExitCode}}";
            let state = docker(&["inspect", "--format", format, &container.id])?;
            let state: Vec<_> = state.split_whitespace().collect();
            if state.first() != Some(&&*container.since) {
                let status = "an exit code that is no longer known, since the engine has restarted it".to_owned();
                return Ok(End { is_success: false, was_killed: false, status });
            }
            if let [_, "exited" | "dead" | "restarting", code] = state[..] {
                let status = format!("exit code {code}");
                return Ok(End { is_success: code == "0", was_killed: code == "137", status });
            }
            thread::sleep(LOOK_EVERY);
        }
        Err(ChaosError::Unheard { role })
    }

    /// Only the processes of this machine can be measured.
    fn peak_bytes(&self, role: Role) -> u64 {
        let process = self.containers.get(&role).map_or(0, |container| container.process);
        let name = std::fs::read_to_string(format!("/proc/{process}/comm")).unwrap_or_default();
        if name.trim() == "convoy" { peak_bytes_of(process) } else { 0 }
    }

    fn leave(&mut self) -> Result<(), ChaosError> {
        for worker in 0..self.setting.workers {
            let role = Role::Worker(worker);
            // One that is not stopped can't be continued.
            let _ = self.proceed(worker);
            self.act(role, &["stop", "--time", &LEAVE_MAX.as_secs().to_string()])?;
            if self.end(role)?.was_killed {
                return Err(ChaosError::Remains { process: format!("{} ({role})", self.name(role)) });
            }
        }
        self.remove()
    }

    fn abandon(&mut self) -> Result<(), ChaosError> {
        if !self.is_up {
            return Ok(());
        }
        for id in self.listed(&["ps", "--all"])? {
            // It may have ended. What can't be killed can't be removed either, which is an error.
            let _ = docker(&["kill", &id]);
        }
        self.remove()
    }
}

impl Drop for Compose {
    /// However a run ends, no container is left.
    fn drop(&mut self) {
        let _ = self.abandon();
    }
}

/// The name of a container in messages: its id, as short as the engine lists it.
fn named(id: &str) -> String {
    format!("container {}", id.get(..12).unwrap_or(id))
}
