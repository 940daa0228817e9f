//! The page about identity, with a picture of the blocks.

use convoy_report::html;
use convoy_report::raster::Raster;
use convoy_report::svg::escaped;

use super::Identity;

/// Size of a kernel in the picture.
const CELL: usize = 5;

impl Identity {
    pub(super) fn page(&self) -> String {
        let claims = self.claims.iter().map(|claim| {
            let (class, word) = if claim.holds { ("same", "Holds") } else { ("broken", "Does not hold") };
            let (text, found) = (escaped(&claim.claim), escaped(&claim.found));
            format!("<li class=\"{class}\">{text}<br><small>{word}: {found}.</small></li>\n")
        });
        let layer = &self.layer;
        let [rows, columns, channels] = layer.input;
        let [with, without] = layer.kernels;
        let [cheap, costly] = layer.multiply_adds;
        let models = &self.models;
        let layers: Vec<String> =
            models.layers.iter().map(|(name, groups)| format!("{name} ({groups} groups)")).collect();
        let body = format!(
            "<ul class=\"verdicts\">\n{}</ul>\n<h2>The layer</h2>\n<p>The input has {rows} rows, {columns} columns and {channels} channels, in the \
             order (row, column, channel). The layer has {} filters with kernels of {} x {}. A filter sums over the channels that it reads. With \
             {} groups, each filter reads {} channels, and without groups all {channels}. So there are {with} kernels with groups and {without} \
             without, and {cheap} multiply-adds instead of {costly}.</p>\n<figure>\n{}<figcaption>Each cell is a kernel: a row for each filter, a \
             column for each input channel. The coloured blocks are the kernels that a convolution with groups has. A convolution without groups \
             has all of them.</figcaption>\n</figure>\n<h2>Training</h2>\n<p>The models are <code>{}</code> and <code>{}</code>, which differ in {}. \
             They were trained for {} steps from the same weights: those of the grouped model, with zeros between the groups. The weights of \
             the grouped model then have the SHA-256 <code>{}</code>.</p>\n",
            claims.collect::<String>(),
            layer.filters,
            layer.kernel,
            layer.kernel,
            layer.groups,
            channels / layer.groups,
            self.blocks(),
            escaped(&models.grouped),
            escaped(&models.dense),
            escaped(&layers.join(", ")),
            models.steps,
            models.weights_sha256,
        );
        html::page("Is a grouped convolution the same as an ungrouped one?", &body)
    }

    /// The kernels of the layer: those within groups in colour.
    fn blocks(&self) -> String {
        let ([_, _, channels], filters, groups) = (self.layer.input, self.layer.filters, self.layer.groups);
        let is_within = |filter: usize, channel: usize| filter * groups / filters == channel * groups / channels;
        let colour = |row: usize, column: usize| {
            // Lines between cells.
            if row.is_multiple_of(CELL) || column.is_multiple_of(CELL) {
                return [255, 255, 255];
            }
            if is_within(row / CELL, column / CELL) { [0, 114, 178] } else { [225, 225, 225] }
        };
        Raster::of(channels * CELL, filters * CELL, colour)
            .image("kernels of the layer, with two blocks in colour", channels * CELL * 2)
    }
}
