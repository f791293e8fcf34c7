//! Enrollments in one transaction: each has the same result as in a transaction of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use assay_protocol::ProblemKind;
use assay_server::clock::Clock;
use assay_tests::administrator::text;
use assay_tests::answer::Answer;
use assay_tests::cluster::Cluster;
use assay_tests::in_process::InProcess;
use assay_tests::installation::{Installation, unlimited};
use assay_tests::machine::Machine;
use assay_tests::processes::ServerConfiguration;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::{FuturesUnordered, StreamExt};
use http::Method;
use rstest::rstest;
use serde_json::{Value, json};
use sqlx::{ConnectOptions, PgPool, Postgres, Transaction};
use uuid::Uuid;

use super::commands::until_a_query_waits_for_a_lock;

const MACHINES: usize = 60;
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// All rows of a machine, by table. Values that differ between machines are replaced by names.
async fn on_record(pool: &PgPool, machine: &Machine) -> BTreeMap<&'static str, Value> {
    let of_machine = |table: &str, column: &str| {
        format!("SELECT jsonb_agg(to_jsonb(t) ORDER BY to_jsonb(t) - 'id') FROM {table} AS t WHERE {column} = $1")
    };
    let audited = "SELECT jsonb_agg(to_jsonb(t) ORDER BY action) FROM audit_entries AS t WHERE actor_id = $1::text";
    let mut found = BTreeMap::<&str, Value>::new();
    for (table, column) in [
        ("machines", "id"),
        ("machine_presence", "machine_id"),
        ("machine_keys", "machine_id"),
        ("machine_labels", "machine_id"),
        ("machine_search", "machine_id"),
        ("enrollments", "machine_id"),
        ("certificates", "machine_id"),
        ("events", "machine_id"),
    ] {
        let of_machine = of_machine(table, column);
        let rows = sqlx::query_scalar(&of_machine);
        found.insert(table, rows.bind(machine.id()).fetch_one(pool).await.unwrap());
    }
    let rows = sqlx::query_scalar(audited).bind(machine.id());
    found.insert("audit_entries", rows.fetch_one(pool).await.unwrap());
    let certificate = text(&found["machines"][0], "certificate_serial_number");
    let named = [
        (machine.id().to_string(), "THE MACHINE"),
        (machine.thumbprint().to_string(), "THE KEY"),
        (
            hex::encode(URL_SAFE_NO_PAD.decode(machine.thumbprint().to_string()).unwrap()),
            "THE KEY",
        ),
        (machine.thumbprint().to_string().to_lowercase(), "THE KEY"),
        (machine.serial_number().to_owned(), "THE SERIAL NUMBER"),
        (machine.serial_number().to_lowercase(), "THE SERIAL NUMBER"),
        (certificate, "THE CERTIFICATE"),
    ];
    for rows in found.values_mut() {
        let mut written = rows.to_string();
        for (value, name) in &named {
            written = written.replace(value, name);
        }
        *rows = serde_json::from_str(&written).unwrap();
        for row in rows.as_array_mut().unwrap() {
            for (column, value) in row.as_object_mut().unwrap() {
                let is_its_own = match column.as_str() {
                    // The only member of the identity that is the same for all machines.
                    "id" => *value != "THE MACHINE",
                    "spki" | "der" | "sha256" | "claims_digest" | "request_id" => true,
                    // Assigned later, when the event is announced.
                    "sequence" => true,
                    // The salted digest of the name and the address.
                    "actor_name" => true,
                    _ => false,
                };
                if is_its_own {
                    *value = json!("its own");
                }
            }
        }
    }
    found
}

