//! Finalizes orders: issues a certificate for the attested key.

use assay_authority::{DeviceCertificateRequest, EcKey};
use serde::Deserialize;
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    AcmeError, CsrError, Inadmissible, accounts, admission, csr, orders,
    refusals::{self, Refused},
    requests::{self, AccountRequest},
};
use crate::{
    changes::{Action, Change, EventKind},
    rate_limits::RateLimits,
    services::Services,
    store::{
        Transaction,
        acme_accounts::Account,
        acme_orders::{self, Order, OrderStatus},
        device_certificates, machines, tx,
    },
};

#[derive(Deserialize)]
struct Finalize {
    csr: String,
}

/// What a transaction decided. A refusal is committed too, because it is recorded.
enum Decided {
    Issued(Order, bool),
    Refused(AcmeError),
}

/// Issues the certificate of an order. Repeating it with the same key returns the same certificate. The second value
/// says whether this call issued it.
pub(crate) async fn finalize(
    services: &Services,
    request: &AccountRequest,
    id: Uuid,
) -> Result<(Order, bool), AcmeError> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let wanted: Finalize = request.payload.read()?;
    let csr = URL_SAFE_NO_PAD
        .decode(&wanted.csr)
        .map_err(|_| AcmeError::Malformed("csr is not base64url without padding"))?;
    let key = csr::proven_key(&csr)?;
    let origin = requests::origin(&request.source, &request.account, None);
    let decided = tx!(services.store, FinalizeAcmeOrder, &origin => finalize_once(services, request, id, &key)).await?;
    match decided {
        Decided::Issued(order, issued_now) => Ok((order, issued_now)),
        Decided::Refused(refusal) => Err(refusal),
    }
}

async fn finalize_once(
    tx: &mut Transaction,
    services: &Services,
    request: &AccountRequest,
    id: Uuid,
    key: &EcKey,
) -> Result<Decided, AcmeError> {
    let account = accounts::lock(tx, &request.account).await?;
    let order = orders::require_own(request, acme_orders::lock(tx, id).await?)?;
    let now = tx.now();
    match order.status_at(now) {
        OrderStatus::Ready | OrderStatus::Valid => {}
        OrderStatus::Pending => return Err(AcmeError::NotReady("pending")),
        OrderStatus::Invalid => return Err(AcmeError::NotReady("invalid")),
    }
    let admitted = admission::admit(tx, &account, &order.serial_number).await?;
    let machine_id = match &admitted {
        Ok(admitted) => admitted.machine_id,
        Err(inadmissible) => inadmissible.machine_id(),
    };
    if order.attested_key.as_ref() != Some(key) {
        let refusal = CsrError::OtherKey.into();
        return refuse(
            tx,
            &services.rate_limits,
            request,
            &account,
            &order,
            machine_id,
            refusal,
        )
        .await;
    }
    if order.status == OrderStatus::Valid {
        return Ok(Decided::Issued(order, false));
    }
    if let Err(inadmissible) = admitted {
        let refusal = Inadmissible::into(inadmissible);
        return refuse(
            tx,
            &services.rate_limits,
            request,
            &account,
            &order,
            machine_id,
            refusal,
        )
        .await;
    }
    device_certificates::lock_device(tx, &order.serial_number).await?;
    // Another machine may have taken the serial number since, and may have been quarantined. Its row is not locked
    // here.
    let holder = machines::record::find_by_serial_number(tx, &order.serial_number).await?;
    if holder.filter(admission::counts).map(|holder| holder.id) != machine_id {
        return Err(AcmeError::Contended);
    }
    issue(tx, services, request, &account, &order, machine_id, key, now).await?;
    let order = orders::require_own(request, acme_orders::find(tx, id).await?)?;
    Ok(Decided::Issued(order, true))
}

#[allow(clippy::too_many_arguments, reason = "a certificate depends on all of them")]
async fn issue(
    tx: &mut Transaction,
    services: &Services,
    request: &AccountRequest,
    account: &Account,
    order: &Order,
    machine_id: Option<Uuid>,
    key: &EcKey,
    now: OffsetDateTime,
) -> Result<(), AcmeError> {
    let authority = services.authority.load();
    services.metrics.certificate_signed();
    let issued = authority
        .issuing()
        .issue_device_certificate(&DeviceCertificateRequest {
            serial_number: &order.serial_number,
            public_key: key,
            now,
            ttl: services.policy.device_certificate_ttl,
        })?;
    let device = &order.serial_number;
    device_certificates::insert(tx, device, key.thumbprint(), authority.issuing().id(), &issued, now).await?;
    acme_orders::set_issued(tx, order.id, &issued.serial_number).await?;
    let detail = json!({
        "serial_number": issued.serial_number, "key": key.thumbprint(), "device_serial_number": device,
        "order_id": order.id,
    });
    let mut change = Change::new(Action::CertificateIssue, &issued.serial_number).after(json!({
        "machine_id": machine_id, "key": key.thumbprint(), "device_serial_number": device, "order_id": order.id,
        "account_id": account.id,
    }));
    if let Some(machine_id) = machine_id {
        change = change.event(machine_id, EventKind::DeviceCertificateIssued, detail);
    }
    tx.act_as(requests::origin(&request.source, account, machine_id));
    Ok(tx.record(change).await?)
}

async fn refuse(
    tx: &mut Transaction,
    rate_limits: &RateLimits,
    request: &AccountRequest,
    account: &Account,
    order: &Order,
    machine_id: Option<Uuid>,
    refusal: AcmeError,
) -> Result<Decided, AcmeError> {
    let reason = match &refusal {
        AcmeError::Inadmissible(inadmissible) => inadmissible.reason(),
        refusal => refusal.to_string(),
    };
    let refused = Refused {
        account,
        source: &request.source,
        serial_number: &order.serial_number,
        machine_id,
        order_id: Some(order.id),
        reason: &reason,
    };
    refusals::record(tx, rate_limits, &refused).await?;
    Ok(Decided::Refused(refusal))
}
