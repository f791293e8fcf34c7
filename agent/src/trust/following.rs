//! Which roots follow a trusted one. A root follows another if that one's key, or the key of a root between them, has
//! signed a certificate of its subject and key. The bundle alone is no reason to trust a root: otherwise a thief of the
//! server's TLS key could replace the agent's roots with one response.

use rustls::crypto::aws_lc_rs::default_provider;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_cert::{
    Certificate, TbsCertificate,
    der::{Any, Decode, Encode, asn1::ObjectIdentifier},
    ext::pkix::{BasicConstraints, KeyUsage},
    spki::AlgorithmIdentifierOwned,
};

/// Limit for the certificates of a bundle. Each may cost a signature verification for each other one.
pub(super) const MAX_CERTIFICATES: usize = 64;
/// How many CAs may be below an anchor. TLS libraries ignore the path length of an anchor, so this ignores it, too.
const UNLIMITED: u8 = u8::MAX;

const BASIC_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.19");
const KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.15");
const NAME_CONSTRAINTS: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.30");
const EXTENDED_KEY_USAGE: ObjectIdentifier = ObjectIdentifier::new_unwrap("2.5.29.37");

/// The roots to trust after the server sent a bundle.
///
/// A trusted root stays until the bundle lacks it and has one that follows it. A root of the bundle is added if it
/// follows a trusted one.
pub(super) fn followed(
    trusted: &[CertificateDer<'static>],
    bundle: &[CertificateDer<'static>],
    now: OffsetDateTime,
) -> Vec<CertificateDer<'static>> {
    let bundle: Vec<Ca> = bundle.iter().filter_map(Ca::read).collect();
    let roots: Vec<&Ca> = bundle.iter().filter(|ca| ca.is_issued_by(ca)).collect();
    let mut kept: Vec<CertificateDer<'static>> = Vec::new();
    let mut added: Vec<CertificateDer<'static>> = Vec::new();
    for certificate in trusted {
        let Some(anchor) = Ca::read(certificate) else {
            kept.push(certificate.clone());
            continue;
        };
        let is_present = roots.iter().any(|root| root.is_same_authority(&anchor));
        let followers = followers(&anchor, &bundle, now);
        let following = roots.iter().filter(|root| {
            !root.is_same_authority(&anchor) && followers.iter().any(|follower| follower.is_same_authority(root))
        });
        let before = added.len();
        added.extend(following.map(|root| root.der.clone()));
        if is_present || added.len() == before {
            kept.push(certificate.clone());
        }
    }
    for root in added {
        if !kept.contains(&root) {
            kept.push(root);
        }
    }
    kept
}

/// The certificates in a bundle whose subject and key follow this anchor.
fn followers<'a>(anchor: &'a Ca, bundle: &'a [Ca], now: OffsetDateTime) -> Vec<&'a Ca> {
    // An issuing CA in a CA file is trusted for the servers that it certifies, and is no root that others follow. An
    // expired root certifies nothing.
    if anchor.path_length() == PathLength::AtMost(0) || !anchor.is_valid(now) {
        return Vec::new();
    }
    let mut reached = vec![(anchor, UNLIMITED)];
    let mut next = 0;
    while let Some(&(issuer, allowed)) = reached.get(next) {
        next += 1;
        for candidate in bundle {
            let Some(allowed) = candidate.allowed_below(allowed, now) else {
                continue;
            };
            let is_known = reached
                .iter()
                .any(|(known, at_least)| *at_least >= allowed && known.is_same_authority(candidate));
            if !is_known && candidate.is_issued_by(issuer) {
                reached.push((candidate, allowed));
            }
        }
    }
    reached.into_iter().skip(1).map(|(ca, _)| ca).collect()
}

/// A parsed certificate. What identifies an authority in a path is its subject and key.
struct Ca {
    der: CertificateDer<'static>,
    certificate: Certificate,
    subject: Vec<u8>,
    key: Vec<u8>,
}

/// How many CAs may be below a CA, by its own certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PathLength {
    /// Not a CA.
    NotCa,
    Unlimited,
    AtMost(u8),
}

