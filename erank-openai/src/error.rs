//! Errors, and how the crate classifies a failed request.

use std::time::Duration;

use erank_core::{BackendError, Cause, DocumentError};
use thiserror::Error;

/// An error in the settings of a backend. No request was sent.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SetupError {
    /// No endpoint was given.
    #[error("there is no endpoint; give at least one URL")]
    NoEndpoint,
    /// An endpoint is not a usable URL.
    #[error("the endpoint {url:?} is not usable: {problem}")]
    InvalidEndpoint {
        /// The URL as given, without the part before an `@`.
        url: String,
        /// The problem, and its remedy.
        problem: &'static str,
    },
    /// A setting is out of its range.
    #[error("the setting {name} is {value}; {expected}")]
    InvalidSetting {
        /// The field of [`OpenAiSettings`](crate::OpenAiSettings).
        name: &'static str,
        /// Its value.
        value: String,
        /// The values that the setting accepts.
        expected: &'static str,
    },
    /// The API key cannot be sent in an HTTP header. The message does not show the key.
    #[error("the API key has characters that an HTTP header cannot carry; check where it is read")]
    InvalidApiKey,
    /// The root certificates cannot be read.
    #[error("root_certificates is not a PEM text with certificates")]
    InvalidRootCertificates(#[source] Option<Cause>),
}

/// A request without a usable response. No variant ever holds the API key.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No connection could be made.
    #[error("cannot connect to {url}")]
    Unreachable {
        /// The URL of the request.
        url: String,
        /// The error of the connection attempt.
        #[source]
        source: Cause,
    },
    /// The connection broke, or the request timed out.
    #[error("no response from {url}")]
    Connection {
        /// The URL of the request.
        url: String,
        /// The error of the connection.
        #[source]
        source: Cause,
    },
    /// The server is overloaded or not ready: status 429 or 503.
    #[error("{url} is overloaded (status {status}): {message}")]
    Overloaded {
        /// The URL of the request.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's message.
        message: String,
        /// The pause that the server's `Retry-After` asks for.
        retry_after: Option<Duration>,
    },
    /// The server failed: status 408, or 500 and above except 503.
    #[error("{url} failed (status {status}): {message}")]
    ServerError {
        /// The URL of the request.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The response is truncated, is not JSON, or lacks fields of the API.
    #[error("the response of {url} is invalid: {problem}")]
    InvalidResponse {
        /// The URL of the request.
        url: String,
        /// The problem with the response.
        problem: String,
    },
    /// The server rejects the request: any other status that is not a success.
    #[error("{url} rejects the request (status {status}): {message}")]
    Rejected {
        /// The URL of the request.
        url: String,
        /// The HTTP status.
        status: u16,
        /// The server's message.
        message: String,
    },
    /// The endpoint lacks a required capability, or differs from the other endpoints.
    #[error("{url} cannot be used")]
    UnusableEndpoint {
        /// The endpoint.
        url: String,
        /// A [`CapabilityError`], or the server's [`Rejected`](Self::Rejected).
        #[source]
        problem: Cause,
    },
    /// The prompt exceeds the context length of the server's model.
    #[error("the prompt has {tokens} tokens, more than the server's limit of {limit}")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// The context length in tokens.
        limit: usize,
    },
    /// Every attempt failed.
    #[error("gave up after {attempts} attempts")]
    RetriesExhausted {
        /// Number of requests sent.
        attempts: usize,
        /// The error of the last attempt.
        #[source]
        last: Box<RequestError>,
    },
    /// The job was cancelled.
    #[error("cancelled before a response arrived")]
    Cancelled,
}

impl RequestError {
    /// Returns whether the same request may succeed later or at another endpoint.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Unreachable { .. }
                | Self::Connection { .. }
                | Self::Overloaded { .. }
                | Self::ServerError { .. }
                | Self::InvalidResponse { .. }
        )
    }

    /// Returns whether the endpoint is down for every request. This is the case if it accepts no connection,
    /// or if a proxy in front of it reports that no server is available.
    pub(crate) fn is_outage(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::ServerError { status: 502 | 504, .. } => true,
            // A server that sends `Retry-After` is busy, not down.
            Self::Overloaded { status: 503, retry_after, .. } => retry_after.is_none(),
            _ => false,
        }
    }

    /// Returns whether the endpoint rejects every request, because of a wrong key, model or route. Status 403
    /// does not count, because a firewall may send it for a single document.
    pub(crate) fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::UnusableEndpoint { .. } | Self::Rejected { status: 401 | 404 | 405, .. }
        )
    }

    /// Returns a summary for logs. It holds no text from the server, which may quote a document.
    pub(crate) fn summary(&self) -> String {
        match self {
            Self::Unreachable { source, .. } => format!("cannot connect: {source}"),
            Self::Connection { source, .. } => format!("no response: {source}"),
            Self::Overloaded { status, .. }
            | Self::ServerError { status, .. }
            | Self::Rejected { status, .. } => format!("status {status}"),
            Self::InvalidResponse { .. } => "invalid response".into(),
            Self::UnusableEndpoint { problem, .. } => match problem.downcast_ref::<Self>() {
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
            RequestError::Cancelled => Self::Cancelled,
            RequestError::PromptTooLong { tokens, limit } => Self::PromptTooLong { tokens, limit },
            error => Self::Backend(error.into()),
        }
    }
}

