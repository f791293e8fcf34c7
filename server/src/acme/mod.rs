//! ACME (RFC 8555) with `device-attest-01` (draft-ietf-acme-device-attest): certificates for keys that a Mac's own system
//! holds, for an MDM that installs them with a profile.
//!
//! What such a certificate says is that Apple attested this key to be on the device with this serial number. It says nothing
//! of the agent's key: no path leads from here to the assurance of a machine.

pub(crate) mod accounts;
mod admission;
mod attestation_object;
pub(crate) mod challenges;
mod csr;
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
use crate::{
    check_in::nonce::NonceError,
    rate_limits::Exceeded,
    store::{AsStoreError, StoreError},
};

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AcmeError {
    #[error("{0}")]
    Malformed(&'static str),
    #[error(transparent)]
    Jws(#[from] JwsError),
    #[error("the JWS is for the URL {signed:?} and was sent to {actual:?}")]
    Url { signed: String, actual: String },
    #[error("the protected header has no nonce")]
    NoNonce,
    #[error(transparent)]
    Nonce(#[from] NonceError),
    #[error("the nonce was used before")]
    NonceUsed,
    #[error("the account's key is {0}")]
    PublicKey(#[from] NotAnEcKey),
    #[error("there is no such account on this server")]
    UnknownAccount,
    #[error("the account is deactivated")]
    Deactivated,
    #[error("this belongs to another account")]
    OtherAccount,
    #[error("the key of the JWS is neither an account's nor the certificate's")]
    NotTheCertificatesKey,
    #[error("another account has this key already")]
    KeyInUse(Uuid),
    #[error("the external account binding: {0}")]
    ExternalAccount(#[from] ExternalAccountError),
    #[error("this server issues for identifiers of the type permanent-identifier alone, one in an order")]
    UnsupportedIdentifier,
    #[error(transparent)]
    Inadmissible(#[from] Inadmissible),
    #[error("there is nothing at this URL")]
    NotFound,
    #[error("the order expired; make a new one")]
    Expired,
    #[error("the order is {0}, and a certificate is issued for one that is ready")]
    NotReady(&'static str),
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error("the certificate is none that this server issued to a device")]
    UnknownCertificate,
    #[error("the certificate has expired: nobody relies on it any more")]
    CertificateExpired,
    #[error("the certificate is revoked already")]
    AlreadyRevoked,
    #[error(
        "the reason has to be one of the codes 0 (unspecified), 1 (keyCompromise), 3 (affiliationChanged), 4 (superseded), 5 (cessationOfOperation) and 9 (privilegeWithdrawn)"
    )]
    RevocationReason,
    #[error(transparent)]
    RateLimited(#[from] Exceeded),
    #[error("who has this serial number changed in this moment; repeat the call")]
    Contended,
    #[error("the certificate cannot be issued")]
    Issue(#[from] AuthorityError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for AcmeError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}
