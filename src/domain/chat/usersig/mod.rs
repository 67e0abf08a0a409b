//! UserSig, version 2 of the vendor's signature (TLSSigAPI v2, HMAC-SHA256).
//!
//! A signature is a JSON document that names an app, an administrator, a moment and a lifetime, with
//! an HMAC over them; zlib over that; base64 in an alphabet of the vendor's own. Its bytes differ
//! from library to library (member order, spaces, compression), so two are compared as documents.
//!
//! Source: vendor page "Secure Authentication with UserSig" (1047/34385) and the vendor's
//! generators; error codes from "Error Codes" (1047/34348).

use std::fmt;
use std::io::Write;

use aws_lc_rs::hmac;
use base64::Engine;
use base64::alphabet::{Alphabet, Symbol};
use base64::engine::general_purpose::{GeneralPurpose, PAD, STANDARD};
use flate2::write::ZlibEncoder;
use flate2::{Compression, Decompress, FlushDecompress, Status};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::app::{Identifier, SdkAppId, SecretKey};

/// The value of `TLS.ver`. It is not part of the signed text.
pub const VERSION: &str = "2.0";

/// Longest document that is inflated, in bytes. A real one has under 400; the bound keeps a few
/// bytes of input from growing into megabytes.
pub const DOCUMENT_LEN_MAX: usize = 8 * 1024;

/// A signature. Until it expires it is as good as the key, so it has no `Display`, its `Debug`
/// shows nothing of it, and its memory is wiped when it goes.
pub struct UserSig(Zeroizing<String>);

impl UserSig {
    /// The text, for the code that builds the query and for nothing else.
    ///
    /// It holds only letters, digits, `*`, `-` and `_`: no percent-encoding is needed.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserSig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserSig(hidden)")
    }
}

/// Signs for an administrator of an app.
///
/// `issued_at` is in Unix seconds, `lifetime_secs` a span from then on (not a deadline). Chat signs
/// without the userbuf that audio and video rooms use.
pub fn mint(key: &SecretKey, app: SdkAppId, identifier: &Identifier, issued_at: u64, lifetime_secs: u64) -> UserSig {
    mint_with(key, app, identifier, issued_at, lifetime_secs, None)
}

/// Why a signature does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserSigError {
    /// No text at all.
    #[error("the signature is empty")]
    Empty,
    /// The text cannot be taken apart.
    #[error("the signature is malformed: {0}")]
    Malformed(&'static str),
    /// It was made for another app than the one it is used for.
    #[error("the signature was made for another SDKAppID")]
    WrongApp,
    /// It was made for another user than the one who uses it.
    #[error("the signature was made for another identifier")]
    WrongIdentifier,
    /// Its lifetime is over.
    #[error("the signature has expired (its lifetime ended at Unix second {at})")]
    Expired {
        /// Last Unix second at which it held.
        at: u64,
    },
    /// The HMAC does not fit: another key, or the document was edited.
    #[error("the signature was made with another key, or was changed afterwards")]
    WrongKey,
    /// It carries a userbuf, which Chat never signs with.
    #[error("the signature carries a userbuf, which Chat does not use")]
    Userbuf,
}

impl UserSigError {
    /// The vendor's code for it (1047/34348; 70002 in older tables).
    pub const fn code(self) -> i64 {
        match self {
            UserSigError::Expired { .. } => 70001,
            UserSigError::Empty => 70002,
            UserSigError::Malformed(_) => 70003,
            UserSigError::WrongKey | UserSigError::Userbuf => 70009,
            UserSigError::WrongIdentifier => 70013,
            UserSigError::WrongApp => 70014,
        }
    }
}

/// A signature taken apart. Nothing in it is to be believed before [`Document::verify`].
#[derive(Clone)]
pub struct Document {
    /// `TLS.ver`, which is not signed.
    pub version: String,
    /// `TLS.identifier`.
    pub identifier: String,
    /// `TLS.sdkappid`.
    pub sdkappid: u64,
    /// `TLS.time`, Unix seconds.
    pub issued_at: u64,
    /// `TLS.expire`: seconds from `issued_at`.
    pub lifetime_secs: u64,
    /// `TLS.userbuf` as it stands there, in standard base64; only room entry uses it.
    pub userbuf: Option<String>,
    sig: Zeroizing<String>,
}

