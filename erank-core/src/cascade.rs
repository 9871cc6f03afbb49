//! Thinking only about the documents for which it matters.

use std::ops::Range;

use crate::ranking::RankedDocument;

/// Scores all documents cheaply, then thinks about some.
///
/// The first pass asks for an answer at once ([`Mode::AnswerOnly`](crate::Mode)) and orders by its
/// expected value. The second pass thinks about stretches of that order and sorts each stretch by
/// what came out, ties as the first pass had them; the other documents keep their places. A document
/// that could not be thought about keeps its first answer, comes last in its stretch, and is listed in
/// [`Ranking::incomplete`](crate::Ranking::incomplete). Works with any backend; one that keeps its
/// cache between calls reads the second pass's prompts from it.
///
/// ```
/// use erank_core::testing::{ScriptedBackend, answered};
/// use erank_core::{Cascade, Request, Reranker};
///
/// let backend = ScriptedBackend::new([answered(3, 0.9), answered(8, 0.9), answered(5, 0.9)]);
/// let reranker = Reranker::builder(backend).cascade(Cascade::best(2)).build()?;
/// let ranking = reranker.rerank(&Request::new("q", ["a", "b", "c"]))?;
/// let thought_about = ranking.documents.iter().filter(|document| document.mode.is_reason());
/// assert_eq!(thought_about.count(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Cascade {
    pub(crate) most: usize,
    only_uncertain: bool,
}

impl Cascade {
    /// Thinks about the best `most` documents of the first pass.
    pub fn best(most: usize) -> Self {
        Self { most, only_uncertain: false }
    }

    /// Thinks about documents whose place is uncertain, at most `most` of them, from the top.
    ///
    /// The order of two neighbours is uncertain if their expected answers differ by less than the
    /// standard deviation of that difference, taken from the two distributions over the answers.
    /// Where the backend gives no distribution, every place is uncertain.
    pub fn uncertain(most: usize) -> Self {
        Self { most, only_uncertain: true }
    }

    /// The stretches of `ranked`, the first pass's order, to think about. A stretch that begins at
    /// `top_k` or later would change nothing that is returned.
    pub(crate) fn stretches(self, ranked: &[RankedDocument], top_k: usize) -> Vec<Range<usize>> {
        let mut stretches = Vec::new();
        let (mut start, mut left) = (0, self.most);
        while start < ranked.len().min(top_k) && left > 0 {
            let linked = ranked[start..]
                .windows(2)
                .take_while(|pair| !self.only_uncertain || is_uncertain(&pair[0], &pair[1]))
                .count();
            let length = (linked + 1).min(left);
            // A document whose place is certain stays where it is.
            if length > 1 || !self.only_uncertain {
                stretches.push(start..start + length);
                left -= length;
            }
            start += linked + 1;
        }
        stretches
    }
}

fn is_uncertain(a: &RankedDocument, b: &RankedDocument) -> bool {
    let moments =
        |document: &RankedDocument| document.answer.expected_value.zip(document.answer.variance);
    match (moments(a), moments(b)) {
        (Some((mean_a, variance_a)), Some((mean_b, variance_b))) => {
            (mean_a - mean_b).abs() < (variance_a + variance_b).sqrt()
        }
        _ => true,
    }
}
