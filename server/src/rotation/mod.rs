//! The rotation of the server's own keys: the next one is published before it signs, the last one stays until nothing that
//! it signed is relied on.
//!
//! What is due when follows from what is stored ([`steps`]), so that any replica can go on where another stopped, and
//! whoever comes too late finds that it is done. Every step is one transaction, with its audit entries.

pub(crate) mod bootstrap;
mod changes;
mod external;
mod following;
mod keys;
mod rotate;
mod status;
mod steps;

use assay_protocol::text::rfc3339;
use time::{Duration, OffsetDateTime};

pub(crate) use self::{
    external::{install, request},
    following::{Rotation, WORK, run_follower},
    rotate::{Prepared, Wanted, rotate},
    status::{AuthorityStatus, KeyStatus, identifier, status},
};
use assay_authority::{AuthorityError, ChainRefusal, KeyError};

use crate::{
    changes::Origin,
    config::{Config, PublicUrl},
    keyring::{Keyring, KeyringError},
    store::{Store, StoreError, tx},
};

/// What the operator decided that rotations depend on.
#[derive(Debug, Clone)]
pub(crate) struct RotationPolicy {
    pub(crate) trust_domain: String,
    pub(crate) public_url: PublicUrl,
    pub(crate) certificate_ttl: Duration,
    /// How long an issuing CA is published before it signs.
    pub(crate) ca_overlap: Duration,
    /// How long a root is published before anything is issued under it.
    pub(crate) root_overlap: Duration,
    pub(crate) grants_ttl: Duration,
    /// How long a grant key is published before it signs.
    pub(crate) grant_key_overlap: Duration,
    /// How long a grant key signs.
    pub(crate) rotate_grant_key_after: Duration,
}

/// What a change of the keys takes.
pub(crate) struct Rotator<'a> {
    pub(crate) keyring: &'a Keyring,
    pub(crate) policy: &'a RotationPolicy,
}

/// Why keys are not changed, or cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The server was never started.
    #[error("this server has no keys yet: `assay-server serve` makes them at its first start")]
    NotFounded,
    /// Somebody else signs the issuing CA.
    #[error(
        "the issuing CA is under a root that somebody else holds: `assay-server ca csr` and `ca install` replace it, and \
         `ca rotate --root` replaces the root by one of this server's own"
    )]
    ExternalRoot,
    /// There is a next CA already.
    #[error(
        "the issuing CA {key_identifier} is prepared already, and issues from {} on: another one can be prepared then",
        rfc3339(*signs_from)
    )]
    UnderWay {
        /// The next one, in hex.
        key_identifier: String,
        /// When it begins.
        signs_from: OffsetDateTime,
    },
    /// No CSR is out.
    #[error("no CSR is pending: `assay-server ca csr` makes one")]
    NothingRequested,
    /// The chain does not serve.
    #[error(transparent)]
    Chain(#[from] ChainRefusal),
    /// Relying parties would take the one for the other.
    #[error("another CA of this server has the key identifier {0}")]
    KeyIdentifierTaken(String),
    /// The keys do not open, or do not fit together.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A key could not be made.
    #[error("a key of the authority cannot be made")]
    Key(#[from] KeyError),
    /// A certificate could not be made.
    #[error("a certificate of the authority cannot be made")]
    Authority(#[from] AuthorityError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(RotationError);

impl RotationPolicy {
    pub(crate) fn of(config: &Config) -> Self {
        // The configuration bounds each of these to some years.
        let duration = |duration: std::time::Duration| Duration::try_from(duration).unwrap_or(Duration::MAX);
        Self {
            trust_domain: config.trust_domain.as_str().to_owned(),
            public_url: config.public_url.clone(),
            certificate_ttl: duration(config.certificates.ttl),
            ca_overlap: duration(config.certificates.ca_overlap),
            root_overlap: duration(config.certificates.root_overlap),
            grants_ttl: duration(config.grants.ttl),
            grant_key_overlap: duration(config.grants.key_overlap),
            rotate_grant_key_after: duration(config.grants.rotate_key_after),
        }
    }

    /// How long an issuing CA is published before it signs.
    fn overlap(&self, has_new_root: bool) -> Duration {
        match has_new_root {
            true => self.ca_overlap.max(self.root_overlap),
            false => self.ca_overlap,
        }
    }
}

/// Takes every step that is due.
pub(crate) async fn advance(store: &Store, rotator: &Rotator<'_>) -> Result<(), RotationError> {
    // A prepared key that signs at once is two steps, and each of three kinds may have keys to retire.
    const MOST_STEPS: usize = 16;
    for _ in 0..MOST_STEPS {
        if !tx!(store, RotateKeys, &Origin::system() => changes::take_step(rotator)).await? {
            break;
        }
    }
    Ok(())
}
