//! Problems that need a server of their own: other settings, another time, or a database that fails.

use assay_tests::answer::Answer;
use assay_tests::cluster::Cluster;
use assay_tests::in_process::InProcess;
use reqwest::Method;
use serde_json::json;
use time::Duration;

pub(super) async fn renewal_expired() -> Vec<Answer> {
    let server = InProcess::start().await;
    let machine = server.enrolled("EXPIRED").await;
    // The certificate's 7 days, minus the minute by which it is backdated, and 90 days of grace.
    server.clock().advance(Duration::days(97) - Duration::hours(1));
    assert_eq!(machine.renew(&server).await.status, 200);
    server.clock().advance(Duration::days(97));
    let refused = vec![machine.renew(&server).await, machine.check_in(&server).await];
    server.stop().await;
    refused
}

pub(super) async fn machine_exists() -> Vec<Answer> {
    let server = InProcess::start_with(&[("enrollment.reenrollment", "refuse")]).await;
    let machine = server.enrolled("EXISTS").await;
    let token = server.enrollment_token(json!({})).await;
    let refused = machine.erased().enroll(&server, Some(&token)).await;
    // The refusal has changed nothing.
    assert_eq!(machine.check_in(&server).await.status, 200);
    server.stop().await;
    vec![refused]
}

pub(super) async fn rate_limited() -> Vec<Answer> {
    let limits = [
        ("rate_limit.machine_per_minute", "3"),
        ("rate_limit.address_per_minute", "40"),
        ("rate_limit.api_key_per_minute", "5"),
    ];
    let server = InProcess::start_with(&limits).await;
    let machine = server.enrolled("LIMITED").await;
    let mut answers = Vec::new();
    for _ in 0..3 {
        assert_eq!(machine.check_in(&server).await.status, 200);
    }
    answers.push(machine.check_in(&server).await);
    answers.push(machine.renew(&server).await);
    let mut list = server.get("/v1/admin/permissions").await;
    while list.status == 200 {
        list = server.get("/v1/admin/permissions").await;
    }
    answers.push(list);
    server.stop().await;
    answers
}

pub(super) async fn unavailable() -> Vec<Answer> {
    let mut cluster = Cluster::start().await;
    let url = cluster.create_database().await.url();
    let server = InProcess::start_on(&url, &[]).await;
    let machine = server.enrolled("UNAVAILABLE").await;
    cluster.stop().await;
    let (check_in, renewal, list, ready) = tokio::join!(
        machine.check_in(&server),
        machine.renew(&server),
        server.get("/v1/admin/permissions"),
        server.send(server.request(Method::GET, "/readyz")),
    );
    // Restarting the server would not repair the database.
    assert_eq!(server.send(server.request(Method::GET, "/healthz")).await.status, 200);
    cluster.restart().await;
    // The result of a second ago may still count.
    while server.send(server.request(Method::GET, "/readyz")).await.status != 200 {}
    assert_eq!(machine.check_in(&server).await.status, 200);
    server.stop().await;
    vec![check_in, renewal, list, ready]
}

/// A table is missing. The server fails, and the caller learns only the request's id.
pub(super) async fn internal() -> Vec<Answer> {
    let server = InProcess::start().await;
    let machine = server.enrolled("INTERNAL").await;
    let pool = server.database().pool().await;
    for statement in [
        "ALTER TABLE permissions RENAME TO gone",
        "ALTER TABLE machine_presence RENAME TO gone_too",
    ] {
        sqlx::query(statement).execute(&pool).await.unwrap();
    }
    let answers = vec![
        server.get("/v1/admin/permissions").await,
        machine.check_in(&server).await,
        machine.renew(&server).await,
    ];
    server.stop().await;
    answers
}
