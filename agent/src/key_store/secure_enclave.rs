//! Keys in the Secure Enclave of a Mac, for a daemon: sealed bytes that this machine's enclave alone can open.
//!
//! What is kept of a key is a small JSON object: the enclave's bytes, and beside them the public half, so that a key
//! that loads as another one is noticed before it signs for this machine.

use assay_protocol::{
    PublicKey,
    machine::{KeyAccessibility, KeyStoreKind},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use super::{KeyStore, KeyStoreError, SealedKey};
use crate::shim::{self, Point, Report, SystemError};

/// The version of the object that this build writes, and the newest that it reads.
const VERSION: u32 = 1;
/// How often a call is made that fails in a way that may pass at once.
const MOST_TRIES: u32 = 3;

/// The Secure Enclave of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SecureEnclave {
    accessibility: KeyAccessibility,
}

/// What is kept of a key.
#[derive(Debug, Serialize, Deserialize)]
struct KeptKey {
    version: u32,
    accessibility: KeyAccessibility,
    public_key: String,
    sealed_key: String,
}

/// The same, parsed.
struct OpenedKey {
    accessibility: KeyAccessibility,
    public_key: Point,
    blob: Vec<u8>,
}

/// What an error of the system asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Locked,
    Foreign,
    Passing,
    Exhausted,
    Misused,
    Unknown,
}

impl SecureEnclave {
    /// Makes its keys with this accessibility; keys that exist keep theirs.
    #[must_use]
    pub fn new(accessibility: KeyAccessibility) -> Self {
        Self { accessibility }
    }
}

impl KeyStore for SecureEnclave {
    fn kind(&self) -> KeyStoreKind {
        KeyStoreKind::SecureEnclave
    }

    fn accessibility(&self, key: &SealedKey) -> Option<KeyAccessibility> {
        OpenedKey::parse(key).ok().map(|key| key.accessibility)
    }

    fn create(&self) -> Result<SealedKey, KeyStoreError> {
        if !shim::has_enclave() {
            return Err(KeyStoreError::Absent);
        }
        let created = tried(|| shim::create(self.accessibility))?;
        let kept = KeptKey {
            version: VERSION,
            accessibility: self.accessibility,
            public_key: STANDARD.encode(created.public_key),
            sealed_key: STANDARD.encode(created.blob),
        };
        let bytes = serde_json::to_vec(&kept).map_err(|error| KeyStoreError::Unavailable {
            reason: error.to_string(),
        })?;
        Ok(SealedKey::new(bytes))
    }

    fn public_key(&self, key: &SealedKey) -> Result<PublicKey, KeyStoreError> {
        let key = OpenedKey::parse(key)?;
        key.check(tried(|| shim::public_key(&key.blob))?)
    }

    fn sign(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
        let key = OpenedKey::parse(key)?;
        let signed = tried(|| shim::sign(&key.blob, message))?;
        key.check(signed.public_key)?;
        Ok(signed.der)
    }
}

impl OpenedKey {
    /// What does not parse is damaged on the disk: the enclave has not said that it refuses it.
    fn parse(key: &SealedKey) -> Result<Self, KeyStoreError> {
        let kept: KeptKey = serde_json::from_slice(key.expose()).map_err(|error| corrupt(&error.to_string()))?;
        if kept.version > VERSION {
            return Err(corrupt("it was written by a newer agent"));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| corrupt(&error.to_string()));
        let public_key = decode(&kept.public_key)?;
        Ok(Self {
            accessibility: kept.accessibility,
            public_key: public_key
                .try_into()
                .map_err(|_| corrupt("its public key has another length"))?,
            blob: decode(&kept.sealed_key)?,
        })
    }

    fn check(&self, loaded: Point) -> Result<PublicKey, KeyStoreError> {
        if loaded != self.public_key {
            return Err(KeyStoreError::Changed);
        }
        PublicKey::from_sec1(&loaded).map_err(|error| corrupt(&error.to_string()))
    }
}

/// Makes a call, and again at once where that may help. Each loads the key anew and releases it.
fn tried<T>(call: impl Fn() -> Result<T, Report>) -> Result<T, KeyStoreError> {
    let mut tries = 1;
    loop {
        match call() {
            Err(report) if Meaning::of(&report).may_pass_at_once() && tries < MOST_TRIES => tries += 1,
            result => return result.map_err(refused),
        }
    }
}

fn refused(report: Report) -> KeyStoreError {
    let reason = report.to_string();
    match Meaning::of(&report) {
        Meaning::Locked => KeyStoreError::Locked,
        Meaning::Foreign => KeyStoreError::Foreign { reason },
        Meaning::Exhausted => KeyStoreError::Exhausted { reason },
        Meaning::Misused => KeyStoreError::Misused { reason },
        Meaning::Passing | Meaning::Unknown => KeyStoreError::Unavailable { reason },
    }
}

impl Meaning {
    /// CryptoKit wraps what the system said in errors of its own, of which the outermost that is known decides. But one that
    /// passes counts wherever it is: a key that is given up for what would have passed is gone.
    fn of(report: &Report) -> Self {
        let meanings: Vec<Self> = report.0.iter().map(Self::of_error).collect();
        let passes = [Self::Locked, Self::Exhausted, Self::Passing];
        let passing = passes.into_iter().find(|meaning| meanings.contains(meaning));
        let known = meanings.iter().copied().find(|meaning| *meaning != Self::Unknown);
        passing.or(known).unwrap_or(Self::Unknown)
    }

