//! The daemon: it runs unattended, stops on a signal, and loses nothing if it is killed at any step.

use std::fs;
use std::sync::Arc;

use assay_tests::administrator::text;
use assay_tests::cluster::Database;
use assay_tests::installation::{Installation, unlimited};
use assay_tests::mac::{DONE, Mac};
use assay_tests::processes::ServerConfiguration;
use assay_tests::proxy::{Condition, Proxy};
use rstest::rstest;
use rustix::process::Signal;
use serde_json::{Value, json};

/// A server with a check-in interval of a second.
async fn attentive() -> (Installation, Proxy, Database<'static>) {
    let (database, proxy) = (Database::create().await, Proxy::start().await);
    let configuration = unlimited(ServerConfiguration::new(&database))
        .set("check_in.interval", "1s")
        .set("public_url", &proxy.url());
    let installation = Installation::start(&configuration).await;
    proxy.forward_to(installation.servers[0].address());
    (installation, proxy, database)
}

#[tokio::test]
async fn a_daemon_enrolls_and_keeps_checking_in_with_current_facts() {
    let (installation, _proxy, _database) = attentive().await;
    let (mac, administrator) = (Mac::new(&installation), installation.administrator());
    let token = administrator.token(json!({})).await;

    let daemon = mac.start_daemon(&token.secret);
    let read = daemon.writes(0, "enrolled").await;
    let read = daemon.writes(read, "checked in").await;
    mac.says(&json!({"filevault_enabled": false, "os_version": "26.2"}));
    // The first of these may have started before.
    let read = daemon.writes(read, "checked in").await;
    daemon.writes(read, "checked in").await;
    let id = text(&mac.status().await, "machine_id").parse().unwrap();
    let record = administrator.machine(id).await;
    assert_eq!(record["posture"]["claimed"]["filevault_enabled"], false);
    assert_eq!(record["posture"]["claimed"]["os_version"], "26.2");
    assert_eq!(record["liveness"], "live");

    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
    // The token is no longer needed.
    fs::remove_file(mac.token_file()).unwrap();
    let daemon = mac.start(&["run"]);
    daemon.writes(0, "checked in").await;
    assert_eq!(text(&mac.status().await, "machine_id"), id.to_string());
    assert_eq!(administrator.uses(&token).await, 1);
}

/// Measures time by the check-ins of a second machine.
#[tokio::test]
async fn a_waiting_daemon_does_not_wake_up() {
    let (attentive, _proxy, _database) = attentive().await;
    let patient = Installation::shared().await;
    let start = async |installation: &Installation| {
        let mac = Mac::new(installation);
        let daemon = mac.start_daemon(&installation.administrator().token(json!({})).await.secret);
        let read = daemon.writes(0, "checked in").await;
        (mac, daemon, read)
    };
    let (_waiting_mac, waiting, _) = start(patient).await;
    let (_busy_mac, busy, read) = start(&attentive).await;
    // By then, the daemon has finished all that follows a check-in.
    let mut read = busy.writes(read, "checked in").await;
    let before = waiting.wakes();
    for _ in 0..3 {
        read = busy.writes(read, "checked in").await;
    }
    let after = waiting.wakes();
    assert!(!after.is_empty());
    for (thread, wakes) in &after {
        assert_eq!(before.get(thread), Some(wakes), "{before:?} {after:?}");
    }
    // It will not call either until the next check-in is due.
    let timers = waiting.timers();
    assert!(timers.len() == 1 && timers[0] > 200, "{timers:?}");
}

#[tokio::test]
async fn a_daemon_uses_little_memory() {
    let (installation, _proxy, _database) = attentive().await;
    let mac = Mac::new(&installation);
    let daemon = mac.start_daemon(&installation.administrator().token(json!({})).await.secret);
    let mut read = daemon.writes(0, "enrolled").await;
    for _ in 0..3 {
        read = daemon.writes(read, "checked in").await;
    }
    if let Some(kilobytes) = daemon.resident_kilobytes() {
        println!("the daemon has {kilobytes} kB of memory, unoptimized");
        assert!(kilobytes < 24 * 1024, "{kilobytes} kB");
    }
}

#[derive(Clone, Copy)]
enum Moment {
    /// During its first exchange with the server.
    BeforeItIsKnown,
    /// When the server has recorded the machine, but before the response arrives.
    BeforeTheAnswer,
}

impl Moment {
    async fn condition(self, database: &Database<'_>) -> Condition {
        let pool = database.pool().await;
        match self {
            Self::BeforeItIsKnown => Arc::new(|| Box::pin(std::future::ready(true))),
            Self::BeforeTheAnswer => Arc::new(move || {
                let pool = pool.clone();
                Box::pin(async move {
                    let count = sqlx::query_scalar("SELECT count(*) FROM machines").fetch_one(&pool);
                    count.await.map(|machines: i64| machines > 0).unwrap()
                })
            }),
        }
    }
}

