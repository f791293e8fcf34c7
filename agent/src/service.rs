//! The daemon's loop: it performs what [`crate::daemon::step`] decides, and decides nothing itself.

use std::{future::Future, io, pin::Pin, time::Duration};

use assay_protocol::agent_api::{Action as Requested, CheckedIn};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use time::OffsetDateTime;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    agent::{Agent, AgentError, off_the_network, with_causes},
    check_in::interval,
    clock::Clock,
    config::{self, ConfigurationError, ReadSettings, Settings},
    daemon::{Action, Event, Exchange, Happening, Validity, plan, step, wait},
    delay::Jitter,
    enrollment::{EnrollOptions, EnrollOutcome},
    grant_socket, managed,
    state::Record,
};

/// How often a wait looks at the wall clock: a laptop that wakes up must not sleep its wait out.
pub(crate) const LOOK: Duration = Duration::from_secs(15);

type Running<'a> = Pin<Box<dyn Future<Output = Happening> + Send + 'a>>;

/// What the loop waits for.
#[derive(Default)]
struct Pending<'a> {
    exchange: Option<Running<'a>>,
    due: Option<Running<'a>>,
    grace: Option<Running<'a>>,
    reconfigured: Option<Running<'a>>,
}

/// Serves until it is told to stop: enrolls where that is needed, checks in, renews, and hands grants out on its socket.
///
/// Failures are logged and tried again; it ends with an error only where nothing can be tried.
pub async fn run(agent: &Agent, settings: ReadSettings<'_>, stop: CancellationToken) -> Result<(), AgentError> {
    let stop_socket = CancellationToken::new();
    let at_start = settings()?;
    let exchanging = async {
        let result = keep_exchanging(agent, settings, stop).await;
        stop_socket.cancel();
        result
    };
    let (result, ()) = tokio::join!(exchanging, grant_socket::run(agent, &at_start, stop_socket.clone()));
    result
}

async fn keep_exchanging(agent: &Agent, settings: ReadSettings<'_>, stop: CancellationToken) -> Result<(), AgentError> {
    let record = agent.record().await?;
    let mut pending = Pending {
        reconfigured: reconfigured(),
        ..Pending::default()
    };
    match check_server(&record, &settings()?) {
        // The profile that names it may come later than the program.
        Err(AgentError::NotEnrolled) if managed::can_come() => tracing::warn!("waiting for a server to be configured"),
        checked => checked?,
    }
    let (mut state, mut actions) = wait(plan(&record, agent.clock.now()));
    let mut was_told = false;
    loop {
        for action in actions {
            match action {
                Action::Wait { until } => pending.due = Some(Box::pin(wait_until(agent.clock.as_ref(), until))),
                Action::Begin(exchange) => pending.exchange = Some(Box::pin(perform(agent, settings, exchange))),
                Action::AllowGrace(grace) => pending.grace = Some(Box::pin(wait_for(grace))),
                Action::Stop => return Ok(()),
            }
        }
        let what = tokio::select! {
            () = stop.cancelled(), if !was_told => Happening::Terminate,
            what = pending.next() => what,
        };
        if what == Happening::Reconfigured {
            pending.reconfigured = reconfigured();
            tell_reconfigured(agent, settings).await;
        }
        if what == Happening::Terminate {
            tracing::info!("told to end");
            was_told = true;
        }
        let event = Event {
            now: agent.clock.now(),
            jitter: jitter(),
            what,
        };
        (state, actions) = step(state, event);
        tracing::debug!(?what, ?state, "next");
    }
}

/// Does once what the daemon does over and over: enrolls where that is needed, checks in, renews where that is due.
///
/// `None` when the enrollment waits for an administrator.
pub async fn run_once(agent: &Agent, settings: ReadSettings<'_>) -> Result<Option<CheckedIn>, AgentError> {
    let record = agent.record().await?;
    check_server(&record, &settings()?)?;
    if record.must_enroll() && !is_through(&enroll(agent, settings).await?) {
        return Ok(None);
    }
    let checked_in = match agent.check_in().await {
        Err(error) if error.failure().asks_for_enrollment() => {
            tracing::warn!(error = %with_causes(&error), "enrolling again");
            if !is_through(&enroll(agent, settings).await?) {
                return Ok(None);
            }
            agent.check_in().await?
        }
        result => result?,
    };
    let record = agent.record().await?;
    if must_rotate(&checked_in, &record) {
        agent.rotate_key().await?;
        return Ok(Some(agent.check_in().await?));
    }
    let machine = record.machine;
    let now = agent.clock.now();
    let is_due = machine.is_some_and(|machine| Validity::of(&machine.certificate).renewal_due(now) <= now);
    if is_due || checked_in.actions.contains(&Requested::RenewCertificate) {
        agent.renew().await?;
    }
    Ok(Some(checked_in))
}

