//! Openings: for some hours, a new key of the same hardware takes a record over without a token.

use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::enrollment::Due;
use super::{Checked, Grounds, KeyStatus, Model, Presented, Status, require};
use crate::simulation::replica::Answer;

/// What an administrator asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::simulation) struct OpeningRequest {
    pub(in crate::simulation) hours: i64,
    pub(in crate::simulation) reason: String,
}

/// An opening of a record.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct Opening {
    id: String,
    request: OpeningRequest,
    opened_at: OffsetDateTime,
    ends_at: OffsetDateTime,
    /// Until when another key contests the takeover; `None` before a takeover.
    watched_until: Option<OffsetDateTime>,
    /// Two keys claim the record. Only an administrator ends this.
    is_contested: bool,
}

/// What an opening allows at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    Watched,
    Contested,
    Over,
}

impl Opening {
    fn state(&self, at: OffsetDateTime) -> State {
        match self.watched_until {
            _ if self.is_contested => State::Contested,
            Some(until) if at < until => State::Watched,
            None if at < self.ends_at => State::Open,
            _ => State::Over,
        }
    }

    fn length(&self) -> Duration {
        Duration::hours(self.request.hours)
    }
}

impl Model {
    /// Checks the answer to an administrator who opens a record, and learns from it.
    pub(in crate::simulation) fn learn_of_opening(
        &mut self,
        id: Uuid,
        request: &OpeningRequest,
        at: OffsetDateTime,
        answer: &Answer,
    ) -> Checked {
        let machine = self.machine(id);
        let opening = machine.opening.as_ref().filter(|_| machine.status != Status::Deleted);
        let before = opening.filter(|opening| opening.state(at) != State::Over);
        let is_named = machine.serial_number.is_some() && machine.hardware_uuid.is_some();
        let rule = "the record of an active machine can be opened, once at a time";
        if let Some(opening) = before {
            let is_repeated = opening.request == *request && opening.state(at) != State::Contested;
            let is_due = match is_repeated {
                true => answer.text("id") == Some(opening.id.as_str()),
                false => answer.status == 409,
            };
            return require(is_due, rule, format!("{opening:?}: {}", answer.short()));
        }
        let due = match machine.status {
            Status::Active if is_named => 200,
            Status::Deleted => 404,
            _ => 409,
        };
        require(answer.status == due, rule, format!("{due}: {}", answer.short()))?;
        if due == 200 {
            self.machine_mut(id).opening = Some(Opening {
                id: answer.text("id").unwrap_or_default().to_owned(),
                request: request.clone(),
                opened_at: at,
                ends_at: at + Duration::hours(request.hours),
                watched_until: None,
                is_contested: false,
            });
            self.audited(id, "machine.open");
            self.announced(id, "machine.opened");
        }
        Ok(())
    }

    /// Checks the answer to the enrollment of a key that waits already. It goes on to wait, unless the record is open to it.
    pub(in crate::simulation) fn learn_of_waiting_key(&mut self, presented: &Presented, answer: &Answer) -> Checked {
        let machine = self.keys[&presented.key].machine;
        if self.opening_for(machine, presented) == Some(State::Open) && self.is_alone(machine, presented) {
            let rule = "a key that alone waits for an open record takes it over";
            require(matches!(answer.status, 200 | 201), rule, answer.short())?;
            return self.take_open_record(machine, presented, answer);
        }
        let rule = "a key that waits goes on to wait";
        require(answer.status == 202, rule, answer.short())
    }

    /// What an opening gives to a new key. `None` if the usual rules apply, as for a key whose token gives it the record.
    pub(super) fn due_by_opening(&self, presented: &Presented, token: Option<usize>) -> Option<Due> {
        let known = self.holder_of(presented.claims.machine.serial_number.as_deref()?)?;
        let state = self.opening_for(known, presented)?;
        if token.is_some_and(|token| self.tokens[token].replaces(presented)) {
            return None;
        }
        match state == State::Open && self.is_alone(known, presented) {
            true => Some(Due::OpenRecord(known)),
            false => Some(Due::WaitForOpenRecord(known)),
        }
    }

