//! The agent replaces its key. If agent or server is killed at any step, the machine still has a valid key.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use assay_tests::administrator::text;
use assay_tests::mac::{DONE, Mac, REFUSED, SERVER_UNREACHABLE, WAITING_FOR_APPROVAL};
use assay_tests::nginx::Nginx;
use assay_tests::openssl::Files;
use assay_tests::proxied::ProxiedServer;
use assay_tests::proxy::Condition;
use futures_util::FutureExt;
use http::Method;
use rstest::rstest;
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::PgPool;
use uuid::Uuid;

const RUN_ONCE: &[&str] = &["run", "--once"];
const ROTATE: &[&str] = &["rotate-key"];
/// How often the test looks for waiting queries before it fails: far more often than reaching a row needs.
const LOOKS: u32 = 100_000;

/// A machine that has checked in.
async fn enrolled(server: &ProxiedServer, key_store: &'static str) -> Mac {
    let mac = match key_store {
        "software" => Mac::with_key_store(&server.installation, key_store),
        _ => Mac::new(&server.installation),
    };
    let token = server.administrator().token(json!({})).await;
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    mac
}

/// The arguments of a rotation that no administrator needs to approve.
async fn rotate(server: &ProxiedServer, mac: &Mac, key_store: &str) -> Vec<String> {
    let mut arguments = vec!["rotate-key".to_owned()];
    if key_store == "secure-enclave" {
        let token = json!({"serial_numbers": [mac.serial_number()], "allow_reenrollment": true});
        let token = server.administrator().token(token).await.secret;
        arguments.extend(["--token".to_owned(), token]);
    }
    arguments
}

/// Rotates the key.
async fn rotated(server: &ProxiedServer, mac: &Mac, key_store: &str) {
    let arguments = rotate(server, mac, key_store).await;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let _rotated = mac.run(&arguments, DONE).await;
}

/// True once this machine has at least so many certified keys of this status.
fn has_keys(pool: &PgPool, id: Uuid, status: &'static str, count: i64) -> Condition {
    let pool = pool.clone();
    Arc::new(move || {
        let pool = pool.clone();
        async move {
            let counted = sqlx::query_scalar::<_, i64>(
                "SELECT count(*) FROM machine_keys JOIN certificates ON key_thumbprint = thumbprint
                 WHERE machine_keys.machine_id = $1 AND machine_keys.status = $2",
            );
            counted.bind(id).bind(status).fetch_one(&pool).await.unwrap() >= count
        }
        .boxed()
    })
}

/// Makes the machine's key two hours older.
async fn age_key(server: &ProxiedServer, id: Uuid) {
    let aged = "UPDATE machines SET key_created_at = key_created_at - interval '2 hours' WHERE id = $1";
    let aged = sqlx::query(aged).bind(id).execute(&server.pool).await.unwrap();
    assert_eq!(aged.rows_affected(), 1);
    // With a new record version, the server reads the record again.
    let relabelled = json!({"labels": {"key": "old"}});
    let path = format!("machines/{id}");
    let administrator = server.administrator();
    let relabelled = administrator.call(Method::PATCH, &path, Some(&relabelled)).await;
    let _relabelled = relabelled.expect(200);
}

/// The machine's current key on the server's record.
async fn current_key(server: &ProxiedServer, id: Uuid) -> Value {
    server.administrator().machine(id).await["key"]["thumbprint"].clone()
}

