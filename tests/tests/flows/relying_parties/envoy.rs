//! Envoy, which checks the certificate, the token and the permission.

use std::process::Command;

use assay_tests::process::Process;
use assay_tests::python::python_with;

use super::{Client, Host, Machines, audience, free_port, granted, permission};

async fn start(host: &Host<'_>, audience: &str) -> (Process, u16) {
    let python = python_with("relying_parties").await;
    let port = free_port();
    let server: reqwest::Url = host.server().parse().unwrap();
    let address = format!(
        "address: {}, port_value: {}",
        server.host_str().unwrap(),
        server.port().unwrap()
    );
    let folder = host.path("assay");
    let machines = host.configured("envoy/machines.yaml", &[("/etc/assay", &folder)]);
    let listen = format!("address: 127.0.0.1, port_value: {port}");
    let roots = format!("{folder}/");
    let replacements = [
        ("address: 0.0.0.0, port_value: 443", listen.as_str()),
        ("/etc/envoy/server", &host.path("server")),
        ("/etc/envoy/machines.yaml", machines.to_str().unwrap()),
        ("/etc/assay/", &roots),
        ("https://assay.example.com", &host.server()),
        ("https://wiki.example.com", audience),
        ("address: assay.example.com, port_value: 443", &address),
        ("san_type: DNS", "san_type: IP_ADDRESS"),
        ("assay.example.com", server.host_str().unwrap()),
    ];
    let configuration = host.configured("envoy/envoy.yaml", &replacements);
    let mut starting = Command::new(python.with_file_name("envoy"));
    starting.arg("-c").arg(configuration);
    starting.args(["--use-dynamic-base-id", "--concurrency", "1"]);
    let envoy = Process::spawn(starting);
    envoy.writes(0, "starting main dispatch loop").await;
    (envoy, port)
}

#[tokio::test]
async fn envoy_refuses_a_revoked_machine_and_one_without_a_grant() {
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
    let (_envoy, port) = start(&host, &audience).await;
    let active = Client::new(&host, &machines.active, port).with_token(&reads);
    let revoked = Client::new(&host, &machines.revoked, port).with_token(&revoked_reads);
    let _content = active.is_accepted().await;
    let _content = revoked.is_accepted().await;
    for (token, expected) in [(writes.as_str(), 403), ("nonsense", 401)] {
        let (status, said) = Client::new(&host, &writer, port).with_token(token).get().await.unwrap();
        assert_eq!(status, expected, "{said}");
    }
    let (status, said) = Client::new(&host, &writer, port).get().await.unwrap();
    assert_eq!(status, 401, "{said}");

    machines.revoke(&host).await;
    // Envoy watches the folder.
    host.refresh(&["true"]).await;
    revoked.will_be_refused().await;
    let _content = active.is_accepted().await;
}
