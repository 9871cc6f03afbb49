//! Rankings of random documents, against plain references.

use erank_core::testing::answered;
use erank_core::{
    BackendError, Cascade, Document, DocumentError, Fusion, Job, Ranking, Request, Reranker,
    RerankerBuilder, ScoreKind, ScoringBackend, Sink,
};
use proptest::collection::vec;
use proptest::option::weighted;
use proptest::prelude::*;

/// Answers with the first number of a document without reasoning, and with the second one with reasoning. Fails where
/// there is no number.
struct Numbers;

impl ScoringBackend for Numbers {
    fn name(&self) -> &str {
        "numbers"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        for (index, document) in job.documents.iter().enumerate() {
            let (first, second) = document.split_once(' ').expect("two words");
            let answer = if job.options.mode.is_reason() { second } else { first };
            let answer = answer.parse().map(|integer| answered(integer, 1.0));
            sink.completed(index, answer.map_err(|_| DocumentError::Backend("on purpose".into())));
        }
        Ok(())
    }
}

/// A document: its answers in two passes, if there are some, and its first-stage score.
type Numbered = (Option<u32>, Option<u32>, f64);

fn documents() -> impl Strategy<Value = Vec<Numbered>> {
    // Few different scores, so that many are equal.
    let first_stage = (-3..4i32).prop_map(|score| f64::from(score) / 2.0);
    vec((weighted(0.9, 0..11u32), weighted(0.8, 0..11u32), first_stage), 1..30)
}

fn rank(builder: RerankerBuilder<Numbers>, documents: &[Numbered]) -> Ranking {
    let word = |answer: Option<u32>| answer.map_or("none".into(), |integer| integer.to_string());
    let documents = documents.iter().map(|(first, second, score)| {
        Document::new(format!("{} {}", word(*first), word(*second))).with_first_stage_score(*score)
    });
    let reranker = builder.score(ScoreKind::Integer).build().expect("valid options");
    reranker.rerank(&Request::new("q", documents)).expect("a ranking")
}

fn answer_only() -> RerankerBuilder<Numbers> {
    Reranker::builder(Numbers).answer_only()
}

fn indices(ranking: &Ranking) -> Vec<usize> {
    ranking.documents.iter().map(|document| document.index).collect()
}

/// Returns the indices of the documents whose answer in the first pass is `integer`, in the request's order.
fn with_answer(documents: &[Numbered], integer: Option<u32>) -> Vec<usize> {
    (0..documents.len()).filter(|index| documents[*index].0 == integer).collect()
}

/// Returns the order of the first pass: the documents of each answer from 10 down, in the request's order.
fn first_order(documents: &[Numbered]) -> Vec<usize> {
    (0..11).rev().flat_map(|integer| with_answer(documents, Some(integer))).collect()
}

/// Returns the distance of each score from the mean in standard deviations, or zeros if all are equal.
fn z_scores(scores: &[f64]) -> Vec<f64> {
    let count = scores.len() as f64;
    let mean = scores.iter().sum::<f64>() / count;
    let variance = scores.iter().map(|score| (score - mean).powi(2)).sum::<f64>() / count;
    let is_constant = scores.iter().all(|score| *score == scores[0]);
    scores.iter().map(|x| if is_constant { 0.0 } else { (x - mean) / variance.sqrt() }).collect()
}

/// Returns the rank of each score, from 1 on. Of equal scores, the first is the best.
fn ranks(scores: &[f64]) -> Vec<f64> {
    let is_better = |i: usize, j: usize| scores[j] > scores[i] || scores[j] == scores[i] && j < i;
    let count = scores.len();
    (0..count).map(|i| 1.0 + (0..count).filter(|j| is_better(i, *j)).count() as f64).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn rankings_are_sorted_stably_and_lose_no_document(documents in documents(), top_k in 1..40usize) {
        let order = first_order(&documents);
        let ranking = rank(answer_only().top_k(top_k), &documents);
        prop_assert_eq!(indices(&ranking), &order[..order.len().min(top_k)]);
        prop_assert_eq!(ranking.scored_count, order.len());
        let unscored: Vec<usize> = ranking.unscored.iter().map(|failure| failure.index).collect();
        prop_assert_eq!(unscored, with_answer(&documents, None));
    }

    #[test]
    fn fused_scores_are_those_of_the_formulas(documents in documents(), weight in 0.0..=1.0, k in 1.0..100.0) {
        // Documents without an answer do not count.
        let scored: Vec<usize> = (0..documents.len()).filter(|i| documents[*i].0.is_some()).collect();
        let first: Vec<f64> = scored.iter().map(|i| documents[*i].2).collect();
        let second: Vec<f64> = scored.iter().filter_map(|i| documents[*i].0).map(f64::from).collect();
        let join = |a: Vec<f64>, b: Vec<f64>, f: &dyn Fn(f64, f64) -> f64| -> Vec<f64> {
            a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect()
        };
        for (fusion, fused) in [
            (
                Fusion::ZScore { first_stage_weight: weight },
                join(z_scores(&first), z_scores(&second), &|a, b| weight * a + (1.0 - weight) * b),
            ),
            (
                Fusion::ReciprocalRank { k },
                join(ranks(&first), ranks(&second), &|a, b| 1.0 / (k + a) + 1.0 / (k + b)),
            ),
        ] {
            let ranking = rank(answer_only().fusion(fusion), &documents);
            prop_assert_eq!(ranking.documents.len(), scored.len());
            for document in &ranking.documents {
                let position = scored.binary_search(&document.index).expect("a scored document");
                prop_assert!((document.score - fused[position]).abs() < 1e-9, "{:?}", document);
            }
            for pair in ranking.documents.windows(2) {
                let (above, below) = (&pair[0], &pair[1]);
                let is_tie = above.score == below.score;
                prop_assert!(above.score > below.score || is_tie && above.index < below.index);
            }
        }
    }

    #[test]
    fn cascades_sort_the_best_documents_by_their_second_answers(documents in documents(), best in 1..40usize) {
        let order = first_order(&documents);
        let (selected, rest) = order.split_at(order.len().min(best));
        let builder = Reranker::builder(Numbers).max_tokens(9).cascade(Cascade::best(best));
        let ranking = rank(builder, &documents);
        // Documents that failed in the second pass keep their order behind the others.
        let (answered, failed): (Vec<usize>, Vec<usize>) =
            selected.iter().partition(|index| documents[**index].1.is_some());
        let found = indices(&ranking);
        prop_assert_eq!(&found[answered.len()..], [failed.as_slice(), rest].concat());
        let mut sorted = found[..answered.len()].to_vec();
        prop_assert!(sorted.is_sorted_by(|a, b| documents[*a].1 >= documents[*b].1));
        sorted.sort_unstable();
        let mut answered = answered;
        answered.sort_unstable();
        prop_assert_eq!(sorted, answered);
        let mut partially: Vec<usize> = failed;
        partially.sort_unstable();
        let reported: Vec<usize> = ranking.partially_scored.iter().map(|failure| failure.index).collect();
        prop_assert_eq!(reported, partially);
    }
}
