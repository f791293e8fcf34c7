//! Structured logs on standard output: one event per line, with its request.

use std::{
    fmt,
    io::{self, IsTerminal},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use time::format_description::well_known::Rfc3339;
use tracing::{Dispatch, Level, Metadata, Span, info_span};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt::{MakeWriter, format::Writer, time::FormatTime},
    layer::SubscriberExt,
};
use uuid::Uuid;

use crate::clock::Clock;

/// Libraries that log tokens and headers below `INFO`. These levels are always dropped, regardless of the filter.
const VERBOSE_LIBRARIES: [&str; 6] = ["h2", "hyper", "hyper_util", "rustls", "tokio_rustls", "sqlx"];

/// The format of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// One JSON object per line.
    #[default]
    Json,
    /// Text for people.
    Text,
}

/// Why logging could not start.
#[derive(Debug, thiserror::Error)]
pub enum LoggingError {
    /// The filter is invalid.
    #[error("invalid log filter")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// Logging has already been started in this process.
    #[error("logging has already been started")]
    Twice(#[source] tracing::dispatcher::SetGlobalDefaultError),
}

/// Starts logging to standard output, once for the whole process.
///
/// `filter` is a level or a list of `target=level`, such as `info,assay_server=debug`.
pub fn start(format: LogFormat, filter: &str, clock: Arc<dyn Clock>) -> Result<(), LoggingError> {
    let dispatch = dispatch(format, filter, clock, io::stdout, io::stdout().is_terminal())?;
    tracing::dispatcher::set_global_default(dispatch).map_err(LoggingError::Twice)
}

/// The span of one request. Each log line in it contains the request's id.
///
/// `endpoint` is the matched route and never the path: a caller may have put a secret into a path or query by mistake.
#[must_use]
pub fn request_span(request_id: Uuid, method: &http::Method, endpoint: &str) -> Span {
    info_span!("request", %request_id, %method, endpoint)
}

fn dispatch<W>(
    format: LogFormat,
    filter: &str,
    clock: Arc<dyn Clock>,
    writer: W,
    colors: bool,
) -> Result<Dispatch, LoggingError>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder()
        .parse(filter)
        .map_err(LoggingError::Filter)?
        .and(filter_fn(is_safe));
    let layer = tracing_subscriber::fmt::layer()
        .with_timer(ClockTime(clock))
        .with_writer(writer)
        .with_ansi(colors && format == LogFormat::Text);
    Ok(match format {
        // Lists all spans, because the innermost may not be the request's.
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_current_span(false);
            Registry::default().with(layer.with_filter(filter)).into()
        }
        LogFormat::Text => Registry::default().with(layer.with_filter(filter)).into(),
    })
}

fn is_safe(metadata: &Metadata<'_>) -> bool {
    let library = metadata.target().split("::").next().unwrap_or_default();
    *metadata.level() <= Level::INFO || !VERBOSE_LIBRARIES.contains(&library)
}

struct ClockTime(Arc<dyn Clock>);

impl FormatTime for ClockTime {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&self.0.now().format(&Rfc3339).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use serde_json::Value;
    use time::macros::datetime;
    use tracing::{debug, info, warn};

    use super::*;
    use crate::clock::MockClock;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: LogFormat, filter: &str, log: impl FnOnce()) -> String {
        let lines = Lines::default();
        let clock = Arc::new(MockClock::new(datetime!(2026-11-22 10:00:00.5 UTC)));
        let writer = lines.clone();
        let dispatch = dispatch(format, filter, clock, move || writer.clone(), false).unwrap();
        tracing::dispatcher::with_default(&dispatch, log);
        String::from_utf8(lines.0.lock().unwrap().clone()).unwrap()
    }

    #[test]
    fn every_line_of_a_request_has_its_id_even_in_inner_spans() {
        let id = Uuid::from_u128(5);
        let log = || {
            let request = request_span(id, &http::Method::GET, "/v1/admin/machines/{id}");
            let _request = request.enter();
            let inner = info_span!("statement", name = "list");
            let _inner = inner.enter();
            info!(rows = 3, "listed");
        };
        let line: Value = serde_json::from_str(&written(LogFormat::Json, "info", log)).unwrap();
        assert_eq!(line["timestamp"], "2026-11-22T10:00:00.5Z");
        assert_eq!((&line["message"], &line["rows"]), (&"listed".into(), &3.into()));
        assert_eq!(line["spans"][0]["request_id"], id.to_string());
        assert_eq!(line["spans"][0]["endpoint"], "/v1/admin/machines/{id}");
        let text = written(LogFormat::Text, "info", log);
        assert!(text.contains(&id.to_string()) && text.contains("listed"), "{text}");
    }

    #[test]
    fn libraries_that_log_headers_are_silenced_regardless_of_the_filter() {
        let log = || {
            debug!(target: "h2::hpack", "authorization: secret");
            debug!(target: "rustls::conn", "secret");
            warn!(target: "rustls::conn", "a warning");
            debug!(target: "assay_server::check_in", "our own");
        };
        let text = written(LogFormat::Text, "trace,h2::hpack=trace", log);
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("a warning") && text.contains("our own"), "{text}");
    }

    #[test]
    fn a_bad_filter_is_an_error() {
        let clock = Arc::new(MockClock::new(datetime!(2026-11-22 10:00 UTC)));
        let refused = dispatch(LogFormat::Json, "assay=loudly", clock, io::sink, false);
        assert!(matches!(refused, Err(LoggingError::Filter(_))));
    }
}
