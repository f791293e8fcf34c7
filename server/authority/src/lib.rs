//! The certificate authority: its keys, what it issues and signs, how its secrets are sealed, and what it accepts as
//! proof of a machine's hardware.
//!
//! This crate does not read the time and has no database. [`Authority`] is immutable: a rotation builds a new one and
//! swaps it in. Code that holds an `Authority` therefore always sees one consistent set of keys.

mod acme_secrets;
pub mod attestation;
mod certificate_path;
mod certificate_signer;
pub mod cross_certificate;
pub mod ec_key;
pub mod external_chain;
pub mod external_list;
mod grant_tokens;
mod installation;
pub mod issuing;
mod keys;
pub mod master_key;
pub mod ocsp;
mod profile;
mod random;
mod revocation_list;
mod sealing;
pub mod secret_file;
mod spiffe_bundle;
mod webhook_secrets;

use assay_protocol::{PublicKey, sha256};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use uuid::Uuid;
use zeroize::Zeroizing;

pub use acme_secrets::AcmeSecrets;
pub use certificate_path::{is_ca, is_same_authority, key_identifier, serial_number, validity};
pub use cross_certificate::CrossCertificateRefusal;
pub use ec_key::EcKey;
pub use external_chain::{ChainRefusal, ExternalChain};
pub use external_list::{ExternalList, ListRefusal};
pub use grant_tokens::{
    AudienceClaim, Confirmation, GrantClaims, GrantSigner, GrantTokenError, JsonWebKeySet, verify_grant_token,
};
pub use installation::Installation;
pub use issuing::{
    CertifiedKey, DeviceCertificateRequest, IssuedClientCertificate, IssuedTlsCertificate, IssuingAuthority,
    IssuingParts, MachineCertificateRequest,
};
pub use keys::{KeyError, PrivateKey};
pub use master_key::MasterKeyError;
pub use ocsp::{CertificateQuestion, OcspIssuer, OcspRequest, OcspResponder};
pub use profile::{device_spiffe_id, spiffe_id};
pub use random::random_bytes;
pub use revocation_list::{RevocationList, RevocationListSigner, RevokedCertificate};
pub use sealing::{MasterKey, SealingContext, SealingError};
pub use spiffe_bundle::{SpiffeBundle, SpiffeKey};
pub use webhook_secrets::{WebhookSecret, WebhookSecrets};

/// The keys that sign for this server now, and all keys and roots that verify its signatures.
pub struct Authority {
    version: i64,
    issuing: IssuingAuthority,
    /// The next issuing CA, and old ones whose certificates may still be valid.
    other_issuing: Vec<IssuingAuthority>,
    roots: Vec<Root>,
    ocsp_roots: Vec<OcspIssuer>,
    roots_pem: String,
    cross_certificates: Vec<CertificateDer<'static>>,
    trust_bundle: String,
    trust_bundle_digest: String,
    chain_pem: String,
    withdrawn_issuers: Vec<String>,
    current_root_fingerprint: String,
    grant_signer: GrantSigner,
    grant_keys: Vec<PublicKey>,
    key_set: JsonWebKeySet,
    spiffe_keys: Vec<SpiffeKey>,
}

/// What an [`Authority`] is built from: the opened secrets and the public rows next to them.
#[derive(Debug)]
pub struct AuthorityParts {
    /// Increases with every change.
    pub version: i64,
    /// The issuing CAs whose certificates may be valid now or soon. The current one is first.
    pub issuing: Vec<IssuingParts>,
    /// Every root that machines should trust, at least one for each issuing CA. The root of the current issuing CA is
    /// first.
    pub roots: Vec<Root>,
    /// The certificates in DER by which one root vouches for the next.
    pub cross_certificates: Vec<Vec<u8>>,
    /// The issuing CAs that were withdrawn, retired ones included: their subject key identifiers.
    pub withdrawn: Vec<Vec<u8>>,
    /// The key that signs grant tokens now.
    pub grant_key: PrivateKey,
    /// The other keys to publish: the next one, and old ones whose tokens have not expired.
    pub other_grant_keys: Vec<PublicKey>,
}

