//! The agent's program, from enrollment to reset, against a real server.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use assay_tests::administrator::text;
use assay_tests::cluster::Database;
use assay_tests::installation::{Installation, ca_fingerprint};
use assay_tests::mac::{
    DONE, FAILED, KEY_STORE_UNAVAILABLE, Mac, REFUSED, SERVER_UNREACHABLE, WAITING_FOR_APPROVAL, WRONG_USAGE,
};
use assay_tests::process::Process;
use assay_tests::processes::{ServerConfiguration, agent_command_with_software_keys};
use rstest::rstest;
use serde_json::{Value, json};
use uuid::Uuid;

async fn token(body: Value) -> String {
    Installation::shared().await.administrator().token(body).await.secret
}

/// A machine beside the shared servers.
async fn mac() -> Mac {
    Mac::new(Installation::shared().await)
}

/// After a power cut an office is one address, and asking for nonces alone may take it over its limit.
#[tokio::test]
async fn the_agent_goes_on_with_the_nonce_of_a_refusal() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database).set("rate_limit.address_per_minute", "20");
    let installation = Installation::start(&configuration).await;
    let mac = Mac::new(&installation);
    let token = installation.administrator().token(json!({})).await.secret;
    let _enrolled = mac.enroll(&token, DONE).await;
    let api = installation.api(0);
    while api.get("/v1/nonce").await.status != 429 {}
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
}

#[rstest]
#[case::in_the_enclave("secure-enclave", json!("always"))]
#[case::in_a_file("software", Value::Null)]
#[tokio::test]
async fn a_machine_enrolls_checks_in_renews_and_hands_out_its_grant(
    #[case] key_store: &'static str,
    #[case] accessibility: Value,
) {
    let installation = Installation::shared().await;
    let mac = Mac::with_key_store(installation, key_store);
    let administrator = installation.administrator();
    assert_eq!(mac.status().await["standing"], "not-enrolled");
    let _no_identity = mac.run(&["grant", "--audience", "https://a.example.com"], FAILED).await;

    let enrolled = mac.enroll(&token(json!({})).await, DONE).await;
    let status = mac.status().await;
    assert_eq!(status["standing"], "enrolled");
    assert!(enrolled.contains(status["machine_id"].as_str().unwrap()), "{enrolled}");
    let id: Uuid = text(&status, "machine_id").parse().unwrap();
    let record = administrator.machine(id).await;
    assert_eq!(record["serial_number"], mac.serial_number());
    assert_eq!(record["key"]["store"], key_store);
    assert_eq!(record["key"]["accessibility"], accessibility);

    let permission = administrator.permission("release").await;
    let audience = text(
        &administrator.get(&format!("permissions/{permission}")).await,
        "audience",
    );
    let grant = json!({
        "permission_id": permission, "selector": {"machine_ids": [id]}, "conditions": {"filevault_enabled": true},
    });
    administrator.create("grants", &grant).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let token = mac.run(&["grant", "--audience", &audience], DONE).await;
    assert_eq!(token.split('.').count(), 3, "the token alone: {token}");
    assert!(!token.contains(char::is_whitespace));

    // The next check-in reads the facts again.
    mac.says(&json!({"filevault_enabled": false}));
    let refused = mac.run(&["run", "--once"], DONE).await;
    assert!(refused.contains("filevault_enabled"), "{refused}");
    let refused = mac.run(&["grant", "--audience", &audience], FAILED).await;
    assert!(refused.contains("filevault_enabled"), "{refused}");
    assert_eq!(mac.status().await["denied"][0]["permission"], "release");

    let before = mac.status().await["certificate"]["serial_number"].clone();
    let _renewed = mac.run(&["renew"], DONE).await;
    let after = mac.status().await["certificate"]["serial_number"].clone();
    assert_ne!(after, before);
    assert_eq!(administrator.machine(id).await["certificate"]["serial_number"], after);
}

