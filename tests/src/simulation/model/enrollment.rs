//! What a new key may get, and how often a token can be used.

use std::collections::BTreeSet;

use assay_protocol::KeyThumbprint;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::evidence::Judgement;
use super::requests::Kind;
use super::{
    Certificate, Checked, Continuity, Grounds, KeyModel, KeyStatus, MachineModel, Model, Presented, Request, Status,
    require, violation,
};
use crate::simulation::replica::Answer;

/// `enrollment.pending_ttl` by default.
pub(super) const PENDING_TTL: Duration = Duration::days(7);

/// An enrollment token.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct TokenModel {
    pub(in crate::simulation) id: String,
    pub(in crate::simulation) secret: String,
    /// The serial number that it is bound to.
    pub(in crate::simulation) bound_to: Option<String>,
    pub(in crate::simulation) max_uses: usize,
    pub(in crate::simulation) is_manual: bool,
    pub(in crate::simulation) allows_reenrollment: bool,
    pub(in crate::simulation) expires_at: OffsetDateTime,
    pub(in crate::simulation) is_revoked: bool,
    pub(in crate::simulation) used_by: BTreeSet<KeyThumbprint>,
    /// The uses by keys whose requests expired. Such a key is not on record any more, and its use is not given back.
    pub(in crate::simulation) uses_lost: usize,
}

/// What a new key must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    NewMachine,
    Takeover(Uuid),
    Wait(Option<Uuid>),
    /// Its token is used up or expired, and is bound to the serial number of a record. It may wait or be refused.
    WaitOrNothing(Uuid),
    /// The record is open, and no other key waits. The token does not count.
    OpenRecord(Uuid),
    /// The record is or was open, and an administrator must decide. The token does not count.
    WaitForOpenRecord(Uuid),
    /// Refused because of its token.
    Nothing,
}

impl TokenModel {
    /// Whether it admits one more key with this serial number.
    fn admits(&self, presented: &Presented) -> bool {
        let is_for_it = self.bound_to.is_none() || self.speaks_for(presented);
        is_for_it && self.has_use_for(presented.key, presented.at)
    }

    /// Whether it is in order, and this key is one that it may still admit.
    pub(super) fn has_use_for(&self, key: KeyThumbprint, at: OffsetDateTime) -> bool {
        let has_room = self.uses() < self.max_uses || self.used_by.contains(&key);
        has_room && !self.is_revoked && at < self.expires_at
    }

    pub(super) fn uses(&self) -> usize {
        self.used_by.len() + self.uses_lost
    }

    /// Whether it alone gives the record of its serial number to this key.
    pub(super) fn replaces(&self, presented: &Presented) -> bool {
        let may_replace = self.speaks_for(presented) && self.allows_reenrollment && !self.is_manual;
        may_replace && self.admits(presented)
    }

    fn speaks_for(&self, presented: &Presented) -> bool {
        self.bound_to.is_some() && self.bound_to == presented.claims.machine.serial_number
    }
}

impl KeyModel {
    pub(super) fn new(machine: Uuid, status: KeyStatus, grounds: Grounds) -> Self {
        Self {
            machine,
            status,
            store: None,
            grounds,
            own: None,
            attested: None,
            certificates: Vec::new(),
            waits_until: None,
            is_replaced: false,
        }
    }

    pub(super) fn revoke_certificates(&mut self) {
        for certificate in &mut self.certificates {
            certificate.is_revoked = true;
        }
    }
}

impl Model {
    /// Checks the answer to the enrollment of a key that is not on record, and learns from it. Returns the request, if it
    /// waits.
    pub(in crate::simulation) fn learn_of_new_key(
        &mut self,
        presented: &Presented,
        token: Option<usize>,
        answer: &Answer,
    ) -> Checked<Option<Request>> {
        let by_opening = self.due_by_opening(presented, token);
        let token = token.filter(|_| by_opening.is_none());
        let due = by_opening.unwrap_or_else(|| self.due(presented, token));
        let rule = "a new key gets what its token and the record of its serial number allow";
        let detail = format!("due {due:?}, answered {}", answer.short());
        match (due, answer.status) {
            (Due::Nothing | Due::WaitOrNothing(_), 401) => return Ok(None),
            // 200 where an earlier call of this key was carried out, although it was dropped.
            (Due::NewMachine | Due::Takeover(_) | Due::OpenRecord(_), 200 | 201) => {}
            (Due::Wait(_) | Due::WaitOrNothing(_) | Due::WaitForOpenRecord(_), 202) => {}
            _ => return violation(rule, detail),
        }
        if let Some(token) = token {
            self.spend(token, presented)?;
        }
        match due {
            Due::NewMachine => self.new_machine(presented, token, answer, Status::Active)?,
            Due::Takeover(id) => {
                let grounds = self.grounds(presented, token);
                self.end_decided_opening(id, presented.at);
                self.takeover(id, presented, grounds, answer)?;
            }
            Due::OpenRecord(id) => self.take_open_record(id, presented, answer)?,
            Due::WaitForOpenRecord(known) => {
                self.contest(known, presented);
                return self.wait_for(known, presented, None, answer).map(Some);
            }
            Due::Wait(Some(known)) | Due::WaitOrNothing(known) => {
                return self.wait_for(known, presented, token, answer).map(Some);
            }
            Due::Wait(None) => {
                self.new_machine(presented, token, answer, Status::Pending)?;
                let machine = self.keys[&presented.key].machine;
                return Ok(Some(Request::new(answer, presented, machine, Kind::First, token)));
            }
            Due::Nothing => {}
        }
        Ok(None)
    }

