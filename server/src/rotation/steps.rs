//! Which step is due: a function of the stored keys, the policy and the time.

use std::collections::BTreeMap;

use assay_authority::validity;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::RotationPolicy;
use crate::store::{
    cross_certificates::CrossCertificate,
    sealed_keys::{KeyPurpose, KeyState, SealedKey},
};

/// The shortest time that a superseded issuing CA is kept, because a replica that has not noticed may still issue with
/// it. Also how long a CA's list contains an expired certificate (RFC 5280, section 3.3).
pub(super) const RETENTION: Duration = Duration::DAY;
/// The same for a grant key, after its last token has expired. A replica without a database connection grants nothing,
/// so minutes are enough.
pub(super) const GRANT_KEY_RETENTION: Duration = Duration::minutes(5);

/// The keys that are not retired, with the last expiry of what they issued.
#[derive(Debug, Clone, Default)]
pub(super) struct Keys {
    pub(super) keys: Vec<SealedKey>,
    /// By issuing CA: the last expiry of the certificates that it issued.
    pub(super) last_expiries: BTreeMap<Uuid, OffsetDateTime>,
    pub(super) cross_certificates: Vec<CrossCertificate>,
    /// The subject key identifiers of all withdrawn issuing CAs, retired ones included.
    pub(super) withdrawn: Vec<Vec<u8>>,
}

/// A due change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Create the next key of this purpose.
    Prepare(KeyPurpose),
    /// Make this next key the current one.
    Activate(Uuid),
    /// Retire this previous key.
    Retire(Uuid),
    /// Remove this expired cross-certificate.
    RemoveCrossCertificate(Uuid),
}

impl Keys {
    pub(super) fn find(&self, purpose: KeyPurpose, state: KeyState) -> Option<&SealedKey> {
        let mut keys = self.keys.iter();
        keys.find(|key| key.purpose == purpose && key.state == state)
    }

    pub(super) fn get(&self, id: Uuid) -> Option<&SealedKey> {
        self.keys.iter().find(|key| key.id == id)
    }

    /// The root of an issuing CA.
    pub(super) fn root_of(&self, ca: &SealedKey) -> Option<&SealedKey> {
        self.get(ca.root_id?)
    }

    /// The first due step.
    pub(super) fn next_step(&self, policy: &RotationPolicy, now: OffsetDateTime) -> Option<Step> {
        let rotated = [KeyPurpose::IssuingCa, KeyPurpose::GrantSigning].into_iter();
        let forward = rotated.filter_map(|purpose| {
            let current = self.find(purpose, KeyState::Current)?;
            match self.find(purpose, KeyState::Next) {
                Some(next) => is_over(next.signs_from, now).then_some(Step::Activate(next.id)),
                None => (is_over(self.replaced_at(current, policy), now) && self.is_ours_to_replace(current))
                    .then_some(Step::Prepare(purpose)),
            }
        });
        let previous = self.keys.iter().filter(|key| key.state == KeyState::Previous);
        let retired = previous.filter(|key| is_over(self.retires_at(key), now));
        let expired = self.cross_certificates.iter().filter(|cross| cross.not_after <= now);
        forward
            .chain(retired.map(|key| Step::Retire(key.id)))
            .chain(expired.map(|cross| Step::RemoveCrossCertificate(cross.id)))
            .next()
    }

    /// When a previous key can be retired. `None` for a root that a CA needs, and for a key that is not previous.
    pub(super) fn retires_at(&self, key: &SealedKey) -> Option<OffsetDateTime> {
        let earliest = key.retires_at.filter(|_| key.state == KeyState::Previous)?;
        match key.purpose {
            KeyPurpose::RootCa => self
                .keys
                .iter()
                .all(|other| other.root_id != Some(key.id))
                .then_some(earliest),
            KeyPurpose::IssuingCa => {
                let last = self.last_expiries.get(&key.id).map(|end| *end + RETENTION);
                Some(last.map_or(earliest, |last| last.max(earliest)))
            }
            KeyPurpose::GrantSigning | KeyPurpose::Nonce => Some(earliest),
        }
    }

    /// Whether the issuing CA should be replaced, but an external root must sign the next one.
    pub(super) fn waits_for_external_root(&self, policy: &RotationPolicy, now: OffsetDateTime) -> bool {
        let current = self.find(KeyPurpose::IssuingCa, KeyState::Current);
        let is_replaced = self.find(KeyPurpose::IssuingCa, KeyState::Next).is_some();
        current.is_some_and(|current| {
            !is_replaced && !self.is_ours_to_replace(current) && is_over(self.replaced_at(current, policy), now)
        })
    }

