//! The matrix engine: `c[row][column] = chain over terms of a[row][term] * b[term][column]`, going on from what is in `c`.
//!
//! Rows and terms of `a` are given by offsets into one slice, so that a convolution's patches need not be copied: row r's
//! term k is `a[rows[r] + terms[k]]`. A vector lies over columns; each element of `c` is one chain of fused multiply-adds in
//! the order of `terms`, whatever the blocking. Not here: what the matrices mean.

use super::Compute;
use super::isa::Isa;

/// Rows of a register tile: 6 x 16 floats are 12 of AVX2's 16 registers.
pub const TILE_ROWS: usize = 6;
/// Columns of a register tile, and of a panel of `b`.
pub const PANEL: usize = 16;
/// Terms taken at once: a block of a panel is 16 KiB, half of a first-level cache.
const BLOCK_TERMS: usize = 256;

/// The left operand, by offsets.
#[derive(Clone, Copy, Debug)]
pub struct Left<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// Where each row starts.
    pub rows: &'a [usize],
    /// Where each term lies from its row's start.
    pub terms: &'a [usize],
}

/// The right operand: term k of column `p * PANEL + j` is `data[p * panel_stride + k * term_stride + j]`.
#[derive(Clone, Copy, Debug)]
pub struct Right<'a> {
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
    pub fn natural(data: &'a [f32], columns: usize, term_stride: usize) -> Self {
        Self { data, columns, term_stride, panel_stride: PANEL }
    }

    /// Panels made by [`pack`].
    pub fn packed(data: &'a [f32], columns: usize, terms: usize) -> Self {
        Self { data, columns, term_stride: PANEL, panel_stride: terms * PANEL }
    }
}

/// Lays a matrix out in panels of [`PANEL`] columns, zeros where the last panel has fewer: (panel, term, column).
pub fn pack(terms: usize, columns: usize, element: impl Fn(usize, usize) -> f32) -> Vec<f32> {
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
pub struct Target {
    /// From one row to the next.
    pub stride: usize,
    /// Column at which the result starts.
    pub first: usize,
}

/// Adds the product to `c`, divided over rows among the pool's threads.
///
/// # Panics
/// When an offset leads out of its slice.
pub fn accumulate(compute: &Compute, left: Left, right: Right, c: &mut [f32], target: Target) {
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
    if left.rows.is_empty() || left.terms.is_empty() || right.columns == 0 {
        return;
    }
    assert!(last(left.rows) + last(left.terms) < left.data.len(), "a row of a leads out of its slice");
    let panels = right.columns.div_ceil(PANEL);
    let width = right.columns - (panels - 1) * PANEL;
    let end = (panels - 1) * right.panel_stride + (left.terms.len() - 1) * right.term_stride + width;
    assert!(end <= right.data.len(), "the last panel of b leads out of its slice");
    if panels > 1 {
        let end = (panels - 2) * right.panel_stride + (left.terms.len() - 1) * right.term_stride + PANEL;
        assert!(end <= right.data.len(), "a panel of b leads out of its slice");
    }
}

fn accumulate_rows(isa: Isa, left: Left, right: Right, c: &mut [f32], target: Target) {
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
            for (tile, rows) in left.rows.chunks(TILE_ROWS).enumerate() {
                let at = tile * TILE_ROWS * target.stride + target.first + panel * PANEL;
                let place = Place { stride: target.stride, rows: rows.len(), width };
                tile_of(isa, Left { rows, terms, ..left }, b, &mut c[at..], place);
            }
        }
    }
}

/// A block of a panel of `b`, 16 floats readable at every term.
#[derive(Clone, Copy)]
struct Block<'a> {
    data: &'a [f32],
    stride: usize,
}

/// Copies a panel that ends within its slice, so that whole vectors can be read.
fn widen<'s>(b: &[f32], stride: usize, width: usize, terms: usize, scratch: &'s mut [f32]) -> Block<'s> {
    for (term, row) in scratch.chunks_exact_mut(PANEL).take(terms).enumerate() {
        row[..width].copy_from_slice(&b[term * stride..term * stride + width]);
    }
    Block { data: scratch, stride: PANEL }
}

