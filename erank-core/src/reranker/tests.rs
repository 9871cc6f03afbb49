use std::ops::ControlFlow;

use std::sync::{Arc, Mutex};

use super::*;
use crate::answer_format::AnswerFormat;
use crate::backend::{Job, Sink};
use crate::completion::Completion;
use crate::distribution::AnswerDistribution;
use crate::error::AnswerError;
use crate::options::ConfigError;
use crate::prompt::{Segment, instructions};
use crate::reranker_builder::RerankerBuilder;
use crate::testing::{ScriptedBackend, answered};

fn indices(ranking: &Ranking) -> Vec<usize> {
    ranking.documents.iter().map(|document| document.index).collect()
}

#[test]
fn rerank_keeps_the_request_order_of_ties() {
    let answers = [3, 7, 3, 7, 7].map(|integer| answered(integer, 0.5));
    let reranker = Reranker::builder(ScriptedBackend::new(answers)).build().expect("valid");
    let ranking =
        reranker.rerank(&Request::new("q", ["a", "b", "c", "d", "e"])).expect("a ranking");
    assert_eq!(indices(&ranking), [1, 3, 4, 0, 2]);
    assert!((ranking.documents[0].score - 3.5).abs() < 1e-6);
}

#[test]
fn rerank_lists_bad_documents_as_unscored() {
    let completions = [answered(1, 1.0), Completion::new("<think>…"), answered(5, 1.0)];
    let reranker = Reranker::builder(ScriptedBackend::new(completions)).build().expect("valid");
    let request = Request::new(
        "q",
        [
            Document::new("a").with_id("A"),
            Document::new(" \n\u{200b}").with_id("blank"),
            Document::new("b").with_id("B"),
            Document::new("c"),
        ],
    );
    let ranking = reranker.rerank(&request).expect("a ranking");
    assert_eq!(indices(&ranking), [3, 0]);
    assert_eq!(ranking.documents[1].id.as_deref(), Some("A"));
    let unscored: Vec<_> =
        ranking.unscored.iter().map(|document| (document.index, &document.error)).collect();
    assert!(matches!(
        unscored[..],
        [(1, DocumentError::Empty), (2, DocumentError::Answer(AnswerError::ThoughtNotClosed))]
    ));
}

#[test]
fn rerank_ignores_surplus_and_unknown_results() {
    struct Careless;
    impl ScoringBackend for Careless {
        fn name(&self) -> &str {
            "careless"
        }
        fn score(&self, _: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            sink.completed(1, Ok(answered(4, 1.0)));
            sink.completed(1, Ok(answered(9, 1.0)));
            sink.completed(77, Ok(answered(9, 1.0)));
            Ok(())
        }
    }
    let reranker = Reranker::builder(Careless).build().expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a", "b"])).expect("a ranking");
    assert_eq!(ranking.documents[0].answer.integer, 4);
    assert!(matches!(ranking.unscored[0].error, DocumentError::NotReported));
}

#[test]
fn rerank_error_keeps_finished_documents() {
    struct Fails;
    impl ScoringBackend for Fails {
        fn name(&self) -> &str {
            "fails"
        }
        fn score(&self, _: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            sink.completed(0, Ok(answered(4, 1.0)));
            Err(BackendError::Unavailable("no more".into()))
        }
    }
    let backend: Box<dyn ScoringBackend> = Box::new(Fails);
    let reranker = Reranker::builder(backend).build().expect("valid");
    let error = reranker.rerank(&Request::new("q", ["a", "b"])).expect_err("it fails");
    assert!(matches!(error.source, BackendError::Unavailable(_)));
    assert_eq!(indices(&error.partial), [0]);
    // Neither the document nor the backend's contract is at fault.
    assert!(matches!(
        error.partial.unscored[..],
        [DocumentFailure { index: 1, error: DocumentError::NotReached, .. }]
    ));
}

#[test]
fn on_progress_counts_documents_and_can_cancel() {
    let answers = vec![answered(5, 1.0); 4];
    let reranker = Reranker::builder(ScriptedBackend::new(answers))
        .on_progress(|progress| {
            assert_eq!(progress.documents, 5);
            if progress.documents_done >= 3 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        })
        .build()
        .expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a", "", "b", "c", "d"])).expect("a ranking");
    // The blank document counts as done from the start.
    assert_eq!(indices(&ranking), [0, 2]);
    let cancelled = |d: &&DocumentFailure| matches!(d.error, DocumentError::Cancelled);
    assert_eq!(ranking.unscored.iter().filter(cancelled).count(), 2);
}

