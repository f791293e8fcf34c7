//! What happens on one connection, and until when it may go on like this.

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

/// Watches one connection. Times are milliseconds since it was made.
#[derive(Debug)]
pub(super) struct Activity {
    opened: Instant,
    in_flight: AtomicUsize,
    last_byte: AtomicU64,
    last_written: AtomicU64,
    /// When the head of the next request began to arrive; from the start on for the first one.
    head_begun: AtomicU64,
    http2: AtomicBool,
}

/// A request that is being answered.
pub(super) struct InFlight(Arc<Activity>);

impl Activity {
    pub(super) fn new() -> Self {
        Self {
            opened: Instant::now(),
            in_flight: AtomicUsize::new(0),
            last_byte: AtomicU64::new(0),
            last_written: AtomicU64::new(0),
            head_begun: AtomicU64::new(0),
            http2: AtomicBool::new(false),
        }
    }

    pub(super) fn begin(self: &Arc<Self>, http2: bool) -> InFlight {
        self.in_flight.fetch_add(1, Relaxed);
        self.http2.store(http2, Relaxed);
        self.head_begun.store(NEVER, Relaxed);
        InFlight(Arc::clone(self))
    }

    pub(super) fn is_answering(&self) -> bool {
        self.in_flight.load(Relaxed) > 0
    }

    /// Until when the connection may stay as it is.
    pub(super) fn deadline(&self, limits: &ConnectionLimits) -> Instant {
        let head_begun = self.head_begun.load(Relaxed);
        let (since, allowed) = if self.is_answering() {
            (self.last_byte.load(Relaxed), limits.stall_timeout)
        } else if head_begun == NEVER {
            (self.last_byte.load(Relaxed), limits.idle_timeout)
        } else {
            (head_begun, limits.header_timeout)
        };
        self.opened + Duration::from_millis(since) + allowed
    }

    /// Until when a connection that is being closed may go on: while what it has left to send is being taken, whatever else
    /// the peer still sends. A request whose head was completed at the last moment has the limit that it always has.
    pub(super) fn closing_deadline(&self, limits: &ConnectionLimits) -> Instant {
        let (since, allowed) = if self.is_answering() {
            (self.last_byte.load(Relaxed), limits.stall_timeout)
        } else {
            (self.last_written.load(Relaxed), limits.flush_timeout)
        };
        self.opened + Duration::from_millis(since) + allowed
    }

    fn read(&self) {
        let now = self.elapsed();
        self.last_byte.store(now, Relaxed);
        // On HTTP/2 a byte between requests may be a ping or a window update: no head has begun by that.
        if !self.is_answering() && !self.http2.load(Relaxed) {
            let _already_begun = self.head_begun.compare_exchange(NEVER, now, Relaxed, Relaxed);
        }
    }

    fn written(&self) {
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
        self.0.written();
        self.0.in_flight.fetch_sub(1, Relaxed);
    }
}

/// A stream whose bytes are noted.
pub(super) struct Watched<T> {
    pub(super) stream: T,
    pub(super) activity: Arc<Activity>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.read();
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.stream).poll_write(context, bytes))?;
        self.activity.written();
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
        self.activity.written();
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