/// Checks that machine and server have the same new key, and that the agent has no old key left.
async fn check_at_rest(server: &ProxiedServer, mac: &Mac, old: &Value) {
    let status = mac.status().await;
    assert_ne!(&status["key_thumbprint"], old);
    assert_eq!(status["key_thumbprint"], current_key(server, id(&status)).await);
    assert_eq!(
        (&status["key_rotation"], &status["last_failure"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(keys(mac).len(), 1, "{:?}", keys(mac));
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
}

fn id(status: &Value) -> Uuid {
    text(status, "machine_id").parse().unwrap()
}

/// The agent's key files.
fn keys(mac: &Mac) -> BTreeSet<PathBuf> {
    let entries = fs::read_dir(mac.state()).unwrap().map(|entry| entry.unwrap().path());
    entries
        .filter(|path| path.extension().is_some_and(|extension| extension == "key"))
        .collect()
}

/// The rotation in the agent's record.
fn on_record(state: &std::path::Path) -> Value {
    let record: Value = serde_json::from_slice(&fs::read(state.join("state.json")).unwrap()).unwrap();
    record["rotation"].clone()
}

/// Where the agent is killed: between the named step and the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    KeyMade,
    Recorded,
    NextKeyLetIn,
    AnswerRecorded,
    NewKeyCheckedIn,
    NewKeyRecorded,
}

impl Step {
    const ALL: [Self; 6] = [
        Self::KeyMade,
        Self::Recorded,
        Self::NextKeyLetIn,
        Self::AnswerRecorded,
        Self::NewKeyCheckedIn,
        Self::NewKeyRecorded,
    ];

    /// The condition that is true after this step. Earlier responses still arrive.
    fn condition(self, server: &ProxiedServer, mac: &Mac, id: Uuid) -> Condition {
        let state = mac.state().to_owned();
        match self {
            Self::KeyMade | Self::Recorded => {
                Arc::new(move || std::future::ready(on_record(&state).is_object()).boxed())
            }
            Self::NextKeyLetIn => has_keys(&server.pool, id, "next", 1),
            Self::AnswerRecorded => {
                Arc::new(move || std::future::ready(on_record(&state)["certificate"].is_object()).boxed())
            }
            Self::NewKeyCheckedIn | Self::NewKeyRecorded => has_keys(&server.pool, id, "superseded", 1),
        }
    }

    /// Runs a rotation up to here, and kills the agent.
    async fn reach(self, server: &ProxiedServer, mac: &Mac, key_store: &str) {
        let arguments = rotate(server, mac, key_store).await;
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let id = id(&mac.status().await);
        let before = fs::read(mac.state().join("state.json")).unwrap();
        let [old] = keys(mac).into_iter().collect::<Vec<_>>().try_into().unwrap();
        let old_key = fs::read(&old).unwrap();
        server.proxy.hold_back_once(self.condition(server, mac, id));
        let rotating = mac.start(&arguments);
        server.proxy.holds_an_answer_back().await;
        rotating.signal(Signal::KILL);
        assert_eq!(rotating.ended().await.code(), None, "{}", rotating.output());
        server.proxy.forward_to(server.installation.servers[0].address());
        match self {
            // These steps are too close to the next ones, so the files of that moment are restored instead.
            Self::KeyMade => fs::write(mac.state().join("state.json"), before).unwrap(),
            Self::NewKeyRecorded => {
                let _checked_in = mac.run(RUN_ONCE, DONE).await;
                assert!(!old.exists());
                fs::write(old, old_key).unwrap();
            }
            // The agent was connecting, and had sent no evidence by the next key.
            Self::AnswerRecorded => mac.rewrite_state(|state| state["rotation"]["is_used"] = json!(false)),
            _ => {}
        }
        assert_eq!(keys(mac).len(), 2, "{self:?}: {:?}", keys(mac));
    }
}

#[rstest]
#[tokio::test]
async fn an_agent_killed_at_any_step_of_a_rotation_recovers(
    #[values("software", "secure-enclave")] key_store: &'static str,
) {
    let server = ProxiedServer::start(&[]).await;
    for step in Step::ALL {
        let mac = enrolled(&server, key_store).await;
        let old = mac.status().await["key_thumbprint"].clone();
        step.reach(&server, &mac, key_store).await;
        let status = mac.status().await;
        let waits_for = match step {
            Step::KeyMade | Step::NewKeyRecorded => Value::Null,
            Step::Recorded | Step::NextKeyLetIn => json!("certificate"),
            Step::AnswerRecorded | Step::NewKeyCheckedIn => json!("check-in"),
        };
        assert_eq!(status["key_rotation"]["waits_for"], waits_for, "{step:?}");
        let said = mac.run(&["doctor"], DONE).await;
        assert_eq!(
            said.contains("key rotation"),
            waits_for != Value::Null,
            "{step:?}: {said}"
        );
        if step == Step::KeyMade {
            // The server does not know that key, and the agent does not rotate by itself.
            let _checked_in = mac.run(RUN_ONCE, DONE).await;
            assert_eq!(keys(&mac).len(), 1);
            rotated(&server, &mac, key_store).await;
        } else {
            let daemon = mac.start(&["run"]);
            let expected = match step {
                Step::NewKeyRecorded => "serving grants",
                _ => "key rotation complete",
            };
            daemon.writes(0, expected).await;
            daemon.signal(Signal::TERM);
            assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
        }
        let _checked_in = mac.run(RUN_ONCE, DONE).await;
        check_at_rest(&server, &mac, &old).await;
        assert_eq!(id(&mac.status().await), id(&status));
    }
}

#[tokio::test]
async fn a_server_killed_before_or_after_a_commit_of_a_rotation_recovers() {
    let mut server = ProxiedServer::start(&[]).await;
    for (step, commits) in [
        (Step::Recorded, false),
        (Step::NextKeyLetIn, true),
        (Step::AnswerRecorded, false),
        (Step::NewKeyCheckedIn, true),
    ] {
        let mac = enrolled(&server, "software").await;
        let status = mac.status().await;
        let (id, old) = (id(&status), status["key_thumbprint"].clone());
        if commits {
            server.proxy.hold_back_once(step.condition(&server, &mac, id));
            let rotating = mac.start(ROTATE);
            server.proxy.holds_an_answer_back().await;
            server.installation.servers[0].kill().await;
            server.proxy.cut();
            assert_eq!(rotating.ended().await.code(), Some(SERVER_UNREACHABLE));
        } else {
            // The machine is right before the call whose commit must not happen.
            step.reach(&server, &mac, "software").await;
            let mut holder = server.pool.begin().await.unwrap();
            let held = sqlx::query("SELECT FROM machine_presence WHERE machine_id = $1 FOR UPDATE");
            held.bind(id).fetch_one(&mut *holder).await.unwrap();
            let rotating = mac.start(ROTATE);
            let mut looks = 0;
            while !is_awaited(&server.pool).await {
                looks += 1;
                assert!(looks < LOOKS, "no query reached the row:\n{}", rotating.output());
            }
            server.installation.servers[0].kill().await;
            server.proxy.cut();
            assert_eq!(rotating.ended().await.code(), Some(SERVER_UNREACHABLE));
            holder.rollback().await.unwrap();
        }
        server.restart().await;
        let key = current_key(&server, id).await;
        assert_eq!(key == old, step != Step::NewKeyCheckedIn, "{step:?}");
        assert_eq!(keys(&mac).len(), 2, "{step:?}");
        let _checked_in = mac.run(RUN_ONCE, DONE).await;
        check_at_rest(&server, &mac, &old).await;
    }
}

async fn is_awaited(pool: &PgPool) -> bool {
    let waiting = sqlx::query_scalar::<_, i64>(
        "SELECT count(*) FROM pg_stat_activity
         WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%machine_presence%'",
    );
    waiting.fetch_one(pool).await.unwrap() > 0
}

#[tokio::test]
async fn a_daemon_rotates_a_key_that_is_older_than_the_policy_allows() {
    let files = Files::new();
    let server = ProxiedServer::start(&[
        ("certificates.rotate_key_after", "1h"),
        ("check_in.interval", "1s"),
        ("tls.client_certificates", "required"),
    ])
    .await;
    let administrator = server.administrator();
    // Only keys in software are replaced by their age.
    let mac = Mac::with_key_store(&server.installation, "software");
    let daemon = mac.start_daemon(&administrator.token(json!({})).await.secret);
    let read = daemon.writes(0, "checked in").await;
    let before = mac.status().await;
    let id = id(&before);
    // A service that accepts only machines, behind a proxy of the machine that keeps running.
    let nginx = Nginx::start(&files, "TLSv1.3", &server.installation.roots).await;
    let proxy = super::proxy::proxy(&mac, &nginx.url(), &files, &[]).await;
    let (status, seen_before) = super::proxy::get(&proxy, "/").await;
    assert_eq!(status, 200, "{seen_before}");
    age_key(&server, id).await;
    let read = daemon.writes(read, "key rotation complete").await;
    // The check-in uses the new key in TLS and in the evidence. The server compares the two.
    daemon.writes(read, "checked in").await;
    let after = mac.status().await;
    assert_ne!(after["key_thumbprint"], before["key_thumbprint"]);
    assert_eq!(after["key_thumbprint"], current_key(&server, id).await);
    assert_ne!(
        after["certificate"]["serial_number"],
        before["certificate"]["serial_number"]
    );
    assert_eq!(
        (before["assurance"].clone(), after["assurance"].clone()),
        (json!("asserted"), json!("asserted"))
    );
    assert_eq!(administrator.machine(id).await["assurance"], "asserted");
    let events = administrator.events(id).await;
    assert!(
        events.iter().any(|event| event["kind"] == "machine.key-rotated"),
        "{events:?}"
    );
    let (status, seen) = super::proxy::get(&proxy, "/").await;
    assert_eq!(status, 200, "{seen}");
    let serial_number = text(&after["certificate"], "serial_number").to_uppercase();
    assert!(
        seen.contains(&serial_number) && !seen_before.contains(&serial_number),
        "{seen}"
    );
    assert_eq!(keys(&mac).len(), 1);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
    let _reset = mac.run(&["reset", "--yes"], DONE).await;
    assert!(keys(&mac).is_empty());
}

/// Makes the enclave say that a kept key is damaged.
fn damage(path: &std::path::Path) {
    let mut key: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let sealed = text(&key, "sealed_key");
    let other = if sealed.starts_with('A') { "B" } else { "A" };
    key["sealed_key"] = json!(format!("{other}{}", &sealed[1..]));
    fs::write(path, key.to_string()).unwrap();
}

#[derive(Clone, Copy)]
enum Damaged {
    Current,
    Next,
}

#[rstest]
#[case::next_before_the_server_knows_it(Step::Recorded, Damaged::Next)]
#[case::next_when_the_server_knows_it(Step::AnswerRecorded, Damaged::Next)]
#[case::current_when_the_next_is_certified(Step::AnswerRecorded, Damaged::Current)]
#[tokio::test]
async fn losing_one_of_two_keys_to_the_enclave_keeps_the_identity(#[case] step: Step, #[case] damaged: Damaged) {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "secure-enclave").await;
    let before = mac.status().await;
    let current = keys(&mac).pop_first().unwrap();
    step.reach(&server, &mac, "secure-enclave").await;
    match damaged {
        Damaged::Current => damage(&current),
        Damaged::Next => damage(keys(&mac).iter().find(|path| **path != current).unwrap()),
    }
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(mac.status().await["machine_id"], before["machine_id"]);
    rotated(&server, &mac, "secure-enclave").await;
    check_at_rest(&server, &mac, &before["key_thumbprint"]).await;
    assert!(
        !mac.state().join("secure-enclave.key.refused").exists(),
        "it was never enrolled anew"
    );
}

#[rstest]
#[case(Step::NextKeyLetIn)]
#[case(Step::NewKeyCheckedIn)]
#[tokio::test]
async fn a_machine_whose_enclave_refuses_both_keys_enrolls_again_under_its_record(#[case] step: Step) {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "secure-enclave").await;
    let before = mac.status().await;
    step.reach(&server, &mac, "secure-enclave").await;
    let token = json!({"serial_numbers": [mac.serial_number()], "allow_reenrollment": true});
    let token = server.administrator().token(token).await;
    let configuration = mac.configure(&token.secret, "");
    mac.gets_another_enclave();
    let _enrolled = mac.run(&["run", "--once", "--config", &configuration], DONE).await;
    let after = mac.status().await;
    assert_eq!(after["machine_id"], before["machine_id"]);
    check_at_rest(&server, &mac, &before["key_thumbprint"]).await;
    let kinds = server.administrator().event_kinds(id(&after)).await;
    assert!(!kinds.contains(&json!("machine.superseded-key-used")), "{kinds:?}");
}

/// The enrollment that the machine's next key waits for.
fn waits_for_approval(status: &Value) -> String {
    assert_eq!(status["key_rotation"]["waits_for"], "approval", "{status}");
    text(&status["key_rotation"], "enrollment_id")
}

async fn decide(server: &ProxiedServer, enrollment: &str, decision: &str) {
    let path = format!("enrollments/{enrollment}/{decision}");
    let reason = json!({"reason": "seen at the desk"});
    let answer = server.administrator().call(Method::POST, &path, Some(&reason)).await;
    let _decided = answer.expect(200);
}

#[tokio::test]
async fn a_next_key_waits_for_approval_while_the_old_key_works() {
    let server = ProxiedServer::start(&[("check_in.interval", "1s")]).await;
    let mac = enrolled(&server, "secure-enclave").await;
    let old = mac.status().await["key_thumbprint"].clone();
    let said = mac.run(ROTATE, WAITING_FOR_APPROVAL).await;
    let enrollment = waits_for_approval(&mac.status().await);
    assert!(said.contains(&enrollment), "{said}");
    let said = mac.run(&["status"], DONE).await;
    assert!(said.contains("waiting for approval of enrollment"), "{said}");
    // The old key checks in and renews. A repeated call waits for the same decision.
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    let _renewed = mac.run(&["renew"], DONE).await;
    let _waits = mac.run(ROTATE, WAITING_FOR_APPROVAL).await;
    assert_eq!(waits_for_approval(&mac.status().await), enrollment);
    let daemon = mac.start(&["run"]);
    let read = daemon.writes(0, "the next key waits for approval").await;
    let read = daemon.writes(read, "checked in").await;
    assert_eq!(mac.status().await["key_thumbprint"], old);
    decide(&server, &enrollment, "approve").await;
    daemon.writes(read, "key rotation complete").await;
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
    check_at_rest(&server, &mac, &old).await;
    let kinds = server.administrator().event_kinds(id(&mac.status().await)).await;
    assert!(!kinds.contains(&json!("machine.continuity-broken")), "{kinds:?}");
}

#[tokio::test]
async fn a_denied_next_key_is_deleted_and_the_old_key_stays() {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "secure-enclave").await;
    let old = mac.status().await["key_thumbprint"].clone();
    let _waits = mac.run(ROTATE, WAITING_FOR_APPROVAL).await;
    let waiting = mac.status().await;
    decide(&server, &waits_for_approval(&waiting), "deny").await;
    let said = mac.run(ROTATE, REFUSED).await;
    assert!(said.contains("seen at the desk"), "{said}");
    for _ in 0..2 {
        let status = mac.status().await;
        let denied = &status["denied_next_key"];
        assert_eq!(denied["key"], waiting["key_rotation"]["next_key_thumbprint"]);
        assert!(text(denied, "message").contains("seen at the desk"), "{denied}");
        assert_eq!(
            (&status["standing"], &status["key_rotation"]),
            (&json!("enrolled"), &Value::Null)
        );
        assert_eq!(status["key_thumbprint"], old);
        assert_eq!(keys(&mac).len(), 1);
        let _checked_in = mac.run(RUN_ONCE, DONE).await;
    }
    // Another rotation brings another key.
    let _waits = mac.run(ROTATE, WAITING_FOR_APPROVAL).await;
    assert_eq!(mac.status().await["denied_next_key"], Value::Null);
}

#[tokio::test]
async fn an_agent_killed_before_it_reads_that_its_next_key_waits_asks_again() {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "secure-enclave").await;
    let old = mac.status().await["key_thumbprint"].clone();
    server
        .hold_back_when_it_rises("SELECT count(*) FROM enrollments WHERE kind = 'rotation'")
        .await;
    let rotating = mac.start(ROTATE);
    server.proxy.holds_an_answer_back().await;
    rotating.signal(Signal::KILL);
    assert_eq!(rotating.ended().await.code(), None, "{}", rotating.output());
    server.proxy.forward_to(server.installation.servers[0].address());
    assert_eq!(mac.status().await["key_rotation"]["waits_for"], "certificate");
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    let enrollment = waits_for_approval(&mac.status().await);
    decide(&server, &enrollment, "approve").await;
    let _rotated = mac.run(RUN_ONCE, DONE).await;
    check_at_rest(&server, &mac, &old).await;
    assert_eq!(
        server
            .count("SELECT count(*) FROM enrollments WHERE kind = 'rotation'")
            .await,
        1
    );
}

