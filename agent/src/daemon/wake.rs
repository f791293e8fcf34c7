//! Timers that count time while the machine is suspended. Changes of the wall clock do not affect them.

use std::{io, os::fd::OwnedFd, time::Duration};

use tokio::io::{Interest, unix::AsyncFd};

/// Waits. The time during which the machine is suspended counts.
pub(crate) async fn sleep(time: Duration) {
    if time.is_zero() {
        return;
    }
    #[allow(
        deprecated,
        reason = "the replacement is unsafe, because of types that return different descriptors; OwnedFd does not"
    )]
    let armed = timer(time).and_then(|timer| AsyncFd::with_interest(timer, Interest::READABLE));
    let ended = match &armed {
        Ok(timer) => timer.readable().await.map(drop),
        Err(error) => Err(io::Error::from(error.kind())),
    };
    if let Err(error) = ended {
        tracing::warn!(%error, "no suspend-aware timer: waiting with the runtime's");
        tokio::time::sleep(time).await;
    }
}

/// A timer that becomes readable when it expires. `CLOCK_BOOTTIME` counts suspended time.
#[cfg(not(target_os = "macos"))]
fn timer(time: Duration) -> io::Result<OwnedFd> {
    use rustix::time::{
        Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
    };
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Boottime, flags)?;
    let once = Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        },
    };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &once)?;
    Ok(timer)
}

/// A timer that becomes readable when it expires. Both usual clocks of a Mac stop while it sleeps. So does an absolute
/// wall-clock deadline, because the kernel converts it once. Only the continuous clock goes on.
#[cfg(target_os = "macos")]
fn timer(time: Duration) -> io::Result<OwnedFd> {
    use nix::{
        libc::NOTE_MACH_CONTINUOUS_TIME,
        sys::event::{EvFlags, EventFilter, FilterFlag, KEvent, Kqueue},
    };

    let once = EvFlags::EV_ADD | EvFlags::EV_ONESHOT;
    let continuous = FilterFlag::from_bits_retain(NOTE_MACH_CONTINUOUS_TIME);
    let milliseconds = isize::try_from(time.as_millis()).unwrap_or(isize::MAX);
    let timer = KEvent::new(1, EventFilter::EVFILT_TIMER, once, continuous, milliseconds, 0);
    let queue = Kqueue::new()?;
    queue.kevent(&[timer], &mut [], None)?;
    Ok(queue.into())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[tokio::test]
    async fn a_sleep_is_not_shorter_than_its_duration() {
        for milliseconds in [0, 1, 50] {
            let (time, begin) = (Duration::from_millis(milliseconds), Instant::now());
            sleep(time).await;
            assert!(begin.elapsed() >= time, "{:?}", begin.elapsed());
        }
    }
}
