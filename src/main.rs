//! The program: reads the command line, calls the crates, and prints. One file per command. No logic.
#![forbid(unsafe_code)]

mod bench;
mod certs;
mod chaos;
mod console;
mod credentials;
mod doctor;
mod environment;
mod eval;
mod export;
mod health;
mod log;
mod metrics;
mod numbers;
mod output;
mod pages;
mod plan;
mod predict;
mod report;
mod settings;
mod signals;
mod sockets;
mod study;
mod table;
mod trace;
mod train;
mod verify;
mod worker;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use convoy_common::chain::chain;
use convoy_coordinator::JobError;
use log::Log;
use output::{complain, fail};

// glibc's allocator returns large blocks to the system at once, so every tensor would cost page faults again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains convolutional networks across several processes. A network is divided into towers: slices of every layer's channels, as equal as possible.
/// Worker processes compute towers. The result is the same to the bit for any number of workers.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// Format of the log on standard error: text, or one JSON object per line [default: text]. RUST_LOG sets the log level, for
    /// example RUST_LOG=convoy=debug
    #[arg(long, global = true, env = log::FORMAT_VARIABLE, value_name = "text|json", display_order = 1000)]
    log_format: Option<log::Format>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a training job
    ///
    /// The job runs on worker processes that this command starts, or on workers that connect to it (--listen). The model, the data, the
    /// seed and the hyperparameters determine the result to the bit. The number of workers, threads and micro-batches does not change it.
    Train(Box<train::Arguments>),
    /// Compute towers for a coordinator
    ///
    /// The worker serves one job after another, until SIGTERM or Ctrl-C. If the signal arrives during a job, the worker waits for a
    /// checkpoint, at most 45 seconds, and then stops. A second signal stops it immediately.
    Worker(worker::Arguments),
    /// Measure the accuracy of a checkpoint or a weights file on test images
    ///
    /// The network is divided into the same towers as in training.
    Eval(Box<eval::Arguments>),
    /// Classify images with trained weights
    ///
    /// Each image is scaled and cropped as a test image. The output lists the most probable classes of each image. The names of classes are those of the
    /// checkpoint's data.
    Predict(predict::Arguments),
    /// Write trained weights as a file for other programs
    ///
    /// The file has the format ONNX, which onnxruntime and other programs run. Its input is named images: bytes of shape (N, channels, height, width), as
    /// in the data set. Its output is named logits: floats of shape (N, classes).
    Export(export::Arguments),
    /// Check the health of a worker or a coordinator
    ///
    /// Health checks of containers can use this command. A coordinator is ready when its job has its workers. A worker is ready unless its
    /// computation hangs. The exit code is 0 if the process is ready (with --live: alive), and 1 if not.
    Health(health::Arguments),
    /// Check a machine, or a cluster, before a job
    ///
    /// The checks cover processor, memory, descriptors, clock, disk, names and addresses, and the files of TLS. With --join, also the way to a
    /// coordinator; with --listen, also the workers that connect: how fast their connections are, and whether they can connect to each other. Each
    /// finding says what to do. The exit code is 1 if a job would fail.
    Doctor(doctor::Arguments),
    /// Make a certificate authority and certificates for TLS
    ///
    /// The folder gets a CA (ca.pem, ca-key.pem), a certificate for the coordinator and one for each worker, with their keys. What exists stays, so
    /// the command can be repeated with more workers. docs/SECURITY.md explains how to use the files, and certificates of another CA.
    Certs(certs::Arguments),
    /// Check that the checkpoints of a run are sound
    ///
    /// A checkpoint is sound if each of its files still has the SHA-256 that was recorded when the checkpoint was written, its settings
    /// have allowed values, and its tensors fit the model and have the recorded weights_sha256. A checkpoint in the folder of a run must also be named
    /// after its step, for example step-000632. The exit code is 0 if all checkpoints are sound, and 1 if not.
    Verify(verify::Arguments),
    /// Show what a training step will cost
    ///
    /// The tables show the multiply-adds of each layer, the bytes of each exchange (where towers send channels to each other), and the memory
    /// that a job needs. With --gflops, they also show how long a step takes on 1, 2, 4, ... workers. Nothing is run.
    Plan(plan::Arguments),
    /// Show where a run spent its time
    ///
    /// The output shows the time of each worker by activity, the critical path, the bottleneck, and a comparison of planned and measured costs. The
    /// file trace.json in the run's folder also opens in Perfetto (ui.perfetto.dev).
    Trace(trace::Arguments),
    /// Write a page about a run: how it learned, what it gets right and wrong, and where its time went
    ///
    /// The page is one file, which works offline and can be printed. The newest sound checkpoint of the run is measured on the test images. With
    /// --compare, the page shows two runs side by side, and what differs in their settings and results.
    Report(report::Arguments),
    /// Measure training speed on this machine
    ///
    /// The output shows the best and the median step of a job on synthetic images, and where the time went.
    Bench(bench::Arguments),
    /// Run a job under a storm of faults, and compare the result with a run without faults
    ///
    /// The job runs twice: first without faults, then with faults. Each time, the coordinator and its workers are separate processes on
    /// this machine, or containers (--compose). At planned steps, the storm kills, stops, slows down or disconnects workers, makes
    /// them send damaged messages, or kills the coordinator. The exit code is 1 if the results differ, if the job fails or hangs, if a
    /// planned fault did not happen, or if a fault that must be detected was missed. docs/RELIABILITY.md lists all reasons.
    Chaos(Box<chaos::Arguments>),
    /// Compare networks over many runs, and report what came out and how sure it is
    ///
    /// A study's file names arms (a network each), images, seeds and a margin. Each run is an ordinary job in the study's folder. The same
    /// command continues a study that was interrupted. The report says, for each arm, whether it is better than the control, the
    /// same within the margin, or whether the runs can't tell. docs/STUDIES.md explains the file and the statistics.
    Study(study::Arguments),
}

