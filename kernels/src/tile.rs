//! Register tiles: a few rows by a few vectors of columns. Each element is one chain of fused multiply-adds that stays in a
//! register. There are two kinds: [`Chains`], with evenly spaced rows, for outputs and input gradients; and [`Outer`], with
//! rows at arbitrary addresses and pixels as terms, for weight gradients.
//!
//! Tiles are written once over [`Vector`], and compiled for each instruction set. Not here: the order of tiles.

#![allow(
    clippy::needless_range_loop,
    reason = "loops with constant bounds are unrolled, and arrays stay in registers; an iterator's may not"
)]

use std::ops::Range;

use super::isa::Isa;
use super::vector::{Vector, prefetch};

/// Columns are counted in units of this many, so weights have the same layout for every instruction set.
pub(super) const UNIT: usize = 16;
/// The most units in a panel of columns.
pub(super) const UNITS_MAX: usize = 3;
/// Rows of the highest tile of any instruction set.
pub(super) const ROWS_MAX: usize = 14;

/// Continues the chains of a tile: `c[r][j] = chain over k of a[terms[k] + r * step] * b[k][j]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chains<'a> {
    /// Where the first row's terms are counted from.
    pub a: *const f32,
    /// Where each term lies.
    pub terms: &'a [usize],
    /// The terms that are used: `runs` runs of `run` terms. The first run begins at the first term, and each further run begins
    /// `every` terms after the previous one.
    pub run: usize,
    pub runs: usize,
    pub every: usize,
    /// For each term of a line, the rows that are not padding. Empty if no row is padding, or if this is unknown. At most
    /// [`EDGE`] rows at either end are skipped; further rows read the zeros of the padding.
    pub line: &'a [Range<usize>],
    /// The first term's columns.
    pub b: *const f32,
    /// From one term's columns to the next one's.
    pub b_step: usize,
    /// The first row's columns.
    pub c: *mut f32,
    /// From one row's columns to the next one's.
    pub c_step: usize,
    /// Whether chains continue from the values in `c`, or start from +0.0.
    pub goes_on: bool,
    /// What is added at the chains' end, one float per column; null if they aren't at their end.
    pub end: *const f32,
    /// Whether ReLU follows once the chains have ended.
    pub rectifies: bool,
    /// A unit of floats that stay zero as long as all that ends is finite.
    pub poison: *mut f32,
}

/// Continues the chains of a tile: `c[r][j] = chain over pixels of a[row r + pixel] * b[pixel][j]`, pixels ascending by (sample,
/// line, column).
#[derive(Clone, Copy, Debug)]
pub(super) struct Outer<'a> {
    /// Where rows are counted from.
    pub a: *const f32,
    /// Where each row's first pixel lies, and the row's index in `c`.
    pub rows: &'a [(usize, usize)],
    /// The first pixel's columns.
    pub b: *const f32,
    /// From one unit of a pixel's columns to the next; pixels lie [`UNIT`] apart.
    pub b_plane: usize,
    /// The pixels.
    pub pixels: Pixels,
    /// The columns of the row of index 0.
    pub c: *mut f32,
    /// From one index's columns to the next one's.
    pub c_step: usize,
    /// Whether chains continue from the values in `c`, or start from +0.0.
    pub goes_on: bool,
    /// A unit of floats that stay zero as long as all results are finite.
    pub poison: *mut f32,
}

/// The number of pixels, and their strides in both operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pixels {
    pub samples: usize,
    pub lines: usize,
    pub columns: usize,
    pub a_sample: usize,
    pub b_sample: usize,
    pub a_line: usize,
    pub b_line: usize,
    pub a_column: usize,
}

