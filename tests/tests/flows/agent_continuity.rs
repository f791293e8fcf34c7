//! The agent carries the value of the last answer. It never breaks its own continuity, and a copy of its state does.

use assay_tests::administrator::{Administrator, text};
use assay_tests::mac::{DONE, Mac, REFUSED, WAITING_FOR_APPROVAL};
use assay_tests::process::Process;
use assay_tests::proxied::ProxiedServer;
use http::Method;
use rstest::rstest;
use rustix::process::Signal;
use serde_json::{Value, json};
use uuid::Uuid;

const RUN_ONCE: &[&str] = &["run", "--once"];
const RENEW: &[&str] = &["renew"];
const ROTATE: &[&str] = &["rotate-key"];
/// Rises with every nonce that is used.
const NONCES_USED: &str =
    "SELECT coalesce(extract(epoch FROM max(last_nonce_at)) * 1000000, 0)::bigint FROM machine_presence";
const KEYS_SUPERSEDED: &str = "SELECT count(*) FROM machine_keys WHERE status = 'superseded'";

/// A machine that has checked in, and so sends values.
async fn enrolled(server: &ProxiedServer, key_store: &'static str) -> Mac {
    let mac = Mac::with_key_store(&server.installation, key_store);
    let token = server.administrator().token(json!({})).await;
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    check_in(&mac, 2).await;
    mac
}

async fn check_in(mac: &Mac, times: u32) {
    for _ in 0..times {
        let _checked_in = mac.run(RUN_ONCE, DONE).await;
    }
}

async fn id(mac: &Mac) -> Uuid {
    text(&mac.status().await, "machine_id").parse().unwrap()
}

async fn key(mac: &Mac) -> Value {
    mac.status().await["key_thumbprint"].clone()
}

async fn release(administrator: &Administrator, id: Uuid) {
    let _released = administrator.decide(id, "release", "looked at").await.expect(200);
}

async fn count(administrator: &Administrator, id: Uuid, kind: &str) -> usize {
    let kinds = administrator.event_kinds(id).await;
    kinds.iter().filter(|other| *other == kind).count()
}

/// Checks in, and expects that the evidence does not continue and that the machine is quarantined.
async fn expect_quarantine(server: &ProxiedServer, mac: &Mac) -> Uuid {
    let refused = mac.run(RUN_ONCE, REFUSED).await;
    assert!(refused.contains("does not continue"), "{refused}");
    let id = id(mac).await;
    assert_eq!(mac.status().await["standing"], "quarantined");
    assert_eq!(server.administrator().machine(id).await["status"], "quarantined");
    id
}

/// Runs a command, and kills the agent after the server has recorded its call and before the response arrives.
async fn lose_the_response(server: &ProxiedServer, start: impl FnOnce() -> Process) {
    server.hold_back_when_it_rises(NONCES_USED).await;
    let losing = start();
    server.proxy.holds_an_answer_back().await;
    losing.signal(Signal::KILL);
    assert_eq!(losing.ended().await.code(), None, "{}", losing.output());
    server.proxy.forward_to(server.installation.servers[0].address());
}

#[rstest]
#[tokio::test]
async fn an_agent_that_loses_responses_continues(#[values("software", "secure-enclave")] key_store: &'static str) {
    let server = ProxiedServer::start(&[]).await;
    let administrator = server.administrator();
    let mac = Mac::with_key_store(&server.installation, key_store);
    let token = administrator.token(json!({})).await;
    let enroll = [
        "enroll",
        "--server",
        mac.url(),
        "--ca-file",
        mac.roots(),
        "--token",
        &token.secret,
    ];
    for _ in 0..2 {
        lose_the_response(&server, || mac.start(&enroll)).await;
    }
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    let rounds: [&[&[&str]]; 3] = [&[RUN_ONCE], &[RUN_ONCE, RUN_ONCE, RENEW], &[RENEW, RENEW, RUN_ONCE]];
    for lost in rounds {
        for command in lost {
            lose_the_response(&server, || mac.start(command)).await;
        }
        check_in(&mac, 2).await;
        let _renewed = mac.run(RENEW, DONE).await;
    }
    let again = mac.enroll(&token.secret, DONE).await;
    assert!(again.contains("already"), "{again}");
    check_in(&mac, 1).await;
    let id = id(&mac).await;
    assert_eq!(administrator.machine(id).await["status"], "active");
    assert_eq!(count(&administrator, id, "machine.continuity-broken").await, 0);
}

#[tokio::test]
async fn an_agent_that_crashes_between_a_response_and_its_write_continues() {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "software").await;
    for command in [RUN_ONCE, RENEW] {
        // That moment is too short to hit, so restore the files of that moment.
        let before = mac.back_up();
        let _answered = mac.run(command, DONE).await;
        mac.restore(&before);
        check_in(&mac, 1).await;
    }
    let id = id(&mac).await;
    assert_eq!(server.administrator().machine(id).await["status"], "active");
}

