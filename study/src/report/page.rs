//! The report as a page: one file, which needs no network and no script, and can be printed.
//!
//! Not here: what is in the report, and drawing (`svg`).

use convoy_report::html;
use convoy_report::svg::{Picture, Scale, colour, escaped, key};
use convoy_report::words::{chance, grouped, percent, plural, sentence};

use super::{ArmReport, Comparison, Report, Tested, Verdict};
use crate::statistics::Interval;

/// Width of all pictures.
pub(super) const WIDTH: f64 = 860.0;
/// Where the area of a chart with rows begins, and where it ends.
pub(super) const ROWS: (f64, f64) = (170.0, WIDTH - 30.0);
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
            let (said, luck) = (escaped(&sentence(&comparison.said)), escaped(&sentence(&comparison.luck)));
            let about = self.about(&comparison.tested.arm);
            format!("<li class=\"{kind}\">{said}.<br><small>{about}. {luck}.</small></li>\n")
        });
        let check = self.check().map(|check| {
            let class = if self.is_broken() { "broken" } else { "check" };
            // The terminal has the first word in a column of its own.
            let text = check.split_once(' ').map_or(check.as_str(), |(_, text)| text.trim_start());
            format!("<p class=\"{class}\">{}.</p>\n", escaped(&sentence(text)))
        });
        let background = self.background.split("\n\n").filter(|text| !text.trim().is_empty());
        let background: String = background.map(|text| format!("<p>{}</p>\n", escaped(text.trim()))).collect();
        let design = format!("<p>{}.</p>\n", escaped(&sentence(&self.design.described())));
        let limits = if self.design.can_reject() || self.comparisons.is_empty() { String::new() } else { design };
        let varied = self
            .variation
            .iter()
            .map(|varied| format!("<li class=\"unclear\">{}.</li>\n", escaped(&sentence(&varied.said()))));
        let answers: String = verdicts.chain(varied).collect();
        format!(
            "<ul class=\"verdicts\">\n{answers}</ul>\n{}{limits}{}{background}",
            self.unit(),
            check.unwrap_or_default()
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

    /// What a point is. Nothing if nothing is compared.
    fn unit(&self) -> String {
        if self.comparisons.is_empty() {
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
                summary.map_or("none".to_owned(), |summary| format!("{:.2} %", summary.mean * 100.0))
            };
            format!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{:.2} % ± {:.2}</td><td>{}</td><td>{}</td>\
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
             order of the images{}; runs of different arms with the same seed form a pair (the series of the \
             control with other seeds is paired in order).{} Each run takes {} over the training images. The \
             accuracy is that on {} test images after the last epoch, and its ± is the standard deviation of runs. The gap is the accuracy on \
             the training images minus that on the test images.</p>\n<div class=\"wide\"><table>\n<tr><th>arm</th><th>network</th>\
             <th>parameters</th><th>multiply-adds per image</th><th>bytes sent per step</th><th>test accuracy</th>\
             <th>training accuracy</th><th>gap</th><th>runs</th></tr>\n{rows}</table></div>\n",
            if chooses { "," } else { " and" },
            if chooses { ", and which training images are used" } else { "" },
            if self.variation.is_empty() { "" } else { SERIES },
            plural(self.study.epochs as usize, "pass", "passes"),
            grouped(self.test_images as u64),
        )
    }

    fn differences_section(&self) -> String {
        let control = &self.arms[0].name;
        let compared: Vec<(usize, &Comparison)> = self.all_comparisons();
        if compared.is_empty() {
            return String::new();
        }
        let height = ROW * compared.len() as f64;
        let mut picture =
            Picture::new(WIDTH, height + 74.0, "Differences of accuracy from the control, with intervals");
        let margin = self.study.margin;
        let points = |share: f64| share * 100.0;
        let values = compared.iter().flat_map(|(_, comparison)| {
            let Tested { differences, interval, bootstrap, .. } = &comparison.tested;
            let ends = [interval.low, interval.high, bootstrap.low, bootstrap.high].map(points);
            differences.iter().map(|d| points(*d)).chain(ends).collect::<Vec<_>>()
        });
        let scale = Scale::around(values.chain([-margin, margin]), ROWS, 8.0);
        let (top, bottom) = (16.0, 16.0 + height);
        let (left, right) = (scale.at(-margin), scale.at(margin));
        picture.area("margin", &[(left, top), (right, top), (right, bottom), (left, bottom)], "#009e73");
        picture.axis_below(&scale, top, bottom, &format!("points of accuracy above (right) or below (left) {control}"));
        picture.line("zero", (scale.at(0.0), top), (scale.at(0.0), bottom), "#000");
        for (row, (arm, comparison)) in compared.iter().enumerate() {
            let y = top + ROW * (row as f64 + 0.5);
            picture.text(ROWS.0 - 12.0, y + 4.0, "end", &comparison.tested.arm);
            for (pair, difference) in comparison.tested.differences.iter().enumerate() {
                let title = format!("{}, pair {}: {:+.2} points", comparison.tested.arm, pair + 1, points(*difference));
                picture.mark(*arm, "run", (scale.at(points(*difference)), y + 11.0), 3.0, &title);
            }
            let Interval { low, high } = comparison.tested.bootstrap.scaled(100.0);
            picture.line("thin", (scale.at(low), y - 7.0), (scale.at(high), y - 7.0), colour(*arm));
            let Interval { low, high } = comparison.tested.interval.scaled(100.0);
            picture.line("thick", (scale.at(low), y - 7.0), (scale.at(high), y - 7.0), colour(*arm));
            picture.mark(
                *arm,
                "mean",
                (scale.at(points(comparison.tested.mean)), y - 7.0),
                5.5,
                &sentence(&comparison.said),
            );
        }
        let confidence = percent(self.study.confidence);
        format!(
            "<h2>What came out, and how sure it is</h2>\n<figure>\n{}<figcaption>The difference of each arm from {}: the large mark is the \
             mean of all pairs, and small marks are single pairs. The thick line is the {confidence} interval of the mean over seeds. The \
             thin line is the interval over seeds and test images: it would also hold for other test images of the same kind. Arms whose \
             difference is within the green area ({margin} points) count as the same.</figcaption>\n</figure>\n{}",
            picture.finish(),
            escaped(control),
            self.comparison_table(),
        )
    }

    fn comparison_table(&self) -> String {
        let row = |(arm, comparison): (usize, &Comparison)| {
            let tested = &comparison.tested;
            let interval = |interval: Interval| {
                let Interval { low, high } = interval.scaled(100.0);
                format!("{low:+.2} to {high:+.2}")
            };
            let share = tested.superiority_interval.scaled(100.0);
            let correlation = tested.correlation.map_or("none".to_owned(), |correlation| format!("{correlation:+.2}"));
            let effective = tested.effective_runs.map_or("-".to_owned(), |runs| format!("{runs:.1}"));
            format!(
                "<tr><td>{}</td><td>{:+.3}</td><td>{}</td><td>{}</td><td>{}</td><td>{}; {}</td><td>{}; {}</td>\
                 <td>{:.0} % ({:.0} to {:.0} %)</td><td>{correlation}</td><td>{effective}</td></tr>\n",
                key(arm, &tested.arm),
                tested.mean * 100.0,
                interval(tested.interval),
                interval(tested.bootstrap),
                interval(tested.welch_interval),
                chance(tested.sign_flip),
                chance(comparison.sign_flip_corrected),
                chance(tested.equivalence),
                chance(comparison.equivalence_corrected),
                tested.superiority * 100.0,
                share.low,
                share.high,
            )
        };
        let rows: String = self.all_comparisons().into_iter().map(row).collect();
        format!(
            "<div class=\"wide\"><table>\n<tr><th>arm</th><th>difference, points</th><th>interval over seeds (t)</th>\
             <th>interval over seeds and images (BCa)</th><th>interval without pairs (Welch)</th>\
             <th>chance of at least this difference between equal arms (exact sign-flip test); corrected for {}</th>\
             <th>chance of so small a difference if it is really {} points (TOST); corrected likewise</th>\
             <th>pairs in which it is better (a tie counts half)</th><th>correlation of pairs</th><th>unpaired runs as precise as these pairs</th>\
             </tr>\n{rows}</table></div>\n<p><small>The intervals are not corrected for the number of arms; the tests are, and a verdict needs \
             both.</small></p>\n",
            plural(self.design.comparisons, "comparison", "comparisons"),
            self.study.margin
        )
    }

    fn runs_section(&self) -> String {
        let height = ROW * self.arms.len() as f64;
        let mut picture = Picture::new(WIDTH, height + 74.0, "The test accuracy of every run");
        let accuracies = self.arms.iter().flat_map(|arm| arm.runs.iter().map(|run| run.test_accuracy * 100.0));
        let scale = Scale::around(accuracies, ROWS, 8.0);
        let (top, bottom) = (16.0, 16.0 + height);
        picture.axis_below(&scale, top, bottom, "accuracy on the test images, %");
        for (index, arm) in self.arms.iter().enumerate() {
            let y = top + ROW * (index as f64 + 0.5);
            picture.text(ROWS.0 - 12.0, y + 4.0, "end", &arm.name);
            let mean = scale.at(arm.test_accuracy.mean * 100.0);
            picture.line("thick", (mean, y - 14.0), (mean, y + 14.0), colour(index));
            for (place, run) in arm.runs.iter().enumerate() {
                // Runs with the same accuracy stay visible.
                let shift = (place % 5) as f64 * 4.0 - 8.0;
                let title = format!("{}, seed {}: {:.2} %", arm.name, run.seed, run.test_accuracy * 100.0);
                picture.mark(index, "run", (scale.at(run.test_accuracy * 100.0), y + shift), 3.5, &title);
            }
        }
        format!(
            "<h2>Every run</h2>\n<figure>\n{}<figcaption>Each mark is a run, and each line the mean of its arm.</figcaption>\n</figure>\n",
            picture.finish()
        )
    }

    fn curves_section(&self) -> String {
        let chart = |name: &str, about: &str, value: &dyn Fn(&super::CurvePoint) -> (f64, f64, f64)| {
            let (left, right, top, bottom) = (80.0, WIDTH - 30.0, 16.0, 300.0);
            let mut picture = Picture::new(WIDTH, 352.0, about);
            let all = || self.arms.iter().flat_map(|arm| arm.curve.iter().map(value));
            let vertical = Scale::around(all().flat_map(|(mean, low, high)| [mean, low, high]), (bottom, top), 6.0);
            let epochs = (1.0, (self.study.epochs as f64).max(2.0));
            // There is nothing between two epochs.
            let horizontal = Scale::around([epochs.0, epochs.1], (left, right), (epochs.1 - epochs.0).min(9.0));
            picture.axis_left(&vertical, left, right, name);
            picture.axis_below(&horizontal, top, bottom, "epoch");
            for (index, arm) in self.arms.iter().enumerate() {
                let at =
                    |point: &super::CurvePoint, value: f64| (horizontal.at(point.epoch as f64), vertical.at(value));
                let upper = arm.curve.iter().map(|point| at(point, value(point).2));
                let lower = arm.curve.iter().rev().map(|point| at(point, value(point).1));
                picture.area("band", &upper.chain(lower).collect::<Vec<_>>(), colour(index));
                let means: Vec<_> = arm.curve.iter().map(|point| at(point, value(point).0)).collect();
                picture.path("curve", &means, colour(index));
                for (point, place) in arm.curve.iter().zip(&means) {
                    let title = format!("{}, epoch {}: {:.4}", arm.name, point.epoch, value(point).0);
                    picture.mark(index, "mean", *place, 3.5, &title);
                }
            }
            picture.finish()
        };
        let percent = |summary: &super::Summary| (summary.mean * 100.0, summary.min * 100.0, summary.max * 100.0);
        let plain = |summary: &super::Summary| (summary.mean, summary.min, summary.max);
        format!(
            "<h2>Learning</h2>\n{}<figure>\n{}{}<figcaption>The mean of each arm, and the range of its runs.</figcaption>\n</figure>\n",
            self.keys(),
            chart("test accuracy, %", "Test accuracy by epoch", &|point| percent(&point.test_accuracy)),
            chart("training loss", "Training loss by epoch", &|point| plain(&point.train_loss)),
        )
    }

    fn cost_section(&self) -> String {
        let (left, right, top, bottom) = (80.0, WIDTH - 30.0, 16.0, 300.0);
        let mut picture = Picture::new(WIDTH, 352.0, "Accuracy against cost");
        let millions = |arm: &ArmReport| arm.multiply_adds as f64 / 1e6;
        let reach = |arm: &ArmReport| {
            let super::Summary { mean, deviation, .. } = arm.test_accuracy;
            [mean - deviation, mean, mean + deviation].map(|value| value * 100.0)
        };
        let vertical = Scale::around(self.arms.iter().flat_map(reach), (bottom, top), 6.0);
        let horizontal = Scale::around(self.arms.iter().map(millions).chain([0.0]), (left, right), 8.0);
        picture.axis_left(&vertical, left, right, "test accuracy, %");
        picture.axis_below(&horizontal, top, bottom, "million multiply-adds per image, forward");
        for (index, arm) in self.arms.iter().enumerate() {
            let [low, mean, high] = reach(arm);
            let x = horizontal.at(millions(arm));
            picture.line("thin", (x, vertical.at(low)), (x, vertical.at(high)), colour(index));
            picture.mark(index, "mean", (x, vertical.at(mean)), 6.0, &format!("{}: {mean:.2} %", arm.name));
        }
        format!(
            "<h2>Accuracy against cost</h2>\n{}<figure>\n{}<figcaption>The mean of each arm; the line is one standard deviation of runs up and \
             down.</figcaption>\n</figure>\n",
            self.keys(),
            picture.finish()
        )
    }

    fn method_section(&self) -> String {
        let study = &self.study;
        let data = match study.train_images {
            Some(images) => format!("{} training images (--data {})", grouped(images as u64), escaped(&study.data)),
            None => format!("--data {}", escaped(&study.data)),
        };
        let again = if self.again.is_some() {
            format!(
                "<li>The control is compared with itself, with other seeds. If that finds a difference, the method may be broken; a sound one finds \
                 one in at most {} of all studies.</li>\n",
                percent(self.design.alpha / self.design.comparisons as f64)
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
            "<h2>Method</h2>\n<ul>\n<li>Images: {data}.</li>\n{planned}{rule}<li>The number of runs and the margin are part of the study's \
             hash: another number of runs is another study.</li>\n<li>A run that diverges is kept, and counts as guessing.</li>\n{again}</ul>\n"
        )
    }

    /// When an arm counts as better, worse or the same.
    fn rule(&self) -> String {
        format!(
            "<li>An arm counts as better or worse if three things hold: the exact sign-flip test rejects, corrected over {} by Holm's method; \
             the t interval excludes zero; and the bootstrap interval over seeds and test images excludes zero. It counts as the same if two \
             one-sided tests show that the difference is within the margin, corrected likewise, and the bootstrap agrees. Otherwise these \
             runs can't tell.</li>\n",
            plural(self.design.comparisons, "comparison", "comparisons"),
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
            "<h2>Run it again</h2>\n<p>The same command gives the same bits on any machine. The study has the hash <code>{}</code>, and its \
             images have <code>{}</code>.</p>\n<details><summary>All runs, with the hashes of their weights</summary>\n<div class=\"wide\">\
             <table>\n<tr><th>arm</th><th>seed</th><th>test accuracy</th><th>weights_sha256</th></tr>\n{}</table></div></details>\n",
            self.study_sha256,
            self.images_sha256,
            rows.collect::<String>()
        )
    }

    /// The marks of all arms.
    fn keys(&self) -> String {
        let keys: String = self.arms.iter().enumerate().map(|(index, arm)| key(index, &arm.name)).collect();
        format!("<p class=\"keys\">{keys}</p>\n")
    }

    /// All comparisons, each with the index of its arm.
    fn all_comparisons(&self) -> Vec<(usize, &Comparison)> {
        let all = self.comparisons.iter().chain(&self.again);
        let index =
            |comparison: &Comparison| self.arms.iter().position(|arm| arm.name == comparison.tested.arm).unwrap_or(0);
        all.map(|comparison| (index(comparison), comparison)).collect()
    }
}
