//! `assay-agent status`: the record without secrets, for people and scripts.

use std::fmt;

use assay_protocol::{
    ProblemKind,
    agent_api::Denial,
    machine::{Assurance, MachineStatus},
};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    clock::rfc3339,
    exchanges::ROTATE_KEY,
    state::{DeniedKey, KeyRotation, KeyTrouble, Record, RecordedFailure, because},
    trust::ServerUrl,
};

/// The status of this machine, from its record.
#[derive(Debug, Serialize)]
pub(crate) struct Status {
    standing: Standing,
    server: Option<ServerUrl>,
    enrollment_id: Option<Uuid>,
    machine_id: Option<Uuid>,
    spiffe_id: Option<String>,
    assurance: Option<Assurance>,
    status: Option<MachineStatus>,
    key_thumbprint: Option<String>,
    key_rotation: Option<RotationStatus>,
    denied_next_key: Option<DeniedKey>,
    certificate: Option<CertificateStatus>,
    #[serde(with = "time::serde::rfc3339::option")]
    last_check_in_at: Option<OffsetDateTime>,
    #[serde(with = "time::serde::rfc3339::option")]
    next_check_in_at: Option<OffsetDateTime>,
    grants: Vec<GrantStatus>,
    denied: Vec<Denial>,
    last_failure: Option<RecordedFailure>,
    key_trouble: Option<KeyTroubleStatus>,
}

/// A key rotation in progress.
#[derive(Debug, Serialize)]
pub(crate) struct RotationStatus {
    next_key_thumbprint: String,
    #[serde(with = "time::serde::rfc3339")]
    begun_at: OffsetDateTime,
    waits_for: WaitsFor,
    enrollment_id: Option<Uuid>,
}

/// The step that a key rotation waits for.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "kebab-case")]
enum WaitsFor {
    Approval,
    Certificate,
    CheckIn,
}

/// A problem with the key, in words.
#[derive(Debug, Serialize)]
struct KeyTroubleStatus {
    kind: KeyTrouble,
    matter: &'static str,
    advice: &'static str,
}

/// How far the enrollment of the machine has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Standing {
    NotEnrolled,
    Enrolling,
    WaitingForApproval,
    /// An administrator denied this key. The denial is final.
    Denied,
    /// The machine is enrolled, and an administrator or a contradiction in its evidence suspended it.
    Quarantined,
    /// The machine was enrolled. Its key never works again.
    Revoked,
    Enrolled,
}

#[derive(Debug, Serialize)]
struct CertificateStatus {
    serial_number: String,
    #[serde(with = "time::serde::rfc3339")]
    not_before: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    not_after: OffsetDateTime,
    is_expired: bool,
}

#[derive(Debug, Serialize)]
struct GrantStatus {
    audience: String,
    permissions: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    expires_at: OffsetDateTime,
    is_expired: bool,
}

/// Replaces control characters and line breaks. Escape sequences in text from the server could otherwise rewrite
/// earlier output of the terminal.
pub(crate) fn printable(text: &str) -> String {
    text.trim_end()
        .chars()
        .map(|character| match character {
            '\n' | '\t' => ' ',
            character if character.is_control() => '\u{fffd}',
            character => character,
        })
        .collect()
}

impl Status {
    pub(crate) fn of(record: &Record, now: OffsetDateTime) -> Self {
        let machine = record.machine.as_ref();
        let last = record.last_check_in.as_ref();
        let grants = last.map(|last| last.grants.as_slice()).unwrap_or_default();
        let key_trouble = record.last_failure.as_ref().and_then(|failure| failure.key);
        Self {
            standing: Standing::of(record),
            server: record.server.as_ref().map(|server| server.url.clone()),
            enrollment_id: record.pending.as_ref().and_then(|pending| pending.enrollment_id),
            machine_id: machine.map(|machine| machine.machine_id),
            spiffe_id: machine.map(|machine| machine.spiffe_id.clone()),
            assurance: machine.map(|machine| machine.assurance),
            status: record.suspension.or(last.map(|last| last.status)),
            key_thumbprint: record.key.map(|thumbprint| thumbprint.to_string()),
            key_rotation: record.rotation.as_ref().map(RotationStatus::of),
            denied_next_key: record.denied_next_key.clone(),
            certificate: machine.map(|machine| CertificateStatus {
                serial_number: machine.certificate.serial_number.clone(),
                not_before: machine.certificate.not_before,
                not_after: machine.certificate.not_after,
                is_expired: machine.certificate.not_after <= now,
            }),
            last_check_in_at: last.map(|last| last.at),
            next_check_in_at: record.next_check_in_at,
            grants: grants
                .iter()
                .map(|grant| GrantStatus {
                    audience: grant.audience.clone(),
                    permissions: grant.permissions.clone(),
                    expires_at: grant.expires_at,
                    is_expired: grant.expires_at <= now,
                })
                .collect(),
            denied: last.map(|last| last.denied.clone()).unwrap_or_default(),
            last_failure: record.last_failure.clone(),
            key_trouble: key_trouble.map(|kind| KeyTroubleStatus {
                kind,
                matter: kind.matter(),
                advice: kind.advice(),
            }),
        }
    }
}

