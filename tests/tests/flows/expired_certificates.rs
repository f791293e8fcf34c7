//! What a machine may do after its certificate has expired or was revoked.

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::Clock;
use assay_tests::administrator::text;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use http::Method;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

async fn grant_to_all(server: &InProcess) {
    let permission = json!({"audience": "https://vpn.example.com", "name": "connect", "description": ""});
    let permission = server
        .post("/v1/admin/permissions", &permission)
        .await
        .expect(201)
        .json();
    let grant = json!({"permission_id": permission["id"], "selector": {"all": true}, "conditions": {}});
    let _granted = server.post("/v1/admin/grants", &grant).await.expect(201);
}

async fn check_in(server: &InProcess, machine: &Machine) -> Value {
    machine.check_in(server).await.expect(200).json()
}

async fn introspect(server: &InProcess, token: &str) -> Value {
    let request = server
        .request(Method::POST, "/v1/introspect")
        .bearer_auth(server.api_key(Role::RelyingParty))
        .header("content-type", "application/x-www-form-urlencoded")
        .body(format!("token={token}"));
    server.send(request).await.expect(200).json()
}

fn time(value: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(value.as_str().unwrap(), &Rfc3339).unwrap()
}

#[tokio::test]
async fn an_expired_certificate_yields_no_grants_until_it_is_renewed_and_no_check_in_past_the_grace() {
    let settings = [("certificates.ttl", "1h"), ("certificates.renewal_grace", "1d")];
    let server = InProcess::start_with(&settings).await;
    grant_to_all(&server).await;
    let machine = server.enrolled("EXPIRED").await;
    let not_after = time(&server.record(&machine).await["certificate"]["not_after"]);

    server.clock().advance(Duration::minutes(57));
    let last = check_in(&server, &machine).await["grants"][0].clone();
    assert_eq!(
        time(&last["expires_at"]),
        not_after,
        "a token ends with its certificate"
    );
    let last = text(&last, "token");
    assert_eq!(introspect(&server, &last).await["active"], true);

    server.clock().advance(Duration::minutes(4));
    assert_eq!(introspect(&server, &last).await, json!({"active": false}));
    for _ in 0..2 {
        let expired = check_in(&server, &machine).await;
        assert_eq!(expired["grants"], json!([]));
        let reason = expired["denied"][0]["reasons"][0].as_str().unwrap();
        assert!(reason.contains("certificate expired"), "{expired}");
        assert_eq!(expired["actions"], json!([{"type": "renew_certificate"}]));
        let record = server.record(&machine).await;
        assert_eq!(record["last_verdict"]["result"], "fail");
        assert!(
            time(&record["last_check_in_at"]) > not_after,
            "the check-in is recorded"
        );
        server.clock().advance(Duration::minutes(1));
    }
    let _renewed = machine.renew(&server).await.expect(200);
    assert_eq!(
        check_in(&server, &machine).await["grants"][0]["permissions"],
        json!(["connect"])
    );

    server.clock().advance(Duration::hours(26));
    let refused = machine
        .check_in(&server)
        .await
        .expect_problem(ProblemKind::RenewalExpired);
    assert!(refused.detail().contains("enroll again"), "{refused}");
    let _refused = machine.renew(&server).await.expect_problem(ProblemKind::RenewalExpired);
    server.stop().await;
}

#[tokio::test]
async fn a_token_whose_certificate_is_revoked_stays_inactive_after_the_machine_has_renewed() {
    let server = InProcess::start().await;
    grant_to_all(&server).await;
    let machine = server.enrolled("REVOKED-CERTIFICATE").await;
    let token = text(&check_in(&server, &machine).await["grants"][0], "token");
    let serial_number = text(&server.record(&machine).await["certificate"], "serial_number");
    // A renewal does not end the first certificate, nor the token that is bound to it.
    let _renewed = machine.renew(&server).await.expect(200);
    assert_eq!(introspect(&server, &token).await["active"], true);

    let path = format!("/v1/admin/certificates/{serial_number}/revoke");
    let _revoked = server.post(&path, &json!({"reason": "superseded"})).await.expect(200);
    assert_eq!(introspect(&server, &token).await, json!({"active": false}));
    let _renewed = machine.renew(&server).await.expect(200);
    let newer = text(&check_in(&server, &machine).await["grants"][0], "token");
    assert_eq!(introspect(&server, &token).await, json!({"active": false}));
    assert_eq!(introspect(&server, &newer).await["active"], true);
    server.stop().await;
}

/// A token ends with its certificate, so a certificate that ends before its token shows that the certificate is looked at.
#[tokio::test]
async fn a_token_is_inactive_once_its_certificate_has_expired() {
    let server = InProcess::start().await;
    grant_to_all(&server).await;
    let machine = server.enrolled("ENDED-CERTIFICATE").await;
    let token = text(&check_in(&server, &machine).await["grants"][0], "token");
    let pool = server.database().pool().await;
    let earlier = sqlx::query("UPDATE certificates SET not_after = $1 WHERE machine_id = $2")
        .bind(server.clock().now() + Duration::minutes(2))
        .bind(machine.id());
    assert_eq!(earlier.execute(&pool).await.unwrap().rows_affected(), 1);
    server.clock().advance(Duration::minutes(1));
    assert_eq!(introspect(&server, &token).await["active"], true);
    server.clock().advance(Duration::minutes(1));
    assert_eq!(introspect(&server, &token).await, json!({"active": false}));
    server.stop().await;
}

/// A replica's clock that is far ahead must not limit renewals for as long as it was ahead.
#[tokio::test]
async fn a_certificate_from_a_clock_that_was_ahead_does_not_limit_later_renewals() {
    let server = InProcess::start_with(&[("rate_limit.renewals_per_day", "2")]).await;
    let machine = server.enrolled("AHEAD").await;
    let pool = server.database().pool().await;
    let ahead = "UPDATE certificates SET issued_at = issued_at + interval '60 days',
                        not_before = not_before + interval '60 days', not_after = not_after + interval '60 days'
                 WHERE machine_id = $1";
    let ahead = sqlx::query(ahead).bind(machine.id()).execute(&pool).await.unwrap();
    assert_eq!(ahead.rows_affected(), 1);
    server.clock().advance(Duration::days(2));
    for _ in 0..2 {
        let _renewed = machine.renew(&server).await.expect(200);
    }
    let _limited = machine.renew(&server).await.expect_problem(ProblemKind::RateLimited);
    server.clock().advance(Duration::days(2));
    let _renewed = machine.renew(&server).await.expect(200);
    server.stop().await;
}
