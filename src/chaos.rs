//! `convoy chaos`: runs a job without faults and under a storm of faults, compares the two, and prints the result.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::builder::NonEmptyStringValueParser;
use convoy_chaos::compose::{self, Compose, Tools};
use convoy_chaos::conductor::{self, Fate, Finding, Ran};
use convoy_chaos::error::ChaosError;
use convoy_chaos::local::Local;
use convoy_chaos::report::{Found, Report, Tally};
use convoy_chaos::storm::{Kind, Storm};
use convoy_common::batch::BATCH_MAX;
use convoy_common::model::Network;
use convoy_common::plan::Plan;
use convoy_common::text::counted;
use convoy_coordinator::files::write_atomically;
use convoy_coordinator::job::defaults;
use convoy_coordinator::record::RunFolder;
use convoy_dataset::{DataSource, Reading, Wanted, load};

use crate::numbers::{ANY, AT_LEAST_1, whole};
use crate::output::{complain, print, tell};
use crate::settings::{Misuse, model_text, places, read_text};
use crate::table::aligned;
use crate::{Outcome, signals};

/// A storm file is no longer than this.
const STORM_BYTES_MAX: u64 = 16 << 20;
const MB: f64 = 1e6;

/// The command line of `convoy chaos`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Number of faults. Each fault makes the run one to two seconds longer, and more in containers
    #[arg(long, value_name = "N", default_value_t = 20, conflicts_with = "storm", value_parser = whole::<usize>(1..=10_000))]
    faults: usize,
    /// Seed of the storm
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "storm", value_parser = whole::<u64>(ANY))]
    seed: u64,
    /// JSON file with the faults, such as the storm.json of an earlier storm
    #[arg(long, value_name = "FILE")]
    storm: Option<PathBuf>,
    /// Workers of the job. With more workers than towers, the job has replicas, and one slot for each replica
    #[arg(long, value_name = "N", default_value_t = 2, conflicts_with = "storm", value_parser = whole::<usize>(AT_LEAST_1))]
    workers: usize,
    /// Preset or path of a model file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet-fashion", value_parser = NonEmptyStringValueParser::new())]
    model: String,
    /// Images: bundled, synthetic, or a folder as for convoy train. With --compose, only bundled or synthetic
    #[arg(long, value_name = "bundled|synthetic|DIR", default_value = "bundled", value_parser = NonEmptyStringValueParser::new())]
    data: String,
    /// Images per step, at most 1048576
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = whole::<usize>(1..=BATCH_MAX as u64))]
    batch: usize,
    /// Run in containers. FILE is a compose file with the services coordinator and worker, such as docker-compose.yml. The flag may be
    /// repeated for more files
    #[arg(long, value_name = "FILE", conflicts_with = "rehearse_stale_snapshot")]
    compose: Vec<PathBuf>,
    /// Folder for the storm, both runs and the report [default: a new folder runs/chaos-TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// After a fault, continue from a wrong snapshot, to test whether that is reported
    #[arg(long, hide = true)]
    rehearse_stale_snapshot: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Outcome, Box<dyn Error>> {
    let model = model_text(&arguments.model)?;
    let network = Network::parse(&model)?;
    let storm = arguments.storm(network.towers)?;
    let slots = arguments.slots(network.clone(), &storm)?;
    arguments.check_data(&network)?;
    let project = arguments.project()?;
    let tools = if arguments.compose.is_empty() { None } else { Some(Tools::find()?) };
    // Nothing is written before all of this is known to be usable.
    let out = arguments.folder()?;
    write_json(&out.join("storm.json"), &storm)?;
    let farewell = if arguments.compose.is_empty() {
        "quit".to_owned()
    } else {
        format!("quit; containers of the compose projects {project}-calm and {project}-stormy may be left")
    };
    let stop = signals::stop_flag("stopping", farewell)?;
    let run = |name: &str, storm: &Storm| -> Result<(Ran, PathBuf), Box<dyn Error>> {
        let folder = out.join(name);
        if !arguments.json {
            let faults = counted(storm.faults.len(), "fault", "faults");
            tell(&format!("{name}: {} steps, {faults}, in {}", storm.steps, folder.display()));
        }
        let Some(tools) = tools else {
            let mut place = arguments.processes(storm, slots, &folder)?;
            return Ok((conductor::run(&mut place, storm, &stop)?, folder));
        };
        let setting = arguments.containers((storm, slots), &model, &out, format!("{project}-{name}"))?;
        let mut place = Compose::new(tools, setting, std::path::absolute(&folder)?)?;
        Ok((conductor::run(&mut place, storm, &stop)?, Compose::run_folder(&folder)))
    };
    let both = run("calm", &storm.calm()).and_then(|calm| Ok((calm, run("stormy", &storm)?)));
    let (calm, stormy) = match both {
        Err(error) if matches!(error.downcast_ref(), Some(ChaosError::Interrupted)) => {
            complain(&format!("interrupted: nothing was compared; the runs are in {}", out.display()));
            return Ok(Outcome::Interrupted);
        }
        both => both?,
    };
    let report = Report::new(&storm, (&calm.0, &calm.1), (&stormy.0, &stormy.1));
    write_json(&out.join("report.json"), &report)?;
    print(&if arguments.json { format!("{:#}\n", serde_json::to_value(&report)?) } else { described(&report, &out) })?;
    if report.survived {
        Ok(Outcome::Done)
    } else {
        Err(format!("the storm failed a check; see the lines above and {}", out.join("report.json").display()).into())
    }
}

