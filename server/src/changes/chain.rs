//! The hash chain over the audit log. This module is pure.
//!
//! The hash of an entry is SHA-256 over three parts: the previous hash, the length of the entry's canonical form, and
//! that form. The length has 8 bytes, most significant first. The canonical form is the entry as the admin API shows
//! it, without `hash`, `address`, `personal_digest` and `personal_salt`. If there is a `personal_digest`, it takes the place
//! of the actor's name, after `sha256:`. The form is JSON without white space, and the members of every object are sorted
//! by name. An auditor can compute it from an export. The hash before the first entry is SHA-256 of `urn:assay:audit:1`.
//!
//! The owner of the database can still truncate the chain, or write a new one. To detect that, keep the last hash in
//! another place, and pass it when you verify the chain.

use assay_protocol::{admin_api::audit::AuditEntry, sha256};
use aws_lc_rs::digest::{Context, SHA256};
use serde_json::Value;

use super::personal_data;

/// The input of the hash before the first entry.
const GENESIS: &[u8] = b"urn:assay:audit:1";

/// The hash of an entry and of all entries before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EntryHash([u8; 32]);

impl EntryHash {
    /// The hash before the first entry.
    pub(crate) fn genesis() -> Self {
        Self(sha256(GENESIS))
    }

    /// The hash of `entry`, which follows the entry with this hash.
    pub(crate) fn next(&self, entry: &AuditEntry) -> Result<Self, serde_json::Error> {
        let canonical = canonical(entry)?;
        let length = u64::try_from(canonical.len()).unwrap_or(u64::MAX);
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        context.update(&length.to_be_bytes());
        context.update(canonical.as_bytes());
        let mut hash = [0; 32];
        hash.copy_from_slice(context.finish().as_ref());
        Ok(Self(hash))
    }

    /// A stored hash. `None` if it does not have 32 bytes.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// A hash as the API shows it, in upper or lower case.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        Self::from_bytes(&hex::decode(text).ok()?)
    }

    pub(crate) fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

fn canonical(entry: &AuditEntry) -> Result<String, serde_json::Error> {
    let mut value = serde_json::to_value(entry)?;
    if let Some(members) = value.as_object_mut() {
        for outside in ["hash", "address", "personal_digest", "personal_salt"] {
            members.remove(outside);
        }
        let name = members.get_mut("actor").and_then(|actor| actor.get_mut("name"));
        if let (Some(digest), Some(name)) = (&entry.personal_digest, name) {
            *name = Value::String(personal_data::in_place_of_name(digest));
        }
    }
    let mut written = String::new();
    write_sorted(&value, &mut written)?;
    Ok(written)
}

