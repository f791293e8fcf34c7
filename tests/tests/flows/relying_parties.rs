//! The services in `docs/relying-parties.md`, run as they are written there.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::time::Duration;

use assay_tests::administrator::text;
use assay_tests::installation::Installation;
use assay_tests::mac::{DONE, Mac};
use assay_tests::openssl::Files;
use assay_tests::process::Process;
use assay_tests::python::python_with;
use serde_json::{Value, json};
use uuid::Uuid;

use super::proxy::{get, proxy};

const READY_WITHIN: Duration = Duration::from_secs(60);

/// The document's only code block in this language, after these replacements. Each text to replace must be in it.
fn documented(language: &str, replacements: &[(&str, &str)]) -> String {
    let document = include_str!("../../../docs/relying-parties.md");
    let (_, after) = document.split_once(&format!("```{language}\n")).unwrap();
    let (block, _) = after.split_once("```").unwrap();
    replacements.iter().fold(block.to_owned(), |block, (from, to)| {
        assert!(block.contains(from), "no {from} in:\n{block}");
        block.replace(from, to)
    })
}

/// A new audience.
fn audience() -> String {
    format!("https://wiki-{}.example.com", Uuid::new_v4().simple())
}

/// A new machine with this permission at this audience.
async fn granted(audience: &str, permission: &str) -> Mac {
    let installation = Installation::shared().await;
    let (mac, administrator) = (
        Mac::with_key_store(installation, "software"),
        installation.administrator(),
    );
    let _enrolled = mac.enroll(&administrator.token(json!({})).await.secret, DONE).await;
    let id: Uuid = text(&mac.status().await, "machine_id").parse().unwrap();
    let permission = json!({"audience": audience, "name": permission, "description": ""});
    let permission = text(&administrator.create("permissions", &permission).await, "id");
    let grant = json!({"permission_id": permission, "selector": {"machine_ids": [id]}, "conditions": {}});
    let _granted = administrator.create("grants", &grant).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    mac
}

async fn token(mac: &Mac, audience: &str) -> String {
    mac.run(&["grant", "--audience", audience], DONE).await
}

/// The certificate and the key of a machine whose key is in a file.
fn identity(mac: &Mac) -> reqwest::Identity {
    let record: Value = serde_json::from_slice(&std::fs::read(mac.state().join("state.json")).unwrap()).unwrap();
    let chain = text(&record["machine"]["certificate"], "chain");
    let key = std::fs::read_to_string(mac.state().join("software.key")).unwrap();
    reqwest::Identity::from_pem(format!("{key}{chain}").as_bytes()).unwrap()
}

#[tokio::test]
async fn the_python_service_accepts_machines_with_matching_certificate_and_grant() {
    let python = python_with("relying_parties").await;
    let (audience, files) = (audience(), Files::new());
    let (reader, writer) = (granted(&audience, "read").await, granted(&audience, "write").await);
    let (certificate, key) = files.certificate("service").await;
    let service = documented(
        "python",
        &[
            ("https://assay.example.com", reader.url()),
            ("https://wiki.example.com", &audience),
            ("/etc/wiki/assay-roots.pem", reader.roots()),
            ("/etc/wiki/server.pem", certificate.to_str().unwrap()),
            ("/etc/wiki/server.key", key.to_str().unwrap()),
            ("8443", "0"),
        ],
    );
    let mut command = Command::new(python);
    command.arg("-B").arg(files.write("wiki.py", service));
    let service = Process::spawn(command);
    let port = |line: &str| line.strip_prefix("serving on port ").map(ToOwned::to_owned);
    let port = service.output().wait_for(0, READY_WITHIN, port).await;
    let port = port.unwrap_or_else(|| panic!("it has ended:\n{}", service.output()));
    let url = format!("https://127.0.0.1:{port}");

    for (mac, expected) in [(&reader, 200), (&writer, 403)] {
        let proxy = proxy(mac, &url, &files, &["--audience", &audience]).await;
        let (status, said) = get(&proxy, "/").await;
        assert_eq!(status, expected, "{said}\n{}", service.output());
        let id = text(&mac.status().await, "machine_id");
        assert_eq!(said.contains(&id), expected == 200, "{said}");
    }
    let client = reqwest::Client::builder()
        .identity(identity(&writer))
        .tls_certs_only([reqwest::Certificate::from_pem(&std::fs::read(certificate).unwrap()).unwrap()])
        .no_proxy()
        .build()
        .unwrap();
    let stolen = token(&reader, &audience).await;
    let (signed, signature) = stolen.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    for (token, why) in [(stolen.as_str(), "another machine"), (&forged, ""), ("nonsense", "")] {
        let answer = client.get(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), 401, "{token}");
        let said = answer.text().await.unwrap();
        assert!(said.contains(why), "{said}");
    }
    let answer = client.get(&url).send().await.unwrap();
    assert_eq!(answer.status(), 401);
}

#[tokio::test]
async fn envoy_accepts_machines_with_a_grant() {
    let python = python_with("relying_parties").await;
    let (audience, files) = (audience(), Files::new());
    let (reader, writer) = (granted(&audience, "read").await, granted(&audience, "write").await);
    // The port is free again when the service binds it.
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let server: reqwest::Url = reader.url().parse().unwrap();
    let server_port = format!("port_value: {}", server.port().unwrap());
    let configuration = documented(
        "yaml",
        &[
            ("https://assay.example.com", reader.url()),
            ("https://wiki.example.com", &audience),
            ("port_value: 8000", &format!("port_value: {port}")),
            ("port_value: 443", &server_port),
            ("assay.example.com", server.host_str().unwrap()),
            ("san_type: DNS", "san_type: IP_ADDRESS"),
            ("/etc/envoy/assay/roots.pem", reader.roots()),
        ],
    );
    let mut command = Command::new(python.with_file_name("envoy"));
    command.arg("-c").arg(files.write("envoy.yaml", configuration));
    command.args(["--use-dynamic-base-id", "--concurrency", "1"]);
    let envoy = Process::spawn(command);
    envoy.writes(0, "starting main dispatch loop").await;
    let url = format!("http://127.0.0.1:{port}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let (good, other) = (token(&reader, &audience).await, token(&writer, &audience).await);
    for (token, expected) in [(good.as_str(), 200), (&other, 403), ("nonsense", 401)] {
        let answer = client.get(&url).bearer_auth(token).send().await.unwrap();
        assert_eq!(answer.status(), expected, "{token}\n{}", envoy.output());
    }
    assert_eq!(client.get(&url).send().await.unwrap().status(), 401);
}
