//! What must hold, written apart from the server's code.
//!
//! The model sees every call and every answer. It says before each answer what it may be, and learns from it afterwards.

mod attestation;
mod continuity;
mod enrollment;
mod evidence;
mod grants;
mod identity;
mod introspection;
mod opening;
mod requests;
mod rotation;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use assay_protocol::machine::{Assurance, KeyStoreKind, Posture};
use assay_protocol::{EvidenceClaims, KeyThumbprint};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use self::opening::Opening;

pub(super) use self::continuity::Continuity;
pub(super) use self::enrollment::TokenModel;
pub(super) use self::grants::{GrantModel, Permission, claims_of, grants};
pub(super) use self::introspection::Issued;
pub(super) use self::opening::OpeningRequest;
pub(super) use self::requests::{Request, Verdict};
pub(super) use self::status::Decision;

/// `certificates.renewal_grace` by default.
const RENEWAL_GRACE: Duration = Duration::days(90);

/// A rule that was broken, with what broke it.
#[derive(Clone, Debug)]
pub(super) struct Violation {
    pub(super) rule: &'static str,
    pub(super) detail: String,
}

pub(super) type Checked<T = ()> = Result<T, Violation>;

/// The status of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    Pending,
    Active,
    Quarantined,
    Revoked,
    Deleted,
}

/// The status of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyStatus {
    Pending,
    Current,
    Next,
    Superseded,
    Revoked,
    Denied,
}

/// Why the serial number of a key is believed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Grounds {
    pub(super) token: bool,
    pub(super) inventory: bool,
    pub(super) approval: bool,
    /// Whether an approval, or the first use of a token, was for this very key.
    pub(super) of_key: bool,
}

