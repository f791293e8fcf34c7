//! The daemon's loop. [`step::step`] decides, and the loop carries out the decisions.

mod attempt;
mod delay;
mod plan;
mod step;
mod wake;

use std::{future::Future, io, pin::Pin, time::Duration};

use assay_protocol::{
    Chain,
    agent_api::{Action as RequestedAction, CheckedIn},
};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use self::{
    delay::Jitter,
    plan::{Plan, Validity},
    step::{Action, Event, Exchange, Input, step, wait},
};
use crate::{
    clock::Clock,
    config::{self, ConfigurationError, ReadSettings, Settings, managed},
    exchanges::{Agent, AgentError, EnrollOptions, EnrollOutcome, Failure, RotationOutcome, interval, run_blocking},
    local::grant_socket,
    state::Record,
};

/// Why the daemon ended, or why one pass failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// An exchange failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The configuration is not valid, or a file that it names cannot be read.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
}

type Running<'a> = Pin<Box<dyn Future<Output = Event> + Send + 'a>>;

/// What the loop waits for.
#[derive(Default)]
struct Pending<'a> {
    exchange: Option<Running<'a>>,
    due: Option<Running<'a>>,
    grace: Option<Running<'a>>,
    /// The next reading of the managed settings.
    settings_poll: Option<Running<'a>>,
}

/// The managed settings at the last reading; `None` on systems that have none.
struct ManagedSettingsSeen(Option<Result<Map<String, Value>, ConfigurationError>>);

/// Runs the daemon until `stop` is cancelled: enrolls if necessary, checks in, renews, and serves the grant socket.
///
/// Failures are logged and retried. It returns an error only if nothing can be retried.
pub(crate) async fn run(agent: &Agent, settings: ReadSettings<'_>, stop: CancellationToken) -> Result<(), DaemonError> {
    let stop_socket = CancellationToken::new();
    let at_start = settings()?;
    let exchanging = async {
        let result = keep_exchanging(agent, settings, stop).await;
        stop_socket.cancel();
        result
    };
    let (result, ()) = tokio::join!(
        exchanging,
        grant_socket::run(agent.machine(), &at_start, stop_socket.clone())
    );
    result
}

async fn keep_exchanging(
    agent: &Agent,
    settings: ReadSettings<'_>,
    stop: CancellationToken,
) -> Result<(), DaemonError> {
    let record = agent.record().await?;
    let (mut pending, mut seen) = (Pending::default(), ManagedSettingsSeen::now());
    match check_server(&record, &settings()?) {
        // The profile that names the server may be installed later than the agent.
        Err(AgentError::NotEnrolled) if managed::are_supported() => {
            tracing::warn!("no server is configured: waiting for managed settings")
        }
        checked => checked?,
    }
    let (mut state, mut actions) = wait(Plan::from_record(&record, agent.machine().clock.now()));
    let mut is_stopping = false;
    loop {
        for action in actions {
            match action {
                Action::Wait { until } => {
                    pending.due = Some(Box::pin(wait_until(agent.machine().clock.as_ref(), until)))
                }
                Action::Begin(exchange) => pending.exchange = Some(Box::pin(run_exchange(agent, settings, exchange))),
                Action::AllowGrace(grace) => pending.grace = Some(Box::pin(wait_for(grace))),
                Action::Stop => return Ok(()),
            }
        }
        pending.poll_settings_while(state.is_enrolling());
        let event = tokio::select! {
            () = stop.cancelled(), if !is_stopping => Event::Terminate,
            event = pending.next() => event,
        };
        let input = |event| Input {
            now: agent.machine().clock.now(),
            jitter: jitter(),
            event,
        };
        if seen.have_changed() {
            log_reconfigured(agent, settings).await;
            // The event that woke the daemon determines the actions.
            (state, _) = step(state, input(Event::Reconfigured));
        } else if event == Event::Reconfigured {
            actions = Vec::new();
            continue;
        }
        if event == Event::Terminate {
            tracing::info!("stopping");
            is_stopping = true;
        }
        (state, actions) = step(state, input(event));
        tracing::debug!(?event, ?state, "next");
    }
}

