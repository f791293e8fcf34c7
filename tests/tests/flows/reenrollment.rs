//! Hardware that enrolls with another key: what allows it to take over its record, and what happens to the old key.

use assay_protocol::ProblemKind;
use assay_tests::administrator::{Administrator, text};
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use assay_tests::processes::ServerConfiguration;
use rstest::rstest;
use serde_json::{Value, json};
use time::Duration;

/// A machine's revoked certificates, with the reasons.
async fn revoked_certificates(database: &Database<'_>, machine: &Machine) -> Vec<(String, Option<String>)> {
    sqlx::query_as(
        "SELECT serial_number, revocation_reason FROM certificates WHERE machine_id = $1 AND revoked_at IS NOT NULL",
    )
    .bind(machine.id())
    .fetch_all(&database.pool().await)
    .await
    .unwrap()
}

/// An enrolled machine, and the same hardware after it was erased. With a token for any machine, its new key is
/// pending.
async fn waiting(api: &Api, administrator: &Administrator) -> (Machine, Machine, String) {
    let machine = administrator.enrolled(api).await;
    let erased = machine.erased();
    let token = administrator.token(json!({})).await;
    let pending = erased.enroll(api, Some(&token.secret)).await.expect(202).json();
    assert_eq!(pending["machine_id"], Value::Null);
    (machine, erased, text(&pending, "enrollment_id"))
}

#[tokio::test]
async fn a_token_that_allows_reenrollment_gives_the_record_to_the_new_key() {
    let database = Database::create().await;
    let installation = Installation::replicated(&database).await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machine = administrator.enrolled(&apis[0]).await;
    let old = administrator.machine(machine.id()).await["certificate"].clone();
    let erased = machine.erased();

    let token = json!({"serial_numbers": [machine.serial_number()], "allow_reenrollment": true});
    let token = administrator.token(token).await;
    let _enrolled = erased.enroll(&apis[1], Some(&token.secret)).await.expect(201);

    assert_eq!(erased.id(), machine.id());
    for api in &apis {
        let _checked_in = erased.check_in(api).await.expect(200);
        let _superseded = machine.check_in(api).await.expect_problem(ProblemKind::KeySuperseded);
        let _superseded = machine.renew(api).await.expect_problem(ProblemKind::KeySuperseded);
        let _superseded = machine
            .enroll(api, None)
            .await
            .expect_problem(ProblemKind::KeySuperseded);
    }
    let revoked = revoked_certificates(&database, &machine).await;
    assert_eq!(revoked, [(text(&old, "serial_number"), Some("superseded".to_owned()))]);
    let record = administrator.machine(machine.id()).await;
    assert_eq!(record["key"]["thumbprint"], erased.thumbprint().to_string());
    assert_eq!(record["assurance"], "verified");
}

#[tokio::test]
async fn without_such_a_token_the_new_key_waits_and_the_old_one_keeps_working() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let (machine, erased, enrollment) = waiting(&apis[0], &administrator).await;

    let _pending = erased.enroll(&apis[1], None).await.expect(202);
    let _checked_in = machine.check_in(&apis[1]).await.expect(200);
    let listed = administrator.pending(&enrollment).await;
    assert_eq!(listed["kind"], "re-enrollment");
    assert_eq!(listed["status"], "pending");
    assert_eq!(listed["machine_id"], machine.id().to_string());
    assert_eq!(listed["key"]["thumbprint"], erased.thumbprint().to_string());
    assert_eq!(listed["previous_key"]["thumbprint"], machine.thumbprint().to_string());

    let path = format!("enrollments/{enrollment}/approve");
    let _approved = administrator
        .call(http::Method::POST, &path, Some(&json!({})))
        .await
        .expect(200);
    let _enrolled = erased.enroll(&apis[1], None).await.expect(201);
    assert_eq!(erased.id(), machine.id());
    let _repeated = erased.enroll(&apis[0], None).await.expect(200);
    let _checked_in = erased.check_in(&apis[0]).await.expect(200);
    let _superseded = machine
        .check_in(&apis[0])
        .await
        .expect_problem(ProblemKind::KeySuperseded);
}

