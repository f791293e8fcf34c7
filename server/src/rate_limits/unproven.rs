//! Connections whose peer has proved no identity yet, by network.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use super::Network;

/// All such connections. A new one over its network's limit ends the network's oldest: a peer with an identity proves it
/// at once, and a peer that only keeps connections open loses them.
#[derive(Debug, Default)]
pub(crate) struct UnprovenConnections(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    next_number: u64,
    by_network: HashMap<Network, BTreeMap<u64, CancellationToken>>,
}

/// One of them. It counts until its peer proves an identity, or until it is dropped.
#[derive(Debug)]
pub(crate) struct UnprovenConnection {
    all: Arc<UnprovenConnections>,
    network: Network,
    number: u64,
    ended: CancellationToken,
}

impl UnprovenConnections {
    /// Adds a connection. If its network now has more than `limit`, the network's oldest one is ended.
    pub(crate) fn add(self: &Arc<Self>, network: Network, limit: usize) -> Arc<UnprovenConnection> {
        let mut open = self.lock();
        let number = open.next_number;
        open.next_number += 1;
        let ended = CancellationToken::new();
        let of_network = open.by_network.entry(network).or_default();
        of_network.insert(number, ended.clone());
        if of_network.len() > limit {
            end_oldest(of_network);
        }
        drop(open);
        Arc::new(UnprovenConnection {
            all: Arc::clone(self),
            network,
            number,
            ended,
        })
    }

    /// Ends the oldest connection of the network that has most of them.
    pub(crate) fn end_one(&self) {
        let mut open = self.lock();
        if let Some(of_network) = open.by_network.values_mut().max_by_key(|of_network| of_network.len()) {
            end_oldest(of_network);
        }
    }

    fn remove(&self, network: Network, number: u64) {
        let mut open = self.lock();
        if let Some(of_network) = open.by_network.get_mut(&network) {
            of_network.remove(&number);
            if of_network.is_empty() {
                open.by_network.remove(&network);
            }
        }
    }

    /// No code panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UnprovenConnection {
    /// The peer has proved an identity: the connection no longer counts, and is not ended for another.
    pub(crate) fn prove(&self) {
        self.all.remove(self.network, self.number);
    }

    /// Returns when the connection must end.
    pub(crate) async fn ended(&self) {
        self.ended.cancelled().await;
    }
}

impl Drop for UnprovenConnection {
    fn drop(&mut self) {
        self.prove();
    }
}

fn end_oldest(of_network: &mut BTreeMap<u64, CancellationToken>) {
    if let Some((_number, oldest)) = of_network.pop_first() {
        oldest.cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn the_oldest_unproven_connection_makes_room_and_a_proven_one_stays() {
        let all = Arc::new(UnprovenConnections::default());
        let [one, other] = [1, 2].map(|last| Network::of(IpAddr::from([192, 0, 2, last])));
        let proven = all.add(one, 2);
        proven.prove();
        let [oldest, second, third] = [(); 3].map(|()| all.add(one, 2));
        let elsewhere = all.add(other, 2);
        let ended = |connection: &UnprovenConnection| connection.ended.is_cancelled();
        assert_eq!(
            [&proven, &oldest, &second, &third, &elsewhere].map(|c| ended(c)),
            [false, true, false, false, false]
        );
        all.end_one();
        assert_eq!([&second, &third, &elsewhere].map(|c| ended(c)), [true, false, false]);
        drop((proven, oldest, second, third, elsewhere));
        assert!(all.lock().by_network.is_empty());
    }
}
