//! What a command says: its result on standard output, its failure on one line of standard error.

use std::io::{self, Write};

use super::CommandError;

/// Writes a result, ended by a newline.
pub(super) fn text(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(text.trim_end().as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(CommandError::Output)
}

/// Writes a failure. There is nobody left to tell when this fails.
pub(super) fn error_line(message: &str) {
    let line = message.replace('\n', " ");
    let _ = writeln!(io::stderr(), "assay-server: {line}");
}
