//! The report of a run in a few lines.

use super::RunReport;
use super::classes::TOP;
use crate::words::plural;

impl RunReport {
    /// What a reader wants to know first, sentence by sentence.
    pub(super) fn summary(&self) -> Vec<String> {
        let record = &self.records.record;
        let mut text = vec![format!("The run trained {} on {}.", record.model, record.data)];
        text.push(match (record.status.as_str(), &record.error, record.diverged_after) {
            ("done", ..) => "It is done.".to_owned(),
            (_, _, Some(steps)) => format!("It diverged: after step {steps}, numbers were no longer finite."),
            ("failed", Some(error), _) => format!("It failed: {}.", error.trim_end_matches('.')),
            ("running", ..) => "Its record says that it is running; it may also have been killed.".to_owned(),
            (status, ..) => format!("It was {status}."),
        });
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
            text.push(format!("It recovered from {}.", plural(record.incidents.len(), "fault", "faults")));
        }
        text
    }

    /// The report for a terminal.
    pub fn text(&self) -> String {
        let record = &self.records.record;
        let mut lines = vec![
            format!("model           {}", record.model),
            format!("data            {}", record.data),
            format!("status          {}", record.status),
        ];
        if let Some(trained) = &self.trained {
            lines.push(format!("weights         step {} ({})", trained.step, trained.weights_sha256));
            if let Some(classes) = &trained.classes {
                let top = format!(", {:.2} % among the first {TOP}", classes.top_accuracy() * 100.0);
                let top = if classes.classes > TOP { top } else { String::new() };
                lines.push(format!("test accuracy   {:.2} %{top}", classes.accuracy() * 100.0));
                lines.push(format!("test loss       {:.4}", classes.loss));
                let taken = |(label, predicted, count): &(u16, u16, u32)| format!("{label} for {predicted} ({count})");
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
        lines.join("\n") + "\n"
    }
}
