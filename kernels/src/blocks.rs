//! The layout of feature maps that products read: blocks of channels, with zeros around them. Columns are sorted by phase, so
//! that neighbouring outputs always read neighbouring columns. The order in memory is (sample, group, block, line, phase,
//! column, lane), where column `x` is column `x / stride` of phase `x % stride`.
//!
//! Not here: the products themselves (`products`).

use super::isa::{Isa, for_each_isa};
use super::memory::Tensor;
use super::tile::UNIT;
use super::{Compute, Maps};

/// Lanes of a block if a group has few channels, as in an image. Other blocks have [`UNIT`] lanes.
const FEW: usize = 4;

/// The layout of blocks of channels in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blocks {
    /// Samples.
    pub samples: usize,
    /// Groups of channels; each starts a block of its own.
    pub groups: usize,
    /// Channels of a group.
    pub channels: usize,
    /// Blocks of a group.
    pub blocks: usize,
    /// Floats of a block at one place: one per channel.
    pub lanes: usize,
    /// Rows, with those of the padding.
    pub lines: usize,
    /// Columns of a phase, with those of the padding.
    pub columns: usize,
    /// From one window to the next.
    pub stride: usize,
    /// Phases that any window reads.
    pub phases: usize,
    /// Zeros before the first row and column.
    pub before: usize,
}

impl Blocks {
    /// Blocks of `maps` in `groups` groups, between `before` and `after` zeros on either side, for windows of `kernel` columns
    /// that lie `stride` apart.
    pub(super) fn to_be_multiplied(
        maps: Maps,
        groups: usize,
        (before, after): (usize, usize),
        (kernel, stride): (usize, usize),
    ) -> Self {
        let channels = maps.channels / groups;
        let lanes = if channels <= FEW { FEW } else { UNIT };
        Self {
            samples: maps.samples,
            groups,
            channels,
            blocks: channels.div_ceil(lanes),
            lanes,
            lines: maps.height + before + after,
            columns: (maps.width + before + after).div_ceil(stride),
            stride,
            phases: stride.min(kernel),
            before,
        }
    }

    /// The same with blocks of a whole unit, at least `blocks` of them: vectors can be read.
    pub(super) fn in_units(self, blocks: usize) -> Self {
        Self { lanes: UNIT, blocks: blocks.max(self.channels.div_ceil(UNIT)), ..self }
    }

    /// From one line to the next.
    pub(super) fn line(&self) -> usize {
        self.phases * self.columns * self.lanes
    }

    /// From one block to the next.
    pub(super) fn plane(&self) -> usize {
        self.lines * self.line()
    }

    /// From one group to the next.
    pub(super) fn group(&self) -> usize {
        self.blocks * self.plane()
    }

    /// From one sample to the next.
    pub(super) fn sample(&self) -> usize {
        self.groups * self.group()
    }

    /// Floats in all.
    pub(crate) fn len(&self) -> usize {
        self.samples * self.sample()
    }

    /// Where a group's channel lies from the group's start. `column` is counted without regard to phases.
    pub(super) fn at(&self, channel: usize, line: usize, column: usize) -> usize {
        let (phase, column) = (column % self.stride, column / self.stride);
        channel / self.lanes * self.plane()
            + line * self.line()
            + (phase * self.columns + column) * self.lanes
            + channel % self.lanes
    }

    /// Copies `x`, of size `maps`, into blocks. If `y` is given, `x` is the gradient behind a ReLU whose output is `y`, and becomes
    /// zero where `y` is not above zero.
    pub(super) fn filled(&self, compute: &Compute, x: &[f32], y: Option<&[f32]>, maps: Maps) -> Tensor {
        let mut out = compute.tensor(self.len());
        self.fill(compute, x, y, maps, &mut out);
        out
    }

