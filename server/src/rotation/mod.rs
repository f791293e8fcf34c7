//! Rotates the server's own keys. A new key is published before it signs, and an old key stays published until nothing
//! that it signed is still relied on.
//!
//! The stored keys determine which step is due ([`steps`]), so any replica can continue where another stopped, and a
//! replica that comes too late finds nothing to do. Every step is one transaction, together with its audit entries.

pub(crate) mod bootstrap;
mod changes;
mod cross_certificates;
mod external;
mod external_list;
mod following;
mod keys;
mod rotate;
mod status;
mod steps;
mod withdraw;

use assay_protocol::text::rfc3339;
use time::{Duration, OffsetDateTime};

pub(crate) use self::{
    external::{install, request, request_root},
    external_list::{InstalledList, install_list},
    following::{Rotation, WORK, run_follower},
    rotate::{Prepared, Wanted, rotate},
    status::{AuthorityStatus, CachesHaveIt, KeyStatus, identifier, status},
    withdraw::{Withdrawn, withdraw},
};
use assay_authority::{AuthorityError, ChainRefusal, CrossCertificateRefusal, Installation, KeyError, ListRefusal};

use crate::{
    changes::Origin,
    config::Config,
    keyring::{Keyring, KeyringError},
    store::{Store, StoreError, tx},
};

/// The configured values that rotation depends on.
#[derive(Debug, Clone)]
pub(crate) struct RotationPolicy {
    pub(crate) installation: Installation,
    pub(crate) certificate_ttl: Duration,
    /// How long an issuing CA is published before it signs.
    pub(crate) ca_overlap: Duration,
    /// How long a root is published before a CA issues under it.
    pub(crate) root_overlap: Duration,
    pub(crate) grants_ttl: Duration,
    /// How long a grant key is published before it signs.
    pub(crate) grant_key_overlap: Duration,
    /// How long a grant key signs before it is rotated.
    pub(crate) rotate_grant_key_after: Duration,
}

/// What changes of the keys need.
pub(crate) struct Rotator<'a> {
    pub(crate) keyring: &'a Keyring,
    pub(crate) policy: &'a RotationPolicy,
}

/// Why the keys cannot be changed or read.
#[derive(Debug, thiserror::Error)]
pub enum RotationError {
    /// The server has never started on this database.
    #[error("this server has no keys yet: `assay-server serve` creates them at its first start")]
    NotBootstrapped,
    /// An external root signs the issuing CA.
    #[error(
        "the issuing CA is under an external root: `assay-server ca csr` and `ca install` replace it, and \
         `ca rotate --root` replaces the root by one of this server's own"
    )]
    ExternalRoot,
    /// The next issuing CA exists already.
    #[error(
        "the issuing CA {key_identifier} is already prepared and issues from {}: another one can be prepared after that",
        rfc3339(*signs_from)
    )]
    UnderWay {
        /// Its key identifier, in hex.
        key_identifier: String,
        /// When it starts to sign.
        signs_from: OffsetDateTime,
    },
    /// There is no pending CSR.
    #[error("no CSR is pending: `assay-server ca csr` creates one")]
    NothingRequested,
    /// The chain is invalid.
    #[error(transparent)]
    Chain(#[from] ChainRefusal),
    /// Relying parties could mistake one CA for the other.
    #[error("another CA of this server has the key identifier {0}")]
    KeyIdentifierTaken(String),
    /// Only the owner of the present root can certify the next one.
    #[error(
        "the present root is external, and its owner must sign a certificate of the next root's subject and key: give it \
         with --cross-certificate (for a root of this server's own, `assay-server ca csr --root` prints the CSR)"
    )]
    CrossCertificateNeeded,
    /// The given cross-certificate is invalid.
    #[error(transparent)]
    CrossCertificate(#[from] CrossCertificateRefusal),
    /// No issuing CA of this server has this key identifier.
    #[error("no issuing CA of this server has the key identifier {0:?}")]
    UnknownIssuer(String),
    /// The CA signs, or will.
    #[error(
        "the issuing CA {0} has not been replaced yet: `assay-server ca rotate`, with a short certificates.ca_overlap, \
         replaces it, and then it can be withdrawn"
    )]
    NotReplaced(String),
    /// The keys cannot be opened, or do not match.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A key could not be generated.
    #[error("a key of the authority cannot be generated")]
    Key(#[from] KeyError),
    /// A revocation list of an external root is not accepted.
    #[error("the list cannot be installed")]
    List(#[from] ListRefusal),
    /// It would bring back certificates that were revoked since.
    #[error("a later list of this root is installed already")]
    OlderList,
    /// A certificate could not be issued.
    #[error("a certificate of the authority cannot be issued")]
    Authority(#[from] AuthorityError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(RotationError);

impl RotationPolicy {
    pub(crate) fn of(config: &Config) -> Self {
        // The configuration limits each of these to a few years.
        let duration = |duration: std::time::Duration| Duration::try_from(duration).unwrap_or(Duration::MAX);
        Self {
            installation: config.installation(),
            certificate_ttl: duration(config.certificates.ttl),
            ca_overlap: duration(config.certificates.ca_overlap),
            root_overlap: duration(config.certificates.root_overlap),
            grants_ttl: duration(config.grants.ttl),
            grant_key_overlap: duration(config.grants.key_overlap),
            rotate_grant_key_after: duration(config.grants.rotate_key_after),
        }
    }

    /// How long a grant token may be valid: an audience may have a longer life for its tokens than usual.
    fn longest_token_lifetime(&self) -> Duration {
        self.grants_ttl.max(assay_grants::LONGEST_LIFETIME)
    }

    /// How long an issuing CA is published before it signs.
    fn overlap(&self, has_new_root: bool) -> Duration {
        match has_new_root {
            true => self.ca_overlap.max(self.root_overlap),
            false => self.ca_overlap,
        }
    }
}

/// Takes every due step.
pub(crate) async fn advance(store: &Store, rotator: &Rotator<'_>) -> Result<(), RotationError> {
    // Preparing and activating a key takes two steps, and keys of three kinds may have to retire.
    const MOST_STEPS: usize = 16;
    for _ in 0..MOST_STEPS {
        if !tx!(store, RotateKeys, &Origin::system() => changes::take_step(rotator)).await? {
            break;
        }
    }
    Ok(())
}
