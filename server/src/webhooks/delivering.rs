//! Delivery of webhooks. A short transaction claims due deliveries. They are sent outside of any transaction, and
//! another one records the result.
//!
//! If a replica dies in between, its claim expires and the delivery is attempted again with the same id. A receiver
//! therefore gets each message at least once.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use assay_authority::WebhookSecret;
use futures_util::{StreamExt, stream::FuturesUnordered};
use time::OffsetDateTime;
use tokio::{
    select,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use uuid::Uuid;

use super::{
    audited,
    client::AttemptResult,
    message::{Message, MessageError},
    schedule,
};
use crate::{
    changes::{Action, Change, Origin},
    periodic::{self, Turns, Work},
    services::Services,
    store::{
        self, StoreError, Transaction, tx,
        webhook_deliveries::{Claimed, FailedAttempt},
        webhooks::Receiver,
    },
};

/// How long a due delivery waits at most, while its receiver works.
const INTERVAL: Duration = Duration::from_millis(250);
pub(crate) const WORK: Work = Work::every(INTERVAL, "deliver to webhooks");
/// How long a claim lasts: longer than an attempt and its recording take.
const CLAIM: time::Duration = time::Duration::seconds(30);
/// The number of concurrent attempts to one receiver, and to one whose last attempt failed.
const CONCURRENT: usize = 8;
const CONCURRENT_WHILE_FAILING: usize = 1;
/// The number of concurrent attempts of this replica. There cannot be so many webhooks: receivers that do not respond
/// block no others.
const CONCURRENT_IN_TOTAL: usize = 128;
/// How long running attempts may continue when the server stops.
const GRACE: Duration = Duration::from_secs(2);

const GONE: &str = "the receiver responded 410 Gone: it wants no more messages";

/// Delivers everything that is due, until the server stops.
pub(crate) async fn run_deliverer(services: Arc<Services>, turns: Turns) {
    let deliverer = Arc::new(Deliverer {
        services,
        busy: Mutex::default(),
        permits: Arc::new(Semaphore::new(CONCURRENT_IN_TOTAL)),
        workers: TaskTracker::new(),
        shutdown: turns.shutdown().clone(),
        abort: CancellationToken::new(),
    });
    turns.repeat(|| deliverer.start_workers()).await;
    deliverer.workers.close();
    if timeout(GRACE, deliverer.workers.wait()).await.is_err() {
        deliverer.abort.cancel();
        deliverer.workers.wait().await;
    }
}

struct Deliverer {
    services: Arc<Services>,
    /// The webhooks to which a worker is delivering.
    busy: Mutex<HashSet<Uuid>>,
    permits: Arc<Semaphore>,
    workers: TaskTracker,
    shutdown: CancellationToken,
    abort: CancellationToken,
}

impl Deliverer {
    /// Starts a worker for each webhook that has due deliveries and no worker.
    async fn start_workers(self: &Arc<Self>) -> Result<(), StoreError> {
        let busy: Vec<Uuid> = self.busy().iter().copied().collect();
        let mut connection = self.services.store.connection().await?;
        let due = store::webhooks::due(&mut connection, self.services.clock.now(), &busy).await?;
        for receiver in due {
            self.busy().insert(receiver.id);
            let deliverer = Arc::clone(self);
            self.workers.spawn(async move {
                periodic::attempt("deliver to a webhook", deliverer.work(&receiver)).await;
                deliverer.busy().remove(&receiver.id);
            });
        }
        Ok(())
    }

    /// Attempts everything that is due to one receiver, several deliveries at once. A slow one does not delay the
    /// others.
    async fn work(&self, receiver: &Receiver) -> Result<(), StoreError> {
        let secret = self.secret(receiver);
        let mut is_failing = receiver.is_failing;
        let mut running = FuturesUnordered::new();
        loop {
            let limit = if is_failing {
                CONCURRENT_WHILE_FAILING
            } else {
                CONCURRENT
            };
            match self.claim(receiver.id, limit.saturating_sub(running.len())).await {
                Ok(claimed) => running.extend(
                    claimed
                        .into_iter()
                        .map(|(delivery, permit)| self.attempt(receiver, secret.as_ref(), delivery, permit)),
                ),
                // Running attempts finish first.
                Err(error) if running.is_empty() => return Err(error),
                Err(error) => tracing::warn!(%error, "cannot claim more deliveries"),
            }
            select! {
                ended = running.next() => match ended {
                    Some(Ok(was_accepted)) => is_failing = !was_accepted,
                    Some(Err(error)) => tracing::warn!(%error, "cannot record an attempt; it will be repeated"),
                    None => return Ok(()),
                },
                () = sleep(INTERVAL) => {}
            }
        }
    }

    fn secret(&self, receiver: &Receiver) -> Option<WebhookSecret> {
        let secrets = &self.services.webhook_secrets;
        let opened = secrets.open(&receiver.id.to_string(), &receiver.sealed_secret);
        opened
            .inspect_err(|error| tracing::error!(%error, webhook = %receiver.id, "cannot open the secret of a webhook"))
            .ok()
    }

    /// Claims up to `most` deliveries, each with a permit. The permits are acquired first: otherwise the claim could
    /// expire while it waits for one.
    async fn claim(&self, webhook_id: Uuid, most: usize) -> Result<Vec<(Claimed, OwnedSemaphorePermit)>, StoreError> {
        if self.shutdown.is_cancelled() {
            return Ok(Vec::new());
        }
        let permits: Vec<_> = (0..most)
            .map_while(|_| Arc::clone(&self.permits).try_acquire_owned().ok())
            .collect();
        let limit = i64::try_from(permits.len()).unwrap_or(0);
        if limit == 0 {
            return Ok(Vec::new());
        }
        let now = self.services.clock.now();
        let mut connection = self.services.store.connection().await?;
        let claimed = store::webhook_deliveries::claim(&mut connection, webhook_id, now, now + CLAIM, limit).await?;
        Ok(claimed.into_iter().zip(permits).collect())
    }

    /// Sends once and records the result. Returns whether the receiver accepted the message.
    async fn attempt(
        &self,
        receiver: &Receiver,
        secret: Option<&WebhookSecret>,
        delivery: Claimed,
        _permit: OwnedSemaphorePermit,
    ) -> Result<bool, StoreError> {
        let now = self.services.clock.now();
        let message = secret
            .ok_or(MessageError::Secret)
            .and_then(|secret| Message::of(&delivery, receiver.id, secret, now));
        let result = match message {
            Ok(message) => select! {
                result = self.services.webhook_client.send(&receiver.url, message) => result,
                // The message may have arrived. The claim expires, and it is sent again.
                () = self.abort.cancelled() => return Ok(false),
            },
            Err(error) => AttemptResult::Failed {
                status: None,
                error: error.to_string(),
            },
        };
        self.record(receiver.id, &delivery, result).await
    }

    async fn record(&self, webhook_id: Uuid, delivery: &Claimed, result: AttemptResult) -> Result<bool, StoreError> {
        let now = self.services.clock.now();
        let ended = Ended {
            webhook_id,
            delivery,
            now,
        };
        let (store, origin) = (&self.services.store, Origin::system());
        match result {
            AttemptResult::Delivered(status) => {
                tx!(store, RecordDelivery, &origin => delivered(&ended, status)).await?;
                self.services.metrics.events.delivery_attempted("delivered");
                Ok(true)
            }
            AttemptResult::Gone => {
                tx!(store, DisableWebhook, &origin => gone(&ended)).await?;
                self.services.metrics.events.delivery_attempted("failed");
                Ok(false)
            }
            AttemptResult::Failed { status, error } => {
                let next_attempt_at = schedule::next_attempt(delivery.attempts, now);
                let status = status.map(i32::from);
                self.failed(&ended, status, &error, next_attempt_at).await
            }
        }
    }

    async fn failed(
        &self,
        ended: &Ended<'_>,
        status: Option<i32>,
        error: &str,
        next_attempt_at: Option<OffsetDateTime>,
    ) -> Result<bool, StoreError> {
        let attempt = FailedAttempt {
            status,
            error,
            next_attempt_at,
        };
        tx!(self.services.store, RecordFailedDelivery, &Origin::system() => failed(ended, &attempt)).await?;
        let result = if next_attempt_at.is_some() { "retried" } else { "failed" };
        self.services.metrics.events.delivery_attempted(result);
        tracing::info!(webhook = %ended.webhook_id, delivery = %ended.delivery.id, error, "a delivery failed");
        Ok(false)
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<Uuid>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A finished attempt. Each transaction locks the webhook's row first, as deleting a webhook does.
struct Ended<'a> {
    webhook_id: Uuid,
    delivery: &'a Claimed,
    now: OffsetDateTime,
}

async fn delivered(tx: &mut Transaction, ended: &Ended<'_>, status: u16) -> Result<(), StoreError> {
    store::webhooks::note_delivered(tx, ended.webhook_id, ended.now).await?;
    store::webhook_deliveries::note_delivered(tx, ended.delivery.id, i32::from(status), ended.now).await
}

async fn failed(tx: &mut Transaction, ended: &Ended<'_>, attempt: &FailedAttempt<'_>) -> Result<(), StoreError> {
    store::webhooks::note_failing(tx, ended.webhook_id, ended.now).await?;
    store::webhook_deliveries::note_failed(tx, ended.delivery.id, attempt, ended.now).await
}

async fn gone(tx: &mut Transaction, ended: &Ended<'_>) -> Result<(), StoreError> {
    let Some(before) = store::webhooks::lock(tx, ended.webhook_id).await? else {
        return Ok(());
    };
    if before.disabled_at.is_some() {
        return Ok(());
    }
    store::webhooks::note_failing(tx, ended.webhook_id, ended.now).await?;
    store::webhooks::disable(tx, ended.webhook_id, GONE, ended.now).await?;
    let attempt = FailedAttempt {
        status: Some(410),
        error: GONE,
        next_attempt_at: None,
    };
    store::webhook_deliveries::note_failed(tx, ended.delivery.id, &attempt, ended.now).await?;
    store::webhook_deliveries::give_up_all(tx, ended.webhook_id, GONE, ended.now).await?;
    let after = store::webhooks::find(tx, ended.webhook_id).await?;
    let change = Change::new(Action::WebhookDisable, ended.webhook_id)
        .reason(Some(GONE))
        .before(audited(&before)?)
        .after(after.as_ref().map(audited).transpose()?.unwrap_or_default());
    tx.record(change).await
}
