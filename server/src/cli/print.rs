//! The output of commands: results on standard output, errors on one line of standard error.

use std::io::{self, Write};

use super::CommandError;

/// Prints a result with a final newline.
pub(super) fn text(text: &str) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(text.trim_end().as_bytes())
        .and_then(|()| out.write_all(b"\n"))
        .and_then(|()| out.flush())
        .map_err(CommandError::Output)
}

/// Prints an error. A failure to print it is ignored, because it could not be reported either.
pub(super) fn error_line(message: &str) {
    let line = message.replace('\n', " ");
    let _ = writeln!(io::stderr(), "assay-server: {line}");
}
