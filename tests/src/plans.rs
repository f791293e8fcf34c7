//! The plans that Postgres executed for a request, from its log. `auto_explain` writes them there.

use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor};

/// An executed statement.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The statement and its plan, as Postgres prints them.
    pub text: String,
    /// The pages that were read, in memory or not.
    pub pages: u64,
}

/// Makes Postgres log the plan of every statement on future connections.
pub async fn log_plans(options: &PgConnectOptions, database: &str) {
    let mut connection = options.connect().await.unwrap();
    let settings = [
        "session_preload_libraries = 'auto_explain'",
        "auto_explain.log_min_duration = 0",
        "auto_explain.log_analyze = on",
        "auto_explain.log_buffers = on",
        "auto_explain.log_timing = off",
    ];
    connection.execute("LOAD 'auto_explain'").await.unwrap();
    for setting in settings {
        let statement = format!("ALTER DATABASE {database} SET {setting}");
        connection.execute(sqlx::raw_sql(&statement)).await.unwrap();
    }
    connection.close().await.unwrap();
}

/// The plans among the lines of a log.
#[must_use]
pub fn plans(lines: &[String]) -> Vec<Plan> {
    let mut plans: Vec<Plan> = Vec::new();
    let mut within = false;
    for line in lines {
        if line.contains(" LOG:  duration: ") && line.ends_with("plan:") {
            within = true;
            plans.push(Plan {
                text: String::new(),
                pages: 0,
            });
        } else if let (Some(line), true) = (line.strip_prefix('\t'), within) {
            let plan = plans.last_mut().unwrap();
            // The first one is for the whole plan. Planning has a separate one.
            if plan.pages == 0 && line.trim_start().starts_with("Buffers: ") {
                plan.pages = pages(line);
            }
            plan.text.push_str(line);
            plan.text.push('\n');
        } else {
            within = false;
        }
    }
    plans
}

/// The number of pages: 15 for `Buffers: shared hit=12 read=3, temp read=1`.
fn pages(line: &str) -> u64 {
    let shared = line.split(',').find(|part| part.contains("shared")).unwrap_or_default();
    shared
        .split_whitespace()
        .filter_map(|part| part.strip_prefix("hit=").or(part.strip_prefix("read=")))
        .map(|pages| pages.parse::<u64>().unwrap())
        .sum()
}
