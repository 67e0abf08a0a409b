//! UserSigs: parsed by two readers, minted and verified.

use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use chatgate::domain::chat::app::{Identifier, SdkAppId, SecretKey};
use chatgate::domain::chat::usersig::{DOCUMENT_LEN_MAX, UserSigError, mint, parse};

use super::json;

/// Reads the bytes as a UserSig, and as the inputs of one.
pub fn run(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        compare(text);
        // The fuzzer does not generate zlib, so the bytes are also tried as the compressed document.
        let mut deflater = flate2::read::ZlibEncoder::new(bytes, flate2::Compression::fast());
        let mut deflated = Vec::new();
        deflater.read_to_end(&mut deflated).expect("from memory into memory");
        compare(&vendor_text(&STANDARD.encode(deflated)));
    }
    mint_and_verify(bytes);
}

/// Converts from the standard alphabet to the vendor's.
fn vendor_text(text: &str) -> String {
    text.replace('+', "*").replace('/', "-").replace('=', "_")
}

fn compare(text: &str) {
    let ours = parse(text);
    if text.contains(['+', '/', '=']) {
        assert!(ours.is_err(), "accepted the standard alphabet instead of the vendor's");
    }
    let theirs = read(text);
    let Ok(document) = ours else {
        // Our reader is stricter: it rejects repeated members, unexpected types and control characters.
        return;
    };
    let inflated = theirs.expect("the two readers disagree on the decompressed text");
    let Some(theirs) = object(&inflated) else {
        // In members that it does not read, ours accepts unpaired surrogates and numbers that are too large.
        assert!(json::read(&inflated).is_some_and(|json| json.is_odd()), "the two readers disagree");
        return;
    };
    let member = |name: &str| theirs.get(name).cloned().unwrap_or_default();
    assert_eq!(member("TLS.identifier").as_str().unwrap_or_default(), document.identifier);
    assert_eq!(member("TLS.ver").as_str().unwrap_or_default(), document.version);
    assert_eq!(member("TLS.sdkappid").as_u64().unwrap_or_default(), document.sdkappid);
    assert_eq!(member("TLS.time").as_u64().unwrap_or_default(), document.issued_at);
    assert_eq!(member("TLS.expire").as_u64().unwrap_or_default(), document.lifetime_secs);
    assert_eq!(member("TLS.userbuf").as_str().map(str::to_owned), document.userbuf);
    assert!(!document.identifier.contains(char::is_control));
    assert!(document.expires_at() >= document.issued_at);
    // A random HMAC is never valid.
    let app = SdkAppId::new(1).expect("not 0");
    let key = SecretKey::new("a key that signed nothing yet").expect("not empty");
    assert!(document.verify(&key, app, "administrator", 0).is_err());
    // A signature that is repeated as the identifier or version is shown there.
    let elsewhere = |sig: &str| document.identifier.contains(sig) || document.version.contains(sig);
    let sig = member("TLS.sig").as_str().filter(|sig| sig.len() > 20 && !elsewhere(sig)).map(str::to_owned);
    assert!(sig.is_none_or(|sig| !format!("{document:?}").contains(&sig)));
}

/// Decodes with other libraries.
fn read(text: &str) -> Option<Vec<u8>> {
    let standard = text.replace('*', "+").replace('-', "/").replace('_', "=");
    let deflated = STANDARD.decode(standard).ok()?;
    let mut json = Vec::new();
    let whole =
        flate2::read::ZlibDecoder::new(&*deflated).take(DOCUMENT_LEN_MAX as u64 + 1).read_to_end(&mut json).ok()?;
    (whole <= DOCUMENT_LEN_MAX).then_some(json)
}

fn object(json: &[u8]) -> Option<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_slice::<serde_json::Value>(json).ok()?.as_object().cloned()
}

fn mint_and_verify(bytes: &[u8]) {
    let Some((numbers, texts)) = bytes.split_at_checked(20) else { return };
    let Ok(texts) = std::str::from_utf8(texts) else { return };
    let number = |at: usize| u64::from_le_bytes(numbers[at..at + 8].try_into().expect("eight"));
    let app = SdkAppId::new(u32::from_le_bytes(numbers[..4].try_into().expect("four")));
    let (issued_at, lifetime) = (number(4), number(12));
    let (identifier, key) = texts.split_once('\n').unwrap_or((texts, "key"));
    let (Some(app), Ok(identifier), Some(key)) = (app, identifier.parse::<Identifier>(), SecretKey::new(key)) else {
        return;
    };
    let sig = mint(&key, app, &identifier, issued_at, lifetime);
    let text = sig.expose();
    assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"*-_".contains(&byte)), "{text}");
    let document = parse(text).expect("our own output");
    let name = identifier.as_str();
    assert_eq!((document.identifier.as_str(), document.sdkappid), (name, app.get().into()));
    assert_eq!((document.issued_at, document.lifetime_secs), (issued_at, lifetime));
    let end = document.expires_at();
    assert_eq!(document.verify(&key, app, name, end), Ok(()));
    if let Some(after) = end.checked_add(1) {
        assert_eq!(document.verify(&key, app, name, after), Err(UserSigError::Expired { at: end }));
    }
    let other_key = SecretKey::new(&format!("{texts}x")).expect("not empty");
    assert_eq!(document.verify(&other_key, app, name, end), Err(UserSigError::WrongKey));
    assert_eq!(
        document.verify(&key, app, "another user with a long name 012", end),
        Err(UserSigError::WrongIdentifier)
    );
    // The signature covers every member.
    let mut changed = document.clone();
    changed.lifetime_secs ^= 1;
    assert!(changed.verify(&key, app, name, changed.issued_at).is_err());
    let mut changed = document;
    changed.issued_at ^= 1;
    assert!(changed.verify(&key, app, name, changed.issued_at).is_err());
}
