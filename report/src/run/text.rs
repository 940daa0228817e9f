//! The report of a run in a few lines.

use super::RunReport;
use super::classes::TOP;
use crate::words::printable;
use convoy_common::text::counted;

impl RunReport {
    /// What a reader wants to know first, sentence by sentence.
    pub(super) fn summary(&self) -> Vec<String> {
        let record = &self.records.record;
        let mut text = vec![format!("The run trained {} on {}.", record.model, record.data)];
        text.push(format!("It {}.", self.status()));
        if let Some(epoch) = self.records.epochs.last() {
            text.push(format!(
                "After epoch {}, it classified {:.2} % of the test images correctly.",
                epoch.epoch,
                epoch.test_accuracy * 100.0
            ));
        }
        if let Some(rate) = record.images_per_second {
            text.push(format!("It trained {rate:.0} images per second."));
        }
        if !record.incidents.is_empty() {
            text.push(format!("It recovered from {}.", counted(record.incidents.len(), "fault", "faults")));
        }
        text
    }

    /// How the run ended, as the end of a sentence.
    fn status(&self) -> String {
        let record = &self.records.record;
        match (record.status.as_str(), &record.error, record.diverged_after) {
            ("done", ..) => "is done".to_owned(),
            (_, _, Some(steps)) => format!("diverged: after step {steps}, numbers were no longer finite"),
            ("failed", Some(error), _) => format!("failed: {}", error.trim_end_matches('.')),
            ("running", ..) => "is running, or was killed".to_owned(),
            (status, ..) => format!("was {status}"),
        }
    }

    /// The report for a terminal.
    pub fn text(&self) -> String {
        let record = &self.records.record;
        let mut lines = vec![
            format!("model           {}", record.model),
            format!("data            {}", record.data),
            format!("status          {}", self.status()),
        ];
        if let Some(trained) = &self.trained {
            lines.push(format!("weights         step {} ({})", trained.step, trained.weights_sha256));
            if let Some(classes) = &trained.classes {
                let top = format!(", {:.2} % among the first {TOP}", classes.top_accuracy() * 100.0);
                let top = if classes.classes > TOP { top } else { String::new() };
                lines.push(format!("measured on     {}", classes.origin));
                lines.push(format!("test accuracy   {:.2} %{top}", classes.accuracy() * 100.0));
                lines.push(format!("test loss       {:.4}", classes.loss));
                let taken = |(label, predicted, count): &(u16, u16, u32)| {
                    let [label, predicted] = [label, predicted].map(|class| classes.name(usize::from(*class)));
                    format!("class {label} taken for {predicted} ({count} images)")
                };
                let listed: Vec<String> = classes.confusions(3).iter().map(taken).collect();
                if !listed.is_empty() {
                    lines.push(format!("confusions      {}", listed.join(", ")));
                }
            }
        }
        if let Some(time) = &self.time {
            lines.push(format!("step            {:.2} ms; bottleneck: {}", time.step_ms, time.bottleneck));
        }
        lines.push(format!("faults          {}", record.incidents.len()));
        lines.extend(self.missing.iter().map(|what| format!("note: {what}")));
        lines.iter().map(|line| printable(line) + "\n").collect()
    }
}