impl Pending<'_> {
    /// What happens first; what has happened is waited for no more.
    async fn next(&mut self) -> Happening {
        tokio::select! {
            what = first(&mut self.exchange) => what,
            what = first(&mut self.due) => what,
            what = first(&mut self.grace) => what,
            what = first(&mut self.reconfigured) => what,
        }
    }
}

async fn first(running: &mut Option<Running<'_>>) -> Happening {
    let Some(future) = running else {
        return std::future::pending().await;
    };
    let what = future.await;
    *running = None;
    what
}

async fn perform(agent: &Agent, settings: ReadSettings<'_>, exchange: Exchange) -> Happening {
    let result = match exchange {
        Exchange::Enroll => enroll(agent, settings).await.map(|outcome| enrolled(&outcome)),
        Exchange::CheckIn => check_in(agent).await,
        Exchange::Renew => agent.renew().await.map(|answer| {
            tracing::info!(not_after = %answer.certificate.not_after, "the certificate is renewed");
            Happening::Renewed {
                validity: Validity::of(&answer.certificate),
            }
        }),
        Exchange::RotateKey => agent.rotate_key().await.map(|certificate| {
            tracing::info!("the next key is certified");
            Happening::NextKeyCertified {
                validity: Validity::of(&certificate),
            }
        }),
    };
    result.unwrap_or_else(|error| {
        let failure = error.failure();
        tracing::warn!(?exchange, ?failure, error = %with_causes(&error), "failed");
        Happening::Failed(failure)
    })
}

/// Enrolls by the configuration, or as it was begun.
async fn enroll(agent: &Agent, settings: ReadSettings<'_>) -> Result<EnrollOutcome, AgentError> {
    let record = agent.record().await?;
    let settings = settings()?;
    let configured = off_the_network(move || Ok(settings.enroll_options())).await?;
    let configured = match configured {
        // A token file is taken away once it has served; the machine can do without, as its key is known.
        Err(ConfigurationError::File { source, .. })
            if source.kind() == io::ErrorKind::NotFound && record.is_known_to_a_server() =>
        {
            None
        }
        configured => configured?,
    };
    let begun = record.server.map(|server| EnrollOptions {
        server: server.url,
        token: None,
        trust: None,
    });
    agent.enroll(configured.or(begun).ok_or(AgentError::NotEnrolled)?).await
}

/// Waits for a change of the managed settings from what they are now, where there are any.
fn reconfigured<'a>() -> Option<Running<'a>> {
    let before = managed::can_come().then(config::managed)?;
    Some(Box::pin(async move {
        loop {
            tokio::time::sleep(managed::LOOK).await;
            match (&before, config::managed()) {
                (Ok(before), Ok(now)) if *before == now => {}
                (_, Ok(_)) => return Happening::Reconfigured,
                // What cannot be read now is no change: it is said when it is used.
                (_, Err(_)) => {}
            }
        }
    }))
}

/// Says what a change means for a machine that has its server already; the rest is read when it is used.
async fn tell_reconfigured(agent: &Agent, settings: ReadSettings<'_>) {
    tracing::info!("the managed settings have changed");
    let record = agent.record().await;
    let checked = record.and_then(|record| check_server(&record, &settings()?));
    if let Err(error) = checked {
        tracing::warn!(error = %with_causes(&error), "the managed settings do not fit");
    }
}

/// A machine that belongs to one server and is configured for another waits for a person to decide.
fn check_server(record: &Record, settings: &Settings) -> Result<(), AgentError> {
    match (&record.server, &settings.server) {
        (None, None) => Err(AgentError::NotEnrolled),
        (Some(on_record), Some(asked_for)) if on_record.url != *asked_for && record.is_known_to_a_server() => {
            Err(AgentError::OtherServer {
                on_record: on_record.url.clone(),
                asked_for: asked_for.clone(),
            })
        }
        _ => Ok(()),
    }
}

