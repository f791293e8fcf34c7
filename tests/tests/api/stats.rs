//! Statistics of the fleet.

use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use serde_json::{Value, json};
use time::Duration;

async fn stats(server: &InProcess) -> Value {
    server.get("/v1/admin/stats").await.expect(200).json()
}

#[tokio::test]
async fn in_an_empty_fleet_every_figure_is_zero() {
    let server = InProcess::start().await;
    let mut stats = stats(&server).await;
    assert!(stats["computed_at"].take().is_string());
    let expected = json!({
        "machines": {
            "total": 0,
            "by_status": {"pending": 0, "active": 0, "quarantined": 0, "revoked": 0},
            "by_assurance": {"asserted": 0, "verified": 0, "attested": 0},
            "by_liveness": {"never": 0, "live": 0, "late": 0, "unreachable": 0},
            "by_os_version": {},
        },
        "certificates": {"valid": 0, "expiring_within_7_days": 0, "expired": 0, "revoked": 0},
        "check_ins_per_minute": 0,
        "computed_at": null,
    });
    assert_eq!(stats, expected);
    server.stop().await;
}

/// Every figure after every change: no response is older than its request.
#[tokio::test]
async fn the_figures_of_a_small_fleet_are_current() {
    let server = InProcess::start().await;
    let [one, two] = ["ONE", "TWO"].map(Machine::with_serial_number);
    let mut third = Machine::with_serial_number("THREE");
    third.posture.os_version = None;
    let token = server.enrollment_token(json!({"serial_numbers": ["ONE"]})).await;
    let _enrolled = one.enroll(&server, Some(&token)).await.expect(201);
    assert_eq!(stats(&server).await["machines"]["by_assurance"]["verified"], 1);
    let token = server.enrollment_token(json!({"approval": "manual"})).await;
    for machine in [&two, &third] {
        let _waits = machine.enroll(&server, Some(&token)).await.expect(202);
    }
    let before = stats(&server).await;
    assert_eq!(before["machines"]["total"], 3);
    assert_eq!(
        before["machines"]["by_status"],
        json!({"pending": 2, "active": 1, "quarantined": 0, "revoked": 0})
    );
    assert_eq!(
        before["machines"]["by_assurance"],
        json!({"asserted": 2, "verified": 1, "attested": 0})
    );
    assert_eq!(before["machines"]["by_os_version"], json!({"26.1": 2, "unknown": 1}));
    assert_eq!(
        before["machines"]["by_liveness"],
        json!({"never": 3, "live": 0, "late": 0, "unreachable": 0})
    );
    assert_eq!(before["check_ins_per_minute"], 0);

    let _checked_in = one.check_in(&server).await.expect(200);
    let live = stats(&server).await;
    assert_eq!(
        live["machines"]["by_liveness"],
        json!({"never": 2, "live": 1, "late": 0, "unreachable": 0})
    );
    assert_eq!(live["check_ins_per_minute"], 1);

    server.clock().advance(Duration::minutes(11));
    let late = stats(&server).await;
    assert_eq!(
        late["machines"]["by_liveness"],
        json!({"never": 2, "live": 0, "late": 1, "unreachable": 0})
    );
    assert_eq!(late["check_ins_per_minute"], 0);
    server.clock().advance(Duration::days(1));
    let unreachable = stats(&server).await;
    assert_eq!(
        unreachable["machines"]["by_liveness"],
        json!({"never": 2, "live": 0, "late": 0, "unreachable": 1})
    );
    server.stop().await;
}

#[tokio::test]
async fn each_certificate_is_valid_expired_or_revoked() {
    let server = InProcess::start_with(&[("certificates.ttl", "10d")]).await;
    let (one, _two) = (server.enrolled("ONE").await, server.enrolled("TWO").await);
    let counted = async |valid: u64, expiring: u64, expired: u64, revoked: u64| {
        let expected =
            json!({"valid": valid, "expiring_within_7_days": expiring, "expired": expired, "revoked": revoked});
        assert_eq!(stats(&server).await["certificates"], expected);
    };
    counted(2, 0, 0, 0).await;
    server.clock().advance(Duration::days(4));
    counted(2, 2, 0, 0).await;
    let reason = json!({"reason": "lost"});
    let _revoked = server
        .post(&format!("{}/revoke", one.path()), &reason)
        .await
        .expect(200);
    counted(1, 1, 0, 1).await;
    assert_eq!(stats(&server).await["machines"]["by_status"]["revoked"], 1);
    server.clock().advance(Duration::days(7));
    counted(0, 0, 1, 1).await;
    server.stop().await;
}
