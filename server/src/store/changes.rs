//! Records changes: one call writes an audit entry together with the event of the affected machine.

use assay_protocol::admin_api::changes::EventKind;
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    Connection, StoreError, Transaction,
    audit_entries::{self, StampedEntry},
    events::{self, StampedEvent},
};
use crate::{
    changes::{Change, NewEvent, Origin},
    clock::{self, Clock},
};

/// The time of a change, and the ids of its event and its audit entry. Ids increase in the order of changes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stamp {
    at: OffsetDateTime,
    event_id: Uuid,
    entry_id: Uuid,
}

impl Stamp {
    pub(crate) fn now(clock: &dyn Clock) -> Self {
        Self {
            at: clock.now(),
            event_id: clock::new_id(clock),
            entry_id: clock::new_id(clock),
        }
    }
}

impl Transaction {
    /// Writes the audit entry of a change, and its event if it has one.
    pub(crate) async fn record(&mut self, change: Change) -> Result<(), StoreError> {
        self.record_all(&[change]).await
    }

    /// Writes several changes with the same time.
    pub(crate) async fn record_all(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let origin = self.origin().clone();
        let stamped = changes.iter().map(|change| (Stamp::now(self.clock()), &origin, change));
        let stamped: Vec<_> = stamped.collect();
        record(self, &stamped).await
    }

    /// Writes an event without an audit entry: a consequence of another change, or an observation of the server.
    pub(crate) async fn announce(
        &mut self,
        machine_id: Uuid,
        kind: EventKind,
        detail: Value,
    ) -> Result<(), StoreError> {
        self.announce_all(&[NewEvent {
            machine_id: Some(machine_id),
            kind,
            detail,
        }])
        .await
    }

    /// Writes an event that concerns no machine.
    pub(crate) async fn announce_apart(&mut self, kind: EventKind, detail: Value) -> Result<(), StoreError> {
        self.announce_all(&[NewEvent {
            machine_id: None,
            kind,
            detail,
        }])
        .await
    }

    /// Writes several such events.
    pub(crate) async fn announce_all(&mut self, events: &[NewEvent]) -> Result<(), StoreError> {
        let stamped: Vec<_> = events
            .iter()
            .map(|event| StampedEvent {
                id: self.new_id(),
                at: self.now(),
                event,
            })
            .collect();
        events::insert(self, &stamped).await
    }
}

/// Writes changes with their times and origins: first the events, then the audit entries.
pub(crate) async fn record(
    connection: &mut Connection,
    changes: &[(Stamp, &Origin, &Change)],
) -> Result<(), StoreError> {
    let announced: Vec<_> = changes
        .iter()
        .filter_map(|&(stamp, origin, change)| Some((stamp, change.announced(origin)?)))
        .collect();
    let events: Vec<StampedEvent<'_>> = announced
        .iter()
        .map(|(stamp, event)| StampedEvent {
            id: stamp.event_id,
            at: stamp.at,
            event,
        })
        .collect();
    events::insert(connection, &events).await?;
    let entries: Vec<StampedEntry<'_>> = changes
        .iter()
        .map(|&(stamp, origin, change)| StampedEntry {
            id: stamp.entry_id,
            at: stamp.at,
            origin,
            change,
        })
        .collect();
    audit_entries::insert(connection, &entries).await
}
