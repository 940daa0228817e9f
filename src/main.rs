//! The program: reads the command line, calls the crates, prints. One file a command; no logic.
#![forbid(unsafe_code)]

mod bench;
mod console;
mod environment;
mod eval;
mod health;
mod log;
mod metrics;
mod output;
mod plan;
mod settings;
mod signals;
mod table;
mod trace;
mod train;
mod worker;

use std::error::Error;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};
use convoy_common::chain::chain;
use convoy_coordinator::JobError;
use log::Log;
use output::{complain, fail};

// glibc's allocator gives large blocks back to the system at once, and every tensor then costs page faults anew.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Trains convolutional networks with each convolution group on a worker process of its own: the same bits on any
/// cluster.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    /// How the log is written to standard error: text, or one JSON object a line. What is logged, RUST_LOG says [default: text]
    #[arg(long, global = true, env = log::FORMAT_VARIABLE, hide_env = true, value_name = "text|json")]
    log_format: Option<log::Format>,
}

#[derive(Subcommand)]
enum Command {
    /// Run a training job
    Train(Box<train::Arguments>),
    /// Serve towers for a coordinator
    Worker(worker::Arguments),
    /// Measure a checkpoint or a weights file on a data set's test images
    Eval(Box<eval::Arguments>),
    /// Ask a worker or a coordinator how it is
    Health(health::Arguments),
    /// Show what a step will cost on a given cluster, without one
    Plan(plan::Arguments),
    /// Show where the time of a run went
    Trace(trace::Arguments),
    /// Measure what this machine does
    Bench(bench::Arguments),
}

/// How a command ended without an error.
pub(crate) enum Outcome {
    Done,
    /// By Ctrl-C, with a checkpoint written.
    Interrupted,
}

/// Something went wrong.
const FAILED: u8 = 1;
/// The command line asks for what can't be.
const MISUSED: u8 = 2;
/// 128 + SIGINT, as shells have it.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let line: Vec<OsString> = std::env::args_os().collect();
    let mut command = environment::adopted(Arguments::command(), &line);
    let slips = environment::slips(&command);
    let parsed = command.try_get_matches_from_mut(&line).and_then(|matches| Arguments::from_arg_matches(&matches));
    match parsed {
        Ok(arguments) => {
            let log = Log::begin(arguments.log_format.unwrap_or_default());
            slips.iter().for_each(|slip| complain(slip));
            ended(carry_out(arguments.command, &log))
        }
        Err(error) => {
            slips.iter().for_each(|slip| complain(slip));
            refused(&error, &line)
        }
    }
}

/// Says what is wrong with the command line, or what help it asks for.
fn refused(error: &clap::Error, line: &[OsString]) -> ExitCode {
    // Where nothing can be printed there is the exit code.
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
        Command::Health(arguments) => health::run(&arguments),
        Command::Plan(arguments) => plan::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments, log),
    }
}

fn ended(result: Result<Outcome, Box<dyn Error>>) -> ExitCode {
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error) => {
            fail(&chain(error.as_ref()));
            ExitCode::from(match error.downcast_ref::<JobError>() {
                Some(JobError::Interrupted) => INTERRUPTED,
                _ if settings::is_misuse(error.as_ref()) => MISUSED,
                _ => FAILED,
            })
        }
    }
}
