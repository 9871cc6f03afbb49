//! One request, one reply: JSON over HTTP, with every failure sorted by what can be done about it.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use ureq::Agent;
use ureq::config::Config;
use ureq::http::{HeaderValue, Response};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

use crate::error::{RequestError, SetupError};

/// More than any reply that is one: a server that sends without end is cut off here.
const MOST_REPLY_BYTES: u64 = 64 << 20;
/// Characters of a server's message that an error shows.
const MOST_MESSAGE_CHARS: usize = 300;
/// What stands for the key wherever text could show it.
const REDACTED: &str = "[key]";

/// A secret that a server asks for as a bearer token. `Debug` does not show it, nor does any error of
/// this crate.
///
/// The HTTP client below logs through the `log` crate, at `DEBUG` without the key. At `TRACE` its target
/// `ureq_proto` dumps every byte that is sent, the key and the documents among them: keep it at `DEBUG`
/// where logs are not secret.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// From the key's text, without `Bearer`.
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    fn header(&self) -> Result<HeaderValue, SetupError> {
        let header = HeaderValue::try_from(format!("Bearer {}", self.0));
        let mut header = header.map_err(|_| SetupError::ApiKey)?;
        header.set_sensitive(true);
        Ok(header)
    }

    /// `text`, which a server wrote, without the key.
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

/// How connections are made.
#[derive(Debug, Clone)]
pub(crate) struct Connecting<'a> {
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) most_connections: usize,
    pub(crate) root_certificates: Option<&'a str>,
}

/// Makes [`Session`]s, and keeps the connections of those that are done.
#[derive(Debug)]
pub(crate) struct Http {
    config: Config,
    key: Option<ApiKey>,
    authorization: Option<HeaderValue>,
    idle: Mutex<Vec<Agent>>,
}

impl Http {
    pub(crate) fn new(
        connecting: &Connecting<'_>,
        key: Option<ApiKey>,
    ) -> Result<Self, SetupError> {
        let roots = match connecting.root_certificates {
            None => RootCerts::WebPki,
            Some(pem) => RootCerts::new_with_certs(&certificates(pem)?),
        };
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .timeout_resolve(Some(connecting.connect_timeout))
            .timeout_connect(Some(connecting.connect_timeout))
            .timeout_global(Some(connecting.request_timeout))
            .max_idle_connections(connecting.most_connections)
            .max_idle_connections_per_host(connecting.most_connections)
            .tls_config(TlsConfig::builder().root_certs(roots).build())
            .user_agent(concat!("erank/", env!("CARGO_PKG_VERSION")))
            .build();
        let authorization = key.as_ref().map(ApiKey::header).transpose()?;
        Ok(Self { config, key, authorization, idle: Mutex::new(Vec::new()) })
    }

    /// A session with the connections of an earlier one, if there is one.
    pub(crate) fn session(&self) -> Session {
        let idle = self.idle().pop();
        Session(idle.unwrap_or_else(|| self.config.new_agent()))
    }

