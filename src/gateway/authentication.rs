//! What a request shows of its caller: it gathers the proofs, and [`Proofs::caller`] decides.
//!
//! A wrong proof costs the client that shows it, and no other: a UserSig is at most 8 KiB, is inflated to at most 8 KiB,
//! and is never remembered unless it is valid.

use std::collections::HashMap;

use http::HeaderMap;
use parking_lot::RwLock;

use super::directory::parse_sdkappid;
use super::query::Query;
use crate::clock;
use crate::config;
use crate::domain::caller::{CertificateName, TokenDigest};
use crate::domain::chat::app::SecretKey;
use crate::domain::chat::usersig;
use crate::domain::identity::{CallerIndex, NamedCallers, Proofs, SignatureError, TokenError, Unidentified};
use crate::domain::verified_signatures::{SignatureHasher, VerifiedSignatures};
use crate::error::GatewayError;
use crate::http::bearer::{NoBearerToken, bearer_token};
use crate::http::peer::{ConnectionInfo, Peer};

/// The proofs of all configured callers. It belongs to one configuration, so a reload forgets the verified UserSigs.
#[derive(Debug)]
pub(super) struct Authenticator {
    tokens: Vec<TokenDigest>,
    /// The callers of `tokens`, in the same order.
    token_owners: Vec<CallerIndex>,
    certificates: HashMap<CertificateName, CallerIndex>,
    users: HashMap<u32, CallerIndex>,
    /// Callers with an SDK that signs, by their names, which it signs as.
    signers: HashMap<Box<str>, Signer>,
    hasher: SignatureHasher,
}

/// A caller with an SDK that signs.
#[derive(Debug)]
struct Signer {
    caller: CallerIndex,
    key: SecretKey,
    /// Locked, because all threads share it. Requests only read it, unless their UserSig is new.
    verified: RwLock<VerifiedSignatures>,
}

impl Authenticator {
    /// Reads the proofs of the configured callers.
    ///
    /// # Errors
    /// If the operating system returns no random numbers.
    pub(super) fn new(callers: &[config::Caller]) -> Result<Self, getrandom::Error> {
        let mut all = Self {
            tokens: Vec::new(),
            token_owners: Vec::new(),
            certificates: HashMap::new(),
            users: HashMap::new(),
            signers: HashMap::new(),
            hasher: SignatureHasher::new(&clock::os_random()?),
        };
        for (config, caller) in callers.iter().zip((0..).map(CallerIndex)) {
            all.tokens.extend(&config.tokens);
            all.token_owners.extend(config.tokens.iter().map(|_| caller));
            all.certificates.extend(config.certificates.iter().map(|name| (name.clone(), caller)));
            all.users.extend(config.unix_uids.iter().map(|uid| (*uid, caller)));
            if let Some(key) = config.usersig_key.clone() {
                let signer = Signer { caller, key, verified: RwLock::default() };
                all.signers.insert(config.name.as_str().into(), signer);
            }
        }
        Ok(all)
    }

    /// Returns the caller that a request shows.
    ///
    /// # Errors
    /// `unauthenticated`.
    pub(super) fn identify(
        &self,
        headers: &HeaderMap,
        query: &Query<'_>,
        connection: &ConnectionInfo,
    ) -> Result<CallerIndex, GatewayError> {
        let proofs = Proofs {
            token: self.check_token(headers),
            certificate: self.owner_of_certificate(connection),
            user: self.owner_of_process(connection),
            signature: self.check_signature(query),
        };
        proofs.caller().map_err(|error| match error {
            Unidentified::NoProof => GatewayError::Unauthenticated(NO_PROOF),
            Unidentified::Token(TokenError::Malformed) => GatewayError::Unauthenticated(MALFORMED_TOKEN),
            Unidentified::Token(TokenError::Unknown) => GatewayError::Unauthenticated(UNKNOWN_TOKEN),
            Unidentified::Conflict => GatewayError::Unauthenticated(CONFLICT),
            Unidentified::Signature(error) => GatewayError::InvalidUserSig(error),
        })
    }

