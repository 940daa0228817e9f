//! The report of a study: a pure function of the study and of what was measured, so it is the same to the bit when the study is run again.
//! Accuracies are shares between 0 and 1; differences are an arm's accuracy minus the control's.
//!
//! Not here: running (`conduct`), and what the report looks like (`text`, `page`).

pub(crate) mod html;
pub mod layers;
mod layers_page;
pub mod page;
mod raster;
mod svg;
pub mod text;
mod verdict;

use std::collections::BTreeMap;

use convoy_common::plan::Plan;
use convoy_coordinator::job::Asked;
use serde::Serialize;

use crate::design::{Design, RESAMPLES};
use crate::file::{Arm, Study};
use crate::measured::{Measured, Outcome, Trained};
use crate::represent::Represented;
use crate::statistics::bootstrap::Differences;
use crate::statistics::paired::{StudentT, superiority};
use crate::statistics::{Interval, correlation, deviation, holm, mean, planning, sign_flip, variance};

pub use layers::LayerReport;
pub use verdict::{Tested, Verdict};

/// The report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The question.
    pub question: String,
    /// What a reader needs to know to understand it.
    #[serde(skip)]
    background: String,
    /// The study.
    pub study: Study,
    /// SHA-256 over all that decides the study.
    pub study_sha256: String,
    /// SHA-256 over the images.
    pub images_sha256: String,
    /// Number of test images.
    pub test_images: usize,
    /// What the design can show.
    pub design: Design,
    /// The arms, the control first.
    pub arms: Vec<ArmReport>,
    /// Each other arm against the control.
    pub comparisons: Vec<Comparison>,
    /// The control with other seeds against the control, if the study has that arm.
    pub again: Option<Comparison>,
    /// What the channels of layers represent, if the study looks at any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerReport>,
}

/// An arm and its results.
#[derive(Clone, Debug, Serialize)]
pub struct ArmReport {
    /// Its name.
    pub name: String,
    /// What it is.
    pub about: String,
    /// Number of parameters, without those that masks keep at zero.
    pub parameters: usize,
    /// Multiply-adds of one image, forward.
    pub multiply_adds: u64,
    /// Bytes over sockets per training step, with a worker for each tower.
    pub step_bytes: u64,
    /// Each run, in the order of seeds.
    pub runs: Vec<RunReport>,
    /// Number of runs that diverged.
    pub diverged: usize,
    /// Accuracy on the test images.
    pub test_accuracy: Summary,
    /// Accuracy on the training images. This and the following are of the runs that did not diverge, if there are any.
    pub train_accuracy: Option<Summary>,
    /// Accuracy on the training images minus that on the test images.
    pub gap: Option<Summary>,
    /// Loss on the test images.
    pub test_loss: Option<Summary>,
    /// Accuracy on the test images after each epoch.
    pub curve: Vec<CurvePoint>,
}

/// A run.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Its seed.
    pub seed: u64,
    /// Number of correctly classified test images. None if it diverged.
    pub correct: Option<usize>,
    /// Accuracy on the test images, with that of guessing for a run that diverged.
    pub test_accuracy: f64,
    /// SHA-256 over all weights. None if it diverged.
    pub weights_sha256: Option<String>,
    /// The steps after which it diverged.
    pub diverged_after: Option<u64>,
}

/// The mean of some runs and how they vary.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    /// Number of runs.
    pub runs: usize,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub deviation: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

/// A point of a learning curve.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CurvePoint {
    /// Counted from 1.
    pub epoch: u64,
    /// Accuracy on the test images.
    pub test_accuracy: Summary,
    /// Loss on the training images, during training.
    pub train_loss: Summary,
}

/// An arm against the control.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// The arm.
    pub arm: String,
    /// Number of pairs.
    pub pairs: usize,
    /// The difference of each pair.
    pub differences: Vec<f64>,
    /// The mean difference.
    pub mean: f64,
    /// The standard deviation of differences.
    pub deviation: f64,
    /// The interval of the mean, by Student's t.
    pub interval: Interval,
    /// The interval of the mean over seeds and test images, by the BCa bootstrap.
    pub bootstrap: Interval,
    /// The p-value of the exact sign-flip test.
    pub sign_flip: f64,
    /// The same, corrected over all comparisons by Holm's method.
    pub sign_flip_holm: f64,
    /// The p-value of two one-sided tests of equivalence within the margin.
    pub equivalence: f64,
    /// The same, corrected over all comparisons.
    pub equivalence_holm: f64,
    /// The share of pairs in which the arm is better.
    pub superiority: f64,
    /// Its interval.
    pub superiority_interval: Interval,
    /// Welch's test, which ignores pairs: its p-value.
    pub welch: f64,
    /// Its interval.
    pub welch_interval: Interval,
    /// The correlation of paired accuracies. None if an arm's accuracy never varies.
    pub correlation: Option<f64>,
    /// The number of pairs without which unpaired runs would be as precise: pairs times the ratio of variances.
    pub effective_runs: Option<f64>,
    /// Runs of either arm that diverged, in pairs that are compared.
    pub diverged: usize,
    /// The number of pairs that the margin needs with the observed deviation. None if it is beyond reason.
    pub pairs_needed: Option<usize>,
    /// What follows.
    pub verdict: Verdict,
    /// The verdict in words.
    pub said: String,
    /// How many pairs the arm wins, and how often chance alone does as much, in words.
    pub luck: String,
}

