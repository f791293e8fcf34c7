//! Whether the database responds, for supervisors and load balancers.

use assay_protocol::Chain;
use tokio::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::store::Store;

/// How long a result is returned to every caller: anyone may ask, and must not load the database by it.
const VALID_FOR: Duration = Duration::from_secs(1);

/// The last result and its time. One caller at a time asks the database, and the others wait for its result.
#[derive(Debug, Default)]
pub(crate) struct Readiness(Mutex<Option<(Instant, bool)>>);

impl Readiness {
    /// Whether the database responds now, or did less than a second ago.
    pub(crate) async fn is_ready(&self, store: &Store) -> bool {
        let mut last = self.0.lock().await;
        if let Some((at, is_ready)) = *last
            && at.elapsed() < VALID_FOR
        {
            return is_ready;
        }
        let result = store.ping().await;
        if let Err(error) = &result {
            tracing::warn!(error = %Chain(error), "the database is not available");
        }
        *last = Some((Instant::now(), result.is_ok()));
        result.is_ok()
    }
}