#[tokio::test]
async fn a_denied_key_stays_denied_and_the_old_one_valid() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let (machine, erased, enrollment) = waiting(&api, &administrator).await;

    let path = format!("enrollments/{enrollment}/deny");
    let denial = json!({"reason": "not our doing"});
    let _denied = administrator
        .call(http::Method::POST, &path, Some(&denial))
        .await
        .expect(200);
    let token = json!({"serial_numbers": [machine.serial_number()], "allow_reenrollment": true});
    let token = administrator.token(token).await;
    for secret in [None, Some(token.secret.as_str())] {
        let refused = erased
            .enroll(&api, secret)
            .await
            .expect_problem(ProblemKind::EnrollmentDenied);
        assert!(refused.detail().contains("not our doing"), "{}", refused.detail());
    }
    assert_eq!(administrator.uses(&token).await, 0);
    let _checked_in = machine.check_in(&api).await.expect(200);
}

#[tokio::test]
async fn a_revoked_machine_returns_only_by_approval() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    let _revoked = administrator.decide(machine.id(), "revoke", "lost").await.expect(200);
    let erased = machine.erased();
    let token = json!({"serial_numbers": [machine.serial_number()], "allow_reenrollment": true});
    let token = administrator.token(token).await;

    let pending = erased.enroll(&api, Some(&token.secret)).await.expect(202).json();
    let path = format!("enrollments/{}/approve", text(&pending, "enrollment_id"));
    let _approved = administrator
        .call(http::Method::POST, &path, Some(&json!({"reason": "found"})))
        .await
        .expect(200);
    let _enrolled = erased.enroll(&api, None).await.expect(201);
    assert_eq!(erased.id(), machine.id());
    let _checked_in = erased.check_in(&api).await.expect(200);
    let _revoked = machine.check_in(&api).await.expect_problem(ProblemKind::MachineRevoked);
}

#[tokio::test]
async fn where_reenrollment_is_off_a_second_key_is_refused() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database).set("enrollment.reenrollment", "refuse");
    let installation = Installation::start(&configuration).await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    let token = administrator.token(json!({})).await;
    let refused = machine
        .erased()
        .enroll(&api, Some(&token.secret))
        .await
        .expect_problem(ProblemKind::MachineExists);
    assert!(
        refused.detail().contains(machine.serial_number()),
        "{}",
        refused.detail()
    );
    assert_eq!(administrator.uses(&token).await, 0);
    let _checked_in = machine.check_in(&api).await.expect(200);
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lapsed {
    UsedUp,
    Expired,
}

#[rstest]
#[case::used_up(Lapsed::UsedUp)]
#[case::expired(Lapsed::Expired)]
#[tokio::test]
async fn a_new_key_waits_for_the_record_with_a_bound_token_that_lapsed(#[case] lapsed: Lapsed) {
    let server = InProcess::start().await;
    let machine = server.enrolled("LAPSED").await;
    let token = json!({"serial_numbers": ["LAPSED", "NEW"], "allow_reenrollment": true, "max_uses": 1,
                       "expires_in_seconds": 60});
    let token = server.enrollment_token(token).await;
    let machine = match lapsed {
        Lapsed::UsedUp => {
            let erased = machine.erased();
            let _taken = erased.enroll(&server, Some(&token)).await.expect(201);
            erased
        }
        Lapsed::Expired => {
            server.clock().advance(Duration::minutes(2));
            machine
        }
    };
    let next = machine.erased();
    let pending = next.enroll(&server, Some(&token)).await.expect(202).json();
    let repeated = next.enroll(&server, Some(&token)).await.expect(202).json();
    assert_eq!(repeated["enrollment_id"], pending["enrollment_id"]);
    let _still_current = machine.check_in(&server).await.expect(200);
    // It lets no new machine in.
    for serial_number in ["NEW", "OTHER"] {
        let _refused = Machine::with_serial_number(serial_number)
            .enroll(&server, Some(&token))
            .await
            .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    }
    let path = format!("/v1/admin/enrollments/{}/approve", text(&pending, "enrollment_id"));
    let _approved = server.post(&path, &json!({})).await.expect(200);
    let _enrolled = next.enroll(&server, Some(&token)).await.expect(201);
    let _checked_in = next.check_in(&server).await.expect(200);
    server.stop().await;
}

