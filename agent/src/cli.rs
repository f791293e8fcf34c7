//! The commands: what each does and answers, and the exit code that says how it went.

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use assay_protocol::Retry;
use clap::Parser;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::filter::LevelFilter;

use crate::{
    agent::{Agent, AgentError, AgentOptions, Failure, reset, with_causes},
    arguments::{Command, CommandLine},
    clock::{Clock, SystemClock},
    config::{ConfigurationError, LogLevel, ReadSettings, Settings},
    doctor,
    enrollment::{EnrollOptions, EnrollOutcome},
    facts::{self, Facts, FileFacts},
    key_store::{self, KeyStore, KeyStoreError},
    proxy::{Proxy, ProxyError, ProxyOptions},
    selftest, service,
    state::{Record, StateError, read_record},
    status::{GrantError, Status, current_grant, printable},
};

/// How long writes that are under way may take when the process ends.
const LAST_WRITES: Duration = Duration::from_secs(1);

const WHICH_SERVER: CommandError = CommandError::Usage("which server? Give --server URL");

/// Why a command did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum CommandError {
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error(transparent)]
    Configuration(#[from] ConfigurationError),
    #[error(transparent)]
    KeyStore(#[from] KeyStoreError),
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Grant(#[from] GrantError),
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    #[error("{0}")]
    Usage(&'static str),
    #[error("the new key does not serve yet; the old one does, and the rotation goes on with the next check-in")]
    NotRotated,
    #[error("nothing was removed")]
    NotConfirmed,
    #[error("the answer cannot be written")]
    Output(#[from] io::Error),
}

/// How a command ended, as the caller's shell sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    Done,
    Failed,
    WrongUsage,
    WaitingForApproval,
    Refused,
    ServerUnreachable,
    KeyStoreUnavailable,
}

/// Runs the program: the command line in, the exit code out.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command_line = match CommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(error) => {
            // Nothing is left to do where not even that can be written.
            let _ = error.print();
            return match error.use_stderr() {
                true => Ended::WrongUsage.into(),
                false => Ended::Done.into(),
            };
        }
    };
    let ended = execute(command_line).unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "assay-agent: {}", printable(&with_causes(&error)));
        error.ended()
    });
    ended.into()
}

fn execute(command_line: CommandLine) -> Result<Ended, CommandError> {
    let CommandLine { shared, command } = command_line;
    let settings = shared.settings()?;
    log(&settings, &command);
    match command {
        Command::Status { json } => status(&settings, json),
        Command::Grant { audience } => grant(&settings, &audience),
        Command::Reset { yes } => give_up(&settings, yes),
        Command::Enroll(arguments) => {
            let options = arguments.options(settings.clone())?.ok_or(WHICH_SERVER)?;
            let agent = open(&settings)?;
            block_on(async { enroll(&agent, options).await })
        }
        Command::Run { once } => {
            let agent = open(&settings)?;
            block_on(run(&agent, &|| shared.settings(), once))
        }
        Command::Doctor { json } => block_on(examine(&settings, json)),
        Command::Selftest { iterations } => {
            let store = key_store::open(settings.key_store(), settings.accessibility())?;
            block_on(async { selftest(store, iterations).await })
        }
        Command::Renew => {
            let agent = open(&settings)?;
            block_on(renew(&agent))
        }
        Command::RotateKey => {
            let agent = open(&settings)?;
            block_on(rotate_key(&agent))
        }
        Command::Proxy(arguments) => {
            let options = arguments.options(&settings)?;
            let agent = open(&settings)?;
            block_on(proxy(agent, options))
        }
    }
}

async fn enroll(agent: &Agent, options: EnrollOptions) -> Result<Ended, CommandError> {
    match agent.enroll(options).await? {
        EnrollOutcome::Enrolled { enrolled, was_enrolled } => {
            let how = if was_enrolled {
                "This machine was enrolled already"
            } else {
                "Enrolled"
            };
            let mut output = io::stdout().lock();
            writeln!(output, "{how}: machine {}", enrolled.machine_id)?;
            writeln!(output, "SPIFFE id    {}", printable(&enrolled.spiffe_id))?;
            writeln!(output, "certificate  until {}", rfc3339(enrolled.certificate.not_after))?;
            Ok(Ended::Done)
        }
        EnrollOutcome::Pending(pending) => {
            writeln!(
                io::stdout(),
                "Waiting for approval: enrollment {}. `assay-agent run` goes on once an administrator has approved it.",
                pending.enrollment_id
            )?;
            Ok(Ended::WaitingForApproval)
        }
    }
}

async fn proxy(agent: Agent, options: ProxyOptions) -> Result<Ended, CommandError> {
    let stop = at_the_order_to_stop()?;
    let proxy = Proxy::open(agent, options).await?;
    writeln!(io::stdout(), "Listening on {}", proxy.address())?;
    proxy.run(stop).await;
    Ok(Ended::Done)
}

