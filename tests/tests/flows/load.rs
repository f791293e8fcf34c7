//! The load generator against a real server: its report matches the server's records.

use std::path::Path;
use std::process::Command;

use assay_tests::administrator::Administrator;
use assay_tests::cluster::Database;
use assay_tests::installation::Installation;
use assay_tests::load::Report;
use assay_tests::load::record::put_on_record;
use assay_tests::processes::{ServerConfiguration, program};
use rstest::rstest;
use serde_json::json;

struct Load {
    command: Command,
    directory: tempfile::TempDir,
}

impl Load {
    async fn new(exchange: &str, seed: &str) -> Self {
        Self::at(Installation::shared().await, exchange, seed)
    }

    fn at(installation: &Installation, exchange: &str, seed: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let roots = directory.path().join("roots.pem");
        std::fs::write(&roots, &installation.roots).unwrap();
        let mut command = Command::new(program("assay-load"));
        command.args([exchange, "--json", "--seconds", "1", "--seed", seed]);
        if exchange != "enroll" {
            command.args(["--warm-up", "0"]);
        }
        command.args(["--server", &format!("https://{}", installation.servers[0].address())]);
        command.arg("--ca-file").arg(roots);
        Self { command, directory }
    }

    async fn token(mut self, administrator: &Administrator, uses: u32) -> Self {
        let token = administrator.token(json!({"max_uses": uses})).await;
        self.command.args(["--token", &token.secret]);
        self
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    async fn run(mut self, arguments: &[&str]) -> Report {
        self.command.args(arguments);
        let run = move || (self.command.output().unwrap(), self.directory);
        let (output, _directory) = tokio::task::spawn_blocking(run).await.unwrap();
        assert!(output.status.success(), "{output:?}");
        let line = std::str::from_utf8(&output.stdout).unwrap().trim_end();
        serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }
}

#[tokio::test]
async fn a_fleet_checks_in_at_a_rate_and_every_call_counts() {
    let administrator = Installation::shared().await.administrator();
    let load = Load::new("check-in", "at a rate").await.token(&administrator, 12).await;
    let kept = tempfile::tempdir().unwrap();
    let at = |name: &str| kept.path().join(name);
    let (csv, svg) = (at("latency.csv"), at("latency.svg"));
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let report = load
        .run(&[
            "--machines",
            "12",
            "--connections",
            "4",
            "--rate",
            "40",
            "--csv",
            &text(&csv),
            "--svg",
            &text(&svg),
        ])
        .await;
    // Calls that are answered after the end are not counted as completed, but their latencies are.
    assert!((1..=40).contains(&report.completed), "{report:?}");
    assert_eq!((report.failed(), report.unsent), (0, 0), "{report:?}");
    assert!(
        report.latency_ms.max >= report.latency_ms.p50 && report.latency_ms.p50 > 0.0,
        "{report:?}"
    );
    assert!(
        report.bytes.sent > 500 * report.completed && report.bytes.received > 200 * report.completed,
        "{report:?}"
    );
    assert!(report.server_memory.unwrap() > 1_000_000, "{report:?}");
    assert!(report.cpu.server_seconds.unwrap() > 0.0, "{report:?}");
    let csv = std::fs::read_to_string(csv).unwrap();
    let (_, first) = csv.split_once('\n').unwrap();
    assert!(first.starts_with("0,40,0,"), "{csv}");
    assert!(std::fs::read_to_string(svg).unwrap().contains("<polyline"));
    let live = administrator.get("machines?q=mac-11.example.com&liveness=live").await;
    assert_eq!(live["items"].as_array().unwrap().len(), 1, "{live}");
}

#[tokio::test]
async fn each_machine_resumes_its_own_session_with_its_certificate() {
    let administrator = Installation::shared().await.administrator();
    let load = Load::new("renew", "mutual").await.token(&administrator, 4).await;
    let report = load
        .run(&[
            "--machines",
            "4",
            "--connections",
            "2",
            "--connection",
            "resumed",
            "--client-certificates",
        ])
        .await;
    assert_eq!(report.failed(), 0, "{report:?}");
    assert!(
        report.handshakes.resumed > 0 && report.handshakes.full <= 4,
        "{report:?}"
    );
    // Each call has a new connection.
    assert!(
        report.handshakes.resumed + report.handshakes.full >= report.completed,
        "{report:?}"
    );
}

#[tokio::test]
async fn a_call_that_is_refused_is_counted_by_its_problem() {
    let administrator = Installation::shared().await.administrator();
    let load = Load::new("enroll", "one too many").await.token(&administrator, 5).await;
    let report = load.run(&["--machines", "8", "--connections", "2"]).await;
    assert_eq!(report.completed, 5, "{report:?}");
    assert_eq!(report.errors.get("enrollment-token-invalid"), Some(&3), "{report:?}");
}

#[tokio::test]
async fn a_run_in_which_nothing_succeeds_fails_and_says_by_what() {
    let mut load = Load::new("enroll", "nobody").await;
    load.command.args(["--token", "assay_enroll_of-nobody"]);
    load.command.args(["--machines", "8", "--connections", "2"]);
    let csv = load.path("no/such/folder.csv");
    load.command.arg("--csv").arg(&csv);
    let output = tokio::task::spawn_blocking(move || load.command.output().unwrap())
        .await
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let report: Report = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report.errors.get("enrollment-token-invalid"), Some(&8), "{report:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains(csv.to_str().unwrap()), "{error}");
}

#[rstest]
#[case::an_excessive_rate(&["check-in", "--rate", "4000000000"], "1 to 1000000")]
#[case::certificates_of_machines_on_record(&["check-in", "--seed", "x", "--on-record", "--client-certificates"], "--client-certificates")]
fn an_option_that_cannot_be_measured_is_refused_by_name(#[case] arguments: &[&str], #[case] named: &str) {
    let mut load = Command::new(program("assay-load"));
    load.args(arguments).args(["--server", "https://127.0.0.1:1"]);
    let output = load.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains(named), "{error}");
}

