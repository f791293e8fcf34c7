//! The lines that a process writes, kept for assertions and for the message of a test that fails.

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
    /// Reads the streams to their ends, on threads of their own: a test's runtime may end before the process does.
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

    /// Waits until all streams have ended: a process may have, before everything that it wrote was read.
    pub async fn ended(&self) {
        let ended = self.state.clone();
        let waiting = async move { drop(ended.clone().wait_for(|state| state.open_streams == 0).await) };
        tokio::time::timeout(ENDED_WITHIN, waiting)
            .await
            .expect("somebody still has its output open");
    }

    /// Waits for the first line, from the `from`th on, that `find` recognizes: none when all streams have ended
    /// without it.
    ///
    /// # Panics
    /// After `within`.
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
                // The sender is gone when the last stream has ended, which the next look finds.
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
