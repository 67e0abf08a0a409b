//! The header lines that matter to nearly every request, found in one pass: most requests have few lines and lack most
//! of these, and to ask the map for each costs more than to look at all once.
//!
//! Its id is read before ([`RequestId`](super::request_id::RequestId)), and its token only where there are callers with
//! one ([`bearer_token`](super::bearer::bearer_token)).

use http::{HeaderMap, HeaderValue};

/// Longest request headers with the request line, in bytes, line ends included.
pub const HEAD_LEN_MAX: usize = 64 * 1024;
/// Maximum number of header lines, without the request line.
pub const HEAD_LINES_MAX: usize = 100;

/// What a request says in these headers.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestHeaders<'a> {
    /// Sent by browsers (RFC 6454 section 7).
    pub origin: HeaderValues<'a>,
    /// Sent by browsers (W3C Fetch Metadata Request Headers, section 2.2).
    pub sec_fetch_site: HeaderValues<'a>,
    /// Whom the request is for.
    pub host: HeaderValues<'a>,
    /// How long the body is.
    pub content_length: HeaderValues<'a>,
    /// How the body is cut.
    pub transfer_encoding: HeaderValues<'a>,
    /// How the body is compressed.
    pub content_encoding: HeaderValues<'a>,
    /// `Chatgate`, which `access.require_header` asks for.
    pub proof: HeaderValues<'a>,
    /// `Chatgate-App` names an app.
    pub app: HeaderValues<'a>,
    /// `Chatgate-Explain` asks where each answer came from.
    pub explain: HeaderValues<'a>,
    /// How fresh the answer must be.
    pub cache_control: HeaderValues<'a>,
    /// The trace that the request belongs to (W3C Trace Context).
    pub traceparent: HeaderValues<'a>,
    /// How many lines there are of all names.
    pub count: usize,
    /// How long they are as HTTP/1 writes them, in bytes.
    pub len: usize,
}

/// The lines of one name.
#[derive(Debug, Clone, Copy, Default)]
pub struct HeaderValues<'a> {
    first: Option<&'a HeaderValue>,
    is_repeated: bool,
}

impl<'a> HeaderValues<'a> {
    /// Whether there is one.
    pub fn is_present(&self) -> bool {
        self.first.is_some()
    }

    /// Whether there is more than one.
    pub fn is_repeated(&self) -> bool {
        self.is_repeated
    }

    /// The value of the first.
    pub fn first(&self) -> Option<&'a HeaderValue> {
        self.first
    }

    /// The value, if there is exactly one.
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
    /// Looks through the headers of a request.
    pub fn of(headers: &'a HeaderMap) -> Self {
        let mut heeded = Self { count: headers.len(), ..Self::default() };
        for (name, value) in headers {
            let name = name.as_str();
            // The colon, a space and the end of the line.
            heeded.len += name.len() + value.len() + 4;
            let lines = match name {
                "host" => &mut heeded.host,
                "origin" => &mut heeded.origin,
                "chatgate" => &mut heeded.proof,
                "traceparent" => &mut heeded.traceparent,
                "chatgate-app" => &mut heeded.app,
                "cache-control" => &mut heeded.cache_control,
                "content-length" => &mut heeded.content_length,
                "sec-fetch-site" => &mut heeded.sec_fetch_site,
                "chatgate-explain" => &mut heeded.explain,
                "content-encoding" => &mut heeded.content_encoding,
                "transfer-encoding" => &mut heeded.transfer_encoding,
                _ => continue,
            };
            lines.add(value);
        }
        heeded
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    #[test]
    fn each_name_has_its_own_place_and_all_lines_are_counted() {
        type Pick = for<'h, 'a> fn(&'h RequestHeaders<'a>) -> &'h HeaderValues<'a>;
        let picks: [(&'static str, Pick); 11] = [
            ("Origin", |heeded| &heeded.origin),
            ("Sec-Fetch-Site", |heeded| &heeded.sec_fetch_site),
            ("Host", |heeded| &heeded.host),
            ("Content-Length", |heeded| &heeded.content_length),
            ("Transfer-Encoding", |heeded| &heeded.transfer_encoding),
            ("Content-Encoding", |heeded| &heeded.content_encoding),
            ("Chatgate", |heeded| &heeded.proof),
            ("Chatgate-App", |heeded| &heeded.app),
            ("Chatgate-Explain", |heeded| &heeded.explain),
            ("Cache-Control", |heeded| &heeded.cache_control),
            ("Traceparent", |heeded| &heeded.traceparent),
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
            let heeded = RequestHeaders::of(&headers);
            assert_eq!((pick(&heeded).single(), pick(&heeded).is_repeated()), (headers.get(&name), false), "{name}");
            assert_eq!(picks.iter().filter(|(_, other)| other(&heeded).is_present()).count(), 1, "{name}");
            assert_eq!((heeded.count, heeded.len), (2, "x-other: z\r\n".len() + name.as_str().len() + 5));
            headers.append(&name, HeaderValue::from_static("2"));
            let heeded = RequestHeaders::of(&headers);
            let lines = pick(&heeded);
            assert_eq!(
                (lines.first(), lines.single(), lines.is_repeated()),
                (headers.get(&name), None, true),
                "{name}"
            );
            assert_eq!(heeded.count, 3);
        }
    }
}
