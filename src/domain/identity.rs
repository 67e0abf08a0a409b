//! Which caller a request comes from: one decision over all proofs that the request shows.
//!
//! - Nothing that is shown may be wrong, and all proofs must name the same caller.
//! - A client certificate and a Unix user that belong to no caller prove nothing, and do no harm: every connection of
//!   their kind has one.
//! - A UserSig for an identifier that is no caller's is what a client sends that used to sign for Chat. It does no harm
//!   next to another proof. Alone, it is a wrong proof, so that the client learns what is wrong with it.

use super::chat::usersig::UserSigError;

/// A configured caller, by its position in the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CallerIndex(pub usize);

/// The callers that some proofs name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NamedCallers {
    /// None.
    None,
    /// One, by any number of proofs.
    One(CallerIndex),
    /// Several, so none of them.
    Several,
}

impl NamedCallers {
    /// Adds a proof that names `caller`.
    #[must_use]
    pub fn and(self, caller: CallerIndex) -> Self {
        match self {
            NamedCallers::None => NamedCallers::One(caller),
            NamedCallers::One(known) if known == caller => self,
            NamedCallers::One(_) | NamedCallers::Several => NamedCallers::Several,
        }
    }
}

/// Why a bearer token is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenError {
    /// `Authorization` is repeated, or is not `Bearer TOKEN`.
    Malformed,
    /// No caller has this token.
    Unknown,
}

/// Why a UserSig of a caller's own SDK is wrong. The texts contain nothing of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Its lifetime has ended.
    #[error("the usersig has expired; sign again, and compare the clocks of both machines")]
    Expired,
    /// It cannot be decoded, or the query repeats it.
    #[error("the usersig is malformed or repeated; send it once, as Tencent's libraries return it")]
    Malformed,
    /// The HMAC does not match.
    #[error("the usersig was made with another key; sign with the key in the caller's usersig_key_file")]
    WrongKey,
    /// It was made for another identifier than the query names.
    #[error("the usersig was made for another identifier; sign for the identifier in the query")]
    WrongIdentifier,
    /// No caller with a key has this name.
    #[error("identifier names no caller; sign as the name of a [[caller]] with usersig_key_file")]
    UnknownIdentifier,
    /// It was made for another app than the query names.
    #[error("the usersig was made for another app; send one sdkappid in the query, and sign for it")]
    WrongApp,
}

impl SignatureError {
    /// Returns the error code of Chat (vendor page "Error Codes", 1047/34348).
    pub const fn code(self) -> i64 {
        match self {
            SignatureError::Expired => 70001,
            SignatureError::Malformed => 70003,
            SignatureError::WrongKey => 70009,
            SignatureError::WrongIdentifier | SignatureError::UnknownIdentifier => 70013,
            SignatureError::WrongApp => 70014,
        }
    }
}

impl From<UserSigError> for SignatureError {
    fn from(error: UserSigError) -> Self {
        match error {
            UserSigError::Expired { .. } => SignatureError::Expired,
            UserSigError::Empty | UserSigError::Malformed(_) => SignatureError::Malformed,
            UserSigError::WrongKey | UserSigError::Userbuf => SignatureError::WrongKey,
            UserSigError::WrongIdentifier => SignatureError::WrongIdentifier,
            UserSigError::WrongApp => SignatureError::WrongApp,
        }
    }
}

/// What a request shows of its caller. `None` means that it does not show a proof of this kind.
#[derive(Debug, Clone, Copy)]
pub struct Proofs {
    /// The bearer token.
    pub token: Option<Result<CallerIndex, TokenError>>,
    /// The names in the client certificate, which TLS has verified.
    pub certificate: NamedCallers,
    /// The user of the process behind a Unix socket.
    pub user: Option<CallerIndex>,
    /// The UserSig in the query. Always `None` if no caller has a key.
    pub signature: Option<Result<CallerIndex, SignatureError>>,
}

/// Why no caller is recognized.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unidentified {
    /// Nothing is shown.
    NoProof,
    /// The token is wrong.
    Token(TokenError),
    /// The UserSig is wrong.
    Signature(SignatureError),
    /// The proofs name different callers.
    Conflict,
}

