//! A CA as OCSP requests name it.

use uuid::Uuid;

use super::CertificateQuestion;
use crate::{AuthorityError, certificate_path};

/// The name and the key of a CA. Requests contain their digests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OcspIssuer {
    /// The id of the CA's record.
    pub id: Uuid,
    /// The CA's subject key identifier.
    pub key_identifier: Vec<u8>,
    name: Vec<u8>,
    public_key: Vec<u8>,
}

impl OcspIssuer {
    /// The CA with this certificate in DER.
    pub(crate) fn new(id: Uuid, certificate: &[u8]) -> Result<Self, AuthorityError> {
        let parsed = certificate_path::read(certificate)?;
        Ok(Self {
            id,
            key_identifier: certificate_path::key_identifier(certificate)?,
            name: parsed.subject().as_raw().to_vec(),
            public_key: parsed.public_key().subject_public_key.data.to_vec(),
        })
    }

    /// Whether a question is about a certificate of this CA.
    #[must_use]
    pub fn is_in(&self, question: &CertificateQuestion) -> bool {
        question.is_about_issuer(&self.name, &self.public_key)
    }
}