#[inline(always)]
unsafe fn chains<V: Vector, const ROWS: usize, const VECTORS: usize, const STEP: usize>(t: &Chains) {
    // SAFETY: the caller vouches for every address.
    unsafe {
        let mut sums = [[V::zero(); VECTORS]; ROWS];
        let mut results = [t.c; ROWS];
        for r in 0..ROWS {
            results[r] = t.c.wrapping_add(r * t.c_step);
        }
        if t.goes_on {
            load(&mut sums, results);
        }
        for run in 0..t.runs {
            let first = run * t.every;
            let mut b = t.b.wrapping_add(first * t.b_step);
            let terms = t.terms.get_unchecked(first..first + t.run);
            debug_assert!(t.line.is_empty() || t.run.is_multiple_of(t.line.len()), "runs of whole lines");
            if STEP == UNIT && !t.line.is_empty() {
                for line in terms.chunks_exact(t.line.len()) {
                    for (term, rows) in line.iter().zip(t.line) {
                        add_term::<V, ROWS, VECTORS, STEP>(&mut sums, t.a.add(*term), b, rows);
                        b = b.wrapping_add(t.b_step);
                    }
                }
                continue;
            }
            for term in terms {
                let a = t.a.add(*term);
                if STEP == WIDE_STEP {
                    prefetch(next_tile(a, *term, ROWS));
                }
                add_term::<V, ROWS, VECTORS, STEP>(&mut sums, a, b, &(0..ROWS));
                b = b.wrapping_add(t.b_step);
            }
        }
        if !t.end.is_null() {
            for v in 0..VECTORS {
                let end = V::load(t.end.add(v * V::LANES));
                for r in 0..ROWS {
                    sums[r][v] = sums[r][v].plus(end);
                }
            }
            poison(&sums, t.poison);
            if t.rectifies {
                for r in 0..ROWS {
                    for v in 0..VECTORS {
                        sums[r][v] = sums[r][v].rectified();
                    }
                }
            }
        }
        store(&sums, results);
    }
}

/// Rows at either end of a tile that a term may leave out, as they are padding for it; the others it takes in any case.
pub(super) const EDGE: usize = 2;

/// Adds a term to the rows of a tile.
#[inline(always)]
unsafe fn add_term<V: Vector, const ROWS: usize, const VECTORS: usize, const STEP: usize>(
    sums: &mut [[V; VECTORS]; ROWS],
    a: *const f32,
    b: *const f32,
    rows: &Range<usize>,
) {
    // SAFETY: the caller vouches for every address.
    unsafe {
        let mut columns = [V::zero(); VECTORS];
        for v in 0..VECTORS {
            columns[v] = V::load(b.add(v * V::LANES));
        }
        for r in 0..ROWS {
            if (r < EDGE && r < rows.start) || (r + EDGE >= ROWS && r >= rows.end) {
                continue;
            }
            let value = V::splat(*a.add(r * STEP));
            for v in 0..VECTORS {
                sums[r][v] = sums[r][v].add_product(value, columns[v]);
            }
        }
    }
}

/// A line of the next tile's rows, where rows are lines of weights that come from memory. The terms of a panel are neighbours. The
/// o-th term prefetches the o-th [`UNIT`] behind the last row, so that all of them are in the cache when the panel is done.
#[inline(always)]
fn next_tile(term_of_first_row: *const f32, term: usize, rows: usize) -> *const f32 {
    let within = term % WIDE_STEP;
    term_of_first_row.wrapping_sub(within).wrapping_add(rows * WIDE_STEP + within * UNIT)
}

