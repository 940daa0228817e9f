//! Two runs side by side: what differs in their settings, and how their results differ. It says nothing about the networks beyond these two
//! runs; for that, there are studies.

use serde::Serialize;

use super::RunReport;
use super::curves::charts;
use crate::binomial::as_uneven;
use crate::html;
use crate::svg::{escaped, key};
use crate::words::{chance, printable, sentence};
use convoy_common::text::counted;

/// Two runs.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Both runs.
    pub runs: [RunReport; 2],
    /// The settings that differ: the name, and both values.
    pub differing: Vec<(String, [String; 2])>,
    /// Whether the weights are equal to the bit. None if a run has none, or has them of another step.
    pub same_weights: Option<bool>,
    /// How the results on test images differ. None if they were not measured on the same images.
    pub results: Option<Results>,
}

/// How the results of two runs on the same images differ.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Images that only the first run classifies correctly, and those that only the second one does.
    pub only: [usize; 2],
    /// The accuracy of the second run minus that of the first one.
    pub difference: f64,
    /// The chance of a split of these images that is as uneven, if both nets were right equally often (McNemar's exact test).
    pub chance: f64,
    /// The accuracies of each class, of both runs. None of a class without images.
    pub by_class: Vec<Option<[f64; 2]>>,
    /// The names of the classes, or their numbers.
    pub names: Vec<String>,
}

impl Comparison {
    /// Compares `second` with `first`.
    pub fn new(first: RunReport, second: RunReport) -> Self {
        let differing = differing(&first, &second);
        let same_weights = first.trained.as_ref().zip(second.trained.as_ref()).and_then(|(first, second)| {
            (first.step == second.step).then(|| first.weights_sha256 == second.weights_sha256)
        });
        Self { results: results(&first, &second), runs: [first, second], differing, same_weights }
    }

    /// What came out, sentence by sentence.
    fn said(&self) -> Vec<String> {
        let mut said = Vec::new();
        let of_runs =
            self.runs.iter().flat_map(|run| run.missing.iter().map(move |what| format!("{}: {what}", run.folder)));
        said.extend(of_runs);
        if let [Some(first), Some(second)] = self.runs.each_ref().map(|run| run.trained.as_ref()) {
            if first.step != second.step {
                said.push(format!("the newest checkpoints are of steps {} and {}", first.step, second.step));
            }
            let measured = first.classes.as_ref().zip(second.classes.as_ref());
            if measured.is_some_and(|(first, second)| first.images_sha256 != second.images_sha256) {
                said.push(
                    "the runs were measured on different test images, so their results are not compared".to_owned(),
                );
            }
        }
        match self.same_weights {
            Some(true) => said.push("the weights of both runs are equal to the bit".to_owned()),
            Some(false) if self.differing.is_empty() => {
                said.push("the weights differ, although all settings that decide the result are the same".to_owned());
            }
            _ => {}
        }
        if let Some(Results { only: [first, second], difference, chance: p, .. }) = &self.results {
            let of_both = first + second;
            said.push(format!(
                "the second run is {:+.2} points of test accuracy from the first one",
                difference * 100.0
            ));
            said.push(format!(
                "{} classified correctly by only one of them: {first} by the first run and {second} by the second. If both were right equally often, \
                 a split at least as uneven would have a chance of {}",
                counted(of_both, "test image is", "test images are"),
                chance(*p)
            ));
            if self.same_weights != Some(true) {
                said.push(
                    "this is about these two runs, and not about their networks: runs that differ only in their seed differ as well. `convoy study` \
                     compares networks over many runs"
                        .to_owned(),
                );
            }
        }
        said
    }

    /// The comparison for a terminal.
    pub fn text(&self) -> String {
        let row = |name: &str, [first, second]: [&str; 2]| format!("{name:<15} {first}  |  {second}");
        let folders = self.runs.each_ref().map(|run| run.folder.as_str());
        let mut lines = vec![row("run", folders)];
        lines.extend(self.differing.iter().map(|(name, [a, b])| row(name, [a, b])));
        if self.differing.is_empty() {
            lines.push("settings        all that decide the result are the same".to_owned());
        }
        let accuracy = self.runs.each_ref().map(|run| {
            let classes = run.trained.as_ref().and_then(|trained| trained.classes.as_ref());
            classes.map_or("-".to_owned(), |classes| format!("{:.2} %", classes.accuracy() * 100.0))
        });
        lines.push(row("test accuracy", accuracy.each_ref().map(String::as_str)));
        lines.extend(self.said());
        lines.iter().map(|line| printable(line) + "\n").collect()
    }

