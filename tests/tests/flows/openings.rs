//! A Mac that was wiped has a new key and no token. An administrator, or its MDM, opens its record for some hours.

use assay_protocol::ProblemKind;
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use rstest::rstest;
use serde_json::{Value, json};
use time::Duration;

/// A machine with a grant, which is then wiped: the machine as it was, and with its new key.
async fn wiped(server: &InProcess, serial_number: &str) -> (Machine, Machine) {
    let machine = server.enrolled(serial_number).await;
    let permission = json!({"audience": serial_number, "name": "read", "description": ""});
    let permission = server
        .post("/v1/admin/permissions", &permission)
        .await
        .expect(201)
        .json();
    let grant =
        json!({"permission_id": permission["id"], "selector": {"machine_ids": [machine.id()]}, "conditions": {}});
    let _granted = server.post("/v1/admin/grants", &grant).await.expect(201);
    assert_eq!(grants(&machine.check_in(server).await), 1);
    let erased = machine.erased();
    (machine, erased)
}

fn grants(answer: &Answer) -> usize {
    answer.json()["grants"].as_array().unwrap().len()
}

async fn call_open(server: &InProcess, machine: &Machine, body: Value) -> Answer {
    server.post(&format!("{}/open", machine.path()), &body).await
}

async fn open(server: &InProcess, machine: &Machine) -> Value {
    call_open(server, machine, json!({"reason": "wiped"}))
        .await
        .expect(200)
        .json()
}

async fn approve(server: &InProcess, machine: &Machine, key: &Machine) -> Answer {
    let body = json!({"key_thumbprint": key.thumbprint()});
    server.post(&format!("{}/approve", machine.path()), &body).await
}

async fn kinds(server: &InProcess, machine: &Machine) -> Vec<String> {
    let events = server.events(machine).await;
    events
        .iter()
        .map(|event| event["kind"].as_str().unwrap().to_owned())
        .collect()
}

async fn has_event(server: &InProcess, machine: &Machine, kind: &str) -> bool {
    kinds(server, machine).await.iter().any(|happened| happened == kind)
}

#[tokio::test]
async fn a_wiped_mac_takes_its_record_over_without_a_token() {
    let server = InProcess::start().await;
    let (machine, erased) = wiped(&server, "WIPED").await;
    let _no_token = erased
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    let opening = open(&server, &machine).await;
    assert_eq!(opening["machine_id"], machine.id().to_string());
    let enrolled = erased.enroll(&server, None).await.expect(201).json();
    assert_eq!(
        (&enrolled["machine_id"], &enrolled["assurance"]),
        (&json!(machine.id()), &json!("asserted"))
    );
    assert_eq!(grants(&erased.check_in(&server).await), 1);
    let _repeated = erased.enroll(&server, None).await.expect(200);
    let _old = machine
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::KeySuperseded);
    let record = server.record(&machine).await;
    assert_eq!(record["key"]["thumbprint"], erased.thumbprint().to_string());
    assert!(has_event(&server, &machine, "machine.opened").await);
    let audit = server
        .items(&format!("/v1/admin/audit?resource=machine:{}", machine.id()))
        .await;
    assert!(
        audit
            .iter()
            .any(|entry| entry["action"] == "machine.open" && entry["reason"] == "wiped")
    );
    server.stop().await;
}

#[rstest]
#[case::unknown(None)]
#[case::unbound(Some(json!({})))]
#[case::of_another_serial_number(Some(json!({"serial_numbers": ["SOMEBODY"], "allow_reenrollment": true})))]
#[case::without_reenrollment(Some(json!({"serial_numbers": ["UNFIT"]})))]
#[tokio::test]
async fn an_unfit_token_is_ignored_and_not_used(#[case] token: Option<Value>) {
    let server = InProcess::start().await;
    let (machine, erased) = wiped(&server, "UNFIT").await;
    let secret = match token {
        Some(token) => server.enrollment_token(token).await,
        None => "unknown".to_owned(),
    };
    let uses = async || {
        let tokens = server.items("/v1/admin/enrollment-tokens").await;
        tokens.iter().map(|token| token["uses"].as_u64().unwrap()).sum::<u64>()
    };
    let before = uses().await;
    let _opened = open(&server, &machine).await;
    let enrolled = erased.enroll(&server, Some(&secret)).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "asserted");
    assert_eq!(uses().await, before);
    server.stop().await;
}

