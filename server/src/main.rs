//! `assay-server`

use std::process::ExitCode;

/// A check-in makes some hundred small allocations, which glibc's allocator took a tenth of the CPU time for
/// (`docs/decisions/0035-what-a-check-in-costs.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    assay_server::cli::run()
}
