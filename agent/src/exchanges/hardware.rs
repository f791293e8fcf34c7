//! Whether the state directory belongs to this machine. Migration Assistant copies it to another Mac, as do a cloned disk
//! and a backup. The agent signs nothing with a copied key, and enrolls the other Mac as a machine of its own.

use std::sync::Arc;

use super::{
    error::AgentError,
    machine::{Machine, run_blocking, update_record},
};
use crate::{
    key_store,
    state::{Record, StateLock},
};

/// Fails if the state belongs to another machine. The record of an older agent takes this machine's hardware UUID.
pub(super) async fn require_own_state(machine: &Machine, lock: &Arc<StateLock>) -> Result<(), AgentError> {
    let record = machine.record().await?;
    match machine.require_own_state(&record).await? {
        Some(present) if record.hardware_uuid.is_none() => {
            update_record(lock, move |record| record.hardware_uuid = Some(present)).await
        }
        _ => Ok(()),
    }
}

/// The same before an enrollment, which replaces a foreign state: it keeps the server, and sets the keys aside.
///
/// The keys come first. After a crash in between, the record still shows that the state is foreign.
pub(super) async fn leave_foreign_state(machine: &Machine, lock: &Arc<StateLock>) -> Result<(), AgentError> {
    let foreign = match require_own_state(machine, lock).await {
        Err(foreign @ AgentError::ForeignState { .. }) => foreign,
        result => return result,
    };
    tracing::warn!("{foreign}. They are set aside as *.key.refused");
    let keys = Arc::clone(lock);
    run_blocking(move || Ok(key_store::set_aside(&keys)?)).await?;
    update_record(lock, |record| {
        let server = record.server.take();
        *record = Record::default();
        record.server = server;
    })
    .await?;
    require_own_state(machine, lock).await
}
