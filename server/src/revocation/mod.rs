//! What relying parties learn of revocations: lists that are signed when something was revoked, and answers to those who
//! ask about one certificate.

pub(crate) mod lists;
pub(crate) mod ocsp;

use std::sync::Arc;

use arc_swap::ArcSwap;
use assay_authority::OcspResponder;
use bytes::Bytes;
use time::OffsetDateTime;
use uuid::Uuid;

/// What one replica has in memory to answer with.
pub(crate) struct Revocation {
    lists: ArcSwap<Vec<Arc<PublishedList>>>,
    /// One for each CA that was asked about.
    responders: ArcSwap<Vec<Arc<OcspResponder>>>,
}

/// A list as it is served.
#[derive(Debug)]
pub(crate) struct PublishedList {
    issuer_id: Uuid,
    /// The subject key identifier of its CA.
    key_identifier: Vec<u8>,
    number: i64,
    pub(crate) der: Bytes,
    next_update: OffsetDateTime,
}

impl PublishedList {
    /// Tells it from every other list: two CAs may be at the same number.
    pub(crate) fn tag(&self) -> String {
        format!("{}-{}", hex::encode(&self.key_identifier), self.number)
    }
}

impl Revocation {
    /// Nothing yet: the first round reads what there is.
    pub(crate) fn new() -> Self {
        Self {
            lists: ArcSwap::default(),
            responders: ArcSwap::default(),
        }
    }
}