/// Returns a completion with the answer `integer` and the distribution of an expected value.
fn distributed(integer: u32, probabilities: &[(usize, f64)]) -> Completion {
    let mut log_probs = vec![f64::NEG_INFINITY; 11];
    for (answer, probability) in probabilities {
        log_probs[*answer] = probability.ln();
    }
    let mut completion = answered(integer, 0.5);
    completion.answer_distribution = Some(AnswerDistribution::new(log_probs).expect("valid"));
    completion
}

#[test]
fn min_score_moves_documents_of_low_relevance() {
    // N × P(N) is 4.5 for "a" and 5 for "b", but the expected values are 8.5 and 5.
    let script = [
        distributed(9, &[(9, 0.5), (8, 0.5)]),
        distributed(5, &[(5, 1.0)]),
        distributed(1, &[(1, 1.0)]),
        answered(10, 1.0),
        distributed(7, &[(7, 1.0)]),
    ];
    let builder = || Reranker::builder(ScriptedBackend::new(script.clone())).top_k(1);
    let reranker = builder().min_score(0.6).build().expect("valid");
    let request = Request::new("q", ["a", "b", "c", "d", "e"]);
    let ranking = reranker.rerank(&request).expect("a ranking");
    assert_eq!(indices(&ranking), [4], "the best of two");
    let below: Vec<_> = ranking.below_min_score.iter().map(|d| (d.index, d.relevance)).collect();
    assert_eq!(below, [(1, Some(0.5)), (2, Some(0.1))]);
    assert_eq!(ranking.scored_count, 4);
    let [DocumentFailure { index: 3, error, .. }] = &ranking.unscored[..] else {
        panic!("{ranking:?}")
    };
    assert!(error.to_string().contains("no distribution over the answers"), "{error}");

    // The request's minimum replaces that of the reranker, and 0 removes nothing.
    let ranking = reranker.rerank(&request.clone().with_min_score(0.0)).expect("a ranking");
    assert_eq!((ranking.scored_count, ranking.below_min_score.len()), (4, 0));
    let integers = builder().score(ScoreKind::Integer).build().expect("valid");
    let ranking = integers.rerank(&request.clone().with_min_score(0.9)).expect("a ranking");
    assert_eq!((indices(&ranking), ranking.below_min_score.len()), (vec![3], 3));

    // Fusion changes the order, and not the relevance.
    let hits = ["a", "b", "c"].into_iter().zip([1.0, 2.0, 9.0]);
    let hits = hits.map(|(text, score)| Document::new(text).with_first_stage_score(score));
    let fused = Reranker::builder(ScriptedBackend::new(script.clone()));
    let fused = fused.fusion(Fusion::ZScore { first_stage_weight: 1.0 }).min_score(0.4);
    let ranking = fused.build().expect("valid").rerank(&Request::new("q", hits)).expect("ranked");
    assert_eq!(indices(&ranking), [1, 0]);
    assert_eq!(ranking.below_min_score[0].index, 2);
}

#[test]
fn min_score_of_samples_is_that_of_their_mean() {
    let script = [answered(2, 1.0), answered(8, 1.0), answered(4, 1.0), answered(4, 1.0)];
    let reranker = Reranker::builder(ScriptedBackend::new(script))
        .sampling(Sampling::with_temperature(1.0))
        .samples(2)
        .score(ScoreKind::Integer)
        .min_score(0.5)
        .build()
        .expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a", "b"])).expect("a ranking");
    assert_eq!((indices(&ranking), ranking.below_min_score[0].relevance), (vec![0], Some(0.4)));
    assert_eq!(ranking.documents[0].samples[1].relevance, Some(0.8));
}