    /// Keeps a session's connections for the next.
    pub(crate) fn give_back(&self, session: Session) {
        const MOST_IDLE: usize = 8;
        let mut idle = self.idle();
        if idle.len() < MOST_IDLE {
            idle.push(session.0);
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Agent>> {
        self.idle.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Sends `body`, or asks without one, and gives the reply.
    pub(crate) fn send(
        &self,
        session: &Session,
        url: &str,
        body: Option<&Value>,
    ) -> Result<Value, RequestError> {
        let connection = |error| RequestError::Connection { url: url.to_owned(), source: error };
        let authorization = self.authorization.as_ref();
        let reply = match body {
            Some(body) => {
                let mut request = session.0.post(url).content_type("application/json");
                if let Some(value) = authorization {
                    request = request.header("authorization", value);
                }
                request.send(body.to_string())
            }
            None => {
                let mut request = session.0.get(url);
                if let Some(value) = authorization {
                    request = request.header("authorization", value);
                }
                request.call()
            }
        };
        let mut reply = reply.map_err(|error| match is_unreachable(&error) {
            true => RequestError::Unreachable { url: url.to_owned(), source: error.into() },
            false => connection(error.into()),
        })?;
        let bytes = reply.body_mut().with_config().limit(MOST_REPLY_BYTES).read_to_vec();
        let bytes = bytes.map_err(|error| connection(error.into()))?;
        if reply.status().is_success() {
            serde_json::from_slice(&bytes).map_err(|error| RequestError::Malformed {
                url: url.to_owned(),
                problem: format!("not JSON: {error}"),
            })
        } else {
            Err(self.refusal(url, &reply, &bytes))
        }
    }

    /// What a status other than success means.
    fn refusal(&self, url: &str, reply: &Response<ureq::Body>, bytes: &[u8]) -> RequestError {
        let status = reply.status().as_u16();
        let body: Value = serde_json::from_slice(bytes).unwrap_or(Value::Null);
        if let Some(error) = too_long(&body) {
            return error;
        }
        let (url, message) = (url.to_owned(), self.message(&body, bytes));
        match status {
            429 | 503 => {
                let retry_after = reply.headers().get("retry-after");
                let retry_after = retry_after.and_then(|value| pause(value.to_str().ok()?.trim()));
                RequestError::Overloaded { url, status, message, retry_after }
            }
            408 | 500.. => RequestError::Server { url, status, message },
            _ => RequestError::Refused { url, status, message },
        }
    }

    /// What the server says is wrong, in the forms that servers have for it.
    fn message(&self, body: &Value, bytes: &[u8]) -> String {
        let said = [&body["error"]["message"], &body["error"], &body["message"], &body["detail"]];
        let said = said.into_iter().find_map(Value::as_str);
        let said = said.map_or_else(|| String::from_utf8_lossy(bytes), Into::into);
        self.presentable(&said)
    }

    /// What a server wrote, for an error: without the key, and short.
    pub(crate) fn presentable(&self, said: &str) -> String {
        // Before it is shortened, so that no part of the key is left.
        let said = self.key.as_ref().map_or(said.to_owned(), |key| key.redact(said));
        match said.char_indices().nth(MOST_MESSAGE_CHARS) {
            Some((end, _)) => format!("{}…", &said[..end]),
            None => said,
        }
    }
}

/// The connections of one job. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct Session(Agent);

impl Session {
    /// Closes all connections: requests under way in other threads fail at once, and so does every
    /// later one.
    pub(crate) fn shut_down(&self) {
        self.0.clone().shutdown();
    }
}

/// Whether nobody was reached, so that the request cannot have been the reason.
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

/// `Retry-After`: seconds, or a date.
fn pause(retry_after: &str) -> Option<Duration> {
    if let Ok(seconds) = retry_after.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(retry_after).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

fn certificates(pem: &str) -> Result<Vec<Certificate<'static>>, SetupError> {
    let items: Result<Vec<_>, _> = parse_pem(pem.as_bytes()).collect();
    let items = items.map_err(|error| SetupError::RootCertificates(Some(error.into())))?;
    let certificates: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => Err(SetupError::RootCertificates(None)),
        false => Ok(certificates),
    }
}

/// Whether the server says that the prompt does not fit: llama.cpp gives both counts, vLLM names the
/// parameter and tells its counts in a sentence.
fn too_long(body: &Value) -> Option<RequestError> {
    let error = &body["error"];
    let count = |value: &Value| usize::try_from(value.as_u64()?).ok();
    if error["type"] == "exceed_context_size_error" {
        let (tokens, limit) = (count(&error["n_prompt_tokens"])?, count(&error["n_ctx"])?);
        return Some(RequestError::TooLong { tokens, limit });
    }
    if error["param"] == "input_tokens" {
        let message = error["message"].as_str()?;
        let number_after = |words: &str| {
            let rest = &message[message.find(words)? + words.len()..];
            let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
            digits.parse().ok()
        };
        let tokens = number_after("at least").or_else(|| number_after("value="))?;
        let limit = number_after("context length is")?;
        return Some(RequestError::TooLong { tokens, limit });
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_shown_nowhere() {
        let key = ApiKey::new("s3cret");
        assert_eq!(format!("{key:?}"), REDACTED);
        assert_eq!(format!("{:?}", key.header().expect("a header")), "Sensitive");
        assert_eq!(key.redact("Bad key s3cret!"), "Bad key [key]!");
        assert_eq!(ApiKey::new("").redact("as it is"), "as it is");
        assert!(matches!(ApiKey::new("a\nb").header(), Err(SetupError::ApiKey)));
    }

    #[test]
    fn a_prompt_that_does_not_fit_is_known_by_what_each_server_says() {
        let llama_cpp = serde_json::json!({"error": {
            "code": 400, "message": "request (31 tokens) exceeds …",
            "type": "exceed_context_size_error", "n_prompt_tokens": 31, "n_ctx": 20,
        }});
        let vllm = serde_json::json!({"error": {
            "message": "This model's maximum context length is 20 tokens. However, your prompt \
                        contains at least 31 input tokens, which … (parameter=input_tokens, value=31)",
            "type": "BadRequestError", "param": "input_tokens", "code": 400,
        }});
        for body in [llama_cpp, vllm] {
            let error = too_long(&body);
            assert!(
                matches!(error, Some(RequestError::TooLong { tokens: 31, limit: 20 })),
                "{error:?}"
            );
        }
        assert!(too_long(&serde_json::json!({"error": "Unauthorized"})).is_none());
        assert!(too_long(&Value::Null).is_none());
    }

    #[test]
    fn a_server_says_when_to_come_back_in_seconds_or_by_a_date() {
        assert_eq!(pause("120"), Some(Duration::from_secs(120)));
        let now = SystemTime::now();
        let date = |from_now| httpdate::fmt_http_date(now + Duration::from_secs(from_now));
        let found = pause(&date(90)).expect("a date");
        assert!((85..=90).contains(&found.as_secs()), "{found:?}");
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO), "it is past");
        for neither in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(pause(neither), None, "{neither}");
        }
    }

    #[test]
    fn certificates_must_be_certificates() {
        for pem in ["", "nonsense", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n"] {
            assert!(matches!(certificates(pem), Err(SetupError::RootCertificates(_))), "{pem:?}");
        }
    }
}
