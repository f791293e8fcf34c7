//! `events`: what happened to each machine. Only ever inserted.

use assay_protocol::admin_api::events::Event;
use serde_json::Value;
use uuid::Uuid;

use super::{Connection, StoreError};
use crate::clock::{self, Clock};

/// Writes one event.
pub(crate) async fn insert(
    connection: &mut Connection,
    clock: &dyn Clock,
    machine_id: Uuid,
    kind: &str,
    detail: Value,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO events (id, at, machine_id, kind, detail) VALUES ($1, $2, $3, $4, $5)",
        clock::new_id(clock),
        clock.now(),
        machine_id,
        kind,
        detail
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes one event of the same kind for each of these machines.
pub(crate) async fn insert_all(
    connection: &mut Connection,
    clock: &dyn Clock,
    kind: &str,
    events: &[(Uuid, Value)],
) -> Result<(), StoreError> {
    let ids: Vec<Uuid> = events.iter().map(|_| clock::new_id(clock)).collect();
    let (machine_ids, details): (Vec<Uuid>, Vec<Value>) = events.iter().cloned().unzip();
    sqlx::query!(
        "INSERT INTO events (id, at, machine_id, kind, detail)
         SELECT id, $1, machine_id, $2, detail
         FROM unnest($3::uuid[], $4::uuid[], $5::jsonb[]) AS given (id, machine_id, detail)",
        clock.now(),
        kind,
        &ids,
        &machine_ids,
        &details
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of a machine's events, the newest first, whether its record is there or deleted.
pub(crate) async fn list_of_machine(
    connection: &mut Connection,
    machine_id: Uuid,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Event>, StoreError> {
    Ok(sqlx::query_as!(
        Event,
        "SELECT id, at, machine_id, kind, detail FROM events
         WHERE machine_id = $1 AND ($2::uuid IS NULL OR id < $2) ORDER BY id DESC LIMIT $3",
        machine_id,
        after,
        limit
    )
    .fetch_all(connection)
    .await?)
}
