//! A progress bar, on terminals only.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::task::AbortHandle;
use tokio::time::{Instant, interval};

use super::measurement::{Measurement, Window};
use super::options::Options;

const COUNTED: &str = "{msg} [{wide_bar}] {pos}/{len} {eta}";
const TIMED: &str = "{msg} [{wide_bar}] {percent}%";
const EVERY: Duration = Duration::from_millis(250);

/// The progress of a run.
#[derive(Clone)]
pub(super) struct Progress {
    bar: ProgressBar,
    ticking: Option<AbortHandle>,
}

impl Progress {
    /// Adds to the count.
    pub(super) fn new(options: &Options, what: &'static str, all: usize) -> Self {
        Self {
            bar: bar(options, COUNTED, all.try_into().unwrap()).with_message(what),
            ticking: None,
        }
    }

    /// Follows a measurement.
    pub(super) fn over_time(options: &Options, window: Window, measurement: &Arc<Measurement>) -> Self {
        let start = Instant::now();
        let all = window.until - start;
        let bar = bar(options, TIMED, all.as_secs());
        let (shown, measurement) = (bar.clone(), Arc::downgrade(measurement));
        let name = options.exchange.name();
        let ticking = tokio::spawn(async move {
            let mut ticks = interval(EVERY);
            loop {
                ticks.tick().await;
                let Some(measurement) = measurement.upgrade() else {
                    return;
                };
                let (succeeded, failed) = (
                    measurement.succeeded.load(Ordering::Relaxed),
                    measurement.failed.load(Ordering::Relaxed),
                );
                drop(measurement);
                shown.set_position(start.elapsed().as_secs());
                shown.set_message(format!("{name}: {succeeded}, failed: {failed}"));
            }
        });
        Self {
            bar,
            ticking: Some(ticking.abort_handle()),
        }
    }

    pub(super) fn one_more(&self) {
        self.bar.inc(1);
    }

    pub(super) fn done(&self) {
        if let Some(ticking) = &self.ticking {
            ticking.abort();
        }
        self.bar.finish_and_clear();
    }
}

fn bar(options: &Options, style: &str, length: u64) -> ProgressBar {
    let is_watched = !options.json && std::io::stderr().is_terminal();
    let target = if is_watched {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    ProgressBar::with_draw_target(Some(length), target).with_style(ProgressStyle::with_template(style).unwrap())
}