/// How much of a tile lies in `c`.
#[derive(Clone, Copy)]
struct Place {
    stride: usize,
    rows: usize,
    width: usize,
}

/// One tile: whole ones in place, ragged ones by way of a buffer.
fn tile_of(isa: Isa, left: Left, b: Block, c: &mut [f32], place: Place) {
    let mut starts = [*left.rows.last().expect("a tile has a row"); TILE_ROWS];
    starts[..left.rows.len()].copy_from_slice(left.rows);
    if place.rows == TILE_ROWS && place.width == PANEL {
        return tile(isa, &left, &starts, b, c, place.stride);
    }
    let mut buffer = [0.0; TILE_ROWS * PANEL];
    for row in 0..place.rows {
        buffer[row * PANEL..][..place.width].copy_from_slice(&c[row * place.stride..][..place.width]);
    }
    tile(isa, &left, &starts, b, &mut buffer, PANEL);
    for row in 0..place.rows {
        c[row * place.stride..][..place.width].copy_from_slice(&buffer[row * PANEL..][..place.width]);
    }
}

fn tile(isa: Isa, left: &Left, starts: &[usize; TILE_ROWS], b: Block, c: &mut [f32], stride: usize) {
    assert!((TILE_ROWS - 1) * stride + PANEL <= c.len(), "a tile leads out of c");
    match isa {
        Isa::Scalar => tile_scalar(left, starts, b, c, stride),
        // SAFETY: Isa::Avx2 exists only where avx2 and fma do. `check` has bounded every offset into a, the caller every
        // offset into b, and the assertion above every offset into c.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe {
            tile_avx2(left.data.as_ptr(), starts, left.terms, b.data.as_ptr(), b.stride, c.as_mut_ptr(), stride);
        },
    }
}

fn tile_scalar(left: &Left, starts: &[usize; TILE_ROWS], b: Block, c: &mut [f32], stride: usize) {
    for (row, start) in starts.iter().enumerate() {
        let c = &mut c[row * stride..][..PANEL];
        for (k, term) in left.terms.iter().enumerate() {
            let a = left.data[start + term];
            for (sum, b) in c.iter_mut().zip(&b.data[k * b.stride..][..PANEL]) {
                *sum = a.mul_add(*b, *sum);
            }
        }
    }
}

/// # Safety
/// The machine has avx2 and fma; `a + starts[r] + terms[k]`, `b + k * b_stride + 0..16` and `c + r * c_stride + 0..16` are
/// valid for every row and term, and `c` overlaps neither `a` nor `b`.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_avx2(
    a: *const f32,
    starts: &[usize; TILE_ROWS],
    terms: &[usize],
    b: *const f32,
    b_stride: usize,
    c: *mut f32,
    c_stride: usize,
) {
    use std::arch::x86_64::{
        _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps,
    };
    // SAFETY: the caller vouches for every address; see above.
    unsafe {
        let rows: [*const f32; TILE_ROWS] = starts.map(|start| a.add(start));
        let mut sums = [[_mm256_setzero_ps(); 2]; TILE_ROWS];
        for (r, sum) in sums.iter_mut().enumerate() {
            *sum = [_mm256_loadu_ps(c.add(r * c_stride)), _mm256_loadu_ps(c.add(r * c_stride + 8))];
        }
        let mut b = b;
        for term in terms {
            let (b0, b1) = (_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8)));
            for r in 0..TILE_ROWS {
                let a = _mm256_broadcast_ss(&*rows[r].add(*term));
                sums[r][0] = _mm256_fmadd_ps(a, b0, sums[r][0]);
                sums[r][1] = _mm256_fmadd_ps(a, b1, sums[r][1]);
            }
            b = b.wrapping_add(b_stride);
        }
        for (r, sum) in sums.iter().enumerate() {
            _mm256_storeu_ps(c.add(r * c_stride), sum[0]);
            _mm256_storeu_ps(c.add(r * c_stride + 8), sum[1]);
        }
    }
}
