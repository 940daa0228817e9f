//! Feature maps as products read them: blocks of channels, zeros around them, and columns sorted by their
//! place in a stride, so that neighbouring outputs always read floats that lie one step apart. In memory
//! (sample, group, block, line, phase, column, lane), where column `x` is column `x / stride` of phase `x % stride`.
//!
//! Not here: what is computed from them (`products`).

use super::memory::Tensor;
use super::tile::UNIT;
use super::{Compute, Maps};

/// Lanes of a block of few channels, as an image's; other blocks have a [`UNIT`].
const FEW: usize = 4;

/// How blocks of channels lie in memory.
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
    /// Floats of a block at one place: one a channel.
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

    /// `x`, whose size is `maps`, in blocks.
    pub(super) fn filled(&self, compute: &Compute, x: &[f32], maps: Maps) -> Tensor {
        let mut out = compute.tensor(self.len());
        self.fill(compute, x, maps, &mut out);
        out
    }

    /// Copies `x`, whose size is `maps`, into `out`.
    pub(super) fn fill(&self, compute: &Compute, x: &[f32], maps: Maps, out: &mut [f32]) {
        assert_eq!((x.len(), out.len()), (maps.len(), self.len()), "maps or blocks of another size");
        let planes = self.samples * self.groups * self.blocks;
        compute.for_samples(out, planes, |index, plane| {
            let (rest, block) = (index / self.blocks, index % self.blocks);
            let first = rest % self.groups * self.channels + block * self.lanes;
            let count = self.channels.saturating_sub(block * self.lanes).min(self.lanes);
            if count == 0 {
                return plane.fill(0.0);
            }
            let x = &x[maps.at(rest / self.groups, 0, 0) + first..];
            // Copies of a known length are one load and one store.
            match count {
                UNIT => self.fill_plane(x, maps, plane, |lanes, pixel| lanes[..UNIT].copy_from_slice(&pixel[..UNIT])),
                3 => self.fill_plane(x, maps, plane, |lanes, pixel| lanes[..3].copy_from_slice(&pixel[..3])),
                1 => self.fill_plane(x, maps, plane, |lanes, pixel| lanes[0] = pixel[0]),
                _ => self.fill_plane(x, maps, plane, |lanes, pixel| lanes[..count].copy_from_slice(&pixel[..count])),
            }
        });
    }

    /// One block of one sample, whose first channel is `x`'s first float; `copy` takes its channels of one pixel.
    #[inline(always)]
    fn fill_plane(&self, x: &[f32], maps: Maps, plane: &mut [f32], copy: impl Fn(&mut [f32], &[f32])) {
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
                    copy(lanes, &x[from..]);
                    from += self.stride * maps.channels;
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