#[test]
fn min_score_applies_to_both_passes_of_a_cascade() {
    let yes_no = |yes: f64| {
        let distribution = AnswerDistribution::new([(1.0 - yes).ln(), yes.ln()]);
        let mut completion = Completion::new("yes");
        completion.answer_distribution = Some(distribution.expect("valid"));
        completion
    };
    let small = ScriptedBackend::new([0.9, 0.8, 0.3].map(yes_no));
    let first_pass = FirstPass::new(small, PromptTemplate::qwen3_reranker());
    let large = ScriptedBackend::new([distributed(2, &[(2, 1.0)]), distributed(9, &[(9, 1.0)])]);
    let reranker = Reranker::builder(large)
        .cascade(Cascade::best(2))
        .first_pass(first_pass)
        .min_score(0.25)
        .build()
        .expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a", "b", "c"])).expect("a ranking");
    assert_eq!(indices(&ranking), [1, 2]);
    assert!(ranking.documents[1].relevance.is_some_and(|yes| (yes - 0.3).abs() < 1e-12));
    assert_eq!(ranking.below_min_score[0].relevance, Some(0.2));
}

#[test]
fn min_score_outside_its_scale_is_refused() {
    let builder = || Reranker::builder(ScriptedBackend::new([answered(9, 1.0)]));
    for invalid in [-0.1, 1.1, f64::NAN] {
        assert!(matches!(
            builder().min_score(invalid).build().err(),
            Some(ConfigError::MinScore(_))
        ));
        let reranker = builder().build().expect("valid");
        let request = Request::new("q", ["a", ""]).with_min_score(invalid);
        let error = reranker.rerank(&request).expect_err("refused");
        assert!(matches!(error.source, BackendError::Unsupported(_)), "{error:?}");
        assert!(crate::error::chain(&error).contains("the minimum score is "), "{error:?}");
        assert_eq!(error.partial.unscored.len(), 2);
    }
    let equal = AnswerFormat::labels([("fits", 2), ("suits", 2)]).expect("valid");
    let template = PromptTemplate::custom("{instruction} {query} {doc}", equal);
    let builder = builder().template(template.expect("valid")).min_score(0.5);
    assert_eq!(builder.build().err(), Some(ConfigError::MinScoreWithoutScale));
}

#[test]
fn calibration_gives_probabilities_of_scores_before_fusion() {
    let judged = [(0.0, false), (4.0, false), (4.0, true), (8.0, true)];
    let calibration = |kind| {
        let mode = ScoringOptions::default().mode;
        Calibration::fit(kind, mode, &AnswerFormat::zero_to_ten(), judged).expect("fitted")
    };
    let script = [answered(2, 1.0), answered(9, 1.0), answered(6, 1.0)];
    let builder = || Reranker::builder(ScriptedBackend::new(script.clone()));
    let reranker = builder()
        .calibration(calibration(ScoreKind::ProbabilityWeighted))
        .fusion(Fusion::hybrid())
        .min_score(0.5)
        .build()
        .expect("valid");
    let hits = ["a", "b", "c"].map(|text| Document::new(text).with_first_stage_score(1.0));
    // The backend gives no distribution, which the probability does not need.
    let ranking = reranker.rerank(&Request::new("q", hits)).expect("a ranking");
    let documents = ranking.documents.iter().chain(&ranking.below_min_score);
    let found: Vec<_> = documents.map(|d| (d.index, d.relevance_probability)).collect();
    assert_eq!(found, [(1, Some(1.0)), (2, Some(0.75)), (0, Some(0.25))]);

    let error = builder().calibration(calibration(ScoreKind::Integer)).build().err();
    let error = error.expect("another score").to_string();
    assert!(error.contains("fitted on the score integer"), "{error}");
    let calibrated = || builder().calibration(calibration(ScoreKind::ProbabilityWeighted));
    let error = calibrated().answer_only().build().err();
    assert!(matches!(error, Some(ConfigError::OtherCalibration { what: "answers", .. })));
    assert!(calibrated().max_tokens(9).build().is_ok());
    let error = calibrated().cascade(Cascade::best(1)).build().err();
    assert_eq!(error, Some(ConfigError::CalibrationWithCascade));
}

