//! Training as docs/NUMERICS.md defines it: the weights, the passes of a sample, the batch, and the update.

use sha2::{Digest, Sha256};

use super::layers::first_maximum;
use super::model::{Conv, Init, Layer, Learning, Linear, Net, Split, Tensors, pixels, test_data, training_data};
use super::random::{self, Place, dropout, normal, shuffled};

/// One job, in the words of the command line. Micro-batches and workers are convoy's alone: they mustn't matter.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) towers: usize,
    /// Slices of the head, `head` in a model file.
    pub(crate) slices: usize,
    pub(crate) schedule: &'static str,
    pub(crate) order: &'static str,
    pub(crate) seed: u64,
    /// The seeds of initial weights, of the order of images, and of dropout, if they are others.
    pub(crate) seeds: Option<[u64; 3]>,
    /// The seed that selects training images, how many of them are held out, and how many are used.
    pub(crate) selection: Option<(u64, usize, usize)>,
    pub(crate) slots: usize,
    pub(crate) micro_batches: usize,
    pub(crate) workers: usize,
}

pub(crate) const STEPS: usize = 20;
pub(crate) const BATCH: usize = 12;
pub(crate) const RATE: f64 = 0.05;
pub(crate) const MOMENTUM: f64 = 0.9;
pub(crate) const WEIGHT_DECAY: f64 = 0.01;

pub(crate) fn initial_weights(net: &Net, init_seed: u64, seed: u64) -> Tensors {
    let mut weights = Tensors::new();
    for (layer, before) in net.layers.iter().zip(&net.shapes) {
        let (name, outputs, fan_in, bias, mask, init) = match *layer {
            Layer::Conv(c) => {
                let fan_in = before.channels / c.groups * c.window.kernel * c.window.kernel;
                (c.name, c.filters, fan_in, c.bias, c.mask, c.init)
            }
            Layer::Linear(l) => (l.name, l.units, before.len(), true, l.mask, l.init),
            _ => continue,
        };
        let read = fan_in / mask.map_or(1, |mask| mask.groups);
        let init = init.unwrap_or(Init { std: libm::sqrt(2.0 / read as f64), bias: 0.0 });
        let purpose = format!("init:{name}.weight");
        let weight = (0..outputs * fan_in).map(|i| (normal(init_seed, &purpose, i) * init.std) as f32).collect();
        weights.insert(format!("{name}.weight"), weight);
        if bias {
            weights.insert(format!("{name}.bias"), vec![init.bias as f32; outputs]);
        }
    }
    clear_masked(net, seed, &mut weights);
    weights
}

/// Sets the values to zero that masks do not keep.
fn clear_masked(net: &Net, seed: u64, tensors: &mut Tensors) {
    for (layer, before) in net.layers.iter().zip(&net.shapes) {
        let (name, mask, outputs, inputs, taps) = match *layer {
            Layer::Conv(Conv { name, mask: Some(mask), filters, window, .. }) => {
                (name, mask, filters, before.channels, window.kernel * window.kernel)
            }
            Layer::Linear(Linear { name, mask: Some(mask), units, .. }) => (name, mask, units, before.len(), 1),
            _ => continue,
        };
        let tensor = tensors.get_mut(&format!("{name}.weight")).unwrap();
        for (index, kept) in random::mask(mask, seed, name, outputs, inputs).into_iter().enumerate() {
            if !kept {
                tensor[index * taps..(index + 1) * taps].fill(0.0);
            }
        }
    }
}

fn zeros(weights: &Tensors) -> Tensors {
    weights.iter().map(|(name, tensor)| (name.clone(), vec![0.0; tensor.len()])).collect()
}

fn hash(weights: &Tensors) -> String {
    let mut sha = Sha256::new();
    for (name, tensor) in weights {
        sha.update(name.as_bytes());
        for value in tensor {
            sha.update(value.to_le_bytes());
        }
    }
    sha.finalize().iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
}

/// The activations between the layers: the pixels, and then each layer's output. Dropout is on where there is a place.
pub(crate) fn forward(net: &Net, weights: &Tensors, image: &[u8], place: Option<Place>) -> Vec<Vec<f32>> {
    let mut activations = vec![pixels(image)];
    for (l, layer) in net.layers.iter().enumerate() {
        let (from, to, x) = (net.shapes[l], net.shapes[l + 1], &activations[l]);
        let y = match *layer {
            Layer::Conv(conv) => conv.forward(from, to, weights, x),
            Layer::Relu => x.iter().map(|&x| if x <= 0.0 { 0.0 } else { x }).collect(),
            Layer::Lrn(lrn) => lrn.forward(net.towers, from, x),
            Layer::MaxPool(window) => window.max_forward(from, to, x),
            Layer::AvgPool(window) => window.avg_forward(from, to, x),
            Layer::Dropout { name, p } => place.map_or_else(|| x.clone(), |place| dropout(name, p, place, x)),
            Layer::Linear(linear) => linear.forward(weights, x),
        };
        activations.push(y);
    }
    activations
}

