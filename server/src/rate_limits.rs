//! Rate limits for each machine, address and API key. Each replica counts by itself: the limits keep one caller from
//! starving the others, and are not for billing.

use std::{hash::Hash, net::IpAddr, num::NonZeroU32};

use assay_protocol::KeyThumbprint;
use governor::{
    Quota, RateLimiter,
    clock::{Clock as _, QuantaClock},
    state::keyed::DashMapStateStore,
};
use uuid::Uuid;

use crate::config::RateLimit;

/// The counters.
pub(crate) struct RateLimits {
    keys: Option<Limiter<KeyThumbprint>>,
    serial_numbers: Option<Limiter<String>>,
    addresses: Option<Limiter<IpAddr>>,
    api_keys: Option<Limiter<Uuid>>,
    /// Separate from enrollments: anyone who knows a serial number may order for it. Such orders must not use up the
    /// agent's limit.
    device_orders: Option<Limiter<String>>,
    recorded_refusals: Limiter<Option<String>>,
}

/// How many refusals per hour are written to the audit log for one serial number. All unknown serial numbers share one
/// count.
const RECORDED_REFUSALS_PER_HOUR: NonZeroU32 = NonZeroU32::new(30).unwrap();

type Limiter<K> = RateLimiter<K, DashMapStateStore<K>, QuantaClock>;

/// Too many calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many requests; retry in {retry_after_seconds} s")]
pub(crate) struct Exceeded {
    /// The number of seconds until the next call is allowed.
    pub(crate) retry_after_seconds: u64,
}

impl RateLimits {
    pub(crate) fn new(settings: &RateLimit) -> Self {
        Self {
            keys: limiter(settings.machine_per_minute),
            serial_numbers: limiter(settings.machine_per_minute),
            addresses: limiter(settings.address_per_minute),
            api_keys: limiter(settings.api_key_per_minute),
            device_orders: limiter(settings.machine_per_minute),
            recorded_refusals: RateLimiter::dashmap(Quota::per_hour(RECORDED_REFUSALS_PER_HOUR)),
        }
    }

    pub(crate) fn charge_key(&self, key: KeyThumbprint) -> Result<(), Exceeded> {
        charge(self.keys.as_ref(), &key)
    }

    pub(crate) fn charge_serial_number(&self, serial_number: &str) -> Result<(), Exceeded> {
        charge(self.serial_numbers.as_ref(), &serial_number.to_owned())
    }

    pub(crate) fn charge_address(&self, address: IpAddr) -> Result<(), Exceeded> {
        charge(self.addresses.as_ref(), &address)
    }

    pub(crate) fn charge_api_key(&self, api_key: Uuid) -> Result<(), Exceeded> {
        charge(self.api_keys.as_ref(), &api_key)
    }

    pub(crate) fn charge_device_order(&self, serial_number: &str) -> Result<(), Exceeded> {
        charge(self.device_orders.as_ref(), &serial_number.to_owned())
    }

    /// Whether another refusal may be written to the audit log. `None` is an unknown serial number.
    pub(crate) fn may_record_refusal(&self, known_serial_number: Option<&str>) -> bool {
        let key = known_serial_number.map(str::to_owned);
        self.recorded_refusals.check_key(&key).is_ok()
    }

    /// Drops the counters of callers that have been idle long enough to be at zero. Call it regularly: otherwise a
    /// caller that keeps changing its address makes the server's memory grow.
    pub(crate) fn forget_idle(&self) {
        forget(self.keys.as_ref());
        forget(self.serial_numbers.as_ref());
        forget(self.addresses.as_ref());
        forget(self.api_keys.as_ref());
        forget(self.device_orders.as_ref());
        forget(Some(&self.recorded_refusals));
    }
}

fn limiter<K: Hash + Eq + Clone>(per_minute: Option<NonZeroU32>) -> Option<Limiter<K>> {
    Some(RateLimiter::dashmap(Quota::per_minute(per_minute?)))
}

fn charge<K: Hash + Eq + Clone>(limiter: Option<&Limiter<K>>, key: &K) -> Result<(), Exceeded> {
    let Some(limiter) = limiter else { return Ok(()) };
    limiter.check_key(key).map_err(|until| Exceeded {
        retry_after_seconds: until.wait_time_from(limiter.clock().now()).as_secs() + 1,
    })
}

fn forget<K: Hash + Eq + Clone>(limiter: Option<&Limiter<K>>) {
    if let Some(limiter) = limiter {
        limiter.retain_recent();
        limiter.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(per_minute: u32) -> RateLimits {
        let per_minute = NonZeroU32::new(per_minute);
        RateLimits::new(&RateLimit {
            machine_per_minute: per_minute,
            address_per_minute: per_minute,
            api_key_per_minute: per_minute,
        })
    }

    #[test]
    fn one_callers_calls_do_not_count_for_another() {
        let limits = limits(2);
        let [one, other] = [IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2])];
        assert_eq!(limits.charge_address(one), Ok(()));
        assert_eq!(limits.charge_address(one), Ok(()));
        let refused = limits.charge_address(one).unwrap_err();
        assert!((1..=31).contains(&refused.retry_after_seconds), "{refused:?}");
        assert_eq!(limits.charge_address(other), Ok(()));
    }

    #[test]
    fn zero_means_no_limit() {
        let limits = limits(0);
        for _ in 0..10_000 {
            assert_eq!(limits.charge_serial_number("C02XYZ"), Ok(()));
        }
    }
}
