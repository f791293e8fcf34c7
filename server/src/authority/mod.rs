//! The server as a certificate authority: its keys, what it issues and signs, and how its secrets are sealed.
//!
//! Nothing here asks for the time or touches the database. [`Authority`] is a value: a rotation builds another one and
//! swaps it in, so that whoever holds one sees one consistent set of keys.

mod certificate_signer;
pub mod grant_tokens;
pub mod issuing;
pub mod keys;
pub mod master_key;
pub mod ocsp;
pub mod profile;
pub mod revocation_list;
pub mod sealing;
mod webhook_secrets;

use assay_protocol::PublicKey;
use aws_lc_rs::digest::{SHA256, digest};
use time::OffsetDateTime;
use url::Url;
use zeroize::Zeroizing;

pub use grant_tokens::{Confirmation, GrantClaims, GrantSigner, GrantTokenError, JsonWebKeySet, verify_grant_token};
pub use issuing::{
    CertifiedKey, IssuedMachineCertificate, IssuedTlsCertificate, IssuingAuthority, MachineCertificateRequest,
};
pub use keys::{KeyError, PrivateKey};
pub use master_key::MasterKeyError;
pub use ocsp::{OcspRequest, OcspResponder};
pub use profile::spiffe_id;
pub use revocation_list::{RevocationList, RevocationListSigner, RevokedCertificate};
pub use sealing::{MasterKey, SealingContext, SealingError};
pub(crate) use webhook_secrets::{WebhookSecret, WebhookSecrets};

use crate::random::random_bytes;

/// Everything that signs for this server now, and everything that verifies what it signed.
pub struct Authority {
    issuing: IssuingAuthority,
    roots_pem: String,
    chain_pem: String,
    root_certificates: Vec<Vec<u8>>,
    grant_signer: GrantSigner,
    grant_keys: Vec<PublicKey>,
    key_set: JsonWebKeySet,
}

/// What an [`Authority`] is built from: the opened secrets and the public rows next to them.
#[derive(Debug)]
pub struct AuthorityParts {
    /// The issuing CA that signs now.
    pub issuing: CertifiedKey,
    /// Every root that machines are to trust, in DER; one of them signed the issuing CA.
    pub root_certificates: Vec<Vec<u8>>,
    /// The key that signs grant tokens now.
    pub grant_key: PrivateKey,
    /// The other keys to publish: the next one, and old ones whose tokens still live.
    pub other_grant_keys: Vec<PublicKey>,
}

/// What the first start makes. All of it is to be sealed; it has no `Debug`, since a log would keep it.
pub struct InitialSecrets {
    /// The root CA.
    pub root: CertifiedKey,
    /// The issuing CA under it.
    pub issuing: CertifiedKey,
    /// The key that signs grant tokens.
    pub grant_key: PrivateKey,
    /// The key of the MAC in nonces, which all replicas share.
    pub nonce_key: Zeroizing<[u8; 32]>,
}

