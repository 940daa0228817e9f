//! Each layer of one tower, timed pass by pass on made-up numbers, by the kernels that a job calls.
//!
//! Not here: exchanges, updates, and whole steps (`convoy bench` runs a job for those).

use std::sync::Arc;
use std::time::{Duration, Instant};

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::model::Network;
use convoy_common::plan::{Plan, PlanError};

use super::forecast::least_bytes;
use super::layer::{Context, TowerLayer, Work};
use crate::Isa;
use crate::kernels::memory::Tensor;
use crate::kernels::products::End;
use crate::kernels::{Compute, peak};
use crate::machine::memory_bytes;

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
    /// The machine is too small.
    #[error("the tower takes at least {needed} bytes of memory, and the machine has {memory}; use a smaller --batch")]
    Memory {
        /// Bytes of weights and gradients, and of the widest layer's operands.
        needed: u64,
        /// Bytes that there are.
        memory: u64,
    },
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
    let (needed, memory) = (least_bytes(&plan, 0, bench.samples, true), memory_bytes());
    if needed > memory {
        return Err(BenchError::Memory { needed, memory });
    }
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
    /// Notes how long `run` says that it took, so often; once before that, for memory and caches.
    fn time(&mut self, pass: &'static str, flops: Option<u64>, mut run: impl FnMut() -> Duration) {
        run();
        let mut took: Vec<f64> = (0..self.bench.repeats).map(|_| run().as_secs_f64() * 1e3).collect();
        let median_ms = median(&mut took);
        let best_ms = took.first().copied().unwrap_or_default();
        self.passes.push(Timing { layer: self.layer.clone(), pass, median_ms, best_ms, flops });
    }
}

/// How long it takes.
fn timed<T>(run: impl FnOnce() -> T) -> Duration {
    let began = Instant::now();
    let result = run();
    let took = began.elapsed();
    drop(result);
    took
}

fn time_layer(clock: &mut Clock, compute: &Compute, layer: &mut TowerLayer, wants_input_gradient: bool) {
    let Work::Affine { passes, learnt, rectifies } = &layer.work else { return time_other(clock, compute, layer) };
    let (samples, rectifies) = (clock.bench.samples, *rectifies);
    let flops = Some(2 * passes.multiply_adds(samples) as u64);
    let (x, dy) = (made_up(layer.input.len() * samples), made_up(layer.output.len() * samples));
    let weights = made_up(learnt.weights());
    let (mut dw, mut db) = (vec![0.0; weights.len()], vec![0.0; layer.output.channels]);
    let end = End { bias: None, rectifies };
    // Half of it is above zero.
    let y = rectifies.then_some(dy.as_slice());
    let gradient = || passes.gradient(compute, copied(compute, &dy), y, samples);
    let (x_blocks, dy_blocks) = (passes.input(compute, &x, samples), gradient());
    clock.time("input to blocks", None, || timed(|| passes.input(compute, &x, samples)));
    clock.time("forward", flops, || timed(|| passes.forward(compute, &weights, end, &x_blocks, samples)));
    clock.time("gradient to blocks", None, || {
        let dy = copied(compute, &dy);
        timed(|| passes.gradient(compute, dy, y, samples))
    });
    clock.time("bias gradient", None, || timed(|| passes.bias_gradient(compute, &dy_blocks, samples, &mut db)));
    clock.time("weight gradient", flops, || {
        timed(|| passes.weight_gradient(compute, &x_blocks, &dy_blocks, samples, false, &mut dw))
    });
    if wants_input_gradient {
        clock.time("input gradient", flops, || timed(|| passes.input_gradient(compute, &weights, &dy_blocks, samples)));
    }
}

fn time_other(clock: &mut Clock, compute: &Compute, layer: &mut TowerLayer) {
    let samples = 0..clock.bench.samples;
    let id = MicroBatchId { step: 1, slot: 0, micro_batch: 0, phase: Phase::Train };
    let micro_batch = MicroBatch { id, samples: samples.clone() };
    let context = Context { compute, seed: 1, micro_batch: &micro_batch };
    let x = made_up(layer.input.len() * samples.len());
    let dy = made_up(layer.output.len() * samples.len());
    let fresh = || Arc::new(copied(compute, &x));
    clock.time("forward", None, || {
        let x = fresh();
        timed(|| layer.forward(&context, x))
    });
    clock.time("backward", None, || {
        let kept = layer.forward(&context, fresh()).expect("made-up numbers are finite").1;
        let dy = copied(compute, &dy);
        timed(|| layer.backward(&context, dy, kept, true))
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
