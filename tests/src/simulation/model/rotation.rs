//! What a next key may get, and when it takes the place of the current one.

use assay_protocol::KeyThumbprint;
use assay_protocol::machine::KeyStoreKind;
use uuid::Uuid;

use super::enrollment::PENDING_TTL;
use super::evidence::Judgement;
use super::requests::Kind;
use super::{Checked, Grounds, KeyModel, KeyStatus, Model, Presented, Request, Status, require};
use crate::simulation::replica::Answer;

/// What is due to a machine that asks with another key in the CSR.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// A certificate; the next key has these grounds of its own.
    Certificate(Option<Grounds>),
    /// The certificate of before.
    Repeated,
    Wait,
    WaitOn,
    Refused(&'static str),
}

impl Model {
    /// Checks the answer to a renewal with another key, and learns from it. Returns the request, if the key waits.
    pub(in crate::simulation) fn learn_of_rotation(
        &mut self,
        presented: &Presented,
        (next, token): (KeyThumbprint, Option<usize>),
        answer: &Answer,
    ) -> Checked<Option<Request>> {
        self.forget_key_if_expired(next, presented.at);
        let judgement = self.judge(presented);
        let is_judged = matches!(judgement, Judgement::Accept | Judgement::Either);
        if !is_judged || (judgement == Judgement::Either && answer.problem() == "identity-mismatch") {
            return self.learn(presented, answer).map(|()| None);
        }
        let due = self.due_to_next(presented, next, token);
        let rule = "a next key gets what its predecessor's store, a token or an approval allow";
        let is_due = match due {
            Due::Certificate(_) | Due::Repeated => answer.status == 200,
            Due::Wait | Due::WaitOn => answer.status == 202,
            Due::Refused(problem) => answer.problem() == problem,
        };
        require(is_due, rule, format!("{due:?}, answered {}", answer.short()))?;
        if matches!(due, Due::Refused(_)) {
            // Nothing was changed: the nonce is as good as new. A break of the continuity may be told at each such call.
            let (machine, carried) = (self.keys[&presented.key].machine, &presented.claims.continuity);
            if !self.machine(machine).continuity.surely_may_carry(carried) {
                self.uncount(machine, "machine.continuity-broken");
            }
            return Ok(None);
        }
        self.accepted(presented, answer)?;
        let machine = self.keys[&presented.key].machine;
        if let (Some(token), Due::Certificate(Some(_)) | Due::Wait) = (token, due) {
            self.tokens[token].used_by.insert(next);
        }
        match due {
            Due::Certificate(own) => {
                self.begin_rotation(machine, next, own);
                self.issued(next, answer);
                Ok(None)
            }
            Due::Repeated => {
                self.issued(next, answer);
                Ok(None)
            }
            Due::Wait => {
                let mut key = KeyModel::new(machine, KeyStatus::Pending, Grounds::default());
                key.waits_until = Some(presented.at + PENDING_TTL);
                self.keys.insert(next, key);
                self.announced(machine, "machine.key-rotation-requested");
                let replaces = self.machine(machine).current;
                let kind = Kind::Rotation { replaces };
                Ok(Some(
                    Request::new(answer, presented, machine, kind, token).of_next_key(next),
                ))
            }
            Due::WaitOn | Due::Refused(_) => Ok(None),
        }
    }

    fn due_to_next(&self, presented: &Presented, next: KeyThumbprint, token: Option<usize>) -> Due {
        let signer = &self.keys[&presented.key];
        let known = self.key(next);
        match known.map(|known| (known.machine == signer.machine, known.status)) {
            None => {}
            Some((false, _)) => return Due::Refused("conflict"),
            Some((true, KeyStatus::Next)) => return Due::Repeated,
            Some((true, KeyStatus::Denied)) => return Due::Refused("enrollment-denied"),
            Some((true, KeyStatus::Pending)) => {}
            Some((true, _)) => return Due::Refused("conflict"),
        }
        let waits = known.is_some();
        if signer.status == KeyStatus::Next && !waits {
            return Due::Refused("conflict");
        }
        let serial_number = &self.machine(signer.machine).serial_number;
        let Some(token) = token.map(|token| &self.tokens[token]) else {
            return match signer.store {
                _ if waits => Due::WaitOn,
                Some(KeyStoreKind::Software) => Due::Certificate(None),
                _ => Due::Wait,
            };
        };
        if waits && token.used_by.contains(&next) {
            return Due::WaitOn;
        }
        let is_bound = token.bound_to.is_some() && token.bound_to == *serial_number;
        let has_room = token.uses() < token.max_uses;
        if !is_bound || !has_room || !token.has_use_for(next, presented.at) || !token.allows_reenrollment {
            return Due::Refused("enrollment-token-invalid");
        }
        match (token.is_manual, waits) {
            (true, true) => Due::WaitOn,
            (true, false) => Due::Wait,
            (false, _) => Due::Certificate(Some(Grounds {
                token: true,
                of_key: token.uses() == 0,
                ..Grounds::default()
            })),
        }
    }

