//! `assay-server`

use std::process::ExitCode;

fn main() -> ExitCode {
    assay_server::cli::run()
}
