//! Webhooks: made, listed, tested, deleted.

use assay_authority::{SealingError, WebhookSecret};
use assay_protocol::admin_api::webhooks::{CreateWebhook, DeliveryStatus, Webhook, WebhookDelivery, WebhookTest};
use secrecy::SecretString;
use uuid::Uuid;

use crate::{
    changes::{
        Change, Origin,
        event_kinds::{KINDS, is_kind},
    },
    clock,
    services::Services,
    store::{self, AsStoreError, StoreError, Transaction, webhook_deliveries::NewDelivery},
    text::is_prose,
    webhooks::{
        TEST_KIND,
        url::{self, WebhookUrlError},
    },
};

/// Each may take a place among the attempts at once, however long its receiver takes: there are fewer webhooks than
/// places.
const MOST_WEBHOOKS: i64 = 100;
const LONGEST_DESCRIPTION: usize = 2_000;
/// How much is quoted of what is no kind, in characters.
const LONGEST_QUOTED: usize = 100;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WebhookError {
    #[error(transparent)]
    Url(#[from] WebhookUrlError),
    #[error("description has to have {LONGEST_DESCRIPTION} characters at most, and no control character")]
    Description,
    #[error("kinds has to name one kind of events or more; leave it out for all")]
    NoKinds,
    #[error("kinds: there are no events of the kind {unknown:?}; there are {}", KINDS.join(", "))]
    Kind { unknown: String },
    #[error("there are {MOST_WEBHOOKS} webhooks already")]
    TooMany,
    #[error("the webhook is disabled: make a new one")]
    Disabled,
    #[error("there is no such webhook")]
    Unknown,
    #[error("the secret of a webhook cannot be sealed")]
    Secret(#[from] SealingError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for WebhookError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// Makes a webhook and returns it with its secret, which is kept sealed.
pub(crate) async fn create(
    services: &Services,
    origin: &Origin,
    request: CreateWebhook,
) -> Result<(Webhook, SecretString), WebhookError> {
    let webhook = Webhook {
        id: clock::new_id(services.clock.as_ref()),
        url: url::check(&request.url)?,
        description: checked_description(request.description)?,
        kinds: request.kinds.map(checked_kinds).transpose()?,
        created_at: services.clock.now(),
        disabled_at: None,
        disabled_reason: None,
        last_delivered_at: None,
        failing_since: None,
        pending: 0,
    };
    let secret = WebhookSecret::generate();
    let sealed = services.webhook_secrets.seal(&webhook.id.to_string(), &secret)?;
    services
        .store
        .tx(
            "create a webhook",
            &(services, origin, &webhook, &sealed),
            |tx, &(services, origin, webhook, sealed)| Box::pin(insert(tx, services, origin, webhook, sealed)),
        )
        .await?;
    Ok((webhook, secret.to_text()))
}

/// A page of webhooks, in the order in which they were made.
pub(crate) async fn list(services: &Services, after: Option<Uuid>, rows: i64) -> Result<Vec<Webhook>, WebhookError> {
    Ok(store::webhooks::list(&mut *services.store.connection().await?, after, rows).await?)
}

/// One webhook.
pub(crate) async fn find(services: &Services, id: Uuid) -> Result<Webhook, WebhookError> {
    store::webhooks::find(&mut *services.store.connection().await?, id)
        .await?
        .ok_or(WebhookError::Unknown)
}

/// A page of a webhook's deliveries, the newest first.
pub(crate) async fn deliveries(
    services: &Services,
    id: Uuid,
    status: Option<DeliveryStatus>,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<WebhookDelivery>, WebhookError> {
    let mut connection = services.store.connection().await?;
    let found = store::webhook_deliveries::list(&mut connection, id, status, after, rows).await?;
    if found.is_empty() && store::webhooks::find(&mut connection, id).await?.is_none() {
        return Err(WebhookError::Unknown);
    }
    Ok(found)
}

/// Has a delivery made that tells of no event.
pub(crate) async fn test(services: &Services, origin: &Origin, id: Uuid) -> Result<WebhookTest, WebhookError> {
    services
        .store
        .tx(
            "test a webhook",
            &(services, origin, id),
            |tx, &(services, origin, id)| Box::pin(insert_test(tx, services, origin, id)),
        )
        .await
}

/// Removes a webhook with all of its deliveries.
pub(crate) async fn delete(services: &Services, origin: &Origin, id: Uuid) -> Result<(), WebhookError> {
    services
        .store
        .tx(
            "delete a webhook",
            &(services, origin, id),
            |tx, &(services, origin, id)| Box::pin(remove(tx, services, origin, id)),
        )
        .await
}

async fn insert(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    webhook: &Webhook,
    sealed_secret: &[u8],
) -> Result<(), WebhookError> {
    if store::webhooks::count(tx).await? >= MOST_WEBHOOKS {
        return Err(WebhookError::TooMany);
    }
    store::webhooks::insert(tx, webhook, sealed_secret).await?;
    let change = Change::new("webhook.create", "webhook", webhook.id).after(store::json(webhook)?);
    Ok(store::audit_entries::insert(tx, services.clock.as_ref(), origin, change).await?)
}

async fn insert_test(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    webhook_id: Uuid,
) -> Result<WebhookTest, WebhookError> {
    let webhook = store::webhooks::lock(tx, webhook_id)
        .await?
        .ok_or(WebhookError::Unknown)?;
    if webhook.disabled_at.is_some() {
        return Err(WebhookError::Disabled);
    }
    let clock = services.clock.as_ref();
    let id = clock::new_id(clock);
    let delivery = NewDelivery {
        id,
        webhook_id,
        event: None,
        kind: TEST_KIND.to_owned(),
    };
    store::webhook_deliveries::insert(tx, &[delivery], clock.now()).await?;
    let change = Change::new("webhook.test", "webhook", webhook_id).after(serde_json::json!({ "delivery_id": id }));
    store::audit_entries::insert(tx, clock, origin, change).await?;
    Ok(WebhookTest { delivery_id: id })
}

async fn remove(tx: &mut Transaction, services: &Services, origin: &Origin, id: Uuid) -> Result<(), WebhookError> {
    let before = store::webhooks::lock(tx, id).await?.ok_or(WebhookError::Unknown)?;
    store::webhooks::delete(tx, id).await?;
    let change = Change::new("webhook.delete", "webhook", id).before(store::json(&before)?);
    Ok(store::audit_entries::insert(tx, services.clock.as_ref(), origin, change).await?)
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
    match kinds.iter().find(|kind| !is_kind(kind)) {
        Some(kind) => Err(WebhookError::Kind {
            unknown: kind.chars().take(LONGEST_QUOTED).collect(),
        }),
        None => Ok(kinds),
    }
}