    fn check_token(&self, headers: &HeaderMap) -> Option<Result<CallerIndex, TokenError>> {
        let token = match bearer_token(headers) {
            Ok(token) => token?,
            Err(NoBearerToken) => return Some(Err(TokenError::Malformed)),
        };
        let found = TokenDigest::of(token).find_in(&self.tokens);
        Some(found.map(|index| self.token_owners[index]).ok_or(TokenError::Unknown))
    }

    fn owner_of_certificate(&self, connection: &ConnectionInfo) -> NamedCallers {
        let names = connection.certificate.iter().flat_map(|names| &**names);
        let owners = names.filter_map(|name| self.certificates.get(name));
        owners.fold(NamedCallers::None, |named, owner| named.and(*owner))
    }

    fn owner_of_process(&self, connection: &ConnectionInfo) -> Option<CallerIndex> {
        match connection.peer {
            Peer::Unix { uid } => self.users.get(&uid?).copied(),
            Peer::Tcp { .. } => None,
        }
    }

    fn check_signature(&self, query: &Query<'_>) -> Option<Result<CallerIndex, SignatureError>> {
        if self.signers.is_empty() || !query.usersig.is_present() {
            return None;
        }
        let Some(signer) = query.identifier.iter().find_map(|name| self.signers.get(name)) else {
            return Some(Err(SignatureError::UnknownIdentifier));
        };
        if query.identifier.single().is_none() {
            return Some(Err(SignatureError::WrongIdentifier));
        }
        Some(self.verify(signer, query).map(|()| signer.caller))
    }

    /// Verifies the UserSig of a query, which names this signer as its identifier.
    fn verify(&self, signer: &Signer, query: &Query<'_>) -> Result<(), SignatureError> {
        let usersig = query.usersig.single().ok_or(SignatureError::Malformed)?;
        let app = query.sdkappid.single().and_then(parse_sdkappid).ok_or(SignatureError::WrongApp)?;
        let (digest, now) = (self.hasher.digest(app, usersig), clock::unix_now().as_secs());
        if signer.verified.read().contains(digest, now) {
            return Ok(());
        }
        let document = usersig::parse(usersig)?;
        document.verify(&signer.key, app, query.identifier.single().unwrap_or_default(), now)?;
        signer.verified.write().insert(digest, document.expires_at(), now);
        Ok(())
    }
}

const NO_PROOF: &str =
    "the request shows no caller; send the token, usersig, or client certificate of a [[caller]], or run as its user";
