//! Each layer of one tower, timed pass by pass on made-up numbers, by the kernels that a job calls.
//!
//! Not here: exchanges, updates, and whole steps (`convoy bench` runs a job for those).

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::model::Network;
use convoy_common::plan::{Plan, PlanError};

use super::layer::{Context, TowerLayer, Work, in_blocks};
use crate::Isa;
use crate::kernels::memory::Tensor;
use crate::kernels::{Compute, conv, linear, peak};

/// What is timed, and how often.
#[derive(Clone, Debug)]
pub struct KernelBench {
    /// Whose layers.
    pub network: Network,
    /// Samples of the batch.
    pub samples: usize,
    /// Threads.
    pub threads: usize,
    /// What the kernels use; the best that the machine has where nothing is said.
    pub isa: Option<Isa>,
    /// Runs of each pass, at least 1.
    pub repeats: usize,
}

/// A pass of a layer, timed.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The layer's name.
    pub layer: String,
    /// Which pass, or which other piece of work that comes with it.
    pub pass: &'static str,
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The best, in milliseconds.
    pub best_ms: f64,
    /// A multiply-add counts as two; none where a pass is not made of them.
    pub flops: Option<u64>,
}

/// All of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Timings {
    /// What the kernels used.
    pub isa: Isa,
    /// GFLOP/s of one core that only multiplies and adds, the median over the run: beside each layer it was measured anew.
    pub peak: f64,
    /// Layer by layer.
    pub passes: Vec<Timing>,
}

/// Why nothing can be timed.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The model can't be divided.
    #[error("plan the model's towers")]
    Plan(#[from] PlanError),
    /// The system gives no threads.
    #[error("start the compute threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Times every layer of the network's first tower. `told` hears of each layer before it is timed.
///
/// # Errors
/// When the model can't be planned, or threads can't be had.
pub fn kernels(bench: KernelBench, mut told: impl FnMut(&str)) -> Result<Timings, BenchError> {
    let towers = bench.network.towers;
    let plan = Plan::new(bench.network.clone(), towers)?;
    let compute = Compute::new(bench.threads, bench.isa.unwrap_or_else(Isa::detect))?;
    let (mut passes, mut peaks) = (Vec::new(), vec![peak::measured(compute.isa)]);
    for index in 0..plan.network.layers.len() {
        told(&plan.network.layers[index].name);
        let mut layer = TowerLayer::new(&plan, index, 0, true);
        let mut clock = Clock { bench: &bench, layer: layer.name().to_owned(), passes: &mut passes };
        time_layer(&mut clock, &compute, &mut layer, index > 0);
        peaks.push(peak::measured(compute.isa));
    }
    Ok(Timings { isa: compute.isa, peak: median(&mut peaks), passes })
}

/// GFLOP/s of one core that does nothing but multiply and add.
pub fn peak(isa: Option<Isa>) -> f64 {
    let isa = isa.unwrap_or_else(Isa::detect);
    let mut measured: Vec<f64> = (0..5).map(|_| peak::measured(isa)).collect();
    median(&mut measured)
}

struct Clock<'a> {
    bench: &'a KernelBench,
    layer: String,
    passes: &'a mut Vec<Timing>,
}

