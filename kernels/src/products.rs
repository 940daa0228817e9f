//! The two products behind every pass of every convolution and linear layer, over blocks and panels: [`Correlation`] for
//! outputs and input gradients, and [`Gradient`] for weight gradients. This module orders the tiles so that operands are still
//! in the cache when they are read again. No sum depends on that order.
//!
//! Not here: the meaning of the operands (`conv`, `linear`).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Compute;
use super::panels::{Panel, Panels};
use super::tile::{self, Chains, Outer, Pixels, ROWS_MAX, UNIT, UNITS_MAX};

/// Terms of one block, if a panel of all terms would not stay in a second-level cache. With two units, the weights of a block have
/// 128 KiB.
const BLOCK_TERMS: usize = 1024;
/// Panels of up to this many floats are not split.
pub(super) const WHOLE_MAX: usize = 160 * 1024;
/// Terms of one block, if a tile of the source stays in the cache. The weights of these terms stay there too, for all columns.
pub(super) const SOURCE_TERMS: usize = 512;
/// If a line has more terms than this, only whole lines of padding are skipped, and no single terms.
const LINE_MAX: usize = 16;
/// Floats of the gradient's operand that are gone through for one tile after another: they stay in a first-level cache.
const NEAR_MAX: usize = 4 * 1024;

/// `c[pixel][column] = chain over terms of source[pixel + terms[k]] * weights[k][column]`, then `+ end[column]`, and ReLU if it
/// `rectifies`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Correlation<'a> {
    /// What pixels are read from.
    pub source: &'a [f32],
    /// The terms, in the order of the chain.
    pub terms: &'a Terms,
    /// How the weights lie.
    pub panels: Panels,
    /// The weights.
    pub weights: &'a [f32],
    /// What is added to each column at the end, for all units of columns.
    pub end: &'a [f32],
    /// Whether ReLU follows.
    pub rectifies: bool,
    /// The pixels.
    pub grid: Grid,
    /// What stays in the cache.
    pub order: Order,
}

/// Where each term lies from its pixel: (channel, line, column). Lines that are padding for a whole row of pixels are left
/// out of that row's chains, and terms that are for a pixel near either end of a row, out of that pixel's.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// Where all of them lie.
    all: Vec<usize>,
    /// Terms of one channel's line.
    line: usize,
    /// Lines of a channel.
    lines: usize,
    /// The lines that each row of pixels reads; by default all of them.
    seen: Vec<Range<usize>>,
    /// The columns of pixels that read each term of a line; by default all of them.
    seeing: Vec<Range<usize>>,
}

/// The terms of a chain that are taken: `runs` of `run`, `every` terms apart.
#[derive(Clone, Copy)]
struct Taken {
    first: usize,
    run: usize,
    runs: usize,
    every: usize,
}

impl Terms {
    /// Terms without padding.
    pub(super) fn whole(all: Vec<usize>) -> Self {
        Self { line: all.len(), lines: 1, all, seen: Vec::new(), seeing: Vec::new() }
    }

    /// Terms of `lines` lines, of which each row of pixels sees those of `seen`; each term of a line is seen by the columns of
    /// `seeing`.
    pub(super) fn new(
        all: Vec<usize>,
        lines: usize,
        seen: impl Iterator<Item = Range<usize>>,
        seeing: impl Iterator<Item = Range<usize>>,
    ) -> Self {
        let seeing: Vec<_> = seeing.collect();
        assert!(all.len().is_multiple_of((seeing.len() * lines).max(1)), "terms that aren't whole channels");
        Self { all, line: seeing.len(), lines, seen: seen.collect(), seeing }
    }

    fn len(&self) -> usize {
        self.all.len()
    }

    /// Which of `terms` a row of pixels uses. Lines of padding are skipped only if `terms` are all terms.
    fn taken(&self, row: usize, terms: &Range<usize>) -> Taken {
        match self.seen.get(row).filter(|seen| **seen != (0..self.lines) && terms.len() == self.len()) {
            Some(seen) => {
                let every = self.line * self.lines;
                Taken { first: seen.start * self.line, run: seen.len() * self.line, runs: self.len() / every, every }
            }
            None => Taken { first: terms.start, run: terms.len(), runs: 1, every: 0 },
        }
    }

