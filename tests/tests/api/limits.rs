//! How often a machine, an address and an API key may call.

use std::time::Instant;

use assay_protocol::ProblemKind;
use assay_protocol::evidence::Purpose;
use assay_tests::answer::Answer;
use assay_tests::cluster::Database;
use assay_tests::in_process::{InProcess, PUBLIC_URL};
use assay_tests::load::record::put_on_record;
use assay_tests::machine::{Machine, id_on_record};
use futures_util::future::{join_all, try_join_all};
use reqwest::{Client, Method, StatusCode};
use rstest::rstest;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::{Duration, timeout};
use uuid::Uuid;

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

/// Each network that is over its limit may have one key looked up six times a minute.
#[tokio::test]
async fn a_made_up_key_of_an_address_over_its_limit_is_soon_refused_without_a_look_up() {
    let server = InProcess::start_with(&[("rate_limit.address_per_minute", "3")]).await;
    exhaust_address(&server).await;
    let (stranger, other) = (Machine::new(), Machine::new());
    for key in [&stranger, &other] {
        key.set_id(Uuid::new_v4());
    }
    let begun = Instant::now();
    let mut looked_up = 0;
    for _ in 0..100 {
        let refused = stranger.check_in(&server).await;
        let _refused = refused.expect_problem(ProblemKind::RateLimited);
        let before = std::mem::replace(&mut looked_up, look_ups(&server).await);
        if looked_up == before {
            break;
        }
    }
    // One more is allowed each ten seconds.
    let most = 6 + begun.elapsed().as_secs() / 10;
    assert!((6..=most).contains(&looked_up), "{looked_up} look-ups, at most {most}");
    // Another key at the same address is looked up.
    let _refused = other.check_in(&server).await.expect_problem(ProblemKind::RateLimited);
    assert_eq!(look_ups(&server).await, looked_up + 1);
    server.stop().await;
}

