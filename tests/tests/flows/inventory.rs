//! The inventory: an import succeeds as a whole or not at all, and rows give machines labels and assurance.

use std::fmt::Write;
use std::time::Instant;

use assay_protocol::ProblemKind;
use assay_tests::administrator::text;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use futures_util::future::join_all;
use http::Method;
use serde_json::{Value, json};

/// The lock of an import.
const IMPORT_LOCK: i64 = 0x0061_7373_6179_0503;
/// The longest that an import of 100,000 rows may take, on a busy machine.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

async fn put(server: &InProcess, mode: &str, media_type: &str, body: String) -> Answer {
    let request = server.admin(Method::PUT, &format!("/v1/admin/inventory{mode}"));
    server.send(request.header("content-type", media_type).body(body)).await
}

async fn import(server: &InProcess, mode: &str, csv: &str) -> Value {
    let csv = format!("serial_number,labels,owner\n{csv}");
    put(server, mode, "text/csv", csv).await.expect(200).json()
}

async fn import_these(server: &InProcess, serial_numbers: &[String]) -> Value {
    let items: Vec<Value> = serial_numbers
        .iter()
        .map(|name| json!({"serial_number": name}))
        .collect();
    let body = json!({ "items": items }).to_string();
    put(server, "", "application/json", body).await.expect(200).json()
}

/// The counts `added`, `changed`, `removed`, `unchanged` and `lowered`.
fn counts(imported: &Value) -> [u64; 5] {
    ["added", "changed", "removed", "unchanged", "lowered"].map(|name| imported[name].as_u64().unwrap())
}

async fn names(server: &InProcess, path: &str) -> Vec<String> {
    let page = server.get(path).await.expect(200).json();
    let items = page["items"].as_array().unwrap();
    items.iter().map(|item| text(item, "serial_number")).collect()
}

async fn audit(server: &InProcess, resource: &str) -> Vec<Value> {
    let page = server.get(&format!("/v1/admin/audit?resource={resource}")).await.json();
    page["items"].as_array().unwrap().clone()
}

/// The only item with these members. Items have no order, because the clock stands still.
fn only(items: &[Value], is_meant: impl Fn(&Value) -> bool) -> &Value {
    let mut found = items.iter().filter(|item| is_meant(item));
    match (found.next(), found.next()) {
        (Some(item), None) => item,
        _ => panic!("not one of it in {items:?}"),
    }
}

#[tokio::test]
async fn an_import_replaces_or_merges_and_repeating_it_changes_nothing() {
    let server = InProcess::start().await;
    let first = import(&server, "", "B,team=ios;site=a,Ada\nA,,\n").await;
    assert_eq!((&first["mode"], &first["total"]), (&json!("replace"), &json!(2)));
    assert_eq!(counts(&first), [2, 0, 0, 0, 0]);
    let again = import(&server, "", "A,,\nB,site=a;team=ios,Ada\n").await;
    assert_eq!(counts(&again), [0, 0, 0, 2, 0]);
    let merged = import(&server, "?mode=merge", "B,team=ios,Ada\nC,,Bob\n").await;
    assert_eq!(counts(&merged), [1, 1, 0, 0, 0]);
    assert_eq!(names(&server, "/v1/admin/inventory").await, ["A", "B", "C"]);
    let replaced = import(&server, "?mode=replace", "B,team=ios,Ada\n").await;
    assert_eq!(counts(&replaced), [0, 0, 2, 1, 0]);

    let item = server.get("/v1/admin/inventory/B").await.expect(200).json();
    assert_eq!(
        (&item["labels"], &item["owner"]),
        (&json!({"team": "ios"}), &json!("Ada"))
    );
    assert_eq!(item["machine"], Value::Null);
    // An import that changed nothing has no audit entry.
    let entries = audit(&server, "inventory:all").await;
    assert_eq!(entries.len(), 3, "{entries:?}");
    let last = only(&entries, |entry| entry["after"]["removed"] == 2);
    assert_eq!(last["action"], "inventory.import");
    assert_eq!(text(&last["after"], "sha256").len(), 64);

    let _removed = server.delete("/v1/admin/inventory/B").await.expect(204);
    let _gone = server
        .delete("/v1/admin/inventory/B")
        .await
        .expect_problem(ProblemKind::NotFound);
    let _gone = server
        .get("/v1/admin/inventory/B")
        .await
        .expect_problem(ProblemKind::NotFound);
    assert_eq!(audit(&server, "inventory:B").await[0]["action"], "inventory.remove");
    server.stop().await;
}

