//! Vectors for register tiles: load, store, multiply and add a vector of floats, lane by lane, on each instruction set.
//!
//! Not here: tiles (`tile`), and anything that crosses lanes.

/// A vector of `LANES` floats. Every operation rounds each lane as IEEE 754 does, so that all vectors give the same bits.
///
/// # Safety
/// The methods run only on a machine that has the instruction set, within a function that enables it; pointers are valid
/// for `LANES` floats.
pub(super) trait Vector: Copy {
    /// Floats in a vector: 16 or a divisor of it.
    const LANES: usize;
    /// +0.0 in each lane.
    unsafe fn zero() -> Self;
    /// `value` in each lane.
    unsafe fn splat(value: f32) -> Self;
    /// The floats from `at` on.
    unsafe fn load(at: *const f32) -> Self;
    /// Writes the floats from `at` on.
    unsafe fn store(self, at: *mut f32);
    /// `fma(a, b, self)`.
    unsafe fn add_product(self, a: Self, b: Self) -> Self;
    /// `self + other`.
    unsafe fn plus(self, other: Self) -> Self;
    /// +0.0 for what is zero or less; a NaN stays.
    unsafe fn rectified(self) -> Self;
}

/// Plain Rust, a float at a time.
impl Vector for f32 {
    const LANES: usize = 1;
    #[inline(always)]
    unsafe fn zero() -> Self {
        0.0
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        value
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self {
        // SAFETY: the caller vouches for the address.
        unsafe { *at }
    }
    #[inline(always)]
    unsafe fn store(self, at: *mut f32) {
        // SAFETY: the caller vouches for the address.
        unsafe { *at = self }
    }
    #[inline(always)]
    unsafe fn add_product(self, a: Self, b: Self) -> Self {
        a.mul_add(b, self)
    }
    #[inline(always)]
    unsafe fn plus(self, other: Self) -> Self {
        self + other
    }
    #[inline(always)]
    unsafe fn rectified(self) -> Self {
        if self <= 0.0 { 0.0 } else { self }
    }
}

/// A vector type whose operations are one intrinsic each.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! vector {
    ($type:ty, $lanes:literal, $splat:ident, $load:ident, $store:ident, |$sum:ident, $a:ident, $b:ident| $fma:expr, $add:ident, $max:ident) => {
        impl Vector for $type {
            const LANES: usize = $lanes;
            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: as the trait says, the machine has the instruction.
                unsafe { $splat(0.0) }
            }
            #[inline(always)]
            unsafe fn splat(value: f32) -> Self {
                // SAFETY: as the trait says, the machine has the instruction.
                unsafe { $splat(value) }
            }
            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self {
                // SAFETY: likewise, and the caller vouches for the address.
                unsafe { $load(at) }
            }
            #[inline(always)]
            unsafe fn store(self, at: *mut f32) {
                // SAFETY: likewise, and the caller vouches for the address.
                unsafe { $store(at, self) }
            }
            #[inline(always)]
            unsafe fn add_product(self, $a: Self, $b: Self) -> Self {
                let $sum = self;
                // SAFETY: as the trait says, the machine has the instruction.
                unsafe { $fma }
            }
            #[inline(always)]
            unsafe fn plus(self, other: Self) -> Self {
                // SAFETY: as the trait says, the machine has the instruction.
                unsafe { $add(self, other) }
            }
            #[inline(always)]
            unsafe fn rectified(self) -> Self {
                // SAFETY: as the trait says, the machine has the instruction. x86 takes the second of a zero and a NaN, and of
                // two zeros: a NaN stays, and -0.0 does until +0.0 is added. Arm's keeps a NaN, and takes the +0.0 of two zeros.
                unsafe { $add($max($splat(0.0), self), $splat(0.0)) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::Vector;

    vector!(
        __m256,
        8,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        |sum, a, b| _mm256_fmadd_ps(a, b, sum),
        _mm256_add_ps,
        _mm256_max_ps
    );
    vector!(
        __m512,
        16,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        |sum, a, b| _mm512_fmadd_ps(a, b, sum),
        _mm512_add_ps,
        _mm512_max_ps
    );
}

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::Vector;

    vector!(float32x4_t, 4, vdupq_n_f32, vld1q_f32, vst1q_f32, |sum, a, b| vfmaq_f32(sum, a, b), vaddq_f32, vmaxq_f32);
}

/// Asks for the line of the cache that holds `at`, which may lie anywhere.
#[inline(always)]
pub(super) fn prefetch(at: *const f32) {
    // SAFETY: a prefetch reads nothing that could fault.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
