//! Keys in the Secure Enclave of a Mac: sealed bytes that only the enclave of this machine can use.
//!
//! A key is stored as a small JSON object: the sealed bytes and the public key. If the sealed bytes load as another
//! key, the comparison with the public key fails before that key signs anything.

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
/// Maximum attempts for a call that fails with a possibly temporary error.
const MAX_ATTEMPTS: u32 = 3;

/// The Secure Enclave of this machine.
#[derive(Debug, Clone, Copy)]
pub struct SecureEnclave {
    accessibility: KeyAccessibility,
}

/// A key as it is stored.
#[derive(Debug, Serialize, Deserialize)]
struct StoredKey {
    version: u32,
    accessibility: KeyAccessibility,
    public_key: String,
    sealed_key: String,
}

/// A parsed key.
struct OpenedKey {
    accessibility: KeyAccessibility,
    public_key: Point,
    blob: Vec<u8>,
}

/// The meaning of a system error for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Locked,
    Foreign,
    Temporary,
    Exhausted,
    Misused,
    Unknown,
}

impl SecureEnclave {
    /// New keys get this accessibility. Existing keys keep theirs.
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
        let created = with_retries(|| shim::create(self.accessibility))?;
        let stored = StoredKey {
            version: VERSION,
            accessibility: self.accessibility,
            public_key: STANDARD.encode(created.public_key),
            sealed_key: STANDARD.encode(created.blob),
        };
        let bytes = serde_json::to_vec(&stored).map_err(|error| KeyStoreError::Unavailable {
            reason: error.to_string(),
        })?;
        Ok(SealedKey::new(bytes))
    }

    fn public_key(&self, key: &SealedKey) -> Result<PublicKey, KeyStoreError> {
        let key = OpenedKey::parse(key)?;
        key.check(with_retries(|| shim::public_key(&key.blob))?)
    }

    fn sign(&self, key: &SealedKey, message: &[u8]) -> Result<Vec<u8>, KeyStoreError> {
        let key = OpenedKey::parse(key)?;
        let signed = with_retries(|| shim::sign(&key.blob, message))?;
        key.check(signed.public_key)?;
        Ok(signed.der)
    }
}

impl OpenedKey {
    /// A parse error means that the file is damaged. It does not mean that the enclave rejects the key.
    fn parse(key: &SealedKey) -> Result<Self, KeyStoreError> {
        let stored: StoredKey = serde_json::from_slice(key.expose()).map_err(|error| corrupt(&error.to_string()))?;
        if stored.version > VERSION {
            return Err(corrupt("a newer agent wrote it"));
        }
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| corrupt(&error.to_string()));
        let public_key = decode(&stored.public_key)?;
        Ok(Self {
            accessibility: stored.accessibility,
            public_key: public_key
                .try_into()
                .map_err(|_| corrupt("the public key has the wrong length"))?,
            blob: decode(&stored.sealed_key)?,
        })
    }

    fn check(&self, loaded: Point) -> Result<PublicKey, KeyStoreError> {
        if loaded != self.public_key {
            return Err(KeyStoreError::Changed);
        }
        PublicKey::from_sec1(&loaded).map_err(|error| corrupt(&error.to_string()))
    }
}

/// Makes a call, and repeats it if the error may be temporary. Each attempt loads and releases the key.
fn with_retries<T>(call: impl Fn() -> Result<T, Report>) -> Result<T, KeyStoreError> {
    let mut tries = 1;
    loop {
        match call() {
            Err(report) if Meaning::of(&report).is_retried() && tries < MAX_ATTEMPTS => tries += 1,
            result => return result.map_err(to_error),
        }
    }
}

fn to_error(report: Report) -> KeyStoreError {
    let reason = report.to_string();
    match Meaning::of(&report) {
        Meaning::Locked => KeyStoreError::Locked,
        Meaning::Foreign => KeyStoreError::Foreign { reason },
        Meaning::Exhausted => KeyStoreError::Exhausted { reason },
        Meaning::Misused => KeyStoreError::Misused { reason },
        Meaning::Temporary | Meaning::Unknown => KeyStoreError::Unavailable { reason },
    }
}

