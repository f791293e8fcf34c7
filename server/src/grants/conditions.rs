//! Whether the conditions of a grant hold for a machine, and in words why not.

use std::fmt::Display;

use assay_protocol::{admin_api::grants::Conditions, machine::MachineStatus};
use serde::Serialize;
use serde_json::Value;

use super::{evaluation::Subject, os_version::OsVersion};

/// Every condition that fails, in words; empty when all hold. What is unknown fails.
pub(super) fn failures(conditions: &Conditions, subject: &Subject<'_>) -> Vec<String> {
    let posture = subject.claimed_posture;
    [
        active(subject.status),
        min_assurance(conditions, subject),
        max_attestation_age_days(conditions),
        exactly("key_store", conditions.key_store, Some(subject.claimed_key_store)),
        exactly("sip_enabled", conditions.sip_enabled, posture.sip_enabled),
        exactly(
            "filevault_enabled",
            conditions.filevault_enabled,
            posture.filevault_enabled,
        ),
        exactly(
            "firewall_enabled",
            conditions.firewall_enabled,
            posture.firewall_enabled,
        ),
        exactly(
            "gatekeeper_enabled",
            conditions.gatekeeper_enabled,
            posture.gatekeeper_enabled,
        ),
        at_least("secure_boot", conditions.secure_boot, posture.secure_boot),
        min_os_version(conditions, subject),
        exactly("mdm_enrolled", conditions.mdm_enrolled, posture.mdm_enrolled),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn active(status: MachineStatus) -> Option<String> {
    (status != MachineStatus::Active).then(|| {
        let (required, present) = (word(&MachineStatus::Active), word(&status));
        format!("status: required {required}, on record {present}")
    })
}

fn min_assurance(conditions: &Conditions, subject: &Subject<'_>) -> Option<String> {
    let required = conditions.min_assurance?;
    (subject.assurance < required).then(|| {
        let (required, present) = (word(&required), word(&subject.assurance));
        format!("min_assurance: required {required}, on record {present}")
    })
}

fn max_attestation_age_days(conditions: &Conditions) -> Option<String> {
    let days = conditions.max_attestation_age_days?;
    Some(format!(
        "max_attestation_age_days: required {days}, there is no Apple attestation on record"
    ))
}

fn min_os_version(conditions: &Conditions, subject: &Subject<'_>) -> Option<String> {
    let required = conditions.min_os_version.as_deref()?;
    let Some(claimed) = subject.claimed_posture.os_version.as_deref() else {
        return Some(unknown("min_os_version", required));
    };
    match (OsVersion::parse(required), OsVersion::parse(claimed)) {
        (Some(least), Some(present)) if present >= least => None,
        (Some(_), Some(_)) => Some(failure("min_os_version", required, claimed)),
        _ => Some(format!(
            "{}, {claimed:?} cannot be compared",
            unknown("min_os_version", required)
        )),
    }
}

fn exactly<T: PartialEq + Serialize>(condition: &str, required: Option<T>, claimed: Option<T>) -> Option<String> {
    check(condition, required, claimed, PartialEq::eq)
}

fn at_least<T: PartialOrd + Serialize>(condition: &str, required: Option<T>, claimed: Option<T>) -> Option<String> {
    check(condition, required, claimed, PartialOrd::ge)
}

fn check<T: Serialize>(
    condition: &str,
    required: Option<T>,
    claimed: Option<T>,
    holds: impl Fn(&T, &T) -> bool,
) -> Option<String> {
    let required = required?;
    match claimed {
        None => Some(unknown(condition, word(&required))),
        Some(claimed) if holds(&claimed, &required) => None,
        Some(claimed) => Some(failure(condition, word(&required), word(&claimed))),
    }
}

fn failure(condition: &str, required: impl Display, claimed: impl Display) -> String {
    format!("{condition}: required {required}, claimed {claimed}")
}

fn unknown(condition: &str, required: impl Display) -> String {
    format!("{condition}: required {required}, unknown")
}

/// A value as the API writes it, so that a reason uses the words of the condition.
fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use assay_protocol::machine::{Assurance, KeyStoreKind, Posture, SecureBoot};
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{from_value, json};
    use uuid::Uuid;

    use super::*;

    fn healthy() -> Posture {
        from_value(json!({
            "os_name": "macOS", "os_version": "26.1", "sip_enabled": true, "filevault_enabled": true,
            "firewall_enabled": true, "gatekeeper_enabled": true, "secure_boot": "full", "mdm_enrolled": true,
        }))
        .unwrap()
    }

    fn failures_of(conditions: Value, assurance: Assurance, store: KeyStoreKind, posture: &Posture) -> Vec<String> {
        let labels = BTreeMap::new();
        let subject = Subject {
            machine_id: Uuid::nil(),
            status: MachineStatus::Active,
            assurance,
            labels: &labels,
            claimed_key_store: store,
            claimed_posture: posture,
        };
        failures(&from_value(conditions).unwrap(), &subject)
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
        let failures = failures_of(conditions, Assurance::Verified, KeyStoreKind::Software, &healthy());
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
        let failures = failures_of(conditions, Assurance::Verified, KeyStoreKind::Software, &healthy());
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

    #[rstest]
    fn a_machine_that_is_not_active_gets_nothing(
        #[values(MachineStatus::Pending, MachineStatus::Quarantined, MachineStatus::Revoked)] status: MachineStatus,
    ) {
        let subject = Subject {
            machine_id: Uuid::nil(),
            status,
            assurance: Assurance::Attested,
            labels: &BTreeMap::new(),
            claimed_key_store: KeyStoreKind::SecureEnclave,
            claimed_posture: &healthy(),
        };
        let failures = failures(&Conditions::default(), &subject);
        assert_eq!(
            failures,
            [format!("status: required active, on record {}", word(&status))]
        );
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

    /// All members of `left`, and those of `right` that `left` has not.
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
        fn another_condition_never_lets_more_in(
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
        fn forgetting_what_was_claimed_never_lets_more_in(conditions in any_conditions(), posture in any_posture()) {
            let store = KeyStoreKind::Software;
            let known = failures_of(json!(conditions), Assurance::Verified, store, &posture);
            let forgotten = failures_of(json!(conditions), Assurance::Verified, store, &Posture::default());
            prop_assert!(forgotten.len() >= known.len(), "{forgotten:?} against {known:?}");
        }
    }
}
