//! A Postgres with a fleet on record, and servers on it.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use assay_tests::administrator::Administrator;
use assay_tests::cluster::{Cluster, Database};
use assay_tests::installation::{Installation, unlimited};
use assay_tests::load::Report;
use assay_tests::load::record::put_on_record;
use assay_tests::processes::{ServerConfiguration, program};
use serde_json::json;
use sqlx::{ConnectOptions, Row};

use super::Arguments;

/// The seed of the fleet.
pub(crate) const SEED: &str = "tests/bench/run";
/// The pool size, which is more than the measured connections.
const USES: u64 = 1_000_000;

/// The build of the server.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Build {
    /// The released build.
    Shipped,
    /// The build with the feature `measuring`, and how it records check-ins.
    Measuring(&'static str),
}

/// The environment of the measurements.
pub(crate) struct Setting<'a> {
    pub(crate) arguments: &'a Arguments,
    pub(crate) cluster: &'a Cluster,
    pub(crate) database: &'a Database<'a>,
    configuration: ServerConfiguration,
    token: String,
    directory: tempfile::TempDir,
}

/// Running servers.
pub(crate) struct Running<'a> {
    setting: &'a Setting<'a>,
    installation: Installation,
}

/// Counters of Postgres.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counters {
    pub(crate) updates: i64,
    pub(crate) hot_updates: i64,
    pub(crate) wal_bytes: i64,
}

impl<'a> Setting<'a> {
    pub(crate) async fn make(
        arguments: &'a Arguments,
        cluster: &'a Cluster,
        database: &'a Database<'a>,
    ) -> Setting<'a> {
        let configuration = unlimited(ServerConfiguration::with_private_postgres())
            .set("database.url", &database.url())
            .set("database.migration_url", &database.url_of("assay"))
            .set("public_url", "https://127.0.0.1:8443");
        let installation = Installation::start(&configuration).await;
        let administrator = installation.administrator();
        grant_to_all(&administrator).await;
        let token = administrator
            .token(json!({"max_uses": USES, "expires_in_seconds": 86400}))
            .await;
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("roots.pem"), &installation.roots).unwrap();
        for server in &installation.servers {
            assert!(server.terminate().await.success());
        }
        eprintln!("putting {} machines on record", arguments.machines);
        put_on_record(&database.connect_options(), SEED, arguments.machines).await;
        Self {
            arguments,
            cluster,
            database,
            configuration,
            token: token.secret,
            directory,
        }
    }

    /// Starts replicas of one build.
    pub(crate) async fn start(&'a self, build: Build, replicas: u32) -> Running<'a> {
        let configuration = match build {
            Build::Shipped => self.configuration.clone(),
            Build::Measuring(recording) => self
                .configuration
                .clone()
                .program(&measuring_program())
                .set("measuring.recording", recording),
        };
        let mut servers = Vec::new();
        for _ in 0..replicas {
            servers.push(configuration.start().await);
        }
        let installation = Installation {
            servers,
            api_key: String::new(),
            roots: String::new(),
        };
        Running {
            setting: self,
            installation,
        }
    }

    /// The current counters of Postgres.
    pub(crate) async fn counters(&self) -> Counters {
        let mut connection = self.database.connect_options().connect().await.unwrap();
        let counters = "SELECT coalesce(sum(n_tup_upd), 0)::bigint AS updates, coalesce(sum(n_tup_hot_upd), 0)::bigint AS hot_updates,
                               (SELECT wal_bytes FROM pg_stat_wal)::bigint AS wal_bytes
                        FROM pg_stat_user_tables WHERE relname = 'machine_presence'";
        // An idle backend reports its counters within a second.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let row = sqlx::query(counters).fetch_one(&mut connection).await.unwrap();
        Counters {
            updates: row.get("updates"),
            hot_updates: row.get("hot_updates"),
            wal_bytes: row.get("wal_bytes"),
        }
    }
}

impl Running<'_> {
    /// Runs the load generator with the number of machines from the arguments.
    pub(crate) async fn load(&self, arguments: &[&str], on_record: bool) -> Report {
        let active = on_record.then_some(self.setting.arguments.active);
        let connections = self.setting.arguments.connections;
        self.run_load_generator(arguments, active, connections).await
    }

    /// Runs the load generator with this many machines of the fleet, on this many connections.
    pub(crate) async fn load_by(&self, arguments: &[&str], active: u64, connections: u32) -> Report {
        self.run_load_generator(arguments, Some(active), connections).await
    }

    async fn run_load_generator(&self, arguments: &[&str], active_on_record: Option<u64>, connections: u32) -> Report {
        let Setting {
            arguments: all,
            token,
            directory,
            cluster,
            ..
        } = self.setting;
        let mut command = Command::new(program("assay-load"));
        command.args(["--connections", &connections.to_string()]);
        command.args(arguments).arg("--json");
        for server in &self.installation.servers {
            command.args(["--server", &format!("https://{}", server.address())]);
        }
        command.arg("--ca-file").arg(directory.path().join("roots.pem"));
        command.args(["--postgres-process", &cluster.process().to_string()]);
        if let Some(active) = active_on_record {
            command.args(["--on-record", "--seed", SEED, "--machines", &all.machines.to_string()]);
            command.args(["--active", &active.to_string()]);
        } else {
            command.args(["--token", token]);
        }
        let output = tokio::task::spawn_blocking(move || command.output().unwrap())
            .await
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        let report: Report = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report.failed(), 0, "{report:?}");
        report
    }

    pub(crate) async fn stop(self) {
        for server in self.installation.servers {
            assert!(server.terminate().await.success());
        }
    }
}

async fn grant_to_all(administrator: &Administrator) {
    let permission = administrator.permission("read").await;
    let grant = json!({"permission_id": permission, "selector": {"all": true}, "conditions": {"sip_enabled": true}});
    let _made = administrator.create("grants", &grant).await;
}

/// The server that `tests/bench/run` has built beside the released one.
fn measuring_program() -> PathBuf {
    let program = program("assay-server").with_file_name("assay-server-measuring");
    assert!(
        program.is_file(),
        "{} is missing: run tests/bench/run",
        program.display()
    );
    program
}
