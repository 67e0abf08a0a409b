//! The response that a caller received, and assertions for the shapes that the contract defines.

use serde_json::Value;

use super::secrets;

/// A complete response.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    pub(crate) fn new(status: u16, headers: Vec<(String, String)>, body: Vec<u8>) -> Response {
        for (name, value) in &headers {
            secrets::assert_none_in(&format!("the response header {name}"), value.as_bytes());
        }
        secrets::assert_none_in("a response body", &body);
        Response { status, headers, body }
    }

    /// Reads one HTTP/1.1 response from the front of `bytes`. Returns the response and its length, or `None` if it is
    /// incomplete.
    pub(crate) fn parse(bytes: &[u8], to_head: bool) -> Option<(Response, usize)> {
        let head_len = memchr::memmem::find(bytes, b"\r\n\r\n")?;
        let head = std::str::from_utf8(&bytes[..head_len]).expect("a head in UTF-8");
        let mut lines = head.split("\r\n");
        let status_line = lines.next().expect("split gives one at least");
        let status = status_line.strip_prefix("HTTP/1.").and_then(|rest| rest.get(2..5)?.parse().ok());
        let status: u16 = status.unwrap_or_else(|| panic!("status line {status_line:?}"));
        let headers: Vec<(String, String)> = lines
            .map(|line| line.split_once(':').unwrap_or_else(|| panic!("header line {line:?}")))
            .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
            .collect();
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        let rest = &bytes[head_len + 4..];
        let (body, body_len) = if to_head || status < 200 {
            (Vec::new(), 0)
        } else if header("transfer-encoding") == Some("chunked") {
            read_chunks(rest)?
        } else {
            let len = header("content-length").map_or(0, |text| text.parse().expect("a number as Content-Length"));
            (rest.get(..len)?.to_vec(), len)
        };
        Some((Response::new(status, headers, body), head_len + 4 + body_len))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == &name.to_ascii_lowercase()).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// Returns `Chatgate-Error`, which only responses created by the gateway have.
    pub(crate) fn slug(&self) -> Option<&str> {
        self.header("chatgate-error")
    }

    #[track_caller]
    pub(crate) fn request_id(&self) -> &str {
        let id = self.header("x-request-id").unwrap_or_else(|| panic!("no X-Request-Id: {self:?}"));
        assert!((1..=128).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()), "{id:?}");
        id
    }

    /// Asserts that this is Chat's response, complete and unchanged.
    #[track_caller]
    pub(crate) fn assert_relayed(&self, status: u16, body: impl AsRef<[u8]>) {
        assert_eq!(self.slug(), None, "{self:?}");
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.text(), String::from_utf8_lossy(body.as_ref()));
        assert_eq!(self.body, body.as_ref());
        self.request_id();
    }

    /// Asserts that the gateway created this response: status, slug, code, and the exact bytes of the vendor's
    /// envelope.
    #[track_caller]
    pub(crate) fn assert_error(&self, status: u16, slug: &str, code: i64) {
        assert_eq!((self.status, self.slug()), (status, Some(slug)), "{self:?}");
        let text = self.text();
        let begin = format!(r#"{{"ActionStatus":"FAIL","ErrorCode":{code},"ErrorInfo":"chatgate: "#);
        assert!(text.starts_with(&begin) && text.ends_with(r#"","ErrorDisplay":""}"#), "{text}");
        let json = self.json();
        assert_eq!(json.as_object().expect("an object").len(), 4, "{text}");
        let info = json["ErrorInfo"].as_str().expect("a string");
        assert!(info.len() > "chatgate: ".len() + 5, "empty ErrorInfo: {text}");
        assert!(self.header("content-type").is_some_and(|text| text.starts_with("application/json")), "{self:?}");
        self.request_id();
    }

    /// Asserts that `Retry-After` is at least 1 whole second, and returns it.
    #[track_caller]
    pub(crate) fn retry_after(&self) -> u64 {
        let text = self.header("retry-after").unwrap_or_else(|| panic!("no Retry-After: {self:?}"));
        let seconds: u64 = text.parse().expect("whole seconds");
        assert!(seconds >= 1, "{text}");
        seconds
    }

    /// Returns account and FollowType of each item of a successful `follow_check`. Asserts that every item is a success
    /// with exactly the vendor's members.
    #[track_caller]
    pub(crate) fn items(&self) -> Vec<(String, u8)> {
        assert_eq!((self.status, self.slug()), (200, None), "{self:?}");
        let json = self.json();
        assert_eq!((&json["ErrorCode"], &json["ActionStatus"]), (&0.into(), &"OK".into()), "{self:?}");
        let items = json["ResultItem"].as_array().unwrap_or_else(|| panic!("no ResultItem: {self:?}"));
        items
            .iter()
            .map(|item| {
                let mut names: Vec<&str> = item.as_object().expect("an object").keys().map(String::as_str).collect();
                names.sort_unstable();
                assert_eq!(names, ["FollowType", "ResultCode", "ResultInfo", "To_Account"], "{item}");
                assert_eq!((&item["ResultCode"], &item["ResultInfo"]), (&0.into(), &"".into()), "{item}");
                let follow_type = item["FollowType"].as_u64().expect("a number");
                (item["To_Account"].as_str().expect("a string").to_owned(), u8::try_from(follow_type).expect("small"))
            })
            .collect()
    }

    /// Returns the FollowTypes of [`Answer::checked`].
    #[track_caller]
    pub(crate) fn follow_types(&self) -> Vec<u8> {
        self.items().into_iter().map(|(_, follow_type)| follow_type).collect()
    }

    /// Returns the parsed `Cache-Status`.
    #[track_caller]
    pub(crate) fn cache_status(&self) -> CacheStatus {
        let text = self.header("cache-status").unwrap_or_else(|| panic!("no Cache-Status: {self:?}"));
        CacheStatus::parse(text).unwrap_or_else(|| panic!("Cache-Status: {text}"))
    }

    /// Returns `Age` in seconds.
    #[track_caller]
    pub(crate) fn age(&self) -> u64 {
        self.header("age").and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no Age: {self:?}"))
    }
}

/// A parsed `chatgate; hit; detail="hit=1 joined=0 fetched=0 flipped=0 stale=0"`, or with `fwd=...` instead of `hit`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheStatus {
    /// `hit`, `fwd=miss`, and so on.
    pub(crate) outcome: String,
    pub(crate) hit: u64,
    pub(crate) joined: u64,
    pub(crate) fetched: u64,
    pub(crate) flipped: u64,
    pub(crate) stale: u64,
}

impl CacheStatus {
    fn parse(text: &str) -> Option<CacheStatus> {
        let (outcome, detail) = text.strip_prefix("chatgate; ")?.split_once("; detail=\"")?;
        let outcomes = ["hit", "fwd=miss", "fwd=partial", "fwd=stale", "fwd=request", "fwd=bypass"];
        let mut words = detail.strip_suffix('"')?.split(' ');
        let mut count = |name: &str| words.next()?.strip_prefix(name)?.strip_prefix('=')?.parse().ok();
        let status = CacheStatus {
            outcome: outcomes.contains(&outcome).then(|| outcome.to_owned())?,
            hit: count("hit")?,
            joined: count("joined")?,
            fetched: count("fetched")?,
            flipped: count("flipped")?,
            stale: count("stale")?,
        };
        words.next().is_none().then_some(status)
    }

    /// Returns the hit, joined and fetched counts.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (self.hit, self.joined, self.fetched)
    }
}

