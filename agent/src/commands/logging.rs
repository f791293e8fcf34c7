//! The log: to standard error, or to the system log for a daemon on a Mac.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::LevelFilter;

use super::arguments::Command;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
use super::system_log::SystemLog;
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
use crate::config::LogTarget;
use crate::config::{LogLevel, Settings};

pub(super) fn start(settings: &Settings, command: &Command) {
    let default = match command {
        Command::Run { once: false } | Command::Proxy(_) => LogLevel::Info,
        _ => LogLevel::Warn,
    };
    let level = match settings.log_level.unwrap_or(default) {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    let subscriber = tracing_subscriber::fmt().with_max_level(level);
    #[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
    if logs_to_system(settings, command) {
        let subscriber = subscriber.with_writer(SystemLog).with_ansi(false);
        return subscriber.without_time().with_level(false).init();
    }
    let subscriber = subscriber.with_writer(io::stderr);
    subscriber.with_ansi(io::stderr().is_terminal()).init();
}

/// By default, a daemon on a Mac logs to the system log, unless standard error is a terminal. Other commands log to
/// standard error.
#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
fn logs_to_system(settings: &Settings, command: &Command) -> bool {
    let is_daemon = matches!(command, Command::Run { once: false });
    let by_default = cfg!(target_os = "macos") && !io::stderr().is_terminal();
    is_daemon && settings.log_to.map_or(by_default, |target| target == LogTarget::System)
}
