//! The report of a study: a pure function of the study and of what was measured, so it is the same to the bit when the study is run again.
//! Accuracies are shares between 0 and 1; differences are an arm's accuracy minus the control's.
//!
//! Not here: running (`conduct`), and what the report looks like (`text`, `page`).

mod charts_page;
mod comparisons_page;
mod filters;
mod filters_page;
mod further;
pub mod layers;
mod layers_page;
pub mod page;
mod rates;
mod summary;
pub mod text;
mod variation;
mod verdict;

use std::collections::BTreeMap;

use convoy_common::plan::Plan;
use convoy_coordinator::job::Asked;
use serde::Serialize;

use crate::arm::Arm;
use crate::design::{Design, RESAMPLES, RunId};
use crate::file::Study;
use crate::measured::{Measured, Outcome, Trained};
use crate::represent::Represented;
use crate::statistics::bootstrap::Differences;
use crate::statistics::paired::{StudentT, superiority};
use crate::statistics::{correlation, deviation, holm, planning, sign_flip, variance};
use crate::tune::Tuned;

pub use filters::FiltersReport;
pub use further::Further;
pub use layers::LayerReport;
pub use summary::Summary;
pub use variation::Variation;
pub use verdict::{Comparison, Tested, Verdict};

/// The report.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The question.
    pub question: String,
    /// What a reader needs to know to understand it.
    #[serde(skip)]
    background: String,
    /// The study, with the learning rates that it chose.
    pub study: Study,
    /// SHA-256 over all that decides the study, without the learning rates that it chose.
    pub study_sha256: String,
    /// SHA-256 over the images.
    pub images_sha256: String,
    /// Number of test images. Zero if every run diverged.
    pub test_images: usize,
    /// What the design can show.
    pub design: Design,
    /// The learning rates that were chosen, if the study chooses them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tuned: Vec<Tuned>,
    /// How much the runs of the control vary, by source of randomness, if the study has such series.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub variation: Vec<Variation>,
    /// The arms, the control first.
    pub arms: Vec<ArmReport>,
    /// Each other arm against the control.
    pub comparisons: Vec<Comparison>,
    /// The control with other seeds against the control, if the study has that arm.
    pub again: Option<Comparison>,
    /// How much more each arm overfits than the control, the control with other seeds included: its gap minus the control's.
    pub gaps: Vec<Further>,
    /// Other arms against each other, in their test accuracy.
    pub between: Vec<Further>,
    /// What the channels of layers represent, if the study looks at any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<LayerReport>,
    /// The filters of layers, if the study looks at any.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<FiltersReport>,
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

