//! `convoy train`: parses the command line, finds the checkpoint to continue from, trains, and prints progress.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::NonEmptyStringValueParser;
use convoy_common::address::Address;
use convoy_common::batch::{BATCH_MAX, THREADS_MAX};
use convoy_common::chain::chain;
use convoy_common::model::presets;
use convoy_common::schedule::Schedule;
use convoy_coordinator::checkpoint::correspondence::Correspondence;
use convoy_coordinator::checkpoint::folder::{self, Opened};
use convoy_coordinator::checkpoint::{Checkpoint, CheckpointError, Manifest};
use convoy_coordinator::deadlines;
use convoy_coordinator::files::{quoted, same_place};
use convoy_coordinator::job::{Asked, Length, Order, defaults};
use convoy_coordinator::links::Transport;
use convoy_coordinator::metrics::Metrics;
use convoy_coordinator::record::holds_run;
use convoy_coordinator::running::{Rehearsal, Running};
use convoy_coordinator::trace::Sampling;
use convoy_coordinator::train::{Out, Training, train};
use convoy_dataset::{AskedData, AskedReading, BadImages, DataChoice, DataSource};

use convoy_net::tls::Role;
use convoy_worker::Isa;

use crate::console::Console;
use crate::credentials::Credentials;
use crate::log::Log;
use crate::numbers::{ANY, AT_LEAST_1, real, share, whole};
use crate::output::complain;
use crate::settings::{self, Classes, DataArguments, Misuse};
use crate::sockets::SocketFile;
use crate::{Outcome, metrics, signals};

