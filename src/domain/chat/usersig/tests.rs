use proptest::prelude::*;
use serde_json::Value;

use super::*;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../../../tests/data/usersig-vectors.json")).expect("the vectors are JSON")
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

/// Parse and verify as an emulator would, userbuf aside.
fn judge(sig: &str, item: &Value, at: u64) -> Result<(), UserSigError> {
    parse(sig)?.verify(&key(item), app(item), text(item, "identifier"), at)
}

#[test]
fn every_vector_is_minted_with_its_hmac_and_read_back() {
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
        let verdict = judge(text(item, "sig"), of, number(accepted, "verify_at"));
        assert_eq!(verdict, Ok(()), "{}", item["name"]);
    }
}

#[test]
fn every_rejected_entry_is_refused_with_its_code() {
    let vectors = vectors();
    let items = vectors["rejected"]["items"].as_array().unwrap();
    assert_eq!(items.len(), 12);
    for item in items {
        let verdict = judge(text(item, "sig"), item, number(item, "verify_at"));
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
fn what_is_not_a_document_is_malformed() {
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
fn a_small_text_cannot_grow_without_bound() {
    let bomb = pack(&vec![b' '; 10 * 1024 * 1024]);
    assert!(bomb.len() < 16 * 1024);
    assert!(matches!(parse(&bomb), Err(UserSigError::Malformed(_))));
    assert!(matches!(parse(&"A".repeat(1 << 20)), Err(UserSigError::Malformed(_))));
}

#[test]
fn bytes_after_the_stream_and_loose_padding_are_malformed() {
    let mut deflater = ZlibEncoder::new(Vec::new(), Compression::default());
    deflater.write_all(br#"{"TLS.sig":"a"}"#).unwrap();
    let mut whole = deflater.finish().unwrap();
    whole.push(0);
    assert_eq!(parse(&ENGINE.encode(&whole)).unwrap_err(), UserSigError::Malformed("something follows its end"));
    let padded = pack(br#"{"TLS.sig":"a"}"#);
    let bare = padded.trim_end_matches('_');
    assert_ne!(padded, bare, "choose a document whose base64 is padded");
    assert!(parse(bare).is_err());
    assert!(parse(&padded.replace('_', "=")).is_err());
}

#[test]
fn sums_of_absurd_times_stay_in_range() {
    let document =
        parse(&pack(br#"{"TLS.sig":"a","TLS.time":18446744073709551615,"TLS.expire":18446744073709551615}"#)).unwrap();
    assert_eq!(document.expires_at(), u64::MAX);
}

#[test]
fn nothing_secret_is_printed() {
    let (key, who) = (SecretKey::new("k").unwrap(), "administrator".parse().unwrap());
    let sig = mint(&key, SdkAppId::new(1).unwrap(), &who, 1, 1);
    let document = parse(sig.expose()).unwrap();
    let printed = format!("{sig:?} {document:?}");
    assert!(!printed.contains(sig.expose()) && !printed.contains(&*document.sig), "{printed}");
}

prop_compose! {
    fn identifiers()(text in "[ -~\u{a1}-\u{ff}]{1,32}".prop_filter("32 bytes", |text| text.len() <= 32)) -> Identifier {
        text.parse().unwrap()
    }
}

proptest! {
    #[test]
    fn what_was_minted_verifies_exactly_while_it_lives(
        key in "[ -~]{1,80}", app in 1u32.., who in identifiers(),
        issued_at in 0u64..1 << 40, lifetime in 0u64..1 << 40, late in 1u64..1 << 40,
    ) {
        let (key, app) = (SecretKey::new(&key).unwrap(), SdkAppId::new(app).unwrap());
        let document = parse(mint(&key, app, &who, issued_at, lifetime).expose()).unwrap();
        let end = issued_at + lifetime;
        prop_assert_eq!(document.verify(&key, app, who.as_str(), issued_at), Ok(()));
        prop_assert_eq!(document.verify(&key, app, who.as_str(), end), Ok(()));
        prop_assert_eq!(
            document.verify(&key, app, who.as_str(), end + late),
            Err(UserSigError::Expired { at: end })
        );
    }

    /// Deflate has a few bits that mean nothing (those that fill its last byte), so a changed text
    /// may still hold the very same document. What may never happen is another document.
    #[test]
    fn a_changed_character_never_makes_another_document_that_holds(
        who in identifiers(), at in any::<prop::sample::Index>(), to in any::<prop::sample::Index>(),
    ) {
        let (key, app) = (SecretKey::new("0123456789abcdef").unwrap(), SdkAppId::new(1400000001).unwrap());
        let sig = mint(&key, app, &who, 1_700_000_000, 86_400);
        let mut changed = sig.expose().as_bytes().to_vec();
        let at = at.index(changed.len());
        changed[at] = ALPHABET.as_str().as_bytes()[to.index(64)];
        let changed = String::from_utf8(changed).unwrap();
        prop_assume!(changed != sig.expose());
        if let Ok(document) = parse(&changed) {
            let whole = parse(sig.expose()).unwrap();
            let same = document.identifier == whole.identifier && document.sdkappid == whole.sdkappid
                && document.expires_at() == whole.expires_at() && document.userbuf.is_none();
            let verdict = document.verify(&key, app, who.as_str(), 1_700_000_000);
            prop_assert!(verdict.is_err() || same, "{document:?}");
        }
    }

    #[test]
    fn no_text_at_all_makes_it_panic(text in ".{0,200}", bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&text);
        let _ = parse(&ENGINE.encode(&bytes));
        let _ = parse(&pack(&bytes));
    }
}
