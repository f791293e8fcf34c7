//! Doors to the parsers of bytes from outside (the feature `fuzzing`), for `tests/fuzz`. Every refusal becomes `None`.

use std::collections::BTreeMap;

use assay_authority::EcKey;
use assay_protocol::admin_api::inventory::ImportItem;
use axum::http::{HeaderMap, Uri};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    acme::{attestation_object, csr, jws::UnverifiedJws},
    administration::inventory::{
        InventoryError,
        import::{Format, Import},
    },
    check_in::nonce::{NonceError, Nonces},
    http::{authentication, page::List},
    machines::continuity::{Carried, ContinuityValues},
    mdm::report::Report,
};

/// The certificates in an attestation object of `device-attest-01`, in DER.
#[must_use]
pub fn attestation_object(bytes: &[u8]) -> Option<Vec<Vec<u8>>> {
    attestation_object::parse(bytes).ok()
}

/// The key of an ACME certificate request in DER.
#[must_use]
pub fn acme_csr(der: &[u8]) -> Option<EcKey> {
    csr::proven_key(der).ok()
}

/// The fields of a JWS that its protected header has, in the order `alg`, `url`, `nonce`, `kid`, `jwk`.
pub type JwsHeader = (String, String, Option<String>, Option<String>, Option<Value>);

/// The header of an ACME request, and the payload if this key signed it.
#[must_use]
pub fn acme_jws(body: &[u8], key: &EcKey) -> Option<(JwsHeader, Option<Vec<u8>>)> {
    UnverifiedJws::parse(body).ok().map(|jws| verified(jws, key))
}

/// The same of a JWS within another one.
#[must_use]
pub fn inner_acme_jws(value: &Value, key: &EcKey) -> Option<(JwsHeader, Option<Vec<u8>>)> {
    UnverifiedJws::from_value(value).ok().map(|jws| verified(jws, key))
}

fn verified(jws: UnverifiedJws, key: &EcKey) -> (JwsHeader, Option<Vec<u8>>) {
    let header = &jws.header;
    let header = (
        header.alg.clone(),
        header.url.clone(),
        header.nonce.clone(),
        header.kid.clone(),
        header.jwk.clone(),
    );
    (header, jws.verify(key).ok())
}

/// What the server reads from a device's message.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct MdmReport {
    /// `UDID`
    pub udid: Option<String>,
    /// `EnrollmentID`
    pub enrollment_id: Option<String>,
    /// `SerialNumber`
    pub serial_number: Option<String>,
    /// `DevicePropertiesAttestation`
    pub attestation: Option<Vec<Vec<u8>>>,
}

/// Reads a device's message.
#[must_use]
pub fn mdm_report(bytes: &[u8]) -> Option<MdmReport> {
    let report = Report::read(bytes).ok()?;
    Some(MdmReport {
        udid: report.udid,
        enrollment_id: report.enrollment_id,
        serial_number: report.serial_number,
        attestation: report.attestation,
    })
}

/// The rows of an inventory, or the number of rows that are wrong: 0 if the file as a whole cannot be read.
///
/// # Errors
/// See above.
pub fn inventory(bytes: &[u8], is_csv: bool) -> Result<Vec<ImportItem>, usize> {
    let format = if is_csv { Format::Csv } else { Format::Json };
    let import = Import::read(format, bytes).map_err(|error| match error {
        InventoryError::Rows { total, .. } => total,
        _ => 0,
    })?;
    let mut items = Vec::new();
    for columns in import.batches() {
        let rows = columns.serial_numbers.iter().zip(columns.labels).zip(columns.owners);
        for ((serial_number, labels), owner) in rows {
            items.push(ImportItem {
                serial_number: serial_number.clone(),
                labels: serde_json::from_str(labels).map_err(|_| usize::MAX)?,
                owner: owner.clone(),
            });
        }
    }
    Ok(items)
}

/// A request for a page of a list: its filters, the number of rows to read, and the cursor of its own position.
pub type ListRequest = (BTreeMap<String, String>, i64, Option<String>);

/// Reads the query of a list whose positions are ids, or serial numbers.
#[must_use]
pub fn list(uri: &Uri, is_by_serial_number: bool) -> Option<ListRequest> {
    if is_by_serial_number {
        let List { filter, page } = List::<_, String>::parse(uri).ok()?;
        return Some((filter, page.rows(), page.after.as_ref().map(|after| page.cursor(after))));
    }
    let List { filter, page } = List::<_, Uuid>::parse(uri).ok()?;
    Some((filter, page.rows(), page.after.as_ref().map(|after| page.cursor(after))))
}

/// The API key in the header `Authorization`.
#[must_use]
pub fn presented_key(headers: &HeaderMap, accepts_basic: bool) -> Option<Zeroizing<String>> {
    authentication::presented_key(headers, accepts_basic).ok()
}

/// Issues a nonce under this key.
#[must_use]
pub fn issue_nonce(key: &[u8; 32], now: OffsetDateTime, last_used: Option<OffsetDateTime>) -> String {
    Nonces::new(key).issue(now, last_used)
}

/// The order of a fresh nonce, and whether it comes from a replica whose clock is ahead.
#[must_use]
pub fn recognize_nonce(key: &[u8; 32], nonce: &str, now: OffsetDateTime) -> Option<(OffsetDateTime, bool)> {
    match Nonces::new(key).recognize(nonce, now) {
        Ok(fresh) => Some((fresh.order(), false)),
        Err(NonceError::Ahead { order }) => Some((order, true)),
        Err(NonceError::Foreign | NonceError::Expired) => None,
    }
}

/// Issues a continuity value.
#[must_use]
pub fn issue_continuity(nonce_key: &[u8; 32], machine_id: Uuid, order: OffsetDateTime) -> String {
    ContinuityValues::new(nonce_key).issue(machine_id, order)
}

/// The order of a genuine continuity value.
#[must_use]
pub fn recognize_continuity(nonce_key: &[u8; 32], machine_id: Uuid, value: &str) -> Option<OffsetDateTime> {
    match ContinuityValues::new(nonce_key).recognize(machine_id, Some(value)) {
        Carried::Genuine(order) => Some(order),
        Carried::Nothing | Carried::Foreign => None,
    }
}