/// Goes on with the chains of all gradients, for one more sample.
fn backward(
    net: &Net,
    weights: &Tensors,
    activations: &[Vec<f32>],
    dlogits: Vec<f32>,
    place: Place,
    gradients: &mut Tensors,
) {
    let mut dy = dlogits;
    for (l, layer) in net.layers.iter().enumerate().rev() {
        let (from, to, x, y) = (net.shapes[l], net.shapes[l + 1], &activations[l], &activations[l + 1]);
        dy = match *layer {
            Layer::Conv(conv) => {
                conv.backward_weights(from, to, x, &dy, gradients);
                if l == 0 {
                    return;
                }
                conv.backward_input(net.towers, from, to, weights, &dy)
            }
            Layer::Relu => (0..y.len()).map(|i| if y[i] > 0.0 { dy[i] } else { 0.0 }).collect(),
            Layer::Lrn(lrn) => lrn.backward(net.towers, from, x, y, &dy),
            Layer::MaxPool(window) => window.max_backward(from, to, x, &dy),
            Layer::AvgPool(window) => window.avg_backward(from, to, &dy),
            Layer::Dropout { name, p } => dropout(name, p, place, &dy),
            Layer::Linear(linear) => {
                linear.backward_weights(x, &dy, gradients);
                linear.backward_input(net.slices, x.len(), weights, &dy)
            }
        };
    }
}

/// A sample's loss, and its logits' gradient in a batch of `batch`.
pub(crate) fn softmax_cross_entropy(logits: &[f32], label: u8, batch: usize) -> (f64, Vec<f32>) {
    let label = usize::from(label);
    let shifted = {
        let m = logits.iter().fold(f64::NEG_INFINITY, |m, &l| m.max(f64::from(l)));
        logits.iter().map(|&l| f64::from(l) - m).collect::<Vec<f64>>()
    };
    let e: Vec<f64> = shifted.iter().map(|&l| libm::exp(l)).collect();
    let z = e.iter().fold(0.0, |sum, e| sum + e);
    let gradient = |j: usize| ((e[j] / z - if j == label { 1.0 } else { 0.0 }) / batch as f64) as f32;
    (libm::log(z) - shifted[label], (0..e.len()).map(gradient).collect())
}

/// The rate of step `step`, of a job of `STEPS` steps.
fn rate(schedule: &str, step: usize, epoch_steps: usize) -> f64 {
    use std::f64::consts::PI;
    let (a, span) = ((step - 1) as f64, STEPS as f64);
    match schedule {
        "step:1:0.5" => (0..(step - 1) / epoch_steps).fold(RATE, |rate, _| rate * 0.5),
        "step:1:0.7" => (0..(step - 1) / epoch_steps).fold(RATE, |rate, _| rate * 0.7),
        "cosine" => RATE * 0.5 * (1.0 + libm::cos(PI * a / span)),
        "one-cycle" => {
            let w = 0.3 * span;
            if a < w {
                RATE * (0.04 + 0.96 * (a / w))
            } else {
                RATE * 0.5 * (1.0 + libm::cos(PI * ((a - w) / (span - w))))
            }
        }
        other => panic!("the oracle doesn't know the schedule {other}"),
    }
}

/// The loss and the gradients of one batch, given as the indices of its images.
pub(crate) fn gradients(
    net: &Net,
    weights: &Tensors,
    data: &Split,
    batch: &[usize],
    (seed, step): (u64, usize),
    slots: usize,
) -> (f64, Tensors) {
    let mut loss = 0.0;
    // The head's chains run through the whole batch; the trunk's begin anew for each slot.
    let mut of_head = zeros(weights);
    let mut of_slots: Vec<Option<Tensors>> = Vec::new();
    let mut position = 0;
    for slot in 0..slots {
        let samples = batch.len() / slots + usize::from(slot < batch.len() % slots);
        let mut of_slot = zeros(weights);
        net.head().for_each(|name| drop(of_slot.insert(name.clone(), of_head.remove(&name).unwrap())));
        for _ in 0..samples {
            let (image, label) = (&data.images[batch[position]], data.labels[batch[position]]);
            let place = Place { seed, step, position };
            let activations = forward(net, weights, image, Some(place));
            let (of_sample, dlogits) = softmax_cross_entropy(&activations[activations.len() - 1], label, batch.len());
            loss += of_sample;
            backward(net, weights, &activations, dlogits, place, &mut of_slot);
            position += 1;
        }
        net.head().for_each(|name| drop(of_head.insert(name.clone(), of_slot.remove(&name).unwrap())));
        of_slot.values_mut().flatten().for_each(|value| *value += 0.0);
        of_slots.push((samples > 0).then_some(of_slot));
    }
    let mut total = tree_sum(&of_slots).unwrap();
    net.head().for_each(|name| drop(total.insert(name.clone(), of_head.remove(&name).unwrap())));
    total.values_mut().flatten().for_each(|value| *value += 0.0);
    (loss / batch.len() as f64, total)
}

