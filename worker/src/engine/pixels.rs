//! Images as they travel, bytes (sample, channel, row, column), into what the first layer reads: normalised floats
//! (sample, row, column, channel), by a table of 256 values a channel.

use convoy_common::model::{Input, Shape};

/// The tables of a model's input.
#[derive(Debug)]
pub(super) struct Pixels {
    shape: Shape,
    /// A channel each: the float of each byte.
    tables: Vec<[f32; 256]>,
}

impl Pixels {
    pub(super) fn new(input: &Input) -> Self {
        let table = |(mean, std): (&f64, &f64)| std::array::from_fn(|byte| ((byte as f64 / 255.0 - mean) / std) as f32);
        Self { shape: input.shape, tables: input.mean.iter().zip(&input.std).map(table).collect() }
    }

    /// `floats` is as long as `bytes`.
    pub(super) fn normalise(&self, bytes: &[u8], floats: &mut [f32]) {
        let (channels, pixels) = (self.shape.channels, self.shape.pixels());
        for (image, out) in bytes.chunks_exact(self.shape.len()).zip(floats.chunks_exact_mut(self.shape.len())) {
            for (channel, (map, table)) in image.chunks_exact(pixels).zip(&self.tables).enumerate() {
                for (pixel, byte) in map.iter().enumerate() {
                    out[pixel * channels + channel] = table[usize::from(*byte)];
                }
            }
        }
    }
}