fn is_through(outcome: &EnrollOutcome) -> bool {
    matches!(outcome, EnrollOutcome::Enrolled { .. })
}

fn enrolled(outcome: &EnrollOutcome) -> Happening {
    match outcome {
        EnrollOutcome::Enrolled { enrolled, .. } => {
            tracing::info!(machine = %enrolled.machine_id, "enrolled");
            Happening::Enrolled {
                interval: interval(enrolled.next_check_in_seconds),
                validity: Validity::of(&enrolled.certificate),
            }
        }
        EnrollOutcome::Pending(pending) => {
            tracing::info!(enrollment = %pending.enrollment_id, "waiting for approval");
            Happening::Pending {
                retry_after: interval(pending.retry_after_seconds),
            }
        }
    }
}

async fn check_in(agent: &Agent) -> Result<Happening, AgentError> {
    let answer = agent.check_in().await?;
    let record = agent.record().await?;
    let (grants, denied) = (answer.grants.len(), answer.denied.len());
    tracing::info!(machine = %answer.machine_id, grants, denied, "checked in");
    Ok(Happening::CheckedIn {
        interval: interval(answer.next_check_in_seconds),
        must_renew: answer.actions.contains(&Requested::RenewCertificate),
        must_rotate: must_rotate(&answer, &record),
    })
}

/// Whether the machine is to begin to replace its key, or to go on with what it has begun. What is certified ends with a
/// check-in, not here.
fn must_rotate(answer: &CheckedIn, record: &Record) -> bool {
    match &record.rotation {
        Some(rotation) => rotation.certificate.is_none(),
        None => answer.actions.contains(&Requested::RotateKey),
    }
}

async fn wait_for(time: Duration) -> Happening {
    tokio::time::sleep(time).await;
    Happening::GraceOver
}

async fn wait_until(clock: &dyn Clock, until: OffsetDateTime) -> Happening {
    let begin = Instant::now();
    let planned = until - clock.now();
    while let Some(left) = left(planned, until - clock.now(), begin.elapsed()) {
        tokio::time::sleep(left.min(LOOK)).await;
    }
    Happening::Due
}

/// What is left of a wait: by the wall clock, which goes on while a laptop sleeps, and no more than is left by the
/// monotonic one, which nobody sets back.
fn left(planned: time::Duration, by_wall_clock: time::Duration, elapsed: Duration) -> Option<Duration> {
    let by_monotonic_clock = planned.saturating_sub(elapsed.try_into().unwrap_or(time::Duration::MAX));
    let left = Duration::try_from(by_wall_clock.min(by_monotonic_clock)).ok()?;
    (!left.is_zero()).then_some(left)
}

/// The one place where the daemon takes randomness. Without any (it never is) there is still the fleet's own scatter.
fn jitter() -> Jitter {
    let mut bits = [0; 4];
    if SystemRandom::new().fill(&mut bits).is_err() {
        tracing::error!("the system gives no randomness");
    }
    Jitter::from_bits(u32::from_ne_bytes(bits))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::begun(300, 300, 0, Some(300))]
    #[case::half_way(300, 150, 150, Some(150))]
    #[case::over(300, 0, 300, None)]
    #[case::slept_through(300, -3600, 20, None)]
    #[case::slept_a_while(300, 100, 20, Some(100))]
    #[case::clock_set_back(300, 90_000, 200, Some(100))]
    #[case::clock_set_back_and_over(300, 90_000, 300, None)]
    #[case::due_before_it_began(-5, -5, 0, None)]
    fn a_wait_ends_by_either_clock(
        #[case] planned: i64,
        #[case] by_wall_clock: i64,
        #[case] elapsed: u64,
        #[case] seconds: Option<u64>,
    ) {
        let (planned, by_wall_clock) = (time::Duration::seconds(planned), time::Duration::seconds(by_wall_clock));
        let left = left(planned, by_wall_clock, Duration::from_secs(elapsed));
        assert_eq!(left, seconds.map(Duration::from_secs));
    }
}
