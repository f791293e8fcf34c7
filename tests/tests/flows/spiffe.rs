//! Relying parties that speak SPIFFE: the bundle, X.509-SVIDs and JWT-SVIDs, as the Python library of SPIFFE reads
//! them.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use assay_protocol::admin_api::api_keys::Role;
use assay_tests::administrator::{Administrator, text};
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use assay_tests::python::python_with;
use serde_json::{Value, json};
use uuid::Uuid;

use super::commands::run;

/// The library's view of the bundle: the numbers of roots and grant keys, and the sequence.
async fn read(python: &Path, given: &Value) -> [u64; 3] {
    let (python, given) = (python.to_owned(), given.to_string());
    let output = tokio::task::spawn_blocking(move || {
        let mut client = Command::new(python)
            .args(["-B", "-m", "independent_client.spiffe_bundle"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        client.stdin.take().unwrap().write_all(given.as_bytes()).unwrap();
        client.wait_with_output().unwrap()
    });
    let output = output.await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(output.status.success(), "{said}");
    let counted: Vec<u64> = said.split_whitespace().map(|number| number.parse().unwrap()).collect();
    counted.try_into().unwrap()
}

#[tokio::test]
async fn a_spiffe_library_reads_the_bundle_and_accepts_a_machine_and_its_grant() {
    let python: PathBuf = python_with("independent_client").await;
    let server = InProcess::start().await;
    let administrator = Administrator::new(server.reached().clone(), server.api_key(Role::Admin));
    let machine = Machine::with_serial_number("SPIFFE");
    let token = server.enrollment_token(json!({})).await;
    let enrolled = machine.enroll(&server, Some(&token)).await.expect(201).json();
    let audience = format!("https://{}.example.com", Uuid::new_v4());
    let permission = json!({"audience": audience, "name": "build"});
    let permission = text(&administrator.create("permissions", &permission).await, "id");
    administrator.grant(&permission, &machine, json!({})).await;
    let checked_in = machine.check_in(&server).await.expect(200).json();
    let bundle = async || server.reached().get("/.well-known/spiffe-bundle").await.expect(200);
    let mut given = json!({
        "bundle": bundle().await.json(), "trust_domain": "example.com", "audience": audience,
        "chain": enrolled["certificate"]["chain"], "private_key": machine.private_key_pem(),
        "spiffe_id": enrolled["spiffe_id"], "token": checked_in["grants"][0]["token"],
    });
    let [roots, grant_keys, first] = read(&python, &given).await;
    assert_eq!([roots, grant_keys], [1, 1]);

    // The bundle has the next keys before they sign, and its sequence has risen.
    for what in ["--root", "--grant-key"] {
        let rotated = run(server.command(&["ca", "rotate", what])).await;
        assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    }
    let begun = Instant::now();
    loop {
        given["bundle"] = bundle().await.json();
        if given["bundle"]["keys"].as_array().unwrap().len() == 4 {
            break;
        }
        assert!(begun.elapsed().as_secs() < 60, "the server does not notice");
    }
    let [roots, grant_keys, second] = read(&python, &given).await;
    assert_eq!([roots, grant_keys], [2, 2]);
    assert!(second > first, "{first} and {second}");
    server.stop().await;
}