impl RotationStatus {
    pub(crate) fn of(rotation: &KeyRotation) -> Self {
        Self {
            next_key_thumbprint: rotation.key.to_string(),
            begun_at: rotation.begun_at,
            waits_for: match (&rotation.certificate, rotation.enrollment_id) {
                (Some(_), _) => WaitsFor::CheckIn,
                (None, Some(_)) => WaitsFor::Approval,
                (None, None) => WaitsFor::Certificate,
            },
            enrollment_id: rotation.enrollment_id,
        }
    }
}

impl fmt::Display for RotationStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            next_key_thumbprint: key,
            begun_at,
            waits_for,
            enrollment_id,
        } = self;
        let begun_at = rfc3339(*begun_at);
        match waits_for {
            WaitsFor::Approval => write!(
                formatter,
                "to {key}, begun at {begun_at}: waiting for approval of enrollment {}; the old key is still valid",
                enrollment_id.unwrap_or_default()
            ),
            WaitsFor::Certificate => write!(
                formatter,
                "to {key}, begun at {begun_at}: waiting for its certificate; the old key is still valid"
            ),
            WaitsFor::CheckIn => write!(
                formatter,
                "to {key}, begun at {begun_at}: waiting for its first check-in, which ends the old key"
            ),
        }
    }
}

impl Standing {
    fn of(record: &Record) -> Self {
        let denied = ProblemKind::EnrollmentDenied.urn();
        // The denial of a next key leaves the current key.
        let failure = record
            .last_failure
            .as_ref()
            .filter(|failure| failure.exchange != ROTATE_KEY);
        if failure.is_some_and(|failure| failure.problem.as_ref() == Some(&denied)) {
            return Self::Denied;
        }
        match record.suspension {
            Some(MachineStatus::Quarantined) => return Self::Quarantined,
            Some(MachineStatus::Revoked) => return Self::Revoked,
            Some(MachineStatus::Pending | MachineStatus::Active) | None => {}
        }
        match (&record.machine, &record.pending) {
            (_, Some(pending)) if pending.enrollment_id.is_some() => Self::WaitingForApproval,
            (Some(_), _) if record.key_is_unknown => Self::Enrolling,
            (Some(_), _) => Self::Enrolled,
            (None, Some(_)) => Self::Enrolling,
            (None, None) => Self::NotEnrolled,
        }
    }
}

impl fmt::Display for Standing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::NotEnrolled => "not enrolled",
            Self::Enrolling => "enrolling",
            Self::WaitingForApproval => "waiting for approval",
            Self::Denied => "denied by an administrator",
            Self::Quarantined => "quarantined: an administrator must release this machine",
            Self::Revoked => "revoked: this machine's key never works again",
            Self::Enrolled => "enrolled",
        })
    }
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut line = |name: &str, value: String| writeln!(formatter, "{name:<14}{}", printable(&value));
        line("standing", self.standing.to_string())?;
        for (name, value) in [
            ("server", self.server.as_ref().map(ToString::to_string)),
            ("enrollment", self.enrollment_id.map(|id| id.to_string())),
            ("machine", self.machine_id.map(|id| id.to_string())),
            ("SPIFFE id", self.spiffe_id.clone()),
            ("status", self.status.map(|status| status.to_string())),
            ("assurance", self.assurance.map(|assurance| assurance.to_string())),
            ("key", self.key_thumbprint.clone()),
            ("key rotation", self.key_rotation.as_ref().map(ToString::to_string)),
            ("denied key", self.denied_next_key.as_ref().map(denial)),
            ("last check-in", self.last_check_in_at.map(rfc3339)),
            ("next check-in", self.next_check_in_at.map(rfc3339)),
        ] {
            if let Some(value) = value {
                line(name, value)?;
            }
        }
        if let Some(certificate) = &self.certificate {
            let until = until(certificate.not_after, certificate.is_expired);
            line("certificate", format!("{} {until}", certificate.serial_number))?;
        }
        for grant in &self.grants {
            let until = until(grant.expires_at, grant.is_expired);
            line(
                "granted",
                format!("{}: {} {until}", grant.audience, grant.permissions.join(" ")),
            )?;
        }
        for denial in &self.denied {
            let reasons = because(&denial.reasons);
            line("denied", format!("{}: {}{reasons}", denial.audience, denial.permission))?;
        }
        if let Some(failure) = &self.last_failure {
            let at = rfc3339(failure.at);
            line(
                "last failure",
                format!("{at} {}: {}", failure.exchange, failure.message),
            )?;
        }
        if let Some(trouble) = &self.key_trouble {
            line("key store", trouble.matter.to_owned())?;
            line("what to do", trouble.advice.to_owned())?;
        }
        Ok(())
    }
}