impl Proofs {
    /// Decides which caller the request comes from.
    ///
    /// # Errors
    /// If a proof is wrong, if there is none, or if they name different callers.
    pub fn caller(&self) -> Result<CallerIndex, Unidentified> {
        let mut named = self.certificate;
        if let Some(token) = self.token {
            named = named.and(token.map_err(Unidentified::Token)?);
        }
        if let Some(user) = self.user {
            named = named.and(user);
        }
        match self.signature {
            Some(Ok(caller)) => named = named.and(caller),
            Some(Err(SignatureError::UnknownIdentifier)) if named != NamedCallers::None => {}
            Some(Err(error)) => return Err(Unidentified::Signature(error)),
            None => {}
        }
        match named {
            NamedCallers::None => Err(Unidentified::NoProof),
            NamedCallers::One(caller) => Ok(caller),
            NamedCallers::Several => Err(Unidentified::Conflict),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const A: CallerIndex = CallerIndex(0);
    const B: CallerIndex = CallerIndex(1);

    /// All values of each kind of proof.
    fn all_proofs() -> Vec<Proofs> {
        let wrong_token = [TokenError::Malformed, TokenError::Unknown].map(|error| Some(Err(error)));
        let tokens = [None, Some(Ok(A)), Some(Ok(B))].into_iter().chain(wrong_token);
        let certificates = [NamedCallers::None, NamedCallers::One(A), NamedCallers::One(B), NamedCallers::Several];
        let users = [None, Some(A), Some(B)];
        let wrong_signature = [
            SignatureError::Expired,
            SignatureError::Malformed,
            SignatureError::WrongKey,
            SignatureError::WrongIdentifier,
            SignatureError::UnknownIdentifier,
            SignatureError::WrongApp,
        ];
        let signatures = [None, Some(Ok(A)), Some(Ok(B))];
        let signatures: Vec<_> = signatures.into_iter().chain(wrong_signature.map(|error| Some(Err(error)))).collect();
        let mut all = Vec::new();
        for token in tokens {
            for certificate in certificates {
                for user in users {
                    let proofs = |signature: &_| Proofs { token, certificate, user, signature: *signature };
                    all.extend(signatures.iter().map(proofs));
                }
            }
        }
        all
    }

    /// The rules in other words: the callers that all proofs name, and the errors of those that are wrong.
    fn expected(proofs: &Proofs) -> Result<CallerIndex, Vec<Unidentified>> {
        let mut callers: BTreeSet<usize> = BTreeSet::new();
        let mut wrong = Vec::new();
        match proofs.certificate {
            NamedCallers::None => {}
            NamedCallers::One(caller) => drop(callers.insert(caller.0)),
            NamedCallers::Several => callers.extend([A.0, B.0]),
        }
        match proofs.token {
            None => {}
            Some(Ok(caller)) => drop(callers.insert(caller.0)),
            Some(Err(error)) => wrong.push(Unidentified::Token(error)),
        }
        callers.extend(proofs.user.map(|caller| caller.0));
        let shows_another = !callers.is_empty() || proofs.token.is_some();
        match proofs.signature {
            None => {}
            Some(Ok(caller)) => drop(callers.insert(caller.0)),
            Some(Err(SignatureError::UnknownIdentifier)) if shows_another => {}
            Some(Err(error)) => wrong.push(Unidentified::Signature(error)),
        }
        match (wrong.is_empty(), callers.len()) {
            (false, _) => Err(wrong),
            (true, 0) => Err(vec![Unidentified::NoProof]),
            (true, 1) => Ok(CallerIndex(*callers.first().expect("one"))),
            (true, _) => Err(vec![Unidentified::Conflict]),
        }
    }

    #[test]
    fn every_combination_of_proofs_follows_the_rules() {
        let all = all_proofs();
        assert_eq!(all.len(), 5 * 4 * 3 * 9);
        for proofs in &all {
            match (proofs.caller(), expected(proofs)) {
                (Ok(caller), Ok(expected)) => assert_eq!(caller, expected, "{proofs:?}"),
                (Err(error), Err(expected)) => assert!(expected.contains(&error), "{proofs:?}: {error:?}"),
                (decided, expected) => panic!("{proofs:?}: {decided:?} instead of {expected:?}"),
            }
        }
        let identified = all.iter().filter(|proofs| proofs.caller().is_ok()).count();
        // For each caller: any of the three other proofs, all for it, and with one of them also a leftover UserSig; or
        // the UserSig alone.
        assert_eq!(identified, 2 * (7 * 3 + 1));
    }

    #[test]
    fn each_error_of_a_signature_has_the_code_of_chat() {
        for (error, code) in [
            (UserSigError::Expired { at: 1 }, 70001),
            (UserSigError::Empty, 70003),
            (UserSigError::Malformed("x"), 70003),
            (UserSigError::WrongKey, 70009),
            (UserSigError::Userbuf, 70009),
            (UserSigError::WrongIdentifier, 70013),
            (UserSigError::WrongApp, 70014),
        ] {
            assert_eq!(SignatureError::from(error).code(), code, "{error}");
        }
        assert_eq!(SignatureError::UnknownIdentifier.code(), 70013);
    }
}