#[tokio::test]
async fn a_file_with_wrong_rows_names_their_lines_and_changes_nothing() {
    let server = InProcess::start().await;
    import(&server, "", "KEPT,,\n").await;
    let csv = "serial_number,labels,owner\nA,,\nB,team,\n\nA,,\n,,\n";
    let refused = put(&server, "", "text/csv", csv.to_owned()).await;
    assert_eq!(refused.kind(), ProblemKind::Malformed, "{refused}");
    assert!(refused.detail().contains("3 rows are wrong: line 3: "), "{refused}");
    let errors = refused.json()["errors"].clone();
    let lines: Vec<u64> = errors
        .as_array()
        .unwrap()
        .iter()
        .map(|error| error["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines, [3, 5, 6]);
    assert!(text(&errors[1], "detail").contains("already in line 2"), "{errors}");

    let json = "{\"items\": [\n {\"serial_number\": \"A\"},\n {\"serial_number\": \"B\", \"lables\": {}}\n]}";
    let refused = put(&server, "?mode=merge", "application/json", json.to_owned()).await;
    assert_eq!(refused.kind(), ProblemKind::Malformed, "{refused}");
    assert_eq!(refused.json()["errors"][0]["line"], 3);
    assert!(
        refused.detail().contains("item 2: ") && refused.detail().contains("lables"),
        "{refused}"
    );
    // On one line, only their numbers distinguish them.
    let json = r#"{"items": [{"serial_number": "A"}, {"serial_number": ""}]}"#;
    let refused = put(&server, "?mode=merge", "application/json", json.to_owned()).await;
    assert!(refused.detail().contains("item 2: serial_number is empty"), "{refused}");

    let _mode = put(&server, "?mode=all", "text/csv", csv.to_owned())
        .await
        .expect_problem(ProblemKind::Malformed);
    assert_eq!(names(&server, "/v1/admin/inventory").await, ["KEPT"]);
    assert_eq!(audit(&server, "inventory:all").await.len(), 1);
    server.stop().await;
}

#[tokio::test]
async fn a_concurrent_import_is_refused_and_may_be_retried() {
    let server = InProcess::start().await;
    let mut other = server.database().pool().await.begin().await.unwrap();
    let take = sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(IMPORT_LOCK);
    take.execute(&mut *other).await.unwrap();
    let busy = put(&server, "", "text/csv", "serial_number\nA\n".to_owned()).await;
    assert_eq!(busy.kind(), ProblemKind::Unavailable, "{busy}");
    assert!(busy.detail().contains("another import"), "{busy}");
    other.rollback().await.unwrap();
    assert_eq!(counts(&import(&server, "", "A,,\n").await), [1, 0, 0, 0, 0]);
    server.stop().await;
}

#[tokio::test]
async fn an_inventory_match_verifies_a_new_machine_and_sets_labels_and_owner() {
    let server = InProcess::start().await;
    import(
        &server,
        "",
        "LISTED,team=ios;stage=production,Ada\nABSENT,,\nWAITS,team=tv,\n",
    )
    .await;
    let token = server.enrollment_token(json!({"labels": {"stage": "test"}})).await;
    let (listed, unlisted) = (
        Machine::with_serial_number("LISTED"),
        Machine::with_serial_number("UNLISTED"),
    );
    let enrolled = listed.enroll(&server, Some(&token)).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "verified");
    let enrolled = unlisted.enroll(&server, Some(&token)).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "asserted");

    let record = server.get(&listed.path()).await.json();
    assert_eq!(record["labels"], json!({"team": "ios", "stage": "test"}));
    assert_eq!(
        (&record["in_inventory"], &record["owner"]),
        (&json!(true), &json!("Ada"))
    );
    assert!(text(&record, "assurance_reason").starts_with("verified: the serial number is in the inventory"));
    let record = server.get(&unlisted.path()).await.json();
    assert_eq!(
        (&record["in_inventory"], &record["owner"]),
        (&json!(false), &Value::Null)
    );
    assert!(text(&record, "assurance_reason").starts_with("asserted: "));

    // A pending enrollment also shows that the inventory has the serial number.
    let manual = server.enrollment_token(json!({"approval": "manual"})).await;
    let waits = Machine::with_serial_number("WAITS");
    let _pending = waits.enroll(&server, Some(&manual)).await.expect(202);
    let enrolled = "/v1/admin/inventory?enrolled=true";
    assert_eq!(names(&server, enrolled).await, ["LISTED"]);
    let missing = "/v1/admin/inventory?enrolled=false";
    assert_eq!(names(&server, missing).await, ["ABSENT", "WAITS"]);
    let item = server.get("/v1/admin/inventory/WAITS").await.json();
    assert_eq!(item["machine"]["status"], "pending");
    let pending = server.get("/v1/admin/enrollments?status=pending").await.json();
    assert_eq!(pending["items"][0]["in_inventory"], true);
    assert_eq!(
        names(&server, "/v1/admin/machines?in_inventory=false").await,
        ["UNLISTED"]
    );
    assert_eq!(
        names(&server, "/v1/admin/machines?in_inventory=true").await,
        ["LISTED", "WAITS"]
    );
    server.stop().await;
}

