//! Many keys claim one record: in parallel on two replicas, and with a server that is killed meanwhile.

use std::collections::BTreeSet;

use assay_protocol::ProblemKind;
use assay_tests::administrator::{Administrator, Token, text};
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use futures_util::future::join_all;
use futures_util::stream::{FuturesUnordered, StreamExt};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection, PgPool};

const CLAIMANTS: usize = 20;

/// A token that is bound to a serial number and allows re-enrollment.
async fn reenrollment_token(administrator: &Administrator, machine: &Machine, uses: usize) -> Token {
    let body = json!({
        "serial_numbers": [machine.serial_number()], "allow_reenrollment": true, "max_uses": uses,
        "labels": {"from": "the second token"},
    });
    administrator.token(body).await
}

#[tokio::test]
async fn of_many_machines_that_claim_one_new_serial_number_at_once_one_becomes_active() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let hardware = Machine::new();
    let claimants: Vec<Machine> = (0..CLAIMANTS).map(|_| hardware.erased()).collect();
    let tokens = join_all((0..CLAIMANTS).map(|_| administrator.token(json!({})))).await;

    let calls = claimants.iter().zip(&tokens).enumerate();
    let calls = calls.map(|(call, (machine, token))| machine.enroll(&apis[call % 2], Some(&token.secret)));
    let answers = join_all(calls).await;

    let active: Vec<usize> = (0..CLAIMANTS)
        .filter(|claimant| answers[*claimant].status == 201)
        .collect();
    assert_eq!(active.len(), 1, "{}", answers[0]);
    let (winner, enrolled) = (&claimants[active[0]], answers[active[0]].json());
    for ((claimant, answer), token) in claimants.iter().zip(&answers).zip(&tokens) {
        assert_eq!(administrator.uses(token).await, 1);
        if answer.status == 201 {
            continue;
        }
        // The key must wait for an administrator. The response names the enrollment.
        let pending = answer.clone().expect(202).json();
        assert_eq!(pending["status"], "pending");
        assert!(answer.retry_after().is_some());
        let waiting = administrator.pending(&text(&pending, "enrollment_id")).await;
        assert_eq!(waiting["machine_id"], enrolled["machine_id"]);
        assert_eq!(waiting["key"]["thumbprint"], claimant.thumbprint().to_string());
        claimant.set_id(winner.id());
        let refused = claimant.check_in(&apis[0]).await;
        assert!(refused.problem_kind().is_some(), "{refused}");
    }
    let found = administrator
        .get(&format!("machines?q={}", hardware.serial_number()))
        .await;
    let found = found["items"].as_array().unwrap();
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["status"], "active");
    assert_eq!(found[0]["key"]["thumbprint"], winner.thumbprint().to_string());
    for api in &apis {
        let _checked_in = winner.check_in(api).await.expect(200);
    }
}

#[tokio::test]
async fn of_many_concurrent_reenrollments_of_a_machine_one_key_is_current() {
    let database = Database::create().await;
    let installation = Installation::replicated(&database).await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machine = Machine::new();
    let first = administrator.token(json!({"labels": {"team": "build"}})).await;
    let _enrolled = machine.enroll(&apis[0], Some(&first.secret)).await.expect(201);
    let token = reenrollment_token(&administrator, &machine, CLAIMANTS).await;
    let keys: Vec<Machine> = (0..CLAIMANTS).map(|_| machine.erased()).collect();

    let calls = keys.iter().enumerate();
    let calls = calls.map(|(call, key)| key.enroll(&apis[call % 2], Some(&token.secret)));
    let answers = join_all(calls).await;
    // A nonce that is older than the machine's last one is refused, and changes nothing.
    let enrolled: Vec<&Machine> = keys
        .iter()
        .zip(&answers)
        .filter(|(_, answer)| answer.problem_kind() != Some(ProblemKind::BadNonce))
        .map(|(key, answer)| {
            assert_eq!(answer.json()["machine_id"], machine.id().to_string(), "{answer}");
            key
        })
        .collect();
    assert!(enrolled.len() > 1, "no two keys collided");
    assert_eq!(administrator.uses(&token).await, u64::try_from(enrolled.len()).unwrap());

    let record = administrator.machine(machine.id()).await;
    let current: Vec<&&Machine> = enrolled
        .iter()
        .filter(|key| record["key"]["thumbprint"] == key.thumbprint().to_string())
        .collect();
    assert_eq!(current.len(), 1, "{record}");
    assert_eq!(record["labels"], json!({"team": "build"}), "labels stay");
    check_consistency(&database.pool().await, &machine).await;
    let kinds = administrator.event_kinds(machine.id()).await;
    assert_eq!(kinds.last().unwrap(), "machine.enrolled", "its history stays");
    let took_over = kinds.iter().filter(|kind| **kind == "machine.re-enrolled").count();
    assert_eq!(took_over, enrolled.len(), "{kinds:?}");
    for key in [&machine].into_iter().chain(enrolled.iter().copied()) {
        let answer = key.check_in(&apis[0]).await;
        if key.thumbprint() == current[0].thumbprint() {
            let _checked_in = answer.expect(200);
        } else {
            let _superseded = answer.expect_problem(ProblemKind::KeySuperseded);
        }
    }
}