/// One pass of the daemon: enrolls if necessary, checks in, and renews if due.
///
/// `None` if the enrollment waits for approval.
pub(crate) async fn run_once(agent: &Agent, settings: ReadSettings<'_>) -> Result<Option<CheckedIn>, DaemonError> {
    let record = agent.record().await?;
    check_server(&record, &settings()?)?;
    if record.must_enroll() && !is_enrolled(&enroll(agent, settings).await?) {
        return Ok(None);
    }
    let checked_in = match agent.check_in().await {
        Err(error) if error.failure().asks_for_enrollment() => {
            tracing::warn!(error = %Chain(&error), "check-in failed: enrolling again");
            if !is_enrolled(&enroll(agent, settings).await?) {
                return Ok(None);
            }
            agent.check_in().await?
        }
        result => result?,
    };
    let record = agent.record().await?;
    if must_rotate(&checked_in, &record)
        && let RotationOutcome::Certified(_) = agent.rotate_key(None).await?
    {
        return Ok(Some(agent.check_in().await?));
    }
    let machine = record.machine;
    let now = agent.machine().clock.now();
    let is_due = machine.is_some_and(|machine| Validity::of(&machine.certificate).renewal_due(now) <= now);
    if is_due || checked_in.actions.contains(&RequestedAction::RenewCertificate) {
        agent.renew().await?;
    }
    Ok(Some(checked_in))
}

impl DaemonError {
    fn failure(&self) -> Failure {
        match self {
            Self::Agent(error) => error.failure(),
            Self::Configuration(_) => Failure::Local,
        }
    }
}

impl Pending<'_> {
    /// The next event. Its future is removed.
    async fn next(&mut self) -> Event {
        tokio::select! {
            event = first(&mut self.exchange) => event,
            event = first(&mut self.due) => event,
            event = first(&mut self.grace) => event,
            event = first(&mut self.settings_poll) => event,
        }
    }

    /// Reads the managed settings periodically while the machine is not enrolled.
    fn poll_settings_while(&mut self, is_enrolling: bool) {
        match is_enrolling && managed::are_supported() {
            true if self.settings_poll.is_none() => {
                self.settings_poll = Some(Box::pin(async {
                    wake::sleep(managed::POLL_INTERVAL).await;
                    Event::Reconfigured
                }));
            }
            true => {}
            false => self.settings_poll = None,
        }
    }
}

impl ManagedSettingsSeen {
    fn now() -> Self {
        Self(managed::are_supported().then(config::managed_settings))
    }

    /// Whether the settings have changed since the last reading. An unreadable value is no change; the error is
    /// reported when the settings are used.
    fn have_changed(&mut self) -> bool {
        match (&self.0, Self::now().0) {
            (Some(Ok(before)), Some(Ok(now))) if *before == now => false,
            (_, now @ Some(Ok(_))) => {
                self.0 = now;
                true
            }
            (_, None | Some(Err(_))) => false,
        }
    }
}

async fn first(running: &mut Option<Running<'_>>) -> Event {
    let Some(future) = running else {
        return std::future::pending().await;
    };
    let event = future.await;
    *running = None;
    event
}

async fn run_exchange(agent: &Agent, settings: ReadSettings<'_>, exchange: Exchange) -> Event {
    let result = match exchange {
        Exchange::Enroll => enroll(agent, settings).await.map(|outcome| enrolled(&outcome)),
        Exchange::CheckIn => check_in(agent).await.map_err(DaemonError::from),
        Exchange::Renew => renew(agent).await.map_err(DaemonError::from),
        Exchange::RotateKey => rotate_key(agent).await.map_err(DaemonError::from),
    };
    result.unwrap_or_else(|error| {
        let failure = error.failure();
        tracing::warn!(?exchange, ?failure, error = %Chain(&error), "exchange failed");
        Event::Failed(failure)
    })
}

