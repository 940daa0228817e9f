//! Pictures made of pixels, as PNG in the page itself.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::svg::escaped;

/// A picture.
#[derive(Clone, Debug)]
pub struct Raster {
    width: usize,
    height: usize,
    /// Red, green and blue of each pixel.
    pixels: Vec<u8>,
}

impl Raster {
    /// A picture whose pixel in each row and column has the colour that `of` says.
    pub fn of(width: usize, height: usize, of: impl Fn(usize, usize) -> [u8; 3]) -> Self {
        let pixels = (0..width * height).flat_map(|index| of(index / width, index % width)).collect();
        Self { width, height, pixels }
    }

    /// The element, `shown` pixels wide. Empty if the picture is.
    pub fn image(&self, about: &str, shown: usize) -> String {
        let Some(bytes) = self.png() else { return String::new() };
        let (about, data) = (escaped(about), STANDARD.encode(bytes));
        format!("<img class=\"pixels\" width=\"{shown}\" alt=\"{about}\" src=\"data:image/png;base64,{data}\">")
    }

    /// The file. None if there are no pixels.
    fn png(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::new();
        let (width, height) = (u32::try_from(self.width).ok()?, u32::try_from(self.height).ok()?);
        let mut encoder = png::Encoder::new(&mut bytes, width, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.write_header().ok()?.write_image_data(&self.pixels).ok()?;
        Some(bytes)
    }
}

/// The colour of a value between -1 (blue) and 1 (orange); 0 is white.
pub fn diverging(value: f64) -> [u8; 3] {
    let end = if value < 0.0 { [0.0, 114.0, 178.0] } else { [213.0, 94.0, 0.0] };
    let share = value.abs().min(1.0);
    end.map(|end| libm::round(255.0 + (end - 255.0) * share) as u8)
}
