//! Makes and verifies UserSigs as Tencent's libraries and Chat do, without the program's code.
//!
//! Source: the vendor's page "Secure Authentication with UserSig" (1047/34385) and the verifiers of
//! its tls-sig-api-v2 repositories. Every error names the cause; [`verify`] never panics.

use std::io::{Read, Write};

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::app::TestApp;

/// Checks that the text is a signature of `app` that is valid at `now` (Unix seconds).
pub(crate) fn verify(text: &str, app: TestApp, now: u64) -> Result<(), String> {
    let document = decode(text)?;
    let member = |name: &str| document.get(name).ok_or(format!("no {name}"));
    let number = |name: &str| member(name)?.as_u64().ok_or(format!("{name} is not a whole number"));
    let (sdkappid, issued, lifetime) = (number("TLS.sdkappid")?, number("TLS.time")?, number("TLS.expire")?);
    let identifier = member("TLS.identifier")?.as_str().ok_or("TLS.identifier is not a string")?;
    let signature = member("TLS.sig")?.as_str().ok_or("TLS.sig is not a string")?;
    if member("TLS.ver")? != "2.0" {
        return Err("TLS.ver is not \"2.0\"".into());
    }
    if document.get("TLS.userbuf").is_some() {
        return Err("has a userbuf; Chat signs without one".into());
    }
    if sdkappid != u64::from(app.sdkappid) {
        return Err(format!("signed for {sdkappid}, used for {}", app.sdkappid));
    }
    if identifier != app.identifier {
        return Err("signed for another identifier".into());
    }
    if now > issued + lifetime {
        return Err(format!("expired {} s ago", now - issued - lifetime));
    }
    let signed =
        format!("TLS.identifier:{identifier}\nTLS.sdkappid:{sdkappid}\nTLS.time:{issued}\nTLS.expire:{lifetime}\n");
    let tag = STANDARD.decode(signature).map_err(|_| "TLS.sig is not base64")?;
    let key = hmac::Key::new(hmac::HMAC_SHA256, app.key.as_bytes());
    hmac::verify(&key, signed.as_bytes(), &tag).map_err(|_| "signed with another key".into())
}

/// Returns the document of a valid signature, as Tencent's generators make it.
pub(crate) fn sign(sdkappid: u32, identifier: &str, key: &str, issued: u64, lifetime: u64) -> Value {
    let signed =
        format!("TLS.identifier:{identifier}\nTLS.sdkappid:{sdkappid}\nTLS.time:{issued}\nTLS.expire:{lifetime}\n");
    let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes()), signed.as_bytes());
    serde_json::json!({
        "TLS.ver": "2.0",
        "TLS.identifier": identifier,
        "TLS.sdkappid": sdkappid,
        "TLS.time": issued,
        "TLS.expire": lifetime,
        "TLS.sig": STANDARD.encode(tag),
    })
}

/// Encodes a document. From then on all output of every gateway is searched for it.
pub(crate) fn encode(document: &Value) -> String {
    let mut deflate = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
    deflate.write_all(document.to_string().as_bytes()).expect("memory");
    let text = STANDARD.encode(deflate.finish().expect("memory"));
    let usersig = text.replace('+', "*").replace('/', "-").replace('=', "_");
    super::secrets::add(&usersig);
    usersig
}

/// Decodes the JSON document.
fn decode(text: &str) -> Result<Value, String> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'*' | b'-' | b'_');
    if text.is_empty() || !text.bytes().all(legal) {
        return Err("has characters that are not valid in a UserSig".into());
    }
    let standard = text.replace('*', "+").replace('-', "/").replace('_', "=");
    let packed = STANDARD.decode(standard).map_err(|_| "is not base64")?;
    let mut json = Vec::new();
    let mut inflate = flate2::read::ZlibDecoder::new(packed.as_slice()).take(64 * 1024);
    inflate.read_to_end(&mut json).map_err(|_| "is not zlib")?;
    serde_json::from_slice(&json).map_err(|_| "is not JSON".into())
}

/// Checks the verifier against the vendor's vectors, because a verifier that accepts everything would prove nothing.
#[test]
fn usersig_verifier_agrees_with_the_vendors_vectors() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/usersig-vectors.json");
    let text = std::fs::read_to_string(file).expect("the vectors");
    let vectors: Value = serde_json::from_str(&text).expect("JSON");
    let mut checked = 0;
    for vector in vectors["vectors"].as_array().expect("a list") {
        if !vector["userbuf_hex"].is_null() {
            continue;
        }
        let own = |name: &str| vector[name].as_str().unwrap_or_default().to_owned().leak();
        let app = TestApp {
            name: "vector",
            sdkappid: u32::try_from(vector["sdkappid"].as_u64().expect("a number")).expect("32 bits"),
            identifier: own("identifier"),
            key: own("key"),
            webhook_token: "none",
        };
        let issued = vector["time"].as_u64().expect("a time");
        let last = issued + vector["expire"].as_u64().expect("a lifetime");
        for sig in [&vector["sig"], &vector["npm"]["sig"]] {
            let sig = sig.as_str().expect("a signature");
            assert_eq!(verify(sig, app, last), Ok(()), "{}", vector["name"]);
            assert!(verify(sig, app, last + 1).is_err(), "expired");
            assert!(verify(sig, TestApp { key: "another", ..app }, issued).is_err(), "wrong key");
            assert!(verify(sig, TestApp { identifier: "another", ..app }, issued).is_err(), "wrong user");
            assert!(verify(sig, TestApp { sdkappid: app.sdkappid ^ 1, ..app }, issued).is_err(), "wrong app");
            checked += 1;
        }
    }
    assert!(checked >= 10, "only {checked} vectors were checked");
}