/// How many keys were looked up and not found.
async fn look_ups(server: &InProcess) -> u64 {
    let metrics = server.metrics().await;
    let mut lines = metrics.lines();
    let figure = lines.find_map(|line| line.strip_prefix("assay_key_reader_keys_total{result=\"missing\"} "));
    figure.map_or(0, |figure| figure.parse().unwrap())
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

/// A stranger who knows a serial number can have a key on record that waits for it, or was denied.
#[rstest]
#[tokio::test]
async fn a_key_that_waits_or_was_denied_does_not_use_up_its_machines_limit(#[values(false, true)] is_denied: bool) {
    let settings = [
        ("rate_limit.machine_per_minute", "5"),
        ("enrollment.without_token", "pending"),
    ];
    let server = InProcess::start_with(&settings).await;
    let machine = server.enrolled("SHARED").await;
    let stranger = machine.erased();
    let waits = stranger.enroll(&server, None).await.expect(202).json();
    stranger.set_id(machine.id());
    let mut refusal = ProblemKind::MachinePending;
    if is_denied {
        let path = format!(
            "/v1/admin/enrollments/{}/deny",
            waits["enrollment_id"].as_str().unwrap()
        );
        let _denied = server.post(&path, &json!({"reason": "unknown"})).await.expect(200);
        refusal = ProblemKind::EnrollmentDenied;
    }
    // The enrollment was the stranger's first call.
    for _ in 0..2 {
        let _refused = stranger.check_in(&server).await.expect_problem(refusal);
        let _refused = stranger.renew(&server).await.expect_problem(refusal);
    }
    let refused = call_until_limited(async || stranger.check_in(&server).await).await;
    assert_eq!(refused.kind(), ProblemKind::RateLimited, "{refused}");
    for _ in 0..5 {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    server.stop().await;
}

/// Calls until the answer is 429. A part of the limit may be refilled meanwhile.
async fn call_until_limited(mut call: impl AsyncFnMut() -> Answer) -> Answer {
    for _ in 0..100 {
        let answer = call().await;
        if answer.status == 429 {
            return answer;
        }
    }
    panic!("a hundred calls were not too many");
}

/// The server has the old key in memory from the time when it was the machine's.
/// A call of a key that the server remembers as the machine's.
#[derive(Clone, Copy, Debug)]
enum Misuse {
    CheckIn,
    Renewal,
    OfAnotherMachine,
    WithAnotherCsr,
}

impl Misuse {
    async fn call(self, key: &Machine, server: &InProcess) {
        let nonce = server.nonce().await;
        let refused = match self {
            Self::CheckIn => key.check_in(server).await,
            Self::Renewal => key.renew(server).await,
            Self::OfAnotherMachine => {
                let mut claims = key.claims(server.audience(), Purpose::CheckIn, &nonce);
                claims.sub = Some(Uuid::new_v4());
                let body = json!({"evidence": key.sign(&claims)});
                server.call("/v1/check-in", &body).await
            }
            Self::WithAnotherCsr => {
                let mut body = key.renew_body(server.audience(), &key.csr(), &nonce);
                body["csr"] = json!(Machine::new().csr());
                server.call("/v1/renew", &body).await
            }
        };
        assert!(matches!(refused.status, 400..=404), "{refused}");
    }
}

/// How a key ended that a server remembers as the machine's.
#[derive(Clone, Copy, Debug)]
enum End {
    Superseded,
    Denied,
}

#[rstest]
#[tokio::test]
async fn a_key_that_ended_does_not_use_up_its_machines_limit(
    #[values(End::Superseded, End::Denied)] end: End,
    #[values(Misuse::CheckIn, Misuse::Renewal, Misuse::OfAnotherMachine, Misuse::WithAnotherCsr)] misuse: Misuse,
) {
    let server = InProcess::start_with(&[("rate_limit.machine_per_minute", "12")]).await;
    let machine = server.enrolled("ENDED").await;
    let _cached = machine.check_in(&server).await.expect(200);
    let next = machine.with_next_key();
    let _begun = machine.rotate_to(&server, &next).await.expect(200);
    let (ended, current) = match end {
        End::Superseded => {
            let _replaces = next.check_in(&server).await.expect(200);
            (machine, next)
        }
        End::Denied => {
            let _cached = next.renew(&server).await.expect(200);
            let another = machine.with_next_key();
            let _replaces = machine.rotate_to(&server, &another).await.expect(200);
            (next, machine)
        }
    };
    // The first one is charged to the machine.
    for _ in 0..10 {
        misuse.call(&ended, &server).await;
    }
    for _ in 0..5 {
        let _checked_in = current.check_in(&server).await.expect(200);
    }
    server.stop().await;
}

/// The key's own limit is met before the token is looked at, so such a refusal proves nothing.
#[tokio::test]
async fn a_refusal_before_the_proof_stays_charged_to_the_address() {
    let settings = [
        ("rate_limit.machine_per_minute", "1"),
        ("rate_limit.address_per_minute", "4"),
    ];
    let server = InProcess::start_with(&settings).await;
    let stranger = Machine::new();
    // The nonce serves several calls, as none of them is accepted. Fetching another one would be charged, too.
    let nonce = server.nonce().await;
    for problem in [
        ProblemKind::EnrollmentTokenInvalid,
        ProblemKind::RateLimited,
        ProblemKind::RateLimited,
    ] {
        let call = stranger.enrollment(&server, Some("assay_enroll_guessed"), &nonce);
        let _refused = Answer::to(call).await.expect_problem(problem);
    }
    let next = server.send(server.request(Method::GET, "/v1/nonce")).await;
    assert_eq!(next.kind(), ProblemKind::RateLimited, "{next}");
    server.stop().await;
}

#[tokio::test]
async fn a_waiting_key_over_its_limit_is_charged_to_its_address() {
    let settings = [
        ("rate_limit.machine_per_minute", "1"),
        ("rate_limit.address_per_minute", "4"),
        ("enrollment.without_token", "pending"),
    ];
    let server = InProcess::start_with(&settings).await;
    let stranger = Machine::with_serial_number("WAITS");
    let _waits = stranger.enroll(&server, None).await.expect(202);
    // With the two calls of the enrollment, and the nonce, this is the fourth.
    let call = stranger.check_in_with(&server, &server.nonce().await);
    let _refused = Answer::to(call).await.expect_problem(ProblemKind::RateLimited);
    let next = server.send(server.request(Method::GET, "/v1/nonce")).await;
    assert_eq!(next.kind(), ProblemKind::RateLimited, "{next}");
    server.stop().await;
}

/// One twentieth of an office of 2,000 Macs, of 4,000 silent connections, and of the default limits. The answers depend
/// on the ratio of the office to the limits: what an address may call is used up either way, and the silent connections
/// and the office exceed the limit of connections.
const OFFICE: u64 = 2000 / 20;
const SILENT: usize = 4000 / 20;
const OFFICE_LIMITS: [(&str, &str); 2] = [
    ("rate_limit.address_per_minute", "300"),
    ("rate_limit.connections_per_address", "250"),
];

/// How often a Mac connects before the test gives up.
const MOST_CONNECTIONS: u32 = 10;

/// After a power cut, all Macs of an office reconnect at once, each on a connection of its own, to a server that has no
/// key in memory. A laptop at the same address keeps connections open, guesses keys and forges evidence meanwhile.
#[tokio::test]
async fn one_laptop_does_not_stop_its_office_after_a_power_cut() {
    let database = Database::create().await;
    put_on_record(&database.connect_options(), "office", OFFICE).await;
    let server = InProcess::start_on(&database.url(), &OFFICE_LIMITS).await;
    let office: Vec<Machine> = (0..OFFICE)
        .map(|number| {
            let machine = Machine::of_fleet("office", number);
            machine.set_id(id_on_record("office", number));
            machine
        })
        .collect();
    exhaust_address(&server).await;
    let silent = (0..SILENT).map(|_| TcpStream::connect(server.address()));
    let _silent = try_join_all(silent).await.unwrap();
    let statuses = tokio::select! {
        () = fail_without_end(&server, &office[0]) => unreachable!(),
        statuses = join_all(office.iter().map(|machine| reconnect(&server, machine))) => statuses,
    };
    assert_eq!(statuses, vec![StatusCode::OK; office.len()]);
    server.stop().await;
}

/// Gets a nonce on a connection of its own. The address is over its limit: the nonce comes with the refusal. `None` if
/// the server ends the connection to make room for another.
async fn nonce_on(client: &Client) -> Option<String> {
    let answer = client.get(format!("{PUBLIC_URL}/v1/nonce")).send().await.ok()?;
    Some(answer.headers()["replay-nonce"].to_str().unwrap().to_owned())
}

/// A laptop that fails: it guesses keys, and signs for a machine of which it knows the id and the thumbprint. When the
/// server ends its connection, it opens another one.
async fn fail_without_end(server: &InProcess, known: &Machine) {
    loop {
        let client = server.http1_client();
        let Some(nonce) = nonce_on(&client).await else { continue };
        let failures = (0..20).map(async |_| {
            let stranger = Machine::new();
            stranger.set_id(known.id());
            let made_up = stranger.check_in_body(server.audience(), &nonce);
            for body in [made_up, forged(known, server, &nonce)] {
                let call = client.post(format!("{PUBLIC_URL}/v1/check-in")).json(&body);
                if let Ok(answer) = call.send().await {
                    assert!(answer.status().as_u16() >= 400, "{answer:?}");
                }
            }
        });
        join_all(failures).await;
    }
}

/// Checks in on a new connection, and returns the status. As the agent does, it connects again when the server ends the
/// connection or is busy. A limit ends the attempts.
async fn reconnect(server: &InProcess, machine: &Machine) -> StatusCode {
    for _ in 0..MOST_CONNECTIONS {
        let client = server.http1_client();
        let Some(nonce) = nonce_on(&client).await else { continue };
        let body = machine.check_in_body(server.audience(), &nonce);
        match client
            .post(format!("{PUBLIC_URL}/v1/check-in"))
            .json(&body)
            .send()
            .await
        {
            Ok(answer) if answer.status() != StatusCode::SERVICE_UNAVAILABLE => return answer.status(),
            _ => {}
        }
    }
    panic!("{MOST_CONNECTIONS} connections failed");
}