/// Such a token lies on every Mac that it enrolled.
#[tokio::test]
async fn a_lapsed_token_lets_ten_keys_wait_for_a_record() {
    let server = InProcess::start().await;
    let machine = server.enrolled("PLACES").await;
    let token = json!({"serial_numbers": ["PLACES", "OTHER"], "allow_reenrollment": true, "max_uses": 1});
    let token = server.enrollment_token(token).await;
    let other = Machine::with_serial_number("OTHER");
    let _uses_it_up = other.enroll(&server, Some(&token)).await.expect(201);
    for _ in 0..10 {
        let _waits = machine.erased().enroll(&server, Some(&token)).await.expect(202);
    }
    let refused = machine.erased().enroll(&server, Some(&token)).await;
    let refused = refused.expect_problem(ProblemKind::RateLimited);
    assert!(refused.detail().contains("10 keys"), "{refused}");
    let _waits = other.erased().enroll(&server, Some(&token)).await.expect(202);
    server.stop().await;
}

#[tokio::test]
async fn a_revoked_bound_token_lets_no_key_wait() {
    let server = InProcess::start().await;
    let machine = server.enrolled("REVOKED-TOKEN").await;
    let body = json!({"serial_numbers": ["REVOKED-TOKEN"], "allow_reenrollment": true});
    let token = server.create_enrollment_token(body).await;
    let path = format!("/v1/admin/enrollment-tokens/{}", text(&token, "id"));
    let _revoked = server.delete(&path).await.expect(204);
    let _refused = machine
        .erased()
        .enroll(&server, Some(&text(&token, "token")))
        .await
        .expect_problem(ProblemKind::EnrollmentTokenInvalid);
    server.stop().await;
}

/// A logic board has a hardware UUID of its own, and takes the serial number over in a repair.
#[rstest]
#[case::with_a_bound_token(true)]
#[case::with_an_approval(false)]
#[tokio::test]
async fn a_changed_logic_board_comes_back(#[case] is_bound: bool) {
    let server = InProcess::start().await;
    let machine = server.enrolled("BOARD").await;
    let mut repaired = machine.erased();
    repaired.identity.hardware_uuid = Some("UUID-OF-ANOTHER-BOARD".to_owned());
    if is_bound {
        let token = json!({"serial_numbers": ["BOARD"], "allow_reenrollment": true});
        let token = server.enrollment_token(token).await;
        let _back = repaired.enroll(&server, Some(&token)).await.expect(201);
    } else {
        let token = server.enrollment_token(json!({})).await;
        let pending = repaired.enroll(&server, Some(&token)).await.expect(202).json();
        let path = format!("/v1/admin/enrollments/{}/approve", text(&pending, "enrollment_id"));
        let _approved = server.post(&path, &json!({})).await.expect(200);
        let _back = repaired.enroll(&server, Some(&token)).await.expect(201);
    }
    let _checked_in = repaired.check_in(&server).await.expect(200);
    let record = server.record(&machine).await;
    assert_eq!(record["hardware_uuid"], "UUID-OF-ANOTHER-BOARD");
    assert_eq!(record["key"]["thumbprint"], repaired.thumbprint().to_string());
    server.stop().await;
}

#[tokio::test]
async fn a_takeover_without_a_hardware_uuid_keeps_the_one_on_record() {
    let server = InProcess::start().await;
    let machine = server.enrolled("SILENT").await;
    let recorded = server.record(&machine).await["hardware_uuid"].clone();
    let mut erased = machine.erased();
    erased.identity.hardware_uuid = None;
    let token = json!({"serial_numbers": ["SILENT"], "allow_reenrollment": true});
    let token = server.enrollment_token(token).await;
    let _back = erased.enroll(&server, Some(&token)).await.expect(201);
    for _ in 0..2 {
        let _checked_in = erased.check_in(&server).await.expect(200);
    }
    let events = server.items(&format!("{}/events", machine.path())).await;
    let withheld = events
        .iter()
        .filter(|event| event["kind"] == "machine.identity-withheld");
    assert_eq!(withheld.count(), 1, "{events:?}");
    let record = server.record(&machine).await;
    assert_eq!(record["key"]["thumbprint"], erased.thumbprint().to_string());
    assert_eq!((&record["hardware_uuid"], recorded.is_string()), (&recorded, true));
    server.stop().await;
}