impl Document {
    /// Whether it holds for this app, this identifier and this moment (Unix seconds).
    ///
    /// Order: version, app, identifier, expiry, userbuf, HMAC; the HMAC is compared in constant
    /// time. A moment of signing in the future is no fault, as in the vendor's own verifiers.
    pub fn verify(&self, key: &SecretKey, app: SdkAppId, identifier: &str, now: u64) -> Result<(), UserSigError> {
        if self.version != VERSION {
            return Err(UserSigError::Malformed("its version is not 2.0"));
        }
        if self.sdkappid != u64::from(app.get()) {
            return Err(UserSigError::WrongApp);
        }
        if self.identifier != identifier {
            return Err(UserSigError::WrongIdentifier);
        }
        if now > self.expires_at() {
            return Err(UserSigError::Expired { at: self.expires_at() });
        }
        if self.userbuf.is_some() {
            return Err(UserSigError::Userbuf);
        }
        self.verify_hmac(key)
    }

    /// The last Unix second at which it holds; sums that leave 64 bits stay at the end of time.
    pub fn expires_at(&self) -> u64 {
        self.issued_at.saturating_add(self.lifetime_secs)
    }

    fn verify_hmac(&self, key: &SecretKey) -> Result<(), UserSigError> {
        let tag = STANDARD.decode(self.sig.as_bytes()).map_err(|_| UserSigError::WrongKey)?;
        let text =
            signed_text(&self.identifier, self.sdkappid, self.issued_at, self.lifetime_secs, self.userbuf.as_deref());
        hmac::verify(&hmac_key(key), text.as_bytes(), &tag).map_err(|_| UserSigError::WrongKey)
    }
}

impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Document")
            .field("version", &self.version)
            .field("identifier", &self.identifier)
            .field("sdkappid", &self.sdkappid)
            .field("issued_at", &self.issued_at)
            .field("lifetime_secs", &self.lifetime_secs)
            .field("has_userbuf", &self.userbuf.is_some())
            .finish_non_exhaustive()
    }
}

/// Takes a signature apart without believing it.
///
/// Strict in what can be told apart from a slip: the vendor's alphabet and full padding, one whole
/// zlib stream and nothing after it, one JSON object. Members that the vendor does not name are
/// ignored, for they are outside the signed text; a numeric member that is absent counts as 0,
/// because the vendor's Go library leaves out zeros.
pub fn parse(text: &str) -> Result<Document, UserSigError> {
    if text.is_empty() {
        return Err(UserSigError::Empty);
    }
    // Base64 text is a third longer than what it holds; no document that fits can deflate to more
    // than itself and a few bytes of framing.
    if text.len() > DOCUMENT_LEN_MAX * 4 / 3 + 64 {
        return Err(UserSigError::Malformed("it is far too long"));
    }
    let deflated = Zeroizing::new(
        ENGINE.decode(text).map_err(|_| UserSigError::Malformed("it is not base64 in the vendor's alphabet"))?,
    );
    let json = inflate(&deflated)?;
    // A JSON array would also fit the shape below.
    if json.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(UserSigError::Malformed("it does not hold a JSON object"));
    }
    let raw: Raw = serde_json::from_slice(&json)
        .map_err(|_| UserSigError::Malformed("it does not hold the JSON object of a signature"))?;
    if raw.identifier.chars().any(char::is_control) {
        return Err(UserSigError::Malformed("its identifier has a control character"));
    }
    Ok(Document {
        version: raw.version,
        identifier: raw.identifier,
        sdkappid: raw.sdkappid,
        issued_at: raw.issued_at,
        lifetime_secs: raw.lifetime_secs,
        userbuf: raw.userbuf,
        sig: Zeroizing::new(raw.sig),
    })
}

/// The vendor's alphabet: the standard one with `*` for `+`, `-` for `/` and `_` for the padding.
/// It is not the URL-safe alphabet of RFC 4648, in which `-` and `_` mean something else.
const ALPHABET: Alphabet = match Alphabet::new_with_padding(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-",
    Symbol::new(b'_').expect("printable"),
) {
    Ok(alphabet) => alphabet,
    Err(_) => panic!("64 distinct characters"),
};

