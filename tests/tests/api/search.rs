//! The search of machines, compared with their records.

use std::collections::BTreeSet;

use assay_protocol::ProblemKind;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use reqwest::Method;
use serde_json::{Value, json};
use time::Duration;

const LIST: &str = "/v1/admin/machines";

fn query_of(filters: &[(&str, &str)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(filters);
    query.finish()
}

/// The ids in a list, page by page, in its order.
async fn found(server: &InProcess, filters: &[(&str, &str)], limit: usize) -> Vec<String> {
    let (mut ids, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("{LIST}?{}&limit={limit}{cursor}", query_of(filters));
        let page = server.get(&path).await.expect(200).json();
        let items = page["items"].as_array().unwrap();
        assert!(items.len() <= limit, "{path}");
        ids.extend(items.iter().map(|machine| machine["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            None => return ids,
            Some(next) => cursor = format!("&cursor={next}"),
        }
    }
}

fn matches(machine: &Value, (name, value): (&str, &str)) -> bool {
    match name {
        "label" => {
            let (key, value) = value.split_once(':').unwrap();
            machine["labels"][key] == value
        }
        "q" => {
            let texts = [
                &machine["id"],
                &machine["serial_number"],
                &machine["hostname"],
                &machine["key"]["thumbprint"],
            ];
            let labels = machine["labels"].as_object().unwrap();
            let labels = labels
                .iter()
                .map(|(key, value)| format!("{key}:{}", value.as_str().unwrap()));
            let mut texts = texts
                .iter()
                .filter_map(|text| text.as_str().map(str::to_owned))
                .chain(labels);
            texts.any(|text| text.to_lowercase().contains(&value.to_lowercase()))
        }
        member => machine[member] == value,
    }
}

async fn enroll(server: &InProcess, serial_number: &str, hostname: &str, token: Value) -> Machine {
    let token = server.enrollment_token(token).await;
    let mut machine = Machine::with_serial_number(serial_number);
    machine.identity.hostname = Some(hostname.to_owned());
    assert!(machine.enroll(server, Some(&token)).await.status < 300);
    server.clock().advance(Duration::milliseconds(1));
    machine
}

/// Machines of every status, every liveness and two assurances, with shared and different labels.
async fn make_fleet(server: &InProcess) -> Vec<Machine> {
    let fleet = vec![
        enroll(
            server,
            "C02AA1",
            "mac-1",
            json!({"labels": {"site": "Rome", "team": "build"}}),
        )
        .await,
        enroll(
            server,
            "C02AB2",
            "BÜRO-2",
            json!({"labels": {"site": "Rome"}, "serial_numbers": ["C02AB2"]}),
        )
        .await,
        enroll(
            server,
            "C02AC3",
            "mac-3",
            json!({"labels": {"site": "Oslo", "team": "build"}}),
        )
        .await,
        enroll(server, "D_%\\4", "100%_mac\\4", json!({"labels": {"note": "a_b%c\\d"}})).await,
        enroll(server, "C02AD5", "mac-5", json!({"approval": "manual"})).await,
        enroll(
            server,
            "C02AE6",
            "mac-6",
            json!({"serial_numbers": ["C02AE6"], "labels": {"team": "build"}}),
        )
        .await,
        enroll(server, "C02AF7", "mac-7", json!({})).await,
    ];
    let check_in = async |which: &[usize]| {
        for &which in which {
            let _checked_in = fleet[which].check_in(server).await.expect(200);
        }
    };
    check_in(&[0, 1, 2, 3, 5]).await;
    server.clock().advance(Duration::days(2));
    check_in(&[0, 1, 3]).await;
    server.clock().advance(Duration::minutes(30));
    check_in(&[1, 3]).await;
    for (which, decision) in [(2, "revoke"), (3, "quarantine")] {
        let path = format!("{}/{decision}", fleet[which].path());
        let _decided = server.post(&path, &json!({"reason": "the test"})).await.expect(200);
    }
    fleet
}

#[tokio::test]
async fn every_filter_and_pair_of_filters_finds_exactly_the_matching_machines() {
    let server = InProcess::start_with(&[("rate_limit.api_key_per_minute", "0")]).await;
    let fleet = make_fleet(&server).await;
    let records = server.get(&format!("{LIST}?limit=500")).await.expect(200).json();
    let records = records["items"].as_array().unwrap();
    assert_eq!(records.len(), fleet.len());
    let (id, thumbprint) = (fleet[1].id().to_string(), fleet[1].thumbprint().to_string());
    let mut filters = vec![
        ("label", "site:Rome"),
        ("label", "team:build"),
        ("label", "site:rome"),
        ("label", "no:such"),
        ("q", "c02a"),
        ("q", "büro"),
        ("q", "mac"),
        ("q", "%"),
        ("q", "_"),
        ("q", "\\"),
        ("q", "site:ro"),
        ("q", "no such"),
        ("q", &id[9..]),
        ("q", &thumbprint[5..25]),
    ];
    for (name, values) in [
        ("status", ["pending", "active", "quarantined", "revoked"].as_slice()),
        ("assurance", &["asserted", "verified", "attested"]),
        ("liveness", &["never", "live", "late", "unreachable"]),
    ] {
        filters.extend(values.iter().map(|value| (name, *value)));
    }
    for (place, first) in filters.iter().enumerate() {
        let pairs = filters[place..].iter().filter(|second| second.0 != first.0);
        let pairs = pairs.map(|second| vec![*first, *second]);
        for both in std::iter::once(vec![*first]).chain(pairs) {
            let expected: Vec<&str> = records
                .iter()
                .filter(|machine| both.iter().all(|filter| matches(machine, *filter)))
                .map(|machine| machine["id"].as_str().unwrap())
                .collect();
            assert_eq!(found(&server, &both, 50).await, expected, "{both:?}");
            if both.len() == 1 {
                assert_eq!(found(&server, &both, 1).await, expected, "{both:?}, one a page");
                assert_eq!(found(&server, &both, 2).await, expected, "{both:?}, two a page");
            }
        }
    }
    // The fleet has every value of each vocabulary, except the one that no machine can have yet.
    let statuses: BTreeSet<&str> = records
        .iter()
        .map(|machine| machine["status"].as_str().unwrap())
        .collect();
    let livenesses: BTreeSet<&str> = records
        .iter()
        .map(|machine| machine["liveness"].as_str().unwrap())
        .collect();
    assert_eq!((statuses.len(), livenesses.len()), (4, 4), "{records:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_part_never_matches_across_two_values() {
    let server = InProcess::start().await;
    let machine = enroll(&server, "SERIAL", "host", json!({"labels": {"aa": "bb", "cc": "dd"}})).await;
    let thumbprint = machine.thumbprint().to_string();
    for across in [
        "serialhost",
        "serial host",
        "bbcc",
        "bb cc",
        "aabb",
        "hostaa",
        &format!("{thumbprint}serial"),
    ] {
        assert_eq!(
            found(&server, &[("q", across)], 50).await,
            Vec::<String>::new(),
            "{across}"
        );
    }
    // The character that separates the values cannot be searched for.
    for separator in ["SERIAL\nhost", "\n", "a\tb"] {
        let path = format!("{LIST}?{}", query_of(&[("q", separator)]));
        let _refused = server.get(&path).await.expect_problem(ProblemKind::Malformed);
    }
    server.stop().await;
}

#[tokio::test]
async fn the_search_follows_changes_of_a_machine() {
    let server = InProcess::start().await;
    let mut machine = enroll(
        &server,
        "CHANGING",
        "old-name",
        json!({"labels": {"site": "Rome", "keep": "it"}}),
    )
    .await;
    let id = machine.id().to_string();
    let is_found = async |filter: (&str, &str)| found(&server, &[filter], 50).await == [id.as_str()];
    let labels = json!({"labels": {"site": "Oslo", "new": "one"}});
    let _patched = server
        .send(server.admin(Method::PATCH, &machine.path()).json(&labels))
        .await
        .expect(200);
    machine.identity.hostname = Some("new-name".to_owned());
    let _checked_in = machine.check_in(&server).await.expect(200);
    for now in [
        ("label", "site:Oslo"),
        ("label", "keep:it"),
        ("q", "new:one"),
        ("q", "new-name"),
    ] {
        assert!(is_found(now).await, "{now:?}");
    }
    for gone in [("label", "site:Rome"), ("q", "rome"), ("q", "old-name")] {
        assert!(!is_found(gone).await, "{gone:?}");
    }
    // The record has a new key.
    let token = json!({"serial_numbers": ["CHANGING"], "allow_reenrollment": true});
    let token = server.enrollment_token(token).await;
    let (old, erased) = (machine.thumbprint().to_string(), machine.erased());
    let _enrolled = erased.enroll(&server, Some(&token)).await.expect(201);
    assert!(is_found(("q", &erased.thumbprint().to_string())).await);
    assert!(!is_found(("q", &old)).await);
    let _deleted = server.delete(&machine.path()).await.expect(204);
    for gone in [("label", "site:Oslo"), ("q", "CHANGING"), ("q", id.as_str())] {
        assert!(!is_found(gone).await, "{gone:?}");
    }
    server.stop().await;
}
