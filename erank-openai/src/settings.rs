//! The settings of the backend.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::SetupError;
use crate::http::ApiKey;
use crate::tokenizer::ClientTokenizer;

/// The settings of an [`OpenAiBackend`](crate::OpenAiBackend).
///
/// ```
/// use std::time::Duration;
/// use erank_openai::{ApiKey, OpenAiSettings, PromptFormat};
///
/// let mut settings = OpenAiSettings::default();
/// settings.model = Some("ERank-4B".into());
/// settings.api_key = std::env::var("ERANK_API_KEY").ok().map(ApiKey::new);
/// settings.prompt_format = PromptFormat::chat_ml();
/// settings.request_timeout = Duration::from_secs(120);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenAiSettings {
    /// The model's name at the server. `None` selects the only model that the server lists.
    pub model: Option<String>,
    /// The API key, sent as a bearer token.
    pub api_key: Option<ApiKey>,
    /// The form in which a prompt is sent.
    pub prompt_format: PromptFormat,
    /// The kind of server. `None` detects it from `/v1/models`.
    pub server: Option<ServerKind>,
    /// Whether to request log-probabilities. Without them only
    /// [`ScoreKind::Integer`](erank_core::ScoreKind::Integer) can rank, and the server need not support
    /// them.
    pub logprobs: bool,
    /// The number of most probable tokens to request at the answer position, at least 2. An allowed
    /// answer that is not among them gets an [upper bound](erank_core::AnswerDistribution::is_bound)
    /// instead of a probability. vLLM allows 20 by default, and also returns the answers themselves by
    /// their token ids. llama.cpp allows any number.
    pub top_logprobs: usize,
    /// The maximum number of concurrent requests to one endpoint. The limit in force starts lower, and
    /// drops when the endpoint reports an overload.
    pub max_concurrency: usize,
    /// The maximum number of times that a request is sent before its document fails, at least 1.
    ///
    /// An outage (no connection, or status 502, 503 or 504) gets three attempts more, with exponential
    /// backoff, before the open documents and the job fail. With 5, an endpoint may be down for 10 to
    /// 20 seconds; with 8, for 30 to 90. An address that never accepted a connection fails sooner. With 5, it
    /// fails after about 2 seconds.
    pub max_attempts: usize,
    /// The timeout for name resolution, and the timeout for a connection.
    pub connect_timeout: Duration,
    /// The timeout for one request, from connecting to the last byte. It must cover a whole thought on
    /// a busy server.
    pub request_timeout: Duration,
    /// Root certificates in PEM format, for a server with a private certificate authority. They replace
    /// the public ones.
    pub root_certificates: Option<String>,
    /// Control tokens of the server's tokenizer in addition to
    /// [`QWEN3_CONTROL_TOKENS`](crate::QWEN3_CONTROL_TOKENS).
    pub control_tokens: Vec<String>,
    /// The assumed average number of bytes per token, as a lower estimate. The limits of
    /// [`ScoringOptions`](erank_core::ScoringOptions) are in tokens, and the client does not have the
    /// server's tokenizer. So query and document are truncated to the limit times this number of bytes, and
    /// [`Windows`](erank_core::Windows) are measured in the same way. [`PromptFormat::TokenIds`] does not use it.
    pub bytes_per_token: f64,
}

impl Default for OpenAiSettings {
    /// Returns the server's chat template, 20 top log-probabilities, up to 32 concurrent requests, 5
    /// attempts, 5 s to connect, 10 minutes for a request, 4 bytes per token.
    fn default() -> Self {
        Self {
            model: None,
            api_key: None,
            prompt_format: PromptFormat::default(),
            server: None,
            logprobs: true,
            top_logprobs: 20,
            max_concurrency: 32,
            max_attempts: 5,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(600),
            root_certificates: None,
            control_tokens: Vec::new(),
            bytes_per_token: 4.0,
        }
    }
}

