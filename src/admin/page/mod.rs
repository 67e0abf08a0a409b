//! `GET /`: the page that shows `/status` live. It loads no file from another server.

use bytes::Bytes;
use http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderName, HeaderValue, Response};
use http_body_util::Full;

/// Allows scripts, styles, images, and requests only from and to chatgate, none of them inline; no frames, no forms.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 5] = [
    (CONTENT_SECURITY_POLICY, POLICY),
    (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (X_FRAME_OPTIONS, "DENY"),
    (REFERRER_POLICY, "no-referrer"),
    (CACHE_CONTROL, "no-store"),
];

/// Returns the response for a file of the page; `None` for any other path.
pub(super) fn file(path: &str) -> Option<Response<Full<Bytes>>> {
    let (text, content_type) = match path {
        "/" => (include_str!("page.html"), "text/html; charset=utf-8"),
        "/page.js" => (include_str!("page.js"), "text/javascript; charset=utf-8"),
        "/page.css" => (include_str!("page.css"), "text/css; charset=utf-8"),
        "/icon.svg" => (include_str!("icon.svg"), "image/svg+xml"),
        _ => return None,
    };
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    for (name, value) in HEADERS {
        headers.insert(name, HeaderValue::from_static(value));
    }
    Some(response)
}
