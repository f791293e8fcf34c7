//! The figures as a table in a document.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use assay_tests::load::Report;

use super::figures::{Figures, median};
use super::{Arguments, computer};

const BEGIN: &str = "<!-- tests/bench/run writes from here -->\n";
const END: &str = "<!-- to here -->";

pub(crate) fn render(arguments: &Arguments, figures: &Figures) -> String {
    let mut text = format!(
        "`tests/bench/run --only {} --machines {} --active {} --connections {} --seconds {} --rounds {} --replicas {}`;\n{}.\n\n",
        arguments.only.iter().map(char::to_string).collect::<Vec<_>>().join(","),
        arguments.machines,
        arguments.active,
        arguments.connections,
        arguments.seconds,
        arguments.rounds,
        arguments.replicas,
        computer::description()
    );
    text.push_str(
        "| part | a second | p50 ms | p95 ms | p99 ms | server µs | Postgres µs | client µs |\n|---|---|---|---|---|---|---|---|\n",
    );
    for (name, reports) in &figures.loads {
        let middle = |figure: fn(&Report) -> f64| median(reports.iter().map(figure)).unwrap_or_default();
        let _ = writeln!(
            text,
            "| {name} | {:.0} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.0} |",
            middle(|report| report.rate),
            middle(|report| report.latency_ms.p50),
            middle(|report| report.latency_ms.p95),
            middle(|report| report.latency_ms.p99),
            middle(server_cpu),
            middle(postgres_cpu),
            middle(client_cpu),
        );
    }
    if let Some((name, runs)) = &figures.pgbench {
        let rate = median(runs.iter().map(|run| run.rate)).unwrap_or_default();
        let _ = writeln!(text, "| {name} | {rate:.0} | | | | | | |");
    }
    text.push('\n');
    text.push_str(&bounds(figures));
    text
}

/// Replaces the text between the marks in the document.
pub(crate) fn write(path: &Path, table: &str) {
    let document = fs::read_to_string(path).unwrap();
    let (before, rest) = document.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    fs::write(path, format!("{before}{BEGIN}{table}{END}{after}")).unwrap();
}

/// On which side of the bound a figure must be.
enum Bound {
    AtLeast(f64),
    AtMost(f64),
    /// The figure has no bound.
    Free,
}

fn bounds(figures: &Figures) -> String {
    let mut text = "| what | bound | found |\n|---|---|---|\n".to_owned();
    let lines = ratios(figures)
        .into_iter()
        .chain(costs(figures))
        .chain(on_disk(figures));
    for (what, bound, found) in lines {
        let Some(found) = found else { continue };
        let (asked, is_met) = match bound {
            Bound::AtLeast(limit) => (format!("at least {limit}"), found >= limit),
            Bound::AtMost(limit) => (format!("at most {limit}"), found <= limit),
            Bound::Free => (String::new(), true),
        };
        let verdict = if is_met { "" } else { " (missed)" };
        let _ = writeln!(text, "| {what} | {asked} | {found:.2}{verdict} |");
    }
    text
}

type Line = (&'static str, Bound, Option<f64>);

fn ratios(figures: &Figures) -> [Line; 3] {
    let ratio = |others: Vec<f64>| {
        let shipped = figures.of("c: ").iter();
        median(shipped.zip(others).map(|(shipped, other)| shipped.rate / other))
    };
    let rates = |part: &str| figures.of(part).iter().map(|report| report.rate).collect();
    let pgbench = figures.pgbench.iter().flat_map(|(_, runs)| runs).map(|run| run.rate);
    [
        ("c to a, nothing recorded", Bound::AtLeast(0.7), ratio(rates("a: "))),
        ("c to b, a transaction each", Bound::AtLeast(2.0), ratio(rates("b: "))),
        ("c to d, pgbench", Bound::AtLeast(1.2), ratio(pgbench.collect())),
    ]
}

fn costs(figures: &Figures) -> [Line; 5] {
    let of = |part: &str, figure: fn(&Report) -> f64| median(figures.of(part).iter().map(figure));
    let cpu = |part: &str| of(part, |report| server_cpu(report) + postgres_cpu(report));
    let late = of("c at", |report| report.latency_ms.p99);
    let enrollments = of("f: ", |report| report.rate);
    [
        ("p99 of c at half its rate, ms", Bound::AtMost(15.0), late),
        ("CPU a check-in, kept alive, µs", Bound::AtMost(120.0), cpu("c: ")),
        (
            "CPU a check-in, full handshake, µs",
            Bound::AtMost(300.0),
            cpu("e: full"),
        ),
        ("CPU a check-in, resumed, µs", Bound::AtMost(150.0), cpu("e: resumed")),
        ("enrollments a second", Bound::AtLeast(1500.0), enrollments),
    ]
}

fn on_disk(figures: &Figures) -> [Line; 2] {
    let written = figures.written.iter();
    let hot = median(
        written
            .clone()
            .map(|written| quotient(written.hot_updates, written.updates)),
    );
    let wal = median(written.map(|written| quotient(written.wal_bytes, written.updates)));
    [
        ("updates that are HOT", Bound::AtLeast(0.99), hot),
        ("bytes of WAL a check-in", Bound::Free, wal),
    ]
}

pub(crate) fn server_cpu(report: &Report) -> f64 {
    report.cpu.server_us_each.unwrap_or(f64::NAN)
}

pub(crate) fn postgres_cpu(report: &Report) -> f64 {
    report.cpu.postgres_us_each.unwrap_or(f64::NAN)
}

#[allow(clippy::cast_precision_loss, reason = "no figure here has more than 53 bits")]
pub(crate) fn client_cpu(report: &Report) -> f64 {
    report.cpu.client_seconds.unwrap_or(f64::NAN) * 1e6 / report.completed as f64
}

#[allow(clippy::cast_precision_loss, reason = "no figure here has more than 53 bits")]
fn quotient(one: i64, other: i64) -> f64 {
    one as f64 / other as f64
}

#[allow(clippy::cast_precision_loss, reason = "no figure here has more than 53 bits")]
pub(crate) fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}
