//! Orders: each for one device, with one authorization and one challenge, which share the order's id.

use assay_authority::random_bytes;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    AcmeError, Inadmissible, accounts,
    admission::{self, Admitted},
    refusals::{self, Refused},
    requests::AccountRequest,
};
use crate::{
    clock,
    services::Services,
    store::{
        Connection, Transaction, acme_accounts,
        acme_orders::{self, Order, OrderStatus},
        device_certificates,
    },
};

/// An honest Mac is done within seconds; Apple's servers may be slow to attest.
const LIFE: Duration = Duration::hours(1);
/// Orders on one page of an account's list.
pub(crate) const PAGE: i64 = 50;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewOrder {
    identifiers: Vec<Identifier>,
    /// Nobody is told when a certificate begins and ends: the server decides it.
    #[serde(default)]
    not_before: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    not_after: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: String,
    value: String,
}

#[derive(Deserialize)]
struct AuthorizationUpdate {
    status: String,
}

/// Makes an order. Repeated while the order waits for its attestation, it is the same one.
pub(crate) async fn create(services: &Services, request: &AccountRequest) -> Result<Order, AcmeError> {
    let wanted: NewOrder = request.payload.read()?;
    if wanted.not_before.is_some() || wanted.not_after.is_some() {
        return Err(AcmeError::Malformed(
            "notBefore and notAfter cannot be chosen; leave them out",
        ));
    }
    let [identifier] = wanted.identifiers.as_slice() else {
        return Err(AcmeError::UnsupportedIdentifier);
    };
    if identifier.kind != "permanent-identifier" {
        return Err(AcmeError::UnsupportedIdentifier);
    }
    let serial_number = match admission::serial_number(&identifier.value) {
        Ok(serial_number) => serial_number,
        Err(refusal) => return Err(refuse(services, request, refusal).await?),
    };
    let context = (services, request, serial_number.as_str());
    let made = services
        .store
        .tx(
            "make an ACME order",
            &context,
            |tx, &(services, request, serial_number)| Box::pin(create_once(tx, services, request, serial_number)),
        )
        .await;
    match made {
        Err(AcmeError::Inadmissible(refusal)) => Err(refuse(services, request, refusal).await?),
        made => made,
    }
}

/// An order of the account.
pub(crate) async fn find(services: &Services, request: &AccountRequest, id: Uuid) -> Result<Order, AcmeError> {
    request.payload.demand_empty()?;
    find_own(&mut *services.store.connection().await?, request, id).await
}

/// An order, read by way of its authorization, or given up by it (RFC 8555, section 7.5.2).
pub(crate) async fn authorization(services: &Services, request: &AccountRequest, id: Uuid) -> Result<Order, AcmeError> {
    if request.payload.is_empty() {
        return find(services, request, id).await;
    }
    let update: AuthorizationUpdate = request.payload.read()?;
    if update.status != "deactivated" {
        return Err(AcmeError::Malformed(
            "an authorization's status can be set to deactivated alone",
        ));
    }
    let mut connection = services.store.connection().await?;
    find_own(&mut connection, request, id).await?;
    acme_orders::give_up(&mut connection, id).await?;
    find_own(&mut connection, request, id).await
}

/// The orders of the account that are worth a look, in the order in which they were made, and one more than a page has.
pub(crate) async fn list(
    services: &Services,
    request: &AccountRequest,
    account_id: Uuid,
    after: Option<Uuid>,
) -> Result<Vec<Uuid>, AcmeError> {
    request.payload.demand_empty()?;
    accounts::demand_own(&request.account, account_id)?;
    let mut connection = services.store.connection().await?;
    let now = services.clock.now();
    Ok(acme_orders::list_of_account(&mut connection, account_id, after, now, PAGE + 1).await?)
}

/// The certificate that came of an order, with its chain, in PEM.
pub(crate) async fn certificate(services: &Services, request: &AccountRequest, id: Uuid) -> Result<String, AcmeError> {
    let order = find(services, request, id).await?;
    let serial_number = order.certificate_serial_number.ok_or(AcmeError::NotFound)?;
    let mut connection = services.store.connection().await?;
    let found = device_certificates::find_der(&mut connection, &serial_number).await?;
    let (der, issuer_id) = found.ok_or(AcmeError::NotFound)?;
    // A CA is retired when nothing that it signed is valid any more: then there is nothing to fetch.
    let authority = services.authority.load();
    let issuer = authority.issuer(issuer_id).map_err(|_| AcmeError::NotFound)?;
    Ok(issuer.chain_pem(&der))
}

pub(super) fn demand_own(request: &AccountRequest, order: Option<Order>) -> Result<Order, AcmeError> {
    let order = order.ok_or(AcmeError::NotFound)?;
    if order.account_id != request.account.id {
        return Err(AcmeError::OtherAccount);
    }
    Ok(order)
}

async fn find_own(connection: &mut Connection, request: &AccountRequest, id: Uuid) -> Result<Order, AcmeError> {
    demand_own(request, acme_orders::find(connection, id).await?)
}

async fn create_once(
    tx: &mut Transaction,
    services: &Services,
    request: &AccountRequest,
    serial_number: &str,
) -> Result<Order, AcmeError> {
    let account = accounts::hold(tx, &request.account).await?;
    let Admitted { by_token, .. } = admission::admit(tx, services, &account, serial_number).await??;
    let now = services.clock.now();
    if let Some(order) = acme_orders::find_pending(tx, account.id, serial_number, now).await? {
        return Ok(order);
    }
    services.rate_limits.charge_device_order(serial_number)?;
    let order = new_order(services, account.id, serial_number, now);
    acme_orders::insert(tx, &order, now).await?;
    let vouched_for = by_token.then_some(serial_number);
    acme_accounts::note_order(tx, account.id, vouched_for).await?;
    Ok(order)
}

fn new_order(services: &Services, account_id: Uuid, serial_number: &str, now: OffsetDateTime) -> Order {
    Order {
        id: clock::new_id(services.clock.as_ref()),
        account_id,
        serial_number: serial_number.to_owned(),
        token: URL_SAFE_NO_PAD.encode(random_bytes::<32>()),
        status: OrderStatus::Pending,
        expires_at: now.saturating_add(LIFE),
        refusal: None,
        deactivated: false,
        validated_at: None,
        attested_key: None,
        certificate_serial_number: None,
    }
}

/// Writes down that an order was refused, and hands the refusal back.
async fn refuse(services: &Services, request: &AccountRequest, refusal: Inadmissible) -> Result<AcmeError, AcmeError> {
    let reason = refusal.to_string();
    let refused = Refused {
        account: &request.account,
        caller: &request.caller,
        serial_number: refusal.serial_number(),
        machine_id: refusal.machine_id(),
        order_id: None,
        reason: &reason,
    };
    let context = (services, &refused);
    services
        .store
        .tx::<_, _, AcmeError>("note a refused ACME order", &context, |tx, &(services, refused)| {
            Box::pin(async move { Ok(refusals::note(tx, services, refused).await?) })
        })
        .await?;
    Ok(refusal.into())
}