#[tokio::test]
async fn an_unfit_token_does_not_begin_a_rotation() {
    let server = ProxiedServer::start(&[]).await;
    let mac = enrolled(&server, "secure-enclave").await;
    let unbound = server.administrator().token(json!({"allow_reenrollment": true})).await;
    let said = mac.run(&["rotate-key", "--token", &unbound.secret], REFUSED).await;
    assert!(
        said.contains("enrollment-token-invalid") || said.contains("serial number"),
        "{said}"
    );
    assert_eq!(mac.status().await["key_rotation"], Value::Null);
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    assert_eq!(
        server
            .count("SELECT count(*) FROM enrollments WHERE kind = 'rotation'")
            .await,
        0
    );
}

/// The agent waits for a locked key even during a rotation, and creates no further key.
#[tokio::test]
async fn a_rotation_waits_for_locked_keys() {
    let server = ProxiedServer::start(&[]).await;
    for step in [Step::Recorded, Step::AnswerRecorded] {
        let mac = enrolled(&server, "secure-enclave").await;
        let old = mac.status().await["key_thumbprint"].clone();
        step.reach(&server, &mac, "secure-enclave").await;
        let (made, kept) = (mac.enclave_calls("create"), keys(&mac));
        mac.enclave_fails("fail NSOSStatusErrorDomain -25308");
        let _locked = mac.run(ROTATE, assay_tests::mac::KEY_STORE_UNAVAILABLE).await;
        assert_eq!((mac.enclave_calls("create"), keys(&mac)), (made, kept));
        mac.enclave_fails("");
        let _rotated = mac.run(ROTATE, DONE).await;
        assert_eq!(mac.enclave_calls("create"), made);
        check_at_rest(&server, &mac, &old).await;
    }
}
