use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../data/usersig-vectors.json")).expect("the vectors are JSON")
}

fn text<'a>(item: &'a Value, member: &str) -> &'a str {
    item[member].as_str().unwrap_or_else(|| panic!("{member} of {item}"))
}

fn number(item: &Value, member: &str) -> u64 {
    item[member].as_u64().unwrap_or_else(|| panic!("{member} of {item}"))
}

fn app(item: &Value) -> SdkAppId {
    SdkAppId::new(u32::try_from(number(item, "sdkappid")).unwrap()).unwrap()
}

fn key(item: &Value) -> SecretKey {
    SecretKey::new(text(item, "key")).unwrap()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Parses and verifies a UserSig, as the simulator does.
fn verify(sig: &str, item: &Value, at: u64) -> Result<(), UserSigError> {
    parse(sig)?.verify(&key(item), app(item), text(item, "identifier"), at)
}

#[test]
fn every_vector_is_minted_and_parsed_with_its_hmac() {
    let vectors = vectors();
    let vectors = vectors["vectors"].as_array().unwrap();
    assert_eq!(vectors.len(), 20);
    for item in vectors {
        let name = text(item, "name");
        let userbuf = item["userbuf_hex"].as_str().map(unhex);
        let (time, expire) = (number(item, "time"), number(item, "expire"));
        let identifier = text(item, "identifier").parse().unwrap();
        let own = mint_with(&key(item), app(item), &identifier, time, expire, userbuf.as_deref());
        for sig in [own.expose(), text(item, "sig"), text(&item["npm"], "sig")] {
            let document = parse(sig).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(*document.sig, text(item, "hmac_base64"), "{name}");
            assert_eq!(document.version, VERSION, "{name}");
            assert_eq!(document.identifier, text(item, "identifier"), "{name}");
            assert_eq!(document.sdkappid, number(item, "sdkappid"), "{name}");
            assert_eq!((document.issued_at, document.lifetime_secs), (time, expire), "{name}");
            assert_eq!(document.userbuf.as_deref(), item["document"]["TLS.userbuf"].as_str(), "{name}");
            assert_eq!(document.verify_hmac(&key(item)), Ok(()), "{name}");
            let verdict = document.verify(&key(item), app(item), text(item, "identifier"), time);
            let expected = if userbuf.is_some() { Err(UserSigError::Userbuf) } else { Ok(()) };
            assert_eq!(verdict, expected, "{name}");
        }
        let signed = signed_text(
            text(item, "identifier"),
            number(item, "sdkappid"),
            time,
            expire,
            item["document"]["TLS.userbuf"].as_str(),
        );
        assert_eq!(signed, text(item, "signed_content"), "{name}");
    }
}

#[test]
fn encodings_of_other_libraries_are_accepted() {
    let vectors = vectors();
    let accepted = &vectors["accepted_encodings"];
    let of = vectors["vectors"].as_array().unwrap().iter().find(|item| item["name"] == accepted["of"]).unwrap();
    let items = accepted["items"].as_array().unwrap();
    assert_eq!(items.len(), 7);
    for item in items {
        let verdict = verify(text(item, "sig"), of, number(accepted, "verify_at"));
        assert_eq!(verdict, Ok(()), "{}", item["name"]);
    }
}

#[test]
fn rejected_vectors_fail_with_their_codes() {
    let vectors = vectors();
    let items = vectors["rejected"]["items"].as_array().unwrap();
    assert_eq!(items.len(), 12);
    for item in items {
        let verdict = verify(text(item, "sig"), item, number(item, "verify_at"));
        let code = verdict.expect_err(text(item, "name")).code();
        assert_eq!(Some(code), item["code"].as_i64(), "{}", item["name"]);
    }
}

fn pack(json: &[u8]) -> String {
    let mut deflater = ZlibEncoder::new(Vec::new(), Compression::best());
    deflater.write_all(json).unwrap();
    ENGINE.encode(deflater.finish().unwrap())
}

#[test]
fn malformed_documents_are_rejected() {
    for json in [
        r#"["2.0","admin",1,2,3,null,"x"]"#,
        r#"{"TLS.sig":1}"#,
        r#"{"TLS.sig":"a","TLS.sig":"b"}"#,
        r#"{"TLS.sig":"a","TLS.time":-1}"#,
        r#"{"TLS.sig":"a","TLS.time":1.5}"#,
        r#"{"TLS.sig":"a","TLS.identifier":"a\nTLS.sdkappid:1"}"#,
        r#"{"TLS.sig":"a"} x"#,
        "{\"TLS.sig\":\"\u{0}\"}",
        "",
    ] {
        let verdict = parse(&pack(json.as_bytes()));
        assert!(matches!(verdict, Err(UserSigError::Malformed(_))), "{json}");
    }
    assert!(parse(&pack(br#"{"TLS.sig":"a"}"#)).is_ok());
}

#[test]
fn inflated_size_is_bounded() {
    let bomb = pack(&vec![b' '; 10 * 1024 * 1024]);
    assert!(bomb.len() < 16 * 1024);
    assert!(matches!(parse(&bomb), Err(UserSigError::Malformed(_))));
    assert!(matches!(parse(&"A".repeat(1 << 20)), Err(UserSigError::Malformed(_))));
}

#[test]
fn length_of_the_text_is_bounded() {
    // A document of 8 KiB in base64, and 64 bytes more.
    let too_long = |len: usize| parse(&"A".repeat(len)).unwrap_err() == UserSigError::Malformed("it is too long");
    assert!(!too_long(10_986) && too_long(10_987) && too_long(1 << 20));
}

#[test]
fn longest_identifier_and_a_long_userbuf_fit_into_their_buffer() {
    // `mint_with` checks its buffers.
    let (key, app) = (SecretKey::new("k").unwrap(), SdkAppId::new(u32::MAX).unwrap());
    let identifier = "\"".repeat(32).parse().unwrap();
    for userbuf in [None, Some(&[b'x'; 2000][..])] {
        let sig = mint_with(&key, app, &identifier, u64::MAX, u64::MAX, userbuf);
        assert_eq!(parse(sig.expose()).unwrap().verify_hmac(&key), Ok(()));
    }
}

#[test]
fn trailing_bytes_and_missing_padding_are_malformed() {
    let mut deflater = ZlibEncoder::new(Vec::new(), Compression::default());
    deflater.write_all(br#"{"TLS.sig":"a"}"#).unwrap();
    let mut whole = deflater.finish().unwrap();
    whole.push(0);
    assert_eq!(parse(&ENGINE.encode(&whole)).unwrap_err(), UserSigError::Malformed("extra bytes follow its end"));
    let padded = pack(br#"{"TLS.sig":"a"}"#);
    let bare = padded.trim_end_matches('_');
    assert_ne!(padded, bare, "choose a document whose base64 is padded");
    assert!(parse(bare).is_err());
    assert!(parse(&padded.replace('_', "=")).is_err());
}

#[test]
fn expiry_saturates() {
    let document =
        parse(&pack(br#"{"TLS.sig":"a","TLS.time":18446744073709551615,"TLS.expire":18446744073709551615}"#)).unwrap();
    assert_eq!(document.expires_at(), u64::MAX);
}

#[test]
fn debug_hides_the_signature() {
    let (key, identifier) = (SecretKey::new("k").unwrap(), "administrator".parse().unwrap());
    let sig = mint(&key, SdkAppId::new(1).unwrap(), &identifier, 1, 1);
    let document = parse(sig.expose()).unwrap();
    assert_eq!(format!("{sig:?}"), "UserSig(hidden)");
    let printed = format!("{document:?}");
    assert!(printed.contains("\"administrator\"") && printed.contains("has_userbuf: false"), "{printed}");
    assert!(!printed.contains(sig.expose()) && !printed.contains(&*document.sig), "{printed}");
}

prop_compose! {
    fn identifiers()(text in "[ -~\u{a1}-\u{ff}]{1,32}".prop_filter("32 bytes", |text| text.len() <= 32)) -> Identifier {
        text.parse().unwrap()
    }
}

proptest! {
    #[test]
    fn minted_signature_verifies_exactly_during_its_lifetime(
        key in "[ -~]{1,80}", app in 1u32.., identifier in identifiers(),
        issued_at in 0u64..1 << 40, lifetime in 0u64..1 << 40, late in 1u64..1 << 40,
    ) {
        let (key, app) = (SecretKey::new(&key).unwrap(), SdkAppId::new(app).unwrap());
        let document = parse(mint(&key, app, &identifier, issued_at, lifetime).expose()).unwrap();
        let end = issued_at + lifetime;
        prop_assert_eq!(document.verify(&key, app, identifier.as_str(), issued_at), Ok(()));
        prop_assert_eq!(document.verify(&key, app, identifier.as_str(), end), Ok(()));
        prop_assert_eq!(
            document.verify(&key, app, identifier.as_str(), end + late),
            Err(UserSigError::Expired { at: end })
        );
    }

    /// Deflate has a few bits without meaning, which pad its last byte. So a changed text may still contain the same
    /// document, but never another valid one.
    #[test]
    fn changed_character_never_yields_another_valid_document(
        identifier in identifiers(), at in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(),
    ) {
        let (key, app) = (SecretKey::new("0123456789abcdef").unwrap(), SdkAppId::new(1400000001).unwrap());
        let sig = mint(&key, app, &identifier, 1_700_000_000, 86_400);
        let mut changed = sig.expose().as_bytes().to_vec();
        let at = at.index(changed.len());
        changed[at] = ALPHABET.as_str().as_bytes()[to.index(64)];
        let changed = String::from_utf8(changed).unwrap();
        prop_assume!(changed != sig.expose());
        if let Ok(document) = parse(&changed) {
            let whole = parse(sig.expose()).unwrap();
            let same = document.identifier == whole.identifier && document.sdkappid == whole.sdkappid
                && document.expires_at() == whole.expires_at() && document.userbuf.is_none();
            let verdict = document.verify(&key, app, identifier.as_str(), 1_700_000_000);
            prop_assert!(verdict.is_err() || same, "{document:?}");
        }
    }

    #[test]
    fn arbitrary_text_does_not_panic(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&text);
        let _ = parse(&ENGINE.encode(&bytes));
        let _ = parse(&pack(&bytes));
    }
}
