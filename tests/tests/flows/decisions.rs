//! Revoked, quarantined, deleted: an administrator's decision applies to every later check-in.

use std::sync::atomic::{AtomicUsize, Ordering};

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use futures_util::future::{join, join_all};
use rstest::rstest;
use serde_json::json;
use tokio::sync::{Notify, watch};

const CALLERS: usize = 20;
const TRIES: usize = 1_000;
/// Enough callers that check-ins race with the decision.
const TRIES_BEFORE: usize = 100;

/// The results of the check-ins of one race.
#[derive(Default)]
struct Tally {
    begun: AtomicUsize,
    enough_begun: Notify,
    granted_before: AtomicUsize,
    refused_after: AtomicUsize,
}

/// Checks in repeatedly. A check-in that starts after `decided` must be refused.
async fn race(machine: &Machine, api: &Api, tally: &Tally, decided: &watch::Receiver<bool>, refusal: ProblemKind) {
    let mut nonce = api.nonce().await;
    while tally.refused_after.load(Ordering::Relaxed) < TRIES {
        if tally.begun.fetch_add(1, Ordering::Relaxed) == TRIES_BEFORE {
            tally.enough_begun.notify_one();
        }
        let begun_after = *decided.borrow();
        let answer = Answer::to(machine.check_in_with(api, &nonce)).await;
        answer.nonce().clone_into(&mut nonce);
        if begun_after {
            let refused = answer.expect_problem(refusal);
            assert!(!refused.text().contains("\"token\""), "{}", refused.text());
            tally.refused_after.fetch_add(1, Ordering::Relaxed);
        } else if answer.status == 200 {
            assert_eq!(answer.json()["grants"].as_array().unwrap().len(), 1);
            tally.granted_before.fetch_add(1, Ordering::Relaxed);
        } else {
            // Another caller has used a later nonce, or the decision was first.
            let kind = answer.problem_kind();
            assert!(
                kind == Some(ProblemKind::BadNonce) || kind == Some(refusal),
                "{}",
                answer.text()
            );
        }
    }
}

#[rstest]
#[case::revoked("revoke", ProblemKind::MachineRevoked)]
#[case::quarantined("quarantine", ProblemKind::MachineQuarantined)]
#[tokio::test]
async fn after_a_decision_no_check_in_on_any_replica_yields_a_grant(
    #[case] decision: &str,
    #[case] refusal: ProblemKind,
) {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machine = administrator.enrolled(&apis[0]).await;
    let permission = administrator.permission("build").await;
    administrator.grant(&permission, &machine, json!({})).await;
    let (tally, (decide, decided)) = (Tally::default(), watch::channel(false));

    let races = (0..CALLERS).map(|caller| race(&machine, &apis[caller % 2], &tally, &decided, refusal));
    let decision = async {
        tally.enough_begun.notified().await;
        let _decided = administrator
            .decide(machine.id(), decision, "lost on a train")
            .await
            .expect(200);
        decide.send_replace(true);
    };
    join(join_all(races), decision).await;

    assert!(
        tally.granted_before.load(Ordering::Relaxed) > 0,
        "no check-in went through before"
    );
    assert!(tally.refused_after.load(Ordering::Relaxed) >= TRIES);
    for api in &apis {
        for answer in [
            machine.check_in(api).await,
            machine.renew(api).await,
            machine.enroll(api, None).await,
        ] {
            // A thief learns that the machine is suspended, and not why.
            let refused = answer.expect_problem(refusal);
            assert!(!refused.detail().contains("lost on a train"), "{refused}");
        }
    }
}