#[tokio::test]
async fn a_restored_state_quarantines_a_software_key_until_a_release() {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "software").await;
    let backup = mac.back_up();
    check_in(&mac, 2).await;
    mac.restore(&backup);
    let id = expect_quarantine(&server, &mac).await;
    release(&server.administrator(), id).await;
    check_in(&mac, 3).await;
    assert_eq!(mac.status().await["standing"], "enrolled");
}

#[tokio::test]
async fn a_restored_state_of_an_enclave_key_is_an_event() {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "secure-enclave").await;
    let backup = mac.back_up();
    check_in(&mac, 2).await;
    mac.restore(&backup);
    check_in(&mac, 2).await;
    let id = id(&mac).await;
    let administrator = server.administrator();
    assert_eq!(count(&administrator, id, "machine.continuity-broken").await, 1);
    assert_eq!(administrator.machine(id).await["status"], "active");
}

#[rstest]
#[tokio::test]
async fn two_copies_of_a_software_key_are_caught_at_the_second_check_in(#[values(true, false)] copy_is_first: bool) {
    let server = ProxiedServer::start(&[]).await;
    let original = enrolled(&server, "software").await;
    let copy = original.copied();
    let (first, second) = match copy_is_first {
        true => (&copy, &original),
        false => (&original, &copy),
    };
    check_in(first, 1).await;
    // For the server, the first response may have been lost.
    check_in(second, 1).await;
    expect_quarantine(&server, first).await;
    let _refused = second.run(RUN_ONCE, REFUSED).await;
    assert_eq!(second.status().await["standing"], "quarantined");
}

#[tokio::test]
async fn a_copy_that_rotates_the_key_first_is_caught_when_the_original_checks_in() {
    let server = ProxiedServer::start(&[]).await;
    let original = enrolled(&server, "software").await;
    let copy = original.copied();
    let _rotated = copy.run(ROTATE, DONE).await;
    let _superseded = original.run(RUN_ONCE, REFUSED).await;
    let _quarantined = copy.run(RUN_ONCE, REFUSED).await;
    let (administrator, id) = (server.administrator(), id(&copy).await);
    assert_eq!(administrator.machine(id).await["status"], "quarantined");
    assert_eq!(count(&administrator, id, "machine.superseded-key-used").await, 1);
}

#[tokio::test]
async fn a_daemon_and_commands_at_the_same_time_are_one_party() {
    let server = ProxiedServer::start(&[("check_in.interval", "1s")]).await;
    let administrator = server.administrator();
    let mac = Mac::with_key_store(&server.installation, "software");
    let token = administrator.token(json!({})).await.secret;
    let daemon = mac.start_daemon(&token);
    let mut read = daemon.writes(0, "checked in").await;
    for _ in 0..3 {
        let (_checked_in, _renewed, _enrolled) =
            tokio::join!(mac.run(RUN_ONCE, DONE), mac.run(RENEW, DONE), mac.enroll(&token, DONE));
        let (_checked_in, _rotated) = tokio::join!(mac.run(RUN_ONCE, DONE), mac.run(ROTATE, DONE));
        read = daemon.writes(read, "checked in").await;
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
    let id = id(&mac).await;
    assert_eq!(administrator.machine(id).await["status"], "active");
    for kind in ["machine.identity-mismatch", "machine.superseded-key-used"] {
        assert_eq!(count(&administrator, id, kind).await, 0, "{kind}");
    }
}

/// An agent of an earlier version writes a record without the value.
fn drop_the_value(mac: &Mac) {
    mac.rewrite_state(|state| {
        let value = state.as_object_mut().unwrap().remove("continuity");
        assert!(value.is_some_and(|value| value.is_string()), "{state}");
    });
}

#[tokio::test]
async fn an_agent_replaced_by_an_earlier_version_continues_after_a_release() {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "software").await;
    drop_the_value(&mac);
    let id = expect_quarantine(&server, &mac).await;
    release(&server.administrator(), id).await;
    for _ in 0..2 {
        check_in(&mac, 1).await;
        drop_the_value(&mac);
    }
    // After an update, it sends values from its second call on.
    check_in(&mac, 2).await;
    drop_the_value(&mac);
    expect_quarantine(&server, &mac).await;
}

#[tokio::test]
async fn an_agent_may_call_any_replica() {
    let server = ProxiedServer::start(&[]).await;
    let replica = server.installation.servers[0].replica().start().await;
    let mac = enrolled(&server, "software").await;
    for address in [replica.address(), server.installation.servers[0].address()].repeat(2) {
        server.proxy.forward_to(address);
        check_in(&mac, 1).await;
        let _renewed = mac.run(RENEW, DONE).await;
    }
}

