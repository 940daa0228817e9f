//! The report as a page: one file, which needs no network and no script, and can be printed.
//!
//! Not here: what is in the report, and the parts of the page that have files of their own.

use convoy_common::model::{Layer, LayerKind};
use convoy_common::text::counted;
use convoy_dataset::DataSource;
use convoy_report::html;
use convoy_report::svg::{escaped, key};
use convoy_report::words::{chance, grouped, percent, sentence};

use super::{ArmReport, Comparison, Report, Verdict};
use crate::builtin;
use crate::file::Study;

/// Width of all pictures.
pub(super) const WIDTH: f64 = 860.0;
/// Where the area of a chart with rows begins, and where it ends.
pub(super) const ROWS: (f64, f64) = (210.0, WIDTH - 30.0);
/// What the runs of series have in common.
const SERIES: &str =
    " Runs of a series that is named after a source of randomness differ in that source alone, and form no pairs.";
/// Height of a row.
pub(super) const ROW: f64 = 44.0;

impl Report {
    /// The page.
    pub fn page(&self) -> String {
        let sections = [
            self.answer(),
            self.arms_section(),
            self.rates_section(),
            self.differences_section(),
            self.gaps_section(),
            self.between_section(),
            self.runs_section(),
            self.variation_section(),
            self.curves_section(),
            self.cost_section(),
            self.layers_section(),
            self.filters_section(),
            self.method_section(),
            self.hashes_section(),
        ];
        html::page(&format!("{}: {}", self.study.name, self.question), &sections.join("\n"))
    }

    fn answer(&self) -> String {
        let verdicts = self.comparisons.iter().map(|comparison| {
            let kind = match comparison.verdict {
                Verdict::Better(_) => "better",
                Verdict::Worse(_) => "worse",
                Verdict::Same => "same",
                Verdict::Unclear => "unclear",
            };
            let (said, luck) = (self.named(&comparison.said), escaped(&comparison.luck));
            let about = self.about(&comparison.tested.arm);
            let chance = chance(comparison.sign_flip_corrected);
            let (mean, corrected) = (comparison.tested.mean * 100.0, self.corrected());
            format!(
                "<li class=\"{kind}\">{said}.<br><small>{about}. The mean difference is {mean:+.2} points. If the two nets were equally good, a mean \
                 difference of this size or more, in either direction, would have a chance of {chance}{corrected}. Counting wins alone: \
                 {luck}.</small></li>\n"
            )
        });
        let check = self.check().map(|check| {
            let class = if self.is_broken() { "broken" } else { "check" };
            // The terminal has the first word in a column of its own.
            let text = check.split_once(' ').map_or(check.as_str(), |(_, text)| text.trim_start());
            format!("<p class=\"{class}\">{}.</p>\n", escaped(&sentence(text)))
        });
        let background = self.background.split("\n\n").filter(|text| !text.trim().is_empty());
        let mut background = background.map(|text| format!("<p>{}</p>\n", escaped(text.trim())));
        let first = background.next().unwrap_or_default();
        let design = format!("<p>{}.</p>\n", escaped(&sentence(&self.design.described())));
        let limits = if self.design.can_reject() || self.comparisons.is_empty() { String::new() } else { design };
        let varied = self
            .variation
            .iter()
            .map(|varied| format!("<li class=\"unclear\">{}.</li>\n", escaped(&sentence(&varied.said()))));
        let coloured = self.filters.iter().flat_map(|layer| &layer.arms).filter_map(|arm| arm.colours.as_ref());
        let coloured =
            coloured.map(|found| format!("<li class=\"unclear\">{}.</li>\n", escaped(&sentence(&found.said))));
        let answers: String = coloured.chain(verdicts).chain(varied).collect();
        format!(
            "{first}<ul class=\"verdicts\">\n{answers}</ul>\n{}{}{}{}{limits}{}{}",
            self.reference(),
            self.equal_costs(),
            background.collect::<String>(),
            self.unit(),
            check.unwrap_or_default(),
            self.scope(),
        )
    }

