//! Rate limits for machines, addresses and API keys. Each replica counts by itself: the limits keep one caller from
//! starving the others, and are not for billing.

mod buckets;
mod network;
mod unproven;

use std::{
    hash::Hash,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use assay_protocol::KeyThumbprint;
use tokio::time::Instant;
use uuid::Uuid;

use self::buckets::Buckets;
pub(crate) use self::network::Network;
pub(crate) use self::unproven::{UnprovenConnection, UnprovenConnections};
use crate::config::RateLimit;

/// The counters.
pub(crate) struct RateLimits {
    /// By the machine's id, which stays the same when the key changes. Charged only after a signature by the machine's
    /// key was verified: the id and the thumbprint of a key are public.
    machines: Option<Buckets<Uuid>>,
    /// By the key that asks to be enrolled. The caller may replace it: this limit is for agents that malfunction.
    applicants: Option<Buckets<KeyThumbprint>>,
    /// By claimed serial number and network: a stranger elsewhere must not use up a Mac's limit by naming it.
    serial_numbers: Option<Buckets<(Option<Network>, String)>>,
    addresses: Option<Buckets<Network>>,
    /// Separate from other calls: verifiers must learn of a revocation while a computer in their office misbehaves, and
    /// strangers at the open listener must not use up what agents need.
    revocation: Option<Buckets<Network>>,
    /// Evidence that was not verified, from networks that are over their limit. Bounded, because a stranger makes up keys
    /// faster than they are forgotten. The look-ups of keys that are not counted still wait for [`KeyCache`]'s pace.
    ///
    /// [`KeyCache`]: crate::check_in::keys::KeyCache
    failures: Buckets<(Network, KeyThumbprint)>,
    api_keys: Option<Buckets<Uuid>>,
    acme_accounts: Option<Buckets<Uuid>>,
    /// Separate from enrollments: anyone who knows a serial number may order for it. Such orders must not use up the
    /// agent's limit.
    device_orders: Option<Buckets<(Option<Network>, String)>>,
    recorded_refusals: Buckets<Option<String>>,
}

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

/// How many refusals per hour are written to the audit log for one serial number. All unknown serial numbers share one
/// count.
const RECORDED_REFUSALS_PER_HOUR: NonZeroU32 = NonZeroU32::new(30).unwrap();

/// How often a minute a key that is not in memory is looked up for one network that is over its limit.
const FAILURES_PER_MINUTE: NonZeroU32 = NonZeroU32::new(6).unwrap();

/// 262,144 keys in all shards, about 20 MB.
const MOST_FAILURES_PER_SHARD: usize = 16_384;

/// Too many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests; retry in {retry_after_seconds} s")]
pub(crate) struct Exceeded {
    /// The number of seconds until the next call is allowed.
    pub(crate) retry_after_seconds: u64,
}

/// The charge of one call to its address.
#[derive(Debug, Clone, Default)]
pub(crate) struct AddressCharge(Arc<AtomicBool>);

impl AddressCharge {
    /// Keeps the charge, although the call may succeed.
    pub(crate) fn keep(&self) {
        self.0.store(true, Relaxed);
    }

    pub(crate) fn is_kept(&self) -> bool {
        self.0.load(Relaxed)
    }
}

/// A network that is over its limit. It is still served evidence by keys on record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OverLimit {
    pub(crate) network: Network,
    pub(crate) exceeded: Exceeded,
}

impl RateLimits {
    pub(crate) fn new(settings: &RateLimit) -> Self {
        Self {
            machines: per_minute(settings.machine_per_minute),
            applicants: per_minute(settings.machine_per_minute),
            serial_numbers: per_minute(settings.machine_per_minute),
            addresses: per_minute(settings.address_per_minute),
            revocation: per_minute(settings.revocation_per_minute),
            failures: Buckets::bounded(FAILURES_PER_MINUTE, MINUTE, MOST_FAILURES_PER_SHARD),
            api_keys: per_minute(settings.api_key_per_minute),
            acme_accounts: per_minute(settings.machine_per_minute),
            device_orders: per_minute(settings.machine_per_minute),
            recorded_refusals: Buckets::new(RECORDED_REFUSALS_PER_HOUR, HOUR),
        }
    }

