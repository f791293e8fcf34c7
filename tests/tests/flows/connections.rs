//! Connections that are opened for nothing, against the descriptors that a server has.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;

use assay_tests::cluster::Database;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::load::connection::{Address, Connection};
use assay_tests::processes::{ServerConfiguration, program};
use rustls::pki_types::ServerName;
use serde_json::json;
use tempfile::TempDir;
use tokio::time::{Duration, timeout};
use url::Url;

/// The server's program under limits of the shell.
fn limited(folder: &TempDir, limits: &str) -> PathBuf {
    let script = folder.path().join("assay-server");
    let program = program("assay-server");
    fs::write(
        &script,
        format!("#!/bin/sh\n{limits}\nexec '{}' \"$@\"\n", program.display()),
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    script
}

async fn start(limits: &str) -> (Installation, Database<'static>, TempDir) {
    let (database, folder) = (Database::create().await, tempfile::tempdir().unwrap());
    let configuration = ServerConfiguration::new(&database).program(&limited(&folder, limits));
    (Installation::start(&configuration).await, database, folder)
}

async fn open(address: SocketAddr, number: usize) -> Vec<TcpStream> {
    let connect = move || (0..number).map(|_| TcpStream::connect(address).unwrap()).collect();
    tokio::task::spawn_blocking(connect).await.unwrap()
}

#[tokio::test]
async fn silent_connections_of_one_address_do_not_block_others() {
    let (installation, _database, _folder) = start("ulimit -n 400").await;
    let _silent = open(installation.servers[0].address(), 600).await;
    for path in ["/healthz", "/readyz"] {
        let _served = installation.api(0).get(path).await.expect(200);
    }
    let lines = installation.servers[0].output().lines();
    let refused = lines.iter().find(|line| line.contains("cannot accept connections"));
    assert_eq!(refused, None);
}

#[tokio::test]
async fn a_low_soft_limit_of_open_files_is_raised() {
    let (installation, _database, _folder) = start("ulimit -S -n 256").await;
    let _open = open(installation.servers[0].address(), 300).await;
    let _served = installation.api(0).get("/readyz").await.expect(200);
    let telemetry = format!("http://{}", installation.servers[0].telemetry_address());
    let metrics = reqwest::get(format!("{telemetry}/metrics"))
        .await
        .unwrap()
        .text()
        .await
        .unwrap();
    let connections = metrics.lines().find_map(|line| line.strip_prefix("assay_connections "));
    let connections: u32 = connections.unwrap().parse().unwrap();
    assert!(connections >= 300, "{connections}");
}

/// Evidence that verifies, and nothing less, takes a connection out of its address's limit.
#[tokio::test]
async fn a_connection_that_proved_a_machine_outlives_the_limit_of_its_address() {
    let server = InProcess::start_with(&[("rate_limit.connections_per_address", "2")]).await;
    let machine = server.enrolled("PROVEN").await;
    let host = Url::parse(server.audience()).unwrap().host_str().unwrap().to_owned();
    let address = Address {
        socket: server.address(),
        name: Some(ServerName::try_from(host.clone()).unwrap()),
        host,
    };
    let connect = async || Connection::open(&address, server.tls(), &Arc::default()).await.unwrap();
    let (mut proven, mut unproven) = (connect().await, connect().await);
    let body = machine.check_in_body(server.audience(), &server.nonce().await);
    let checked_in = proven
        .call("/v1/check-in", Some(body.to_string().as_bytes()))
        .await
        .unwrap();
    assert_eq!(checked_in.status, 200);
    let mut broken = machine.check_in_body(server.audience(), &server.nonce().await);
    broken["evidence"] = json!(format!("{}AA", broken["evidence"].as_str().unwrap()));
    let refused = unproven
        .call("/v1/check-in", Some(broken.to_string().as_bytes()))
        .await
        .unwrap();
    assert!(refused.status >= 400, "{}", refused.status);
    let _silent = open(server.address(), 4).await;
    let until_it_ends = async { while unproven.call("/v1/nonce", None).await.is_ok() {} };
    timeout(Duration::from_secs(20), until_it_ends).await.unwrap();
    assert_eq!(proven.call("/healthz", None).await.unwrap().status, 200);
    server.stop().await;
}
