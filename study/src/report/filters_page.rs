//! The section of the page about the filters of layers.

use convoy_report::filters::{shown, tiles};
use convoy_report::raster::Raster;
use convoy_report::svg::{Picture, Scale, escaped, key};
use convoy_report::words::sentence;

use super::Report;
use super::filters::{ArmColours, ArmFilters, FiltersReport};
use super::page::{ROW, ROWS, WIDTH};
use crate::representation::PERMUTATIONS;
use crate::representation::filters::FilterPicture;

/// Width of a picture of 16 filters on the page.
const SHOWN: usize = 560;

impl Report {
    pub(super) fn filters_section(&self) -> String {
        self.filters.iter().map(|layer| self.filters_of_layer(layer)).collect()
    }

    fn filters_of_layer(&self, layer: &FiltersReport) -> String {
        let name = escaped(&layer.layer);
        let pictures: String = layer.arms.iter().filter_map(|arm| self.filter_picture(arm)).collect();
        format!(
            "<h2>The filters of {name}</h2>\n{}<figure class=\"many\">\n{pictures}<figcaption>The filters of the run with the first seed of each \
             arm, one row of tiles or more for each group. Grey is no weight; light and dark are weights of opposite sign, relative to the largest \
             one of each filter.</figcaption>\n</figure>\n",
            self.colours_of_layer(layer)
        )
    }

    fn colours_of_layer(&self, layer: &FiltersReport) -> String {
        let coloured: Vec<(&ArmFilters, &ArmColours)> =
            layer.arms.iter().filter_map(|arm| Some((arm, arm.colours.as_ref()?))).collect();
        if coloured.is_empty() {
            return String::new();
        }
        let groups = self.study.represent.as_ref().map_or(2, |what| what.groups);
        let said: String =
            coloured.iter().map(|(_, colours)| format!("<li>{}.</li>\n", escaped(&sentence(&colours.said)))).collect();
        format!(
            "<p>The colour index of a filter is the share of its squared weights that red, green and blue do not have in common: 0 for a filter that \
             sees brightness alone, and 1 for one that sees colour alone. In all arms, the filters are divided into the same {groups} groups of \
             neighbours. Their mean indices are compared with those of {PERMUTATIONS} random partitions.</p>\n<ul>\n{said}</ul>\n{}{}",
            self.colours_figure(&layer.layer, &coloured),
            self.colours_table(&coloured),
        )
    }

    fn colours_table(&self, coloured: &[(&ArmFilters, &ArmColours)]) -> String {
        let row = |(arm, colours): &(&ArmFilters, &ArmColours)| {
            let interval = |interval: Option<crate::statistics::Interval>| {
                interval.map_or("-".to_owned(), |ends| format!("{:+.3} to {:+.3}", ends.low, ends.high))
            };
            format!(
                "<tr><td>{}</td><td>{:.3} ± {:.3}</td><td>{:.3} ± {:.3}</td><td>{:.3}</td><td>{}</td><td>{} of {}</td><td>{}</td></tr>\n",
                key(self.index_of(&arm.arm), &arm.arm),
                colours.index.mean,
                colours.index.deviation,
                colours.difference.mean,
                colours.difference.deviation,
                colours.expected,
                interval(colours.excess),
                colours.beyond_chance,
                colours.differences.len(),
                interval(colours.above_control),
            )
        };
        let rows: String = coloured.iter().map(row).collect();
        format!(
            "<div class=\"wide\"><table>\n<tr><th>arm</th><th>mean colour index</th><th>difference of the groups</th>\
             <th>difference of random groups</th><th>how much more than random groups: interval over seeds</th>\
             <th>runs beyond chance (5 %)</th><th>how much more than in the control: interval over pairs</th></tr>\n{rows}</table></div>\n"
        )
    }

    /// The difference of each run, with that of random partitions.
    fn colours_figure(&self, layer: &str, coloured: &[(&ArmFilters, &ArmColours)]) -> String {
        let height = ROW * coloured.len() as f64;
        let mut picture = Picture::new(WIDTH, height + 74.0, &format!("Difference in colour of the groups of {layer}"));
        let ends = coloured.iter().flat_map(|(_, colours)| colours.differences.iter().copied().chain([colours.limit]));
        let scale = Scale::around(ends.chain([0.0]), ROWS, 8.0);
        let (top, bottom) = (16.0, 16.0 + height);
        picture.axis_below(&scale, top, bottom, "difference of the groups' mean colour indices");
        for (row, (arm, colours)) in coloured.iter().enumerate() {
            let (y, index) = (top + ROW * (row as f64 + 0.5), self.index_of(&arm.arm));
            let (low, high) = (scale.at(0.0), scale.at(colours.limit));
            picture.area("null", &[(low, y - 14.0), (high, y - 14.0), (high, y + 14.0), (low, y + 14.0)], "#777777");
            picture.text(ROWS.0 - 12.0, y + 4.0, "end", &arm.arm);
            for (run, difference) in colours.differences.iter().enumerate() {
                let shift = (run % 5) as f64 * 4.0 - 8.0;
                let title = format!("{}, run {}: {difference:.3}", arm.arm, run + 1);
                picture.mark(index, "run", (scale.at(*difference), y + shift), 3.5, &title);
            }
        }
        format!(
            "<figure>\n{}<figcaption>Each mark is a run. The grey area ends at the mean of the runs' limits: a run is beyond chance if its difference exceeds its own limit.</figcaption>\n</figure>\n",
            picture.finish()
        )
    }

    fn filter_picture(&self, arm: &ArmFilters) -> Option<String> {
        let picture = arm.picture.as_ref()?;
        let groups = self.study.represent.as_ref().map_or(2, |what| what.groups);
        let count = picture.shape[0];
        let of_group = |group: usize| (0..count).filter(|filter| filter * groups / count == group).collect::<Vec<_>>();
        let image = |group: usize| {
            let about = format!("filters of group {} of {}", group + 1, arm.arm);
            let filters = of_group(group);
            picture_of(picture, &filters).image(&about, shown(filters.len(), SHOWN))
        };
        let images: String = (0..groups).map(image).collect();
        Some(format!("<div class=\"filters\"><p>{}</p>{images}</div>\n", key(self.index_of(&arm.arm), &arm.arm)))
    }
}

fn picture_of(picture: &FilterPicture, filters: &[usize]) -> Raster {
    let [_, channels, height, width] = picture.shape;
    tiles(picture.shape, filters, |filter, channel, row, column| {
        f64::from(picture.weights[((filter * channels + channel) * height + row) * width + column]) / 127.0
    })
}
