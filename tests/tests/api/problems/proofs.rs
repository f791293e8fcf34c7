//! Problems of invalid proofs: CSRs, nonces, evidence and enrollment tokens.

use assay_protocol::Purpose;
use assay_tests::answer::Answer;
use assay_tests::in_process::{InProcess, PUBLIC_URL};
use assay_tests::machine::Machine;
use serde_json::json;
use time::Duration;

pub(super) async fn bad_csr(server: &InProcess) -> Vec<Answer> {
    let machine = server.enrolled("BAD-CSR").await;
    let mut answers = Vec::new();
    for (path, mut body) in [
        (
            "/v1/enroll",
            machine.enroll_body(server.audience(), None, &server.nonce().await),
        ),
        (
            "/v1/renew",
            machine.renew_body(server.audience(), &machine.csr(), &server.nonce().await),
        ),
    ] {
        body["csr"] = json!("not a request");
        answers.push(server.call(path, &body).await);
    }
    answers
}

/// Each response has a valid nonce, with which the machine's next call succeeds.
pub(super) async fn bad_nonce(server: &InProcess) -> Vec<Answer> {
    let machine = server.enrolled("BAD-NONCE").await;
    let old = server.nonce().await;
    let used = server.nonce().await;
    let body = machine.check_in_body(server.audience(), &used);
    assert_eq!(server.call("/v1/check-in", &body).await.status, 200);
    let repeated = server.call("/v1/check-in", &body).await;
    // Even if no time has passed since the used nonce was issued.
    let used = repeated.nonce();
    let _through = Answer::to(machine.check_in_with(server, used)).await.expect(200);
    let mut answers = vec![
        Answer::to(machine.check_in_with(server, &old)).await,
        Answer::to(machine.renewal(server, used)).await,
        Answer::to(machine.enrollment(server, None, used)).await,
    ];
    answers.push(repeated.clone());
    for forged in ["", "forged", &"A".repeat(54), &"A".repeat(5000)] {
        answers.push(Answer::to(machine.check_in_with(server, forged)).await);
    }
    let expired = server.nonce().await;
    server.clock().advance(Duration::seconds(301));
    answers.push(Answer::to(machine.check_in_with(server, &expired)).await);
    answers.push(Answer::to(machine.enrollment(server, None, &expired)).await);
    let last = answers.last().unwrap().nonce();
    let _through = Answer::to(machine.check_in_with(server, last)).await.expect(200);
    answers
}

pub(super) async fn bad_evidence(server: &InProcess) -> Vec<Answer> {
    let machine = server.enrolled("BAD-EVIDENCE").await;
    let other = server.enrolled("BAD-EVIDENCE-2").await;
    let mut answers = Vec::new();
    let mut relayed = machine.claims(server.audience(), Purpose::CheckIn, &server.nonce().await);
    relayed.aud = format!("{PUBLIC_URL}/");
    let mut others = machine.claims(server.audience(), Purpose::CheckIn, &server.nonce().await);
    others.sub = Some(other.id());
    let mut without_machine = machine.claims(server.audience(), Purpose::CheckIn, &server.nonce().await);
    without_machine.sub = None;
    let of_another_purpose = machine.claims(server.audience(), Purpose::Renew, &server.nonce().await);
    for claims in [relayed, others, without_machine, of_another_purpose] {
        let body = json!({"evidence": machine.sign(&claims)});
        answers.push(server.call("/v1/check-in", &body).await);
    }
    let nameless = answers.get(2).unwrap().detail();
    assert_eq!(nameless, "the evidence has no sub, the claim that names the machine");
    for garbage in ["", "a.b.c", &"A.".repeat(20_000)] {
        answers.push(server.call("/v1/check-in", &json!({"evidence": garbage})).await);
    }
    // Another CSR than the one that the evidence names.
    let mut swapped = machine.renew_body(server.audience(), &machine.csr(), &server.nonce().await);
    swapped["csr"] = json!(other.csr());
    answers.push(server.call("/v1/renew", &swapped).await);
    let mut signed_by_another = machine.enroll_body(server.audience(), None, &server.nonce().await);
    signed_by_another["csr"] = json!(other.csr());
    answers.push(server.call("/v1/enroll", &signed_by_another).await);
    answers
}

/// The `detail` says why the token is invalid.
pub(super) async fn enrollment_token_invalid(server: &InProcess) -> Vec<Answer> {
    let bound = server
        .enrollment_token(json!({"serial_numbers": ["TOKEN-OWNER"]}))
        .await;
    let used_up = server.enrollment_token(json!({"max_uses": 1})).await;
    let owner = Machine::with_serial_number("TOKEN-0");
    let _enrolled = owner.enroll(server, Some(&used_up)).await.expect(201);
    let revoked = server.create_enrollment_token(json!({})).await;
    let path = format!("/v1/admin/enrollment-tokens/{}", revoked["id"].as_str().unwrap());
    assert_eq!(server.delete(&path).await.status, 204);
    let expired = server.enrollment_token(json!({"expires_in_seconds": 5})).await;
    server.clock().advance(Duration::seconds(5));
    let mut answers = Vec::new();
    for (token, says) in [
        (None, "requires an enrollment token"),
        (Some("assay_enroll_nothing"), "unknown"),
        (Some(""), "unknown"),
        (Some(bound.as_str()), "another serial number"),
        (Some(used_up.as_str()), "used up"),
        (revoked["token"].as_str(), "revoked"),
        (Some(expired.as_str()), "expired"),
    ] {
        let answer = Machine::with_serial_number("TOKEN-1").enroll(server, token).await;
        assert!(answer.detail().contains(says), "{says}: {answer}");
        answers.push(answer);
    }
    answers
}
