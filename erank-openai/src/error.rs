//! What goes wrong, and what to do about it.

use std::time::Duration;

use erank_core::{BackendError, Cause, DocumentError};
use thiserror::Error;

/// Why a backend cannot be made from its settings. No request was sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SetupError {
    /// No endpoint was given.
    #[error("there is no endpoint; give at least one URL")]
    NoEndpoint,
    /// An endpoint is not a usable URL.
    #[error("the endpoint {url:?} is not usable: {problem}")]
    Endpoint {
        /// The URL as given, without what stands before an `@`.
        url: String,
        /// What is wrong with it, and what to do.
        problem: &'static str,
    },
    /// A setting is out of its range.
    #[error("the setting {name} is {value}; {wanted}")]
    Setting {
        /// The field of [`OpenAiSettings`](crate::OpenAiSettings).
        name: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        wanted: &'static str,
    },
    /// The API key cannot be sent in an HTTP header. The message does not show it.
    #[error("the API key has characters that an HTTP header cannot carry; check where it is read")]
    ApiKey,
    /// The root certificates cannot be read.
    #[error("root_certificates is not a PEM text with certificates")]
    RootCertificates(#[source] Option<Cause>),
}

/// Why a request had no usable reply. No variant ever holds the API key.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// Nobody listens there, or the way there is closed.
    #[error("cannot connect to {url}")]
    Unreachable {
        /// Where the request was to go.
        url: String,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// The connection broke, or the time for the request ran out.
    #[error("no reply from {url}")]
    Connection {
        /// Where the request went.
        url: String,
        /// What happened.
        #[source]
        source: Cause,
    },
    /// The server is overloaded or not ready: status 429 or 503.
    #[error("{url} is overloaded (status {status}): {message}")]
    Overloaded {
        /// Where the request went.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
        /// How long it asked to be left alone.
        retry_after: Option<Duration>,
    },
    /// The server failed: another status from 500, or 408.
    #[error("{url} failed (status {status}): {message}")]
    Server {
        /// Where the request went.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// The reply is not what the API promises: garbage, or cut off.
    #[error("the reply of {url} is not usable: {problem}")]
    Malformed {
        /// Where the request went.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server understood the request and refuses it.
    #[error("{url} refuses the request (status {status}): {message}")]
    Refused {
        /// Where the request went.
        url: String,
        /// The HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// The server cannot do what is asked of every endpoint, or differs from the others.
    #[error("{url} cannot be used")]
    Unfit {
        /// The endpoint.
        url: String,
        /// What is wrong: a [`CapabilityError`], or the server's refusal.
        #[source]
        problem: Cause,
    },
    /// The prompt is longer than what the server's model takes.
    #[error("the prompt has {tokens} tokens where the server takes {limit}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens that fit.
        limit: usize,
    },
    /// Every attempt failed.
    #[error("gave up after {attempts} attempts")]
    GaveUp {
        /// Requests sent.
        attempts: usize,
        /// What the last one met with.
        #[source]
        last: Box<RequestError>,
    },
    /// The work was stopped.
    #[error("stopped before there was a reply")]
    Stopped,
}

impl RequestError {
    /// Whether the same request may succeed later or elsewhere.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Connection { .. }
                | Self::Overloaded { .. }
                | Self::Server { .. }
                | Self::Malformed { .. }
        )
    }

    /// Whether the endpoint is down, whatever it was asked: nobody listens, or who listens says that
    /// nobody works behind it.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Server { status: 502 | 504, .. } => true,
            // One that says when it will be back is busy, not down.
            Self::Overloaded { status: 503, retry_after, .. } => retry_after.is_none(),
            _ => false,
        }
    }

    /// Whether the endpoint refuses every request alike: a wrong key, model or route. A firewall's 403
    /// may be meant for one document.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(self, Self::Unfit { .. } | Self::Refused { status: 401 | 404 | 405, .. })
    }

    /// What happened, for logs: nothing that a server wrote, which may quote a document.
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Unreachable { source, .. } => format!("cannot connect: {source}"),
            Self::Connection { source, .. } => format!("no reply: {source}"),
            Self::Overloaded { status, .. }
            | Self::Server { status, .. }
            | Self::Refused { status, .. } => format!("status {status}"),
            Self::Malformed { .. } => "a reply that makes no sense".into(),
            Self::Unfit { problem, .. } => match problem.downcast_ref::<Self>() {
                Some(error) => error.summary(),
                None => problem.to_string(),
            },
            error => error.to_string(),
        }
    }
}

impl From<RequestError> for DocumentError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Stopped => Self::Cancelled,
            RequestError::TooLong { tokens, limit } => Self::PromptTooLong { tokens, limit },
            error => Self::Backend(error.into()),
        }
    }
}

impl From<RequestError> for BackendError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::GaveUp { .. } | RequestError::Stopped => Self::Unavailable(error.into()),
            error if error.is_transient() => Self::Unavailable(error.into()),
            error => Self::Unsupported(error.into()),
        }
    }
}

/// What the server cannot do for the options that were given.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CapabilityError {
    /// The server does not list the model.
    #[error(
        "the server has no model {model:?}, but {listed}; set OpenAiSettings::model to one of these"
    )]
    Model {
        /// The name that was asked for.
        model: String,
        /// Those that it lists.
        listed: String,
    },
    /// The model must be named.
    #[error("the server lists {listed}; set OpenAiSettings::model to the name of the one to ask")]
    NoModel {
        /// What it lists.
        listed: String,
    },
    /// The endpoints do not serve the same.
    #[error(
        "its {what} is not that of the first endpoint asked; give servers of one model, set up alike"
    )]
    Differs {
        /// What differs.
        what: &'static str,
    },
    /// Replies come without log-probabilities.
    #[error(
        "the server gives no log-probabilities for {alternatives} alternatives ({problem}); let it \
         give them, or rank by integers alone with OpenAiSettings::log_probs = false and ScoreKind::Integer"
    )]
    NoLogProbs {
        /// How many were asked for.
        alternatives: usize,
        /// What came instead.
        problem: String,
    },
    /// Replies come without the ids of the generated tokens.
    #[error("the server gives no token ids, which Prompts::TokenIds needs; use another of Prompts")]
    NoTokenIds,
    /// The server does not render chat templates.
    #[error(
        "the server does not render its chat template ({problem}); set OpenAiSettings::prompts to \
         Prompts::Frame with the template's text, or to Prompts::Chat"
    )]
    NoTemplate {
        /// What came instead.
        problem: String,
    },
    /// Answering at once needs a raw prompt.
    #[error("answering without a thought needs a raw prompt; Prompts::Chat has none")]
    ChatAnswerOnly,
    /// A sampling setting that the server does not have in this form.
    #[error("the sampling setting {setting} is not available: {problem}")]
    Sampling {
        /// The field of [`Sampling`](erank_core::Sampling).
        setting: &'static str,
        /// Why not, and what to do.
        problem: &'static str,
    },
}

impl CapabilityError {
    /// As the failure of one endpoint.
    pub(crate) fn at(self, url: &str) -> RequestError {
        RequestError::Unfit { url: url.to_owned(), problem: self.into() }
    }
}

impl From<CapabilityError> for BackendError {
    fn from(error: CapabilityError) -> Self {
        Self::Unsupported(error.into())
    }
}
