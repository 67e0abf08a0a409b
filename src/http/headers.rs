//! The request headers that chatgate reads, found in one pass.
//!
//! Most requests have few headers, and lack most of these. Looking up each name in the map costs 2,100 instructions
//! more, 7 % of a cached response.
//!
//! Two headers are read elsewhere: the request ID before all others ([`RequestId`](super::request_id::RequestId)), and
//! the token only if callers are configured ([`bearer_token`](super::bearer::bearer_token)).

use http::{HeaderMap, HeaderValue};

/// Maximum size of request headers with the request line, in bytes, line ends included.
pub const HEAD_LEN_MAX: usize = 64 * 1024;
/// Maximum number of header lines, without the request line.
pub const HEAD_LINES_MAX: usize = 100;
/// Headers for framing and routing, which trailers must not contain (RFC 9110 section 6.5.1). hyper ignores them, and other
/// readers merge them into the headers.
pub const NOT_IN_TRAILERS: [&str; 3] = ["host", "content-length", "transfer-encoding"];

/// The headers of a request.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestHeaders<'a> {
    /// Sent by browsers (RFC 6454 section 7).
    pub origin: HeaderValues<'a>,
    /// Sent by browsers (W3C Fetch Metadata Request Headers, section 2.2).
    pub sec_fetch_site: HeaderValues<'a>,
    /// The name by which the caller knows chatgate.
    pub host: HeaderValues<'a>,
    /// Length of the body.
    pub content_length: HeaderValues<'a>,
    /// Framing of the body.
    pub transfer_encoding: HeaderValues<'a>,
    /// Compression of the body.
    pub content_encoding: HeaderValues<'a>,
    /// `Chatgate`, required by `access.require_header`.
    pub chatgate: HeaderValues<'a>,
    /// `Chatgate-App`, the name of an app.
    pub app: HeaderValues<'a>,
    /// `Chatgate-Explain`, which requests the source of each pair.
    pub explain: HeaderValues<'a>,
    /// `Chatgate-Timeout`, the time that the caller waits.
    pub timeout: HeaderValues<'a>,
    /// `Chatgate-Partial`, which requests what is known at the deadline.
    pub partial: HeaderValues<'a>,
    /// Required freshness of the response.
    pub cache_control: HeaderValues<'a>,
    /// The caller's trace (W3C Trace Context).
    pub traceparent: HeaderValues<'a>,
    /// Number of all header lines.
    pub count: usize,
    /// Length of all header lines as HTTP/1 encodes them, in bytes.
    pub len: usize,
}

/// The values of one header.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeaderValues<'a> {
    first: Option<&'a HeaderValue>,
    is_repeated: bool,
}

impl<'a> HeaderValues<'a> {
    /// Whether there is a value.
    pub fn is_present(&self) -> bool {
        self.first.is_some()
    }

    /// Whether there is more than one value.
    pub fn is_repeated(&self) -> bool {
        self.is_repeated
    }

    /// Returns the first value.
    pub fn first(&self) -> Option<&'a HeaderValue> {
        self.first
    }

    /// Returns the value, if there is exactly one.
    pub fn single(&self) -> Option<&'a HeaderValue> {
        self.first.filter(|_| !self.is_repeated)
    }

    fn add(&mut self, value: &'a HeaderValue) {
        match self.first {
            None => self.first = Some(value),
            Some(_) => self.is_repeated = true,
        }
    }
}

impl<'a> RequestHeaders<'a> {
    /// Reads the headers of a request.
    pub fn of(headers: &'a HeaderMap) -> Self {
        let mut found = Self { count: headers.len(), ..Self::default() };
        for (name, value) in headers {
            let name = name.as_str();
            // Colon, space, and line end.
            found.len += name.len() + value.len() + 4;
            let values = match name {
                "host" => &mut found.host,
                "origin" => &mut found.origin,
                "chatgate" => &mut found.chatgate,
                "traceparent" => &mut found.traceparent,
                "chatgate-app" => &mut found.app,
                "cache-control" => &mut found.cache_control,
                "content-length" => &mut found.content_length,
                "sec-fetch-site" => &mut found.sec_fetch_site,
                "chatgate-explain" => &mut found.explain,
                "chatgate-timeout" => &mut found.timeout,
                "chatgate-partial" => &mut found.partial,
                "content-encoding" => &mut found.content_encoding,
                "transfer-encoding" => &mut found.transfer_encoding,
                _ => continue,
            };
            values.add(value);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn each_header_has_its_own_field_and_all_are_counted() {
        type Pick = for<'h, 'a> fn(&'h RequestHeaders<'a>) -> &'h HeaderValues<'a>;
        let picks: [(&'static str, Pick); 13] = [
            ("Origin", |found| &found.origin),
            ("Sec-Fetch-Site", |found| &found.sec_fetch_site),
            ("Host", |found| &found.host),
            ("Content-Length", |found| &found.content_length),
            ("Transfer-Encoding", |found| &found.transfer_encoding),
            ("Content-Encoding", |found| &found.content_encoding),
            ("Chatgate", |found| &found.chatgate),
            ("Chatgate-App", |found| &found.app),
            ("Chatgate-Explain", |found| &found.explain),
            ("Chatgate-Timeout", |found| &found.timeout),
            ("Chatgate-Partial", |found| &found.partial),
            ("Cache-Control", |found| &found.cache_control),
            ("Traceparent", |found| &found.traceparent),
        ];
        for (name, pick) in picks {
            let mut headers = HeaderMap::new();
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.insert("x-other", HeaderValue::from_static("z"));
            assert!(
                !pick(&RequestHeaders::of(&headers)).is_present()
                    && pick(&RequestHeaders::of(&headers)).single().is_none(),
                "{name}"
            );
            headers.append(&name, HeaderValue::from_static("1"));
            let found = RequestHeaders::of(&headers);
            assert_eq!((pick(&found).single(), pick(&found).is_repeated()), (headers.get(&name), false), "{name}");
            assert_eq!(picks.iter().filter(|(_, other)| other(&found).is_present()).count(), 1, "{name}");
            assert_eq!((found.count, found.len), (2, "x-other: z\r\n".len() + name.as_str().len() + 5));
            headers.append(&name, HeaderValue::from_static("2"));
            let found = RequestHeaders::of(&headers);
            let values = pick(&found);
            assert_eq!(
                (values.first(), values.single(), values.is_repeated()),
                (headers.get(&name), None, true),
                "{name}"
            );
            assert_eq!(found.count, 3);
        }
    }
}