    /// The comparison as a page.
    pub fn page(&self) -> String {
        let names = self.runs.each_ref().map(|run| run.folder.as_str());
        let keys: String = names.iter().enumerate().map(|(series, name)| key(series, name)).collect();
        let said: String = self.said().iter().map(|text| format!("<li>{}.</li>\n", escaped(&sentence(text)))).collect();
        let [first, second] = &self.runs;
        let body = format!(
            "<p class=\"keys\">{keys}</p>\n<ul>\n{said}</ul>\n{}{}{}",
            self.settings(),
            charts(&[first, second]),
            self.classes()
        );
        html::page(&format!("{} and {}", names[0], names[1]), &body)
    }

    fn settings(&self) -> String {
        if self.differing.is_empty() {
            return "<p>All settings that decide the result are the same.</p>\n".to_owned();
        }
        let row = |(name, [a, b]): &(String, [String; 2])| {
            format!("<tr><td>{}</td><td>{}</td><td>{}</td></tr>\n", escaped(name), escaped(a), escaped(b))
        };
        let rows: String = self.differing.iter().map(row).collect();
        format!(
            "<h2>Settings that differ</h2>\n<div class=\"wide\"><table>\n<tr><th>setting</th><th>first</th><th>second</th></tr>\n{rows}</table></div>\n"
        )
    }

    fn classes(&self) -> String {
        let Some(results) = &self.results else { return String::new() };
        let row = |(class, both): (&String, &Option<[f64; 2]>)| {
            let (class, Some([a, b])) = (escaped(class), both) else { return String::new() };
            let points = (b - a) * 100.0;
            format!(
                "<tr><td>{class}</td><td>{:.1} %</td><td>{:.1} %</td><td>{points:+.1}</td></tr>\n",
                a * 100.0,
                b * 100.0
            )
        };
        let rows: String = results.names.iter().zip(&results.by_class).map(row).collect();
        format!(
            "<h2>Accuracy by class</h2>\n<div class=\"wide\"><table>\n<tr><th>class</th><th>first</th><th>second</th><th>difference, points</th></tr>\n\
             {rows}</table></div>\n"
        )
    }
}

fn differing(first: &RunReport, second: &RunReport) -> Vec<(String, [String; 2])> {
    let both = [first, second].map(|run| run.records.settings());
    let model = [first, second].map(|run| run.records.record.configuration["model"].as_str().unwrap_or_default());
    let mut names: Vec<&String> = both.iter().flatten().map(|(name, _)| name).collect();
    names.sort();
    names.dedup();
    let value = |run: usize, name: &str| {
        let found = both[run].iter().find(|(other, _)| other == name);
        found.map_or_else(|| "-".to_owned(), |(_, value)| value.clone())
    };
    let settings = names.into_iter().map(|name| (name.clone(), [value(0, name), value(1, name)]));
    let mut differing: Vec<_> = settings.filter(|(_, [a, b])| a != b).collect();
    if model[0] != model[1] {
        let names = [first, second].map(|run| format!("{} (its text)", run.records.record.model));
        differing.insert(0, ("model".to_owned(), names));
    }
    differing
}

/// None unless both were measured, on the same images.
fn results(first: &RunReport, second: &RunReport) -> Option<Results> {
    let [a, b] = [first, second].map(|run| run.trained.as_ref()?.classes.as_ref());
    let (a, b) = (a?, b?);
    if a.images_sha256 != b.images_sha256 || a.classes != b.classes {
        return None;
    }
    let only = |one: &[bool], other: &[bool]| one.iter().zip(other).filter(|(one, other)| **one && !**other).count();
    let only = [only(&a.right, &b.right), only(&b.right, &a.right)];
    let class = |class: usize| Some([a.accuracy_of(class)?, b.accuracy_of(class)?]);
    Some(Results {
        chance: as_uneven(only[0].max(only[1]), only[0] + only[1]),
        only,
        difference: b.accuracy() - a.accuracy(),
        by_class: (0..a.classes).map(class).collect(),
        names: (0..a.classes).map(|class| a.name(class)).collect(),
    })
}
