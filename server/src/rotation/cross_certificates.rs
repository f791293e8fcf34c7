//! Cross-certificates: the present root vouches for the next one, and machines follow.

use assay_authority::{
    cross_certificate::{self, Terms},
    is_same_authority, validity,
};
use assay_protocol::text::rfc3339;
use serde_json::json;
use uuid::Uuid;

use super::{RotationError, Rotator, changes::written, steps::Keys};
use crate::{
    changes::{Action, Change},
    keyring::certificate,
    store::{
        Transaction,
        cross_certificates::{self, CrossCertificate},
        sealed_keys::SealedKey,
    },
};

/// What an administrator gives for a root that follows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    /// The cross-certificate, in PEM. An external root's owner must issue it.
    pub(super) pem: Option<&'a [u8]>,
    /// How many CAs are between the root and machines' certificates.
    pub(super) cas_below: usize,
}

/// Stores the certificate by which the present root vouches for this one. Does nothing if there is one already. The
/// caller has inserted the root.
pub(super) async fn certify(
    tx: &mut Transaction,
    rotator: &Rotator<'_>,
    keys: &Keys,
    (present, root): (&SealedKey, &SealedKey),
    given: Given<'_>,
) -> Result<(), RotationError> {
    let (by, certified) = (certificate(present)?, certificate(root)?);
    let is_certified =
        (keys.cross_certificates.iter()).any(|cross| cross.issuer_id == present.id && cross.root_id == root.id);
    // A root whose certificate was renewed has vouched for itself.
    if is_certified || is_same_authority(by, certified)? {
        return Ok(());
    }
    let now = tx.now();
    let expired_at = validity(by)?.1;
    if expired_at <= now {
        tracing::warn!(
            expired_at = rfc3339(expired_at),
            "the present root has expired and cannot vouch for the next one: machines need its fingerprint"
        );
        return Ok(());
    }
    let policy = rotator.policy;
    let terms = Terms {
        by,
        root: certified,
        cas_below: given.cas_below,
        now,
        until: now + policy.overlap(true) + policy.certificate_ttl,
    };
    let der = match (given.pem, &present.sealed) {
        (Some(pem), _) => cross_certificate::verify(pem, &terms)?,
        (None, Some(_)) => cross_certificate::issue(&rotator.keyring.certified_key(present)?, certified, now)?,
        (None, None) => return Err(RotationError::CrossCertificateNeeded),
    };
    insert(tx, (present.id, root.id), der).await
}

async fn insert(
    tx: &mut Transaction,
    (issuer_id, root_id): (Uuid, Uuid),
    certificate: Vec<u8>,
) -> Result<(), RotationError> {
    let cross = CrossCertificate {
        id: tx.new_id(),
        issuer_id,
        root_id,
        not_after: validity(&certificate)?.1,
        certificate,
    };
    let now = tx.now();
    cross_certificates::insert(tx, &cross, now).await?;
    let change = Change::new(Action::KeyCertify, root_id).after(shown(&cross));
    Ok(written(tx, change).await?)
}

/// Removes an expired one.
pub(super) async fn remove(tx: &mut Transaction, keys: &Keys, id: Uuid) -> Result<(), RotationError> {
    let Some(cross) = keys.cross_certificates.iter().find(|cross| cross.id == id) else {
        return Ok(());
    };
    cross_certificates::delete(tx, id).await?;
    let change = Change::new(Action::KeyRemoveCrossCertificate, cross.root_id).before(shown(cross));
    Ok(written(tx, change).await?)
}

fn shown(cross: &CrossCertificate) -> serde_json::Value {
    json!({"issuer_id": cross.issuer_id, "root_id": cross.root_id, "not_after": rfc3339(cross.not_after)})
}
