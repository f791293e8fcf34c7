//! The agent's certificate in TLS, with real servers: ours, nginx and OpenSSL's.

use std::process::Command;
use std::time::Duration;

use assay_tests::administrator::text;
use assay_tests::cluster::Database;
use assay_tests::installation::{Installation, unlimited};
use assay_tests::mac::{DONE, Mac};
use assay_tests::nginx::Nginx;
use assay_tests::openssl::Files;
use assay_tests::process::Process;
use assay_tests::processes::ServerConfiguration;
use rstest::rstest;
use serde_json::{Value, json};
use uuid::Uuid;

use super::proxy::{get, proxy};

const READY_WITHIN: Duration = Duration::from_secs(60);

async fn installation(client_certificates: &str) -> (Installation, Database<'static>) {
    let database = Database::create().await;
    let configuration = unlimited(ServerConfiguration::new(&database));
    let configuration = configuration.set("tls.client_certificates", client_certificates);
    (Installation::start(&configuration).await, database)
}

async fn enrolled(installation: &Installation) -> Mac {
    let mac = Mac::new(installation);
    let token = installation.administrator().token(json!({})).await;
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    mac
}

async fn serial_number(mac: &Mac) -> String {
    text(&mac.status().await["certificate"], "serial_number")
}

#[tokio::test]
async fn an_agent_works_with_a_server_that_requires_client_certificates() {
    let (installation, _database) = installation("required").await;
    let mac = enrolled(&installation).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let first = serial_number(&mac).await;
    let _renewed = mac.run(&["renew"], DONE).await;
    assert_ne!(serial_number(&mac).await, first);
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
}

/// A machine whose certificate was revoked, or whose renewal was lost, gets a new certificate with its valid key.
#[rstest]
#[case::optional("optional")]
#[case::required("required")]
#[tokio::test]
async fn an_agent_replaces_its_revoked_certificate(#[case] client_certificates: &str) {
    let (installation, database) = installation(client_certificates).await;
    let mac = enrolled(&installation).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let first = serial_number(&mac).await;
    let id: Uuid = text(&mac.status().await, "machine_id").parse().unwrap();
    database.revoke_certificates_of(id).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let status = mac.status().await;
    assert_ne!(text(&status["certificate"], "serial_number"), first);
    assert_eq!(status["machine_id"], json!(id));
    assert_eq!(status["last_failure"], Value::Null);
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
}

#[rstest]
#[case("TLSv1.2")]
#[case("TLSv1.3")]
#[tokio::test]
async fn nginx_accepts_a_machine_and_refuses_one_of_another_authority(#[case] protocol: &str) {
    let installation = Installation::shared().await;
    let (mac, files) = (enrolled(installation).await, Files::new());
    let nginx = Nginx::start(&files, protocol, &installation.roots).await;
    let proxy = proxy(&mac, &nginx.url(), &files, &[]).await;
    let (status, said) = get(&proxy, "/").await;
    assert_eq!(status, 200, "{said}");
    let id = text(&mac.status().await, "machine_id");
    for expected in [
        "verify=SUCCESS",
        &format!("subject=CN={id}"),
        &format!("protocol={protocol}"),
    ] {
        assert!(said.contains(expected), "no {expected} in {said}");
    }

    let (other_roots, _) = files.certificate("other").await;
    let other_roots = std::fs::read_to_string(other_roots).unwrap();
    let files = Files::new();
    let nginx = Nginx::start(&files, protocol, &other_roots).await;
    let proxy = super::proxy::proxy(&mac, &nginx.url(), &files, &[]).await;
    let (status, said) = get(&proxy, "/").await;
    assert_eq!(status, 400, "{said}");
}

#[rstest]
#[case("-tls1_2", "TLSv1.2")]
#[case("-tls1_3", "TLSv1.3")]
#[tokio::test]
async fn openssl_recognizes_a_machine(#[case] only: &str, #[case] protocol: &str) {
    let installation = Installation::shared().await;
    let (mac, files) = (enrolled(installation).await, Files::new());
    let (certificate, key) = files.certificate("service").await;
    let roots = files.write("client-roots.pem", &installation.roots);
    let mut command = Command::new("openssl");
    command
        .args([
            "s_server",
            "-www",
            "-accept",
            "127.0.0.1:0",
            only,
            "-Verify",
            "2",
            "-verify_return_error",
        ])
        .arg("-CAfile")
        .arg(&roots)
        .arg("-cert")
        .arg(&certificate)
        .arg("-key")
        .arg(&key);
    let server = Process::spawn(command);
    let accepting = |line: &str| line.strip_prefix("ACCEPT ").map(ToOwned::to_owned);
    let address = server.output().wait_for(0, READY_WITHIN, accepting).await;
    let address = address.unwrap_or_else(|| panic!("it has ended:\n{}", server.output()));
    let proxy = proxy(&mac, &format!("https://{address}"), &files, &[]).await;
    let (status, said) = get(&proxy, "/").await;
    assert_eq!(status, 200, "{said}");
    let id = text(&mac.status().await, "machine_id");
    for expected in ["Client certificate", &id, protocol] {
        assert!(said.contains(expected), "no {expected} in {said}");
    }
}
