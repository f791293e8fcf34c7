//! Enrollment: repeated, in parallel, by tokens of every kind.

use assay_protocol::ProblemKind;
use assay_tests::administrator::text;
use assay_tests::answer::Answer;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use futures_util::future::join_all;
use serde_json::{Value, json};

#[tokio::test]
async fn a_repeated_enrollment_returns_the_same_certificate_and_uses_the_token_once() {
    let installation = Installation::shared().await;
    let (one, two, administrator) = (installation.api(0), installation.api(1), installation.administrator());
    let token = administrator.token(json!({"labels": {"team": "build"}})).await;
    let machine = Machine::new();

    let first = machine.enroll(&one, Some(&token.secret)).await.expect(201).json();
    for (api, secret) in [
        (&one, Some(token.secret.as_str())),
        (&two, Some(token.secret.as_str())),
        (&two, None),
    ] {
        let again = machine.enroll(api, secret).await.expect(200).json();
        for member in ["machine_id", "spiffe_id", "assurance", "certificate", "trust_bundle"] {
            assert_eq!(again[member], first[member], "{member}");
        }
    }
    assert_eq!(administrator.uses(&token).await, 1);
    let record = administrator.machine(machine.id()).await;
    assert_eq!(
        record["certificate"]["serial_number"],
        first["certificate"]["serial_number"]
    );
    assert_eq!(record["labels"], json!({"team": "build"}));
    assert_eq!(record["status"], "active");
}

#[tokio::test]
async fn concurrent_enrollments_of_one_key_create_one_machine() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let token = administrator.token(json!({"max_uses": 20})).await;
    let machine = Machine::new();
    let nonces = join_all((0..20).map(|call| apis[call % 2].nonce())).await;

    let calls = nonces
        .iter()
        .enumerate()
        .map(|(call, nonce)| Answer::to(machine.enrollment(&apis[call % 2], Some(&token.secret), nonce)));
    let answers = join_all(calls).await;

    let with = |status| answers.iter().filter(move |answer| answer.status == status);
    assert_eq!(with(201).count(), 1);
    let issued = with(201).next().unwrap().json();
    for answer in &answers {
        match answer.status {
            200 | 201 => {
                assert_eq!(answer.json()["machine_id"], issued["machine_id"]);
                assert_eq!(answer.json()["certificate"], issued["certificate"]);
            }
            // Its nonce is older than that of an earlier call.
            _ => assert_eq!(answer.problem_kind(), Some(ProblemKind::BadNonce), "{}", answer.text()),
        }
    }
    assert_eq!(administrator.uses(&token).await, 1);
    let found = administrator
        .get(&format!("machines?q={}", machine.serial_number()))
        .await;
    assert_eq!(found["items"].as_array().unwrap().len(), 1, "{found}");
}

#[tokio::test]
async fn of_two_concurrent_enrollments_with_one_serial_number_one_is_admitted() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let token = administrator.token(json!({"max_uses": 1})).await;
    let machine = Machine::new();
    let machines = [machine.erased(), machine];

    let calls = machines
        .iter()
        .zip(&apis)
        .map(|(machine, api)| machine.enroll(api, Some(&token.secret)));
    let mut answers = join_all(calls).await;

    answers.sort_by_key(|answer| answer.status);
    assert_eq!(answers[0].status, 201, "{}", answers[0].text());
    assert_eq!(
        answers[1].problem_kind(),
        Some(ProblemKind::EnrollmentTokenInvalid),
        "{}",
        answers[1].text()
    );
    assert_eq!(administrator.uses(&token).await, 1);
}

#[tokio::test]
async fn concurrent_enrollments_use_a_token_at_most_as_often_as_it_allows() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let token = administrator.token(json!({"max_uses": 7})).await;
    let machines: Vec<_> = (0..20).map(|_| Machine::new()).collect();

    let calls = machines
        .iter()
        .enumerate()
        .map(|(call, machine)| machine.enroll(&apis[call % 2], Some(&token.secret)));
    let answers = join_all(calls).await;

    let enrolled = answers.iter().filter(|answer| answer.status == 201).count();
    let refused = answers
        .iter()
        .filter(|answer| answer.problem_kind() == Some(ProblemKind::EnrollmentTokenInvalid));
    assert_eq!((enrolled, refused.count()), (7, 13));
    assert_eq!(administrator.uses(&token).await, 7);
}