/// Checks that all tables have the same current key, that all other keys are superseded, and that only the current key
/// has a valid certificate. Each superseded key must have an audit entry.
async fn check_consistency(pool: &PgPool, machine: &Machine) {
    let keys: Vec<(Vec<u8>, String)> =
        sqlx::query_as("SELECT thumbprint, status FROM machine_keys WHERE machine_id = $1")
            .bind(machine.id())
            .fetch_all(pool)
            .await
            .unwrap();
    let statuses: BTreeSet<&str> = keys.iter().map(|(_, status)| status.as_str()).collect();
    assert!(
        statuses.is_subset(&BTreeSet::from(["current", "superseded"])),
        "{statuses:?}"
    );
    let current: Vec<&Vec<u8>> = keys
        .iter()
        .filter(|(_, status)| status == "current")
        .map(|(thumbprint, _)| thumbprint)
        .collect();
    assert_eq!(current.len(), 1, "current keys of {}", machine.id());
    let (of_record, of_presence, admitted): (Vec<u8>, Vec<u8>, bool) = sqlx::query_as(
        "SELECT machines.current_key, machine_presence.current_key, admitted
         FROM machines JOIN machine_presence ON machine_id = id WHERE id = $1",
    )
    .bind(machine.id())
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!((&of_record, &of_presence, admitted), (current[0], current[0], true));
    let certified: Vec<(Vec<u8>, Option<String>)> =
        sqlx::query_as("SELECT key_thumbprint, revocation_reason FROM certificates WHERE machine_id = $1")
            .bind(machine.id())
            .fetch_all(pool)
            .await
            .unwrap();
    assert_eq!(certified.len(), keys.len(), "a certificate for each key");
    for (key, reason) in &certified {
        let expected = (key != current[0]).then_some("superseded");
        assert_eq!(reason.as_deref(), expected);
    }
    let audited: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM audit_entries WHERE action = 'machine.re-enroll' AND resource_id = $1::text",
    )
    .bind(machine.id().to_string())
    .fetch_one(pool)
    .await
    .unwrap();
    assert_eq!(usize::try_from(audited).unwrap(), keys.len() - 1);
}

/// Afterwards, either the old key is valid and the new one can enroll with the same token, or the new key is valid and
/// the old one is refused.
async fn check_old_or_new(
    pool: &PgPool,
    api: &Api,
    machine: &Machine,
    erased: &Machine,
    token: &Token,
    answered: bool,
) {
    check_consistency(pool, machine).await;
    let old = machine.check_in(api).await;
    let took_over = old.problem_kind() == Some(ProblemKind::KeySuperseded);
    assert!(took_over || old.status == 200, "{old}");
    assert!(took_over || !answered, "what was answered is lost: {old}");
    erased.forget_nonce();
    let again = erased.enroll(api, Some(&token.secret)).await;
    let _enrolled = again.expect(if took_over { 200 } else { 201 });
    assert_eq!(erased.id(), machine.id());
    let _checked_in = erased.check_in(api).await.expect(200);
    let _superseded = machine.check_in(api).await.expect_problem(ProblemKind::KeySuperseded);
    check_consistency(pool, machine).await;
}

#[tokio::test]
async fn a_server_killed_during_a_reenrollment_leaves_the_old_state() {
    let database = Database::create().await;
    let mut installation = Installation::unlimited(&database).await;
    let pool = database.pool().await;
    // Stops before the old key's certificate is revoked, and before the event is written.
    for table in ["certificates", "audit_entries"] {
        let administrator = installation.administrator();
        let machine = administrator.enrolled(&installation.api(0)).await;
        let (erased, token) = (machine.erased(), reenrollment_token(&administrator, &machine, 1).await);
        let mut holder = PgConnection::connect_with(&database.connect_options()).await.unwrap();
        let mut held = holder.begin().await.unwrap();
        sqlx::raw_sql(&format!("LOCK TABLE {table} IN SHARE MODE"))
            .execute(&mut *held)
            .await
            .unwrap();
        let api = installation.api(0);
        let nonce = api.nonce().await;
        let call = tokio::spawn(Answer::or_error(erased.enrollment(&api, Some(&token.secret), &nonce)));
        until_a_query_waits_for(&pool, table).await;
        installation.servers[0].kill().await;
        let _lost = call.await.unwrap().unwrap_err();
        held.rollback().await.unwrap();

        let server = installation.servers[0].configuration().start().await;
        installation.servers = vec![server];
        let api = installation.api(0);
        assert_eq!(installation.administrator().uses(&token).await, 0, "{table}");
        check_old_or_new(&pool, &api, &machine, &erased, &token, false).await;
    }
}

