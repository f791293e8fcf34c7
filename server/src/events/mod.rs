//! Publishes events. Each committed event gets a position in one order, and then goes to streams and webhooks.

pub(crate) mod announcing;
pub(crate) mod feed;
pub(crate) mod subscription;

use assay_protocol::admin_api::{changes::EventKind, events::Event};
use uuid::Uuid;

use crate::{
    services::Services,
    store::{self, StoreError},
};

/// Selects events. An absent member selects all.
#[derive(Debug, Default)]
pub(crate) struct EventFilter {
    pub(crate) machine_id: Option<Uuid>,
    pub(crate) kind: Option<EventKind>,
}

impl EventFilter {
    fn wants(&self, event: &Event) -> bool {
        self.machine_id.is_none_or(|id| event.machine_id == Some(id))
            && self.kind.is_none_or(|kind| kind.as_str() == event.kind)
    }
}

/// A page of events, the newest first.
pub(crate) async fn list(
    services: &Services,
    filter: &EventFilter,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<Event>, StoreError> {
    let mut connection = services.store.connection().await?;
    // One query per combination, because each has its own index.
    match (filter.machine_id, filter.kind.map(EventKind::as_str)) {
        (Some(id), kind) => store::events::list_of_machine(&mut connection, id, kind, after, rows).await,
        (None, Some(kind)) => store::events::list_of_kind(&mut connection, kind, after, rows).await,
        (None, None) => store::events::list(&mut connection, after, rows).await,
    }
}
