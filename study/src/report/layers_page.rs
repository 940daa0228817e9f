//! The section of the page about what the channels of layers represent.

use convoy_report::raster::{Raster, diverging};
use convoy_report::svg::{Picture, Scale, colour, escaped, key};

use super::Report;
use super::layers::{ArmLayer, LayerReport};
use super::page::{ROW, ROWS, WIDTH};
use crate::representation::{PERMUTATIONS, Picture as Pictured};

/// Size of a histogram.
const HISTOGRAM: (f64, f64) = (270.0, 160.0);

impl Report {
    pub(super) fn layers_section(&self) -> String {
        if self.layers.is_empty() {
            return String::new();
        }
        let groups = self.study.represent.as_ref().map_or(2, |what| what.groups);
        let layers: String = self.layers.iter().map(|layer| self.layer_section(layer)).collect();
        format!(
            "<h2>What the layers represent</h2>\n<p>Are channels of the same group more alike than channels of different groups? The outputs of a layer's \
             channels are compared at places of test images. The channels of all arms are divided into the same {groups} groups of neighbours, \
             also in arms without groups. |r| is the absolute correlation of two channels: 0 if neither predicts the other by a straight line, and 1 if one is a \
             multiple of the other plus a constant. Its mean over pairs of channels of one group (within) minus that over pairs from different \
             groups (between) is above zero if channels of the same group are more alike. If groups mean nothing, it is like that of random \
             partitions, which divide the channels at random.</p>\n<p>The similarity of two groups of channels (linear CKA) is 0 if no channel of \
             one group correlates with a channel of the other, and 1 if one group's outputs are those of the other, rotated and scaled. That of the \
             same layer in two runs of the same arm shows how similar nets are that differ in their seeds alone. Effective channels (effective \
             rank): how many uncorrelated channels would vary in as many directions. Channels that repeat each other count less.</p>\n{layers}"
        )
    }

    fn layer_section(&self, layer: &LayerReport) -> String {
        let (table, figure) = (self.layer_table(layer), self.layer_figure(layer));
        let pictured = || layer.arms.iter().filter_map(|arm| arm.picture.as_ref());
        let ends = pictured().map(|(pictured, _)| (pictured.range.low, pictured.range.high));
        let range = ends.fold((0.0_f64, 0.0_f64), |(low, high), (least, most)| (low.min(least), high.max(most)));
        let pictures: String = layer
            .arms
            .iter()
            .filter_map(|arm| Some(self.layer_picture(arm, &arm.picture.as_ref()?.0, range)))
            .collect();
        format!(
            "<h3>{}</h3>\n{figure}{table}<figure class=\"many\">\n{pictures}<figcaption>The run with the first seed of each arm: correlations of \
             channels, ordered by group (blue: negative, white: none, orange: positive; a channel with \
             itself is left out), and the differences of {PERMUTATIONS} random partitions, with the \
             observed one as a line; a channel that is always zero correlates with none.</figcaption>\n</figure>\n",
            escaped(&layer.layer)
        )
    }

    pub(super) fn index_of(&self, arm: &str) -> usize {
        self.arms.iter().position(|other| other.name == arm).unwrap_or(0)
    }

    fn layer_table(&self, layer: &LayerReport) -> String {
        let row = |arm: &ArmLayer| {
            let similarity = |summary: Option<super::Summary>| {
                summary.map_or("-".to_owned(), |summary| format!("{:.3} ± {:.3}", summary.mean, summary.deviation))
            };
            format!(
                "<tr><td>{}</td><td>{:.3}</td><td>{:.3}</td><td>{:.3}</td><td>{:+.4}</td><td>{} of {}</td><td>{:+.4}</td><td>{}</td><td>{}</td>\
                 <td>{:.1}</td></tr>\n",
                key(self.index_of(&arm.arm), &arm.arm),
                arm.all.mean,
                arm.within.mean,
                arm.between.mean,
                arm.difference.mean,
                arm.beyond_chance,
                arm.runs,
                arm.best.mean,
                similarity(arm.similarity),
                similarity(arm.with_next_seed),
                arm.effective_rank.mean,
            )
        };
        let rows: String = layer.arms.iter().map(row).collect();
        format!(
            "<div class=\"wide\"><table>\n<tr><th>arm</th><th>mean |r|</th><th>within</th><th>between</th><th>difference</th>\
             <th>runs beyond chance (5 %)</th><th>difference under the best partition</th><th>similarity of the two groups</th>\
             <th>similarity of two runs</th><th>effective channels</th></tr>\n{rows}</table></div>\n"
        )
    }