#[tokio::test]
async fn a_repeated_enrollment_keeps_the_machine_and_says_so() {
    let (mac, token) = (mac().await, token(json!({})).await);
    let _enrolled = mac.enroll(&token, DONE).await;
    let before = mac.status().await;
    let again = mac.enroll(&token, DONE).await;
    assert!(again.contains("already"), "{again}");
    assert_eq!(mac.status().await["machine_id"], before["machine_id"]);
    assert_eq!(mac.status().await["key_thumbprint"], before["key_thumbprint"]);
}

#[tokio::test]
async fn two_machines_are_two() {
    let token = token(json!({"max_uses": 2})).await;
    let (one, two) = (mac().await, mac().await);
    tokio::join!(one.enroll(&token, DONE), two.enroll(&token, DONE));
    assert_ne!(one.status().await["machine_id"], two.status().await["machine_id"]);
}

#[tokio::test]
async fn the_agent_trusts_only_the_root_with_the_given_fingerprint() {
    let installation = Installation::shared().await;
    let (mac, token) = (mac().await, token(json!({})).await);
    let fingerprint = ca_fingerprint(&installation.servers[0]).await;
    let enroll = async |fingerprint: &str, exit_code| {
        let arguments = [
            "enroll",
            "--server",
            mac.url(),
            "--token",
            &token,
            "--ca-fingerprint",
            fingerprint,
        ];
        mac.run(&arguments, exit_code).await
    };
    let other = "ab".repeat(32);
    let refused = enroll(&other, FAILED).await;
    assert!(refused.to_lowercase().contains("fingerprint"), "{refused}");
    // No root vouches for it, not even one of the system.
    let untrusted = ["enroll", "--server", mac.url(), "--token", &token];
    let _untrusted = mac.run(&untrusted, SERVER_UNREACHABLE).await;
    assert_eq!(mac.status().await["machine_id"], Value::Null);
    // As openssl writes it.
    let with_colons: Vec<_> = fingerprint
        .as_bytes()
        .chunks(2)
        .map(|byte| String::from_utf8_lossy(byte))
        .collect();
    let _enrolled = enroll(&with_colons.join(":").to_uppercase(), DONE).await;
    // It is pinned.
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
}

#[tokio::test]
async fn only_the_agents_account_can_read_its_state() {
    let mac = mac().await;
    let _enrolled = mac.enroll(&token(json!({})).await, DONE).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(mac.state()), 0o700);
    let files: Vec<_> = fs::read_dir(mac.state())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        assert_eq!(mode(&file), 0o600, "{}", file.display());
    }
}

#[tokio::test]
async fn a_reset_deletes_the_identity() {
    let mac = mac().await;
    let _enrolled = mac.enroll(&token(json!({})).await, DONE).await;
    let before = mac.status().await;
    // Without a terminal there is no question.
    let _not_confirmed = mac.run(&["reset"], WRONG_USAGE).await;
    assert_eq!(mac.status().await, before);
    let _reset = mac.run(&["reset", "--yes"], DONE).await;
    assert_eq!(mac.status().await["standing"], "not-enrolled");
    let _nothing_left = mac.run(&["run", "--once"], FAILED).await;
    // The same hardware with another key waits for an administrator.
    let _waits = mac.enroll(&token(json!({})).await, WAITING_FOR_APPROVAL).await;
}

#[tokio::test]
async fn a_machine_that_needs_approval_says_so_until_it_is_approved() {
    let installation = Installation::shared().await;
    let (mac, administrator) = (mac().await, installation.administrator());
    let _waits = mac
        .enroll(&token(json!({"approval": "manual"})).await, WAITING_FOR_APPROVAL)
        .await;
    let _waits = mac.run(&["run", "--once"], WAITING_FOR_APPROVAL).await;
    let status = mac.status().await;
    assert_eq!(status["standing"], "waiting-for-approval");
    let enrollment = text(&status, "enrollment_id");
    let path = format!("enrollments/{enrollment}/approve");
    let _approved = administrator
        .call(http::Method::POST, &path, Some(&json!({})))
        .await
        .expect(200);
    let _through = mac.run(&["run", "--once"], DONE).await;
    assert_eq!(mac.status().await["standing"], "enrolled");
}

