//! One event stream: from the caller's last position to the present, and on from there.

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

/// How often a keep-alive is sent. Proxies close a connection that is silent for a minute.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a caller may take to accept the next item. After that its stream is closed.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(30);
/// The most items that wait for a caller.
const MOST_WAITING: usize = 32;
/// The delay after a database error.
const RETRY: Duration = Duration::from_secs(1);

/// An item of a stream.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    /// The next event.
    Event(Arc<AnnouncedEvent>),
    /// Events are missing between the previous item and the next one.
    Gap(EventGap),
    /// There was no event for a while.
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

/// The caller has closed the stream, or reads too slowly.
struct CallerGone;

enum Interruption {
    CallerGone,
    Store(StoreError),
}

impl From<CallerGone> for Interruption {
    fn from(CallerGone: CallerGone) -> Self {
        Self::CallerGone
    }
}

impl From<StoreError> for Interruption {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

/// Starts a stream after a position, or at the present end. It ends with its API key, its caller, or the server.
pub(crate) async fn subscribe(
    services: &Services,
    api_key: Uuid,
    after: Option<i64>,
    filter: EventFilter,
) -> Result<mpsc::Receiver<Item>, SubscribeError> {
    let admission = services.feed.admit(api_key)?;
    // Subscribe before reading the end. An event announced in between is then in one of the two.
    let events = services.feed.subscribe();
    let end = store::events::last_sequence(&mut *services.store.connection().await?).await?;
    let (items, received) = mpsc::channel(MOST_WAITING);
    let mut stream = Stream {
        store: services.store.clone(),
        filter,
        events,
        items,
        position: after.unwrap_or(end),
        behind: false,
        accept_timeout: ACCEPT_TIMEOUT,
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
    /// The position of the last event that was sent or filtered out.
    position: i64,
    /// Whether the database has events that were missed in `events`.
    behind: bool,
    /// How long the caller may take to accept an item.
    accept_timeout: Duration,
}

impl Stream {
    /// If the requested position is after the end, the database was restored from a backup. The stream then starts at
    /// the end.
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
            CallerGone = self.deliver(&admission) => {}
        }
    }

    async fn deliver(&mut self, admission: &Admission) -> CallerGone {
        let mut keep_alive = interval_at(Instant::now() + KEEP_ALIVE, KEEP_ALIVE);
        keep_alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.behind {
                match self.catch_up(admission).await {
                    Ok(()) => self.behind = false,
                    Err(Interruption::CallerGone) => return CallerGone,
                    Err(Interruption::Store(error)) => tracing::debug!(%error, "a stream cannot read events yet"),
                }
            }
            let sent = select! {
                _ = keep_alive.tick() => self.send(Item::KeepAlive).await,
                () = sleep(RETRY), if self.behind => Ok(()),
                received = self.events.recv(), if !self.behind => self.receive(received).await,
            };
            if sent.is_err() {
                return CallerGone;
            }
        }
    }

    async fn receive(&mut self, received: Result<Arc<AnnouncedEvent>, RecvError>) -> Result<(), CallerGone> {
        match received {
            Ok(event) if event.sequence <= self.position => Ok(()),
            Ok(event) if event.sequence == self.position.saturating_add(1) => self.send_if_wanted(event).await,
            // The stream lags behind the events in memory.
            Ok(_) | Err(RecvError::Lagged(_)) => {
                self.behind = true;
                Ok(())
            }
            Err(RecvError::Closed) => Err(CallerGone),
        }
    }

    /// Reads from the database until it has caught up.
    async fn catch_up(&mut self, admission: &Admission) -> Result<(), Interruption> {
        loop {
            let (events, end) = self.read(admission).await?;
            let is_last = i64::try_from(events.len()).unwrap_or(PAGE) < PAGE;
            for event in events {
                if event.sequence > self.position.saturating_add(1) {
                    self.send_gap(event.sequence).await?;
                }
                self.send_if_wanted(Arc::new(event)).await?;
            }
            if is_last {
                // All events announced after this position were removed.
                if self.position < end {
                    self.send_gap(end.saturating_add(1)).await?;
                }
                return Ok(());
            }
        }
    }

    /// The next events, and the end as it was before they were read.
    async fn read(&self, admission: &Admission) -> Result<(Vec<AnnouncedEvent>, i64), StoreError> {
        // The semaphore is never closed. If it were, reading without a permit would be harmless.
        let _turn = admission.feed().catching_up.acquire().await.ok();
        let mut connection = self.store.connection().await?;
        let end = store::events::last_sequence(&mut connection).await?;
        let events = store::events::announced_after(&mut connection, self.position, PAGE).await?;
        Ok((events, end))
    }

    async fn send_gap(&mut self, oldest_available: i64) -> Result<(), CallerGone> {
        let gap = EventGap {
            after: self.position,
            oldest_available,
        };
        self.position = oldest_available.saturating_sub(1);
        self.send(Item::Gap(gap)).await
    }

    async fn send_if_wanted(&mut self, event: Arc<AnnouncedEvent>) -> Result<(), CallerGone> {
        self.position = event.sequence;
        if self.filter.wants(&event.event) {
            self.send(Item::Event(event)).await?;
        }
        Ok(())
    }

    async fn send(&self, item: Item) -> Result<(), CallerGone> {
        let sent = self.items.send_timeout(item, self.accept_timeout).await;
        if matches!(sent, Err(mpsc::error::SendTimeoutError::Timeout(_))) {
            tracing::info!(position = self.position, "closed a stream: its caller reads too slowly");
        }
        sent.map_err(|_| CallerGone)
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
                machine_id: None,
                kind: "machine.enrolled".to_owned(),
                detail: json!({}),
            },
            sequence,
        })
    }

    /// A stream at a position, whose channel holds this many items.
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
            accept_timeout: Duration::from_millis(10),
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
            panic!("no item was sent")
        };
        assert_eq!((told.sequence, received.try_recv().is_err()), (6, true));
        assert!(stream.receive(Ok(event(8))).await.is_ok());
        assert!(stream.behind && received.try_recv().is_err());
        stream.behind = false;
        assert!(stream.receive(Err(RecvError::Lagged(9))).await.is_ok());
        assert!(stream.behind);
    }
}
