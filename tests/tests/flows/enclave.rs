//! A daemon with a key in the Secure Enclave, through a stand-in with the same C functions. The tests cover what the
//! agent does after each error of the enclave, and what it must never do.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use assay_tests::administrator::text;
use assay_tests::installation::Installation;
use assay_tests::mac::{DONE, FAILED, KEY_STORE_UNAVAILABLE, Mac, REFUSED, WAITING_FOR_APPROVAL, WRONG_USAGE};
use assay_tests::process::Process;
use rstest::rstest;
use rustix::process::Signal;
use serde_json::{Value, json};

const LOGGED_WITHIN: Duration = Duration::from_secs(60);
const RUN_ONCE: &[&str] = &["run", "--once"];

async fn token(body: Value) -> String {
    Installation::shared().await.administrator().token(body).await.secret
}

/// An enrolled machine with its key in the enclave.
async fn enrolled() -> Mac {
    let mac = Mac::new(Installation::shared().await);
    let _enrolled = mac.enroll(&token(json!({})).await, DONE).await;
    mac
}

fn key_file(mac: &Mac) -> PathBuf {
    mac.state().join("secure-enclave.key")
}

/// The files in the state directory, without folders.
fn files(mac: &Mac) -> BTreeSet<String> {
    let entries = fs::read_dir(mac.state()).unwrap().map(Result::unwrap);
    entries
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

async fn ends_when_it_is_told_to(daemon: &Process) {
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
}

/// The result of `doctor --json` for the key.
async fn diagnosis(mac: &Mac, exit_code: i32) -> Value {
    let said = mac.run(&["doctor", "--json"], exit_code).await;
    let said: Value = serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error} in {said}"));
    let findings = said["findings"].as_array().unwrap();
    findings
        .iter()
        .find(|finding| finding["subject"] == "key")
        .unwrap()
        .clone()
}

#[tokio::test]
async fn a_daemons_key_works_before_the_first_login() {
    let mac = Mac::new(Installation::shared().await);
    mac.enclave_fails("locked");
    let daemon = mac.start_daemon(&token(json!({})).await);
    daemon.writes(0, "enrolled").await;
    ends_when_it_is_told_to(&daemon).await;
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(diagnosis(&mac, DONE).await["is_well"], true);
}

#[tokio::test]
async fn a_daemon_waits_for_a_key_that_needs_a_login_and_never_replaces_it() {
    let installation = Installation::shared().await;
    let (mac, administrator) = (Mac::new(installation), installation.administrator());
    let token = administrator.token(json!({})).await;
    let configuration = mac.configure(&token.secret, "accessibility = 'after-first-unlock'");
    let run = ["run", "--config", &configuration];

    mac.enclave_fails("locked");
    let daemon = mac.start(&run);
    daemon.writes(0, "waiting for first unlock").await;
    ends_when_it_is_told_to(&daemon).await;
    let status = mac.status().await;
    assert_eq!(status["key_trouble"]["kind"], "waiting-for-first-unlock");
    assert_eq!(
        files(&mac),
        BTreeSet::from(["lock".to_owned(), "state.json".to_owned()])
    );
    mac.enclave_fails("");
    let _checked_in = mac.run(&["run", "--once", "--config", &configuration], DONE).await;
    let (before, key) = (mac.status().await, fs::read(key_file(&mac)).unwrap());
    let id = text(&before, "machine_id").parse().unwrap();
    assert_eq!(
        administrator.machine(id).await["key"]["accessibility"],
        "after-first-unlock"
    );

    // It boots again.
    mac.enclave_fails("locked");
    let said = mac.run(RUN_ONCE, KEY_STORE_UNAVAILABLE).await;
    assert!(said.contains("waiting for first unlock"), "{said}");
    let said = mac.run(&["status"], DONE).await;
    assert!(
        said.contains("waiting for first unlock") && said.contains("log in once"),
        "{said}"
    );
    assert_eq!(
        diagnosis(&mac, KEY_STORE_UNAVAILABLE).await["key"],
        "waiting-for-first-unlock"
    );
    assert_eq!(fs::read(key_file(&mac)).unwrap(), key);
    mac.enclave_fails("");
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(mac.status().await["key_thumbprint"], before["key_thumbprint"]);
    assert_eq!(mac.status().await["key_trouble"], Value::Null);
    assert_eq!(administrator.uses(&token).await, 1);
}

