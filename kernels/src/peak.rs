//! Measures the peak rate of multiply-adds on a core, with a loop that touches no memory. Kernels are compared with it.

use std::hint::black_box;
use std::time::Instant;

use super::isa::Isa;
use super::vector::Vector;

/// Chains side by side: more than a multiply-add's latency times those that begin in a cycle, on any CPU of today.
const CHAINS: usize = 12;
/// Multiply-adds of each chain in one measurement: some milliseconds.
const ROUNDS: usize = 1 << 20;

/// GFLOP/s of one core under `isa`, a multiply-add counting as two.
pub fn measured(isa: Isa) -> f64 {
    let began = Instant::now();
    let lanes = match isa {
        Isa::Scalar => scalar(black_box(1.0)),
        // SAFETY: Isa::Avx2 exists only where avx2 and fma do.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => unsafe { x86::avx2(black_box(1.0)) },
        // SAFETY: Isa::Avx512 exists only where avx512f does.
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => unsafe { x86::avx512(black_box(1.0)) },
        // SAFETY: Isa::Neon exists only where neon does.
        #[cfg(target_arch = "aarch64")]
        Isa::Neon => unsafe { neon(black_box(1.0)) },
    };
    (2 * lanes * CHAINS * ROUNDS) as f64 / began.elapsed().as_secs_f64() / 1e9
}

/// # Safety
/// As [`Vector`] says.
#[inline(always)]
unsafe fn run<V: Vector>(value: f32) -> usize {
    // SAFETY: handed on; the buffer holds a vector.
    unsafe {
        let factor = V::splat(value);
        let mut sums = [V::zero(); CHAINS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = sum.add_product(factor, factor);
            }
        }
        let mut buffer = [0.0; 16];
        for sum in sums {
            sum.store(buffer.as_mut_ptr());
            black_box(&buffer);
        }
    }
    V::LANES
}

fn scalar(value: f32) -> usize {
    // SAFETY: plain floats need no instruction set.
    unsafe { run::<f32>(value) }
}

/// # Safety
/// The machine has the instruction set.
#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
unsafe fn neon(value: f32) -> usize {
    // SAFETY: handed on.
    unsafe { run::<std::arch::aarch64::float32x4_t>(value) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{__m256, __m512};

    /// # Safety
    /// The machine has the instruction set.
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn avx2(value: f32) -> usize {
        // SAFETY: handed on.
        unsafe { super::run::<__m256>(value) }
    }

    /// # Safety
    /// The machine has the instruction set.
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn avx512(value: f32) -> usize {
        // SAFETY: handed on.
        unsafe { super::run::<__m512>(value) }
    }
}
