//! A process that ends when the test process ends, or earlier.

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

/// Reads which process groups have started and which have ended. When its input ends, which is when the test process
/// ends in any way, it kills the groups that still run.
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

/// A process in a group of its own. A thread waits for its end, so tests of any runtime can wait for it. Dropping it
/// kills the group.
#[derive(Debug)]
pub struct Process {
    id: Pid,
    output: Output,
    status: watch::Receiver<Option<ExitStatus>>,
}

impl Process {
    /// Starts it without input.
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

    /// Waits until it writes `text` after the first `from` lines of its output. Returns the number of lines by then.
    ///
    /// # Panics
    /// With its output, if it ends before.
    pub async fn writes(&self, from: usize, text: &str) -> usize {
        let found = self
            .output
            .wait_for(from, WRITTEN_WITHIN, |line| line.contains(text).then_some(()));
        assert_eq!(
            found.await,
            Some(()),
            "it ended without writing {text:?}:\n{}",
            self.output
        );
        self.output.lines().len()
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.id.as_raw_nonzero().get()
    }

    /// Its resident memory in kilobytes. `None` on systems without `/proc`.
    #[must_use]
    pub fn resident_kilobytes(&self) -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id.as_raw_nonzero())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    }

    /// How often each of its threads has woken up so far, by the thread's id.
    ///
    /// # Panics
    /// If the process has ended, or if the system has no `/proc`.
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

    /// The seconds until each of its kernel timers expires.
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

    /// Its output, of both streams.
    #[must_use]
    pub fn output(&self) -> &Output {
        &self.output
    }

    /// Sends a signal. Does nothing after the process has ended, because its id may be reused.
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
        let ended = ended.unwrap_or_else(|_| panic!("it did not end within {ENDED_WITHIN:?}:\n{}", self.output));
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
