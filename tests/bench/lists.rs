//! Measures the lists of a large fleet through the real server. Fills a private Postgres, reads each list repeatedly,
//! prints a table, and fails if a median exceeds the limit. `--plans` also prints the plans of Postgres.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a measurement that cannot go on has failed and says where, and figures are what it is for"
)]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use assay_tests::administrator::Administrator;
use assay_tests::fleet::{self, List};
use assay_tests::installation::{Installation, unlimited};
use assay_tests::plans::{log_plans, plans};
use assay_tests::processes::{Server, ServerConfiguration};
use serde_json::Value;
use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

const MACHINES: u64 = 1_000_000;
const RUNS: usize = 20;
const LIMIT: Duration = Duration::from_millis(50);
/// Statements of the server's periodic work.
const BACKGROUND: [&str; 2] = ["audit_waiting", "looked_at"];

#[tokio::main]
async fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| {
        let place = arguments.iter().position(|argument| argument == name)?;
        arguments.get(place + 1).cloned()
    };
    let machines = value("--machines").map_or(MACHINES, |machines| machines.parse().unwrap());
    let filled = value("--database");
    let configuration = match &filled {
        Some(url) => ServerConfiguration::with_private_postgres().set("database.url", url),
        None => ServerConfiguration::with_private_postgres(),
    };
    let configuration = unlimited(configuration);
    let options = match &filled {
        Some(url) => url.parse().unwrap(),
        None => private_postgres(configuration.data_dir()),
    };
    let installation = Installation::start(&configuration).await;
    if filled.is_none() {
        let started = Instant::now();
        fleet::fill(&options, machines).await;
        println!("{machines} machines made in {:.0} s\n", started.elapsed().as_secs_f64());
    }
    let lists = fleet::lists(&options).await;
    let slow = measure(&installation.administrator(), &lists).await;
    if arguments.iter().any(|argument| argument == "--plans") {
        let log = value("--log").map_or_else(|| configuration.data_dir().join("postgres/log"), PathBuf::from);
        let server = restarted(installation.servers.into_iter().next().unwrap(), &options).await;
        let again = Installation {
            servers: vec![server],
            ..installation
        };
        print_plans(&again.administrator(), &lists, &log).await;
        stop(again).await;
    } else {
        stop(installation).await;
    }
    assert_eq!(slow, 0, "{slow} lists took over {LIMIT:?}");
}

/// As `docs/operating.md` says.
fn private_postgres(data_dir: &Path) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(data_dir.join("postgres/socket"))
        .port(5432)
        .ssl_mode(PgSslMode::Disable)
        .username("assay")
        .database("assay")
        .disable_statement_logging()
}

async fn measure(administrator: &Administrator, lists: &[List]) -> usize {
    println!("| list | request | rows | median ms | p95 ms |\n|---|---|---|---|---|");
    let mut slow = 0;
    for list in lists {
        let mut times = Vec::with_capacity(RUNS);
        let mut page = Value::Null;
        // The first run is not counted, because it reads from disk what the others find in memory.
        for run in 0..=RUNS {
            let started = Instant::now();
            page = administrator.get(&list.path).await;
            if run > 0 {
                times.push(started.elapsed());
            }
        }
        times.sort_unstable();
        let (median, p95) = (times[RUNS / 2], times[RUNS * 95 / 100]);
        slow += usize::from(median > LIMIT && !list.is_far);
        let rows = page["items"].as_array().unwrap().len();
        assert!(rows > 0 || !list.has_items, "{} has no items", list.path);
        println!(
            "| {} | `{}` | {rows} | {:.1} | {:.1} |",
            list.name,
            list.path,
            milliseconds(median),
            milliseconds(p95)
        );
    }
    for run in ["counted", "counted before"] {
        let started = Instant::now();
        let _stats = administrator.get("stats").await;
        println!(
            "| stats, {run} | `stats` | | {:.1} | |",
            milliseconds(started.elapsed())
        );
    }
    slow
}

async fn restarted(server: Server, options: &PgConnectOptions) -> Server {
    log_plans(options, options.get_database().unwrap()).await;
    let configuration = server.configuration();
    assert!(server.terminate().await.success());
    configuration.start().await
}

async fn print_plans(administrator: &Administrator, lists: &[List], log: &Path) {
    for list in lists {
        let _warm = administrator.get(&list.path).await;
        let before = lines(log).len();
        let _page = administrator.get(&list.path).await;
        // After a further response, the log contains all earlier statements of the server's connections.
        for _ in 0..3 {
            let _ready = administrator.get("permissions").await;
        }
        println!("\n## {}: {}\n", list.name, list.path);
        let written = lines(log);
        for plan in plans(&written[before.min(written.len())..]) {
            let background = BACKGROUND.iter().any(|text| plan.text.contains(text));
            let aside = plan.text.contains("api_keys") || plan.text.contains("FROM permissions");
            if !background && !aside {
                println!("{} pages\n{}", plan.pages, plan.text);
            }
        }
    }
}

fn lines(log: &Path) -> Vec<String> {
    let log = std::fs::read(log).unwrap();
    String::from_utf8_lossy(&log).lines().map(str::to_owned).collect()
}

async fn stop(installation: Installation) {
    for server in installation.servers {
        assert!(server.terminate().await.success());
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
