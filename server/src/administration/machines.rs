//! Machines: searched, read, labelled, deleted. Their status changes in [`crate::registry::status_change`].

use assay_protocol::{
    admin_api::{
        certificates::Certificate,
        events::Event,
        machines::{Machine, PatchMachine},
    },
    machine::MachineStatus,
};
use serde_json::json;
use uuid::Uuid;

use crate::{
    changes::{Change, Origin},
    machines::labels::{self, LabelError, Labels},
    registry::{
        liveness_sweep,
        record::{self, boundaries},
        status_change,
    },
    services::Services,
    store::{self, AsStoreError, StoreError, Transaction, machines::search::MachineFilter},
    text::is_prose,
};

const LONGEST_NOTE: usize = 4_000;
/// What becomes of keys and enrollments of a record that is deleted.
const DELETED: &str = "the machine's record was deleted";

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("{0}")]
    Labels(LabelError),
    #[error("note has to have {LONGEST_NOTE} characters at most, and no control character but line breaks and tabs")]
    Note,
    #[error("there is no such machine")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for MachineError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// Machines of a page.
pub(crate) struct FoundMachines {
    pub(crate) machines: Vec<Machine>,
    /// See [`store::machines::search::FoundIds`].
    pub(crate) stopped_at: Option<Uuid>,
}

/// A page of the machines that a filter lets through, in the order in which their records were made.
pub(crate) async fn list(
    services: &Services,
    filter: &MachineFilter,
    after: Option<Uuid>,
    rows: i64,
) -> Result<FoundMachines, MachineError> {
    if filter.liveness.is_some() {
        liveness_sweep::bring_up_to_date(services).await?;
    }
    let boundaries = boundaries(services);
    let mut snapshot = services.store.snapshot().await?;
    let found = store::machines::search::find_ids(&mut snapshot, filter, &boundaries.liveness, after, rows).await?;
    let machines = store::machines::find_all(&mut snapshot, &found.ids, &boundaries).await?;
    store::end(snapshot).await?;
    Ok(FoundMachines {
        machines,
        stopped_at: found.stopped_at,
    })
}

/// One machine.
pub(crate) async fn find(services: &Services, id: Uuid) -> Result<Machine, MachineError> {
    store::machines::find(&mut *services.store.connection().await?, id, &boundaries(services))
        .await?
        .ok_or(MachineError::Unknown)
}

/// A page of a machine's certificates, the newest first; of a deleted one too.
pub(crate) async fn certificates(
    services: &Services,
    id: Uuid,
    after: Option<&str>,
    rows: i64,
) -> Result<Vec<Certificate>, MachineError> {
    let mut connection = services.store.connection().await?;
    let now = services.clock.now();
    let found = store::certificates::list_of_machine(&mut connection, id, after, rows, now).await?;
    demand_known(services, &mut connection, id, found.is_empty() && after.is_none()).await?;
    Ok(found)
}

