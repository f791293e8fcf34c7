//! The lines that a process writes, for assertions and for the messages of failed tests.

use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::watch;

const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// Everything a process has written so far. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Output {
    lines: Arc<Mutex<Vec<String>>>,
    state: watch::Receiver<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    lines: usize,
    open_streams: usize,
}

impl Output {
    /// Reads the streams to their ends. It does so on threads, because a test's runtime may end before the process.
    #[must_use]
    pub fn read(streams: Vec<Box<dyn Read + Send>>) -> Self {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (sender, state) = watch::channel(State {
            lines: 0,
            open_streams: streams.len(),
        });
        let sender = Arc::new(sender);
        for stream in streams {
            let (lines, sender) = (Arc::clone(&lines), Arc::clone(&sender));
            thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).into_owned();
                    lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                    sender.send_modify(|state| state.lines += 1);
                }
                sender.send_modify(|state| state.open_streams -= 1);
            });
        }
        Self { lines, state }
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until all streams have ended. The process may end before its output is read.
    pub async fn ended(&self) {
        let ended = self.state.clone();
        let waiting = async move { drop(ended.clone().wait_for(|state| state.open_streams == 0).await) };
        tokio::time::timeout(ENDED_WITHIN, waiting)
            .await
            .expect("another process still has its output open");
    }

    /// Waits for the first line after `from` lines that `find` recognizes. `None` if all streams end without it.
    ///
    /// # Panics
    /// If `within` has passed.
    pub async fn wait_for<T>(&self, from: usize, within: Duration, find: impl Fn(&str) -> Option<T>) -> Option<T> {
        let mut state = self.state.clone();
        let mut looked_at = from;
        let looking = async {
            loop {
                let State { open_streams, .. } = *state.borrow_and_update();
                let lines = self.lines();
                let found = lines
                    .get(looked_at..)
                    .unwrap_or_default()
                    .iter()
                    .find_map(|line| find(line));
                if found.is_some() || open_streams == 0 {
                    return found;
                }
                looked_at = lines.len().max(from);
                // This fails after the last stream has ended. The next pass then finds no open stream.
                drop(state.changed().await);
            }
        };
        let found = tokio::time::timeout(within, looking).await;
        found.unwrap_or_else(|_| panic!("waited {within:?} for a line of the process, which wrote:\n{self}"))
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in self.lines() {
            writeln!(formatter, "  {line}")?;
        }
        Ok(())
    }
}