#[test]
fn samples_are_averaged_and_returned() {
    let script = [
        answered(2, 1.0),
        answered(9, 1.0),
        answered(4, 1.0),
        Completion::new("<think>…"),
        answered(3, 1.0),
        Completion::new("<think>…"),
        Completion::new("<think>…"),
        Completion::new(""),
        Completion::new("<think>…"),
    ];
    let reranker = Reranker::builder(ScriptedBackend::new(script))
        .sampling(Sampling::with_temperature(0.7))
        .samples(3)
        .build()
        .expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a", "b", "c"])).expect("a ranking");
    let [a, b] = &ranking.documents[..] else { panic!("{ranking:?}") };
    assert_eq!((a.index, a.score, a.answer.integer), (0, 5.0, 4));
    assert!((a.std_dev - (26.0f64 / 3.0).sqrt()).abs() < 1e-12);
    let integers = |d: &RankedDocument| {
        d.samples.iter().map(|sample| sample.answer.integer).collect::<Vec<_>>()
    };
    assert_eq!(integers(a), [2, 9, 4]);
    // Samples without an answer do not count as 0, and the document is listed as partially scored.
    assert_eq!((b.index, b.score, integers(b)), (1, 3.0, vec![3]));
    assert_eq!(ranking.unscored.len(), 1);
    assert!(matches!(
        ranking.partially_scored[..],
        [DocumentFailure {
            index: 1,
            error: DocumentError::Answer(AnswerError::ThoughtNotClosed),
            ..
        }]
    ));
}

#[test]
fn missing_sample_makes_a_document_partially_scored() {
    struct TwoOfThree;
    impl ScoringBackend for TwoOfThree {
        fn name(&self) -> &str {
            "two of three"
        }
        fn score(&self, _: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            (0..2).for_each(|_| sink.completed(0, Ok(answered(4, 1.0))));
            Ok(())
        }
    }
    let builder = Reranker::builder(TwoOfThree).sampling(Sampling::with_temperature(0.7));
    let reranker = builder.samples(3).build().expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a"])).expect("a ranking");
    assert_eq!(ranking.documents[0].samples.len(), 2);
    assert!(matches!(ranking.partially_scored[0].error, DocumentError::NotReported));
}

#[test]
fn cancelled_second_pass_makes_documents_partially_scored() {
    let request = Request::new("q", ["51,0", "82,0", "28,0"]);
    let reranker = Reranker::builder(Numbers)
        .cascade(Cascade::best(2))
        .on_progress(|progress| match progress.documents_done {
            0..4 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        })
        .build()
        .expect("valid");
    let ranking = reranker.rerank(&request).expect("a ranking");
    // The second pass scored the best document before the cancellation, but not the next one.
    assert_eq!((indices(&ranking), ranking.scored_count), (vec![1, 0, 2], 3));
    assert!(ranking.unscored.is_empty());
    assert!(matches!(
        ranking.partially_scored[..],
        [DocumentFailure { index: 0, error: DocumentError::Cancelled, .. }]
    ));
}

/// A backend whose documents hold two numbers, `answers,uncertainty`. The tens digits of the first number
/// are the answer without reasoning, and its last digit is the answer with reasoning. The second number
/// is the probability of the neighbouring answers.
struct Numbers;
impl ScoringBackend for Numbers {
    fn name(&self) -> &str {
        "numbers"
    }
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        for (index, document) in job.documents.iter().enumerate() {
            let (number, uncertainty) = document.split_once(',').expect("two numbers");
            let number: u32 = number.parse().expect("a number");
            let answer = if job.options.mode.is_reason() { number % 10 } else { number / 10 };
            let mut completion = answered(answer, 0.9);
            let uncertainty: f64 = uncertainty.parse().expect("a number");
            let mut probabilities = [0.0; 11];
            probabilities[answer as usize] = 1.0 - uncertainty;
            probabilities[answer as usize + 1] = uncertainty / 2.0;
            probabilities[answer as usize - 1] = uncertainty / 2.0;
            completion.answer_distribution =
                AnswerDistribution::new(probabilities.map(f64::ln)).ok();
            let fails = job.options.mode.is_reason() && number == 77;
            let outcome = match fails {
                _ if job.cancellation.is_cancelled() => Err(DocumentError::Cancelled),
                true => Err(DocumentError::Backend("on purpose".into())),
                false => Ok(completion),
            };
            sink.completed(index, outcome);
        }
        Ok(())
    }
}

#[test]
fn cascade_reasons_about_the_best_documents() {
    let request = Request::new("q", ["51,0", "82,0", "77,0", "89,0", "28,0"]);
    let reranker = Reranker::builder(Numbers).cascade(Cascade::best(3)).build().expect("valid");
    let ranking = reranker.rerank(&request).expect("a ranking");
    // 82 and 89 tie in the first pass. 77 fails in the second pass and keeps its first answer.
    assert_eq!(indices(&ranking), [3, 1, 2, 0, 4]);
    let reasoned: Vec<bool> = ranking.documents.iter().map(|d| d.mode.is_reason()).collect();
    assert_eq!(reasoned, [true, true, false, false, false]);
    assert!(ranking.unscored.is_empty());
    assert!(matches!(
        ranking.partially_scored[..],
        [DocumentFailure { index: 2, error: DocumentError::Backend(_), .. }]
    ));
}