    /// The pixels of a tile that take each term of a line, counted from the tile's first one; nothing where all do. Terms are left
    /// out where all are taken at once.
    fn line_of<'a>(
        &self,
        pixels: &Range<usize>,
        terms: &Range<usize>,
        room: &'a mut [Range<usize>; LINE_MAX],
    ) -> &'a [Range<usize>] {
        let line = &mut room[..self.seeing.len().min(LINE_MAX)];
        let within = |column: usize| column.clamp(pixels.start, pixels.end) - pixels.start;
        for (taken, seeing) in line.iter_mut().zip(&self.seeing) {
            *taken = within(seeing.start)..within(seeing.end);
        }
        let is_whole = terms.len() == self.len() && self.seeing.len() <= LINE_MAX;
        if is_whole && line.iter().any(|taken| *taken != (0..pixels.len())) { line } else { &[] }
    }
}

/// Where pixels lie: in the source, and in the result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    pub samples: usize,
    pub rows: usize,
    pub columns: usize,
    pub source: Steps,
    pub result: Steps,
}

/// The strides of samples, rows and columns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    pub first: usize,
    pub sample: usize,
    pub row: usize,
    pub column: usize,
}

impl Steps {
    fn at(&self, sample: usize, row: usize, column: usize) -> usize {
        self.first + sample * self.sample + row * self.row + column * self.column
    }

    /// Where the last of these pixels ends if each takes `width` floats. None if that can't be counted.
    fn end(&self, (samples, rows, columns): (usize, usize, usize), width: usize) -> Option<usize> {
        let steps = [(samples - 1, self.sample), (rows - 1, self.row), (columns - 1, self.column)];
        steps
            .iter()
            .try_fold(self.first.checked_add(width)?, |end, (count, step)| end.checked_add(count.checked_mul(*step)?))
    }

    /// Whether no two of these pixels share one of their `width` floats.
    fn are_apart(&self, (samples, rows, columns): (usize, usize, usize), width: usize) -> bool {
        let row = (columns - 1) * self.column + width;
        let sample = (rows - 1) * self.row + row;
        (columns == 1 || self.column >= width)
            && (rows == 1 || self.row >= row)
            && (samples == 1 || self.sample >= sample)
    }
}

/// What follows the chain of an output.
#[derive(Clone, Copy, Debug, Default)]
pub struct End<'a> {
    /// What is added, an output channel each; +0.0 without one.
    pub bias: Option<&'a [f32]>,
    /// Whether ReLU follows.
    pub rectifies: bool,
}

/// What stays in the cache while the other operand goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// A panel of weights.
    Weights,
    /// A tile of the source.
    Source,
}

/// A result that several threads write to, each its own floats.
#[derive(Clone, Copy)]
struct Shared(*mut f32);

// SAFETY: the parts that threads work on are disjoint: see `Correlation::run` and `Gradient::run`.
unsafe impl Send for Shared {}
// SAFETY: likewise.
unsafe impl Sync for Shared {}

