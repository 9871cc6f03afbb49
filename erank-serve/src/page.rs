//! The page at `/`.

use axum::http::{HeaderName, header};
use axum::response::{Html, IntoResponse, Response};

const PAGE: &str = include_str!("../page/index.html");

/// Allows the page its own script and style, by their SHA-256, and requests to this service, and nothing else.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; \
    script-src 'sha256-JWylghLzMgu+ni1xty8kWKFJuS+hUlJaXTm3iWpx7wE='; \
    style-src 'sha256-0HXY07KJQnLZJabHnaHjkzhOd7ECUeY+/Xp5y2fqKVQ='; \
    connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; \
    require-trusted-types-for 'script'";

pub(crate) async fn page() -> Response {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Html(PAGE)).into_response()
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use sha2::{Digest, Sha256};

    use super::*;

    #[test]
    fn policy_has_the_hashes_of_the_page() {
        for name in ["script", "style"] {
            let (_, rest) = PAGE.split_once(&format!("<{name}>")).expect("an element");
            let (content, _) = rest.split_once(&format!("</{name}>")).expect("its end");
            let hash = BASE64_STANDARD.encode(Sha256::digest(content));
            let source = format!("{name}-src 'sha256-{hash}';");
            assert!(CONTENT_SECURITY_POLICY.contains(&source), "the policy must have {source}");
        }
    }
}
