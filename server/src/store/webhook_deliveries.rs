//! `webhook_deliveries`: waiting, claimed and finished deliveries.

use assay_protocol::admin_api::{
    events::{AnnouncedEvent, Event},
    webhooks::{DeliveryStatus, WebhookDelivery},
};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, parse_text};
use crate::clock;

/// A new delivery. It is due at once.
#[derive(Debug, Clone)]
pub(crate) struct NewDelivery {
    pub(crate) id: Uuid,
    pub(crate) webhook_id: Uuid,
    /// The event's id and sequence; `None` for a test.
    pub(crate) event: Option<(Uuid, i64)>,
    pub(crate) kind: String,
}

/// A delivery that this replica has claimed.
#[derive(Debug, Clone)]
pub(crate) struct Claimed {
    pub(crate) id: Uuid,
    pub(crate) kind: String,
    pub(crate) created_at: OffsetDateTime,
    /// Including this one.
    pub(crate) attempts: i64,
    pub(crate) content: Content,
}

/// The content of a delivery.
#[derive(Debug, Clone)]
pub(crate) enum Content {
    /// An event.
    Event(AnnouncedEvent),
    /// An event that was removed since.
    Removed,
    /// A test without an event.
    Test,
}

/// A failed attempt.
#[derive(Debug, Clone)]
pub(crate) struct FailedAttempt<'a> {
    pub(crate) status: Option<i32>,
    pub(crate) error: &'a str,
    /// When to try again; `None` to give up.
    pub(crate) next_attempt_at: Option<OffsetDateTime>,
}

struct Row {
    id: Uuid,
    event_id: Option<Uuid>,
    event_sequence: Option<i64>,
    event_kind: String,
    status: String,
    attempts: i64,
    created_at: OffsetDateTime,
    last_attempt_at: Option<OffsetDateTime>,
    next_attempt_at: Option<OffsetDateTime>,
    last_status: Option<i32>,
    last_error: Option<String>,
    finished_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for WebhookDelivery {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let status = parse_text(&row.status)?;
        Ok(Self {
            id: row.id,
            event_id: row.event_id,
            event_sequence: row.event_sequence,
            event_kind: row.event_kind,
            status,
            attempts: row.attempts,
            created_at: row.created_at,
            last_attempt_at: row.last_attempt_at,
            next_attempt_at: row.next_attempt_at,
            last_status: row.last_status,
            last_error: row.last_error,
            delivered_at: row.finished_at.filter(|_| status == DeliveryStatus::Delivered),
        })
    }
}

struct ClaimedRow {
    id: Uuid,
    kind: String,
    created_at: OffsetDateTime,
    attempts: i64,
    is_of_an_event: bool,
    event_id: Option<Uuid>,
    at: Option<OffsetDateTime>,
    machine_id: Option<Uuid>,
    detail: Option<Value>,
    sequence: Option<i64>,
}

impl From<ClaimedRow> for Claimed {
    fn from(row: ClaimedRow) -> Self {
        let content = match (row.event_id, row.at, row.detail, row.sequence) {
            (Some(id), Some(at), Some(detail), Some(sequence)) => Content::Event(AnnouncedEvent {
                event: Event {
                    id,
                    at,
                    machine_id: row.machine_id,
                    kind: row.kind.clone(),
                    detail,
                },
                sequence,
            }),
            _ if row.is_of_an_event => Content::Removed,
            _ => Content::Test,
        };
        Self {
            id: row.id,
            kind: row.kind,
            created_at: row.created_at,
            attempts: row.attempts,
            content,
        }
    }
}

