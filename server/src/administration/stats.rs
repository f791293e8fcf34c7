//! Statistics of the fleet. A count reads every machine. The count of a large fleet is therefore cached for a while; a
//! small fleet is counted for each caller.

use std::{collections::BTreeMap, str::FromStr, time::Duration};

use assay_protocol::{
    admin_api::stats::{
        CertificateStats, MachineStats, MachinesByAssurance, MachinesByLiveness, MachinesByStatus, Stats,
    },
    machine::{Assurance, MachineStatus},
};
use tokio::{sync::Mutex, time::Instant};

use crate::{
    registry::record::boundaries,
    services::Services,
    store::{self, StoreError, machines::stats::Count},
};

/// Up to this many machines are counted for each caller.
const SMALL_FLEET: u64 = 20_000;
/// The count of a larger fleet is cached for this many times its duration. A caller that asks all the time then uses a
/// twentieth of the database's time.
const CACHED_FOR: u32 = 20;
/// How long one count may take: enough for a large fleet that Postgres reads from the disk.
pub(crate) const LONGEST_COUNT: Duration = Duration::from_secs(60);
/// How many OS versions are counted separately. An agent can claim any version.
const MOST_VERSIONS: i64 = 50;
const OTHER: &str = "other";
const UNKNOWN: &str = "unknown";
const EXPIRING_WITHIN: time::Duration = time::Duration::days(7);

/// The last count. The lock lets one count run at a time.
#[derive(Debug, Default)]
pub(crate) struct StatsCache(Mutex<Option<Counted>>);

#[derive(Debug, Clone)]
struct Counted {
    stats: Stats,
    started: Instant,
    ended: Instant,
}

impl Counted {
    /// Whether this count may answer a call that arrived at `asked`. It may if it started later, or if it is the recent
    /// count of a large fleet.
    fn answers(&self, asked: Instant, now: Instant) -> bool {
        let took = self.ended.duration_since(self.started);
        let age = now.duration_since(self.ended);
        let is_large = self.stats.machines.total > SMALL_FLEET;
        self.started >= asked || (is_large && age < took.saturating_mul(CACHED_FOR))
    }
}

/// The statistics, counted now or taken from the cache.
pub(crate) async fn read(services: &Services) -> Result<Stats, StoreError> {
    let asked = Instant::now();
    let mut last = services.stats_cache.0.lock().await;
    if let Some(counted) = last.as_ref().filter(|counted| counted.answers(asked, Instant::now())) {
        return Ok(counted.stats.clone());
    }
    let started = Instant::now();
    let stats = count(services).await?;
    let counted = Counted {
        stats: stats.clone(),
        started,
        ended: Instant::now(),
    };
    *last = Some(counted);
    Ok(stats)
}

async fn count(services: &Services) -> Result<Stats, StoreError> {
    let now = services.clock.now();
    let mut snapshot = services.store.snapshot().await?;
    store::machines::stats::allow_time(&mut snapshot, LONGEST_COUNT).await?;
    let statuses = store::machines::stats::by_status(&mut snapshot).await?;
    let assurances = store::machines::stats::by_assurance(&mut snapshot).await?;
    let versions = store::machines::stats::by_os_version(&mut snapshot, UNKNOWN, MOST_VERSIONS).await?;
    let presences =
        store::machines::stats::by_last_check_in(&mut snapshot, &boundaries(&services.policy, now).liveness, now)
            .await?;
    let certificates =
        store::machines::stats::certificates(&mut snapshot, now, now.saturating_add(EXPIRING_WITHIN)).await?;
    store::end(snapshot).await?;
    let total = statuses.iter().map(|count| natural(count.machines)).sum();
    Ok(Stats {
        machines: MachineStats {
            total,
            by_status: by_status(&statuses)?,
            by_assurance: by_assurance(&assurances)?,
            by_liveness: MachinesByLiveness {
                never: natural(presences.never),
                live: natural(presences.live),
                late: natural(presences.late),
                unreachable: natural(presences.unreachable),
            },
            by_os_version: by_os_version(versions, total),
        },
        certificates: CertificateStats {
            valid: natural(certificates.valid),
            expiring_within_7_days: natural(certificates.expiring),
            expired: natural(certificates.expired),
            revoked: natural(certificates.revoked),
        },
        check_ins_per_minute: natural(presences.within_a_minute),
        computed_at: now,
    })
}

