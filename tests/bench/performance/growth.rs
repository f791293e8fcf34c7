//! Check-ins in fleets of growing size, and on more servers with one Postgres.

use std::fmt::Write;

use assay_tests::cluster::{Cluster, Database};
use assay_tests::load::Report;

use super::Arguments;
use super::figures::median;
use super::setting::{Build, Setting};
use super::table::{client_cpu, megabytes, postgres_cpu, server_cpu};

/// How many machines of a fleet call at most. In a larger fleet, no machine calls twice within a measurement.
const CALLING: u64 = 100_000;
/// How many servers share one Postgres.
const REPLICAS: [u32; 2] = [2, 4];
/// By how much the cost of a check-in may grow.
const MOST_GROWTH: f64 = 1.15;
/// The memory limit of the server with the largest fleet.
const MOST_MEGABYTES: f64 = 150.0;
const MOST_SECONDS_TO_START: f64 = 1.0;

/// The measurements of one fleet or one number of servers, with one report for each round.
struct Row {
    machines: u64,
    replicas: u32,
    /// The same few machines repeatedly, which are in the caches.
    again: Vec<Report>,
    /// A different machine each time.
    in_turn: Vec<Report>,
    ready_after: Vec<f64>,
}

/// Measures all sizes in turn.
pub(crate) async fn measure(arguments: &Arguments, cluster: &Cluster) -> String {
    let fleets: Vec<Arguments> = arguments.sizes.iter().map(|size| of_size(arguments, *size)).collect();
    let mut databases: Vec<Database<'_>> = Vec::new();
    for _ in &fleets {
        databases.push(cluster.create_empty_database().await);
    }
    let mut settings = Vec::new();
    for (fleet, database) in fleets.iter().zip(&databases) {
        settings.push(Setting::make(fleet, cluster, database).await);
    }
    let mut rows: Vec<Row> = fleets.iter().map(|fleet| Row::new(fleet.machines, 1)).collect();
    rows.extend(REPLICAS.map(|replicas| Row::new(arguments.machines, replicas)));
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        for row in &mut rows {
            let setting = settings
                .iter()
                .find(|setting| setting.arguments.machines == row.machines);
            row.add(setting.unwrap()).await;
        }
    }
    render(arguments, &rows)
}

fn of_size(arguments: &Arguments, machines: u64) -> Arguments {
    Arguments {
        machines,
        ..arguments.clone()
    }
}

impl Row {
    fn new(machines: u64, replicas: u32) -> Self {
        Self {
            machines,
            replicas,
            again: Vec::new(),
            in_turn: Vec::new(),
            ready_after: Vec::new(),
        }
    }

    async fn add(&mut self, setting: &Setting<'_>) {
        let arguments = setting.arguments;
        let begun = std::time::Instant::now();
        let running = setting.start(Build::Shipped, self.replicas).await;
        self.ready_after.push(begun.elapsed().as_secs_f64());
        let seconds = arguments.seconds.to_string();
        // With more servers, more machines call, so each server has the same number.
        let connections = arguments.connections * self.replicas;
        let check_in = ["check-in", "--seconds", &seconds, "--warm-up", "1"];
        let again = running.load_by(&check_in, arguments.active, connections).await;
        // Long enough to fill the caches before the memory is read.
        let filling = ["check-in", "--seconds", &seconds, "--warm-up", "12"];
        let in_turn = running.load_by(&filling, CALLING, connections).await;
        eprintln!(
            "{} machines, {} servers: {:.0} a second again, {:.0} in turn",
            self.machines, self.replicas, again.rate, in_turn.rate
        );
        self.again.push(again);
        self.in_turn.push(in_turn);
        running.stop().await;
    }
}

fn render(arguments: &Arguments, rows: &[Row]) -> String {
    let mut text = format!(
        "`tests/bench/run --only i --connections {} --seconds {} --rounds {}`; {}.\n\n",
        arguments.connections,
        arguments.seconds,
        arguments.rounds,
        super::computer::description()
    );
    text.push_str(
        "| machines | servers | callers | a second | p99 ms | server µs | Postgres µs | client µs | server MB | ready after s |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let ready = median(row.ready_after.iter().copied()).unwrap_or_default();
        for (callers, reports) in [
            (arguments.active.min(row.machines), &row.again),
            (CALLING.min(row.machines), &row.in_turn),
        ] {
            let middle = |figure: fn(&Report) -> f64| median(reports.iter().map(figure)).unwrap_or_default();
            let _ = writeln!(
                text,
                "| {} | {} | {callers} | {:.0} | {:.1} | {:.0} | {:.0} | {:.0} | {:.0} | {ready:.2} |",
                row.machines,
                row.replicas,
                middle(|report| report.rate),
                middle(|report| report.latency_ms.p99),
                middle(server_cpu),
                middle(postgres_cpu),
                middle(client_cpu),
                middle(|report| report.server_memory.map_or(f64::NAN, megabytes)),
            );
        }
    }
    text.push_str(&verdicts(rows));
    text
}

/// Compares the largest fleet with the smallest, and the most servers with one.
fn verdicts(rows: &[Row]) -> String {
    let alone = || rows.iter().filter(|row| row.replicas == 1);
    let (Some(smallest), Some(largest)) = (
        alone().min_by_key(|row| row.machines),
        alone().max_by_key(|row| row.machines),
    ) else {
        return String::new();
    };
    let shared = rows.iter().max_by_key(|row| row.replicas);
    let one = shared.and_then(|shared| alone().find(|row| row.machines == shared.machines));
    let memory = largest.in_turn.iter();
    let memory = median(memory.map(|report| report.server_memory.map_or(f64::NAN, megabytes)));
    let lines = [
        (
            "CPU a check-in, largest fleet to smallest, the same few machines",
            MOST_GROWTH,
            growth(&smallest.again, &largest.again),
        ),
        (
            "CPU a check-in, largest fleet to smallest, machine after machine",
            MOST_GROWTH,
            growth(&smallest.in_turn, &largest.in_turn),
        ),
        (
            "CPU a check-in, most servers to one, the same few machines",
            MOST_GROWTH,
            shared
                .zip(one)
                .and_then(|(shared, one)| growth(&one.again, &shared.again)),
        ),
        ("memory with the largest fleet, MB", MOST_MEGABYTES, memory),
        (
            "ready after, with the largest fleet, s",
            MOST_SECONDS_TO_START,
            median(largest.ready_after.iter().copied()),
        ),
    ];
    let mut text = "\n| what | bound | found |\n|---|---|---|\n".to_owned();
    for (what, bound, found) in lines {
        let Some(found) = found else { continue };
        let verdict = if found <= bound { "" } else { " (missed)" };
        let _ = writeln!(text, "| {what} | at most {bound} | {found:.2}{verdict} |");
    }
    text
}

/// Compares round by round, because only results of one round are comparable.
fn growth(from: &[Report], to: &[Report]) -> Option<f64> {
    let cost = |report: &Report| server_cpu(report) + postgres_cpu(report);
    median(from.iter().zip(to).map(|(from, to)| cost(to) / cost(from)))
}
