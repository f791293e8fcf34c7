//! Orders. Each is for one device and has one authorization and one challenge, which share the order's id.

use assay_authority::random_bytes;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    AcmeError, Inadmissible, accounts,
    admission::{self, Admitted},
    refusals::{self, Refused},
    requests::{self, AccountRequest},
};
use crate::{
    rate_limits::{Network, RateLimits},
    services::Services,
    store::{
        Connection, Store, Transaction,
        acme_accounts::{self, Account},
        acme_orders::{self, Order, OrderStatus},
        device_certificates, tx,
    },
};

/// A Mac normally finishes within seconds, but Apple's servers may attest slowly.
const LIFE: Duration = Duration::hours(1);
/// How many orders a page of an account's list has.
pub(crate) const PAGE: i64 = 50;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewOrder {
    identifiers: Vec<Identifier>,
    /// Clients cannot choose the validity: the server decides it.
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

/// Creates an order. Repeating it returns the same order while that waits for its attestation.
pub(crate) async fn create(services: &Services, request: &AccountRequest) -> Result<Order, AcmeError> {
    let wanted: NewOrder = request.payload.read()?;
    if wanted.not_before.is_some() || wanted.not_after.is_some() {
        return Err(AcmeError::Malformed(
            "notBefore and notAfter are not supported; omit them",
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
    let origin = requests::origin(&request.source, &request.account, None);
    let (rate_limits, account) = (services.rate_limits.as_ref(), &request.account);
    let network = request.source.address.map(Network::of);
    let made =
        tx!(services.store, CreateAcmeOrder, &origin => create_once(rate_limits, account, network, &serial_number))
            .await;
    match made {
        Err(AcmeError::Inadmissible(refusal)) => Err(refuse(services, request, refusal).await?),
        created => created,
    }
}

/// An order of the account.
pub(crate) async fn find(store: &Store, request: &AccountRequest, id: Uuid) -> Result<Order, AcmeError> {
    request.payload.require_empty()?;
    find_own(&mut *store.connection().await?, request, id).await
}

/// The order of an authorization. The client may deactivate the authorization (RFC 8555, section 7.5.2).
pub(crate) async fn authorization(store: &Store, request: &AccountRequest, id: Uuid) -> Result<Order, AcmeError> {
    if request.payload.is_empty() {
        return find(store, request, id).await;
    }
    let update: AuthorizationUpdate = request.payload.read()?;
    if update.status != "deactivated" {
        return Err(AcmeError::Malformed(
            "the status of an authorization can only be changed to deactivated",
        ));
    }
    let mut connection = store.connection().await?;
    find_own(&mut connection, request, id).await?;
    acme_orders::give_up(&mut connection, id).await?;
    find_own(&mut connection, request, id).await
}

/// The account's orders that are not obsolete, oldest first: one more than a page has.
pub(crate) async fn list(
    store: &Store,
    request: &AccountRequest,
    account_id: Uuid,
    after: Option<Uuid>,
) -> Result<Vec<Uuid>, AcmeError> {
    request.payload.require_empty()?;
    accounts::require_own(&request.account, account_id)?;
    let mut connection = store.connection().await?;
    let now = store.now();
    Ok(acme_orders::list_of_account(&mut connection, account_id, after, now, PAGE + 1).await?)
}

/// The certificate of an order with its chain, in PEM.
pub(crate) async fn certificate(services: &Services, request: &AccountRequest, id: Uuid) -> Result<String, AcmeError> {
    let order = find(&services.store, request, id).await?;
    let serial_number = order.certificate_serial_number.ok_or(AcmeError::NotFound)?;
    let mut connection = services.store.connection().await?;
    let found = device_certificates::find_der(&mut connection, &serial_number).await?;
    let (der, issuer_id) = found.ok_or(AcmeError::NotFound)?;
    // A CA is retired only after all its certificates have expired. There is then nothing to download.
    let authority = services.authority.load();
    let issuer = authority.issuer(issuer_id).map_err(|_| AcmeError::NotFound)?;
    Ok(issuer.chain_pem(&der))
}

pub(super) fn require_own(request: &AccountRequest, order: Option<Order>) -> Result<Order, AcmeError> {
    let order = order.ok_or(AcmeError::NotFound)?;
    if order.account_id != request.account.id {
        return Err(AcmeError::OtherAccount);
    }
    Ok(order)
}

async fn find_own(connection: &mut Connection, request: &AccountRequest, id: Uuid) -> Result<Order, AcmeError> {
    require_own(request, acme_orders::find(connection, id).await?)
}

async fn create_once(
    tx: &mut Transaction,
    rate_limits: &RateLimits,
    account: &Account,
    network: Option<Network>,
    serial_number: &str,
) -> Result<Order, AcmeError> {
    let account = accounts::lock(tx, account).await?;
    let Admitted { by_token, .. } = admission::admit(tx, &account, serial_number).await??;
    let now = tx.now();
    if let Some(order) = acme_orders::find_pending(tx, account.id, serial_number, now).await? {
        return Ok(order);
    }
    rate_limits.charge_device_order(network, serial_number)?;
    let order = new_order(tx.new_id(), account.id, serial_number, now);
    acme_orders::insert(tx, &order, now).await?;
    let confirmed = by_token.then_some(serial_number);
    acme_accounts::note_order(tx, account.id, confirmed).await?;
    Ok(order)
}

fn new_order(id: Uuid, account_id: Uuid, serial_number: &str, now: OffsetDateTime) -> Order {
    Order {
        id,
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

/// Records the refusal of an order, and returns it.
async fn refuse(services: &Services, request: &AccountRequest, refusal: Inadmissible) -> Result<AcmeError, AcmeError> {
    let reason = refusal.reason();
    let refused = Refused {
        account: &request.account,
        source: &request.source,
        serial_number: refusal.serial_number(),
        machine_id: refusal.machine_id(),
        order_id: None,
        reason: &reason,
    };
    let origin = requests::origin(&request.source, &request.account, None);
    tx!(services.store, RefuseAcmeOrder, &origin => refusals::record(&services.rate_limits, &refused)).await?;
    Ok(refusal.into())
}
