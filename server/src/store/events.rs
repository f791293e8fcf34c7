//! `events`: what happened, mostly to machines. An event is inserted, is assigned a position once, and is removed after its
//! retention.

use assay_protocol::admin_api::events::{AnnouncedEvent, Event};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError};
use crate::{changes::NewEvent, clock};

/// An event that was just assigned its position.
#[derive(Debug, Clone)]
pub(crate) struct Announcement {
    pub(crate) sequence: i64,
    pub(crate) event_id: Uuid,
    pub(crate) kind: String,
}

/// A new event, with its id and its time.
#[derive(Debug)]
pub(super) struct StampedEvent<'a> {
    pub(super) id: Uuid,
    pub(super) at: OffsetDateTime,
    pub(super) event: &'a NewEvent,
}

/// Inserts events, to be announced later.
pub(super) async fn insert(connection: &mut Connection, events: &[StampedEvent<'_>]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let ids: Vec<Uuid> = events.iter().map(|stamped| stamped.id).collect();
    let times: Vec<OffsetDateTime> = events.iter().map(|stamped| stamped.at).collect();
    let machine_ids: Vec<Option<Uuid>> = events.iter().map(|stamped| stamped.event.machine_id).collect();
    let kinds: Vec<&str> = events.iter().map(|stamped| stamped.event.kind.as_str()).collect();
    let details: Vec<Option<&Value>> = events.iter().map(|stamped| Some(&stamped.event.detail)).collect();
    sqlx::query!(
        "INSERT INTO events (id, at, machine_id, kind, detail)
         SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::uuid[], $4::text[], $5::jsonb[])",
        &ids,
        &times,
        &machine_ids as &[Option<Uuid>],
        &kinds as &[&str],
        &details as &[Option<&Value>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of all events, newest first.
pub(crate) async fn list(
    connection: &mut Connection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    Ok(sqlx::query_as!(
        Event,
        "SELECT id, at, machine_id, kind, detail FROM events WHERE $1::uuid IS NULL OR id < $1 ORDER BY id DESC LIMIT $2",
        after,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// A page of all events of a kind, newest first. The query is a range of the index over kind and id: otherwise Postgres
/// may search all events for a rare kind.
pub(crate) async fn list_of_kind(
    connection: &mut Connection,
    kind: &str,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    Ok(sqlx::query_as!(
        Event,
        "SELECT id, at, machine_id, kind, detail FROM events
         WHERE kind >= $1 AND (kind, id) < ($1, coalesce($2, 'ffffffff-ffff-ffff-ffff-ffffffffffff'::uuid))
         ORDER BY kind DESC, id DESC LIMIT $3",
        kind,
        after,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// A page of a machine's events, of one kind or all, newest first, even if its record was deleted.
pub(crate) async fn list_of_machine(
    connection: &mut Connection,
    machine_id: Uuid,
    kind: Option<&str>,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    Ok(sqlx::query_as!(
        Event,
        "SELECT id, at, machine_id, kind, detail FROM events
         WHERE machine_id = $1 AND ($2::text IS NULL OR kind = $2) AND ($3::uuid IS NULL OR id < $3)
         ORDER BY id DESC LIMIT $4",
        machine_id,
        kind,
        after,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Assigns positions to the oldest waiting events. Only one transaction at a time may do this.
pub(crate) async fn announce(connection: &mut Connection, limit: i64) -> Result<Vec<Announcement>, StoreError> {
    let mut announced = sqlx::query_as!(
        Announcement,
        r#"WITH waiting AS MATERIALIZED (
               SELECT id, row_number() OVER (ORDER BY id) AS place
               FROM (SELECT id FROM events WHERE sequence IS NULL ORDER BY id LIMIT $1) AS oldest
           ), counter AS (
               UPDATE event_sequence SET last = last + (SELECT count(*) FROM waiting)
               WHERE EXISTS (SELECT FROM waiting)
               RETURNING last - (SELECT count(*) FROM waiting) AS before
           )
           UPDATE events SET sequence = before + place FROM waiting, counter WHERE events.id = waiting.id
           RETURNING sequence AS "sequence!", events.id AS event_id, kind"#,
        limit
    )
    .fetch_all(connection)
    .await?;
    announced.sort_unstable_by_key(|announcement| announcement.sequence);
    Ok(announced)
}

/// The greatest assigned position.
pub(crate) async fn last_sequence(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("SELECT last FROM event_sequence")
        .fetch_one(connection)
        .await?)
}

/// The next events after a position, in order.
pub(crate) async fn announced_after(
    connection: &mut Connection,
    sequence: i64,
    limit: i64,
) -> Result<Vec<AnnouncedEvent>, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT sequence AS "sequence!", id, at, machine_id, kind, detail FROM events
           WHERE sequence > $1 ORDER BY sequence LIMIT $2"#,
        sequence,
        limit
    )
    .fetch_all(connection)
    .await?;
    let announced = rows.into_iter().map(|row| AnnouncedEvent {
        event: Event {
            id: row.id,
            at: row.at,
            machine_id: row.machine_id,
            kind: row.kind,
            detail: row.detail,
        },
        sequence: row.sequence,
    });
    Ok(announced.collect())
}

/// The number of events that wait to be announced.
pub(crate) async fn count_waiting(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(
        sqlx::query_scalar!(r#"SELECT count(*) AS "count!" FROM events WHERE sequence IS NULL"#)
            .fetch_one(connection)
            .await?,
    )
}

/// Removes the oldest announced events from before a time. Returns their number.
pub(crate) async fn remove_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        // Postgres looks up an array of ids in the index. For IN it may read the whole table.
        "DELETE FROM events
         WHERE id = ANY(ARRAY(SELECT id FROM events
                              WHERE id < $1 AND at < $2 AND sequence IS NOT NULL ORDER BY id LIMIT $3))",
        clock::first_id_at(before),
        before,
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}
