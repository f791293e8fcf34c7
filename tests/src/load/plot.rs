//! Latencies over time, as a table and as a picture.

use std::fmt::Write;

use super::measurement::Findings;
use super::report::{float, milliseconds};

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 320.0;
const MARGIN: f64 = 48.0;
/// The lines of the picture: a column, its colour, its name.
const LINES: [(usize, &str, &str); 3] = [(0, "#2a7", "p50"), (1, "#27c", "p95"), (2, "#c33", "p99")];

/// One second.
#[derive(Debug, Clone)]
pub(super) struct Row {
    completed: u64,
    errors: u64,
    /// p50, p95, p99 and the longest, in milliseconds.
    latency: [f64; 4],
}

pub(super) fn rows(findings: &Findings) -> Vec<Row> {
    let seconds = findings.seconds.iter();
    seconds
        .map(|second| {
            let at = |quantile| milliseconds(second.latencies.value_at_quantile(quantile));
            Row {
                completed: second.latencies.len(),
                errors: second.errors,
                latency: [at(0.5), at(0.95), at(0.99), milliseconds(second.latencies.max())],
            }
        })
        .collect()
}

pub(super) fn csv(rows: &[Row]) -> String {
    let mut text = "second,completed,errors,p50_ms,p95_ms,p99_ms,max_ms\n".to_owned();
    for (second, row) in rows.iter().enumerate() {
        let [p50, p95, p99, max] = row.latency;
        let (completed, errors) = (row.completed, row.errors);
        let _ = writeln!(
            text,
            "{second},{completed},{errors},{p50:.3},{p95:.3},{p99:.3},{max:.3}"
        );
    }
    text
}

pub(super) fn svg(rows: &[Row]) -> String {
    let longest = rows.iter().map(|row| row.latency[2]).fold(1.0, f64::max);
    let steps = float(rows.len().saturating_sub(1).max(1).try_into().unwrap_or(u64::MAX));
    let (width, height) = (WIDTH - 2.0 * MARGIN, HEIGHT - 2.0 * MARGIN);
    let x = |second: usize| MARGIN + width * float(second.try_into().unwrap_or(u64::MAX)) / steps;
    let y = |latency: f64| HEIGHT - MARGIN - height * latency / longest;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>\n"
    );
    for quarter in 0..=4_u32 {
        let latency = longest * f64::from(quarter) / 4.0;
        let (end, at) = (WIDTH - MARGIN, y(latency));
        let _ = writeln!(
            svg,
            "<path d=\"M{MARGIN} {at:.1}H{end}\" stroke=\"#ddd\"/><text x=\"4\" y=\"{at:.1}\">{latency:.1} ms</text>"
        );
    }
    for (column, colour, name) in LINES {
        let points: String = rows
            .iter()
            .enumerate()
            .map(|(second, row)| format!("{:.1},{:.1} ", x(second), y(row.latency[column])))
            .collect();
        let key = WIDTH - MARGIN - 40.0 * float((LINES.len() - column).try_into().unwrap_or(0));
        let _ = writeln!(
            svg,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>\
             <text x=\"{key}\" y=\"20\" fill=\"{colour}\">{name}</text>"
        );
    }
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{}\">seconds: 0 to {}</text>\n</svg>",
        MARGIN,
        HEIGHT - 12.0,
        rows.len()
    );
    svg
}
