//! The layer of the question: an input of 100 x 100 with 32 channels, and 64 filters in two groups.

use std::collections::BTreeMap;
use std::ops::Range;
use std::thread;

use convoy_common::model::Network;
use convoy_common::parameters::Tensors;
use convoy_common::random::Source;
use convoy_worker::activations::activations;
use ndarray::{ArrayD, IxDyn};

use super::{Claim, LayerFacts, same};
use crate::error::StudyError;

const SIDE: usize = 100;
const CHANNELS: usize = 32;
const FILTERS: usize = 64;
const KERNEL: usize = 3;
const GROUPS: usize = 2;

/// A convolution that reads some channels of the input and computes some of the filters.
struct Part {
    channels: Range<usize>,
    filters: Range<usize>,
    groups: usize,
    /// Whether weights between the groups are zero.
    is_masked: bool,
}

/// Checks the claims about one layer.
pub(super) fn check() -> Result<(LayerFacts, Vec<Claim>), StudyError> {
    let whole = |groups, is_masked| Part { channels: 0..CHANNELS, filters: 0..FILTERS, groups, is_masked };
    let (grouped, dense, masked) = (whole(GROUPS, false), whole(1, false), whole(1, true));
    let halves = (0..GROUPS).map(|group| Part {
        channels: part(CHANNELS, group),
        filters: part(FILTERS, group),
        groups: 1,
        is_masked: false,
    });
    let halves: Vec<Vec<f32>> = halves.map(|half| half.outputs()).collect::<Result<_, _>>()?;
    let ours = grouped.outputs()?;
    let (of_dense, of_masked) = (dense.outputs()?, masked.outputs()?);
    let largest = ours.iter().zip(&of_dense).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    let different = ours.len() - super::equal(&ours, &of_dense);
    let claims = vec![
        same(
            "A convolution with two groups equals two separate convolutions, each on half of the channels, whose outputs are concatenated.",
            "outputs",
            &ours,
            &concatenated(&halves),
        ),
        same(
            "It also equals a convolution without groups whose weights between the groups are zero.",
            "outputs",
            &ours,
            &of_masked,
        ),
        Claim {
            claim: "It does not equal a convolution without groups.".to_owned(),
            holds: different > 0,
            found: format!("{different} of {} outputs differ, by up to {largest:.3}", ours.len()),
        },
        Claim {
            claim: "It has half as many kernels.".to_owned(),
            holds: grouped.kernels() * GROUPS == dense.kernels(),
            found: format!("{} with groups, {} without", grouped.kernels(), dense.kernels()),
        },
    ];
    let cost = |part: &Part| part.network().map(|network| network.layers[0].multiply_adds());
    let facts = LayerFacts {
        input: [SIDE, SIDE, CHANNELS],
        filters: FILTERS,
        kernel: KERNEL,
        groups: GROUPS,
        kernels: [grouped.kernels(), dense.kernels()],
        multiply_adds: [cost(&grouped)?, cost(&dense)?],
    };
    Ok((facts, claims))
}

fn part(count: usize, group: usize) -> Range<usize> {
    let each = count / GROUPS;
    group * each..(group + 1) * each
}

/// The outputs of both halves, (place, channel), side by side.
fn concatenated(halves: &[Vec<f32>]) -> Vec<f32> {
    let each = FILTERS / GROUPS;
    let rows = halves[0].len() / each;
    (0..rows).flat_map(|row| halves.iter().flat_map(move |half| half[row * each..(row + 1) * each].to_vec())).collect()
}

/// The input with channels last, as the question has it: (row, column, channel).
fn input() -> Vec<u8> {
    let source = Source::new(1, "identity input");
    (0..SIDE * SIDE * CHANNELS).map(|index| source.word(index as u64) as u8).collect()
}

/// The weight of a filter at a place of an input channel's kernel. It does not depend on groups.
fn weight(filter: usize, channel: usize, place: usize) -> f32 {
    let index = (filter * CHANNELS + channel) * KERNEL * KERNEL + place;
    (Source::new(1, "identity weights").normal(index as u64) * 0.05) as f32
}

impl Part {
    fn seen(&self) -> usize {
        self.channels.len() / self.groups
    }

    fn kernels(&self) -> usize {
        self.filters.len() * self.seen()
    }

    /// A network that begins with the layer. Its last layer is never computed.
    fn network(&self) -> Result<Network, StudyError> {
        let text = format!(
            "name = \"layer\"\ntowers = 1\ninput = {{ channels = {}, height = {SIDE}, width = {SIDE}, mean = {:?}, std = {:?} }}\n\
             [[layer]]\nkind = \"conv\"\nname = \"conv\"\nfilters = {}\nkernel = {KERNEL}\npad = 1\ngroups = {}\n\
             [[layer]]\nkind = \"linear\"\nname = \"last\"\nunits = 1\n",
            self.channels.len(),
            vec![0.5; self.channels.len()],
            vec![0.25; self.channels.len()],
            self.filters.len(),
            self.groups
        );
        Network::parse(&text).map_err(|error| failed(error.to_string()))
    }

    fn weights(&self, network: &Network) -> Tensors {
        let mut tensors = network.zeros();
        let mut kernels = Vec::new();
        for filter in self.filters.clone() {
            let group = (filter - self.filters.start) / (self.filters.len() / self.groups);
            for seen in 0..self.seen() {
                let channel = self.channels.start + group * self.seen() + seen;
                let is_zero = self.is_masked && filter * GROUPS / FILTERS != channel * GROUPS / CHANNELS;
                let places = 0..KERNEL * KERNEL;
                kernels.extend(places.map(|place| if is_zero { 0.0 } else { weight(filter, channel, place) }));
            }
        }
        let shape = IxDyn(&[self.filters.len(), self.seen(), KERNEL, KERNEL]);
        let kernels = ArrayD::from_shape_vec(shape, kernels).expect("a kernel for each filter and channel");
        tensors.extend(BTreeMap::from([("conv.weight".to_owned(), kernels)]));
        tensors
    }

    /// The outputs, (row, column, filter).
    fn outputs(&self) -> Result<Vec<f32>, StudyError> {
        let network = self.network()?;
        let (weights, last) = (self.weights(&network), input());
        // From channels last to channels first.
        let of_channel = |channel: usize| (0..SIDE * SIDE).map(move |place| place * CHANNELS + channel);
        let bytes: Vec<u8> = self.channels.clone().flat_map(of_channel).map(|index| last[index]).collect();
        // Each computation needs a thread of its own.
        let computed = thread::scope(|scope| scope.spawn(|| activations(&network, &weights, &bytes, &[0])).join());
        let outputs = computed.map_err(|_| failed("the computation ended unexpectedly".to_owned()))?;
        let mut outputs = outputs.map_err(|error| failed(error.to_string()))?;
        outputs.remove(&0).ok_or_else(|| failed("the layer has no outputs".to_owned()))
    }
}

fn failed(why: String) -> StudyError {
    StudyError::Outputs { arm: "identity".to_owned(), why }
}
