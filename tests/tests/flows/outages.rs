//! Postgres fails and returns: responses say when to retry, and no server needs a restart.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use assay_protocol::ProblemKind;
use assay_tests::administrator::token_of;
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::cluster::{Cluster, Database};
use assay_tests::installation::{Installation, unlimited};
use assay_tests::machine::Machine;
use assay_tests::processes::ServerConfiguration;
use futures_util::future::join_all;
use http::Method;
use rstest::rstest;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
enum Outage {
    Stopped,
    Crashed,
    Hanging,
}

impl Outage {
    async fn begin(self, cluster: &mut Cluster) {
        match self {
            Self::Stopped => cluster.stop().await,
            Self::Crashed => cluster.crash().await,
            Self::Hanging => cluster.pause().await,
        }
    }

    async fn end(self, cluster: &mut Cluster) {
        match self {
            Self::Stopped | Self::Crashed => cluster.restart().await,
            Self::Hanging => cluster.resume().await,
        }
    }
}

/// All kinds of calls that need the database, at the same time, as in a fleet.
async fn call_everything(installation: &Installation, machine: &Machine) -> Vec<Answer> {
    let api = installation.api(0);
    let administer = |method, path: &str| {
        Answer::to(
            api.request(method, &format!("/v1/admin/{path}"))
                .bearer_auth(&installation.api_key),
        )
    };
    let mut nonces = Vec::new();
    for _ in 0..3 {
        nonces.push(api.nonce().await);
    }
    let calls: Vec<futures_util::future::BoxFuture<'_, Answer>> = vec![
        Box::pin(Answer::to(machine.check_in_with(&api, &nonces[0]))),
        Box::pin(Answer::to(machine.renewal(&api, &nonces[1]))),
        Box::pin(Answer::to(machine.enrollment(&api, None, &nonces[2]))),
        Box::pin(administer(Method::GET, "machines")),
        Box::pin(administer(Method::GET, "audit")),
        Box::pin(administer(
            Method::DELETE,
            "permissions/01a20237-793a-7c7e-bc2f-4065b655732f",
        )),
        Box::pin(Answer::to(
            api.request(Method::POST, "/v1/admin/enrollment-tokens")
                .bearer_auth(&installation.api_key)
                .json(&token_of(json!({}))),
        )),
        Box::pin(api.get("/readyz")),
    ];
    join_all(calls).await
}

#[rstest]
#[case::stopped(Outage::Stopped)]
#[case::crashed(Outage::Crashed)]
#[case::hanging(Outage::Hanging)]
#[tokio::test]
async fn without_postgres_calls_fail_within_5_s_and_succeed_afterwards(#[case] outage: Outage) {
    let mut cluster = Cluster::start().await;
    let configuration = unlimited(ServerConfiguration::new(&cluster.create_database().await));
    let installation = Installation::start(&configuration).await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    let permission = administrator.permission("build").await;
    administrator.grant(&permission, &machine, json!({})).await;
    let _checked_in = machine.check_in(&api).await.expect(200);

    outage.begin(&mut cluster).await;
    // In the second round, the server already knows of the outage.
    for round in 0..2 {
        let begun = Instant::now();
        let answers = call_everything(&installation, &machine).await;
        let took = begun.elapsed();
        for answer in answers {
            let _unavailable = answer.expect_problem(ProblemKind::Unavailable);
        }
        assert!(took < ANSWERED_WITHIN, "round {round} took {took:?}");
    }
    let _alive = api.get("/healthz").await.expect(200);

    outage.end(&mut cluster).await;
    until_readiness_is(&api, 200).await;
    machine.forget_nonce();
    let checked_in = machine.check_in(&api).await.expect(200).json();
    assert_eq!(checked_in["grants"].as_array().unwrap().len(), 1);
    for _ in 0..20 {
        let _checked_in = machine.check_in(&api).await.expect(200);
        let _listed = administrator.get("machines").await;
    }
}

/// Asks until the answer has this status: an answer counts for a second.
async fn until_readiness_is(api: &Api, status: u16) {
    let begun = Instant::now();
    while api.get("/readyz").await.status != status {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never was {status}");
    }
}

