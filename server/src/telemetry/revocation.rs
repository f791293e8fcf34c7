//! Metrics of certificate revocation.

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::metrics::{Labels, counted};

/// Metrics of revocation lists and OCSP, and the end of the issuing CA.
pub struct RevocationMetrics {
    lists_signed: Counter,
    lists_end: Gauge,
    issuing_ca_end: Gauge,
    ocsp: Family<Labels<1>, Counter>,
}

impl RevocationMetrics {
    /// Counts a list signed by this replica.
    pub fn list_signed(&self) {
        self.lists_signed.inc();
    }

    /// Sets when the first of this replica's lists expires, in seconds since 1970.
    pub fn lists_end_at(&self, seconds: i64) {
        self.lists_end.set(seconds);
    }

    /// Sets when the current issuing CA expires, in seconds since 1970.
    pub fn issuing_ca_ends_at(&self, seconds: i64) {
        self.issuing_ca_end.set(seconds);
    }

    /// Counts the status of a certificate (`good`, `revoked` or `unknown`), or a refused request (`malformed`,
    /// `try_later` or `unauthorized`).
    pub fn ocsp_answered(&self, status: &'static str) {
        self.ocsp.get_or_create(&[("status", status)]).inc();
    }

    pub(super) fn register(registry: &mut Registry) -> Self {
        Self {
            lists_signed: counted(
                registry,
                "revocation_lists_signed",
                "Revocation lists signed by this replica",
            ),
            lists_end: counted(
                registry,
                "revocation_lists_end_timestamp_seconds",
                "When the first of the revocation lists in memory expires",
            ),
            issuing_ca_end: counted(
                registry,
                "issuing_ca_end_timestamp_seconds",
                "When the current issuing CA expires",
            ),
            ocsp: counted(registry, "ocsp_answers", "OCSP responses, by status"),
        }
    }
}
