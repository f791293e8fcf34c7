//! Calls without a valid credential are limited by address, and do not count towards the limits of others.

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use reqwest::Method;
use serde_json::json;

use super::limits::call_until_refused;

const SETTINGS: [(&str, &str); 1] = [("rate_limit.address_per_minute", "10")];

#[tokio::test]
async fn calls_without_a_token_do_not_use_up_the_limit_of_a_serial_number() {
    let server = InProcess::start_with(&[("rate_limit.machine_per_minute", "5")]).await;
    for _ in 0..10 {
        let throw_away = Machine::with_serial_number("VICTIM");
        let _refused = throw_away
            .enroll(&server, Some("assay_enroll_guessed"))
            .await
            .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    }
    let _enrolled = server.enrolled("VICTIM").await;
    server.stop().await;
}

#[tokio::test]
async fn public_endpoints_except_health_are_limited_by_address() {
    let server = InProcess::start_with(&SETTINGS).await;
    let read = async |path: &str| server.send(server.request(Method::GET, path)).await;
    let _refused = call_until_refused(10, async || read("/v1/ca/bundle.pem").await).await;
    for _ in 0..30 {
        let _alive = read("/healthz").await.expect(200);
        let _ready = read("/readyz").await.expect(200);
    }
    server.stop().await;

    // Requests for the health do not count towards other limits.
    let server = InProcess::start_with(&SETTINGS).await;
    for _ in 0..30 {
        let _alive = server.send(server.request(Method::GET, "/healthz")).await.expect(200);
    }
    let bundle = server.request(Method::GET, "/v1/ca/bundle.pem");
    let _bundle = server.send(bundle).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn unreadable_calls_are_limited_by_address_and_honest_machines_are_not() {
    let server = InProcess::start_with(&SETTINGS).await;
    let machine = server.enrolled("HONEST").await;
    let nonce = server.nonce().await;
    // The nonces for the enrollment and for the check-in were the first two calls.
    let unreadable = json!({"evidence": 7});
    let refused = call_until_refused(8, async || server.call("/v1/check-in", &unreadable).await).await;
    assert_eq!(refused.kind(), ProblemKind::RateLimited);
    let honest = Answer::to(machine.check_in_with(&server, &nonce)).await;
    let _checked_in = honest.expect(200);
    server.stop().await;
}
