//! Calls that end early, and calls that another one overtakes.
//!
//! A call is stopped between two polls of its future, which is between two statements to the database. The number of polls
//! comes from the seed. The batches of a replica run in tasks of their own, and continue as in a real server.

use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use futures_util::future::poll_fn;
use tokio::time::timeout;

/// A call that waits for a row that the stopped one has locked is answered only after that one continues.
const WAITS_FOR_A_LOCK: Duration = Duration::from_millis(25);

/// In which order two calls were answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    FirstAnsweredFirst,
    SecondAnsweredFirst,
}

/// Runs a call, and drops it if it is not answered after so many polls: the caller has hung up, or the replica has crashed.
pub(super) async fn cut_off<T>(call: impl Future<Output = T>, polls: usize) -> Option<T> {
    let mut call = pin!(call);
    poll_at_most(call.as_mut(), polls).await
}

/// Stops the first call after so many polls, runs the second one, and then continues the first one.
pub(super) async fn overtake<A, B>(
    first: impl Future<Output = A>,
    polls: usize,
    second: impl Future<Output = B>,
) -> (A, B, Order) {
    let mut first = pin!(first);
    if let Some(first) = poll_at_most(first.as_mut(), polls).await {
        return (first, second.await, Order::FirstAnsweredFirst);
    }
    let mut second = pin!(second);
    if let Ok(second) = timeout(WAITS_FOR_A_LOCK, second.as_mut()).await {
        return (first.await, second, Order::SecondAnsweredFirst);
    }
    tokio::select! {
        biased;
        second = second.as_mut() => (first.await, second, Order::SecondAnsweredFirst),
        first = first.as_mut() => (first, second.await, Order::FirstAnsweredFirst),
    }
}

async fn poll_at_most<F: Future>(mut call: Pin<&mut F>, mut polls: usize) -> Option<F::Output> {
    poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if polls == 0 => Poll::Ready(None),
        Poll::Pending => {
            polls -= 1;
            Poll::Pending
        }
    })
    .await
}
