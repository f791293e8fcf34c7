//! A server's metrics and log, neither of which contains a secret.

use std::time::Duration;

use assay_protocol::ProblemKind;
use assay_tests::administrator::{Administrator, text};
use assay_tests::cluster::Database;
use assay_tests::in_process::InProcess;
use assay_tests::installation::{Installation, unlimited};
use assay_tests::machine::Machine;
use assay_tests::processes::{Server, ServerConfiguration};
use http::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use uuid::Uuid;

#[tokio::test]
async fn metrics_cover_endpoints_committer_and_pool_and_reveal_no_secret() {
    let database = Database::create().await;
    let configuration = unlimited(ServerConfiguration::new(&database)).set("log.level", "trace");
    let installation = Installation::start(&configuration).await;
    let (server, api, administrator) = (
        &installation.servers[0],
        installation.api(0),
        installation.administrator(),
    );

    let token = administrator.token(json!({})).await;
    let machine = Machine::new();
    assert_eq!(machine.enroll(&api, Some(&token.secret)).await.status, 201);
    let permission = administrator.permission("told").await;
    administrator.grant(&permission, &machine, json!({})).await;
    refuse_a_transaction(&administrator).await;
    let nonce = api.nonce().await;
    let evidence = text(&machine.check_in_body(api.audience(), &nonce), "evidence");
    let checked_in = api
        .post("/v1/check-in", &json!({"evidence": evidence}))
        .await
        .expect(200)
        .json();
    let grant = text(&checked_in["grants"][0], "token");
    let stranger = Administrator::new(installation.api(0), "assay_key_that_nobody_was_given");
    let refused = stranger.call(Method::GET, "machines", None).await;
    let request_id = refused.expect_problem(ProblemKind::Unauthenticated).request_id();

    let figures = metrics(server).await;
    for figure in [
        r#"assay_http_requests_total{endpoint="/v1/check-in",method="POST",status="200"} 1"#,
        r#"assay_http_requests_total{endpoint="/v1/enroll",method="POST",status="201"} 1"#,
        r#"assay_problems_total{slug="unauthenticated"} 1"#,
        "assay_committer_batch_size_count 1",
        r#"assay_transactions_total{transaction="create_grant",result="committed"} 1"#,
        r#"assay_transactions_total{transaction="create_grant",result="refused"} 1"#,
        r#"assay_transactions_total{transaction="check_in",result="committed"} 1"#,
        r#"assay_transaction_duration_seconds_count{transaction="create_grant"} 2"#,
        "assay_database_connections ",
    ] {
        assert!(figures.contains(figure), "no {figure} in\n{figures}");
    }
    let log = server.output().lines();
    let told = log.iter().any(|line| line.contains(&request_id.to_string()));
    assert!(told, "no line has the request id {request_id}:\n{}", server.output());
    for line in log.iter().chain([&figures]) {
        for secret in [
            installation.api_key.as_str(),
            &token.secret,
            &evidence,
            &grant,
            "that_nobody_was_given",
        ] {
            assert!(!line.contains(secret), "{line}");
        }
    }
    assert!(
        log.iter().all(|line| serde_json::from_str::<Value>(line).is_ok()),
        "{}",
        server.output()
    );
}

