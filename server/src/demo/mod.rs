//! `demo`: a whole installation in one command. Postgres, TLS, the REST API and the agent's code are real. Only the
//! machines are simulated, with software keys and invented facts.

mod administrator;
mod fleet;
mod story;

use std::{io, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use assay_protocol::admin_api::api_keys::Role;
use tempfile::TempDir;
use time::Duration;

pub(crate) use self::story::Story;
use self::{
    administrator::{Administrator, AdministratorError},
    fleet::Fleet,
};
use crate::{
    administration::api_keys::ApiKeyError,
    clock::Clock,
    config::{Config, ConfigError},
    running::{RunError, RunningServer, stop_requested},
};

/// The options of the demo.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DemoOptions {
    pub(crate) machines: u32,
    pub(crate) once: bool,
    pub(crate) port: u16,
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DemoError {
    #[error("cannot create the demo's folder")]
    Folder(#[source] io::Error),
    #[error("the demo's configuration is invalid")]
    Config(#[from] ConfigError),
    #[error("the demo's server does not start (if port {port} is in use, choose another with --port)")]
    Start {
        port: u16,
        #[source]
        source: RunError,
    },
    #[error("the demo's server does not stop")]
    Stop(#[source] RunError),
    #[error("cannot create the administrator's key")]
    ApiKey(#[from] ApiKeyError),
    #[error("the administrator's setup failed")]
    Administrator(#[from] AdministratorError),
    #[error("the machine {serial_number} failed")]
    Machine {
        serial_number: String,
        #[source]
        source: Box<assay_agent::AgentError>,
    },
    #[error("the server's address is invalid")]
    Address(#[source] assay_agent::ServerUrlError),
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
}

/// Runs the demo until `stop`. With `once`, it ends when every machine has checked in.
pub(crate) async fn run(
    options: DemoOptions,
    clock: Arc<dyn Clock>,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), DemoError> {
    let folder = folder().map_err(DemoError::Folder)?;
    let config = config(options.port, folder.path())?;
    let mut story = Story::begin(&options, folder.path())?;
    let server = RunningServer::start(&config, Arc::clone(&clock)).await;
    let server = server.map_err(|source| DemoError::Start {
        port: options.port,
        source,
    })?;
    let played = play(&options, &server, folder.path(), &mut story, stop).await;
    let stopped = server.stop().await.map_err(DemoError::Stop);
    played.and(stopped)?;
    story.end()
}

async fn play(
    options: &DemoOptions,
    server: &RunningServer,
    folder: &Path,
    story: &mut Story,
    stop: impl Future<Output = ()> + Send,
) -> Result<(), DemoError> {
    let root = folder.join("root.pem");
    std::fs::write(&root, server.roots_pem()).map_err(DemoError::Folder)?;
    let address = format!("https://127.0.0.1:{}", server.address().port());
    story.server_runs(&address, &root)?;
    let api_key = server.create_api_key("demo administrator", Role::Admin).await?;
    let administrator = Administrator::new(&address, &server.roots_pem(), api_key)?;
    let token = administrator.set_up(options.machines, story).await?;
    let fleet = Fleet::new(options.machines, folder, &address, &root, token)?;
    let stopped = async {
        tokio::select! {
            done = fleet.enroll_and_check_in(story) => done.map(|()| false),
            () = stop => Ok(true),
        }
    };
    if stopped.await? || options.once {
        return Ok(());
    }
    story.commands_to_try(&address, &root, administrator.api_key(), fleet.a_machine())?;
    fleet.keep_checking_in(stop_requested()).await;
    Ok(())
}

/// If root runs the demo, Postgres runs as an unprivileged user and must be able to pass through this folder.
fn folder() -> io::Result<TempDir> {
    let through = std::fs::Permissions::from_mode(0o711);
    tempfile::Builder::new()
        .prefix("assay-demo-")
        .permissions(through)
        .tempdir()
}

fn config(port: u16, folder: &Path) -> Result<Config, ConfigError> {
    let settings = [
        ("ASSAY_PUBLIC_URL", format!("https://127.0.0.1:{port}")),
        ("ASSAY_TRUST_DOMAIN", "demo.assay".to_owned()),
        ("ASSAY_LISTEN", format!("127.0.0.1:{port}")),
        ("ASSAY_TELEMETRY__LISTEN", "127.0.0.1:0".to_owned()),
        ("ASSAY_REVOCATION__LISTEN", "127.0.0.1:0".to_owned()),
        ("ASSAY_DATA_DIR", folder.join("server").display().to_string()),
        (
            "ASSAY_CHECK_IN__INTERVAL",
            format!("{}s", CHECK_IN_INTERVAL.whole_seconds()),
        ),
    ];
    Config::load(None, settings.into_iter().map(|(key, value)| (key.to_owned(), value)))
}

/// Short, to show check-ins quickly.
const CHECK_IN_INTERVAL: Duration = Duration::seconds(30);