/// The sum over slots: that over the first m plus that over the others, where m is the largest power of two below their number. A slot
/// without samples is left out.
fn tree_sum(slots: &[Option<Tensors>]) -> Option<Tensors> {
    if let [slot] = slots {
        return slot.clone();
    }
    let mut m = 1;
    while 2 * m < slots.len() {
        m *= 2;
    }
    let (first, others) = (tree_sum(&slots[..m]), tree_sum(&slots[m..]));
    let Some(mut sum) = first else { return others };
    for (name, other) in others.into_iter().flatten() {
        let sum = sum.get_mut(&name).unwrap();
        (0..other.len()).for_each(|i| sum[i] += other[i]);
    }
    Some(sum)
}

fn accuracy(net: &Net, weights: &Tensors, data: &Split) -> f64 {
    let hits = (0..data.labels.len()).filter(|&i| {
        let logits = forward(net, weights, &data.images[i], None).pop().unwrap();
        first_maximum(&logits, &[0, 1, 2, 3, 4]) == usize::from(data.labels[i])
    });
    hits.count() as f64 / data.labels.len() as f64
}

/// What a job must record.
pub(crate) struct Run {
    /// Each step's loss and rate.
    pub(crate) steps: Vec<(f64, f64)>,
    /// Each epoch's test accuracy.
    pub(crate) accuracies: Vec<f64>,
    pub(crate) weights_sha256: String,
}

/// The images after the held-out ones in a shuffle, as many as are wanted, in their order in the set.
fn selected(data: Split, (seed, holdout, images): (u64, usize, usize)) -> Split {
    let mut chosen = shuffled(seed, "split", data.labels.len())[holdout..holdout + images].to_vec();
    chosen.sort_unstable();
    Split {
        images: chosen.iter().map(|index| data.images[*index].clone()).collect(),
        labels: chosen.iter().map(|index| data.labels[*index]).collect(),
    }
}

pub(crate) fn train(case: Case) -> Run {
    let (mut data, test) = (training_data(), test_data());
    if let Some(selection) = case.selection {
        data = selected(data, selection);
    }
    let net = Net::new(case.towers, case.slices);
    let [init_seed, order_seed, dropout_seed] = case.seeds.unwrap_or([case.seed; 3]);
    let n = data.labels.len();
    let mut weights = initial_weights(&net, init_seed, case.seed);
    let mut velocities = zeros(&weights);
    let (mut steps, mut accuracies) = (Vec::new(), Vec::new());
    while steps.len() < STEPS {
        let epoch = accuracies.len() + 1;
        let order = if case.order == "shuffled" {
            shuffled(order_seed, &format!("shuffle:{epoch}"), n)
        } else {
            (0..n).collect()
        };
        for batch in order.chunks(BATCH) {
            let step = steps.len() + 1;
            let (loss, mut gradients) = gradients(&net, &weights, &data, batch, (dropout_seed, step), case.slots);
            clear_masked(&net, case.seed, &mut gradients);
            let rate = rate(case.schedule, step, n.div_ceil(BATCH));
            for (name, weight) in &mut weights {
                let rate = match net.learning_of(name) {
                    Learning::Plain => rate as f32,
                    Learning::Scaled(scale) => rate as f32 * scale as f32,
                    Learning::Frozen => continue,
                };
                let (g, v) = (&gradients[name], velocities.get_mut(name).unwrap());
                for i in 0..weight.len() {
                    let g = (WEIGHT_DECAY as f32).mul_add(weight[i], g[i]);
                    v[i] = (MOMENTUM as f32).mul_add(v[i], g);
                    weight[i] = (-rate).mul_add(v[i], weight[i]);
                }
            }
            steps.push((loss, rate));
        }
        accuracies.push(accuracy(&net, &weights, &test));
    }
    Run { steps, accuracies, weights_sha256: hash(&weights) }
}
