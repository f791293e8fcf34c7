//! The periodic work of a replica.

use assay_tests::in_process::InProcess;
use serde_json::{Value, json};
use tokio::task::yield_now;

async fn background_work(server: &InProcess) -> Vec<Value> {
    let list = server.get("/v1/admin/background-work").await.expect(200).json();
    assert_eq!(list["next_cursor"], Value::Null);
    list["items"].as_array().unwrap().clone()
}

/// Repeats the request until the item with this name is as expected.
async fn until(server: &InProcess, name: &str, is_right: impl Fn(&Value) -> bool) -> Value {
    loop {
        let items = background_work(server).await;
        let item = items.into_iter().find(|item| item["name"] == name).unwrap();
        if is_right(&item) {
            return item;
        }
        yield_now().await;
    }
}

#[tokio::test]
async fn each_kind_of_periodic_work_is_listed_with_its_last_run() {
    let server = InProcess::start().await;
    let names: Vec<String> = background_work(&server)
        .await
        .iter()
        .map(|item| item["name"].as_str().unwrap().to_owned())
        .collect();
    for name in [
        "seal the audit log",
        "deliver to webhooks",
        "refresh the TLS certificate",
    ] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }
    for name in &names {
        assert_eq!(names.iter().filter(|found| *found == name).count(), 1, "{name}");
        let item = until(&server, name, |item| !item["last_finished_at"].is_null()).await;
        assert!(item["interval_seconds"].as_f64().unwrap() > 0.0, "{item}");
        assert!(
            item["last_started_at"].is_string() && item["last_duration_ms"].is_u64(),
            "{item}"
        );
        assert_eq!(item["last_error"], Value::Null, "{item}");
    }
    server.stop().await;
}

/// The error's text would name the table and the fault of the statement.
#[tokio::test]
async fn work_that_fails_says_so_without_the_database_s_words_until_it_succeeds_again() {
    let server = InProcess::start().await;
    let pool = server.database().pool().await;
    let rename = async |from: &str, to: &str| {
        let statement = format!("ALTER TABLE {from} RENAME TO {to}");
        sqlx::raw_sql(&statement).execute(&pool).await.unwrap();
    };
    rename("webhooks", "webhooks_elsewhere").await;
    let failed = until(&server, "deliver to webhooks", |item| !item["last_error"].is_null()).await;
    assert_eq!(failed["last_error"], json!("the work failed; see the log"));
    rename("webhooks_elsewhere", "webhooks").await;
    let _ = until(&server, "deliver to webhooks", |item| item["last_error"].is_null()).await;
    server.stop().await;
}
