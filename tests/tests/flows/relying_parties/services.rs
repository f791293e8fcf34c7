//! Services in Python, for Node and in Java.

use std::process::Command;

use assay_tests::administrator::text;
use assay_tests::mac::{DONE, Mac};
use assay_tests::node::node_modules;
use assay_tests::process::Process;
use assay_tests::python::python_with;
use rstest::rstest;
use serde_json::json;
use uuid::Uuid;

use super::super::proxy::{get, proxy};
use super::{Client, Host, Machines, WITHIN, audience, granted, installed, permission, run};

/// The port of a service, once it has printed it.
async fn port(service: &Process) -> u16 {
    let port = |line: &str| line.strip_prefix("serving on port ")?.parse().ok();
    let port = service.output().wait_for(0, WITHIN, port).await;
    port.unwrap_or_else(|| panic!("it has ended:\n{}", service.output()))
}

/// Where the services in Python and for Node look for their files, and what they expect of a token.
async fn start_with_tokens(host: &Host<'_>, file: &str, audience: &str) -> Process {
    let (server, identity, trust) = (host.server(), host.path("server"), host.path("assay"));
    let replacements = [
        ("https://assay.example.com", server.as_str()),
        ("https://wiki.example.com", audience),
        ("/etc/wiki/server", &identity),
        ("/etc/assay", &trust),
        ("8443", "0"),
    ];
    let service = host.configured(file, &replacements);
    let mut command = match file {
        "python/wiki.py" => {
            let mut python = Command::new(python_with("relying_parties").await);
            python.arg("-B");
            python
        }
        _ => {
            // Node looks for packages beside the file.
            let modules = node_modules("relying_parties").await;
            std::os::unix::fs::symlink(modules, host.path("node_modules")).unwrap();
            let mut node = Command::new(installed(&["node"]));
            node.env("NODE_EXTRA_CA_CERTS", host.path("assay/roots.pem"));
            node
        }
    };
    command.arg(service);
    Process::spawn(command)
}

#[rstest]
#[case::python("python/wiki.py")]
#[case::node("node/wiki.mjs")]
#[tokio::test]
async fn a_service_refuses_a_revoked_machine_and_a_token_of_another_one(#[case] file: &str) {
    let host = Host::new().await;
    let machines = Machines::new(&host).await;
    let audience = audience();
    let [read, write] = [
        permission(&host, &audience, "read").await,
        permission(&host, &audience, "write").await,
    ];
    let reads = granted(&host, &machines.active, &audience, &read).await;
    let revoked_reads = granted(&host, &machines.revoked, &audience, &read).await;
    let writer = host.party.enroll(&host.administrator).await;
    let writes = granted(&host, &writer, &audience, &write).await;
    let service = start_with_tokens(&host, file, &audience).await;
    let port = port(&service).await;
    let active = Client::new(&host, &machines.active, port).with_token(&reads);
    let revoked = Client::new(&host, &machines.revoked, port).with_token(&revoked_reads);
    active.is_recognized().await;
    revoked.is_recognized().await;
    let (signed, signature) = writes.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", signature.chars().rev().collect::<String>());
    for (token, expected, why) in [
        (writes.as_str(), 403, "read is not granted"),
        (&reads, 401, "another machine"),
        (&forged, 401, ""),
        ("nonsense", 401, ""),
    ] {
        let answer = Client::new(&host, &writer, port).with_token(token).get().await;
        let (status, said) = answer.unwrap();
        assert_eq!(status, expected, "{token}: {said}");
        assert!(said.contains(why), "{said}");
    }
    let (status, said) = Client::new(&host, &writer, port).get().await.unwrap();
    assert_eq!(status, 401, "{said}");

    machines.revoke(&host).await;
    // The services look at the files themselves.
    host.refresh(&["true"]).await;
    revoked.will_be_refused().await;
    active.is_recognized().await;
}

#[tokio::test]
async fn a_service_in_java_refuses_a_revoked_machine_by_ocsp() {
    let host = Host::new().await;
    let machines = Machines::new(&host).await;
    let identity = host.path("server.p12");
    let mut exporting = Command::new("openssl");
    exporting.args([
        "pkcs12",
        "-export",
        "-in",
        &host.path("server.pem"),
        "-inkey",
        &host.path("server.key"),
    ]);
    exporting.args(["-out", &identity, "-passout", "pass:changeit"]);
    let exported = run(exporting).await;
    assert!(exported.status.success(), "{exported:?}");
    let replacements = [
        ("/etc/assay/roots.pem", host.path("assay/roots.pem")),
        ("/etc/wiki/server.p12", identity),
        ("8443", "0".to_owned()),
    ];
    let replacements = replacements.each_ref().map(|(from, to)| (*from, to.as_str()));
    let service = host.configured("java/Wiki.java", &replacements);
    let mut command = Command::new(installed(&["java"]));
    command
        .args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
        .arg(service);
    let service = Process::spawn(command);
    let port = port(&service).await;
    let active = Client::new(&host, &machines.active, port);
    let revoked = Client::new(&host, &machines.revoked, port);
    active.is_recognized().await;
    revoked.is_recognized().await;

    machines.revoke(&host).await;
    revoked.is_refused().await;
    active.is_recognized().await;
}

/// The agent's proxy sends the certificate and the token together.
#[tokio::test]
async fn the_agents_proxy_reaches_a_service_that_checks_both() {
    let host = Host::new().await;
    let audience = audience();
    let mac = Mac::with_key_store(host.installation, "software");
    let token = host.administrator.token(json!({})).await;
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    let id: Uuid = text(&mac.status().await, "machine_id").parse().unwrap();
    let permission = permission(&host, &audience, "read").await;
    let grant = json!({"permission_id": permission, "selector": {"machine_ids": [id]}, "conditions": {}});
    let _granted = host.administrator.create("grants", &grant).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let service = start_with_tokens(&host, "python/wiki.py", &audience).await;
    let url = format!("https://127.0.0.1:{}", port(&service).await);
    std::fs::copy(host.path("server.pem"), host.path("service.pem")).unwrap();
    let proxy = proxy(&mac, &url, &host.files, &["--audience", &audience]).await;
    let (status, said) = get(&proxy, "/").await;
    assert_eq!(status, 200, "{said}\n{}", service.output());
    assert!(said.contains(&id.to_string()), "{said}");
}
