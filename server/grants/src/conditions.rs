//! Checks the conditions of a grant against a machine, and words the reasons of failures.

use std::fmt::Display;

use assay_protocol::{
    admin_api::grants::Conditions,
    attestation::AttestedClaims,
    machine::{Assurance, MachineStatus, SecureBoot},
};
use time::{Duration, OffsetDateTime};

use super::{
    evaluation::{Attestation, Subject},
    os_version::OsVersion,
};
use assay_protocol::text::rfc3339;

/// Every condition that fails, in words. An unknown value fails its condition. Empty if all conditions hold.
pub(super) fn failures(conditions: &Conditions, subject: &Subject<'_>, now: OffsetDateTime) -> Vec<String> {
    // Names every member. A new condition that is not compared below does not compile, because it would grant too much.
    let &Conditions {
        min_assurance: _,
        max_attestation_age_days: _,
        min_os_version: _,
        key_store,
        sip_enabled: required_sip,
        filevault_enabled,
        firewall_enabled,
        gatekeeper_enabled,
        secure_boot: required_boot,
        mdm_enrolled,
    } = conditions;
    let posture = subject.claimed_posture;
    let [attested, sip, boot] = [
        &subject.attestation,
        &subject.sip_attestation,
        &subject.boot_attestation,
    ]
    .map(|attestation| attestation.as_ref().filter(|attestation| now < attestation.lapses_at));
    let is_off = |claims: &AttestedClaims| claims.sip_enabled == Some(false);
    let sip_enabled = match sip.filter(|sip| is_off(sip.claims)).or(attested) {
        Some(attestation) => Actual::attested(attestation, attestation.claims.sip_enabled),
        None => Actual::claimed(posture.sip_enabled),
    };
    let is_below_full = |claims: &AttestedClaims| claims.secure_boot.is_some_and(|level| level < SecureBoot::Full);
    let secure_boot = match boot.filter(|boot| is_below_full(boot.claims)).or(attested) {
        Some(attestation) => Actual::attested(attestation, attestation.claims.secure_boot),
        None => Actual::claimed(posture.secure_boot),
    };
    let claimed = |condition, required, claimed| exactly(condition, required, Actual::claimed(claimed));
    [
        active(subject.status),
        uncontested(subject.is_contested),
        unexpired(subject.certificate_expires_at, now),
        min_assurance(conditions, subject, now),
        max_attestation_age_days(conditions, subject, now),
        exactly("key_store", key_store, Actual::claimed(Some(subject.claimed_key_store))),
        exactly("sip_enabled", required_sip, sip_enabled),
        claimed("filevault_enabled", filevault_enabled, posture.filevault_enabled),
        claimed("firewall_enabled", firewall_enabled, posture.firewall_enabled),
        claimed("gatekeeper_enabled", gatekeeper_enabled, posture.gatekeeper_enabled),
        at_least("secure_boot", required_boot, secure_boot),
        min_os_version(conditions, subject),
        claimed("mdm_enrolled", mdm_enrolled, posture.mdm_enrolled),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The earliest time at which [`failures`] can change without a change of its input; `None` for never.
pub(super) fn unchanged_until(
    conditions: &Conditions,
    subject: &Subject<'_>,
    now: OffsetDateTime,
) -> Option<OffsetDateTime> {
    let too_old = conditions
        .max_attestation_age_days
        .and_then(|days| Some(age_limit(subject.attestation.as_ref()?, days)));
    let lapse = |attestation: Option<Attestation<'_>>| attestation.map(|attestation| attestation.lapses_at);
    [
        lapse(subject.attestation),
        lapse(subject.sip_attestation),
        lapse(subject.boot_attestation),
        too_old,
        subject.certificate_expires_at,
    ]
    .into_iter()
    .flatten()
    .filter(|end| now < *end)
    .min()
}

/// The value that a condition is compared with, and its source.
struct Actual<T> {
    value: Option<T>,
    /// When Apple signed the value; `None` if the agent claims it.
    attested_at: Option<OffsetDateTime>,
}

impl<T> Actual<T> {
    fn claimed(value: Option<T>) -> Self {
        Self {
            value,
            attested_at: None,
        }
    }

    /// A value that Apple does not attest is unknown, whatever the agent claims. Otherwise an agent could hide a bad
    /// value by leaving it out of the attestation.
    fn attested(attestation: &Attestation<'_>, value: Option<T>) -> Self {
        Self {
            value,
            attested_at: Some(attestation.attested_at),
        }
    }
}

fn active(status: MachineStatus) -> Option<String> {
    (status != MachineStatus::Active).then(|| {
        let required = MachineStatus::Active;
        format!("status: required {required}, on record {status}")
    })
}

fn uncontested(is_contested: bool) -> Option<String> {
    let reason = "two keys claim the machine's record since it was opened; an administrator must approve one of them";
    is_contested.then(|| reason.to_owned())
}

/// A machine whose certificate has expired must renew it before it is granted anything: otherwise a key from an old backup
/// would be granted permissions for ever.
fn unexpired(expires_at: Option<OffsetDateTime>, now: OffsetDateTime) -> Option<String> {
    let expired_at = expires_at.filter(|end| now >= *end)?;
    let expired_at = rfc3339(expired_at);
    Some(format!("the machine's certificate expired at {expired_at}; renew it"))
}

fn min_assurance(conditions: &Conditions, subject: &Subject<'_>, now: OffsetDateTime) -> Option<String> {
    let required = conditions.min_assurance?;
    let too_old = subject.attestation.filter(|attestation| now >= attestation.lapses_at);
    (subject.assurance < required).then(|| {
        let present = subject.assurance;
        match too_old.filter(|_| required == Assurance::Attested) {
            None => format!("min_assurance: required {required}, on record {present}"),
            Some(Attestation { attested_at, .. }) => format!(
                "min_assurance: required {required}, on record {present}, as the Apple attestation of {} is too old",
                rfc3339(attested_at)
            ),
        }
    })
}

fn max_attestation_age_days(conditions: &Conditions, subject: &Subject<'_>, now: OffsetDateTime) -> Option<String> {
    let days = conditions.max_attestation_age_days?;
    let Some(attestation) = &subject.attestation else {
        return Some(format!(
            "max_attestation_age_days: required {days}, there is no Apple attestation on record"
        ));
    };
    (now >= age_limit(attestation, days)).then(|| {
        let attested_at = rfc3339(attestation.attested_at);
        format!("max_attestation_age_days: required {days}, the Apple attestation on record is of {attested_at}")
    })
}

fn age_limit(attestation: &Attestation<'_>, days: u32) -> OffsetDateTime {
    attestation.attested_at.saturating_add(Duration::days(days.into()))
}

fn min_os_version(conditions: &Conditions, subject: &Subject<'_>) -> Option<String> {
    let required = conditions.min_os_version.as_deref()?;
    let Some(claimed) = subject.claimed_posture.os_version.as_deref() else {
        return Some(unknown("min_os_version", required, None));
    };
    match (OsVersion::parse(required), OsVersion::parse(claimed)) {
        (Some(least), Some(present)) if present >= least => None,
        (Some(_), Some(_)) => Some(failure("min_os_version", required, claimed, None)),
        _ => Some(format!(
            "{}, {claimed:?} cannot be compared",
            unknown("min_os_version", required, None)
        )),
    }
}

fn exactly<T: PartialEq + Display>(condition: &str, required: Option<T>, present: Actual<T>) -> Option<String> {
    check(condition, required, present, PartialEq::eq)
}

fn at_least<T: PartialOrd + Display>(condition: &str, required: Option<T>, present: Actual<T>) -> Option<String> {
    check(condition, required, present, PartialOrd::ge)
}

fn check<T: Display>(
    condition: &str,
    required: Option<T>,
    Actual { value, attested_at }: Actual<T>,
    holds: impl Fn(&T, &T) -> bool,
) -> Option<String> {
    let required = required?;
    match value {
        None => Some(unknown(condition, &required, attested_at)),
        Some(value) if holds(&value, &required) => None,
        Some(value) => Some(failure(condition, &required, &value, attested_at)),
    }
}

fn failure(
    condition: &str,
    required: impl Display,
    present: impl Display,
    attested_at: Option<OffsetDateTime>,
) -> String {
    match attested_at {
        None => format!("{condition}: required {required}, claimed {present}"),
        Some(at) => format!(
            "{condition}: required {required}, attested {present} by Apple at {}",
            rfc3339(at)
        ),
    }
}

fn unknown(condition: &str, required: impl Display, attested_at: Option<OffsetDateTime>) -> String {
    match attested_at {
        None => format!("{condition}: required {required}, unknown"),
        Some(at) => format!(
            "{condition}: required {required}, unknown to the Apple attestation of {}",
            rfc3339(at)
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use assay_protocol::{
        attestation::AttestedClaims,
        machine::{KeyStoreKind, Posture, SecureBoot},
    };
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, from_value, json};
    use time::macros::datetime;
    use uuid::Uuid;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
    const ATTESTED_AT: OffsetDateTime = datetime!(2026-11-20 10:00 UTC);
    const LAPSES_AT: OffsetDateTime = datetime!(2026-12-20 10:00 UTC);

    fn failures_of(conditions: Value, assurance: Assurance, store: KeyStoreKind, posture: &Posture) -> Vec<String> {
        let labels = BTreeMap::new();
        let subject = Subject {
            machine_id: Uuid::nil(),
            status: MachineStatus::Active,
            assurance,
            serial_number: None,
            labels: &labels,
            claimed_key_store: store,
            claimed_posture: posture,
            attestation: None,
            is_contested: false,
            certificate_expires_at: None,
            sip_attestation: None,
            boot_attestation: None,
        };
        failures(&from_value(conditions).unwrap(), &subject, NOW)
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"min_assurance": "asserted"}))]
    #[case(json!({"min_assurance": "verified"}))]
    #[case(json!({"key_store": "software"}))]
    #[case(json!({"sip_enabled": true}))]
    #[case(json!({"secure_boot": "full"}))]
    #[case(json!({"secure_boot": "reduced"}))]
    #[case(json!({"secure_boot": "permissive"}))]
    #[case(json!({"min_os_version": "26.1"}))]
    #[case(json!({"min_os_version": "26.1.0"}))]
    #[case(json!({"min_os_version": "15.7.2"}))]
    #[case(json!({"mdm_enrolled": true, "filevault_enabled": true, "firewall_enabled": true, "gatekeeper_enabled": true}))]
    fn hold(#[case] conditions: Value) {
        let failures = failures_of(
            conditions,
            Assurance::Verified,
            KeyStoreKind::Software,
            &Posture::healthy(),
        );
        assert_eq!(failures, Vec::<String>::new());
    }

    #[rstest]
    #[case(json!({"min_assurance": "attested"}), "min_assurance: required attested, on record verified")]
    #[case(json!({"max_attestation_age_days": 30}), "max_attestation_age_days: required 30, there is no Apple attestation on record")]
    #[case(json!({"key_store": "secure-enclave"}), "key_store: required secure-enclave, claimed software")]
    #[case(json!({"sip_enabled": false}), "sip_enabled: required false, claimed true")]
    #[case(json!({"filevault_enabled": false}), "filevault_enabled: required false, claimed true")]
    #[case(json!({"firewall_enabled": false}), "firewall_enabled: required false, claimed true")]
    #[case(json!({"gatekeeper_enabled": false}), "gatekeeper_enabled: required false, claimed true")]
    #[case(json!({"mdm_enrolled": false}), "mdm_enrolled: required false, claimed true")]
    #[case(json!({"min_os_version": "26.1.1"}), "min_os_version: required 26.1.1, claimed 26.1")]
    fn fail_with_the_reason(#[case] conditions: Value, #[case] reason: &str) {
        let failures = failures_of(
            conditions,
            Assurance::Verified,
            KeyStoreKind::Software,
            &Posture::healthy(),
        );
        assert_eq!(failures, [reason]);
    }

    #[rstest]
    #[case(SecureBoot::Permissive, SecureBoot::Reduced, false)]
    #[case(SecureBoot::Permissive, SecureBoot::Full, false)]
    #[case(SecureBoot::Reduced, SecureBoot::Full, false)]
    #[case(SecureBoot::Reduced, SecureBoot::Reduced, true)]
    #[case(SecureBoot::Full, SecureBoot::Permissive, true)]
    fn secure_boot_is_a_least_level(#[case] claimed: SecureBoot, #[case] required: SecureBoot, #[case] holds: bool) {
        let posture = Posture {
            secure_boot: Some(claimed),
            ..Posture::default()
        };
        let conditions = json!({ "secure_boot": required });
        let failures = failures_of(conditions, Assurance::Asserted, KeyStoreKind::Software, &posture);
        assert_eq!(failures.is_empty(), holds, "{failures:?}");
    }

    #[rstest]
    fn what_is_not_known_fails_whatever_is_required(
        #[values(
            json!({"sip_enabled": true}), json!({"sip_enabled": false}), json!({"filevault_enabled": false}),
            json!({"firewall_enabled": true}), json!({"gatekeeper_enabled": false}), json!({"mdm_enrolled": false}),
            json!({"secure_boot": "permissive"}), json!({"min_os_version": "0"})
        )]
        conditions: Value,
    ) {
        let failures = failures_of(
            conditions,
            Assurance::Attested,
            KeyStoreKind::SecureEnclave,
            &Posture::default(),
        );
        assert_eq!(failures.len(), 1);
        assert!(failures[0].ends_with(", unknown"), "{failures:?}");
    }

    #[test]
    fn an_expired_certificate_fails_every_grant_and_a_valid_one_limits_how_long_they_hold() {
        let subject = |now| {
            let labels = BTreeMap::new();
            let posture = Posture::healthy();
            let subject = Subject {
                machine_id: Uuid::nil(),
                status: MachineStatus::Active,
                assurance: Assurance::Attested,
                serial_number: None,
                labels: &labels,
                claimed_key_store: KeyStoreKind::SecureEnclave,
                claimed_posture: &posture,
                attestation: None,
                is_contested: false,
                certificate_expires_at: Some(NOW),
                sip_attestation: None,
                boot_attestation: None,
            };
            let conditions = Conditions::default();
            (
                failures(&conditions, &subject, now),
                unchanged_until(&conditions, &subject, now),
            )
        };
        assert_eq!(subject(NOW - Duration::SECOND), (vec![], Some(NOW)));
        let reason = "the machine's certificate expired at 2026-11-22T10:00:00Z; renew it".to_owned();
        assert_eq!(subject(NOW), (vec![reason], None));
    }

    #[rstest]
    fn a_machine_that_is_not_active_gets_nothing(
        #[values(MachineStatus::Pending, MachineStatus::Quarantined, MachineStatus::Revoked)] status: MachineStatus,
    ) {
        let subject = Subject {
            machine_id: Uuid::nil(),
            status,
            assurance: Assurance::Attested,
            serial_number: None,
            labels: &BTreeMap::new(),
            claimed_key_store: KeyStoreKind::SecureEnclave,
            claimed_posture: &Posture::healthy(),
            attestation: None,
            is_contested: false,
            certificate_expires_at: None,
            sip_attestation: None,
            boot_attestation: None,
        };
        let failures = failures(&Conditions::default(), &subject, NOW);
        assert_eq!(failures, [format!("status: required active, on record {status}")]);
    }

    #[test]
    fn a_pre_release_is_unknown() {
        let posture = Posture {
            os_version: Some("27.0 beta 2".into()),
            ..Posture::default()
        };
        let conditions = json!({"min_os_version": "26"});
        let failures = failures_of(conditions, Assurance::Asserted, KeyStoreKind::Software, &posture);
        assert_eq!(
            failures,
            [r#"min_os_version: required 26, unknown, "27.0 beta 2" cannot be compared"#]
        );
    }

    fn attested_failures(
        conditions: Value,
        claimed: &Posture,
        attested: &AttestedClaims,
        now: OffsetDateTime,
    ) -> (Vec<String>, Option<OffsetDateTime>) {
        let labels = BTreeMap::new();
        let subject = Subject {
            machine_id: Uuid::nil(),
            status: MachineStatus::Active,
            assurance: Assurance::Attested,
            serial_number: None,
            labels: &labels,
            claimed_key_store: KeyStoreKind::Software,
            claimed_posture: claimed,
            sip_attestation: None,
            boot_attestation: None,
            attestation: Some(Attestation {
                attested_at: ATTESTED_AT,
                lapses_at: LAPSES_AT,
                claims: attested,
            }),
            is_contested: false,
            certificate_expires_at: None,
        };
        let conditions = from_value(conditions).unwrap();
        (
            failures(&conditions, &subject, now),
            unchanged_until(&conditions, &subject, now),
        )
    }

    fn attested(sip_enabled: Option<bool>, secure_boot: Option<SecureBoot>) -> AttestedClaims {
        AttestedClaims {
            sip_enabled,
            secure_boot,
            ..AttestedClaims::default()
        }
    }

    #[rstest]
    #[case::better(json!({"sip_enabled": true}), attested(Some(true), None), false, None)]
    #[case::worse(json!({"sip_enabled": true}), attested(Some(false), None), true,
        Some("sip_enabled: required true, attested false by Apple at 2026-11-20T10:00:00Z"))]
    #[case::not_said(json!({"sip_enabled": true}), attested(None, None), true,
        Some("sip_enabled: required true, unknown to the Apple attestation of 2026-11-20T10:00:00Z"))]
    #[case::worse_boot(json!({"secure_boot": "full"}), attested(None, Some(SecureBoot::Reduced)), true,
        Some("secure_boot: required full, attested reduced by Apple at 2026-11-20T10:00:00Z"))]
    #[case::boot_not_said(json!({"secure_boot": "permissive"}), attested(None, None), true,
        Some("secure_boot: required permissive, unknown to the Apple attestation of 2026-11-20T10:00:00Z"))]
    #[case::better_boot(json!({"secure_boot": "full"}), attested(None, Some(SecureBoot::Full)), false, None)]
    fn the_word_of_a_fresh_attestation_counts_and_not_the_claim(
        #[case] conditions: Value,
        #[case] attested: AttestedClaims,
        #[case] claimed: bool,
        #[case] reason: Option<&str>,
    ) {
        let posture = Posture {
            sip_enabled: Some(claimed),
            secure_boot: claimed.then_some(SecureBoot::Full),
            ..Posture::default()
        };
        let (failures, until) = attested_failures(conditions.clone(), &posture, &attested, NOW);
        assert_eq!(failures, reason.into_iter().collect::<Vec<_>>());
        assert_eq!(until, Some(LAPSES_AT));
        // From this moment on the attestation is too old, and the claim counts again.
        let last = LAPSES_AT - Duration::microseconds(1);
        assert_eq!(
            attested_failures(conditions.clone(), &posture, &attested, last).0,
            failures
        );
        let (failures, until) = attested_failures(conditions, &posture, &attested, LAPSES_AT);
        assert_eq!((failures.is_empty(), until), (claimed, None), "{failures:?}");
    }

    /// The failures of a machine that was attested for an earlier key.
    fn failures_after_another_key(
        conditions: &Value,
        claimed: &Posture,
        current: Option<&AttestedClaims>,
        earlier: &AttestedClaims,
        now: OffsetDateTime,
    ) -> (Vec<String>, Option<OffsetDateTime>) {
        let attestation = |claims, lapses_at| Attestation {
            attested_at: ATTESTED_AT,
            lapses_at,
            claims,
        };
        let subject = Subject {
            machine_id: Uuid::nil(),
            status: MachineStatus::Active,
            assurance: Assurance::Verified,
            serial_number: None,
            labels: &BTreeMap::new(),
            claimed_key_store: KeyStoreKind::SecureEnclave,
            claimed_posture: claimed,
            attestation: current.map(|claims| attestation(claims, LAPSES_AT + Duration::DAY)),
            certificate_expires_at: None,
            sip_attestation: Some(attestation(earlier, LAPSES_AT)),
            boot_attestation: Some(attestation(earlier, LAPSES_AT)),
            is_contested: false,
        };
        let conditions = from_value(conditions.clone()).unwrap();
        (
            failures(&conditions, &subject, now),
            unchanged_until(&conditions, &subject, now),
        )
    }

    #[rstest]
    #[case::sip_off(json!({"sip_enabled": true}), attested(Some(false), None), Some("sip_enabled: required true, attested false"))]
    #[case::sip_on(json!({"sip_enabled": true}), attested(Some(true), None), None)]
    #[case::sip_not_said(json!({"sip_enabled": true}), attested(None, None), None)]
    #[case::other_is_off(json!({"sip_enabled": true}), attested(Some(true), Some(SecureBoot::Permissive)), None)]
    #[case::permissive(json!({"secure_boot": "full"}), attested(None, Some(SecureBoot::Permissive)), Some("secure_boot: required full, attested permissive"))]
    #[case::reduced(json!({"secure_boot": "full"}), attested(None, Some(SecureBoot::Reduced)), Some("secure_boot: required full, attested reduced"))]
    #[case::full(json!({"secure_boot": "full"}), attested(None, Some(SecureBoot::Full)), None)]
    #[case::boot_not_said(json!({"secure_boot": "full"}), attested(None, None), None)]
    fn an_attestation_of_an_earlier_key_counts_against_the_machine_alone(
        #[case] conditions: Value,
        #[case] earlier: AttestedClaims,
        #[case] reason: Option<&str>,
        #[values(false, true)] with_current: bool,
    ) {
        let current = attested(Some(true), Some(SecureBoot::Full));
        let current = with_current.then_some(&current);
        let at = |now| failures_after_another_key(&conditions, &Posture::healthy(), current, &earlier, now);
        for now in [NOW, LAPSES_AT - Duration::microseconds(1)] {
            let (failures, until) = at(now);
            assert_eq!(failures.len(), usize::from(reason.is_some()), "{failures:?}");
            assert!(
                failures.iter().all(|failure| failure.starts_with(reason.unwrap())),
                "{failures:?}"
            );
            assert_eq!(until, Some(LAPSES_AT));
        }
        let then = current.map(|_| LAPSES_AT + Duration::DAY);
        assert_eq!(at(LAPSES_AT), (vec![], then));
    }

    #[test]
    fn an_attestation_of_an_earlier_key_never_counts_for_the_machine() {
        let claimed = Posture {
            sip_enabled: Some(false),
            secure_boot: Some(SecureBoot::Reduced),
            ..Posture::default()
        };
        let conditions = json!({"sip_enabled": true, "secure_boot": "full"});
        let earlier = attested(Some(true), Some(SecureBoot::Full));
        let (failures, _) = failures_after_another_key(&conditions, &claimed, None, &earlier, NOW);
        assert_eq!(
            failures,
            [
                "sip_enabled: required true, claimed false",
                "secure_boot: required full, claimed reduced",
            ]
        );
    }

    #[rstest]
    #[case(
        "attested",
        LAPSES_AT,
        ", as the Apple attestation of 2026-11-20T10:00:00Z is too old"
    )]
    #[case("attested", LAPSES_AT - Duration::microseconds(1), "")]
    #[case("verified", LAPSES_AT, "")]
    fn a_missing_assurance_names_an_attestation_that_is_too_old(
        #[case] required: &str,
        #[case] now: OffsetDateTime,
        #[case] why: &str,
    ) {
        let claims = AttestedClaims::default();
        let subject = Subject {
            machine_id: Uuid::nil(),
            status: MachineStatus::Active,
            assurance: Assurance::Asserted,
            serial_number: None,
            labels: &BTreeMap::new(),
            claimed_key_store: KeyStoreKind::SecureEnclave,
            claimed_posture: &Posture::default(),
            attestation: Some(Attestation {
                attested_at: ATTESTED_AT,
                lapses_at: LAPSES_AT,
                claims: &claims,
            }),
            certificate_expires_at: None,
            sip_attestation: None,
            boot_attestation: None,
            is_contested: false,
        };
        let conditions = from_value(json!({ "min_assurance": required })).unwrap();
        let reason = format!("min_assurance: required {required}, on record asserted{why}");
        assert_eq!(failures(&conditions, &subject, now), [reason]);
    }

    #[test]
    fn values_that_apple_never_attests_are_the_agents_claims() {
        let conditions = json!({"filevault_enabled": true, "key_store": "secure-enclave", "min_os_version": "26.1"});
        let attested = AttestedClaims {
            os_version: Some("27.0".into()),
            ..AttestedClaims::default()
        };
        let (failures, _) = attested_failures(conditions, &Posture::default(), &attested, NOW);
        assert_eq!(
            failures,
            [
                "key_store: required secure-enclave, claimed software",
                "filevault_enabled: required true, unknown",
                "min_os_version: required 26.1, unknown",
            ]
        );
    }

    #[test]
    fn the_age_of_an_attestation_counts_from_when_apple_signed_it() {
        let conditions = json!({"max_attestation_age_days": 3});
        let end = ATTESTED_AT + Duration::days(3);
        let at = |now| attested_failures(conditions.clone(), &Posture::default(), &AttestedClaims::default(), now);
        assert_eq!(at(NOW), (vec![], Some(end)));
        assert_eq!(at(end - Duration::microseconds(1)), (vec![], Some(end)));
        let reason = "max_attestation_age_days: required 3, the Apple attestation on record is of 2026-11-20T10:00:00Z";
        assert_eq!(at(end), (vec![reason.to_owned()], Some(LAPSES_AT)));
        assert_eq!(at(LAPSES_AT), (vec![reason.to_owned()], None));
    }

    fn any_conditions() -> impl Strategy<Value = Conditions> {
        let flag = || prop::option::of(any::<bool>());
        (
            (flag(), flag(), flag(), flag(), flag()),
            prop::option::of(prop::sample::select(vec!["asserted", "verified", "attested"])),
            prop::option::of(prop::sample::select(vec!["secure-enclave", "software"])),
            prop::option::of(prop::sample::select(vec!["permissive", "reduced", "full"])),
            prop::option::of(prop::sample::select(vec!["15", "26.1", "26.1.1"])),
            prop::option::of(1_u32..90),
        )
            .prop_map(
                |((sip, vault, wall, keeper, mdm), assurance, store, boot, version, age)| {
                    from_value(json!({
                        "sip_enabled": sip, "filevault_enabled": vault, "firewall_enabled": wall,
                        "gatekeeper_enabled": keeper, "mdm_enrolled": mdm, "min_assurance": assurance,
                        "key_store": store, "secure_boot": boot, "min_os_version": version,
                        "max_attestation_age_days": age,
                    }))
                    .unwrap()
                },
            )
    }

    fn any_posture() -> impl Strategy<Value = Posture> {
        let flag = || prop::option::of(any::<bool>());
        (
            (flag(), flag(), flag(), flag(), flag()),
            prop::option::of(prop::sample::select(vec!["permissive", "reduced", "full"])),
            prop::option::of(prop::sample::select(vec!["14.8", "15.0", "26.1", "26.1 beta"])),
        )
            .prop_map(|((sip, vault, wall, keeper, mdm), boot, version)| {
                from_value(json!({
                    "sip_enabled": sip, "filevault_enabled": vault, "firewall_enabled": wall,
                    "gatekeeper_enabled": keeper, "mdm_enrolled": mdm, "secure_boot": boot, "os_version": version,
                }))
                .unwrap()
            })
    }

    /// All members of `left`, and those members of `right` that `left` lacks.
    fn with_more(left: &Conditions, right: &Conditions) -> Value {
        let mut more = serde_json::to_value(right).unwrap();
        let members = serde_json::to_value(left).unwrap();
        more.as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        more
    }

    proptest! {
        #[test]
        fn another_condition_never_grants_more(
            left in any_conditions(), right in any_conditions(), posture in any_posture(), verified in any::<bool>(),
        ) {
            let assurance = if verified { Assurance::Verified } else { Assurance::Asserted };
            let few = failures_of(json!(left), assurance, KeyStoreKind::Software, &posture);
            let more = failures_of(with_more(&left, &right), assurance, KeyStoreKind::Software, &posture);
            for failure in &few {
                prop_assert!(more.contains(failure), "{failure} vanished from {more:?}");
            }
        }

        #[test]
        fn a_missing_claim_never_grants_more(conditions in any_conditions(), posture in any_posture()) {
            let store = KeyStoreKind::Software;
            let known = failures_of(json!(conditions), Assurance::Verified, store, &posture);
            let forgotten = failures_of(json!(conditions), Assurance::Verified, store, &Posture::default());
            prop_assert!(forgotten.len() >= known.len(), "{forgotten:?} against {known:?}");
        }
    }
}
