//! A grouped convolution over two worker processes: 100x100x32 into 64 filters in two groups.
//!
//! The linear layer behind the convolution has one weight of 1 in each row and zeros elsewhere, so that a logit *is* an
//! output of the convolution, to the bit.
#![allow(clippy::unwrap_used, missing_docs)]

mod support;

use std::path::{Path, PathBuf};

use support::{Images, Tensor, read_tensor, succeed, write_data, write_tensors};
use tempfile::TempDir;

const SIDE: usize = 100;
const CHANNELS: usize = 32;
const FILTERS: usize = 64;
/// Outputs of each filter that are looked at: corners, borders and inner ones.
const LOOKED_AT: [(usize, usize); 4] = [(0, 0), (99, 99), (0, 57), (42, 13)];
const IMAGES: usize = 2;

fn noise(index: usize) -> u32 {
    let mut x = index as u32 ^ 0x9e37_79b9;
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Pixels of `channels` channels from `first` on, of images of [`CHANNELS`].
fn images(first: usize, channels: usize) -> Images {
    let of = |n: usize| {
        (first..first + channels).flat_map(move |c| (0..SIDE * SIDE).map(move |p| (n * CHANNELS + c) * SIDE * SIDE + p))
    };
    let pixels = (0..IMAGES).flat_map(of).map(|index| noise(index) as u8).collect();
    Images { pixels, shape: [channels, SIDE, SIDE], labels: vec![0; IMAGES] }
}

/// The weight of `filter` at `tap` of input channel `channel`.
fn weight(filter: usize, channel: usize, tap: usize) -> f32 {
    (noise(1_000_000 + (filter * CHANNELS + channel) * 9 + tap) as i32 >> 20) as f32 / 16384.0
}

/// A net of one convolution, whose chosen outputs are its logits.
struct Net {
    towers: usize,
    first_channel: usize,
    channels: usize,
    filters: std::ops::Range<usize>,
    groups: usize,
    /// Whether weights between the two halves are zero.
    is_masked: bool,
}

impl Net {
    fn model(&self) -> String {
        format!(
            "name = \"net\"\ntowers = {}\ninput = {{ channels = {}, height = {SIDE}, width = {SIDE} }}\n\
             [[layer]]\nkind = \"conv\"\nname = \"c\"\nfilters = {}\nkernel = 3\npad = 1\ngroups = {}\n\
             [[layer]]\nkind = \"linear\"\nname = \"fc\"\nunits = {}\n",
            self.towers,
            self.channels,
            self.filters.len(),
            self.groups,
            self.filters.len() * LOOKED_AT.len()
        )
    }

    fn tensors(&self) -> Vec<Tensor> {
        let seen = self.channels / self.groups;
        let half = |channel: usize| channel * 2 / CHANNELS;
        let mut kernels = Vec::new();
        for filter in self.filters.clone() {
            let group = (filter - self.filters.start) / (self.filters.len() / self.groups);
            for c in 0..seen {
                let channel = self.first_channel + group * seen + c;
                let is_zero = self.is_masked && filter * 2 / FILTERS != half(channel);
                kernels.extend((0..9).map(|tap| if is_zero { 0.0 } else { weight(filter, channel, tap) }));
            }
        }
        let count = self.filters.len();
        let (units, inputs) = (count * LOOKED_AT.len(), count * SIDE * SIDE);
        let mut picks = vec![0.0; units * inputs];
        for (unit, row) in picks.chunks_exact_mut(inputs).enumerate() {
            let (y, x) = LOOKED_AT[unit % LOOKED_AT.len()];
            row[(unit / LOOKED_AT.len() * SIDE + y) * SIDE + x] = 1.0;
        }
        vec![
            ("c.weight".to_owned(), vec![count, seen, 3, 3], kernels),
            ("c.bias".to_owned(), vec![count], self.filters.clone().map(|filter| weight(filter, 0, 0)).collect()),
            ("fc.weight".to_owned(), vec![units, inputs], picks),
            ("fc.bias".to_owned(), vec![units], vec![0.0; units]),
        ]
    }

    /// Writes model, weights and images into `folder`.
    fn write(&self, folder: &Path) -> (PathBuf, PathBuf) {
        let (model, init) = (folder.join("model.toml"), folder.join("init.safetensors"));
        std::fs::write(&model, self.model()).unwrap();
        write_tensors(&init, &self.tensors());
        write_data(folder, &images(self.first_channel, self.channels), &images(self.first_channel, self.channels));
        (model, init)
    }

    /// The chosen outputs, (image, filter, place), as the net computes them over a worker a tower.
    fn outputs(&self) -> Vec<u32> {
        let folder = TempDir::new().unwrap();
        let (model, init) = self.write(folder.path());
        let logits = folder.path().join("logits.safetensors");
        let arguments = format!("eval {} --workers {} --json", init.display(), self.towers);
        let text = succeed(&arguments, &[("--model", &model), ("--data", folder.path()), ("--logits", &logits)]);
        assert!(text.contains("\"images\": 2"), "{text}");
        read_tensor(&logits, "logits").1.into_iter().map(f32::to_bits).collect()
    }
}

fn grouped() -> Net {
    Net { towers: 2, first_channel: 0, channels: CHANNELS, filters: 0..FILTERS, groups: 2, is_masked: false }
}

fn dense(is_masked: bool) -> Net {
    Net { groups: 1, is_masked, ..grouped() }
}

fn half(index: usize) -> Net {
    let filters = index * FILTERS / 2..(index + 1) * FILTERS / 2;
    Net { towers: 1, first_channel: index * CHANNELS / 2, channels: CHANNELS / 2, filters, groups: 1, is_masked: false }
}

/// In two groups: what two separate convolutions on the halves of the channels give, side by side, to the bit; and what an
/// ungrouped one gives whose weights between the halves are zero. Without those zeros it is something else.
#[test]
fn a_grouped_convolution_is_two_separate_ones_and_a_dense_one_with_zeros() {
    let found = grouped().outputs();
    let halves = [half(0).outputs(), half(1).outputs()];
    let row = FILTERS / 2 * LOOKED_AT.len();
    let side_by_side: Vec<u32> =
        (0..IMAGES).flat_map(|n| halves.iter().flat_map(move |half| &half[n * row..(n + 1) * row])).copied().collect();
    assert_eq!(found, side_by_side);
    assert_eq!(found, dense(true).outputs());
    assert_ne!(found, dense(false).outputs());
    assert!(found.iter().filter(|bits| f32::from_bits(**bits) != 0.0).count() > found.len() / 2);
}

/// A filter sums over the channels that it sees: 1,024 kernels in two groups, 2,048 in one. And the dense net's gradient of
/// the weights between the halves isn't zero, so that training leaves the grouped net's space at the first step.
#[test]
fn a_dense_net_leaves_the_grouped_nets_space_at_the_first_step() {
    let folder = TempDir::new().unwrap();
    let kernels = |net: &Net| {
        let tensors = net.tensors();
        (tensors[0].1[0] * tensors[0].1[1], tensors[0].1.clone())
    };
    assert_eq!(kernels(&grouped()).0, 1024);
    assert_eq!(kernels(&dense(true)).0, 2048);
    let (model, init) = dense(true).write(folder.path());
    let out = folder.path().join("run");
    let arguments = "train --steps 1 --batch 2 --lr 0.001 --weight-decay 0 --schedule constant --workers 2";
    succeed(arguments, &[("--model", &model), ("--data", folder.path()), ("--init", &init), ("--out", &out)]);
    let checkpoint = support::checkpoint(&out);
    for file in ["optimizer.safetensors", "weights.safetensors"] {
        let (shape, values) = read_tensor(&checkpoint.join(file), "c.weight");
        assert_eq!(shape, [FILTERS, CHANNELS, 3, 3]);
        let is_between = |index: usize| (index / 9 / CHANNELS) * 2 / FILTERS != (index / 9 % CHANNELS) * 2 / CHANNELS;
        let between = values.iter().enumerate().filter(|(index, _)| is_between(*index));
        let moved = between.clone().filter(|(_, value)| **value != 0.0).count();
        assert!(moved > between.count() / 2, "{file}: {moved} of the weights between the halves moved");
    }
}
