//! `machines` and its related tables, in one file per use. This file reads the record for administrators.

pub(crate) mod check_ins;
pub(crate) mod evaluable;
pub(crate) mod grounds;
pub(crate) mod keys;
pub(crate) mod liveness;
pub(crate) mod new;
pub(crate) mod openings;
pub(crate) mod presence;
pub(crate) mod record;
pub(crate) mod search;
pub(crate) mod stats;

use assay_protocol::{
    admin_api::machines::{CertificateSummary, Machine, MachineKey, MachinePosture, Verdict, VerdictResult},
    machine::{MachineStatus, Posture},
};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use self::{grounds::grounds_of, presence::LockedMachine};
use super::{Connection, StoreError, json, parse_json, parse_text, thumbprint};
use crate::machines::{assurance::Circumstances, boundaries::Boundaries, labels::Labels};

/// The index that a second active machine of one serial number violates.
pub(crate) const ONE_PER_SERIAL_NUMBER: &str = "machines_one_per_serial_number";

struct Row {
    id: Uuid,
    status: String,
    status_reason: Option<String>,
    assurance: String,
    ground_token_id: Option<Uuid>,
    ground_inventory: Option<String>,
    ground_enrollment_id: Option<Uuid>,
    ground_of_key: bool,
    apple_attestation_id: Option<Uuid>,
    attested_at: Option<OffsetDateTime>,
    ground_attestation: Option<String>,
    attested_claims: Option<Value>,
    serial_number: Option<String>,
    in_inventory: bool,
    owner: Option<String>,
    hardware_uuid: Option<String>,
    model_identifier: Option<String>,
    hostname: Option<String>,
    labels: Value,
    note: Option<String>,
    claimed_posture: Value,
    current_key: Vec<u8>,
    key_store: String,
    key_accessibility: Option<String>,
    key_created_at: OffsetDateTime,
    verdict_reasons: Option<Vec<String>>,
    enrolled_at: OffsetDateTime,
    last_check_in_at: Option<OffsetDateTime>,
    clock_skew_seconds: Option<i64>,
    certificate_serial_number: Option<String>,
    not_before: Option<OffsetDateTime>,
    not_after: Option<OffsetDateTime>,
}

/// The columns of a machine. All queries share them, so lists and single reads never differ.
macro_rules! select {
    ($condition:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            r#"SELECT machines.id, status, status_reason, assurance, ground_token_id, ground_inventory, ground_enrollment_id,
                      ground_of_key,
                      apple_attestation_id, machines.attested_at, ground_attestation, apple_attestations.claims AS "attested_claims?",
                      machines.serial_number, inventory.serial_number IS NOT NULL AS "in_inventory!", owner AS "owner?",
                      hardware_uuid, model_identifier, hostname, machines.labels, note, claimed_posture, machines.current_key, key_store, key_accessibility,
                      key_created_at, verdict_reasons, enrolled_at, last_check_in_at, clock_skew_seconds,
                      certificates.serial_number AS "certificate_serial_number?",
                      certificates.not_before AS "not_before?", certificates.not_after AS "not_after?"
               FROM machines
               JOIN machine_presence ON machine_presence.machine_id = machines.id
               LEFT JOIN certificates ON certificates.serial_number = machines.certificate_serial_number
               LEFT JOIN apple_attestations ON apple_attestations.id = machines.apple_attestation_id
               LEFT JOIN inventory ON inventory.serial_number = machines.serial_number "#
                + $condition,
            $($argument),+
        )
    };
}

/// Finds a machine.
pub(crate) async fn find(
    connection: &mut Connection,
    id: Uuid,
    boundaries: &Boundaries,
) -> Result<Option<Machine>, StoreError> {
    let row = select!("WHERE machines.id = $1", id).fetch_optional(connection).await?;
    row.map(|row| machine(row, boundaries)).transpose()
}

/// Locks a machine's record and reads it.
pub(crate) async fn lock(
    connection: &mut Connection,
    locked: &LockedMachine,
    boundaries: &Boundaries,
) -> Result<Option<Machine>, StoreError> {
    let row = select!("WHERE machines.id = $1 FOR UPDATE OF machines", locked.id())
        .fetch_optional(connection)
        .await?;
    row.map(|row| machine(row, boundaries)).transpose()
}

