//! `convoy bench`: times the steps of a short job on synthetic images, and shows where their time went. Its subcommand
//! `bench kernels` times single layers.

mod kernels;
mod machine;

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use convoy_common::batch::{BATCH_MAX, Division, THREADS_MAX};
use convoy_common::model::Network;
use convoy_common::text::counted;
use convoy_coordinator::job::{Asked, Length, defaults};
use convoy_coordinator::links::Transport;
use convoy_coordinator::metrics::Metrics;
use convoy_coordinator::observe::{Event, Observer};
use convoy_coordinator::running::{Rehearsal, Running};
use convoy_coordinator::trace::Sampling;
use convoy_coordinator::trace::account::Account;
use convoy_coordinator::train::{Out, Training, train};
use convoy_dataset::{AskedData, DataSource};
use convoy_net::secrets::Secrets;
use convoy_worker::Isa;
use convoy_worker::bench::Yardstick;
use machine::Energy;
use serde_json::{Value, json};

use crate::log::Log;
use crate::numbers::{AT_LEAST_1, whole};
use crate::{Outcome, output, settings, signals, trace};

/// The command line of `convoy bench`. Its help text is at `Command`.
#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    steps: Steps,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Measure the speed of each layer and pass of one tower, and compare it with the machine's limits for the same number of threads
    ///
    /// Convolutions and linear layers are compared with the peak rate of multiply-adds, other layers with the memory bandwidth.
    Kernels(kernels::Kernels),
}

#[derive(clap::Args)]
struct Steps {
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet, alexnet-torchvision) or path of a model file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet")]
    model: String,
    /// Images per step, at most 1048576
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = whole::<u32>(1..=BATCH_MAX as u64))]
    batch: u32,
    /// Steps to measure
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<u32>(1..=100_000))]
    steps: u32,
    /// Steps to run before measuring, while memory is allocated and caches fill
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = whole::<u32>(0..=100_000))]
    warm_up: u32,
    /// Worker processes, at most the number of towers times the number of slots [default: one per tower]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    workers: Option<usize>,
    /// Slots per batch, as in `convoy train` [default: 2, or 1 if the batch is a single image]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    slots: Option<usize>,
    /// Replicas of the trunk, as in `convoy train` [default: the smallest number that gives every worker a tower]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    replicas: Option<usize>,
    /// How workers send each other tensors, as in `convoy train`: auto, direct or relay
    #[arg(long, value_name = "HOW", default_value_t = Transport::Auto)]
    exchange: Transport,
    /// Compute threads of each worker [default: the machine's cores divided by the workers]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=THREADS_MAX as u64))]
    threads: Option<usize>,
    /// Micro-batches per slot, as in `convoy train` [default: the fewest with which each replica has at least two]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    micro_batches: Option<usize>,
    /// Instruction set of the kernels: scalar, avx2, avx512 or neon [default: the best that the machine has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
    /// Exit when standard input closes. For studies
    #[arg(long, hide = true)]
    lifeline: bool,
}

pub(crate) fn run(arguments: &Arguments, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    match &arguments.part {
        Some(Part::Kernels(kernels)) => kernels::run(kernels),
        None => run_steps(&arguments.steps, log),
    }
}

fn run_steps(asked: &Steps, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    if asked.lifeline {
        signals::end_with_input()?;
    }
    let model = settings::model_text(&asked.model)?;
    let network = Network::parse(&model)?;
    let wrong = |error| format!("cannot create a temporary folder for the run (TMPDIR sets its location): {error}");
    let folder = tempfile::Builder::new().prefix("convoy-bench-").tempdir().map_err(wrong)?;
    let out = folder.path().join("run");
    let stop = signals::stop_flag("stopping", "quit".to_owned())?;
    let mut watch = Watch::new(asked, stop.clone());
    let ended = train(job(asked, model, &out, log)?, &mut watch, &stop);
    if let Some(images) = watch.fewer_images {
        return Err(settings::Misuse(format!(
            "--batch {}: must be at most {images}, the number of synthetic training images of this model",
            asked.batch
        ))
        .into());
    }
    if ended?.interrupted {
        return Ok(Outcome::Interrupted);
    }
    let account = trace::accounted(&out, None)?.2;
    let took = watch.seconds.split_off(watch.seconds.len().min(asked.warm_up as usize));
    let found = Measured::new(&network, asked, took, &watch, account);
    let text = if asked.json { format!("{:#}\n", found.as_json()?) } else { found.as_text() };
    output::print(&text)?;
    Ok(Outcome::Done)
}

