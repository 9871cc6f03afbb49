//! The HTTP client. It sends one JSON request, returns one JSON response, and classifies every failure.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{HeaderValue, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::error::{RequestError, SetupError};

/// The maximum size of a response. It bounds the memory that a faulty server can take.
const MAX_RESPONSE_BYTES: u64 = 64 << 20;
/// Bytes of a response beside what [`max_response_bytes`] allows for its tokens.
const OTHER_BYTES: u64 = 512 << 10;
/// Bytes of a generated token with its text, id, bytes and log-probabilities. llama.cpp writes up to some 300.
const TOKEN_BYTES: u64 = 512;
/// Bytes of responses to other requests, such as the list of a gateway's models.
const LIST_BYTES: u64 = 4 << 20;
/// The maximum number of characters of a server's message in an error.
const MAX_MESSAGE_CHARS: usize = 300;
/// The replacement for the key in any text that is shown.
const REDACTED: &str = "[key]";

/// A secret that is sent as a bearer token. Neither `Debug` nor any error of this crate shows it.
///
/// The underlying HTTP client logs through the `log` crate. Its `DEBUG` messages do not contain the key. Its
/// `TRACE` messages contain everything that is sent, including the key and the documents. So keep the target
/// `ureq_proto`, which writes them, at `DEBUG` unless the logs are secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Creates a key from its text, without `Bearer`.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    /// Returns the value of the `Authorization` header.
    fn header(&self) -> Result<HeaderValue, SetupError> {
        let header = HeaderValue::try_from(format!("Bearer {}", self.0));
        let mut header = header.map_err(|_| SetupError::InvalidApiKey)?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// Replaces the key in `text`, which a server wrote.
    fn redact(&self, text: &str) -> String {
        match self.0.is_empty() {
            true => text.to_owned(),
            false => text.replace(&self.0, REDACTED),
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// The settings of an [`HttpClient`].
#[derive(Debug, Clone)]
pub(crate) struct HttpSettings<'a> {
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) max_idle_connections: usize,
    pub(crate) root_certificates: Option<&'a str>,
}

/// Creates [`Session`]s, and pools the connections of finished ones.
#[derive(Debug)]
pub(crate) struct HttpClient {
    config: Config,
    key: Option<ApiKey>,
    authorization: Option<HeaderValue>,
    pool: Mutex<Vec<Agent>>,
}

impl HttpClient {
    /// Creates a client.
    ///
    /// # Errors
    /// Returns a [`SetupError`] if the key or the root certificates are invalid.
    pub(crate) fn new(
        settings: &HttpSettings<'_>,
        key: Option<ApiKey>,
    ) -> Result<Self, SetupError> {
        let roots = match settings.root_certificates {
            None => RootCerts::WebPki,
            Some(pem) => RootCerts::new_with_certs(&parse_certificates(pem)?),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(settings.connect_timeout))
            .timeout_connect(Some(settings.connect_timeout))
            .timeout_global(Some(settings.request_timeout))
            .max_idle_connections(settings.max_idle_connections)
            .max_idle_connections_per_host(settings.max_idle_connections)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("erank/", env!("CARGO_PKG_VERSION")))
            .build();
        let authorization = key.as_ref().map(ApiKey::header).transpose()?;
        Ok(Self { config, key, authorization, pool: Mutex::new(Vec::new()) })
    }

    /// Returns a session, on pooled connections if there are any.
    pub(crate) fn session(&self) -> Session {
        let pooled = self.pool().pop();
        let agent = pooled.unwrap_or_else(|| self.config.new_agent());
        Session { agent, cancelled: Arc::default() }
    }

    /// Returns the connections of a session to the pool. Drops them if the session is cancelled or the
    /// pool is full.
    pub(crate) fn recycle(&self, session: Session) {
        const MAX_POOLED: usize = 8;
        if session.is_cancelled() {
            return;
        }
        let mut pool = self.pool();
        if pool.len() < MAX_POOLED {
            pool.push(session.agent);
        }
    }

    fn pool(&self) -> MutexGuard<'_, Vec<Agent>> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a POST request with `body`, or a GET request without one, and returns the response's body.
    pub(crate) fn send(
        &self,
        session: &Session,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Vec<u8>, RequestError> {
        let connection = |error| RequestError::Connection { url: url.to_owned(), source: error };
        let authorization = self.authorization.as_ref();
        let text = body.map(Value::to_string);
        let limit = max_response_bytes(body, text.as_ref().map_or(0, String::len));
        let response = match text {
            Some(text) => {
                let mut request = session.agent.post(url).content_type("application/json");
                if let Some(value) = authorization {
                    request = request.header("authorization", value);
                }
                request.send(text)
            }
            None => {
                let mut request = session.agent.get(url);
                if let Some(value) = authorization {
                    request = request.header("authorization", value);
                }
                request.call()
            }
        };
        let mut response = response.map_err(|error| match is_unreachable(&error) {
            true => RequestError::Unreachable { url: url.to_owned(), source: error.into() },
            false => connection(error.into()),
        })?;
        let bytes = response.body_mut().with_config().limit(limit).read_to_vec();
        let bytes = bytes.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => RequestError::InvalidResponse {
                url: url.to_owned(),
                problem: format!("it has more than {limit} bytes"),
            },
            error => connection(error.into()),
        })?;
        match response.status().is_success() {
            true => Ok(bytes),
            false => Err(self.status_error(url, &response, &bytes)),
        }
    }

    /// Converts a response whose status is not a success to an error.
    fn status_error(
        &self,
        url: &str,
        response: &Response<ureq::Body>,
        bytes: &[u8],
    ) -> RequestError {
        let status = response.status().as_u16();
        let body: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
        if let Some(error) = parse_prompt_too_long(&body) {
            return error;
        }
        let (url, message) = (url.to_owned(), self.message(&body, bytes));
        match status {
            429 | 503 => {
                let header = response.headers().get("retry-after");
                let retry_after =
                    header.and_then(|value| parse_retry_after(value.to_str().ok()?.trim()));
                RequestError::Overloaded { url, status, message, retry_after }
            }
            408 | 500.. => RequestError::ServerError { url, status, message },
            _ => RequestError::Rejected { url, status, message },
        }
    }

    /// Returns the error message of a response, from the fields in which servers put it.
    fn message(&self, body: &Value, bytes: &[u8]) -> String {
        let fields = [&body["error"]["message"], &body["error"], &body["message"], &body["detail"]];
        let message = fields.into_iter().find_map(Value::as_str);
        let message = message.map_or_else(|| String::from_utf8_lossy(bytes), Into::into);
        self.sanitize(&message)
    }

    /// Redacts the key in a server's text and truncates the text, for use in an error.
    pub(crate) fn sanitize(&self, text: &str) -> String {
        // Redact before truncating, so that no part of the key is left.
        let text = self.key.as_ref().map_or(text.to_owned(), |key| key.redact(text));
        match text.char_indices().nth(MAX_MESSAGE_CHARS) {
            Some((end, _)) => format!("{}…", &text[..end]),
            None => text,
        }
    }
}

