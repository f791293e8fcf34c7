//! Problems of machines that are refused.

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use serde_json::json;
use uuid::Uuid;

pub(super) async fn machine_pending(server: &InProcess) -> Vec<Answer> {
    let (machine, _, _) = pending(server, "PENDING").await;
    vec![machine.check_in(server).await, machine.renew(server).await]
}

pub(super) async fn machine_quarantined(server: &InProcess) -> Vec<Answer> {
    let machine = server.enrolled("QUARANTINED").await;
    let _decided = server
        .post(
            &format!("{}/quarantine", machine.path()),
            &json!({"reason": "a rumour"}),
        )
        .await
        .expect(200);
    let refused = vec![
        machine.check_in(server).await,
        machine.renew(server).await,
        machine.enroll(server, None).await,
    ];
    let _decided = server
        .post(
            &format!("{}/release", machine.path()),
            &json!({"reason": "it was none"}),
        )
        .await
        .expect(200);
    assert_eq!(machine.check_in(server).await.status, 200);
    refused
}

pub(super) async fn machine_revoked(server: &InProcess) -> Vec<Answer> {
    let machine = server.enrolled("REVOKED").await;
    let _decided = server
        .post(&format!("{}/revoke", machine.path()), &json!({"reason": "stolen"}))
        .await
        .expect(200);
    let mut refused = vec![
        machine.check_in(server).await,
        machine.renew(server).await,
        machine.enroll(server, None).await,
    ];
    // The key is still refused after the record is deleted.
    assert_eq!(server.delete(&machine.path()).await.status, 204);
    let token = server.enrollment_token(json!({})).await;
    refused.push(machine.enroll(server, Some(&token)).await);
    refused
}

pub(super) async fn key_superseded(server: &InProcess) -> Vec<Answer> {
    let serial_number = "SUPERSEDED";
    let old = server.enrolled(serial_number).await;
    let fields = json!({"serial_numbers": [serial_number], "allow_reenrollment": true});
    let token = server.enrollment_token(fields).await;
    let new = old.erased();
    let answer = new.enroll(server, Some(&token)).await;
    assert_eq!((answer.status, new.id()), (201, old.id()), "{answer}");
    assert_eq!(new.check_in(server).await.status, 200);
    vec![
        old.check_in(server).await,
        old.renew(server).await,
        old.enroll(server, None).await,
    ]
}

pub(super) async fn identity_mismatch(server: &InProcess) -> Vec<Answer> {
    let mut answers = Vec::new();
    for (serial_number, hardware_uuid) in [(Some("STOLEN"), None), (None, Some("ANOTHER"))] {
        let machine = server.enrolled(&format!("MISMATCH-{}", answers.len())).await;
        let mut copy = machine.clone();
        if let Some(serial_number) = serial_number {
            copy.identity.serial_number = Some(serial_number.to_owned());
        }
        if let Some(hardware_uuid) = hardware_uuid {
            copy.identity.hardware_uuid = Some(hardware_uuid.to_owned());
        }
        answers.push(copy.check_in(server).await);
        // The original is quarantined too, because the server cannot tell which one is the copy.
        assert_eq!(machine.check_in(server).await.kind(), ProblemKind::MachineQuarantined);
    }
    answers
}

pub(super) async fn enrollment_denied(server: &InProcess) -> Vec<Answer> {
    let (machine, token, enrollment) = pending(server, "DENIED").await;
    let path = format!("/v1/admin/enrollments/{enrollment}/deny");
    let _decided = server
        .post(&path, &json!({"reason": "not one of ours"}))
        .await
        .expect(200);
    let refused = vec![
        machine.check_in(server).await,
        machine.enroll(server, Some(&token)).await,
    ];
    for answer in &refused {
        assert!(answer.detail().contains("not one of ours"), "{answer}");
    }
    refused
}

pub(super) async fn machine_unknown(server: &InProcess) -> Vec<Answer> {
    let stranger = Machine::with_serial_number("STRANGER");
    stranger.set_id(Uuid::nil());
    // The machine is known, but its key is not: the database was restored, or the key was never enrolled.
    let unknown_key = server.enrolled("UNKNOWN-KEY").await.with_next_key();
    vec![
        stranger.check_in(server).await,
        stranger.renew(server).await,
        unknown_key.check_in(server).await,
        unknown_key.renew(server).await,
    ]
}

/// A pending machine, and the id of its enrollment.
async fn pending(server: &InProcess, serial_number: &str) -> (Machine, String, String) {
    let token = server.enrollment_token(json!({"approval": "manual"})).await;
    let machine = Machine::with_serial_number(serial_number);
    let answer = machine.enroll(server, Some(&token)).await;
    assert_eq!(answer.status, 202, "{answer}");
    assert_eq!(answer.header("retry-after"), Some("2"));
    let enrollment = answer.json()["enrollment_id"].as_str().unwrap().to_owned();
    (machine, token, enrollment)
}
