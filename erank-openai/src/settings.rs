//! What a caller chooses.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::SetupError;
use crate::http::ApiKey;
use crate::prompts::TokenPrompts;
use crate::server::Server;

/// How the backend talks to its server.
///
/// ```
/// use std::time::Duration;
/// use erank_openai::{ApiKey, Prompts, OpenAiSettings};
///
/// let mut settings = OpenAiSettings::default();
/// settings.model = Some("ERank-4B".into());
/// settings.api_key = std::env::var("ERANK_API_KEY").ok().map(ApiKey::new);
/// settings.prompts = Prompts::chat_ml();
/// settings.request_timeout = Duration::from_secs(120);
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct OpenAiSettings {
    /// The model's name at the server; `None` takes the only one that it lists.
    pub model: Option<String>,
    /// Sent as a bearer token.
    pub api_key: Option<ApiKey>,
    /// How a prompt reaches the model.
    pub prompts: Prompts,
    /// Which server it is; `None` asks it.
    pub server: Option<Server>,
    /// Whether probabilities are wanted. Without, only
    /// [`ScoreKind::Integer`](erank_core::ScoreKind::Integer) can rank; then a server need not give
    /// log-probabilities.
    pub log_probs: bool,
    /// The alternatives asked for where the answer begins, at least 2. An allowed answer that is not
    /// among them has a [bound](erank_core::AnswerDistribution::is_bound) for a probability. vLLM
    /// allows 20 unless told otherwise, and names the answers besides; llama.cpp allows any number.
    pub alternatives: usize,
    /// Most requests under way at one endpoint. Fewer are sent at first, and after the server said
    /// that it is overloaded.
    pub max_concurrency: usize,
    /// Times that a request is sent before its document is given up. An outage is not the document's
    /// fault: while nobody listens, or the reply is 502, 503 or 504, a request is sent three times more,
    /// with longer and longer pauses, before the documents under way and with them the job are given up.
    /// With 5, a server may be away for 10 to 20 seconds, with 8 for 30 to 90. An address where nobody
    /// ever listened is given up sooner, with 5 after some 2 seconds.
    pub attempts: usize,
    /// Most time to resolve a name, and to connect.
    pub connect_timeout: Duration,
    /// Most time for one request from connecting to the last byte: what a whole thought takes on a
    /// busy server.
    pub request_timeout: Duration,
    /// PEM text of the certificates to trust instead of the usual public ones, for a server with a
    /// private authority.
    pub root_certificates: Option<String>,
    /// Texts that the server's tokenizer makes control tokens of, besides
    /// [Qwen3's](crate::QWEN3_CONTROL_TOKENS).
    pub control_tokens: Vec<String>,
    /// Bytes that a token of text has at the least, on average. The limits of
    /// [`ScoringOptions`](erank_core::ScoringOptions) are in tokens, and a server's tokenizer is out
    /// of reach: query and document are cut to so many bytes for each token. Exact with
    /// [`Prompts::TokenIds`].
    pub bytes_per_token: f64,
}

impl Default for OpenAiSettings {
    /// The server's template, log-probabilities with 20 alternatives, up to 32 requests at once, 5
    /// attempts, 5 s to connect, 10 minutes for a request, 4 bytes a token.
    fn default() -> Self {
        Self {
            model: None,
            api_key: None,
            prompts: Prompts::default(),
            server: None,
            log_probs: true,
            alternatives: 20,
            max_concurrency: 32,
            attempts: 5,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(600),
            root_certificates: None,
            control_tokens: Vec::new(),
            bytes_per_token: 4.0,
        }
    }
}

impl OpenAiSettings {
    pub(crate) fn check(&self) -> Result<(), SetupError> {
        let wrong = |name, value: String, wanted| Err(SetupError::Setting { name, value, wanted });
        for (name, value) in
            [("max_concurrency", self.max_concurrency), ("attempts", self.attempts)]
        {
            if value == 0 {
                return wrong(name, "0".into(), "give at least 1");
            }
        }
        if self.alternatives < 2 {
            return wrong("alternatives", self.alternatives.to_string(), "give at least 2");
        }
        for (name, value) in
            [("connect_timeout", self.connect_timeout), ("request_timeout", self.request_timeout)]
        {
            if value.is_zero() {
                return wrong(name, "0".into(), "give a time above 0");
            }
        }
        if !(self.bytes_per_token.is_finite() && self.bytes_per_token > 0.0) {
            let value = self.bytes_per_token.to_string();
            return wrong("bytes_per_token", value, "give a number above 0");
        }
        for token in &self.control_tokens {
            // Otherwise no space after the first character would break it.
            let mut characters = token.chars();
            let breakable = characters.next().is_some_and(|first| !first.is_whitespace())
                && characters.any(|character| !character.is_whitespace());
            if !breakable {
                let wanted =
                    "give at least two characters other than white space, one at the start";
                return wrong("control_tokens", format!("{token:?}"), wanted);
            }
        }
        Ok(())
    }
}