/// Waits until Postgres reports a query that waits for the locked table.
pub(super) async fn until_a_query_waits_for(pool: &PgPool, table: &str) {
    let waiting = format!(
        "DO $$ BEGIN WHILE NOT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = '{table}'::regclass)
         LOOP PERFORM pg_sleep(0.001); END LOOP; END $$"
    );
    sqlx::query(&waiting).execute(pool).await.unwrap();
}

#[tokio::test]
async fn a_server_killed_during_many_reenrollments_leaves_no_mixed_state() {
    let database = Database::create().await;
    let mut installation = Installation::unlimited(&database).await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let mut machines = Vec::new();
    for _ in 0..CLAIMANTS {
        let machine = administrator.enrolled(&api).await;
        let token = reenrollment_token(&administrator, &machine, 1).await;
        machines.push((machine.erased(), machine, token));
    }
    let mut answered = BTreeSet::new();
    let mut calls: FuturesUnordered<_> = machines
        .iter()
        .enumerate()
        .map(|(number, (erased, _, token))| {
            let api = &api;
            async move {
                let nonce = api.nonce().await;
                (
                    number,
                    Answer::or_error(erased.enrollment(api, Some(&token.secret), &nonce)).await,
                )
            }
        })
        .collect();
    // When the first response arrives, the other calls have started.
    let (number, answer) = calls.next().await.unwrap();
    let _enrolled = answer.unwrap().expect(201);
    answered.insert(number);
    let (_status, others) = futures_util::future::join(installation.servers[0].kill(), calls.collect::<Vec<_>>()).await;
    answered.extend(others.into_iter().filter_map(|(number, answer)| {
        let _enrolled = answer.ok()?.expect(201);
        Some(number)
    }));

    let server = installation.servers[0].configuration().start().await;
    installation.servers = vec![server];
    let (api, pool) = (installation.api(0), database.pool().await);
    for (number, (erased, machine, token)) in machines.iter().enumerate() {
        check_old_or_new(&pool, &api, machine, erased, token, answered.contains(&number)).await;
    }
}

#[tokio::test]
async fn releasing_a_quarantined_machine_requires_a_reason() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let machine = administrator.enrolled(&api).await;
    let mut copy = machine.copied_to(&format!("{}X", machine.serial_number()));
    copy.identity.hardware_uuid = Some("UUID-OF-A-COPY".to_owned());
    let _refused = copy.check_in(&api).await.expect_problem(ProblemKind::IdentityMismatch);

    let events = administrator.events(machine.id()).await;
    let kind = "machine.identity-mismatch";
    let mismatch = events.iter().find(|event| event["kind"] == kind).unwrap();
    let identity = |machine: &Machine| json!({"serial_number": machine.identity.serial_number, "hardware_uuid": machine.identity.hardware_uuid});
    assert_eq!(mismatch["detail"]["on_record"], identity(&machine));
    assert_eq!(mismatch["detail"]["claimed"], identity(&copy));

    let path = format!("machines/{}/release", machine.id());
    for (body, named) in [
        (json!({}), "reason"),
        (json!({"reason": " "}), "reason"),
        (json!({"reason": null}), "null"),
    ] {
        let refused = administrator.call(http::Method::POST, &path, Some(&body)).await;
        let refused = refused.expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains(named), "{refused}");
    }
    assert_eq!(administrator.machine(machine.id()).await["status"], "quarantined");
    let releases = async || {
        let audit = administrator.audit(&format!("machine:{}", machine.id())).await;
        let releases = audit.into_iter().filter(|entry| entry["action"] == "machine.release");
        releases.collect::<Vec<_>>()
    };
    assert_eq!(releases().await, Vec::<Value>::new());

    for _ in 0..2 {
        let released = administrator.decide(machine.id(), "release", "the copy is wiped").await;
        assert_eq!(released.expect(200).json()["status"], "active");
    }
    let releases = releases().await;
    assert_eq!(releases.len(), 1, "one change, one entry: {releases:?}");
    assert_eq!(text(&releases[0], "reason"), "the copy is wiped");
    assert_eq!(releases[0]["actor"]["kind"], "api-key");
    machine.forget_nonce();
    let _checked_in = machine.check_in(&api).await.expect(200);
}
