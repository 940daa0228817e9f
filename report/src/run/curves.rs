//! Learning curves of one run or of several.

use super::RunReport;
use crate::svg::{Picture, Scale, colour};

/// Size of a chart.
const SIZE: (f64, f64) = (860.0, 352.0);
/// The most points of a curve. Steps are averaged until there are at most as many.
const POINTS_MAX: usize = 400;

/// A curve: (step, value).
type Curve = Vec<(f64, f64)>;

/// The section with the charts of some runs, the loss first. Empty if they have no steps.
pub(super) fn charts(runs: &[&RunReport]) -> String {
    let of = |curve: fn(&RunReport) -> Curve| runs.iter().map(|run| curve(run)).collect::<Vec<_>>();
    let all = [
        ("training loss", "Training loss by step", of(losses)),
        ("test loss", "Test loss by step", of(test_losses)),
        ("test accuracy, %", "Test accuracy by step", of(accuracies)),
        ("learning rate", "Learning rate by step", of(rates)),
    ];
    let charts: String = all.into_iter().map(|(name, about, curves)| chart(name, about, &curves)).collect();
    if charts.is_empty() { charts } else { format!("<h2>Learning</h2>\n<figure>\n{charts}</figure>\n") }
}

fn losses(run: &RunReport) -> Curve {
    averaged(run.records.steps.iter().filter_map(|step| Some((step.step as f64, step.loss?))).collect())
}

fn rates(run: &RunReport) -> Curve {
    averaged(run.records.steps.iter().map(|step| (step.step as f64, step.lr)).collect())
}

fn accuracies(run: &RunReport) -> Curve {
    run.records.epochs.iter().map(|epoch| (epoch.through_step as f64, epoch.test_accuracy * 100.0)).collect()
}

fn test_losses(run: &RunReport) -> Curve {
    run.records.epochs.iter().filter_map(|epoch| Some((epoch.through_step as f64, epoch.test_loss?))).collect()
}

/// Means of as many neighbours as are needed to have at most [`POINTS_MAX`] points.
fn averaged(curve: Curve) -> Curve {
    let count = curve.len().div_ceil(POINTS_MAX).max(1);
    let mean = |points: &[(f64, f64)]| {
        let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
        (sum.0 / points.len() as f64, sum.1 / points.len() as f64)
    };
    curve.chunks(count).map(mean).collect()
}

fn chart(name: &str, about: &str, curves: &[Curve]) -> String {
    if curves.iter().all(Vec::is_empty) {
        return String::new();
    }
    let (left, right, top, bottom) = (80.0, SIZE.0 - 30.0, 16.0, SIZE.1 - 52.0);
    let mut picture = Picture::new(SIZE.0, SIZE.1, about);
    let all = || curves.iter().flatten();
    let vertical = Scale::around(all().map(|(_, value)| *value), (bottom, top), 6.0);
    let horizontal = Scale::around(all().map(|(step, _)| *step).chain([0.0]), (left, right), 8.0);
    picture.axis_left(&vertical, left, right, name);
    picture.axis_below(&horizontal, top, bottom, "step");
    for (series, curve) in curves.iter().enumerate() {
        let at = |(step, value): &(f64, f64)| (horizontal.at(*step), vertical.at(*value));
        picture.path("curve", &curve.iter().map(at).collect::<Vec<_>>(), colour(series));
        // Few points have marks, so that curves can be told apart without colours.
        let every = curve.len().div_ceil(10).max(1);
        for point in curve.iter().step_by(every) {
            picture.mark(series, "mean", at(point), 3.5, &format!("step {:.0}: {:.4}", point.0, point.1));
        }
    }
    picture.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_curves_are_averaged() {
        let curve: Curve = (1..=1000).map(|step| (f64::from(step), f64::from(step % 2))).collect();
        let shown = averaged(curve);
        assert_eq!((shown.len(), shown[0]), (334, (2.0, 2.0 / 3.0)));
        assert_eq!(averaged(vec![(1.0, 5.0)]), [(1.0, 5.0)]);
    }
}
