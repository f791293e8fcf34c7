//! Measures throughput and cost of the server: see `tests/bench/run`. Results that are compared are measured in turn in
//! one run. Their ratios are then valid even if the computer has other work.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a measurement that cannot go on has failed and says where, and figures are what it is for"
)]

mod computer;
mod figures;
mod growth;
mod pgbench;
mod setting;
mod table;

use clap::Parser;

use figures::Figures;
use setting::{Build, Setting};

/// Measures the server with a Postgres of its own.
#[derive(Parser, Debug, Clone)]
#[command(name = "tests/bench/run")]
pub(crate) struct Arguments {
    /// Which parts, as `a,b,c`:
    /// a nothing is recorded, b a transaction for each check-in, c as shipped, d pgbench with the statement of b,
    /// e new connections, f enrollments; i, alone, the growth of fleet and servers, with start and memory.
    #[arg(long, value_delimiter = ',', default_value = "a,b,c,d,e,f")]
    pub(crate) only: Vec<char>,
    /// The fleet on record.
    #[arg(long, default_value = "10000")]
    pub(crate) machines: u64,
    /// The fleets of i.
    #[arg(long, value_delimiter = ',', default_value = "1000,10000,100000,1000000")]
    pub(crate) sizes: Vec<u64>,
    /// How many of its machines check in, spread over the fleet.
    #[arg(long, default_value = "2000")]
    pub(crate) active: u64,
    /// How many calls may run at the same time, and how many clients pgbench has.
    #[arg(long, default_value = "64")]
    pub(crate) connections: u32,
    /// How long each part is measured in each round.
    #[arg(long, default_value = "5")]
    pub(crate) seconds: u32,
    /// The number of rounds.
    #[arg(long, default_value = "3")]
    pub(crate) rounds: usize,
    /// How many servers share the load of c.
    #[arg(long, default_value = "1")]
    pub(crate) replicas: u32,
    /// Writes the table into this document, between its marks.
    #[arg(long, value_name = "FILE")]
    pub(crate) write: Option<std::path::PathBuf>,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    if arguments.only != ['i'] && !arguments.only.iter().all(|part| ('a'..='f').contains(part)) {
        eprintln!("--only takes some of a,b,c,d,e,f, or i alone");
        std::process::exit(2);
    }
    let cluster = assay_tests::cluster::Cluster::durable().await;
    if arguments.only == ['i'] {
        return conclude(&arguments, &growth::measure(&arguments, &cluster).await);
    }
    let database = cluster.create_empty_database().await;
    let setting = Setting::make(&arguments, &cluster, &database).await;
    let mut figures = Figures::default();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        measure(&setting, &mut figures).await;
    }
    conclude(&arguments, &table::render(&arguments, &figures));
}

fn conclude(arguments: &Arguments, text: &str) {
    println!("{text}");
    if let Some(path) = &arguments.write {
        table::write(path, text);
    }
}

async fn measure(setting: &Setting<'_>, figures: &mut Figures) {
    let asked_for = |part: char| setting.arguments.only.contains(&part);
    let seconds = setting.arguments.seconds.to_string();
    let check_in = ["check-in", "--seconds", &seconds, "--warm-up", "2"];
    for (part, name, build) in [
        ('a', "a: nothing is recorded", Build::Measuring("none")),
        ('b', "b: a transaction each", Build::Measuring("single")),
    ] {
        if asked_for(part) {
            let running = setting.start(build, 1).await;
            figures.add(name, running.load(&check_in, true).await);
            running.stop().await;
        }
    }
    if asked_for('c') || asked_for('e') || asked_for('f') {
        let running = setting.start(Build::Shipped, setting.arguments.replicas).await;
        if asked_for('c') {
            let before = setting.counters().await;
            let report = running.load(&check_in, true).await;
            figures.recorded(&before, &setting.counters().await);
            let half = format!("{:.0}", report.rate / 2.0);
            figures.add("c: as shipped", report);
            let half = [check_in.as_slice(), &["--rate", &half]].concat();
            figures.add("c at half its rate", running.load(&half, true).await);
        }
        if asked_for('e') {
            for (name, connection) in [("e: full handshakes", "full"), ("e: resumed sessions", "resumed")] {
                let arguments = [check_in.as_slice(), &["--connection", connection]].concat();
                figures.add(name, running.load(&arguments, true).await);
            }
        }
        if asked_for('f') {
            let arguments = ["enroll", "--seconds", &seconds, "--warm-up", "1", "--machines", "50000"];
            figures.add("f: enrollments", running.load(&arguments, false).await);
        }
        running.stop().await;
    }
    if asked_for('d') {
        figures.add_pgbench("d: pgbench", pgbench::run(setting).await);
    }
}