impl Meaning {
    /// CryptoKit wraps system errors in its own. The outermost known error decides, unless any of them is temporary: a
    /// key that is abandoned because of a temporary error is lost.
    fn of(report: &Report) -> Self {
        let meanings: Vec<Self> = report.0.iter().map(Self::of_error).collect();
        let passes = [Self::Locked, Self::Exhausted, Self::Temporary];
        let passing = passes.into_iter().find(|meaning| meanings.contains(meaning));
        let known = meanings.iter().copied().find(|meaning| *meaning != Self::Unknown);
        passing.or(known).unwrap_or(Self::Unknown)
    }

    /// CryptoTokenKit also reports temporary failures as `Foreign`, which would end the key. One report is therefore
    /// not enough.
    fn is_retried(self) -> bool {
        matches!(self, Self::Temporary | Self::Foreign)
    }

    /// CryptoTokenKit's codes are those of TKError. The others are from SecBase.h.
    fn of_error(error: &SystemError) -> Self {
        match (error.domain.as_str(), error.code) {
            // errSecInteractionNotAllowed
            ("NSOSStatusErrorDomain", -25308) => Self::Locked,
            // corruptedData
            ("CryptoTokenKit", -3) => Self::Foreign,
            // communicationError, objectNotFound, tokenNotFound, authenticationNeeded
            ("CryptoTokenKit", -2 | -6 | -7 | -9) => Self::Temporary,
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
    #[case(&[("CryptoTokenKit", -6)], Meaning::Temporary)]
    #[case(&[("CryptoTokenKit", -7)], Meaning::Temporary)]
    #[case(&[("CryptoTokenKit", -2)], Meaning::Temporary)]
    #[case(&[("CryptoTokenKit", -9)], Meaning::Temporary)]
    #[case(&[("NSOSStatusErrorDomain", -26276)], Meaning::Exhausted)]
    #[case(&[("NSOSStatusErrorDomain", -34018)], Meaning::Misused)]
    #[case(&[("NSOSStatusErrorDomain", -50)], Meaning::Misused)]
    #[case::of_another_domain(&[("NSOSStatusErrorDomain", -3)], Meaning::Unknown)]
    #[case::outermost_first(&[("CryptoTokenKit", -3), ("NSOSStatusErrorDomain", -50)], Meaning::Foreign)]
    #[case::locked_within(&[("CryptoTokenKit", -3), ("NSOSStatusErrorDomain", -25308)], Meaning::Locked)]
    #[case::exhausted_within(&[("CryptoTokenKit", -3), ("NSOSStatusErrorDomain", -26276)], Meaning::Exhausted)]
    #[case::passing_within(&[("CryptoTokenKit", -3), ("CryptoTokenKit", -2)], Meaning::Temporary)]
    #[case(&[("NSCocoaErrorDomain", 4)], Meaning::Unknown)]
    fn each_system_error_has_one_meaning(#[case] errors: &[(&str, i64)], #[case] meaning: Meaning) {
        assert_eq!(Meaning::of(&report(errors)), meaning);
    }

    #[rstest]
    #[case::passing(("CryptoTokenKit", -7), MAX_ATTEMPTS)]
    #[case::foreign(("CryptoTokenKit", -3), MAX_ATTEMPTS)]
    #[case::exhausted(("NSOSStatusErrorDomain", -26276), 1)]
    fn only_possibly_temporary_errors_are_retried(#[case] error: (&str, i64), #[case] tries: u32) {
        let calls = Cell::new(0);
        let result = with_retries(|| {
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
    fn a_damaged_file_is_not_a_rejection_by_the_enclave(#[case] text: &str) {
        let store = SecureEnclave::new(KeyAccessibility::Always);
        let error = store.public_key(&SealedKey::new(text.into())).unwrap_err();
        assert!(matches!(error, KeyStoreError::Corrupt { .. }), "{error}");
    }

    #[cfg(not(target_os = "macos"))]
    #[test]
    fn without_an_enclave_no_key_is_created() {
        let error = SecureEnclave::new(KeyAccessibility::Always).create().unwrap_err();
        assert!(matches!(error, KeyStoreError::Absent), "{error}");
    }
}
