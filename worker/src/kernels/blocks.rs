//! Feature maps as the convolution engine reads them: blocks of channels, zeros around them, and columns sorted by their
//! place in a stride, so that neighbouring outputs always read floats that lie one step apart. In memory
//! (sample, group, block, line, phase, column, lane), where column `x` is column `x / stride` of phase `x % stride`.
//!
//! Not here: what is computed from them (`products`).

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
    /// Phases: the stride of what reads them.
    pub phases: usize,
    /// Zeros before the first row and column.
    pub before: usize,
}

impl Blocks {
    /// Blocks of `maps` in `groups` groups, for windows `stride` apart, between `before` and `after` zeros on either side.
    pub(super) fn to_be_multiplied(maps: Maps, groups: usize, before: usize, after: usize, stride: usize) -> Self {
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
            phases: stride,
            before,
        }
    }

    /// The same with blocks of a whole unit, at least `blocks` of them: vectors can be read.
    pub(super) fn in_units(self, blocks: usize) -> Self {
        Self { lanes: UNIT, blocks, ..self }
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
        let (phase, column) = (column % self.phases, column / self.phases);
        channel / self.lanes * self.plane()
            + line * self.line()
            + (phase * self.columns + column) * self.lanes
            + channel % self.lanes
    }

    /// Copies `x`, whose size is `maps`, into `out`.
    pub(crate) fn fill(&self, compute: &Compute, x: &[f32], maps: Maps, out: &mut [f32]) {
        assert_eq!((x.len(), out.len()), (maps.len(), self.len()), "maps or blocks of another size");
        let planes = self.samples * self.groups * self.blocks;
        compute.for_samples(out, planes, |index, plane| {
            let (rest, block) = (index / self.blocks, index % self.blocks);
            let first = rest % self.groups * self.channels + block * self.lanes;
            let count = self.channels.saturating_sub(block * self.lanes).min(self.lanes);
            if count == 0 {
                return plane.fill(0.0);
            }
            let x = &x[maps.at(rest / self.groups, 0, 0)..];
            match self.lanes {
                UNIT if count == UNIT => self.fill_plane::<UNIT>(x, maps, first, plane),
                _ => self.fill_ragged_plane(x, maps, first..first + count, plane),
            }
        });
    }

    /// A plane all of whose `LANES` lanes are channels.
    fn fill_plane<const LANES: usize>(&self, x: &[f32], maps: Maps, first: usize, plane: &mut [f32]) {
        for (line, out) in plane.chunks_exact_mut(self.line()).enumerate() {
            let Some(row) = self.row_of(line, maps) else {
                out.fill(0.0);
                continue;
            };
            let (out, _) = out.as_chunks_mut::<LANES>();
            for (index, lanes) in out.iter_mut().enumerate() {
                *lanes = match self.column_of(index, maps) {
                    Some(column) => {
                        *x[maps.at(0, row, column) + first..].first_chunk().expect("a pixel has its channels")
                    }
                    None => [0.0; LANES],
                };
            }
        }
    }

    fn fill_ragged_plane(&self, x: &[f32], maps: Maps, channels: std::ops::Range<usize>, plane: &mut [f32]) {
        plane.fill(0.0);
        for (line, out) in plane.chunks_exact_mut(self.line()).enumerate() {
            let Some(row) = self.row_of(line, maps) else { continue };
            for (index, lanes) in out.chunks_exact_mut(self.lanes).enumerate() {
                let Some(column) = self.column_of(index, maps) else { continue };
                let pixel = &x[maps.at(0, row, column)..][..maps.channels];
                lanes.iter_mut().zip(&pixel[channels.clone()]).for_each(|(lane, x)| *lane = *x);
            }
        }
    }

    fn row_of(&self, line: usize, maps: Maps) -> Option<usize> {
        line.checked_sub(self.before).filter(|row| *row < maps.height)
    }

    /// The column that lies at a place of a line.
    fn column_of(&self, index: usize, maps: Maps) -> Option<usize> {
        let column = index % self.columns * self.phases + index / self.columns;
        column.checked_sub(self.before).filter(|column| *column < maps.width)
    }
}