#[rstest]
#[tokio::test]
async fn a_daemon_stopped_while_enrolling_stays_the_same_machine(
    #[values(Moment::BeforeItIsKnown, Moment::BeforeTheAnswer)] moment: Moment,
    #[values(Signal::TERM, Signal::KILL)] signal: Signal,
) {
    let (database, proxy) = (Database::create().await, Proxy::start().await);
    let configuration = unlimited(ServerConfiguration::new(&database))
        .set("check_in.interval", "1s")
        .set("public_url", &proxy.url());
    let installation = Installation::start(&configuration).await;
    let (mac, administrator) = (Mac::new(&installation), installation.administrator());
    let token = administrator.token(json!({})).await;
    proxy.forward_to(installation.servers[0].address());
    proxy.hold_back_once(moment.condition(&database).await);

    let daemon = mac.start_daemon(&token.secret);
    proxy.holds_an_answer_back().await;
    daemon.signal(signal);
    let status = daemon.ended().await;
    assert_eq!(
        status.code(),
        (signal == Signal::TERM).then_some(DONE),
        "{}",
        daemon.output()
    );
    let begun = mac.status().await;
    assert_eq!(
        (&begun["standing"], &begun["machine_id"]),
        (&json!("enrolling"), &Value::Null)
    );

    proxy.forward_to(installation.servers[0].address());
    // It needs only its record, and no longer the token's file.
    fs::remove_file(mac.token_file()).unwrap();
    let daemon = mac.start(&["run"]);
    let read = daemon.writes(0, "enrolled").await;
    daemon.writes(read, "checked in").await;
    let machines = administrator.get("machines").await;
    assert_eq!(machines["items"].as_array().unwrap().len(), 1, "{machines}");
    assert_eq!(machines["items"][0]["serial_number"], mac.serial_number());
    assert_eq!(administrator.uses(&token).await, 1);
}

#[tokio::test]
async fn a_daemon_waits_for_an_unreachable_server_and_stops_at_once() {
    let (mut installation, proxy, _database) = attentive().await;
    let mac = Mac::new(&installation);
    let token = installation.administrator().token(json!({})).await;
    let daemon = mac.start_daemon(&token.secret);
    let read = daemon.writes(0, "checked in").await;

    let server = &mut installation.servers[0];
    server.kill().await;
    let read = daemon.writes(read, "failed").await;
    assert!(mac.status().await["last_failure"]["message"].is_string());
    *server = server.configuration().start().await;
    proxy.forward_to(server.address());
    daemon.writes(read, "checked in").await;
    assert_eq!(mac.status().await["last_failure"], Value::Null);

    server.kill().await;
    daemon.writes(daemon.output().lines().len(), "failed").await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
}

#[tokio::test]
async fn a_daemon_that_waits_for_approval_continues_after_the_decision() {
    let (installation, _proxy, _database) = attentive().await;
    let administrator = installation.administrator();
    let token = administrator.token(json!({"approval": "manual", "max_uses": 2})).await;
    let (approved, denied) = (Mac::new(&installation), Mac::new(&installation));
    let daemons = [&approved, &denied].map(|mac| mac.start_daemon(&token.secret));
    let mut read = Vec::new();
    for daemon in &daemons {
        read.push(daemon.writes(0, "waiting for approval").await);
    }
    assert_eq!(approved.status().await["standing"], "waiting-for-approval");

    for (mac, decision) in [(&approved, "approve"), (&denied, "deny")] {
        let enrollment = text(&mac.status().await, "enrollment_id");
        let path = format!("enrollments/{enrollment}/{decision}");
        let reason = json!({"reason": "nobody's machine"});
        let _decided = administrator
            .call(http::Method::POST, &path, Some(&reason))
            .await
            .expect(200);
    }

    let at = daemons[0].writes(read[0], "enrolled").await;
    daemons[0].writes(at, "checked in").await;
    assert_eq!(approved.status().await["standing"], "enrolled");
    daemons[1].writes(read[1], "nobody's machine").await;
    let status = denied.status().await;
    assert_eq!(status["standing"], "denied");
    assert!(
        text(&status["last_failure"], "message").contains("nobody's machine"),
        "{status}"
    );
    // Only an administrator can change that. The daemon continues after the change.
    daemons[1].signal(Signal::TERM);
    assert_eq!(daemons[1].ended().await.code(), Some(DONE), "{}", daemons[1].output());
}