impl Ca {
    fn read(der: &CertificateDer<'static>) -> Option<Self> {
        let certificate = Certificate::from_der(der).ok()?;
        let tbs = certificate.tbs_certificate();
        Some(Self {
            der: der.clone(),
            subject: tbs.subject().to_der().ok()?,
            key: tbs.subject_public_key_info().to_der().ok()?,
            certificate,
        })
    }

    fn is_same_authority(&self, other: &Self) -> bool {
        self.subject == other.subject && self.key == other.key
    }

    /// How many CAs may be below this one if so many may be below its issuer. `None` if the certificate does not make
    /// its subject a root: it must be valid now, and allow at least one CA below it.
    fn allowed_below(&self, below_issuer: u8, now: OffsetDateTime) -> Option<u8> {
        if !self.is_valid(now) || !self.is_unrestricted() {
            return None;
        }
        let allowed = match self.path_length() {
            PathLength::NotCa => return None,
            PathLength::Unlimited => UNLIMITED,
            PathLength::AtMost(most) => most,
        };
        let allowed = allowed.min(below_issuer.saturating_sub(1));
        (allowed > 0).then_some(allowed)
    }

    fn is_valid(&self, now: OffsetDateTime) -> bool {
        let validity = self.tbs().validity();
        let Ok(now) = u64::try_from(now.unix_timestamp()) else {
            return false;
        };
        let [from, end] = [validity.not_before, validity.not_after].map(|time| time.to_unix_duration().as_secs());
        (from..=end).contains(&now)
    }

    /// Whether its extensions allow what a trusted root may do. A root that is trusted has no name constraints and no
    /// extended key usage, so one that is certified with them does not follow.
    fn is_unrestricted(&self) -> bool {
        let may_sign = match self.tbs().get_extension::<KeyUsage>() {
            Ok(usage) => usage.is_none_or(|(_, usage)| usage.key_cert_sign()),
            Err(_) => false,
        };
        let extensions = self.tbs().extensions().map(Vec::as_slice).unwrap_or_default();
        may_sign
            && extensions.iter().all(|extension| match extension.extn_id {
                BASIC_CONSTRAINTS | KEY_USAGE => true,
                NAME_CONSTRAINTS | EXTENDED_KEY_USAGE => false,
                _ => !extension.critical,
            })
    }

    fn path_length(&self) -> PathLength {
        match self.tbs().get_extension::<BasicConstraints>() {
            Ok(Some((_, constraints))) if constraints.ca => constraints
                .path_len_constraint
                .map_or(PathLength::Unlimited, PathLength::AtMost),
            _ => PathLength::NotCa,
        }
    }

    fn is_issued_by(&self, issuer: &Self) -> bool {
        let is_named = self.tbs().issuer().to_der().is_ok_and(|name| name == issuer.subject);
        is_named && self.is_signed_by(issuer).unwrap_or(false)
    }

    /// By the algorithms that the TLS library accepts.
    fn is_signed_by(&self, issuer: &Self) -> Option<bool> {
        let spki = issuer.tbs().subject_public_key_info();
        let key_algorithm = identifier(&spki.algorithm)?;
        let signature_algorithm = identifier(self.certificate.signature_algorithm())?;
        let signed = self.tbs().to_der().ok()?;
        let (key, signature) = (
            spki.subject_public_key.as_bytes()?,
            self.certificate.signature().as_bytes()?,
        );
        let provider = default_provider();
        let mut algorithms = provider.signature_verification_algorithms.all.iter();
        Some(algorithms.any(|algorithm| {
            algorithm.public_key_alg_id().as_ref() == key_algorithm
                && algorithm.signature_alg_id().as_ref() == signature_algorithm
                && algorithm.verify_signature(key, &signed, signature).is_ok()
        }))
    }

    fn tbs(&self) -> &TbsCertificate {
        self.certificate.tbs_certificate()
    }
}

/// An algorithm identifier as the TLS library has it: without the tag and length around it.
fn identifier(algorithm: &AlgorithmIdentifierOwned) -> Option<Vec<u8>> {
    let der = algorithm.to_der().ok()?;
    Some(Any::from_der(&der).ok()?.value().to_vec())
}

#[cfg(test)]
mod tests;
