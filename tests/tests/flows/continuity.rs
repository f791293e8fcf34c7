//! Continuity: two holders of one key cannot both continue unnoticed, and a single machine is never refused for it.

use assay_protocol::machine::{KeyClaim, KeyStoreKind};
use assay_protocol::{ProblemKind, Purpose};
use assay_tests::answer::Answer;
use assay_tests::api::Called;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use rstest::rstest;
use serde_json::{Value, json};
use time::OffsetDateTime;

const ENCLAVE: KeyClaim = KeyClaim {
    store: KeyStoreKind::SecureEnclave,
    accessibility: None,
};

/// A machine that sends continuity values, and has checked in.
async fn bound(server: &InProcess, serial_number: &str, key_claim: KeyClaim) -> Machine {
    let token = server.enrollment_token(json!({"max_uses": 1})).await;
    let mut machine = Machine::with_serial_number(serial_number);
    machine.sends_continuity = true;
    machine.key_claim = key_claim;
    let _enrolled = machine.enroll(server, Some(&token)).await.expect(201);
    let _checked_in = machine.check_in(server).await.expect(200);
    machine
}

async fn kinds(server: &InProcess, machine: &Machine) -> Vec<Value> {
    let events = server.events(machine).await.into_iter();
    events.map(|mut event| event["kind"].take()).collect()
}

async fn count(server: &InProcess, machine: &Machine, kind: &str) -> usize {
    kinds(server, machine)
        .await
        .iter()
        .filter(|other| **other == kind)
        .count()
}

async fn status(server: &InProcess, machine: &Machine) -> Value {
    server.record(machine).await["status"].clone()
}

async fn decide(server: &InProcess, machine: &Machine, decision: &str) {
    let path = format!("{}/{decision}", machine.path());
    let _decided = server.post(&path, &json!({"reason": "looked at"})).await.expect(200);
}

fn expect_broken(answer: Answer) {
    let refused = answer.expect_problem(ProblemKind::IdentityMismatch);
    assert!(refused.detail().contains("does not continue"), "{refused}");
}

/// A call with evidence of the key on record.
#[derive(Clone, Copy, Debug)]
enum Exchange {
    CheckIn,
    Renewal,
    RepeatedEnrollment,
}

impl Exchange {
    async fn call(self, holder: &Machine, server: &InProcess) -> Answer {
        match self {
            Self::CheckIn => holder.check_in(server).await,
            Self::Renewal => holder.renew(server).await,
            Self::RepeatedEnrollment => holder.enroll(server, None).await,
        }
    }
}

