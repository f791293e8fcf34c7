//! A machine replaces its key: both keys are valid until the new one checks in, and each call can be repeated.

use assay_protocol::ProblemKind;
use assay_tests::administrator::{Administrator, text};
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use rstest::rstest;
use serde_json::{Value, json};
use time::Duration;

/// A machine whose next key has a certificate, but has not checked in.
async fn between_two_keys(server: &InProcess, serial_number: &str) -> (Machine, Machine) {
    let machine = server.enrolled(serial_number).await;
    let next = machine.with_next_key();
    let _begun = machine.rotate_to(server, &next).await.expect(200);
    (machine, next)
}

/// The serial number of the certificate in a response.
fn certificate(answer: &Value) -> String {
    text(&answer["certificate"], "serial_number")
}

/// The revocation reasons of a machine's certificates, by serial number.
async fn revocation_reason(administrator: &Administrator, machine: &Machine, serial_number: &str) -> Value {
    let certificates = administrator
        .get(&format!("machines/{}/certificates", machine.id()))
        .await;
    let certificates = certificates["items"].as_array().unwrap();
    let found = certificates
        .iter()
        .find(|certificate| certificate["serial_number"] == serial_number);
    found.unwrap()["revocation_reason"].clone()
}

#[tokio::test]
async fn both_keys_are_valid_until_the_new_one_checks_in() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machine = administrator.enrolled(&apis[0]).await;
    let permission = administrator.permission("build").await;
    administrator.grant(&permission, &machine, json!({})).await;
    let old = text(
        &administrator.machine(machine.id()).await["certificate"],
        "serial_number",
    );
    let next = machine.with_next_key();

    let begun = certificate(&machine.rotate_to(&apis[0], &next).await.expect(200).json());
    for api in &apis {
        let _checked_in = machine.check_in(api).await.expect(200);
        let _renewed = machine.renew(api).await.expect(200);
    }
    let record = administrator.machine(machine.id()).await;
    assert_eq!(record["key"]["thumbprint"], machine.thumbprint().to_string());
    assert_ne!(record["certificate"]["serial_number"], begun, "that of the current key");
    next.forget_nonce();
    let renewed = certificate(&next.renew(&apis[1]).await.expect(200).json());

    let checked_in = next.check_in(&apis[1]).await.expect(200).json();
    assert_eq!(checked_in["grants"].as_array().unwrap().len(), 1, "{checked_in}");
    for api in &apis {
        machine.forget_nonce();
        for answer in [machine.check_in(api).await, machine.renew(api).await] {
            let _superseded = answer.expect_problem(ProblemKind::KeySuperseded);
        }
        let _checked_in = next.check_in(api).await.expect(200);
    }
    let record = administrator.machine(machine.id()).await;
    assert_eq!(record["key"]["thumbprint"], next.thumbprint().to_string());
    assert_eq!(record["certificate"]["serial_number"], renewed);
    assert_eq!(revocation_reason(&administrator, &machine, &old).await, "superseded");
    assert_eq!(revocation_reason(&administrator, &machine, &renewed).await, Value::Null);
    let audit = administrator.audit(&format!("machine:{}", machine.id())).await;
    let rotated: Vec<&Value> = audit
        .iter()
        .filter(|entry| entry["action"] == "machine.rotate-key")
        .collect();
    assert_eq!(rotated.len(), 1, "{audit:?}");
    assert_eq!(rotated[0]["before"]["key"], machine.thumbprint().to_string());
    assert_eq!(rotated[0]["after"]["key"], next.thumbprint().to_string());
}

#[tokio::test]
async fn a_repeated_rotation_gets_the_same_certificate() {
    let server = InProcess::start().await;
    let machine = server.enrolled("REPEATED").await;
    let next = machine.with_next_key();
    let first = certificate(&machine.rotate_to(&server, &next).await.expect(200).json());
    let second = certificate(&machine.rotate_to(&server, &next).await.expect(200).json());
    assert_eq!(first, second);
    let enrolled = certificate(&next.enroll(&server, None).await.expect(200).json());
    assert_eq!(enrolled, first, "an agent that only has the key left asks so");
    server.stop().await;
}

