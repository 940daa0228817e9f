//! Times each pass of each layer of one tower on synthetic numbers, with the kernels of a job.
//!
//! Not here: exchanges, updates and whole steps, for which `convoy bench` runs a job.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use convoy_common::batch::{MicroBatch, MicroBatchId, Phase};
use convoy_common::index::{TowerIndex, WorkerIndex};
use convoy_common::model::Network;
use convoy_common::placement::PlacementError;
use convoy_common::plan::Plan;
use convoy_common::slots::SlotTree;

use super::forecast::least_bytes;
use super::layer::{Context, TowerLayer, Work};
use crate::Isa;
use crate::memory;
use convoy_kernels::End;
use convoy_kernels::copying::Copying;
use convoy_kernels::memory::Tensor;
use convoy_kernels::{Compute, peak};

/// Options of the benchmark.
#[derive(Clone, Debug)]
pub struct KernelBench {
    /// The network.
    pub network: Network,
    /// Samples of the batch.
    pub samples: usize,
    /// Compute threads.
    pub threads: usize,
    /// The instruction set of the kernels; by default the best that the machine has.
    pub isa: Option<Isa>,
    /// Runs of each pass, at least 1.
    pub repeats: usize,
}

/// The times of one pass of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// The layer's name.
    pub layer: String,
    /// The pass, or a copy that belongs to it.
    pub pass: &'static str,
    /// The median, in milliseconds.
    pub median_ms: f64,
    /// The best, in milliseconds.
    pub best_ms: f64,
    /// Floating-point operations; a multiply-add counts as two. `None` for a pass without products.
    pub flops: Option<u64>,
    /// For a pass without products, the bytes of its operands, each counted once.
    pub bytes: Option<u64>,
}

/// The machine's limits, for all threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Yardstick {
    /// GFLOP/s of a loop that only multiplies and adds.
    pub gflops: f64,
    /// GB/s of a loop that only copies memory. Both reads and writes count.
    pub gigabytes: f64,
}

impl Yardstick {
    /// Measures `threads` threads at once, for some tenths of a second. Other work on the machine lowers the result, so the
    /// best of several measurements counts.
    pub fn measured(isa: Option<Isa>, threads: usize) -> Self {
        let isa = isa.unwrap_or_else(Isa::detect);
        let start = Barrier::new(threads);
        let one = || {
            let mut copying = Copying::new();
            let mut try_once = || {
                // Start together, so that threads share caches, power and memory as in a job.
                start.wait();
                let gflops = peak::measured(isa);
                start.wait();
                Self { gflops, gigabytes: copying.measured() }
            };
            std::array::from_fn::<_, TRIES, _>(|_| try_once())
        };
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
            let ended: Vec<_> = all.into_iter().filter_map(|thread| thread.join().ok()).collect();
            // The sum of all threads in each try, and then the best try.
            let sums = (0..TRIES).map(|index| ended.iter().fold(Self::default(), |sum, tries| sum.and(tries[index])));
            sums.fold(Self::default(), Self::or)
        })
    }

    /// The sum of each field.
    fn and(self, other: Self) -> Self {
        Self { gflops: self.gflops + other.gflops, gigabytes: self.gigabytes + other.gigabytes }
    }

    /// The larger value of each field.
    pub fn or(self, other: Self) -> Self {
        Self { gflops: self.gflops.max(other.gflops), gigabytes: self.gigabytes.max(other.gigabytes) }
    }
}

/// Measurements per call; the best one counts.
const TRIES: usize = 3;

/// The result of the benchmark.
#[derive(Clone, Debug, PartialEq)]
pub struct Timings {
    /// The instruction set of the kernels.
    pub isa: Isa,
    /// The limits of as many threads: the best of the measurements before, between and after the layers.
    pub yardstick: Yardstick,
    /// The passes, layer by layer.
    pub passes: Vec<Timing>,
}

/// Why the benchmark failed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each message says what its fields are")]
pub enum BenchError {
    /// The model's towers could not be placed.
    #[error("cannot plan the model's towers")]
    Plan(#[from] PlacementError),
    /// This process may use too little memory.
    #[error(
        "the tower needs at least {needed} bytes of memory, and this process may use {memory}; use a smaller --batch"
    )]
    Memory { needed: u64, memory: u64 },
    /// The compute threads could not be started.
    #[error("cannot start the compute threads")]
    Threads(#[from] rayon::ThreadPoolBuildError),
}

/// Times every layer of the network's first tower. Calls `told` with the name of each layer before it is timed.
///
/// # Errors
/// When the model cannot be planned, the tower needs more memory than there is, or threads cannot be started.
pub fn kernels(bench: KernelBench, mut told: impl FnMut(&str)) -> Result<Timings, BenchError> {
    let towers = bench.network.towers;
    let plan = Plan::new(bench.network.clone(), towers, 1, None)?;
    let (needed, memory) = (least_bytes(&plan, WorkerIndex(0), bench.samples, true), memory::most_bytes());
    if needed > memory {
        return Err(BenchError::Memory { needed, memory });
    }
    let compute = Compute::new(bench.threads, bench.isa.unwrap_or_else(Isa::detect))?;
    let measured = || Yardstick::measured(Some(compute.isa), bench.threads);
    let (mut passes, mut yardstick) = (Vec::new(), measured());
    for index in 0..plan.network.layers.len() {
        told(&plan.network.layers[index].name);
        let mut layer = TowerLayer::new(&plan, index, TowerIndex(0), SlotTree::new(1), true, 1);
        let mut clock = Clock { bench: &bench, layer: layer.name().to_owned(), passes: &mut passes };
        time_layer(&mut clock, &compute, &mut layer, index > 0);
        yardstick = yardstick.or(measured());
    }
    Ok(Timings { isa: compute.isa, yardstick, passes })
}

