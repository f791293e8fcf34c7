//! The lists of a fleet that is large enough for Postgres to need its indexes. The tests limit the pages that each list
//! reads, because times would depend on the computer's other work.

use std::time::Duration;

use assay_tests::cluster::{Cluster, Database};
use assay_tests::fleet::{self, List};
use assay_tests::in_process::InProcess;
use assay_tests::plans::{Plan, log_plans, plans};

/// A fleet that is larger than the longest walk along an index.
const MACHINES: u64 = 12_000;
/// Statements of the server's periodic work.
const BACKGROUND: [&str; 2] = ["audit_waiting", "looked_at"];
/// A request whose plan shows that all earlier plans are in the log.
const MARK: &str = "FROM permissions";

/// The plans of a list's statements. All of them are in the log when the response arrives.
async fn plans_of(server: &InProcess, list: &List) -> Vec<Plan> {
    let output = Cluster::shared().await.output();
    let from = output.lines().len();
    let page = server.get(&format!("/v1/admin/{}", list.path)).await.expect(200).json();
    let items = page["items"].as_array().unwrap();
    assert!(!items.is_empty() || !list.has_items, "{} has no items", list.path);
    let _mark = server.get("/v1/admin/permissions").await.expect(200);
    let marked = |line: &str| line.contains("on permissions").then_some(());
    output.wait_for(from, Duration::from_secs(60), marked).await.unwrap();
    let mut plans = plans(&output.lines()[from..]);
    plans.retain(|plan| !plan.text.contains(MARK) && !BACKGROUND.iter().any(|text| plan.text.contains(text)));
    plans
}

#[tokio::test]
async fn no_list_of_a_large_fleet_reads_much_more_than_it_shows() {
    let database = Database::create().await;
    fleet::fill(&database.connect_options(), MACHINES).await;
    log_plans(&database.connect_options(), database.name()).await;
    let settings = [
        ("rate_limit.api_key_per_minute", "0"),
        ("database.max_connections", "2"),
    ];
    let server = InProcess::start_on(&database.url(), &settings).await;
    for list in fleet::lists(&database.connect_options()).await {
        let plans = plans_of(&server, &list).await;
        let pages: u64 = plans.iter().map(|plan| plan.pages).sum();
        let read = || plans.iter().map(|plan| plan.text.as_str()).collect::<String>();
        assert!(
            pages <= list.most_pages,
            "{pages} pages for {} ({}):\n{}",
            list.name,
            list.path,
            read()
        );
        let by_part = plans.iter().any(|plan| plan.text.contains("machine_search_by_part"));
        assert!(by_part || !list.by_part, "{} ({}):\n{}", list.name, list.path, read());
    }
    server.stop().await;
}
