//! `convoy study`: parses the command line, carries the study out, and prints progress and the report.

use std::error::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::builder::NonEmptyStringValueParser;
use convoy_common::address::Address;
use convoy_common::batch::THREADS_MAX;
use convoy_common::text::counted;
use convoy_coordinator::files::{folder_of, quoted};
use convoy_dataset::DataSource;
use convoy_net::tls::Role;
use convoy_study::conduct::Progress;
use convoy_study::costs::Bench;
use convoy_study::design::Design;
use convoy_study::error::StudyError;
use convoy_study::file::Study;
use convoy_study::identity::{self, Models};
use convoy_study::images::Images;
use convoy_study::measured::{Measured, Outcome};
use convoy_study::perform::{PAGE, REPORT, perform, report_again};
use convoy_study::place::{Lane, Place};

use crate::credentials::Credentials;
use crate::numbers::{AT_LEAST_1, whole};
use crate::output::{complain, print, tell};
use crate::settings::{Misuse, model_text, places};
use crate::sockets::SocketFile;
use crate::{Outcome as Ended, signals};

/// The study that checks claims instead of comparing runs.
const IDENTITY: &str = "identity";

/// The most runs at a time.
const AT_ONCE_MAX: usize = 1024;

/// The command line of `convoy study`. Its help text is at `Command`.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Built-in study (identity, quick, asker, groups, groups-tenth, groups-tuned, groups-cifar10, colour, seeds) or path of a study's file
    #[arg(value_name = "NAME|FILE", value_parser = NonEmptyStringValueParser::new())]
    study: String,
    /// Images: auto, a folder as for convoy train, bundled, or synthetic [default: as the study says]
    #[arg(long, value_name = "auto|DIR|bundled|synthetic")]
    data: Option<DataSource>,
    /// Runs at a time, each with workers of its own [default: the machine's cores divided by --workers and --threads]
    #[arg(long, value_name = "N", conflicts_with = "listen", value_parser = whole::<usize>(1..=AT_ONCE_MAX as u64))]
    at_once: Option<usize>,
    /// Compute threads of each worker
    #[arg(long, value_name = "N", conflicts_with = "listen", default_value_t = 1, value_parser = whole::<usize>(1..=THREADS_MAX as u64))]
    threads: usize,
    /// Workers of each run
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<usize>(AT_LEAST_1))]
    workers: usize,
    /// Addresses on which runs wait for workers, instead of starting them: HOST:PORT or unix:PATH, separated by commas. Each address serves
    /// one run after another, so as many runs are computed at a time. Workers get the same list: convoy worker --join HOST:PORT,HOST:PORT
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',')]
    listen: Vec<Address>,
    #[command(flatten)]
    credentials: Credentials,
    /// Folder of the study [default: studies/NAME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// For identity: a model with groups, and the same model without (presets or model files) [default: alexnet-fashion
    /// alexnet-fashion-dense]
    #[arg(long, num_args = 2, value_names = ["GROUPED", "DENSE"])]
    models: Vec<String>,
    /// Measure what a training step of each arm costs on this machine (time, memory, energy), one arm after the other, when all runs have
    /// ended. Writes costs.json, which is no part of the report
    #[arg(long, conflicts_with = "listen")]
    costs: bool,
    /// Write the reports again from study.json, measurements.json and representations.json in the study's folder, without images
    #[arg(long, conflicts_with_all = ["data", "costs", "plan", "listen", "workers", "at_once", "threads"])]
    report_only: bool,
    /// Check the study, and show what its design can find, without running it
    #[arg(long)]
    plan: bool,
    /// Print the report as one JSON object instead of text, and progress to standard error
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Ended, Box<dyn Error>> {
    if arguments.study == IDENTITY {
        let excess =
            [("--plan", arguments.plan), ("--costs", arguments.costs), ("--report-only", arguments.report_only)];
        if let Some((flag, _)) = excess.into_iter().find(|(_, is_given)| *is_given) {
            return Err(Misuse(format!("{flag}: the study identity compares no runs, so it has no such thing")).into());
        }
        return identity(arguments);
    }
    if !arguments.models.is_empty() {
        return Err(Misuse("--models: only the study identity takes models".to_owned()).into());
    }
    let study = Study::open(&arguments.study)?;
    let design = Design::of(&study);
    let say = |line: &str| if arguments.json { complain(line) } else { tell(line) };
    say(&described(&study, &design));
    if arguments.plan {
        if arguments.json {
            print(&format!("{:#}\n", serde_json::to_value(&design)?))?;
        }
        return Ok(Ended::Done);
    }
    design.check(&study)?;
    let out = arguments.out.clone().unwrap_or_else(|| Path::new("studies").join(&study.name));
    let site = (!arguments.report_only).then(|| arguments.site(&study, &out, &say)).transpose()?;
    let mut progress = |event: Progress| said(&event).iter().for_each(|line| say(line));
    let report = match &site {
        None => report_again(&study, &out),
        Some(Site { images, place, stop }) => perform(&study, images, &out, place, stop, &mut progress),
    };
    let report = match report {
        Err(StudyError::Interrupted) => return Ok(interrupted(arguments, &out)),
        report => report?,
    };
    let files = format!("report    {}\nfigures   {}\n", out.join(PAGE).display(), out.join(REPORT).display());
    print(&if arguments.json {
        format!("{:#}\n", serde_json::to_value(&report)?)
    } else {
        format!("\n{}{files}", report.text())
    })?;
    if let Some(site) = site.filter(|_| arguments.costs) {
        match arguments.measure_costs(&study, &out, &site, &say) {
            Err(StudyError::Interrupted) => return Ok(interrupted(arguments, &out)),
            measured => measured?,
        }
    }
    if report.is_broken() {
        return Err("the control differs from itself, so the study's method may be broken; the report says more".into());
    }
    Ok(Ended::Done)
}

