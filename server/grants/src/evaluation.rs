//! Evaluates all grants for one machine at one time.

use std::collections::BTreeMap;

use assay_protocol::{
    admin_api::grants::{Conditions, GrantEvaluation, Selector},
    agent_api::Denial,
    attestation::AttestedClaims,
    machine::{Assurance, KeyStoreKind, MachineStatus, Posture},
};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    catalog::{Catalog, CatalogGrant},
    conditions,
    token_template::TokenContents,
};

/// The properties of a machine that grants depend on.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The machine.
    pub machine_id: Uuid,
    /// Only `active` machines are granted anything.
    pub status: MachineStatus,
    /// Its assurance level.
    pub assurance: Assurance,
    /// Its serial number on record.
    pub serial_number: Option<&'a str>,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
    /// The key store that the agent claims.
    pub claimed_key_store: KeyStoreKind,
    /// The posture that the agent claims.
    pub claimed_posture: &'a Posture,
    /// The Apple attestation of the current key.
    pub attestation: Option<Attestation<'a>>,
    /// Whether two keys claim its record since that was opened. Nothing is granted until an administrator approves one.
    pub is_contested: bool,
    /// When its certificate expires; `None` if it has none.
    pub certificate_expires_at: Option<OffsetDateTime>,
    /// The newest attestation that states SIP, for whichever of the machine's keys. Only what it says against the machine
    /// counts. Otherwise a machine could drop "SIP off" by replacing its key, or by an attestation that does not state it.
    pub sip_attestation: Option<Attestation<'a>>,
    /// The same for the boot policy.
    pub boot_attestation: Option<Attestation<'a>>,
}

/// The Apple attestation on record. It may be too old.
#[derive(Debug, Clone, Copy)]
pub struct Attestation<'a> {
    /// When Apple signed it.
    pub attested_at: OffsetDateTime,
    /// From this time on it is too old to count.
    pub lapses_at: OffsetDateTime,
    /// What Apple signed.
    pub claims: &'a AttestedClaims,
}

/// The result of all grants that select one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Evaluation {
    /// The granted permissions, sorted by audience and then by name, each once.
    pub granted: Vec<Granted>,
    /// The permissions of grants that select the machine of which none holds, sorted, with every failing condition
    /// once.
    pub denied: Vec<Denial>,
    /// The result of each grant that selects the machine, sorted by audience, permission and id.
    pub evaluations: Vec<GrantEvaluation>,
    /// The earliest time at which the result can change without a change of its input; `None` for never.
    pub valid_until: Option<OffsetDateTime>,
}

/// What is granted for one audience.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Granted {
    /// The relying party.
    pub audience: String,
    /// The permissions at that relying party, sorted, each once.
    pub permissions: Vec<String>,
    /// What its token contains besides the usual claims; `None` for the usual tokens.
    pub token: Option<TokenContents>,
}

/// Evaluates every grant for one machine. Expired grants are ignored.
pub fn evaluate(catalog: &Catalog, subject: &Subject<'_>, now: OffsetDateTime) -> Evaluation {
    // Check-in responses and tokens contain the assurance level, so the attestation's age counts even without any
    // grant.
    let mut valid_until = conditions::unchanged_until(&Conditions::default(), subject, now);
    let mut evaluations = Vec::new();
    for grant in catalog.candidates(subject.machine_id, subject.labels) {
        if grant.expires_at.is_some_and(|end| end <= now) {
            continue;
        }
        let Some(matched) = matched_members(&grant.selector, subject) else {
            continue;
        };
        let unchanged_until = conditions::unchanged_until(&grant.conditions, subject, now);
        valid_until = [valid_until, grant.expires_at, unchanged_until]
            .into_iter()
            .flatten()
            .min();
        evaluations.push(evaluated(grant, matched, subject, now));
    }
    evaluations.sort_by(|left, right| order(left).cmp(&order(right)));
    let granted = granted(catalog, subject, &mut evaluations);
    Evaluation {
        granted,
        denied: denied(&evaluations),
        evaluations,
        valid_until,
    }
}