#[tokio::test]
async fn a_released_machine_has_its_grants_again() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machine = administrator.enrolled(&apis[0]).await;
    let permission = administrator.permission("build").await;
    administrator.grant(&permission, &machine, json!({})).await;

    let _quarantined = administrator
        .decide(machine.id(), "quarantine", "odd traffic")
        .await
        .expect(200);
    let record = administrator.machine(machine.id()).await;
    assert_eq!(
        (&record["status"], &record["status_reason"]),
        (&json!("quarantined"), &json!("odd traffic"))
    );
    for api in &apis {
        let _refused = machine
            .check_in(api)
            .await
            .expect_problem(ProblemKind::MachineQuarantined);
    }
    let _released = administrator
        .decide(machine.id(), "release", "a false alarm")
        .await
        .expect(200);
    for api in &apis {
        let checked_in = machine.check_in(api).await.expect(200).json();
        assert_eq!(checked_in["grants"].as_array().unwrap().len(), 1, "{checked_in}");
    }
    let kinds = administrator.event_kinds(machine.id()).await;
    assert!(
        kinds.contains(&json!("machine.quarantined")) && kinds.contains(&json!("machine.released")),
        "{kinds:?}"
    );
}

#[tokio::test]
async fn a_copied_identity_is_refused_and_quarantined_until_it_is_released() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machine = administrator.enrolled(&apis[0]).await;
    let copy = machine.copied_to(&format!("{}X", machine.serial_number()));

    let refused = copy
        .check_in(&apis[1])
        .await
        .expect_problem(ProblemKind::IdentityMismatch);
    assert!(refused.detail().contains(copy.serial_number()), "{}", refused.detail());
    machine.forget_nonce();
    for api in &apis {
        let _held_back = machine
            .check_in(api)
            .await
            .expect_problem(ProblemKind::MachineQuarantined);
        let _held_back = copy.check_in(api).await.expect_problem(ProblemKind::MachineQuarantined);
    }
    let record = administrator.machine(machine.id()).await;
    assert_eq!(record["status"], "quarantined");
    assert_eq!(
        record["serial_number"],
        machine.serial_number(),
        "what is on record stays"
    );
    let events = administrator.events(machine.id()).await;
    let mismatch = events
        .iter()
        .find(|event| event["kind"] == "machine.identity-mismatch")
        .unwrap();
    assert_eq!(mismatch["detail"]["claimed"]["serial_number"], copy.serial_number());
    let quarantined = events
        .iter()
        .find(|event| event["kind"] == "machine.quarantined")
        .unwrap();
    assert_eq!(quarantined["detail"]["reason"], record["status_reason"]);
    let audit = administrator.audit(&format!("machine:{}", machine.id())).await;
    let entry = audit
        .iter()
        .find(|entry| entry["action"] == "machine.quarantine")
        .unwrap();
    assert_eq!(entry["actor"]["kind"], "machine", "the actor is the machine");

    let _released = administrator
        .decide(machine.id(), "release", "the copy is wiped")
        .await
        .expect(200);
    let _checked_in = machine.check_in(&apis[1]).await.expect(200);
    copy.forget_nonce();
    let _caught_again = copy.renew(&apis[0]).await.expect_problem(ProblemKind::IdentityMismatch);
}

#[tokio::test]
async fn no_refusal_tells_a_recorded_value_that_the_caller_did_not_send() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    for differs_in_uuid in [false, true] {
        let machine = administrator.enrolled(&api).await;
        let mut copy = machine.copied_to(&format!("ANOTHER-{}", uuid::Uuid::new_v4()));
        if differs_in_uuid {
            copy.identity.serial_number.clone_from(&machine.identity.serial_number);
        }
        let refused = [
            copy.check_in(&api).await,
            copy.check_in(&api).await,
            copy.renew(&api).await,
        ];
        let recorded = [
            machine.identity.hardware_uuid.as_deref(),
            machine.identity.serial_number.as_deref().filter(|_| !differs_in_uuid),
        ];
        for answer in refused {
            let answer = answer.expect(403);
            for value in recorded.into_iter().flatten() {
                assert!(!answer.detail().contains(value), "{answer}");
            }
        }
        machine.forget_nonce();
        let refused = machine
            .check_in(&api)
            .await
            .expect_problem(ProblemKind::MachineQuarantined);
        for value in [&copy.identity.hardware_uuid, &copy.identity.serial_number]
            .into_iter()
            .flatten()
        {
            let is_shared = value == machine.serial_number();
            assert!(is_shared || !refused.detail().contains(value.as_str()), "{refused}");
        }
        // Administrators read both values in the event.
        let events = administrator.events(machine.id()).await;
        let mismatch = events
            .iter()
            .find(|event| event["kind"] == "machine.identity-mismatch")
            .unwrap();
        let on_record = &mismatch["detail"]["on_record"];
        assert_eq!(on_record["hardware_uuid"], json!(machine.identity.hardware_uuid));
    }
}

