//! Enrollments that wait for an administrator: without a token, overdue, and decided by two administrators at once.

use assay_protocol::ProblemKind;
use assay_tests::administrator::{Administrator, text};
use assay_tests::answer::Answer;
use assay_tests::api::{Api, Called};
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use futures_util::future::join_all;
use http::Method;
use rstest::rstest;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

const WITHOUT_TOKEN: (&str, &str) = ("enrollment.without_token", "pending");
const UNLIMITED: (&str, &str) = ("rate_limit.address_per_minute", "0");

/// How often the test looks for the effect of periodic work before it fails: far more often than the work needs.
const LOOKS: u32 = 100_000;

/// Two administrators at two replicas.
fn two(installation: &Installation) -> ([Api; 2], [Administrator; 2]) {
    let apis = [installation.api(0), installation.api(1)];
    let administrators = [0, 1].map(|at| Administrator::new(apis[at].clone(), &installation.api_key));
    (apis, administrators)
}

fn time_of(item: &Value, member: &str) -> OffsetDateTime {
    OffsetDateTime::parse(&text(item, member), &Rfc3339).unwrap()
}

async fn enrollment(server: &InProcess, pending: &Answer) -> Value {
    let id = text(&pending.json(), "enrollment_id");
    server
        .get(&format!("/v1/admin/enrollments/{id}"))
        .await
        .expect(200)
        .json()
}

async fn decide(server: &InProcess, enrollment: &Value, decision: &str) -> Answer {
    let path = format!("/v1/admin/enrollments/{}/{decision}", text(enrollment, "id"));
    server.post(&path, &json!({"reason": "seen"})).await
}

#[tokio::test]
async fn where_allowed_a_machine_without_a_token_waits_and_the_api_shows_its_claims() {
    let server = InProcess::start_with(&[WITHOUT_TOKEN]).await;
    let machine = Machine::with_serial_number("NO-TOKEN");
    let pending = machine.enroll(&server, None).await.expect(202);
    assert_eq!(pending.json()["machine_id"], machine.id().to_string());

    let waiting = enrollment(&server, &pending).await;
    assert_eq!(waiting["token_id"], Value::Null);
    assert_eq!(waiting["kind"], "enrollment");
    assert_eq!(waiting["serial_number"], "NO-TOKEN");
    assert_eq!(waiting["in_inventory"], false);
    assert_eq!(waiting["hardware_uuid"], "UUID-OF-NO-TOKEN");
    assert_eq!(waiting["model_identifier"], "Mac16,1");
    assert_eq!(
        time_of(&waiting, "expires_at") - time_of(&waiting, "requested_at"),
        Duration::days(7)
    );
    let listed = server.get("/v1/admin/enrollments?status=pending").await.json();
    assert_eq!(listed["items"], json!([waiting]));

    let approved = decide(&server, &waiting, "approve").await.expect(200).json();
    assert_eq!(
        (&approved["status"], &approved["expires_at"]),
        (&json!("approved"), &Value::Null)
    );
    let enrolled = machine.enroll(&server, None).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "verified");
    let record = server.get(&machine.path()).await.json();
    let reason = text(&record, "assurance_reason");
    assert!(reason.contains(&text(&waiting, "id")), "{reason}");
    let _checked_in = machine.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn strangers_without_a_token_neither_block_a_machine_nor_get_approved_with_it() {
    // Each serial number has two calls a minute. Calls of strangers must not count.
    let server = InProcess::start_with(&[WITHOUT_TOKEN, ("rate_limit.machine_per_minute", "2")]).await;
    for _ in 0..5 {
        let stranger = Machine::with_serial_number("WANTED");
        let _pending = stranger.enroll(&server, None).await.expect(202);
    }
    let machine = server.enrolled("WANTED").await;
    let _checked_in = machine.check_in(&server).await.expect(200);

    let erased = machine.erased();
    let honest = erased.enroll(&server, None).await.expect(202);
    assert_eq!(honest.json()["machine_id"], Value::Null);
    let stranger = machine.erased();
    let foreign = stranger.enroll(&server, None).await.expect(202);
    let by_machine = format!("{}/approve", machine.path());
    let refused = server
        .post(&by_machine, &json!({}))
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains("key_thumbprint"), "{refused}");
    let honest = enrollment(&server, &honest).await;
    let _approved = decide(&server, &honest, "approve").await.expect(200);
    let _enrolled = erased.enroll(&server, None).await.expect(201);
    assert_eq!(erased.id(), machine.id());
    assert_eq!(enrollment(&server, &foreign).await["status"], "pending");
    server.stop().await;
}

