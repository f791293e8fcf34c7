//! A client in another language, written against the outside contract alone, at two replicas on one database.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use assay_tests::cluster::Database;
use assay_tests::process::Process;
use assay_tests::processes::ServerConfiguration;
use assay_tests::seed::target_directory;
use aws_lc_rs::digest::{SHA256, digest};

/// With room for a machine that builds at the same time: it takes half a minute on two cores.
const ENDS_WITHIN: Duration = Duration::from_secs(300);

#[tokio::test]
async fn an_independent_client_gets_through_everything() {
    let python = tokio::task::spawn_blocking(python_with_the_libraries).await.unwrap();
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

/// A virtual environment with the pinned libraries, kept under `target`: it is made when they change.
fn python_with_the_libraries() -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR")).join("independent_client/requirements.txt");
    let hash = digest(&SHA256, &fs::read(&requirements).unwrap());
    let directory = target_directory().join("independent-client");
    fs::create_dir_all(&directory).unwrap();
    // Other runs of the suite wait for the one that makes it.
    let lock = File::create(directory.join("lock")).unwrap();
    lock.lock().unwrap();

    let environment = directory.join(&hex::encode(hash)[..16]);
    let python = environment.join("bin/python");
    let complete = environment.join("complete");
    if !complete.exists() {
        let missing = "the independent client needs Python 3.11 or later with venv and pip: apt-get install \
                       python3-venv, dnf install python3 or brew install python";
        run(
            Command::new("python3").args(["-c", "import sys; assert sys.version_info >= (3, 11), sys.version"]),
            missing,
        );
        run(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
            missing,
        );
        run(
            Command::new(&python)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--requirement",
                ])
                .arg(&requirements),
            "the independent client needs the packages of tests/independent_client/requirements.txt, and pip cannot \
             install them here",
        );
        File::create(complete).unwrap();
    }
    python
}

/// # Panics
/// With one sentence on what to do, and what the command wrote.
fn run(command: &mut Command, or_else: &str) {
    let name = command.get_program().to_owned();
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let wrote = [output.stdout, output.stderr].concat();
            panic!(
                "{or_else}.\n{} wrote:\n{}",
                display(&name),
                String::from_utf8_lossy(&wrote)
            );
        }
        Err(error) => panic!("{or_else}.\n{}: {error}", display(&name)),
    }
}

fn display(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}
