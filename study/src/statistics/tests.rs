//! The statistics against SciPy, statsmodels and NumPy (`golden/statistics.json`), and simulations of their error rates.

use convoy_common::random::Source;
use rayon::prelude::*;
use serde_json::Value;

use super::bootstrap::Differences;
use super::distributions::{
    chi_squared_cdf, chi_squared_quantile, normal_cdf, normal_quantile, t_cdf, t_quantile, t_two_sided,
};
use super::paired::{StudentT, superiority};
use super::{Interval, correlation, deviation_interval, holm, planning, sign_flip};

fn golden() -> Value {
    serde_json::from_str(include_str!("../../golden/statistics.json")).unwrap()
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

/// Equal within 1e-9, relative to values above 1. Other implementations use other series.
fn assert_close(ours: f64, theirs: &Value, what: &str) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() <= 1e-9 * theirs.abs().max(1.0), "{what}: {ours} and {theirs}");
}

fn assert_interval(ours: Interval, theirs: &Value, what: &str) {
    assert_close(ours.low, &theirs[0], what);
    assert_close(ours.high, &theirs[1], what);
}

#[test]
fn distributions_agree_with_scipy() {
    let cases = golden()["distributions"].as_array().unwrap().clone();
    assert!(cases.len() > 100);
    for case in cases {
        let (df, of) = (case["df"].as_f64().unwrap(), case.to_string());
        if let Some(t) = case["t"].as_f64() {
            assert_close(t_cdf(t, df), &case["cdf"], &of);
            assert_close(t_two_sided(t, df), &case["two_sided"], &of);
            assert_close(normal_cdf(t), &case["normal"], &of);
        } else {
            let p = case["p"].as_f64().unwrap();
            assert_close(t_quantile(p, df), &case["t_quantile"], &of);
            assert_close(normal_quantile(p), &case["normal_quantile"], &of);
        }
    }
}

#[test]
fn deviations_and_chi_squared_agree_with_scipy() {
    let golden = golden();
    let cases = golden["chi_squared"].as_array().unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let df = case["df"].as_f64().unwrap();
        match (case["x"].as_f64(), case["p"].as_f64()) {
            (Some(x), _) => assert_close(chi_squared_cdf(x, df), &case["cdf"], &case.to_string()),
            (_, p) => assert_close(chi_squared_quantile(p.unwrap(), df), &case["quantile"], &case.to_string()),
        }
    }
    for case in golden["deviation"].as_array().unwrap() {
        assert_interval(deviation_interval(&numbers(&case["values"]), 0.95), &case["interval"], &case.to_string());
    }
}

#[test]
fn paired_tests_agree_with_scipy_and_statsmodels() {
    for case in golden()["pairs"].as_array().unwrap() {
        let (a, b) = (numbers(&case["a"]), numbers(&case["b"]));
        let differences: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a - b).collect();
        let paired = StudentT::of_pairs(&differences);
        assert_close(paired.p(), &case["p"], "paired p");
        assert_interval(paired.interval(0.95), &case["interval"], "paired interval");
        let margin = case["equivalence"]["margin"].as_f64().unwrap();
        assert_close(paired.equivalence(margin), &case["equivalence"]["p"], "equivalence");
        let welch = StudentT::welch(&a, &b);
        assert_close(welch.p(), &case["welch"]["p"], "Welch's p");
        assert_close(welch.df, &case["welch"]["df"], "Welch's df");
        assert_interval(welch.interval(0.95), &case["welch"]["interval"], "Welch's interval");
        if !case["correlation"].is_null() {
            assert_close(correlation(&a, &b).unwrap(), &case["correlation"], "correlation");
        }
    }
}

#[test]
fn holm_and_wilson_agree_with_statsmodels() {
    for case in golden()["holm"].as_array().unwrap() {
        let adjusted = holm(&numbers(&case["p"]));
        adjusted.iter().zip(case["adjusted"].as_array().unwrap()).for_each(|(a, b)| assert_close(*a, b, "Holm"));
    }
    for case in golden()["wilson"].as_array().unwrap() {
        let (wins, n) = (case["wins"].as_f64().unwrap(), case["n"].as_u64().unwrap() as usize);
        let ties = usize::from(wins.fract() > 0.0);
        let won = wins as usize;
        let differences = [vec![1.0; won], vec![0.0; ties], vec![-1.0; n - won - ties]].concat();
        assert_interval(superiority(&differences, 0.95).1, &case["interval"], "Wilson");
    }
}

#[test]
fn the_sign_flip_test_agrees_with_scipys_exact_permutation_test() {
    for case in golden()["sign_flip"].as_array().unwrap() {
        let differences: Vec<i64> = numbers(&case["differences"]).into_iter().map(|d| d as i64).collect();
        assert_close(sign_flip::p(&differences).unwrap(), &case["p"], &case.to_string());
    }
    assert_eq!(sign_flip::p(&[5, 4, 3, 2, 1, 9]).unwrap(), sign_flip::smallest(6));
    assert_eq!(sign_flip::p(&[0, 0, 0]).unwrap(), 1.0);
    assert!(sign_flip::p(&[i64::MAX / 4]).is_none());
}

