//! `apple-attestation verify`

use std::{fs, path::Path};

use assay_authority::attestation::apple::{
    AppleAttestation, AttestationError, AttestationRoots, CertificateDescription, UnverifiedAttestation,
};
use assay_protocol::{
    Chain,
    attestation::{AttestationRefusal, AttestedClaims, FreshnessCode},
};
use clap::Args;
use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{CommandError, print};
use crate::clock::Clock;

/// The arguments of `apple-attestation verify`.
#[derive(Debug, Args)]
pub(super) struct Verify {
    /// The chain in PEM, leaf first, as the server stores it.
    #[arg(long, value_name = "FILE")]
    chain: std::path::PathBuf,
    /// A PEM file with roots to trust instead of Apple's.
    #[arg(long, value_name = "FILE")]
    roots: Option<std::path::PathBuf>,
    /// The time at which the chain must be valid, such as 2026-11-22T10:00:00Z. The default is now.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<OffsetDateTime>,
    /// The nonce that the attestation must contain, in hex: SHA-256 of a key's SubjectPublicKeyInfo.
    #[arg(long, value_name = "HEX")]
    nonce: Option<FreshnessCode>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Verification<'a> {
    Valid {
        valid: bool,
        claims: &'a AttestedClaims,
        chain: &'a [CertificateDescription],
    },
    Invalid {
        valid: bool,
        failed: AttestationRefusal,
        detail: String,
    },
}

/// Verifies a chain and prints the result. An invalid chain is a failure. Needs no network and no database.
pub(super) fn verify(arguments: &Verify, clock: &dyn Clock) -> Result<(), CommandError> {
    let path = arguments.roots.as_deref();
    let roots = AttestationRoots::from_file(path).map_err(|source| CommandError::Roots {
        path: path.unwrap_or(Path::new("this program")).to_owned(),
        source,
    })?;
    let chain = read(&arguments.chain)?;
    let verified = verified(
        &chain,
        &roots,
        arguments.at.unwrap_or_else(|| clock.now()),
        arguments.nonce,
    );
    let verification = match &verified {
        Ok(attestation) => Verification::Valid {
            valid: true,
            claims: attestation.claims(),
            chain: attestation.path(),
        },
        Err(error) => Verification::Invalid {
            valid: false,
            failed: error.refusal(),
            detail: Chain(error).to_string(),
        },
    };
    print::text(&serde_json::to_string_pretty(&verification)?)?;
    verified.map(|_| ()).map_err(|_| CommandError::AttestationInvalid)
}

fn verified(
    chain: &str,
    roots: &AttestationRoots,
    at: OffsetDateTime,
    nonce: Option<FreshnessCode>,
) -> Result<AppleAttestation, AttestationError> {
    let attestation = UnverifiedAttestation::from_pem(chain)?.verify(roots, at)?;
    if let Some(nonce) = nonce {
        attestation.require_freshness(nonce)?;
    }
    Ok(attestation)
}

fn read(path: &Path) -> Result<String, CommandError> {
    let bytes = fs::read(path).map_err(|source| CommandError::File {
        path: path.to_owned(),
        source,
    })?;
    // Text that is not UTF-8 is not PEM, and is reported as such.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn time(text: &str) -> Result<OffsetDateTime, &'static str> {
    OffsetDateTime::parse(text, &Rfc3339).map_err(|_| "not an RFC 3339 time, such as 2026-11-22T10:00:00Z")
}
