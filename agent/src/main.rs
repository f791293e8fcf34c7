//! The program `assay-agent`.

use std::process::ExitCode;

fn main() -> ExitCode {
    assay_agent::commands::main(std::env::args_os())
}