/// As on a standby that a name still leads to after a failover.
#[tokio::test]
async fn a_replica_whose_database_takes_no_writes_is_not_ready() {
    let cluster = Cluster::start().await;
    let database = cluster.create_database().await;
    let installation = Installation::unlimited(&database).await;
    let (api, pool) = (installation.api(0), database.pool().await);
    let _ready = api.get("/readyz").await.expect(200);
    for (read_only, status) in [("on", 503), ("off", 200)] {
        let set = format!("ALTER SYSTEM SET default_transaction_read_only = {read_only}");
        sqlx::raw_sql(&set).execute(&pool).await.unwrap();
        sqlx::raw_sql("SELECT pg_reload_conf()").execute(&pool).await.unwrap();
        until_readiness_is(&api, status).await;
    }
    let _served = installation.administrator().enrolled(&api).await;
}

#[tokio::test]
async fn a_database_connection_that_breaks_between_check_ins_fails_no_call() {
    let cluster = Cluster::start().await;
    let database = cluster.create_database().await;
    let installation = Installation::unlimited(&database).await;
    let api = installation.api(0);
    let machine = installation.administrator().enrolled(&api).await;
    let pool = database.pool().await;
    let mut ended = 0;
    // The committer keeps its connection for a second, so mostly that connection is ended here.
    for _ in 0..5 {
        let _checked_in = machine.check_in(&api).await.expect(200);
        let number: i64 = sqlx::query_scalar(
            "WITH other AS MATERIALIZED (
                 SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
             )
             SELECT count(*) FROM other WHERE pg_terminate_backend(pid, 5000)",
        )
        .fetch_one(&pool)
        .await
        .unwrap();
        ended += number;
    }
    assert!(ended >= 5, "{ended}");
    let _checked_in = machine.check_in(&api).await.expect(200);
}

#[tokio::test]
async fn two_database_connections_are_enough() {
    let database = Database::create().await;
    let configuration = unlimited(ServerConfiguration::new(&database)).set("database.max_connections", "2");
    let installation = Installation::start(&configuration).await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let mut machines = Vec::new();
    for _ in 0..20 {
        machines.push(administrator.enrolled(&api).await);
    }
    // Each first check-in reads a key, is recorded, and reads a record. Each of the three would keep a connection for a
    // second.
    let begun = Instant::now();
    for machine in &machines {
        let _checked_in = machine.check_in(&api).await.expect(200);
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
}

/// The process id of the private Postgres under a data directory.
fn private_postgres(data_dir: &Path) -> Option<Pid> {
    let content = fs::read_to_string(data_dir.join("postgres/cluster/postmaster.pid")).ok()?;
    Pid::from_raw(content.lines().next()?.parse().ok()?)
}

/// Whether a process runs. A zombie does not.
fn runs(process: Pid) -> bool {
    let mut ps = Command::new("ps");
    let output = ps
        .args(["-o", "stat=", "-p"])
        .arg(process.as_raw_nonzero().to_string())
        .output()
        .unwrap();
    let state = String::from_utf8(output.stdout).unwrap();
    !state.trim().is_empty() && !state.starts_with('Z')
}

#[tokio::test]
async fn a_killed_private_postgres_is_restarted() {
    let installation = Installation::start(&unlimited(ServerConfiguration::with_private_postgres())).await;
    let (api, server) = (installation.api(0), &installation.servers[0]);
    let machine = installation.administrator().enrolled(&api).await;
    let first = private_postgres(server.configuration().data_dir()).unwrap();

    kill_process(first, Signal::KILL).unwrap();
    let back = server
        .wait_for_message("the private Postgres accepts connections again")
        .await;
    assert!(back.is_some());
    let _checked_in = machine.check_in(&api).await.expect(200);
    assert_ne!(private_postgres(server.configuration().data_dir()), Some(first));
}

#[tokio::test]
async fn the_next_server_takes_over_the_private_postgres_of_a_killed_one() {
    let mut installation = Installation::start(&unlimited(ServerConfiguration::with_private_postgres())).await;
    let machine = installation.administrator().enrolled(&installation.api(0)).await;
    let configuration = installation.servers[0].configuration();
    let postgres = private_postgres(configuration.data_dir()).unwrap();

    installation.servers[0].kill().await;
    assert!(runs(postgres), "Postgres outlives the server that was killed");
    installation.servers[0] = configuration.start().await;
    assert_eq!(
        private_postgres(configuration.data_dir()),
        Some(postgres),
        "it was taken over"
    );
    let _checked_in = machine.check_in(&installation.api(0)).await.expect(200);

    let status = installation.servers[0].terminate().await;
    assert_eq!(status.code(), Some(0));
    assert!(!runs(postgres), "Postgres still runs");
    assert_eq!(private_postgres(configuration.data_dir()), None);

    installation.servers[0] = configuration.start().await;
    let _checked_in = machine.check_in(&installation.api(0)).await.expect(200);
}
