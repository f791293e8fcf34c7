//! Rotations from a key in a Secure Enclave: the next key waits until a token or an administrator admits it.

use assay_protocol::ProblemKind;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use rstest::rstest;
use serde_json::{Value, json};
use time::Duration;

/// A machine with a key in the enclave, admitted by a token that is bound to its serial number.
async fn in_enclave(server: &InProcess, serial_number: &str) -> Machine {
    let machine = Machine::with_serial_number(serial_number).in_enclave();
    let token = bound_token(server, serial_number, json!({})).await;
    let _enrolled = machine.enroll(server, Some(&token)).await.expect(201);
    let _checked_in = machine.check_in(server).await.expect(200);
    machine
}

async fn bound_token(server: &InProcess, serial_number: &str, more: Value) -> String {
    let mut body = json!({"serial_numbers": [serial_number], "allow_reenrollment": true});
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    server.enrollment_token(body).await
}

/// The machine, its next key that waits, and the enrollment to decide on. The next key claims another store: it is a copy of
/// nothing, on another computer.
async fn waiting(server: &InProcess, serial_number: &str) -> (Machine, Machine, String) {
    let machine = in_enclave(server, serial_number).await;
    let mut next = machine.with_next_key();
    next.key_claim = Machine::KEY_CLAIM;
    let pending = machine.rotate_to(server, &next).await.expect(202);
    let seconds = pending.json()["retry_after_seconds"].to_string();
    assert_eq!(pending.headers["retry-after"], seconds.as_str());
    assert_eq!(pending.json()["status"], "pending");
    assert_eq!(pending.json().get("certificate"), None);
    (
        machine,
        next,
        pending.json()["enrollment_id"].as_str().unwrap().to_owned(),
    )
}

async fn decide(server: &InProcess, enrollment: &str, decision: &str) -> assay_tests::answer::Answer {
    let path = format!("/v1/admin/enrollments/{enrollment}/{decision}");
    server.post(&path, &json!({"reason": "seen"})).await
}

/// The number of uses of the newest token.
async fn uses(server: &InProcess) -> Value {
    let tokens = server.items("/v1/admin/enrollment-tokens").await;
    tokens.iter().max_by_key(|token| token["id"].as_str()).unwrap()["uses"].clone()
}

