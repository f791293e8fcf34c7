//! Parses the attestation object of `device-attest-01`: CBOR in WebAuthn's form. In Apple's format it contains a
//! certificate chain.

use assay_protocol::text::is_displayable;
use minicbor::{Decoder, data::Type, decode};

/// The format of Apple's Managed Device Attestation.
const APPLE: &str = "apple";
/// The largest object in bytes. Two certificates have about 2,000.
const MAX_LENGTH: usize = 32 * 1024;
/// Leaf, intermediate, and a root that some clients add. The verifier accepts no more.
const MAX_CERTIFICATES: u64 = 4;
/// The members of one map. WebAuthn has three at the top level.
const MAX_MEMBERS: u64 = 16;

/// Why an object is rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttestationObjectError {
    #[error("the attestation object is longer than {MAX_LENGTH} bytes")]
    TooLong,
    #[error("the attestation object is not the CBOR that WebAuthn describes")]
    Cbor(#[source] decode::Error),
    #[error("invalid attestation object: {0}")]
    Form(&'static str),
    #[error("the attestation has the format {0:?}; this server accepts only \"{APPLE}\", that of Apple devices")]
    Format(String),
}

impl From<decode::Error> for AttestationObjectError {
    fn from(error: decode::Error) -> Self {
        Self::Cbor(error)
    }
}

/// The chain in an object: certificates in DER, leaf first. They are not verified here.
pub(crate) fn parse(bytes: &[u8]) -> Result<Vec<Vec<u8>>, AttestationObjectError> {
    if bytes.len() > MAX_LENGTH {
        return Err(AttestationObjectError::TooLong);
    }
    let mut decoder = Decoder::new(bytes);
    let (mut format, mut statement) = (None, None);
    for _ in 0..members(&mut decoder)? {
        match decoder.str()? {
            "fmt" => once(&mut format, decoder.str()?)?,
            "attStmt" => {
                let start = decoder.position();
                decoder.skip()?;
                let range = bytes.get(start..decoder.position()).unwrap_or_default();
                once(&mut statement, range)?;
            }
            _ => decoder.skip()?,
        }
    }
    if decoder.position() != bytes.len() {
        return Err(AttestationObjectError::Form("data after its end"));
    }
    match format {
        Some(APPLE) => {}
        // This text comes from the client, and is stored in an error message.
        Some(other) => {
            let shown = other.chars().filter(|character| is_displayable(*character)).take(32);
            return Err(AttestationObjectError::Format(shown.collect()));
        }
        None => return Err(AttestationObjectError::Form("fmt is missing")),
    }
    certificates(statement.ok_or(AttestationObjectError::Form("attStmt is missing"))?)
}

fn certificates(statement: &[u8]) -> Result<Vec<Vec<u8>>, AttestationObjectError> {
    let mut decoder = Decoder::new(statement);
    let mut chain = None;
    for _ in 0..members(&mut decoder)? {
        match decoder.str()? {
            "x5c" => once(&mut chain, byte_strings(&mut decoder)?)?,
            _ => decoder.skip()?,
        }
    }
    chain.ok_or(AttestationObjectError::Form("attStmt has no x5c"))
}

fn byte_strings(decoder: &mut Decoder<'_>) -> Result<Vec<Vec<u8>>, AttestationObjectError> {
    match decoder.array()? {
        Some(count) if count <= MAX_CERTIFICATES => (0..count).map(|_| Ok(decoder.bytes()?.to_vec())).collect(),
        _ => Err(AttestationObjectError::Form("x5c has too many certificates")),
    }
}

/// The number of members of a map with a known length.
fn members(decoder: &mut Decoder<'_>) -> Result<u64, AttestationObjectError> {
    if decoder.datatype()? != Type::Map {
        return Err(AttestationObjectError::Form("expected a map with a known length"));
    }
    match decoder.map()? {
        Some(count) if count <= MAX_MEMBERS => Ok(count),
        _ => Err(AttestationObjectError::Form("a map has too many members")),
    }
}

/// A repeated member would be ambiguous.
fn once<T>(place: &mut Option<T>, value: T) -> Result<(), AttestationObjectError> {
    match place.replace(value) {
        None => Ok(()),
        Some(_) => Err(AttestationObjectError::Form("a member appears twice")),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LEAF: [u8; 3] = [1, 2, 3];
    const INTERMEDIATE: [u8; 2] = [4, 5];

    fn text(text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len()).unwrap();
        let head = if length < 24 {
            vec![0x60 + length]
        } else {
            vec![0x78, length]
        };
        [head, text.as_bytes().to_vec()].concat()
    }

    fn bytes(bytes: &[u8]) -> Vec<u8> {
        [vec![0x40 + u8::try_from(bytes.len()).unwrap()], bytes.to_vec()].concat()
    }

    fn map(members: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut map = vec![0xa0 + u8::try_from(members.len()).unwrap()];
        for (name, value) in members {
            map.extend([text(name), value.clone()].concat());
        }
        map
    }

    fn x5c() -> Vec<u8> {
        [vec![0x82], bytes(&LEAF), bytes(&INTERMEDIATE)].concat()
    }

    fn good() -> Vec<u8> {
        map(&[("fmt", text("apple")), ("attStmt", map(&[("x5c", x5c())]))])
    }

    #[test]
    fn the_chain_is_read_in_any_order_and_with_other_members() {
        assert_eq!(parse(&good()).unwrap(), [LEAF.to_vec(), INTERMEDIATE.to_vec()]);
        let webauthn = map(&[
            ("authData", bytes(&[9; 20])),
            (
                "attStmt",
                map(&[("alg", vec![0x26]), ("x5c", x5c()), ("sig", bytes(&[7]))]),
            ),
            ("fmt", text("apple")),
        ]);
        assert_eq!(parse(&webauthn).unwrap().len(), 2);
    }

    #[test]
    fn other_objects_are_refused_with_the_reason() {
        let statement = || map(&[("x5c", x5c())]);
        let many = [vec![0x85], [bytes(&LEAF)].concat().repeat(5)].concat();
        let endless = [vec![0xbf], text("fmt"), text("apple"), vec![0xff]].concat();
        for (object, says) in [
            (map(&[("fmt", text("tpm")), ("attStmt", statement())]), "\"tpm\""),
            (map(&[("attStmt", statement())]), "fmt is missing"),
            (map(&[("fmt", text("apple"))]), "attStmt is missing"),
            (map(&[("fmt", text("apple")), ("attStmt", map(&[]))]), "has no x5c"),
            (
                map(&[("fmt", text("apple")), ("attStmt", map(&[("x5c", many)]))]),
                "too many certificates",
            ),
            (map(&[("fmt", text("apple")), ("fmt", text("apple"))]), "twice"),
            (
                map(&[
                    ("fmt", text("apple")),
                    ("attStmt", statement()),
                    ("attStmt", statement()),
                ]),
                "twice",
            ),
            ([good(), vec![0]].concat(), "after its end"),
            (endless, "map with a known length"),
            (x5c(), "map with a known length"),
            (
                vec![0xbb, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
                "too many members",
            ),
            (vec![0; MAX_LENGTH + 1], "longer than"),
            (Vec::new(), "not the CBOR"),
        ] {
            let refusal = parse(&object).unwrap_err().to_string();
            assert!(refusal.contains(says), "{refusal}, not {says}");
        }
    }

    #[test]
    fn false_lengths_cost_neither_memory_nor_time() {
        // A byte string and an array that claim 2^63 items each, and maps within maps.
        let huge_bytes = [vec![0x5b], vec![0x7f; 8]].concat();
        let huge_array = [vec![0x9b], vec![0x7f; 8]].concat();
        for statement in [huge_bytes, huge_array, vec![0xa1; 20_000]] {
            assert!(parse(&map(&[("fmt", text("apple")), ("attStmt", statement.clone())])).is_err());
            assert!(parse(&map(&[("other", statement)])).is_err());
        }
    }

    proptest! {
        #[test]
        fn bytes_from_outside_never_panic(object in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = parse(&object);
        }

        #[test]
        fn truncated_or_changed_objects_never_panic(
            end in 0_usize..40, at in 0_usize..40, byte in any::<u8>()
        ) {
            let good = good();
            prop_assert!(parse(&good[..end.min(good.len() - 1)]).is_err());
            let mut changed = good;
            let at = at % changed.len();
            changed[at] = byte;
            let _ = parse(&changed);
        }
    }
}
