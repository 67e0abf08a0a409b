//! UserSig: version 2 of the vendor's signature (TLSSigAPI v2, HMAC-SHA256).
//!
//! A UserSig is a JSON document with an app, an administrator, a time, a lifetime, and an HMAC over them. The document
//! is compressed with zlib and encoded in base64 with an alphabet of the vendor's own. The bytes differ between
//! libraries (member order, spaces, compression), so UserSigs are compared as documents.
//!
//! Source: vendor page "Secure Authentication with UserSig" (1047/34385) and the vendor's generators; error codes from
//! "Error Codes" (1047/34348).

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

/// Maximum length of an inflated document, in bytes. A real one has less than 400. The bound keeps a few bytes of input
/// from inflating to megabytes.
pub const DOCUMENT_LEN_MAX: usize = 8 * 1024;

/// An encoded UserSig.
///
/// Until it expires, it gives the same rights as the key. So it has no `Display`, `Debug` hides it, and its memory is
/// wiped on drop.
pub struct UserSig(Zeroizing<String>);

impl UserSig {
    /// Returns the text. Only the code that builds the query may call it.
    ///
    /// It has only letters, digits, `*`, `-`, and `_`, so it needs no percent-encoding.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for UserSig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UserSig(hidden)")
    }
}

/// Creates a UserSig for an administrator of an app.
///
/// `issued_at` is in Unix seconds; `lifetime_secs` counts from there. Chat does not use the userbuf of audio and video
/// rooms.
pub fn mint(key: &SecretKey, app: SdkAppId, identifier: &Identifier, issued_at: u64, lifetime_secs: u64) -> UserSig {
    mint_with(key, app, identifier, issued_at, lifetime_secs, None)
}

/// Why a UserSig is invalid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UserSigError {
    /// The text is empty.
    #[error("the signature is empty")]
    Empty,
    /// The text cannot be decoded.
    #[error("the signature is malformed: {0}")]
    Malformed(&'static str),
    /// It was created for another app.
    #[error("the signature was created for another SDKAppID")]
    WrongApp,
    /// It was created for another identifier.
    #[error("the signature was created for another identifier")]
    WrongIdentifier,
    /// Its lifetime has ended.
    #[error("the signature has expired (its lifetime ended at Unix second {at})")]
    Expired {
        /// Last Unix second at which it was valid.
        at: u64,
    },
    /// The HMAC does not match: it was created with another key, or the document was changed.
    #[error("the signature was created with another key, or changed afterwards")]
    WrongKey,
    /// It has a userbuf, which Chat does not use.
    #[error("the signature has a userbuf, which Chat does not use")]
    Userbuf,
}

impl UserSigError {
    /// Returns the vendor's error code (1047/34348; 70002 is from older tables).
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

/// A decoded UserSig. Its content is untrusted until [`Document::verify`] succeeds.
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
    /// `TLS.userbuf` as written, in standard base64; only room entry uses it.
    pub userbuf: Option<String>,
    sig: Zeroizing<String>,
}

impl Document {
    /// Checks that it is valid for this app and identifier at `now`, in Unix seconds.
    ///
    /// The order of checks is version, app, identifier, expiry, userbuf, HMAC. The HMAC is compared in constant time. An
    /// issue time in the future is valid, as in the vendor's own verifiers.
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

    /// Returns the last Unix second at which it is valid; the sum saturates.
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

/// Decodes a UserSig without verifying it.
///
/// The encoding must be exact: the vendor's alphabet with full padding, one complete zlib stream with nothing after it,
/// one JSON object. Unknown members are ignored, because they are not part of the signed text. A missing numeric member
/// counts as 0, because the vendor's Go library omits zeros.
pub fn parse(text: &str) -> Result<Document, UserSigError> {
    if text.is_empty() {
        return Err(UserSigError::Empty);
    }
    // Base64 is a third longer than its content, and deflating adds at most a few bytes of framing to a document.
    if text.len() > DOCUMENT_LEN_MAX * 4 / 3 + 64 {
        return Err(UserSigError::Malformed("it is too long"));
    }
    let deflated = Zeroizing::new(
        ENGINE.decode(text).map_err(|_| UserSigError::Malformed("it is not base64 in the vendor's alphabet"))?,
    );
    let json = inflate(&deflated)?;
    // A JSON array would also fit the shape below.
    if json.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(UserSigError::Malformed("it does not contain a JSON object"));
    }
    let raw: Raw = serde_json::from_slice(&json)
        .map_err(|_| UserSigError::Malformed("it does not contain the JSON object of a signature"))?;
    if raw.identifier.chars().any(char::is_control) {
        return Err(UserSigError::Malformed("its identifier contains a control character"));
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

/// The vendor's alphabet: the standard one with `*` for `+`, `-` for `/`, and `_` for the padding. It differs from the
/// URL-safe alphabet of RFC 4648, in which `-` and `_` have other meanings.
const ALPHABET: Alphabet = match Alphabet::new_with_padding(
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789*-",
    Symbol::new(b'_').expect("printable"),
) {
    Ok(alphabet) => alphabet,
    Err(_) => panic!("64 distinct characters"),
};

/// `PAD` requires canonical padding and rejects stray bits in the last character.
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
    // Full capacity from the start: a growing buffer would leave copies behind that are not wiped.
    let room = 512 + userbuf.as_ref().map_or(0, String::len);
    let mut json = Zeroizing::new(Vec::with_capacity(room));
    serde_json::to_writer(&mut *json, &document).expect("strings and numbers always serialize");
    debug_assert!(json.len() <= room, "the document has outgrown its buffer");
    let mut deflater = ZlibEncoder::new(Vec::with_capacity(room), Compression::default());
    deflater.write_all(&json).expect("writing to a Vec does not fail");
    let deflated = Zeroizing::new(deflater.finish().expect("writing to a Vec does not fail"));
    debug_assert!(deflated.len() <= room, "the deflated document has outgrown its buffer");
    UserSig(Zeroizing::new(ENGINE.encode(&*deflated)))
}

/// Returns the signed text: lines that each end with a line feed, without escapes.
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

/// Returns the HMAC key: the key's text itself, not decoded as hex.
fn hmac_key(key: &SecretKey) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, key.expose())
}

fn inflate(deflated: &[u8]) -> Result<Zeroizing<Vec<u8>>, UserSigError> {
    let truncated = UserSigError::Malformed("it is truncated or not zlib");
    let mut json = Zeroizing::new(Vec::with_capacity(DOCUMENT_LEN_MAX));
    let mut stream = Decompress::new(true);
    match stream.decompress_vec(deflated, &mut json, FlushDecompress::Finish) {
        Ok(Status::StreamEnd) if stream.total_in() == deflated.len() as u64 => Ok(json),
        Ok(Status::StreamEnd) => Err(UserSigError::Malformed("extra bytes follow its end")),
        Ok(_) | Err(_) => Err(truncated),
    }
}

#[cfg(test)]
#[path = "../../../tests/unit/usersig.rs"]
mod tests;
