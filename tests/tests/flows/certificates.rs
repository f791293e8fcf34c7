//! Certificates in the admin API: listing by state and by expiry, reading, and revoking one at a time.

use assay_protocol::ProblemKind;
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use futures_util::future::BoxFuture;
use rstest::rstest;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::flows::locked_rows::LockedRow;

const CERTIFICATES: &str = "/v1/admin/certificates";

/// The serial number of a machine's current certificate.
async fn current(server: &InProcess, machine: &Machine) -> String {
    let record = server.get(&machine.path()).await.expect(200).json();
    let serial_number = record["certificate"]["serial_number"].as_str();
    serial_number.unwrap_or_else(|| panic!("{record}")).to_owned()
}

async fn revoke(server: &InProcess, serial_number: &str, reason: &str) -> Answer {
    // A time later than that of all earlier audit entries.
    server.clock().advance(Duration::milliseconds(1));
    let body = json!({"reason": reason, "note": "seen on a train"});
    server
        .post(&format!("{CERTIFICATES}/{serial_number}/revoke"), &body)
        .await
}

/// The serial numbers in a list.
async fn listed(server: &InProcess, query: &str) -> Vec<String> {
    let page = server.get(&format!("{CERTIFICATES}?{query}")).await.expect(200).json();
    let serial_number = |item: &Value| item["serial_number"].as_str().unwrap().to_owned();
    page["items"].as_array().unwrap().iter().map(serial_number).collect()
}

