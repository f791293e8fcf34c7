//! The grants of the last check-in, for other programs of this machine.

use assay_protocol::agent_api::AudienceGrant;
use time::OffsetDateTime;

use super::Record;
use crate::clock::rfc3339;

/// Why there is no grant token.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum GrantError {
    #[error("this machine is not enrolled")]
    NotEnrolled,
    #[error("this machine has no grant for {audience}{}", because(reasons))]
    NotGranted { audience: String, reasons: Vec<String> },
    #[error("the grant for {audience} expired at {}: check that `assay-agent run` is running", rfc3339(*expired_at))]
    Expired {
        audience: String,
        expired_at: OffsetDateTime,
    },
}

/// The grant for an audience, if its token has not expired by this machine's clock.
pub(crate) fn current_grant<'a>(
    record: &'a Record,
    audience: &str,
    now: OffsetDateTime,
) -> Result<&'a AudienceGrant, GrantError> {
    if record.machine.is_none() {
        return Err(GrantError::NotEnrolled);
    }
    let last = record.last_check_in.as_ref();
    let grant = last.and_then(|last| last.grants.iter().find(|grant| grant.audience == audience));
    match grant {
        Some(grant) if grant.expires_at > now => Ok(grant),
        Some(grant) => Err(GrantError::Expired {
            audience: audience.to_owned(),
            expired_at: grant.expires_at,
        }),
        None => {
            let denied = last.map(|last| last.denied.as_slice()).unwrap_or_default();
            let denied = denied.iter().filter(|denial| denial.audience == audience);
            Err(GrantError::NotGranted {
                audience: audience.to_owned(),
                reasons: denied.flat_map(|denial| denial.reasons.clone()).collect(),
            })
        }
    }
}

/// A list of reasons, in the form for the end of a sentence.
pub(crate) fn because(reasons: &[String]) -> String {
    match reasons {
        [] => String::new(),
        reasons => format!(": {}", reasons.join("; ")),
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::{
        agent_api::{Denial, IssuedCertificate},
        machine::{Assurance, MachineStatus},
    };
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;
    use crate::state::{EnrolledMachine, RecordedCheckIn};

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
    const EXPIRES_AT: OffsetDateTime = datetime!(2026-11-22 10:10 UTC);

    fn record() -> Record {
        let machine = Some(EnrolledMachine {
            machine_id: Uuid::from_u128(7),
            spiffe_id: "spiffe://example.com/machine/7".into(),
            assurance: Assurance::Verified,
            enrolled_at: NOW,
            certificate: IssuedCertificate {
                serial_number: "0a".into(),
                not_before: NOW,
                not_after: datetime!(2026-11-29 10:00 UTC),
                chain: String::new(),
            },
            trust_bundle: String::new(),
        });
        let last_check_in = Some(RecordedCheckIn {
            at: NOW,
            status: MachineStatus::Active,
            grants: vec![AudienceGrant {
                audience: "wiki".into(),
                permissions: vec!["read".into()],
                token: "e.y.J".into(),
                expires_at: EXPIRES_AT,
            }],
            denied: vec![Denial {
                audience: "vault".into(),
                permission: "unseal".into(),
                reasons: vec!["FileVault is off".into()],
            }],
        });
        Record {
            machine,
            last_check_in,
            ..Record::default()
        }
    }

    #[test]
    fn a_token_is_handed_out_until_it_expires() {
        let record = record();
        assert_eq!(current_grant(&record, "wiki", NOW).unwrap().token, "e.y.J");
        let error = current_grant(&record, "wiki", EXPIRES_AT).unwrap_err();
        let (audience, expired_at) = ("wiki".to_owned(), EXPIRES_AT);
        assert_eq!(error, GrantError::Expired { audience, expired_at });
    }

    #[test]
    fn a_denied_grant_comes_with_its_reasons() {
        let error = current_grant(&record(), "vault", NOW).unwrap_err().to_string();
        assert!(error.contains("no grant for vault: FileVault is off"), "{error}");
    }

    #[test]
    fn a_machine_that_is_not_enrolled_has_no_grants() {
        let record = Record::default();
        assert_eq!(current_grant(&record, "wiki", NOW), Err(GrantError::NotEnrolled));
    }
}
