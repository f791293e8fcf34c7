//! The program `assay-agent` with a stand-in for the Secure Enclave: only for tests, never released.

use std::process::ExitCode;

fn main() -> ExitCode {
    assay_agent::commands::main(std::env::args_os())
}
