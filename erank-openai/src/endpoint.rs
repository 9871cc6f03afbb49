//! An endpoint: the URL of a server, and the requests to it.

use std::time::Duration;

use serde_json::Value;

use crate::api::{Response, parse_json};
use crate::error::{RequestError, SetupError};
use crate::http::{HttpClient, Session};
use crate::load_balancer::Permit;

/// The pause before the first retry.
pub(crate) const INITIAL_BACKOFF: Duration = Duration::from_millis(100);

/// One endpoint while a permit for it is held.
#[derive(Debug)]
pub(crate) struct Endpoint<'a> {
    http: &'a HttpClient,
    session: &'a Session,
    permit: &'a Permit<'a>,
    /// The maximum number of attempts per request. An outage is not retried.
    attempts: usize,
}

impl<'a> Endpoint<'a> {
    /// Creates an endpoint that sends every request once.
    pub(crate) fn new(http: &'a HttpClient, session: &'a Session, permit: &'a Permit<'a>) -> Self {
        Self { http, session, permit, attempts: 1 }
    }

    /// Returns the same endpoint with retries, for a sequence of requests that must all succeed.
    pub(crate) fn with_retries(&self) -> Self {
        const ATTEMPTS: usize = 3;
        Self { attempts: ATTEMPTS, ..*self }
    }

    /// Returns the index of the endpoint.
    pub(crate) fn index(&self) -> usize {
        self.permit.index()
    }

    /// Returns the base URL of the endpoint.
    pub(crate) fn url(&self) -> &str {
        self.permit.url()
    }

    /// Sends a GET request.
    pub(crate) fn get(&self, route: &str) -> Result<Value, RequestError> {
        self.send(route, None, parse_json)
    }

    /// Sends a POST request.
    pub(crate) fn post(&self, route: &str, body: &Value) -> Result<Value, RequestError> {
        self.send(route, Some(body), parse_json)
    }

    /// Sends a POST request, and parses the generated text of the response.
    pub(crate) fn generate(&self, route: &str, body: &Value) -> Result<Response, RequestError> {
        self.send(route, Some(body), Response::parse)
    }

    /// Redacts and truncates a server's text, for use in an error.
    pub(crate) fn sanitize(&self, text: &str) -> String {
        self.http.sanitize(text)
    }

    /// Creates the error of an invalid response.
    pub(crate) fn invalid_response(&self, route: &str, problem: &str) -> RequestError {
        // The problem may quote the server's text.
        let problem = self.sanitize(problem);
        RequestError::InvalidResponse { url: format!("{}{route}", self.url()), problem }
    }

    fn send<T>(
        &self,
        route: &str,
        body: Option<&Value>,
        parse: impl Fn(&[u8]) -> Result<T, String>,
    ) -> Result<T, RequestError> {
        let url = format!("{}{route}", self.url());
        let send_once = || {
            let response = self.http.send(self.session, &url, body)?;
            parse(&response).map_err(|problem| self.invalid_response(route, &problem))
        };
        for _ in 1..self.attempts {
            match send_once() {
                Err(error) if error.is_transient() && !error.is_outage() => {
                    self.session.sleep(INITIAL_BACKOFF)?;
                }
                result => return result,
            }
        }
        send_once()
    }
}

/// Returns the base URL of a server, from a URL with or without `/v1` at its end.
///
/// # Errors
/// Returns [`SetupError::InvalidEndpoint`], without a password that the URL holds.
pub(crate) fn base_url(url: &str) -> Result<String, SetupError> {
    let invalid = |problem| {
        // The text before an @ may be a password.
        let url = url.rsplit('@').next().unwrap_or_default().to_owned();
        Err(SetupError::InvalidEndpoint { url, problem })
    };
    let url = url.trim();
    let Some((scheme @ ("http" | "https"), rest)) = url.split_once("://") else {
        return invalid("it begins with neither http:// nor https://");
    };
    if rest.contains('@') {
        return invalid(
            "it has a user or a password in it; give the key as OpenAiSettings::api_key",
        );
    }
    if rest.contains(['?', '#']) {
        return invalid("it has a query or a fragment; give the address up to /v1");
    }
    let rest = rest.trim_end_matches('/');
    let rest = rest.strip_suffix("/v1").unwrap_or(rest);
    if ureq::http::Uri::try_from(format!("{scheme}://{rest}/")).is_err() {
        return invalid("it is not a URL");
    }
    Ok(format!("{scheme}://{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base_url_strips_version_and_slashes() {
        for (url, expected) in [
            ("http://gpu:8000", "http://gpu:8000"),
            ("http://gpu:8000/", "http://gpu:8000"),
            (" https://host/v1/ ", "https://host"),
            ("https://host/openai/v1", "https://host/openai"),
        ] {
            assert_eq!(base_url(url).ok().as_deref(), Some(expected));
        }
    }

    #[test]
    fn base_url_rejects_invalid_urls_without_showing_a_password() {
        for url in ["", "gpu:8000", "ftp://gpu", "http://", "http://a b", "http://a?x=1"] {
            assert!(base_url(url).is_err(), "{url:?}");
        }
        let error = base_url("https://me:s3cret@host").expect_err("a password");
        assert!(error.to_string().contains("api_key"));
        assert!(!format!("{error} {error:?}").contains("s3cret"));
        assert!(!format!("{:?}", base_url("me:s3cret@host")).contains("s3cret"));
    }
}
