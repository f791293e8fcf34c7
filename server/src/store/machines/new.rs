//! New machines: their rows of `machines`, `machine_presence`, `machine_keys`, `enrollments` and `certificates`, for
//! many machines in two statements.

use std::net::IpAddr;

use assay_authority::IssuedClientCertificate;
use assay_protocol::{KeyThumbprint, PublicKey, machine::KeyAccessibility};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    machines::{
        assurance::{Grounds, InventoryGround},
        claims::{Claims, ClaimsDigest},
        continuity::Continuity,
        labels::Labels,
    },
    store::{Connection, StoreError, json, parse_json},
};

/// The properties by which an enrolling key is looked up.
#[derive(Debug)]
pub(crate) struct Asking<'a> {
    pub(crate) key: KeyThumbprint,
    pub(crate) serial_number: Option<&'a str>,
}

/// What is recorded about an enrolling key.
#[derive(Debug)]
pub(crate) struct OnRecord {
    /// Whether the key is known, or a machine with its serial number was ever admitted.
    pub(crate) is_known: bool,
    /// Whether another transaction has locked the serial number's row in the inventory.
    pub(crate) is_contended: bool,
    /// The labels in the inventory's row, which this transaction has locked.
    pub(crate) listed: Option<Labels>,
}

/// The rows of a new machine. Without a first certificate it is pending: it waits for an administrator.
#[derive(Debug)]
pub(crate) struct NewRows<'a> {
    pub(crate) machine_id: Uuid,
    pub(crate) enrollment_id: Uuid,
    pub(crate) token_id: Option<Uuid>,
    pub(crate) grounds: Grounds,
    pub(crate) labels: &'a Labels,
    pub(crate) key: &'a PublicKey,
    pub(crate) claims: &'a Claims,
    pub(crate) claims_digest: ClaimsDigest,
    pub(crate) nonce: OffsetDateTime,
    pub(crate) continuity: Continuity,
    pub(crate) address: Option<IpAddr>,
    pub(crate) asked_at: OffsetDateTime,
    pub(crate) waits_until: OffsetDateTime,
    pub(crate) first_certificate: Option<FirstCertificate<'a>>,
}

/// A certificate that is recorded with its machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FirstCertificate<'a> {
    pub(crate) certificate: &'a IssuedClientCertificate,
    pub(crate) issuer_id: Uuid,
    pub(crate) issued_at: OffsetDateTime,
}

impl<'a> NewRows<'a> {
    fn certificate(&self) -> Option<&'a IssuedClientCertificate> {
        self.first_certificate.map(|first| first.certificate)
    }
}

/// Looks up enrolling keys, and locks their serial numbers' rows in the inventory as [`crate::store::inventory::lock`]
/// does. Results are in the order of the slice. It does not wait for rows that another transaction has locked, because
/// an import may take a minute.
///
/// Each look-up is a subquery with a limit, for which Postgres uses an index, one key at a time. Joins could be planned
/// while the tables are small, and would then scan all of them.
pub(crate) async fn look_up(connection: &mut Connection, asking: &[Asking<'_>]) -> Result<Vec<OnRecord>, StoreError> {
    let keys: Vec<&[u8]> = asking.iter().map(|asking| asking.key.as_bytes().as_slice()).collect();
    let serial_numbers: Vec<Option<&str>> = asking.iter().map(|asking| asking.serial_number).collect();
    let rows = sqlx::query!(
        r#"SELECT (SELECT true FROM machine_keys WHERE thumbprint = asking.key LIMIT 1) IS NOT NULL
                  OR (SELECT true FROM machines
                      WHERE machines.serial_number = asking.serial_number AND status <> 'pending' LIMIT 1) IS NOT NULL
                      AS "is_known!",
                  held.serial_number IS NULL
                  AND (SELECT true FROM inventory
                       WHERE inventory.serial_number = asking.serial_number LIMIT 1) IS NOT NULL
                      AS "is_contended!",
                  held.labels AS "labels?"
           FROM unnest($1::bytea[], $2::text[]) WITH ORDINALITY AS asking (key, serial_number, place)
                LEFT JOIN LATERAL (
                    SELECT inventory.serial_number, labels FROM inventory
                    WHERE inventory.serial_number = asking.serial_number LIMIT 1 FOR KEY SHARE SKIP LOCKED
                ) AS held ON true
           ORDER BY place"#,
        &keys as &[&[u8]],
        &serial_numbers as &[Option<&str>],
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(OnRecord {
                is_known: row.is_known,
                is_contended: row.is_contended,
                listed: row.labels.map(parse_json).transpose()?,
            })
        })
        .collect()
}

