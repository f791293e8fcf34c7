//! Revocation status for relying parties: revocation lists, and OCSP responses about single certificates.

pub(crate) mod lists;
pub(crate) mod ocsp;

use std::sync::Arc;

use arc_swap::ArcSwap;
use assay_authority::OcspResponder;
use bytes::Bytes;
use time::OffsetDateTime;
use tokio::time::Instant;
use uuid::Uuid;

/// What one replica keeps in memory for its responses.
pub(crate) struct Revocation {
    lists: ArcSwap<Vec<Arc<PublishedList>>>,
    /// One for each CA that was asked about.
    responders: ArcSwap<Vec<Arc<OcspResponder>>>,
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
    pub(crate) fn new() -> Self {
        Self {
            lists: ArcSwap::default(),
            responders: ArcSwap::default(),
        }
    }
}
