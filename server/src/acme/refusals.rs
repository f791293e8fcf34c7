//! Records refusals for administrators: in the audit log, and as an event of the machine if there is one.

use serde_json::json;
use uuid::Uuid;

use super::requests::Caller;
use crate::{
    changes::Change,
    services::Services,
    store::{StoreError, Transaction, acme_accounts::Account, audit_entries, events},
};

/// The refusal to record.
pub(super) struct Refused<'a> {
    pub(super) account: &'a Account,
    pub(super) caller: &'a Caller,
    pub(super) serial_number: &'a str,
    /// The machine with this serial number, if any.
    pub(super) machine_id: Option<Uuid>,
    /// The order, if any.
    pub(super) order_id: Option<Uuid>,
    /// The reason, as a sentence.
    pub(super) reason: &'a str,
}

/// Records a refusal.
///
/// Strangers can cause refusals, because a client proves nothing before the attestation. The number per hour is
/// therefore limited for each known serial number, and for all unknown ones together. The rest is only logged: audit
/// entries are never deleted.
pub(super) async fn record(tx: &mut Transaction, services: &Services, refused: &Refused<'_>) -> Result<(), StoreError> {
    let Refused {
        account,
        caller,
        serial_number,
        machine_id,
        order_id,
        reason,
    } = refused;
    tracing::warn!(serial_number, reason, account_id = %account.id, "refused an ACME certificate");
    let known = order_id.is_some() || machine_id.is_some();
    if !services.rate_limits.may_record_refusal(known.then_some(*serial_number)) {
        return Ok(());
    }
    let clock = services.clock.as_ref();
    let detail = json!({
        "serial_number": serial_number, "account_id": account.id, "order_id": order_id, "address": caller.address,
        "reason": reason,
    });
    if let Some(machine_id) = machine_id {
        events::insert(tx, clock, *machine_id, "device-certificate.refused", detail.clone()).await?;
    }
    let change = Change::new("device-certificate.refuse", "device", serial_number)
        .reason(Some(reason))
        .after(detail);
    audit_entries::insert(tx, clock, &caller.origin(account, *machine_id), change).await
}