/// The connections of one job, and whether the job is cancelled. Clones share both.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    agent: Agent,
    cancelled: Arc<AtomicBool>,
}

impl Session {
    /// Closes all connections. Open requests in other threads fail at once, and every later request fails as
    /// well.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
        self.agent.clone().shutdown();
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// Sleeps for `pause`.
    ///
    /// # Errors
    /// Returns [`RequestError::Cancelled`] as soon as the session is cancelled.
    pub(crate) fn sleep(&self, pause: Duration) -> Result<(), RequestError> {
        const POLL: Duration = Duration::from_millis(20);
        let end = Instant::now() + pause;
        while !self.is_cancelled() {
            match end.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::sleep(left.min(POLL)),
                _ => return Ok(()),
            }
        }
        Err(RequestError::Cancelled)
    }
}

/// Returns the maximum size of the response to a request, whose body has `body_bytes` bytes as text. A valid response
/// is smaller.
fn max_response_bytes(body: Option<&Value>, body_bytes: usize) -> u64 {
    /// Bytes of a number in a tokenizer's response, which has up to one for each byte of a text.
    const ID_BYTES: u64 = 16;
    let bytes = match body.map(|body| &body["max_tokens"]).and_then(Value::as_u64) {
        Some(tokens) => OTHER_BYTES.saturating_add(tokens.saturating_mul(TOKEN_BYTES)),
        None => LIST_BYTES.saturating_add(ID_BYTES.saturating_mul(body_bytes as u64)),
    };
    bytes.min(MAX_RESPONSE_BYTES)
}

/// Returns whether no connection was made, so that the request itself cannot be the cause.
fn is_unreachable(error: &ureq::Error) -> bool {
    use std::io::ErrorKind;
    match error {
        ureq::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
        ),
        ureq::Error::Timeout(timeout) => {
            matches!(timeout, ureq::Timeout::Connect | ureq::Timeout::Resolve)
        }
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::ConnectProxyFailed(_)
        | ureq::Error::Tls(_)
        | ureq::Error::Rustls(_) => true,
        _ => false,
    }
}

/// Parses a `Retry-After` header: seconds, or an HTTP date.
#[expect(clippy::disallowed_methods, reason = "a date; load_balancer.rs limits the pause")]
fn parse_retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Parses the certificates of a PEM text.
fn parse_certificates(pem: &str) -> Result<Vec<Certificate<'static>>, SetupError> {
    let items: Result<Vec<_>, _> = parse_pem(pem.as_bytes()).collect();
    let items = items.map_err(|error| SetupError::InvalidRootCertificates(Some(error.into())))?;
    let certificates: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => Err(SetupError::InvalidRootCertificates(None)),
        false => Ok(certificates),
    }
}

