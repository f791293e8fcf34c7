//! A process that ends with the test process at the latest.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use tokio::sync::watch;

use crate::output::Output;

const ENDED_WITHIN: Duration = Duration::from_secs(60);
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// Learns the process groups that run and those that have ended, and kills the former at the end of its input: at the
/// end of the test process, however it ends.
const REAPER: &str = r#"
running=" "
while read -r event group; do
    case $event in
        started) running="$running$group " ;;
        ended) running="${running%% "$group" *} ${running#* "$group" }" ;;
    esac
done
for group in $running; do
    kill -KILL "-$group" 2> /dev/null
done
"#;

static REAPER_INPUT: LazyLock<Mutex<ChildStdin>> = LazyLock::new(|| {
    let mut reaper = Command::new("/bin/sh");
    reaper
        .args(["-c", REAPER])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .process_group(0)
        .current_dir("/");
    Mutex::new(reaper.spawn().unwrap().stdin.take().unwrap())
});

/// A process in a group of its own, waited for by a thread of its own: tests of any runtime can wait for its end.
/// Dropped, it is killed with its group.
#[derive(Debug)]
pub struct Process {
    id: Pid,
    output: Output,
    status: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts it, with no input.
    #[must_use]
    pub fn spawn(mut command: Command) -> Self {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().unwrap();
        let id = Pid::from_child(&child);
        tell_reaper("started", id);
        let output = Output::read(vec![
            Box::new(child.stdout.take().unwrap()),
            Box::new(child.stderr.take().unwrap()),
        ]);
        let (sender, status) = watch::channel(None);
        thread::spawn(move || {
            let status = child.wait().unwrap_or_else(|_| ExitStatus::from_raw(0));
            tell_reaper("ended", id);
            sender.send_replace(Some(status));
        });
        Self { id, output, status }
    }

    /// Waits until it writes this, after the first `from` lines of its output; returns where that then ends.
    ///
    /// # Panics
    /// With what it has written, when it ends instead.
    pub async fn writes(&self, from: usize, text: &str) -> usize {
        let found = self
            .output
            .wait_for(from, WRITTEN_WITHIN, |line| line.contains(text).then_some(()));
        assert_eq!(found.await, Some(()), "it has ended without {text:?}:\n{}", self.output);
        self.output.lines().len()
    }

    /// How much memory it has now, in kilobytes; `None` where the system does not say.
    #[must_use]
    pub fn resident_kilobytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id.as_raw_nonzero())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// How often each of its threads has woken up so far, by its number.
    ///
    /// # Panics
    /// Where there is no such process, or no `/proc`.
    #[must_use]
    pub fn wakes(&self) -> BTreeMap<String, u64> {
        let threads = self.proc("task").into_iter().filter_map(|thread| {
            let status = std::fs::read_to_string(thread.join("status")).ok()?;
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
            Some((thread.file_name()?.to_str()?.to_owned(), line.trim().parse().ok()?))
        });
        threads.collect()
    }

    /// What is left of the timers that the system keeps for it, in seconds.
    #[must_use]
    pub fn timers(&self) -> Vec<u64> {
        let files = self.proc("fdinfo").into_iter().filter_map(|file| {
            let file = std::fs::read_to_string(file).ok()?;
            let left = file.lines().find_map(|line| line.strip_prefix("it_value: ("))?;
            left.split(',').next()?.parse().ok()
        });
        files.collect()
    }

    fn proc(&self, folder: &str) -> Vec<PathBuf> {
        let folder = format!("/proc/{}/{folder}", self.id.as_raw_nonzero());
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    /// What it has written, to both of its streams.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Sends a signal; nothing to a process that has ended, as its number may be another's.
    pub fn signal(&self, signal: Signal) {
        if self.status.borrow().is_none() {
            let sent = kill_process(self.id, signal);
            assert!(matches!(sent, Ok(()) | Err(Errno::SRCH)), "{sent:?}");
        }
    }

    /// Waits for its end.
    pub async fn ended(&self) -> ExitStatus {
        let mut status = self.status.clone();
        let ended = tokio::time::timeout(ENDED_WITHIN, status.wait_for(Option::is_some)).await;
        let ended = ended.unwrap_or_else(|_| panic!("it has not ended after {ENDED_WITHIN:?}:\n{}", self.output));
        ended.unwrap().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.status.borrow().is_none() {
            let killed = kill_process_group(self.id, Signal::KILL);
            assert!(matches!(killed, Ok(()) | Err(Errno::SRCH)), "{killed:?}");
        }
    }
}

fn tell_reaper(event: &str, group: Pid) {
    let mut input = REAPER_INPUT.lock().unwrap_or_else(PoisonError::into_inner);
    writeln!(input, "{event} {}", group.as_raw_nonzero()).unwrap();
}
