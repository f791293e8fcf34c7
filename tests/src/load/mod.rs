//! The load generator: a fleet of simulated machines that enroll, check in or renew.
//!
//! With a rate, calls are due at fixed times, and latencies count from these times. If a server hangs for a second, the
//! latencies of all calls that were due in that second show it, and not only those that were sent.

pub mod connection;
pub mod lane;
pub mod measurement;
pub mod options;
mod plot;
pub mod processes;
mod progress;
pub mod record;
mod report;
pub mod target;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use self::lane::Lane;
use self::measurement::{Measurement, Window};
use self::options::{Exchange, Options};
use self::processes::{Measured, Usage};
use self::progress::Progress;
pub use self::report::Report;
use self::target::{Target, TargetError};
use crate::machine::{Machine, id_on_record};

/// How long after the window's end calls that were due in it are still sent.
const CATCH_UP: Duration = Duration::from_secs(10);

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The servers cannot be reached.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A lane without a machine.
    #[error(
        "--connections is more than the machines that call: two calls of one machine would take each other's nonce"
    )]
    TooFewMachines,
    /// The machines are not on record and cannot enroll.
    #[error("machines cannot enroll: {0}")]
    NotEnrolled(String),
    /// A result cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The threads cannot be started.
    #[error("the load generator cannot run")]
    Runtime(#[source] std::io::Error),
    /// A task of the load generator failed.
    #[error("the load generator has failed")]
    Failed(#[from] tokio::task::JoinError),
}

/// When calls are due.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    start: Instant,
    window: Window,
    lanes: usize,
    rate: Option<u32>,
}

/// Runs a measurement.
pub async fn run(options: &Options) -> Result<Report, LoadError> {
    if options.connections.get() > options.active().len() {
        return Err(LoadError::TooFewMachines);
    }
    let target = Arc::new(Target::find(options).await?);
    let mut lanes = make_lanes(options, &target).await?;
    if !options.on_record && options.exchange != Exchange::Enroll {
        lanes = enroll(options, lanes).await?;
    }
    let mut prepared = JoinSet::new();
    for mut lane in lanes {
        prepared.spawn(async move { lane.prepare().await.map(|()| lane) });
    }
    let lanes = prepared.join_all().await.into_iter().collect::<Result<Vec<_>, _>>();
    let lanes = lanes.map_err(LoadError::NotEnrolled)?;
    measure(options, &target, lanes).await
}

/// Generates the machines of each lane on a thread of its own, because generating keys takes long.
async fn make_lanes(options: &Options, target: &Arc<Target>) -> Result<Vec<Lane>, LoadError> {
    let seed = options.seed.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
    let (lanes, active) = (options.connections.get(), Arc::new(options.active()));
    let progress = Progress::new(options, "making keys", active.len());
    let mut made = JoinSet::new();
    for number in 0..lanes {
        let (options, target, seed, progress) = (options.clone(), Arc::clone(target), seed.clone(), progress.clone());
        let active = Arc::clone(&active);
        made.spawn_blocking(move || {
            let own = active.iter().skip(number).step_by(lanes).map(|number| {
                let machine = Machine::of_fleet(&seed, *number);
                if options.on_record {
                    machine.set_id(id_on_record(&seed, *number));
                }
                progress.one_more();
                machine
            });
            let own = own.collect();
            Lane::new(&options, &target, number, own)
        });
    }
    let lanes = made.join_all().await.into_iter().collect::<Result<_, _>>()?;
    progress.done();
    Ok(lanes)
}

async fn enroll(options: &Options, lanes: Vec<Lane>) -> Result<Vec<Lane>, LoadError> {
    let progress = Progress::new(options, "enrolling", options.active().len());
    let mut enrolling = JoinSet::new();
    for mut lane in lanes {
        let progress = progress.clone();
        enrolling.spawn(async move { lane.enroll_all(|| progress.one_more()).await.map(|()| lane) });
    }
    let enrolled = enrolling.join_all().await.into_iter().collect::<Result<_, _>>();
    progress.done();
    enrolled.map_err(LoadError::NotEnrolled)
}

async fn measure(options: &Options, target: &Arc<Target>, lanes: Vec<Lane>) -> Result<Report, LoadError> {
    let sockets: Vec<_> = target.addresses.iter().map(|address| address.socket).collect();
    let measured = Measured::find(&options.server_processes, options.postgres_process, &sockets);
    let start = Instant::now();
    let from = start + Duration::from_secs(options.warm_up().into());
    let window = Window {
        from,
        until: from + Duration::from_secs(options.seconds.get().into()),
    };
    let schedule = Schedule {
        start,
        window,
        lanes: lanes.len(),
        rate: options.rate.map(std::num::NonZero::get),
    };
    let measurement = Arc::new(Measurement::new(window));
    let progress = Progress::over_time(options, window, &measurement);
    let mut running = JoinSet::new();
    for (number, lane) in lanes.into_iter().enumerate() {
        running.spawn(run_lane(
            lane,
            number,
            options.exchange,
            schedule,
            Arc::clone(&measurement),
        ));
    }
    let (mut before, mut traffic) = (Usage::default(), [0; 4]);
    let measuring = async {
        sleep_until(window.from).await;
        (before, traffic) = (measured.usage(), totals(target));
        sleep_until(window.until).await;
    };
    // A measurement of enrollments ends when all machines are enrolled.
    tokio::select! {
        () = measuring => {}
        () = async { while running.join_next().await.is_some() {} } => {}
    }
    let end = Instant::now().min(window.until);
    let used = measured.usage().since(&before);
    let now = totals(target);
    let traffic = std::array::from_fn(|place| now[place] - traffic[place]);
    while running.join_next().await.transpose()?.is_some() {}
    progress.done();
    let measurement = Arc::into_inner(measurement).unwrap();
    Ok(Report::new(
        options,
        end.duration_since(from),
        used,
        traffic,
        measurement.into_findings(),
    ))
}

async fn run_lane(
    mut lane: Lane,
    number: usize,
    exchange: Exchange,
    schedule: Schedule,
    measurement: Arc<Measurement>,
) {
    let mut calls = 0_u32;
    loop {
        if exchange == Exchange::Enroll && usize::try_from(calls).is_ok_and(|calls| calls >= lane.machines()) {
            return;
        }
        let due = schedule.due(number, calls);
        if due >= schedule.window.until {
            return;
        }
        sleep_until(due).await;
        if Instant::now() > schedule.window.until + CATCH_UP {
            let remaining = (calls..).take_while(|call| schedule.due(number, *call) < schedule.window.until);
            measurement.unsent(remaining.count().try_into().unwrap());
            return;
        }
        let outcome = lane.call(exchange).await;
        measurement.ended(due, &outcome);
        calls += 1;
    }
}

impl Schedule {
    /// When a lane's call is due: at its time within the fixed rate of all lanes, or immediately.
    fn due(&self, lane: usize, call: u32) -> Instant {
        let Some(rate) = self.rate else {
            return Instant::now();
        };
        let between = Duration::from_secs(1) / rate;
        let lanes = u32::try_from(self.lanes).unwrap();
        self.start + Duration::from_secs(1) * call * lanes / rate + between * u32::try_from(lane).unwrap()
    }
}

fn totals(target: &Target) -> [u64; 4] {
    let traffic = &target.traffic;
    let counters: [&AtomicU64; 4] = [
        &traffic.sent,
        &traffic.received,
        &traffic.full_handshakes,
        &traffic.resumed_handshakes,
    ];
    counters.map(|counter| counter.load(Ordering::Relaxed))
}