    /// A sentence about arms, as HTML. If it begins with the name of an arm, the name is marked, because it may be a common word.
    fn named(&self, said: &str) -> String {
        let named = self.arms.iter().filter_map(|arm| Some((&arm.name, said.strip_prefix(arm.name.as_str())?)));
        // The name of an arm can begin with that of another one.
        match named.max_by_key(|(name, _)| name.len()) {
            Some((name, rest)) => format!("<b>{}</b>{}", escaped(name), escaped(rest)),
            None => escaped(&sentence(said)),
        }
    }

    /// What the results are about, and whether the nets had stopped to learn. Nothing if nothing is compared.
    fn scope(&self) -> String {
        if self.comparisons.is_empty() {
            return String::new();
        }
        let control = &self.arms[0];
        let passes = counted(self.study.epochs as usize, "pass", "passes");
        let rise = match control.curve.as_slice() {
            [.., before, last] => format!(
                " The last pass changed the mean test accuracy of {} by {:+.2} points.",
                escaped(&control.name),
                (last.test_accuracy.mean - before.test_accuracy.mean) * 100.0
            ),
            _ => String::new(),
        };
        format!(
            "<p>The verdicts hold for these nets and images, trained for {passes} with these settings. They say nothing about other nets, about other \
             images, or about longer training.{rise}</p>\n"
        )
    }

    /// What an arm and the control are, as a sentence without its full stop.
    fn about(&self, arm: &str) -> String {
        let about = |name: &str| {
            let of = self.arms.iter().find(|arm| arm.name == name);
            format!("<b>{}</b>: {}", escaped(name), escaped(of.map_or("", |arm| &arm.about)))
        };
        format!("{}; {}", about(arm), about(&self.arms[0].name))
    }

    /// What all verdicts refer to, and where other comparisons are. Nothing if nothing is compared.
    fn reference(&self) -> String {
        if self.comparisons.is_empty() {
            return String::new();
        }
        let control = escaped(&self.arms[0].name);
        let others = if self.between.is_empty() {
            String::new()
        } else {
            " The other arms are compared with each other <a href=\"#between\">below</a>, for orientation.".to_owned()
        };
        let is_unclear = self.comparisons.iter().any(|comparison| comparison.verdict == Verdict::Unclear);
        let more = match is_unclear && !self.comparisons.iter().any(|comparison| comparison.tested.has_diverged()) {
            true => format!(
                " More pairs mean a new study with so many more: it would show whether a difference of the margin, {} points, is there.",
                self.study.margin
            ),
            false => String::new(),
        };
        format!("<p>Each verdict about accuracy compares an arm with {control}.{more}{others}</p>\n")
    }

    /// What a point is. Nothing if nothing is compared.
    fn unit(&self) -> String {
        if self.comparisons.is_empty() || self.test_images == 0 {
            return String::new();
        }
        let images = self.test_images as f64 / 100.0;
        let test_images = grouped(self.test_images as u64);
        format!("<p>A point is one percentage point of accuracy: {images} of {test_images} test images.</p>\n")
    }

