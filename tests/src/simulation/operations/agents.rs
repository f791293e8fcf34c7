//! What machines do: enroll, check in, renew.

use http::Method;
use uuid::Uuid;

use crate::simulation::books;
use crate::simulation::dice::Dice;
use crate::simulation::holder::{Call, Holder};
use crate::simulation::model::{Checked, KeyStatus, Model, Presented, require};
use crate::simulation::replica::Answer;
use crate::simulation::run::{Fate, Run};

/// Ten keys at most may wait for one record, so no more parties than this claim one.
const MOST_BEFORE_A_CLAIM: usize = 8;

impl Run<'_> {
    /// A new Mac, or one that was erased, enrolls with any token or none.
    pub(in crate::simulation) async fn enroll_new(&mut self, dice: &mut Dice) -> Checked {
        let token = self.any_token(dice);
        let serial_number = self.serial_number_to_enroll(token, dice);
        let holder = self.holders.len();
        let name = format!("holder {holder} of {}", &serial_number[serial_number.len() - 2..]);
        let store = Self::store(dice);
        let mut new = Holder::new(name, &serial_number, store, token);
        if dice.one_in(8) {
            // Its logic board was changed.
            new.machine.identity.hardware_uuid = Some(format!("UUID-OF-A-NEW-BOARD-OF-{serial_number}"));
        }
        self.holders.push(new);
        self.enroll(holder, dice).await
    }

    /// A new key of a machine on record enrolls with any token or none. Its hardware is mostly the recorded one.
    pub(in crate::simulation) async fn claim_record(&mut self, machine: Uuid, dice: &mut Dice) -> Checked {
        if self.holders.len() >= MOST_BEFORE_A_CLAIM {
            return Ok(());
        }
        let record = self.model.machine(machine);
        let hardware_uuid = record.hardware_uuid.clone().filter(|_| !dice.one_in(5));
        let Some(serial_number) = record.serial_number.clone() else {
            return Ok(());
        };
        let holder = self.holders.len();
        let name = format!("claimant {holder} of {}", &serial_number[serial_number.len() - 2..]);
        let mut new = Holder::new(name, &serial_number, Self::store(dice), self.any_token(dice));
        new.machine.identity.hardware_uuid = hardware_uuid.or_else(|| Some("UUID-OF-ANOTHER".to_owned()));
        self.holders.push(new);
        self.enroll(holder, dice).await
    }

    pub(in crate::simulation) async fn repeat_enrollment(&mut self, dice: &mut Dice) -> Checked {
        match self.known_holder(dice) {
            Some(holder) => self.enroll(holder, dice).await,
            None => Ok(()),
        }
    }

    pub(in crate::simulation) async fn check_in(&mut self, dice: &mut Dice) -> Checked {
        let Some(holder) = self.known_holder(dice) else {
            return Ok(());
        };
        if dice.one_in(4) {
            self.change_posture(holder, dice);
        }
        let next = self.holders[holder].next.as_ref().map(|next| next.thumbprint());
        if next.is_some_and(|next| self.model.key(next).is_some()) && !dice.one_in(3) {
            return self.check_in_by_next_key(holder, dice).await;
        }
        self.check_in_by(holder, dice).await
    }

    pub(in crate::simulation) async fn check_in_by(&mut self, holder: usize, dice: &mut Dice) -> Checked {
        let (presented, answer) = self.call(holder, &Call::CheckIn, dice).await?;
        self.learn_of_check_in(&presented, &answer).await
    }

    pub(in crate::simulation) async fn renew(&mut self, dice: &mut Dice) -> Checked {
        let Some(holder) = self.known_holder(dice) else {
            return Ok(());
        };
        let csr = self.holders[holder].machine.csr();
        let call = Call::Renew { csr, secret: None };
        let (presented, answer) = self.call(holder, &call, dice).await?;
        self.model.learn(&presented, &answer)?;
        if answer.is_success() {
            self.model.issued(presented.key, &answer);
        }
        self.learn_of_superseded_key(&presented, &answer).await
    }

    /// Evidence that was accepted is sent again, by a party that has nothing else.
    pub(in crate::simulation) async fn replay(&mut self, dice: &mut Dice) -> Checked {
        let used: Vec<usize> = (0..self.sent.len())
            .filter(|sent| self.model.has_used(&self.sent[*sent].presented))
            .collect();
        let Some(sent) = dice.pick_any(&used) else {
            return Ok(());
        };
        let sent = self.sent[sent].clone();
        let replica = self.replica(dice);
        let answer = self.send(replica, &sent).await;
        let name = &self.holders[sent.holder].name;
        self.note(format!("{} of {name} again: {}", sent.call.path(), answer.short()));
        // A key that waits gets the same answer again, whatever its nonce.
        let waits = answer.status == 202 && sent.call.path() == "/v1/enroll";
        require(
            waits || !answer.is_success(),
            "a nonce serves a machine once",
            answer.short(),
        )
    }

    /// A call with any fate. What is dropped is repeated until it is answered, as an agent does.
    pub(in crate::simulation) async fn call(
        &mut self,
        holder: usize,
        call: &Call,
        dice: &mut Dice,
    ) -> Checked<(Presented, Answer)> {
        let (replica, fate) = (self.replica(dice), self.fate(dice));
        if let Some(answered) = self.exchange(holder, replica, call, fate).await? {
            return Ok(answered);
        }
        let replica = self.replica(dice);
        let answered = self.exchange(holder, replica, call, Fate::Answered).await?;
        Ok(answered.unwrap())
    }

    /// Checks the answer to a check-in, and learns from it.
    pub(in crate::simulation) async fn learn_of_check_in(&mut self, presented: &Presented, answer: &Answer) -> Checked {
        self.model.learn(presented, answer)?;
        if !answer.is_success() {
            Model::require_no_grants(answer, "a refusal grants nothing")?;
            if answer.problem() == "renewal-expired" {
                self.model.learn_of_late_check_in(presented);
            }
            return self.learn_of_superseded_key(presented, answer).await;
        }
        self.model.complete_rotation(presented.key);
        self.model.learn_of_claims(presented);
        self.model.require_grants(presented, answer)?;
        self.keep_tokens(presented, answer)
    }

    /// The record shows whether the use of a superseded key quarantined the machine.
    pub(in crate::simulation) async fn learn_of_superseded_key(
        &mut self,
        presented: &Presented,
        answer: &Answer,
    ) -> Checked {
        if !matches!(answer.problem(), "key-superseded" | "machine-quarantined") {
            return Ok(());
        }
        if answer.problem() == "key-superseded" {
            self.model.learn_of_superseded_use(presented);
        }
        let (must, may) = self.model.copy_is_caught(presented);
        if !may {
            return Ok(());
        }
        let machine = self.model.key(presented.key).unwrap().machine;
        let record = self
            .admin(0, Method::GET, &format!("/v1/admin/machines/{machine}"), None)
            .await;
        let is_caught = record.text("status") == Some("quarantined");
        let rule = "a software key that signs after its successor quarantines a machine that sends continuity";
        require(is_caught || !(must && presented.is_fresh), rule, machine)?;
        if is_caught {
            self.model.caught(presented);
        }
        Ok(())
    }

    async fn enroll(&mut self, holder: usize, dice: &mut Dice) -> Checked {
        let token = self.holders[holder].token;
        let secret = token.map(|token| self.model.tokens[token].secret.clone());
        let (presented, answer) = self.call(holder, &Call::Enroll { secret }, dice).await?;
        self.model.forget_if_expired(&presented);
        match self.model.key(presented.key).map(|key| key.status) {
            None => {
                let request = self.model.learn_of_new_key(&presented, token, &answer)?;
                self.requests.extend(request);
                self.issue_device_certificate(&presented).await;
                Ok(())
            }
            Some(KeyStatus::Pending) => self.model.learn_of_waiting_key(&presented, &answer),
            Some(KeyStatus::Superseded) => {
                self.model.learn(&presented, &answer)?;
                self.learn_of_superseded_key(&presented, &answer).await
            }
            Some(_) => self.model.learn_of_repeated_enrollment(&presented, token, &answer),
        }
    }

    /// The Mac with a serial number that enrolls has a device certificate already.
    async fn issue_device_certificate(&mut self, presented: &Presented) {
        let certificate = self.model.key(presented.key).and_then(|key| key.certificate().cloned());
        let serial_number = presented.claims.machine.serial_number.clone();
        if let (Some(certificate), Some(serial_number)) = (certificate, serial_number)
            && self.devices.insert(serial_number.clone())
        {
            books::issue_device_certificate(&self.ground.pool, &serial_number, &certificate.serial_number).await;
        }
    }

    pub(in crate::simulation) fn any_token(&self, dice: &mut Dice) -> Option<usize> {
        let tokens: Vec<usize> = (0..self.model.tokens.len()).collect();
        // Without a token, every machine waits.
        if dice.one_in(8) { None } else { dice.pick_any(&tokens) }
    }

    /// A token that is bound to a serial number comes mostly with that one.
    fn serial_number_to_enroll(&self, token: Option<usize>, dice: &mut Dice) -> String {
        let bound_to = token.and_then(|token| self.model.tokens[token].bound_to.clone());
        match bound_to {
            Some(serial_number) if !dice.one_in(5) => serial_number,
            _ => self.serial_number(dice),
        }
    }

    /// One of a few, so that machines meet each other.
    pub(in crate::simulation) fn serial_number(&self, dice: &mut Dice) -> String {
        format!("SIM{}N{}", self.name, dice.below(4))
    }

    fn change_posture(&mut self, holder: usize, dice: &mut Dice) {
        let posture = &mut self.holders[holder].machine.posture;
        match dice.below(3) {
            0 => posture.sip_enabled = dice.pick(&[Some(true), Some(false), None]),
            1 => posture.filevault_enabled = dice.pick(&[Some(true), Some(false)]),
            _ => posture.os_build = Some(format!("25B{}", dice.below(100))),
        }
    }
}
