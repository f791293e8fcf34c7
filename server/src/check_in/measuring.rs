//! Other ways to record a check-in, to compare the committer with (the feature `measuring`). None of them is part of a
//! server that is shipped.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use uuid::Uuid;

use super::committer::Committer;
use crate::{
    config::Recording,
    store::{
        Store, StoreError,
        batcher::{BatchError, BatchResult},
        machines::{
            self,
            check_ins::{CheckIn, Recorded},
        },
    },
};

/// The committer, or what stands in for it.
pub(crate) struct MeasuredCommitter {
    committer: Committer,
    recording: Recording,
    store: Store,
    /// What the database said last of each machine.
    last: Mutex<HashMap<Uuid, Recorded>>,
}

impl MeasuredCommitter {
    pub(crate) fn new(committer: Committer, recording: Recording, store: Store) -> Self {
        Self {
            committer,
            recording,
            store,
            last: Mutex::default(),
        }
    }

    pub(crate) async fn call(&self, check_in: CheckIn) -> BatchResult<Recorded> {
        match self.recording {
            Recording::Group => self.committer.call(check_in).await,
            Recording::Single => {
                let recorded = self.record_alone(check_in).await;
                recorded.map_err(BatchError::from)
            }
            Recording::None => self.remember(check_in).await,
        }
    }

    async fn record_alone(&self, check_in: CheckIn) -> Result<Option<Recorded>, StoreError> {
        let mut connection = self.store.connection().await?;
        let recorded = machines::check_ins::record_unchanged(&mut connection, &[check_in]).await?;
        Ok(recorded.into_iter().next().flatten())
    }

    async fn remember(&self, check_in: CheckIn) -> BatchResult<Recorded> {
        let last = || self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(recorded) = last().get(&check_in.machine_id) {
            return Ok(Some(recorded.clone()));
        }
        let recorded = self.committer.call(check_in).await?;
        if let Some(recorded) = recorded.as_ref().filter(|recorded| recorded.verdict_digest.is_some()) {
            last().insert(check_in.machine_id, recorded.clone());
        }
        Ok(recorded)
    }
}
