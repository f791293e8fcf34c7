//! Runs a program of the system, with a time limit.

use std::{
    io::Read,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// Limit for the output, in bytes. The relevant text is at the beginning.
const MAX_OUTPUT_BYTES: u64 = 64 * 1024;

/// The output of a program on both streams. `None` if it cannot be run or does not end in time.
///
/// The exit code is ignored, because `spctl --status` fails when Gatekeeper is off. The environment is empty, so the
/// output is in English and does not depend on a user's settings.
pub(super) fn output_of(program: &str, arguments: &[&str], timeout: Duration) -> Option<String> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().ok()?;
    let (said, read) = mpsc::channel();
    let (output, errors) = (child.stdout.take()?, child.stderr.take()?);
    thread::spawn(move || {
        let mut text = Vec::new();
        let mut streams = output.take(MAX_OUTPUT_BYTES).chain(errors.take(MAX_OUTPUT_BYTES));
        // The receiver is gone after a timeout.
        let _ = said.send(streams.read_to_end(&mut text).ok().map(|_| text));
    });
    let text = read.recv_timeout(timeout);
    // Has no effect if the program has ended. A program that closes its streams and continues must not block `wait`.
    let _ = child.kill();
    let _ = child.wait();
    Some(String::from_utf8_lossy(&text.ok()??).into_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn both_streams_are_read_whatever_the_exit_code() {
        let script = "echo out; echo err >&2; exit 3";
        assert_eq!(output_of("/bin/sh", &["-c", script], LONG).unwrap(), "out\nerr\n");
    }

    #[test]
    fn a_missing_program_has_no_output() {
        assert_eq!(output_of("/does/not/exist", &[], LONG), None);
    }

    #[test]
    fn a_program_that_closes_its_streams_does_not_delay_the_result() {
        let begin = Instant::now();
        let script = "echo out; exec sleep 600 > /dev/null 2>&1";
        assert_eq!(output_of("/bin/sh", &["-c", script], LONG).unwrap(), "out\n");
        assert!(begin.elapsed() < LONG);
    }

    #[test]
    fn a_program_that_runs_too_long_is_killed() {
        let begin = Instant::now();
        assert_eq!(
            output_of("/bin/sh", &["-c", "exec sleep 600"], Duration::from_millis(50)),
            None
        );
        assert!(begin.elapsed() < LONG);
    }
}