impl Shared {
    fn at(self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

impl Correlation<'_> {
    /// Computes all of it into `c`. Whether all results are finite, before ReLU.
    ///
    /// # Panics
    /// When a pixel or a term leads out of its slice.
    pub(super) fn run(&self, compute: &Compute, c: &mut [f32]) -> bool {
        if self.grid.samples * self.grid.rows * self.grid.columns == 0 || self.panels.columns == 0 {
            return true;
        }
        self.check(c.len());
        let (c, finite) = (Shared(c.as_mut_ptr()), AtomicBool::new(true));
        let lines = self.grid.samples * self.grid.rows;
        let panels = self.panels.count();
        let part = |lines: Range<usize>, columns: Range<usize>, panels: Range<usize>| {
            let mut poison = [0.0; UNIT];
            match self.order {
                Order::Weights => self.by_panel(compute, c, lines, panels, &mut poison),
                Order::Source => self.by_tile(compute, c, lines, columns, panels, &mut poison),
            }
            if !tile::is_finite(&poison) {
                finite.store(false, Ordering::Relaxed);
            }
        };
        // Lines, or columns of the only line, or panels are divided among the threads: no two of them write the same float.
        let columns = 0..self.grid.columns;
        if lines >= compute.threads() {
            compute.split(lines, |lines| part(lines, columns.clone(), 0..panels));
        } else if self.order == Order::Source {
            compute.split(columns.len(), |columns| part(0..lines, columns, 0..panels));
        } else {
            compute.split(panels, |panels| part(0..lines, columns.clone(), panels));
        }
        finite.into_inner()
    }

    fn check(&self, length: usize) {
        let Grid { samples, rows, columns, source, result } = self.grid;
        let last = self.terms.all.iter().max().copied().unwrap_or(0);
        assert_eq!(self.terms.len(), self.panels.terms, "another number of terms than the panels have");
        let (pixels, width) = ((samples, rows, columns), self.panels.columns);
        let within = |end: Option<usize>, length: usize| end.is_some_and(|end| end <= length);
        assert!(within(source.end(pixels, last + 1), self.source.len()), "a pixel leads out of its slice");
        assert!(within(result.end(pixels, width), length), "a result leads out of its slice");
        assert!(result.are_apart(pixels, width), "two results lie in one place");
        assert!(self.weights.len() >= self.panels.len(), "the last panel leads out of its slice");
        assert!(self.end.len() >= self.panels.units * UNIT, "too few ends");
    }

    fn by_panel(
        &self,
        compute: &Compute,
        c: Shared,
        lines: Range<usize>,
        panels: Range<usize>,
        poison: &mut [f32; UNIT],
    ) {
        let terms = 0..self.terms.len();
        for panel in panels.map(|index| self.panels.panel(index)) {
            let most = tile::rows_of_chains(compute.isa, panel.units);
            let stays_whole = terms.len() * panel.units * UNIT <= WHOLE_MAX;
            for terms in even_parts(terms.clone(), if stays_whole { terms.len().max(1) } else { BLOCK_TERMS }) {
                for line in lines.clone() {
                    for pixels in even_parts(0..self.grid.columns, most) {
                        self.tile(compute, c, Place { line, pixels, panel }, terms.clone(), poison);
                    }
                }
            }
        }
    }

    fn by_tile(
        &self,
        compute: &Compute,
        c: Shared,
        lines: Range<usize>,
        columns: Range<usize>,
        panels: Range<usize>,
        poison: &mut [f32; UNIT],
    ) {
        let panels: Vec<_> = panels.map(|index| self.panels.panel(index)).collect();
        let most = tile::rows_of_chains(compute.isa, panels.iter().map(|panel| panel.units).max().unwrap_or(1));
        for terms in even_parts(0..self.terms.len(), SOURCE_TERMS) {
            for line in lines.clone() {
                for pixels in even_parts(columns.clone(), most) {
                    for panel in &panels {
                        let place = Place { line, pixels: pixels.clone(), panel: *panel };
                        self.tile(compute, c, place, terms.clone(), poison);
                    }
                }
            }
        }
    }

    fn tile(&self, compute: &Compute, c: Shared, place: Place, terms: Range<usize>, poison: &mut [f32; UNIT]) {
        let Place { line, pixels, panel } = place;
        let (sample, row) = (line / self.grid.rows, line % self.grid.rows);
        let (goes_on, ends) = (terms.start > 0, terms.end == self.terms.len());
        let Taken { first, run, runs, every } = self.terms.taken(row, &terms);
        let mut room: [Range<usize>; LINE_MAX];
        let (rows, step) = (pixels.len(), self.grid.source.column);
        let c = c.at(self.grid.result.at(sample, row, pixels.start) + panel.first * UNIT);
        let mut tile = Chains {
            a: self.source[self.grid.source.at(sample, row, pixels.start)..].as_ptr(),
            terms: &self.terms.all[first..],
            run,
            runs,
            every,
            line: if step == UNIT {
                room = [const { 0..0 }; LINE_MAX];
                self.terms.line_of(&pixels, &terms, &mut room)
            } else {
                &[]
            },
            b: self.weights[self.panels.at(panel, first)..].as_ptr(),
            b_step: panel.units * UNIT,
            c,
            c_step: self.grid.result.column,
            goes_on,
            end: if ends { self.end[panel.first * UNIT..].as_ptr() } else { std::ptr::null() },
            rectifies: self.rectifies,
            poison: poison.as_mut_ptr(),
        };
        let width = (panel.units * UNIT).min(self.panels.columns - panel.first * UNIT);
        if width == panel.units * UNIT {
            // SAFETY: `check` has bounded every pixel, term and column; this thread alone writes to this tile's results.
            unsafe { tile::run_chains(compute.isa, &tile, rows, panel.units, step) };
            return;
        }
        // Columns that don't count aren't in `c`: by way of a buffer.
        let mut whole = [0.0; ROWS_MAX * UNITS_MAX * UNIT];
        (tile.c, tile.c_step) = (whole.as_mut_ptr(), UNITS_MAX * UNIT);
        if goes_on {
            // SAFETY: these columns count, and lie within `c` by `check`; the buffer has room for the highest tile.
            unsafe { copy_rows((c, self.grid.result.column), (tile.c, tile.c_step), rows, width) };
        }
        // SAFETY: as above, but for the results, which the buffer has room for.
        unsafe { tile::run_chains(compute.isa, &tile, rows, panel.units, step) };
        // SAFETY: as for the copy into the buffer.
        unsafe { copy_rows((tile.c, tile.c_step), (c, self.grid.result.column), rows, width) };
    }
}

/// Copies rows of `width` floats, each so far from the one before it.
///
/// # Safety
/// They are valid, and don't overlap.
unsafe fn copy_rows((from, from_step): (*mut f32, usize), (to, to_step): (*mut f32, usize), rows: usize, width: usize) {
    for row in 0..rows {
        // SAFETY: the caller vouches for all of them.
        unsafe { std::ptr::copy_nonoverlapping(from.add(row * from_step), to.add(row * to_step), width) };
    }
}

/// Where a tile lies.
struct Place {
    line: usize,
    pixels: Range<usize>,
    panel: Panel,
}

/// `c[term][column] = chain over pixels of source[pixel + term] * gradient[pixel][column]`, in panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gradient<'a> {
    /// What pixels are read from.
    pub source: &'a [f32],
    /// The terms, by the pixels at which they aren't padding.
    pub terms: &'a [Seen],
    /// The gradient of the outputs, in units of columns.
    pub gradient: &'a [f32],
    /// From one unit of its columns to the next.
    pub plane: usize,
    /// Where the gradient's first pixel lies.
    pub first: usize,
    /// The pixels.
    pub pixels: Pixels,
    /// How the result lies.
    pub panels: Panels,
}

