//! ACME (RFC 8555) with `device-attest-01` (draft-ietf-acme-device-attest). It issues certificates for keys that macOS
//! itself stores. An MDM installs them with a profile.
//!
//! Such a certificate means that Apple attested this key on the device with this serial number. It says nothing about
//! the agent's key, and never affects the assurance of a machine.

pub(crate) mod accounts;
mod admission;
pub(crate) mod attestation_object;
pub(crate) mod challenges;
pub(crate) mod csr;
mod external_account;
pub(crate) mod finalization;
pub(crate) mod jws;
pub(crate) mod orders;
mod refusals;
pub(crate) mod requests;
pub(crate) mod revocation;
pub(crate) mod urls;

use assay_authority::{AuthorityError, ec_key::NotAnEcKey};
use uuid::Uuid;

use self::jws::JwsError;
pub(crate) use self::{
    admission::Inadmissible, attestation_object::AttestationObjectError, csr::CsrError,
    external_account::ExternalAccountError, requests::Signed,
};
use crate::{check_in::nonce::NonceError, rate_limits::Exceeded, store::StoreError};

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcmeError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Jws(#[from] JwsError),
    #[error("the JWS is for the URL {signed:?}, but was sent to {actual:?}")]
    Url { signed: String, actual: String },
    #[error("the protected header has no nonce")]
    NoNonce,
    #[error(transparent)]
    Nonce(#[from] NonceError),
    #[error("the nonce has already been used")]
    NonceUsed,
    #[error("the account's key cannot be used")]
    PublicKey(#[from] NotAnEcKey),
    #[error("this server has no such account")]
    UnknownAccount,
    #[error("the account is deactivated")]
    Deactivated,
    #[error("this belongs to another account")]
    OtherAccount,
    #[error("the JWS must be signed by the account's key or by the certificate's")]
    NotTheCertificatesKey,
    #[error("another account already has this key")]
    KeyInUse(Uuid),
    #[error("the external account binding is invalid")]
    ExternalAccount(#[from] ExternalAccountError),
    #[error("an order must have exactly one identifier, of the type permanent-identifier")]
    UnsupportedIdentifier,
    #[error(transparent)]
    Inadmissible(#[from] Inadmissible),
    #[error("nothing exists at this URL")]
    NotFound,
    #[error("the order has expired; create a new one")]
    Expired,
    #[error("the order is {0}; it must be ready to be finalized")]
    NotReady(&'static str),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("this server did not issue the certificate to a device")]
    UnknownCertificate,
    #[error("the certificate has expired and cannot be revoked")]
    CertificateExpired,
    #[error("the certificate is already revoked")]
    AlreadyRevoked,
    #[error(
        "the reason must be one of the codes 0 (unspecified), 1 (keyCompromise), 3 (affiliationChanged), 4 (superseded), 5 (cessationOfOperation) and 9 (privilegeWithdrawn)"
    )]
    RevocationReason,
    #[error(transparent)]
    RateLimited(#[from] Exceeded),
    #[error("the machine with this serial number changed at the same time; repeat the call")]
    Contended,
    #[error("cannot issue the certificate")]
    Issue(#[from] AuthorityError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(AcmeError);