/// Enrolls with the configured options, or repeats the enrollment on record.
async fn enroll(agent: &Agent, settings: ReadSettings<'_>) -> Result<EnrollOutcome, DaemonError> {
    let record = agent.record().await?;
    let settings = settings()?;
    let configured = run_blocking(move || Ok(settings.enroll_options())).await?;
    let configured = match configured {
        // Administrators may delete a token file after use. A machine whose key the server knows needs no token.
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
    Ok(agent
        .enroll(configured.or(begun).ok_or(AgentError::NotEnrolled)?)
        .await?)
}

/// Logs whether the changed settings fit the machine's server. Other settings take effect when they are used.
async fn log_reconfigured(agent: &Agent, settings: ReadSettings<'_>) {
    tracing::info!("the managed settings have changed");
    if let Err(error) = check_settings(agent, settings).await {
        tracing::warn!(error = %Chain(&error), "the managed settings do not fit this machine");
    }
}

async fn check_settings(agent: &Agent, settings: ReadSettings<'_>) -> Result<(), DaemonError> {
    Ok(check_server(&agent.record().await?, &settings()?)?)
}

/// A machine that belongs to one server and is configured for another needs a decision by its administrator.
fn check_server(record: &Record, settings: &Settings) -> Result<(), AgentError> {
    match (&record.server, &settings.server) {
        (None, None) => Err(AgentError::NotEnrolled),
        (Some(on_record), Some(requested)) if on_record.url != *requested && record.is_known_to_a_server() => {
            Err(AgentError::OtherServer {
                on_record: on_record.url.clone(),
                requested: requested.clone(),
            })
        }
        _ => Ok(()),
    }
}

fn is_enrolled(outcome: &EnrollOutcome) -> bool {
    matches!(outcome, EnrollOutcome::Enrolled { .. })
}

fn enrolled(outcome: &EnrollOutcome) -> Event {
    match outcome {
        EnrollOutcome::Enrolled { enrolled, .. } => {
            tracing::info!(machine = %enrolled.machine_id, "enrolled");
            Event::Enrolled {
                interval: interval(enrolled.next_check_in_seconds),
                validity: Validity::of(&enrolled.certificate),
            }
        }
        EnrollOutcome::Pending(pending) => {
            tracing::info!(enrollment = %pending.enrollment_id, "waiting for approval");
            Event::Pending {
                retry_after: interval(pending.retry_after_seconds),
            }
        }
    }
}

async fn check_in(agent: &Agent) -> Result<Event, AgentError> {
    let answer = agent.check_in().await?;
    let record = agent.record().await?;
    let (grants, denied) = (answer.grants.len(), answer.denied.len());
    tracing::info!(machine = %answer.machine_id, grants, denied, "checked in");
    Ok(Event::CheckedIn {
        interval: interval(answer.next_check_in_seconds),
        must_renew: answer.actions.contains(&RequestedAction::RenewCertificate),
        must_rotate: must_rotate(&answer, &record),
    })
}

async fn renew(agent: &Agent) -> Result<Event, AgentError> {
    let certificate = agent.renew().await?.certificate;
    tracing::info!(not_after = %certificate.not_after, "certificate renewed");
    Ok(Event::Renewed {
        validity: Validity::of(&certificate),
    })
}

async fn rotate_key(agent: &Agent) -> Result<Event, AgentError> {
    match agent.rotate_key(None).await {
        Ok(RotationOutcome::Certified(certificate)) => {
            tracing::info!("the next key has its certificate");
            Ok(Event::NextKeyCertified {
                validity: Validity::of(&certificate),
            })
        }
        Ok(RotationOutcome::Pending(pending)) => {
            tracing::info!(enrollment = %pending.enrollment_id, "the next key waits for approval");
            Ok(Event::NextKeyPending {
                retry_after: interval(pending.retry_after_seconds),
            })
        }
        Err(error) if error.refusal().is_some() && agent.record().await?.rotation.is_none() => {
            tracing::warn!(error = %Chain(&error), "the key rotation has ended without a new key");
            Ok(Event::NextKeyAbandoned)
        }
        Err(error) => Err(error),
    }
}

/// Whether to begin or continue a key rotation. Once the next key has its certificate, a check-in completes the
/// rotation.
fn must_rotate(answer: &CheckedIn, record: &Record) -> bool {
    match &record.rotation {
        Some(rotation) => rotation.certificate.is_none(),
        None => answer.actions.contains(&RequestedAction::RotateKey),
    }
}

async fn wait_for(time: Duration) -> Event {
    tokio::time::sleep(time).await;
    Event::GraceOver
}

async fn wait_until(clock: &dyn Clock, until: OffsetDateTime) -> Event {
    // A time in the past is due now.
    wake::sleep((until - clock.now()).try_into().unwrap_or_default()).await;
    Event::Due
}

/// The daemon's only source of randomness. If it fails, all jitter is the same, and only the fleet's own scatter
/// remains.
fn jitter() -> Jitter {
    let mut bits = [0; 4];
    if SystemRandom::new().fill(&mut bits).is_err() {
        tracing::error!("the system's random number generator failed");
    }
    Jitter::from_bits(u32::from_ne_bytes(bits))
}