#[rstest]
#[case::locked("fail NSOSStatusErrorDomain -25308", "waiting-for-first-unlock", "log in once")]
#[case::object_not_found("fail CryptoTokenKit -6", "unavailable", "retries")]
#[case::token_not_found("fail CryptoTokenKit -7", "unavailable", "retries")]
#[case::communication("fail CryptoTokenKit -2", "unavailable", "retries")]
#[case::authentication_needed("fail CryptoTokenKit -9", "unavailable", "retries")]
#[case::no_channel("fail NSOSStatusErrorDomain -26276", "enclave-exhausted", "another program")]
#[case::missing_entitlement("fail NSOSStatusErrorDomain -34018", "defect", "report it")]
#[case::bad_parameter("fail NSOSStatusErrorDomain -50", "defect", "report it")]
#[case::unheard_of("fail NSCocoaErrorDomain 4", "unavailable", "retries")]
#[case::another_key("swap", "changed", "reset")]
#[tokio::test]
async fn an_enclave_error_is_explained_and_keeps_the_key(
    #[case] fault: &str,
    #[case] kind: &str,
    #[case] advice: &str,
) {
    let mac = enrolled().await;
    let (key, before) = (fs::read(key_file(&mac)).unwrap(), files(&mac));
    mac.enclave_fails(fault);
    let _failed = mac.run(RUN_ONCE, KEY_STORE_UNAVAILABLE).await;
    let _failed = mac.enroll(&token(json!({})).await, KEY_STORE_UNAVAILABLE).await;
    let status = mac.status().await;
    assert_eq!(status["key_trouble"]["kind"], kind);
    assert!(text(&status["key_trouble"], "advice").contains(advice), "{status}");
    let diagnosis = diagnosis(&mac, KEY_STORE_UNAVAILABLE).await;
    assert_eq!(diagnosis["key"], kind);
    assert!(text(&diagnosis, "advice").contains(advice), "{diagnosis}");
    if let Some(code) = fault.strip_prefix("fail ") {
        assert!(
            text(&diagnosis, "finding").contains(code) || kind == "waiting-for-first-unlock",
            "{diagnosis}"
        );
    }
    assert_eq!(fs::read(key_file(&mac)).unwrap(), key);
    assert_eq!(files(&mac), before, "no software key, and nothing set aside");
    assert_eq!(mac.enclave_calls("create"), 1);
    mac.enclave_fails("");
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
}

#[rstest]
#[case("CryptoTokenKit -6")]
#[case("CryptoTokenKit -7")]
#[case("CryptoTokenKit -2")]
#[case("CryptoTokenKit -9")]
#[case::corrupted_for_a_moment("CryptoTokenKit -3")]
#[tokio::test]
async fn a_transient_enclave_error_is_retried(#[case] error: &str) {
    let mac = enrolled().await;
    mac.enclave_fails(&format!("fail {error} 2"));
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(mac.status().await["last_failure"], Value::Null);
}

#[tokio::test]
async fn a_key_refused_by_the_enclave_is_replaced_and_the_machine_keeps_its_record() {
    let installation = Installation::shared().await;
    let (mac, administrator) = (enrolled().await, installation.administrator());
    let (before, old_key) = (mac.status().await, fs::read(key_file(&mac)).unwrap());
    let token = json!({"serial_numbers": [mac.serial_number()], "allow_reenrollment": true});
    let configuration = mac.configure(&self::token(token).await, "");
    mac.gets_another_enclave();
    let _checked_in = mac.run(&["run", "--once", "--config", &configuration], DONE).await;
    let after = mac.status().await;
    assert_eq!(after["machine_id"], before["machine_id"]);
    assert_ne!(after["key_thumbprint"], before["key_thumbprint"]);
    assert_eq!(
        fs::read(mac.state().join("secure-enclave.key.refused")).unwrap(),
        old_key
    );
    assert_ne!(fs::read(key_file(&mac)).unwrap(), old_key);
    let id = text(&after, "machine_id").parse().unwrap();
    assert_eq!(
        administrator.machine(id).await["key"]["thumbprint"],
        after["key_thumbprint"]
    );
    // The next time, no key needs to be replaced.
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(mac.enclave_calls("create"), 2);
    // A reset deletes the files of both.
    let _reset = mac.run(&["reset", "--yes"], DONE).await;
    assert_eq!(files(&mac), BTreeSet::from(["lock".to_owned()]));
}