    /// Call it only after a signature by one of the machine's keys was verified.
    pub(crate) fn charge_machine(&self, machine_id: Uuid) -> Result<(), Exceeded> {
        charge(self.machines.as_ref(), machine_id)
    }

    pub(crate) fn charge_applicant(&self, key: KeyThumbprint) -> Result<(), Exceeded> {
        charge(self.applicants.as_ref(), key)
    }

    pub(crate) fn charge_serial_number(&self, network: Option<Network>, serial_number: &str) -> Result<(), Exceeded> {
        charge(self.serial_numbers.as_ref(), (network, serial_number.to_owned()))
    }

    pub(crate) fn charge_address(&self, network: Network) -> Result<(), Exceeded> {
        charge(self.addresses.as_ref(), network)
    }

    /// A call at the listener for revocation status.
    pub(crate) fn charge_revocation(&self, network: Network) -> Result<(), Exceeded> {
        charge(self.revocation.as_ref(), network)
    }

    /// Takes back what a call was charged that has proved an identity.
    pub(crate) fn refund_address(&self, network: Network) {
        if let Some(addresses) = &self.addresses {
            addresses.refund(&network);
        }
    }

    /// Whether this key may be looked up for a network that is over its limit.
    pub(crate) fn check_failures(&self, over_limit: &OverLimit, key: KeyThumbprint) -> Result<(), Exceeded> {
        self.failures.check(&(over_limit.network, key), Instant::now())
    }

    pub(crate) fn charge_failure(&self, over_limit: &OverLimit, key: KeyThumbprint) {
        let _already_empty = self.failures.charge((over_limit.network, key), Instant::now());
    }

    pub(crate) fn charge_api_key(&self, api_key: Uuid) -> Result<(), Exceeded> {
        charge(self.api_keys.as_ref(), api_key)
    }

    pub(crate) fn charge_acme_account(&self, account: Uuid) -> Result<(), Exceeded> {
        charge(self.acme_accounts.as_ref(), account)
    }

    pub(crate) fn charge_device_order(&self, network: Option<Network>, serial_number: &str) -> Result<(), Exceeded> {
        charge(self.device_orders.as_ref(), (network, serial_number.to_owned()))
    }

    /// Whether another refusal may be written to the audit log. `None` is an unknown serial number.
    pub(crate) fn may_record_refusal(&self, known_serial_number: Option<&str>) -> bool {
        let key = known_serial_number.map(str::to_owned);
        self.recorded_refusals.charge(key, Instant::now()).is_ok()
    }

    /// Drops the counters of callers that have been idle long enough to be at zero. Call it regularly: otherwise a
    /// caller that keeps changing its address makes the server's memory grow.
    pub(crate) fn forget_idle(&self) {
        forget(self.machines.as_ref());
        forget(self.applicants.as_ref());
        forget(self.serial_numbers.as_ref());
        forget(self.addresses.as_ref());
        forget(self.revocation.as_ref());
        forget(Some(&self.failures));
        forget(self.api_keys.as_ref());
        forget(self.acme_accounts.as_ref());
        forget(self.device_orders.as_ref());
        forget(Some(&self.recorded_refusals));
    }
}

fn per_minute<K: Hash + Eq>(quota: Option<NonZeroU32>) -> Option<Buckets<K>> {
    Some(Buckets::new(quota?, MINUTE))
}

fn charge<K: Hash + Eq>(buckets: Option<&Buckets<K>>, key: K) -> Result<(), Exceeded> {
    buckets.map_or(Ok(()), |buckets| buckets.charge(key, Instant::now()))
}

fn forget<K: Hash + Eq>(buckets: Option<&Buckets<K>>) {
    if let Some(buckets) = buckets {
        buckets.forget_full(Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_means_no_limit() {
        let limits = RateLimits::new(&RateLimit {
            machine_per_minute: None,
            address_per_minute: None,
            api_key_per_minute: None,
            revocation_per_minute: None,
            connections_per_address: None,
            renewals_per_day: None,
        });
        for _ in 0..10_000 {
            assert_eq!(limits.charge_serial_number(None, "C02XYZ"), Ok(()));
        }
    }
}