impl OpenAiSettings {
    /// Checks every setting that has a range.
    pub(crate) fn validate(&self) -> Result<(), SetupError> {
        let invalid = |name, value: String, expected| {
            Err(SetupError::InvalidSetting { name, value, expected })
        };
        for (name, value) in
            [("max_concurrency", self.max_concurrency), ("max_attempts", self.max_attempts)]
        {
            if value == 0 {
                return invalid(name, "0".into(), "give at least 1");
            }
        }
        if self.top_logprobs < 2 {
            return invalid("top_logprobs", self.top_logprobs.to_string(), "give at least 2");
        }
        for (name, value) in
            [("connect_timeout", self.connect_timeout), ("request_timeout", self.request_timeout)]
        {
            if value.is_zero() {
                return invalid(name, "0".into(), "give a time above 0");
            }
        }
        if !(self.bytes_per_token.is_finite() && self.bytes_per_token > 0.0) {
            let value = self.bytes_per_token.to_string();
            return invalid("bytes_per_token", value, "give a number above 0");
        }
        for token in &self.control_tokens {
            // Otherwise a space after the first character would not break the token.
            let mut characters = token.chars();
            let breakable = characters.next().is_some_and(|first| !first.is_whitespace())
                && characters.any(|character| !character.is_whitespace());
            if !breakable {
                let expected =
                    "give at least two characters other than white space, one at the start";
                return invalid("control_tokens", format!("{token:?}"), expected);
            }
        }
        Ok(())
    }
}

/// The kind of inference server, as detected from `/v1/models`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServerKind {
    /// llama.cpp's server.
    LlamaCpp,
    /// vLLM.
    Vllm,
    /// SGLang.
    Sglang,
    /// Any other server. Only fields of OpenAI's API are sent to it.
    Other,
}

/// The form in which a prompt is sent to the server.
///
/// A [whole](erank_core::PromptTemplate::whole) prompt needs no chat template. The first two forms send it as it
/// is.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum PromptFormat {
    /// Raw text (`/v1/completions`) in the server's own chat template. The server renders the template
    /// once; llama.cpp, vLLM and newer versions of SGLang support this.
    #[default]
    ServerTemplate,
    /// Raw text (`/v1/completions`) in the given chat template.
    Template {
        /// The text before the user's message.
        prefix: String,
        /// The text after the user's message, up to the start of the assistant turn.
        suffix: String,
    },
    /// Token ids (`/v1/completions`) from a tokenizer on the client side. Control tokens in documents
    /// become plain text without a change to the document, limits in tokens are exact, and a thought is
    /// continued with its own tokens. The server must accept and return token ids, as llama.cpp, vLLM and newer
    /// versions of SGLang do.
    TokenIds(Arc<dyn ClientTokenizer>),
    /// A chat message (`/v1/chat/completions`), for servers without raw prompts.
    ///
    /// Answer-only mode is not available. A thought that exceeds its budget cannot be continued, so its
    /// document gets no score. There is a probability of the given answer, but no distribution over the
    /// answers.
    Chat,
}

impl PromptFormat {
    /// Returns ChatML, the form of Qwen3's template for a single message.
    pub fn chat_ml() -> Self {
        Self::Template {
            prefix: "<|im_start|>user\n".into(),
            suffix: "<|im_end|>\n<|im_start|>assistant\n".into(),
        }
    }
}

impl fmt::Debug for PromptFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerTemplate => f.write_str("ServerTemplate"),
            Self::Template { prefix, suffix } => {
                f.debug_struct("Template").field("prefix", prefix).field("suffix", suffix).finish()
            }
            Self::TokenIds(_) => f.write_str("TokenIds(…)"),
            Self::Chat => f.write_str("Chat"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn validate_names_the_invalid_setting() {
        assert!(OpenAiSettings::default().validate().is_ok());
        type Change = fn(&mut OpenAiSettings);
        let invalid: [(&str, Change); 9] = [
            ("max_concurrency", |s| s.max_concurrency = 0),
            ("max_attempts", |s| s.max_attempts = 0),
            ("top_logprobs", |s| s.top_logprobs = 1),
            ("connect_timeout", |s| s.connect_timeout = Duration::ZERO),
            ("request_timeout", |s| s.request_timeout = Duration::ZERO),
            ("bytes_per_token", |s| s.bytes_per_token = f64::NAN),
            ("control_tokens", |s| s.control_tokens = vec!["x".into()]),
            ("control_tokens", |s| s.control_tokens = vec![" x".into()]),
            ("control_tokens", |s| s.control_tokens = vec!["x ".into()]),
        ];
        for (name, change) in invalid {
            let mut settings = OpenAiSettings::default();
            change(&mut settings);
            let error = settings.validate().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn debug_output_of_settings_omits_the_api_key() {
        let settings =
            OpenAiSettings { api_key: Some(ApiKey::new("s3cret")), ..OpenAiSettings::default() };
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}