#[inline(always)]
unsafe fn outer<V: Vector, const ROWS: usize, const VECTORS: usize>(t: &Outer) {
    // SAFETY: the caller vouches for every address.
    unsafe {
        let mut sums = [[V::zero(); VECTORS]; ROWS];
        let (mut rows, mut results) = ([t.a; ROWS], [t.c; ROWS]);
        for r in 0..ROWS {
            let (first, index) = *t.rows.get_unchecked(r);
            rows[r] = t.a.add(first);
            results[r] = t.c.add(index * t.c_step);
        }
        if t.goes_on {
            load(&mut sums, results);
        }
        let p = t.pixels;
        for sample in 0..p.samples {
            for line in 0..p.lines {
                let mut at = sample * p.a_sample + line * p.a_line;
                let mut b = t.b.add(sample * p.b_sample + line * p.b_line);
                for _ in 0..p.columns {
                    let mut columns = [V::zero(); VECTORS];
                    for v in 0..VECTORS {
                        columns[v] = V::load(b.add(v * V::LANES / UNIT * t.b_plane + v * V::LANES % UNIT));
                    }
                    for r in 0..ROWS {
                        let value = V::splat(*rows[r].add(at));
                        for v in 0..VECTORS {
                            sums[r][v] = sums[r][v].add_product(value, columns[v]);
                        }
                    }
                    at += p.a_column;
                    b = b.wrapping_add(UNIT);
                }
            }
        }
        poison(&sums, t.poison);
        store(&sums, results);
    }
}

#[inline(always)]
unsafe fn load<V: Vector, const ROWS: usize, const VECTORS: usize>(
    sums: &mut [[V; VECTORS]; ROWS],
    from: [*mut f32; ROWS],
) {
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: the caller vouches for every address.
            sums[r][v] = unsafe { V::load(from[r].add(v * V::LANES)) };
        }
    }
}

#[inline(always)]
unsafe fn store<V: Vector, const ROWS: usize, const VECTORS: usize>(sums: &[[V; VECTORS]; ROWS], to: [*mut f32; ROWS]) {
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: the caller vouches for every address.
            unsafe { sums[r][v].store(to[r].add(v * V::LANES)) };
        }
    }
}

/// Zero times a finite number is zero. Zero times anything else is NaN, which stays NaN in every later sum.
#[inline(always)]
unsafe fn poison<V: Vector, const ROWS: usize, const VECTORS: usize>(sums: &[[V; VECTORS]; ROWS], into: *mut f32) {
    // SAFETY: the caller vouches for the address.
    unsafe {
        let mut poisoned = V::load(into);
        for r in 0..ROWS {
            for v in 0..VECTORS {
                poisoned = poisoned.add_product(sums[r][v], V::zero());
            }
        }
        poisoned.store(into);
    }
}

/// Whether nothing has poisoned it.
pub(super) fn is_finite(poison: &[f32; UNIT]) -> bool {
    poison.iter().all(|lane| !lane.is_nan())
}

/// Rows of the highest [`Chains`] tile of a panel of `units`.
pub(super) fn rows_of_chains(isa: Isa, units: usize) -> usize {
    let of_units: [usize; UNITS_MAX] = match isa {
        Isa::Scalar => [4; UNITS_MAX],
        // 6 x 16 floats are 12 of 16 registers.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => [6; UNITS_MAX],
        // 28 or 27 of 32 registers.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => [14, 14, 9],
        // 6 x 16 floats are 24 of 32 registers.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => [6; UNITS_MAX],
    };
    of_units[units - 1]
}

/// Rows of the highest [`Outer`] tile of a panel of `units`.
pub(super) fn rows_of_outer(isa: Isa, units: usize) -> usize {
    let of_units: [usize; UNITS_MAX] = match isa {
        Isa::Scalar => [4; UNITS_MAX],
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => [6; UNITS_MAX],
        // More rows than 12, and their addresses no longer fit into the general registers.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => [12, 12, 8],
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => [6; UNITS_MAX],
    };
    of_units[units - 1]
}

/// From row to row where rows are those of a linear layer's weights.
const WIDE_STEP: usize = 2 * UNIT;
/// Steps from row to row that [`Chains`] is compiled for.
const STEPS: [usize; 3] = [4, UNIT, WIDE_STEP];

