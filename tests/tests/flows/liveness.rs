//! Liveness of a machine that stops checking in and returns: its events, and lists meanwhile.

use std::collections::BTreeSet;

use assay_server::clock::Clock;
use assay_tests::cluster::Database;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use serde_json::Value;
use time::Duration;

const INTERVAL: Duration = Duration::minutes(5);

/// Lists machines by liveness, and returns their ids. In a small fleet, the list updates the noted liveness first.
async fn list(server: &InProcess, liveness: &str) -> BTreeSet<String> {
    let path = format!("/v1/admin/machines?liveness={liveness}");
    let page = server.get(&path).await.expect(200).json();
    let items = page["items"].as_array().unwrap();
    assert!(items.iter().all(|machine| machine["liveness"] == liveness), "{page}");
    items
        .iter()
        .map(|machine| machine["id"].as_str().unwrap().to_owned())
        .collect()
}

/// The announced changes of liveness, oldest first.
async fn announced(server: &InProcess, machine: &Machine) -> Vec<(String, String)> {
    let page = server
        .get(&format!("{}/events", machine.path()))
        .await
        .expect(200)
        .json();
    let mut events: Vec<Value> = page["items"].as_array().unwrap().clone();
    events.retain(|event| event["kind"] == "liveness.changed");
    events.reverse();
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    events
        .iter()
        .map(|event| (text(&event["detail"]["before"]), text(&event["detail"]["after"])))
        .collect()
}

fn changes(of: &[(&str, &str)]) -> Vec<(String, String)> {
    of.iter()
        .map(|(before, after)| ((*before).to_owned(), (*after).to_owned()))
        .collect()
}

#[tokio::test]
async fn each_change_of_liveness_is_announced() {
    let server = InProcess::start().await;
    let (machine, other) = (server.enrolled("SILENT").await, server.enrolled("OTHER").await);
    let id = BTreeSet::from([machine.id().to_string()]);
    let _checked_in = machine.check_in(&server).await.expect(200);
    assert_eq!(list(&server, "live").await, id);
    assert_eq!(list(&server, "never").await, BTreeSet::from([other.id().to_string()]));

    server.clock().advance(INTERVAL * 2 + Duration::SECOND);
    assert_eq!(list(&server, "late").await, id);
    assert!(list(&server, "live").await.is_empty());
    server.clock().advance(Duration::hours(24));
    assert_eq!(list(&server, "unreachable").await, id);
    // A second sweep announces nothing.
    assert!(list(&server, "late").await.is_empty());
    let _checked_in = machine.check_in(&server).await.expect(200);
    let _checked_in = machine.check_in(&server).await.expect(200);
    assert_eq!(list(&server, "live").await, id);
    let turns = [
        ("never", "live"),
        ("live", "late"),
        ("late", "unreachable"),
        ("unreachable", "live"),
    ];
    assert_eq!(announced(&server, &machine).await, changes(&turns));
    assert_eq!(announced(&server, &other).await, []);
    server.stop().await;
}

/// No server ran when the machine's liveness changed. The next server finds the change in the stored times.
#[tokio::test]
async fn a_restarted_server_announces_machines_that_became_silent_meanwhile() {
    let database = Database::create().await;
    let server = InProcess::start_on(&database.url(), &[]).await;
    let machine = server.enrolled("SILENT").await;
    let _checked_in = machine.check_in(&server).await.expect(200);
    server.stop().await;
    let pool = database.pool().await;
    let aged = sqlx::query("UPDATE machine_presence SET last_check_in_at = last_check_in_at - interval '2 days'");
    assert_eq!(aged.execute(&pool).await.unwrap().rows_affected(), 1);

    let server = InProcess::start_on(&database.url(), &[]).await;
    assert_eq!(
        list(&server, "unreachable").await,
        BTreeSet::from([machine.id().to_string()])
    );
    assert_eq!(
        announced(&server, &machine).await,
        changes(&[("never", "live"), ("live", "unreachable")])
    );
    server.stop().await;
}

/// Two replicas sweep at the same time, one with a clock that is ahead. Each change is announced once.
#[tokio::test]
async fn two_replicas_announce_a_liveness_change_once() {
    let database = Database::create().await;
    let one = InProcess::start_on(&database.url(), &[]).await;
    let two = InProcess::start_on(&database.url(), &[]).await;
    let machine = one.enrolled("SILENT").await;
    let _checked_in = machine.check_in(&one).await.expect(200);
    let now = one.clock().now() + INTERVAL * 2;
    one.clock().set(now + Duration::seconds(5));
    two.clock().set(now - Duration::seconds(5));
    for _ in 0..3 {
        let _looked = tokio::join!(list(&one, "late"), list(&two, "late"));
    }
    assert_eq!(
        announced(&one, &machine).await,
        changes(&[("never", "live"), ("live", "late")])
    );
    one.stop().await;
    two.stop().await;
}

/// A server whose clock was a day ahead has announced all machines as unreachable. After a correction it announces them
/// as live.
#[tokio::test]
async fn liveness_recovers_after_the_servers_clock_was_ahead() {
    let server = InProcess::start().await;
    let machine = server.enrolled("LIVE").await;
    let _checked_in = machine.check_in(&server).await.expect(200);
    let id = BTreeSet::from([machine.id().to_string()]);
    server.clock().advance(Duration::days(2));
    assert_eq!(list(&server, "unreachable").await, id);
    server.clock().advance(-Duration::days(2) - Duration::MINUTE);
    assert_eq!(list(&server, "live").await, id);
    assert!(list(&server, "unreachable").await.is_empty());
    // By the corrected clock, the last change is the earliest.
    let turns = [("unreachable", "live"), ("never", "live"), ("live", "unreachable")];
    assert_eq!(announced(&server, &machine).await, changes(&turns));
    server.stop().await;
}

/// A check-in that changes only times is a HOT update: no index contains these columns.
#[tokio::test]
async fn a_check_in_touches_no_index() {
    let server = InProcess::start().await;
    let machine = server.enrolled("HOT").await;
    for _ in 0..3 {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    let pool = server.database().pool().await;
    let indexed: Vec<String> = sqlx::query_scalar(
        "SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid
         WHERE indrelid = 'machine_presence'::regclass
           AND (attnum = ANY (indkey) OR pg_get_expr(indpred, indrelid) LIKE '%' || attname || '%'
                OR pg_get_expr(indexprs, indrelid) LIKE '%' || attname || '%')
         ORDER BY 1",
    )
    .fetch_all(&pool)
    .await
    .unwrap();
    for changing in ["last_nonce_at", "last_check_in_at", "clock_skew_seconds"] {
        assert!(!indexed.contains(&changing.to_owned()), "{indexed:?}");
    }
    let noted: String = sqlx::query_scalar("SELECT noted_liveness FROM machine_presence")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(noted, "live");
    assert_eq!(announced(&server, &machine).await, changes(&[("never", "live")]));
    server.stop().await;
}