#[tokio::test]
async fn a_row_added_later_raises_assurance_only_on_approval() {
    let server = InProcess::start().await;
    let (enrolled, waits) = (server.enrolled("ENROLLED").await, Machine::with_serial_number("WAITS"));
    let manual = json!({"approval": "manual", "labels": {"stage": "test"}});
    let manual = server.enrollment_token(manual).await;
    let _pending = waits.enroll(&server, Some(&manual)).await.expect(202);
    import(&server, "", "ENROLLED,team=ios,Ada\nWAITS,team=tv;stage=production,\n").await;

    let record = server.get(&enrolled.path()).await.json();
    assert_eq!(
        (&record["assurance"], &record["labels"]),
        (&json!("asserted"), &json!({}))
    );
    assert_eq!(record["owner"], "Ada");
    assert!(
        text(&record, "assurance_reason").contains("never rises by itself"),
        "{record}"
    );
    let _approved = server
        .post(&format!("{}/approve", waits.path()), &json!({}))
        .await
        .expect(200);
    let record = server.get(&waits.path()).await.json();
    assert_eq!(record["labels"], json!({"team": "tv", "stage": "test"}));
    let reason = text(&record, "assurance_reason");
    assert!(reason.contains("inventory") && reason.contains("approved"), "{reason}");

    // The approval remains when the row is removed.
    assert_eq!(counts(&import(&server, "?allow_empty=true", "").await), [0, 0, 2, 0, 0]);
    let record = server.get(&waits.path()).await.json();
    assert_eq!(record["assurance"], "verified");
    assert!(!text(&record, "assurance_reason").contains("inventory"), "{record}");
    server.stop().await;
}

#[tokio::test]
async fn removing_a_row_lowers_the_assurance_that_rests_only_on_it() {
    let server = InProcess::start().await;
    import(&server, "", "ALONE,,\nNAMED,,\n").await;
    let alone = server.enrolled("ALONE").await;
    let token = server.enrollment_token(json!({"serial_numbers": ["NAMED"]})).await;
    let named = Machine::with_serial_number("NAMED");
    let _enrolled = named.enroll(&server, Some(&token)).await.expect(201);
    let permission = json!({"audience": "a", "name": "p"});
    let permission = server.post("/v1/admin/permissions", &permission).await.json();
    let grant = json!({
        "permission_id": permission["id"], "selector": {"all": true}, "conditions": {"min_assurance": "verified"},
    });
    let _granted = server.post("/v1/admin/grants", &grant).await.expect(201);
    for machine in [&alone, &named] {
        let checked_in = machine.check_in(&server).await.expect(200).json();
        assert_eq!(checked_in["grants"].as_array().unwrap().len(), 1, "{checked_in}");
    }

    assert_eq!(counts(&import(&server, "", "OTHER,,\n").await), [1, 0, 2, 0, 1]);
    let checked_in = alone.check_in(&server).await.expect(200).json();
    assert_eq!(
        (&checked_in["assurance"], &checked_in["grants"]),
        (&json!("asserted"), &json!([]))
    );
    let checked_in = named.check_in(&server).await.expect(200).json();
    assert_eq!(checked_in["assurance"], "verified");
    assert_eq!(checked_in["grants"].as_array().unwrap().len(), 1, "{checked_in}");
    let record = server.get(&alone.path()).await.json();
    assert!(text(&record, "assurance_reason").contains("removed since"), "{record}");
    let events = server.get(&format!("{}/events", alone.path())).await.json();
    let events = events["items"].as_array().unwrap();
    let lowered = only(events, |event| event["kind"] == "machine.assurance-lowered");
    assert!(
        text(&lowered["detail"], "reason").contains("ALONE was removed from the inventory"),
        "{lowered}"
    );
    let entries = audit(&server, &format!("machine:{}", alone.id())).await;
    let lowered = only(&entries, |entry| entry["action"] == "machine.lower-assurance");
    assert_eq!(lowered["after"], json!({"assurance": "asserted"}));
    assert!(text(lowered, "reason").contains("ALONE was removed"), "{lowered}");

    server.stop().await;
}

