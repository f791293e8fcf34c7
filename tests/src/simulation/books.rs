//! What the database must hold: every acknowledged state, and for each change one audit entry and one
//! event.

use std::collections::{BTreeMap, BTreeSet};

use assay_protocol::KeyThumbprint;
use sqlx::PgPool;
use uuid::Uuid;

use super::model::{Books, Checked, KeyStatus, Model, Status, require};

/// The audit's actions that the model counts.
const ACTIONS: &[&str] = &[
    "machine.approve",
    "machine.attest",
    "machine.begin-key-rotation",
    "machine.contest-opening",
    "machine.delete",
    "machine.deny",
    "machine.end-opening",
    "machine.enroll",
    "machine.open",
    "machine.quarantine",
    "machine.re-enroll",
    "machine.release",
    "machine.revoke",
    "machine.rotate-key",
];

/// The kinds of events that the model counts.
const KINDS: &[&str] = &[
    "enrollment.denied",
    "machine.approved",
    "machine.attested",
    "machine.continuity-broken",
    "machine.deleted",
    "machine.enrolled",
    "machine.identity-mismatch",
    "machine.identity-withheld",
    "machine.key-rotated",
    "machine.key-rotation-begun",
    "machine.key-rotation-requested",
    "machine.opened",
    "machine.opening-contested",
    "machine.opening-ended",
    "machine.quarantined",
    "machine.re-enrolled",
    "machine.re-enrollment-requested",
    "machine.released",
    "machine.revoked",
];

/// How many verdicts of a machine were written.
pub(super) async fn verdicts(pool: &PgPool, machine: Uuid) -> i64 {
    let statement = "SELECT count(*) FROM events WHERE machine_id = $1 AND kind = 'verdict.changed'";
    sqlx::query_scalar(statement)
        .bind(machine)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// How many openings of a machine were ended.
pub(super) async fn ended_openings(pool: &PgPool, machine: Uuid) -> i64 {
    let statement = "SELECT count(*) FROM events WHERE machine_id = $1 AND kind = 'machine.opening-ended'";
    sqlx::query_scalar(statement)
        .bind(machine)
        .fetch_one(pool)
        .await
        .unwrap()
}

/// Compares the database with the model.
pub(super) async fn check(pool: &PgPool, model: &Model) -> Checked {
    let ids: Vec<Uuid> = model.machines.keys().copied().collect();
    check_machines(pool, model, &ids).await?;
    check_keys(pool, model).await?;
    let audit = "SELECT resource_id, action, count(*) FROM audit_entries
                 WHERE resource_kind = 'machine' AND resource_id = ANY($1::text[]) GROUP BY 1, 2";
    let rule = "every change has one audit entry";
    compare(pool, audit, model, (ACTIONS, &model.audit), rule).await?;
    let events = "SELECT machine_id::text, kind, count(*) FROM events
                  WHERE machine_id::text = ANY($1::text[]) GROUP BY 1, 2";
    compare(
        pool,
        events,
        model,
        (KINDS, &model.events),
        "every change has one event",
    )
    .await?;
    check_superseded_uses(pool, model, &ids).await?;
    check_certificates(pool, &ids).await
}

async fn check_machines(pool: &PgPool, model: &Model, ids: &[Uuid]) -> Checked {
    let statement = "SELECT id, status FROM machines WHERE id = ANY($1)";
    let found: BTreeMap<Uuid, String> = sqlx::query_as::<_, (Uuid, String)>(statement)
        .bind(ids)
        .fetch_all(pool)
        .await
        .unwrap()
        .into_iter()
        .collect();
    for (id, machine) in &model.machines {
        let expected = match machine.status {
            Status::Pending => Some("pending"),
            Status::Active => Some("active"),
            Status::Quarantined => Some("quarantined"),
            Status::Revoked => Some("revoked"),
            Status::Deleted => None,
        };
        let found = found.get(id).map(String::as_str);
        let rule = "an acknowledged status is on record";
        require(
            found == expected,
            rule,
            format!("{id}: {expected:?}, on record {found:?}"),
        )?;
    }
    Ok(())
}

async fn check_keys(pool: &PgPool, model: &Model) -> Checked {
    let thumbprints: Vec<Vec<u8>> = model.keys.keys().map(|key| key.as_bytes().to_vec()).collect();
    let statement = "SELECT thumbprint, status FROM machine_keys WHERE thumbprint = ANY($1)";
    let found: BTreeMap<Vec<u8>, String> = sqlx::query_as::<_, (Vec<u8>, String)>(statement)
        .bind(thumbprints)
        .fetch_all(pool)
        .await
        .unwrap()
        .into_iter()
        .collect();
    for (thumbprint, key) in &model.keys {
        let expected = match key.status {
            KeyStatus::Pending => "pending",
            KeyStatus::Current => "current",
            KeyStatus::Next => "next",
            KeyStatus::Superseded => "superseded",
            KeyStatus::Revoked => "revoked",
            KeyStatus::Denied => "denied",
        };
        let found = found.get(bytes(thumbprint)).map(String::as_str);
        let rule = "an acknowledged key is on record";
        // What is done to a key that waits for a record that has gone on meanwhile is left to the server.
        let is_left_open = matches!(
            (expected, found),
            ("pending", Some("denied" | "revoked" | "superseded")) | ("denied", Some("revoked"))
        );
        require(
            is_left_open || found == Some(expected),
            rule,
            format!("{thumbprint}: {expected}, on record {found:?}"),
        )?;
    }
    Ok(())
}

fn bytes(thumbprint: &KeyThumbprint) -> &[u8] {
    thumbprint.as_bytes()
}

async fn compare(
    pool: &PgPool,
    statement: &'static str,
    model: &Model,
    (names, expected): (&'static [&'static str], &Books),
    rule: &'static str,
) -> Checked {
    let ids: Vec<String> = model.machines.keys().map(Uuid::to_string).collect();
    let rows: Vec<(String, String, i64)> = sqlx::query_as(statement).bind(&ids).fetch_all(pool).await.unwrap();
    let counted = |name: &str| names.iter().copied().find(|counted| *counted == name);
    let found: Books = rows
        .into_iter()
        .filter_map(|(id, name, count)| Some(((id, counted(&name)?), count)))
        .collect();
    let counts = |key: &&(String, &'static str)| ids.contains(&key.0) && !model.uncounted.contains(*key);
    let keys: BTreeSet<_> = found.keys().chain(expected.keys()).filter(counts).collect();
    for key in keys {
        let (found, expected) = (found.get(key).copied(), expected.get(key).copied());
        let detail = format!("{key:?}: {expected:?} expected, {found:?} found");
        require(found == expected, rule, detail)?;
    }
    Ok(())
}

async fn check_certificates(pool: &PgPool, ids: &[Uuid]) -> Checked {
    let statement = "SELECT machine_id FROM (
            SELECT machine_id, count(*) AS certificates FROM certificates WHERE machine_id = ANY($1) GROUP BY 1
        ) issued FULL JOIN (
            SELECT machine_id, count(*) AS events FROM events
            WHERE machine_id = ANY($1) AND kind = 'certificate.issued' GROUP BY 1
        ) announced USING (machine_id) WHERE certificates IS DISTINCT FROM events";
    let odd: Vec<Uuid> = sqlx::query_scalar(statement).bind(ids).fetch_all(pool).await.unwrap();
    require(odd.is_empty(), "every certificate has one event", format!("{odd:?}"))
}