#[tokio::test]
async fn the_limit_of_pending_enrollments_without_a_token_holds_under_concurrency() {
    let settings = [WITHOUT_TOKEN, UNLIMITED, ("enrollment.without_token_limit", "3")];
    let server = InProcess::start_with(&settings).await;
    let replica = InProcess::start_on(&server.database().url(), &settings).await;
    let machines: Vec<_> = (0..12).map(|_| Machine::new()).collect();
    let calls = machines.iter().enumerate().map(|(call, machine)| match call % 2 {
        0 => machine.enroll(&server, None),
        _ => machine.enroll(&replica, None),
    });
    let answers = join_all(calls).await;
    let (waiting, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 202);
    assert_eq!((waiting.len(), refused.len()), (3, 9));
    for answer in refused {
        assert_eq!(answer.kind(), ProblemKind::RateLimited, "{answer}");
        assert!(
            answer.detail().contains("3 keys without a valid enrollment token"),
            "{answer}"
        );
    }
    // A machine with a token needs no room, and each decision makes room.
    let _enrolled = server.enrolled("WITH-TOKEN").await;
    let denied = enrollment(&server, waiting[0]).await;
    let _denied = decide(&server, &denied, "deny").await.expect(200);
    let _waits = Machine::new().enroll(&server, None).await.expect(202);
    replica.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn calls_without_a_token_are_limited_by_address() {
    let settings = [WITHOUT_TOKEN, ("rate_limit.address_per_minute", "6")];
    let server = InProcess::start_with(&settings).await;
    let token = server.enrollment_token(json!({"approval": "manual"})).await;
    let machine = Machine::new();
    // One for the nonce, three for the calls.
    for _ in 0..3 {
        let _waits = machine.enroll(server.api(), None).await.expect(202);
    }
    // Only its nonce is charged.
    let _not_charged = Machine::new().enroll(server.api(), Some(&token)).await.expect(202);
    // The token of a repeated call is not looked up, so it proves nothing.
    let _charged = machine.enroll(server.api(), Some("made up")).await.expect(202);
    let _too_many = machine
        .enroll(server.api(), None)
        .await
        .expect_problem(ProblemKind::RateLimited);
    server.stop().await;
}

/// Ends the time of all pending enrollments. With `swept`, the periodic work of another replica then expires this one.
async fn expire(server: &InProcess, id: &str, swept: bool) {
    let pool = server.database().pool().await;
    let end = sqlx::query("UPDATE enrollments SET expires_at = requested_at WHERE status = 'pending'");
    end.execute(&pool).await.unwrap();
    if !swept {
        return;
    }
    let replica = InProcess::start_on(&server.database().url(), &[]).await;
    let mut looks = 0;
    while server.get(&format!("/v1/admin/enrollments/{id}")).await.json()["status"] == "pending" {
        looks += 1;
        assert!(looks < LOOKS, "it never expired");
    }
    replica.stop().await;
}

#[rstest]
#[tokio::test]
async fn an_expired_enrollment_is_over_and_its_key_may_enroll_again(#[values(true, false)] swept: bool) {
    let server = InProcess::start().await;
    let spent = server
        .enrollment_token(json!({"approval": "manual", "max_uses": 1}))
        .await;
    let machine = Machine::with_serial_number("LATE");
    let pending = machine.enroll(&server, Some(&spent)).await.expect(202);
    let (id, first) = (text(&pending.json(), "enrollment_id"), machine.id());
    // The server now has the key in its cache, with the machine that it belonged to.
    let _waits = machine
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::MachinePending);

    expire(&server, &id, swept).await;

    let path = format!("/v1/admin/enrollments/{id}");
    for decision in ["approve", "deny"] {
        let refused = server
            .post(&format!("{path}/{decision}"), &json!({"reason": "late"}))
            .await;
        assert_eq!(refused.kind(), ProblemKind::Conflict, "{refused}");
        assert!(refused.detail().contains("expired"), "{refused}");
    }
    for secret in [Some(spent.as_str()), None] {
        let refused = machine
            .enroll(&server, secret)
            .await
            .expect_problem(ProblemKind::EnrollmentTokenInvalid);
        assert!(
            refused.detail().contains("expired before an administrator decided"),
            "{refused}"
        );
    }
    let token = server
        .enrollment_token(json!({"approval": "manual", "max_uses": 1}))
        .await;
    let again = machine.enroll(&server, Some(&token)).await.expect(202);
    assert_ne!(text(&again.json(), "enrollment_id"), id);
    assert_ne!(machine.id(), first);
    let over = server.get(&path).await.json();
    assert_eq!(
        (&over["status"], &over["expires_at"]),
        (&json!("expired"), &Value::Null)
    );
    assert_eq!(over["decided_by"]["kind"], "system");
    let audit = server
        .get(&format!("/v1/admin/audit?resource=enrollment:{id}"))
        .await
        .json();
    assert_eq!(audit["items"].as_array().unwrap().len(), 1, "{audit}");
    assert_eq!(audit["items"][0]["action"], "enrollment.expire");
    assert_eq!(server.get(&format!("/v1/admin/machines/{first}")).await.status, 404);
    let events = server.get(&format!("/v1/admin/machines/{first}/events")).await.json();
    assert_eq!(events["items"][0]["kind"], "enrollment.expired");

    let again = enrollment(&server, &again).await;
    let _approved = decide(&server, &again, "approve").await.expect(200);
    let _enrolled = machine.enroll(&server, None).await.expect(201);
    let _checked_in = machine.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn an_expired_reenrollment_leaves_the_machine_unchanged() {
    let server = InProcess::start_with(&[("enrollment.pending_ttl", "2h")]).await;
    let machine = server.enrolled("STAYS").await;
    let erased = machine.erased();
    let token = server.enrollment_token(json!({})).await;
    let pending = erased.enroll(&server, Some(&token)).await.expect(202);
    let waiting = enrollment(&server, &pending).await;
    server.clock().advance(Duration::hours(2) - Duration::seconds(1));
    let _still_waits = erased.enroll(&server, None).await.expect(202);
    server.clock().advance(Duration::seconds(1));
    let refused = decide(&server, &waiting, "approve")
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains("expired"), "{refused}");
    let by_machine = server
        .post(&format!("{}/deny", machine.path()), &json!({"reason": "late"}))
        .await;
    assert_eq!(by_machine.kind(), ProblemKind::Conflict, "{by_machine}");
    let _checked_in = machine.check_in(&server).await.expect(200);
    let again = erased.enroll(&server, Some(&token)).await.expect(202);
    let _approved = decide(&server, &enrollment(&server, &again).await, "approve")
        .await
        .expect(200);
    let _enrolled = erased.enroll(&server, None).await.expect(201);
    assert_eq!(erased.id(), machine.id());
    server.stop().await;
}

