//! The names of one installation: what its certificates say about it.

use rcgen::{CertificateParams, CrlDistributionPoint, CustomExtension};
use url::Url;
use x509_cert::{
    der::{self, Encode, asn1::Ia5String, oid::ObjectIdentifier},
    ext::pkix::{AccessDescription, AuthorityInfoAccessSyntax, name::GeneralName},
};

use super::AuthorityError;

const AUTHORITY_INFO_ACCESS: &[u64] = &[1, 3, 6, 1, 5, 5, 7, 1, 1];
const ACCESS_OCSP: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.1");
const ACCESS_CA_ISSUERS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.48.2");

/// The names and URLs in the certificates of one installation. All replicas share them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Installation {
    /// The trust domain of SPIFFE ids.
    pub trust_domain: String,
    /// The URL of the API. The server's own TLS certificate names its host.
    pub public_url: Url,
    /// The base of the URLs of revocation lists, OCSP and CA certificates.
    pub revocation_url: Url,
}

impl Installation {
    /// Adds the URLs that lead to the revocation status of a certificate, and to the certificate of its issuer.
    ///
    /// The distribution point and `caIssuers` name the issuer by its key identifier. A later CA has its own list and its
    /// own certificate, so a URL without the identifier would lead to the wrong ones.
    pub(crate) fn add_revocation_urls(
        &self,
        params: &mut CertificateParams,
        issuer_key_identifier: &[u8],
    ) -> Result<(), AuthorityError> {
        let base = self.revocation_url.as_str().trim_end_matches('/');
        let key = hex::encode(issuer_key_identifier);
        params.crl_distribution_points = vec![CrlDistributionPoint {
            uris: vec![format!("{base}/v1/ca/crl/{key}")],
        }];
        let access = authority_info_access(&format!("{base}/v1/ca/ocsp"), &format!("{base}/v1/ca/issuer/{key}"));
        let access = access.map_err(AuthorityError::Url)?;
        let access = CustomExtension::from_oid_content(AUTHORITY_INFO_ACCESS, access);
        params.custom_extensions.push(access);
        Ok(())
    }
}

fn authority_info_access(ocsp: &str, ca_issuers: &str) -> Result<Vec<u8>, der::Error> {
    let access = |method, url: &str| {
        Ok::<_, der::Error>(AccessDescription {
            access_method: method,
            access_location: GeneralName::UniformResourceIdentifier(Ia5String::new(url)?),
        })
    };
    AuthorityInfoAccessSyntax(vec![access(ACCESS_OCSP, ocsp)?, access(ACCESS_CA_ISSUERS, ca_issuers)?]).to_der()
}

#[cfg(test)]
impl Installation {
    pub(crate) fn example() -> Self {
        Self {
            trust_domain: "example.com".to_owned(),
            public_url: "https://assay.example.com".parse().unwrap(),
            revocation_url: "http://assay.example.com:8080".parse().unwrap(),
        }
    }
}
