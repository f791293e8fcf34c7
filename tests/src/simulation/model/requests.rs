//! Requests that wait for an administrator, and what a decision on one does.

use assay_protocol::KeyThumbprint;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Checked, Continuity, Grounds, KeyStatus, Model, Presented, Status, require};
use crate::simulation::replica::Answer;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Kind {
    First,
    /// To take the record over from this key.
    Takeover {
        replaces: KeyThumbprint,
    },
    /// To follow this key.
    Rotation {
        replaces: KeyThumbprint,
    },
}

/// A key that waits.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct Request {
    pub(in crate::simulation) id: String,
    pub(in crate::simulation) key: KeyThumbprint,
    pub(in crate::simulation) machine: Uuid,
    pub(super) kind: Kind,
    token: Option<usize>,
    presented: Presented,
}

/// An administrator's decision on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Verdict {
    Approve,
    Deny,
}

impl Request {
    pub(super) fn new(answer: &Answer, presented: &Presented, machine: Uuid, kind: Kind, token: Option<usize>) -> Self {
        Self {
            id: answer.text("enrollment_id").unwrap_or_default().to_owned(),
            key: presented.key,
            machine,
            kind,
            token,
            presented: presented.clone(),
        }
    }

    pub(super) fn of_next_key(mut self, next: KeyThumbprint) -> Self {
        self.key = next;
        self
    }
}

impl Model {
    /// Checks the answer to a decision on a request, and learns from it. `by_machine` is the path that names the machine.
    pub(in crate::simulation) fn learn_of_verdict(
        &mut self,
        request: &Request,
        verdict: Verdict,
        (at, by_machine): (OffsetDateTime, bool),
        answer: &Answer,
    ) -> Checked {
        let due = self.may_decide(request, verdict, at);
        let rule = "a request is decided where the status of its key and machine allow it";
        let detail = || {
            format!(
                "{due:?} expected for {verdict:?} of {:?}: {}",
                request.kind,
                answer.short()
            )
        };
        require(due.is_none_or(|due| due == answer.is_success()), rule, detail())?;
        if !answer.is_success() {
            return Ok(());
        }
        if by_machine {
            let action = match verdict {
                Verdict::Approve => "machine.approve",
                Verdict::Deny => "machine.deny",
            };
            self.audited(request.machine, action);
        }
        match verdict {
            Verdict::Approve => self.approve(request, at),
            Verdict::Deny => self.deny(request),
        }
        Ok(())
    }

    /// `None` where what is known does not decide it.
    fn may_decide(&self, request: &Request, verdict: Verdict, at: OffsetDateTime) -> Option<bool> {
        let key = self.key(request.key);
        let waits = key.filter(|key| key.status == KeyStatus::Pending && key.machine == request.machine);
        let in_time = waits.is_some_and(|key| key.waits_until.is_some_and(|end| at < end));
        let Some(machine) = self.machines.get(&request.machine).filter(|_| in_time) else {
            return Some(false);
        };
        if machine.status == Status::Deleted {
            return Some(false);
        }
        if verdict == Verdict::Deny {
            return Some(true);
        }
        match request.kind {
            Kind::First => {
                let serial_number = machine.serial_number.as_deref().unwrap_or_default();
                let holder = self.holder_of(serial_number);
                let is_free = holder.is_none_or(|holder| self.machine(holder).status == Status::Revoked);
                Some(machine.status == Status::Pending && is_free)
            }
            Kind::Takeover { replaces } if machine.current != replaces => None,
            Kind::Takeover { .. } => Some(true),
            Kind::Rotation { replaces } => Some(machine.status == Status::Active && machine.current == replaces),
        }
    }

    fn approve(&mut self, request: &Request, at: OffsetDateTime) {
        let (id, key) = (request.machine, request.key);
        let listed = self.is_listed(id);
        let approved = Grounds {
            inventory: listed,
            approval: true,
            of_key: true,
            ..Grounds::default()
        };
        match request.kind {
            Kind::First => {
                let key = self.keys.get_mut(&key).unwrap();
                key.grounds = Grounds {
                    token: key.grounds.token,
                    ..approved
                };
                key.status = KeyStatus::Current;
                self.machine_mut(id).status = Status::Active;
                self.announced(id, "machine.approved");
            }
            Kind::Takeover { .. } => {
                let token = request.token.is_some() && self.keys[&key].grounds.token;
                self.retire_keys(id, KeyStatus::Superseded);
                let key = self.keys.get_mut(&key).unwrap();
                key.grounds = Grounds { token, ..approved };
                key.status = KeyStatus::Current;
                self.replace_key(id, &request.presented);
                let machine = self.machine_mut(id);
                machine.status = Status::Active;
                machine.continuity = Continuity::open();
                self.end_decided_opening(id, at);
                self.announced(id, "machine.re-enrolled");
            }
            Kind::Rotation { .. } => {
                self.announced(id, "machine.approved");
                self.end_opening_decided_since(id, request.presented.at, at);
                self.begin_rotation(id, key, Some(approved));
            }
        }
    }

    fn deny(&mut self, request: &Request) {
        let id = request.machine;
        self.keys.get_mut(&request.key).unwrap().status = KeyStatus::Denied;
        self.announced(id, "enrollment.denied");
        if request.kind == Kind::First && self.machine(id).status == Status::Pending {
            self.announced(id, "machine.revoked");
            self.machine_mut(id).status = Status::Deleted;
        }
    }

    /// Checks the answer to an approval of a machine's current key, and learns from it.
    pub(in crate::simulation) fn learn_of_approved_key(
        &mut self,
        id: Uuid,
        key: KeyThumbprint,
        at: OffsetDateTime,
        answer: &Answer,
    ) -> Checked {
        if !answer.is_success() {
            // Another approval of this key may have come first, for another reason.
            let decided = self.keys[&key].grounds.approval || self.machine(id).status != Status::Active;
            let rule = "the current key of an active machine can be approved once";
            return require(decided, rule, answer.short());
        }
        let rule = "only a current key of an active machine is approved by its thumbprint";
        let machine = self.machine(id);
        require(
            machine.status == Status::Active && machine.current == key,
            rule,
            answer.short(),
        )?;
        let inventory = self.is_listed(id);
        let grounds = &mut self.keys.get_mut(&key).unwrap().grounds;
        *grounds = Grounds {
            inventory,
            approval: true,
            of_key: true,
            ..*grounds
        };
        self.end_decided_opening(id, at);
        self.audited(id, "machine.approve");
        self.announced(id, "machine.approved");
        Ok(())
    }

    fn is_listed(&self, machine: Uuid) -> bool {
        let serial_number = self.machine(machine).serial_number.as_ref();
        serial_number.is_some_and(|number| self.inventory.contains(number))
    }
}