fn interrupted(arguments: &Arguments, out: &Path) -> Ended {
    complain(&format!("interrupted; to continue, run: convoy study {}", arguments.again(out)));
    Ended::Interrupted
}

/// What a study is carried out with.
struct Site {
    images: Images,
    place: Place,
    stop: Arc<AtomicBool>,
}

impl Arguments {
    /// What continues the study, after the name of the command.
    fn again(&self, out: &Path) -> String {
        let mut parts = vec![quoted(Path::new(&self.study))];
        parts.extend(self.data.as_ref().map(|data| format!("--data {}", quoted(Path::new(&data.to_string())))));
        parts.extend(self.at_once.map(|runs| format!("--at-once {runs}")));
        if self.listen.is_empty() {
            parts.push(format!("--threads {}", self.threads));
        } else {
            let addresses: Vec<String> = self.listen.iter().map(Address::to_string).collect();
            parts.push(format!("--listen {}", quoted(Path::new(&addresses.join(",")))));
        }
        parts.push(format!("--workers {}", self.workers));
        parts.extend(self.credentials.flags().iter().map(|part| quoted(Path::new(part))));
        parts.extend(self.costs.then(|| "--costs".to_owned()));
        parts.push(format!("--out {}", quoted(out)));
        parts.join(" ")
    }

    /// Loads the images, and says what the study is carried out with.
    fn site(&self, study: &Study, out: &Path, say: &dyn Fn(&str)) -> Result<Site, Box<dyn Error>> {
        // Before the images, which may take a while.
        let place = self.place()?;
        if self.workers > study.workers_max() {
            return Err(Misuse(format!(
                "--workers {}: must be at most {}, the number of towers times the number of slots (train, slots)",
                self.workers,
                study.workers_max()
            ))
            .into());
        }
        let images = Images::load(study, self.data.as_ref(), &places()?)?;
        say(&format!("images    {}", images.origin));
        say(&format!("folder    {}", out.display()));
        self.invitation().iter().for_each(|line| say(line));
        let stop = signals::stop_flag(
            "stopping; runs write a checkpoint first, and the same command continues the study",
            "quit; the same command continues the study".to_owned(),
        )?;
        Ok(Site { images, place, stop })
    }

    /// Measures what a step of each arm costs, and prints it.
    fn measure_costs(&self, study: &Study, out: &Path, site: &Site, say: &dyn Fn(&str)) -> Result<(), StudyError> {
        let (images, program) = (&site.images, site.place.program.clone());
        let bench = Bench { study, images, out, program, workers: self.workers, threads: self.threads };
        let mut told = |round, rounds| say(&format!("measuring what a step costs: round {round} of {rounds}"));
        let costs = bench.measure(&site.stop, &mut told)?;
        let names = costs.iter().map(|cost| cost.arm.len()).max().unwrap_or(0);
        costs.iter().for_each(|cost| say(&format!("cost      {}", cost.line(names))));
        Ok(())
    }

    /// Listens at all addresses together for a moment, so that one that can't be used is found before anything runs.
    fn try_addresses(&self) -> Result<(), Misuse> {
        let mut held: (Vec<SocketFile>, Vec<TcpListener>) = Default::default();
        for at in &self.listen {
            let wrong = |error: &dyn Error| {
                Misuse(format!("--listen {at}: {error}; must be an address of this machine that is free"))
            };
            match at {
                Address::Tcp(text) => held.1.push(TcpListener::bind(text.as_str()).map_err(|error| wrong(&error))?),
                Address::Unix(path) if !folder_of(path).is_dir() => {
                    return Err(Misuse(format!("--listen {at}: its folder does not exist; create it first")));
                }
                Address::Unix(_) => held.0.push(SocketFile::at(Some(at)).map_err(|error| wrong(&error))?),
            }
        }
        Ok(())
    }

    /// How workers connect, if they are not started here.
    fn invitation(&self) -> Option<String> {
        let addresses: Vec<String> = self.listen.iter().map(Address::to_string).collect();
        (!addresses.is_empty()).then(|| {
            let credentials = self.credentials.for_workers();
            format!(
                "workers   start them with: convoy worker --join {}{credentials} (other machines: with the name of this one)",
                addresses.join(",")
            )
        })
    }