#[tokio::test]
async fn a_fit_token_counts_and_ends_the_opening() {
    let server = InProcess::start().await;
    let (machine, erased) = wiped(&server, "FIT").await;
    let _opened = open(&server, &machine).await;
    let token = json!({"serial_numbers": ["FIT"], "allow_reenrollment": true});
    let token = server.enrollment_token(token).await;
    let enrolled = erased.enroll(&server, Some(&token)).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "verified");
    let _no_token = machine
        .erased()
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    assert_eq!(grants(&erased.check_in(&server).await), 1);
    server.stop().await;
}

#[tokio::test]
async fn other_hardware_does_not_profit_from_an_opening() {
    let server = InProcess::start().await;
    let (machine, mut erased) = wiped(&server, "HARDWARE").await;
    let _opened = open(&server, &machine).await;
    for uuid in [Some("UUID-OF-ANOTHER".to_owned()), None] {
        erased.identity.hardware_uuid = uuid;
        let _refused = erased
            .enroll(&server, None)
            .await
            .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    }
    erased.identity.hardware_uuid = machine.identity.hardware_uuid.as_ref().map(|uuid| uuid.to_lowercase());
    let _taken = erased.enroll(&server, None).await.expect(201);
    server.stop().await;
}

#[tokio::test]
async fn a_key_that_waits_already_takes_the_record_over_if_it_alone_waits() {
    let server = InProcess::start_with(&[("enrollment.without_token", "pending")]).await;
    let (machine, erased) = wiped(&server, "WAITS").await;
    let _waits = erased.enroll(&server, None).await.expect(202);
    let _opened = open(&server, &machine).await;
    let enrolled = erased.enroll(&server, None).await.expect(201).json();
    assert_eq!(enrolled["machine_id"], json!(machine.id()));
    assert_eq!(server.items("/v1/admin/enrollments?status=pending").await.len(), 0);
    assert_eq!(grants(&erased.check_in(&server).await), 1);
    server.stop().await;
}

#[tokio::test]
async fn of_two_keys_that_wait_none_takes_the_record_over() {
    let server = InProcess::start_with(&[("enrollment.without_token", "pending")]).await;
    let (machine, first) = wiped(&server, "TWO").await;
    let second = machine.erased();
    let _waits = first.enroll(&server, None).await.expect(202);
    let _opened = open(&server, &machine).await;
    for _ in 0..2 {
        let _waits = second.enroll(&server, None).await.expect(202);
        let _waits = first.enroll(&server, None).await.expect(202);
    }
    let path = format!("{}/approve", machine.path());
    let _several = server
        .post(&path, &json!({}))
        .await
        .expect_problem(ProblemKind::Conflict);
    // Once one is denied, the other one alone waits.
    let pending = server.items("/v1/admin/enrollments?status=pending").await;
    let of_first = pending
        .iter()
        .find(|enrollment| enrollment["key"]["thumbprint"] == first.thumbprint().to_string())
        .unwrap();
    let path = format!("/v1/admin/enrollments/{}/deny", of_first["id"].as_str().unwrap());
    let _denied = server.post(&path, &json!({"reason": "not ours"})).await.expect(200);
    let _denied = first
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentDenied);
    let _taken = second.enroll(&server, None).await.expect(201);
    server.stop().await;
}