/// Parses the error of a prompt that exceeds the context length. llama.cpp has both counts as fields;
/// vLLM names the parameter and has the counts in its message. SGLang has a message only.
fn parse_prompt_too_long(body: &Value) -> Option<RequestError> {
    let error = &body["error"];
    let count = |value: &Value| usize::try_from(value.as_u64()?).ok();
    if error["type"] == "exceed_context_size_error" {
        let (tokens, limit) = (count(&error["n_prompt_tokens"])?, count(&error["n_ctx"])?);
        return Some(RequestError::PromptTooLong { tokens, limit });
    }
    let number_after = |message: &str, words: &str| {
        let rest = &message[message.find(words)? + words.len()..];
        let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
        digits.parse().ok()
    };
    let (tokens, limit) = if error["param"] == "input_tokens" {
        let message = error["message"].as_str()?;
        let tokens =
            number_after(message, "at least").or_else(|| number_after(message, "value="))?;
        (tokens, number_after(message, "context length is")?)
    } else {
        let message = body["message"].as_str()?;
        let limit = number_after(message, "longer than the model's context length (")?;
        (number_after(message, "The input (")?, limit)
    };
    Some(RequestError::PromptTooLong { tokens, limit })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_key_is_redacted_in_debug_and_text() {
        let key = ApiKey::new("s3cret");
        assert_eq!(format!("{key:?}"), REDACTED);
        assert_eq!(format!("{:?}", key.header().expect("a header")), "Sensitive");
        assert_eq!(key.redact("Bad key s3cret!"), "Bad key [key]!");
        assert_eq!(ApiKey::new("").redact("as it is"), "as it is");
        assert!(matches!(ApiKey::new("a\nb").header(), Err(SetupError::InvalidApiKey)));
    }

    #[test]
    fn parse_prompt_too_long_reads_each_server() {
        let llama_cpp = serde_json::json!({"error": {
            "code": 400, "message": "request (31 tokens) exceeds …",
            "type": "exceed_context_size_error", "n_prompt_tokens": 31, "n_ctx": 20,
        }});
        let vllm = serde_json::json!({"error": {
            "message": "This model's maximum context length is 20 tokens. However, your prompt \
                        contains at least 31 input tokens, which … (parameter=input_tokens, value=31)",
            "type": "BadRequestError", "param": "input_tokens", "code": 400,
        }});
        let sglang = serde_json::json!({
            "object": "error", "type": "BadRequestError", "param": null, "code": 400,
            "message": "The input (31 tokens) is longer than the model's context length (20 tokens).",
        });
        for body in [llama_cpp, vllm, sglang] {
            let error = parse_prompt_too_long(&body);
            assert!(
                matches!(error, Some(RequestError::PromptTooLong { tokens: 31, limit: 20 })),
                "{error:?}"
            );
        }
        assert!(parse_prompt_too_long(&serde_json::json!({"error": "Unauthorized"})).is_none());
        assert!(parse_prompt_too_long(&Value::Null).is_none());
    }

    #[test]
    fn max_response_bytes_grows_with_the_requested_tokens() {
        let limit = |body: Value| max_response_bytes(Some(&body), body.to_string().len());
        assert_eq!(limit(serde_json::json!({"max_tokens": 1})), OTHER_BYTES + TOKEN_BYTES);
        assert_eq!(limit(serde_json::json!({"max_tokens": u64::MAX})), MAX_RESPONSE_BYTES);
        assert!(limit(serde_json::json!({"prompt": "x".repeat(1 << 20)})) > 16 << 20);
        assert_eq!(max_response_bytes(None, 0), LIST_BYTES);
    }

    #[test]
    #[expect(clippy::disallowed_methods, reason = "dates")]
    fn parse_retry_after_reads_seconds_and_dates() {
        assert_eq!(parse_retry_after("120"), Some(Duration::from_secs(120)));
        let now = SystemTime::now();
        let date = |from_now| httpdate::fmt_http_date(now + Duration::from_secs(from_now));
        let found = parse_retry_after(&date(90)).expect("a date");
        assert!((85..=90).contains(&found.as_secs()), "{found:?}");
        assert_eq!(
            parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT"),
            Some(Duration::ZERO),
            "a date in the past"
        );
        for invalid in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(parse_retry_after(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn parse_certificates_rejects_text_without_certificates() {
        for pem in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert!(
                matches!(parse_certificates(pem), Err(SetupError::InvalidRootCertificates(_))),
                "{pem:?}"
            );
        }
    }
}
