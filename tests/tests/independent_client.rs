//! A client in another language, which was written from the public documents, calls two replicas on one database.

use std::process::Command;
use std::time::Duration;

use assay_tests::cluster::Database;
use assay_tests::process::Process;
use assay_tests::processes::ServerConfiguration;
use assay_tests::python::python_with;

/// It takes half a minute on two cores. The limit has a margin for a machine that builds at the same time.
const ENDS_WITHIN: Duration = Duration::from_secs(300);

#[tokio::test]
async fn an_independent_client_completes_every_exchange() {
    let python = python_with("independent_client").await;
    let database = Database::create().await;
    let first = ServerConfiguration::new(&database)
        .set("rate_limit.machine_per_minute", "0")
        .set("rate_limit.address_per_minute", "0")
        .set("rate_limit.api_key_per_minute", "0")
        .start()
        .await;
    let second = first.replica().start().await;
    let api_key = first
        .configuration()
        .create_api_key("the independent client", "admin")
        .await;
    let listening = first.wait_for_message("listening").await.unwrap();

    let mut command = Command::new(python);
    command
        .args([
            "-B",
            "-m",
            "independent_client",
            "--check-ins",
            "10000",
            "--machines",
            "200",
        ])
        .args(["--api-key", &api_key])
        .args(["--revocation-url", &first.revocation_url()])
        .args(["--ca-fingerprint", listening["ca_fingerprint"].as_str().unwrap()])
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    for server in [&first, &second] {
        command.arg("--server").arg(format!("https://{}", server.address()));
    }
    let client = Process::spawn(command);
    client.output().wait_for(0, ENDS_WITHIN, |_| None::<()>).await;
    let status = client.ended().await;
    assert!(status.success(), "{status}:\n{}", client.output());
    println!("{}", client.output());
}