/// Terms whose chains run over the same pixels.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    /// The lines of each sample; the others are padding.
    pub lines: Range<usize>,
    /// The columns of each line; the others are padding.
    pub columns: Range<usize>,
    /// Where each term lies from its pixel, and its index.
    pub terms: Vec<(usize, usize)>,
}

/// A tile's terms.
struct Piece<'a> {
    panel: Panel,
    lines: Range<usize>,
    columns: Range<usize>,
    terms: &'a [(usize, usize)],
}

impl Gradient<'_> {
    /// Continues the chains in `c`, or starts them. Whether all are finite.
    ///
    /// # Panics
    /// When a pixel or a term leads out of its slice.
    pub(super) fn run(&self, compute: &Compute, goes_on: bool, c: &mut [f32]) -> bool {
        let p = self.pixels;
        if self.panels.len() == 0 || p.samples * p.lines * p.columns == 0 {
            return true;
        }
        self.check(c.len());
        let (c, finite) = (Shared(c.as_mut_ptr()), AtomicBool::new(true));
        // Pieces of panels are divided among the threads: no two of them write the same float.
        let pieces: Vec<Piece> = (0..self.panels.count())
            .map(|index| self.panels.panel(index))
            .flat_map(|panel| self.terms.iter().map(move |these| (panel, these)))
            .flat_map(|(panel, these)| {
                let parts = even_parts(0..these.terms.len(), tile::rows_of_outer(compute.isa, panel.units));
                parts.map(move |part| {
                    let Seen { lines, columns, terms } = these;
                    Piece { panel, lines: lines.clone(), columns: columns.clone(), terms: &terms[part] }
                })
            })
            .collect();
        compute.split(pieces.len(), |part| {
            let mut poison = [0.0; UNIT];
            let mut sample = 0;
            while sample < p.samples {
                let near = (NEAR_MAX / (p.lines * p.columns * 2 * UNIT)).clamp(1, p.samples - sample);
                for piece in &pieces[part.clone()] {
                    self.tile(compute, c, piece, sample..sample + near, goes_on || sample > 0, &mut poison);
                }
                sample += near;
            }
            if !tile::is_finite(&poison) {
                finite.store(false, Ordering::Relaxed);
            }
        });
        finite.into_inner()
    }

    fn check(&self, length: usize) {
        let p = self.pixels;
        let terms = || self.terms.iter().flat_map(|these| &these.terms);
        let last = terms().map(|(place, _)| *place).max().unwrap_or(0);
        let a = (p.samples - 1) * p.a_sample + (p.lines - 1) * p.a_line + (p.columns - 1) * p.a_column;
        let b = (p.samples - 1) * p.b_sample + (p.lines - 1) * p.b_line + (p.columns - 1) * UNIT;
        assert!(terms().count() == self.panels.terms, "another number of terms than the panels have");
        let mut is_known = vec![false; self.panels.terms];
        let is_new = |index: &usize| is_known.get_mut(*index).is_some_and(|known| !std::mem::replace(known, true));
        assert!(terms().map(|(_, index)| index).all(is_new), "a term leads out of its panel, or comes twice");
        assert!(self.terms.iter().all(|these| these.lines.end <= p.lines), "a line leads out of its sample");
        assert!(self.terms.iter().all(|these| these.columns.end <= p.columns), "a column leads out of its line");
        assert!(a + last < self.source.len(), "a pixel leads out of its slice");
        assert!(
            self.first + b + (self.panels.units - 1) * self.plane + UNIT <= self.gradient.len(),
            "a gradient leads out of its slice"
        );
        assert!(length >= self.panels.len(), "a result leads out of its slice");
    }

    fn tile(
        &self,
        compute: &Compute,
        c: Shared,
        piece: &Piece,
        samples: Range<usize>,
        goes_on: bool,
        poison: &mut [f32; UNIT],
    ) {
        let Piece { panel, lines, columns, terms } = piece;
        let p = self.pixels;
        let a = samples.start * p.a_sample + lines.start * p.a_line + columns.start * p.a_column;
        let b = samples.start * p.b_sample + lines.start * p.b_line + columns.start * UNIT;
        let tile = Outer {
            a: self.source[a..].as_ptr(),
            rows: terms,
            b: self.gradient[self.first + b + panel.first * self.plane..].as_ptr(),
            b_plane: self.plane,
            pixels: Pixels { samples: samples.len(), lines: lines.len(), columns: columns.len(), ..p },
            c: c.at(self.panels.at(*panel, 0)),
            c_step: panel.units * UNIT,
            goes_on,
            poison: poison.as_mut_ptr(),
        };
        // SAFETY: `check` has bounded every pixel, term and column; this thread alone writes to this tile's results.
        unsafe { tile::run_outer(compute.isa, &tile, panel.units) };
    }
}

/// Cuts a range into as few parts of at most `most` as there can be, as even as can be: a small rest would be slow.
fn even_parts(whole: Range<usize>, most: usize) -> impl Iterator<Item = Range<usize>> {
    let (length, parts) = (whole.len(), whole.len().div_ceil(most));
    (0..parts).map(move |part| whole.start + part * length / parts..whole.start + (part + 1) * length / parts)
}
