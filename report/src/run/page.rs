//! The report of a run as a page.

use super::classes::{Classes, TOP};
use super::curves::charts;
use super::layers::Layers;
use super::{RunReport, Time, Trained};
use crate::filters::shown;
use crate::html;
use crate::raster::Raster;
use crate::svg::escaped;
use crate::words::{grouped, sentence};
use convoy_common::text::counted;

/// More classes have no table of confusions.
const CLASSES_IN_TABLE: usize = 30;
/// Confusions that are listed.
const CONFUSIONS: usize = 12;
/// Width of a picture of 16 filters on the page.
const FILTERS_SHOWN: usize = 400;

impl RunReport {
    /// The page.
    pub fn page(&self) -> String {
        let sections = [
            self.summary_section(),
            charts(&[self]),
            self.trained.as_ref().map_or(String::new(), Trained::sections),
            self.time.as_ref().map_or(String::new(), Time::section),
            self.incidents_section(),
            self.settings_section(),
        ];
        html::page(&format!("{}: {}", self.records.record.model, self.folder), &sections.concat())
    }

    fn summary_section(&self) -> String {
        let missing: String =
            self.missing.iter().map(|what| format!("<li>{}.</li>\n", escaped(&sentence(what)))).collect();
        let missing = if missing.is_empty() { missing } else { format!("<ul>\n{missing}</ul>\n") };
        format!("<p>{}</p>\n{missing}", escaped(&self.summary().join(" ")))
    }

    fn incidents_section(&self) -> String {
        let incidents = &self.records.record.incidents;
        if incidents.is_empty() {
            return "<h2>Faults</h2>\n<p>None.</p>\n".to_owned();
        }
        let row = |incident: &convoy_coordinator::incident::Incident| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td><td>{:.0}</td></tr>\n",
                incident.step,
                incident.worker,
                escaped(&incident.what),
                incident.rewound_to,
                incident.detect_ms,
                incident.replace_ms,
                incident.restore_ms,
                incident.replay_ms
            )
        };
        let rows: String = incidents.iter().map(row).collect();
        format!(
            "<h2>Faults</h2>\n<p>The job recovered from {}. Faults do not change the result.</p>\n<div class=\"wide\"><table>\n<tr><th>after step</th>\
             <th>worker</th><th>what happened</th><th>went back to step</th><th>ms to detect</th><th>ms to replace</th><th>ms to restore</th>\
             <th>ms to compute again</th></tr>\n{rows}</table></div>\n",
            counted(incidents.len(), "fault", "faults")
        )
    }

    fn settings_section(&self) -> String {
        let row = |(key, value): &(String, String)| {
            format!("<tr><td>{}</td><td><code>{}</code></td></tr>\n", escaped(key), escaped(value))
        };
        let settings = self.records.settings();
        let hash = self.trained.iter().map(|trained| ("weights_sha256".to_owned(), trained.weights_sha256.clone()));
        let rows: String = settings.iter().cloned().chain(hash).map(|setting| row(&setting)).collect();
        let model = self.records.record.configuration["model"].as_str().unwrap_or_default();
        format!(
            "<h2>What decides the result</h2>\n<p>The same model, data and settings give the same weights, to the bit, on any machine.</p>\n\
             <div class=\"wide\"><table>\n<tr><th>setting</th><th>value</th></tr>\n{rows}</table></div>\n<details><summary>The model's file\
             </summary><pre>{}</pre></details>\n",
            escaped(model)
        )
    }
}

impl Trained {
    fn sections(&self) -> String {
        self.classes.as_ref().map_or(String::new(), Classes::section) + &self.layers.sections()
    }
}

impl Classes {
    fn section(&self) -> String {
        let listed = self.confusions(CONFUSIONS);
        let rows: String = listed
            .iter()
            .map(|(label, predicted, count)| {
                let [label, predicted] = [label, predicted].map(|class| self.escaped_name(usize::from(*class)));
                format!("<tr><td>{label}</td><td>{predicted}</td><td>{count}</td></tr>\n")
            })
            .collect();
        let confusions = if rows.is_empty() {
            String::new()
        } else {
            format!(
                "<h3>The most frequent confusions</h3>\n<div class=\"wide\"><table>\n<tr><th>class</th><th>taken for</th><th>images</th></tr>\n{rows}\
                 </table></div>\n"
            )
        };
        let top = if self.classes > TOP {
            format!(" For {:.2} %, it is among the first {TOP}.", self.top_accuracy() * 100.0)
        } else {
            String::new()
        };
        format!(
            "<h2>Right and wrong</h2>\n<p>Measured on {}. Of {} test images, {} are classified correctly ({:.2} %): the right class has the highest logit.{top} The \
             mean loss is {:.4}.</p>\n{}{confusions}",
            escaped(&self.origin),
            grouped(self.images as u64),
            grouped(self.correct as u64),
            self.accuracy() * 100.0,
            self.loss,
            self.matrix()
        )
    }

