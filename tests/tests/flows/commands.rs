//! `assay-server`'s commands, as an operator runs them.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use assay_server::database::private_postgres::Account;
use assay_tests::administrator::{Administrator, text, token_of};
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::installation::Installation;
use assay_tests::process::Process;
use assay_tests::processes::{ServerConfiguration, program};
use rstest::rstest;
use serde_json::{Value, json};

/// A command's standard output, standard error and exit status.
pub(super) struct Outcome {
    pub(super) code: Option<i32>,
    pub(super) stdout: String,
    pub(super) stderr: String,
}

pub(super) async fn run(mut command: Command) -> Outcome {
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    Outcome {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// The command lines of all processes that contain a text.
fn processes_that_mention(what: &str) -> Vec<String> {
    let output = Command::new("ps").args(["-eo", "args="]).output().unwrap();
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    lines
        .lines()
        .filter(|line| line.contains(what))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn api_key_create_prints_only_the_key_with_or_without_a_running_server() {
    let configuration = ServerConfiguration::with_private_postgres();
    let alone = run(configuration.command(&["api-key", "create", "--name", "alone", "--role", "admin"])).await;
    assert_eq!(
        (alone.code, alone.stdout.lines().count()),
        (Some(0), 1),
        "{}{}",
        alone.stdout,
        alone.stderr
    );
    let data_dir = configuration.data_dir().to_str().unwrap();
    assert_eq!(
        processes_that_mention(data_dir),
        Vec::<String>::new(),
        "the command leaves nothing running"
    );

    let installation = Installation::start(&configuration).await;
    let beside = installation.servers[0].configuration();
    let viewer = run(beside.command(&["api-key", "create", "--name", "beside", "--role", "viewer"])).await;
    for (key, may_create) in [(alone.stdout.trim_end(), true), (viewer.stdout.trim_end(), false)] {
        let administrator = Administrator::new(installation.api(0), key);
        administrator.get("machines").await;
        let created = administrator
            .call(http::Method::POST, "enrollment-tokens", Some(&token_of(json!({}))))
            .await;
        assert_eq!(created.status, if may_create { 201 } else { 403 }, "{}", created.text());
    }
    let _well = installation.api(0).get("/readyz").await.expect(200);
}

#[tokio::test]
async fn api_keys_are_listed_ended_and_revoked_on_the_command_line() {
    let database = Database::create().await;
    let installation = Installation::start(&ServerConfiguration::new(&database)).await;
    let configuration = installation.servers[0].configuration();
    let api_key = async |arguments: &[&str]| run(configuration.command(&[&["api-key"], arguments].concat())).await;
    let create = ["create", "--name", "robot", "--role", "viewer", "--expires-in", "90d"];
    let created = api_key(&[&create[..], &["--network", "127.0.0.0/8", "--network", "::1"]].concat()).await;
    assert_eq!(created.code, Some(0), "{}", created.stderr);
    let again = api_key(&create).await;
    assert_eq!((again.code, again.stdout.as_str()), (Some(1), ""), "{}", again.stderr);
    assert!(again.stderr.contains("robot"), "{}", again.stderr);
    let bad_network = api_key(&["create", "--name", "n", "--role", "viewer", "--network", "everywhere"]).await;
    assert_eq!(bad_network.code, Some(2), "{}", bad_network.stderr);

    let find = async || {
        let listed = api_key(&["list", "--json"]).await;
        let keys: Vec<Value> = serde_json::from_str(&listed.stdout).unwrap();
        keys.into_iter().find(|key| key["name"] == "robot").unwrap()
    };
    let robot = find().await;
    assert_eq!(robot["networks"], json!(["127.0.0.0/8", "::1/128"]));
    assert!(created.stdout.starts_with(robot["prefix"].as_str().unwrap()), "{robot}");
    let id = robot["id"].as_str().unwrap();
    let lines = api_key(&["list"]).await.stdout;
    assert_eq!(
        lines
            .lines()
            .filter(|line| line.contains(id) && line.contains("valid"))
            .count(),
        1,
        "{lines}"
    );

    let later = api_key(&["end", id, "--in", "91d"]).await;
    assert_eq!(later.code, Some(1), "a life is only shortened: {}", later.stdout);
    let ended = api_key(&["end", id, "--in", "1h"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(find().await["expires_at"].as_str() < robot["expires_at"].as_str());
    let robots = Administrator::new(installation.api(0), created.stdout.trim_end());
    robots.get("self").await;
    let revoked = api_key(&["revoke", id]).await;
    assert_eq!(revoked.code, Some(0), "{}", revoked.stderr);
    let refused = robots.call(http::Method::GET, "self", None).await;
    let _refused = refused.expect_problem(assay_protocol::ProblemKind::Unauthenticated);
    for arguments in [&["revoke", id][..], &["end", id, "--in", "1s"]] {
        let unknown = api_key(arguments).await;
        assert_eq!(unknown.code, Some(1), "{}", unknown.stdout);
    }
    let audit = installation.administrator().audit(&format!("api-key:{id}")).await;
    let actions: Vec<&str> = audit.iter().map(|entry| entry["action"].as_str().unwrap()).collect();
    assert_eq!(actions, ["api-key.revoke", "api-key.end", "api-key.create"]);
    // An operator on the host can also end the last administrator's key, and create another one.
    let own = text(&installation.administrator().get("self").await, "id");
    assert_eq!(api_key(&["revoke", &own]).await.code, Some(0));
}

#[tokio::test]
async fn migrate_prepares_a_database_for_a_server_without_the_rights() {
    let configuration = ServerConfiguration::with_private_postgres().set("database.migrate", "false");
    let refused = run(configuration.command(&["serve"])).await;
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("migrate"), "{}", refused.stderr);
    for _ in 0..2 {
        let migrated = run(configuration.command(&["migrate"])).await;
        assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    }
    let server = configuration.start().await;
    assert_eq!(server.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn config_example_and_openapi_need_no_configuration() {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(program("assay-server"));
        command.args(arguments).env_clear();
        command
    };
    let example = run(command(&["config", "example"])).await;
    assert_eq!(example.code, Some(0), "{}", example.stderr);
    let _toml: toml::Table = example.stdout.parse().unwrap();
    let document = run(command(&["openapi"])).await;
    assert_eq!(document.code, Some(0), "{}", document.stderr);
    let document: Value = serde_json::from_str(&document.stdout).unwrap();
    assert!(document["paths"]["/v1/check-in"]["post"].is_object());
    let installation = Installation::shared().await;
    let served = installation.api(0).get("/openapi.json").await.expect(200).json();
    assert_eq!(served, document);
}

#[rstest]
#[case("check_in.interval", "soon")]
#[case("tls.mode", "none")]
#[case("chek_in.interval", "5m")]
#[case("master_key", "c2hvcnQ")]
#[case("enrollment.reenrollment", "maybe")]
#[tokio::test]
async fn a_bad_configuration_is_reported_in_one_line_with_the_key(#[case] key: &str, #[case] value: &str) {
    for arguments in [
        ["serve"].as_slice(),
        &["migrate"],
        &["api-key", "create", "--name", "a", "--role", "admin"],
    ] {
        let refused = run(ServerConfiguration::with_private_postgres()
            .set(key, value)
            .command(arguments))
        .await;
        assert_eq!(refused.code, Some(1), "{arguments:?}");
        assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
        assert!(refused.stderr.contains(key), "{}", refused.stderr);
        assert_eq!(refused.stdout, "");
    }
}

/// Copies the server to where every account can run it.
pub(super) fn world_executable_server(folder: &Path) -> std::path::PathBuf {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    let copy = folder.join("assay-server");
    fs::copy(program("assay-server"), &copy).unwrap();
    copy
}

#[rstest]
#[case::of_this_account(false)]
#[case::of_an_unprivileged_account(true)]
#[tokio::test]
async fn the_demo_shows_a_grant_and_a_refusal_and_leaves_nothing(#[case] unprivileged: bool) {
    let folder = tempfile::tempdir().unwrap();
    let server = world_executable_server(folder.path());
    let temporary = folder.path().join("temporary");
    fs::create_dir(&temporary).unwrap();
    // As /tmp is.
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o1777)).unwrap();
    let port = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.local_addr().unwrap().port().to_string()
    };
    for _ in 0..2 {
        let mut command = Command::new(&server);
        command
            .args(["demo", "--once", "--port", &port])
            .env("TMPDIR", &temporary)
            .current_dir("/");
        // An account other than root, where the tests run as root; the same otherwise.
        if let Some(account) = Account::unprivileged().unwrap().filter(|_| unprivileged) {
            command.uid(account.uid).gid(account.gid);
        }
        let demo = Process::spawn(command);
        let status = demo.ended().await;
        demo.output().ended().await;
        assert_eq!(status.code(), Some(0), "{}", demo.output());
        let story = demo.output().to_string();
        assert!(story.contains("granted") && story.contains("denied"), "{story}");
        assert!(story.contains("filevault_enabled"), "the reason is shown: {story}");
        assert_eq!(fs::read_dir(&temporary).unwrap().count(), 0, "its folder is removed");
        let left = processes_that_mention(folder.path().to_str().unwrap());
        assert_eq!(left, Vec::<String>::new(), "nothing is left running");
    }
}

#[tokio::test]
async fn a_stopping_server_finishes_the_requests_it_began() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let api: Api = installation.api(0);
    let machine = installation.administrator().enrolled(&api).await;
    let mut lock = database.pool().await.begin().await.unwrap();
    sqlx::query("SELECT FROM machine_presence FOR UPDATE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let nonce = api.nonce().await;
    let call = tokio::spawn(Answer::to(machine.check_in_with(&api, &nonce)));
    until_a_query_waits_for_a_lock(&database).await;
    let server = &installation.servers[0];
    let (status, ()) = tokio::join!(server.terminate(), async {
        lock.rollback().await.unwrap();
    });
    assert_eq!(status.code(), Some(0));
    let _checked_in = call.await.unwrap().expect(200);
}

/// Waits until Postgres reports a waiting lock.
pub(super) async fn until_a_query_waits_for_a_lock(database: &Database<'_>) {
    let waiting = "DO $$ BEGIN WHILE NOT EXISTS (
                       SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'
                   ) LOOP PERFORM pg_sleep(0.001); PERFORM pg_stat_clear_snapshot(); END LOOP; END $$";
    sqlx::query(waiting).execute(&database.pool().await).await.unwrap();
}
