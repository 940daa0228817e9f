//! The matrix engine: `c[row][column] = chain over terms of a[row][term] * b[term][column]`, going on from what is in `c`.
//!
//! Rows and terms of `a` are given by offsets into one slice, so that a convolution's patches need not be copied: row r's
//! term k is `a[rows[r] + terms[k]]`. A vector lies over columns; each element of `c` is one chain of fused multiply-adds in
//! the order of `terms`, whatever the blocking. Not here: what the matrices mean.

mod tile;

use super::Compute;
use super::isa::Isa;
use tile::Block;
pub(super) use tile::rows_of as tile_rows;

/// Columns of a register tile, and of a panel of `b`.
pub(crate) const PANEL: usize = 16;
/// Terms taken at once: a block of a panel is 16 KiB, half of a first-level cache.
const BLOCK_TERMS: usize = 256;

/// The left operand, by offsets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Where each row starts.
    pub rows: &'a [usize],
    /// Where each term lies from its row's start.
    pub terms: &'a [usize],
}

/// The right operand: term k of column `p * PANEL + j` is `data[p * panel_stride + k * term_stride + j]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Right<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Columns that count.
    pub columns: usize,
    /// From one term to the next.
    pub term_stride: usize,
    /// From one panel of columns to the next.
    pub panel_stride: usize,
}

impl<'a> Right<'a> {
    /// A matrix as it lies in memory, (term, column), of which `columns` from the start of `data` count.
    pub(crate) fn natural(data: &'a [f32], columns: usize, term_stride: usize) -> Self {
        Self { data, columns, term_stride, panel_stride: PANEL }
    }

    /// Panels made by [`pack`].
    pub(crate) fn packed(data: &'a [f32], columns: usize, terms: usize) -> Self {
        Self { data, columns, term_stride: PANEL, panel_stride: terms * PANEL }
    }
}

/// Lays a matrix out in panels of [`PANEL`] columns, zeros where the last panel has fewer: (panel, term, column).
pub(crate) fn pack(terms: usize, columns: usize, element: impl Fn(usize, usize) -> f32) -> Vec<f32> {
    let mut packed = vec![0.0; columns.div_ceil(PANEL) * terms * PANEL];
    for (panel, part) in packed.chunks_exact_mut((terms * PANEL).max(1)).enumerate() {
        let first = panel * PANEL;
        let width = PANEL.min(columns - first);
        for (term, row) in part.chunks_exact_mut(PANEL).enumerate() {
            for (j, slot) in row[..width].iter_mut().enumerate() {
                *slot = element(term, first + j);
            }
        }
    }
    packed
}

/// Where the result goes: row r's columns start at `c[r * stride + first]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    /// From one row to the next.
    pub stride: usize,
    /// Column at which the result starts.
    pub first: usize,
}

/// Adds the product to `c`, divided over rows among the pool's threads.
///
/// # Panics
/// When an offset leads out of its slice.
pub(crate) fn accumulate(compute: &Compute, left: Left, right: Right, c: &mut [f32], target: Target) {
    check(&left, &right);
    assert!(target.first + right.columns <= target.stride, "columns beyond a row of c");
    assert_eq!(c.len(), left.rows.len() * target.stride, "c has another number of rows");
    compute.for_rows(c, left.rows.len(), |range, part| {
        let left = Left { rows: &left.rows[range], ..left };
        accumulate_rows(compute.isa, left, right, part, target);
    });
}

/// Every access of every tile lies within these bounds.
fn check(left: &Left, right: &Right) {
    let last = |offsets: &[usize]| offsets.iter().max().copied().unwrap_or(0);
    let within = |end: Option<usize>, length: usize| end.is_some_and(|end| end <= length);
    if left.rows.is_empty() || left.terms.is_empty() || right.columns == 0 {
        return;
    }
    let end = last(left.rows).checked_add(last(left.terms)).and_then(|last| last.checked_add(1));
    assert!(within(end, left.data.len()), "a row of a leads out of its slice");
    let panels = right.columns.div_ceil(PANEL);
    let width = right.columns - (panels - 1) * PANEL;
    let end = |panel: usize, width: usize| {
        let term = (left.terms.len() - 1).checked_mul(right.term_stride)?;
        panel.checked_mul(right.panel_stride)?.checked_add(term)?.checked_add(width)
    };
    assert!(within(end(panels - 1, width), right.data.len()), "the last panel of b leads out of its slice");
    assert!(panels == 1 || within(end(panels - 2, PANEL), right.data.len()), "a panel of b leads out of its slice");
}

fn accumulate_rows(isa: Isa, left: Left, right: Right, c: &mut [f32], target: Target) {
    let height = tile::rows_of(isa);
    let mut narrow = vec![0.0; BLOCK_TERMS * PANEL];
    for panel in 0..right.columns.div_ceil(PANEL) {
        let width = PANEL.min(right.columns - panel * PANEL);
        for (block, terms) in left.terms.chunks(BLOCK_TERMS).enumerate() {
            let start = panel * right.panel_stride + block * BLOCK_TERMS * right.term_stride;
            let b = &right.data[start..];
            let whole = width == PANEL || b.len() >= (terms.len() - 1) * right.term_stride + PANEL;
            let b = if whole {
                Block { data: b, stride: right.term_stride }
            } else {
                widen(b, right.term_stride, width, terms.len(), &mut narrow)
            };
            for (index, rows) in left.rows.chunks(height).enumerate() {
                let at = index * height * target.stride + target.first + panel * PANEL;
                let place = Place { stride: target.stride, width };
                tile_of(isa, &Left { rows, terms, ..left }, b, &mut c[at..], place);
            }
        }
    }
}

/// Copies a panel whose last vector would reach beyond its slice, so that whole vectors can be read.
fn widen<'s>(b: &[f32], stride: usize, width: usize, terms: usize, scratch: &'s mut [f32]) -> Block<'s> {
    for (term, row) in scratch.chunks_exact_mut(PANEL).take(terms).enumerate() {
        row[..width].copy_from_slice(&b[term * stride..term * stride + width]);
    }
    Block { data: scratch, stride: PANEL }
}

/// Where a tile lies in `c`.
#[derive(Clone, Copy)]
struct Place {
    /// From one row to the next.
    stride: usize,
    /// Columns that count.
    width: usize,
}

/// One tile: whole panels in place, narrow ones by way of a buffer.
fn tile_of(isa: Isa, left: &Left, b: Block, c: &mut [f32], place: Place) {
    if place.width == PANEL {
        // SAFETY: `check` has bounded the sum of every row's and term's offset.
        return unsafe { tile::go_on(isa, left, b, c, place.stride) };
    }
    let mut buffer = [0.0; tile::MOST_ROWS * PANEL];
    for row in 0..left.rows.len() {
        buffer[row * PANEL..][..place.width].copy_from_slice(&c[row * place.stride..][..place.width]);
    }
    // SAFETY: as above.
    unsafe { tile::go_on(isa, left, b, &mut buffer, PANEL) };
    for row in 0..left.rows.len() {
        c[row * place.stride..][..place.width].copy_from_slice(&buffer[row * PANEL..][..place.width]);
    }
}