impl Arguments {
    /// The fewest slots with which the job can have the storm's workers.
    fn slots(&self, network: Network, storm: &Storm) -> Result<usize, Box<dyn Error>> {
        let (workers, towers) = (storm.workers, network.towers);
        let slots = workers.div_ceil(towers).max(1);
        if slots > self.batch {
            let (most, batch) = (towers.saturating_mul(self.batch), self.batch);
            let origin = match &self.storm {
                Some(path) => format!("--storm {}: \"workers\" is {workers}", path.display()),
                None => format!("--workers {workers}"),
            };
            let text = format!(
                "{origin}; it must be at most {most}: the {towers} towers times the {batch} images of a batch; a larger --batch allows more"
            );
            return Err(Misuse(text).into());
        }
        Plan::new(network, workers, slots, None)?;
        Ok(slots)
    }

    /// Settings of the job, as flags of `convoy train` without their dashes. Snapshots and checkpoints are frequent, so that faults strike
    /// during them.
    fn job(&self, storm: &Storm, slots: usize) -> Vec<(&'static str, String)> {
        let constant = [
            ("schedule", "constant"),
            ("lr", "0.01"),
            ("snapshot-every", "7"),
            ("checkpoint-every", "20"),
            ("patience", "5"),
            ("trace", "off"),
        ];
        let mut job = constant.map(|(name, value)| (name, value.to_owned())).to_vec();
        job.push(("data", self.data.clone()));
        job.push(("batch", self.batch.to_string()));
        job.push(("slots", slots.to_string()));
        job.push(("workers", storm.workers.to_string()));
        job.push(("steps", storm.steps.to_string()));
        job
    }

    fn processes(&self, storm: &Storm, slots: usize, out: &Path) -> std::io::Result<Local> {
        let flags = self.job(storm, slots).into_iter().flat_map(|(name, value)| [format!("--{name}"), value]);
        let mut job: Vec<String> = flags.chain(["--model".to_owned(), self.model.clone()]).collect();
        if self.rehearse_stale_snapshot {
            job.push("--rehearse-stale-snapshot".to_owned());
        }
        Ok(Local::new(std::env::current_exe()?, job, out.to_owned()))
    }