/// The machines with these ids, in the order of their ids.
pub(crate) async fn find_all(
    connection: &mut Connection,
    ids: &[Uuid],
    boundaries: &Boundaries,
) -> Result<Vec<Machine>, StoreError> {
    let rows = select!("WHERE machines.id = ANY ($1) ORDER BY machines.id", ids)
        .fetch_all(connection)
        .await?;
    rows.into_iter().map(|row| machine(row, boundaries)).collect()
}

/// Another machine with this serial number, if there is one.
pub(crate) async fn other_holder_of_serial_number(
    connection: &mut Connection,
    serial_number: &str,
    id: Uuid,
) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM machines WHERE serial_number = $1 AND status IN ('active', 'quarantined') AND id <> $2",
        serial_number,
        id
    )
    .fetch_optional(connection)
    .await?)
}

/// Sets the labels and the note, which administrators maintain.
pub(crate) async fn set_labels_and_note(
    connection: &mut Connection,
    machine: &LockedMachine,
    labels: &Labels,
    note: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE machines SET labels = $2, note = $3 WHERE id = $1",
        machine.id(),
        json(labels)?,
        note
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes a record and its presence. Keys, certificates, enrollments, events and audit entries stay.
pub(crate) async fn delete(connection: &mut Connection, machine: &LockedMachine) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM machines WHERE id = $1", machine.id())
        .execute(connection)
        .await?;
    Ok(())
}

fn machine(row: Row, boundaries: &Boundaries) -> Result<Machine, StoreError> {
    let claimed: Posture = parse_json(row.claimed_posture)?;
    let on_record = parse_text(&row.assurance)?;
    let grounds = grounds_of!(row)?;
    let assurance_reason = grounds.reason(Circumstances {
        on_record,
        has_serial_number: row.serial_number.is_some(),
        is_in_inventory: row.in_inventory,
        attested_since: boundaries.attested_since,
    });
    let status = parse_text(&row.status)?;
    Ok(Machine {
        id: row.id,
        status,
        status_reason: row.status_reason,
        assurance: grounds.assurance_at(on_record, boundaries.attested_since),
        assurance_reason,
        liveness: boundaries.liveness.liveness(row.last_check_in_at),
        serial_number: row.serial_number,
        in_inventory: row.in_inventory,
        owner: row.owner,
        hardware_uuid: row.hardware_uuid,
        model_identifier: row.model_identifier,
        hostname: row.hostname,
        labels: parse_json(row.labels)?,
        note: row.note,
        key: MachineKey {
            thumbprint: thumbprint(&row.current_key)?,
            store: parse_text(&row.key_store)?,
            accessibility: row.key_accessibility.as_deref().map(parse_text).transpose()?,
            created_at: row.key_created_at,
        },
        certificate: certificate(row.certificate_serial_number, row.not_before, row.not_after),
        agent_version: claimed.agent_version.clone(),
        posture: MachinePosture {
            claimed,
            attested: row.attested_claims.map(parse_json).transpose()?,
        },
        attested_at: row.attested_at,
        enrolled_at: (status != MachineStatus::Pending).then_some(row.enrolled_at),
        last_check_in_at: row.last_check_in_at,
        last_verdict: row.verdict_reasons.map(verdict),
        clock_skew_seconds: row.clock_skew_seconds,
    })
}

fn certificate(
    serial_number: Option<String>,
    not_before: Option<OffsetDateTime>,
    not_after: Option<OffsetDateTime>,
) -> Option<CertificateSummary> {
    Some(CertificateSummary {
        serial_number: serial_number?,
        not_before: not_before?,
        not_after: not_after?,
    })
}

fn verdict(reasons: Vec<String>) -> Verdict {
    let result = if reasons.is_empty() {
        VerdictResult::Pass
    } else {
        VerdictResult::Fail
    };
    Verdict { result, reasons }
}