/// Why something could not be issued, or the authority not be built.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A private key is unusable.
    #[error("a private key of the authority is unusable")]
    Key(#[from] KeyError),
    /// A CA certificate does not parse, or its key is not on P-256.
    #[error("a certificate of the authority is unreadable")]
    Certificate,
    /// The issuing CA's certificate holds another key.
    #[error("the issuing CA's private key does not belong to its certificate")]
    KeyMismatch,
    /// No root that is known signed the issuing CA.
    #[error("the issuing CA was signed by none of the roots")]
    NotUnderRoot,
    /// The issuing CA has ended; it must be rotated.
    #[error("the issuing CA has expired")]
    Expired,
    /// The public URL names no host.
    #[error("the public URL has no host")]
    NoHost,
    /// The public URL does not fit into a certificate.
    #[error("the public URL cannot be written into a certificate")]
    Url(#[source] der::Error),
    /// A message could not be encoded.
    #[error("an OCSP response cannot be made")]
    Encode(#[source] der::Error),
    /// The names of a machine do not fit into a certificate.
    #[error("the names of a machine cannot be written into a certificate")]
    Names(#[source] der::Error),
    /// The certificate could not be encoded or signed.
    #[error("a certificate cannot be made")]
    Sign(#[source] rcgen::Error),
}

/// Makes everything that a new installation needs to begin to sign.
pub fn generate_initial(trust_domain: &str, now: OffsetDateTime) -> Result<InitialSecrets, AuthorityError> {
    let root = issuing::generate_root(trust_domain, now)?;
    Ok(InitialSecrets {
        issuing: issuing::generate_issuing(&root, trust_domain, now)?,
        root,
        grant_key: PrivateKey::generate()?,
        nonce_key: Zeroizing::new(random_bytes()),
    })
}

impl Authority {
    /// Builds the authority, after checking that its parts belong together.
    pub fn from_parts(parts: &AuthorityParts, trust_domain: &str, public_url: &Url) -> Result<Self, AuthorityError> {
        let (issuing, root) = under_a_root(parts, trust_domain, public_url)?;
        let grant_signer = GrantSigner::new(&parts.grant_key)?;
        let mut grant_keys = vec![grant_signer.public_key().clone()];
        for key in &parts.other_grant_keys {
            if !grant_keys.contains(key) {
                grant_keys.push(key.clone());
            }
        }
        Ok(Self {
            chain_pem: format!("{}{}", issuing.certificate_pem(), issuing::certificate_pem(root)),
            issuing,
            roots_pem: parts
                .root_certificates
                .iter()
                .map(|der| issuing::certificate_pem(der))
                .collect(),
            root_certificates: parts.root_certificates.clone(),
            grant_signer,
            key_set: grant_tokens::json_web_key_set(&grant_keys),
            grant_keys,
        })
    }

    /// SHA-256 of the newest root's DER in hex: what an agent is given to recognize this server by.
    #[must_use]
    pub fn root_fingerprint(&self) -> String {
        let newest = self.root_certificates.last();
        newest
            .map(|root| hex::encode(digest(&SHA256, root)))
            .unwrap_or_default()
    }

    /// The CA that signs machines' certificates.
    #[must_use]
    pub fn issuing(&self) -> &IssuingAuthority {
        &self.issuing
    }

    /// All roots that machines and relying parties are to trust, in PEM: the trust bundle.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The same roots in DER.
    #[must_use]
    pub fn root_certificates(&self) -> &[Vec<u8>] {
        &self.root_certificates
    }

    /// The issuing CA and the root that signed it, in PEM.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// What signs grant tokens.
    #[must_use]
    pub fn grant_signer(&self) -> &GrantSigner {
        &self.grant_signer
    }

    /// The keys whose grant tokens are accepted, the one that signs now first.
    #[must_use]
    pub fn grant_keys(&self) -> &[PublicKey] {
        &self.grant_keys
    }

    /// The same keys as relying parties fetch them.
    #[must_use]
    pub fn key_set(&self) -> &JsonWebKeySet {
        &self.key_set
    }
}

/// The subject key identifier of a CA's certificate in DER.
pub fn key_identifier(certificate: &[u8]) -> Result<Vec<u8>, AuthorityError> {
    issuing::key_identifier(&issuing::read_certificate(certificate)?)
}

fn under_a_root<'a>(
    parts: &'a AuthorityParts,
    trust_domain: &str,
    public_url: &Url,
) -> Result<(IssuingAuthority, &'a [u8]), AuthorityError> {
    for root in &parts.root_certificates {
        match IssuingAuthority::new(&parts.issuing, root, trust_domain, public_url) {
            Err(AuthorityError::NotUnderRoot) => {}
            other => return Ok((other?, root)),
        }
    }
    Err(AuthorityError::NotUnderRoot)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00:00 UTC);

    fn url() -> Url {
        "https://assay.example.com".parse().unwrap()
    }

    fn parts(secrets: &InitialSecrets) -> AuthorityParts {
        AuthorityParts {
            issuing: secrets.issuing.clone(),
            root_certificates: vec![secrets.root.certificate.clone()],
            grant_key: secrets.grant_key.clone(),
            other_grant_keys: Vec::new(),
        }
    }

    #[test]
    fn the_first_start_makes_an_authority_that_works() {
        let secrets = generate_initial("example.com", NOW).unwrap();
        let authority = Authority::from_parts(&parts(&secrets), "example.com", &url()).unwrap();
        assert_eq!(
            authority.chain_pem(),
            issuing::certificate_pem(&secrets.issuing.certificate) + authority.roots_pem()
        );
        assert_eq!(authority.key_set().keys.len(), 1);
        assert_eq!(authority.grant_keys(), [secrets.grant_key.public_key().clone()]);
        assert_ne!(
            *secrets.nonce_key,
            *generate_initial("example.com", NOW).unwrap().nonce_key
        );
    }

    #[test]
    fn several_roots_and_grant_keys_are_published_together() {
        let (secrets, old) = (
            generate_initial("example.com", NOW).unwrap(),
            generate_initial("example.com", NOW).unwrap(),
        );
        let mut parts = parts(&secrets);
        parts.root_certificates.insert(0, old.root.certificate.clone());
        // The present key among the others is published once.
        parts.other_grant_keys = vec![
            old.grant_key.public_key().clone(),
            secrets.grant_key.public_key().clone(),
        ];
        let authority = Authority::from_parts(&parts, "example.com", &url()).unwrap();
        let kids: Vec<_> = authority.key_set().keys.iter().map(|key| key.kid.clone()).collect();
        assert_eq!(
            kids,
            [&secrets, &old].map(|secrets| secrets.grant_key.public_key().thumbprint().to_string())
        );
        assert_eq!(authority.roots_pem().matches("BEGIN CERTIFICATE").count(), 2);
        let own_root = issuing::certificate_pem(&secrets.root.certificate);
        assert!(authority.chain_pem().ends_with(&own_root), "the root that signed it");
    }

    #[test]
    fn an_issuing_ca_under_no_known_root_is_refused() {
        let secrets = generate_initial("example.com", NOW).unwrap();
        let mut parts = parts(&secrets);
        parts.root_certificates = vec![generate_initial("example.com", NOW).unwrap().root.certificate];
        assert!(matches!(
            Authority::from_parts(&parts, "example.com", &url()),
            Err(AuthorityError::NotUnderRoot)
        ));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let secrets = generate_initial("example.com", NOW).unwrap();
        let shown = format!("{:?}", parts(&secrets));
        let secret = format!("{:?}", secrets.grant_key.pkcs8_der());
        assert!(!shown.contains(secret.trim_matches(['[', ']'])));
    }
}
