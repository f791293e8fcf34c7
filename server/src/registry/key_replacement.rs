//! Replacing the key of a machine under the same record, by a token or by an administrator's approval.

use assay_protocol::{KeyThumbprint, admin_api::certificates::RevocationReason};
use serde_json::json;
use time::OffsetDateTime;

use crate::{
    changes::EventKind,
    machines::{
        assurance::Grounds,
        claims::{Claims, ClaimsDigest},
        continuity::Continuity,
    },
    store::{
        StoreError, Transaction,
        certificates::{self, Revoked},
        machines::{keys, presence, presence::LockedMachine, record},
    },
};

/// The key that replaces a machine's keys.
pub(crate) struct Replacement<'a> {
    pub(crate) key: KeyThumbprint,
    pub(crate) created_at: OffsetDateTime,
    pub(crate) claims: &'a Claims,
    pub(crate) claims_digest: ClaimsDigest,
    pub(crate) grounds: Grounds,
    pub(crate) continuity: Continuity,
}

/// Supersedes all keys of a machine, revokes their certificates, and makes the machine active with the new key. The caller
/// makes the row of that key the current one.
pub(crate) async fn replace(
    tx: &mut Transaction,
    machine: &LockedMachine,
    new: &Replacement<'_>,
) -> Result<(), StoreError> {
    let now = tx.now();
    keys::supersede_all(tx, machine, now).await?;
    certificates::revoke(tx, machine, Revoked::All, RevocationReason::Superseded, now).await?;
    let withheld = record::replace_key(tx, machine, new.key, new.claims, new.grounds, new.created_at).await?;
    if !withheld.is_empty() {
        let detail = json!({ "withheld": withheld });
        tx.announce(machine.id(), EventKind::MachineIdentityWithheld, detail)
            .await?;
    }
    presence::replace_key(tx, machine, new.key, new.claims_digest, new.continuity).await
}