    /// That a key is foreign ends it, and CryptoTokenKit is known to say so of failures of the moment: once is not enough.
    fn may_pass_at_once(self) -> bool {
        matches!(self, Self::Passing | Self::Foreign)
    }

    /// CryptoTokenKit's codes are those of TKError, the others of SecBase.h.
    fn of_error(error: &SystemError) -> Self {
        match (error.domain.as_str(), error.code) {
            // errSecInteractionNotAllowed
            ("NSOSStatusErrorDomain", -25308) => Self::Locked,
            // corruptedData
            ("CryptoTokenKit", -3) => Self::Foreign,
            // communicationError, objectNotFound, tokenNotFound, authenticationNeeded
            ("CryptoTokenKit", -2 | -6 | -7 | -9) => Self::Passing,
            // errSecInternal
            ("NSOSStatusErrorDomain", -26276) => Self::Exhausted,
            // errSecMissingEntitlement, errSecParam
            ("NSOSStatusErrorDomain", -34018 | -50) => Self::Misused,
            _ => Self::Unknown,
        }
    }
}

fn corrupt(reason: &str) -> KeyStoreError {
    KeyStoreError::Corrupt {
        reason: reason.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use rstest::rstest;

    use super::*;

    fn report(errors: &[(&str, i64)]) -> Report {
        let error = |(domain, code): &(&str, i64)| SystemError {
            domain: (*domain).to_owned(),
            code: *code,
            text: String::new(),
        };
        Report(errors.iter().map(error).collect())
    }

    #[rstest]
    #[case(&[("NSOSStatusErrorDomain", -25308)], Meaning::Locked)]
    #[case::nested(&[("CryptoKit.CryptoKitError", 3), ("NSOSStatusErrorDomain", -25308)], Meaning::Locked)]
    #[case(&[("CryptoTokenKit", -3)], Meaning::Foreign)]
    #[case(&[("CryptoTokenKit", -6)], Meaning::Passing)]
    #[case(&[("CryptoTokenKit", -7)], Meaning::Passing)]
    #[case(&[("CryptoTokenKit", -2)], Meaning::Passing)]
    #[case(&[("CryptoTokenKit", -9)], Meaning::Passing)]
    #[case(&[("NSOSStatusErrorDomain", -26276)], Meaning::Exhausted)]
    #[case(&[("NSOSStatusErrorDomain", -34018)], Meaning::Misused)]
    #[case(&[("NSOSStatusErrorDomain", -50)], Meaning::Misused)]
    #[case::of_another_domain(&[("NSOSStatusErrorDomain", -3)], Meaning::Unknown)]
    #[case::outermost_first(&[("CryptoTokenKit", -3), ("NSOSStatusErrorDomain", -50)], Meaning::Foreign)]
    #[case::locked_within(&[("CryptoTokenKit", -3), ("NSOSStatusErrorDomain", -25308)], Meaning::Locked)]
    #[case::exhausted_within(&[("CryptoTokenKit", -3), ("NSOSStatusErrorDomain", -26276)], Meaning::Exhausted)]
    #[case::passing_within(&[("CryptoTokenKit", -3), ("CryptoTokenKit", -2)], Meaning::Passing)]
    #[case(&[("NSCocoaErrorDomain", 4)], Meaning::Unknown)]
    fn an_error_of_the_system_has_one_meaning(#[case] errors: &[(&str, i64)], #[case] meaning: Meaning) {
        assert_eq!(Meaning::of(&report(errors)), meaning);
    }

    #[rstest]
    #[case::passing(("CryptoTokenKit", -7), MOST_TRIES)]
    #[case::foreign(("CryptoTokenKit", -3), MOST_TRIES)]
    #[case::exhausted(("NSOSStatusErrorDomain", -26276), 1)]
    fn only_what_may_pass_at_once_is_tried_at_once(#[case] error: (&str, i64), #[case] tries: u32) {
        let calls = Cell::new(0);
        let result = tried(|| {
            calls.set(calls.get() + 1);
            Err::<(), _>(report(&[error]))
        });
        assert!(result.is_err());
        assert_eq!(calls.get(), tries);
    }

    #[rstest]
    #[case("damaged")]
    #[case(r#"{"version":2,"accessibility":"always","public_key":"","sealed_key":""}"#)]
    #[case(r#"{"version":1,"accessibility":"always","public_key":"AAAA","sealed_key":"AAAA"}"#)]
    #[case(r#"{"version":1,"accessibility":"always","public_key":"!","sealed_key":"AAAA"}"#)]
    fn a_damaged_file_is_not_what_the_enclave_refuses(#[case] text: &str) {
        let store = SecureEnclave::new(KeyAccessibility::Always);
        let error = store.public_key(&SealedKey::new(text.into())).unwrap_err();
        assert!(matches!(error, KeyStoreError::Corrupt { .. }), "{error}");
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn without_an_enclave_no_key_is_made() {
        let error = SecureEnclave::new(KeyAccessibility::Always).create().unwrap_err();
        assert!(matches!(error, KeyStoreError::Absent), "{error}");
    }
}
