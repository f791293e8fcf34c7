//! File descriptors: how many the process may have, and how many of them connections may use.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// For listeners, logs, certificates, metrics and calls to other servers, and to accept a connection that then waits.
const RESERVED: u64 = 192;
/// The fewest connections, however low the limit is.
const FEWEST: usize = 16;

/// Raises the soft limit to the hard one, and returns it. Shells and container engines start processes with a soft limit
/// of 1,024, which one caller can use up.
pub(super) fn raise_limit() -> Option<u64> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    match setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(error) => {
            tracing::warn!(%error, limit = limit.current, "cannot raise the limit of open files");
            limit.current
        }
    }
}

/// How many connections fit beside the reserve and the database's connections.
pub(super) fn connections_within(limit: Option<u64>, database_connections: u32, most: usize) -> usize {
    let Some(limit) = limit else { return most };
    let left = limit.saturating_sub(RESERVED + u64::from(database_connections));
    usize::try_from(left).unwrap_or(most).clamp(FEWEST.min(most), most)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::unlimited(None, 20_000)]
    #[case::high(Some(65_536), 20_000)]
    #[case::low(Some(1024), 816)]
    #[case::lower_than_the_reserve(Some(100), 16)]
    fn connections_leave_a_reserve(#[case] limit: Option<u64>, #[case] connections: usize) {
        assert_eq!(connections_within(limit, 16, 20_000), connections);
    }
}