#[tokio::test]
async fn a_key_that_loads_but_does_not_sign_is_replaced() {
    let mac = enrolled().await;
    let before = mac.status().await;
    let kept: Value = serde_json::from_slice(&fs::read(key_file(&mac)).unwrap()).unwrap();
    let token = json!({"serial_numbers": [mac.serial_number()], "allow_reenrollment": true});
    let configuration = mac.configure(&self::token(token).await, "");
    mac.enclave_fails(&format!("spoiled {}", text(&kept, "sealed_key")));
    let _checked_in = mac.run(&["run", "--once", "--config", &configuration], DONE).await;
    let after = mac.status().await;
    assert_eq!(after["machine_id"], before["machine_id"]);
    assert_ne!(after["key_thumbprint"], before["key_thumbprint"]);
}

#[tokio::test]
async fn a_daemon_replaces_a_refused_key_and_waits_for_approval_without_a_token() {
    let installation = Installation::shared().await;
    let (mac, administrator) = (enrolled().await, installation.administrator());
    let before = mac.status().await;
    let configuration = mac.configure(&token(json!({})).await, "");
    // The error may be temporary. The agent repeats the call, in two attempts, before it abandons a key.
    mac.enclave_fails("fail CryptoTokenKit -3 6");
    let _waits = mac
        .run(&["run", "--once", "--config", &configuration], WAITING_FOR_APPROVAL)
        .await;
    let status = mac.status().await;
    assert_eq!(status["standing"], "waiting-for-approval");
    let path = format!("enrollments/{}/approve", text(&status, "enrollment_id"));
    let _approved = administrator
        .call(http::Method::POST, &path, Some(&json!({})))
        .await
        .expect(200);
    let daemon = mac.start(&["run", "--config", &configuration]);
    daemon.writes(0, "enrolled").await;
    ends_when_it_is_told_to(&daemon).await;
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(mac.status().await["machine_id"], before["machine_id"]);
    assert_eq!(mac.enclave_calls("create"), 2);
}

#[tokio::test]
async fn without_a_token_a_refused_key_is_replaced_once_and_the_agent_says_what_is_missing() {
    let mac = enrolled().await;
    mac.gets_another_enclave();
    for _ in 0..2 {
        let said = mac.run(RUN_ONCE, REFUSED).await;
        assert!(said.contains("token"), "{said}");
    }
    assert_eq!(mac.enclave_calls("create"), 2);
    // A crash left the old key's file with a record that knows the new key.
    fs::copy(mac.state().join("secure-enclave.key.refused"), key_file(&mac)).unwrap();
    let _refused = mac.run(RUN_ONCE, REFUSED).await;
    assert_eq!(mac.enclave_calls("create"), 3);
    let token = json!({"serial_numbers": [mac.serial_number()], "allow_reenrollment": true});
    let _enrolled = mac.enroll(&self::token(token).await, DONE).await;
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
}

#[tokio::test]
async fn state_copied_by_migration_assistant_enrolls_as_a_machine_of_its_own() {
    let installation = Installation::shared().await;
    let (mut mac, administrator) = (enrolled().await, installation.administrator());
    let (before, old_key) = (mac.status().await, fs::read(key_file(&mac)).unwrap());
    mac.becomes_another_machine();
    let configuration = mac.configure(&token(json!({})).await, "");
    let _checked_in = mac.run(&["run", "--once", "--config", &configuration], DONE).await;
    let after = mac.status().await;
    assert_ne!(after["machine_id"], before["machine_id"]);
    assert_ne!(after["key_thumbprint"], before["key_thumbprint"]);
    assert_eq!(
        fs::read(mac.state().join("secure-enclave.key.refused")).unwrap(),
        old_key
    );
    let machine = async |status: &Value| administrator.machine(text(status, "machine_id").parse().unwrap()).await;
    assert_eq!(machine(&after).await["serial_number"], mac.serial_number());
    // The original machine is unchanged.
    assert_eq!(machine(&before).await["key"]["thumbprint"], before["key_thumbprint"]);
    assert_eq!(machine(&before).await["status"], "active");
}