fn job(asked: &Steps, model: String, out: &Path, log: &Log) -> Result<Training, Box<dyn Error>> {
    let (first, last) = (u64::from(asked.warm_up) + 1, u64::from(asked.warm_up) + u64::from(asked.steps));
    Ok(Training {
        running: Running {
            workers: asked.workers,
            replicas: asked.replicas,
            transport: asked.exchange,
            threads: asked.threads,
            isa: asked.isa.map(|isa| isa.to_string()),
            listen: None,
            secrets: Secrets::default(),
            micro_batches: asked.micro_batches,
            checkpoint_every: None,
            // A bench measures steps, and nothing between them.
            snapshot_every: Some(u64::MAX),
            keep: defaults::KEEP,
            patience: defaults::PATIENCE,
            begins_with_fewer: false,
            rehearsal: Rehearsal::default(),
            trace: Sampling::Steps(first..=last),
            tensorboard: false,
            otlp: None,
            local: log.local_program()?,
            metrics: Metrics::default(),
        },
        asked: Asked {
            model: Some(model),
            length: Some(Length::Steps(last)),
            batch: Some(asked.batch as usize),
            slots: asked.slots,
            ..Asked::default()
        },
        default_model: String::new(),
        data: AskedData { source: Some(DataSource::Synthetic), ..AskedData::default() },
        places: settings::places()?,
        resume: None,
        init: None,
        out: Out::Fresh(out.to_owned()),
    })
}

/// What is heard of the job, and the yardstick, which is measured while no step is computed: before the first step, between the
/// warm-up steps, and after the last step. The best value counts, so that a moment at which the machine was busy does not.
struct Watch {
    isa: Option<Isa>,
    /// Images that a step should have.
    batch: usize,
    /// Images that there are, if they are fewer. The job stops then.
    fewer_images: Option<usize>,
    stop: Arc<AtomicBool>,
    warm_up: u64,
    last_step: u64,
    seconds: Vec<f64>,
    /// How the job divides a batch, and its replicas, once it has begun.
    division: Option<(Division, usize)>,
    /// Threads, instruction set and process of each worker.
    workers: Vec<(usize, String, u32)>,
    /// The energy counters before the first measured step.
    energy: Option<Energy>,
    /// Joules of all measured steps, where the machine tells.
    joules: Option<f64>,
    /// The most memory of each worker, added up, in bytes. This process is not counted: it has the images, and the yardstick.
    memory: Option<u64>,
    yardstick: Yardstick,
}

impl Watch {
    /// Watches a job that `stop` stops.
    fn new(asked: &Steps, stop: Arc<AtomicBool>) -> Self {
        let warm_up = u64::from(asked.warm_up);
        let last_step = warm_up + u64::from(asked.steps);
        Self {
            isa: asked.isa,
            batch: asked.batch as usize,
            fewer_images: None,
            stop,
            warm_up,
            last_step,
            seconds: Vec::new(),
            division: None,
            workers: Vec::new(),
            energy: None,
            joules: None,
            memory: None,
            yardstick: Yardstick::default(),
        }
    }

    fn threads(&self) -> usize {
        self.workers.iter().map(|worker| worker.0).sum()
    }

    /// The first measured step begins.
    fn begin(&mut self) {
        self.energy = Energy::read();
    }

    fn measure(&mut self) {
        self.yardstick = self.yardstick.or(Yardstick::measured(self.isa, self.threads()));
    }
}

impl Observer for Watch {
    fn on(&mut self, event: Event) {
        match event {
            Event::Started(started) if started.train_images < self.batch => {
                self.fewer_images = Some(started.train_images);
                self.stop.store(true, Ordering::Relaxed);
            }
            Event::Started(started) => {
                let division = Division { slots: started.slots, micro_batches: started.micro_batches };
                self.division = Some((division, started.replicas));
                self.workers =
                    started.workers.into_iter().map(|w| (w.threads, w.instruction_set, w.process_id)).collect();
                self.measure();
                if self.warm_up == 0 {
                    self.begin();
                }
            }
            Event::Step { step, seconds, .. } => {
                self.seconds.push(seconds);
                if step == self.last_step {
                    self.joules = self.energy.as_ref().and_then(Energy::joules_since);
                    self.memory = self.workers.iter().map(|worker| machine::peak_memory(worker.2)).sum();
                }
                if self.pauses_after(step) {
                    self.measure();
                }
                if step == self.warm_up {
                    self.begin();
                }
            }
            _ => {}
        }
    }

    /// The step after a pause finds colder caches, so it has to be one that doesn't count.
    fn pauses_after(&self, step: u64) -> bool {
        step < self.warm_up || step == self.last_step
    }
}

