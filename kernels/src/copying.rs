//! Measures the memory bandwidth of a core, by copying buffers larger than its caches. Passes without products are compared
//! with it.

use std::hint::black_box;
use std::time::Instant;

/// Floats of each buffer: two of them are far larger than any cache that a core has for itself.
const FLOATS: usize = 8 << 20;
/// Copies of one measurement: some milliseconds each.
const ROUNDS: usize = 4;

/// The buffers of one thread, which are touched before anything is timed.
pub struct Copying {
    from: Vec<f32>,
    to: Vec<f32>,
}

#[expect(clippy::new_without_default, reason = "it allocates megabytes, which a default shouldn't")]
impl Copying {
    /// Buffers that are longer than a core's caches.
    pub fn new() -> Self {
        Self { from: vec![1.0; FLOATS], to: vec![2.0; FLOATS] }
    }

    /// GB/s of this thread, bytes read and bytes written both counted.
    pub fn measured(&mut self) -> f64 {
        let began = Instant::now();
        for _ in 0..ROUNDS {
            self.to.copy_from_slice(black_box(&self.from));
            black_box(&mut self.to);
        }
        (2 * ROUNDS * FLOATS * size_of::<f32>()) as f64 / began.elapsed().as_secs_f64() / 1e9
    }
}
