//! Pictures of the filters of a convolution.

use crate::raster::Raster;

/// Filters in a row of a picture.
const COLUMNS: usize = 16;

/// The width on a page of a picture of `count` filters, if that of a full row is `row`.
pub fn shown(count: usize, row: usize) -> usize {
    row * count.clamp(1, COLUMNS) / COLUMNS
}

/// Some filters of a layer with this shape (filter, channel, row, column), as tiles with lines between them. `weight` is between -1 (black)
/// and 1 (white); 0 is grey. Three channels are red, green and blue. Of other numbers, the first channel is shown.
pub fn tiles(
    [_, channels, height, width]: [usize; 4],
    filters: &[usize],
    weight: impl Fn(usize, usize, usize, usize) -> f64,
) -> Raster {
    let columns = filters.len().clamp(1, COLUMNS);
    let rows = filters.len().div_ceil(columns);
    Raster::of(columns * (width + 1), rows * (height + 1), |row, column| {
        let (y, x) = (row % (height + 1), column % (width + 1));
        let place = row / (height + 1) * columns + column / (width + 1);
        let Some(filter) = filters.get(place).filter(|_| y < height && x < width) else { return [255; 3] };
        let shown = |channel: usize| weight(*filter, if channels == 3 { channel } else { 0 }, y, x);
        [0, 1, 2].map(|channel| libm::round(127.5 + 127.5 * shown(channel)) as u8)
    })
}