/// The command line of `convoy train`. Its help text is at `Command`.
#[derive(clap::Args)]
#[command(after_long_help = deadlines_help())]
pub(crate) struct Arguments {
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet, alexnet-torchvision) or path of a model file [default: alexnet-fashion]
    #[arg(long, value_name = "NAME|FILE", value_parser = NonEmptyStringValueParser::new())]
    model: Option<String>,
    /// Images: auto, a folder or a file, bundled, or synthetic. A folder has IDX files, the files of CIFAR-10 or CIFAR-100, Parquet files, or JPEG and PNG files in
    /// folders that are named after their class, which may be divided into train and test (or val). A file may be a NumPy archive (.npz) with the keys of MedMNIST, a Parquet file,
    /// or an archive of CIFAR (.tar.gz). auto uses Fashion-MNIST if it is on this machine. If not, auto downloads it,
    /// except with CONVOY_OFFLINE=1. If that is not possible, auto uses bundled. bundled is a part of Fashion-MNIST that comes with the program.
    /// synthetic is noise, for measuring speed [default: the data of the resumed job, or auto]
    #[arg(long, value_name = "auto|DIR|bundled|synthetic")]
    data: Option<DataSource>,
    /// Classes of the model: its last layer gets as many units. auto means those of the data [default: as the model says]
    #[arg(long, value_name = "auto|N")]
    classes: Option<Classes>,
    /// Share of the image files that are for tests, if --data has no test images of its own. A hash of each image's path decides
    /// [default: 0.1]
    #[arg(long, value_name = "SHARE", value_parser = share)]
    test_share: Option<f64>,
    /// What happens if image files can't be used: stop (before training), or skip (train without them) [default: stop]
    #[arg(long, value_name = "stop|skip")]
    bad_images: Option<BadImages>,
    #[command(flatten)]
    resources: DataArguments,
    /// Passes over the training images [default: 8]
    #[arg(long, value_name = "N", conflicts_with = "steps", value_parser = whole::<u64>(AT_LEAST_1))]
    epochs: Option<u64>,
    /// Number of steps (weight updates), instead of epochs
    #[arg(long, value_name = "N", value_parser = whole::<u64>(AT_LEAST_1))]
    steps: Option<u64>,
    /// Images per step, at most 1048576 [default: 64]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(1..=BATCH_MAX as u64))]
    batch: Option<usize>,
    /// Base learning rate [default: 0.02]
    #[arg(long, value_name = "RATE", value_parser = real)]
    lr: Option<f64>,
    /// Momentum of SGD, in PyTorch's form [default: 0.9]
    #[arg(long, value_name = "M", value_parser = real)]
    momentum: Option<f64>,
    /// Weight decay of SGD, for every parameter [default: 0.0005]
    #[arg(long, value_name = "D", value_parser = real)]
    weight_decay: Option<f64>,
    /// Learning-rate schedule: constant, step:EPOCHS:FACTOR (multiply by FACTOR after every EPOCHS epochs; step alone means step:5:0.1), cosine or
    /// one-cycle [default: one-cycle]
    #[arg(long, value_name = "SCHEDULE")]
    schedule: Option<Schedule>,
    /// Order of the images in an epoch: shuffled or sequential [default: shuffled]
    #[arg(long, value_name = "ORDER")]
    order: Option<Order>,
    /// Seed of initial weights, image order, dropout, crops and mirror images [default: 1]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(ANY))]
    seed: Option<u64>,
    /// Seed of the initial weights alone [default: --seed]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(ANY))]
    init_seed: Option<u64>,
    /// Seed of the image order alone [default: --seed]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(ANY))]
    order_seed: Option<u64>,
    /// Seed of dropout alone [default: --seed]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(ANY))]
    dropout_seed: Option<u64>,
    /// Train on only N of the training images, chosen at random by --split-seed [default: all]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    train_images: Option<usize>,
    /// Do not train on N of the training images, chosen at random by --split-seed. convoy eval --part holdout measures them [default: 0]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(ANY))]
    holdout: Option<usize>,
    /// Seed of the choice of training images for --train-images and --holdout [default: --seed]
    #[arg(long, value_name = "N", value_parser = whole::<u64>(ANY))]
    split_seed: Option<u64>,
    /// Slots into which a batch is divided. Each replica of the trunk computes some of the slots. (The trunk is every layer before the final
    /// linear layers.) The trunk's weight gradients are summed within each slot, and then over the slots in a fixed order, so this number changes the
    /// result [default: 2, or 1 if the batch is a single image]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    slots: Option<usize>,
    /// Micro-batches of each slot. Workers compute one while the tensors of another are sent. This number does not change the result
    /// [default: the fewest with which each replica has at least two]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    micro_batches: Option<usize>,
    /// Worker processes, at most the number of towers times the number of slots [default: one per tower]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    workers: Option<usize>,
    /// Replicas of the trunk, at most one per slot. Each computes some of the slots of a batch. This number does not change the result
    /// [default: the smallest number that gives every worker a tower]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    replicas: Option<usize>,
    /// How workers send each other tensors: auto (directly where they can connect, and otherwise through the coordinator), direct (an error if two
    /// workers can't connect), or relay (through the coordinator). It does not change the result
    #[arg(long, value_name = "HOW", default_value_t = Transport::Auto)]
    exchange: Transport,
    /// Compute threads of each worker that this command starts [default: the machine's cores divided by the workers]
    #[arg(long, value_name = "N", conflicts_with = "listen", value_parser = whole::<usize>(1..=THREADS_MAX as u64))]
    threads: Option<usize>,
    /// Instruction set of the workers that this command starts: scalar, avx2, avx512 or neon. It does not change the result
    /// [default: the best that the machine has]
    #[arg(long, value_name = "NAME", conflicts_with = "listen")]
    isa: Option<Isa>,
    /// Address on which to wait for workers, instead of starting them: HOST:PORT, or unix:PATH if all workers are on this machine
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<Address>,
    #[command(flatten)]
    credentials: Credentials,
    /// Safetensors file with the initial weights [default: random weights]
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    init: Option<PathBuf>,
    /// Layers of the model that do not get their weights from --init, such as a last layer for other classes. They begin with random weights. What the
    /// file has under their names is left out
    #[arg(long, value_name = "LAYER,...", requires = "init", conflicts_with = "resume", value_delimiter = ',', value_parser = NonEmptyStringValueParser::new())]
    init_except: Vec<String>,
    /// File with the names that layers have in --init, where they differ: a line such as "fc8" = "classifier.6" for each, with the model's name first
    #[arg(long, value_name = "FILE", requires = "init", conflicts_with = "resume")]
    init_names: Option<PathBuf>,
    /// Continue from a checkpoint, or from the newest sound checkpoint of a run. auto continues the run in the folder --out if that folder holds a
    /// run, and starts a new run there otherwise. The model and the settings that determine the result (--batch, --lr, --momentum, --weight-decay,
    /// --schedule, --order, --seed, the other seeds, --train-images, --holdout, --slots, and how --data is read) come from the checkpoint, and other values are errors. With auto and --listen, a continued run first
    /// waits for one worker. Then it waits --patience seconds, at least 5, for the others, and continues without those that are missing
    #[arg(long, value_name = "DIR|auto")]
    resume: Option<PathBuf>,
    /// Steps between checkpoints. One is also written at the end and on Ctrl-C [default: the number of steps in an epoch]
    #[arg(long, value_name = "STEPS", value_parser = whole::<u64>(AT_LEAST_1))]
    checkpoint_every: Option<u64>,
    /// Number of checkpoints to keep; older ones are deleted. The checkpoint of a job's last step is never deleted [default: 3]
    #[arg(long, value_name = "N", value_parser = whole::<usize>(AT_LEAST_1))]
    keep: Option<usize>,
    /// Steps between snapshots in memory, which are taken while training continues. After a fault, the job continues from the last one
    /// that is complete [default: chosen so that snapshots cost at most 2 % of the time, and are at least two seconds apart]
    #[arg(long, value_name = "STEPS", value_parser = whole::<u64>(AT_LEAST_1))]
    snapshot_every: Option<u64>,
    /// Seconds that the job waits for a worker that does not answer; values below 5 count as 5. With --listen, the job also waits this long for a
    /// replacement of a lost worker; for this wait, values below 5 are used as they are. If --resume auto continues a run with --listen, the job
    /// waits this long, and at least 5 seconds, for the other workers after the first worker has connected. The end of --help lists the other
    /// deadlines [default: 10]
    #[arg(long, value_name = "SECONDS", value_parser = whole::<u64>(0..=86_400))]
    patience: Option<u64>,
    /// Steps to keep in the run's trace: off, sample (about 50 steps, spread over the run, and up to 30 slow ones), steps:FROM-TO,
    /// or all
    #[arg(long, value_name = "off|sample|steps:FROM-TO|all", default_value = "sample")]
    trace: Sampling,
    /// Also write the metrics to an event file in the run's folder, for TensorBoard: tensorboard --logdir runs
    #[arg(long)]
    tensorboard: bool,
    /// Address on which to serve metrics to Prometheus, at /metrics: progress, loss and speed of the running job
    #[arg(long, value_name = "HOST:PORT")]
    metrics: Option<Address>,
    /// Folder of the run [default: that of the resumed run, or a new folder runs/MODEL-TIME]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Exit when standard input closes, as if killed. For coordinators that another process starts
    #[arg(long, hide = true)]
    lifeline: bool,
    /// After a fault, continue from a wrong snapshot, to test whether the replay detects it
    #[arg(long, hide = true)]
    rehearse_stale_snapshot: bool,
    /// Do not drop messages of earlier generations, to test whether that is detected
    #[arg(long, hide = true)]
    rehearse_no_fence: bool,
    /// Print one JSON object per event instead of text
    #[arg(long)]
    json: bool,
}

