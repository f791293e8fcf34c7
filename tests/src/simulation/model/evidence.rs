//! Whether evidence of a key may be accepted.

use assay_protocol::Purpose;
use assay_protocol::machine::KeyStoreKind;

use super::{Checked, Continuity, KeyStatus, Model, Presented, RENEWAL_GRACE, Status, require, violation};
use crate::simulation::replica::Answer;

/// What the answer to evidence may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Judgement {
    /// It must be accepted.
    Accept,
    /// What is known does not decide it.
    Either,
    /// It must be refused, by this rule.
    Refuse(&'static str),
    /// It must be refused, and the machine is quarantined.
    Quarantine(&'static str),
}

impl Model {
    /// Judges evidence of a key on record, for a check-in, a renewal or a repeated enrollment.
    pub(in crate::simulation) fn judge(&self, presented: &Presented) -> Judgement {
        let Some(key) = self.key(presented.key) else {
            return Judgement::Refuse("a key that is not on record is refused");
        };
        match key.status {
            KeyStatus::Current | KeyStatus::Next => {}
            KeyStatus::Pending => return Judgement::Refuse("a key that waits is refused"),
            KeyStatus::Superseded => return Judgement::Refuse("a superseded key is refused"),
            KeyStatus::Revoked => return Judgement::Refuse("a revoked key is refused"),
            KeyStatus::Denied => return Judgement::Refuse("a denied key is refused"),
        }
        let machine = self.machine(key.machine);
        if machine.status != Status::Active {
            return Judgement::Refuse("a machine that is not active is refused");
        }
        if presented.claims.purpose != Purpose::Enroll && presented.claims.sub != Some(key.machine) {
            return Judgement::Refuse("evidence about another machine is refused");
        }
        if machine.used_nonces.contains(&presented.claims.eat_nonce) {
            return Judgement::Refuse("a nonce serves a machine once");
        }
        if self.contradicts(presented) {
            return Judgement::Quarantine("evidence that contradicts the record is refused");
        }
        let is_software = key.store.unwrap_or(presented.claims.key.store) == KeyStoreKind::Software;
        let carried = &presented.claims.continuity;
        if is_software && !machine.continuity.may_carry(carried) {
            return Judgement::Quarantine("a software key must go on from its last answer");
        }
        if self.is_past_grace(presented) {
            let is_revoked = key.certificate().is_some_and(|certificate| certificate.is_revoked);
            return match presented.claims.purpose {
                Purpose::Enroll => Judgement::Either,
                // The record of a machine whose certificate was revoked has none, so its end is unknown.
                Purpose::CheckIn if is_revoked => Judgement::Either,
                _ => Judgement::Refuse("a certificate past its grace admits no evidence"),
            };
        }
        match is_software && !machine.continuity.surely_may_carry(carried) {
            true => Judgement::Either,
            false => Judgement::Accept,
        }
    }

    /// Checks an answer to evidence of a key on record against the judgement, and learns what both have in common.
    pub(in crate::simulation) fn learn(&mut self, presented: &Presented, answer: &Answer) -> Checked {
        let judgement = self.judge(presented);
        self.require_secrecy(presented, answer)?;
        match (judgement, answer.is_success()) {
            (Judgement::Accept | Judgement::Either, true) => self.accepted(presented, answer),
            (Judgement::Either | Judgement::Refuse(_), false) if answer.problem() == "identity-mismatch" => {
                let machine = self.machine(self.keys[&presented.key].machine);
                let is_sure = machine.continuity.surely_may_carry(&presented.claims.continuity);
                require(!is_sure, "evidence that goes on is no mismatch", answer.short())?;
                self.mismatched(presented);
                Ok(())
            }
            (Judgement::Refuse(_) | Judgement::Either, false) => Ok(()),
            (Judgement::Quarantine(rule), false) => {
                let answered = answer.problem();
                require(answered == "identity-mismatch", rule, answer.short())?;
                self.mismatched(presented);
                Ok(())
            }
            (Judgement::Accept, false) => violation("honest evidence is accepted", answer.short()),
            (Judgement::Refuse(rule) | Judgement::Quarantine(rule), true) => violation(rule, answer.short()),
        }
    }

    /// Learns from evidence whose answer is unknown, and that may not have arrived.
    pub(in crate::simulation) fn learn_of_unknown(&mut self, presented: &Presented) {
        let Some(machine) = self.key(presented.key).map(|key| key.machine) else {
            return;
        };
        let is_accepted = matches!(self.judge(presented), Judgement::Accept | Judgement::Either);
        // A check-in past the grace is recorded, although it is refused.
        if is_accepted || self.is_past_grace(presented) {
            let carried = &presented.claims.continuity;
            if !self.machine(machine).continuity.surely_may_carry(carried) {
                self.uncount(machine, "machine.continuity-broken");
            }
            self.machine_mut(machine).continuity.after_unknown(carried);
            let claimed = &presented.claims.machine;
            if claimed.serial_number.is_none() || claimed.hardware_uuid.is_none() {
                self.uncount(machine, "machine.identity-withheld");
            }
        }
    }

    /// Whether this evidence was accepted before.
    pub(in crate::simulation) fn has_used(&self, presented: &Presented) -> bool {
        let machine = self.key(presented.key).map(|key| self.machine(key.machine));
        machine.is_some_and(|machine| machine.used_nonces.contains(&presented.claims.eat_nonce))
    }

    /// The machine was quarantined because of this evidence.
    pub(in crate::simulation) fn mismatched(&mut self, presented: &Presented) {
        let id = self.keys[&presented.key].machine;
        self.machine_mut(id).status = Status::Quarantined;
        self.end_unused_opening(id, presented.at);
        self.audited(id, "machine.quarantine");
        self.announced(id, "machine.quarantined");
        self.announced(id, "machine.identity-mismatch");
    }

    pub(super) fn accepted(&mut self, presented: &Presented, answer: &Answer) -> Checked {
        let id = self.keys[&presented.key].machine;
        let issued = answer.text("continuity").map(str::to_owned);
        let has_value = issued.is_some() || answer.status == 202;
        require(has_value, "an answer carries a continuity value", answer.short())?;
        let carried = &presented.claims.continuity;
        match (
            self.machine(id).continuity.may_carry(carried),
            self.machine(id).continuity.surely_may_carry(carried),
        ) {
            (_, true) => {}
            (true, false) => self.uncount(id, "machine.continuity-broken"),
            (false, false) => self.announced(id, "machine.continuity-broken"),
        }
        let store = presented.claims.key.store;
        self.keys.get_mut(&presented.key).unwrap().store.get_or_insert(store);
        let machine = self.machine_mut(id);
        machine.used_nonces.insert(presented.claims.eat_nonce.clone());
        machine.continuity = Continuity::after(presented.claims.continuity.clone(), issued);
        Ok(())
    }

    fn contradicts(&self, presented: &Presented) -> bool {
        let key = &self.keys[&presented.key];
        let machine = self.machine(key.machine);
        let claimed = &presented.claims.machine;
        differs(&machine.serial_number, &claimed.serial_number, |recorded, claimed| {
            recorded == claimed
        }) || differs(
            &machine.hardware_uuid,
            &claimed.hardware_uuid,
            str::eq_ignore_ascii_case,
        ) || key.store.is_some_and(|store| store != presented.claims.key.store)
    }

    pub(super) fn is_past_grace(&self, presented: &Presented) -> bool {
        let certificate = self.keys[&presented.key].certificate();
        certificate.is_some_and(|certificate| presented.at >= certificate.not_after + RENEWAL_GRACE)
    }

    /// A refusal contains no recorded value that the caller did not send.
    fn require_secrecy(&self, presented: &Presented, answer: &Answer) -> Checked {
        let Some(key) = self.key(presented.key) else {
            return Ok(());
        };
        let machine = self.machine(key.machine);
        let detail = answer.text("detail").unwrap_or_default();
        let claimed = &presented.claims.machine;
        for (recorded, claimed) in [
            (&machine.serial_number, &claimed.serial_number),
            (&machine.hardware_uuid, &claimed.hardware_uuid),
        ] {
            let is_told = recorded.as_ref().is_some_and(|recorded| detail.contains(recorded));
            require(
                !is_told || recorded == claimed,
                "a refusal tells no recorded value",
                detail,
            )?;
        }
        Ok(())
    }
}

/// A value that was not read contradicts nothing.
fn differs(recorded: &Option<String>, claimed: &Option<String>, is_same: fn(&str, &str) -> bool) -> bool {
    match (recorded, claimed) {
        (Some(recorded), Some(claimed)) => !is_same(recorded, claimed),
        _ => false,
    }
}
