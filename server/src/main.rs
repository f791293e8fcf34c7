//! `assay-server`

use std::process::ExitCode;

/// A check-in makes about a hundred small allocations. glibc's allocator used a tenth of the CPU time for them
/// (`docs/decisions/0035-what-a-check-in-costs.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    assay_server::cli::run()
}