/// Reads a chunked body. Returns the body and its length on the wire, or `None` if it is incomplete.
fn read_chunks(bytes: &[u8]) -> Option<(Vec<u8>, usize)> {
    let (mut body, mut at) = (Vec::new(), 0);
    loop {
        let line_len = memchr::memmem::find(&bytes[at..], b"\r\n")?;
        let size = std::str::from_utf8(&bytes[at..at + line_len]).expect("a chunk size");
        let size = usize::from_str_radix(size, 16).expect("a chunk size");
        let begin = at + line_len + 2;
        let chunk = bytes.get(begin..begin + size + 2)?;
        body.extend_from_slice(&chunk[..size]);
        at = begin + size + 2;
        if size == 0 {
            return Some((body, at));
        }
    }
}

#[test]
fn cache_status_parser_accepts_only_the_exact_format() {
    let good = CacheStatus::parse(r#"chatgate; fwd=partial; detail="hit=1 joined=2 fetched=3 flipped=4 stale=5""#);
    assert_eq!(good.map(|status| (status.outcome.clone(), status.counts())), Some(("fwd=partial".into(), (1, 2, 3))));
    for bad in ["chatgate; hit", r#"chatgate; fwd=what; detail="hit=1 joined=2 fetched=3 flipped=4 stale=5""#] {
        assert_eq!(CacheStatus::parse(bad), None);
    }
}