    /// The difference of each run, with that of random partitions and of the best one.
    fn layer_figure(&self, layer: &LayerReport) -> String {
        let height = ROW * layer.arms.len() as f64;
        let about = format!("Correlations of {} within groups minus those between groups", layer.layer);
        let mut picture = Picture::new(WIDTH, height + 74.0, &about);
        let values = layer.arms.iter().flat_map(|arm| {
            let ends = [arm.null.low, arm.null.high, arm.best.mean, 0.0];
            arm.differences.iter().copied().chain(ends).collect::<Vec<_>>()
        });
        let scale = Scale::around(values, ROWS, 8.0);
        let (top, bottom) = (16.0, 16.0 + height);
        picture.axis_below(&scale, top, bottom, "mean |r| within groups minus between groups");
        picture.line("zero", (scale.at(0.0), top), (scale.at(0.0), bottom), "#000");
        for (row, arm) in layer.arms.iter().enumerate() {
            let (y, index) = (top + ROW * (row as f64 + 0.5), self.index_of(&arm.arm));
            let (low, high) = (scale.at(arm.null.low), scale.at(arm.null.high));
            picture.area("null", &[(low, y - 14.0), (high, y - 14.0), (high, y + 14.0), (low, y + 14.0)], "#777777");
            picture.text(ROWS.0 - 12.0, y + 4.0, "end", &arm.arm);
            for (run, difference) in arm.differences.iter().enumerate() {
                let shift = (run % 5) as f64 * 4.0 - 8.0;
                let title = format!("{}, run {}: {difference:+.4}", arm.arm, run + 1);
                picture.mark(index, "run", (scale.at(*difference), y + shift), 3.5, &title);
            }
            let best = scale.at(arm.best.mean);
            picture.line("thick", (best, y - 12.0), (best, y + 12.0), colour(index));
        }
        format!(
            "<figure>\n{}<figcaption>Each mark is a run. The grey area has the middle 95 % of random partitions; its ends are means over runs. Whether a run is \
             beyond chance is decided by {PERMUTATIONS} random partitions of its own: at least 95 % of them must have a smaller difference, so a mark \
             just inside the right end can be beyond chance, too. The line is the mean under the best division of the same channels that a search found.</figcaption>\n</figure>\n",
            picture.finish()
        )
    }

    fn layer_picture(&self, arm: &ArmLayer, pictured: &Pictured, range: (f64, f64)) -> String {
        let size = pictured.groups.len();
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by_key(|channel| pictured.groups[*channel]);
        let value =
            |row: usize, column: usize| f64::from(pictured.correlations[order[row] * size + order[column]]) / 100.0;
        let raster =
            Raster::of(size, size, |row, column| diverging(if row == column { 0.0 } else { value(row, column) }));
        let about = format!("correlations of the channels of {}", arm.arm);
        format!(
            "<div class=\"one\"><p>{}</p>{}{}</div>\n",
            key(self.index_of(&arm.arm), &arm.arm),
            raster.image(&about, 200),
            histogram(pictured, arm, self.index_of(&arm.arm), range),
        )
    }
}

/// The differences of random partitions of the first run, and the observed one. `range` is that of all arms.
fn histogram(pictured: &Pictured, arm: &ArmLayer, index: usize, range: (f64, f64)) -> String {
    let observed = arm.picture.as_ref().map_or(0.0, |(_, correlated)| correlated.difference());
    let (width, height) = HISTOGRAM;
    let mut picture = Picture::new(width, height, &format!("differences of random partitions of {}", arm.arm));
    let (top, bottom) = (8.0, height - 48.0);
    let (low, high) = (pictured.range.low, pictured.range.high);
    let scale = Scale::around([range.0, range.1], (26.0, width - 26.0), 3.0);
    let most = pictured.bars.iter().copied().max().unwrap_or(1).max(1) as f64;
    let step = (high - low) / pictured.bars.len() as f64;
    for (bar, count) in pictured.bars.iter().enumerate() {
        let (left, right) = (scale.at(low + step * bar as f64), scale.at(low + step * (bar + 1) as f64));
        let up = bottom - (bottom - top) * *count as f64 / most;
        picture.area("bar", &[(left, bottom), (left, up), (right, up), (right, bottom)], "#777777");
    }
    picture.axis_below(&scale, top, bottom, "within minus between");
    picture.line("thick", (scale.at(observed), top), (scale.at(observed), bottom), colour(index));
    picture.finish()
}