fn evaluated(
    grant: &CatalogGrant,
    matched: Vec<String>,
    subject: &Subject<'_>,
    now: OffsetDateTime,
) -> GrantEvaluation {
    let reasons = conditions::failures(&grant.conditions, subject, now);
    GrantEvaluation {
        grant_id: grant.id,
        audience: grant.audience.clone(),
        permission: grant.permission.clone(),
        matched,
        granted: reasons.is_empty(),
        reasons,
    }
}

/// The members of the selector in words, if all of them match. A selector without members matches no machine.
fn matched_members(selector: &Selector, subject: &Subject<'_>) -> Option<Vec<String>> {
    let mut matched = Vec::new();
    if let Some(ids) = &selector.machine_ids {
        ids.contains(&subject.machine_id).then_some(())?;
        matched.push(format!("machine_ids: {}", subject.machine_id));
    }
    for (key, value) in selector.labels.iter().flatten() {
        (subject.labels.get(key) == Some(value)).then_some(())?;
        matched.push(format!("labels: {key}={value}"));
    }
    if let Some(all) = selector.all {
        all.then_some(())?;
        matched.push("all".to_owned());
    }
    (!matched.is_empty()).then_some(matched)
}

fn order(evaluation: &GrantEvaluation) -> (&str, &str, Uuid) {
    (&evaluation.audience, &evaluation.permission, evaluation.grant_id)
}

/// An audience whose token lacks something grants nothing: a token without a claim could mean more than one with it.
fn granted(catalog: &Catalog, subject: &Subject<'_>, evaluations: &mut [GrantEvaluation]) -> Vec<Granted> {
    let mut all = Vec::new();
    for of_audience in evaluations.chunk_by_mut(|left, right| left.audience == right.audience) {
        let held = of_audience.iter().filter(|grant| grant.granted);
        let mut permissions: Vec<String> = held.map(|grant| grant.permission.clone()).collect();
        permissions.dedup();
        let Some(audience) = of_audience.first().map(|grant| grant.audience.clone()) else {
            continue;
        };
        if permissions.is_empty() {
            continue;
        }
        let token = catalog.token(&audience).map(|token| match token {
            Ok(template) => template.fill_in(subject, &permissions),
            // It may be of another version. Other audiences must not fail with it.
            Err(error) => Err(vec![format!(
                "token: this server does not accept the form of the audience's tokens: {error}"
            )]),
        });
        match token.transpose() {
            Ok(token) => all.push(Granted {
                audience,
                permissions,
                token,
            }),
            Err(reasons) => deny(of_audience, &reasons),
        }
    }
    all
}

fn deny(evaluations: &mut [GrantEvaluation], reasons: &[String]) {
    for grant in evaluations.iter_mut().filter(|grant| grant.granted) {
        grant.granted = false;
        grant.reasons = reasons.to_vec();
    }
}