/// Inserts deliveries.
pub(crate) async fn insert(
    connection: &mut Connection,
    deliveries: &[NewDelivery],
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let ids: Vec<Uuid> = deliveries.iter().map(|delivery| delivery.id).collect();
    let webhooks: Vec<Uuid> = deliveries.iter().map(|delivery| delivery.webhook_id).collect();
    let kinds: Vec<String> = deliveries.iter().map(|delivery| delivery.kind.clone()).collect();
    let (events, sequences): (Vec<Option<Uuid>>, Vec<Option<i64>>) =
        deliveries.iter().map(|delivery| delivery.event.unzip()).unzip();
    sqlx::query!(
        "INSERT INTO webhook_deliveries
             (id, webhook_id, event_id, event_sequence, event_kind, status, created_at, next_attempt_at)
         SELECT id, webhook_id, event_id, event_sequence, event_kind, 'pending', $6, $6
         FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::bigint[], $5::text[])
              AS new (id, webhook_id, event_id, event_sequence, event_kind)",
        &ids,
        &webhooks,
        &events as &[Option<Uuid>],
        &sequences as &[Option<i64>],
        &kinds,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of a webhook's deliveries, newest first.
pub(crate) async fn list(
    connection: &mut Connection,
    webhook_id: Uuid,
    status: Option<DeliveryStatus>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<WebhookDelivery>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT id, event_id, event_sequence, event_kind, status, attempts, created_at, last_attempt_at, next_attempt_at,
                last_status, last_error, finished_at
         FROM webhook_deliveries
         WHERE webhook_id = $1 AND ($2::text IS NULL OR status = $2) AND ($3::uuid IS NULL OR id < $3)
         ORDER BY id DESC LIMIT $4",
        webhook_id,
        status.map(DeliveryStatus::as_str),
        after,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Claims due deliveries of a webhook that are not claimed, those due longest first.
pub(crate) async fn claim(
    connection: &mut Connection,
    webhook_id: Uuid,
    now: OffsetDateTime,
    until: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Claimed>, StoreError> {
    let rows = sqlx::query_as!(
        ClaimedRow,
        r#"WITH due AS (
               SELECT id FROM webhook_deliveries
               WHERE webhook_id = $1 AND status = 'pending' AND next_attempt_at <= $2
                 AND (claimed_until IS NULL OR claimed_until <= $2)
               ORDER BY next_attempt_at LIMIT $4 FOR UPDATE SKIP LOCKED
           ), claimed AS (
               UPDATE webhook_deliveries SET attempts = attempts + 1, last_attempt_at = $2, claimed_until = $3
               FROM due WHERE webhook_deliveries.id = due.id
               RETURNING webhook_deliveries.id, event_kind AS kind, created_at, attempts, event_id
           )
           SELECT claimed.id AS "id!", claimed.kind AS "kind!", created_at AS "created_at!", attempts AS "attempts!",
                  claimed.event_id IS NOT NULL AS "is_of_an_event!", events.id AS "event_id?", at AS "at?",
                  machine_id AS "machine_id?", detail AS "detail?", sequence AS "sequence?"
           FROM claimed LEFT JOIN events ON events.id = claimed.event_id"#,
        webhook_id,
        now,
        until,
        limit
    )
    .fetch_all(connection)
    .await?;
    Ok(rows.into_iter().map(Into::into).collect())
}

/// Records that the receiver accepted a delivery.
pub(crate) async fn note_delivered(
    connection: &mut Connection,
    id: Uuid,
    status: i32,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE webhook_deliveries
         SET status = 'delivered', next_attempt_at = NULL, claimed_until = NULL, last_status = $2, last_error = NULL,
             finished_at = $3
         WHERE id = $1 AND status = 'pending'",
        id,
        status,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records a failed attempt, unless another attempt has delivered it meanwhile.
pub(crate) async fn note_failed(
    connection: &mut Connection,
    id: Uuid,
    attempt: &FailedAttempt<'_>,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE webhook_deliveries
         SET status = CASE WHEN $4::timestamptz IS NULL THEN 'failed' ELSE 'pending' END, next_attempt_at = $4,
             claimed_until = NULL, last_status = $2, last_error = $3,
             finished_at = CASE WHEN $4::timestamptz IS NULL THEN $5::timestamptz END
         WHERE id = $1 AND status = 'pending'",
        id,
        attempt.status,
        attempt.error,
        attempt.next_attempt_at,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Gives up all waiting deliveries of a webhook.
pub(crate) async fn give_up_all(
    connection: &mut Connection,
    webhook_id: Uuid,
    error: &str,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE webhook_deliveries
         SET status = 'failed', next_attempt_at = NULL, claimed_until = NULL, last_error = $2, finished_at = $3
         WHERE webhook_id = $1 AND status = 'pending'",
        webhook_id,
        error,
        now
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The number of waiting deliveries of all webhooks.
pub(crate) async fn count_pending(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(
        sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM webhook_deliveries WHERE status = 'pending'"#)
            .fetch_one(connection)
            .await?,
    )
}

/// Removes the oldest deliveries that finished before a time. Returns their number.
pub(crate) async fn remove_finished_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        "DELETE FROM webhook_deliveries
         WHERE id = ANY(ARRAY(SELECT id FROM webhook_deliveries
                              WHERE id < $1 AND finished_at < $2 ORDER BY id LIMIT $3))",
        clock::first_id_at(before),
        before,
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}