#[rstest]
#[case::an_agent_with_values(true)]
#[case::an_agent_without_values(false)]
#[tokio::test]
async fn a_next_key_that_another_one_replaced_is_denied_and_is_no_copy(#[case] sends_continuity: bool) {
    let server = InProcess::start().await;
    let mut machine = server.enrolled("ANEW").await;
    machine.sends_continuity = sends_continuity;
    let _checked_in = machine.check_in(&server).await.expect(200);
    let (abandoned, next) = (machine.with_next_key(), machine.with_next_key());
    for next in [&abandoned, &next] {
        let _begun = machine.rotate_to(&server, next).await.expect(200);
    }
    for _ in 0..2 {
        for refused in [
            abandoned.check_in(&server).await,
            abandoned.renew(&server).await,
            abandoned.enroll(&server, None).await,
            machine.rotate_to(&server, &abandoned).await,
        ] {
            let refused = refused.expect_problem(ProblemKind::EnrollmentDenied);
            let reason = "this key was denied: another next key took its place";
            assert!(refused.detail().contains(reason), "{refused}");
        }
    }
    let _still_current = machine.check_in(&server).await.expect(200);
    let _rotated = next.remembering(&machine).check_in(&server).await.expect(200);
    let _denied = abandoned
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::EnrollmentDenied);
    let events = server.events(&machine).await;
    let is_false_alarm =
        |event: &Value| event["kind"] == "machine.superseded-key-used" || event["kind"] == "machine.quarantined";
    assert!(!events.iter().any(is_false_alarm), "{events:?}");
    server.stop().await;
}

#[tokio::test]
async fn rotating_to_a_known_key_is_refused_and_the_old_one_stays_valid() {
    let server = InProcess::start().await;
    let other = server.enrolled("OTHER").await;
    let (machine, next) = between_two_keys(&server, "NOT-NEW").await;
    let refused = machine.rotate_to(&server, &other).await;
    assert!(
        refused
            .expect_problem(ProblemKind::Conflict)
            .detail()
            .contains("another machine's")
    );
    let third = machine.with_next_key();
    let refused = next.rotate_to(&server, &third).await;
    assert!(
        refused
            .expect_problem(ProblemKind::Conflict)
            .detail()
            .contains("must check in")
    );
    let _still_current = machine.check_in(&server).await.expect(200);
    let _rotated = next.check_in(&server).await.expect(200);
    let refused = next.rotate_to(&server, &machine).await;
    assert!(
        refused
            .expect_problem(ProblemKind::Conflict)
            .detail()
            .contains("before")
    );
    let _other_goes_on = other.check_in(&server).await.expect(200);
    server.stop().await;
}

#[rstest]
#[case::revoked("revoke", ProblemKind::MachineRevoked)]
#[case::quarantined("quarantine", ProblemKind::MachineQuarantined)]
#[tokio::test]
async fn a_decision_applies_to_both_keys(#[case] decision: &str, #[case] refusal: ProblemKind) {
    let server = InProcess::start().await;
    let (machine, next) = between_two_keys(&server, "DECIDED").await;
    let path = format!("{}/{decision}", machine.path());
    let decided = server.post(&path, &json!({"reason": "lost"})).await;
    assert_eq!(decided.status, 200, "{decided}");
    for key in [&machine, &next] {
        let _refused = key.check_in(&server).await.expect_problem(refusal);
        let _refused = key.renew(&server).await.expect_problem(refusal);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_reenrollment_in_between_supersedes_both_keys() {
    let server = InProcess::start().await;
    let (machine, next) = between_two_keys(&server, "ERASED").await;
    let erased = machine.erased();
    let token = json!({"serial_numbers": ["ERASED"], "allow_reenrollment": true});
    let token = server.enrollment_token(token).await;
    let _enrolled = erased.enroll(&server, Some(&token)).await.expect(201);
    for key in [&machine, &next] {
        let _superseded = key.check_in(&server).await.expect_problem(ProblemKind::KeySuperseded);
    }
    let _checked_in = erased.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_copied_next_key_is_detected() {
    let server = InProcess::start().await;
    let (machine, next) = between_two_keys(&server, "COPIED").await;
    let copy = next.copied_to("ANOTHER-MAC");
    let _caught = copy
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::IdentityMismatch);
    let _held_back = machine
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::MachineQuarantined);
    server.stop().await;
}

#[tokio::test]
async fn the_server_asks_for_rotation_of_an_old_key() {
    let server = InProcess::start_with(&[("certificates.rotate_key_after", "30d")]).await;
    let machine = server.enrolled("OLD").await;
    let rotate = json!({"type": "rotate_key"});
    let due = |answer: Value| answer["actions"].as_array().unwrap().contains(&rotate);
    server.clock().advance(Duration::days(30) - Duration::seconds(1));
    assert!(!due(machine.check_in(&server).await.expect(200).json()));
    server.clock().advance(Duration::seconds(1));
    assert!(due(machine.check_in(&server).await.expect(200).json()));
    let next = machine.with_next_key();
    let _begun = machine.rotate_to(&server, &next).await.expect(200);
    assert!(!due(next.check_in(&server).await.expect(200).json()));
    server.stop().await;
}