#[test]
fn cascade_of_many_documents_takes_no_quadratic_time() {
    // A search of the list for each document would take minutes.
    let documents: Vec<String> = (0..30_000).map(|i| format!("5{},0", i % 8 + 1)).collect();
    let request = Request::new("q", documents.iter().map(String::as_str));
    let reranker =
        Reranker::builder(Numbers).cascade(Cascade::best(30_000)).build().expect("valid");
    let ranking = reranker.rerank(&request).expect("a ranking");
    let integers: Vec<u32> = ranking.documents.iter().map(|d| d.answer.integer).collect();
    assert_eq!(integers.len(), 30_000);
    assert!(integers.is_sorted_by(|a, b| a >= b) && integers[0] == 8);
}

#[test]
fn cascade_reasons_about_uncertain_ranks() {
    // The ranks of 8 and 3 are certain. Those of 6, 6 and 5 are uncertain, and so are those of 2 and 2.
    let request =
        Request::new("q", ["21,0.5", "29,0.5", "38,0", "63,0.9", "68,0.9", "59,0.9", "81,0"]);
    let rank = |cascade, top_k| {
        let builder = Reranker::builder(Numbers).cascade(cascade).top_k(top_k);
        indices(&builder.build().expect("valid").rerank(&request).expect("a ranking"))
    };
    assert_eq!(rank(Cascade::uncertain(7), 7), [6, 5, 4, 3, 2, 1, 0]);
    assert_eq!(rank(Cascade::uncertain(3), 7), [6, 5, 4, 3, 2, 0, 1]);
    assert_eq!(rank(Cascade::uncertain(7), 2), [6, 5]);
}

#[test]
fn fusion_rejects_documents_without_first_stage_score() {
    let reranker = Reranker::builder(ScriptedBackend::new([answered(5, 1.0), answered(5, 1.0)]))
        .fusion(Fusion::hybrid())
        .build()
        .expect("valid");
    let request = Request::new(
        "q",
        [
            Document::new("a").with_first_stage_score(1.0),
            Document::new("b"),
            Document::new("c").with_first_stage_score(f64::NAN),
            Document::new("d").with_first_stage_score(2.0),
        ],
    );
    let ranking = reranker.rerank(&request).expect("a ranking");
    assert_eq!(indices(&ranking), [3, 0]);
    assert_eq!(ranking.unscored.len(), 2);
    assert!(ranking.documents.iter().all(|document| document.score.is_finite()));
}

#[test]
fn score_without_probability_is_an_error() {
    let text = || ScriptedBackend::new([Completion::new("<answer>6</answer>")]);
    let rank = |score| {
        let reranker = Reranker::builder(text()).score(score).build().expect("valid");
        reranker.rerank(&Request::new("q", ["a"])).expect("a ranking")
    };
    assert_eq!(rank(ScoreKind::Integer).documents[0].score, 6.0);
    for score in [ScoreKind::ProbabilityWeighted, ScoreKind::ExpectedValue] {
        assert!(matches!(
            rank(score).unscored[0].error,
            DocumentError::Answer(AnswerError::NoProbability(_))
        ));
    }
}