impl Summary {
    /// Of at least one value.
    fn of(values: &[f64]) -> Self {
        Self {
            runs: values.len(),
            mean: mean(values),
            deviation: if values.len() > 1 { deviation(values) } else { 0.0 },
            min: values.iter().copied().fold(f64::INFINITY, f64::min),
            max: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
        }
    }
}

/// The runs of an arm, in the order of seeds, and the results of those that did not diverge.
struct Runs<'a> {
    arm: &'a Arm,
    all: Vec<&'a Measured>,
    /// The accuracy of guessing.
    guess: f64,
}

impl<'a> Runs<'a> {
    fn trained(&self) -> impl Iterator<Item = &'a Trained> {
        self.all.iter().filter_map(|measured| trained(measured))
    }

    /// Of the runs that did not diverge. None if all did.
    fn summary(&self, value: impl Fn(&Trained) -> f64) -> Option<Summary> {
        let values: Vec<f64> = self.trained().map(value).collect();
        (!values.is_empty()).then(|| Summary::of(&values))
    }

    fn accuracy(&self, run: usize) -> f64 {
        trained(self.all[run]).map_or(self.guess, |trained| trained.test.accuracy())
    }

    /// Which test images a run got right. A run that diverged gets the first ones right, as many as guessing would.
    fn right(&self, run: usize, images: usize) -> Vec<bool> {
        let guessed = || (0..images).map(|image| image < (self.guess * images as f64) as usize).collect();
        trained(self.all[run]).map_or_else(guessed, |trained| trained.right.0.clone())
    }
}

fn trained(measured: &Measured) -> Option<&Trained> {
    match &measured.outcome {
        Outcome::Trained(trained) => Some(trained),
        Outcome::DivergedAfter(_) => None,
    }
}

impl Report {
    /// The report of a study whose runs have all ended. `measured` holds all of them, and `represented`
    /// what they represent.
    pub fn new(study: &Study, images_sha256: &str, measured: &[Measured], represented: &[Represented]) -> Self {
        let design = Design::of(study);
        let guess = 1.0 / study.control().network.classes() as f64;
        let all: BTreeMap<(&str, u64), &Measured> =
            measured.iter().map(|measured| ((measured.arm.as_str(), measured.seed), measured)).collect();
        let runs_of = |arm: &'_ Arm| -> Vec<&Measured> {
            arm.seeds.iter().filter_map(|seed| all.get(&(arm.name.as_str(), *seed)).copied()).collect()
        };
        let runs: Vec<Runs> = study.arms.iter().map(|arm| Runs { arm, all: runs_of(arm), guess }).collect();
        let test_images = measured.iter().find_map(trained).map_or(0, |trained| trained.test.images);
        let tested: Vec<Tested> = runs[1..].iter().map(|arm| Tested::new(arm, &runs[0], test_images, study)).collect();
        let (again, others): (Vec<Tested>, Vec<Tested>) = tested.into_iter().partition(|tested| tested.is_again);
        let corrected = |p: fn(&Tested) -> f64| holm(&others.iter().map(p).collect::<Vec<_>>());
        let (differs, equals) = (corrected(|tested| tested.sign_flip), corrected(|tested| tested.equivalence));
        let compared = others.iter().zip(differs.iter().zip(&equals));
        let comparisons = compared.map(|(tested, (differs, equals))| tested.judged(*differs, *equals, study)).collect();
        // It must pass the strictest test that another arm must pass.
        let strictest = |p: f64| (p * design.comparisons as f64).min(1.0);
        let again = again
            .first()
            .map(|tested| tested.judged(strictest(tested.sign_flip), strictest(tested.equivalence), study));
        Self {
            question: study.question.clone(),
            background: study.background.clone(),
            study: study.clone(),
            study_sha256: study.sha256(images_sha256),
            images_sha256: images_sha256.to_owned(),
            test_images,
            design,
            arms: runs.iter().map(|runs| ArmReport::new(runs, study)).collect(),
            comparisons,
            again,
            layers: LayerReport::all(study, represented),
        }
    }

    /// Whether the control differs from itself, which it must not.
    pub fn is_broken(&self) -> bool {
        self.again.as_ref().is_some_and(|again| matches!(again.verdict, Verdict::Better(_) | Verdict::Worse(_)))
    }
}