impl From<RequestError> for BackendError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::RetriesExhausted { .. } | RequestError::Cancelled => {
                Self::Unavailable(error.into())
            }
            error if error.is_transient() => Self::Unavailable(error.into()),
            error => Self::Unsupported(error.into()),
        }
    }
}

/// A capability that the given options need and the server lacks.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CapabilityError {
    /// The server does not list the model.
    #[error(
        "the server has no model {model:?}, but {listed}; set OpenAiSettings::model to one of these"
    )]
    UnknownModel {
        /// The name in the settings.
        model: String,
        /// The names that the server lists.
        listed: String,
    },
    /// The settings name no model, and the server does not list exactly one.
    #[error("the server lists {listed}; set OpenAiSettings::model to the name of the one to use")]
    ModelNotSet {
        /// The names that the server lists.
        listed: String,
    },
    /// The endpoints do not serve the same model in the same way.
    #[error(
        "its {property} differs from that of the first endpoint; give servers of one model with the \
         same settings"
    )]
    EndpointMismatch {
        /// The property that differs.
        property: &'static str,
    },
    /// Responses hold no log-probabilities.
    #[error(
        "the server gives no log-probabilities for top_logprobs = {top_logprobs} ({problem}); enable \
         them at the server, or rank by integers with OpenAiSettings::logprobs = false and \
         ScoreKind::Integer"
    )]
    NoLogprobs {
        /// The number of top log-probabilities requested.
        top_logprobs: usize,
        /// The problem with the response.
        problem: String,
    },
    /// Responses hold no ids of the generated tokens.
    #[error(
        "the server gives no token ids, which PromptFormat::TokenIds needs; use another PromptFormat"
    )]
    NoTokenIds,
    /// The server does not render chat templates.
    #[error(
        "the server does not render its chat template ({problem}); set OpenAiSettings::prompt_format \
         to PromptFormat::Template with the template's text, or to PromptFormat::Chat"
    )]
    NoChatTemplate {
        /// The problem with the response.
        problem: String,
    },
    /// The server rejects raw prompts.
    #[error(
        "the server rejects /v1/completions ({problem}), which raw prompts need; check OpenAiSettings::model, or \
         set OpenAiSettings::prompt_format to PromptFormat::Chat, which serves neither answer-only mode nor \
         whole prompts"
    )]
    NoCompletions {
        /// The server's message.
        problem: String,
    },
    /// Answer-only mode needs a raw prompt.
    #[error("answer-only mode needs a raw prompt, which PromptFormat::Chat does not have")]
    ChatAnswerOnly,
    /// The prompt is whole, and the prompt format sends user messages.
    #[error(
        "the prompt template is a whole prompt, which PromptFormat::Chat cannot send; set \
         OpenAiSettings::prompt_format to PromptFormat::ServerTemplate, which sends it as it is, or choose a \
         prompt template that is a user message"
    )]
    ChatWholePrompt,
    /// The server adds a token to raw prompts.
    #[error(
        "the server adds a token to each raw prompt, so the model would read another prompt than the chat template's;          turn off add_bos_token in the model's files, or set OpenAiSettings::prompt_format to PromptFormat::TokenIds"
    )]
    AddedTokens,
    /// The log-probabilities of a chat are those after the sampling settings, not the model's own.
    #[error(
        "the server's log-probabilities depend on the sampling settings; use temperature 0, or temperature 1 without          filters and penalties, or rank by integers with OpenAiSettings::logprobs = false and ScoreKind::Integer, or          set OpenAiSettings::prompt_format to another format than PromptFormat::Chat"
    )]
    ChangedLogprobs,
    /// A sampling setting that the server does not support with erank's meaning.
    #[error("the sampling setting {setting} is not available: {problem}")]
    UnsupportedSampling {
        /// The field of [`Sampling`](erank_core::Sampling).
        setting: &'static str,
        /// The reason, and the remedy.
        problem: &'static str,
    },
}

impl CapabilityError {
    /// Converts the error to a request error of one endpoint.
    pub(crate) fn at(self, url: &str) -> RequestError {
        RequestError::UnusableEndpoint { url: url.to_owned(), problem: self.into() }
    }
}

impl From<CapabilityError> for BackendError {
    fn from(error: CapabilityError) -> Self {
        Self::Unsupported(error.into())
    }
}