    /// The key becomes the machine's, on nothing but its own word.
    pub(super) fn take_open_record(&mut self, id: Uuid, presented: &Presented, answer: &Answer) -> Checked {
        self.takeover(id, presented, Grounds::default(), answer)?;
        if let Some(opening) = &mut self.machine_mut(id).opening {
            opening.watched_until = Some(presented.at + opening.length());
        }
        Ok(())
    }

    /// A key came that must wait. After a takeover it contests that.
    pub(super) fn contest(&mut self, id: Uuid, presented: &Presented) {
        let opening = self.machine_mut(id).opening.as_mut();
        let watched = opening.filter(|opening| opening.state(presented.at) == State::Watched);
        if let Some(opening) = watched {
            opening.is_contested = true;
            self.audited(id, "machine.contest-opening");
            self.announced(id, "machine.opening-contested");
        }
    }

    /// The recorded key checked in, or the machine was suspended.
    pub(in crate::simulation) fn end_unused_opening(&mut self, id: Uuid, at: OffsetDateTime) {
        if self.is_open(id, at) {
            self.machine_mut(id).opening = None;
            self.audited(id, "machine.end-opening");
            self.announced(id, "machine.opening-ended");
        }
    }

    /// It was decided which key is the machine's.
    pub(in crate::simulation) fn end_decided_opening(&mut self, id: Uuid, at: OffsetDateTime) {
        let opening = self.machine_mut(id).opening.take();
        if opening.is_some_and(|opening| opening.state(at) != State::Over) {
            self.audited(id, "machine.end-opening");
            self.announced(id, "machine.opening-ended");
        }
    }

    /// The same for a rotation that was requested then. A request from before the opening decides nothing, unless a key has
    /// taken the record over.
    pub(super) fn end_opening_decided_since(&mut self, id: Uuid, requested_at: OffsetDateTime, at: OffsetDateTime) {
        let opening = self.machine(id).opening.as_ref();
        if opening.is_some_and(|opening| opening.watched_until.is_some() || opening.opened_at <= requested_at) {
            self.end_decided_opening(id, at);
        }
    }

    /// Whether an opening that no key has used yet is in force.
    pub(in crate::simulation) fn is_open(&self, id: Uuid, at: OffsetDateTime) -> bool {
        let opening = self.machine(id).opening.as_ref();
        opening.is_some_and(|opening| opening.state(at) == State::Open)
    }

    /// How many openings of a machine were ended.
    pub(in crate::simulation) fn ended_openings(&self, id: Uuid) -> i64 {
        let key = (id.to_string(), "machine.opening-ended");
        self.events.get(&key).copied().unwrap_or_default()
    }

    /// Whether two keys claim the record. Neither gets grants.
    pub(super) fn is_contested(&self, id: Uuid) -> bool {
        let opening = self.machine(id).opening.as_ref();
        opening.is_some_and(|opening| opening.is_contested)
    }

    /// The opening that applies to this evidence: of an active machine with this serial number and this hardware.
    fn opening_for(&self, id: Uuid, presented: &Presented) -> Option<State> {
        let machine = self.machine(id);
        let claimed = &presented.claims.machine;
        let has_hardware = match (&machine.hardware_uuid, &claimed.hardware_uuid) {
            (Some(recorded), Some(claimed)) => recorded.eq_ignore_ascii_case(claimed),
            _ => false,
        };
        let has_serial_number = machine.serial_number.is_some() && machine.serial_number == claimed.serial_number;
        if machine.status != Status::Active || !has_hardware || !has_serial_number {
            return None;
        }
        let state = machine.opening.as_ref()?.state(presented.at);
        (state != State::Over).then_some(state)
    }

    /// Whether no other key waits for the machine.
    fn is_alone(&self, id: Uuid, presented: &Presented) -> bool {
        let mut others = self.keys.iter().filter(|(thumbprint, key)| {
            let in_time = key.waits_until.is_some_and(|end| presented.at < end);
            **thumbprint != presented.key && key.machine == id && key.status == KeyStatus::Pending && in_time
        });
        others.next().is_none()
    }
}