#[test]
fn build_rejects_invalid_options() {
    let builder = || Reranker::builder(ScriptedBackend::new([]));
    let error = |builder: RerankerBuilder<_>| builder.build().err();
    assert_eq!(error(builder().top_k(0)), Some(ConfigError::Zero("top_k")));
    assert_eq!(error(builder().max_tokens(0)), Some(ConfigError::Zero("max_tokens")));
    let weight = Fusion::ZScore { first_stage_weight: 1.5 };
    assert_eq!(error(builder().fusion(weight)), Some(ConfigError::FirstStageWeight(1.5)));
    let constant = Fusion::ReciprocalRank { k: 0.0 };
    let expected = Some(ConfigError::ReciprocalRankConstant(0.0));
    assert_eq!(error(builder().fusion(constant)), expected);
    assert_eq!(error(builder().samples(2)), Some(ConfigError::EqualSamples));
    let samples = 1001;
    let many = Some(ConfigError::TooManySamples { samples });
    assert_eq!(error(builder().samples(samples)), many);
    let cold = Sampling::with_temperature(-0.1);
    let expected = ConfigError::Sampling { name: "temperature", value: -0.1 };
    assert!(expected.to_string().ends_with("is -0.1; it must be finite and at least 0"));
    assert_eq!(error(builder().sampling(cold)), Some(expected));
    let cascade = builder().cascade(Cascade::best(3)).answer_only();
    assert_eq!(error(cascade), Some(ConfigError::CascadeWithoutReasoning));

    let first_pass = || FirstPass::new(OneLogit, PromptTemplate::qwen3_reranker());
    let alone = builder().first_pass(first_pass());
    assert_eq!(error(alone), Some(ConfigError::FirstPassWithoutCascade));
    let options = ScoringOptions { max_document_tokens: 0, ..ScoringOptions::default() };
    let empty = first_pass().with_options(options);
    let cascade = builder().cascade(Cascade::best(3)).first_pass(empty);
    assert_eq!(error(cascade), Some(ConfigError::Zero("max_document_tokens")));
    let bare = builder().template(PromptTemplate::qwen3_reranker()).cascade(Cascade::best(3));
    assert_eq!(error(bare.first_pass(first_pass())), Some(ConfigError::BareAnswer("a cascade")));
}

#[test]
fn bare_answer_implies_answer_only_mode() {
    let builder = || Reranker::builder(OneLogit).template(PromptTemplate::qwen3_reranker());
    let reranker = builder().max_tokens(9).build().expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["0.2", "0.7", "0.5"])).expect("a ranking");
    assert_eq!(indices(&ranking), [1, 2, 0]);
    for (document, expected) in ranking.documents.iter().zip([0.7, 0.5, 0.2]) {
        assert!((document.score - expected).abs() < 1e-9, "P(yes), not {}", document.score);
        assert_eq!(document.mode, Mode::AnswerOnly);
    }
    let error = |builder: RerankerBuilder<_>| builder.build().err();
    let cascade = builder().cascade(Cascade::best(3));
    assert_eq!(error(cascade), Some(ConfigError::BareAnswer("a cascade")));
    let samples = builder().sampling(Sampling::with_temperature(1.0)).samples(2);
    assert_eq!(error(samples), Some(ConfigError::BareAnswer("several samples")));
}

/// A backend that thinks, and contradicts [`OneLogit`]: the answer is `10 − 10·P(yes)`. It fails for 0.5.
struct Contrary;
impl ScoringBackend for Contrary {
    fn name(&self) -> &str {
        "contrary"
    }
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        assert_eq!(job.options.mode, Mode::Reason { max_tokens: 9 });
        for (index, document) in job.documents.iter().enumerate() {
            let yes: f64 = document.parse().expect("a number");
            let outcome = match yes {
                _ if job.cancellation.is_cancelled() => Err(DocumentError::Cancelled),
                0.5 => Err(DocumentError::Backend("on purpose".into())),
                _ => Ok(answered((10.0 - 10.0 * yes).round() as u32, 1.0)),
            };
            sink.completed(index, outcome);
        }
        Ok(())
    }
}

/// Returns a builder of a cascade with [`OneLogit`] as its first pass.
fn two_models<B: ScoringBackend>(backend: B, cascade: Cascade) -> RerankerBuilder<B> {
    let first_pass = FirstPass::new(OneLogit, PromptTemplate::qwen3_reranker());
    Reranker::builder(backend).max_tokens(9).cascade(cascade).first_pass(first_pass)
}

/// Returns the index, the rounded score, and whether the model thought, for each ranked document.
fn outline(ranking: &Ranking) -> Vec<(usize, f64, bool)> {
    let rounded = |score: f64| (score * 1e6).round() / 1e6;
    ranking.documents.iter().map(|d| (d.index, rounded(d.score), d.mode.is_reason())).collect()
}

