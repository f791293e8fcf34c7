//! How often a machine, an address and an API key may call.

use std::time::Instant;

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use reqwest::Method;
use serde_json::json;

/// Calls until the first refusal for the rate, holds the number of calls before it against the limit, and returns the
/// refusal.
pub(super) async fn call_until_refused(per_minute: u32, mut call: impl AsyncFnMut() -> Answer) -> Answer {
    let begun = Instant::now();
    for before in 0..1000 {
        let answer = call().await;
        if answer.status == 429 {
            // More are let through while the calls go on, one for each so-many-th part of a minute; and one that such
            // a part was begun for before the first call, by the enrollment.
            let more = begun.elapsed().as_secs_f64() * f64::from(per_minute) / 60.0 + 1.0;
            let most = f64::from(per_minute) + more;
            assert!(
                before >= per_minute && f64::from(before) <= most,
                "{before} of {most} calls"
            );
            return answer;
        }
    }
    panic!("a thousand calls were not too many");
}

/// By default: 60 a minute, the enrollment among them. Another machine at the same address calls as before.
#[tokio::test]
async fn the_sixty_first_call_of_a_machine_in_a_minute_is_refused() {
    let server = InProcess::start().await;
    let machine = server.enrolled("BUSY").await;
    let mut nonce = server.nonce().await;
    // The enrollment was the first.
    let refused = call_until_refused(59, async || {
        let answer = Answer::to(machine.check_in_with(&server, &nonce)).await;
        assert!(matches!(answer.status, 200 | 429), "{answer}");
        answer.nonce().clone_into(&mut nonce);
        answer
    })
    .await;
    assert!((1..=2).contains(&refused.retry_after().unwrap()), "{refused}");
    let other = server.enrolled("QUIET").await;
    assert_eq!(other.check_in(&server).await.status, 200);
    server.stop().await;
}

/// The nonce of the refused call was not used up: the machine repeats the call, and it is counted once.
#[tokio::test]
async fn a_rate_limited_call_changes_nothing() {
    let server = InProcess::start_with(&[("rate_limit.machine_per_minute", "2")]).await;
    let machine = server.enrolled("REFUSED").await;
    assert_eq!(machine.check_in(&server).await.status, 200);
    let before = server.get(&machine.path()).await.json();
    server.clock().advance(time::Duration::seconds(1));
    let refused = machine.check_in(&server).await;
    assert_eq!(refused.kind(), ProblemKind::RateLimited, "{refused}");
    assert!(refused.retry_after().unwrap() <= 31, "{refused}");
    assert_eq!(server.get(&machine.path()).await.json(), before);
    server.stop().await;
}

/// New keys for one serial number do not get around the limit of one machine.
#[tokio::test]
async fn a_serial_number_is_limited_across_its_keys() {
    let server = InProcess::start_with(&[("rate_limit.machine_per_minute", "5")]).await;
    let token = server.enrollment_token(json!({})).await;
    call_until_refused(5, async || {
        Machine::with_serial_number("ONE").enroll(&server, Some(&token)).await
    })
    .await;
    let other = Machine::with_serial_number("OTHER");
    assert!(other.enroll(&server, Some(&token)).await.status < 300);
    server.stop().await;
}

/// Who proves nothing is known by the address alone: guessing tokens, keys and nonces is what it limits.
#[tokio::test]
async fn calls_without_a_known_credential_are_limited_by_address() {
    let setting = [("rate_limit.address_per_minute", "20")];
    let stranger = Machine::with_serial_number("STRANGER");
    let server = InProcess::start_with(&setting).await;
    call_until_refused(20, async || server.send(server.request(Method::GET, "/v1/nonce")).await).await;
    server.stop().await;

    let server = InProcess::start_with(&setting).await;
    let body = stranger.enroll_body(server.audience(), Some("assay_enroll_guessed"), "a guessed nonce");
    call_until_refused(20, async || server.call("/v1/enroll", &body).await).await;
    server.stop().await;

    let server = InProcess::start_with(&setting).await;
    call_until_refused(20, async || {
        let request = server.request(Method::GET, "/v1/admin/machines");
        server.send(request.bearer_auth("assay_key_guessed")).await
    })
    .await;
    server.stop().await;
}

/// An office is one address: its machines are not in each other's way.
#[tokio::test]
async fn an_authenticated_machine_is_not_limited_by_address() {
    let server = InProcess::start_with(&[("rate_limit.address_per_minute", "5")]).await;
    let machine = server.enrolled("PROVEN").await;
    let mut nonce = server.nonce().await;
    for _ in 0..20 {
        let answer = Answer::to(machine.check_in_with(&server, &nonce)).await;
        answer.expect(200).nonce().clone_into(&mut nonce);
    }
    server.stop().await;
}

#[tokio::test]
async fn zero_is_no_limit() {
    let settings = [
        ("rate_limit.machine_per_minute", "0"),
        ("rate_limit.address_per_minute", "0"),
        ("rate_limit.api_key_per_minute", "0"),
    ];
    let server = InProcess::start_with(&settings).await;
    let machine = server.enrolled("UNLIMITED").await;
    for _ in 0..100 {
        assert_eq!(machine.check_in(&server).await.status, 200);
        assert_eq!(server.get("/v1/admin/permissions").await.status, 200);
    }
    server.stop().await;
}

#[tokio::test]
async fn each_api_key_has_a_limit_of_its_own() {
    let server = InProcess::start_with(&[("rate_limit.api_key_per_minute", "7")]).await;
    call_until_refused(7, async || server.get("/v1/admin/permissions").await).await;
    let viewer = server.api_key(assay_protocol::admin_api::api_keys::Role::Viewer);
    let request = server.request(Method::GET, "/v1/admin/permissions").bearer_auth(viewer);
    assert_eq!(server.send(request).await.status, 200);
    server.stop().await;
}
