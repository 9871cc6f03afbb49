//! A cascade: a cheap pass over all documents, then reasoning about some of them.

use std::ops::Range;

use crate::ranking::RankedDocument;

/// A cheap pass over all documents, followed by a pass with reasoning over some of them.
///
/// The first pass scores all documents in answer-only mode ([`Mode::AnswerOnly`](crate::Mode)) and
/// sorts them by the expected value. The second pass takes one or several ranges of the sorted list, or none
/// if every rank is certain. It scores their documents with reasoning and sorts each range again. Ties keep
/// the first pass's order, and the other documents keep their ranks. A document whose second pass fails keeps
/// its first answer, moves to the end of its range, and is listed in
/// [`Ranking::partially_scored`](crate::Ranking::partially_scored). A cascade works with any backend. A
/// backend that keeps its prefix cache between calls computes the shared part of the second pass's prompts
/// only once.
///
/// ```
/// use erank_core::testing::{ScriptedBackend, answered};
/// use erank_core::{Cascade, Request, Reranker};
///
/// let backend = ScriptedBackend::new([answered(3, 0.9), answered(8, 0.9), answered(5, 0.9)]);
/// let reranker = Reranker::builder(backend).cascade(Cascade::best(2)).build()?;
/// let ranking = reranker.rerank(&Request::new("q", ["a", "b", "c"]))?;
/// let reasoned = ranking.documents.iter().filter(|document| document.mode.is_reason());
/// assert_eq!(reasoned.count(), 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Cascade {
    max_documents: usize,
    only_uncertain: bool,
}

impl Cascade {
    /// Reasons about the best `max_documents` documents of the first pass.
    pub fn best(max_documents: usize) -> Self {
        Self { max_documents, only_uncertain: false }
    }

    /// Reasons about documents whose rank is uncertain, at most `max_documents` of them, from the top.
    ///
    /// The order of two neighbours is uncertain if their expected values differ by less than the
    /// standard deviation of that difference, which follows from the two distributions over the answers.
    /// If the backend returns no distribution, every rank is uncertain.
    pub fn uncertain(max_documents: usize) -> Self {
        Self { max_documents, only_uncertain: true }
    }

    /// Returns the maximum number of documents of the second pass.
    pub(crate) fn max_documents(self) -> usize {
        self.max_documents
    }

    /// Returns the ranges of `ranked`, the first pass's order, for the second pass. A range that begins
    /// at `top_k` or later would not change the result and is left out.
    pub(crate) fn ranges(self, ranked: &[RankedDocument], top_k: usize) -> Vec<Range<usize>> {
        let mut ranges = Vec::new();
        let (mut start, mut remaining) = (0, self.max_documents);
        while start < ranked.len().min(top_k) && remaining > 0 {
            let linked = ranked[start..]
                .windows(2)
                .take_while(|pair| !self.only_uncertain || is_uncertain(&pair[0], &pair[1]))
                .count();
            let length = (linked + 1).min(remaining);
            // A document whose rank is certain needs no second pass.
            if length > 1 || !self.only_uncertain {
                ranges.push(start..start + length);
                remaining -= length;
            }
            start += linked + 1;
        }
        ranges
    }
}

/// Returns whether the order of two documents is uncertain.
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