#[tokio::test]
async fn an_address_that_is_not_a_server_is_named() {
    let mut load = Load::new("check-in", "nobody").await;
    let unused = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut alone = Command::new(load.command.get_program());
    alone.args(["check-in", "--ca-file"]).arg(load.path("roots.pem"));
    alone.args(["--server", &format!("https://{unused}")]);
    load.command = alone;
    let output = tokio::task::spawn_blocking(move || load.command.output().unwrap())
        .await
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(error.contains(&unused.to_string()), "{error}");
}

#[tokio::test]
async fn machines_put_on_record_check_in_unchanged() {
    let database = Database::create().await;
    put_on_record(&database.connect_options(), "on record", 40).await;
    let installation = Installation::unlimited(&database).await;
    let mut load = Load::at(&installation, "check-in", "on record");
    load.command.args(["--on-record", "--machines", "40", "--active", "10"]);
    let report = load.run(&["--connections", "2"]).await;
    assert!(report.completed > 0 && report.failed() == 0, "{report:?}");
    let administrator = installation.administrator();
    let all = administrator.get("machines?q=mac-&limit=100").await;
    let machines = all["items"].as_array().unwrap();
    assert_eq!(machines.len(), 40);
    for machine in machines {
        let events = administrator
            .get(&format!("machines/{}/events", machine["id"].as_str().unwrap()))
            .await;
        assert_eq!(events["items"], json!([]), "{machine}");
        assert_eq!(machine["last_verdict"]["result"], "pass", "{machine}");
    }
}

#[tokio::test]
async fn a_release_server_records_every_check_in() {
    let configuration = ServerConfiguration::with_private_postgres().set("measuring.recording", "none");
    let mut serve = configuration.command(&["serve"]);
    let output = tokio::task::spawn_blocking(move || serve.output().unwrap())
        .await
        .unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(
        error.contains("measuring.recording") || error.contains("ASSAY_MEASURING__RECORDING"),
        "{error}"
    );
}