    /// The same into `out`.
    pub(super) fn fill(&self, compute: &Compute, x: &[f32], y: Option<&[f32]>, maps: Maps, out: &mut [f32]) {
        assert_eq!((x.len(), out.len()), (maps.len(), self.len()), "maps or blocks of another size");
        assert!(y.is_none_or(|y| y.len() == x.len()), "an output of another size than its gradient");
        let planes = self.samples * self.groups * self.blocks;
        compute.for_samples(out, planes, |index, plane| {
            let (rest, block) = (index / self.blocks, index % self.blocks);
            let first = rest % self.groups * self.channels + block * self.lanes;
            let count = self.channels.saturating_sub(block * self.lanes).min(self.lanes);
            if count == 0 {
                return plane.fill(0.0);
            }
            let start = maps.at(rest / self.groups, 0, 0) + first;
            let x = &x[start..];
            // Copies of a known length are one load and one store.
            match (count, y.map(|y| &y[start..])) {
                (UNIT, Some(y)) => self.fill_plane(maps, plane, |lanes, at| {
                    copy_positive(&mut lanes[..UNIT], &x[at..at + UNIT], &y[at..at + UNIT]);
                }),
                (_, Some(y)) => self.fill_plane(maps, plane, |lanes, at| {
                    copy_positive(&mut lanes[..count], &x[at..at + count], &y[at..at + count]);
                }),
                (UNIT, None) => {
                    self.fill_plane(maps, plane, |lanes, at| lanes[..UNIT].copy_from_slice(&x[at..at + UNIT]));
                }
                (3, None) => self.fill_plane(maps, plane, |lanes, at| lanes[..3].copy_from_slice(&x[at..at + 3])),
                (1, None) => self.fill_plane(maps, plane, |lanes, at| lanes[0] = x[at]),
                _ => self.fill_plane(maps, plane, |lanes, at| lanes[..count].copy_from_slice(&x[at..at + count])),
            }
        });
    }

    /// One block of one sample; `copy` takes its channels of the pixel that lies so far behind the sample's first one.
    #[inline(always)]
    fn fill_plane(&self, maps: Maps, plane: &mut [f32], copy: impl Fn(&mut [f32], usize)) {
        let is_ragged = !self.channels.is_multiple_of(self.lanes);
        for (line, out) in plane.chunks_exact_mut(self.line()).enumerate() {
            let Some(row) = self.row_of(line, maps) else {
                out.fill(0.0);
                continue;
            };
            if is_ragged {
                out.fill(0.0);
            }
            for (phase, out) in out.chunks_exact_mut(self.columns * self.lanes).enumerate() {
                let (first, count) = self.columns_of(phase, maps);
                let (before, rest) = out.split_at_mut(first * self.lanes);
                let (held, after) = rest.split_at_mut(count * self.lanes);
                before.fill(0.0);
                after.fill(0.0);
                let mut from = maps.at(0, row, (first * self.stride + phase).saturating_sub(self.before));
                for lanes in held.chunks_exact_mut(self.lanes) {
                    copy(lanes, from);
                    from += self.stride * maps.channels;
                }
            }
        }
    }

    /// Continues `sums`, one chain per channel, over the pixels of blocks of a [`UNIT`] whose windows lie one apart: samples, rows
    /// and columns ascending.
    pub(super) fn add_pixels(&self, isa: Isa, held: &[f32], sums: &mut [f32]) {
        assert!(self.lanes == UNIT && self.stride == 1, "pixels that don't lie side by side");
        for sample in held.chunks_exact(self.sample()) {
            let groups = sample.chunks_exact(self.group()).zip(sums.chunks_exact_mut(self.channels));
            for (group, sums) in groups {
                for (plane, sums) in group.chunks_exact(self.plane()).zip(sums.chunks_mut(UNIT)) {
                    let mut lanes = [0.0; UNIT];
                    lanes[..sums.len()].copy_from_slice(sums);
                    add_each(isa, plane, &mut lanes);
                    sums.copy_from_slice(&lanes[..sums.len()]);
                }
            }
        }
    }

    fn row_of(&self, line: usize, maps: Maps) -> Option<usize> {
        line.checked_sub(self.before).filter(|row| *row < maps.height)
    }

    /// The first column of a phase that isn't padding, and how many aren't.
    fn columns_of(&self, phase: usize, maps: Maps) -> (usize, usize) {
        let first = self.before.saturating_sub(phase).div_ceil(self.stride).min(self.columns);
        let end = (self.before + maps.width).saturating_sub(phase).div_ceil(self.stride).min(self.columns);
        (first, end.saturating_sub(first))
    }
}

/// `x` where `y` is above zero, +0.0 elsewhere. A conditional would be a branch that is hard to predict.
#[inline(always)]
fn copy_positive(out: &mut [f32], x: &[f32], y: &[f32]) {
    for ((out, x), y) in out.iter_mut().zip(x).zip(y) {
        let all_or_none = u32::from(*y > 0.0).wrapping_neg();
        *out = f32::from_bits(x.to_bits() & all_or_none);
    }
}

for_each_isa! {
    /// Adds pixels to `sums`, one after the other. Those of the padding are +0.0, and change no sum that began at +0.0.
    fn add_each(pixels: &[f32], sums: &mut [f32; UNIT]) {
        let mut lanes = *sums;
        for pixel in pixels.chunks_exact(UNIT) {
            for lane in 0..UNIT {
                lanes[lane] += pixel[lane];
            }
        }
        *sums = lanes;
    }
}
