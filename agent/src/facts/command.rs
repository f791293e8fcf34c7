//! Asks one of the system's programs, within a time.

use std::{
    io::Read,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

/// The longest output that is read, in bytes. What is looked for stands at the beginning.
const LONGEST_OUTPUT: u64 = 64 * 1024;

/// What a program writes to both its streams, or `None` when it cannot be run or does not end in time.
///
/// The exit code does not count: `spctl --status` fails to say that Gatekeeper is off. The environment is empty, so that
/// what is said is said in English and by nobody's configuration.
pub(super) fn ask(program: &str, arguments: &[&str], timeout: Duration) -> Option<String> {
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
        let mut streams = output.take(LONGEST_OUTPUT).chain(errors.take(LONGEST_OUTPUT));
        // Nobody listens any more when it took too long.
        let _ = said.send(streams.read_to_end(&mut text).ok().map(|_| text));
    });
    let text = read.recv_timeout(timeout);
    // It may have ended by itself; then there is nothing to end. One that closed its streams and goes on must not be waited for.
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
        assert_eq!(ask("/bin/sh", &["-c", script], LONG).unwrap(), "out\nerr\n");
    }

    #[test]
    fn a_program_that_does_not_exist_says_nothing() {
        assert_eq!(ask("/does/not/exist", &[], LONG), None);
    }

    #[test]
    fn a_program_that_closes_its_streams_and_goes_on_is_not_waited_for() {
        let begin = Instant::now();
        let script = "echo out; exec sleep 600 > /dev/null 2>&1";
        assert_eq!(ask("/bin/sh", &["-c", script], LONG).unwrap(), "out\n");
        assert!(begin.elapsed() < LONG);
    }

    #[test]
    fn a_program_that_does_not_end_is_ended() {
        let begin = Instant::now();
        assert_eq!(
            ask("/bin/sh", &["-c", "exec sleep 600"], Duration::from_millis(50)),
            None
        );
        assert!(begin.elapsed() < LONG);
    }
}