/// A run to continue has no checkpoint.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} has no checkpoint yet: its job has just begun, or ended before its first checkpoint; if it has ended, --resume auto --out {} starts it again",
    path.display(), quoted(path)
)]
struct NoneYet {
    path: PathBuf,
}

/// The value of `--resume` that continues whatever is in `--out`.
const AUTO: &str = "auto";

/// The deadlines of a job, as text.
fn deadlines_help() -> String {
    let lines = deadlines::table().into_iter().map(|(what, when)| format!("\n  {when}: {what}"));
    format!("Deadlines, where P stands for the seconds of --patience:{}\n", lines.collect::<String>())
}

pub(crate) fn run(arguments: Arguments, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    if arguments.lifeline {
        signals::end_with_input()?;
    }
    let resume = arguments.checkpoint()?;
    let default_model = presets::text(presets::DEFAULT).unwrap_or_default().to_owned();
    let reading = AskedReading {
        test_share: arguments.test_share,
        bad_images: arguments.bad_images,
        format: arguments.resources.format(),
    };
    let data = AskedData { source: arguments.data.clone(), reading };
    let model = arguments.model.as_deref().map(settings::model_text).transpose()?;
    let model = match &arguments.classes {
        Some(classes) => {
            let before = resume.as_ref().map(|checkpoint| checkpoint.manifest.job.model.clone());
            let text = model.or(before).unwrap_or_else(|| default_model.clone());
            let manifest = resume.as_ref().map(|checkpoint| &checkpoint.manifest);
            let choice = DataChoice::of(data.clone(), manifest.map(Manifest::remembered_data).unwrap_or_default());
            Some(classes.applied(&text, &choice.source, &choice.reading)?)
        }
        None => model,
    };
    let run = resume.as_ref().and_then(|checkpoint| folder::run_of(&checkpoint.path));
    let is_auto = arguments.resume.as_deref() == Some(Path::new(AUTO));
    // Also if the run has no checkpoint yet.
    let begins_with_fewer = is_auto && arguments.out.as_deref().is_some_and(holds_run);
    let out = match (arguments.out, run) {
        // `--resume auto` that found nothing begins a run in --out.
        (Some(out), _) if arguments.resume.is_some() && resume.is_none() => Out::Continued(out),
        (Some(out), Some(run)) if same_place(&run, &out) => Out::Continued(out),
        (Some(out), _) => Out::Fresh(out),
        (None, Some(run)) => Out::Continued(run),
        (None, None) => Out::Unnamed,
    };
    let names = arguments.init_names.as_deref().map(settings::layer_names).transpose()?.unwrap_or_default();
    let correspondence = Correspondence { except: arguments.init_except, names };
    let init = arguments.init.map(|path| (path, correspondence));
    let secrets = arguments.credentials.secrets(Role::Coordinator, "--listen", &arguments.listen)?;
    let metrics = metrics::counted(arguments.metrics.as_ref(), secrets.tls.as_ref(), Metrics::registered)?;
    let training = Training {
        running: Running {
            workers: arguments.workers,
            replicas: arguments.replicas,
            transport: arguments.exchange,
            threads: arguments.threads,
            listen: arguments.listen,
            secrets,
            micro_batches: arguments.micro_batches,
            checkpoint_every: arguments.checkpoint_every,
            keep: arguments.keep.unwrap_or(defaults::KEEP),
            snapshot_every: arguments.snapshot_every,
            rehearsal: Rehearsal {
                stale_snapshot: arguments.rehearse_stale_snapshot,
                no_fence: arguments.rehearse_no_fence,
            },
            patience: arguments.patience.map_or(defaults::PATIENCE, Duration::from_secs),
            begins_with_fewer,
            trace: arguments.trace,
            tensorboard: arguments.tensorboard,
            otlp: settings::otlp_endpoint(),
            isa: arguments.isa.map(|isa| isa.to_string()),
            local: log.local_program()?,
            metrics,
        },
        asked: Asked {
            model,
            length: arguments.epochs.map(Length::Epochs).or(arguments.steps.map(Length::Steps)),
            batch: arguments.batch,
            lr: arguments.lr,
            momentum: arguments.momentum,
            weight_decay: arguments.weight_decay,
            schedule: arguments.schedule,
            order: arguments.order,
            seed: arguments.seed,
            init_seed: arguments.init_seed,
            order_seed: arguments.order_seed,
            dropout_seed: arguments.dropout_seed,
            split_seed: arguments.split_seed,
            train_images: arguments.train_images,
            holdout: arguments.holdout,
            slots: arguments.slots,
        },
        default_model,
        data,
        places: arguments.resources.places()?,
        resume,
        init,
        out,
    };
    let stop = signals::stop_flag(
        "stopping; if the job has started, a checkpoint is written first",
        "quit; the steps since the last checkpoint were not saved".to_owned(),
    )?;
    let mut console = Console::new(arguments.json);
    let _socket = SocketFile::at(training.running.listen.as_ref())?;
    let ended = train(training, &mut console, &stop)?;
    Ok(if ended.interrupted { Outcome::Interrupted } else { Outcome::Done })
}

impl Arguments {
    /// The checkpoint that `--resume` names. With `auto` there may be none.
    fn checkpoint(&self) -> Result<Option<Checkpoint>, Box<dyn Error>> {
        let opened = match &self.resume {
            None => None,
            Some(auto) if auto == Path::new(AUTO) => {
                let out = self
                    .out
                    .as_ref()
                    .ok_or_else(|| Misuse("--resume auto needs --out, the folder of the run".to_owned()))?;
                folder::open_newest(out)?
            }
            Some(path) => Some(folder::open(path).map_err(|error| match error {
                CheckpointError::None { .. } if holds_run(path) => NoneYet { path: path.clone() }.into(),
                other => Box::<dyn Error>::from(other),
            })?),
        };
        Ok(opened.map(|Opened { checkpoint, damaged }| {
            let used = checkpoint.path.display();
            damaged.iter().for_each(|error| complain(&format!("note: {}; using {used} instead", chain(error))));
            checkpoint
        }))
    }
}
