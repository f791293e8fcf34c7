//! Creating, listing, testing and deleting webhooks.

use assay_authority::{SealingError, WebhookSecret, WebhookSecrets};
use assay_protocol::{
    admin_api::webhooks::{CreateWebhook, DeliveryStatus, Webhook, WebhookDelivery, WebhookTest},
    word,
};
use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    changes::{Action, Change, EventKind, Origin},
    store::{self, Store, StoreError, Transaction, tx, webhook_deliveries::NewDelivery},
    text::is_prose,
    webhooks::{
        TEST_KIND, audited,
        url::{self, WebhookUrlError},
    },
};

/// Fewer than the attempts that may run at the same time. Slow receivers therefore never delay the other webhooks.
const MOST_WEBHOOKS: i64 = 100;
const LONGEST_DESCRIPTION: usize = 2_000;
/// How many characters of an unknown kind the error quotes.
const LONGEST_QUOTED: usize = 100;

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    #[error(transparent)]
    Url(#[from] WebhookUrlError),
    #[error("description must have at most {LONGEST_DESCRIPTION} characters, without control characters")]
    Description,
    #[error("kinds must name at least one kind of event; leave it out for all kinds")]
    NoKinds,
    #[error("kinds: {unknown:?} is no kind of event; the kinds are {}", word::list(&EventKind::ALL))]
    Kind { unknown: String },
    #[error("there are {MOST_WEBHOOKS} webhooks already")]
    TooMany,
    #[error("the webhook is disabled; create a new one")]
    Disabled,
    #[error("there is no such webhook")]
    Unknown,
    #[error("cannot seal the webhook's secret")]
    Secret(#[from] SealingError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(WebhookError);

/// Creates a webhook, and returns it with its secret. The server stores the secret sealed.
pub(crate) async fn create(
    store: &Store,
    secrets: &WebhookSecrets,
    origin: &Origin,
    request: CreateWebhook,
) -> Result<(Webhook, SecretString), WebhookError> {
    let webhook = Webhook {
        id: store.new_id(),
        url: url::check(&request.url)?,
        description: checked_description(request.description)?,
        kinds: request.kinds.map(checked_kinds).transpose()?,
        created_at: store.now(),
        disabled_at: None,
        disabled_reason: None,
        last_delivered_at: None,
        failing_since: None,
        pending: 0,
    };
    let secret = WebhookSecret::generate();
    let sealed = secrets.seal(&webhook.id.to_string(), &secret)?;
    tx!(store, CreateWebhook, origin => insert(&webhook, &sealed)).await?;
    Ok((webhook, secret.to_text()))
}

/// A page of webhooks, oldest first.
pub(crate) async fn list(store: &Store, after: Option<Uuid>, rows: i64) -> Result<Vec<Webhook>, WebhookError> {
    Ok(store::webhooks::list(&mut *store.connection().await?, after, rows).await?)
}

/// One webhook.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<Webhook, WebhookError> {
    store::webhooks::find(&mut *store.connection().await?, id)
        .await?
        .ok_or(WebhookError::Unknown)
}

/// A page of a webhook's deliveries, newest first.
pub(crate) async fn deliveries(
    store: &Store,
    id: Uuid,
    status: Option<DeliveryStatus>,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<WebhookDelivery>, WebhookError> {
    let mut connection = store.connection().await?;
    let found = store::webhook_deliveries::list(&mut connection, id, status, after, rows).await?;
    if found.is_empty() && store::webhooks::find(&mut connection, id).await?.is_none() {
        return Err(WebhookError::Unknown);
    }
    Ok(found)
}

/// Creates a test delivery, which has no event.
pub(crate) async fn test(store: &Store, origin: &Origin, id: Uuid) -> Result<WebhookTest, WebhookError> {
    tx!(store, TestWebhook, origin => insert_test(id)).await
}

/// Deletes a webhook with its deliveries.
pub(crate) async fn delete(store: &Store, origin: &Origin, id: Uuid) -> Result<(), WebhookError> {
    tx!(store, DeleteWebhook, origin => remove(id)).await
}

async fn insert(tx: &mut Transaction, webhook: &Webhook, sealed_secret: &[u8]) -> Result<(), WebhookError> {
    if store::webhooks::count(tx).await? >= MOST_WEBHOOKS {
        return Err(WebhookError::TooMany);
    }
    store::webhooks::insert(tx, webhook, sealed_secret).await?;
    let change = Change::new(Action::WebhookCreate, webhook.id).after(audited(webhook)?);
    Ok(tx.record(change).await?)
}

async fn insert_test(tx: &mut Transaction, webhook_id: Uuid) -> Result<WebhookTest, WebhookError> {
    let webhook = store::webhooks::lock(tx, webhook_id)
        .await?
        .ok_or(WebhookError::Unknown)?;
    if webhook.disabled_at.is_some() {
        return Err(WebhookError::Disabled);
    }
    let (id, now) = (tx.new_id(), tx.now());
    let delivery = NewDelivery {
        id,
        webhook_id,
        event: None,
        kind: TEST_KIND.to_owned(),
    };
    store::webhook_deliveries::insert(tx, &[delivery], now).await?;
    let change = Change::new(Action::WebhookTest, webhook_id).after(serde_json::json!({ "delivery_id": id }));
    tx.record(change).await?;
    Ok(WebhookTest { delivery_id: id })
}

async fn remove(tx: &mut Transaction, id: Uuid) -> Result<(), WebhookError> {
    let before = store::webhooks::lock(tx, id).await?.ok_or(WebhookError::Unknown)?;
    store::webhooks::delete(tx, id).await?;
    let change = Change::new(Action::WebhookDelete, id).before(audited(&before)?);
    Ok(tx.record(change).await?)
}

fn checked_description(description: Option<String>) -> Result<String, WebhookError> {
    let description = description.unwrap_or_default();
    if !is_prose(&description, 0..=LONGEST_DESCRIPTION) {
        return Err(WebhookError::Description);
    }
    Ok(description)
}

fn checked_kinds(mut kinds: Vec<String>) -> Result<Vec<String>, WebhookError> {
    kinds.sort_unstable();
    kinds.dedup();
    if kinds.is_empty() {
        return Err(WebhookError::NoKinds);
    }
    match kinds.iter().find(|kind| kind.parse::<EventKind>().is_err()) {
        Some(kind) => Err(WebhookError::Kind {
            unknown: kind.chars().take(LONGEST_QUOTED).collect(),
        }),
        None => Ok(kinds),
    }
}
