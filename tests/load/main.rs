//! `assay-load`: see `assay-load --help`, and `docs/performance.md`.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "figures are what it is for")]

use std::error::Error;
use std::process::ExitCode;

use assay_protocol::Chain;
use assay_tests::load::options::Options;
use assay_tests::load::{self, LoadError, Report};
use clap::Parser;

fn main() -> ExitCode {
    let options = Options::parse();
    match run(&options) {
        Ok(report) => print(&options, &report),
        Err(error) => fail(&error),
    }
}

fn run(options: &Options) -> Result<Report, LoadError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(options.threads.get())
        .enable_all()
        .build()
        .map_err(LoadError::Runtime)?;
    runtime.block_on(load::run(options))
}

fn print(options: &Options, report: &Report) -> ExitCode {
    if !options.json {
        print!("{report}");
    }
    match serde_json::to_string(report) {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    // Always print the results, because they cannot be measured again.
    if let Err(error) = report.write_files(options) {
        return fail(&error);
    }
    if report.completed == 0 {
        eprintln!("no call succeeded within the time that was measured");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn fail(error: &(dyn Error + 'static)) -> ExitCode {
    eprintln!("{}", Chain(error));
    ExitCode::FAILURE
}