fn by_status(counts: &[Count]) -> Result<MachinesByStatus, StoreError> {
    let mut by_status = MachinesByStatus::default();
    for count in counts {
        let (status, machines) = parse(count)?;
        *match status {
            MachineStatus::Pending => &mut by_status.pending,
            MachineStatus::Active => &mut by_status.active,
            MachineStatus::Quarantined => &mut by_status.quarantined,
            MachineStatus::Revoked => &mut by_status.revoked,
        } = machines;
    }
    Ok(by_status)
}

fn by_assurance(counts: &[Count]) -> Result<MachinesByAssurance, StoreError> {
    let mut by_assurance = MachinesByAssurance::default();
    for count in counts {
        let (assurance, machines) = parse(count)?;
        *match assurance {
            Assurance::Asserted => &mut by_assurance.asserted,
            Assurance::Verified => &mut by_assurance.verified,
            Assurance::Attested => &mut by_assurance.attested,
        } = machines;
    }
    Ok(by_assurance)
}

fn parse<T: FromStr>(count: &Count) -> Result<(T, u64), StoreError> {
    Ok((store::parse_text(&count.value)?, natural(count.machines)))
}

/// Adds the versions beyond the most frequent ones to `other`. A machine that claims the version `other` is among them.
fn by_os_version(counts: Vec<Count>, total: u64) -> BTreeMap<String, u64> {
    let named: u64 = counts.iter().map(|count| natural(count.machines)).sum();
    let mut versions: BTreeMap<String, u64> = counts
        .into_iter()
        .map(|count| (count.value, natural(count.machines)))
        .collect();
    let others = total.saturating_sub(named);
    if others > 0 {
        *versions.entry(OTHER.to_owned()).or_default() += others;
    }
    versions
}

/// A count from the database, which is never negative.
fn natural(count: i64) -> u64 {
    count.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(value: &str, machines: i64) -> Count {
        Count {
            value: value.to_owned(),
            machines,
        }
    }

    #[test]
    fn versions_beyond_the_most_frequent_are_counted_as_other() {
        let counts = vec![count("26.1", 5), count("other", 2)];
        let expected = BTreeMap::from([("26.1".to_owned(), 5), ("other".to_owned(), 5)]);
        assert_eq!(by_os_version(counts, 10), expected);
        assert_eq!(
            by_os_version(vec![count("26.1", 5)], 5),
            BTreeMap::from([("26.1".to_owned(), 5)])
        );
    }

    #[test]
    fn the_count_of_a_large_fleet_is_cached_for_twenty_times_its_duration_and_that_of_a_small_fleet_never() {
        let (started, second) = (Instant::now(), Duration::from_secs(1));
        let counted = |total| Counted {
            stats: Stats {
                machines: MachineStats {
                    total,
                    by_status: MachinesByStatus::default(),
                    by_assurance: MachinesByAssurance::default(),
                    by_liveness: MachinesByLiveness::default(),
                    by_os_version: BTreeMap::new(),
                },
                certificates: CertificateStats {
                    valid: 0,
                    expiring_within_7_days: 0,
                    expired: 0,
                    revoked: 0,
                },
                check_ins_per_minute: 0,
                computed_at: time::OffsetDateTime::UNIX_EPOCH,
            },
            started,
            ended: started + second,
        };
        let (small, large) = (counted(SMALL_FLEET), counted(SMALL_FLEET + 1));
        // For a call that arrived before the count started, this is the newest count, even after a long wait.
        assert!(small.answers(started, started + 100 * second));
        let asked = started + Duration::from_millis(1);
        assert!(!small.answers(asked, started + second));
        assert!(large.answers(asked, started + 20 * second));
        assert!(!large.answers(asked, started + 21 * second));
    }
}
