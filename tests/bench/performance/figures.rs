//! The figures of all rounds, and their medians.

use assay_tests::load::Report;

use super::pgbench::Pgbench;
use super::setting::Counters;

/// The measurements, in the order of their first results.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) loads: Vec<(&'static str, Vec<Report>)>,
    pub(crate) pgbench: Option<(&'static str, Vec<Pgbench>)>,
    /// Latencies of each round's check-ins with the released server.
    pub(crate) written: Vec<Counters>,
}

impl Figures {
    pub(crate) fn add(&mut self, name: &'static str, report: Report) {
        eprintln!(
            "{name}: {:.0} a second, server {:.0} µs, Postgres {:.0} µs",
            report.rate,
            report.cpu.server_us_each.unwrap_or_default(),
            report.cpu.postgres_us_each.unwrap_or_default()
        );
        match self.loads.iter_mut().find(|(known, _)| *known == name) {
            Some((_, reports)) => reports.push(report),
            None => self.loads.push((name, vec![report])),
        }
    }

    pub(crate) fn add_pgbench(&mut self, name: &'static str, run: Pgbench) {
        eprintln!("{name}: {:.0} a second", run.rate);
        self.pgbench.get_or_insert((name, Vec::new())).1.push(run);
    }

    pub(crate) fn recorded(&mut self, before: &Counters, after: &Counters) {
        self.written.push(Counters {
            updates: after.updates - before.updates,
            hot_updates: after.hot_updates - before.hot_updates,
            wal_bytes: after.wal_bytes - before.wal_bytes,
        });
    }

    /// The reports of a part, one for each round.
    pub(crate) fn of(&self, part: &str) -> &[Report] {
        let found = self.loads.iter().find(|(name, _)| name.starts_with(part));
        found.map_or(&[], |(_, reports)| reports)
    }
}

/// The median.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied()
}