#[rstest]
#[case::the_copy_is_first(true)]
#[case::the_original_is_first(false)]
#[tokio::test]
async fn two_holders_of_a_software_key_are_caught_at_the_second_exchange(
    #[case] copy_is_first: bool,
    #[values(Exchange::CheckIn, Exchange::Renewal, Exchange::RepeatedEnrollment)] exchange: Exchange,
) {
    let server = InProcess::start().await;
    let machine = bound(&server, "HELD-TWICE", Machine::KEY_CLAIM).await;
    let copy = machine.clone();
    let (first, second) = if copy_is_first {
        (&copy, &machine)
    } else {
        (&machine, &copy)
    };
    let _checked_in = first.check_in(&server).await.expect(200);
    // A lost response would look the same.
    let _checked_in = second.check_in(&server).await.expect(200);
    expect_broken(exchange.call(first, &server).await);

    let record = server.record(&machine).await;
    assert_eq!(record["status"], "quarantined");
    assert!(
        record["status_reason"].as_str().unwrap().contains("continue"),
        "{record}"
    );
    assert!(
        kinds(&server, &machine)
            .await
            .contains(&json!("machine.identity-mismatch"))
    );
    for holder in [first, second] {
        let _refused = holder
            .check_in(&server)
            .await
            .expect_problem(ProblemKind::MachineQuarantined);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_copy_that_sends_no_value_or_a_foreign_one_is_caught_at_once() {
    let server = InProcess::start().await;
    let machine = bound(&server, "SILENT-COPY", Machine::KEY_CLAIM).await;
    let mut copy = machine.clone();
    copy.sends_continuity = false;
    expect_broken(copy.check_in(&server).await);

    let machine = bound(&server, "FOREIGN-VALUE", Machine::KEY_CLAIM).await;
    let other = bound(&server, "OTHER-MACHINE", Machine::KEY_CLAIM).await;
    let nonce = server.nonce().await;
    let mut claims = machine.claims(server.audience(), Purpose::CheckIn, &nonce);
    claims.continuity = other.claims(server.audience(), Purpose::CheckIn, &nonce).continuity;
    assert!(claims.continuity.is_some());
    expect_broken(
        server
            .call("/v1/check-in", &json!({"evidence": machine.sign(&claims)}))
            .await,
    );

    let machine = bound(&server, "LONG-VALUE", Machine::KEY_CLAIM).await;
    let nonce = server.nonce().await;
    let mut claims = machine.claims(server.audience(), Purpose::CheckIn, &nonce);
    claims.continuity = Some("A".repeat(65));
    let answer = server
        .call("/v1/check-in", &json!({"evidence": machine.sign(&claims)}))
        .await;
    let _refused = answer.expect_problem(ProblemKind::BadEvidence);
    assert_eq!(status(&server, &machine).await, "active");
    server.stop().await;
}

#[tokio::test]
async fn lost_responses_of_any_call_at_any_replica_do_not_break_continuity() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let token = administrator.token(json!({})).await;
    let mut machine = Machine::new();
    machine.sends_continuity = true;
    // The response to the enrollment is lost too. The repeated call returns the machine.
    let nonce = apis[0].next_nonce(None).await;
    let _lost = Answer::to(machine.enrollment(&apis[0], Some(&token.secret), &nonce))
        .await
        .expect(201);
    let _enrolled = machine.enroll(&apis[1], Some(&token.secret)).await.expect(200);
    for round in 0..6 {
        let (here, there) = (&apis[round % 2], &apis[(round + 1) % 2]);
        for _ in 0..round {
            let _lost = machine.check_in_and_lose_the_answer(here).await.expect(200);
            let nonce = there.next_nonce(None).await;
            let _lost = Answer::to(machine.renewal(there, &nonce)).await.expect(200);
            let nonce = here.next_nonce(None).await;
            let _lost = Answer::to(machine.enrollment(here, None, &nonce)).await.expect(200);
        }
        let _checked_in = machine.check_in(there).await.expect(200);
        let _checked_in = machine.check_in(here).await.expect(200);
        let _renewed = machine.renew(there).await.expect(200);
        let _enrolled = machine.enroll(here, None).await.expect(200);
    }
    assert_eq!(administrator.machine(machine.id()).await["status"], "active");
}

#[tokio::test]
async fn an_agent_that_never_sent_a_value_is_left_alone() {
    let server = InProcess::start().await;
    let machine = server.enrolled("OLDER-AGENT").await;
    let copy = machine.clone();
    for _ in 0..3 {
        let _checked_in = machine.check_in(&server).await.expect(200);
        let _checked_in = copy.check_in(&server).await.expect(200);
        let _renewed = machine.renew(&server).await.expect(200);
    }
    // After an update, the agent sends the value of the last response.
    let mut updated = machine;
    updated.sends_continuity = true;
    let _checked_in = updated.check_in(&server).await.expect(200);
    expect_broken(copy.check_in(&server).await);
    server.stop().await;
}

#[tokio::test]
async fn a_restored_state_is_caught_and_goes_on_after_a_release() {
    let server = InProcess::start().await;
    let machine = bound(&server, "RESTORED", Machine::KEY_CLAIM).await;
    let backup = machine.clone();
    for _ in 0..2 {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    expect_broken(backup.check_in(&server).await);
    decide(&server, &machine, "release").await;
    // After a release, the next evidence is accepted with any value. Continuity starts again from there.
    let _checked_in = backup.check_in(&server).await.expect(200);
    let _checked_in = backup.check_in(&server).await.expect(200);
    expect_broken(machine.check_in(&server).await);

    decide(&server, &machine, "release").await;
    let mut older = backup.clone();
    older.sends_continuity = false;
    for _ in 0..2 {
        let _checked_in = older.check_in(&server).await.expect(200);
    }
    server.stop().await;
}

#[tokio::test]
async fn a_delayed_duplicate_with_an_old_nonce_changes_nothing() {
    let server = InProcess::start().await;
    let machine = bound(&server, "DUPLICATE", Machine::KEY_CLAIM).await;
    let nonce = server.nonce().await;
    let duplicate = machine.check_in_body(server.audience(), &nonce);
    for _ in 0..2 {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    for _ in 0..2 {
        let answer = server.call("/v1/check-in", &duplicate).await;
        let _refused = answer.expect_problem(ProblemKind::BadNonce);
    }
    let _checked_in = machine.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_copy_that_claims_another_key_store_is_caught() {
    let server = InProcess::start().await;
    let machine = bound(&server, "OTHER-STORE", Machine::KEY_CLAIM).await;
    let mut copy = machine.clone();
    copy.key_claim = ENCLAVE;
    let refused = copy
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::IdentityMismatch);
    assert!(refused.detail().contains("store"), "{refused}");
    assert_eq!(status(&server, &machine).await, "quarantined");
    server.stop().await;
}

#[tokio::test]
async fn a_copy_that_rotates_the_key_first_is_caught_when_the_original_checks_in() {
    let server = InProcess::start().await;
    let machine = bound(&server, "ROTATED-AWAY", Machine::KEY_CLAIM).await;
    let copy = machine.clone();
    let thief = copy.with_next_key();
    let _rotated = copy.rotate_to(&server, &thief).await.expect(200);
    let thief = thief.remembering(&copy);
    let _checked_in = thief.check_in(&server).await.expect(200);

    let _refused = machine
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::KeySuperseded);
    assert_eq!(status(&server, &machine).await, "quarantined");
    assert_eq!(count(&server, &machine, "machine.superseded-key-used").await, 1);
    let _refused = thief
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::MachineQuarantined);
    server.stop().await;
}

#[tokio::test]
async fn a_superseded_key_of_an_agent_without_values_is_an_event_once() {
    let server = InProcess::start().await;
    let machine = server.enrolled("SUPERSEDED").await;
    let next = machine.with_next_key();
    let _rotated = machine.rotate_to(&server, &next).await.expect(200);
    // Before its successor's first check-in, the old key is the current one.
    let _checked_in = machine.check_in(&server).await.expect(200);
    let _checked_in = next.check_in(&server).await.expect(200);
    for _ in 0..2 {
        let _refused = machine
            .check_in(&server)
            .await
            .expect_problem(ProblemKind::KeySuperseded);
        let _refused = machine.renew(&server).await.expect_problem(ProblemKind::KeySuperseded);
    }
    assert_eq!(count(&server, &machine, "machine.superseded-key-used").await, 1);
    let _checked_in = next.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_database_that_is_older_than_the_fleet_is_told_apart_from_a_copied_key() {
    let server = InProcess::start().await;
    let machine = bound(&server, "DATABASE", Machine::KEY_CLAIM).await;
    let pool = server.database().pool().await;
    let (last, carried): (OffsetDateTime, Option<OffsetDateTime>) =
        sqlx::query_as("SELECT last_nonce_at, continuity_carried FROM machine_presence WHERE machine_id = $1")
            .bind(machine.id())
            .fetch_one(&pool)
            .await
            .unwrap();
    for _ in 0..2 {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    sqlx::query("UPDATE machine_presence SET last_nonce_at = $2, continuity_carried = $3 WHERE machine_id = $1")
        .bind(machine.id())
        .bind(last)
        .bind(carried)
        .execute(&pool)
        .await
        .unwrap();
    for _ in 0..3 {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    assert_eq!(count(&server, &machine, "machine.database-behind").await, 1);
    let metrics = server.metrics().await;
    let counted = r#"assay_continuity_breaks_total{result="database-behind"} 1"#;
    assert!(metrics.contains(counted), "{metrics}");
    assert_eq!(status(&server, &machine).await, "active");
    server.stop().await;
}

#[rstest]
#[case::by_store_in_software("by-store", Machine::KEY_CLAIM, true)]
#[case::by_store_in_the_enclave("by-store", ENCLAVE, false)]
#[case::quarantine_in_the_enclave("quarantine", ENCLAVE, true)]
#[case::event_in_software("event", Machine::KEY_CLAIM, false)]
#[tokio::test]
async fn a_break_is_a_quarantine_or_an_event_by_the_setting_and_the_store(
    #[case] setting: &str,
    #[case] key_claim: KeyClaim,
    #[case] quarantines: bool,
) {
    let server = InProcess::start_with(&[("check_in.continuity", setting)]).await;
    let machine = bound(&server, "BROKEN", key_claim).await;
    let copy = machine.clone();
    for holder in [&copy, &machine] {
        let _checked_in = holder.check_in(&server).await.expect(200);
    }
    let third = copy.check_in(&server).await;
    if quarantines {
        expect_broken(third);
        assert_eq!(status(&server, &machine).await, "quarantined");
    } else {
        let _checked_in = third.expect(200);
        assert_eq!(count(&server, &machine, "machine.continuity-broken").await, 1);
        assert_eq!(status(&server, &machine).await, "active");
        // Both parties can continue, and each further break has an event of its own.
        let _checked_in = copy.check_in(&server).await.expect(200);
        let _checked_in = machine.check_in(&server).await.expect(200);
        assert_eq!(count(&server, &machine, "machine.continuity-broken").await, 2);
    }
    server.stop().await;
}

#[tokio::test]
async fn switched_off_nothing_is_judged() {
    let server = InProcess::start_with(&[("check_in.continuity", "off")]).await;
    let machine = bound(&server, "OFF", Machine::KEY_CLAIM).await;
    let mut copy = machine.clone();
    for round in 0..4 {
        copy.sends_continuity = round % 2 == 0;
        let _checked_in = copy.check_in(&server).await.expect(200);
        let _checked_in = machine.check_in(&server).await.expect(200);
        let _renewed = copy.renew(&server).await.expect(200);
    }
    assert_eq!(count(&server, &machine, "machine.continuity-broken").await, 0);
    server.stop().await;
}

#[rstest]
#[case::recorded_with_others(false)]
#[case::recorded_as_a_change(true)]
#[tokio::test]
async fn an_answer_lost_while_it_is_off_does_not_break_continuity_once_it_is_on_again(#[case] is_changed: bool) {
    let on = InProcess::start().await;
    let mut machine = bound(&on, "OFF-AND-ON", Machine::KEY_CLAIM).await;
    let off = [("check_in.continuity", "off")];
    let off = InProcess::start_by(on.clock().clone(), &on.database().url(), &off).await;
    if is_changed {
        machine.posture.os_version = Some("26.9".to_owned());
    }
    for _ in 0..2 {
        let _lost = machine.check_in_and_lose_the_answer(&off).await.expect(200);
    }
    let _checked_in = machine.check_in(&on).await.expect(200);
    // A copy that was used meanwhile is still found.
    let copy = machine.clone();
    let _checked_in = copy.check_in(&off).await.expect(200);
    let _checked_in = machine.check_in(&off).await.expect(200);
    expect_broken(copy.check_in(&on).await);
    off.stop().await;
    on.stop().await;
}

#[tokio::test]
async fn a_value_that_is_first_sent_while_it_is_off_continues_once_it_is_on_again() {
    let on = InProcess::start().await;
    let mut machine = on.enrolled("UPDATED-WHILE-OFF").await;
    let _checked_in = machine.check_in(&on).await.expect(200);
    let off = [("check_in.continuity", "off")];
    let off = InProcess::start_by(on.clock().clone(), &on.database().url(), &off).await;
    machine.sends_continuity = true;
    let _lost = machine.check_in_and_lose_the_answer(&off).await.expect(200);
    let _checked_in = machine.check_in(&on).await.expect(200);
    // From the first value on, one is required.
    machine.sends_continuity = false;
    expect_broken(machine.check_in(&on).await);
    off.stop().await;
    on.stop().await;
}

/// Enrolls with this value.
async fn enroll_with_value(server: &InProcess, machine: &Machine, token: &str, value: &str) -> Answer {
    let nonce = server.nonce().await;
    let mut claims = machine.claims(server.audience(), Purpose::Enroll, &nonce);
    claims.continuity = Some(value.to_owned());
    let body = json!({"token": token, "csr": machine.csr(), "evidence": machine.sign(&claims)});
    server.call("/v1/enroll", &body).await
}

#[rstest]
#[case::a_new_machine(false)]
#[case::a_new_key(true)]
#[tokio::test]
async fn a_repeated_enrollment_with_another_records_value_is_no_copy(#[case] is_on_record: bool) {
    let server = InProcess::start().await;
    let other = bound(&server, "OTHER-RECORD", Machine::KEY_CLAIM).await;
    let value = other
        .claims(server.audience(), Purpose::CheckIn, "nonce")
        .continuity
        .unwrap();
    let token = json!({"serial_numbers": ["TAKES-IT-ALONG"], "allow_reenrollment": true});
    let token = server.enrollment_token(token).await;
    let mut machine = Machine::with_serial_number("TAKES-IT-ALONG");
    if is_on_record {
        let _enrolled = machine.enroll(&server, Some(&token)).await.expect(201);
        machine = machine.erased();
    }
    let _lost = enroll_with_value(&server, &machine, &token, &value).await.expect(201);
    for _ in 0..2 {
        let _lost = enroll_with_value(&server, &machine, &token, &value).await.expect(200);
    }
    machine.sends_continuity = true;
    let _enrolled = machine.enroll(&server, Some(&token)).await.expect(200);
    let _checked_in = machine.check_in(&server).await.expect(200);
    // After the machine's first value, a foreign one is another party's.
    expect_broken(enroll_with_value(&server, &machine, &token, &value).await);
    server.stop().await;
}

#[tokio::test]
async fn a_replaced_key_starts_anew_at_the_call_that_admits_it() {
    let server = InProcess::start_with(&[("enrollment.without_token", "pending")]).await;
    let machine = bound(&server, "REPLACED", Machine::KEY_CLAIM).await;
    // With a bound token, the key replaces the old one immediately.
    let token = json!({"serial_numbers": ["REPLACED"], "allow_reenrollment": true, "max_uses": 1});
    let token = server.enrollment_token(token).await;
    let erased = machine.erased();
    let _enrolled = erased.enroll(&server, Some(&token)).await.expect(201);
    for _ in 0..2 {
        let _checked_in = erased.check_in(&server).await.expect(200);
    }
    // An approval admits the key, and its next call starts anew.
    let again = machine.erased();
    let pending = again.enroll(&server, None).await.expect(202).json();
    let path = format!(
        "/v1/admin/enrollments/{}/approve",
        pending["enrollment_id"].as_str().unwrap()
    );
    let _approved = server.post(&path, &json!({"reason": "seen"})).await.expect(200);
    let _enrolled = again.enroll(&server, None).await.expect(201);
    for _ in 0..2 {
        let _checked_in = again.check_in(&server).await.expect(200);
    }
    server.stop().await;
}