#[tokio::test]
async fn a_row_that_returns_raises_no_assurance_until_the_machine_reenrolls() {
    let server = InProcess::start().await;
    import(&server, "", "ALONE,,\n").await;
    let alone = server.enrolled("ALONE").await;
    let _removed = server.delete("/v1/admin/inventory/ALONE").await.expect(204);
    import(&server, "", "ALONE,,\n").await;
    let record = server.get(&alone.path()).await.json();
    assert_eq!(
        (&record["assurance"], &record["in_inventory"]),
        (&json!("asserted"), &json!(true))
    );
    assert!(
        text(&record, "assurance_reason").contains("return does not raise"),
        "{record}"
    );
    let token = json!({"serial_numbers": ["ALONE"], "allow_reenrollment": true});
    let token = server.enrollment_token(token).await;
    let erased = alone.erased();
    let _taken_over = erased.enroll(&server, Some(&token)).await.expect(201);
    let record = server.get(&erased.path()).await.json();
    assert_eq!(record["assurance"], "verified");
    let _removed = server.delete("/v1/admin/inventory/ALONE").await.expect(204);
    let record = server.get(&erased.path()).await.json();
    assert_eq!(record["assurance"], "verified");
    let reason = text(&record, "assurance_reason");
    assert!(reason.contains("token") && !reason.contains("inventory"), "{reason}");
    server.stop().await;
}

/// The number of machines with the ground `inventory` whose row does not exist.
async fn groundless(server: &InProcess) -> i64 {
    sqlx::query_scalar(
        "SELECT count(*) FROM machines
         WHERE (ground_inventory = 'matched' OR assurance = 'verified')
           AND NOT EXISTS (SELECT FROM inventory WHERE inventory.serial_number = machines.serial_number)",
    )
    .fetch_one(&server.database().pool().await)
    .await
    .unwrap()
}

/// The result must be that of one order or the other.
#[tokio::test]
async fn an_enrollment_during_an_import_never_rests_on_a_removed_row() {
    let unlimited = [
        ("rate_limit.machine_per_minute", "0"),
        ("rate_limit.address_per_minute", "0"),
    ];
    let server = InProcess::start_with(&unlimited).await;
    let replica = InProcess::start_on(&server.database().url(), &unlimited).await;
    let token = server.enrollment_token(json!({})).await;
    let (mut kept, mut fell) = (0, 0);
    for round in 0..12 {
        let machines: Vec<_> = (0..6)
            .map(|at| Machine::with_serial_number(&format!("R{round}-{at}")))
            .collect();
        let all: Vec<String> = machines
            .iter()
            .map(|machine| machine.serial_number().to_owned())
            .collect();
        import_these(&server, &all).await;
        let enrollments = join_all(machines.iter().map(|machine| machine.enroll(&server, Some(&token))));
        let imports = async {
            // The first half stays. The second half is removed, and one of it is added again.
            import_these(&replica, &all[..3]).await;
            import_these(&replica, &all[..4]).await;
            let path = format!("/v1/admin/inventory/{}", all[0]);
            let _removed = replica.delete(&path).await.expect(204);
        };
        let (enrolled, ()) = tokio::join!(enrollments, imports);
        for answer in enrolled {
            let _enrolled = answer.expect(201);
        }
        assert_eq!(groundless(&server).await, 0, "in round {round}");
        for machine in &machines {
            let record = server.get(&machine.path()).await.json();
            match record["assurance"].as_str().unwrap() {
                "verified" => kept += 1,
                _ => fell += 1,
            }
        }
    }
    // Both orders must occur, otherwise nothing has raced.
    assert!(kept > 0 && fell > 0, "{kept} kept, {fell} fell");
    replica.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_hundred_thousand_rows_are_imported_and_removed_in_seconds() {
    const ROWS: usize = 100_000;
    let server = InProcess::start().await;
    let timed = async |what: &str, mode: &str, media_type: &str, body: String| {
        let (bytes, begin) = (body.len(), Instant::now());
        let imported = put(&server, mode, media_type, body).await.expect(200).json();
        let took = begin.elapsed();
        println!("{what}: {ROWS} rows, {bytes} bytes: {took:.2?}");
        assert!(took < PATIENCE, "{what} took {took:?}");
        imported
    };
    let mut csv = "serial_number,labels,owner\n".to_owned();
    for row in 0..ROWS {
        writeln!(csv, "C02{row:08},team=ios;site=s{},owner {row}", row % 50).unwrap();
    }
    let imported = timed("CSV, all new", "", "text/csv", csv.clone()).await;
    assert_eq!(counts(&imported), [100_000, 0, 0, 0, 0]);
    let imported = timed("CSV, all the same", "", "text/csv", csv).await;
    assert_eq!(counts(&imported), [0, 0, 0, 100_000, 0]);
    let items: Vec<Value> = (0..ROWS)
        .map(|row| json!({"serial_number": format!("C02{row:08}"), "labels": {"team": "tv"}, "owner": null}))
        .collect();
    let imported = timed(
        "JSON, all changed",
        "?mode=merge",
        "application/json",
        json!({ "items": items }).to_string(),
    )
    .await;
    assert_eq!(counts(&imported), [0, 100_000, 0, 0, 0]);

    // A machine for every tenth row, as an enrollment would create it.
    let pool = server.database().pool().await;
    let machines =
        "INSERT INTO machines (id, status, assurance, serial_number, claimed_posture, current_key, key_store,
                                          key_created_at, enrolled_at, ground_inventory)
                    SELECT gen_random_uuid(), 'active', 'verified', serial_number, '{}',
                           sha256(serial_number::bytea), 'software', now(), now(), 'matched'
                    FROM inventory WHERE serial_number LIKE '%0'";
    let presences = "INSERT INTO machine_presence (machine_id, admitted, current_key, claims_digest, last_nonce_at)
                     SELECT id, true, current_key, current_key, now() FROM machines";
    for statement in [machines, presences] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let imported = timed(
        "CSV, all gone, with their machines' assurance",
        "?allow_empty=true",
        "text/csv",
        "serial_number\n".to_owned(),
    )
    .await;
    assert_eq!(counts(&imported), [0, 0, 100_000, 0, 10_000]);
    assert_eq!(groundless(&server).await, 0);
    server.stop().await;
}

