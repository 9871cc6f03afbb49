//! The checks of every request (host, origin, API key), its identifier, and the access log.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::{MatchedPath, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};

use crate::problem::{MAX_MESSAGE_CHARS, Problem, cut};
use crate::service::Service;
use crate::settings::Settings;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const API_KEY: HeaderName = HeaderName::from_static("x-api-key");
/// The paths that load balancers and containers ask for, under any name of the machine.
const PROBES: [&str; 2] = ["/health", "/ready"];
/// The paths besides those that need no key.
const OPEN_PATHS: [&str; 2] = ["/", "/openapi.json"];
/// The status in the log and in the metrics if the client left before the end of the reply, as in nginx's log.
const CLIENT_LEFT: u16 = 499;

/// Checks a request, passes it on, and logs it.
pub(crate) async fn guard(
    State(service): State<Service>,
    mut request: Request,
    next: Next,
) -> Response {
    let id = request_id(request.headers());
    request.extensions_mut().insert(RequestId(id.clone()));
    let path = request.uri().path().to_owned();
    // Paths that are no routes share a name in the metrics, because clients choose them.
    let route = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let mut record = Record {
        begin: Instant::now(),
        method: request.method().clone(),
        path: cut(path.clone(), MAX_MESSAGE_CHARS),
        route: route.unwrap_or("unknown").to_owned(),
        id: id.clone(),
        head: None,
        is_whole: false,
        service: service.clone(),
    };
    let mut response = match check(&service.settings, &path, request.headers()) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    record.is_whole = response.body().is_end_stream();
    record.head = Some((response.status().as_u16(), record.begin.elapsed()));
    response.map(|body| Body::new(RecordedBody { body, record }))
}

/// A request, which is counted and logged when its reply is sent or the client has left.
struct Record {
    begin: Instant,
    method: Method,
    path: String,
    route: String,
    id: String,
    /// The reply's status, and the time until its beginning.
    head: Option<(u16, Duration)>,
    /// Whether the server has taken the whole reply.
    is_whole: bool,
    service: Service,
}

impl Drop for Record {
    fn drop(&mut self) {
        let (status, time) = self.head.unwrap_or_else(|| (CLIENT_LEFT, self.begin.elapsed()));
        // The server takes no body for the method HEAD.
        let is_whole = self.is_whole || self.method == Method::HEAD;
        let status = if is_whole { status } else { CLIENT_LEFT };
        let Self { method, path, route, id, .. } = self;
        self.service.metrics.answered(route, status, time);
        tracing::info!(
            target: "erank_serve::access",
            %method, path, status, seconds = time.as_secs_f64(), id, "answered"
        );
    }
}

/// A reply's body that tells the [`Record`] whether the server takes all of it.
struct RecordedBody {
    body: Body,
    record: Record,
}

impl HttpBody for RecordedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.record.is_whole = matches!(frame, Poll::Ready(None)) || self.body.is_end_stream();
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
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
        let name = host_name(host);
        name.is_some() && settings.allowed_hosts.iter().any(|allowed| host_name(allowed) == name)
    };
    let is_probe = PROBES.contains(&path);
    if !settings.allowed_hosts.is_empty() && !is_allowed(host) && !is_probe {
        let message = match host {
            "" => "the request has no header host; send it with a name of this service",
            _ => {
                "the header host names another service; start this one with the option --allowed-host NAME to allow \
                the name"
            }
        };
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
    // A gateway before the service may have added an authorization of its own.
    let bearer = text(header::AUTHORIZATION).and_then(|value| {
        let (scheme, key) = value.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
    });
    let mut keys = bearer.into_iter().chain(text(API_KEY)).peekable();
    if keys.peek().is_none() {
        let message = "send an API key with the header authorization: Bearer KEY";
        return Err(Problem::new(StatusCode::UNAUTHORIZED, message));
    }
    match keys.any(|key| settings.api_keys.contains(key)) {
        true => Ok(()),
        false => Err(Problem::new(StatusCode::UNAUTHORIZED, "the API key is unknown")),
    }
}

/// Returns the name of a host without its port, in lower case. A final dot, which ends a complete name, is left out.
fn host_name(host: &str) -> Option<String> {
    let authority: Authority = host.parse().ok()?;
    let name = authority.host();
    Some(name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase())
}