#[test]
fn the_bootstrap_agrees_with_numpy_on_the_same_draws() {
    let rows = |value: &Value| -> Vec<Vec<bool>> {
        let rows = value.as_array().unwrap().iter();
        rows.map(|row| row.as_str().unwrap().chars().map(|digit| digit == '1').collect()).collect()
    };
    for case in golden()["bca"].as_array().unwrap() {
        let differences = Differences::new(&rows(&case["a"]), &rows(&case["b"]));
        let draws = case["draws"].as_u64().unwrap() as usize;
        assert_interval(differences.resampled(draws).interval(0.95), &case["interval"], "BCa");
    }
}

/// What two equal arms get right in a simulated study. Each arm has effects of runs and of images, and each run and image luck of its own,
/// as large as real ones: accuracies near 90 %, which differ by some 0.3 points between runs and by more between images.
fn equal_arms(number: u64, pairs: u64, images: u64) -> [Vec<Vec<bool>>; 2] {
    let skill = Source::new(11, "simulated images");
    let of_arm = |purpose: &str, name: &str| Source::new(11, &format!("{purpose} of {name}"));
    ["first", "second"].map(|name| {
        let (of_run, of_image, luck) = (of_arm("runs", name), of_arm("images", name), of_arm("luck", name));
        let right = |run: u64, image: u64| {
            let common = 2.2 + 1.5 * skill.normal(number * images + image);
            let own = 0.06 * of_run.normal(number * pairs + run) + 0.3 * of_image.normal(number * images + image);
            common + own + 0.8 * luck.normal((number * pairs + run) * images + image) > 0.0
        };
        (0..pairs).map(|run| (0..images).map(|image| right(run, image)).collect()).collect()
    })
}

/// Without its scale, the bootstrap over seeds and images would cover in 98 to 99 % of these studies.
#[test]
fn the_bootstrap_interval_covers() {
    const SIMULATIONS: u64 = 10_000;
    for pairs in [8, 20] {
        let covers = (0..SIMULATIONS).into_par_iter().filter(|number| {
            let [first, second] = equal_arms(*number, pairs, 200);
            !Differences::new(&first, &second).resampled(500).interval(0.95).excludes_zero()
        });
        let share = covers.count() as f64 / SIMULATIONS as f64;
        assert!((0.94..=0.96).contains(&share), "{pairs} pairs: {share} cover");
    }
}

/// Standard normal differences of `pairs` pairs, for simulation `number`.
fn simulated(number: u64, pairs: u64) -> Vec<f64> {
    let source = Source::new(7, "simulated differences");
    (0..pairs).map(|index| source.normal(number * pairs + index)).collect()
}

#[test]
fn intervals_cover_and_tests_keep_their_level() {
    const SIMULATIONS: u64 = 10_000;
    for pairs in [4, 8, 20] {
        let (mut covers, mut rejects, mut equivalent) = (0, 0, 0);
        for number in 0..SIMULATIONS {
            let differences = simulated(number, pairs);
            let test = StudentT::of_pairs(&differences);
            covers += u64::from(!test.interval(0.95).excludes_zero());
            rejects += u64::from(test.p() <= 0.05);
            // The true mean is at the edge of the margin.
            let shifted: Vec<f64> = differences.iter().map(|d| d + 2.0).collect();
            equivalent += u64::from(StudentT::of_pairs(&shifted).equivalence(2.0) <= 0.05);
        }
        let share = |count: u64| count as f64 / SIMULATIONS as f64;
        assert!((0.94..=0.96).contains(&share(covers)), "{pairs} pairs: {} cover", share(covers));
        assert!((0.04..=0.06).contains(&share(rejects)), "{pairs} pairs: {} reject", share(rejects));
        assert!(share(equivalent) <= 0.06, "{pairs} pairs: {} wrongly equivalent", share(equivalent));
    }
}

#[test]
fn the_sign_flip_test_keeps_its_level() {
    const SIMULATIONS: u64 = 4_000;
    let rejects = (0..SIMULATIONS).filter(|number| {
        let differences: Vec<i64> = simulated(*number, 8).into_iter().map(|d| (20.0 * d) as i64).collect();
        sign_flip::p(&differences).unwrap() <= 0.05
    });
    let share = rejects.count() as f64 / SIMULATIONS as f64;
    assert!((0.03..=0.06).contains(&share), "{share} reject");
}

#[test]
fn planned_runs_find_what_they_were_planned_for() {
    // The rule of a study with this many comparisons, on other draws than those of the plan.
    for (pairs, comparisons) in [(8, 1), (8, 6), (10, 6), (20, 2), (40, 3)] {
        let alpha = 0.05 / f64::from(comparisons);
        let difference = planning::detectable(pairs, 1.0, alpha);
        let found = (0..2_000).filter(|number| {
            let differences: Vec<f64> = simulated(*number, pairs as u64).into_iter().map(|d| d + difference).collect();
            let whole: Vec<i64> = differences.iter().map(|d| (d * 100.0) as i64).collect();
            StudentT::of_pairs(&differences).p() <= alpha && sign_flip::p(&whole).unwrap() <= alpha
        });
        let power = found.count() as f64 / 2_000.0;
        assert!((0.75..=0.85).contains(&power), "{pairs} pairs, {comparisons} comparisons: {power}");
    }
    assert!(planning::detectable(4, 1.0, 0.05).is_infinite());
    let runs = planning::runs_for(0.2, 0.28, 0.05).unwrap();
    assert!(planning::provable_margin(runs, 0.28, 0.05) <= 0.2 && planning::runs_for(0.4, 0.28, 0.05).unwrap() < runs);
    assert!(planning::runs_for(1e-9, 1.0, 0.05).is_none());
}
