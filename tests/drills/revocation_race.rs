//! Races decisions of an administrator against check-ins in flight, on two replicas: see
//! `assay_tests::revocation_race`. Prints what it came to, and fails if anything was granted after a decision.
//!
//! `cargo run --bin race-revocations -- --tries 10000`

#![allow(clippy::print_stdout, reason = "figures are what it is for")]

use std::process::ExitCode;
use std::time::Instant;

use assay_tests::cluster::Cluster;
use assay_tests::installation::Installation;
use assay_tests::revocation_race;
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// How many decisions to race.
    #[arg(long, default_value_t = 10_000)]
    tries: u64,
    /// How many machines race at the same time.
    #[arg(long, default_value_t = 8)]
    lanes: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let Arguments { tries, lanes } = Arguments::parse();
    let cluster = Cluster::start().await;
    let database = cluster.create_database().await;
    let installation = Installation::replicated(&database).await;
    let begun = Instant::now();
    let tally = revocation_race::run(&installation, lanes, tries.div_ceil(lanes)).await;
    println!("{tally}; {:.0} s", begun.elapsed().as_secs_f64());
    match tally.holds() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
