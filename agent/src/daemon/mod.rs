//! The daemon's loop: it performs what [`step::step`] decides, and decides nothing itself.

mod attempt;
mod delay;
mod step;
mod wake;

use std::{future::Future, io, pin::Pin, time::Duration};

use assay_protocol::{
    Chain,
    agent_api::{Action as Requested, CheckedIn},
};
use aws_lc_rs::rand::{SecureRandom, SystemRandom};
use serde_json::{Map, Value};
use time::OffsetDateTime;
use tokio_util::sync::CancellationToken;

use self::{
    delay::Jitter,
    step::{Action, Event, Exchange, Happening, Validity, plan, step, wait},
};
use crate::{
    clock::Clock,
    config::{self, ConfigurationError, ReadSettings, Settings, managed},
    exchanges::{Agent, AgentError, EnrollOptions, EnrollOutcome, Failure, interval, off_the_network},
    local::grant_socket,
    state::Record,
};

/// Why the daemon ended, or did not do what it began.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DaemonError {
    /// An exchange failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The configuration cannot be read, or does not say what an enrollment takes.
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
}

type Running<'a> = Pin<Box<dyn Future<Output = Happening> + Send + 'a>>;

/// What the loop waits for.
#[derive(Default)]
struct Pending<'a> {
    exchange: Option<Running<'a>>,
    due: Option<Running<'a>>,
    grace: Option<Running<'a>>,
    /// The next look at the managed settings.
    look: Option<Running<'a>>,
}

/// The managed settings as they were when they were last looked at; none where a system has none.
struct SettingsSeen(Option<Result<Map<String, Value>, ConfigurationError>>);

/// Serves until it is told to stop: enrolls where that is needed, checks in, renews, and hands grants out on its socket.
///
/// Failures are logged and tried again; it ends with an error only where nothing can be tried.
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
    let (mut pending, mut seen) = (Pending::default(), SettingsSeen::now());
    match check_server(&record, &settings()?) {
        // The profile that names it may come later than the program.
        Err(AgentError::NotEnrolled) if managed::can_come() => tracing::warn!("waiting for a server to be configured"),
        checked => checked?,
    }
    let (mut state, mut actions) = wait(plan(&record, agent.machine().clock.now()));
    let mut was_told = false;
    loop {
        for action in actions {
            match action {
                Action::Wait { until } => {
                    pending.due = Some(Box::pin(wait_until(agent.machine().clock.as_ref(), until)))
                }
                Action::Begin(exchange) => pending.exchange = Some(Box::pin(perform(agent, settings, exchange))),
                Action::AllowGrace(grace) => pending.grace = Some(Box::pin(wait_for(grace))),
                Action::Stop => return Ok(()),
            }
        }
        pending.look_while(state.is_enrolling());
        let what = tokio::select! {
            () = stop.cancelled(), if !was_told => Happening::Terminate,
            what = pending.next() => what,
        };
        let event = |what| Event {
            now: agent.machine().clock.now(),
            jitter: jitter(),
            what,
        };
        if seen.have_changed() {
            tell_reconfigured(agent, settings).await;
            // What follows from it follows from what woke the daemon, too.
            (state, _) = step(state, event(Happening::Reconfigured));
        } else if what == Happening::Reconfigured {
            actions = Vec::new();
            continue;
        }
        if what == Happening::Terminate {
            tracing::info!("told to end");
            was_told = true;
        }
        (state, actions) = step(state, event(what));
        tracing::debug!(?what, ?state, "next");
    }
}

/// Does once what the daemon does over and over: enrolls where that is needed, checks in, renews where that is due.
///
/// `None` when the enrollment waits for an administrator.
pub(crate) async fn run_once(agent: &Agent, settings: ReadSettings<'_>) -> Result<Option<CheckedIn>, DaemonError> {
    let record = agent.record().await?;
    check_server(&record, &settings()?)?;
    if record.must_enroll() && !is_through(&enroll(agent, settings).await?) {
        return Ok(None);
    }
    let checked_in = match agent.check_in().await {
        Err(error) if error.failure().asks_for_enrollment() => {
            tracing::warn!(error = %Chain(&error), "enrolling again");
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
    let now = agent.machine().clock.now();
    let is_due = machine.is_some_and(|machine| Validity::of(&machine.certificate).renewal_due(now) <= now);
    if is_due || checked_in.actions.contains(&Requested::RenewCertificate) {
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
    /// What happens first; what has happened is waited for no more.
    async fn next(&mut self) -> Happening {
        tokio::select! {
            what = first(&mut self.exchange) => what,
            what = first(&mut self.due) => what,
            what = first(&mut self.grace) => what,
            what = first(&mut self.look) => what,
        }
    }

    /// Looks at the managed settings from time to time as long as the machine waits for what they may bring.
    fn look_while(&mut self, is_enrolling: bool) {
        match is_enrolling && managed::can_come() {
            true if self.look.is_none() => {
                self.look = Some(Box::pin(async {
                    wake::after(managed::LOOK).await;
                    Happening::Reconfigured
                }));
            }
            true => {}
            false => self.look = None,
        }
    }
}

impl SettingsSeen {
    fn now() -> Self {
        Self(managed::can_come().then(config::managed_settings))
    }

    /// Whether they are others than before. What cannot be read now is no change: it is said when it is used.
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
        Exchange::CheckIn => check_in(agent).await.map_err(DaemonError::from),
        Exchange::Renew => renew(agent).await.map_err(DaemonError::from),
        Exchange::RotateKey => rotate_key(agent).await.map_err(DaemonError::from),
    };
    result.unwrap_or_else(|error| {
        let failure = error.failure();
        tracing::warn!(?exchange, ?failure, error = %Chain(&error), "failed");
        Happening::Failed(failure)
    })
}

/// Enrolls by the configuration, or as it was begun.
async fn enroll(agent: &Agent, settings: ReadSettings<'_>) -> Result<EnrollOutcome, DaemonError> {
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
    Ok(agent
        .enroll(configured.or(begun).ok_or(AgentError::NotEnrolled)?)
        .await?)
}

/// Says what a change means for a machine that has its server already; the rest is read when it is used.
async fn tell_reconfigured(agent: &Agent, settings: ReadSettings<'_>) {
    tracing::info!("the managed settings have changed");
    if let Err(error) = check_settings(agent, settings).await {
        tracing::warn!(error = %Chain(&error), "the managed settings do not fit");
    }
}

async fn check_settings(agent: &Agent, settings: ReadSettings<'_>) -> Result<(), DaemonError> {
    Ok(check_server(&agent.record().await?, &settings()?)?)
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

async fn renew(agent: &Agent) -> Result<Happening, AgentError> {
    let certificate = agent.renew().await?.certificate;
    tracing::info!(not_after = %certificate.not_after, "the certificate is renewed");
    Ok(Happening::Renewed {
        validity: Validity::of(&certificate),
    })
}

async fn rotate_key(agent: &Agent) -> Result<Happening, AgentError> {
    let certificate = agent.rotate_key().await?;
    tracing::info!("the next key is certified");
    Ok(Happening::NextKeyCertified {
        validity: Validity::of(&certificate),
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
    // What is over by now is due at once.
    wake::after((until - clock.now()).try_into().unwrap_or_default()).await;
    Happening::Due
}

/// The one place where the daemon takes randomness. Without any (it never is) there is still the fleet's own scatter.
fn jitter() -> Jitter {
    let mut bits = [0; 4];
    if SystemRandom::new().fill(&mut bits).is_err() {
        tracing::error!("the system gives no randomness");
    }
    Jitter::from_bits(u32::from_ne_bytes(bits))
}