#[tokio::test]
async fn a_machine_that_no_longer_tells_its_hardware_is_an_event_once_until_it_tells_it_again() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    let withheld = async || {
        let events = administrator.events(machine.id()).await.into_iter();
        let withheld = events.filter(|event| event["kind"] == "machine.identity-withheld");
        withheld
            .map(|event| event["detail"]["withheld"].clone())
            .collect::<Vec<_>>()
    };
    let mut silent = machine.clone();
    silent.identity.serial_number = None;
    silent.identity.hardware_uuid = None;
    for version in ["26.2", "26.3"] {
        silent.posture.os_version = Some(version.to_owned());
        let _checked_in = silent.check_in(&api).await.expect(200);
    }
    assert_eq!(withheld().await, [json!(["serial_number", "hardware_uuid"])]);
    let record = administrator.machine(machine.id()).await;
    assert_eq!(record["serial_number"], machine.serial_number(), "the record keeps it");
    machine.forget_nonce();
    let _checked_in = machine.check_in(&api).await.expect(200);
    silent.forget_nonce();
    let _checked_in = silent.check_in(&api).await.expect(200);
    assert_eq!(withheld().await.len(), 2);
}

#[tokio::test]
async fn a_serial_number_that_is_told_later_is_recorded_as_a_claim() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let other = administrator.enrolled(&api).await;
    let token = administrator.token(json!({})).await;
    let mut machine = Machine::new();
    let serial_number = machine.identity.serial_number.take();
    let _enrolled = machine.enroll(&api, Some(&token.secret)).await.expect(201);
    machine.identity.serial_number.clone_from(&other.identity.serial_number);
    let _checked_in = machine.check_in(&api).await.expect(200);
    let record = administrator.machine(machine.id()).await;
    assert_eq!(record["serial_number"], json!(null), "it is another machine's");
    machine.identity.serial_number.clone_from(&serial_number);
    let _checked_in = machine.check_in(&api).await.expect(200);
    let record = administrator.machine(machine.id()).await;
    assert_eq!(record["serial_number"], json!(serial_number));
    assert_eq!(record["assurance"], "asserted");
}

#[tokio::test]
async fn a_hardware_uuid_in_the_other_case_is_the_same() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let mut machine = administrator.enrolled(&api).await;
    let recorded = machine.identity.hardware_uuid.clone();
    machine.identity.hardware_uuid = recorded.as_deref().map(str::to_lowercase);
    let _checked_in = machine.check_in(&api).await.expect(200);
    let _enrolled = machine.enroll(&api, None).await.expect(200);
    assert_eq!(
        administrator.machine(machine.id()).await["hardware_uuid"],
        json!(recorded)
    );
    assert!(
        !administrator
            .event_kinds(machine.id())
            .await
            .contains(&json!("posture.changed"))
    );
}

#[tokio::test]
async fn another_hardware_uuid_is_another_machine() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    let mut copy = machine.copied_to(machine.serial_number());
    copy.identity.hardware_uuid = Some("UUID-OF-ANOTHER".to_owned());
    let _refused = copy
        .enroll(&api, None)
        .await
        .expect_problem(ProblemKind::IdentityMismatch);
    assert_eq!(administrator.machine(machine.id()).await["status"], "quarantined");
}