/// How a prompt reaches the model.
#[derive(Clone, Default)]
#[non_exhaustive]
pub enum Prompts {
    /// As raw text (`/v1/completions`), within the server's own chat template. The server is asked
    /// once to render it: llama.cpp and vLLM do.
    #[default]
    ServerTemplate,
    /// As raw text within these two.
    Frame {
        /// What stands before the user's message.
        before: String,
        /// What stands after it, up to where the assistant's turn begins.
        after: String,
    },
    /// As token ids, made by a tokenizer on this side: control tokens in documents are plain text
    /// without a change to them, limits in tokens are exact, and a thought is continued by its very
    /// tokens. For servers that take ids and give them, as llama.cpp and vLLM do.
    TokenIds(Arc<dyn TokenPrompts>),
    /// As a message (`/v1/chat/completions`), for servers that have nothing else.
    ///
    /// The model then cannot be asked to answer at once; a thought that runs out of budget is not
    /// continued and leaves its document without a score; and there is the answer's probability, but
    /// no distribution over the answers.
    Chat,
}

impl Prompts {
    /// ChatML, the form of Qwen3's template for a single message.
    pub fn chat_ml() -> Self {
        Self::Frame {
            before: "<|im_start|>user\n".into(),
            after: "<|im_end|>\n<|im_start|>assistant\n".into(),
        }
    }
}

impl fmt::Debug for Prompts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ServerTemplate => f.write_str("ServerTemplate"),
            Self::Frame { before, after } => {
                f.debug_struct("Frame").field("before", before).field("after", after).finish()
            }
            Self::TokenIds(_) => f.write_str("TokenIds(…)"),
            Self::Chat => f.write_str("Chat"),
        }
    }
}

/// The server's root, from a URL with or without `/v1` at its end.
pub(crate) fn root(url: &str) -> Result<String, SetupError> {
    let wrong = |problem| {
        // What stands before an @ may be a password.
        let url = url.rsplit('@').next().unwrap_or_default().to_owned();
        Err(SetupError::Endpoint { url, problem })
    };
    let url = url.trim();
    let Some((scheme @ ("http" | "https"), rest)) = url.split_once("://") else {
        return wrong("it begins with neither http:// nor https://");
    };
    if rest.contains('@') {
        return wrong("it has a user or a password in it; give the key as OpenAiSettings::api_key");
    }
    if rest.contains(['?', '#']) {
        return wrong("it has a query or a fragment; give the address up to /v1");
    }
    let rest = rest.trim_end_matches('/');
    let rest = rest.strip_suffix("/v1").unwrap_or(rest);
    if ureq::http::Uri::try_from(format!("{scheme}://{rest}/")).is_err() {
        return wrong("it is not a URL");
    }
    Ok(format!("{scheme}://{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_lead_to_the_servers_root() {
        for (url, expected) in [
            ("http://gpu:8000", "http://gpu:8000"),
            ("http://gpu:8000/", "http://gpu:8000"),
            (" https://host/v1/ ", "https://host"),
            ("https://host/openai/v1", "https://host/openai"),
        ] {
            assert_eq!(root(url).ok().as_deref(), Some(expected));
        }
    }

    #[test]
    fn unusable_urls_are_refused_without_showing_a_password() {
        for url in ["", "gpu:8000", "ftp://gpu", "http://", "http://a b", "http://a?x=1"] {
            assert!(root(url).is_err(), "{url:?}");
        }
        let error = root("https://me:s3cret@host").expect_err("a password");
        assert!(error.to_string().contains("api_key"));
        assert!(!format!("{error} {error:?}").contains("s3cret"));
        assert!(!format!("{:?}", root("me:s3cret@host")).contains("s3cret"));
    }

    #[test]
    fn every_setting_is_checked_by_name() {
        assert!(OpenAiSettings::default().check().is_ok());
        type Change = fn(&mut OpenAiSettings);
        let wrong: [(&str, Change); 9] = [
            ("max_concurrency", |s| s.max_concurrency = 0),
            ("attempts", |s| s.attempts = 0),
            ("alternatives", |s| s.alternatives = 1),
            ("connect_timeout", |s| s.connect_timeout = Duration::ZERO),
            ("request_timeout", |s| s.request_timeout = Duration::ZERO),
            ("bytes_per_token", |s| s.bytes_per_token = f64::NAN),
            ("control_tokens", |s| s.control_tokens = vec!["x".into()]),
            ("control_tokens", |s| s.control_tokens = vec![" x".into()]),
            ("control_tokens", |s| s.control_tokens = vec!["x ".into()]),
        ];
        for (name, change) in wrong {
            let mut settings = OpenAiSettings::default();
            change(&mut settings);
            let error = settings.check().expect_err(name).to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn debug_does_not_show_the_key() {
        let settings =
            OpenAiSettings { api_key: Some(ApiKey::new("s3cret")), ..OpenAiSettings::default() };
        assert!(!format!("{settings:?}").contains("s3cret"));
    }
}
