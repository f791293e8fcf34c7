//! What a server gives away to other accounts of its host, and to callers that are not administrators.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;

use assay_protocol::ProblemKind;
use assay_server::database::private_postgres::Account;
use assay_tests::administrator::Administrator;
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::openssl::Files;
use assay_tests::process::Process;
use assay_tests::processes::ServerConfiguration;
use http::Method;
use rstest::rstest;

use super::bootstrap::{refused, refused_command};
use super::commands::world_executable_server;

/// The same as in the variables of the tests.
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

/// Readable by every account.
fn publish(path: &Path, contents: &str) {
    fs::write(path, contents).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
}

/// The issuing CA's key and the master key are in its memory.
#[tokio::test]
async fn the_servers_memory_is_in_no_core_file_and_closed_to_its_own_account() {
    let (database, folder) = (Database::create().await, tempfile::tempdir().unwrap());
    let configuration = ServerConfiguration::new(&database).program(&world_executable_server(folder.path()));
    let mut command = configuration.command(&["serve"]);
    // Root may read any process's memory.
    if let Some(account) = Account::unprivileged().unwrap() {
        command.uid(account.uid).gid(account.gid);
    }
    let server = Process::spawn(command);
    let _listening = server.writes(0, "\"listening\"").await;
    let proc = format!("/proc/{}", server.id());
    // Linux gives these files of a process that may not be dumped to root.
    assert_eq!(fs::metadata(format!("{proc}/environ")).unwrap().uid(), 0);
    let limits = fs::read_to_string(format!("{proc}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    let values: Vec<_> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(values, ["0", "0"], "{core}");
}

/// The server does this itself as well, but not for the Postgres that it starts.
#[test]
fn the_unit_of_systemd_allows_no_core_file() {
    let unit = include_str!("../../../deploy/server/assay-server.service");
    let service = unit.split("[Service]").nth(1).unwrap().split("\n[").next().unwrap();
    let limits: Vec<_> = service.lines().filter(|line| line.starts_with("LimitCORE")).collect();
    assert_eq!(limits, ["LimitCORE=0"]);
}

#[tokio::test]
async fn the_data_directory_is_made_for_the_servers_account_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("assay");
    let server = InProcess::start_with(&[("data_dir", data_dir.to_str().unwrap())]).await;
    assert_eq!(fs::metadata(&data_dir).unwrap().mode() & 0o777, 0o700);
    server.stop().await;
}

#[rstest]
#[case::master_key("master_key_file")]
#[case::key_of_tls("tls.private_key")]
#[case::key_of_an_mdm("mdm.nanomdm.api_key_file")]
#[tokio::test]
async fn a_secret_in_a_file_that_every_account_may_read_stops_the_start(#[case] key: &str) {
    let (database, files) = (Database::create().await, Files::new());
    let (certificate, private_key) = files.certificate("localhost").await;
    let path = private_key.display().to_string();
    let configuration = ServerConfiguration::new(&database).set(key, &path);
    let configuration = match key {
        "master_key_file" => configuration.without("master_key"),
        "tls.private_key" => configuration
            .set("tls.mode", "files")
            .set("tls.certificate", certificate.to_str().unwrap()),
        _ => configuration.set("mdm.nanomdm.url", "https://mdm.example.com"),
    };
    let contents = match key {
        "tls.private_key" => fs::read_to_string(&private_key).unwrap(),
        _ => format!("{MASTER_KEY}\n"),
    };
    publish(&private_key, &contents);
    let line = refused(&configuration).await;
    assert!(line.contains(&path) && line.contains("other accounts"), "{line}");
    // The group is the operator's choice.
    fs::set_permissions(&private_key, fs::Permissions::from_mode(0o640)).unwrap();
    let server = configuration.start().await;
    assert_eq!(server.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_configuration_with_a_secret_that_every_account_may_read_stops_the_start() {
    let (database, folder) = (Database::create().await, tempfile::tempdir().unwrap());
    let file = folder.path().join("assay.toml");
    let with_key = ServerConfiguration::new(&database);
    let without_key = with_key.clone().without("master_key");
    let serve =
        |configuration: &ServerConfiguration| configuration.command(&["serve", "--config", file.to_str().unwrap()]);
    publish(&file, &format!("master_key = \"{MASTER_KEY}\"\n"));
    let line = refused_command(serve(&without_key)).await;
    assert!(line.contains("master_key") && line.contains("other accounts"), "{line}");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    let server = Process::spawn(serve(&without_key));
    let _listening = server.writes(0, "\"listening\"").await;
    drop(server);
    // Without a secret, every account may read it.
    publish(&file, "");
    let server = Process::spawn(serve(&with_key));
    let _listening = server.writes(0, "\"listening\"").await;
}

#[tokio::test]
async fn the_administrators_api_is_served_on_its_own_address_alone() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database).set("admin.listen", "127.0.0.1:0");
    let installation = Installation::start(&configuration).await;
    let listening = installation.servers[0].wait_for_message("listening").await.unwrap();
    let address = listening["admin"].as_str().unwrap();
    let machines = installation.api(0);
    let administrators = Api::new(&format!("https://{address}"), machines.audience(), &installation.roots);
    let administrator = Administrator::new(administrators.clone(), &installation.api_key);
    let machine = administrator.enrolled(&machines).await;
    let read = |api: &Api| {
        let request = api.request(Method::GET, &machine.path());
        Answer::to(request.bearer_auth(&installation.api_key))
    };
    let _read = read(&administrators).await.expect(200);
    let _absent = read(&machines).await.expect_problem(ProblemKind::NotFound);
    let _absent = administrators
        .get("/v1/ca/bundle.pem")
        .await
        .expect_problem(ProblemKind::NotFound);
    let _checked_in = machine.check_in(&machines).await.expect(200);
    assert_eq!(installation.servers[0].terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_database_elsewhere_without_verified_tls_is_a_warning() {
    let warning = "does not verify the TLS certificate";
    let start = |url: &str| {
        let configuration = ServerConfiguration::with_private_postgres().set("database.url", url);
        Process::spawn(configuration.command(&["serve"]))
    };
    let server = start("postgres://assay:hunter2@database.invalid/assay");
    let _warned = server.writes(0, warning).await;
    assert!(!server.output().to_string().contains("hunter2"));
    let server = start("postgres://assay:hunter2@database.invalid/assay?sslmode=verify-full");
    let _tried = server.writes(0, "cannot connect to the database yet").await;
    assert!(!server.output().to_string().contains(warning));
}