    /// Writes the model file into the folder `data` in `out`, which is mounted.
    fn containers(
        &self,
        (storm, slots): (&Storm, usize),
        model: &str,
        out: &Path,
        project: String,
    ) -> Result<compose::Setting, Box<dyn Error>> {
        let out = std::path::absolute(out)?;
        let data = out.join("data");
        std::fs::create_dir_all(&data).map_err(|error| format!("cannot create {}: {error}", data.display()))?;
        write_atomically(&data.join("model.toml"), model.as_bytes())?;
        let variable = |name: &str| format!("CONVOY_{}", name.replace('-', "_").to_uppercase());
        let mut job: Vec<_> = self.job(storm, slots).into_iter().map(|(name, value)| (variable(name), value)).collect();
        job.push((variable("model"), "/data/model.toml".to_owned()));
        job.push((variable("mount-data"), data.display().to_string()));
        job.push((variable("json"), "1".to_owned()));
        Ok(compose::Setting { files: self.compose.clone(), job, workers: storm.workers, project })
    }

    /// Checks that the images are there and fit the model.
    fn check_data(&self, network: &Network) -> Result<(), Box<dyn Error>> {
        let source: DataSource = self.data.parse()?;
        if source == DataSource::Auto {
            let text = "--data auto: must be bundled, synthetic or a folder, so that both runs use the same images";
            return Err(Misuse(text.to_owned()).into());
        }
        load(&source, &Wanted::by(network, defaults::SEED), &places()?, &Reading::default())?;
        Ok(())
    }

    /// What the names of the two compose projects begin with.
    fn project(&self) -> Result<String, Misuse> {
        let named = std::env::var("COMPOSE_PROJECT_NAME").ok().filter(|name| !name.is_empty());
        let is_valid = |name: &str| {
            name.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
        };
        match named {
            Some(name) if !self.compose.is_empty() && !is_valid(&name) => Err(Misuse(format!(
                "COMPOSE_PROJECT_NAME is \"{name}\": it must consist of lowercase letters, digits, \"-\" and \"_\", and begin with a letter or a digit"
            ))),
            Some(name) => Ok(name),
            None => Ok(format!("convoychaos{}", std::process::id())),
        }
    }

    fn storm(&self, towers: usize) -> Result<Storm, Box<dyn Error>> {
        let in_containers = !self.compose.is_empty();
        if let Some(missing) = self.compose.iter().find(|file| !file.is_file()) {
            let why = if missing.exists() { "it is not a file" } else { "there is no such file" };
            return Err(Misuse(format!("--compose {}: {why}", missing.display())).into());
        }
        if in_containers && !["bundled", "synthetic"].contains(&&*self.data) {
            let text =
                format!("--data {}: must be bundled or synthetic, because containers have no other data", self.data);
            return Err(Misuse(text).into());
        }
        let Some(path) = &self.storm else {
            return Ok(if in_containers {
                Storm::of_containers(self.seed, self.faults, self.workers)
            } else {
                Storm::planned(self.seed, self.faults, self.workers, self.workers > towers)
            });
        };
        let wrong = |why: String| Misuse(format!("--storm {}: {why}", path.display()));
        let text = read_text(path, STORM_BYTES_MAX)
            .map_err(|error| format!("cannot read the storm file {}: {error}", path.display()))?;
        if text.len() as u64 == STORM_BYTES_MAX {
            return Err(wrong(format!("it has at least {STORM_BYTES_MAX} bytes; it must have fewer")).into());
        }
        let storm: Storm = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        storm.check(storm.workers > towers).map_err(wrong)?;
        if in_containers {
            storm.check_for_containers().map_err(wrong)?;
        }
        Ok(storm)
    }

    /// A folder that holds nothing.
    fn folder(&self) -> Result<PathBuf, Box<dyn Error>> {
        let Some(out) = &self.out else { return Ok(RunFolder::claim("chaos", SystemTime::now())?) };
        let wrong = |why: String| Misuse(format!("--out {}: {why}", out.display()));
        std::fs::create_dir_all(out).map_err(|error| wrong(format!("cannot create the folder: {error}")))?;
        let mut entries = std::fs::read_dir(out).map_err(|error| wrong(format!("cannot read the folder: {error}")))?;
        if entries.next().is_some() {
            return Err(wrong("must be an empty folder".to_owned()).into());
        }
        Ok(out.clone())
    }
}

