//! The settings of a service.

use std::fmt;
use std::time::Duration;

use erank_core::{PromptTemplate, ScoringOptions, Windows};
use serde::Deserialize;

/// The settings of a [`Service`](crate::Service).
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The prompt. A request can replace its instruction.
    pub template: PromptTemplate,
    /// The goal of requests without one. `None` stands for the template's.
    pub instruction: Option<String>,
    /// The options of a request that does not set them.
    pub options: ScoringOptions,
    /// The windows of long documents. With `None`, long documents are truncated. Those of a request that sets
    /// `max_tokens_per_doc` or `truncate_prompt_tokens` always are.
    pub windows: Option<Windows>,
    /// More names of the model, which a request may state instead of the backend's.
    pub aliases: Vec<String>,
    /// The API keys. Without any, a request needs none.
    pub api_keys: ApiKeys,
    /// The host names that the headers `host` and `origin` of a request may have, with any port. If the list is empty,
    /// any host is allowed, and the origin must equal the host. A service on a loopback address should list its names;
    /// otherwise, a web page can reach it by a DNS name of its own.
    pub allowed_hosts: Vec<String>,
    /// How a reply lists documents without a score. A request can choose otherwise.
    pub unscored: Unscored,
    /// The number of requests that are computed at the same time. A backend with continuous batching computes their
    /// documents together.
    pub max_running: usize,
    /// The number of requests that can wait. Further ones get the status 429.
    pub max_waiting: usize,
    /// The number of documents of a request.
    pub max_documents: usize,
    /// The number of samples of each document.
    pub max_samples: usize,
    /// The bytes of the query and of the instruction, each.
    pub max_query_bytes: usize,
    /// The bytes of a body.
    pub max_body_bytes: usize,
    /// The bytes of the bodies of all requests, from the first byte to the reply. Apart from them, the replies that
    /// clients have not read yet have as many bytes.
    pub max_total_body_bytes: usize,
    /// The time in which a body must arrive, and the time that a long reply waits for memory.
    pub body_time: Duration,
    /// The time from a request's first byte. Documents without a score by then are unscored.
    pub request_time: Duration,
}

impl Default for Settings {
    /// Returns ERank's prompt and options, 4 running and 32 waiting requests, 1,000 documents of a request and 64
    /// samples of each, 8 MiB of a body and 64 MiB of all, 10 s for a body, and 600 s for a request.
    fn default() -> Self {
        Self {
            template: PromptTemplate::erank(),
            instruction: None,
            options: ScoringOptions::default(),
            windows: None,
            aliases: Vec::new(),
            api_keys: ApiKeys::default(),
            allowed_hosts: Vec::new(),
            unscored: Unscored::Last,
            max_running: 4,
            max_waiting: 32,
            max_documents: 1000,
            max_samples: 64,
            max_query_bytes: 256 << 10,
            max_body_bytes: 8 << 20,
            max_total_body_bytes: 64 << 20,
            body_time: Duration::from_secs(10),
            request_time: Duration::from_secs(600),
        }
    }
}

/// How a reply lists documents without a score, besides the field `unscored`, which always has them with their errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unscored {
    /// They are the last results, with a score below all others and their error. Clients that expect a result for every
    /// document, as Cohere and Jina give, work with this choice.
    Last,
    /// They are no results.
    Omit,
    /// The reply is an error if there is such a document.
    Error,
}

/// API keys. Their `Debug` output hides them.
#[derive(Clone, Default)]
pub struct ApiKeys(Vec<String>);

impl ApiKeys {
    /// Creates the keys from texts. White space around a key and empty keys are left out.
    pub fn new<K: AsRef<str>>(keys: impl IntoIterator<Item = K>) -> Self {
        let keys = keys.into_iter().map(|key| key.as_ref().trim().to_owned());
        Self(keys.filter(|key| !key.is_empty()).collect())
    }

    /// Returns whether there is no key, so that no request needs one.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether `key` is one of the keys. The time does not depend on the number of equal characters.
    pub(crate) fn contains(&self, key: &str) -> bool {
        let is_equal = |known: &String| {
            let difference = known.bytes().zip(key.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
            (known.len() == key.len()) & (std::hint::black_box(difference) == 0)
        };
        self.0.iter().fold(false, |found, known| found | is_equal(known))
    }
}

impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys", self.0.len())
    }
}