/// One administrator approves a machine while another denies it. One of them is told the other's decision.
async fn decide_by_two(apis: &[Api; 2], administrators: &[Administrator; 2], token: &str, machine: &Machine) {
    let pending = machine.enroll(&apis[0], Some(token)).await.expect(202).json();
    let id = text(&pending, "enrollment_id");
    let reason = json!({"reason": "because"});
    let [approve, deny] = ["approve", "deny"].map(|decision| format!("enrollments/{id}/{decision}"));
    let (approved, denied) = tokio::join!(
        administrators[0].call(Method::POST, &approve, Some(&reason)),
        administrators[1].call(Method::POST, &deny, Some(&reason)),
    );
    let (won, lost, word) = match approved.status {
        200 => (approved, denied, "approved"),
        _ => (denied, approved, "denied"),
    };
    assert_eq!(won.expect(200).json()["status"], word);
    let lost = lost.expect_problem(ProblemKind::Conflict);
    assert!(lost.detail().contains(&format!("was {word} at")), "{lost}");
    assert!(lost.detail().contains("because"), "{lost}");
    let audit = administrators[0].audit(&format!("enrollment:{id}")).await;
    assert_eq!(audit.len(), 1, "{audit:?}");
    let path = format!("machines/{}", machine.id());
    let record = administrators[0].call(Method::GET, &path, None).await;
    let asked = machine.enroll(&apis[1], None).await;
    match word {
        "approved" => assert_eq!((asked.status, &record.json()["status"]), (201, &json!("active"))),
        _ => assert_eq!((asked.kind(), record.status), (ProblemKind::EnrollmentDenied, 404)),
    }
}