#[tokio::test]
async fn the_exit_code_says_who_must_act() {
    let installation = Installation::shared().await;
    let (mac, administrator) = (mac().await, installation.administrator());
    let _wrong_usage = mac.run(&["dance"], WRONG_USAGE).await;
    let _which_server = mac.run(&["enroll"], WRONG_USAGE).await;
    let refused = mac.enroll("assay_nonsense", REFUSED).await;
    assert!(refused.contains("token"), "{refused}");
    let enclave = ["--key-store", "secure-enclave"];
    if cfg!(not(target_os = "macos")) {
        let mut command = without_software_keys(agent_command_with_software_keys(mac.state()));
        command
            .args(enclave)
            .args(["enroll", "--server", mac.url(), "--ca-file", mac.roots()]);
        let process = Process::spawn(command);
        assert_eq!(
            process.ended().await.code(),
            Some(KEY_STORE_UNAVAILABLE),
            "{}",
            process.output()
        );
    }
    let nobody = ["enroll", "--server", "https://127.0.0.1:1", "--ca-file", mac.roots()];
    let other = Mac::new(installation);
    let _unreachable = other.run(&nobody, SERVER_UNREACHABLE).await;

    let _enrolled = mac.enroll(&token(json!({})).await, DONE).await;
    let id: Uuid = text(&mac.status().await, "machine_id").parse().unwrap();
    let _quarantined = administrator.decide(id, "quarantine", "odd traffic").await.expect(200);
    let refused = mac.run(&["run", "--once"], REFUSED).await;
    assert!(refused.contains("quarantined until"), "{refused}");
    assert!(
        !refused.contains("odd traffic"),
        "a thief would read this, too: {refused}"
    );
    let status = mac.status().await;
    assert_eq!(
        (&status["standing"], &status["status"]),
        (&json!("quarantined"), &json!("quarantined"))
    );
    let _released = administrator.decide(id, "release", "all well").await.expect(200);
    let _through = mac.run(&["run", "--once"], DONE).await;
    assert_eq!(mac.status().await["standing"], "enrolled");
    let _revoked = administrator.decide(id, "revoke", "sold").await.expect(200);
    let refused = mac.run(&["run", "--once"], REFUSED).await;
    assert!(!refused.contains("sold"), "{refused}");
    let said = mac.run(&["status"], DONE).await;
    assert!(said.starts_with("standing      revoked"), "{said}");
}

#[tokio::test]
async fn a_machine_whose_request_expired_says_so_and_enrolls_with_another_token() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let (mac, administrator) = (Mac::new(&installation), installation.administrator());
    let token = administrator.token(json!({"approval": "manual"})).await;
    let _waits = mac.enroll(&token.secret, WAITING_FOR_APPROVAL).await;
    let _waits = mac.run(&["run", "--once"], WAITING_FOR_APPROVAL).await;
    let over = sqlx::query("UPDATE enrollments SET expires_at = requested_at");
    over.execute(&database.pool().await).await.unwrap();

    let refused = mac.run(&["run", "--once"], REFUSED).await;
    assert!(refused.contains("expired before an administrator decided"), "{refused}");
    let status = mac.run(&["status"], DONE).await;
    assert!(
        status.contains("not enrolled") && status.contains("expired before"),
        "{status}"
    );
    let token = administrator.token(json!({})).await;
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
}

/// The same command without its `--key-store software`.
fn without_software_keys(command: std::process::Command) -> std::process::Command {
    let mut bare = std::process::Command::new(command.get_program());
    let arguments: Vec<_> = command
        .get_args()
        .take_while(|argument| *argument != "--key-store")
        .collect();
    bare.args(arguments);
    bare
}
