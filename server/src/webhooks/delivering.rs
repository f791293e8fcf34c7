//! Delivering: what is due is claimed in one short transaction, sent outside of any, and its result recorded in another.
//!
//! A replica that dies in between leaves a claim that runs out, and the delivery is attempted again under the same id: a
//! receiver gets each at least once.

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
    client::Outcome,
    message::{Message, MessageError},
    schedule,
};
use crate::{
    changes::{Change, Origin},
    periodic,
    services::Services,
    store::{
        self, StoreError, Transaction,
        webhook_deliveries::{Claimed, FailedAttempt},
        webhooks::Receiver,
    },
};

/// How long a due delivery waits at most while its receiver is well.
const INTERVAL: Duration = Duration::from_millis(250);
/// How long a replica has a delivery in hand: longer than an attempt takes, and its recording.
const CLAIM: time::Duration = time::Duration::seconds(30);
/// Attempts at once to one receiver, and to one whose last attempt failed.
const AT_ONCE: usize = 8;
const AT_ONCE_WHILE_FAILING: usize = 1;
/// Attempts at once of this replica: more than there can be webhooks, so that receivers that do not answer hold nobody up.
const AT_ONCE_IN_ALL: usize = 128;
/// How long attempts that are under way may go on when the server stops.
const GRACE: Duration = Duration::from_secs(2);

const GONE: &str = "the receiver answered 410 Gone: it wants nothing any more";

/// Delivers whatever is due, again and again, until the server stops.
pub(crate) async fn run_deliverer(services: Arc<Services>, shutdown: CancellationToken) {
    let deliverer = Arc::new(Deliverer {
        services,
        in_hand: Mutex::default(),
        places: Arc::new(Semaphore::new(AT_ONCE_IN_ALL)),
        workers: TaskTracker::new(),
        shutdown: shutdown.clone(),
        cut_off: CancellationToken::new(),
    });
    periodic::repeat("deliver to webhooks", INTERVAL, &shutdown, || deliverer.start_workers()).await;
    deliverer.workers.close();
    if timeout(GRACE, deliverer.workers.wait()).await.is_err() {
        deliverer.cut_off.cancel();
        deliverer.workers.wait().await;
    }
}

struct Deliverer {
    services: Arc<Services>,
    /// The webhooks that have a worker.
    in_hand: Mutex<HashSet<Uuid>>,
    places: Arc<Semaphore>,
    workers: TaskTracker,
    shutdown: CancellationToken,
    cut_off: CancellationToken,
}

impl Deliverer {
    /// Starts a worker for each webhook that has something due and none.
    async fn start_workers(self: &Arc<Self>) -> Result<(), StoreError> {
        let in_hand: Vec<Uuid> = self.in_hand().iter().copied().collect();
        let mut connection = self.services.store.connection().await?;
        let due = store::webhooks::due(&mut connection, self.services.clock.now(), &in_hand).await?;
        for receiver in due {
            self.in_hand().insert(receiver.id);
            let deliverer = Arc::clone(self);
            self.workers.spawn(async move {
                periodic::attempt("deliver to a webhook", deliverer.work(&receiver)).await;
                deliverer.in_hand().remove(&receiver.id);
            });
        }
        Ok(())
    }

