//! Revocation status for relying parties: revocation lists, and OCSP responses about single certificates.

pub(crate) mod lists;
pub(crate) mod ocsp;

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use assay_authority::OcspResponder;
use bytes::Bytes;
use time::OffsetDateTime;
use tokio::{sync::Semaphore, time::Instant};
use uuid::Uuid;

/// One of so many connections to the database may look up certificates for OCSP. Anyone may ask at the open listener, and
/// must not keep check-ins from the database.
const CONNECTIONS_PER_LOOK_UP: u32 = 4;

/// What one replica keeps in memory for its responses.
pub(crate) struct Revocation {
    lists: ArcSwap<Vec<Arc<PublishedList>>>,
    /// All lists in one file, made once for each set of lists: it may have megabytes, and anyone may fetch it.
    bundle: ArcSwapOption<Bundle>,
    /// The look-ups for OCSP that may be in progress at once.
    look_ups: Semaphore,
    /// One for each CA that was asked about.
    responders: ArcSwap<Vec<Arc<OcspResponder>>>,
}

/// The lists of all CAs as PEM.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// The entity tag: the tags of all its lists.
    pub(crate) tag: String,
    pub(crate) pem: Bytes,
}

/// A revocation list, ready to be served.
#[derive(Debug)]
pub(crate) struct PublishedList {
    issuer_id: Uuid,
    /// The subject key identifier of its CA.
    key_identifier: Vec<u8>,
    number: i64,
    pub(crate) der: Bytes,
    next_update: OffsetDateTime,
    /// When this replica first had it.
    loaded_at: Instant,
}

impl PublishedList {
    /// The entity tag. It includes the CA, because two CAs may have lists with the same number.
    pub(crate) fn tag(&self) -> String {
        format!("{}-{}", hex::encode(&self.key_identifier), self.number)
    }
}

impl Revocation {
    /// Empty. The first round loads the stored lists.
    pub(crate) fn new(max_connections: u32) -> Self {
        let look_ups = usize::try_from(max_connections / CONNECTIONS_PER_LOOK_UP).unwrap_or(1);
        Self {
            lists: ArcSwap::default(),
            bundle: ArcSwapOption::empty(),
            look_ups: Semaphore::new(look_ups.max(1)),
            responders: ArcSwap::default(),
        }
    }
}
