//! Golden vectors that other software made, and untrusted bytes.

use std::{collections::HashSet, sync::LazyLock};

use assay_protocol::{
    PublicKey,
    attestation::{AttestationRefusal, FreshnessCode},
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use pem::Pem;
use proptest::{collection::vec, prelude::*, sample::Index};
use serde::Deserialize;
use serde_json::Value;
use time::macros::datetime;

use super::*;

#[derive(Deserialize)]
struct Corpus {
    root: String,
    agent_public_key_spki: String,
    serial_number: String,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    x5c: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    at: OffsetDateTime,
    path_valid: bool,
    binding: Option<String>,
    claims: Option<Value>,
}

const LONG_AGO: OffsetDateTime = datetime!(2000-01-01 0:00 UTC);
/// When every certificate of the good chains is valid.
const AT: OffsetDateTime = datetime!(2026-05-10 00:00 UTC);

static CORPUS: LazyLock<Corpus> =
    LazyLock::new(|| serde_json::from_str(include_str!("../../../../testdata/apple-attestation.json")).unwrap());

/// The signed parts of the certificates of all vectors.
static SIGNED_PARTS: LazyLock<HashSet<Vec<u8>>> = LazyLock::new(|| {
    let certificates = CORPUS.cases.iter().flat_map(Case::chain);
    certificates.filter_map(|der| signed_part(&der)).collect()
});

impl Corpus {
    fn roots(&self) -> AttestationRoots {
        AttestationRoots::from_pem(&self.root).unwrap()
    }

    fn key(&self) -> PublicKey {
        PublicKey::from_spki_der(&URL_SAFE_NO_PAD.decode(&self.agent_public_key_spki).unwrap()).unwrap()
    }

    fn case(&self, name: &str) -> &Case {
        self.cases.iter().find(|case| case.name == name).unwrap()
    }

    fn bind(&self, attestation: AppleAttestation) -> Result<BoundAttestation, AttestationError> {
        attestation.bind(Record {
            key: &self.key(),
            serial_number: Some(&self.serial_number),
            attested_since: LONG_AGO,
        })
    }
}

impl Case {
    fn chain(&self) -> Vec<Vec<u8>> {
        self.x5c.iter().map(|der| STANDARD.decode(der).unwrap()).collect()
    }

    fn verify(&self, roots: &AttestationRoots) -> Result<AppleAttestation, AttestationError> {
        UnverifiedAttestation::from_der(self.chain())?.verify(roots, self.at)
    }
}

#[test]
fn every_vector_gives_its_expected_result() {
    let roots = CORPUS.roots();
    for case in &CORPUS.cases {
        let name = &case.name;
        let attestation = match case.verify(&roots) {
            Ok(attestation) => attestation,
            Err(error) => {
                assert!(!case.path_valid, "{name}: {error:?}");
                assert_eq!(error.refusal(), AttestationRefusal::Path, "{name}");
                continue;
            }
        };
        assert!(case.path_valid, "{name}");
        let claims = attestation.claims().clone();
        let bound = CORPUS.bind(attestation);
        let outcome = bound.as_ref().map_or_else(
            |error| serde_json::to_value(error.refusal()).unwrap(),
            |_| Value::from("bound"),
        );
        assert_eq!(
            Some(outcome.as_str().unwrap()),
            case.binding.as_deref(),
            "{name}: {bound:?}"
        );
        if let Some(Value::Object(expected)) = &case.claims {
            let claims = serde_json::to_value(&claims).unwrap();
            assert!(!expected.is_empty(), "{name}");
            for (claim, value) in expected {
                assert_eq!(&claims[claim], value, "{name}: {claim}");
            }
        }
        if let Ok(bound) = bound {
            assert_eq!(bound.key(), &CORPUS.key(), "{name}");
            assert_eq!(bound.serial_number(), CORPUS.serial_number, "{name}");
            assert_eq!(claims.freshness_code, Some(FreshnessCode::of(&CORPUS.key())), "{name}");
        }
    }
    assert!(CORPUS.cases.len() >= 29);
}

/// The operator sees only this text.
#[test]
fn a_refusal_names_what_is_missing() {
    let roots = CORPUS.roots();
    let said = |name: &str| {
        let refused = CORPUS
            .case(name)
            .verify(&roots)
            .and_then(|attestation| CORPUS.bind(attestation));
        refused.unwrap_err().to_string()
    };
    for (name, part) in [
        ("leaf expired", "expired at 2026-07-28T00:00:00Z"),
        ("leaf not yet valid", "not valid before 2026-04-28T00:00:00Z"),
        ("another extended key usage", "another use"),
        ("from another root", "trusted attestation root"),
        ("empty chain", "no certificate"),
        ("not DER", "certificate 1 is not"),
        ("a hundred copies of the intermediate", "more than 4"),
        ("another machine's serial number", "C02TESTVEC01"),
        ("freshness of another key", "ask again later"),
        ("freshness absent", "no freshness code"),
        ("serial number absent", "names no readable serial number"),
    ] {
        assert!(said(name).contains(part), "{name}: {}", said(name));
    }
}

#[test]
fn no_vector_verifies_under_apples_root() {
    let roots = AttestationRoots::apple().unwrap();
    for case in &CORPUS.cases {
        assert!(case.verify(&roots).is_err(), "{}", case.name);
    }
}

#[test]
fn no_attestation_binds_to_a_record_without_a_serial_number() {
    let attestation = CORPUS.case("good").verify(&CORPUS.roots()).unwrap();
    let key = CORPUS.key();
    let record = Record {
        key: &key,
        serial_number: None,
        attested_since: LONG_AGO,
    };
    let error = attestation.bind(record).unwrap_err();
    assert_eq!(error.refusal(), AttestationRefusal::NoSerialNumber);
}

#[test]
fn an_attestation_that_is_too_old_or_older_than_the_one_on_record_is_stale() {
    let key = CORPUS.key();
    let bind = |attested_since| {
        CORPUS.case("good").verify(&CORPUS.roots()).unwrap().bind(Record {
            key: &key,
            serial_number: Some(&CORPUS.serial_number),
            attested_since,
        })
    };
    let attested_at = datetime!(2026-04-28 0:00 UTC);
    let too_old = bind(attested_at).unwrap_err();
    assert!(matches!(too_old, AttestationError::TooOld { .. }), "{too_old:?}");
    assert_eq!(too_old.refusal(), AttestationRefusal::Stale);
    let bound = bind(attested_at - time::Duration::seconds(1)).unwrap();
    bound
        .require_newer_than(attested_at - time::Duration::seconds(1))
        .unwrap();
    let same = bound.require_newer_than(attested_at).unwrap_err();
    assert_eq!(same.refusal(), AttestationRefusal::Stale);
    let chain = CORPUS.case("good").chain();
    assert!(bound.has_leaf(Some(&chain[0])) && !bound.has_leaf(Some(&chain[1])) && !bound.has_leaf(None));
}

#[test]
fn the_time_of_an_attestation_is_the_leafs() {
    let attestation = CORPUS.case("good").verify(&CORPUS.roots()).unwrap();
    assert_eq!(attestation.attested_at(), datetime!(2026-04-28 0:00 UTC));
    assert_eq!(attestation.not_after(), datetime!(2026-07-28 0:00 UTC));
    let unverified = |at| {
        UnverifiedAttestation::from_der(CORPUS.case("good").chain())
            .unwrap()
            .verify(&CORPUS.roots(), at)
    };
    assert!(unverified(datetime!(1960-01-01 0:00 UTC)).is_err());
    assert!(unverified(datetime!(2026-07-27 23:59:59 UTC)).is_ok());
}

#[test]
fn pem_is_parsed_like_the_der_in_it() {
    let chain = CORPUS.case("good").chain();
    let pem = pem_of(&chain);
    let attestation = UnverifiedAttestation::from_pem(&pem)
        .unwrap()
        .verify(&CORPUS.roots(), AT)
        .unwrap();
    assert_eq!(attestation.chain().collect::<Vec<_>>(), chain);
    let described = UnverifiedAttestation::from_pem(&pem).unwrap().describe();
    assert_eq!(described[1].subject, described[0].issuer);
    assert_eq!(described[0].not_before, attestation.attested_at());
    let with_key = format!("{pem}-----BEGIN EC PRIVATE KEY-----\nAAAA\n-----END EC PRIVATE KEY-----\n");
    let error = UnverifiedAttestation::from_pem(&with_key).unwrap_err();
    assert!(
        matches!(error, AttestationError::NotACertificate { position: 3, .. }),
        "{error}"
    );
}

#[test]
fn input_that_is_too_long_or_has_trailing_bytes_is_refused_before_verification() {
    let chain = CORPUS.case("good").chain();
    let with_leaf = |leaf: Vec<u8>| UnverifiedAttestation::from_der(vec![leaf, chain[1].clone()]).unwrap_err();
    let trailing = with_leaf([chain[0].as_slice(), &[0]].concat());
    assert!(
        matches!(trailing, AttestationError::Unreadable { position: 1, .. }),
        "{trailing:?}"
    );
    let long = with_leaf(vec![0x30; LONGEST_CERTIFICATE + 1]);
    assert!(matches!(long, AttestationError::TooLong { position: 1 }), "{long:?}");
    let many = UnverifiedAttestation::from_der(vec![chain[0].clone(); MOST_CERTIFICATES + 1]).unwrap_err();
    assert!(matches!(many, AttestationError::TooMany { .. }), "{many:?}");
    let long = UnverifiedAttestation::from_pem(&"-".repeat(MOST_CERTIFICATES * LONGEST_CERTIFICATE * 2 + 1));
    assert!(matches!(long, Err(AttestationError::TooMany { .. })), "{long:?}");
}

fn pem_of(chain: &[Vec<u8>]) -> String {
    pem::encode_many(
        &chain
            .iter()
            .map(|der| Pem::new("CERTIFICATE", der.clone()))
            .collect::<Vec<_>>(),
    )
}

/// A change to a chain, of whole certificates or of bytes in one.
#[derive(Debug, Clone)]
enum Change {
    Flip(Index, Index, u8),
    Set(Index, Index, u8),
    Cut(Index, Index),
    /// Copies bytes from another certificate of the chain.
    Graft(Index, Index, Index, Index),
    Swap(Index, Index),
    Repeat(Index),
    Drop(Index),
    Insert(Index, Vec<u8>),
}

impl Change {
    fn apply(&self, chain: &mut Vec<Vec<u8>>) {
        if chain.is_empty() || chain.iter().any(Vec::is_empty) {
            return;
        }
        let count = chain.len();
        match self {
            Self::Flip(which, at, bit) => {
                let certificate = &mut chain[which.index(count)];
                let at = at.index(certificate.len());
                certificate[at] ^= 1 << (bit % 8);
            }
            Self::Set(which, at, byte) => {
                let certificate = &mut chain[which.index(count)];
                let at = at.index(certificate.len());
                certificate[at] = *byte;
            }
            Self::Cut(which, at) => {
                let certificate = &mut chain[which.index(count)];
                certificate.truncate(at.index(certificate.len()));
            }
            Self::Graft(to, from, one, other) => {
                let from = chain[from.index(count)].clone();
                let to = &mut chain[to.index(count)];
                let ends = [one, other].map(|index| index.index(to.len().min(from.len())));
                let range = ends[0].min(ends[1])..ends[0].max(ends[1]);
                to[range.clone()].copy_from_slice(&from[range]);
            }
            Self::Swap(one, other) => chain.swap(one.index(count), other.index(count)),
            Self::Repeat(which) => chain.push(chain[which.index(count)].clone()),
            Self::Drop(which) => drop(chain.remove(which.index(count))),
            Self::Insert(at, certificate) => chain.insert(at.index(count + 1), certificate.clone()),
        }
    }
}

fn change() -> impl Strategy<Value = Change> {
    let index = any::<Index>;
    prop_oneof![
        (index(), index(), any::<u8>()).prop_map(|(which, at, bit)| Change::Flip(which, at, bit)),
        // Tags, lengths and values with a meaning in DER.
        (
            index(),
            index(),
            proptest::sample::select(b"\x00\x01\x02\x04\x30\x80\x81\x82\xff".to_vec())
        )
            .prop_map(|(which, at, byte)| Change::Set(which, at, byte)),
        (index(), index()).prop_map(|(which, at)| Change::Cut(which, at)),
        (index(), index(), index(), index()).prop_map(|(to, from, one, other)| Change::Graft(to, from, one, other)),
        (index(), index()).prop_map(|(one, other)| Change::Swap(one, other)),
        index().prop_map(Change::Repeat),
        index().prop_map(Change::Drop),
        (index(), vec(any::<u8>(), 0..256)).prop_map(|(at, bytes)| Change::Insert(at, bytes)),
    ]
}

/// The chain of a vector with up to four changes, some of which insert a certificate of another vector.
fn outside() -> impl Strategy<Value = Vec<Vec<u8>>> {
    let chains: Vec<_> = CORPUS
        .cases
        .iter()
        .map(Case::chain)
        .filter(|chain| chain.len() < 8)
        .collect();
    let leaves: Vec<_> = chains.iter().filter_map(|chain| chain.first().cloned()).collect();
    let foreign = (any::<Index>(), proptest::sample::select(leaves)).prop_map(|(at, leaf)| Change::Insert(at, leaf));
    let changes = vec(prop_oneof![4 => change(), 1 => foreign], 0..=4);
    (proptest::sample::select(chains), changes).prop_map(|(mut chain, changes)| {
        for change in &changes {
            change.apply(&mut chain);
        }
        chain
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1024, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_damaged_chain_never_panics_and_never_verifies_unsigned_claims(chain in outside()) {
        if let Ok(unverified) = UnverifiedAttestation::from_der(chain.clone()) {
            let _described = unverified.describe();
            if unverified.verify(&CORPUS.roots(), AT).is_ok() {
                // An ECDSA signature has a second valid form, so compare only the signed part.
                prop_assert!(SIGNED_PARTS.contains(&signed_part(&chain[0]).unwrap()));
            }
        }
    }

    #[test]
    fn pem_never_panics(pem in outside_pem()) {
        let _ = UnverifiedAttestation::from_pem(&pem);
        let _ = AttestationRoots::from_pem(&pem);
    }
}

fn outside_pem() -> impl Strategy<Value = String> {
    let pem = pem_of(&CORPUS.case("good").chain());
    let changed = vec(change(), 1..=4).prop_map(move |changes| {
        let mut text = vec![pem.clone().into_bytes()];
        for change in &changes {
            change.apply(&mut text);
        }
        String::from_utf8_lossy(&text.concat()).into_owned()
    });
    prop_oneof![changed, outside().prop_map(|chain| pem_of(&chain))]
}

/// `TBSCertificate`; `None` if the bytes are not a certificate.
fn signed_part(der: &[u8]) -> Option<Vec<u8>> {
    use x509_cert::der::Encode;
    Certificate::from_der(der).ok()?.tbs_certificate().to_der().ok()
}
