//! The options of a conformance check.

use std::time::Duration;

use crate::options::{Mode, ScoringOptions};
use crate::prompt::PromptTemplate;

/// The options of a conformance check.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// The prompt template of every job. A template with a [bare](crate::AnswerFormat::bare) answer replaces the
    /// mode of [`scoring`](Self::scoring) by answer-only mode.
    pub template: PromptTemplate,
    /// The query of every job except one with a long query.
    pub query: String,
    /// Ordinary documents, at least two and all different. The backend must answer each of them.
    pub documents: Vec<String>,
    /// The options of the jobs. Small limits make the checks fast.
    pub scoring: ScoringOptions,
    /// Whether the same prompt and options always give the same answer. Then repeated calls, other documents
    /// and concurrent calls do not change an answer.
    pub deterministic: bool,
    /// The number of documents of a large job.
    pub large_job_documents: usize,
    /// The number of concurrent calls.
    pub concurrent_calls: usize,
    /// The maximum time from a cancellation to the return of the call. Allow more than the duration of
    /// one step.
    pub cancellation_timeout: Duration,
}

impl Default for Options {
    /// Returns ERank's prompt, six documents, reasoning of up to 16 tokens, a limit of 64 tokens for query and
    /// document, deterministic answers, 2,000 documents in the large job, 4 concurrent calls, and a cancellation
    /// timeout of 10 s.
    fn default() -> Self {
        let scoring = ScoringOptions {
            mode: Mode::Reason { max_tokens: 16 },
            max_query_tokens: 64,
            max_document_tokens: 64,
            ..ScoringOptions::default()
        };
        let documents = [
            "Honey is made by bees from the nectar of flowers.",
            "A recipe for bread with little salt.",
            "Bees dance to tell each other where flowers are.",
            "x",
            "Wasps make paper nests from wood, and eat what is sweet, but they make no honey.",
            "Le miel est fait par les abeilles. 蜂蜜は蜂が作る。",
        ];
        Self {
            template: PromptTemplate::erank(),
            query: "how do bees make honey".into(),
            documents: documents.map(String::from).into(),
            scoring,
            deterministic: true,
            large_job_documents: 2000,
            concurrent_calls: 4,
            cancellation_timeout: Duration::from_secs(10),
        }
    }
}
