//! The results of a measurement: for people, as JSON, and over time.

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::LoadError;
use super::measurement::Findings;
use super::options::Options;
use super::plot;
use super::processes::Usage;

/// The figures of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// `enroll`, `check-in` or `renew`.
    pub exchange: String,
    /// `keep-alive`, `resumed` or `full`.
    pub connection: String,
    /// Whether machines presented certificates.
    pub client_certificates: bool,
    /// How many machines there were.
    pub machines: usize,
    /// How many calls could run at the same time.
    pub connections: usize,
    /// The configured rate. Null if each call followed the response to the previous one.
    pub rate_asked: Option<u32>,
    /// The length of the measurement.
    pub seconds: f64,
    /// Calls that succeeded in that time.
    pub completed: u64,
    /// Successful calls a second.
    pub rate: f64,
    /// Latencies, from the time when a call was due to its response.
    pub latency_ms: Latency,
    /// How many failed, by problem or by the connection's error.
    pub errors: std::collections::BTreeMap<String, u64>,
    /// Calls that were due but not sent, because earlier ones took too long.
    pub unsent: u64,
    /// CPU time. Null if it is unknown.
    pub cpu: Cpu,
    /// The resident memory of the servers at the end, in bytes.
    pub server_memory: Option<u64>,
    /// Traffic on the wire, including TLS.
    pub bytes: Bytes,
    /// Handshakes during the measurement.
    pub handshakes: Handshakes,
    #[serde(skip)]
    seconds_apart: Vec<plot::Row>,
}

/// Latencies in milliseconds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// The 95th percentile.
    pub p95: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// CPU time of the processes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cpu {
    /// Seconds of the servers.
    pub server_seconds: Option<f64>,
    /// Seconds of all processes of Postgres.
    pub postgres_seconds: Option<f64>,
    /// Seconds of the load generator.
    pub client_seconds: Option<f64>,
    /// Microseconds of the servers for each call that succeeded.
    pub server_us_each: Option<f64>,
    /// Microseconds of Postgres for each call that succeeded.
    pub postgres_us_each: Option<f64>,
}

/// Bytes on the wire.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Bytes {
    /// To the servers.
    pub sent: u64,
    /// From the servers.
    pub received: u64,
}

/// Handshakes of TLS.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Handshakes {
    /// With a key exchange and signatures.
    pub full: u64,
    /// That resumed a session.
    pub resumed: u64,
}

impl Report {
    pub(super) fn new(
        options: &Options,
        measured: Duration,
        used: Usage,
        [sent, received, full, resumed]: [u64; 4],
        findings: Findings,
    ) -> Self {
        let seconds = measured.as_secs_f64();
        let latency = |quantile| milliseconds(findings.latencies.value_at_quantile(quantile));
        let each = |cpu: Option<f64>| Some(cpu? * 1e6 / float(findings.completed)).filter(|each| each.is_finite());
        Self {
            exchange: options.exchange.name().to_owned(),
            connection: options.connection.name().to_owned(),
            client_certificates: options.client_certificates,
            machines: options.machines.get(),
            connections: options.connections.get(),
            rate_asked: options.rate.map(std::num::NonZero::get),
            seconds,
            completed: findings.completed,
            rate: if seconds > 0.0 {
                float(findings.completed) / seconds
            } else {
                0.0
            },
            latency_ms: Latency {
                p50: latency(0.5),
                p95: latency(0.95),
                p99: latency(0.99),
                p999: latency(0.999),
                max: milliseconds(findings.latencies.max()),
            },
            unsent: findings.unsent,
            cpu: Cpu {
                server_seconds: used.server,
                postgres_seconds: used.postgres,
                client_seconds: used.client,
                server_us_each: each(used.server),
                postgres_us_each: each(used.postgres),
            },
            server_memory: used.server_memory,
            bytes: Bytes { sent, received },
            handshakes: Handshakes { full, resumed },
            seconds_apart: plot::rows(&findings),
            errors: findings.errors,
        }
    }

    /// How many calls failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Writes latencies over time to the files that the options name.
    pub fn write_files(&self, options: &Options) -> Result<(), LoadError> {
        let write = |path: &Path, text: String| {
            fs::write(path, text).map_err(|source| LoadError::Write {
                path: path.to_owned(),
                source,
            })
        };
        if let Some(path) = &options.csv {
            write(path, plot::csv(&self.seconds_apart))?;
        }
        if let Some(path) = &options.svg {
            write(path, plot::svg(&self.seconds_apart))?;
        }
        Ok(())
    }
}

/// The report for people.
impl fmt::Display for Report {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Latency {
            p50,
            p95,
            p99,
            p999,
            max,
        } = self.latency_ms;
        writeln!(
            to,
            "{:.0} a second: {} in {:.1} s",
            self.rate, self.completed, self.seconds
        )?;
        writeln!(
            to,
            "latency in ms: p50 {p50:.2}, p95 {p95:.2}, p99 {p99:.2}, p99.9 {p999:.2}, max {max:.2}"
        )?;
        let mut cpu = |whose: &str, seconds: Option<f64>, each: Option<f64>| match (seconds, each) {
            (Some(seconds), Some(each)) => writeln!(to, "CPU of the {whose}: {seconds:.2} s, {each:.0} µs each"),
            _ => writeln!(to, "CPU of the {whose}: unknown"),
        };
        cpu("server", self.cpu.server_seconds, self.cpu.server_us_each)?;
        cpu("database", self.cpu.postgres_seconds, self.cpu.postgres_us_each)?;
        if let Some(client) = self.cpu.client_seconds {
            writeln!(to, "CPU of the load generator: {client:.2} s")?;
        }
        if let Some(memory) = self.server_memory {
            writeln!(to, "memory of the server: {} MB", memory / 1_000_000)?;
        }
        writeln!(
            to,
            "bytes: {} sent, {} received; handshakes: {} full, {} resumed",
            self.bytes.sent, self.bytes.received, self.handshakes.full, self.handshakes.resumed
        )?;
        for (error, count) in &self.errors {
            writeln!(to, "failed: {count} {error}")?;
        }
        if self.unsent > 0 {
            writeln!(to, "not sent in time: {}", self.unsent)?;
        }
        Ok(())
    }
}

/// Converts microseconds to milliseconds.
pub(super) fn milliseconds(microseconds: u64) -> f64 {
    float(microseconds) / 1000.0
}

#[allow(clippy::cast_precision_loss, reason = "no figure here has more than 53 bits")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}
