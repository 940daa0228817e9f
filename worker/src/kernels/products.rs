//! The two products that every pass of every convolution and linear layer is made of, over blocks and panels:
//! [`Correlation`] for outputs and input gradients, and [`Gradient`] for weight gradients. Here is which tile comes when, so
//! that what is read again is still in the cache; no sum depends on it.
//!
//! Not here: what the operands mean (`conv`, `linear`).

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Compute;
use super::panels::{Panel, Panels};
use super::tile::{self, Chains, Outer, Pixels, ROWS_MAX, UNIT, UNITS_MAX};

/// Terms whose weights are taken at once where a panel of all terms wouldn't stay in a second-level cache: 128 KiB of two
/// units.
const BLOCK_TERMS: usize = 1024;
/// Panels of up to so many floats are taken whole.
const WHOLE_MAX: usize = 160 * 1024;
/// Terms that are taken at once where a tile of the source stays: the weights of all columns of as many stay in the cache.
const SOURCE_TERMS: usize = 512;
/// Floats of the gradient's operand that are gone through for one tile after another: they stay in a first-level cache.
const NEAR_MAX: usize = 4 * 1024;

/// `c[pixel][column] = chain over terms of source[pixel + terms[k]] * weights[k][column]`, then `+ end[column]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Correlation<'a> {
    /// What pixels are read from.
    pub source: &'a [f32],
    /// Where each term lies from its pixel.
    pub terms: &'a [usize],
    /// How the weights lie.
    pub panels: Panels,
    /// The weights.
    pub weights: &'a [f32],
    /// What is added to each column at the end, for all units of columns.
    pub end: &'a [f32],
    /// The pixels.
    pub grid: Grid,
    /// What stays in the cache.
    pub order: Order,
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

/// How far samples, rows and columns lie apart.
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
    /// Computes all of it into `c`. Whether all results are finite.
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
        // Threads share out lines, or columns of the one line, or panels: no two of them write the same float.
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
        let last = self.terms.iter().max().copied().unwrap_or(0);
        assert_eq!(self.terms.len(), self.panels.terms, "another number of terms than the panels have");
        assert!(
            source.at(samples - 1, rows - 1, columns - 1) + last < self.source.len(),
            "a pixel leads out of its slice"
        );
        assert!(
            result.at(samples - 1, rows - 1, columns - 1) + self.panels.columns <= length,
            "a result leads out of its slice"
        );
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
        let c = c.at(self.grid.result.at(sample, row, pixels.start) + panel.first * UNIT);
        let mut tile = Chains {
            a: self.source[self.grid.source.at(sample, row, pixels.start)..].as_ptr(),
            b: self.weights[self.panels.at(panel, terms.start)..].as_ptr(),
            b_step: panel.units * UNIT,
            c,
            c_step: self.grid.result.column,
            goes_on,
            end: if ends { self.end[panel.first * UNIT..].as_ptr() } else { std::ptr::null() },
            poison: poison.as_mut_ptr(),
            terms: &self.terms[terms],
        };
        let (rows, step) = (pixels.len(), self.grid.source.column);
        let width = (panel.units * UNIT).min(self.panels.columns - panel.first * UNIT);
        if width == panel.units * UNIT {
            // SAFETY: `check` has bounded every pixel, term and column; this thread alone writes to this tile's results.
            unsafe { tile::run_chains(compute.isa, &tile, rows, panel.units, step) };
            return;
        }
        // Columns that don't count aren't in `c`: by way of a buffer.
        let mut whole = [0.0; ROWS_MAX * UNITS_MAX * UNIT];
        (tile.c, tile.c_step) = (whole.as_mut_ptr(), UNITS_MAX * UNIT);
        for row in 0..rows {
            // SAFETY: these columns count, and lie within `c` by `check`; the buffer has room for the highest tile.
            unsafe {
                let (c, whole) = (c.add(row * self.grid.result.column), tile.c.add(row * tile.c_step));
                if goes_on {
                    std::ptr::copy_nonoverlapping(c, whole, width);
                }
            }
        }
        // SAFETY: as above, but for the results, which the buffer has room for.
        unsafe { tile::run_chains(compute.isa, &tile, rows, panel.units, step) };
        for row in 0..rows {
            // SAFETY: as for the copy into the buffer.
            unsafe {
                let (c, whole) = (c.add(row * self.grid.result.column), tile.c.add(row * tile.c_step));
                std::ptr::copy_nonoverlapping(whole, c, width);
            }
        }
    }
}

/// Where a tile lies.
struct Place {
    line: usize,
    pixels: Range<usize>,
    panel: Panel,
}

/// `c[term][column] = chain over pixels of source[pixel + terms[term]] * gradient[pixel][column]`, in panels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gradient<'a> {
    /// What pixels are read from.
    pub source: &'a [f32],
    /// Where each term lies from its pixel.
    pub terms: &'a [usize],
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

impl Gradient<'_> {
    /// Goes on with the chains in `c`, or starts them. Whether all are finite.
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
        // Threads share out pieces of a panel: no two of them write the same float.
        let pieces: Vec<(Panel, Range<usize>)> = (0..self.panels.count())
            .map(|index| self.panels.panel(index))
            .flat_map(|panel| {
                let most = tile::rows_of_outer(compute.isa, panel.units);
                even_parts(0..self.terms.len(), most).map(move |terms| (panel, terms))
            })
            .collect();
        compute.split(pieces.len(), |part| {
            let mut poison = [0.0; UNIT];
            let mut sample = 0;
            while sample < p.samples {
                let near = (NEAR_MAX / (p.lines * p.columns * 2 * UNIT)).clamp(1, p.samples - sample);
                for (panel, terms) in &pieces[part.clone()] {
                    self.tile(compute, c, (*panel, terms), sample..sample + near, goes_on || sample > 0, &mut poison);
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
        let last = self.terms.iter().max().copied().unwrap_or(0);
        let a = (p.samples - 1) * p.a_sample + (p.lines - 1) * p.a_line + (p.columns - 1) * p.a_column;
        let b = (p.samples - 1) * p.b_sample + (p.lines - 1) * p.b_line + (p.columns - 1) * UNIT;
        assert_eq!(self.terms.len(), self.panels.terms, "another number of terms than the panels have");
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
        (panel, terms): (Panel, &Range<usize>),
        samples: Range<usize>,
        goes_on: bool,
        poison: &mut [f32; UNIT],
    ) {
        let tile = Outer {
            a: self.source[samples.start * self.pixels.a_sample..].as_ptr(),
            rows: &self.terms[terms.clone()],
            b: self.gradient[self.first + samples.start * self.pixels.b_sample + panel.first * self.plane..].as_ptr(),
            b_plane: self.plane,
            pixels: Pixels { samples: samples.len(), ..self.pixels },
            c: c.at(self.panels.at(panel, terms.start)),
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