#[tokio::test]
async fn a_deleted_machine_is_unknown_and_its_key_barred() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machine = administrator.enrolled(&apis[0]).await;
    let _checked_in = machine.check_in(&apis[1]).await.expect(200);

    administrator.delete(&format!("machines/{}", machine.id())).await;
    let token = administrator
        .token(json!({"serial_numbers": [machine.serial_number()]}))
        .await;
    for api in &apis {
        let _unknown = machine.check_in(api).await.expect_problem(ProblemKind::MachineUnknown);
        let _unknown = machine.renew(api).await.expect_problem(ProblemKind::MachineUnknown);
        let _revoked = machine
            .enroll(api, Some(&token.secret))
            .await
            .expect_problem(ProblemKind::MachineRevoked);
    }
    // A deleted record does not return. The hardware can enroll with another key, as a new machine.
    let erased = machine.erased();
    let _enrolled = erased.enroll(&apis[1], Some(&token.secret)).await.expect(201);
    assert_ne!(erased.id(), machine.id());
    let kinds = administrator.event_kinds(machine.id()).await;
    assert_eq!(kinds[0], "machine.deleted", "its events stay");
}

#[tokio::test]
async fn a_revoked_machines_key_stays_revoked_after_the_record_is_deleted() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(1), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    let _revoked = administrator.decide(machine.id(), "revoke", "sold").await.expect(200);
    let _refused = machine
        .enroll(&api, None)
        .await
        .expect_problem(ProblemKind::MachineRevoked);
    let _final = administrator
        .decide(machine.id(), "release", "no")
        .await
        .expect_problem(ProblemKind::Conflict);
    administrator.delete(&format!("machines/{}", machine.id())).await;
    let _refused = machine
        .enroll(&api, None)
        .await
        .expect_problem(ProblemKind::MachineRevoked);
}

#[tokio::test]
async fn approving_a_quarantined_machine_is_refused_and_releases_nothing() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let (machine, token) = (Machine::new(), administrator.token(json!({"approval": "manual"})).await);
    let _pending = machine.enroll(&api, Some(&token.secret)).await.expect(202);
    let _approved = administrator.decide(machine.id(), "approve", "known").await.expect(200);
    let _repeated = administrator.decide(machine.id(), "approve", "known").await.expect(200);
    for (decision, status) in [("quarantine", "quarantined"), ("revoke", "revoked")] {
        let _decided = administrator.decide(machine.id(), decision, "odd").await.expect(200);
        let refused = administrator.decide(machine.id(), "approve", "fine again").await;
        let refused = refused.expect_problem(ProblemKind::Conflict);
        assert!(refused.detail().contains(status), "{}", refused.detail());
        assert_eq!(administrator.machine(machine.id()).await["status"], status);
    }
}

/// A response may be lost, so the decision can be repeated. A different reason is refused, because it would not be
/// kept.
#[tokio::test]
async fn a_repeated_decision_returns_the_same_and_another_reason_is_a_conflict() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    for (decision, state, reason) in [
        ("quarantine", "quarantined", "odd traffic"),
        ("release", "active", "a false alarm"),
        ("revoke", "revoked", "sold"),
    ] {
        let decided = administrator
            .decide(machine.id(), decision, reason)
            .await
            .expect(200)
            .json();
        let events = administrator.events(machine.id()).await;
        let repeated = administrator
            .decide(machine.id(), decision, reason)
            .await
            .expect(200)
            .json();
        assert_eq!(repeated, decided);
        let other = administrator.decide(machine.id(), decision, "stolen").await;
        let refused = other.expect_problem(ProblemKind::Conflict);
        assert!(
            refused
                .detail()
                .contains(&format!("already {state}, because: {reason}")),
            "{refused}"
        );
        assert_eq!(administrator.machine(machine.id()).await["status_reason"], reason);
        assert_eq!(administrator.events(machine.id()).await, events);
    }
    let never_held_back = administrator.enrolled(&api).await;
    let refused = administrator.decide(never_held_back.id(), "release", "why not").await;
    let refused = refused.expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains("already active"), "{refused}");
}