/// What Apple attested.
#[derive(Clone, Copy, Debug)]
pub(super) struct Attested {
    pub(super) at: OffsetDateTime,
    pub(super) sip_enabled: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Certificate {
    pub(super) serial_number: String,
    pub(super) sha256: String,
    pub(super) not_after: OffsetDateTime,
    pub(super) is_revoked: bool,
}

#[derive(Clone, Debug)]
pub(super) struct KeyModel {
    pub(super) machine: Uuid,
    pub(super) status: KeyStatus,
    /// What its first evidence said.
    pub(super) store: Option<KeyStoreKind>,
    pub(super) grounds: Grounds,
    /// What a token or an approval gave to a next key, which does not inherit it.
    pub(super) own: Option<Grounds>,
    pub(super) attested: Option<Attested>,
    /// All that were issued for it, the last one at the end.
    pub(super) certificates: Vec<Certificate>,
    /// When its request expires, if it waits.
    pub(super) waits_until: Option<OffsetDateTime>,
    /// Whether a next key has checked in after it.
    pub(super) is_replaced: bool,
}

#[derive(Clone, Debug)]
pub(super) struct MachineModel {
    pub(super) status: Status,
    pub(super) serial_number: Option<String>,
    pub(super) hardware_uuid: Option<String>,
    pub(super) current: KeyThumbprint,
    pub(super) continuity: Continuity,
    /// What its last evidence left out.
    pub(super) withheld: BTreeSet<&'static str>,
    pub(super) used_nonces: BTreeSet<String>,
    /// The last attestation of any of its keys.
    pub(super) attested: Option<Attested>,
    /// The last check-in that was accepted.
    pub(super) last: Option<Presented>,
    /// Whether an administrator ended what its serial number's device may use.
    pub(super) device_may_be_revoked: bool,
    /// The last opening of its record that was not ended. Its time may be over.
    opening: Option<Opening>,
}

/// What a caller presents.
#[derive(Clone, Debug)]
pub(super) struct Presented {
    pub(super) key: KeyThumbprint,
    pub(super) claims: EvidenceClaims,
    /// By the clock of the replica.
    pub(super) at: OffsetDateTime,
    /// Whether its nonce is surely later than any that was used.
    pub(super) is_fresh: bool,
}

/// How often an audit entry or an event must be there, by the resource's id and the name.
pub(super) type Books = BTreeMap<(String, &'static str), i64>;

#[derive(Default)]
pub(super) struct Model {
    pub(super) machines: BTreeMap<Uuid, MachineModel>,
    pub(super) keys: BTreeMap<KeyThumbprint, KeyModel>,
    pub(super) tokens: Vec<TokenModel>,
    pub(super) permissions: Vec<Permission>,
    pub(super) inventory: BTreeSet<String>,
    pub(super) audit: Books,
    pub(super) events: Books,
    /// What is not counted, because a call with an unknown fate may have written it.
    pub(super) uncounted: BTreeSet<(String, &'static str)>,
    /// The superseded keys whose use must be an event.
    pub(super) superseded_uses: BTreeSet<KeyThumbprint>,
    /// Whether the clocks of the replicas are less than a minute off. Else the last of several certificates is not
    /// always the one that was issued last.
    pub(super) clocks_agree: bool,
}

impl Model {
    /// The machine with this serial number that was decided on. A revoked one only if there is no other.
    pub(super) fn holder_of(&self, serial_number: &str) -> Option<Uuid> {
        let machines = self.machines.iter();
        let of_it = machines.filter(|(_, machine)| {
            machine.serial_number.as_deref() == Some(serial_number)
                && !matches!(machine.status, Status::Pending | Status::Deleted)
        });
        let found = of_it.max_by_key(|(id, machine)| (machine.status != Status::Revoked, **id));
        found.map(|(id, _)| *id)
    }

    pub(super) fn machine(&self, id: Uuid) -> &MachineModel {
        &self.machines[&id]
    }

    pub(super) fn machine_mut(&mut self, id: Uuid) -> &mut MachineModel {
        self.machines.get_mut(&id).unwrap()
    }

    pub(super) fn key(&self, key: KeyThumbprint) -> Option<&KeyModel> {
        self.keys.get(&key)
    }

    pub(super) fn current_key(&self, machine: Uuid) -> &KeyModel {
        &self.keys[&self.machine(machine).current]
    }

    /// The assurance that the current key's own grounds give at this time.
    pub(super) fn assurance(&self, machine: Uuid, at: OffsetDateTime) -> Assurance {
        let key = self.current_key(machine);
        match key.attested.filter(|attested| attested.is_fresh(at)) {
            Some(_) => Assurance::Attested,
            None => key.grounds.assurance(),
        }
    }

    fn uncount(&mut self, machine: Uuid, name: &'static str) {
        self.uncounted.insert((machine.to_string(), name));
    }

    fn audited(&mut self, machine: Uuid, action: &'static str) {
        *self.audit.entry((machine.to_string(), action)).or_default() += 1;
    }

    fn announced(&mut self, machine: Uuid, kind: &'static str) {
        *self.events.entry((machine.to_string(), kind)).or_default() += 1;
    }
}

impl KeyModel {
    /// The last certificate.
    pub(super) fn certificate(&self) -> Option<&Certificate> {
        self.certificates.last()
    }
}

impl Attested {
    /// Whether it is younger than `apple.attestation_max_age` by default.
    pub(super) fn is_fresh(self, at: OffsetDateTime) -> bool {
        at < self.at + Duration::days(90)
    }
}

impl Grounds {
    /// What a key in software hands on to the next one.
    pub(super) fn inherited(self) -> Self {
        Self { of_key: false, ..self }
    }

    pub(super) fn assurance(self) -> Assurance {
        match self.token || self.inventory || self.approval {
            true => Assurance::Verified,
            false => Assurance::Asserted,
        }
    }
}

impl Presented {
    pub(super) fn posture(&self) -> &Posture {
        &self.claims.posture
    }
}

pub(super) fn violation<T>(rule: &'static str, detail: impl fmt::Display) -> Checked<T> {
    Err(Violation {
        rule,
        detail: detail.to_string(),
    })
}

/// Fails with this rule unless the condition holds.
pub(super) fn require(holds: bool, rule: &'static str, detail: impl fmt::Display) -> Checked {
    if holds { Ok(()) } else { violation(rule, detail) }
}
