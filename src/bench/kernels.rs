//! `convoy bench kernels`: parses the command line, times layers, and prints a table or JSON.

use std::error::Error;

use convoy_common::batch::{BATCH_MAX, THREADS_MAX};
use convoy_common::model::Network;
use convoy_worker::Isa;
use convoy_worker::bench::{self, KernelBench, Timing, Timings};
use serde_json::{Value, json};

use crate::numbers::whole;
use crate::table::aligned;
use crate::{Outcome, output, settings};

/// The command line of `convoy bench kernels`. Its help text is at `Part`.
#[derive(clap::Args)]
pub(super) struct Kernels {
    /// Preset (alexnet-fashion, alexnet-fashion-dense, alexnet-cifar, alexnet, alexnet-torchvision) or path of a model file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet")]
    model: String,
    /// Images per batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole::<u32>(1..=BATCH_MAX as u64))]
    batch: u32,
    /// Compute threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = whole::<u16>(1..=THREADS_MAX as u64))]
    threads: u16,
    /// Instruction set of the kernels: scalar, avx2, avx512 or neon [default: the best that the machine has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
    /// Measured runs of each pass
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = whole::<u32>(1..=10_000))]
    repeats: u32,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn run(kernels: &Kernels) -> Result<Outcome, Box<dyn Error>> {
    let network = Network::parse(&settings::model_text(&kernels.model)?)?;
    let name = network.name.clone();
    let (samples, threads) = (kernels.batch as usize, usize::from(kernels.threads));
    let asked = KernelBench { network, samples, threads, isa: kernels.isa, repeats: kernels.repeats as usize };
    let timings = bench::kernels(asked, |layer| tracing::info!("timing {layer}"))?;
    let text = if kernels.json {
        format!("{:#}\n", as_json(&name, kernels, &timings))
    } else {
        as_table(&name, kernels, &timings)
    };
    output::print(&text)?;
    Ok(Outcome::Done)
}

/// A pass's rate, in GFLOP/s or GB/s, and its share of what as many threads do at most.
fn rate(amount: Option<u64>, median_ms: f64, most: f64) -> Option<(f64, f64)> {
    let rate = amount? as f64 / median_ms / 1e6;
    Some((rate, rate / most))
}

/// GFLOP/s of a pass that multiplies and adds.
fn speed(timing: &Timing, timings: &Timings) -> Option<(f64, f64)> {
    rate(timing.flops, timing.median_ms, timings.yardstick.gflops)
}

/// GB/s of a pass that only moves memory.
fn bandwidth(timing: &Timing, timings: &Timings) -> Option<(f64, f64)> {
    rate(timing.bytes, timing.median_ms, timings.yardstick.gigabytes)
}

fn as_json(model: &str, asked: &Kernels, timings: &Timings) -> Value {
    let pass = |timing: &Timing| {
        let (speed, bandwidth) = (speed(timing, timings), bandwidth(timing, timings));
        json!({
            "layer": timing.layer, "pass": timing.pass, "median_ms": timing.median_ms, "best_ms": timing.best_ms,
            "flops": timing.flops, "gflops": speed.map(|speed| speed.0), "share_of_peak": speed.map(|speed| speed.1),
            "bytes": timing.bytes, "gb_per_second": bandwidth.map(|bandwidth| bandwidth.0),
            "share_of_memory": bandwidth.map(|bandwidth| bandwidth.1),
        })
    };
    json!({
        "model": model, "tower": 0, "batch": asked.batch, "threads": asked.threads, "isa": timings.isa.to_string(),
        "peak_gflops": timings.yardstick.gflops, "memory_gb_per_second": timings.yardstick.gigabytes,
        "passes": timings.passes.iter().map(pass).collect::<Vec<_>>(),
    })
}

fn as_table(model: &str, asked: &Kernels, timings: &Timings) -> String {
    let (batch, threads) = (asked.batch, asked.threads);
    let plural = if threads == 1 { "" } else { "s" };
    let mut text = format!(
        "Tower 0 of {model}, {batch} images, {threads} thread{plural}, {}. The peak is {:.1} GFLOP/s, and {:.1} GB/s for \
         copies (read and written). Both are the best of several measurements with the same number of threads.\n\n",
        timings.isa, timings.yardstick.gflops, timings.yardstick.gigabytes
    );
    let head = ["layer", "pass", "ms", "best", "GFLOP/s", "of peak", "GB/s", "of peak GB/s"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for timing in &timings.passes {
        let cells = |rate: Option<(f64, f64)>| match rate {
            Some((rate, share)) => [format!("{rate:.1}"), format!("{:.1} %", share * 100.0)],
            None => [String::new(), String::new()],
        };
        let times = [timing.median_ms, timing.best_ms].map(|ms| format!("{ms:.3}"));
        let rates = [speed(timing, timings), bandwidth(timing, timings)].map(cells);
        rows.push([vec![timing.layer.clone(), timing.pass.to_owned()], times.to_vec(), rates.concat()].concat());
    }
    let total: f64 = timings.passes.iter().map(|timing| timing.median_ms).sum();
    let mut last = vec![String::new(); head.len()];
    (last[0], last[2]) = ("all".to_owned(), format!("{total:.3}"));
    rows.push(last);
    text += &aligned(&rows, &[0, 1]);
    text
}