#[tokio::test]
async fn a_hanging_enclave_call_times_out_and_blocks_nothing_else() {
    let mac = Mac::new(Installation::shared().await);
    // Creating the key hangs: the next attempt must not wait for it.
    mac.enclave_fails("hang 1");
    let daemon = mac.start_daemon(&token(json!({})).await);
    let read = daemon.writes(0, "did not answer within").await;
    assert_eq!(mac.status().await["key_trouble"]["kind"], "no-answer");
    let said = mac.run(&["doctor"], KEY_STORE_UNAVAILABLE).await;
    assert!(said.contains("did not answer"), "{said}");
    // The call still hangs, in the same process. A change of its settings makes the daemon try again at once.
    mac.is_managed(&json!({"log_level": "info"}));
    daemon.writes(read, "enrolled").await;
    ends_when_it_is_told_to(&daemon).await;

    let key = fs::read(key_file(&mac)).unwrap();
    mac.enclave_fails("hang 1");
    let _gave_up = mac.run(RUN_ONCE, KEY_STORE_UNAVAILABLE).await;
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(fs::read(key_file(&mac)).unwrap(), key);
}

#[tokio::test]
async fn a_selftest_releases_its_keys_at_once() {
    let mac = Mac::new(Installation::shared().await);
    let said = mac.run(&["selftest", "--iterations", "1000"], DONE).await;
    assert!(said.contains("1000 in") && said.contains("failures      0"), "{said}");
    assert!(said.contains("handles       0 open, at most 1 at a time"), "{said}");
    for (call, count) in [("create", 1000), ("public-key", 1000), ("sign", 1000)] {
        assert_eq!(mac.enclave_calls(call), count, "{call}");
    }
    assert!(!mac.state().exists(), "it keeps no key");
    let _nothing_tried = mac.run(&["selftest", "--iterations", "0"], WRONG_USAGE).await;
    mac.enclave_fails("fail NSOSStatusErrorDomain -26276 3");
    let said = mac.run(&["selftest", "--iterations", "5"], KEY_STORE_UNAVAILABLE).await;
    assert!(
        said.contains("failures      3: ") && said.contains("NSOSStatusErrorDomain -26276"),
        "{said}"
    );
    assert!(said.contains("handles       0 open"), "{said}");
}

#[tokio::test]
async fn an_agent_with_a_stand_in_enclave_says_so() {
    let mac = Mac::new(Installation::shared().await);
    let said = mac.run(&["--version"], DONE).await;
    assert!(said.contains("stand-in"), "{said}");
    let released = Mac::with_key_store(Installation::shared().await, "software");
    let said = released.run(&["--version"], DONE).await;
    assert!(!said.contains("stand-in"), "{said}");
}

#[tokio::test]
async fn a_daemon_waits_for_its_configuration_profile_and_follows_it_without_a_restart() {
    let mac = Mac::new(Installation::shared().await);
    let said = mac.run(&["doctor"], FAILED).await;
    assert!(said.contains("none is configured"), "{said}");
    let daemon = mac.start(&["run"]);
    daemon.writes(0, "waiting for managed settings").await;
    let wrong = json!({"server": mac.url(), "ca_file": mac.roots(), "token": "assay_nonsense"});
    mac.is_managed(&wrong);
    daemon.writes(0, "managed settings have changed").await;
    daemon.writes(0, "The enrollment token").await;
    let mut right = wrong;
    right["token"] = json!(token(json!({"serial_numbers": [mac.serial_number()], "max_uses": 1})).await);
    mac.is_managed(&right);
    daemon.writes(0, "enrolled machine").await;
    ends_when_it_is_told_to(&daemon).await;
    assert!(!daemon.output().to_string().contains("assay_nonsense"));
}

#[tokio::test]
async fn a_daemon_logs_to_the_systems_log() {
    let mac = Mac::new(Installation::shared().await);
    let configuration = mac.configure(&token(json!({})).await, "log_to = 'system'");
    let daemon = mac.start(&["run", "--config", &configuration]);
    let log = mac.enclave_file("log");
    let logged = async {
        while !fs::read_to_string(&log).unwrap_or_default().contains("enrolled") {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LOGGED_WITHIN, logged).await.unwrap();
    ends_when_it_is_told_to(&daemon).await;
    let log = fs::read_to_string(log).unwrap();
    // The system's log has time and level itself. Level 1 is its default, which is stored on disk.
    assert!(
        log.lines()
            .any(|line| line.starts_with("1 ") && line.ends_with("stopping")),
        "{log}"
    );
    assert_eq!(daemon.output().to_string(), "");
}
