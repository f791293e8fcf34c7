//! The properties of a machine that a check-in evaluates for grants and tokens.

use std::collections::{BTreeMap, HashMap};

use assay_grants::{Attestation, Subject};
use assay_protocol::{
    KeyThumbprint,
    attestation::AttestedClaims,
    machine::{Assurance, KeyStoreKind, MachineStatus, Posture},
};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::grounds::grounds_of;
use crate::{
    machines::assurance::Grounds,
    store::{Connection, StoreError, parse_json, parse_text, thumbprint},
};

/// The input of a machine's grant evaluation and the contents of its tokens, at one record version.
#[derive(Debug, Clone)]
pub(crate) struct Evaluable {
    pub(crate) record_version: i64,
    pub(crate) status: MachineStatus,
    pub(crate) key: KeyThumbprint,
    pub(crate) key_created_at: OffsetDateTime,
    pub(crate) certificate: Option<CurrentCertificate>,
    pub(crate) machine_id: Uuid,
    assurance: Assurance,
    serial_number: Option<String>,
    grounds: Grounds,
    attested_claims: Option<AttestedClaims>,
    /// The newest attestation, if it was for an earlier key.
    earlier_attestation: Option<(OffsetDateTime, AttestedClaims)>,
    is_contested: bool,
    labels: BTreeMap<String, String>,
    pub(crate) key_store: KeyStoreKind,
    claimed_posture: Posture,
}

impl Evaluable {
    /// The input of an evaluation at `now`. Attestations older than this do not count.
    pub(crate) fn subject(&self, now: OffsetDateTime, attestation_max_age: Duration) -> Subject<'_> {
        let attested_since = now.saturating_sub(attestation_max_age);
        Subject {
            machine_id: self.machine_id,
            status: self.status,
            assurance: self.grounds.assurance_at(self.assurance, attested_since),
            serial_number: self.serial_number.as_deref(),
            labels: &self.labels,
            claimed_key_store: self.key_store,
            claimed_posture: &self.claimed_posture,
            attestation: self.attestation(attestation_max_age),
            is_contested: self.is_contested,
            certificate_expires_at: self.certificate.as_ref().map(|certificate| certificate.not_after),
            earlier_attestation: self
                .earlier_attestation
                .as_ref()
                .map(|(attested_at, claims)| Attestation {
                    attested_at: *attested_at,
                    lapses_at: attested_at.saturating_add(attestation_max_age),
                    claims,
                }),
        }
    }

    fn attestation(&self, max_age: Duration) -> Option<Attestation<'_>> {
        let attested_at = self.grounds.attestation?.attested_at();
        Some(Attestation {
            attested_at,
            lapses_at: attested_at.saturating_add(max_age),
            claims: self.attested_claims.as_ref()?,
        })
    }
}

/// The properties of a certificate that tokens and the agent's next action depend on.
#[derive(Debug, Clone)]
pub(crate) struct CurrentCertificate {
    pub(crate) sha256: Vec<u8>,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
}

/// See [`find_all`].
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<Evaluable>, StoreError> {
    Ok(find_all(connection, &[id]).await?.remove(&id))
}

/// Reads everything in one statement, so all values belong to the same snapshot.
pub(crate) async fn find_all(
    connection: &mut Connection,
    ids: &[Uuid],
) -> Result<HashMap<Uuid, Evaluable>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT machines.id, record_version, machines.status, machines.current_key, key_created_at, assurance,
                  machines.serial_number AS "machine_serial_number",
                  ground_token_id, ground_inventory, ground_enrollment_id, ground_of_key, apple_attestation_id, machines.attested_at, ground_attestation,
                  apple_attestations.claims AS "attested_claims?",
                  earlier.attested_at AS "earlier_attested_at?", earlier.claims AS "earlier_claims?", labels, key_store, claimed_posture, sha256 AS "sha256?",
                  not_before AS "not_before?", certificates.not_after AS "not_after?",
                  EXISTS (SELECT FROM machine_openings AS opening
                          WHERE opening.machine_id = machines.id AND ended_at IS NULL AND contested_at IS NOT NULL) AS "is_contested!"
           FROM machines
           JOIN machine_presence ON machine_presence.machine_id = machines.id
           LEFT JOIN certificates ON certificates.serial_number = certificate_serial_number AND revoked_at IS NULL
           LEFT JOIN apple_attestations ON apple_attestations.id = apple_attestation_id
           LEFT JOIN LATERAL (
               SELECT newest.id, newest.attested_at, newest.claims FROM apple_attestations AS newest
               WHERE newest.machine_id = machines.id ORDER BY newest.attested_at DESC, newest.id DESC LIMIT 1
           ) AS earlier ON earlier.id IS DISTINCT FROM apple_attestation_id
           WHERE machines.id = ANY ($1)"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let certificate = match (row.sha256, row.not_before, row.not_after) {
                (Some(sha256), Some(not_before), Some(not_after)) => Some(CurrentCertificate {
                    sha256,
                    not_before,
                    not_after,
                }),
                _ => None,
            };
            let evaluable = Evaluable {
                record_version: row.record_version,
                status: parse_text(&row.status)?,
                key: thumbprint(&row.current_key)?,
                key_created_at: row.key_created_at,
                certificate,
                machine_id: row.id,
                assurance: parse_text(&row.assurance)?,
                serial_number: row.machine_serial_number,
                grounds: grounds_of!(row)?,
                attested_claims: row.attested_claims.map(parse_json).transpose()?,
                earlier_attestation: match (row.earlier_attested_at, row.earlier_claims) {
                    (Some(attested_at), Some(claims)) => Some((attested_at, parse_json(claims)?)),
                    _ => None,
                },
                is_contested: row.is_contested,
                labels: parse_json(row.labels)?,
                key_store: parse_text(&row.key_store)?,
                claimed_posture: parse_json(row.claimed_posture)?,
            };
            Ok((row.id, evaluable))
        })
        .collect()
}