#[test]
fn first_pass_of_another_model_is_joined_by_rank() {
    let reranker = two_models(Contrary, Cascade::best(3)).build().expect("valid");
    let request = Request::new("q", ["0.2", "0.9", "0.5", "0.7", "unreadable", "0.1"]);
    let ranking = reranker.rerank(&request).expect("a ranking");
    // 0.5 fails in the second pass and keeps its first answer. The score 0.9 of the first pass is not compared
    // with the score 1 of the second pass.
    let expected =
        [(3, 3.0, true), (1, 1.0, true), (2, 0.5, false), (0, 0.2, false), (5, 0.1, false)];
    assert_eq!(outline(&ranking), expected);
    assert!(matches!(
        ranking.partially_scored[..],
        [DocumentFailure { index: 2, error: DocumentError::Backend(_), .. }]
    ));
    // The second pass, which could not read the document either, leaves it out.
    assert!(matches!(ranking.unscored[..], [DocumentFailure { index: 4, .. }]));

    // By the variance of P(yes), 0.99 and 0.01 are certain, and 0.8 and 0.7 are not.
    let request = Request::new("q", ["0.01", "0.7", "0.99", "0.8"]);
    let reranker = two_models(Contrary, Cascade::uncertain(3)).build().expect("valid");
    let ranking = reranker.rerank(&request).expect("a ranking");
    let expected = [(1, 3.0, true), (3, 2.0, true), (2, 0.0, true), (0, 0.01, false)];
    assert_eq!(outline(&ranking), expected);
}

#[test]
fn cancelled_second_model_keeps_answers_of_the_first() {
    let break_after = |documents| {
        two_models(Contrary, Cascade::best(2))
            .on_progress(move |progress| match progress.documents_done < documents {
                true => ControlFlow::Continue(()),
                false => ControlFlow::Break(()),
            })
            .build()
            .expect("valid")
    };
    let request = Request::new("q", ["0.2", "0.9", "0.7"]);
    let ranking = break_after(4).rerank(&request).expect("a ranking");
    assert_eq!(outline(&ranking), [(1, 1.0, true), (2, 0.7, false), (0, 0.2, false)]);
    assert!(ranking.unscored.is_empty());
    assert!(matches!(
        ranking.partially_scored[..],
        [DocumentFailure { index: 2, error: DocumentError::Cancelled, .. }]
    ));
    let ranking = break_after(1).rerank(&request).expect("a ranking");
    assert_eq!(outline(&ranking), [(0, 0.2, false)]);
    assert_eq!((ranking.unscored.len(), ranking.partially_scored.len()), (2, 1));
}

#[test]
fn failure_of_one_model_keeps_answers_of_the_other() {
    struct Down;
    impl ScoringBackend for Down {
        fn name(&self) -> &str {
            "down"
        }
        fn score(&self, _: &Job<'_>, _: &mut dyn Sink) -> Result<(), BackendError> {
            Err(BackendError::Unavailable("no server".into()))
        }
    }
    let request = Request::new("q", ["0.2", "0.9"]);
    let reranker = two_models(Down, Cascade::best(1)).build().expect("valid");
    let error = reranker.rerank(&request).expect_err("it fails");
    assert_eq!(outline(&error.partial), [(1, 0.9, false), (0, 0.2, false)]);
    assert!(error.partial.unscored.is_empty());
    assert!(matches!(
        error.partial.partially_scored[..],
        [DocumentFailure { index: 1, error: DocumentError::NotReached, .. }]
    ));

    // If the first pass fails as a whole, there is no second pass.
    let first_pass = FirstPass::new(Down, PromptTemplate::qwen3_reranker());
    let builder = Reranker::builder(Contrary).cascade(Cascade::best(1)).first_pass(first_pass);
    let error = builder.build().expect("valid").rerank(&request).expect_err("it fails");
    assert!(error.partial.documents.is_empty());
    assert_eq!(error.partial.unscored.len(), 2);
}

