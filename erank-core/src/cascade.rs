//! A cascade: a cheap pass over all documents, then reasoning about some of them.

use std::ops::Range;

use crate::backend::ScoringBackend;
use crate::options::ScoringOptions;
use crate::prompt::PromptTemplate;
use crate::ranking::RankedDocument;

/// A cheap pass over all documents, followed by a pass with reasoning over some of them.
///
/// The first pass scores all documents in answer-only mode ([`Mode::AnswerOnly`](crate::Mode)) and
/// sorts them by the expected value. The second pass takes one or several ranges of the sorted list, or none
/// if every rank is certain. It scores their documents with reasoning and sorts each range again. Ties keep
/// the first pass's order, and the other documents keep their ranks. A document whose second pass fails keeps
/// its first answer, moves to the end of its range, and is listed in
/// [`Ranking::partially_scored`](crate::Ranking::partially_scored). A document that fails in the first pass is
/// unscored, and the second pass leaves it out. A cascade works with any backend. A backend that keeps its
/// prefix cache between calls computes the shared part of the second pass's prompts only once. With a
/// [`FirstPass`], another model makes the first pass.
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
    /// If the backend returns no distribution, every rank is uncertain. With the two answers `no` and `yes`, the
    /// variance is `P(yes)·P(no)`, so only a wide gap is certain: 0.9 before 0.1 is, and 0.9 before 0.5 is not.
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

/// The first pass of a [`Cascade`] by a backend and a prompt of its own, usually of a smaller model.
///
/// The scores of two models are not comparable: one may be a probability of `yes` from 0 to 1, and the other one
/// a value from 0 to 10. So the passes are joined by rank and never by score, as in every cascade. The second pass
/// sorts the documents that it scored within their range, and no document leaves its range. Each document has the
/// score and the answer of the last pass that scored it, and
/// [`RankedDocument::mode`](crate::RankedDocument::mode) tells which one that is. A failure, a cancellation or a
/// deadline in the second pass leaves the documents that it did not score with their answers of the first pass.
///
/// ```
/// use erank_core::testing::{ScriptedBackend, answered};
/// use erank_core::{
///     Cascade, FirstPass, PromptTemplate, Request, Reranker, ScoreKind, ScoringOptions,
/// };
///
/// // In practice: `CandleBackend::open("models/Qwen3-Reranker-0.6B")?`, which scores "a", "b" and "c".
/// let small = ScriptedBackend::texts(["no", "yes", "yes"]);
/// let first_pass = FirstPass::new(small, PromptTemplate::qwen3_reranker())
///     .with_options(ScoringOptions::qwen3_reranker());
/// // ERank thinks about "b" and "c" only.
/// let erank = ScriptedBackend::new([answered(4, 0.9), answered(8, 0.9)]);
/// let reranker = Reranker::builder(erank)
///     .cascade(Cascade::best(2))
///     .first_pass(first_pass)
///     .score(ScoreKind::Integer)
///     .build()?;
/// let ranking = reranker.rerank(&Request::new("q", ["a", "b", "c"]))?;
/// let scores = ranking.documents.iter().map(|document| (document.index, document.score));
/// assert_eq!(scores.collect::<Vec<_>>(), [(2, 8.0), (1, 4.0), (0, 0.0)]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct FirstPass {
    pub(crate) backend: Box<dyn ScoringBackend>,
    pub(crate) template: PromptTemplate,
    /// The instruction for requests without one. `None` stands for the reranker's, or else the template's.
    pub(crate) instruction: Option<String>,
    /// `None` stands for the reranker's options.
    pub(crate) options: Option<ScoringOptions>,
}

impl FirstPass {
    /// Creates a first pass by `backend` with the prompts of `template`. The answers of `template` may differ from
    /// those of the second pass. To share a backend between rerankers, pass an [`Arc`](std::sync::Arc) of it.
    pub fn new(backend: impl ScoringBackend + 'static, template: PromptTemplate) -> Self {
        Self { backend: Box::new(backend), template, instruction: None, options: None }
    }

    /// Sets the instruction for requests without [one of their own](crate::Request::with_instruction). The default
    /// is [that of the reranker](crate::RerankerBuilder::instruction), or else that of this pass's template.
    #[must_use]
    pub fn with_instruction(mut self, instruction: impl Into<String>) -> Self {
        self.instruction = Some(instruction.into());
        self
    }

    /// Sets the limits of tokens. The default are those of the reranker. The mode, the sampling and the number of
    /// samples are ignored, because a first pass scores each document once in answer-only mode.
    #[must_use]
    pub fn with_options(mut self, options: ScoringOptions) -> Self {
        self.options = Some(options);
        self
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