#[tokio::test]
async fn a_database_restored_from_a_backup_is_told_apart_from_a_copied_key() {
    let mut server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "software").await;
    let backup = server.back_up_database().await;
    check_in(&mac, 3).await;
    server.restore_database(&backup).await;
    check_in(&mac, 3).await;
    let (administrator, id) = (server.administrator(), id(&mac).await);
    assert_eq!(administrator.machine(id).await["status"], "active");
    assert_eq!(count(&administrator, id, "machine.database-behind").await, 1);
}

#[tokio::test]
async fn a_machine_unknown_to_a_restored_database_enrolls_again_with_its_key() {
    let mut server = ProxiedServer::start(&[]).await;
    let backup = server.back_up_database().await;
    let mac = enrolled(&server, "software").await;
    let before = key(&mac).await;
    server.restore_database(&backup).await;
    let token = server.administrator().token(json!({})).await;
    let configuration = mac.configure(&token.secret, "");
    let run = ["run", "--once", "--config", &configuration];
    // The agent's value belongs to the lost record. A repeated enrollment with it would look like a copy's.
    lose_the_response(&server, || mac.start(&run)).await;
    let _checked_in = mac.run(&run, DONE).await;
    check_in(&mac, 2).await;
    assert_eq!(key(&mac).await, before);
    assert_eq!(server.administrator().machine(id(&mac).await).await["status"], "active");
}

#[tokio::test]
async fn a_key_unknown_to_a_restored_database_waits_for_approval_and_is_not_replaced() {
    let mut server = ProxiedServer::start(&[("enrollment.without_token", "pending")]).await;
    let mac = enrolled(&server, "software").await;
    let machine = id(&mac).await;
    let backup = server.back_up_database().await;
    let _rotated = mac.run(ROTATE, DONE).await;
    let rotated = key(&mac).await;
    server.restore_database(&backup).await;
    let _waits = mac.run(RUN_ONCE, WAITING_FOR_APPROVAL).await;
    let administrator = server.administrator();
    let _approved = administrator.decide(machine, "approve", "restored").await.expect(200);
    check_in(&mac, 3).await;
    assert_eq!((key(&mac).await, id(&mac).await), (rotated, machine));
}

#[tokio::test]
async fn the_previous_key_signs_if_a_restored_database_does_not_know_the_next_one() {
    let mut server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "software").await;
    let (machine, before) = (id(&mac).await, key(&mac).await);
    let backup = server.back_up_database().await;
    // The response to the next key's first check-in is lost.
    server.hold_back_when_it_rises(KEYS_SUPERSEDED).await;
    let rotating = mac.start(ROTATE);
    server.proxy.holds_an_answer_back().await;
    rotating.signal(Signal::KILL);
    let _killed = rotating.ended().await;
    assert_eq!(mac.status().await["key_rotation"]["waits_for"], "check-in");
    server.restore_database(&backup).await;
    check_in(&mac, 2).await;
    assert_eq!((key(&mac).await, id(&mac).await), (before, machine));
    assert_eq!(server.administrator().machine(machine).await["status"], "active");
}

#[rstest]
#[tokio::test]
async fn after_a_lost_response_to_the_next_keys_first_check_in_the_old_key_signs_nothing(
    #[values("renew", "enroll", "rotate-key")] command: &str,
) {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "software").await;
    let (machine, before) = (id(&mac).await, key(&mac).await);
    server.hold_back_when_it_rises(KEYS_SUPERSEDED).await;
    let rotating = mac.start(ROTATE);
    server.proxy.holds_an_answer_back().await;
    rotating.signal(Signal::KILL);
    let _killed = rotating.ended().await;
    server.proxy.forward_to(server.installation.servers[0].address());
    // The server would take the old key for a copy's.
    let _done = match command {
        "enroll" => mac.enroll("assay_unused", DONE).await,
        command => mac.run(&[command], DONE).await,
    };
    check_in(&mac, 1).await;
    assert_ne!(key(&mac).await, before);
    let administrator = server.administrator();
    assert_eq!(administrator.machine(machine).await["status"], "active");
    assert_eq!(count(&administrator, machine, "machine.superseded-key-used").await, 0);
}

#[tokio::test]
async fn a_rotation_that_waits_for_approval_does_not_break_continuity() {
    let server = ProxiedServer::start(&[]).await;
    let administrator = server.administrator();
    let mac = enrolled(&server, "secure-enclave").await;
    for _ in 0..2 {
        let _waits = mac.run(ROTATE, WAITING_FOR_APPROVAL).await;
        check_in(&mac, 1).await;
        let _renewed = mac.run(RENEW, DONE).await;
    }
    let enrollment = text(&mac.status().await["key_rotation"], "enrollment_id");
    let path = format!("enrollments/{enrollment}/approve");
    let approved = administrator.call(Method::POST, &path, Some(&json!({}))).await;
    let _approved = approved.expect(200);
    let _rotated = mac.run(ROTATE, DONE).await;
    check_in(&mac, 2).await;
    let id = id(&mac).await;
    assert_eq!(count(&administrator, id, "machine.continuity-broken").await, 0);
}