impl Clock<'_> {
    /// Times `run` on what `prepare` makes anew each time.
    fn time<T>(
        &mut self,
        pass: &'static str,
        flops: Option<u64>,
        mut prepare: impl FnMut() -> T,
        mut run: impl FnMut(T),
    ) {
        run(prepare());
        let mut took: Vec<f64> = (0..self.bench.repeats)
            .map(|_| {
                let prepared = prepare();
                let began = Instant::now();
                run(prepared);
                began.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        let median_ms = median(&mut took);
        let best_ms = took.first().copied().unwrap_or_default();
        self.passes.push(Timing { layer: self.layer.clone(), pass, median_ms, best_ms, flops });
    }
}

fn time_layer(clock: &mut Clock, compute: &Compute, layer: &mut TowerLayer, wants_input_gradient: bool) {
    let samples = clock.bench.samples;
    match &layer.work {
        Work::Conv { geometry, .. } => time_conv(clock, compute, geometry, samples, wants_input_gradient),
        Work::Linear { geometry, .. } => time_linear(clock, compute, geometry, samples),
        _ => time_other(clock, compute, layer, 0..samples),
    }
}

fn time_conv(clock: &mut Clock, compute: &Compute, g: &conv::Geometry, samples: usize, wants_input_gradient: bool) {
    let flops = Some(2 * (g.output(samples).len() * g.panels().terms) as u64);
    let (x, dy) = (made_up(g.input(samples).len()), made_up(g.output(samples).len()));
    let weights = made_up(g.groups * g.panels().len());
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weights.len()]);
    let to_blocks = || in_blocks(compute, &x, g.input(samples), g.input_blocks(samples));
    let dy_to_blocks = || in_blocks(compute, &dy, g.output(samples), g.gradient_blocks(samples));
    let (x_blocks, dy_blocks, turned) = (to_blocks(), dy_to_blocks(), conv::turned(g, &weights));
    clock.time("input to blocks", None, || (), |()| drop(to_blocks()));
    clock.time(
        "forward",
        flops,
        || (),
        |()| {
            conv::forward(compute, g, &weights, None, &x_blocks, (&mut y, samples));
        },
    );
    clock.time("gradient to blocks", None, || (), |()| drop(dy_to_blocks()));
    clock.time(
        "weight gradient",
        flops,
        || (),
        |()| {
            conv::weight_gradient(compute, g, (&x_blocks, &dy_blocks), samples, false, &mut dw);
        },
    );
    if !wants_input_gradient {
        return;
    }
    clock.time("turning weights", None, || (), |()| drop(conv::turned(g, &weights)));
    clock.time(
        "input gradient",
        flops,
        || (),
        |()| {
            conv::input_gradient(compute, g, &turned, &dy_blocks, (&mut dx, samples));
        },
    );
}

fn time_linear(clock: &mut Clock, compute: &Compute, g: &linear::Geometry, samples: usize) {
    let flops = Some(2 * (g.inputs() * g.outputs * samples) as u64);
    let (x, dy) = (made_up(g.inputs() * samples), made_up(g.outputs * samples));
    let weights = made_up(g.panels().len());
    let (mut y, mut dx, mut dw) = (vec![0.0; dy.len()], vec![0.0; x.len()], vec![0.0; weights.len()]);
    let to_blocks = || linear::to_blocks(compute, g, &x, samples);
    let dy_to_blocks = || in_blocks(compute, &dy, g.output(samples), g.gradient_blocks(samples));
    let (x_blocks, dy_blocks) = (to_blocks(), dy_to_blocks());
    clock.time("input to blocks", None, || (), |()| drop(to_blocks()));
    clock.time(
        "forward",
        flops,
        || (),
        |()| {
            linear::forward(compute, g, &weights, None, &x_blocks, (&mut y, samples));
        },
    );
    clock.time("gradient to blocks", None, || (), |()| drop(dy_to_blocks()));
    clock.time(
        "weight gradient",
        flops,
        || (),
        |()| {
            linear::weight_gradient(compute, g, (&x_blocks, &dy_blocks), samples, false, &mut dw);
        },
    );
    clock.time(
        "input gradient",
        flops,
        || (),
        |()| {
            linear::input_gradient(compute, g, &weights, &dy, (&mut dx, samples));
        },
    );
}

fn time_other(clock: &mut Clock, compute: &Compute, layer: &mut TowerLayer, samples: Range<usize>) {
    let id = MicroBatchId { step: 1, slot: 0, micro_batch: 0, phase: Phase::Train };
    let micro_batch = MicroBatch { id, samples: samples.clone() };
    let context = Context { compute, seed: 1, micro_batch: &micro_batch };
    let x = made_up(layer.input.len() * samples.len());
    let dy = made_up(layer.output.len() * samples.len());
    let fresh = || Arc::new(copied(compute, &x));
    let mut layer_forward = |x| layer.forward(&context, x).expect("made-up numbers are finite");
    clock.time("forward", None, fresh, |x| drop(layer_forward(x)));
    let kept: Vec<_> = (0..=clock.bench.repeats).map(|_| layer_forward(fresh()).1).collect();
    let mut kept = kept.into_iter();
    let next = || (copied(compute, &dy), kept.next().expect("one for each run"));
    clock.time("backward", None, next, |(dy, kept)| {
        layer.backward(&context, dy, kept, true).expect("made-up numbers are finite");
    });
}

/// In memory that is used again, as in a job.
fn copied(compute: &Compute, x: &[f32]) -> Tensor {
    let mut copy = compute.tensor(x.len());
    copy.copy_from_slice(x);
    copy
}

/// Numbers of about the size of activations, none of them denormal.
fn made_up(count: usize) -> Vec<f32> {
    let source = convoy_common::random::Source::new(1, "bench");
    (0..count as u64).map(|index| source.word(index) as f32 / u32::MAX as f32 - 0.5).collect()
}

/// The middle one; sorts them.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
