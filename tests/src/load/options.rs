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
    /// How many of them call, spread evenly over the fleet; all by default.
    #[arg(long, value_name = "MACHINES")]
    pub active: Option<NonZeroUsize>,
    /// What the machines' keys and serial numbers are made of: the same text makes the same fleet. New at each run,
    /// where it is not given.
    #[arg(long, value_name = "TEXT")]
    pub seed: Option<String>,
    /// The machines are on record already, under the ids that follow from the seed.
    #[arg(long, requires = "seed", conflicts_with = "client_certificates")]
    pub on_record: bool,
    /// How many calls may be under way at once.
    #[arg(long, default_value = "64")]
    pub connections: NonZeroUsize,
    /// How connections are used.
    #[arg(long, value_enum, default_value = "keep-alive")]
    pub connection: ConnectionUse,
    /// Present each machine's certificate in the handshake. Then no two machines share a connection.
    #[arg(long)]
    pub client_certificates: bool,
    /// Calls a second, whether the earlier ones are answered or not; a latency counts from when its call was due. Without
    /// it, the next call follows the answer to the last.
    #[arg(long, value_name = "CALLS", value_parser = parse_rate)]
    pub rate: Option<NonZeroU32>,
    /// For how long is measured. Enrolling ends when all machines are enrolled, at the latest.
    #[arg(long, default_value = "10", value_name = "SECONDS")]
    pub seconds: NonZeroU32,
    /// For how long the same is done before, unmeasured.
    /// A second, where it is not given, and nothing of it when machines enroll, which each does once.
    #[arg(long, value_name = "SECONDS")]
    pub warm_up: Option<u32>,
    /// The load generator's own threads.
    #[arg(long, default_value = "1")]
    pub threads: NonZeroUsize,
    /// A process whose CPU time counts as the server's. Found by its port, where it runs here.
    #[arg(long = "server-process", value_name = "PID")]
    pub server_processes: Vec<u32>,
    /// The first process of Postgres. Found among the server's children, where it is a private one.
    #[arg(long, value_name = "PID")]
    pub postgres_process: Option<u32>,
    /// Latencies over time, a line a second.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Latencies over time, drawn.
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Print the line of JSON alone.
    #[arg(long)]
    pub json: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Exchange {
    /// Each machine enrolls once.
    Enroll,
    /// The machines check in, one after the other, again and again. Those that are not on record enroll before.
    CheckIn,
    /// The same with renewals.
    Renew,
}

/// How connections are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConnectionUse {
    /// Connections stay open.
    KeepAlive,
    /// A new connection for each call, with a TLS session that is resumed.
    Resumed,
    /// A new connection for each call, with a full handshake.
    Full,
}

impl Options {
    /// For how many seconds nothing is measured at first.
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

/// More is not sent by any load generator, and what is not sent is counted.
fn parse_rate(text: &str) -> Result<NonZeroU32, String> {
    let rate = text.parse().ok().filter(|rate: &NonZeroU32| rate.get() <= 1_000_000);
    rate.ok_or_else(|| "it has to be a whole number from 1 to 1000000".to_owned())
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