const MALFORMED_TOKEN: &str = "malformed or repeated token; send one header \"Authorization: Bearer TOKEN\"";
const UNKNOWN_TOKEN: &str = "unknown token; compare it with the files that token_file names";
const CONFLICT: &str = "token, usersig, client certificate, and user name different callers; show those of one caller";

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use http::header::AUTHORIZATION;

    use super::*;
    use crate::config::{Env, load};
    use crate::domain::caller::QueueKey;
    use crate::domain::chat::app::{Identifier, SdkAppId};
    use crate::domain::verified_signatures::REMEMBERED_MAX;

    const SECRETS: [(&str, &str); 4] = [
        ("FEED", "token-of-feed-1"),
        ("FEED_NEXT", "token-of-feed-2"),
        ("CHAT", "token-of-the-chat"),
        ("SDK_KEY", "key-of-the-sdk"),
    ];

    /// `feed` has two tokens and a user, `chat` a token and another user, `sdk` a key.
    fn authenticator() -> Authenticator {
        let text = "[[app]]\nname = 'main'\nsdkappid = 7\nregion = 'tokyo'\nsecret_key_env = 'CHAT'\n\
            [server]\nlisten = 'unix:/run/x.sock'\n\
            [[caller]]\nname = 'feed'\ntoken_env = ['FEED', 'FEED_NEXT']\nunix_uids = [1, 2]\n\
            [[caller]]\nname = 'chat'\ntoken_env = 'CHAT'\nunix_uids = [3]\n\
            [[caller]]\nname = 'sdk'\nusersig_key_env = 'SDK_KEY'\n";
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("c.toml");
        std::fs::write(&path, text).expect("written");
        let secrets = SECRETS.map(|(name, text)| (name, pad(text)));
        let env: Env = secrets.iter().map(|(name, text)| (*name, &**text)).collect();
        let config = load(&path, &env).unwrap_or_else(|problems| panic!("{problems}"));
        Authenticator::new(&config.callers).expect("random numbers")
    }

    fn pad(text: &str) -> String {
        format!("{text}-of-16-or-more")
    }

    fn sign(key: &str, app: u32, identifier: &str, lifetime: u64) -> String {
        let (key, app) = (SecretKey::new(key).expect("a key"), SdkAppId::new(app).expect("not 0"));
        let identifier: Identifier = identifier.parse().expect("an identifier");
        usersig::mint(&key, app, &identifier, clock::unix_now().as_secs(), lifetime).expose().to_owned()
    }

    /// Identifies the caller of a request with this token and query from this user.
    fn identify(
        all: &Authenticator,
        token: Option<&str>,
        query: &str,
        uid: Option<u32>,
    ) -> Result<usize, (i64, String)> {
        let mut headers = HeaderMap::new();
        if let Some(token) = token {
            headers.insert(AUTHORIZATION, HeaderValue::try_from(format!("Bearer {}", pad(token))).expect("visible"));
        }
        let connection = ConnectionInfo::plain(Peer::Unix { uid }, QueueKey::SELF, 0);
        let found = all.identify(&headers, &Query::read(query), &connection);
        found.map(|caller| caller.0).map_err(|error| (error.wire().code, error.to_string()))
    }

    #[test]
    fn each_token_and_user_names_its_caller() {
        let all = authenticator();
        for (token, caller) in [("token-of-feed-1", 0), ("token-of-feed-2", 0), ("token-of-the-chat", 1)] {
            assert_eq!(identify(&all, Some(token), "", None), Ok(caller), "{token}");
        }
        for (uid, caller) in [(1, 0), (2, 0), (3, 1)] {
            assert_eq!(identify(&all, None, "", Some(uid)), Ok(caller), "{uid}");
        }
        assert_eq!(identify(&all, Some("token-of-feed-2"), "usersig=old&identifier=admin", Some(1)), Ok(0));
        for (token, uid, message) in [
            (None, None, NO_PROOF),
            (None, Some(4), NO_PROOF),
            (Some("token-of-feed-3"), Some(1), UNKNOWN_TOKEN),
            (Some("token-of-feed-1"), Some(3), CONFLICT),
        ] {
            assert_eq!(identify(&all, token, "", uid), Err((129_401, message.to_owned())), "{token:?} {uid:?}");
        }
    }

    #[test]
    fn names_of_a_certificate_name_their_callers() {
        let mut all = authenticator();
        let name = |text: &str| text.parse::<CertificateName>().expect(text);
        all.certificates.extend([(name("spiffe://a"), CallerIndex(0)), (name("b.test"), CallerIndex(1))]);
        let named = |names: &[&str]| {
            let mut connection = ConnectionInfo::plain(Peer::Unix { uid: None }, QueueKey::SELF, 0);
            connection.certificate = Some(names.iter().map(|text| name(text)).collect::<Vec<_>>().into());
            all.owner_of_certificate(&connection)
        };
        assert_eq!(named(&[]), NamedCallers::None);
        assert_eq!(named(&["c.test", "spiffe://b"]), NamedCallers::None);
        assert_eq!(named(&["c.test", "spiffe://a", "spiffe://a"]), NamedCallers::One(CallerIndex(0)));
        assert_eq!(named(&["b.test"]), NamedCallers::One(CallerIndex(1)));
        assert_eq!(named(&["b.test", "spiffe://a"]), NamedCallers::Several);
    }

    #[test]
    fn usersig_is_verified_in_full_and_each_error_has_its_code() {
        let (all, key) = (authenticator(), pad("key-of-the-sdk"));
        let good = sign(&key, 7, "sdk", 100);
        let with = |query: &str| identify(&all, None, query, None).map_err(|(code, _)| code);
        let repeated = format!("sdkappid=7&identifier=sdk&usersig={good}");
        for _ in 0..2 {
            assert_eq!(with(&repeated), Ok(2));
            assert_eq!(with(&format!("usersig={}&SDKAPPID=7&identifier=sdk", good.replace('*', "%2A"))), Ok(2));
            for (query, code) in [
                (format!("sdkappid=7&identifier=sdk&usersig={}", sign(&key, 8, "sdk", 100)), 70014),
                (format!("sdkappid=8&identifier=sdk&usersig={good}"), 70014),
                (format!("identifier=sdk&usersig={good}"), 70014),
                (format!("sdkappid=7&sdkappid=7&identifier=sdk&usersig={good}"), 70014),
                (format!("sdkappid=7&identifier=sdk&usersig={}", sign(&key, 7, "feed", 100)), 70013),
                (format!("sdkappid=7&identifier=feed&usersig={good}"), 70013),
                (format!("sdkappid=7&usersig={good}"), 70013),
                (format!("sdkappid=7&identifier=sdk&identifier=sdk&usersig={good}"), 70013),
                (format!("sdkappid=7&identifier=sdk&usersig={}", sign("another", 7, "sdk", 100)), 70009),
                (format!("sdkappid=7&identifier=sdk&usersig={}", &good[1..]), 70003),
                (format!("sdkappid=7&identifier=sdk&usersig={good}&usersig={good}"), 70003),
                ("sdkappid=7&identifier=sdk&usersig=".to_owned(), 70003),
                ("sdkappid=7&identifier=sdk".to_owned(), 129_401),
            ] {
                assert_eq!(with(&query), Err(code), "{query}");
            }
        }
        let remembered = |all: &Authenticator| all.signers["sdk"].verified.read().len();
        assert_eq!(remembered(&all), 1, "only the valid one");
        assert_eq!(remembered(&authenticator()), 0, "a reload forgets it");
    }

    #[test]
    fn wrong_signatures_evict_no_valid_one() {
        let (all, key) = (authenticator(), pad("key-of-the-sdk"));
        let query = |sig: &str| format!("sdkappid=7&identifier=sdk&usersig={sig}");
        assert_eq!(identify(&all, None, &query(&sign(&key, 7, "sdk", 100)), None), Ok(2));
        for lifetime in 0..2 * REMEMBERED_MAX as u64 {
            let wrong = query(&sign("another", 7, "sdk", 1000 + lifetime));
            assert_eq!(identify(&all, None, &wrong, None).map_err(|(code, _)| code), Err(70009));
        }
        assert_eq!(all.signers["sdk"].verified.read().len(), 1);
    }

    #[test]
    fn leftover_usersig_counts_only_without_another_proof() {
        let all = authenticator();
        let leftover = "sdkappid=7&identifier=administrator&usersig=eJxx";
        let code = |result: Result<usize, (i64, String)>| result.map_err(|(code, _)| code);
        assert_eq!(code(identify(&all, None, leftover, None)), Err(70013));
        assert_eq!(code(identify(&all, None, leftover, Some(9))), Err(70013), "a user without a caller is no proof");
        assert_eq!(code(identify(&all, Some("token-of-the-chat"), leftover, None)), Ok(1));
        assert_eq!(code(identify(&all, None, leftover, Some(3))), Ok(1));
        let wrong = "sdkappid=7&identifier=sdk&usersig=eJxx";
        assert_eq!(code(identify(&all, Some("token-of-the-chat"), wrong, None)), Err(70003));
        let other = format!("sdkappid=7&identifier=sdk&usersig={}", sign(&pad("key-of-the-sdk"), 7, "sdk", 100));
        assert_eq!(identify(&all, Some("token-of-the-chat"), &other, None), Err((129_401, CONFLICT.to_owned())));
    }
}
