//! Comparison of calibrations with scikit-learn, and of p-MRR with FollowIR's own evaluation. The scripts of
//! `tests/golden` created the files.

use std::collections::BTreeMap;

use erank_core::evaluation::p_mrr;
use erank_core::trec::{Qrels, Run};
use erank_core::{AnswerFormat, Calibration, Mode, Reliability, ScoreKind};
use serde::Deserialize;
use serde::de::DeserializeOwned;

fn read<T: DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).expect("a golden file")
}

fn close(left: f64, right: f64) -> bool {
    (left - right).abs() < 1e-12
}

#[derive(Deserialize)]
struct CalibrationCase {
    name: String,
    judged: Vec<(f64, u8)>,
    points: Vec<(f64, f64)>,
    others: Vec<(f64, f64)>,
    brier_score: f64,
    expected_calibration_error: f64,
    bins: Vec<(usize, f64, f64)>,
}

fn calibration_cases() -> Vec<CalibrationCase> {
    let cases: Vec<CalibrationCase> = read(include_str!("../../tests/golden/calibration.json"));
    assert_eq!(cases.len(), 8);
    cases
}

#[test]
fn calibration_equals_scikit_learn() {
    for CalibrationCase { name, judged, points, others, .. } in calibration_cases() {
        // The order of the documents does not matter.
        let judged = judged.into_iter().rev().map(|(score, relevant)| (score, relevant == 1));
        let (kind, answers) = (ScoreKind::ProbabilityWeighted, AnswerFormat::zero_to_ten());
        let calibration = Calibration::fit(kind, Mode::AnswerOnly, &answers, judged).expect(&name);
        assert_eq!(calibration.points().len(), points.len(), "{name}");
        for (found, expected) in calibration.points().iter().zip(&points) {
            assert!(found.0 == expected.0 && close(found.1, expected.1), "{name}: {found:?}");
        }
        for (score, expected) in points.into_iter().chain(others) {
            let found = calibration.probability(score);
            assert!(close(found, expected), "{name}, {score}: {found} {expected}");
        }
    }
}

#[test]
fn reliability_equals_scikit_learn() {
    for case in calibration_cases() {
        let name = &case.name;
        let judged = case.judged.iter().map(|(score, relevant)| (score / 10.0, *relevant == 1));
        let found = Reliability::measure(judged).expect(name);
        assert!(close(found.brier_score, case.brier_score), "{name}: {found:?}");
        let error = found.expected_calibration_error;
        assert!(close(error, case.expected_calibration_error), "{name}: {error}");
        assert_eq!(found.bins.len(), Reliability::BINS);
        let bins: Vec<_> = found.bins.iter().filter(|bin| bin.documents > 0).collect();
        assert_eq!(bins.len(), case.bins.len(), "{name}");
        for (bin, (documents, mean, fraction)) in bins.into_iter().zip(&case.bins) {
            assert_eq!(bin.documents, *documents, "{name}");
            assert!(bin.mean_probability.is_some_and(|found| close(found, *mean)), "{name}");
            assert!(bin.relevant_fraction.is_some_and(|found| close(found, *fraction)), "{name}");
        }
    }
}

/// Documents with their scores, by query.
type Scores = BTreeMap<String, BTreeMap<String, f64>>;

#[derive(Deserialize)]
struct FollowIrCase {
    original: Scores,
    changed: Scores,
    removed: BTreeMap<String, Vec<String>>,
    values: BTreeMap<String, f64>,
    mean: f64,
}

fn run(scores: Scores) -> Run {
    let mut run = Run::new();
    for (query, documents) in scores {
        for (document, score) in documents {
            run.insert(&query, document, score).expect("valid");
        }
    }
    run
}

#[test]
fn p_mrr_equals_mteb() {
    let cases: Vec<FollowIrCase> = read(include_str!("../../tests/golden/followir.json"));
    assert_eq!(cases.len(), 7);
    for (number, case) in cases.into_iter().enumerate() {
        let mut removed = Qrels::new();
        for (query, documents) in &case.removed {
            for document in documents {
                removed.insert(query, document, 0).expect("valid");
            }
        }
        let values = p_mrr(&removed, &run(case.original), &run(case.changed));
        assert!(values.iter().map(|(query, _)| query).eq(case.values.keys()), "{number}");
        for (query, value) in values.iter() {
            let expected = case.values[query];
            assert!(close(value, expected), "{number} {query}: {value} {expected}");
        }
        assert!(values.mean().is_some_and(|mean| close(mean, case.mean)), "{number}: {values:?}");
    }
}