/// CSV as Excel saves it in different countries.
#[tokio::test]
async fn a_spreadsheet_file_is_read_or_refused_with_the_reason() {
    let server = InProcess::start().await;
    let wide = |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
    let with_mark = |text: &str| [b"\xff\xfe".as_slice(), &wide(text)].concat();
    let put = async |content_type: &str, body: Vec<u8>| {
        let request = server.admin(Method::PUT, "/v1/admin/inventory");
        server
            .send(request.header("content-type", content_type).body(body))
            .await
    };
    let header = "serial_number,labels,owner\n";
    for (content_type, body, words) in [
        (
            "text/csv",
            with_mark(header),
            "the file is UTF-16: save it as CSV UTF-8",
        ),
        ("text/csv", wide(header), "the file is UTF-16: save it as CSV UTF-8"),
        (
            "text/csv",
            b"serial_number;labels;owner\nA;;\n".to_vec(),
            "separated by semicolons",
        ),
        ("text/csv", b"serial_number\tlabels\n".to_vec(), "separated by tabs"),
        (
            "text/csv",
            format!("{header}A,,x\nB,\"a=b,y\nC,,z\n").into_bytes(),
            "a quote in the row at line 3 is never closed",
        ),
        (
            "text/csv",
            format!("{header},,x\n").into_bytes(),
            "because 1 row is wrong: line 2",
        ),
        (
            "text/csv",
            format!("{header},,x\n,,y\n").into_bytes(),
            "because 2 rows are wrong: line 2",
        ),
        (
            "application/json",
            br#"{"items": [{"serial_number": "A", "labels": null}]}"#.to_vec(),
            "labels: invalid type: null",
        ),
    ] {
        let refused = put(content_type, body).await.expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains(words), "{words}: {refused}");
    }
    let with_mark = [
        b"\xef\xbb\xbf".as_slice(),
        header.as_bytes(),
        b"A,\"a=b\",\"the \"\"first\"\"\"\n",
    ]
    .concat();
    let _read = put("text/csv", with_mark).await.expect(200);
    server.stop().await;
}

/// Without this check, a script whose query found nothing would lower the assurance of the whole fleet.
#[tokio::test]
async fn an_empty_import_needs_confirmation() {
    let server = InProcess::start().await;
    let put = async |query: &str, body: &Value| {
        let request = server.admin(Method::PUT, &format!("/v1/admin/inventory{query}"));
        server.send(request.json(body)).await
    };
    let empty = json!({"items": []});
    let _filled = put("", &json!({"items": [{"serial_number": "A"}]})).await.expect(200);
    for query in ["", "?mode=replace", "?allow_empty=false"] {
        let refused = put(query, &empty).await.expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains("allow_empty=true"), "{refused}");
    }
    let _merged = put("?mode=merge", &empty).await.expect(200);
    let _still_there = server.get("/v1/admin/inventory/A").await.expect(200);
    let emptied = put("?allow_empty=true", &empty).await.expect(200).json();
    assert_eq!(emptied["removed"], 1);
    server.stop().await;
}