/// How a command ended, if without an error.
pub(crate) enum Outcome {
    Done,
    /// Stopped by Ctrl-C, after writing a checkpoint.
    Interrupted,
}

/// Exit code of a command that failed.
const FAILED: u8 = 1;
/// Exit code of a command that was used wrongly.
const MISUSED: u8 = 2;
/// Exit code of an interrupted job: 128 + SIGINT, the convention of shells.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let excluded = environment::excluded(&Arguments::command(), &line);
    let mut command = environment::adopted(numbers::with_negative_ones(Arguments::command()), &line);
    let slips = [environment::slips(&command), excluded].concat();
    let parsed = command.try_get_matches_from_mut(&line).and_then(|matches| Arguments::from_arg_matches(&matches));
    match parsed {
        Ok(arguments) => {
            let log = Log::begin(arguments.log_format.unwrap_or_default());
            slips.iter().for_each(|slip| complain(slip));
            let sources = |error: &str| environment::sources_in(error, &command, &line);
            ended(carry_out(arguments.command, &log), sources)
        }
        Err(error) => {
            slips.iter().for_each(|slip| complain(slip));
            refused(&error, &line)
        }
    }
}

/// Prints what is wrong with the command line, or the help that it asks for.
fn refused(error: &clap::Error, line: &[OsString]) -> ExitCode {
    // If nothing can be printed, the exit code still tells.
    let _ = error.print();
    if let Some(source) = environment::source_of(error, line) {
        complain(&source);
    }
    ExitCode::from(error.exit_code() as u8)
}

fn carry_out(command: Command, log: &Log) -> Result<Outcome, Box<dyn Error>> {
    match command {
        Command::Train(arguments) => train::run(*arguments, log),
        Command::Worker(arguments) => worker::run(&arguments),
        Command::Eval(arguments) => eval::run(*arguments, log),
        Command::Predict(arguments) => predict::run(arguments, log),
        Command::Export(arguments) => export::run(&arguments),
        Command::Health(arguments) => health::run(&arguments),
        Command::Doctor(arguments) => doctor::run(arguments, log),
        Command::Certs(arguments) => certs::run(&arguments),
        Command::Verify(arguments) => verify::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Report(arguments) => report::run(&arguments, log),
        Command::Bench(arguments) => bench::run(&arguments, log),
        Command::Chaos(arguments) => chaos::run(&arguments),
        Command::Study(arguments) => study::run(&arguments),
    }
}

/// The exit code of a command. `sources` are notes about the values that an error names.
fn ended(result: Result<Outcome, Box<dyn Error>>, sources: impl Fn(&str) -> Vec<String>) -> ExitCode {
    let lost = output::failure();
    lost.iter().for_each(|why| fail(why));
    match result {
        Ok(Outcome::Done) if lost.is_some() => ExitCode::from(FAILED),
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            let text = chain(error.as_ref());
            fail(&text);
            sources(&text).iter().for_each(|source| complain(source));
            ExitCode::from(match error.downcast_ref::<JobError>() {
                Some(JobError::Interrupted) => INTERRUPTED,
                Some(JobError::TooFewWorkers { .. }) => convoy_study::place::TOO_FEW_WORKERS,
                _ if settings::is_misuse(error.as_ref()) => MISUSED,
                _ => FAILED,
            })
        }
    }
}