/// Cancelled when the process is told to end.
fn at_the_order_to_stop() -> io::Result<CancellationToken> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let (mut signals, stop) = (signal(kind)?, stop.clone());
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

async fn run(agent: &Agent, settings: ReadSettings<'_>, once: bool) -> Result<Ended, CommandError> {
    let stop = at_the_order_to_stop()?;
    if !once {
        service::run(agent, settings, stop).await?;
        return Ok(Ended::Done);
    }
    let checked_in = tokio::select! {
        result = service::run_once(agent, settings) => result?,
        () = stop.cancelled() => return Err(AgentError::Interrupted.into()),
    };
    let status = Status::of(&agent.record().await?, agent.clock.now());
    write!(io::stdout(), "{status}")?;
    Ok(match checked_in {
        Some(_) => Ended::Done,
        None => Ended::WaitingForApproval,
    })
}

async fn renew(agent: &Agent) -> Result<Ended, CommandError> {
    let certificate = agent.renew().await?.certificate;
    writeln!(
        io::stdout(),
        "Renewed: certificate {} until {}",
        printable(&certificate.serial_number),
        rfc3339(certificate.not_after)
    )?;
    Ok(Ended::Done)
}

/// Ends well once the server has gone over to the new key. Before, the daemon or another call goes on where it stopped.
async fn rotate_key(agent: &Agent) -> Result<Ended, CommandError> {
    let certificate = agent.rotate_key().await?;
    agent.check_in().await?;
    let record = agent.record().await?;
    if record.rotation.is_some() {
        return Err(CommandError::NotRotated);
    }
    let key = record.key.map(|thumbprint| thumbprint.to_string()).unwrap_or_default();
    writeln!(
        io::stdout(),
        "Replaced: key {key}, certificate {} until {}",
        printable(&certificate.serial_number),
        rfc3339(certificate.not_after)
    )?;
    Ok(Ended::Done)
}

fn status(settings: &Settings, json: bool) -> Result<Ended, CommandError> {
    let status = Status::of(&read_record(&settings.state_dir())?, SystemClock.now());
    let mut output = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut output, &status).map_err(io::Error::from)?;
        writeln!(output)?;
    } else {
        write!(output, "{status}")?;
    }
    Ok(Ended::Done)
}

async fn examine(settings: &Settings, json: bool) -> Result<Ended, CommandError> {
    let facts = facts(settings).ok();
    let examination = doctor::examine(settings, facts.as_deref()).await;
    let mut output = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut output, &examination).map_err(io::Error::from)?;
        writeln!(output)?;
    } else {
        write!(output, "{examination}")?;
    }
    Ok(match examination.is_well() {
        true => Ended::Done,
        false if examination.has_key_trouble() => Ended::KeyStoreUnavailable,
        false => Ended::Failed,
    })
}

async fn selftest(store: Arc<dyn KeyStore>, iterations: u32) -> Result<Ended, CommandError> {
    let outcome = selftest::run(store, iterations).await;
    write!(io::stdout(), "{outcome}")?;
    Ok(match outcome.is_well() {
        true => Ended::Done,
        false => Ended::KeyStoreUnavailable,
    })
}

fn grant(settings: &Settings, audience: &str) -> Result<Ended, CommandError> {
    let record: Record = read_record(&settings.state_dir())?;
    let grant = current_grant(&record, audience, SystemClock.now())?;
    writeln!(io::stdout(), "{}", grant.token)?;
    Ok(Ended::Done)
}

fn give_up(settings: &Settings, is_confirmed: bool) -> Result<Ended, CommandError> {
    let state_dir = settings.state_dir();
    if !is_confirmed {
        confirm(&state_dir)?;
    }
    // A record that cannot be read is a reason for a reset, not against it.
    let machine = read_record(&state_dir).ok().and_then(|record| record.machine);
    let removed = reset(&state_dir)?;
    let mut output = io::stdout().lock();
    if removed.is_empty() {
        writeln!(output, "There was nothing to remove in {}", state_dir.display())?;
    }
    for path in removed {
        writeln!(output, "removed {}", path.display())?;
    }
    if let Some(machine) = machine {
        writeln!(
            output,
            "The server keeps its record of machine {} until an administrator deletes it.",
            machine.machine_id
        )?;
    }
    Ok(Ended::Done)
}

fn confirm(state_dir: &Path) -> Result<(), CommandError> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::Usage(
            "reset deletes this machine's key: say --yes to do it without being asked",
        ));
    }
    write!(
        io::stderr(),
        "This deletes the key of this machine in {}, for good. Type yes to do it: ",
        state_dir.display()
    )?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    match answer.trim() {
        "yes" => Ok(()),
        _ => Err(CommandError::NotConfirmed),
    }
}

fn facts(settings: &Settings) -> Result<Arc<dyn Facts>, AgentError> {
    match &settings.facts {
        Some(file) => Ok(Arc::new(FileFacts::new(file.clone()))),
        None => Ok(facts::system()?),
    }
}

