//! Decoded images: rows of pixels, with the channels of a pixel next to each other.
//!
//! Not here: decoding (`decode`), scaling (`scale`).

/// An image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pixels {
    width: usize,
    height: usize,
    /// 1 for grey, 3 for red, green and blue.
    channels: usize,
    bytes: Vec<u8>,
}

impl Pixels {
    /// None if there are no pixels, or if the bytes are not those of so many.
    pub(crate) fn new(width: usize, height: usize, channels: usize, bytes: Vec<u8>) -> Option<Self> {
        let is_whole = !bytes.is_empty() && bytes.len() == width * height * channels;
        is_whole.then_some(Self { width, height, channels, bytes })
    }

    /// Width in pixels, at least 1.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Height in pixels, at least 1.
    pub(crate) fn height(&self) -> usize {
        self.height
    }

    /// Number of channels: 1 or 3.
    pub(crate) fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes: (row, column, channel).
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// An image of other extents, each of whose pixels is the one that `stored` names, by row and column.
    ///
    /// # Panics
    /// If there is no such pixel.
    pub(crate) fn moved(&self, width: usize, height: usize, stored: impl Fn(usize, usize) -> (usize, usize)) -> Self {
        let mut bytes = Vec::with_capacity(width * height * self.channels);
        for row in 0..height {
            for column in 0..width {
                let (row, column) = stored(row, column);
                bytes.extend_from_slice(&self.bytes[(row * self.width + column) * self.channels..][..self.channels]);
            }
        }
        Self { width, height, channels: self.channels, bytes }
    }

    /// The same image in grey or in colour. Grey is Pillow's: ITU-R BT.601 luma, as integers.
    pub(crate) fn with_channels(self, channels: usize) -> Self {
        let bytes = match (self.channels, channels) {
            (1, 3) => self.bytes.iter().flat_map(|grey| [*grey; 3]).collect(),
            (3, 1) => self.bytes.chunks_exact(3).map(|pixel| luma([pixel[0], pixel[1], pixel[2]])).collect(),
            _ => return self,
        };
        Self { channels, bytes, ..self }
    }
}

/// The brightness of a pixel, with weights in units of 2^-16 that add up to 1, rounded.
fn luma([red, green, blue]: [u8; 3]) -> u8 {
    ((u32::from(red) * 19_595 + u32::from(green) * 38_470 + u32::from(blue) * 7_471 + 0x8000) >> 16) as u8
}