async fn audited(server: &InProcess, resource: &str) -> Vec<Value> {
    let page = server.get(&format!("/v1/admin/audit?resource={resource}")).await.json();
    page["items"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_repeated_enrollment_gives_the_certificate_issued_last_although_clocks_differ() {
    let ahead = InProcess::start().await;
    let now = ahead.clock().now() - Duration::seconds(20);
    let behind = InProcess::start_at(now, &ahead.database().url(), &[]).await;
    let machine = ahead.enrolled("SKEWED").await;
    let revoked = current(&ahead, &machine).await;
    let _revoked = revoke(&ahead, &revoked, "superseded").await.expect(200);
    // The nonce of the other replica is later than the machine's last one.
    let request = machine.enrollment(&behind, None, &ahead.nonce().await);
    let issued = Answer::or_error(request).await.unwrap().expect(201).json();
    machine.forget_nonce();
    let request = machine.enrollment(&behind, None, &ahead.nonce().await);
    let repeated = Answer::or_error(request).await.unwrap().expect(200).json();
    assert_eq!(
        repeated["certificate"]["serial_number"],
        issued["certificate"]["serial_number"]
    );
    behind.stop().await;
    ahead.stop().await;
}

#[tokio::test]
async fn certificates_can_be_listed_by_status_expiry_and_machine() {
    let server = InProcess::start().await;
    let (old, revoked, valid) = (
        server.enrolled("OLD").await,
        server.enrolled("REVOKED").await,
        server.enrolled("VALID").await,
    );
    let (first, before) = (current(&server, &old).await, current(&server, &valid).await);
    server.clock().advance(Duration::hours(24));
    let _renewed = revoked.renew(&server).await.expect(200);
    let second = current(&server, &revoked).await;
    let _revoked = revoke(&server, &second, "superseded").await.expect(200);
    server.clock().advance(Duration::hours(1));
    let _renewed = valid.renew(&server).await.expect(200);
    let third = current(&server, &valid).await;
    // After six more days, only the certificates from the beginning have expired.
    server.clock().advance(Duration::hours(6 * 24 - 1));

    assert_eq!(listed(&server, "status=valid").await, [third.as_str()]);
    assert_eq!(listed(&server, "status=revoked").await, [second.as_str()]);
    let expired = listed(&server, "status=expired").await;
    assert!(expired.len() == 3 && expired.contains(&first), "{expired:?}");
    let all = listed(&server, "").await;
    assert_eq!(
        all,
        [expired.clone(), vec![second.clone(), third.clone()]].concat(),
        "in the order of expiry"
    );
    let of_one = format!("machine_id={}", valid.id());
    assert_eq!(listed(&server, &of_one).await, [before, third.clone()]);
    assert_eq!(
        listed(&server, &format!("{of_one}&status=valid")).await,
        [third.as_str()]
    );
    assert!(listed(&server, &format!("{of_one}&status=revoked")).await.is_empty());

    let expires = server.get(&format!("{CERTIFICATES}/{third}")).await.json()["not_after"].clone();
    let at = expires.as_str().unwrap();
    let later = OffsetDateTime::parse(at, &Rfc3339).unwrap() + Duration::seconds(1);
    let later = later.format(&Rfc3339).unwrap();
    assert_eq!(listed(&server, &format!("expires_before={at}")).await, all[..4]);
    assert_eq!(listed(&server, &format!("expires_before={later}")).await, all);
    assert!(
        listed(&server, &format!("status=valid&expires_before={at}"))
            .await
            .is_empty()
    );
    assert_eq!(
        listed(&server, &format!("status=valid&expires_before={later}")).await,
        [third]
    );
    assert_eq!(
        listed(&server, &format!("status=expired&expires_before={later}")).await,
        expired
    );
    server.stop().await;
}

#[tokio::test]
async fn a_bad_parameter_is_refused() {
    let server = InProcess::start().await;
    for query in [
        "status=gone",
        "machine_id=x",
        "expires_before=tomorrow",
        "cursor=AAAA",
        "serial=1",
    ] {
        let answer = server.get(&format!("{CERTIFICATES}?{query}")).await;
        assert_eq!(answer.kind(), ProblemKind::Malformed, "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_certificate_is_found_by_its_serial_number_in_any_notation() {
    let server = InProcess::start().await;
    let machine = server.enrolled("READ").await;
    let serial_number = current(&server, &machine).await;
    let read = server
        .get(&format!("{CERTIFICATES}/{serial_number}"))
        .await
        .expect(200)
        .json();
    let certificate = pem::parse(read["pem"].as_str().unwrap()).unwrap();
    assert_eq!(certificate.tag(), "CERTIFICATE");
    let of_machine = server.get(&format!("{}/certificates", machine.path())).await.json();
    let mut listed = of_machine["items"][0].clone();
    listed["pem"] = read["pem"].clone();
    assert_eq!(listed, read, "one shape, but for the certificate itself");

    let bytes = hex::decode(&serial_number).unwrap();
    let with_colons: Vec<String> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
    for written in [serial_number.to_uppercase(), with_colons.join(":")] {
        assert_eq!(server.get(&format!("{CERTIFICATES}/{written}")).await.json(), read);
    }
    for unknown in ["00", "xyz", &"0".repeat(32), &format!("{serial_number}00")] {
        let answer = server.get(&format!("{CERTIFICATES}/{unknown}")).await;
        assert_eq!(answer.kind(), ProblemKind::NotFound, "{answer}");
        let answer = revoke(&server, unknown, "superseded").await;
        assert_eq!(answer.kind(), ProblemKind::NotFound, "{answer}");
    }
    server.stop().await;
}

#[rstest]
#[case("unspecified")]
#[case("affiliation_changed")]
#[case("superseded")]
#[case("cessation_of_operation")]
#[case("privilege_withdrawn")]
#[case("ca_compromise")]
#[case("aa_compromise")]
#[tokio::test]
async fn a_machine_whose_certificate_is_revoked_is_asked_to_renew_and_recovers(#[case] reason: &str) {
    let server = InProcess::start().await;
    let machine = server.enrolled("RECOVERS").await;
    let permission = json!({"audience": "audience", "name": "permission"});
    let permission = server
        .post("/v1/admin/permissions", &permission)
        .await
        .expect(201)
        .json();
    let grant = json!({"permission_id": permission["id"], "selector": {"all": true}});
    let _granted = server.post("/v1/admin/grants", &grant).await.expect(201);
    let before = machine.check_in(&server).await.expect(200).json();
    assert_eq!(
        (before["grants"].as_array().unwrap().len(), &before["actions"]),
        (1, &json!([]))
    );

    let serial_number = current(&server, &machine).await;
    let revoked = revoke(&server, &serial_number, reason).await.expect(200).json();
    assert_eq!(
        (&revoked["status"], &revoked["revocation_reason"]),
        (&json!("revoked"), &json!(reason))
    );
    assert!(revoked["revoked_at"].is_string(), "{revoked}");
    let record = server.get(&machine.path()).await.json();
    assert_eq!(
        (&record["status"], &record["certificate"]),
        (&json!("active"), &Value::Null)
    );

    let asked = machine.check_in(&server).await.expect(200).json();
    assert_eq!(asked["actions"], json!([{"type": "renew_certificate"}]));
    assert_eq!(
        asked["grants"],
        json!([]),
        "a token is bound to a certificate, and there is none"
    );
    let renewed = machine.renew(&server).await.expect(200).json();
    assert_ne!(renewed["certificate"]["serial_number"], serial_number);
    let after = machine.check_in(&server).await.expect(200).json();
    assert_eq!(
        (after["grants"].as_array().unwrap().len(), &after["actions"]),
        (1, &json!([]))
    );

    // Repeating the revocation changes nothing. A different reason is refused.
    let again = revoke(&server, &serial_number.to_uppercase(), reason)
        .await
        .expect(200)
        .json();
    assert_eq!(again, revoked);
    let other = if reason == "superseded" {
        "unspecified"
    } else {
        "superseded"
    };
    let refused = revoke(&server, &serial_number, other)
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains(reason), "{refused}");
    let entries = audited(&server, &format!("certificate:{serial_number}")).await;
    let revocations: Vec<&Value> = entries
        .iter()
        .filter(|entry| entry["action"] == "certificate.revoke")
        .collect();
    assert_eq!(revocations.len(), 1, "{entries:?}");
    assert_eq!(revocations[0]["reason"], "seen on a train");
    assert_eq!(revocations[0]["after"]["revocation_reason"], reason);
    let events = server.get(&format!("{}/events", machine.path())).await.json();
    let event = events["items"]
        .as_array()
        .unwrap()
        .iter()
        .find(|event| event["kind"] == "certificate.revoked")
        .unwrap();
    let detail = json!({"serial_number": serial_number, "reason": reason, "note": "seen on a train"});
    assert_eq!(event["detail"], detail);
    server.stop().await;
}

#[tokio::test]
async fn a_compromised_key_loses_all_certificates_and_gets_no_new_one() {
    let server = InProcess::start().await;
    let machine = server.enrolled("COMPROMISED").await;
    let old = current(&server, &machine).await;
    let _renewed = machine.renew(&server).await.expect(200);
    let new = current(&server, &machine).await;

    // An older certificate reports the key's compromise as the newest one does.
    let _revoked = revoke(&server, &old, "key_compromise").await.expect(200);
    for serial_number in [&old, &new] {
        let read = server.get(&format!("{CERTIFICATES}/{serial_number}")).await.json();
        assert_eq!(read["revocation_reason"], "key_compromise", "{read}");
        let entries = audited(&server, &format!("certificate:{serial_number}")).await;
        assert_eq!(entries[0]["action"], "certificate.revoke");
    }
    let record = server.get(&machine.path()).await.json();
    assert_eq!(
        (&record["status"], &record["certificate"]),
        (&json!("quarantined"), &Value::Null)
    );
    assert!(
        record["status_reason"].as_str().unwrap().contains("seen on a train"),
        "{record}"
    );
    assert_eq!(
        audited(&server, &format!("machine:{}", machine.id())).await[0]["action"],
        "machine.quarantine"
    );
    let token = server.enrollment_token(json!({})).await;
    for refused in [
        machine.check_in(&server).await,
        machine.renew(&server).await,
        machine.enroll(&server, Some(&token)).await,
    ] {
        let refused = refused.expect_problem(ProblemKind::MachineQuarantined);
        assert!(!refused.detail().contains("seen on a train"), "{refused}");
    }
    let _again = revoke(&server, &old, "key_compromise").await.expect(200);
    assert_eq!(
        audited(&server, &format!("machine:{}", machine.id())).await[0]["action"],
        "machine.quarantine"
    );

    // The report was wrong. An administrator withdraws it, and the key is valid again.
    let _released = server
        .post(&format!("{}/release", machine.path()), &json!({"reason": "a mistake"}))
        .await
        .expect(200);
    let asked = machine.check_in(&server).await.expect(200).json();
    assert_eq!(asked["actions"], json!([{"type": "renew_certificate"}]));
    let _renewed = machine.renew(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_reason_is_refused_with_a_list_of_the_known_ones() {
    let server = InProcess::start().await;
    let machine = server.enrolled("REASONS").await;
    let serial_number = current(&server, &machine).await;
    for hold in ["certificate_hold", "remove_from_crl"] {
        let refused = revoke(&server, &serial_number, hold)
            .await
            .expect_problem(ProblemKind::Malformed);
        assert!(
            refused.detail().contains(hold) && refused.detail().contains("quarantine"),
            "{refused}"
        );
    }
    for reason in ["", "stolen", "keyCompromise", "Superseded"] {
        let refused = revoke(&server, &serial_number, reason)
            .await
            .expect_problem(ProblemKind::Malformed);
        for allowed in [
            "unspecified",
            "key_compromise",
            "cessation_of_operation",
            "aa_compromise",
        ] {
            assert!(refused.detail().contains(allowed), "{refused}");
        }
    }
    let body = json!({"reason": "superseded", "note": "a\u{1b}[2J"});
    let refused = server
        .post(&format!("{CERTIFICATES}/{serial_number}/revoke"), &body)
        .await;
    assert!(refused.expect_problem(ProblemKind::Malformed).detail().contains("note"));
    assert_eq!(current(&server, &machine).await, serial_number, "nothing was changed");
    server.stop().await;
}

#[tokio::test]
async fn an_expired_certificate_is_not_revoked_and_a_revocation_extends_no_grace() {
    let server = InProcess::start_with(&[("certificates.renewal_grace", "1d")]).await;
    let (expired, revoked) = (server.enrolled("EXPIRED").await, server.enrolled("REVOKED").await);
    let [first, second] = [current(&server, &expired).await, current(&server, &revoked).await];
    let _revoked = revoke(&server, &second, "superseded").await.expect(200);
    server.clock().advance(Duration::days(8));
    let refused = revoke(&server, &first, "superseded")
        .await
        .expect_problem(ProblemKind::Conflict);
    assert!(refused.detail().contains("expired"), "{refused}");
    let _same = revoke(&server, &second, "superseded").await.expect(200);
    let _refused = revoked.renew(&server).await.expect_problem(ProblemKind::RenewalExpired);
    server.stop().await;
}

#[tokio::test]
async fn certificates_of_a_revoked_or_deleted_machine_are_already_revoked() {
    let server = InProcess::start().await;
    let machine = server.enrolled("OUT").await;
    let serial_number = current(&server, &machine).await;
    assert_eq!(server.delete(&machine.path()).await.status, 204);
    let _same = revoke(&server, &serial_number, "privilege_withdrawn").await.expect(200);
    let _other = revoke(&server, &serial_number, "superseded")
        .await
        .expect_problem(ProblemKind::Conflict);
    let read = server
        .get(&format!("{CERTIFICATES}/{serial_number}"))
        .await
        .expect(200)
        .json();
    assert_eq!(read["machine_id"], machine.id().to_string());
    server.stop().await;
}

/// In either order, the machine has a valid certificate at the end.
#[rstest]
#[case::the_revocation_first(true)]
#[case::the_renewal_first(false)]
#[tokio::test]
async fn a_renewal_during_the_revocation_of_the_old_certificate_keeps_the_new_one(#[case] revoke_first: bool) {
    let server = InProcess::start().await;
    let machine = server.enrolled("RACES").await;
    let old = current(&server, &machine).await;
    let row = LockedRow::of(&server, &machine).await;
    let revocation: BoxFuture<'_, Answer> = Box::pin(revoke(&server, &old, "superseded"));
    let renewal: BoxFuture<'_, Answer> = Box::pin(machine.renew(&server));
    let (first, second) = if revoke_first {
        (revocation, renewal)
    } else {
        (renewal, revocation)
    };
    let (first, second) = tokio::join!(first, async {
        row.awaited_by(1).await;
        let (second, ()) = tokio::join!(second, async {
            row.awaited_by(2).await;
            row.release().await;
        });
        second
    });
    let (first, second) = (first.expect(200), second.expect(200));
    let renewed = if revoke_first { second } else { first }.json();
    assert_eq!(
        renewed["certificate"]["serial_number"],
        current(&server, &machine).await
    );
    let checked_in = machine.check_in(&server).await.expect(200).json();
    assert_eq!(checked_in["actions"], json!([]));
    assert_eq!(listed(&server, "status=revoked").await, [old]);
    server.stop().await;
}