/// What was measured.
struct Measured {
    model: String,
    batch: u32,
    isa: String,
    division: Division,
    replicas: usize,
    workers: usize,
    threads: usize,
    /// Sorted.
    seconds: Vec<f64>,
    gflop: f64,
    yardstick: Yardstick,
    memory: Option<u64>,
    joules: Option<f64>,
    account: Account,
}

impl Measured {
    fn new(network: &Network, asked: &Steps, mut seconds: Vec<f64>, watch: &Watch, account: Account) -> Self {
        seconds.sort_by(f64::total_cmp);
        let (division, replicas) = watch.division.expect("a job that has ended has begun");
        // Forward, the gradient of the weights, and that of the input, which the first layer doesn't need.
        let passes =
            network.layers.iter().enumerate().map(|(index, layer)| layer.multiply_adds() * (3 - u64::from(index == 0)));
        Self {
            model: network.name.clone(),
            batch: asked.batch,
            isa: watch.workers.first().map_or_else(String::new, |worker| worker.1.clone()),
            division,
            replicas,
            workers: watch.workers.len(),
            threads: watch.threads(),
            gflop: 2.0 * passes.sum::<u64>() as f64 * f64::from(asked.batch) / 1e9,
            seconds,
            yardstick: watch.yardstick,
            memory: watch.memory,
            joules: watch.joules,
            account,
        }
    }

    fn best(&self) -> f64 {
        self.seconds.first().copied().unwrap_or(f64::NAN)
    }

    fn median(&self) -> f64 {
        self.seconds.get(self.seconds.len() / 2).copied().unwrap_or(f64::NAN)
    }

    fn joules_a_step(&self) -> Option<f64> {
        self.joules.map(|joules| joules / self.seconds.len() as f64)
    }

    /// Memory and energy, as far as the machine tells.
    fn spent(&self) -> String {
        let memory = self
            .memory
            .map(|bytes| format!("memory {:.1} MB: the most of each worker, added up\n", bytes as f64 / 1e6));
        let energy = self
            .joules_a_step()
            .map(|joules| format!("energy {joules:.3} J per step, of all processors of the machine\n"));
        memory.into_iter().chain(energy).collect()
    }

    fn images_a_second(&self, seconds: f64) -> f64 {
        f64::from(self.batch) / seconds
    }

    /// The share of all threads' multiply-adds that a step of `seconds` uses.
    fn share(&self, seconds: f64) -> f64 {
        self.gflop / seconds / self.yardstick.gflops
    }

    fn as_json(&self) -> Result<Value, serde_json::Error> {
        let figures = |seconds: f64| {
            json!({
                "ms": seconds * 1e3, "images_per_second": self.images_a_second(seconds),
                "gflops": self.gflop / seconds, "share_of_peak": self.share(seconds),
            })
        };
        Ok(json!({
            "model": self.model, "batch": self.batch, "slots": self.division.slots, "micro_batches": self.division.micro_batches,
            "replicas": self.replicas, "workers": self.workers, "threads": self.threads, "isa": self.isa,
            "steps_ms": self.seconds.iter().map(|seconds| seconds * 1e3).collect::<Vec<_>>(),
            "best": figures(self.best()), "median": figures(self.median()),
            "memory_bytes": self.memory, "joules_a_step": self.joules_a_step(),
            "gflop_a_step": self.gflop, "peak_gflops": self.yardstick.gflops, "memory_gb_per_second": self.yardstick.gigabytes,
            "account": serde_json::to_value(&self.account)?,
        }))
    }

    fn as_text(&self) -> String {
        let line = |name: &str, seconds: f64| {
            format!(
                "{name:<6} {:10.1} ms per step  {:8.1} images/s  {:7.1} GFLOP/s  {:5.1} % of the peak\n",
                seconds * 1e3,
                self.images_a_second(seconds),
                self.gflop / seconds,
                self.share(seconds) * 100.0
            )
        };
        format!(
            "{}, {} per step in {} of {}, {} on {} with {} in total, {}: {}\n\
             A step needs {:.1} GFLOP. These threads reach at most {:.1} GFLOP/s, and copy {:.1} GB/s (read and written). \
             Both are the best of several measurements in this run.\n\n{}{}{}\n{}",
            self.model,
            counted(self.batch as usize, "image", "images"),
            counted(self.division.slots, "slot", "slots"),
            counted(self.division.micro_batches, "micro-batch", "micro-batches"),
            counted(self.replicas, "replica", "replicas"),
            counted(self.workers, "worker", "workers"),
            counted(self.threads, "thread", "threads"),
            self.isa,
            counted(self.seconds.len(), "step", "steps"),
            self.gflop,
            self.yardstick.gflops,
            self.yardstick.gigabytes,
            line("best", self.best()),
            line("median", self.median()),
            self.spent(),
            trace::worker_table(&self.account)
        )
    }
}
