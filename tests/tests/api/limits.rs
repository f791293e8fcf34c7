//! How often a machine, an address and an API key may call.

use std::time::Instant;

use assay_protocol::ProblemKind;
use assay_protocol::evidence::Purpose;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::{Duration, timeout};

/// Calls until the rate limit refuses, compares the number of earlier calls with the limit, and returns the refusal.
pub(super) async fn call_until_refused(per_minute: u32, mut call: impl AsyncFnMut() -> Answer) -> Answer {
    let begun = Instant::now();
    for before in 0..1000 {
        let answer = call().await;
        if answer.status == 429 {
            // Tokens refill while the calls run: one for each part of a minute. One part may have begun before the
            // first call, because the enrollment was charged, too.
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

/// By default: 60 a minute. Another machine at the same address calls as before.
#[tokio::test]
async fn the_sixty_first_call_of_a_machine_in_a_minute_is_refused() {
    let server = InProcess::start().await;
    let machine = server.enrolled("BUSY").await;
    let mut nonce = server.nonce().await;
    let refused = call_until_refused(60, async || {
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

/// The refused call does not use its nonce. The machine repeats the call, which counts once.
#[tokio::test]
async fn a_rate_limited_call_changes_nothing() {
    let server = InProcess::start_with(&[("rate_limit.machine_per_minute", "2")]).await;
    let machine = server.enrolled("REFUSED").await;
    for _ in 0..2 {
        assert_eq!(machine.check_in(&server).await.status, 200);
    }
    let before = server.get(&machine.path()).await.json();
    server.clock().advance(time::Duration::seconds(1));
    let refused = machine.check_in(&server).await;
    assert_eq!(refused.kind(), ProblemKind::RateLimited, "{refused}");
    assert!(refused.retry_after().unwrap() <= 31, "{refused}");
    assert_eq!(server.get(&machine.path()).await.json(), before);
    server.stop().await;
}

/// New keys for one serial number do not evade the limit of one machine.
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

/// Calls without a valid credential are limited by address. This limits guessing of tokens, keys and nonces.
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

/// All machines of an office have one address. They must not limit each other.
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

/// A machine's evidence as a stranger can write it, who knows the machine's id and thumbprint and not its key.
fn forged(machine: &Machine, server: &InProcess, nonce: &str) -> Value {
    let claims = machine.claims(server.audience(), Purpose::CheckIn, nonce);
    let (genuine, foreign) = (machine.sign(&claims), Machine::new().sign(&claims));
    let (content, signature) = (genuine.rsplit_once('.').unwrap().0, foreign.rsplit_once('.').unwrap().1);
    json!({"evidence": format!("{content}.{signature}")})
}

/// Guesses API keys until the address is over its limit.
async fn exhaust_address(server: &InProcess) {
    for _ in 0..1000 {
        let request = server.request(Method::GET, "/v1/admin/machines");
        if server.send(request.bearer_auth("assay_key_guessed")).await.status == 429 {
            return;
        }
    }
    panic!("a thousand guesses were not too many");
}

#[tokio::test]
async fn guesses_from_an_address_over_its_limit_reach_no_table() {
    let server = InProcess::start_with(&[("rate_limit.address_per_minute", "3")]).await;
    exhaust_address(&server).await;
    // With these locks, a look-up waits until the call's time is up, and the answer is another.
    let pool = server.database().pool().await;
    let mut tables = pool.begin().await.unwrap();
    let lock = "LOCK TABLE api_keys, enrollment_tokens, machine_keys, machine_presence IN ACCESS EXCLUSIVE MODE";
    sqlx::query(lock).execute(&mut *tables).await.unwrap();
    let guess = server.request(Method::GET, "/v1/admin/machines");
    let guess = server.send(guess.bearer_auth("assay_key_guessed")).await;
    assert_eq!(guess.kind(), ProblemKind::RateLimited, "{guess}");
    let stranger = Machine::new();
    let made_up = stranger.enroll(&server, Some("assay_enroll_guessed")).await;
    assert_eq!(made_up.kind(), ProblemKind::RateLimited, "{made_up}");
    assert!(!made_up.nonce().is_empty());
    tables.rollback().await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_call_that_its_caller_cancels_stays_charged() {
    let server = InProcess::start_with(&[("rate_limit.address_per_minute", "3")]).await;
    let nonce = server.nonce().await;
    let pool = server.database().pool().await;
    let mut tables = pool.begin().await.unwrap();
    let lock = sqlx::query("LOCK TABLE enrollment_tokens IN ACCESS EXCLUSIVE MODE");
    lock.execute(&mut *tables).await.unwrap();
    let stranger = Machine::new();
    let cancelled = (0..2).map(|_| {
        let enrollment = stranger.enrollment(&server, Some("assay_enroll_guessed"), &nonce);
        timeout(Duration::from_secs(1), enrollment.send())
    });
    for call in join_all(cancelled).await {
        assert!(call.is_err(), "a call was answered while the table was locked");
    }
    tables.rollback().await.unwrap();
    let next = server.send(server.request(Method::GET, "/v1/nonce")).await;
    assert_eq!(next.kind(), ProblemKind::RateLimited, "{next}");
    server.stop().await;
}

/// After a power cut: the server is new and has no key in memory, and a laptop floods it from the office's address.
#[tokio::test]
async fn one_computer_does_not_stop_the_machines_of_its_office() {
    let unlimited = [
        ("rate_limit.machine_per_minute", "0"),
        ("rate_limit.address_per_minute", "0"),
    ];
    let first = InProcess::start_with(&unlimited).await;
    let token = first.enrollment_token(json!({})).await;
    let machines: Vec<_> = (0..100).map(|_| Machine::new()).collect();
    for machine in &machines {
        let _enrolled = machine.enroll(&first, Some(&token)).await.expect(201);
    }
    let settings = [("rate_limit.address_per_minute", "3")];
    let server = InProcess::start_by(first.clock().clone(), &first.database().url(), &settings).await;
    exhaust_address(&server).await;
    let flood = async {
        loop {
            let nonce = server.nonce().await;
            let strangers = (0..20).map(async |_| {
                let stranger = Machine::new();
                let body = stranger.check_in_body(server.audience(), &nonce);
                let made_up = server.call("/v1/check-in", &body).await;
                assert_ne!(made_up.status, 200, "{made_up}");
                let forged = server
                    .call("/v1/check-in", &forged(&machines[0], &server, &nonce))
                    .await;
                assert_ne!(forged.status, 200, "{forged}");
            });
            join_all(strangers).await;
        }
    };
    let office = async {
        for group in machines.chunks(20) {
            join_all(group.iter().map(async |machine| {
                // The nonce comes with a refusal, as the address is over its limit.
                let _checked_in = machine.check_in(&server).await.expect(200);
                let _renewed = machine.renew(&server).await.expect(200);
            }))
            .await;
        }
    };
    tokio::select! {
        () = flood => {}
        () = office => {}
    }
    server.stop().await;
    first.stop().await;
}

#[tokio::test]
async fn a_stranger_who_knows_a_machines_id_and_thumbprint_cannot_use_up_its_limit() {
    let server = InProcess::start_with(&[("rate_limit.machine_per_minute", "3")]).await;
    let machine = server.enrolled("KNOWN").await;
    let nonce = server.nonce().await;
    for _ in 0..20 {
        let refused = server.call("/v1/check-in", &forged(&machine, &server, &nonce)).await;
        assert_eq!(refused.kind(), ProblemKind::BadEvidence, "{refused}");
    }
    for _ in 0..3 {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    server.stop().await;
}

/// The limit is the machine's, not its key's.
#[tokio::test]
async fn a_machine_does_not_call_more_often_by_replacing_its_key() {
    let server = InProcess::start_with(&[("rate_limit.machine_per_minute", "4")]).await;
    let mut current = server.enrolled("ROTATING").await;
    let mut is_next = false;
    let refused = call_until_refused(4, async || {
        is_next = !is_next;
        if !is_next {
            return current.check_in(&server).await;
        }
        let next = current.with_next_key();
        let answer = current.rotate_to(&server, &next).await;
        if answer.status == 200 {
            current = next;
        }
        answer
    })
    .await;
    assert_eq!(refused.kind(), ProblemKind::RateLimited);
    server.stop().await;
}

/// A stranger's key that waits for a record is not its machine's key.
#[tokio::test]
async fn a_key_that_waits_for_a_record_does_not_use_up_its_machines_limit() {
    let settings = [
        ("rate_limit.machine_per_minute", "5"),
        ("enrollment.without_token", "pending"),
    ];
    let server = InProcess::start_with(&settings).await;
    let machine = server.enrolled("WAITED-FOR").await;
    for _ in 0..3 {
        let stranger = machine.erased();
        for _ in 0..4 {
            let _waits = stranger.enroll(&server, None).await.expect(202);
        }
    }
    let _checked_in = machine.check_in(&server).await.expect(200);
    server.stop().await;
}