/// A permission is denied only if none of its grants holds.
fn denied(evaluations: &[GrantEvaluation]) -> Vec<Denial> {
    let mut permissions: BTreeMap<(&str, &str), Option<Vec<&str>>> = BTreeMap::new();
    for grant in evaluations {
        let reasons = permissions
            .entry((&grant.audience, &grant.permission))
            .or_insert_with(|| Some(Vec::new()));
        if grant.granted {
            *reasons = None;
        }
        if let Some(reasons) = reasons {
            for reason in &grant.reasons {
                if !reasons.contains(&reason.as_str()) {
                    reasons.push(reason);
                }
            }
        }
    }
    permissions
        .into_iter()
        .filter_map(|((audience, permission), reasons)| {
            Some(Denial {
                audience: audience.to_owned(),
                permission: permission.to_owned(),
                reasons: reasons?.into_iter().map(str::to_owned).collect(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{Value, from_value, json};
    use time::{Duration, macros::datetime};

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
    const MACHINE: Uuid = Uuid::from_u128(7);

    fn grant(number: u128, permission: &str, selector: Value, conditions: Value) -> CatalogGrant {
        CatalogGrant {
            id: Uuid::from_u128(number),
            audience: "build".into(),
            permission: permission.into(),
            selector: from_value(selector).unwrap(),
            conditions: from_value(conditions).unwrap(),
            expires_at: None,
        }
    }

    fn evaluate_at(now: OffsetDateTime, grants: Vec<CatalogGrant>) -> Evaluation {
        let labels = from_value(json!({"team": "build", "site": "berlin"})).unwrap();
        let posture = Posture {
            filevault_enabled: Some(false),
            sip_enabled: Some(true),
            ..Posture::default()
        };
        let subject = Subject {
            machine_id: MACHINE,
            status: MachineStatus::Active,
            assurance: Assurance::Verified,
            serial_number: None,
            labels: &labels,
            claimed_key_store: KeyStoreKind::SecureEnclave,
            claimed_posture: &posture,
            attestation: None,
            is_contested: false,
            certificate_expires_at: None,
            sip_attestation: None,
            boot_attestation: None,
        };
        evaluate(&Catalog::new(1, grants), &subject, now)
    }

    fn denial(permission: &str, reasons: &[&str]) -> Denial {
        Denial {
            audience: "build".into(),
            permission: permission.into(),
            reasons: reasons.iter().map(|&reason| reason.to_owned()).collect(),
        }
    }

    #[test]
    fn granted_permissions_are_sorted_by_audience_and_listed_once() {
        let mut elsewhere = grant(4, "read", json!({"all": true}), json!({}));
        elsewhere.audience = "archive".into();
        let evaluation = evaluate_at(
            NOW,
            vec![
                grant(1, "write", json!({"all": true}), json!({})),
                grant(2, "read", json!({"labels": {"team": "build"}}), json!({})),
                grant(
                    3,
                    "read",
                    json!({"machine_ids": [MACHINE]}),
                    json!({"filevault_enabled": true}),
                ),
                elsewhere,
            ],
        );
        let expected = [("archive", vec!["read"]), ("build", vec!["read", "write"])];
        let granted: Vec<_> = evaluation
            .granted
            .iter()
            .map(|audience| {
                (
                    audience.audience.as_str(),
                    audience.permissions.iter().map(String::as_str).collect(),
                )
            })
            .collect();
        assert_eq!(granted, expected);
        assert_eq!(evaluation.denied, []);
        assert_eq!(evaluation.evaluations.len(), 4);
    }

    #[test]
    fn a_permission_is_denied_with_every_reason_of_every_grant_once() {
        let evaluation = evaluate_at(
            NOW,
            vec![
                grant(
                    1,
                    "deploy",
                    json!({"all": true}),
                    json!({"filevault_enabled": true, "mdm_enrolled": true}),
                ),
                grant(
                    2,
                    "deploy",
                    json!({"all": true}),
                    json!({"filevault_enabled": true, "min_assurance": "attested"}),
                ),
                grant(
                    3,
                    "not-for-us",
                    json!({"labels": {"team": "sales"}}),
                    json!({"mdm_enrolled": true}),
                ),
            ],
        );
        assert_eq!(evaluation.granted, []);
        let reasons = [
            "filevault_enabled: required true, claimed false",
            "mdm_enrolled: required true, unknown",
            "min_assurance: required attested, on record verified",
        ];
        assert_eq!(evaluation.denied, [denial("deploy", &reasons)]);
        assert_eq!(evaluation.evaluations[0].reasons, reasons[..2]);
        assert_eq!(evaluation.evaluations[0].matched, ["all"]);
    }

    #[rstest]
    #[case(json!({"all": true}), true)]
    #[case(json!({"machine_ids": [MACHINE]}), true)]
    #[case(json!({"labels": {"team": "build", "site": "berlin"}}), true)]
    #[case(json!({"all": true, "machine_ids": [MACHINE], "labels": {"team": "build"}}), true)]
    #[case(json!({}), false)]
    #[case(json!({"all": false}), false)]
    #[case(json!({"machine_ids": []}), false)]
    #[case(json!({"labels": {}}), false)]
    #[case(json!({"machine_ids": [Uuid::nil()]}), false)]
    #[case(json!({"labels": {"team": "Build"}}), false)]
    #[case(json!({"labels": {"team": "build", "site": "rome"}}), false)]
    #[case(json!({"all": true, "labels": {"team": "sales"}}), false)]
    #[case(json!({"all": true, "machine_ids": [Uuid::nil()]}), false)]
    #[case(json!({"machine_ids": [MACHINE], "labels": {"team": "sales"}}), false)]
    fn every_member_of_a_selector_must_match(#[case] selector: Value, #[case] matches: bool) {
        let evaluation = evaluate_at(NOW, vec![grant(1, "read", selector, json!({}))]);
        assert_eq!(evaluation.granted.len(), usize::from(matches));
        assert_eq!(evaluation.denied, []);
    }

    #[test]
    fn an_expired_grant_is_neither_granted_nor_denied() {
        let ends = |number, permission, conditions, seconds| CatalogGrant {
            expires_at: Some(NOW + Duration::seconds(seconds)),
            ..grant(number, permission, json!({"all": true}), conditions)
        };
        let grants = || {
            vec![
                ends(1, "deploy", json!({}), 60),
                ends(2, "sign", json!({"filevault_enabled": true}), 30),
                ends(3, "other", json!({}), 90),
            ]
        };
        let before = evaluate_at(NOW, grants());
        assert_eq!(before.valid_until, Some(NOW + Duration::seconds(30)));
        assert_eq!((before.granted[0].permissions.len(), before.denied.len()), (2, 1));
        let after = evaluate_at(NOW + Duration::seconds(30), grants());
        assert_eq!(after.valid_until, Some(NOW + Duration::seconds(60)));
        assert_eq!((after.granted[0].permissions.len(), after.denied.len()), (2, 0));
        let last = evaluate_at(NOW + Duration::seconds(90), grants());
        assert_eq!(last, Evaluation::default());
    }

    fn any_selector() -> impl Strategy<Value = Value> {
        let ids = prop::option::of(prop::collection::vec(0_u128..10, 1..3));
        let labels = prop::option::of(prop::collection::btree_map(
            prop::sample::select(vec!["team", "site"]),
            prop::sample::select(vec!["build", "berlin", "sales"]),
            1..3,
        ));
        (ids, labels, prop::option::of(Just(true))).prop_map(|(ids, labels, all)| {
            let ids = ids.map(|ids| ids.into_iter().map(Uuid::from_u128).collect::<Vec<_>>());
            json!({"machine_ids": ids, "labels": labels, "all": all})
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_exactly_the_grants_that_a_full_scan_finds(
            selectors in prop::collection::vec(any_selector(), 0..12),
        ) {
            let grants: Vec<_> = selectors
                .into_iter()
                .enumerate()
                .map(|(number, selector)| grant(number as u128, &format!("p{number}"), selector, json!({})))
                .collect();
            let labels: BTreeMap<String, String> = from_value(json!({"team": "build", "site": "berlin"})).unwrap();
            let subject = Subject {
                machine_id: MACHINE,
                status: MachineStatus::Active,
                assurance: Assurance::Asserted,
                serial_number: None,
                labels: &labels,
                claimed_key_store: KeyStoreKind::Software,
                claimed_posture: &Posture::default(),
                attestation: None,
                is_contested: false,
            certificate_expires_at: None,
                sip_attestation: None,
                boot_attestation: None,
            };
            let walked: BTreeSet<Uuid> = grants
                .iter()
                .filter(|grant| matched_members(&grant.selector, &subject).is_some())
                .map(|grant| grant.id)
                .collect();
            let evaluation = evaluate(&Catalog::new(1, grants), &subject, NOW);
            let found: Vec<Uuid> = evaluation.evaluations.iter().map(|grant| grant.grant_id).collect();
            prop_assert_eq!(found.len(), walked.len());
            prop_assert_eq!(found.into_iter().collect::<BTreeSet<_>>(), walked);
        }

        #[test]
        fn another_member_of_a_selector_never_grants_more(left in any_selector(), right in any_selector()) {
            let mut both = right;
            for (member, value) in left.as_object().unwrap() {
                if !value.is_null() {
                    both[member] = value.clone();
                }
            }
            let wide = evaluate_at(NOW, vec![grant(1, "read", left.clone(), json!({}))]);
            let narrow = evaluate_at(NOW, vec![grant(1, "read", both, json!({}))]);
            let empty = left.as_object().unwrap().values().all(Value::is_null);
            prop_assert!(empty || narrow.granted.len() <= wide.granted.len());
        }
    }
}
