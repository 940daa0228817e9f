//! The learning rates that were tried, and those that were chosen, as a section of the page.
//!
//! Not here: the choice (`tune`).

use convoy_report::svg::key;
use convoy_report::words::grouped;

use super::Report;
use crate::tune::{Tried, Tuned};

impl Report {
    pub(super) fn rates_section(&self) -> String {
        let Some(tune) = &self.study.tune else { return String::new() };
        let heads: String = tune.rates.iter().map(|rate| format!("<th>{rate}</th>")).collect();
        let cell = |tuned: &Tuned, tried: &Tried| {
            let diverged = if tried.diverged > 0 { format!(" ({} diverged)", tried.diverged) } else { String::new() };
            let text = format!("{:.2} %{diverged}", tried.accuracy * 100.0);
            if tried.lr == tuned.lr { format!("<td><b>{text}</b></td>") } else { format!("<td>{text}</td>") }
        };
        let row = |tuned: &Tuned| {
            let index = self.arms.iter().position(|arm| arm.name == tuned.arm).unwrap_or(0);
            let cells: String = tuned.tried.iter().map(|tried| cell(tuned, tried)).collect();
            format!("<tr><td>{}</td>{cells}<td>{}</td></tr>\n", key(index, &tuned.arm), tuned.chosen())
        };
        let rows: String = self.tuned.iter().map(row).collect();
        format!(
            "<h2>Learning rates</h2>\n<p>Each arm tried the same learning rates, with {} with each rate, on training images without the {} that were \
             held out. The rate with the highest mean accuracy on the held-out images was chosen. Test images played no part in it.</p>\n\
             <div class=\"wide\"><table>\n<tr><th>arm</th>{heads}<th>chosen</th></tr>\n{rows}</table></div>\n",
            convoy_common::text::counted(tune.runs as usize, "run", "runs"),
            grouped(tune.holdout as u64),
        )
    }
}
