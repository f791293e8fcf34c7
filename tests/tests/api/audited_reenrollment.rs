//! The audit entry of a re-enrollment.

use assay_tests::in_process::InProcess;
use serde_json::{Value, json};

/// The token's labels are for new machines. A re-enrolled machine keeps its own, and the audit entry shows them.
#[tokio::test]
async fn the_audit_of_a_reenrollment_records_the_old_state_and_only_what_was_done() {
    let server = InProcess::start().await;
    let machine = server.enrolled("AUDITED").await;
    let erased = machine.erased();
    let token = json!({"serial_numbers": ["AUDITED"], "allow_reenrollment": true, "labels": {"team": "never-applied"}});
    let token = server.enrollment_token(token).await;
    let _enrolled = erased.enroll(&server, Some(&token)).await.expect(201);

    let entry = entry(&server, machine.id()).await;
    let before = json!({"key": machine.thumbprint(), "assurance": "asserted"});
    assert_eq!(entry["before"], before);
    assert_eq!(entry["after"]["key"], json!(erased.thumbprint()));
    assert_eq!(entry["after"]["assurance"], "verified");
    assert!(!entry.to_string().contains("never-applied"), "{entry}");
    let events = server.get(&format!("{}/events", machine.path())).await.expect(200);
    assert!(!events.text().contains("never-applied"), "{events}");
    let record = server.get(&machine.path()).await.expect(200).json();
    assert_eq!(
        (&record["labels"], &record["assurance"]),
        (&json!({}), &json!("verified"))
    );
    server.stop().await;
}

async fn entry(server: &InProcess, machine: uuid::Uuid) -> Value {
    let path = format!("/v1/admin/audit?resource=machine:{machine}");
    let audit = server.get(&path).await.expect(200).json();
    let mut entries = audit["items"].as_array().unwrap().iter();
    let entry = entries.find(|entry| entry["action"] == "machine.re-enroll");
    entry.unwrap_or_else(|| panic!("{audit}")).clone()
}
