//! Options of the load generator.

use std::num::{NonZeroU32, NonZeroUsize};
use std::path::PathBuf;

use clap::{Parser, ValueEnum};

/// Calls a server like a fleet of machines, and reports rates and latencies.
#[derive(Parser, Debug, Clone)]
#[command(name = "assay-load", version)]
pub struct Options {
    /// What the machines do.
    pub exchange: Exchange,
    /// The server, as `https://host:port`, or `http://` behind a proxy. Several replicas share the machines.
    #[arg(long = "server", required = true, value_name = "URL")]
    pub servers: Vec<String>,
    /// The trusted root certificates, PEM.
    #[arg(long, value_name = "FILE", required_unless_present = "ca_fingerprint")]
    pub ca_file: Option<PathBuf>,
    /// SHA-256 of the root's DER in hex. The roots are then fetched from the first server.
    #[arg(long, value_name = "HEX")]
    pub ca_fingerprint: Option<String>,
    /// An enrollment token with a use per machine. Several tokens are used in turn.
    #[arg(long = "token", value_name = "TOKEN")]
    pub tokens: Vec<String>,
    /// How many machines there are.
    #[arg(long, default_value = "1000")]
    pub machines: NonZeroUsize,
    /// How many of them call, spread evenly over the fleet. All by default.
    #[arg(long, value_name = "MACHINES")]
    pub active: Option<NonZeroUsize>,
    /// The text from which keys and serial numbers are derived: the same text gives the same fleet. By default, each run
    /// has a new fleet.
    #[arg(long, value_name = "TEXT")]
    pub seed: Option<String>,
    /// The machines are already on record, with the ids that follow from the seed.
    #[arg(long, requires = "seed", conflicts_with = "client_certificates")]
    pub on_record: bool,
    /// How many calls may run at the same time.
    #[arg(long, default_value = "64")]
    pub connections: NonZeroUsize,
    /// How connections are used.
    #[arg(long, value_enum, default_value = "keep-alive")]
    pub connection: ConnectionUse,
    /// Present each machine's certificate in the handshake. Then no two machines share a connection.
    #[arg(long)]
    pub client_certificates: bool,
    /// Calls a second, whether or not earlier ones are answered. Latencies count from the time when a call was due.
    /// Without a rate, each call follows the response to the previous one.
    #[arg(long, value_name = "CALLS", value_parser = parse_rate)]
    pub rate: Option<NonZeroU32>,
    /// The length of the measurement. Enrolling ends earlier if all machines are enrolled.
    #[arg(long, default_value = "10", value_name = "SECONDS")]
    pub seconds: NonZeroU32,
    /// The length of the warm-up, which is not measured. By default a second, and none for enrollments.
    #[arg(long, value_name = "SECONDS")]
    pub warm_up: Option<u32>,
    /// The load generator's own threads.
    #[arg(long, default_value = "1")]
    pub threads: NonZeroUsize,
    /// A process whose CPU time counts as the server's. Found by its port if it runs on this computer.
    #[arg(long = "server-process", value_name = "PID")]
    pub server_processes: Vec<u32>,
    /// The postmaster of Postgres. Found among the server's children if it is a private one.
    #[arg(long, value_name = "PID")]
    pub postgres_process: Option<u32>,
    /// Write latencies over time to this file, a line for each second.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Draw latencies over time into this file.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print only the line of JSON.
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Exchange {
    /// Each machine enrolls once.
    Enroll,
    /// The machines check in repeatedly, one after the other. Those that are not on record enroll first.
    CheckIn,
    /// The machines renew repeatedly, one after the other. Those that are not on record enroll first.
    Renew,
}

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConnectionUse {
    /// Connections stay open.
    KeepAlive,
    /// A new connection for each call, which resumes a TLS session.
    Resumed,
    /// A new connection for each call, with a full handshake.
    Full,
}

impl Options {
    /// The length of the warm-up.
    #[must_use]
    pub fn warm_up(&self) -> u32 {
        self.warm_up.unwrap_or(u32::from(self.exchange != Exchange::Enroll))
    }

    /// The numbers of the machines that call.
    #[must_use]
    pub fn active(&self) -> Vec<u64> {
        let all = u64::try_from(self.machines.get()).unwrap();
        let active = self
            .active
            .map_or(all, |active| u64::try_from(active.get()).unwrap().min(all));
        (0..active).map(|place| place * all / active).collect()
    }
}

/// Parses a rate. The limit is far above what a load generator can send.
fn parse_rate(text: &str) -> Result<NonZeroU32, String> {
    let rate = text.parse().ok().filter(|rate: &NonZeroU32| rate.get() <= 1_000_000);
    rate.ok_or_else(|| "it must be a whole number from 1 to 1000000".to_owned())
}

impl Exchange {
    /// As the report has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Enroll => "enroll",
            Self::CheckIn => "check-in",
            Self::Renew => "renew",
        }
    }
}

impl ConnectionUse {
    /// As the report has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KeepAlive => "keep-alive",
            Self::Resumed => "resumed",
            Self::Full => "full",
        }
    }
}