#[rstest]
#[case::the_first(true)]
#[case::the_second(false)]
#[tokio::test]
async fn after_a_second_key_the_first_gets_no_grants_until_one_is_approved_by_thumbprint(#[case] approves_first: bool) {
    let server = InProcess::start().await;
    let (machine, first) = wiped(&server, "CONTESTED").await;
    let _opened = open(&server, &machine).await;
    let _taken = first.enroll(&server, None).await.expect(201);
    assert_eq!(grants(&first.check_in(&server).await), 1);
    let second = machine.erased();
    // The hours count from the takeover.
    server.clock().advance(Duration::hours(23));
    first.forget_nonce();
    let waits = second.enroll(&server, None).await.expect(202).json();
    assert_eq!(waits["machine_id"], Value::Null);
    let contested = first.check_in(&server).await.expect(200);
    assert_eq!(grants(&contested), 0);
    let reason = contested.json()["denied"][0]["reasons"][0].as_str().unwrap().to_owned();
    assert!(reason.contains("two keys claim"), "{reason}");
    // This does not end by time, and naming the machine alone is not enough.
    server.clock().advance(Duration::hours(30));
    first.forget_nonce();
    assert_eq!(grants(&first.check_in(&server).await.expect(200)), 0);
    let path = format!("{}/approve", machine.path());
    let _unnamed = server
        .post(&path, &json!({}))
        .await
        .expect_problem(ProblemKind::Conflict);
    let _contested = call_open(&server, &machine, json!({"reason": "wiped"}))
        .await
        .expect_problem(ProblemKind::Conflict);
    let approved = if approves_first { &first } else { &second };
    let _approved = approve(&server, &machine, approved).await.expect(200);
    if !approves_first {
        second.forget_nonce();
        let _enrolled = second.enroll(&server, None).await.expect(201);
    }
    let checked_in = approved.check_in(&server).await.expect(200);
    assert_eq!(grants(&checked_in), 1);
    assert_eq!(checked_in.json()["assurance"], "verified");
    let kinds = kinds(&server, &machine).await;
    let contests = kinds.iter().filter(|kind| *kind == "machine.opening-contested");
    assert_eq!(contests.count(), 1, "{kinds:?}");
    server.stop().await;
}