fn write_json(path: &Path, value: &impl serde::Serialize) -> Result<(), Box<dyn Error>> {
    let text = serde_json::to_string_pretty(value)? + "\n";
    write_atomically(path, text.as_bytes()).map_err(|error| format!("cannot write {}: {error}", path.display()).into())
}

/// A kind of fault or a phase, as the command line names it.
fn name(item: &impl std::fmt::Debug) -> String {
    format!("{item:?}").to_lowercase()
}

fn described(report: &Report, out: &Path) -> String {
    let header = ["kind", "planned", "happened", "found", "missed", "median ms", "max ms"].map(str::to_owned);
    let rows = report.kinds.iter().map(|(kind, tally)| {
        let Tally { planned, fired, named, missed, milliseconds, .. } = tally;
        let at = |index: usize| milliseconds.get(index).map_or("-".to_owned(), |ms| format!("{ms:.0}"));
        let is_sought = named + missed > 0;
        let sought = [named, missed].map(|count| if is_sought { count.to_string() } else { "-".to_owned() });
        let mut row = vec![name(kind), planned.to_string(), fired.to_string()];
        row.extend(sought);
        row.extend([at(milliseconds.len() / 2), at(milliseconds.len().saturating_sub(1))]);
        row
    });
    let table = aligned(&std::iter::once(header.to_vec()).chain(rows).collect::<Vec<_>>(), &[0]);
    let phases: Vec<_> = report.phases.iter().map(name).collect();
    let outside: usize = report.kinds.values().map(|tally| tally.outside).sum();
    let unlinked = report.kinds.get(&Kind::Unlink).map_or(0, |tally| tally.nothing);
    let equal = |equal| if equal { "equal" } else { "DIFFERENT" };
    let [coordinator, worker] = [report.coordinator_bytes, report.worker_bytes].map(|[calm, stormy]| match calm {
        // The engine is on another machine.
        0 => "not measured".to_owned(),
        calm => format!("{:.0} MB (calm run {:.0} MB)", stormy as f64 / MB, calm as f64 / MB),
    });
    let lines = [
        format!("phases       {}", phases.join(", ")),
        format!("recoveries   {}", report.recovered),
        format!("outside      {outside} (faults of workers that had been given up)"),
        format!("no links     {unlinked} (unlink faults of workers without direct connections)"),
        format!(
            "goodput      {:.1} %: calm run {:.1} s, stormy run {:.1} s, a fault every {:.1} s",
            100.0 * report.goodput,
            report.calm_seconds,
            report.stormy_seconds,
            report.mean_seconds_between_faults
        ),
        format!(
            "memory       {}coordinator {coordinator}; worker {worker}",
            if report.flat_memory { "" } else { "TOO HIGH: " }
        ),
        format!("weights      {}", equal(report.equal_weights)),
        format!("losses       {}", equal(report.equal_losses)),
        format!("report       {}", out.join("report.json").display()),
    ];
    let missed = report.faults.iter().filter(|fault| fault.found == Found::Missed).map(|fault| {
        let what = match &fault.fate {
            Fate { fired: Some(fired), over, process } => {
                let process = process.as_deref().unwrap_or_default();
                format!("happened to {process} between {fired:.1} s and {over:.1} s, and was not found")
            }
            Fate { fired: None, .. } => "did not happen".to_owned(),
        };
        format!("{} at step {} (phase {}) {what}\n", name(&fault.kind), fault.step, name(&fault.phase))
    });
    let unexplained = report.unexplained.iter().map(|finding| {
        let Finding { at, event, process, peer, what } = finding;
        let whom = peer.as_ref().map_or(process.clone(), |peer| format!("the connection of {process} and {peer}"));
        format!("at {at:.1} s, the coordinator reported \"{event}\" for {whom}, which had no fault: {what}\n")
    });
    let unplanned = report.unplanned.iter().map(|end| format!("ended unexpectedly: {end}\n"));
    let wrong: String = missed.chain(unexplained).chain(unplanned).collect();
    format!("{table}{}\n{wrong}", lines.join("\n"))
}