#[tokio::test]
async fn one_signature_of_an_enclave_does_not_move_the_identity_to_another_key() {
    let server = InProcess::start().await;
    let (machine, next, enrollment) = waiting(&server, "LAUNDERED").await;
    for refused in [next.check_in(&server).await, next.renew(&server).await] {
        let _pending = refused.expect_problem(ProblemKind::MachinePending);
    }
    let _still_pending = next.enroll(&server, None).await.expect(202);
    let certificates = server.items(&format!("{}/certificates", machine.path())).await;
    assert_eq!(
        certificates.len(),
        1,
        "the next key has no certificate: {certificates:?}"
    );
    let _still_current = machine.check_in(&server).await.expect(200);
    let _renewed = machine.renew(&server).await.expect(200);

    let listed = server
        .get(&format!("/v1/admin/enrollments/{enrollment}"))
        .await
        .expect(200);
    let listed = listed.json();
    assert_eq!(
        (&listed["kind"], &listed["status"]),
        (&json!("rotation"), &json!("pending"))
    );
    assert_eq!(listed["machine_id"], machine.id().to_string());
    assert_eq!(listed["key"], json!({"thumbprint": next.thumbprint(), "store": null}));
    assert_eq!(listed["previous_key"]["thumbprint"], machine.thumbprint().to_string());
    let record = server.record(&machine).await;
    assert_eq!(record["key"]["thumbprint"], machine.thumbprint().to_string());
    let kinds: Vec<Value> = server
        .events(&machine)
        .await
        .iter()
        .map(|event| event["kind"].clone())
        .collect();
    assert!(kinds.contains(&json!("machine.key-rotation-requested")), "{kinds:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_repeated_call_waits_on_and_is_one_request() {
    let server = InProcess::start().await;
    let (machine, next, enrollment) = waiting(&server, "AGAIN").await;
    let again = machine.rotate_to(&server, &next).await.expect(202).json();
    assert_eq!(again["enrollment_id"], enrollment);
    let pending = server.items("/v1/admin/enrollments?status=pending").await;
    assert_eq!(pending.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn an_approved_rotation_is_verified_and_keeps_the_record() {
    let server = InProcess::start().await;
    let (machine, next, enrollment) = waiting(&server, "APPROVED").await;
    let approved = decide(&server, &enrollment, "approve").await.expect(200).json();
    assert_eq!(approved["status"], "approved");
    let _repeated = decide(&server, &enrollment, "approve").await.expect(200);
    let _still_current = machine.check_in(&server).await.expect(200);
    let _issued = machine.rotate_to(&server, &next).await.expect(200);
    let checked_in = next.check_in(&server).await.expect(200).json();
    assert_eq!(checked_in["assurance"], "verified");
    let _superseded = machine
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::KeySuperseded);
    let record = server.record(&machine).await;
    assert_eq!(record["key"]["thumbprint"], next.thumbprint().to_string());
    assert!(
        record["assurance_reason"].as_str().unwrap().contains(&enrollment),
        "{record}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_denied_rotation_leaves_the_current_key() {
    let server = InProcess::start().await;
    let (machine, next, enrollment) = waiting(&server, "DENIED").await;
    let _denied = decide(&server, &enrollment, "deny").await.expect(200);
    for refused in [machine.rotate_to(&server, &next).await, next.check_in(&server).await] {
        let refused = refused.expect_problem(ProblemKind::EnrollmentDenied);
        assert!(refused.detail().contains("seen"), "{}", refused.detail());
    }
    let _still_current = machine.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn an_undecided_rotation_expires_and_can_be_requested_again() {
    let server = InProcess::start_with(&[("enrollment.pending_ttl", "1h")]).await;
    let (machine, next, enrollment) = waiting(&server, "EXPIRED").await;
    server.clock().advance(Duration::hours(1));
    let _too_late = decide(&server, &enrollment, "approve")
        .await
        .expect_problem(ProblemKind::Conflict);
    machine.forget_nonce();
    let again = machine.rotate_to(&server, &next).await.expect(202).json();
    assert_ne!(again["enrollment_id"], enrollment);
    let _approved = decide(&server, again["enrollment_id"].as_str().unwrap(), "approve")
        .await
        .expect(200);
    let _issued = machine.rotate_to(&server, &next).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_bound_token_admits_the_next_key_and_is_used_once() {
    let server = InProcess::start().await;
    let (machine, next, enrollment) = waiting(&server, "TOKEN").await;
    let token = bound_token(&server, "TOKEN", json!({})).await;
    let first = machine
        .renew_with_token(&server, &next, &token)
        .await
        .expect(200)
        .json();
    let repeated = machine
        .renew_with_token(&server, &next, &token)
        .await
        .expect(200)
        .json();
    assert_eq!(first["certificate"], repeated["certificate"]);
    assert_eq!(uses(&server).await, 1);
    let decided = server.get(&format!("/v1/admin/enrollments/{enrollment}")).await.json();
    assert_eq!(
        (&decided["status"], &decided["decided_by"]),
        (&json!("approved"), &Value::Null)
    );
    assert_eq!(next.check_in(&server).await.expect(200).json()["assurance"], "verified");
    server.stop().await;
}

#[rstest]
#[case::of_another_serial_number(json!({"serial_numbers": ["SOMEBODY"], "allow_reenrollment": true}))]
#[case::bound_to_none(json!({"allow_reenrollment": true}))]
#[case::without_reenrollment(json!({"serial_numbers": ["UNFIT"]}))]
#[tokio::test]
async fn an_unfit_token_is_refused_and_admits_nothing(#[case] token: Value) {
    let server = InProcess::start().await;
    let machine = in_enclave(&server, "UNFIT").await;
    let token = server.enrollment_token(token).await;
    for secret in [token.as_str(), "unknown"] {
        let next = machine.with_next_key();
        let refused = machine.renew_with_token(&server, &next, secret).await;
        let _refused = refused.expect_problem(ProblemKind::EnrollmentTokenInvalid);
        let _unknown = next.check_in(&server).await.expect_problem(ProblemKind::MachineUnknown);
    }
    assert_eq!(uses(&server).await, 0);
    server.stop().await;
}

/// Why a token that was fit admits no key any more.
#[derive(Clone, Copy, Debug)]
enum Lapsed {
    UsedUp,
    Expired,
    Revoked,
}

#[rstest]
#[case::used_up(Lapsed::UsedUp)]
#[case::expired(Lapsed::Expired)]
#[case::revoked(Lapsed::Revoked)]
#[tokio::test]
async fn a_lapsed_token_is_refused_and_admits_no_next_key(#[case] lapsed: Lapsed) {
    let server = InProcess::start().await;
    let machine = in_enclave(&server, "LAPSED").await;
    let body = json!({"serial_numbers": ["LAPSED", "OTHER"], "allow_reenrollment": true, "max_uses": 1,
                      "expires_in_seconds": 60});
    let token = server.create_enrollment_token(body).await;
    let secret = token["token"].as_str().unwrap();
    match lapsed {
        Lapsed::UsedUp => {
            let other = Machine::with_serial_number("OTHER");
            let _enrolled = other.enroll(&server, Some(secret)).await.expect(201);
        }
        Lapsed::Expired => server.clock().advance(Duration::minutes(2)),
        Lapsed::Revoked => {
            let path = format!("/v1/admin/enrollment-tokens/{}", token["id"].as_str().unwrap());
            let _revoked = server.delete(&path).await.expect(204);
        }
    }
    let next = machine.with_next_key();
    let refused = machine.renew_with_token(&server, &next, secret).await;
    let _refused = refused.expect_problem(ProblemKind::EnrollmentTokenInvalid);
    let _unknown = next.check_in(&server).await.expect_problem(ProblemKind::MachineUnknown);
    let _still_current = machine.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_bound_token_or_an_approval_verifies_the_current_key() {
    let server = InProcess::start().await;
    for by_token in [true, false] {
        let serial_number = format!("RAISED-{by_token}");
        let machine = server.enrolled(&serial_number).await;
        assert_eq!(machine.check_in(&server).await.json()["assurance"], "asserted");
        if by_token {
            let token = bound_token(&server, &serial_number, json!({"allow_reenrollment": false})).await;
            let _renewed = machine.renew_with_token(&server, &machine, &token).await.expect(200);
            let _repeated = machine.renew_with_token(&server, &machine, &token).await.expect(200);
            assert_eq!(uses(&server).await, 1);
        } else {
            let path = format!("{}/approve", machine.path());
            let _nothing_waits = server
                .post(&path, &json!({}))
                .await
                .expect_problem(ProblemKind::Conflict);
            let body = json!({"key_thumbprint": machine.thumbprint(), "reason": "seen"});
            let _approved = server.post(&path, &body).await.expect(200);
            let _repeated = server.post(&path, &body).await.expect(200);
            let other = json!({"key_thumbprint": machine.thumbprint(), "reason": "other"});
            let _decided = server.post(&path, &other).await.expect_problem(ProblemKind::Conflict);
            let unknown = json!({"key_thumbprint": machine.with_next_key().thumbprint()});
            let _unknown = server.post(&path, &unknown).await.expect_problem(ProblemKind::Conflict);
        }
        assert_eq!(machine.check_in(&server).await.json()["assurance"], "verified");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_bound_token_that_another_key_used_before_is_used_once_by_a_renewal_and_its_repeats() {
    let server = InProcess::start().await;
    let machine = server.enrolled("LAST-USE").await;
    let token = json!({"serial_numbers": ["FIRST-USE", "LAST-USE"], "max_uses": 2});
    let token = server.enrollment_token(token).await;
    let first = Machine::with_serial_number("FIRST-USE");
    let _enrolled = first.enroll(&server, Some(&token)).await.expect(201);
    // The agent repeats the call after a lost response.
    for _ in 0..3 {
        let _renewed = machine.renew_with_token(&server, &machine, &token).await.expect(200);
        assert_eq!(uses(&server).await, 2);
    }
    assert_eq!(machine.check_in(&server).await.json()["assurance"], "verified");
    server.stop().await;
}

#[tokio::test]
async fn a_next_key_of_an_earlier_version_inherits_nothing_from_a_key_in_the_enclave() {
    let server = InProcess::start().await;
    let (machine, next, _) = waiting(&server, "EARLIER").await;
    assert_eq!(server.record(&machine).await["assurance"], "verified");
    // An earlier version admitted it at once, without an enrollment.
    let pool = server.database().pool().await;
    for statement in [
        "DELETE FROM enrollments WHERE key_thumbprint = $1",
        "UPDATE machine_keys SET status = 'next' WHERE thumbprint = $1",
    ] {
        let changed = sqlx::query(statement).bind(next.thumbprint().as_bytes().to_vec());
        assert_eq!(changed.execute(&pool).await.unwrap().rows_affected(), 1);
    }
    let _issued = machine.rotate_to(&server, &next).await.expect(200);
    assert_eq!(next.check_in(&server).await.expect(200).json()["assurance"], "asserted");
    let record = server.record(&machine).await;
    assert_eq!(record["key"]["thumbprint"], next.thumbprint().to_string());
    server.stop().await;
}

#[tokio::test]
async fn with_several_keys_waiting_only_a_thumbprint_decides() {
    let server = InProcess::start().await;
    let (machine, thiefs, _) = waiting(&server, "SEVERAL").await;
    let honest = machine.with_next_key();
    let _waits = machine.rotate_to(&server, &honest).await.expect(202);
    let path = format!("{}/approve", machine.path());
    let _several = server
        .post(&path, &json!({}))
        .await
        .expect_problem(ProblemKind::Conflict);
    let body = json!({"key_thumbprint": honest.thumbprint()});
    let _approved = server.post(&path, &body).await.expect(200);
    let _still_waits = machine.rotate_to(&server, &thiefs).await.expect(202);
    let _issued = machine.rotate_to(&server, &honest).await.expect(200);
    assert_eq!(
        honest.check_in(&server).await.expect(200).json()["assurance"],
        "verified"
    );
    let body = json!({"key_thumbprint": thiefs.thumbprint()});
    let _previous_key_is_gone = server.post(&path, &body).await.expect_problem(ProblemKind::Conflict);
    let _pending = thiefs
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::MachinePending);
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_machine_takes_its_waiting_rotations_along() {
    let server = InProcess::start().await;
    let (machine, next, enrollment) = waiting(&server, "REVOKED").await;
    let _revoked = server
        .post(&format!("{}/revoke", machine.path()), &json!({"reason": "lost"}))
        .await
        .expect(200);
    let _decided = decide(&server, &enrollment, "approve")
        .await
        .expect_problem(ProblemKind::Conflict);
    let _revoked = next.check_in(&server).await.expect_problem(ProblemKind::MachineRevoked);
    server.stop().await;
}

#[tokio::test]
async fn only_keys_in_software_are_rotated_by_the_calendar() {
    let server = InProcess::start_with(&[("certificates.rotate_key_after", "30d"), ("certificates.ttl", "90d")]).await;
    let machine = in_enclave(&server, "CALENDAR").await;
    server.clock().advance(Duration::days(31));
    machine.forget_nonce();
    let answer = machine.check_in(&server).await.expect(200).json();
    assert_eq!(answer["actions"], json!([]));
    server.stop().await;
}

#[tokio::test]
async fn renewals_and_rotations_of_one_machine_are_limited_by_the_day() {
    let server = InProcess::start().await;
    let machine = server.enrolled("OFTEN").await;
    for _ in 0..4 {
        let next = machine.with_next_key();
        let _begun = machine.rotate_to(&server, &next).await.expect(200);
        let _repeated = machine.rotate_to(&server, &next).await.expect(200);
    }
    let fifth = machine.with_next_key();
    let refused = machine
        .rotate_to(&server, &fifth)
        .await
        .expect_problem(ProblemKind::RateLimited);
    assert!(refused.headers.contains_key("retry-after"));
    for _ in 0..20 {
        let _renewed = machine.renew(&server).await.expect(200);
    }
    let _refused = machine.renew(&server).await.expect_problem(ProblemKind::RateLimited);
    let _still_valid = machine.check_in(&server).await.expect(200);
    server.clock().advance(Duration::DAY);
    machine.forget_nonce();
    let _renewed = machine.renew(&server).await.expect(200);
    server.stop().await;
}