/// Whether one statement wrote all audit entries of a machine. A transaction of its own writes each with a statement.
async fn came_in_a_group(pool: &PgPool, machine: &Machine) -> bool {
    sqlx::query_scalar("SELECT count(DISTINCT cmin::text) = 1 FROM audit_entries WHERE actor_id = $1::text")
        .bind(machine.id())
        .fetch_one(pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_group_and_a_single_enrollment_write_the_same_rows() {
    let server = InProcess::start().await;
    let pool = server.database().pool().await;
    let [mut grouped, mut alone] = ["GROUP-1", "ALONE-1"].map(Machine::with_serial_number);
    for machine in [&mut grouped, &mut alone] {
        machine.identity.hardware_uuid = Some("THE HARDWARE".to_owned());
        machine.identity.hostname = Some("mac.example.com".to_owned());
    }
    let items = ["GROUP-1", "ALONE-1"]
        .map(|serial_number| json!({"serial_number": serial_number, "labels": {"site": "Bonn", "team": "none"}}));
    let import = server
        .admin(Method::PUT, "/v1/admin/inventory")
        .json(&json!({"items": items}));
    let _imported = server.send(import).await.expect(200);
    // A token each: the first key of a token has a ground that later ones do not have.
    let token = json!({"labels": {"team": "build"}, "serial_numbers": ["GROUP-1", "ALONE-1"]});
    let tokens = [
        server.create_enrollment_token(token.clone()).await,
        server.create_enrollment_token(token).await,
    ];
    let [token, other_token] = tokens.each_ref().map(|token| token["token"].as_str().unwrap());
    let [token_id, other_id] = tokens.each_ref().map(|token| token["id"].as_str().unwrap());
    let moment = server.clock().now();

    let _enrolled = grouped.enroll(&server, Some(token)).await.expect(201);
    // A locked row makes an enrollment unusual: it waits alone.
    let mut holder = pool.begin().await.unwrap();
    hold(
        &mut holder,
        "SELECT FROM inventory WHERE serial_number = 'ALONE-1' FOR UPDATE",
    )
    .await;
    server.clock().set(moment);
    let (enrolled, ()) = tokio::join!(alone.enroll(&server, Some(other_token)), async {
        until_a_query_waits_for_a_lock(server.database()).await;
        holder.rollback().await.unwrap();
    });
    let _enrolled = enrolled.expect(201);

    assert!(came_in_a_group(&pool, &grouped).await);
    assert!(!came_in_a_group(&pool, &alone).await);
    let (in_a_group, by_itself) = (on_record(&pool, &grouped).await, on_record(&pool, &alone).await);
    assert_eq!(in_a_group["events"].as_array().unwrap().len(), 2);
    assert_eq!(in_a_group["machine_labels"].as_array().unwrap().len(), 2);
    for (table, rows) in &in_a_group {
        let by_itself = by_itself[table].to_string().replace(other_id, token_id);
        assert_eq!(rows.to_string(), by_itself, "{table}");
    }
    for machine in [&grouped, &alone] {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    server.stop().await;
}

async fn hold(holder: &mut Transaction<'static, Postgres>, statement: &'static str) {
    sqlx::query(statement).execute(&mut **holder).await.unwrap();
}

#[tokio::test]
async fn an_unusual_enrollment_in_a_group_is_handled_alone() {
    let installation = Installation::shared().await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let known = administrator.enrolled(&api).await;
    let token = administrator.token(json!({"max_uses": 100})).await;
    let once = administrator.token(json!({})).await;
    let manual = administrator.token(json!({"approval": "manual"})).await;
    let foreign = administrator.token(json!({"serial_numbers": ["C02OTHER"]})).await;
    let machines: Vec<Machine> = (0..20).map(|_| Machine::new()).collect();
    let (twin, first) = (machines[0].erased(), administrator.enrolled(&api).await);
    let _used = Machine::new().enroll(&api, Some(&once.secret)).await.expect(201);
    let [unknown, late, waiting, bound] = [(); 4].map(|()| Machine::new());
    let replaced = known.erased();
    first.forget_nonce();

    let ordinary = join_all(machines.iter().map(|machine| machine.enroll(&api, Some(&token.secret))));
    let special: Vec<BoxFuture<'_, Answer>> = vec![
        Box::pin(unknown.enroll(&api, Some("assay_enroll_of_nobody"))),
        Box::pin(late.enroll(&api, Some(&once.secret))),
        Box::pin(bound.enroll(&api, Some(&foreign.secret))),
        Box::pin(waiting.enroll(&api, Some(&manual.secret))),
        Box::pin(replaced.enroll(&api, Some(&token.secret))),
        Box::pin(first.enroll(&api, Some(&token.secret))),
        Box::pin(twin.enroll(&api, Some(&token.secret))),
    ];
    let (ordinary, special) = tokio::join!(ordinary, join_all(special));

    let [unknown, late, bound, waiting, replaced, first, twin] = special.try_into().unwrap();
    for (refused, why) in [(unknown, "unknown"), (late, "used up"), (bound, "serial number")] {
        let refused = refused.expect_problem(ProblemKind::EnrollmentTokenInvalid);
        assert!(refused.detail().contains(why), "{refused}");
    }
    for waits in [waiting, replaced] {
        let _pending = waits.expect(202);
    }
    let _repeated = first.expect(200);
    // Of two keys with the same serial number, one becomes the machine, and the other one is pending.
    let mut twins = [ordinary[0].status, twin.status];
    twins.sort_unstable();
    assert_eq!(twins, [201, 202]);
    for answer in ordinary.into_iter().skip(1) {
        let _enrolled = answer.expect(201);
    }
    // Both keys of the pair and the pending key used the token once each. The repeated call did not use it.
    assert_eq!(administrator.uses(&token).await, 22);
}

/// What can prevent a batch: a locked token, and a serial number that another transaction is inserting.
#[rstest]
#[case::token("SELECT FROM enrollment_tokens WHERE description = 'held' FOR UPDATE")]
#[case::serial_number(
    "INSERT INTO machines SELECT (jsonb_populate_record(machines, '{\"id\": \"01a20237-793a-7c7e-bc2f-4065b655732f\",
     \"serial_number\": \"HELD-1\"}')).* FROM machines WHERE serial_number = 'FIRST-1'"
)]
#[tokio::test]
async fn an_enrollment_that_waits_for_a_lock_delays_no_other(#[case] held: &'static str) {
    let server = InProcess::start().await;
    let pool = server.database().pool().await;
    let _first = server.enrolled("FIRST-1").await;
    let (token, other) = (
        server.enrollment_token(json!({"description": "held"})).await,
        server.enrollment_token(json!({})).await,
    );
    let waits = Machine::with_serial_number("HELD-1");
    let mut holder = pool.begin().await.unwrap();
    hold(&mut holder, held).await;

    let others = async {
        until_a_query_waits_for_a_lock(server.database()).await;
        for _ in 0..3 {
            let _enrolled = Machine::new().enroll(&server, Some(&other)).await.expect(201);
        }
        holder.rollback().await.unwrap();
    };
    let (waited, ()) = tokio::join!(waits.enroll(&server, Some(&token)), others);

    let _enrolled = waited.expect(201);
    server.stop().await;
}