/// A root that machines and relying parties trust.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root {
    /// The id of its record.
    pub id: Uuid,
    /// Its certificate in DER.
    pub certificate: Vec<u8>,
    /// Whether this server has its private key. Only the owner of the key can sign the root's revocation list.
    pub is_ours: bool,
}

/// The secrets that the first start generates. The caller seals them all. There is no `Debug`, so they cannot be
/// logged.
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

/// Why a certificate cannot be issued, or the authority cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A private key is unusable.
    #[error("a private key of the authority is unusable")]
    Key(#[from] KeyError),
    /// A CA certificate does not parse, or its key is on an unsupported curve.
    #[error("a certificate of the authority is unreadable")]
    Certificate,
    /// The issuing CA's certificate is for another key.
    #[error("the issuing CA's private key does not belong to its certificate")]
    KeyMismatch,
    /// None of the known roots signed the issuing CA.
    #[error("the issuing CA was not signed by any known root")]
    NotUnderRoot,
    /// There is no issuing CA.
    #[error("there is no current issuing CA")]
    NoIssuing,
    /// The issuing CA has expired; it must be rotated.
    #[error("the issuing CA has expired")]
    Expired,
    /// The CA of a certificate is retired: none of its certificates can still be valid.
    #[error("the CA that issued a certificate has been retired")]
    Retired,
    /// The public URL names no host.
    #[error("the public URL has no host")]
    NoHost,
    /// The revocation URL does not fit into a certificate.
    #[error("the revocation URL cannot be written into a certificate")]
    Url(#[source] der::Error),
    /// A message could not be encoded.
    #[error("an OCSP response or a cross-certificate cannot be encoded")]
    Encode(#[source] der::Error),
    /// The names of a machine do not fit into a certificate.
    #[error("the names of a machine cannot be written into a certificate")]
    Names(#[source] der::Error),
    /// A device's serial number cannot be part of a SPIFFE id.
    #[error("the serial number has characters that a SPIFFE id cannot have")]
    SerialNumber,
    /// The certificate could not be encoded or signed.
    #[error("a certificate cannot be encoded or signed")]
    Sign(#[source] rcgen::Error),
}

/// Generates the keys and CAs of a new installation.
pub fn generate_initial(installation: &Installation, now: OffsetDateTime) -> Result<InitialSecrets, AuthorityError> {
    let root = issuing::generate_root(&installation.trust_domain, now)?;
    Ok(InitialSecrets {
        issuing: issuing::generate_issuing(&root, installation, now)?,
        root,
        grant_key: PrivateKey::generate()?,
        nonce_key: Zeroizing::new(random_bytes()),
    })
}

impl Authority {
    /// Builds the authority. Fails if its parts do not belong together.
    pub fn from_parts(parts: &AuthorityParts, installation: &Installation) -> Result<Self, AuthorityError> {
        let issuing = parts.issuing.iter();
        let issuing: Vec<(IssuingAuthority, &Root)> = issuing
            .map(|ca| under_a_root(ca, &parts.roots, installation))
            .collect::<Result<_, _>>()?;
        let withdrawn_issuers: Vec<String> = parts.withdrawn.iter().map(hex::encode).collect();
        let chain_pem = chain_pem(&issuing, &parts.withdrawn, &parts.cross_certificates);
        let mut issuing = issuing.into_iter();
        let (current, current_root) = issuing.next().ok_or(AuthorityError::NoIssuing)?;
        let current_root_fingerprint = fingerprint(&current_root.certificate);
        let cross_certificates = cross_certificate::leading_to(&current_root.certificate, &parts.cross_certificates)?;
        let grant_signer = GrantSigner::new(&parts.grant_key)?;
        let mut grant_keys = vec![grant_signer.public_key().clone()];
        for key in &parts.other_grant_keys {
            if !grant_keys.contains(key) {
                grant_keys.push(key.clone());
            }
        }
        let roots = parts.roots.iter();
        let mut spiffe_keys: Vec<SpiffeKey> = roots
            .map(|root| SpiffeKey::root(&root.certificate))
            .collect::<Result<_, _>>()?;
        spiffe_keys.extend(grant_keys.iter().map(SpiffeKey::grant_key));
        let roots_pem: String = parts.roots.iter().map(Root::pem).collect();
        let cross_pem = parts.cross_certificates.iter().map(|der| issuing::certificate_pem(der));
        let trust_bundle: String = std::iter::once(roots_pem.clone()).chain(cross_pem).collect();
        Ok(Self {
            version: parts.version,
            chain_pem,
            issuing: current,
            other_issuing: issuing.map(|(ca, _)| ca).collect(),
            trust_bundle_digest: URL_SAFE_NO_PAD.encode(sha256(trust_bundle.as_bytes())),
            trust_bundle,
            roots_pem,
            cross_certificates: cross_certificates.into_iter().map(CertificateDer::from).collect(),
            withdrawn_issuers,
            ocsp_roots: parts.roots.iter().filter_map(Root::ocsp_issuer).collect(),
            roots: parts.roots.clone(),
            current_root_fingerprint,
            grant_signer,
            key_set: grant_tokens::json_web_key_set(&grant_keys),
            grant_keys,
            spiffe_keys,
        })
    }

    /// Increases with every change of the parts.
    #[must_use]
    pub fn version(&self) -> i64 {
        self.version
    }

    /// SHA-256, in hex, of the current issuing CA's root in DER. Administrators give it to agents, which then recognize
    /// this server.
    #[must_use]
    pub fn root_fingerprint(&self) -> &str {
        &self.current_root_fingerprint
    }

    /// The CA that signs machines' certificates.
    #[must_use]
    pub fn issuing(&self) -> &IssuingAuthority {
        &self.issuing
    }

    /// Every issuing CA that is not retired: the current one, the next one, and old ones whose certificates may still
    /// be valid.
    pub fn all_issuing(&self) -> impl Iterator<Item = &IssuingAuthority> {
        std::iter::once(&self.issuing).chain(&self.other_issuing)
    }

    /// The issuing CA with this id, unless it is retired.
    pub fn issuer(&self, id: Uuid) -> Result<&IssuingAuthority, AuthorityError> {
        let mut issuing = self.all_issuing();
        issuing.find(|ca| ca.id() == id).ok_or(AuthorityError::Retired)
    }

    /// The certificate in DER of the CA with this subject key identifier: an issuing CA, one above it, or a root.
    #[must_use]
    pub fn ca_certificate(&self, key_identifier: &[u8]) -> Option<&[u8]> {
        let paths = self.all_issuing().flat_map(IssuingAuthority::path).map(AsRef::as_ref);
        let roots = self.roots.iter().map(|root| root.certificate.as_slice());
        paths
            .chain(roots)
            .find(|certificate| certificate_path::key_identifier(certificate).is_ok_and(|own| own == key_identifier))
    }

    /// All roots that machines and relying parties should trust. The root of the current issuing CA is first.
    #[must_use]
    pub fn roots(&self) -> &[Root] {
        &self.roots
    }

    /// The roots whose keys this server has, as OCSP requests name them.
    #[must_use]
    pub fn ocsp_roots(&self) -> &[OcspIssuer] {
        &self.ocsp_roots
    }

    /// The roots in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    /// The trust bundle of machines in PEM: the roots, followed by the cross-certificates. A machine trusts a root only
    /// if a cross-certificate leads to it from one that the machine trusts.
    #[must_use]
    pub fn trust_bundle(&self) -> &str {
        &self.trust_bundle
    }

    /// SHA-256 of the trust bundle in PEM, in base64url. A machine compares it with that of the bundle it has.
    #[must_use]
    pub fn trust_bundle_digest(&self) -> &str {
        &self.trust_bundle_digest
    }

    /// The subject key identifiers, in hex, of the issuing CAs that were withdrawn.
    #[must_use]
    pub fn withdrawn_issuers(&self) -> &[String] {
        &self.withdrawn_issuers
    }

    /// Issues a TLS certificate for the host of the server's public URL. Its chain ends with the cross-certificates that
    /// lead to earlier roots, for a machine that was away while the root was replaced.
    pub fn issue_tls_certificate(&self, now: OffsetDateTime) -> Result<IssuedTlsCertificate, AuthorityError> {
        let mut issued = self.issuing.issue_tls_certificate(now)?;
        issued.chain.extend(self.cross_certificates.iter().cloned());
        Ok(issued)
    }

    /// The current issuing CA with its intermediates and its root, in PEM, followed by the other issuing CAs with
    /// theirs, and by the cross-certificates. Withdrawn issuing CAs are left out.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// Signs grant tokens.
    #[must_use]
    pub fn grant_signer(&self) -> &GrantSigner {
        &self.grant_signer
    }

    /// The keys whose grant tokens are accepted. The one that signs now is first.
    #[must_use]
    pub fn grant_keys(&self) -> &[PublicKey] {
        &self.grant_keys
    }

    /// The grant keys as a JWK set, for relying parties.
    #[must_use]
    pub fn key_set(&self) -> &JsonWebKeySet {
        &self.key_set
    }

    /// The roots and the grant keys, for the SPIFFE bundle.
    #[must_use]
    pub fn spiffe_keys(&self) -> &[SpiffeKey] {
        &self.spiffe_keys
    }
}

impl Root {
    /// `None` for a root elsewhere. Every root of this server has a key identifier.
    fn ocsp_issuer(&self) -> Option<OcspIssuer> {
        let issuer = OcspIssuer::new(self.id, &self.certificate).ok();
        issuer.filter(|_| self.is_ours)
    }

    fn pem(&self) -> String {
        issuing::certificate_pem(&self.certificate)
    }
}

/// SHA-256 of a certificate in DER, in hex.
#[must_use]
pub fn fingerprint(certificate: &[u8]) -> String {
    hex::encode(sha256(certificate))
}

/// Includes each certificate once, because several issuing CAs may have the same root.
fn chain_pem(issuing: &[(IssuingAuthority, &Root)], withdrawn: &[Vec<u8>], cross_certificates: &[Vec<u8>]) -> String {
    let accepted = issuing
        .iter()
        .filter(|(ca, _)| !withdrawn.iter().any(|identifier| identifier == ca.key_identifier()));
    let paths = accepted.flat_map(|(ca, root)| ca.path().map(AsRef::as_ref).chain([root.certificate.as_slice()]));
    let mut chain = String::new();
    for certificate in paths.chain(cross_certificates.iter().map(Vec::as_slice)) {
        let pem = issuing::certificate_pem(certificate);
        if !chain.contains(&pem) {
            chain.push_str(&pem);
        }
    }
    chain
}

fn under_a_root<'a>(
    ca: &IssuingParts,
    roots: &'a [Root],
    installation: &Installation,
) -> Result<(IssuingAuthority, &'a Root), AuthorityError> {
    for root in roots {
        match IssuingAuthority::new(ca, &root.certificate, installation) {
            Err(AuthorityError::NotUnderRoot) => {}
            other => return Ok((other?, root)),
        }
    }
    Err(AuthorityError::NotUnderRoot)
}

#[cfg(test)]
impl InitialSecrets {
    /// The authority of a server after its first start.
    pub(crate) fn parts(&self) -> AuthorityParts {
        AuthorityParts {
            version: 1,
            issuing: vec![IssuingParts {
                id: Uuid::from_u128(1),
                ca: self.issuing.clone(),
                intermediates: Vec::new(),
            }],
            roots: vec![Root {
                id: Uuid::from_u128(2),
                certificate: self.root.certificate.clone(),
                is_ours: true,
            }],
            cross_certificates: Vec::new(),
            withdrawn: Vec::new(),
            grant_key: self.grant_key.clone(),
            other_grant_keys: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00:00 UTC);

    fn initial() -> InitialSecrets {
        generate_initial(&Installation::example(), NOW).unwrap()
    }

    fn build(parts: &AuthorityParts) -> Result<Authority, AuthorityError> {
        Authority::from_parts(parts, &Installation::example())
    }

    #[test]
    fn the_secrets_of_the_first_start_build_an_authority() {
        let secrets = initial();
        let authority = build(&secrets.parts()).unwrap();
        assert_eq!(
            authority.chain_pem(),
            issuing::certificate_pem(&secrets.issuing.certificate) + authority.roots_pem()
        );
        assert_eq!(authority.key_set().keys.len(), 1);
        assert_eq!(authority.grant_keys(), [secrets.grant_key.public_key().clone()]);
        assert_ne!(*secrets.nonce_key, *initial().nonce_key);
    }

    #[test]
    fn several_roots_and_grant_keys_are_published_together() {
        let (secrets, old) = (initial(), initial());
        let mut parts = secrets.parts();
        parts.roots.insert(0, old.parts().roots.remove(0));
        // The current key is also among the other keys; it is published once.
        parts.other_grant_keys = vec![
            old.grant_key.public_key().clone(),
            secrets.grant_key.public_key().clone(),
        ];
        let authority = build(&parts).unwrap();
        let kids: Vec<_> = authority.key_set().keys.iter().map(|key| key.kid.clone()).collect();
        assert_eq!(
            kids,
            [&secrets, &old].map(|secrets| secrets.grant_key.public_key().thumbprint().to_string())
        );
        assert_eq!(authority.roots_pem().matches("BEGIN CERTIFICATE").count(), 2);
        let own_root = issuing::certificate_pem(&secrets.root.certificate);
        assert!(
            authority.chain_pem().ends_with(&own_root),
            "it ends with the root that signed the issuing CA"
        );
    }

    #[test]
    fn an_issuing_ca_that_no_known_root_signed_is_refused() {
        let secrets = initial();
        let mut parts = secrets.parts();
        parts.roots = initial().parts().roots;
        assert!(matches!(build(&parts), Err(AuthorityError::NotUnderRoot)));
    }

    #[test]
    fn the_chain_starts_with_the_current_ca_and_contains_every_other_ca_once() {
        let secrets = initial();
        let mut parts = secrets.parts();
        let next = issuing::generate_issuing(&secrets.root, &Installation::example(), NOW).unwrap();
        let id = Uuid::from_u128(3);
        parts.issuing.push(IssuingParts {
            id,
            ca: next.clone(),
            intermediates: Vec::new(),
        });
        let authority = build(&parts).unwrap();
        let pem = |der: &Vec<u8>| issuing::certificate_pem(der);
        let chain = pem(&secrets.issuing.certificate) + authority.roots_pem() + &pem(&next.certificate);
        assert_eq!(authority.chain_pem(), chain);
        assert_eq!(authority.issuing().id(), parts.issuing[0].id);
        assert_eq!(authority.issuer(id).unwrap().certificate_der(), next.certificate);
        assert!(matches!(
            authority.issuer(Uuid::from_u128(4)),
            Err(AuthorityError::Retired)
        ));
        parts.issuing.clear();
        let none = build(&parts);
        assert!(matches!(none, Err(AuthorityError::NoIssuing)));
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let secrets = initial();
        let shown = format!("{:?}", secrets.parts());
        let secret = format!("{:?}", secrets.grant_key.pkcs8_der());
        assert!(!shown.contains(secret.trim_matches(['[', ']'])));
    }
}