/// The runs of an arm, in the order of seeds.
struct Runs<'a> {
    arm: &'a Arm,
    all: Vec<&'a Measured>,
    /// Number of test images.
    images: usize,
    /// How many of them are right by guessing. That counts for a run that diverged.
    guessed: usize,
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

    fn correct(&self, run: usize) -> usize {
        trained(self.all[run]).map_or(self.guessed, |trained| trained.test.correct)
    }

    fn accuracy(&self, run: usize) -> f64 {
        match self.images {
            // Every run diverged, so nothing says how many images there are.
            0 => 1.0 / self.arm.network.classes().max(1) as f64,
            images => self.correct(run) as f64 / images as f64,
        }
    }

    /// Which test images a run got right. A run that diverged gets the first ones right.
    fn right(&self, run: usize) -> Vec<bool> {
        let guessed = || (0..self.images).map(|image| image < self.guessed).collect();
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
    /// The report of a study whose runs have all ended. `tuned` holds the learning rates that it chose, `measured` all runs, and `represented`
    /// what they represent.
    pub fn new(
        study: &Study,
        tuned: Vec<Tuned>,
        images_sha256: &str,
        measured: &BTreeMap<RunId, Measured>,
        represented: &[Represented],
    ) -> Self {
        let study_sha256 = study.sha256(images_sha256);
        let study = &study.with_rates(&tuned);
        let design = Design::of(study);
        let images = measured.values().find_map(trained).map_or(0, |trained| trained.test.images);
        let guessed = images / study.control().network.classes().max(1);
        let runs_of = |(arm, described): (usize, &'_ Arm)| {
            (0..described.seeds.len()).map(|pair| &measured[&RunId { pair, arm }]).collect::<Vec<_>>()
        };
        let arms = study.arms.iter().enumerate();
        let runs: Vec<Runs> =
            arms.map(|(index, arm)| Runs { arm, all: runs_of((index, arm)), images, guessed }).collect();
        let tested = runs[1..]
            .iter()
            .filter(|runs| runs.arm.varies.is_none())
            .map(|arm| Tested::new(arm, &runs[0], &design, study));
        let (again, others): (Vec<Tested>, Vec<Tested>) = tested.partition(|tested| tested.is_again);
        let corrected = |p: fn(&Tested) -> f64| holm(&others.iter().map(p).collect::<Vec<_>>());
        let (differs, equals) = (corrected(|tested| tested.sign_flip), corrected(|tested| tested.equivalence));
        let compared = others.into_iter().zip(differs.into_iter().zip(equals));
        let comparisons = compared.map(|(tested, (differs, equals))| tested.judged(differs, equals, study)).collect();
        // It must pass the strictest test that another arm must pass.
        let strictest = |p: f64| (p * design.comparisons as f64).min(1.0);
        let again = again.into_iter().next().map(|tested| {
            let (differs, equals) = (strictest(tested.sign_flip), strictest(tested.equivalence));
            tested.judged(differs, equals, study)
        });
        Self {
            question: study.question.clone(),
            background: study.background.clone(),
            study: study.clone(),
            study_sha256,
            images_sha256: images_sha256.to_owned(),
            test_images: images,
            design,
            tuned,
            variation: Variation::all(&runs, study),
            arms: runs.iter().map(|runs| ArmReport::new(runs, study)).collect(),
            comparisons,
            again,
            gaps: Further::gaps(&runs, study.confidence),
            between: Further::between(&runs, study.confidence),
            layers: LayerReport::all(study, represented),
            filters: FiltersReport::all(study, represented),
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
            gap: runs.summary(Trained::gap),
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
    fn new(arm: &Runs, control: &Runs, design: &Design, study: &Study) -> Self {
        let pairs = arm.all.len().min(control.all.len());
        let accuracies = |runs: &Runs| (0..pairs).map(|pair| runs.accuracy(pair)).collect::<Vec<f64>>();
        let right = |runs: &Runs| (0..pairs).map(|pair| runs.right(pair)).collect::<Vec<_>>();
        let diverged = |runs: &Runs| runs.all[..pairs].iter().filter(|run| trained(run).is_none()).count();
        let (ours, theirs) = (accuracies(arm), accuracies(control));
        let in_images: Vec<i64> =
            (0..pairs).map(|pair| arm.correct(pair) as i64 - control.correct(pair) as i64).collect();
        let differences: Vec<f64> = in_images.iter().map(|d| *d as f64 / arm.images.max(1) as f64).collect();
        let paired = StudentT::of_pairs(&differences);
        let welch = StudentT::welch(&ours, &theirs);
        let (superiority, superiority_interval) = superiority(&differences, study.confidence);
        let varies = in_images.iter().any(|d| *d != in_images[0]);
        let resampled = Differences::new(&right(arm), &right(control)).resampled(RESAMPLES);
        Self {
            arm: arm.arm.name.clone(),
            is_again: arm.arm.is_again,
            mean: paired.mean,
            deviation: deviation(&differences),
            interval: paired.interval(study.confidence),
            bootstrap: resampled.interval(study.confidence),
            bootstrap_of_equivalence: resampled.interval((2.0 * study.confidence - 1.0).max(0.0)),
            // Nothing is rejected if the test can't be computed.
            sign_flip: sign_flip::p(&in_images).unwrap_or(1.0),
            equivalence: paired.equivalence(study.margin_share()),
            superiority,
            superiority_interval,
            welch: welch.p(),
            welch_interval: welch.interval(study.confidence),
            correlation: correlation(&ours, &theirs),
            effective_runs: varies
                .then(|| pairs as f64 * (variance(&ours) + variance(&theirs)) / variance(&differences)),
            diverged: [diverged(arm), diverged(control)],
            pairs_needed: planning::runs_for(
                study.margin_share(),
                deviation(&differences),
                design.alpha / design.comparisons as f64,
            ),
            differences,
        }
    }
}