/// Runs a tile of `rows` rows, `step` apart, and `units` of columns.
///
/// # Panics
/// When there is no tile of this size.
///
/// # Safety
/// The terms that are taken are in `terms`, whole lines of them where `line` is given; for each such term k and row r < `rows`,
/// `a[terms[k] + r * step]`, `units * UNIT` floats from k's columns in `b` and from `c[r * c_step]`, and those from `end` if it isn't
/// null are valid, `c` and `poison` for writing too.
pub(super) unsafe fn run_chains(isa: Isa, tile: &Chains, rows: usize, units: usize, step: usize) {
    let step = STEPS.iter().position(|known| *known == step).expect("one of the steps that there are");
    // SAFETY: the caller vouches for the addresses; detection for the instruction set. Columns a unit at a time stay within
    // those of all units.
    unsafe {
        match isa {
            Isa::Scalar => chains_of_each_unit(tile, units, scalar::CHAINS[step][rows - 1]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => chains_of_each_unit(tile, units, avx2::CHAINS[step][rows - 1]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::chains(step, units)[rows - 1](tile),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => chains_of_each_unit(tile, units, neon::CHAINS[step][rows - 1]),
        }
    }
}

/// Runs a tile of all `tile.rows` and `units` of columns.
///
/// # Panics
/// When there is no tile of this size.
///
/// # Safety
/// For every pixel and row, `a[row + pixel]`, the `units` of columns of `b` and `units * UNIT` floats from the row's columns in
/// `c` are valid, `c` and `poison` for writing too.
pub(super) unsafe fn run_outer(isa: Isa, tile: &Outer, units: usize) {
    let rows = tile.rows.len();
    // SAFETY: the caller vouches for the addresses; detection for the instruction set.
    unsafe {
        match isa {
            Isa::Scalar => outer_of_each_unit(tile, units, scalar::OUTER[rows - 1]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => outer_of_each_unit(tile, units, avx2::OUTER[rows - 1]),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::outer(units)[rows - 1](tile),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => outer_of_each_unit(tile, units, neon::OUTER[rows - 1]),
        }
    }
}

/// # Safety
/// As [`run_chains`].
unsafe fn chains_of_each_unit(tile: &Chains, units: usize, run: ChainsTile) {
    for unit in 0..units {
        let first = unit * UNIT;
        let end = if tile.end.is_null() { tile.end } else { tile.end.wrapping_add(first) };
        let (b, c) = (tile.b.wrapping_add(first), tile.c.wrapping_add(first));
        // SAFETY: the caller vouches for all units.
        unsafe { run(&Chains { b, c, end, ..*tile }) }
    }
}

/// # Safety
/// As [`run_outer`].
unsafe fn outer_of_each_unit(tile: &Outer, units: usize, run: OuterTile) {
    for unit in 0..units {
        let (b, c) = (tile.b.wrapping_add(unit * tile.b_plane), tile.c.wrapping_add(unit * UNIT));
        // SAFETY: the caller vouches for all units.
        unsafe { run(&Outer { b, c, ..*tile }) }
    }
}

type ChainsTile = unsafe fn(&Chains);
type OuterTile = unsafe fn(&Outer);

/// Both kinds of tiles for one instruction set, one for each height, so that a ragged edge costs no more than its rows.
macro_rules! tiles {
    ($vector:ty, $($feature:literal)?) => {
        /// # Safety
        /// As `run_chains` and `run_outer` say; the machine has the instruction set.
        $(#[target_feature(enable = $feature)])?
        unsafe fn chains_of<const ROWS: usize, const VECTORS: usize, const STEP: usize>(tile: &Chains) {
            // SAFETY: handed on.
            unsafe { super::chains::<$vector, ROWS, VECTORS, STEP>(tile) }
        }

        /// # Safety
        /// As above.
        $(#[target_feature(enable = $feature)])?
        unsafe fn outer_of<const ROWS: usize, const VECTORS: usize>(tile: &Outer) {
            // SAFETY: handed on.
            unsafe { super::outer::<$vector, ROWS, VECTORS>(tile) }
        }
    };
}

/// An array of one tile for each height.
macro_rules! heights {
    ($tile:ident::<$vectors:literal>; $($rows:literal)*) => { [$($tile::<$rows, $vectors>),*] };
    ($tile:ident::<$vectors:literal, $step:literal>; $($rows:literal)*) => { [$($tile::<$rows, $vectors, $step>),*] };
}

mod scalar {
    use super::{Chains, ChainsTile, Outer, OuterTile};

    tiles!(f32,);
    pub(super) const CHAINS: [[ChainsTile; 4]; 3] = [
        heights!(chains_of::<16, 4>; 1 2 3 4),
        heights!(chains_of::<16, 16>; 1 2 3 4),
        heights!(chains_of::<16, 32>; 1 2 3 4),
    ];
    pub(super) const OUTER: [OuterTile; 4] = heights!(outer_of::<16>; 1 2 3 4);
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use std::arch::x86_64::__m256;

    use super::{Chains, ChainsTile, Outer, OuterTile};

    tiles!(__m256, "avx2,fma");
    pub(super) const CHAINS: [[ChainsTile; 6]; 3] = [
        heights!(chains_of::<2, 4>; 1 2 3 4 5 6),
        heights!(chains_of::<2, 16>; 1 2 3 4 5 6),
        heights!(chains_of::<2, 32>; 1 2 3 4 5 6),
    ];
    pub(super) const OUTER: [OuterTile; 6] = heights!(outer_of::<2>; 1 2 3 4 5 6);
}

#[cfg(target_arch = "aarch64")]
mod neon {
    use std::arch::aarch64::float32x4_t;

    use super::{Chains, ChainsTile, Outer, OuterTile};

    tiles!(float32x4_t, "neon");
    pub(super) const CHAINS: [[ChainsTile; 6]; 3] = [
        heights!(chains_of::<4, 4>; 1 2 3 4 5 6),
        heights!(chains_of::<4, 16>; 1 2 3 4 5 6),
        heights!(chains_of::<4, 32>; 1 2 3 4 5 6),
    ];
    pub(super) const OUTER: [OuterTile; 6] = heights!(outer_of::<4>; 1 2 3 4 5 6);
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::__m512;

    use super::{Chains, ChainsTile, Outer, OuterTile};

    tiles!(__m512, "avx512f");

    const ONE: [[ChainsTile; 14]; 3] = [
        heights!(chains_of::<1, 4>; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        heights!(chains_of::<1, 16>; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        heights!(chains_of::<1, 32>; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    ];
    const TWO: [[ChainsTile; 14]; 3] = [
        heights!(chains_of::<2, 4>; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        heights!(chains_of::<2, 16>; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
        heights!(chains_of::<2, 32>; 1 2 3 4 5 6 7 8 9 10 11 12 13 14),
    ];
    const THREE: [[ChainsTile; 9]; 3] = [
        heights!(chains_of::<3, 4>; 1 2 3 4 5 6 7 8 9),
        heights!(chains_of::<3, 16>; 1 2 3 4 5 6 7 8 9),
        heights!(chains_of::<3, 32>; 1 2 3 4 5 6 7 8 9),
    ];

    /// Tiles by height.
    pub(super) fn chains(step: usize, units: usize) -> &'static [ChainsTile] {
        match units {
            1 => &ONE[step],
            2 => &TWO[step],
            _ => &THREE[step],
        }
    }

    const OUTER_ONE: [OuterTile; 12] = heights!(outer_of::<1>; 1 2 3 4 5 6 7 8 9 10 11 12);
    const OUTER_TWO: [OuterTile; 12] = heights!(outer_of::<2>; 1 2 3 4 5 6 7 8 9 10 11 12);
    const OUTER_THREE: [OuterTile; 8] = heights!(outer_of::<3>; 1 2 3 4 5 6 7 8);

    /// Tiles by height.
    pub(super) fn outer(units: usize) -> &'static [OuterTile] {
        match units {
            1 => &OUTER_ONE,
            2 => &OUTER_TWO,
            _ => &OUTER_THREE,
        }
    }
}
