//! What an audit entry says of a person: the name and the address of its actor.
//!
//! It is stored beside the entry. The entry, which is sealed, contains its salted digest in place of the name. Retention can
//! therefore delete it, and the chain stays whole. While it is there, it cannot be altered unnoticed. The salt goes with
//! it: without a salt, anyone could compute the digests of all addresses and find the deleted one.
//!
//! The digest is SHA-256 over the salt of 32 bytes and the canonical JSON of an object with the members `address` and
//! `name`. An absent one is null.

use assay_protocol::sha256;
use serde_json::json;

/// What the digest begins with where it takes the place of a name.
const PREFIX: &str = "sha256:";

/// The text that takes the place of the actor's name in the sealed entry. `digest` is in hex.
pub(crate) fn in_place_of_name(digest: &str) -> String {
    format!("{PREFIX}{digest}")
}

/// The digest in hex, if this text takes the place of a name.
pub(crate) fn find_digest(name: &str) -> Option<&str> {
    name.strip_prefix(PREFIX)
        .filter(|digest| digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// The length of a salt in bytes.
pub(crate) const SALT_LENGTH: usize = 32;

/// The name and the address of an actor, with the salt of their digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PersonalData {
    pub(crate) name: Option<String>,
    pub(crate) address: Option<String>,
    pub(crate) salt: [u8; SALT_LENGTH],
}

impl PersonalData {
    /// The digest that the sealed entry contains, in hex.
    pub(crate) fn digest(&self) -> String {
        // serde_json may keep the order of members, so they are written here in the order of the alphabet.
        let (address, name) = (json!(self.address), json!(self.name));
        let canonical = format!("{{\"address\":{address},\"name\":{name}}}");
        let mut salted = self.salt.to_vec();
        salted.extend_from_slice(canonical.as_bytes());
        hex::encode(sha256(&salted))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(name: Option<&str>, address: Option<&str>, salt: u8) -> PersonalData {
        PersonalData {
            name: name.map(str::to_owned),
            address: address.map(str::to_owned),
            salt: [salt; SALT_LENGTH],
        }
    }

    /// Computed with Python's hashlib from the form above.
    #[test]
    fn the_digest_is_that_of_another_implementation() {
        let digest = data(Some("a \"b\" é"), Some("192.0.2.7"), 7).digest();
        assert_eq!(
            digest,
            "ee11058791a7e7868712ad3aa7441d5b9b4ed98957c84f96a6a3651fcd8a36e6"
        );
    }

    #[test]
    fn a_digest_is_told_from_a_name() {
        let digest = data(None, Some("192.0.2.7"), 1).digest();
        assert_eq!(find_digest(&in_place_of_name(&digest)), Some(digest.as_str()));
        for name in ["ci", "sha256:", "sha256:ci", &digest, &format!("sha256:{digest}0")] {
            assert_eq!(find_digest(name), None, "{name}");
        }
    }

    #[test]
    fn every_part_counts() {
        let digests = [
            data(Some("a"), Some("b"), 1),
            data(Some("a"), Some("b"), 2),
            data(Some("a"), None, 1),
            data(None, Some("a"), 1),
            data(Some("b"), Some("a"), 1),
            data(None, None, 1),
            data(Some("null"), None, 1),
        ]
        .map(|data| data.digest());
        for (place, digest) in digests.iter().enumerate() {
            assert_eq!(digests.iter().position(|other| other == digest), Some(place));
        }
    }
}