    /// When the next CA must start to sign. Nothing that a CA signs outlives it, so a later start would shorten
    /// certificates.
    fn replaced_at(&self, current: &SealedKey, policy: &RotationPolicy) -> Option<OffsetDateTime> {
        if current.purpose == KeyPurpose::GrantSigning {
            let signs_for = policy.rotate_grant_key_after - policy.grant_key_overlap;
            return Some(current.signs_from? + signs_for.max(Duration::ZERO));
        }
        let (from, end) = validity(current.certificate.as_deref()?).ok()?;
        let two_thirds: OffsetDateTime = from + (end - from) * 2 / 3;
        Some(two_thirds.min(end - policy.certificate_ttl - policy.overlap(true)))
    }

    fn is_ours_to_replace(&self, current: &SealedKey) -> bool {
        current.purpose != KeyPurpose::IssuingCa || self.root_of(current).is_some_and(|root| root.sealed.is_some())
    }
}

fn is_over(time: Option<OffsetDateTime>, now: OffsetDateTime) -> bool {
    time.is_some_and(|time| time <= now)
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use assay_authority::{
        Installation,
        issuing::{generate_issuing, generate_root},
    };

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
    const ROOT: Uuid = Uuid::from_u128(1);
    const ISSUING: Uuid = Uuid::from_u128(2);
    const GRANTS: Uuid = Uuid::from_u128(3);
    const NEXT: Uuid = Uuid::from_u128(4);

    fn installation() -> Installation {
        Installation {
            trust_domain: "example.com".to_owned(),
            public_url: "https://assay.example.com".parse().unwrap(),
            revocation_url: "http://assay.example.com:8080".parse().unwrap(),
        }
    }

    fn policy() -> RotationPolicy {
        RotationPolicy {
            installation: installation(),
            certificate_ttl: Duration::days(7),
            ca_overlap: Duration::DAY,
            root_overlap: Duration::days(30),
            grants_ttl: Duration::minutes(10),
            grant_key_overlap: Duration::HOUR,
            rotate_grant_key_after: Duration::days(90),
        }
    }

    fn key(id: Uuid, purpose: KeyPurpose, certificate: Option<Vec<u8>>) -> SealedKey {
        SealedKey {
            id,
            purpose,
            state: KeyState::Current,
            sealed: Some(Vec::new()),
            certificate,
            root_id: (purpose == KeyPurpose::IssuingCa).then_some(ROOT),
            intermediates: Vec::new(),
            signs_from: Some(NOW),
            retires_at: None,
            retired_at: None,
            withdrawn_at: None,
        }
    }

    /// The keys of a first start at [`NOW`].
    fn bootstrapped() -> Keys {
        let root = generate_root("example.com", NOW).unwrap();
        let issuing = generate_issuing(&root, &installation(), NOW).unwrap();
        Keys {
            keys: vec![
                key(ROOT, KeyPurpose::RootCa, Some(root.certificate)),
                key(ISSUING, KeyPurpose::IssuingCa, Some(issuing.certificate)),
                key(GRANTS, KeyPurpose::GrantSigning, None),
            ],
            ..Keys::default()
        }
    }

    impl Keys {
        fn change(&mut self, id: Uuid) -> &mut SealedKey {
            self.keys.iter_mut().find(|key| key.id == id).unwrap()
        }

        /// Adds a superseded key of this purpose next to the current one.
        fn supersede(&mut self, id: Uuid, retires_at: OffsetDateTime) {
            let mut next = self.get(id).unwrap().clone();
            next.id = NEXT;
            self.keys.push(next);
            let previous = self.change(id);
            (previous.state, previous.retires_at) = (KeyState::Previous, Some(retires_at));
        }

        fn after(&self, time: Duration) -> Option<Step> {
            self.next_step(&policy(), NOW + time)
        }
    }

    #[test]
    fn new_keys_need_no_step_and_each_kind_is_replaced_when_due() {
        let keys = bootstrapped();
        assert_eq!(keys.after(Duration::ZERO), None);
        let grant_key = Duration::days(90) - Duration::HOUR;
        assert_eq!(keys.after(grant_key - Duration::SECOND), None);
        assert_eq!(keys.after(grant_key), Some(Step::Prepare(KeyPurpose::GrantSigning)));
        // Validity starts a day earlier, so two thirds of it pass a third of a day sooner.
        let issuing = Duration::days(730) - Duration::days(731) / 3;
        let issuing_alone = |time| {
            let mut keys = keys.clone();
            keys.keys.retain(|key| key.purpose != KeyPurpose::GrantSigning);
            keys.after(time)
        };
        assert_eq!(issuing_alone(issuing - Duration::SECOND), None);
        assert_eq!(issuing_alone(issuing), Some(Step::Prepare(KeyPurpose::IssuingCa)));
    }

    #[test]
    fn the_next_ca_starts_before_the_current_one_would_shorten_certificates() {
        let policy = RotationPolicy {
            certificate_ttl: Duration::days(366),
            root_overlap: Duration::days(180),
            rotate_grant_key_after: Duration::days(3660),
            ..policy()
        };
        let due = NOW + Duration::days(730 - 366 - 180);
        let keys = bootstrapped();
        assert_eq!(keys.next_step(&policy, due - Duration::SECOND), None);
        assert_eq!(keys.next_step(&policy, due), Some(Step::Prepare(KeyPurpose::IssuingCa)));
    }

    #[test]
    fn under_an_external_root_the_operator_is_reminded_and_no_ca_is_created() {
        let mut keys = bootstrapped();
        keys.keys.retain(|key| key.purpose != KeyPurpose::GrantSigning);
        keys.change(ROOT).sealed = None;
        let (early, late) = (NOW + Duration::days(300), NOW + Duration::days(700));
        assert_eq!(keys.next_step(&policy(), late), None);
        assert!(keys.waits_for_external_root(&policy(), late) && !keys.waits_for_external_root(&policy(), early));
        let mut next = keys.get(ISSUING).unwrap().clone();
        (next.id, next.state) = (NEXT, KeyState::Next);
        keys.keys.push(next);
        assert!(
            !keys.waits_for_external_root(&policy(), late),
            "it has signed the next one"
        );
    }

    #[test]
    fn a_next_key_signs_from_its_start_and_no_other_is_created_before() {
        for id in [ISSUING, GRANTS] {
            let mut keys = bootstrapped();
            let mut next = keys.get(id).unwrap().clone();
            (next.id, next.state) = (NEXT, KeyState::Next);
            next.signs_from = Some(NOW + Duration::DAY);
            keys.keys.push(next);
            assert_eq!(keys.after(Duration::DAY - Duration::SECOND), None);
            assert_eq!(keys.after(Duration::DAY), Some(Step::Activate(NEXT)));
            assert_eq!(keys.after(Duration::days(80)), Some(Step::Activate(NEXT)));
        }
    }

    #[test]
    fn a_previous_ca_retires_a_day_after_its_last_certificate_and_then_its_root() {
        let mut keys = bootstrapped();
        keys.supersede(ISSUING, NOW + Duration::DAY);
        assert_eq!(
            keys.after(Duration::DAY),
            Some(Step::Retire(ISSUING)),
            "it issued nothing"
        );
        keys.last_expiries.insert(ISSUING, NOW + Duration::days(7));
        assert_eq!(keys.after(Duration::days(8) - Duration::SECOND), None);
        assert_eq!(keys.after(Duration::days(8)), Some(Step::Retire(ISSUING)));
        assert_eq!(keys.retires_at(keys.get(NEXT).unwrap()), None);

        let root = keys.change(ROOT);
        (root.state, root.retires_at) = (KeyState::Previous, Some(NOW));
        keys.change(NEXT).root_id = Some(NEXT);
        assert_eq!(keys.after(Duration::DAY), None, "the previous CA is under it");
        keys.keys.retain(|key| key.id != ISSUING);
        assert_eq!(keys.after(Duration::DAY), Some(Step::Retire(ROOT)));
    }

    #[test]
    fn a_cross_certificate_is_removed_when_it_has_expired() {
        let mut keys = bootstrapped();
        let end = NOW + Duration::days(30);
        keys.cross_certificates.push(CrossCertificate {
            id: NEXT,
            issuer_id: Uuid::from_u128(9),
            root_id: ROOT,
            certificate: Vec::new(),
            not_after: end,
        });
        assert_eq!(keys.after(Duration::days(30) - Duration::SECOND), None);
        assert_eq!(keys.after(Duration::days(30)), Some(Step::RemoveCrossCertificate(NEXT)));
    }

    #[test]
    fn a_previous_grant_key_retires_when_its_tokens_have_expired() {
        let mut keys = bootstrapped();
        keys.supersede(GRANTS, NOW + Duration::minutes(15));
        assert_eq!(keys.after(Duration::minutes(15) - Duration::SECOND), None);
        assert_eq!(keys.after(Duration::minutes(15)), Some(Step::Retire(GRANTS)));
    }
}