struct Clock<'a> {
    bench: &'a KernelBench,
    layer: String,
    passes: &'a mut Vec<Timing>,
}

impl Clock<'_> {
    /// Records the times that `run` returns, after one run that warms up memory and caches.
    fn time(&mut self, pass: &'static str, amount: Amount, mut run: impl FnMut() -> Duration) {
        run();
        let mut took: Vec<f64> = (0..self.bench.repeats).map(|_| run().as_secs_f64() * 1e3).collect();
        let median_ms = median(&mut took);
        let best_ms = took.first().copied().unwrap_or_default();
        let (flops, bytes) = match amount {
            Amount::MultiplyAdds(count) => (Some(2 * count as u64), None),
            Amount::Floats(count) => (None, Some((count * size_of::<f32>()) as u64)),
            Amount::Nothing => (None, None),
        };
        self.passes.push(Timing { layer: self.layer.clone(), pass, median_ms, best_ms, flops, bytes });
    }
}

/// The amount of work of a pass: products, or memory traffic.
#[derive(Clone, Copy)]
enum Amount {
    MultiplyAdds(usize),
    Floats(usize),
    /// None: another layer does the work.
    Nothing,
}

/// The time that `run` takes.
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
    let products = Amount::MultiplyAdds(passes.multiply_adds(samples));
    let (x, dy) = (made_up(layer.input.len() * samples), made_up(layer.output.len() * samples));
    let weights = made_up(learnt.weights().len());
    let (mut dw, mut db) = (vec![0.0; weights.len()], vec![0.0; layer.output.channels]);
    let end = End { bias: None, rectifies };
    // About half of the values are above zero.
    let y = rectifies.then_some(dy.as_slice());
    let gradient = || passes.gradient(compute, copied(compute, &dy), y, samples);
    let (x_blocks, dy_blocks) = (passes.input(compute, &x, samples), gradient());
    let to_blocks = Amount::Floats(x.len() + passes.input_floats(samples));
    clock.time("input to blocks", to_blocks, || timed(|| passes.input(compute, &x, samples)));
    clock.time("forward", products, || timed(|| passes.forward(compute, &weights, end, &x_blocks, samples)));
    let gradient_floats = passes.gradient_floats(samples);
    let read = if rectifies { 2 * dy.len() } else { dy.len() };
    clock.time("gradient to blocks", Amount::Floats(read + gradient_floats), || {
        let dy = copied(compute, &dy);
        timed(|| passes.gradient(compute, dy, y, samples))
    });
    clock.time("bias gradient", Amount::Floats(gradient_floats), || {
        timed(|| passes.bias_gradient(compute, &dy_blocks, samples, &mut db))
    });
    clock.time("weight gradient", products, || {
        timed(|| passes.weight_gradient(compute, &x_blocks, &dy_blocks, samples, false, &mut dw))
    });
    if wants_input_gradient {
        clock.time("input gradient", products, || {
            timed(|| passes.input_gradient(compute, &weights, &dy_blocks, samples))
        });
    }
}

fn time_other(clock: &mut Clock, compute: &Compute, layer: &mut TowerLayer) {
    let samples = 0..clock.bench.samples;
    let id = MicroBatchId { step: 1, slot: 0, micro_batch: 0, phase: Phase::Train };
    let micro_batch = MicroBatch { id, samples: samples.clone() };
    let context = Context { compute, dropout_seed: 1, micro_batch: &micro_batch };
    let x = made_up(layer.input.len() * samples.len());
    let dy = made_up(layer.output.len() * samples.len());
    let fresh = || Arc::new(copied(compute, &x));
    // What a pass reads and writes: input and output, and what is saved between the passes. A maximum's place has the size of a
    // float. Dropout's mask is small beside that.
    let (forward, backward) = match layer.work {
        Work::Relu { is_done: true } => (Amount::Nothing, Amount::Nothing),
        Work::Relu { .. } => (Amount::Floats(2 * x.len()), Amount::Floats(3 * x.len())),
        Work::Lrn(_) => (Amount::Floats(3 * x.len()), Amount::Floats(5 * x.len())),
        Work::MaxPool(_) => (Amount::Floats(x.len() + 2 * dy.len()), Amount::Floats(x.len() + 2 * dy.len())),
        _ => (Amount::Floats(x.len() + dy.len()), Amount::Floats(x.len() + dy.len())),
    };
    clock.time("forward", forward, || {
        let x = fresh();
        timed(|| layer.forward(&context, x))
    });
    clock.time("backward", backward, || {
        let kept = layer.forward(&context, fresh()).expect("made-up numbers are finite").1;
        let dy = copied(compute, &dy);
        timed(|| layer.backward(&context, dy, kept, true))
    });
}

/// A copy in reused memory, as in a job.
fn copied(compute: &Compute, x: &[f32]) -> Tensor {
    let mut copy = compute.tensor(x.len());
    copy.copy_from_slice(x);
    copy
}

/// Synthetic numbers of the size of activations, without denormals.
fn made_up(count: usize) -> Vec<f32> {
    let source = convoy_common::random::Source::new(1, "bench");
    (0..count as u64).map(|index| source.word(index) as f32 / u32::MAX as f32 - 0.5).collect()
}

/// The median. Sorts the values.
fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