    /// Attempts what is due to one receiver, until nothing is: some at once, so that one that takes long does not hold the
    /// others up.
    async fn work(&self, receiver: &Receiver) -> Result<(), StoreError> {
        let secret = self.secret(receiver);
        let mut is_failing = receiver.is_failing;
        let mut under_way = FuturesUnordered::new();
        loop {
            let at_once = if is_failing { AT_ONCE_WHILE_FAILING } else { AT_ONCE };
            match self.claim(receiver.id, at_once.saturating_sub(under_way.len())).await {
                Ok(claimed) => under_way.extend(
                    claimed
                        .into_iter()
                        .map(|(delivery, place)| self.attempt(receiver, secret.as_ref(), delivery, place)),
                ),
                // What is under way ends first.
                Err(error) if under_way.is_empty() => return Err(error),
                Err(error) => tracing::warn!(%error, "no further delivery can be claimed"),
            }
            select! {
                ended = under_way.next() => match ended {
                    Some(Ok(was_taken)) => is_failing = !was_taken,
                    Some(Err(error)) => tracing::warn!(%error, "an attempt is not recorded, and will be repeated"),
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
            .inspect_err(
                |error| tracing::error!(%error, webhook = %receiver.id, "the secret of a webhook does not open"),
            )
            .ok()
    }

    /// Takes up to so many deliveries in hand, each with its place: before the claim, which would else run out while it
    /// waits for one.
    async fn claim(&self, webhook_id: Uuid, most: usize) -> Result<Vec<(Claimed, OwnedSemaphorePermit)>, StoreError> {
        if self.shutdown.is_cancelled() {
            return Ok(Vec::new());
        }
        let places: Vec<_> = (0..most)
            .map_while(|_| Arc::clone(&self.places).try_acquire_owned().ok())
            .collect();
        let limit = i64::try_from(places.len()).unwrap_or(0);
        if limit == 0 {
            return Ok(Vec::new());
        }
        let now = self.services.clock.now();
        let mut connection = self.services.store.connection().await?;
        let claimed = store::webhook_deliveries::claim(&mut connection, webhook_id, now, now + CLAIM, limit).await?;
        Ok(claimed.into_iter().zip(places).collect())
    }

    /// Sends once and records what came of it; whether the receiver took it.
    async fn attempt(
        &self,
        receiver: &Receiver,
        secret: Option<&WebhookSecret>,
        delivery: Claimed,
        _place: OwnedSemaphorePermit,
    ) -> Result<bool, StoreError> {
        let now = self.services.clock.now();
        let message = secret
            .ok_or(MessageError::Secret)
            .and_then(|secret| Message::of(&delivery, receiver.id, secret, now));
        let outcome = match message {
            Ok(message) => select! {
                outcome = self.services.webhook_client.send(&receiver.url, message) => outcome,
                // Nobody knows whether it arrived: the claim runs out, and it is sent again.
                () = self.cut_off.cancelled() => return Ok(false),
            },
            Err(error) => Outcome::Failed {
                status: None,
                error: error.to_string(),
            },
        };
        self.record(receiver.id, &delivery, outcome).await
    }

    async fn record(&self, webhook_id: Uuid, delivery: &Claimed, outcome: Outcome) -> Result<bool, StoreError> {
        let now = self.services.clock.now();
        let ended = Ended {
            webhook_id,
            delivery,
            now,
        };
        match outcome {
            Outcome::Delivered(status) => {
                let context = (&ended, status);
                self.services
                    .store
                    .tx("record a delivery", &context, |tx, &(ended, status)| {
                        Box::pin(ended.delivered(tx, status))
                    })
                    .await?;
                self.services.metrics.events.delivery_attempted("delivered");
                Ok(true)
            }
            Outcome::Gone => {
                let context = (&ended, self.services.as_ref());
                self.services
                    .store
                    .tx("disable a webhook", &context, |tx, &(ended, services)| {
                        Box::pin(ended.gone(tx, services))
                    })
                    .await?;
                self.services.metrics.events.delivery_attempted("failed");
                Ok(false)
            }
            Outcome::Failed { status, error } => {
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
        let context = (ended, &attempt);
        self.services
            .store
            .tx("record a failed delivery", &context, |tx, &(ended, attempt)| {
                Box::pin(ended.failed(tx, attempt))
            })
            .await?;
        let result = if next_attempt_at.is_some() { "retried" } else { "failed" };
        self.services.metrics.events.delivery_attempted(result);
        tracing::info!(webhook = %ended.webhook_id, delivery = %ended.delivery.id, error, "a delivery failed");
        Ok(false)
    }

    fn in_hand(&self) -> std::sync::MutexGuard<'_, HashSet<Uuid>> {
        self.in_hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt that has ended. Its webhook's row comes first in each transaction, as in the one that deletes a webhook.
struct Ended<'a> {
    webhook_id: Uuid,
    delivery: &'a Claimed,
    now: OffsetDateTime,
}

impl Ended<'_> {
    async fn delivered(&self, tx: &mut Transaction, status: u16) -> Result<(), StoreError> {
        store::webhooks::note_delivered(tx, self.webhook_id, self.now).await?;
        store::webhook_deliveries::note_delivered(tx, self.delivery.id, i32::from(status), self.now).await
    }

    async fn failed(&self, tx: &mut Transaction, attempt: &FailedAttempt<'_>) -> Result<(), StoreError> {
        store::webhooks::note_failing(tx, self.webhook_id, self.now).await?;
        store::webhook_deliveries::note_failed(tx, self.delivery.id, attempt, self.now).await
    }

    async fn gone(&self, tx: &mut Transaction, services: &Services) -> Result<(), StoreError> {
        let Some(before) = store::webhooks::lock(tx, self.webhook_id).await? else {
            return Ok(());
        };
        if before.disabled_at.is_some() {
            return Ok(());
        }
        store::webhooks::note_failing(tx, self.webhook_id, self.now).await?;
        store::webhooks::disable(tx, self.webhook_id, GONE, self.now).await?;
        let attempt = FailedAttempt {
            status: Some(410),
            error: GONE,
            next_attempt_at: None,
        };
        store::webhook_deliveries::note_failed(tx, self.delivery.id, &attempt, self.now).await?;
        store::webhook_deliveries::give_up_all(tx, self.webhook_id, GONE, self.now).await?;
        let after = store::webhooks::find(tx, self.webhook_id).await?;
        let change = Change::new("webhook.disable", "webhook", self.webhook_id)
            .reason(Some(GONE))
            .before(store::json(&before)?)
            .after(store::json(&after)?);
        store::audit_entries::insert(tx, services.clock.as_ref(), &Origin::system(), change).await
    }
}
