//! The program `assay-verify`.

use std::process::ExitCode;

fn main() -> ExitCode {
    assay_verify::program::main(std::env::args_os())
}
