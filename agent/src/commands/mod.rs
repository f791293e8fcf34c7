//! The commands, and what they print.

mod arguments;
mod doctor;
mod exit;
mod logging;
mod selftest;
mod status;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
mod system_log;

use std::{
    ffi::OsString,
    io::{self, IsTerminal, Write},
    path::Path,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use assay_protocol::Chain;
use clap::Parser;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::{
    arguments::{Command, CommandLine},
    exit::{CommandError, Exit},
    status::{Status, printable},
};
use crate::{
    clock::{Clock, SystemClock, rfc3339},
    config::{ReadSettings, Settings},
    daemon,
    exchanges::{Agent, AgentError, AgentOptions, EnrollOptions, EnrollOutcome, RotationOutcome, reset},
    facts::{self, Facts, FileFacts},
    key_store::{self, KeyStore},
    proxy::{Proxy, ProxyOptions},
    state::{Record, current_grant, read_record},
};

/// How long writes in progress may take when the process exits.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

const NO_SERVER: CommandError = CommandError::Usage("no server is configured: use --server URL");

/// Runs the program with these arguments, and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command_line = match CommandLine::try_parse_from(arguments) {
        Ok(command_line) => command_line,
        Err(error) => {
            // If the error cannot be printed, there is no other place to report it.
            let _ = error.print();
            return match error.use_stderr() {
                true => Exit::WrongUsage.into(),
                false => Exit::Done.into(),
            };
        }
    };
    let ended = execute(command_line).unwrap_or_else(|error| {
        let _ = writeln!(io::stderr(), "assay-agent: {}", printable(&Chain(&error).to_string()));
        error.exit()
    });
    ended.into()
}

fn execute(command_line: CommandLine) -> Result<Exit, CommandError> {
    let CommandLine { shared, command } = command_line;
    let settings = shared.settings()?;
    logging::start(&settings, &command);
    match command {
        Command::Status { json } => status(&settings, json),
        Command::Grant { audience } => grant(&settings, &audience),
        Command::Reset { yes } => reset_machine(&settings, yes),
        Command::Enroll(arguments) => {
            let options = arguments.options(settings.clone())?.ok_or(NO_SERVER)?;
            let agent = open(&settings)?;
            block_on(async { enroll(&agent, options).await })
        }
        Command::Run { once } => {
            let agent = open(&settings)?;
            block_on(run(&agent, &|| shared.settings(), once))
        }
        Command::Doctor { json } => block_on(diagnose(&settings, json)),
        Command::Selftest { iterations } => {
            let store = key_store::open(settings.key_store(), settings.accessibility())?;
            block_on(async { selftest(store, iterations).await })
        }
        Command::Renew => {
            let agent = open(&settings)?;
            block_on(renew(&agent))
        }
        Command::RotateKey(token) => {
            let token = token.token()?;
            let agent = open(&settings)?;
            block_on(rotate_key(&agent, token))
        }
        Command::Proxy(arguments) => {
            let options = arguments.options(&settings)?;
            let agent = open(&settings)?;
            block_on(proxy(agent, options))
        }
    }
}

async fn enroll(agent: &Agent, options: EnrollOptions) -> Result<Exit, CommandError> {
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
            Ok(Exit::Done)
        }
        EnrollOutcome::Pending(pending) => {
            writeln!(
                io::stdout(),
                "Waiting for approval: enrollment {}. `assay-agent run` continues once an administrator has approved it.",
                pending.enrollment_id
            )?;
            Ok(Exit::WaitingForApproval)
        }
    }
}

async fn proxy(agent: Agent, options: ProxyOptions) -> Result<Exit, CommandError> {
    let stop = stop_signal()?;
    let proxy = Proxy::open(agent, options).await?;
    writeln!(io::stdout(), "Listening on {}", proxy.address())?;
    proxy.run(stop).await;
    Ok(Exit::Done)
}

