//! Makes many runs of the simulation, and prints the first that breaks a rule.

#![allow(clippy::print_stdout, reason = "a program that prints what it found")]

use std::process::ExitCode;
use std::time::Instant;

use assay_tests::simulation::Simulation;
use clap::Parser;

/// Simulates fleets, thieves, administrators and faults on two replicas, and checks every answer against a model.
#[derive(Parser)]
struct Arguments {
    /// How many runs to make.
    #[arg(long, default_value_t = 1000)]
    runs: u64,
    /// The seed of the first run. Each further run has the next seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many steps a run has.
    #[arg(long, default_value_t = 40)]
    steps: usize,
    /// How many runs go on at once.
    #[arg(long, default_value_t = 2)]
    workers: usize,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let started = Instant::now();
    let simulation = Simulation {
        first_seed: arguments.seed,
        runs: arguments.runs,
        steps: arguments.steps,
        workers: arguments.workers,
    };
    let failure = simulation.find_failure();
    let seconds = started.elapsed().as_secs_f64();
    match failure {
        None => {
            println!(
                "{} runs from seed {} broke no rule ({seconds:.1} s)",
                arguments.runs, arguments.seed
            );
            ExitCode::SUCCESS
        }
        Some(failure) => {
            println!("{failure}");
            println!("found after {seconds:.1} s; again: --seed {} --runs 1", failure.seed);
            ExitCode::FAILURE
        }
    }
}
