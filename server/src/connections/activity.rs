//! Records when a connection was last active, and computes the deadline that follows.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Duration, Instant},
};

use super::ConnectionLimits;

const NEVER: u64 = u64::MAX;

/// The activity of one connection. Times are in milliseconds since it was opened.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    in_flight: AtomicUsize,
    last_byte: AtomicU64,
    last_written: AtomicU64,
    /// When a request last started, or the peer last took a piece of a response.
    last_used: AtomicU64,
    /// When the head of the next request started to arrive. For the first request it counts from the opening.
    head_started: AtomicU64,
    http2: AtomicBool,
}

/// Counts a request as in flight until it is dropped.
pub(super) struct InFlight(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            opened: Instant::now(),
            in_flight: AtomicUsize::new(0),
            last_byte: AtomicU64::new(0),
            last_written: AtomicU64::new(0),
            last_used: AtomicU64::new(0),
            head_started: AtomicU64::new(0),
            http2: AtomicBool::new(false),
        }
    }

    pub(super) fn begin(self: &Arc<Self>, http2: bool) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        self.http2.store(http2, Relaxed);
        self.head_started.store(NEVER, Relaxed);
        self.record_use();
        InFlight(Arc::clone(self))
    }

    pub(super) fn is_answering(&self) -> bool {
        self.in_flight.load(Relaxed) > 0
    }

    /// When to close the connection if nothing more happens.
    pub(super) fn deadline(&self, limits: &ConnectionLimits) -> Instant {
        let head_started = self.head_started.load(Relaxed);
        let (since, allowed) = if self.is_answering() {
            (self.last_byte.load(Relaxed), limits.stall_timeout)
        } else if head_started == NEVER && self.http2.load(Relaxed) {
            // On HTTP/2 a byte may be a ping, with which a peer could keep a connection for nothing.
            (self.last_used.load(Relaxed), limits.idle_timeout)
        } else if head_started == NEVER {
            (self.last_byte.load(Relaxed), limits.idle_timeout)
        } else {
            (head_started, limits.header_timeout)
        };
        self.opened + Duration::from_millis(since) + allowed
    }

    /// When to give up on a connection that is closing. It lasts while the peer accepts the remaining output, whatever
    /// else the peer sends. A request whose head was completed at the last moment still has the stall timeout.
    pub(super) fn closing_deadline(&self, limits: &ConnectionLimits) -> Instant {
        let (since, allowed) = if self.is_answering() {
            (self.last_byte.load(Relaxed), limits.stall_timeout)
        } else if self.http2.load(Relaxed) {
            // If a peer keeps pinging, the server keeps writing acknowledgements to it.
            (self.last_used.load(Relaxed), limits.flush_timeout)
        } else {
            (self.last_written.load(Relaxed), limits.flush_timeout)
        };
        self.opened + Duration::from_millis(since) + allowed
    }

    pub(super) fn record_use(&self) {
        self.last_used.store(self.elapsed(), Relaxed);
    }

    fn record_read(&self) {
        let now = self.elapsed();
        self.last_byte.store(now, Relaxed);
        // On HTTP/2, bytes between requests may be a ping or a window update, so they do not start a head.
        if !self.is_answering() && !self.http2.load(Relaxed) {
            let _already_started = self.head_started.compare_exchange(NEVER, now, Relaxed, Relaxed);
        }
    }

    fn record_write(&self) {
        let now = self.elapsed();
        self.last_byte.store(now, Relaxed);
        self.last_written.store(now, Relaxed);
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.opened.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.record_write();
        self.0.record_use();
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A stream that records its activity.
pub(super) struct Monitored<T> {
    pub(super) stream: T,
    pub(super) activity: Arc<Activity>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Monitored<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.record_read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Monitored<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.activity.record_write();
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write_vectored(context, slices))?;
        self.activity.record_write();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
