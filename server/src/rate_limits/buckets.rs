//! Token buckets by key, in memory.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, RandomState},
    num::NonZeroU32,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::Exceeded;

/// The number of maps. Calls of different keys seldom wait for each other.
const SHARDS: usize = 16;

/// One bucket for each key. A bucket allows its whole quota at once, and then one call for each part of the period.
///
/// A bucket is one time: when it will be full again (the generic cell rate algorithm). A full bucket needs no entry.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    /// How long one call takes to be refilled.
    refill: Duration,
    /// How long an empty bucket takes to be full.
    period: Duration,
    /// How many buckets one shard has at most; `None` if nothing limits them.
    most_per_shard: Option<usize>,
    hasher: RandomState,
    shards: [Mutex<HashMap<K, Instant>>; SHARDS],
}

impl<K: Hash + Eq> Buckets<K> {
    pub(super) fn new(quota: NonZeroU32, period: Duration) -> Self {
        Self {
            refill: period / quota.get(),
            period,
            most_per_shard: None,
            hasher: RandomState::new(),
            shards: std::array::from_fn(|_| Mutex::default()),
        }
    }

    /// Buckets for keys that anyone can make up. In a full shard, calls of further keys are not counted.
    pub(super) fn bounded(quota: NonZeroU32, period: Duration, most_per_shard: usize) -> Self {
        Self {
            most_per_shard: Some(most_per_shard),
            ..Self::new(quota, period)
        }
    }

    /// Takes one call out of the bucket, unless it is empty.
    pub(super) fn charge(&self, key: K, now: Instant) -> Result<(), Exceeded> {
        let mut shard = self.shard(&key);
        let is_full = self.most_per_shard.is_some_and(|most| shard.len() >= most);
        if is_full && !shard.contains_key(&key) {
            return Ok(());
        }
        let full_at = shard.entry(key).or_insert(now);
        let charged = (*full_at).max(now) + self.refill;
        self.require_within_period(charged, now)?;
        *full_at = charged;
        Ok(())
    }

    /// Whether the bucket allows another call.
    pub(super) fn check(&self, key: &K, now: Instant) -> Result<(), Exceeded> {
        let full_at = self.shard(key).get(key).copied().unwrap_or(now);
        self.require_within_period(full_at.max(now) + self.refill, now)
    }

    /// Puts one call back.
    pub(super) fn refund(&self, key: &K) {
        if let Some(full_at) = self.shard(key).get_mut(key) {
            *full_at = full_at.checked_sub(self.refill).unwrap_or(*full_at);
        }
    }

    /// Drops the buckets that are full.
    pub(super) fn forget_full(&self, now: Instant) {
        for shard in &self.shards {
            let mut shard = lock(shard);
            shard.retain(|_, full_at| *full_at > now);
            shard.shrink_to_fit();
        }
    }

    fn require_within_period(&self, charged: Instant, now: Instant) -> Result<(), Exceeded> {
        let wait = charged.saturating_duration_since(now).saturating_sub(self.period);
        if wait.is_zero() {
            return Ok(());
        }
        Err(Exceeded {
            retry_after_seconds: wait.as_secs() + 1,
        })
    }

    fn shard(&self, key: &K) -> MutexGuard<'_, HashMap<K, Instant>> {
        let hash = self.hasher.hash_one(key);
        let [first, ..] = &self.shards;
        let place = usize::try_from(hash % SHARDS as u64).unwrap_or_default();
        lock(self.shards.get(place).unwrap_or(first))
    }
}

/// No code panics while it holds the lock.
fn lock<K>(shard: &Mutex<HashMap<K, Instant>>) -> MutexGuard<'_, HashMap<K, Instant>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn buckets(quota: u32) -> (Buckets<u8>, Instant) {
        let quota = NonZeroU32::new(quota).unwrap();
        (Buckets::new(quota, Duration::from_mins(1)), Instant::now())
    }

    #[test]
    fn a_bucket_allows_its_quota_and_then_one_call_for_each_refill() {
        let (buckets, now) = buckets(3);
        for _ in 0..3 {
            assert_eq!(buckets.charge(1, now), Ok(()));
        }
        let refused = Err(Exceeded {
            retry_after_seconds: 21,
        });
        assert_eq!((buckets.check(&1, now), buckets.charge(1, now)), (refused, refused));
        assert_eq!(buckets.charge(2, now), Ok(()));
        let later = now + Duration::from_secs(20);
        assert_eq!((buckets.check(&1, later), buckets.charge(1, later)), (Ok(()), Ok(())));
        assert!(buckets.charge(1, later).is_err());
    }

    #[test]
    fn a_refund_makes_room_for_one_call_and_a_full_bucket_gets_no_larger() {
        let (buckets, now) = buckets(2);
        let charge_all = |at| (0..9).take_while(|_| buckets.charge(1, at).is_ok()).count();
        assert_eq!(charge_all(now), 2);
        buckets.refund(&1);
        assert_eq!(charge_all(now), 1);
        buckets.refund(&1);
        assert_eq!(charge_all(now + Duration::from_mins(10)), 2);
    }

    #[rstest]
    #[case::none(0)]
    #[case::one(1)]
    #[case::some(20)]
    fn made_up_keys_do_not_grow_a_bounded_map_and_the_keys_in_it_stay_limited(#[case] most: usize) {
        let (quota, now) = (NonZeroU32::new(1).unwrap(), Instant::now());
        let buckets = Buckets::bounded(quota, Duration::from_mins(1), most);
        let sizes = || buckets.shards.iter().map(|shard| lock(shard).len()).collect::<Vec<_>>();
        for key in 0..10_000_u32 {
            assert_eq!(buckets.charge(key, now), Ok(()));
        }
        assert_eq!(sizes(), [most; SHARDS]);
        let limited = (0..10_000).filter(|key| buckets.charge(*key, now).is_err());
        assert_eq!(limited.count(), most * SHARDS);
        assert_eq!(sizes(), [most; SHARDS]);
        let later = now + Duration::from_mins(1);
        buckets.forget_full(later);
        assert_eq!(sizes(), [0; SHARDS]);
    }

    #[test]
    fn only_full_buckets_are_forgotten() {
        let (buckets, now) = buckets(2);
        assert_eq!((buckets.charge(1, now), buckets.charge(1, now)), (Ok(()), Ok(())));
        buckets.forget_full(now);
        assert!(buckets.charge(1, now).is_err());
        buckets.forget_full(now + Duration::from_mins(1));
        assert!(buckets.shards.iter().all(|shard| lock(shard).is_empty()));
    }
}