#[tokio::test]
async fn after_the_hours_a_takeover_stands() {
    let server = InProcess::start().await;
    let (machine, first) = wiped(&server, "STANDS").await;
    let _opened = open(&server, &machine).await;
    let _taken = first.enroll(&server, None).await.expect(201);
    server.clock().advance(Duration::hours(24));
    let _late = machine
        .erased()
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    first.forget_nonce();
    assert_eq!(grants(&first.check_in(&server).await.expect(200)), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_check_in_by_the_recorded_key_ends_the_opening() {
    let server = InProcess::start().await;
    let (machine, erased) = wiped(&server, "ALIVE").await;
    let _opened = open(&server, &machine).await;
    let _checked_in = machine.check_in(&server).await.expect(200);
    let _refused = erased
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    assert!(has_event(&server, &machine, "machine.opening-ended").await);
    // It can be opened again.
    let _opened = open(&server, &machine).await;
    let _taken = erased.enroll(&server, None).await.expect(201);
    server.stop().await;
}

#[tokio::test]
async fn an_opening_ends_after_its_hours() {
    let server = InProcess::start().await;
    let (machine, erased) = wiped(&server, "HOURS").await;
    let opening = call_open(&server, &machine, json!({"hours": 2}))
        .await
        .expect(200)
        .json();
    server.clock().advance(Duration::hours(2));
    let _over = erased
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    let another = call_open(&server, &machine, json!({"hours": 2}))
        .await
        .expect(200)
        .json();
    assert_ne!(opening["id"], another["id"]);
    server.clock().advance(Duration::hours(2) - Duration::SECOND);
    erased.forget_nonce();
    let _taken = erased.enroll(&server, None).await.expect(201);
    server.stop().await;
}

#[tokio::test]
async fn opening_again_returns_the_first_result_and_another_request_is_a_conflict() {
    let server = InProcess::start().await;
    let (machine, _) = wiped(&server, "REPEATED").await;
    let opening = open(&server, &machine).await;
    assert_eq!(open(&server, &machine).await, opening);
    for other in [
        json!({"reason": "lost"}),
        json!({}),
        json!({"reason": "wiped", "hours": 3}),
    ] {
        let _other = call_open(&server, &machine, other)
            .await
            .expect_problem(ProblemKind::Conflict);
    }
    for malformed in [
        json!({"hours": 0}),
        json!({"hours": 169}),
        json!({"hours": -1}),
        json!({"days": 1}),
        json!({"reason": ""}),
    ] {
        let _malformed = call_open(&server, &machine, malformed)
            .await
            .expect_problem(ProblemKind::Malformed);
    }
    server.stop().await;
}

#[rstest]
#[case("quarantine")]
#[case("revoke")]
#[tokio::test]
async fn the_record_of_a_suspended_machine_is_never_open(#[case] decision: &str) {
    let server = InProcess::start().await;
    let (machine, erased) = wiped(&server, "SUSPENDED").await;
    let _opened = open(&server, &machine).await;
    let path = format!("{}/{decision}", machine.path());
    let _suspended = server.post(&path, &json!({"reason": "odd"})).await.expect(200);
    let refused = async || {
        let refused = erased.enroll(&server, None).await;
        let _refused = refused.expect_problem(ProblemKind::EnrollmentTokenInvalid);
    };
    refused().await;
    let _refused = call_open(&server, &machine, json!({}))
        .await
        .expect_problem(ProblemKind::Conflict);
    if decision == "quarantine" {
        // A release does not open the record again.
        let path = format!("{}/release", machine.path());
        let _released = server.post(&path, &json!({"reason": "found"})).await.expect(200);
        refused().await;
    }
    server.stop().await;
}

#[tokio::test]
async fn a_denied_key_takes_nothing_over() {
    let server = InProcess::start_with(&[("enrollment.without_token", "pending")]).await;
    let (machine, erased) = wiped(&server, "REFUSED").await;
    let waits = erased.enroll(&server, None).await.expect(202).json();
    let path = format!(
        "/v1/admin/enrollments/{}/deny",
        waits["enrollment_id"].as_str().unwrap()
    );
    let _denied = server.post(&path, &json!({"reason": "not ours"})).await.expect(200);
    let _opened = open(&server, &machine).await;
    let _denied = erased
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentDenied);
    let _another = machine.erased().enroll(&server, None).await.expect(201);
    server.stop().await;
}

#[tokio::test]
async fn a_record_without_hardware_to_compare_is_not_opened() {
    let server = InProcess::start().await;
    let token = server.enrollment_token(json!({})).await;
    let mut machine = Machine::with_serial_number("UNNAMED");
    machine.identity.hardware_uuid = None;
    let _enrolled = machine.enroll(&server, Some(&token)).await.expect(201);
    let refused = call_open(&server, &machine, json!({}))
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains("hardware UUID"), "{}", refused.detail());
    server.stop().await;
}

#[tokio::test]
async fn only_some_keys_may_wait_for_an_open_record() {
    let server = InProcess::start().await;
    let (machine, first) = wiped(&server, "CROWD").await;
    let _opened = open(&server, &machine).await;
    let _taken = first.enroll(&server, None).await.expect(201);
    for _ in 0..10 {
        let _waits = machine.erased().enroll(&server, None).await.expect(202);
    }
    let _full = machine
        .erased()
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::RateLimited);
    assert_eq!(grants(&first.check_in(&server).await.expect(200)), 0);
    server.stop().await;
}

