//! The checks of every request (host, origin, API key), its identifier, and the access log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::problem::Problem;
use crate::service::Service;
use crate::settings::Settings;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The paths that load balancers and containers ask for, under any name of the machine.
const PROBES: [&str; 2] = ["/health", "/ready"];
/// The paths besides those that need no key.
const OPEN_PATHS: [&str; 2] = ["/", "/openapi.json"];

/// Checks a request, passes it on, and logs it.
pub(crate) async fn guard(
    State(service): State<Service>,
    mut request: Request,
    next: Next,
) -> Response {
    let begin = Instant::now();
    let id = request_id(request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    // Paths that are no routes share a name in the metrics, because clients choose them.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = route.unwrap_or("unknown").to_owned();
    let mut response = match check(&service.settings, &path, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    let (status, time) = (response.status().as_u16(), begin.elapsed());
    service.metrics.answered(&route, status, time);
    tracing::info!(
        target: "erank_serve::access",
        %method, path, status, seconds = time.as_secs_f64(), id, "answered"
    );
    response
}

/// The identifier of a request, by its client or by this service.
#[derive(Debug, Clone)]
pub(crate) struct RequestId(pub(crate) String);

/// Returns the client's identifier if it is short and plain, or a new one.
fn request_id(headers: &HeaderMap) -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    let is_plain =
        |id: &&str| (1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    match given.filter(is_plain) {
        Some(id) => id.to_owned(),
        None => {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            format!("{:x}-{number:x}", std::process::id())
        }
    }
}

/// Checks the host, the origin and the API key of a request.
fn check(settings: &Settings, path: &str, headers: &HeaderMap) -> Result<(), Problem> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let is_allowed = |host: &str| {
        let name = host.parse::<Authority>();
        let name = name.as_ref().map_or("", |authority| authority.host());
        settings.allowed_hosts.iter().any(|allowed| allowed.eq_ignore_ascii_case(name))
    };
    let is_probe = PROBES.contains(&path);
    if !settings.allowed_hosts.is_empty() && !is_allowed(host) && !is_probe {
        let message = "the header host names another service; allow this name in the settings";
        return Err(Problem::new(StatusCode::FORBIDDEN, message));
    }
    // A browser sends the origin with each request of a web page that could change something. Without it, any page
    // that a person opens could make a service on the person's own machine compute. A proxy may replace the host, so the
    // origin may also be an allowed one.
    if let Some(origin) = headers.get(header::ORIGIN) {
        let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        if origin.is_none_or(|(_, of)| !of.eq_ignore_ascii_case(host) && !is_allowed(of)) {
            let message = "the request comes from a web page of another site";
            return Err(Problem::new(StatusCode::FORBIDDEN, message));
        }
    }
    if settings.api_keys.is_empty() || is_probe || OPEN_PATHS.contains(&path) {
        return Ok(());
    }
    let bearer = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    match bearer.or(text(API_KEY)) {
        Some(key) if settings.api_keys.contains(key) => Ok(()),
        Some(_) => Err(Problem::new(StatusCode::UNAUTHORIZED, "the API key is unknown")),
        None => {
            let message = "send an API key with the header authorization: Bearer KEY";
            Err(Problem::new(StatusCode::UNAUTHORIZED, message))
        }
    }
}