/// `PAD` asks for canonical padding and refuses stray bits in the last character.
const ENGINE: GeneralPurpose = GeneralPurpose::new(&ALPHABET, PAD);

#[derive(Serialize)]
struct Signed<'a> {
    #[serde(rename = "TLS.ver")]
    version: &'a str,
    #[serde(rename = "TLS.identifier")]
    identifier: &'a str,
    #[serde(rename = "TLS.sdkappid")]
    sdkappid: u32,
    #[serde(rename = "TLS.expire")]
    lifetime_secs: u64,
    #[serde(rename = "TLS.time")]
    issued_at: u64,
    #[serde(rename = "TLS.userbuf", skip_serializing_if = "Option::is_none")]
    userbuf: Option<&'a str>,
    #[serde(rename = "TLS.sig")]
    sig: &'a str,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(rename = "TLS.ver", default)]
    version: String,
    #[serde(rename = "TLS.identifier", default)]
    identifier: String,
    #[serde(rename = "TLS.sdkappid", default)]
    sdkappid: u64,
    #[serde(rename = "TLS.expire", default)]
    lifetime_secs: u64,
    #[serde(rename = "TLS.time", default)]
    issued_at: u64,
    #[serde(rename = "TLS.userbuf", default)]
    userbuf: Option<String>,
    #[serde(rename = "TLS.sig")]
    sig: String,
}

fn mint_with(
    key: &SecretKey,
    app: SdkAppId,
    identifier: &Identifier,
    issued_at: u64,
    lifetime_secs: u64,
    userbuf: Option<&[u8]>,
) -> UserSig {
    let userbuf = userbuf.map(|bytes| STANDARD.encode(bytes));
    let text = signed_text(identifier.as_str(), u64::from(app.get()), issued_at, lifetime_secs, userbuf.as_deref());
    let sig = Zeroizing::new(STANDARD.encode(hmac::sign(&hmac_key(key), text.as_bytes())));
    let document = Signed {
        version: VERSION,
        identifier: identifier.as_str(),
        sdkappid: app.get(),
        lifetime_secs,
        issued_at,
        userbuf: userbuf.as_deref(),
        sig: &sig,
    };
    // Room for the whole from the start: a buffer that grows leaves unwiped copies behind.
    let room = 512 + 2 * userbuf.as_ref().map_or(0, String::len);
    let mut json = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *json, &document).expect("texts and numbers go into a Vec");
    let mut deflater = ZlibEncoder::new(Vec::with_capacity(room), Compression::default());
    deflater.write_all(&json).expect("a Vec takes everything");
    let deflated = Zeroizing::new(deflater.finish().expect("a Vec takes everything"));
    UserSig(Zeroizing::new(ENGINE.encode(&*deflated)))
}

/// The lines that are signed, each ended by a line feed, nothing escaped.
fn signed_text(
    identifier: &str,
    sdkappid: u64,
    issued_at: u64,
    lifetime_secs: u64,
    userbuf_base64: Option<&str>,
) -> String {
    let mut text = format!(
        "TLS.identifier:{identifier}\nTLS.sdkappid:{sdkappid}\nTLS.time:{issued_at}\nTLS.expire:{lifetime_secs}\n"
    );
    if let Some(userbuf) = userbuf_base64 {
        text.push_str("TLS.userbuf:");
        text.push_str(userbuf);
        text.push('\n');
    }
    text
}

/// The key's text itself is the HMAC key; it is never read as hex.
fn hmac_key(key: &SecretKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key.expose())
}

fn inflate(deflated: &[u8]) -> Result<Zeroizing<Vec<u8>>, UserSigError> {
    let broken = UserSigError::Malformed("it is cut short or not zlib");
    let mut json = Zeroizing::new(Vec::with_capacity(DOCUMENT_LEN_MAX));
    let mut stream = Decompress::new(true);
    match stream.decompress_vec(deflated, &mut json, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) if stream.total_in() == deflated.len() as u64 => Ok(json),
        Ok(Status::StreamEnd) => Err(UserSigError::Malformed("something follows its end")),
        Ok(_) | Err(_) => Err(broken),
    }
}

#[cfg(test)]
mod tests;
