//! One stream: from the place where the caller stopped to the present, and then on.

use std::{sync::Arc, time::Duration};

use assay_protocol::admin_api::events::{AnnouncedEvent, EventGap};
use tokio::{
    select,
    sync::{
        broadcast::{self, error::RecvError},
        mpsc,
    },
    time::{Instant, MissedTickBehavior, interval_at, sleep},
};
use uuid::Uuid;

use super::{
    EventFilter,
    feed::{Admission, PAGE, TooManyStreams},
};
use crate::{
    services::Services,
    store::{self, Store, StoreError},
};

/// How often something is sent though nothing has happened: proxies close what is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a caller may take to accept the next item; then its stream is cut.
const ACCEPTED_WITHIN: Duration = Duration::from_secs(30);
/// How many items wait for a caller at most.
const WAITING: usize = 32;
/// After the database failed.
const RETRY: Duration = Duration::from_secs(1);

/// What a stream says.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// The next event.
    Event(Arc<AnnouncedEvent>),
    /// What comes next does not follow on what came before.
    Gap(EventGap),
    /// Nothing has happened.
    KeepAlive,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SubscribeError {
    #[error(transparent)]
    TooMany(#[from] TooManyStreams),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The caller is gone, or too slow.
struct Left;

enum Interruption {
    Left,
    Store(StoreError),
}

impl From<Left> for Interruption {
    fn from(Left: Left) -> Self {
        Self::Left
    }
}

impl From<StoreError> for Interruption {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Begins a stream after a place, or at the present end. It ends with its API key, its caller, or the server.
pub(crate) async fn subscribe(
    services: &Services,
    api_key: Uuid,
    after: Option<i64>,
    filter: EventFilter,
) -> Result<mpsc::Receiver<Item>, SubscribeError> {
    let admission = services.feed.admit(api_key)?;
    // First this, then the end: whatever is announced in between is in one of the two.
    let events = services.feed.subscribe();
    let end = store::events::last_sequence(&mut *services.store.connection().await?).await?;
    let (items, received) = mpsc::channel(WAITING);
    let mut stream = Stream {
        store: services.store.clone(),
        filter,
        events,
        items,
        position: after.unwrap_or(end),
        behind: false,
        patience: ACCEPTED_WITHIN,
    };
    stream.begin(after, end);
    tokio::spawn(stream.run(admission));
    Ok(received)
}

struct Stream {
    store: Store,
    filter: EventFilter,
    events: broadcast::Receiver<Arc<AnnouncedEvent>>,
    items: mpsc::Sender<Item>,
    /// The place of the last event that was sent or left out.
    position: i64,
    /// Whether there is more in the database than in `events`.
    behind: bool,
    /// How long the caller may take to accept an item.
    patience: Duration,
}

impl Stream {
    /// A place after the end is one of a database that was since restored from a backup: events come after the end then.
    fn begin(&mut self, after: Option<i64>, end: i64) {
        self.behind = after.is_some_and(|after| after < end);
        if let Some(after) = after.filter(|after| *after > end) {
            self.position = end;
            let gap = EventGap {
                after,
                oldest_available: end.saturating_add(1),
            };
            // The channel is empty, so there is room.
            let _ = self.items.try_send(Item::Gap(gap));
        }
    }

    async fn run(mut self, admission: Admission) {
        let items = self.items.clone();
        select! {
            () = admission.ended() => {}
            () = items.closed() => {}
            Left = self.deliver(&admission) => {}
        }
    }

    async fn deliver(&mut self, admission: &Admission) -> Left {
        let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.behind {
                match self.catch_up(admission).await {
                    Ok(()) => self.behind = false,
                    Err(Interruption::Left) => return Left,
                    Err(Interruption::Store(error)) => tracing::debug!(%error, "a stream cannot read on yet"),
                }
            }
            let went_on = select! {
                _ = keep_alive.tick() => self.send(Item::KeepAlive).await,
                () = sleep(RETRY), if self.behind => Ok(()),
                received = self.events.recv(), if !self.behind => self.receive(received).await,
            };
            if went_on.is_err() {
                return Left;
            }
        }
    }

    async fn receive(&mut self, received: Result<Arc<AnnouncedEvent>, RecvError>) -> Result<(), Left> {
        match received {
            Ok(event) if event.sequence <= self.position => Ok(()),
            Ok(event) if event.sequence == self.position.saturating_add(1) => self.pass_on(event).await,
            // Too slow for what is kept in memory.
            Ok(_) | Err(RecvError::Lagged(_)) => {
                self.behind = true;
                Ok(())
            }
            Err(RecvError::Closed) => Err(Left),
        }
    }

    /// Reads from the database until there is no more.
    async fn catch_up(&mut self, admission: &Admission) -> Result<(), Interruption> {
        loop {
            let (events, end) = self.read(admission).await?;
            let is_last = i64::try_from(events.len()).unwrap_or(PAGE) < PAGE;
            for event in events {
                if event.sequence > self.position.saturating_add(1) {
                    self.tell_gap(event.sequence).await?;
                }
                self.pass_on(Arc::new(event)).await?;
            }
            if is_last {
                // All that was announced since then has been removed.
                if self.position < end {
                    self.tell_gap(end.saturating_add(1)).await?;
                }
                return Ok(());
            }
        }
    }

    /// The next events, and an end that was there before they were looked for.
    async fn read(&self, admission: &Admission) -> Result<(Vec<AnnouncedEvent>, i64), StoreError> {
        // It is never closed; if it were, reading without it would do no harm.
        let _turn = admission.feed().catching_up.acquire().await.ok();
        let mut connection = self.store.connection().await?;
        let end = store::events::last_sequence(&mut connection).await?;
        let events = store::events::announced_after(&mut connection, self.position, PAGE).await?;
        Ok((events, end))
    }

    async fn tell_gap(&mut self, oldest_available: i64) -> Result<(), Left> {
        let gap = EventGap {
            after: self.position,
            oldest_available,
        };
        self.position = oldest_available.saturating_sub(1);
        self.send(Item::Gap(gap)).await
    }

    async fn pass_on(&mut self, event: Arc<AnnouncedEvent>) -> Result<(), Left> {
        self.position = event.sequence;
        if self.filter.wants(&event.event) {
            self.send(Item::Event(event)).await?;
        }
        Ok(())
    }

    async fn send(&self, item: Item) -> Result<(), Left> {
        let sent = self.items.send_timeout(item, self.patience).await;
        if matches!(sent, Err(mpsc::error::SendTimeoutError::Timeout(_))) {
            tracing::info!(
                position = self.position,
                "a stream was cut: its caller reads too slowly"
            );
        }
        sent.map_err(|_| Left)
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::admin_api::events::Event;
    use serde_json::json;
    use sqlx::postgres::PgPoolOptions;
    use time::OffsetDateTime;

    use super::*;
    use crate::telemetry::Metrics;

    fn event(sequence: i64) -> Arc<AnnouncedEvent> {
        Arc::new(AnnouncedEvent {
            event: Event {
                id: Uuid::nil(),
                at: OffsetDateTime::UNIX_EPOCH,
                machine_id: Uuid::nil(),
                kind: "machine.enrolled".to_owned(),
                detail: json!({}),
            },
            sequence,
        })
    }

    /// A stream that has come to a place, with so much room for what its caller has not taken.
    fn stream(position: i64, room: usize) -> (Stream, mpsc::Receiver<Item>) {
        let nowhere = PgPoolOptions::new().connect_lazy("postgres://localhost:1/").unwrap();
        let (items, received) = mpsc::channel(room);
        let stream = Stream {
            store: Store::new(nowhere, Arc::new(crate::clock::SystemClock), Arc::new(Metrics::new())),
            filter: EventFilter::default(),
            events: broadcast::Sender::new(1).subscribe(),
            items,
            position,
            behind: false,
            patience: Duration::from_millis(10),
        };
        (stream, received)
    }

    #[tokio::test]
    async fn a_caller_that_takes_nothing_is_cut_when_there_is_no_more_room() {
        let (mut stream, _received) = stream(0, 2);
        assert!(stream.receive(Ok(event(1))).await.is_ok());
        assert!(stream.receive(Ok(event(2))).await.is_ok());
        assert!(stream.receive(Ok(event(3))).await.is_err());
    }

    #[tokio::test]
    async fn what_was_told_is_not_told_again_and_what_is_missing_is_read_from_the_database() {
        let (mut stream, mut received) = stream(5, 8);
        for sequence in [4, 5, 6] {
            assert!(stream.receive(Ok(event(sequence))).await.is_ok());
            assert!(!stream.behind);
        }
        let Some(Item::Event(told)) = received.recv().await else {
            panic!("nothing was told")
        };
        assert_eq!((told.sequence, received.try_recv().is_err()), (6, true));
        assert!(stream.receive(Ok(event(8))).await.is_ok());
        assert!(stream.behind && received.try_recv().is_err());
        stream.behind = false;
        assert!(stream.receive(Err(RecvError::Lagged(9))).await.is_ok());
        assert!(stream.behind);
    }
}