    fn arms_section(&self) -> String {
        let row = |(index, arm): (usize, &ArmReport)| {
            let diverged = if arm.diverged > 0 { format!(", {} diverged", arm.diverged) } else { String::new() };
            let percent = |summary: Option<super::Summary>| {
                summary.map_or("none".to_owned(), |summary| format!("{:.2}&nbsp;%", summary.mean * 100.0))
            };
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2}&nbsp;%&nbsp;±&nbsp;{:.2}</td><td>{}</td><td>{}</td>\
                 <td>{}{diverged}</td></tr>\n",
                key(index, &arm.name),
                escaped(&arm.about),
                grouped(arm.parameters as u64),
                grouped(arm.multiply_adds),
                grouped(arm.step_bytes),
                arm.test_accuracy.mean * 100.0,
                arm.test_accuracy.deviation * 100.0,
                percent(arm.train_accuracy),
                percent(arm.gap),
                arm.runs.len(),
            )
        };
        let rows: String = self.arms.iter().enumerate().map(row).collect();
        let chooses = self.study.settings.images.is_some();
        format!(
            "<h2>What was compared</h2>\n<p>Each arm is a network. Its runs differ in their seed, which decides the initial weights{} the \
             order of the images{}; runs of different arms with the same seed form a pair.{}{} Each run takes {} over the training images. The \
             accuracy is that on {} after the last epoch, and its ± is the standard deviation of runs. The gap is the accuracy on \
             the training images minus that on the test images. {}{}</p>\n<div class=\"wide\"><table>\n<tr><th>arm</th><th>network</th>\
             <th>parameters</th><th>multiply-adds per image</th><th>bytes per training step</th><th>test accuracy</th>\
             <th>training accuracy</th><th>gap</th><th>runs</th></tr>\n{rows}</table></div>\n",
            if chooses { "," } else { " and" },
            if chooses { ", and which training images are used" } else { "" },
            self.again.as_ref().map_or(String::new(), |again| {
                let (again, control) = (escaped(&again.tested.arm), escaped(&self.arms[0].name));
                format!(
                    " {again} is {control} with other seeds, so its first run is paired with the first run of {control}, and so on."
                )
            }),
            if self.variation.is_empty() { "" } else { SERIES },
            counted(self.study.epochs as usize, "pass", "passes"),
            match self.test_images {
                0 => "the test images".to_owned(),
                images => format!("{} test images", grouped(images as u64)),
            },
            self.first_runs(),
            self.figures(),
        )
    }

    /// That an arm with fewer runs is compared with the first runs of others. Nothing if all arms have the same number of runs.
    fn first_runs(&self) -> String {
        let (control, all) = (&self.arms[0], self.arms[0].runs.len());
        let fewest = self.arms.iter().map(|arm| arm.runs.len()).min().unwrap_or(all);
        if fewest == all || fewest == 0 || !self.variation.is_empty() {
            return String::new();
        }
        let first: f64 = control.runs[..fewest].iter().map(|run| run.test_accuracy).sum::<f64>() / fewest as f64;
        format!(
            "An arm with {fewest} runs is compared with the first {fewest} of {}, whose mean is {:.2}&nbsp;%, so differences below are not always \
             those of the means in the table. ",
            escaped(&control.name),
            first * 100.0
        )
    }

    /// Where the figures of the table come from that are not measured, and what the control consists of.
    fn figures(&self) -> String {
        let is_masked = self.study.arms.iter().any(|arm| arm.network.layers.iter().any(|layer| layer.mask().is_some()));
        let masked =
            if is_masked { "; weights that a random mask keeps at zero are multiplied all the same" } else { "" };
        let control = self.study.control();
        let layers: Vec<String> = control.network.layers.iter().filter_map(described).collect();
        format!(
            "Multiply-adds, those of the forward pass, and bytes follow from the model. Bytes are those that \
             processes send each other in a training step, images included, if each of the net's slices of channels, its towers, is trained by \
             a process of its own ({} here){masked}. The images have {} x {} pixels, {}, and {} classes. The \
             layers with weights in {} are {}.",
            counted(control.network.towers, "tower", "towers"),
            control.network.input.shape.height,
            control.network.input.shape.width,
            counted(control.network.input.shape.channels, "channel", "channels"),
            control.network.classes(),
            escaped(&control.name),
            escaped(&layers.join(", ")),
        )
    }

    fn method_section(&self) -> String {
        let study = &self.study;
        let images =
            study.train_images.map_or(String::new(), |images| format!("{} training images. ", grouped(images as u64)));
        let auto = if matches!(study.data.parse(), Ok(DataSource::Auto)) { ", which is Fashion-MNIST" } else { "" };
        let data = format!(
            "{images}The study's file says data = \"{}\"{auto}; the hash below identifies their bytes",
            escaped(&study.data)
        );
        let again = if self.again.is_some() {
            format!(
                "<li>The control is compared with itself, with other seeds. If that finds a difference, the method may be broken; a sound one finds \
                 one in at most {} of all studies, by chance{}.</li>\n",
                percent(self.design.alpha / self.design.comparisons as f64),
                match self.design.comparisons {
                    1 => String::new(),
                    several => format!(": {} divided by {several} comparisons", percent(self.design.alpha)),
                }
            )
        } else {
            String::new()
        };
        let planned = if self.comparisons.is_empty() {
            String::new()
        } else {
            format!(
                "<li>The study expects that differences of pairs have a standard deviation of {} points. Then {}.</li>\n",
                study.expected_deviation,
                escaped(&self.design.described())
            )
        };
        let rule = if self.all_comparisons().is_empty() { String::new() } else { self.rule() };
        format!(
            "<h2>Method</h2>\n<ul>\n<li>Images: {data}.</li>\n{planned}{rule}<li>The number of runs and the margin were fixed before \
             the first run: they are part of the study's hash, and another number of runs is another study.</li>\n<li>A run that diverges is \
             kept, and counts as one that guesses.</li>\n{again}</ul>\n"
        )
    }

    /// When an arm counts as better, worse or the same.
    fn rule(&self) -> String {
        format!(
            "<li>An arm counts as better or worse if three things hold: the chance of the exact sign-flip test is at most {}, corrected over {} by Holm's method; \
             the t interval excludes zero; and the bootstrap interval over seeds and test images excludes zero. It counts as the same if two \
             one-sided tests show that the difference is within the margin, corrected likewise, and the bootstrap agrees. Otherwise these \
             runs can't tell.</li>\n",
            percent(self.design.alpha),
            counted(self.design.comparisons, "comparison", "comparisons"),
        )
    }

    fn hashes_section(&self) -> String {
        let arms = self.arms.iter().flat_map(|arm| arm.runs.iter().map(move |run| (arm, run)));
        let rows = arms.map(|(arm, run)| {
            let result = match (&run.weights_sha256, run.diverged_after) {
                (Some(hash), _) => format!("<td>{:.2} %</td><td><code>{hash}</code></td>", run.test_accuracy * 100.0),
                (None, steps) => format!("<td>-</td><td>diverged after step {}</td>", steps.unwrap_or(0)),
            };
            format!("<tr><td>{}</td><td>{}</td>{result}</tr>\n", escaped(&arm.name), run.seed)
        });
        format!(
            "<h2>Run it again</h2>\n<p><code>convoy study {}</code> gives the same bits on any machine. The study has the hash <code>{}</code>, and its \
             images have <code>{}</code>.</p>\n<details><summary>All runs, with the hashes of their weights</summary>\n<div class=\"wide\">\
             <table>\n<tr><th>arm</th><th>seed</th><th>test accuracy</th><th>weights_sha256</th></tr>\n{}</table></div></details>\n",
            if self.is_built_in() { escaped(&self.study.name) } else { "FILE".to_owned() },
            self.study_sha256,
            self.images_sha256,
            rows.collect::<String>()
        )
    }

    /// Whether it is the report of the built-in study of this name, and not of another one.
    fn is_built_in(&self) -> bool {
        let name = &self.study.name;
        builtin::names().contains(&name.as_str())
            && Study::open(name).is_ok_and(|own| own.sha256(&self.images_sha256) == self.study_sha256)
    }

    /// All comparisons, each with the index of its arm.
    pub(super) fn all_comparisons(&self) -> Vec<(usize, &Comparison)> {
        let all = self.comparisons.iter().chain(&self.again);
        let index =
            |comparison: &Comparison| self.arms.iter().position(|arm| arm.name == comparison.tested.arm).unwrap_or(0);
        all.map(|comparison| (index(comparison), comparison)).collect()
    }
}

/// A layer with weights, in words. None for others.
fn described(layer: &Layer) -> Option<String> {
    match &layer.kind {
        LayerKind::Conv(conv) => {
            let groups = if conv.groups > 1 { format!(" in {} groups", conv.groups) } else { String::new() };
            Some(format!("{} ({} filters of {k} x {k}{groups})", layer.name, conv.filters, k = conv.kernel))
        }
        LayerKind::Linear(linear) => Some(format!("{} ({} units)", layer.name, linear.units)),
        _ => None,
    }
}
