//! A second JSON reader for comparison: simple and strict (RFC 8259).

/// Longest text in bytes, which bounds the recursion.
const LEN_MAX: usize = 16 * 1024;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Json<'a> {
    /// null, true or false.
    Word,
    /// A number as written.
    Number(&'a str),
    /// A string; `None` if it contains an unpaired surrogate and so is not valid Unicode.
    Text(Option<String>),
    /// An array.
    List(Vec<Json<'a>>),
    /// An object's members in order, including repeated ones.
    Object(Vec<(Option<String>, Json<'a>)>),
}

impl<'a> Json<'a> {
    /// Returns the members with this name.
    pub fn members<'s>(&'s self, name: &str) -> Vec<&'s Json<'a>> {
        match self {
            Json::Object(members) => {
                members.iter().filter(|(key, _)| key.as_deref() == Some(name)).map(|(_, value)| value).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Returns the member with this name if it occurs exactly once.
    pub fn only<'s>(&'s self, name: &str) -> Option<&'s Json<'a>> {
        let members = self.members(name);
        (members.len() == 1).then(|| members[0])
    }

    /// Returns a string that is valid Unicode.
    pub fn text(&self) -> Option<&str> {
        match self {
            Json::Text(text) => text.as_deref(),
            _ => None,
        }
    }

    /// Returns an integer that fits, without fraction and exponent; -0 does not count.
    pub fn whole(&self) -> Option<i64> {
        match self {
            Json::Number("-0") => None,
            Json::Number(digits) => digits.parse().ok(),
            _ => None,
        }
    }

    /// Returns whether readers may differ: a string is not valid Unicode, or a number overflows a float.
    pub fn is_odd(&self) -> bool {
        match self {
            Json::Word => false,
            Json::Number(digits) => digits.parse::<f64>().is_ok_and(f64::is_infinite),
            Json::Text(text) => text.is_none(),
            Json::List(items) => items.iter().any(Json::is_odd),
            Json::Object(members) => members.iter().any(|(name, value)| name.is_none() || value.is_odd()),
        }
    }

    /// Returns the nesting depth of objects and arrays.
    pub fn depth(&self) -> usize {
        match self {
            Json::List(items) => 1 + items.iter().map(Json::depth).max().unwrap_or(0),
            Json::Object(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }
}

/// Returns whether the text is too long for this reader.
pub fn is_too_long(bytes: &[u8]) -> bool {
    bytes.len() > LEN_MAX
}

/// Reads one value in UTF-8 with nothing after it.
pub fn read(bytes: &[u8]) -> Option<Json<'_>> {
    let mut reader = Reader { text: std::str::from_utf8(bytes).ok()?, at: 0 };
    reader.blanks();
    let value = reader.value()?;
    reader.blanks();
    (reader.at == bytes.len()).then_some(value)
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn take(&mut self, wanted: &str) -> Option<()> {
        self.text[self.at..].starts_with(wanted).then(|| self.at += wanted.len())
    }

    fn blanks(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self) -> Option<Json<'a>> {
        match self.peek()? {
            b'n' => self.take("null").map(|()| Json::Word),
            b't' => self.take("true").map(|()| Json::Word),
            b'f' => self.take("false").map(|()| Json::Word),
            b'"' => self.string().map(Json::Text),
            b'[' => self.list(b']', Self::value).map(Json::List),
            b'{' => self.list(b'}', Self::member).map(Json::Object),
            _ => self.number().map(Json::Number),
        }
    }

    fn member(&mut self) -> Option<(Option<String>, Json<'a>)> {
        let name = self.string()?;
        self.blanks();
        self.take(":")?;
        self.blanks();
        Some((name, self.value()?))
    }

    fn list<T>(&mut self, end: u8, item: impl Fn(&mut Self) -> Option<T>) -> Option<Vec<T>> {
        self.at += 1;
        self.blanks();
        let mut items = Vec::new();
        if self.peek()? == end {
            self.at += 1;
            return Some(items);
        }
        loop {
            items.push(item(self)?);
            self.blanks();
            let next = self.peek()?;
            self.at += 1;
            match next {
                b',' => self.blanks(),
                next if next == end => return Some(items),
                _ => return None,
            }
        }
    }

    fn digits(&mut self) -> Option<()> {
        let begin = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        (self.at > begin).then_some(())
    }

    fn number(&mut self) -> Option<&'a str> {
        let begin = self.at;
        let _ = self.take("-");
        if self.take("0").is_none() {
            self.digits()?;
        }
        if self.take(".").is_some() {
            self.digits()?;
        }
        if self.take("e").or_else(|| self.take("E")).is_some() {
            let _ = self.take("+").or_else(|| self.take("-"));
            self.digits()?;
        }
        Some(&self.text[begin..self.at])
    }

    /// Reads a string. The outer `None` means malformed, the inner one not valid Unicode.
    #[allow(clippy::option_option, reason = "the two have different meanings")]
    fn string(&mut self) -> Option<Option<String>> {
        self.take("\"")?;
        let mut units = Vec::new();
        loop {
            let next = self.text[self.at..].chars().next()?;
            self.at += next.len_utf8();
            match next {
                '"' => return Some(String::from_utf16(&units).ok()),
                '\0'..='\x1f' => return None,
                '\\' => units.push(self.escape()?),
                _ => units.extend_from_slice(next.encode_utf16(&mut [0; 2])),
            }
        }
    }

    fn escape(&mut self) -> Option<u16> {
        let kind = self.peek()?;
        self.at += 1;
        Some(match kind {
            b'"' | b'\\' | b'/' => kind.into(),
            b'b' => 8,
            b'f' => 12,
            b'n' => 10,
            b'r' => 13,
            b't' => 9,
            b'u' => {
                let digits = self.text.get(self.at..self.at + 4)?;
                self.at += 4;
                let hex = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
                u16::from_str_radix(digits, 16).ok().filter(|_| hex)?
            }
            _ => return None,
        })
    }
}