fn open(settings: &Settings) -> Result<Agent, CommandError> {
    let options = AgentOptions {
        state_dir: settings.state_dir(),
        key_store: key_store::open(settings.key_store(), settings.accessibility())?,
        facts: facts(settings)?,
        clock: Arc::new(SystemClock),
    };
    Ok(Agent::open(options)?)
}

fn block_on(work: impl Future<Output = Result<Ended, CommandError>>) -> Result<Ended, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(LAST_WRITES);
    ended
}

fn log(settings: &Settings, command: &Command) {
    let default = match command {
        Command::Run { once: false } | Command::Proxy(_) => LogLevel::Info,
        _ => LogLevel::Warn,
    };
    let level = match settings.log_level.unwrap_or(default) {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level);
    #[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
    if logs_to_system(settings, command) {
        let subscriber = subscriber.with_writer(crate::system_log::SystemLog).with_ansi(false);
        return subscriber.without_time().with_level(false).init();
    }
    let subscriber = subscriber.with_writer(io::stderr);
    subscriber.with_ansi(io::stderr().is_terminal()).init();
}

/// The daemon's log is the system's, unless somebody runs it by hand and looks on. Commands answer whoever called them.
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
fn logs_to_system(settings: &Settings, command: &Command) -> bool {
    let is_daemon = matches!(command, Command::Run { once: false });
    let by_default = cfg!(target_os = "macos") && !io::stderr().is_terminal();
    is_daemon
        && settings
            .log_to
            .map_or(by_default, |target| target == crate::config::LogTarget::System)
}

fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

impl CommandError {
    fn ended(&self) -> Ended {
        match self {
            Self::Agent(error) => agent_failed(error),
            Self::Configuration(_) | Self::Usage(_) => Ended::WrongUsage,
            Self::KeyStore(_) => Ended::KeyStoreUnavailable,
            Self::State(_)
            | Self::Grant(_)
            | Self::Proxy(_)
            | Self::NotRotated
            | Self::NotConfirmed
            | Self::Output(_) => Ended::Failed,
        }
    }
}

fn agent_failed(error: &AgentError) -> Ended {
    match error.failure() {
        // It answered, and again and again took no nonce of its own.
        Failure::Unreachable { .. }
            if error
                .refusal()
                .is_some_and(|refusal| refusal.problem.retry() == Retry::Now) =>
        {
            Ended::Refused
        }
        Failure::Unreachable { .. } => Ended::ServerUnreachable,
        Failure::HeldBack { is_pending: true, .. } => Ended::WaitingForApproval,
        Failure::HeldBack { is_pending: false, .. } | Failure::Refused | Failure::Unknown => Ended::Refused,
        Failure::KeyLocked | Failure::KeyRefused | Failure::KeyStore => Ended::KeyStoreUnavailable,
        Failure::Local if matches!(error, AgentError::Configuration(_)) => Ended::WrongUsage,
        Failure::Local => Ended::Failed,
    }
}

impl From<Ended> for ExitCode {
    fn from(ended: Ended) -> Self {
        Self::from(match ended {
            Ended::Done => 0,
            Ended::Failed => 1,
            Ended::WrongUsage => 2,
            Ended::WaitingForApproval => 3,
            Ended::Refused => 4,
            Ended::ServerUnreachable => 5,
            Ended::KeyStoreUnavailable => 6,
        })
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::{Problem, ProblemKind};
    use rstest::rstest;

    use super::*;
    use crate::client::{ClientError, Refusal};

    #[rstest]
    #[case(ProblemKind::MachinePending, Ended::WaitingForApproval)]
    #[case(ProblemKind::MachineQuarantined, Ended::Refused)]
    #[case(ProblemKind::MachineRevoked, Ended::Refused)]
    #[case(ProblemKind::EnrollmentTokenInvalid, Ended::Refused)]
    #[case(ProblemKind::MachineUnknown, Ended::Refused)]
    #[case(ProblemKind::BadNonce, Ended::Refused)]
    #[case(ProblemKind::Unavailable, Ended::ServerUnreachable)]
    #[case(ProblemKind::RateLimited, Ended::ServerUnreachable)]
    fn the_exit_code_says_what_the_server_said(#[case] kind: ProblemKind, #[case] ended: Ended) {
        let refusal = Refusal {
            problem: Problem::new(kind, String::new(), String::new()),
            retry_after: None,
        };
        let error = AgentError::Server(ClientError::Refused(Box::new(refusal)));
        assert_eq!(CommandError::Agent(error).ended(), ended);
    }

    #[cfg(not(any(target_os = "macos", feature = "enclave-stand-in")))]
    #[test]
    fn a_key_store_that_this_build_lacks_has_its_own_exit_code_and_names_the_way_out() {
        let error = open(&Settings::default()).unwrap_err();
        assert_eq!(error.ended(), Ended::KeyStoreUnavailable);
        assert!(error.to_string().contains("--key-store software"), "{error}");
    }
}