    fn place(&self) -> Result<Place, Box<dyn Error>> {
        let twice = |(index, at): (usize, &Address)| self.listen[..index].contains(at).then(|| at.to_string());
        if let Some(at) = self.listen.iter().enumerate().find_map(twice) {
            return Err(Misuse(format!(
                "--listen: {at} is there twice; each run that is computed at a time needs an address of its own"
            ))
            .into());
        }
        let is_open = |at: &&Address| matches!(at, Address::Tcp(text) if text.ends_with(":0"));
        if let Some(at) = self.listen.iter().find(is_open) {
            return Err(
                Misuse(format!("--listen {at}: must have a port above 0, because workers need to know it")).into()
            );
        }
        self.try_addresses()?;
        // Each run reads the files itself. One that is wrong is found at once.
        self.credentials.secrets(Role::Coordinator, "--listen", &self.listen)?;
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let at_once =
            self.at_once.unwrap_or_else(|| (cores / self.threads.saturating_mul(self.workers)).clamp(1, AT_ONCE_MAX));
        let lanes = if self.listen.is_empty() {
            vec![Lane::Own { threads: self.threads }; at_once]
        } else {
            let credentials = self.credentials.flags();
            self.listen.iter().map(|at| Lane::Listening { at: at.clone(), credentials: credentials.clone() }).collect()
        };
        Ok(Place { program: std::env::current_exe()?, workers: self.workers, lanes })
    }
}

/// Checks what a grouped convolution is the same as.
fn identity(arguments: &Arguments) -> Result<Ended, Box<dyn Error>> {
    let named = |index: usize, default: &str| -> Result<(String, String), Box<dyn Error>> {
        let name = arguments.models.get(index).map_or(default, String::as_str);
        Ok((name.to_owned(), model_text(name)?))
    };
    let models = Models { grouped: named(0, "alexnet-fashion")?, dense: named(1, "alexnet-fashion-dense")? };
    let out = arguments.out.clone().unwrap_or_else(|| Path::new("studies").join(IDENTITY));
    let data = arguments.data.clone().unwrap_or(DataSource::Bundled);
    let place = arguments.place()?;
    let say = |line: &str| if arguments.json { complain(line) } else { tell(line) };
    arguments.invitation().iter().for_each(|line| say(line));
    let stop = signals::stop_flag("stopping", "quit".to_owned())?;
    let found = match identity::check(&models, &data, &places()?, &out, &place, &stop) {
        Err(StudyError::Interrupted) => return Ok(Ended::Interrupted),
        found => found?,
    };
    print(&if arguments.json {
        format!("{:#}\n", serde_json::to_value(&found)?)
    } else {
        format!("{}page   {}\n", found.text(), out.join(identity::PAGE).display())
    })?;
    if found.holds() { Ok(Ended::Done) } else { Err("a claim does not hold; see the lines above".into()) }
}

fn described(study: &Study, design: &Design) -> String {
    let arms: Vec<String> = study.arms.iter().map(|arm| format!("{} ({})", arm.name, arm.seeds.len())).collect();
    let epochs = counted(study.epochs as usize, "epoch", "epochs");
    format!(
        "study     {}: {}\narms      {}, of {epochs} each\ndesign    {}",
        study.name,
        study.question,
        arms.join(", "),
        design.described()
    )
}

/// The line about an event, if it has one.
fn said(event: &Progress) -> Option<String> {
    Some(match event {
        Progress::Begun { ended: 0, .. } => return None,
        Progress::Begun { ended, all } => format!("continuing: {ended} of {all} runs have ended"),
        Progress::Ended { measured, held_out, ended, all, seconds_left } => {
            let left = if ended == all { String::new() } else { format!(", about {} left", lasting(*seconds_left)) };
            format!("{}  ({ended} of {all} runs{left})", result(measured, *held_out))
        }
        Progress::Tuning => "choosing the learning rate of each arm on held-out training images".to_owned(),
        Progress::Tuned(tuned) => {
            let rates: Vec<String> = tuned.iter().map(|tuned| format!("{} {}", tuned.arm, tuned.lr)).collect();
            format!("learning rates: {}", rates.join(", "))
        }
        Progress::Representing => "comparing what the runs represent".to_owned(),
        Progress::Waits { arm, seed } => {
            format!(
                "the run of {arm} with seed {seed} still waits for workers; each worker needs all addresses of --listen in its --join"
            )
        }
        Progress::Lost { arm, seed, why } => {
            format!("the run of {arm} with seed {seed} was lost, and continues: {why}")
        }
    })
}

fn result(measured: &Measured, held_out: bool) -> String {
    let Measured { arm, seed, outcome, .. } = measured;
    match outcome {
        Outcome::Trained(trained) => {
            let images = if held_out { "accuracy on held-out images" } else { "test accuracy" };
            format!("{arm}, seed {seed}: {images} {:.2} %", trained.test.accuracy() * 100.0)
        }
        Outcome::DivergedAfter(steps) => format!("{arm}, seed {seed}: diverged after step {steps}"),
    }
}

/// A time for a person.
fn lasting(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.0} s"),
        s if s < 5400.0 => format!("{:.0} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
