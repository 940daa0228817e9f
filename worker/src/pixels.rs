//! Converts images from bytes (sample, channel, row, column), as they are sent, to normalised floats (sample, row, column,
//! channel), as the first layer reads them. A table per channel holds the 256 possible values.

use convoy_common::model::{Input, Shape};

/// The lookup tables of a model's input.
#[derive(Debug)]
pub(crate) struct Pixels {
    shape: Shape,
    /// For each channel, the float of each byte.
    tables: Vec<[f32; 256]>,
}

impl Pixels {
    pub(crate) fn new(input: &Input) -> Self {
        let table = |(mean, std): (&f64, &f64)| std::array::from_fn(|byte| ((byte as f64 / 255.0 - mean) / std) as f32);
        Self { shape: input.shape, tables: input.mean.iter().zip(&input.std).map(table).collect() }
    }

    /// Converts whole images. `floats` is as long as `bytes`.
    pub(crate) fn normalise(&self, bytes: &[u8], floats: &mut [f32]) {
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