    fn escaped_name(&self, class: usize) -> String {
        escaped(&self.name(class))
    }

    /// The confusion matrix, with the accuracy of each class.
    fn matrix(&self) -> String {
        if self.classes > CLASSES_IN_TABLE {
            return String::new();
        }
        let head: String = (0..self.classes).map(|class| format!("<th>{}</th>", self.escaped_name(class))).collect();
        let row = |label: usize| {
            let images = self.images_of(label).max(1);
            let cell = |predicted: usize| {
                let count = self.count(label, predicted);
                let share = f64::from(count) / f64::from(images);
                // The text stays readable on the darkest cell.
                let colour = if label == predicted { "0,158,115" } else { "213,94,0" };
                format!("<td style=\"background:rgba({colour},{:.2})\">{count}</td>", 0.6 * libm::sqrt(share))
            };
            let cells: String = (0..self.classes).map(cell).collect();
            let accuracy = self.accuracy_of(label).map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
            format!("<tr><th>{}</th>{cells}<td>{accuracy}</td></tr>\n", self.escaped_name(label))
        };
        let rows: String = (0..self.classes).map(row).collect();
        format!(
            "<figure><div class=\"wide\"><table class=\"matrix\">\n<tr><th>class</th>{head}<th>accuracy</th></tr>\n{rows}</table></div>\n\
             <figcaption>Each row is a class, and each column what its images were taken for.</figcaption></figure>\n"
        )
    }
}

impl Layers {
    fn sections(&self) -> String {
        let some = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.5}"));
        let row = |parameter: &super::layers::ParameterReport| {
            let shape: Vec<String> = parameter.shape.iter().map(usize::to_string).collect();
            format!(
                "<tr><td>{}</td><td>{}</td><td>{:.5}</td><td>{}</td><td>{}</td><td>{}</td></tr>\n",
                escaped(&parameter.name),
                shape.join(" x "),
                parameter.size,
                some(parameter.size_at_start),
                some(parameter.moved),
                parameter.update.map_or("-".to_owned(), |update| format!("{update:.2e}")),
            )
        };
        let rows: String = self.parameters.iter().map(row).collect();
        format!(
            "<h2>What the layers became</h2>\n<p>Sizes are root mean squares over the values of a parameter.</p>\n<div class=\"wide\"><table>\n<tr>\
             <th>parameter</th><th>shape</th><th>size</th><th>size at the start</th><th>distance from the start</th><th>size of the last update</th>\
             </tr>\n{rows}</table></div>\n{}",
            self.filters_section()
        )
    }

    fn filters_section(&self) -> String {
        let Some(filters) = &self.filters else { return String::new() };
        let image = |(tower, (count, raster)): (usize, &(usize, Raster))| {
            let about = format!("filters of tower {tower}");
            format!("<p>tower {tower}</p>{}", raster.image(&about, shown(*count, FILTERS_SHOWN)))
        };
        let images: String = filters.towers.iter().enumerate().map(image).collect();
        format!(
            "<h3>The filters of {}</h3>\n<figure class=\"filters\">\n{images}<figcaption>Grey is no weight; light and dark are weights of opposite \
             sign, relative to the largest one of each filter.</figcaption>\n</figure>\n",
            escaped(&filters.layer)
        )
    }
}

impl Time {
    fn section(&self) -> String {
        let cells = |row: &Vec<String>, tag: &str| {
            row.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell.trim_start()))).collect::<String>()
        };
        let mut rows = self.rows.iter();
        let head = rows.next().map_or(String::new(), |head| cells(head, "th"));
        let body: String = rows.map(|row| format!("<tr>{}</tr>\n", cells(row, "td"))).collect();
        format!(
            "<h2>Where the time went</h2>\n<p>A step takes {:.2} ms, by the mean of {} in the trace. Bottleneck: {}.</p>\n<div class=\"wide\"><table>\n\
             <tr>{head}</tr>\n{body}</table></div>\n",
            self.step_ms,
            counted(self.steps, "step", "steps"),
            escaped(&self.bottleneck)
        )
    }
}
