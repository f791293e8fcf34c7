//! The properties of a machine that a check-in evaluates for grants and tokens.

use std::collections::{BTreeMap, HashMap};

use assay_grants::{Attestation, Subject};
use assay_protocol::{
    KeyThumbprint,
    attestation::AttestedClaims,
    machine::{Assurance, KeyStoreKind, MachineStatus, Posture},
};
use serde_json::Value;
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
    sip_attestation: Option<Stated>,
    boot_attestation: Option<Stated>,
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
            sip_attestation: self
                .sip_attestation
                .as_ref()
                .map(|sip| sip.attestation(attestation_max_age)),
            boot_attestation: self
                .boot_attestation
                .as_ref()
                .map(|boot| boot.attestation(attestation_max_age)),
            is_contested: self.is_contested,
            certificate_expires_at: self.certificate.as_ref().map(|certificate| certificate.not_after),
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

/// The newest attestation that states one value, of any of the machine's keys.
#[derive(Debug, Clone)]
struct Stated {
    attested_at: OffsetDateTime,
    claims: AttestedClaims,
}

impl Stated {
    fn parse(attested_at: Option<OffsetDateTime>, claims: Option<Value>) -> Result<Option<Self>, StoreError> {
        let (Some(attested_at), Some(claims)) = (attested_at, claims) else {
            return Ok(None);
        };
        let claims = parse_json(claims)?;
        Ok(Some(Self { attested_at, claims }))
    }

    fn attestation(&self, max_age: Duration) -> Attestation<'_> {
        Attestation {
            attested_at: self.attested_at,
            lapses_at: self.attested_at.saturating_add(max_age),
            claims: &self.claims,
        }
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
                  sip.attested_at AS "sip_attested_at?", sip.claims AS "sip_claims?",
                  boot.attested_at AS "boot_attested_at?", boot.claims AS "boot_claims?",
                  labels, key_store, claimed_posture, sha256 AS "sha256?", not_before AS "not_before?",
                  certificates.not_after AS "not_after?", EXISTS (SELECT FROM machine_openings AS opening
                          WHERE opening.machine_id = machines.id AND ended_at IS NULL AND contested_at IS NOT NULL) AS "is_contested!"
           FROM machines
           JOIN machine_presence ON machine_presence.machine_id = machines.id
           LEFT JOIN certificates ON certificates.serial_number = certificate_serial_number AND revoked_at IS NULL
           LEFT JOIN apple_attestations ON apple_attestations.id = apple_attestation_id
           LEFT JOIN LATERAL (
               SELECT newest.attested_at, newest.claims FROM apple_attestations AS newest
               WHERE newest.machine_id = machines.id AND newest.claims ->> 'sip_enabled' IS NOT NULL
               ORDER BY newest.attested_at DESC, newest.id DESC LIMIT 1
           ) AS sip ON true
           LEFT JOIN LATERAL (
               SELECT newest.attested_at, newest.claims FROM apple_attestations AS newest
               WHERE newest.machine_id = machines.id AND newest.claims ->> 'secure_boot' IS NOT NULL
               ORDER BY newest.attested_at DESC, newest.id DESC LIMIT 1
           ) AS boot ON true
           WHERE machines.id = ANY ($1)"#,
        ids
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            let evaluable = Evaluable {
                record_version: row.record_version,
                status: parse_text(&row.status)?,
                key: thumbprint(&row.current_key)?,
                key_created_at: row.key_created_at,
                certificate: certificate(row.sha256, row.not_before, row.not_after),
                machine_id: row.id,
                assurance: parse_text(&row.assurance)?,
                serial_number: row.machine_serial_number,
                grounds: grounds_of!(row)?,
                attested_claims: row.attested_claims.map(parse_json).transpose()?,
                sip_attestation: Stated::parse(row.sip_attested_at, row.sip_claims)?,
                boot_attestation: Stated::parse(row.boot_attested_at, row.boot_claims)?,
                is_contested: row.is_contested,
                labels: parse_json(row.labels)?,
                key_store: parse_text(&row.key_store)?,
                claimed_posture: parse_json(row.claimed_posture)?,
            };
            Ok((row.id, evaluable))
        })
        .collect()
}

/// The outer join found all of a certificate's columns, or none.
fn certificate(
    sha256: Option<Vec<u8>>,
    not_before: Option<OffsetDateTime>,
    not_after: Option<OffsetDateTime>,
) -> Option<CurrentCertificate> {
    Some(CurrentCertificate {
        sha256: sha256?,
        not_before: not_before?,
        not_after: not_after?,
    })
}