    /// Checks the answer to a repeated enrollment of a key that was admitted or refused, and learns from it.
    pub(in crate::simulation) fn learn_of_repeated_enrollment(
        &mut self,
        presented: &Presented,
        token: Option<usize>,
        answer: &Answer,
    ) -> Checked {
        let judgement = self.judge(presented);
        if judgement == Judgement::Either && self.is_past_grace(presented) {
            let returns = token.is_some_and(|token| self.tokens[token].admits(presented));
            let rule = "past the grace, a token alone lets a key return";
            require(answer.is_success() == returns, rule, answer.short())?;
            if let Some(token) = token.filter(|_| returns) {
                self.spend(token, presented)?;
                self.accepted(presented, answer)?;
                self.issued(presented.key, answer);
            }
            return Ok(());
        }
        self.learn(presented, answer)?;
        if !answer.is_success() {
            return Ok(());
        }
        let before = self.keys[&presented.key].certificates.clone();
        let in_force = |certificate: &&Certificate| !certificate.is_revoked && presented.at < certificate.not_after;
        let last_is_in_force = before.last().filter(in_force).is_some();
        self.issued(presented.key, answer);
        let answered = certificate(answer).serial_number;
        let is_known = before
            .iter()
            .filter(in_force)
            .any(|before| before.serial_number == answered);
        let is_same = is_known || !last_is_in_force || !self.clocks_agree;
        let rule = "a repeated enrollment gives the certificate that is in force";
        require(is_same, rule, answer.short())?;
        let machine = self.keys[&presented.key].machine;
        self.require_assurance(machine, presented.at, answer)
    }

    /// A request that waited too long is as if it had never been.
    pub(in crate::simulation) fn forget_if_expired(&mut self, presented: &Presented) {
        self.forget_key_if_expired(presented.key, presented.at);
    }

    pub(super) fn forget_key_if_expired(&mut self, thumbprint: KeyThumbprint, at: OffsetDateTime) {
        let Some(key) = self.key(thumbprint) else {
            return;
        };
        if key.waits_until.is_some_and(|end| at >= end) && key.status == KeyStatus::Pending {
            let machine = key.machine;
            self.keys.remove(&thumbprint);
            for token in &mut self.tokens {
                token.uses_lost += usize::from(token.used_by.remove(&thumbprint));
            }
            if self.machine(machine).status == Status::Pending {
                self.machines.remove(&machine);
            }
        }
    }

    /// A certificate was issued for a key.
    pub(in crate::simulation) fn issued(&mut self, key: KeyThumbprint, answer: &Answer) {
        let certificate = certificate(answer);
        let certificates = &mut self.keys.get_mut(&key).unwrap().certificates;
        let is_known = certificates
            .iter()
            .any(|other| other.serial_number == certificate.serial_number);
        if !is_known {
            certificates.push(certificate);
        }
    }

    fn due(&self, presented: &Presented, token: Option<usize>) -> Due {
        let serial_number = presented.claims.machine.serial_number.as_deref().unwrap_or_default();
        let known = self.holder_of(serial_number);
        let Some(token) = token.map(|token| &self.tokens[token]) else {
            return Due::Wait(known);
        };
        if !token.admits(presented) {
            let asks = known.filter(|_| token.speaks_for(presented) && !token.is_revoked);
            return asks.map_or(Due::Nothing, Due::WaitOrNothing);
        }
        match known {
            None if token.is_manual => Due::Wait(None),
            None => Due::NewMachine,
            Some(known) => {
                let is_active = self.machine(known).status == Status::Active;
                match token.replaces(presented) && is_active {
                    true => Due::Takeover(known),
                    false => Due::Wait(Some(known)),
                }
            }
        }
    }

    fn spend(&mut self, token: usize, presented: &Presented) -> Checked {
        let token = &mut self.tokens[token];
        if token.admits(presented) {
            token.used_by.insert(presented.key);
        }
        let uses = token.uses();
        require(uses <= token.max_uses, "a token serves no more keys than it says", uses)
    }

    fn grounds(&self, presented: &Presented, token: Option<usize>) -> Grounds {
        let serial_number = &presented.claims.machine.serial_number;
        Grounds {
            token: token.is_some_and(|token| self.tokens[token].speaks_for(presented)),
            of_key: token.is_some_and(|token| {
                let token = &self.tokens[token];
                token.speaks_for(presented)
                    && token.uses_lost == 0
                    && token.used_by.iter().all(|key| *key == presented.key)
            }),
            inventory: serial_number
                .as_ref()
                .is_some_and(|number| self.inventory.contains(number)),
            approval: false,
        }
    }

