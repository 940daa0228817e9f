//! `convoy bench kernels`: parses, times, and prints a table or JSON.

use std::error::Error;

use convoy_common::batch::BATCH_MAX;
use convoy_common::model::Network;
use convoy_worker::Isa;
use convoy_worker::bench::{self, KernelBench, Timing, Timings};
use serde_json::{Value, json};

use crate::table::aligned;
use crate::{Outcome, output, settings};

/// Time each layer and pass of one tower, beside the most that a core can do
#[derive(clap::Args)]
pub(super) struct Kernels {
    /// A preset (alexnet-fashion, alexnet-fashion-dense, alexnet) or a model file
    #[arg(long, value_name = "NAME|FILE", default_value = "alexnet")]
    model: String,
    /// Images of the batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=BATCH_MAX as i64))]
    batch: u32,
    /// Compute threads
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Instruction set [default: the best that the machine has]
    #[arg(long, value_name = "NAME")]
    isa: Option<Isa>,
    /// Runs of each pass
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
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

/// GFLOP/s of a pass, and what that is of all threads' peak.
fn speed(timing: &Timing, threads: u16, peak: f64) -> Option<(f64, f64)> {
    let gflops = timing.flops? as f64 / timing.median_ms / 1e6;
    Some((gflops, gflops / peak / f64::from(threads)))
}

fn as_json(model: &str, asked: &Kernels, timings: &Timings) -> Value {
    let pass = |timing: &Timing| {
        let speed = speed(timing, asked.threads, timings.peak);
        json!({
            "layer": timing.layer, "pass": timing.pass, "median_ms": timing.median_ms, "best_ms": timing.best_ms,
            "flops": timing.flops, "gflops": speed.map(|speed| speed.0), "share_of_peak": speed.map(|speed| speed.1),
        })
    };
    json!({
        "model": model, "tower": 0, "batch": asked.batch, "threads": asked.threads, "isa": timings.isa.to_string(),
        "peak_gflops_a_core": timings.peak, "passes": timings.passes.iter().map(pass).collect::<Vec<_>>(),
    })
}

fn as_table(model: &str, asked: &Kernels, timings: &Timings) -> String {
    let (batch, threads) = (asked.batch, asked.threads);
    let plural = if threads == 1 { "" } else { "s" };
    let mut text = format!(
        "Tower 0 of {model}, {batch} images, {threads} thread{plural}, {}. A core multiplies and adds {:.1} GFLOP/s at most, \
         measured in between.\n\n",
        timings.isa, timings.peak
    );
    let mut rows = vec![["layer", "pass", "ms", "best", "GFLOP/s", "of the peak"].map(str::to_owned).to_vec()];
    for timing in &timings.passes {
        let speed = speed(timing, threads, timings.peak);
        rows.push(vec![
            timing.layer.clone(),
            timing.pass.to_owned(),
            format!("{:.3}", timing.median_ms),
            format!("{:.3}", timing.best_ms),
            speed.map_or_else(String::new, |speed| format!("{:.1}", speed.0)),
            speed.map_or_else(String::new, |speed| format!("{:.1} %", speed.1 * 100.0)),
        ]);
    }
    let total: f64 = timings.passes.iter().map(|timing| timing.median_ms).sum();
    rows.push(vec![
        "all".to_owned(),
        String::new(),
        format!("{total:.3}"),
        String::new(),
        String::new(),
        String::new(),
    ]);
    text += &aligned(&rows, &[0, 1]);
    text
}
