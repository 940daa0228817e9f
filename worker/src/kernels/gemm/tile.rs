//! Register tiles: a few rows by one panel of columns, each element of `c` one chain that stays in a register over a block
//! of terms. One tile an instruction set, all equal to [`scalar`] to the bit. Not here: which tile comes when.

use super::super::isa::Isa;
use super::{Left, PANEL};

/// Rows of the highest tile of any instruction set.
pub(super) const MOST_ROWS: usize = 10;
/// 6 x 16 floats are 12 of AVX2's 16 registers.
const AVX2_ROWS: usize = 6;
/// 10 x 16 floats are 10 of AVX-512's 32 registers, and hide the latency of two multiply-adds a cycle; with more rows
/// their addresses would no longer fit into the 15 general registers.
const AVX512_ROWS: usize = MOST_ROWS;

/// A block of a panel of `b`, 16 floats readable at every term.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub(super) data: &'a [f32],
    pub(super) stride: usize,
}

/// Rows of `isa`'s tile.
pub(crate) fn rows_of(isa: Isa) -> usize {
    match isa {
        Isa::Scalar => AVX2_ROWS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => AVX2_ROWS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => AVX512_ROWS,
    }
}

/// Goes on with the chains of one tile: all of `left`'s rows, at most [`rows_of`], by 16 columns, whose rows lie `stride`
/// apart in `c`.
///
/// # Panics
/// When the tile leads out of `c` or `b`.
///
/// # Safety
/// The sum of each row's and each term's offset lies within `left`'s data.
pub(super) unsafe fn go_on(isa: Isa, left: &Left, b: Block, c: &mut [f32], stride: usize) {
    let rows = left.rows.len();
    let within = |steps: usize, stride: usize, length: usize| {
        steps.checked_mul(stride).and_then(|start| start.checked_add(PANEL)).is_some_and(|end| end <= length)
    };
    assert!(within(rows - 1, stride, c.len()), "a tile leads out of c");
    assert!(within(left.terms.len() - 1, b.stride, b.data.len()), "a tile leads out of b");
    match isa {
        Isa::Scalar => scalar(left, b, c, stride),
        // SAFETY: Isa::Avx2 exists only where avx2 and fma do. The caller vouches for every offset into a, the
        // assertions above for every offset into b and c.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::AVX2[rows - 1](left, b, c.as_mut_ptr(), stride) },
        // SAFETY: Isa::Avx512 exists only where avx512f does; the offsets as above.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::AVX512[rows - 1](left, b, c.as_mut_ptr(), stride) },
    }
}

fn scalar(left: &Left, b: Block, c: &mut [f32], stride: usize) {
    for (row, start) in left.rows.iter().enumerate() {
        let c = &mut c[row * stride..][..PANEL];
        for (k, term) in left.terms.iter().enumerate() {
            let a = left.data[start + term];
            for (sum, b) in c.iter_mut().zip(&b.data[k * b.stride..][..PANEL]) {
                *sum = a.mul_add(*b, *sum);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{
        _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps, _mm256_storeu_ps, _mm512_fmadd_ps,
        _mm512_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps,
    };
    use std::array::from_fn;

    use super::{AVX2_ROWS, AVX512_ROWS, Block, Left};

    /// # Safety
    /// The machine has the instruction set; `rows[r] + terms[k]` of `left`, `k * b.stride + 0..16` of `b` and
    /// `r * stride + 0..16` of `c` are valid for every term k and for as many rows r as the tile is high.
    type Tile = unsafe fn(left: &Left, b: Block, c: *mut f32, stride: usize);

    /// One a height, so that a ragged edge costs no more than its rows.
    pub(super) const AVX2: [Tile; AVX2_ROWS] = [avx2::<1>, avx2::<2>, avx2::<3>, avx2::<4>, avx2::<5>, avx2::<6>];
    /// Likewise.
    pub(super) const AVX512: [Tile; AVX512_ROWS] = [
        avx512::<1>,
        avx512::<2>,
        avx512::<3>,
        avx512::<4>,
        avx512::<5>,
        avx512::<6>,
        avx512::<7>,
        avx512::<8>,
        avx512::<9>,
        avx512::<10>,
    ];

    /// # Safety
    /// See [`Tile`].
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const ROWS: usize>(left: &Left, b: Block, c: *mut f32, stride: usize) {
        // SAFETY: the caller vouches for every address; the last step of `b` isn't read.
        unsafe {
            let rows: [*const f32; ROWS] = from_fn(|r| left.data.as_ptr().add(*left.rows.get_unchecked(r)));
            let mut sums = [[_mm256_setzero_ps(); 2]; ROWS];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = [_mm256_loadu_ps(c.add(r * stride)), _mm256_loadu_ps(c.add(r * stride + 8))];
            }
            let mut at = b.data.as_ptr();
            for term in left.terms {
                let (b0, b1) = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8)));
                for r in 0..ROWS {
                    let a = _mm256_broadcast_ss(&*rows[r].add(*term));
                    sums[r][0] = _mm256_fmadd_ps(a, b0, sums[r][0]);
                    sums[r][1] = _mm256_fmadd_ps(a, b1, sums[r][1]);
                }
                at = at.wrapping_add(b.stride);
            }
            for (r, sum) in sums.iter().enumerate() {
                _mm256_storeu_ps(c.add(r * stride), sum[0]);
                _mm256_storeu_ps(c.add(r * stride + 8), sum[1]);
            }
        }
    }

    /// # Safety
    /// See [`Tile`].
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const ROWS: usize>(left: &Left, b: Block, c: *mut f32, stride: usize) {
        // SAFETY: the caller vouches for every address; the last step of `b` isn't read.
        unsafe {
            let rows: [*const f32; ROWS] = from_fn(|r| left.data.as_ptr().add(*left.rows.get_unchecked(r)));
            let mut sums = [_mm512_setzero_ps(); ROWS];
            for (r, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_loadu_ps(c.add(r * stride));
            }
            let mut at = b.data.as_ptr();
            for term in left.terms {
                let b0 = _mm512_loadu_ps(at);
                for r in 0..ROWS {
                    sums[r] = _mm512_fmadd_ps(_mm512_set1_ps(*rows[r].add(*term)), b0, sums[r]);
                }
                at = at.wrapping_add(b.stride);
            }
            for (r, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(c.add(r * stride), *sum);
            }
        }
    }
}