/// Inserts the rows of new machines.
pub(crate) async fn insert(connection: &mut Connection, rows: &[NewRows<'_>]) -> Result<(), StoreError> {
    insert_machines(connection, rows).await?;
    insert_enrollments(connection, rows).await
}

/// Issuing a certificate makes a new version of the record, so a record with its first certificate has version 2.
async fn insert_machines(connection: &mut Connection, rows: &[NewRows<'_>]) -> Result<(), StoreError> {
    let columns = Machines::of(rows)?;
    sqlx::query!(
        "WITH new AS MATERIALIZED (
             SELECT * FROM unnest(
                 $1::uuid[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::jsonb[], $8::jsonb[], $9::uuid[],
                 $10::text[], $11::text[], $12::bytea[], $13::bytea[], $14::text[], $15::text[], $16::bytea[],
                 $17::timestamptz[], $18::timestamptz[], $19::text[], $20::timestamptz[], $21::boolean[]
             ) AS new (
                 machine_id, assurance, serial_number, hardware_uuid, model_identifier, hostname, labels, posture,
                 ground_token_id, ground_inventory, certificate, key, spki, key_store, key_accessibility, claims_digest,
                 nonce, asked_at, continuity_state, continuity_carried, ground_of_key
             )
         ), machine AS (
             INSERT INTO machines
                 (id, status, assurance, serial_number, hardware_uuid, model_identifier, hostname, labels, claimed_posture,
                  current_key, key_store, key_accessibility, key_created_at, certificate_serial_number, enrolled_at,
                  ground_token_id, ground_inventory, ground_of_key)
             SELECT machine_id, CASE WHEN certificate IS NULL THEN 'pending' ELSE 'active' END, assurance, serial_number, hardware_uuid, model_identifier, hostname, labels, posture,
                    key, key_store, key_accessibility, asked_at, certificate, asked_at, ground_token_id, ground_inventory,
                    ground_of_key
             FROM new
         ), presence AS (
             INSERT INTO machine_presence
                 (machine_id, admitted, current_key, claims_digest, last_nonce_at, record_version, continuity_state,
                  continuity_carried)
             SELECT machine_id, certificate IS NOT NULL, key, claims_digest, nonce,
                    CASE WHEN certificate IS NULL THEN 1 ELSE 2 END, continuity_state, continuity_carried
             FROM new
         )
         INSERT INTO machine_keys (thumbprint, machine_id, spki, status, created_at, store)
         SELECT key, machine_id, spki, CASE WHEN certificate IS NULL THEN 'pending' ELSE 'current' END, asked_at, key_store
         FROM new",
        &columns.ids,
        &columns.assurances as &[&str],
        &columns.serial_numbers as &[Option<&str>],
        &columns.hardware_uuids as &[Option<&str>],
        &columns.model_identifiers as &[Option<&str>],
        &columns.hostnames as &[Option<&str>],
        &columns.labels,
        &columns.postures,
        &columns.ground_tokens as &[Option<Uuid>],
        &columns.ground_inventories as &[Option<&str>],
        &columns.certificates as &[Option<&str>],
        &columns.keys,
        &columns.spkis as &[&[u8]],
        &columns.key_stores as &[&str],
        &columns.key_accessibilities as &[Option<&str>],
        &columns.claims_digests as &[&[u8]],
        &columns.nonces,
        &columns.asked_at,
        &columns.continuity_states as &[&str],
        &columns.continuities_carried as &[Option<OffsetDateTime>],
        &columns.grounds_of_keys,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Inserts the decision on each key, and its first certificate.
async fn insert_enrollments(connection: &mut Connection, rows: &[NewRows<'_>]) -> Result<(), StoreError> {
    let columns = Enrollments::of(rows)?;
    sqlx::query!(
        "WITH new AS MATERIALIZED (
             SELECT * FROM unnest(
                 $1::uuid[], $2::uuid[], $3::bytea[], $4::uuid[], $5::jsonb[], $6::timestamptz[], $7::timestamptz[],
                 $8::text[], $9::uuid[], $10::bytea[], $11::bytea[], $12::timestamptz[], $13::timestamptz[], $14::timestamptz[], $15::text[]
             ) AS new (
                 enrollment_id, machine_id, key, token_id, claims, asked_at, waits_until, certificate, issuer_id,
                 sha256, der, not_before, not_after, issued_at, address
             )
         ), enrollment AS (
             INSERT INTO enrollments
                 (id, kind, status, machine_id, key_thumbprint, token_id, claims, requested_at, decided_at, expires_at, address)
             SELECT enrollment_id, 'enrollment', CASE WHEN certificate IS NULL THEN 'pending' ELSE 'approved' END, machine_id, key,
                    token_id, claims, asked_at, CASE WHEN certificate IS NOT NULL THEN asked_at END, waits_until, address
             FROM new
         )
         INSERT INTO certificates
             (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before, not_after, issued_at)
         SELECT certificate, machine_id, key, issuer_id, sha256, der, not_before, not_after, issued_at FROM new
         WHERE certificate IS NOT NULL",
        &columns.ids,
        &columns.machine_ids,
        &columns.keys,
        &columns.token_ids as &[Option<Uuid>],
        &columns.claims,
        &columns.asked_at,
        &columns.waits_until,
        &columns.certificates as &[Option<&str>],
        &columns.issuer_ids as &[Option<Uuid>],
        &columns.digests as &[Option<&[u8]>],
        &columns.ders as &[Option<&[u8]>],
        &columns.not_before as &[Option<OffsetDateTime>],
        &columns.not_after as &[Option<OffsetDateTime>],
        &columns.issued_at as &[Option<OffsetDateTime>],
        &columns.addresses as &[Option<String>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The columns of records, presences and keys, as arguments of `unnest`.
#[derive(Default)]
struct Machines<'a> {
    ids: Vec<Uuid>,
    assurances: Vec<&'static str>,
    serial_numbers: Vec<Option<&'a str>>,
    hardware_uuids: Vec<Option<&'a str>>,
    model_identifiers: Vec<Option<&'a str>>,
    hostnames: Vec<Option<&'a str>>,
    labels: Vec<Value>,
    postures: Vec<Value>,
    ground_tokens: Vec<Option<Uuid>>,
    ground_inventories: Vec<Option<&'static str>>,
    grounds_of_keys: Vec<bool>,
    certificates: Vec<Option<&'a str>>,
    keys: Vec<Vec<u8>>,
    spkis: Vec<&'a [u8]>,
    key_stores: Vec<&'static str>,
    key_accessibilities: Vec<Option<&'static str>>,
    claims_digests: Vec<&'a [u8]>,
    nonces: Vec<OffsetDateTime>,
    asked_at: Vec<OffsetDateTime>,
    continuity_states: Vec<&'static str>,
    continuities_carried: Vec<Option<OffsetDateTime>>,
}

impl<'a> Machines<'a> {
    fn of(rows: &'a [NewRows<'_>]) -> Result<Self, StoreError> {
        let mut columns = Self::default();
        for new in rows {
            let (machine, key) = (&new.claims.machine, &new.claims.key);
            columns.ids.push(new.machine_id);
            columns.assurances.push(new.grounds.assurance().as_str());
            columns.serial_numbers.push(machine.serial_number.as_deref());
            columns.hardware_uuids.push(machine.hardware_uuid.as_deref());
            columns.model_identifiers.push(machine.model_identifier.as_deref());
            columns.hostnames.push(machine.hostname.as_deref());
            columns.labels.push(json(new.labels)?);
            columns.postures.push(json(&new.claims.posture)?);
            columns.ground_tokens.push(new.grounds.token);
            columns
                .ground_inventories
                .push(new.grounds.inventory.map(InventoryGround::as_str));
            columns.grounds_of_keys.push(new.grounds.of_key);
            columns
                .certificates
                .push(new.certificate().map(|certificate| certificate.serial_number.as_str()));
            columns.keys.push(new.key.thumbprint().as_bytes().to_vec());
            columns.spkis.push(new.key.spki_der());
            columns.key_stores.push(key.store.as_str());
            columns
                .key_accessibilities
                .push(key.accessibility.map(KeyAccessibility::as_str));
            columns.claims_digests.push(new.claims_digest.as_bytes());
            columns.nonces.push(new.nonce);
            columns.asked_at.push(new.asked_at);
            columns.continuity_states.push(new.continuity.state.as_str());
            columns.continuities_carried.push(new.continuity.carried);
        }
        Ok(columns)
    }
}

/// The columns of enrollments with their certificates.
#[derive(Default)]
struct Enrollments<'a> {
    ids: Vec<Uuid>,
    machine_ids: Vec<Uuid>,
    keys: Vec<Vec<u8>>,
    token_ids: Vec<Option<Uuid>>,
    claims: Vec<Value>,
    asked_at: Vec<OffsetDateTime>,
    waits_until: Vec<OffsetDateTime>,
    certificates: Vec<Option<&'a str>>,
    issuer_ids: Vec<Option<Uuid>>,
    digests: Vec<Option<&'a [u8]>>,
    ders: Vec<Option<&'a [u8]>>,
    not_before: Vec<Option<OffsetDateTime>>,
    not_after: Vec<Option<OffsetDateTime>>,
    issued_at: Vec<Option<OffsetDateTime>>,
    addresses: Vec<Option<String>>,
}

impl<'a> Enrollments<'a> {
    fn of(rows: &'a [NewRows<'_>]) -> Result<Self, StoreError> {
        let mut columns = Self::default();
        for new in rows {
            columns.ids.push(new.enrollment_id);
            columns.machine_ids.push(new.machine_id);
            columns.keys.push(new.key.thumbprint().as_bytes().to_vec());
            columns.token_ids.push(new.token_id);
            columns.claims.push(json(new.claims)?);
            columns.asked_at.push(new.asked_at);
            columns.waits_until.push(new.waits_until);
            let (first, certificate) = (new.first_certificate, new.certificate());
            columns
                .certificates
                .push(certificate.map(|certificate| certificate.serial_number.as_str()));
            columns.issuer_ids.push(first.map(|first| first.issuer_id));
            columns
                .digests
                .push(certificate.map(|certificate| certificate.sha256.as_slice()));
            columns
                .ders
                .push(certificate.map(|certificate| certificate.der.as_slice()));
            columns
                .not_before
                .push(certificate.map(|certificate| certificate.not_before));
            columns
                .not_after
                .push(certificate.map(|certificate| certificate.not_after));
            columns.issued_at.push(first.map(|first| first.issued_at));
            columns.addresses.push(new.address.map(|address| address.to_string()));
        }
        Ok(columns)
    }
}