#[tokio::test]
async fn of_a_concurrent_approval_and_denial_one_wins() {
    let (apis, administrators) = two(Installation::shared().await);
    let token = administrators[0]
        .token(json!({"approval": "manual", "max_uses": 40}))
        .await;
    for _ in 0..10 {
        let machines = [(); 4].map(|()| Machine::new());
        let races = machines
            .iter()
            .map(|machine| decide_by_two(&apis, &administrators, &token.secret, machine));
        join_all(races).await;
    }
}

#[tokio::test]
async fn of_two_concurrent_approvals_for_one_serial_number_one_wins() {
    let (apis, administrators) = two(Installation::shared().await);
    let token = administrators[0]
        .token(json!({"approval": "manual", "max_uses": 40}))
        .await;
    for _ in 0..20 {
        let machine = Machine::new();
        let pair = [machine.erased(), machine];
        for machine in &pair {
            let _pending = machine.enroll(&apis[0], Some(&token.secret)).await.expect(202);
        }
        let (one, other) = tokio::join!(
            administrators[0].decide(pair[0].id(), "approve", "seen"),
            administrators[1].decide(pair[1].id(), "approve", "seen"),
        );
        let mut answers = [one, other];
        answers.sort_by_key(|answer| answer.status);
        assert_eq!(answers[0].status, 200, "{}", answers[0]);
        assert_eq!(answers[1].kind(), ProblemKind::Conflict, "{}", answers[1]);
        assert!(answers[1].detail().contains("serial number"), "{}", answers[1]);
        let found = format!("machines?q={}", pair[0].serial_number());
        let found = administrators[0].get(&found).await;
        let mut statuses: Vec<String> = found["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|machine| text(machine, "status"))
            .collect();
        statuses.sort();
        assert_eq!(statuses, ["active", "pending"]);
    }
}

/// A response may be lost, so the decision can be repeated. A different reason is refused, because it would not be
/// kept.
#[tokio::test]
async fn a_repeated_decision_on_an_enrollment_needs_the_same_reason() {
    let server = InProcess::start_with(&[WITHOUT_TOKEN]).await;
    for (decision, word) in [("deny", "denied"), ("approve", "approved")] {
        let machine = Machine::new();
        let pending = machine.enroll(&server, None).await.expect(202);
        let waiting = enrollment(&server, &pending).await;
        let decided = decide(&server, &waiting, decision).await.expect(200).json();
        assert_eq!(decide(&server, &waiting, decision).await.expect(200).json(), decided);
        let path = format!("/v1/admin/enrollments/{}/{decision}", text(&waiting, "id"));
        let other = server.post(&path, &json!({"reason": "another"})).await;
        let refused = other.expect_problem(ProblemKind::Conflict);
        assert!(refused.detail().contains(&format!("was {word} at")), "{refused}");
        assert!(refused.detail().contains("seen"), "{refused}");
        assert_eq!(enrollment(&server, &pending).await, decided);
    }
    server.stop().await;
}

/// Strangers can enroll as often as they like. A denied one is no machine, so lists and statistics leave it out.
#[tokio::test]
async fn a_denied_machine_is_not_counted_or_listed_and_stays_denied() {
    let server = InProcess::start_with(&[WITHOUT_TOKEN]).await;
    let _counted = server.enrolled("COUNTED").await;
    let count = async || server.get("/v1/admin/stats").await.expect(200).json()["machines"].clone();
    let before = count().await;
    let stranger = Machine::with_serial_number("STRANGER");
    let pending = stranger.enroll(&server, None).await.expect(202);
    let waiting = enrollment(&server, &pending).await;
    let _denied = decide(&server, &waiting, "deny").await.expect(200);
    assert_eq!(count().await, before);
    for query in ["", "?status=revoked", "?q=STRANGER"] {
        let listed = server
            .get(&format!("/v1/admin/machines{query}"))
            .await
            .json()
            .to_string();
        assert!(!listed.contains("STRANGER"), "{query}: {listed}");
    }
    for answer in [stranger.enroll(&server, None).await, stranger.check_in(&server).await] {
        let refused = answer.expect_problem(ProblemKind::EnrollmentDenied);
        assert!(refused.detail().contains("seen"), "{refused}");
    }
    let denied = enrollment(&server, &pending).await;
    assert_eq!(
        (&denied["status"], &denied["serial_number"]),
        (&json!("denied"), &json!("STRANGER"))
    );

    // A denial by the machine's id returns the final record. A second decision is told the first one.
    let other = Machine::new();
    let _pending = other.enroll(&server, None).await.expect(202);
    let path = format!("{}/deny", other.path());
    let record = server.post(&path, &json!({"reason": "no"})).await.expect(200).json();
    assert_eq!(
        (&record["status"], &record["status_reason"]),
        (&json!("revoked"), &json!("no"))
    );
    let second = server
        .post(&path, &json!({"reason": "no"}))
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(
        second.detail().contains("was denied at") && second.detail().contains("no"),
        "{second}"
    );
    server.stop().await;
}

/// An administrator who approves the second key has seen the first key on record, and not its replacement.
#[tokio::test]
async fn of_two_pending_keys_for_one_record_only_one_can_be_approved() {
    let server = InProcess::start().await;
    let machine = server.enrolled("TWICE").await;
    let token = server.enrollment_token(json!({})).await;
    let keys = [machine.erased(), machine.erased()];
    let mut waiting = Vec::new();
    for key in &keys {
        let pending = key.enroll(&server, Some(&token)).await.expect(202);
        waiting.push(enrollment(&server, &pending).await);
    }
    let _approved = decide(&server, &waiting[0], "approve").await.expect(200);
    let refused = decide(&server, &waiting[1], "approve")
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains(&text(&waiting[0], "id")), "{refused}");
    assert!(refused.detail().contains("deny this one"), "{refused}");
    let _in = keys[0].enroll(&server, None).await.expect(201);
    let record = server.get(&machine.path()).await.json();
    assert_eq!(record["key"]["thumbprint"], keys[0].thumbprint().to_string());

    // A request that is made afterwards is for the present record.
    let third = machine.erased();
    let pending = third.enroll(&server, Some(&token)).await.expect(202);
    let _approved = decide(&server, &enrollment(&server, &pending).await, "approve")
        .await
        .expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_second_machine_with_a_serial_number_is_refused_with_advice() {
    let server = InProcess::start_with(&[WITHOUT_TOKEN]).await;
    let first = Machine::with_serial_number("SAME");
    let pending = first.enroll(&server, None).await.expect(202);
    let waiting = enrollment(&server, &pending).await;
    let holder = server.enrolled("SAME").await;
    let refused = decide(&server, &waiting, "approve")
        .await
        .expect_problem(ProblemKind::Conflict);
    let detail = refused.detail();
    assert!(detail.contains(&holder.id().to_string()), "{detail}");
    assert!(
        detail.contains("deny this request") && detail.contains("revoke or delete it first"),
        "{detail}"
    );
    server.stop().await;
}