#[tokio::test]
async fn an_invalid_token_is_refused_with_the_reason_and_leaves_nothing() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let other = administrator.token(json!({"serial_numbers": ["C02OTHER"]})).await;
    let deleted = administrator.token(json!({})).await;
    administrator.delete(&format!("enrollment-tokens/{}", deleted.id)).await;
    let machine = Machine::new();

    for (secret, reason) in [
        (None, "token"),
        (Some("assay_unknown"), "known"),
        (Some(other.secret.as_str()), "serial number"),
        (Some(deleted.secret.as_str()), ""),
    ] {
        let refused = machine
            .enroll(&api, secret)
            .await
            .expect_problem(ProblemKind::EnrollmentTokenInvalid);
        assert!(refused.detail().contains(reason), "{}", refused.detail());
    }
    assert_eq!(administrator.uses(&other).await, 0);
    let found = administrator
        .get(&format!("machines?q={}", machine.serial_number()))
        .await;
    assert_eq!(found["items"], json!([]));
}

#[tokio::test]
async fn a_token_bound_to_the_serial_number_makes_a_machine_verified() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = Machine::new();
    let token = administrator
        .token(json!({"serial_numbers": [machine.serial_number()]}))
        .await;
    let enrolled = machine.enroll(&api, Some(&token.secret)).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "verified");
    let asserted = administrator.enrolled(&api).await;
    assert_eq!(administrator.machine(asserted.id()).await["assurance"], "asserted");
}

#[tokio::test]
async fn a_machine_that_needs_approval_waits_until_an_administrator_decides() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(1), installation.administrator());
    let token = administrator.token(json!({"approval": "manual", "max_uses": 2})).await;
    let (approved, denied) = (Machine::new(), Machine::new());

    for machine in [&approved, &denied] {
        let pending = machine.enroll(&api, Some(&token.secret)).await.expect(202);
        assert_eq!(pending.json()["status"], "pending");
        assert_eq!(pending.retry_after(), pending.json()["retry_after_seconds"].as_u64());
        assert!(pending.retry_after().is_some());
        let again = machine.enroll(&api, Some(&token.secret)).await.expect(202).json();
        assert_eq!(again["enrollment_id"], pending.json()["enrollment_id"]);
        assert_eq!(again["machine_id"], pending.json()["machine_id"]);
        let _refused = machine.check_in(&api).await.expect_problem(ProblemKind::MachinePending);
        let record = administrator.machine(machine.id()).await;
        assert_eq!(
            (&record["status"], &record["enrolled_at"]),
            (&json!("pending"), &Value::Null)
        );
    }

    let _approved = administrator
        .decide(approved.id(), "approve", "seen in the office")
        .await
        .expect(200);
    let enrolled = approved.enroll(&api, Some(&token.secret)).await.expect(201).json();
    assert_eq!(text(&enrolled, "machine_id"), approved.id().to_string());
    assert_eq!(enrolled["assurance"], "verified");
    let _repeated = approved.enroll(&api, None).await.expect(200);
    let _checked_in = approved.check_in(&api).await.expect(200);
    assert!(administrator.machine(approved.id()).await["enrolled_at"].is_string());

    let _denied = administrator
        .decide(denied.id(), "deny", "nobody knows it")
        .await
        .expect(200);
    for answer in [
        denied.enroll(&api, Some(&token.secret)).await,
        denied.check_in(&api).await,
    ] {
        let refused = answer.expect_problem(ProblemKind::EnrollmentDenied);
        assert!(refused.detail().contains("nobody knows it"), "{}", refused.detail());
    }
    assert_eq!(administrator.uses(&token).await, 2);
}