async fn check_superseded_uses(pool: &PgPool, model: &Model, ids: &[Uuid]) -> Checked {
    let statement = "SELECT detail->>'key', count(*) FROM events WHERE machine_id = ANY($1)
                     AND kind = 'machine.superseded-key-used' GROUP BY 1";
    let found: BTreeMap<String, i64> = sqlx::query_as::<_, (String, i64)>(statement)
        .bind(ids)
        .fetch_all(pool)
        .await
        .unwrap()
        .into_iter()
        .collect();
    let is_once = found.values().all(|count| *count == 1);
    let mut seen = model.superseded_uses.iter();
    let has_each = seen.all(|key| found.contains_key(&key.to_string()));
    let detail = format!("{found:?}, expected {:?}", model.superseded_uses);
    require(
        is_once && has_each,
        "the use of a superseded key is an event, once",
        detail,
    )
}

/// Puts a device certificate on record, as if the Mac with this serial number had it by ACME. It is a copy of another one.
pub(super) async fn issue_device_certificate(pool: &PgPool, device: &str, like: &str) {
    let statement = "INSERT INTO certificates (serial_number, device_serial_number, key_thumbprint, issuer_id, sha256, der,
                                               not_before, not_after, issued_at)
                     SELECT md5($1), $1, key_thumbprint, issuer_id, sha256, der, not_before, not_after + interval '1 year',
                            issued_at
                     FROM certificates WHERE serial_number = $2";
    let inserted = sqlx::query(statement)
        .bind(device)
        .bind(like)
        .execute(pool)
        .await
        .unwrap();
    assert_eq!(inserted.rows_affected(), 1);
}

/// A device's certificate ends only by a decision on a machine whose serial number rests on more than its own claim.
pub(super) async fn check_devices(pool: &PgPool, model: &Model, devices: &BTreeSet<String>) -> Checked {
    let devices: Vec<String> = devices.iter().cloned().collect();
    let statement = "SELECT device_serial_number FROM certificates
                     WHERE device_serial_number = ANY($1) AND revoked_at IS NOT NULL";
    let revoked: Vec<String> = sqlx::query_scalar(statement)
        .bind(devices)
        .fetch_all(pool)
        .await
        .unwrap();
    for device in revoked {
        let mut machines = model.machines.values();
        let by_right =
            machines.any(|machine| machine.serial_number.as_ref() == Some(&device) && machine.device_may_be_revoked);
        require(
            by_right,
            "a claimed serial number revokes no device certificate",
            device,
        )?;
    }
    Ok(())
}
