//! macOS' unified log as a writer: `log show --predicate 'subsystem == "dev.assay.agent"'`.

use std::io::{self, Write};

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use crate::shim;

/// The unified log. It records time and level itself.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SystemLog;

/// Collects one log line, and writes it to the unified log when dropped.
#[derive(Debug)]
pub(crate) struct Line {
    level: Level,
    text: Vec<u8>,
}

impl<'a> MakeWriter<'a> for SystemLog {
    type Writer = Line;

    fn make_writer(&'a self) -> Line {
        Line {
            level: Level::INFO,
            text: Vec::new(),
        }
    }

    fn make_writer_for(&'a self, metadata: &Metadata<'_>) -> Line {
        Line {
            level: *metadata.level(),
            text: Vec::new(),
        }
    }
}

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.text);
        shim::log(self.level, text.trim_end());
    }
}
