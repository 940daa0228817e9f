//! The layout of weights that products read: panels of one to three units of 16 columns, in the order (panel, term, column of the
//! panel), with zeros where the last panel has fewer columns. It is the same on every instruction set. Momentum and gradients
//! use it too; only what leaves the worker is [unpacked](Panels::unpack).
//!
//! Not here: the meaning of terms and columns (`conv`, `linear`).

use super::tile::{UNIT, UNITS_MAX};

/// The layout of a matrix of (term, column) in panels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Panels {
    /// Terms of a chain.
    pub terms: usize,
    /// Columns that count.
    pub columns: usize,
    /// Units of columns in all panels.
    pub units: usize,
    /// Units of the first panel; the others have two.
    first: usize,
}

/// One panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Panel {
    /// Its first unit.
    pub first: usize,
    /// Its units.
    pub units: usize,
}

/// One column of a panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column<'a> {
    packed: &'a [f32],
    width: usize,
}

impl Column<'_> {
    /// What it holds of a term.
    pub(super) fn term(&self, term: usize) -> f32 {
        self.packed[term * self.width]
    }
}

impl Panels {
    /// As few units as hold the columns. If the number of units is odd and above one, one panel has three units, because a tile of
    /// one unit is slow.
    pub(super) fn tight(terms: usize, columns: usize) -> Self {
        let units = columns.div_ceil(UNIT);
        let first = match units {
            0 | 1 => units,
            odd if odd % 2 == 1 => UNITS_MAX,
            _ => 2,
        };
        Self { terms, columns, units, first }
    }

    /// Panels of two units each.
    pub(super) fn in_twos(terms: usize, columns: usize) -> Self {
        Self { terms, columns, units: columns.div_ceil(2 * UNIT) * 2, first: 2 }
    }

    /// Floats in all.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks whether it is empty")]
    pub fn len(&self) -> usize {
        self.terms * self.units * UNIT
    }

    /// How many panels there are.
    pub(super) fn count(&self) -> usize {
        if self.units == 0 { 0 } else { 1 + (self.units - self.first) / 2 }
    }

    /// A panel by its index.
    pub(super) fn panel(&self, index: usize) -> Panel {
        match index {
            0 => Panel { first: 0, units: self.first },
            _ => Panel { first: self.first + (index - 1) * 2, units: 2 },
        }
    }

    /// Where a panel's columns of a term lie.
    pub(super) fn at(&self, panel: Panel, term: usize) -> usize {
        (panel.first * self.terms + term * panel.units) * UNIT
    }

    /// From (group, column, term) into panels, a group after the other.
    pub fn pack<T: Copy + Default>(&self, groups: usize, natural: &[T]) -> Vec<T> {
        let mut packed = vec![T::default(); groups * self.len()];
        self.for_places(groups, |place, within| packed[place] = natural[within]);
        packed
    }

    /// The way back from [`Panels::pack`].
    pub fn unpack(&self, groups: usize, packed: &[f32]) -> Vec<f32> {
        let mut natural = vec![0.0; groups * self.columns * self.terms];
        self.for_places(groups, |place, within| natural[within] = packed[place]);
        natural
    }

    /// What ends the chains of each column: the bias of those that count, or +0.0.
    pub(super) fn ends(&self, bias: Option<&[f32]>) -> Vec<f32> {
        let mut ends = vec![0.0; self.units * UNIT];
        if let Some(bias) = bias {
            ends[..self.columns].copy_from_slice(bias);
        }
        ends
    }

    /// Sets every column of a term of one group.
    pub(super) fn set_row(&self, packed: &mut [f32], term: usize, value: impl Fn(usize) -> f32) {
        for panel in (0..self.count()).map(|index| self.panel(index)) {
            let first = panel.first * UNIT;
            let row = &mut packed[self.at(panel, term)..][..panel.units * UNIT];
            row.iter_mut().zip(first..self.columns).for_each(|(slot, column)| *slot = value(column));
        }
    }

    /// The columns of one group, each to be read term by term.
    pub(super) fn columns_of<'a>(&self, packed: &'a [f32]) -> impl Iterator<Item = Column<'a>> + use<'a> {
        let (panels, terms) = (*self, self.terms);
        (0..self.count()).map(move |index| panels.panel(index)).flat_map(move |panel| {
            let width = panel.units * UNIT;
            let count = width.min(panels.columns - (panel.first * UNIT).min(panels.columns));
            let start = panel.first * terms * UNIT;
            (0..count).map(move |column| Column { packed: &packed[start + column..], width })
        })
    }

    /// Calls `each` with the places, in panels and in (group, column, term), of every element.
    fn for_places(&self, groups: usize, mut each: impl FnMut(usize, usize)) {
        for group in 0..groups {
            for panel in (0..self.count()).map(|index| self.panel(index)) {
                let first = panel.first * UNIT;
                let width = (panel.units * UNIT).min(self.columns - first.min(self.columns));
                // Sixteen terms of a column are adjacent in (group, column, term). Going term by term would touch another cache line,
                // and often another page, for each float.
                for start in (0..self.terms).step_by(UNIT) {
                    let terms = start..(start + UNIT).min(self.terms);
                    for column in 0..width {
                        for term in terms.clone() {
                            let place = group * self.len() + self.at(panel, term) + column;
                            each(place, (group * self.columns + first + column) * self.terms + term);
                        }
                    }
                }
            }
        }
    }
}
