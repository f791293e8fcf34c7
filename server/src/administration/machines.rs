//! Searching, reading, labelling and deleting machines. [`crate::registry::status_change`] changes their status.

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
    changes::{Action, Change, EventKind, Origin},
    machines::labels::{self, LabelError, Labels},
    registry::{
        liveness_sweep,
        record::{self, boundaries},
        status_change,
    },
    services::{Policy, Services},
    store::{self, Store, StoreError, Transaction, machines::search::MachineFilter, tx},
    text::is_prose,
};

const LONGEST_NOTE: usize = 4_000;
/// Why the keys and enrollments of a deleted record end.
const DELETED: &str = "the machine's record was deleted";

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MachineError {
    #[error("{0}")]
    Labels(LabelError),
    #[error("note must have at most {LONGEST_NOTE} characters, without control characters except line breaks and tabs")]
    Note,
    #[error("there is no such machine")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(MachineError);

/// A page of machines.
pub(crate) struct FoundMachines {
    pub(crate) machines: Vec<Machine>,
    /// See [`store::machines::search::FoundIds`].
    pub(crate) stopped_at: Option<Uuid>,
}

/// A page of the machines that match a filter, in the order in which their records were created.
pub(crate) async fn list(
    services: &Services,
    filter: &MachineFilter,
    after: Option<Uuid>,
    rows: i64,
) -> Result<FoundMachines, MachineError> {
    if filter.liveness.is_some() {
        liveness_sweep::bring_up_to_date(services).await?;
    }
    let boundaries = boundaries(&services.policy, services.store.now());
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
    store::machines::find(
        &mut *services.store.connection().await?,
        id,
        &boundaries(&services.policy, services.store.now()),
    )
    .await?
    .ok_or(MachineError::Unknown)
}

/// A page of a machine's certificates, newest first. It also lists those of a deleted machine.
pub(crate) async fn certificates(
    store: &Store,
    id: Uuid,
    after: Option<&str>,
    rows: i64,
) -> Result<Vec<Certificate>, MachineError> {
    let mut connection = store.connection().await?;
    let now = store.now();
    let found = store::certificates::list_of_machine(&mut connection, id, after, rows, now).await?;
    require_known(&mut connection, id, found.is_empty() && after.is_none()).await?;
    Ok(found)
}

/// A page of a machine's events, newest first. It also lists those of a deleted machine.
pub(crate) async fn events(
    store: &Store,
    id: Uuid,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<Event>, MachineError> {
    let mut connection = store.connection().await?;
    let found = store::events::list_of_machine(&mut connection, id, None, after, rows).await?;
    require_known(&mut connection, id, found.is_empty() && after.is_none()).await?;
    Ok(found)
}

/// Applies a merge patch (RFC 7396) to labels and note.
pub(crate) async fn patch(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    patch: &PatchMachine,
) -> Result<Machine, MachineError> {
    tx!(services.store, PatchMachine, origin => patch_once(&services.policy, id, patch)).await
}

/// Revokes a machine and deletes its record. Events, certificates and audit entries remain.
pub(crate) async fn delete(services: &Services, origin: &Origin, id: Uuid) -> Result<(), MachineError> {
    tx!(services.store, DeleteMachine, origin => delete_once(&services.policy, id)).await
}

async fn patch_once(
    tx: &mut Transaction,
    policy: &Policy,
    id: Uuid,
    patch: &PatchMachine,
) -> Result<Machine, MachineError> {
    let (locked, before) = record::lock(tx, policy, id).await?.ok_or(MachineError::Unknown)?;
    let labels = merged_labels(before.labels.clone(), patch)?;
    let note = merged_note(before.note.clone(), patch)?;
    if labels == before.labels && note == before.note {
        return Ok(before);
    }
    store::machines::set_labels_and_note(tx, &locked, &labels, note.as_deref()).await?;
    let mut change = Change::new(Action::MachinePatch, id);
    if labels != before.labels {
        store::machines::presence::bump_record_version(tx, &locked).await?;
        let detail = json!({ "before": before.labels, "after": labels });
        change = change.event(id, EventKind::MachineLabelsChanged, detail);
    } else {
        change = change.event(id, EventKind::MachineNoteChanged, json!({}));
    }
    Ok(record::write(tx, policy, change, &before).await?)
}

async fn delete_once(tx: &mut Transaction, policy: &Policy, id: Uuid) -> Result<(), MachineError> {
    let (locked, before) = record::lock(tx, policy, id).await?.ok_or(MachineError::Unknown)?;
    if before.status != MachineStatus::Revoked {
        status_change::revoke_everything(tx, &locked, DELETED).await?;
    }
    status_change::deny_what_waits(tx, &locked, DELETED).await?;
    store::machines::delete(tx, &locked).await?;
    let change = Change::new(Action::MachineDelete, id)
        .before(store::json(&before)?)
        .event(id, EventKind::MachineDeleted, json!({}));
    Ok(tx.record(change).await?)
}

/// An empty list of an id that was never a machine's is an error, and not the list of a machine without events.
async fn require_known(connection: &mut store::Connection, id: Uuid, is_empty: bool) -> Result<(), MachineError> {
    if is_empty && !store::machines::presence::exists(connection, id).await? {
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
    fn merged_labels_are_checked() {
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
    fn a_note_with_a_control_character_is_refused() {
        let patch = from_value(json!({"note": "\u{1b}[2J"})).unwrap();
        assert!(matches!(merged_note(None, &patch), Err(MachineError::Note)));
    }
}