impl ArmReport {
    fn new(runs: &Runs, study: &Study) -> Self {
        let arm = runs.arm;
        let parameters = arm.network.free_values();
        let reported = runs.all.iter().enumerate().map(|(index, measured)| RunReport {
            seed: measured.seed,
            correct: trained(measured).map(|trained| trained.test.correct),
            test_accuracy: runs.accuracy(index),
            weights_sha256: trained(measured).map(|trained| trained.weights_sha256.clone()),
            diverged_after: match measured.outcome {
                Outcome::DivergedAfter(steps) => Some(steps),
                Outcome::Trained(_) => None,
            },
        });
        let reported: Vec<RunReport> = reported.collect();
        let accuracies: Vec<f64> = reported.iter().map(|run| run.test_accuracy).collect();
        Self {
            name: arm.name.clone(),
            about: arm.about.clone(),
            parameters,
            multiply_adds: arm.network.multiply_adds(),
            step_bytes: step_bytes(arm, study),
            diverged: reported.iter().filter(|run| run.correct.is_none()).count(),
            test_accuracy: Summary::of(&accuracies),
            train_accuracy: runs.summary(|trained| trained.train.accuracy()),
            gap: runs.summary(|trained| trained.train.accuracy() - trained.test.accuracy()),
            test_loss: runs.summary(|trained| trained.test.loss),
            curve: (0..study.epochs as usize).filter_map(|epoch| CurvePoint::new(runs, epoch)).collect(),
            runs: reported,
        }
    }
}

impl CurvePoint {
    fn new(runs: &Runs, epoch: usize) -> Option<Self> {
        let epochs: Vec<_> = runs.trained().filter_map(|trained| trained.epochs.get(epoch)).collect();
        let number = epochs.first()?.epoch;
        let summary = |value: fn(&crate::measured::Epoch) -> f64| {
            Summary::of(&epochs.iter().map(|epoch| value(epoch)).collect::<Vec<_>>())
        };
        Some(Self {
            epoch: number,
            test_accuracy: summary(|epoch| epoch.test_accuracy),
            train_loss: summary(|epoch| epoch.train_loss),
        })
    }
}

/// Bytes over sockets of a step with a worker for each tower. 0 where such a job is impossible.
fn step_bytes(arm: &Arm, study: &Study) -> u64 {
    let asked = Asked { batch: study.settings.batch, slots: study.settings.slots, ..Asked::default() };
    let batch = study.settings.batch.unwrap_or(convoy_coordinator::job::defaults::BATCH);
    let plan = asked
        .slots_of(None)
        .ok()
        .and_then(|slots| Plan::new(arm.network.clone(), arm.network.towers, slots, None).ok());
    plan.map_or(0, |plan| plan.step_traffic(batch).total())
}

impl Tested {
    fn new(arm: &Runs, control: &Runs, images: usize, study: &Study) -> Self {
        let pairs = arm.all.len().min(control.all.len());
        let accuracies = |runs: &Runs| (0..pairs).map(|pair| runs.accuracy(pair)).collect::<Vec<f64>>();
        let right = |runs: &Runs| (0..pairs).map(|pair| runs.right(pair, images)).collect::<Vec<_>>();
        let (ours, theirs) = (accuracies(arm), accuracies(control));
        let differences: Vec<f64> = ours.iter().zip(&theirs).map(|(ours, theirs)| ours - theirs).collect();
        let (of_arm, of_control) = (right(arm), right(control));
        let count = |right: &Vec<bool>| right.iter().filter(|right| **right).count() as i64;
        let in_images: Vec<i64> = of_arm.iter().zip(&of_control).map(|(a, b)| count(a) - count(b)).collect();
        let paired = StudentT::of_pairs(&differences);
        let welch = StudentT::welch(&ours, &theirs);
        let (superiority, superiority_interval) = superiority(&differences, study.confidence);
        let unpaired = variance(&ours) + variance(&theirs);
        let of_pairs = variance(&differences);
        Self {
            arm: arm.arm.name.clone(),
            is_again: arm.arm.is_again,
            mean: paired.mean,
            deviation: deviation(&differences),
            interval: paired.interval(study.confidence),
            bootstrap: Differences::new(&of_arm, &of_control).interval(RESAMPLES, study.confidence),
            sign_flip: sign_flip::p(&in_images).unwrap_or(1.0),
            equivalence: paired.equivalence(study.margin),
            superiority,
            superiority_interval,
            welch: welch.p(),
            welch_interval: welch.interval(study.confidence),
            correlation: correlation(&ours, &theirs),
            effective_runs: (of_pairs > 0.0).then(|| pairs as f64 * unpaired / of_pairs),
            diverged: [arm, control]
                .into_iter()
                .map(|runs| runs.all[..pairs].iter().filter(|run| trained(run).is_none()).count())
                .sum(),
            pairs_needed: planning::runs_for(study.margin, deviation(&differences), 1.0 - study.confidence),
            differences,
        }
    }
}