/// Sorts the members itself: any crate can enable the feature of serde_json that changes their order.
fn write_sorted(value: &Value, to: &mut String) -> Result<(), serde_json::Error> {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by_key(|(name, _)| *name);
            to.push('{');
            for (place, (name, member)) in members.into_iter().enumerate() {
                if place > 0 {
                    to.push(',');
                }
                to.push_str(&serde_json::to_string(name)?);
                to.push(':');
                write_sorted(member, to)?;
            }
            to.push('}');
        }
        Value::Array(items) => {
            to.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    to.push(',');
                }
                write_sorted(item, to)?;
            }
            to.push(']');
        }
        scalar => to.push_str(&serde_json::to_string(scalar)?),
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use assay_protocol::admin_api::audit::{Actor, ActorKind, Resource};
    use proptest::prelude::*;
    use serde_json::json;
    use time::{Duration, macros::datetime};
    use uuid::Uuid;

    use super::*;

    pub(crate) fn entry(number: u32) -> AuditEntry {
        AuditEntry {
            id: Uuid::from_u128(u128::from(number)),
            at: datetime!(2026-11-22 10:00:00.5 UTC) + Duration::seconds(i64::from(number)),
            actor: Actor {
                kind: ActorKind::ApiKey,
                id: Some("0193".into()),
                name: Some("ci".into()),
            },
            action: "machine.revoke".into(),
            resource: Resource {
                kind: "machine".into(),
                id: number.to_string(),
            },
            request_id: None,
            reason: Some("lost \"in\" a taxi".into()),
            before: Some(json!({"b": [1, {"z": null, "a": true}], "a": "é"})),
            after: None,
            hash: Some("not part of it".into()),
            address: Some("not part of it".into()),
            personal_digest: None,
            personal_salt: Some("not part of it".into()),
        }
    }

    /// Retention may delete the name and the address of such an entry.
    #[test]
    fn name_and_address_count_by_their_digest_alone_if_there_is_one() {
        let digested = AuditEntry {
            personal_digest: Some("d1".into()),
            ..entry(1)
        };
        let deleted = AuditEntry {
            actor: Actor {
                name: None,
                ..digested.actor.clone()
            },
            address: None,
            personal_salt: None,
            ..digested.clone()
        };
        let hash = |entry: &AuditEntry| EntryHash::genesis().next(entry).unwrap();
        assert_eq!(hash(&deleted), hash(&digested));
        assert!(canonical(&deleted).unwrap().contains(r#""name":"sha256:d1""#));
        let other = AuditEntry {
            personal_digest: Some("d2".into()),
            ..digested.clone()
        };
        assert_ne!(hash(&other), hash(&digested));
        assert_ne!(hash(&entry(1)), hash(&digested));
    }

    #[test]
    fn the_canonical_form_is_what_the_api_shows_sorted_and_without_the_hash() {
        assert_eq!(
            canonical(&entry(1)).unwrap(),
            concat!(
                r#"{"action":"machine.revoke","actor":{"id":"0193","kind":"api-key","name":"ci"},"after":null,"#,
                r#""at":"2026-11-22T10:00:01.5Z","before":{"a":"é","b":[1,{"a":true,"z":null}]},"#,
                r#""id":"00000000-0000-0000-0000-000000000001","reason":"lost \"in\" a taxi","request_id":null,"#,
                r#""resource":{"id":"1","kind":"machine"}}"#
            )
        );
    }

    /// Computed with Python's hashlib from the form above. It detects any change of the chain's format.
    #[test]
    fn the_hash_is_that_of_another_implementation() {
        let first = EntryHash::genesis().next(&entry(1)).unwrap();
        assert_eq!(hex::encode(first.as_bytes()), FIRST_HASH);
    }

    const FIRST_HASH: &str = "d06a28c6fd71d1ac1327679855b8a4247c2fd96b2d40e194dc3969850235eee3";

    #[test]
    fn every_member_counts() {
        type Tamper = fn(&mut AuditEntry);
        let tampers: [Tamper; 11] = [
            |entry| entry.id = Uuid::from_u128(9),
            |entry| entry.at += Duration::MICROSECOND,
            |entry| entry.actor.kind = ActorKind::System,
            |entry| entry.actor.id = None,
            |entry| entry.actor.name = Some("cj".into()),
            |entry| entry.action.push('d'),
            |entry| entry.resource.kind.clear(),
            |entry| entry.resource.id.push('0'),
            |entry| entry.request_id = Some(String::new()),
            |entry| entry.reason = None,
            |entry| entry.after = entry.before.take(),
        ];
        let original = EntryHash::genesis().next(&entry(1)).unwrap();
        for (number, tamper) in tampers.into_iter().enumerate() {
            let mut tampered = entry(1);
            tamper(&mut tampered);
            assert_ne!(
                EntryHash::genesis().next(&tampered).unwrap(),
                original,
                "tamper {number}"
            );
        }
    }

    proptest! {
        #[test]
        fn an_entry_has_another_hash_in_another_place(first in 0_u32..100, second in 0_u32..100) {
            prop_assume!(first != second);
            let (first, second) = (entry(first), entry(second));
            let genesis = EntryHash::genesis();
            let one_way = genesis.next(&first).unwrap().next(&second).unwrap();
            let other_way = genesis.next(&second).unwrap().next(&first).unwrap();
            prop_assert_ne!(one_way, other_way);
        }
    }
}