    /// A next key is valid beside the current one. An earlier one that never checked in is denied.
    pub(super) fn begin_rotation(&mut self, machine: Uuid, next: KeyThumbprint, own: Option<Grounds>) {
        for key in self.keys.values_mut().filter(|key| key.machine == machine) {
            if key.status == KeyStatus::Next {
                key.status = KeyStatus::Denied;
                key.revoke_certificates();
            }
        }
        let new = KeyModel::new(machine, KeyStatus::Next, Grounds::default());
        let key = self.keys.entry(next).or_insert(new);
        key.status = KeyStatus::Next;
        key.own = own;
        self.audited(machine, "machine.begin-key-rotation");
        self.announced(machine, "machine.key-rotation-begun");
    }

    /// The first check-in of a next key was accepted.
    pub(in crate::simulation) fn complete_rotation(&mut self, next: KeyThumbprint) {
        let machine = self.keys[&next].machine;
        if self.keys[&next].status != KeyStatus::Next {
            return;
        }
        let current = self.keys.get_mut(&self.machines[&machine].current).unwrap();
        current.status = KeyStatus::Superseded;
        current.is_replaced = true;
        current.revoke_certificates();
        let inherited = current.grounds.inherited();
        let key = self.keys.get_mut(&next).unwrap();
        key.status = KeyStatus::Current;
        key.grounds = key.own.map_or(inherited, |own| Grounds {
            inventory: inherited.inventory,
            ..own
        });
        self.machine_mut(machine).current = next;
        self.audited(machine, "machine.rotate-key");
        self.announced(machine, "machine.key-rotated");
    }

    /// A check-in past the grace is recorded, although it is refused.
    pub(in crate::simulation) fn learn_of_late_check_in(&mut self, presented: &Presented) {
        let machine = self.keys[&presented.key].machine;
        self.machine_mut(machine)
            .continuity
            .after_unknown(&presented.claims.continuity);
        self.uncount(machine, "machine.continuity-broken");
        self.uncount(machine, "machine.identity-withheld");
        self.end_unused_opening(machine, presented.at);
        self.complete_rotation(presented.key);
    }

    pub(in crate::simulation) fn is_superseded(&self, presented: &Presented) -> bool {
        self.keys[&presented.key].status == KeyStatus::Superseded
    }

    /// A superseded key was refused. Its use must be an event if its successor has surely checked in.
    pub(in crate::simulation) fn learn_of_superseded_use(&mut self, presented: &Presented) {
        let key = &self.keys[&presented.key];
        let is_active = self.machine(key.machine).status == Status::Active;
        if is_active && key.is_replaced && presented.is_fresh {
            self.superseded_uses.insert(presented.key);
        }
    }

    /// Whether a superseded key's evidence must quarantine its machine, and whether it may.
    pub(in crate::simulation) fn copy_is_caught(&self, presented: &Presented) -> (bool, bool) {
        let key = &self.keys[&presented.key];
        let machine = self.machine(key.machine);
        let may = machine.status == Status::Active && key.store == Some(KeyStoreKind::Software);
        (may && key.is_replaced && machine.continuity.is_bound(), may)
    }

    /// A superseded key of this machine was caught.
    pub(in crate::simulation) fn caught(&mut self, presented: &Presented) {
        let machine = self.keys[&presented.key].machine;
        self.machine_mut(machine).status = Status::Quarantined;
        self.end_unused_opening(machine, presented.at);
        self.audited(machine, "machine.quarantine");
        self.announced(machine, "machine.quarantined");
    }
}