fn denial(denied: &DeniedKey) -> String {
    let at = rfc3339(denied.at);
    format!(
        "{}, at {at}: {}; the old key is still valid",
        denied.key, denied.message
    )
}

fn until(end: OffsetDateTime, is_expired: bool) -> String {
    match is_expired {
        true => format!("(expired at {})", rfc3339(end)),
        false => format!("(until {})", rfc3339(end)),
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::agent_api::{AudienceGrant, IssuedCertificate};
    use time::macros::datetime;

    use super::*;
    use crate::state::{EnrolledMachine, PendingEnrollment, RecordedCheckIn};

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    fn enrolled() -> Record {
        let mut record = Record::default();
        record.machine = Some(EnrolledMachine {
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
        record.last_check_in = Some(RecordedCheckIn {
            at: NOW,
            status: MachineStatus::Active,
            grants: vec![AudienceGrant {
                audience: "wiki".into(),
                permissions: vec!["read".into(), "write".into()],
                token: "e.y.J".into(),
                expires_at: datetime!(2026-11-22 10:10 UTC),
            }],
            denied: vec![Denial {
                audience: "vault".into(),
                permission: "unseal".into(),
                reasons: vec!["FileVault is off".into(), "\u{1b}[2J".into()],
            }],
        });
        record
    }

    #[test]
    fn a_status_shows_grants_and_denials_without_tokens() {
        let status = Status::of(&enrolled(), NOW);
        let text = status.to_string();
        assert!(
            text.contains("granted       wiki: read write (until 2026-11-22T10:10:00Z)\n"),
            "{text}"
        );
        assert!(
            text.contains("denied        vault: unseal: FileVault is off; \u{fffd}[2J\n"),
            "{text}"
        );
        assert!(text.contains("assurance     verified\n"), "{text}");
        let json = serde_json::to_string(&status).unwrap();
        assert!(json.contains(r#""standing":"enrolled""#), "{json}");
        assert!(!text.contains("e.y.J") && !json.contains("e.y.J"));
    }

    #[test]
    fn a_suspended_machine_is_not_shown_as_enrolled_and_active() {
        for (suspension, standing) in [
            (MachineStatus::Quarantined, Standing::Quarantined),
            (MachineStatus::Revoked, Standing::Revoked),
        ] {
            let mut record = enrolled();
            record.suspension = Some(suspension);
            let status = Status::of(&record, NOW);
            assert_eq!((status.standing, status.status), (standing, Some(suspension)));
            let text = status.to_string();
            assert!(text.starts_with(&format!("standing      {suspension}")), "{text}");
        }
    }

    #[test]
    fn a_status_shows_the_progress_of_an_enrollment() {
        let mut record = Record::default();
        assert_eq!(Standing::of(&record), Standing::NotEnrolled);
        record.pending = Some(PendingEnrollment {
            token: Some("secret".into()),
            enrollment_id: None,
        });
        assert_eq!(Standing::of(&record), Standing::Enrolling);
        assert!(
            !serde_json::to_string(&Status::of(&record, NOW))
                .unwrap()
                .contains("secret")
        );
        record.pending.as_mut().unwrap().enrollment_id = Some(Uuid::from_u128(7));
        assert_eq!(Standing::of(&record), Standing::WaitingForApproval);
    }
}