#[tokio::test]
async fn the_first_key_that_contests_a_takeover_finds_room_although_ten_keys_wait() {
    let server = InProcess::start_with(&[("enrollment.without_token", "pending")]).await;
    let (machine, first) = wiped(&server, "FILLED").await;
    let _opened = open(&server, &machine).await;
    let _taken = first.enroll(&server, None).await.expect(201);
    // Keys of other hardware wait for the record, too, but they do not contest the takeover.
    for number in 0..10 {
        let mut other = machine.erased();
        other.identity.hardware_uuid = Some(format!("UUID-OF-ANOTHER-{number}"));
        let _waits = other.enroll(&server, None).await.expect(202);
    }
    assert_eq!(grants(&first.check_in(&server).await.expect(200)), 1);
    let _contests = machine.erased().enroll(&server, None).await.expect(202);
    assert_eq!(grants(&first.check_in(&server).await.expect(200)), 0);
    assert!(has_event(&server, &machine, "machine.opening-contested").await);
    let _full = machine
        .erased()
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::RateLimited);
    server.stop().await;
}

#[tokio::test]
async fn approving_the_rotation_of_the_first_key_settles_a_contest() {
    let server = InProcess::start().await;
    let (machine, first) = wiped(&server, "ROTATES").await;
    let first = first.in_enclave();
    let _opened = open(&server, &machine).await;
    let _taken = first.enroll(&server, None).await.expect(201);
    let next = first.with_next_key();
    let _waits = first.rotate_to(&server, &next).await.expect(202);
    let _contests = machine.erased().enroll(&server, None).await.expect(202);
    assert_eq!(grants(&first.check_in(&server).await.expect(200)), 0);
    let _approved = approve(&server, &machine, &next).await.expect(200);
    assert_eq!(grants(&first.check_in(&server).await.expect(200)), 1);
    let _issued = first.rotate_to(&server, &next).await.expect(200);
    assert_eq!(grants(&next.check_in(&server).await.expect(200)), 1);
    // The record is not open any more, which is an event and in the audit.
    assert!(has_event(&server, &machine, "machine.opening-ended").await);
    let audit = server
        .items(&format!("/v1/admin/audit?resource=machine:{}", machine.id()))
        .await;
    let ended: Vec<_> = audit
        .iter()
        .filter(|entry| entry["action"] == "machine.end-opening")
        .collect();
    assert_eq!(ended.len(), 1, "{audit:?}");
    assert_eq!(ended[0]["actor"]["kind"], "api-key");
    let _no_token = machine
        .erased()
        .enroll(&server, None)
        .await
        .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    server.stop().await;
}

#[tokio::test]
async fn a_key_that_asks_after_a_takeover_is_approved_although_another_replicas_clock_is_behind() {
    let server = InProcess::start().await;
    let (machine, first) = wiped(&server, "BEHIND").await;
    let _opened = open(&server, &machine).await;
    let _taken = first.enroll(&server, None).await.expect(201);
    // As on a replica whose clock is behind.
    server.clock().set(server.clock().now() - Duration::seconds(20));
    let second = machine.erased();
    let _waits = second.enroll(&server, None).await.expect(202);
    let _approved = approve(&server, &machine, &second).await.expect(200);
    assert_eq!(
        server.record(&machine).await["key"]["thumbprint"],
        second.thumbprint().to_string()
    );
    server.stop().await;
}

/// The request is the Mac's from before it was wiped, and says nothing about the Mac since.
#[tokio::test]
async fn the_approval_of_a_rotation_that_is_older_than_an_opening_does_not_end_it() {
    let server = InProcess::start().await;
    let machine = Machine::with_serial_number("OLDER").in_enclave();
    let token = server.enrollment_token(json!({})).await;
    let _enrolled = machine.enroll(&server, Some(&token)).await.expect(201);
    let _checked_in = machine.check_in(&server).await.expect(200);
    let next = machine.with_next_key();
    let _waits = machine.rotate_to(&server, &next).await.expect(202);
    server.clock().advance(Duration::minutes(1));
    let _opened = open(&server, &machine).await;
    let _approved = approve(&server, &machine, &next).await.expect(200);
    assert!(!has_event(&server, &machine, "machine.opening-ended").await);
    let _taken = machine.erased().enroll(&server, None).await.expect(201);
    server.stop().await;
}