/// A token that SIGTERM or SIGINT cancels.
fn stop_signal() -> io::Result<CancellationToken> {
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

async fn run(agent: &Agent, settings: ReadSettings<'_>, once: bool) -> Result<Exit, CommandError> {
    let stop = stop_signal()?;
    if !once {
        daemon::run(agent, settings, stop).await?;
        return Ok(Exit::Done);
    }
    let checked_in = tokio::select! {
        result = daemon::run_once(agent, settings) => result?,
        () = stop.cancelled() => return Err(AgentError::Interrupted.into()),
    };
    let status = Status::of(&agent.record().await?, SystemClock.now());
    write!(io::stdout(), "{status}")?;
    Ok(match checked_in {
        Some(_) => Exit::Done,
        None => Exit::WaitingForApproval,
    })
}

async fn renew(agent: &Agent) -> Result<Exit, CommandError> {
    let certificate = agent.renew().await?.certificate;
    writeln!(
        io::stdout(),
        "Renewed: certificate {} until {}",
        printable(&certificate.serial_number),
        rfc3339(certificate.not_after)
    )?;
    Ok(Exit::Done)
}

/// Succeeds once the server has accepted the new key. If it fails before, the daemon or another call continues the
/// rotation.
async fn rotate_key(agent: &Agent, token: Option<SecretString>) -> Result<Exit, CommandError> {
    let certificate = match agent.rotate_key(token).await? {
        RotationOutcome::Certified(certificate) => certificate,
        RotationOutcome::Pending(pending) => {
            writeln!(
                io::stdout(),
                "Waiting for approval: enrollment {}. The old key stays valid. `assay-agent run` continues once an \
                 administrator has approved the new key.",
                pending.enrollment_id
            )?;
            return Ok(Exit::WaitingForApproval);
        }
    };
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
    Ok(Exit::Done)
}

fn status(settings: &Settings, json: bool) -> Result<Exit, CommandError> {
    let status = Status::of(&read_record(&settings.state_dir())?, SystemClock.now());
    let mut output = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut output, &status).map_err(io::Error::from)?;
        writeln!(output)?;
    } else {
        write!(output, "{status}")?;
    }
    Ok(Exit::Done)
}

async fn diagnose(settings: &Settings, json: bool) -> Result<Exit, CommandError> {
    let facts = facts(settings).ok();
    let diagnosis = doctor::diagnose(settings, facts.as_deref()).await;
    let mut output = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut output, &diagnosis).map_err(io::Error::from)?;
        writeln!(output)?;
    } else {
        write!(output, "{diagnosis}")?;
    }
    Ok(match diagnosis.is_well() {
        true => Exit::Done,
        false if diagnosis.has_key_trouble() => Exit::KeyStoreUnavailable,
        false => Exit::Failed,
    })
}

async fn selftest(store: Arc<dyn KeyStore>, iterations: u32) -> Result<Exit, CommandError> {
    let outcome = selftest::run(store, iterations).await;
    write!(io::stdout(), "{outcome}")?;
    Ok(match outcome.is_well() {
        true => Exit::Done,
        false => Exit::KeyStoreUnavailable,
    })
}

fn grant(settings: &Settings, audience: &str) -> Result<Exit, CommandError> {
    let record: Record = read_record(&settings.state_dir())?;
    let grant = current_grant(&record, audience, SystemClock.now())?;
    writeln!(io::stdout(), "{}", grant.token)?;
    Ok(Exit::Done)
}

fn reset_machine(settings: &Settings, is_confirmed: bool) -> Result<Exit, CommandError> {
    let state_dir = settings.state_dir();
    if !is_confirmed {
        confirm(&state_dir)?;
    }
    // A damaged record must not prevent a reset.
    let machine = read_record(&state_dir).ok().and_then(|record| record.machine);
    let removed = reset(&state_dir)?;
    let mut output = io::stdout().lock();
    if removed.is_empty() {
        writeln!(output, "Nothing to remove in {}", state_dir.display())?;
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
    Ok(Exit::Done)
}

fn confirm(state_dir: &Path) -> Result<(), CommandError> {
    if !io::stdin().is_terminal() {
        return Err(CommandError::Usage(
            "reset deletes this machine's key; without a terminal, confirm with --yes",
        ));
    }
    write!(
        io::stderr(),
        "This permanently deletes this machine's key in {}. Type yes to confirm: ",
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

fn block_on(work: impl Future<Output = Result<Exit, CommandError>>) -> Result<Exit, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(work);
    runtime.shutdown_timeout(SHUTDOWN_GRACE);
    ended
}

#[cfg(all(test, not(any(target_os = "macos", feature = "enclave-stand-in"))))]
mod tests {
    use super::*;

    #[test]
    fn a_missing_key_store_has_its_own_exit_code_and_a_remedy() {
        let error = open(&Settings::default()).unwrap_err();
        assert_eq!(error.exit(), Exit::KeyStoreUnavailable);
        assert!(error.to_string().contains("--key-store software"), "{error}");
    }
}