#[tokio::test]
async fn a_token_revoked_under_load_admits_no_further_machine() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let token = administrator.token(json!({"max_uses": 1000})).await;
    let machines: Vec<Machine> = (0..MACHINES).map(|_| Machine::new()).collect();
    let mut calls: FuturesUnordered<_> = machines
        .iter()
        .enumerate()
        .map(|(call, machine)| machine.enroll(&apis[call % 2], Some(&token.secret)))
        .collect();
    let first = calls.next().await.unwrap();

    let path = format!("enrollment-tokens/{}", token.id);
    let (uses, mut answers) = tokio::join!(
        async {
            administrator.delete(&path).await;
            administrator.uses(&token).await
        },
        calls.collect::<Vec<Answer>>()
    );

    answers.push(first);
    let enrolled = answers.iter().filter(|answer| answer.status == 201).count();
    assert_eq!(
        u64::try_from(enrolled).unwrap(),
        uses,
        "one came in after the revocation was answered"
    );
    for refused in answers.into_iter().filter(|answer| answer.status != 201) {
        let refused = refused.expect_problem(ProblemKind::EnrollmentTokenInvalid);
        assert!(refused.detail().contains("revoked"), "{refused}");
    }
    let late = Machine::new().enroll(&apis[1], Some(&token.secret)).await;
    let _refused = late.expect_problem(ProblemKind::EnrollmentTokenInvalid);
    assert_eq!(administrator.uses(&token).await, uses);
}