    fn new_machine(&mut self, presented: &Presented, token: Option<usize>, answer: &Answer, status: Status) -> Checked {
        let id = machine_id(answer)?;
        let is_new = !self.machines.contains_key(&id);
        require(is_new, "a new machine has a new id", id)?;
        let is_active = status == Status::Active;
        let key_status = if is_active {
            KeyStatus::Current
        } else {
            KeyStatus::Pending
        };
        self.insert_key(presented, id, key_status, self.grounds(presented, token));
        let claimed = &presented.claims.machine;
        let machine = MachineModel {
            status,
            serial_number: claimed.serial_number.clone(),
            hardware_uuid: claimed.hardware_uuid.clone(),
            current: presented.key,
            continuity: if is_active { first(answer) } else { Continuity::open() },
            withheld: BTreeSet::new(),
            used_nonces: BTreeSet::from([presented.claims.eat_nonce.clone()]),
            attested: None,
            last: None,
            device_may_be_revoked: false,
            opening: None,
        };
        self.machines.insert(id, machine);
        self.audited(id, "machine.enroll");
        self.announced(id, "machine.enrolled");
        if is_active {
            self.issued(presented.key, answer);
            self.require_assurance(id, presented.at, answer)?;
        }
        Ok(())
    }

    pub(super) fn takeover(&mut self, id: Uuid, presented: &Presented, grounds: Grounds, answer: &Answer) -> Checked {
        require(
            machine_id(answer)? == id,
            "a serial number keeps its machine's id",
            answer.short(),
        )?;
        self.retire_keys(id, KeyStatus::Superseded);
        self.insert_key(presented, id, KeyStatus::Current, grounds);
        self.replace_key(id, presented);
        let machine = self.machine_mut(id);
        machine.used_nonces.insert(presented.claims.eat_nonce.clone());
        machine.continuity = first(answer);
        self.audited(id, "machine.re-enroll");
        self.announced(id, "machine.re-enrolled");
        self.issued(presented.key, answer);
        self.require_assurance(id, presented.at, answer)
    }

    /// A new key that a token or an approval admits brings its hardware with it.
    ///
    /// An approval uses no nonce: those of a key that waits do not count for the machine.
    pub(super) fn replace_key(&mut self, id: Uuid, presented: &Presented) {
        let claimed = presented.claims.machine.hardware_uuid.clone();
        if !self.machine(id).withheld.is_empty() {
            self.uncount(id, "machine.identity-withheld");
        }
        let machine = self.machine_mut(id);
        machine.current = presented.key;
        machine.hardware_uuid = claimed.or(machine.hardware_uuid.take());
        machine.withheld.clear();
    }

    pub(super) fn retire_keys(&mut self, machine: Uuid, status: KeyStatus) {
        for key in self.keys.values_mut().filter(|key| key.machine == machine) {
            if matches!(key.status, KeyStatus::Current | KeyStatus::Next) {
                key.status = status;
                key.revoke_certificates();
            }
        }
    }

    fn wait_for(
        &mut self,
        known: Uuid,
        presented: &Presented,
        token: Option<usize>,
        answer: &Answer,
    ) -> Checked<Request> {
        let replaces = self.machine(known).current;
        self.insert_key(presented, known, KeyStatus::Pending, self.grounds(presented, token));
        self.announced(known, "machine.re-enrollment-requested");
        Ok(Request::new(
            answer,
            presented,
            known,
            Kind::Takeover { replaces },
            token,
        ))
    }

    fn insert_key(&mut self, presented: &Presented, machine: Uuid, status: KeyStatus, grounds: Grounds) {
        let mut key = KeyModel::new(machine, status, grounds);
        key.store = Some(presented.claims.key.store);
        key.waits_until = (status == KeyStatus::Pending).then(|| presented.at + PENDING_TTL);
        self.keys.insert(presented.key, key);
    }

    pub(super) fn require_assurance(&self, machine: Uuid, at: OffsetDateTime, answer: &Answer) -> Checked {
        let expected = self.assurance(machine, at).to_string();
        let answered = answer.text("assurance").unwrap_or_default();
        let rule = "the assurance is what the key's own grounds give";
        require(answered == expected, rule, format!("{expected}, answered {answered}"))
    }
}

fn first(answer: &Answer) -> Continuity {
    Continuity::after(None, answer.text("continuity").map(str::to_owned))
}

fn machine_id(answer: &Answer) -> Checked<Uuid> {
    match answer.text("machine_id").map(str::parse) {
        Some(Ok(id)) => Ok(id),
        _ => violation("an enrolled key is told its machine's id", &answer.body),
    }
}

fn certificate(answer: &Answer) -> Certificate {
    let certificate = &answer.body["certificate"];
    let text = |member: &str| certificate[member].as_str().unwrap();
    let leaf = pem::parse_many(text("chain")).unwrap().swap_remove(0);
    Certificate {
        serial_number: text("serial_number").to_owned(),
        sha256: URL_SAFE_NO_PAD.encode(assay_protocol::sha256(leaf.contents())),
        not_after: OffsetDateTime::parse(text("not_after"), &Rfc3339).unwrap(),
        is_revoked: false,
    }
}
