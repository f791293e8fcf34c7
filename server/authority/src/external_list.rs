//! Verifies the revocation list that the owner of an external root has signed, before this server serves it.

use assay_protocol::text::rfc3339;
use aws_lc_rs::signature::UnparsedPublicKey;
use time::{Duration, OffsetDateTime};
use x509_parser::{prelude::FromDer, revocation_list::CertificateRevocationList};

use super::{AuthorityError, certificate_path};

const PEM_LABEL: &str = "X509 CRL";
const DELTA_LIST: &str = "2.5.29.27";
const ISSUING_DISTRIBUTION_POINT: &str = "2.5.29.28";
/// The owner's clock may be ahead by this.
const CLOCKS_DIFFER: Duration = Duration::minutes(5);

/// A verified list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalList {
    /// The list in DER.
    pub der: Vec<u8>,
    /// When it was signed.
    pub this_update: OffsetDateTime,
    /// The end of its validity.
    pub next_update: OffsetDateTime,
}

/// Why a list is rejected.
#[derive(Debug, thiserror::Error)]
pub enum ListRefusal {
    /// Not exactly one list.
    #[error("the file must contain one revocation list, in PEM or DER")]
    NotOne,
    /// Signed by another CA.
    #[error("none of the external roots has signed the list (with ECDSA and SHA-256 or SHA-384)")]
    OtherIssuer,
    /// It does not list all certificates of the root.
    #[error(
        "the list must be complete: it has a critical extension, is a delta list, or has an issuing distribution point"
    )]
    Partial,
    /// Verifiers could not tell when it is outdated.
    #[error("the list has no nextUpdate")]
    NoNextUpdate,
    /// It has expired.
    #[error("the list has expired at {}", rfc3339(*end))]
    Expired {
        /// The end of its validity.
        end: OffsetDateTime,
    },
    /// Verifiers reject a list from the future.
    #[error("the list is not valid before {}", rfc3339(*from))]
    NotYetValid {
        /// The start of its validity.
        from: OffsetDateTime,
    },
    /// The root's certificate cannot be read.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

/// Verifies a list in PEM or DER, which one of these roots (in DER) must have signed. Returns the place of that root.
pub fn verify(bytes: &[u8], roots: &[&[u8]], now: OffsetDateTime) -> Result<(usize, ExternalList), ListRefusal> {
    let der = to_der(bytes)?;
    let Ok(([], list)) = CertificateRevocationList::from_der(&der) else {
        return Err(ListRefusal::NotOne);
    };
    let mut signer = None;
    for (place, root) in roots.iter().enumerate() {
        if is_signed_by(&list, root)? {
            signer = Some(place);
        }
    }
    let signer = signer.ok_or(ListRefusal::OtherIssuer)?;
    let is_partial = list.extensions().iter().any(|extension| {
        let oid = extension.oid.to_id_string();
        extension.critical || oid == DELTA_LIST || oid == ISSUING_DISTRIBUTION_POINT
    });
    if is_partial {
        return Err(ListRefusal::Partial);
    }
    let time = |seconds| OffsetDateTime::from_unix_timestamp(seconds).map_err(|_| ListRefusal::NotOne);
    let from = time(list.last_update().timestamp())?;
    let end = time(list.next_update().ok_or(ListRefusal::NoNextUpdate)?.timestamp())?;
    if now + CLOCKS_DIFFER < from {
        return Err(ListRefusal::NotYetValid { from });
    }
    if end <= now || end <= from {
        return Err(ListRefusal::Expired { end });
    }
    let list = ExternalList {
        this_update: from,
        next_update: end,
        der,
    };
    Ok((signer, list))
}

fn to_der(bytes: &[u8]) -> Result<Vec<u8>, ListRefusal> {
    // DER begins with a sequence.
    if bytes.first() == Some(&0x30) {
        return Ok(bytes.to_vec());
    }
    let blocks = pem::parse_many(bytes).map_err(|_| ListRefusal::NotOne)?;
    match blocks.as_slice() {
        [block] if block.tag() == PEM_LABEL => Ok(block.contents().to_vec()),
        _ => Err(ListRefusal::NotOne),
    }
}

fn is_signed_by(list: &CertificateRevocationList<'_>, root: &[u8]) -> Result<bool, AuthorityError> {
    let root = certificate_path::read(root)?;
    if list.issuer().as_raw() != root.subject().as_raw() {
        return Ok(false);
    }
    let digest = list.signature_algorithm.algorithm.to_id_string();
    Ok(certificate_path::algorithm(&digest, &root).is_some_and(|algorithm| {
        let key = UnparsedPublicKey::new(algorithm, &root.public_key().subject_public_key.data);
        key.verify(list.tbs_cert_list.as_ref(), &list.signature_value.data)
            .is_ok()
    }))
}
