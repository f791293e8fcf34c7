//! `webhooks`

use assay_protocol::admin_api::webhooks::Webhook;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};

/// Which events a webhook receives.
#[derive(Debug, Clone)]
pub(crate) struct Interest {
    pub(crate) webhook_id: Uuid,
    /// `None` for all.
    pub(crate) kinds: Option<Vec<String>>,
}

/// The URL and the sealed secret of a webhook.
#[derive(Debug, Clone)]
pub(crate) struct Receiver {
    pub(crate) id: Uuid,
    pub(crate) url: String,
    pub(crate) sealed_secret: Vec<u8>,
    /// Whether the last attempt failed.
    pub(crate) is_failing: bool,
}

/// The columns of a webhook. All queries share them, so lists and single reads never differ.
macro_rules! select {
    ($condition:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Webhook,
            r#"SELECT id, url, description, kinds, created_at, disabled_at, disabled_reason, last_delivered_at, failing_since,
                      (SELECT count(*) FROM webhook_deliveries
                       WHERE webhook_id = webhooks.id AND status = 'pending') AS "pending!"
               FROM webhooks "# + $condition,
            $($argument),+
        )
    };
}

/// Inserts a webhook.
pub(crate) async fn insert(
    connection: &mut Connection,
    webhook: &Webhook,
    sealed_secret: &[u8],
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO webhooks (id, url, description, kinds, sealed_secret, created_at) VALUES ($1, $2, $3, $4, $5, $6)",
        webhook.id,
        webhook.url,
        webhook.description,
        webhook.kinds.as_deref(),
        sealed_secret,
        webhook.created_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of webhooks, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Webhook>, StoreError> {
    Ok(
        select!("WHERE $1::uuid IS NULL OR id > $1 ORDER BY id LIMIT $2", after, limit)
            .fetch_all(connection)
            .await?,
    )
}

/// Finds a webhook.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<Webhook>, StoreError> {
    Ok(select!("WHERE id = $1", id).fetch_optional(connection).await?)
}

/// Locks a webhook, and reads it.
pub(crate) async fn lock(connection: &mut Connection, id: Uuid) -> Result<Option<Webhook>, StoreError> {
    Ok(select!("WHERE id = $1 FOR UPDATE", id)
        .fetch_optional(connection)
        .await?)
}

/// The number of webhooks.
pub(crate) async fn count(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM webhooks"#)
        .fetch_one(connection)
        .await?)
}

/// Which events the enabled webhooks receive. Locks them against deletion until the end of the transaction.
pub(crate) async fn interests(connection: &mut Connection) -> Result<Vec<Interest>, StoreError> {
    Ok(sqlx::query_as!(
        Interest,
        "SELECT id AS webhook_id, kinds FROM webhooks WHERE disabled_at IS NULL ORDER BY id FOR KEY SHARE"
    )
    .fetch_all(connection)
    .await?)
}

/// The enabled webhooks with due deliveries, except the named ones.
pub(crate) async fn due(
    connection: &mut Connection,
    now: OffsetDateTime,
    without: &[Uuid],
) -> Result<Vec<Receiver>, StoreError> {
    Ok(sqlx::query_as!(
        Receiver,
        r#"SELECT id, url, sealed_secret, failing_since IS NOT NULL AS "is_failing!" FROM webhooks
           WHERE disabled_at IS NULL AND id <> ALL($2)
             AND EXISTS (SELECT FROM webhook_deliveries
                         WHERE webhook_id = webhooks.id AND status = 'pending' AND next_attempt_at <= $1
                           AND (claimed_until IS NULL OR claimed_until <= $1))"#,
        now,
        without
    )
    .fetch_all(connection)
    .await?)
}

/// Records that the receiver accepted a delivery.
pub(crate) async fn note_delivered(
    connection: &mut Connection,
    id: Uuid,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE webhooks SET last_delivered_at = GREATEST(last_delivered_at, $2), failing_since = NULL WHERE id = $1",
        id,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records a failed attempt.
pub(crate) async fn note_failing(connection: &mut Connection, id: Uuid, now: OffsetDateTime) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE webhooks SET failing_since = $2 WHERE id = $1 AND failing_since IS NULL",
        id,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Disables a webhook.
pub(crate) async fn disable(
    connection: &mut Connection,
    id: Uuid,
    reason: &str,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE webhooks SET disabled_at = $2, disabled_reason = $3 WHERE id = $1 AND disabled_at IS NULL",
        id,
        now,
        reason
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deletes a webhook with its deliveries.
pub(crate) async fn delete(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM webhooks WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}