#[test]
fn first_pass_has_its_own_instruction_and_limits() {
    /// A backend that records the instruction, the limit of a document and the mode of each job.
    struct Recorder(Mutex<Vec<(String, usize, bool)>>);
    impl ScoringBackend for Recorder {
        fn name(&self) -> &str {
            "recorder"
        }
        fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            let instruction = job.prompt.instruction().to_owned();
            let options = &job.options;
            let entry = (instruction, options.max_document_tokens, options.mode.is_reason());
            self.0.lock().expect("no panic").push(entry);
            assert!(options.mode.is_reason() || options.samples == 1);
            let text = if options.mode.is_reason() { "<answer>3</answer>" } else { "yes" };
            (0..options.samples).for_each(|_| sink.completed(0, Ok(Completion::new(text))));
            Ok(())
        }
    }
    let recorder = Arc::new(Recorder(Mutex::default()));
    let jobs = |first_pass: fn(FirstPass) -> FirstPass,
                of_reranker: Option<&str>,
                of_request: Option<&'static str>| {
        let template = PromptTemplate::qwen3_reranker();
        let mut builder = Reranker::builder(Arc::clone(&recorder))
            .cascade(Cascade::best(1))
            .first_pass(first_pass(FirstPass::new(Arc::clone(&recorder), template)))
            .sampling(Sampling::with_temperature(1.0))
            .samples(2)
            .score(ScoreKind::Integer);
        if let Some(instruction) = of_reranker {
            builder = builder.instruction(instruction);
        }
        let request = Request::new("q", ["a"]);
        let request = match of_request {
            Some(instruction) => request.with_instruction(instruction),
            None => request,
        };
        builder.build().expect("valid").rerank(&request).expect("a ranking");
        let jobs = std::mem::take(&mut *recorder.0.lock().expect("no panic"));
        let line = |(text, limit, reasons)| format!("{text} {limit} {reasons}");
        jobs.into_iter().map(line).collect::<Vec<String>>()
    };
    let own: fn(FirstPass) -> FirstPass = |first_pass| {
        first_pass.with_instruction("first").with_options(ScoringOptions::qwen3_reranker())
    };
    let none: fn(FirstPass) -> FirstPass = |first_pass| first_pass;
    let (web, generic) = (instructions::WEB_SEARCH, instructions::GENERIC);
    let defaults = [format!("{web} 2048 false"), format!("{generic} 2048 true")];
    assert_eq!(jobs(none, None, None), defaults);
    assert_eq!(jobs(none, Some("second"), None), ["second 2048 false", "second 2048 true"]);
    assert_eq!(jobs(own, Some("second"), None), ["first 8192 false", "second 2048 true"]);
    assert_eq!(jobs(own, Some("second"), Some("mine")), ["mine 8192 false", "mine 2048 true"]);
}

/// A backend whose documents hold the probability of `yes`, and which does not think.
struct OneLogit;
impl ScoringBackend for OneLogit {
    fn name(&self) -> &str {
        "one logit"
    }
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        assert_eq!(job.options.mode, Mode::AnswerOnly);
        for (index, document) in job.documents.iter().enumerate() {
            if job.cancellation.is_cancelled() {
                sink.completed(index, Err(DocumentError::Cancelled));
                continue;
            }
            let Ok(yes) = document.parse::<f64>() else {
                sink.completed(index, Err(DocumentError::Backend("not a number".into())));
                continue;
            };
            let mut completion = Completion::new(if yes > 0.5 { "yes" } else { "no" });
            // Most of the probability belongs to other texts.
            let log_probs = [1.0 - yes, yes].map(|probability| (probability / 50.0).ln());
            completion.answer_distribution = AnswerDistribution::new(log_probs).ok();
            sink.completed(index, Ok(completion));
        }
        Ok(())
    }
}

#[test]
fn instruction_of_the_request_precedes_that_of_the_reranker() {
    /// A backend that answers with the number of bytes of the instruction.
    struct InstructionLength;
    impl ScoringBackend for InstructionLength {
        fn name(&self) -> &str {
            "instruction length"
        }
        fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
            let segments: Vec<_> = job.prompt.before_document().collect();
            assert!(segments.contains(&Segment::Instruction(job.prompt.instruction())));
            sink.completed(0, Ok(answered(job.prompt.instruction().len() as u32 % 10, 1.0)));
            Ok(())
        }
    }
    let builder = || Reranker::builder(InstructionLength);
    let answer = |reranker: &Reranker<_>, request: Request<'_>| {
        reranker.rerank(&request).expect("a ranking").documents[0].answer.integer
    };
    let request = || Request::new("q", ["d"]);
    let default = builder().build().expect("valid");
    assert_eq!(answer(&default, request()) as usize, instructions::GENERIC.len() % 10);
    let own = builder().instruction("seven b").build().expect("valid");
    assert_eq!(answer(&own, request()), 7);
    assert_eq!(answer(&own, request().with_instruction("abc")), 3);
}

#[test]
fn rerank_of_empty_request_is_empty() {
    let reranker = Reranker::builder(ScriptedBackend::new([])).build().expect("valid");
    let none: [&str; 0] = [];
    let ranking = reranker.rerank(&Request::new("q", none)).expect("a ranking");
    assert!(ranking.documents.is_empty() && ranking.unscored.is_empty());
}
