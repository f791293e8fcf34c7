//! Records refusals for administrators: in the audit log, and as an event of the machine if there is one.

use serde_json::json;
use uuid::Uuid;

use super::requests;
use crate::{
    changes::{Action, Change, EventKind, RequestSource},
    rate_limits::RateLimits,
    store::{StoreError, Transaction, acme_accounts::Account},
};

/// The refusal to record.
pub(super) struct Refused<'a> {
    pub(super) account: &'a Account,
    pub(super) source: &'a RequestSource,
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
pub(super) async fn record(
    tx: &mut Transaction,
    rate_limits: &RateLimits,
    refused: &Refused<'_>,
) -> Result<(), StoreError> {
    let Refused {
        account,
        source,
        serial_number,
        machine_id,
        order_id,
        reason,
    } = refused;
    tracing::warn!(serial_number, reason, account_id = %account.id, "refused an ACME certificate");
    let known = order_id.is_some() || machine_id.is_some();
    if !rate_limits.may_record_refusal(known.then_some(*serial_number)) {
        return Ok(());
    }
    let detail = json!({
        "serial_number": serial_number, "account_id": account.id, "order_id": order_id, "reason": reason,
    });
    let mut change = Change::new(Action::DeviceCertificateRefuse, serial_number).reason(Some(reason));
    if let Some(machine_id) = *machine_id {
        let told = json!({
            "serial_number": serial_number, "account_id": account.id, "order_id": order_id, "reason": reason,
            "address": source.address,
        });
        change = change.event(machine_id, EventKind::DeviceCertificateRefused, told);
    }
    tx.act_as(requests::origin(source, account, *machine_id));
    tx.record(change.after(detail)).await
}