/// A page of what happened to a machine, the newest first; to a deleted one too.
pub(crate) async fn events(
    services: &Services,
    id: Uuid,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<Event>, MachineError> {
    let mut connection = services.store.connection().await?;
    let found = store::events::list_of_machine(&mut connection, id, None, after, rows).await?;
    demand_known(services, &mut connection, id, found.is_empty() && after.is_none()).await?;
    Ok(found)
}

/// Changes labels and note by a merge patch.
pub(crate) async fn patch(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    patch: &PatchMachine,
) -> Result<Machine, MachineError> {
    services
        .store
        .tx(
            "patch a machine",
            &(services, origin, id, patch),
            |tx, &(services, origin, id, patch)| Box::pin(patch_once(tx, services, origin, id, patch)),
        )
        .await
}

/// Revokes a machine and removes its record. Events, certificates and audit stay.
pub(crate) async fn delete(services: &Services, origin: &Origin, id: Uuid) -> Result<(), MachineError> {
    services
        .store
        .tx(
            "delete a machine",
            &(services, origin, id),
            |tx, &(services, origin, id)| Box::pin(delete_once(tx, services, origin, id)),
        )
        .await
}

async fn patch_once(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    id: Uuid,
    patch: &PatchMachine,
) -> Result<Machine, MachineError> {
    let before = record::hold(tx, services, id).await?.ok_or(MachineError::Unknown)?;
    let labels = merged_labels(before.labels.clone(), patch)?;
    let note = merged_note(before.note.clone(), patch)?;
    if labels == before.labels && note == before.note {
        return Ok(before);
    }
    store::machines::set_labels_and_note(tx, id, &labels, note.as_deref()).await?;
    if labels != before.labels {
        store::machines::presence::bump_record_version(tx, id).await?;
        let detail = json!({ "before": before.labels, "after": labels });
        store::events::insert(tx, services.clock.as_ref(), id, "machine.labels-changed", detail).await?;
    }
    let change = Change::new("machine.patch", "machine", id);
    Ok(record::audit(tx, services, origin, change, &before).await?)
}

async fn delete_once(tx: &mut Transaction, services: &Services, origin: &Origin, id: Uuid) -> Result<(), MachineError> {
    let before = record::hold(tx, services, id).await?.ok_or(MachineError::Unknown)?;
    if before.status != MachineStatus::Revoked {
        status_change::revoke_everything(tx, services, origin, id, DELETED).await?;
    }
    status_change::deny_what_waits(tx, services, origin, id, DELETED).await?;
    store::machines::delete(tx, id).await?;
    store::events::insert(tx, services.clock.as_ref(), id, "machine.deleted", json!({})).await?;
    let change = Change::new("machine.delete", "machine", id).before(store::json(&before)?);
    Ok(store::audit_entries::insert(tx, services.clock.as_ref(), origin, change).await?)
}

/// An id that has left no trace is not found, rather than a machine to which nothing ever happened.
async fn demand_known(
    services: &Services,
    connection: &mut store::Connection,
    id: Uuid,
    no_trace: bool,
) -> Result<(), MachineError> {
    if no_trace
        && store::machines::find(connection, id, &boundaries(services))
            .await?
            .is_none()
    {
        return Err(MachineError::Unknown);
    }
    Ok(())
}

fn merged_labels(mut labels: Labels, patch: &PatchMachine) -> Result<Labels, MachineError> {
    match &patch.labels {
        None => return Ok(labels),
        Some(None) => labels.clear(),
        Some(Some(changes)) => {
            for (key, value) in changes {
                match value {
                    Some(value) => labels.insert(key.clone(), value.clone()),
                    None => labels.remove(key),
                };
            }
        }
    }
    labels::check(&labels).map_err(MachineError::Labels)?;
    Ok(labels)
}

fn merged_note(note: Option<String>, patch: &PatchMachine) -> Result<Option<String>, MachineError> {
    let Some(note) = patch.note.clone().unwrap_or(note) else {
        return Ok(None);
    };
    is_prose(&note, 0..=LONGEST_NOTE)
        .then_some(Some(note))
        .ok_or(MachineError::Note)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, from_value};

    use super::*;

    #[rstest]
    #[case(json!({}), json!({"team": "build", "site": "rome"}))]
    #[case(json!({"labels": {}}), json!({"team": "build", "site": "rome"}))]
    #[case(json!({"labels": {"team": null, "gone": null}}), json!({"site": "rome"}))]
    #[case(json!({"labels": {"team": "sales", "new": ""}}), json!({"team": "sales", "site": "rome", "new": ""}))]
    #[case(json!({"labels": null}), json!({}))]
    fn labels_are_merged(#[case] patch: Value, #[case] expected: Value) {
        let labels = from_value(json!({"team": "build", "site": "rome"})).unwrap();
        let merged = merged_labels(labels, &from_value(patch).unwrap()).unwrap();
        assert_eq!(json!(merged), expected);
    }

    #[test]
    fn merged_labels_are_still_labels() {
        let patch = from_value(json!({"labels": {"a:b": "c"}})).unwrap();
        assert!(matches!(
            merged_labels(Labels::new(), &patch),
            Err(MachineError::Labels(_))
        ));
        let labels = (0..64).map(|key| (key.to_string(), String::new())).collect();
        let patch = from_value(json!({"labels": {"one-more": "c"}})).unwrap();
        assert!(matches!(
            merged_labels(labels, &patch),
            Err(MachineError::Labels(LabelError::TooMany))
        ));
    }

    #[rstest]
    #[case(json!({}), Some("old"))]
    #[case(json!({"note": null}), None)]
    #[case(json!({"note": "new\nline"}), Some("new\nline"))]
    fn a_note_is_kept_removed_or_replaced(#[case] patch: Value, #[case] expected: Option<&str>) {
        let note = merged_note(Some("old".into()), &from_value(patch).unwrap()).unwrap();
        assert_eq!(note.as_deref(), expected);
    }

    #[test]
    fn a_note_is_text() {
        let patch = from_value(json!({"note": "\u{1b}[2J"})).unwrap();
        assert!(matches!(merged_note(None, &patch), Err(MachineError::Note)));
    }
}
