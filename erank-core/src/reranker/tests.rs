use std::ops::ControlFlow;

use super::*;
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
            Document::new(" \n").with_id("blank"),
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
    let cold = Sampling::with_temperature(-0.1);
    let expected = ConfigError::Sampling { name: "temperature", value: -0.1 };
    assert!(expected.to_string().ends_with("is -0.1; it must be finite and at least 0"));
    assert_eq!(error(builder().sampling(cold)), Some(expected));
    let cascade = builder().cascade(Cascade::best(3)).answer_only();
    assert_eq!(error(cascade), Some(ConfigError::CascadeWithoutReasoning));
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

/// A backend whose documents hold the probability of `yes`, and which does not think.
struct OneLogit;
impl ScoringBackend for OneLogit {
    fn name(&self) -> &str {
        "one logit"
    }
    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        assert_eq!(job.options.mode, Mode::AnswerOnly);
        for (index, document) in job.documents.iter().enumerate() {
            let yes: f64 = document.parse().expect("a number");
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