/// Of 1,664 refusals in a log, no line said who was refused.
#[tokio::test]
async fn the_log_of_a_refusal_names_address_identity_problem_and_detail() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let (server, api, administrator) = (
        &installation.servers[0],
        installation.api(0),
        installation.administrator(),
    );
    let viewer = administrator
        .create("api-keys", &json!({"name": "reader", "role": "viewer"}))
        .await;
    let reader = Administrator::new(installation.api(0), &text(&viewer, "key"));
    let forbidden = reader
        .call(
            Method::POST,
            "permissions",
            Some(&json!({"audience": "a", "name": "n"})),
        )
        .await;
    let machine = administrator.enrolled(&api).await;
    let _quarantined = administrator
        .decide(machine.id(), "quarantine", "odd")
        .await
        .expect(200);
    let suspended = machine.check_in(&api).await;
    let stranger = Administrator::new(installation.api(0), "assay_key_that_nobody_was_given");
    let unknown = stranger.call(Method::GET, "machines", None).await;

    let machine_id = json!(machine.id());
    for (answer, problem, api_key, machine) in [
        (&forbidden, ProblemKind::Forbidden, &viewer["id"], &Value::Null),
        (&suspended, ProblemKind::MachineQuarantined, &Value::Null, &machine_id),
        (&unknown, ProblemKind::Unauthenticated, &Value::Null, &Value::Null),
    ] {
        assert_eq!(answer.kind(), problem, "{answer}");
        let request_id = answer.request_id().to_string();
        let is_logged = |line: &str| (line.contains(&request_id) && line.contains("refused")).then_some(());
        server
            .output()
            .wait_for(0, Duration::from_secs(30), is_logged)
            .await
            .unwrap();
        let lines = server.output().lines();
        let lines = lines
            .iter()
            .filter(|line| line.contains(&request_id) && line.contains("refused"));
        let lines: Vec<Value> = lines.map(|line| serde_json::from_str(line).unwrap()).collect();
        let [line] = lines.as_slice() else {
            panic!("{problem:?}: {lines:?}")
        };
        assert_eq!(line["problem"], json!(problem.slug()), "{line}");
        assert_eq!(line["detail"], json!(answer.detail()), "{line}");
        assert_eq!(line["address"], json!("127.0.0.1"), "{line}");
        assert_eq!((&line["api_key"], &line["machine"]), (api_key, machine), "{line}");
    }
}

/// A signature costs the server more than a stranger's call costs the stranger.
#[tokio::test]
async fn a_call_without_a_valid_token_does_not_make_the_ca_sign() {
    let server = InProcess::start().await;
    let short = server.enrollment_token(json!({"expires_in_seconds": 60})).await;
    let single = server.enrollment_token(json!({"max_uses": 1})).await;
    let bound = server.enrollment_token(json!({"serial_numbers": ["BOUND"]})).await;
    let revoked = server.create_enrollment_token(json!({})).await;
    let path = format!("/v1/admin/enrollment-tokens/{}", text(&revoked, "id"));
    let _revoked = server.delete(&path).await.expect(204);
    let good = Machine::with_serial_number("GOOD");
    let _enrolled = good.enroll(&server, Some(&single)).await.expect(201);
    let renewing = server.enrolled("RENEWING").await;
    assert_eq!(signed(&server).await, 2);

    server.clock().advance(time::Duration::minutes(2));
    let unfit = [
        &short,
        &single,
        &bound,
        &text(&revoked, "token"),
        "assay_enroll_guessed",
    ];
    for (number, token) in unfit.into_iter().enumerate() {
        let stranger = Machine::with_serial_number(&format!("UNFIT-{number}"));
        let refused = stranger.enroll(&server, Some(token)).await;
        let _refused = refused.expect_problem(ProblemKind::EnrollmentTokenInvalid);
        let refused = renewing.renew_with_token(&server, &renewing, token).await;
        let _refused = refused.expect_problem(ProblemKind::EnrollmentTokenInvalid);
    }
    assert_eq!(signed(&server).await, 2);
    server.stop().await;
}

/// How many certificates the server's CA has signed.
async fn signed(server: &InProcess) -> u64 {
    let metrics = server.metrics().await;
    let mut lines = metrics.lines();
    let figure = lines.find_map(|line| line.strip_prefix("assay_certificates_signed_total "));
    figure.unwrap_or_else(|| panic!("{metrics}")).parse().unwrap()
}

/// The response of `/metrics`, with its head.
async fn metrics(server: &Server) -> String {
    let mut connection = TcpStream::connect(server.telemetry_address()).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nHost: telemetry\r\nConnection: close\r\n\r\n";
    connection.write_all(request).await.unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

/// A grant of a permission that does not exist ends a transaction without a change.
async fn refuse_a_transaction(administrator: &Administrator) {
    let of_no_permission = json!({"permission_id": Uuid::nil(), "selector": {"all": true}});
    let refused = administrator
        .call(Method::POST, "grants", Some(&of_no_permission))
        .await;
    let _unknown_permission = refused.expect_problem(ProblemKind::NotFound);
}