#[derive(Clone, Copy)]
enum Outage {
    Crashed,
    Hanging,
}

#[rstest]
#[case::crashed(Outage::Crashed)]
#[case::hanging(Outage::Hanging)]
#[tokio::test]
async fn a_database_restart_under_load_loses_no_enrollment(#[case] outage: Outage) {
    let mut cluster = Cluster::start().await;
    let (configuration, name) = {
        let database = cluster.create_database().await;
        (ServerConfiguration::new(&database), database.name().to_owned())
    };
    let configuration = unlimited(configuration);
    let installation = Installation::start(&configuration).await;
    let (api, administrator) = (installation.api(0), installation.administrator());
    let token = administrator.token(json!({"max_uses": MACHINES})).await;
    let machines: Vec<Machine> = (0..MACHINES).map(|_| Machine::new()).collect();
    let nonces = join_all(machines.iter().map(|_| api.nonce())).await;
    let mut calls: FuturesUnordered<_> = machines
        .iter()
        .zip(&nonces)
        .enumerate()
        .map(|(number, (machine, nonce))| {
            let call = Answer::to(machine.enrollment(&api, Some(&token.secret), nonce));
            async move { (number, call.await) }
        })
        .collect();

    let mut answers = vec![calls.next().await.unwrap()];
    match outage {
        Outage::Crashed => cluster.crash().await,
        Outage::Hanging => cluster.pause().await,
    }
    let begun = Instant::now();
    answers.extend(calls.collect::<Vec<_>>().await);
    assert!(begun.elapsed() < ANSWERED_WITHIN, "{:?}", begun.elapsed());
    match outage {
        Outage::Crashed => cluster.restart().await,
        Outage::Hanging => cluster.resume().await,
    }

    let mut promised = BTreeMap::<usize, Value>::new();
    for (number, answer) in answers {
        match answer.status {
            201 => drop(promised.insert(number, answer.json())),
            _ => drop(answer.expect_problem(ProblemKind::Unavailable)),
        }
    }
    let _ready = api.get("/readyz").await.expect(200);
    let again = join_all(machines.iter().map(|machine| machine.enroll(&api, Some(&token.secret)))).await;
    for (number, answer) in again.into_iter().enumerate() {
        match promised.get(&number) {
            Some(promised) => {
                let kept = answer.expect(200).json();
                assert_eq!(kept["machine_id"], promised["machine_id"]);
                assert_eq!(kept["certificate"], promised["certificate"]);
            }
            None => assert!([200, 201].contains(&answer.status), "{answer}"),
        }
    }
    let mut connection = cluster.connect_options(&name).connect().await.unwrap();
    let counted: (i64, i64, i64, i64) = sqlx::query_as(
        "SELECT (SELECT count(*) FROM machines), (SELECT count(*) FROM certificates),
                (SELECT count(*) FROM events WHERE kind = 'machine.enrolled'),
                (SELECT count(*) FROM audit_entries WHERE action = 'machine.enroll')",
    )
    .fetch_one(&mut connection)
    .await
    .unwrap();
    let all = i64::try_from(MACHINES).unwrap();
    assert_eq!(counted, (all, all, all, all));
    assert_eq!(administrator.uses(&token).await, u64::try_from(MACHINES).unwrap());
    let ids: BTreeSet<Uuid> = machines.iter().map(Machine::id).collect();
    assert_eq!(ids.len(), MACHINES);
}
