//! Machines' certificates in TLS: a presented certificate must be valid, and must belong to the caller.

use assay_protocol::ProblemKind;
use assay_tests::administrator::text;
use assay_tests::answer::Answer;
use assay_tests::api::Called;
use assay_tests::in_process::{Connections, InProcess};
use assay_tests::machine::Machine;
use http::Method;
use serde_json::json;
use time::Duration;

const ALL: [Connections; 4] = [
    Connections::Kept,
    Connections::KeptTls12,
    Connections::Resumed,
    Connections::ResumedTls12,
];

/// A machine and the chain of its certificate.
async fn enrolled(server: &InProcess, serial_number: &str) -> (Machine, String) {
    let token = server.enrollment_token(json!({})).await;
    let machine = Machine::with_serial_number(serial_number);
    let enrolled = machine.enroll(server, Some(&token)).await.expect(201).json();
    (machine, text(&enrolled["certificate"], "chain"))
}

#[track_caller]
fn refuses(answer: Answer, why: &str) {
    let answer = answer.expect_problem(ProblemKind::BadEvidence);
    let detail = text(&answer.json(), "detail");
    assert!(detail.contains(why), "{why:?} is not why: {detail}");
}

/// Checks that the handshake fails. Opens a new connection for that.
async fn expect_no_handshake(server: &InProcess, machine: &Machine, chain: &str) {
    let stranger = server.presenting(chain, machine, Connections::Resumed);
    let refused = Answer::or_error(stranger.api().request(Method::GET, "/v1/nonce")).await;
    let error = refused.expect_err("the handshake succeeded");
    assert!(!error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn a_client_certificate_is_accepted_and_not_required() {
    let server = InProcess::start().await;
    let (machine, chain) = enrolled(&server, "C02ONE").await;
    let own = server.presenting(&chain, &machine, Connections::Kept);
    let _with = machine.check_in(&own).await.expect(200);
    let _without = machine.check_in(&server).await.expect(200);
    let renewed = machine.renew(&own).await.expect(200).json();
    // Until it expires, the older certificate is valid beside the new one.
    let _older = machine.check_in(&own).await.expect(200);
    let new = server.presenting(&text(&renewed["certificate"], "chain"), &machine, Connections::Kept);
    let _newer = machine.check_in(&new).await.expect(200);
    // The server knows the issuer, so the chain may be left out.
    let leaf = chain.split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
    let _leaf_alone = machine
        .check_in(&server.presenting(leaf, &machine, Connections::Kept))
        .await
        .expect(200);
}

#[tokio::test]
async fn where_a_client_certificate_is_required_check_in_and_renew_are_refused_without_one() {
    let server = InProcess::start_with(&[("tls.client_certificates", "required")]).await;
    let (machine, chain) = enrolled(&server, "C02ONE").await;
    refuses(machine.check_in(&server).await, "none was presented");
    refuses(machine.renew(&server).await, "none was presented");
    let own = server.presenting(&chain, &machine, Connections::Kept);
    let _checked_in = machine.check_in(&own).await.expect(200);
    let _renewed = machine.renew(&own).await.expect(200);
    // Administrators and enrollments need no certificate.
    let _enrolled_again = machine.enroll(&server, None).await.expect(200);
    let _read = server.get("/v1/admin/machines").await.expect(200);
}

#[tokio::test]
async fn a_client_certificate_for_another_key_than_the_evidences_is_refused() {
    let server = InProcess::start().await;
    let (one, chain_of_one) = enrolled(&server, "C02ONE").await;
    let (two, _) = enrolled(&server, "C02TWO").await;
    let as_one = server.presenting(&chain_of_one, &one, Connections::Kept);
    refuses(two.check_in(&as_one).await, "another key");
    refuses(two.renew(&as_one).await, "another key");
    let new = Machine::with_serial_number("C02NEW");
    let token = server.enrollment_token(json!({})).await;
    refuses(new.enroll(&as_one, Some(&token)).await, "another key");
    let _checked_in = one.check_in(&as_one).await.expect(200);
    // The private key does not match. A copied certificate alone is useless.
    expect_no_handshake(&server, &two, &chain_of_one).await;
}

#[tokio::test]
async fn a_client_certificate_of_another_authority_fails_the_handshake() {
    let (server, other) = tokio::join!(InProcess::start(), InProcess::start());
    let (machine, _) = enrolled(&server, "C02ONE").await;
    let token = other.enrollment_token(json!({})).await;
    let enrolled = machine.enroll(&other, Some(&token)).await.expect(201).json();
    // The same key and the same name: only the issuer differs.
    let foreign = text(&enrolled["certificate"], "chain");
    expect_no_handshake(&server, &machine, &foreign).await;
}

#[tokio::test]
async fn an_expired_client_certificate_is_refused_on_open_resumed_and_new_connections() {
    let server = InProcess::start_with(&[("certificates.ttl", "1h")]).await;
    let (machine, chain) = enrolled(&server, "C02ONE").await;
    let connections = ALL.map(|connections| server.presenting(&chain, &machine, connections));
    for connection in &connections {
        let _checked_in = machine.check_in(connection).await.expect(200);
    }
    server.clock().advance(Duration::minutes(59));
    for connection in &connections {
        let _still = machine.check_in(connection).await.expect(200);
    }
    server.clock().advance(Duration::seconds(61));
    for connection in &connections {
        refuses(machine.check_in(connection).await, "valid from");
        refuses(machine.renew(connection).await, "valid from");
    }
    expect_no_handshake(&server, &machine, &chain).await;
    // The key can still renew within its grace, without a certificate in TLS.
    let _renewed = machine.renew(&server).await.expect(200);
}

#[tokio::test]
async fn a_revoked_client_certificate_is_refused_at_once_on_every_connection() {
    let server = InProcess::start().await;
    let (machine, chain) = enrolled(&server, "C02ONE").await;
    let connections = ALL.map(|connections| server.presenting(&chain, &machine, connections));
    for connection in &connections {
        let _checked_in = machine.check_in(connection).await.expect(200);
    }
    server.database().revoke_certificates_of(machine.id()).await;
    for connection in &connections {
        refuses(machine.check_in(connection).await, "revoked");
        refuses(machine.renew(connection).await, "revoked");
        refuses(machine.enroll(connection, None).await, "revoked");
    }
    let again = server.presenting(&chain, &machine, Connections::Kept);
    refuses(machine.check_in(&again).await, "revoked");
    // The machine is not revoked, so its key gets a new certificate.
    let renewed = machine.renew(&server).await.expect(200).json();
    let new = server.presenting(&text(&renewed["certificate"], "chain"), &machine, Connections::Kept);
    let _checked_in = machine.check_in(&new).await.expect(200);
    refuses(machine.check_in(&connections[0]).await, "revoked");
}

#[tokio::test]
async fn a_revoked_machine_is_refused_as_revoked_whatever_it_presents() {
    let server = InProcess::start().await;
    let (machine, chain) = enrolled(&server, "C02ONE").await;
    let own = server.presenting(&chain, &machine, Connections::Kept);
    let _checked_in = machine.check_in(&own).await.expect(200);
    let path = format!("{}/revoke", machine.path());
    let _revoked = server.post(&path, &json!({"reason": "lost"})).await.expect(200);
    let _refused = machine.check_in(&own).await.expect_problem(ProblemKind::MachineRevoked);
}

#[tokio::test]
async fn where_client_certificates_are_off_none_is_requested() {
    let server = InProcess::start_with(&[("tls.client_certificates", "off")]).await;
    let (one, chain_of_one) = enrolled(&server, "C02ONE").await;
    let (two, _) = enrolled(&server, "C02TWO").await;
    // It would be refused if the server had seen it.
    let _unseen = two
        .check_in(&server.presenting(&chain_of_one, &one, Connections::Kept))
        .await
        .expect(200);
}
