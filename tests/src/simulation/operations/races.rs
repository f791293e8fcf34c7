//! Two calls at the same time, on two replicas. The first is stopped somewhere, and the second overtakes it.

use http::Method;

use super::administrators::decision_call;
use crate::simulation::books;
use crate::simulation::dice::Dice;
use crate::simulation::holder::Call;
use crate::simulation::interruption::overtake;
use crate::simulation::model::{Checked, Decision, KeyStatus, Presented, require};
use crate::simulation::replica::Answer;
use crate::simulation::run::{Fate, MOST_POLLS, Run, Sent};

impl Run<'_> {
    /// A check-in, and a decision that ends its grants.
    pub(in crate::simulation) async fn race_revocation(&mut self, dice: &mut Dice) -> Checked {
        let Some(holder) = self.known_holder(dice) else {
            return Ok(());
        };
        let status = self.model.key(self.holders[holder].key()).map(|key| key.status);
        if status == Some(KeyStatus::Superseded) {
            // Its use may quarantine the machine, too, and the record would not show which of the two did.
            return Ok(());
        }
        if dice.one_in(2) {
            // A changed verdict is written last, with the machine's row locked.
            let posture = &mut self.holders[holder].machine.posture;
            posture.sip_enabled = Some(posture.sip_enabled != Some(true));
        }
        let decision = dice.pick(&[Decision::Quarantine, Decision::Revoke, Decision::Delete]);
        let (at, other, polls) = (self.replica(dice), self.replica(dice), dice.below(MOST_POLLS));
        let (presented, body) = self.prepare(holder, at, &Call::CheckIn).await;
        let machine = self.model.key(presented.key).unwrap().machine;
        let (method, path) = decision_call(machine, decision);
        let reason = Self::reason(dice);
        let reason = (method == Method::POST).then_some(&reason);
        let checking_in = self.ground.replicas[at].call(Method::POST, Call::CheckIn.path(), None, Some(&body));
        let deciding = async {
            let decided = self.admin(other, method, &path, reason).await;
            (decided, books::verdicts(&self.ground.pool, machine).await)
        };
        let (answer, (decided, verdicts), order) = overtake(checking_in, polls, deciding).await;
        self.note(format!(
            "check-in by {} after {polls} polls and {decision:?} of {machine}, {order:?}: {}; {}",
            self.holders[holder].name,
            answer.short(),
            decided.short()
        ));
        self.holders[holder].keep(&answer);
        if decided.is_success() {
            let rule = "after a decision that ends grants, no verdict is written and no grant follows from one";
            require(
                books::verdicts(&self.ground.pool, machine).await == verdicts,
                rule,
                machine,
            )?;
        }
        self.learn_of_overtaken_check_in(&presented, &answer, &decided).await?;
        let decided_at = self.ground.replicas[other].now();
        self.learn_of_decision(machine, (decision, decided_at), Fate::Answered, &decided)
    }

    /// The decision may have been carried out at any moment of the check-in.
    async fn learn_of_overtaken_check_in(
        &mut self,
        presented: &Presented,
        answer: &Answer,
        decided: &Answer,
    ) -> Checked {
        match answer.problem() {
            "bad-nonce" => Ok(()),
            "machine-quarantined" | "machine-revoked" | "machine-unknown" if decided.is_success() => {
                self.model.learn_of_unknown(presented);
                self.learn_of_ended_opening(presented).await;
                Ok(())
            }
            _ => self.learn_of_check_in(presented, answer).await,
        }
    }

    /// The same evidence twice at once.
    pub(in crate::simulation) async fn race_replay(&mut self, dice: &mut Dice) -> Checked {
        let Some(holder) = self.known_holder(dice) else {
            return Ok(());
        };
        let (at, other, polls) = (self.replica(dice), self.replica(dice), dice.below(MOST_POLLS));
        let (presented, body) = self.prepare(holder, at, &Call::CheckIn).await;
        let sent = Sent {
            holder,
            call: Call::CheckIn,
            presented: presented.clone(),
            body,
        };
        let (first, second) = (self.send(at, &sent), self.send(other, &sent));
        let (first, second, order) = overtake(first, polls, second).await;
        self.note(format!(
            "check-in by {} twice at once, {order:?}: {}; {}",
            self.holders[holder].name,
            first.short(),
            second.short()
        ));
        let both = first.is_success() && second.is_success();
        require(!both, "a nonce serves a machine once", "both check-ins are answered")?;
        // The other one came too late, whatever became of this one.
        let (answer, answered_by) = match rank(&second) > rank(&first) {
            true => (second, other),
            false => (first, at),
        };
        let presented = Presented {
            at: self.ground.replicas[answered_by].now(),
            ..presented
        };
        self.holders[holder].keep(&answer);
        match answer.problem() {
            "bad-nonce" => Ok(()),
            _ => self.learn_of_check_in(&presented, &answer).await,
        }
    }

    /// Sends evidence once more, as it was.
    pub(in crate::simulation) fn send(&self, replica: usize, sent: &Sent) -> impl Future<Output = Answer> + use<> {
        self.ground.replicas[replica].call(Method::POST, sent.call.path(), None, Some(&sent.body))
    }
}

/// Of two answers to one piece of evidence, the higher one decided.
fn rank(answer: &Answer) -> u8 {
    match answer.problem() {
        "" => 3,
        "identity-mismatch" => 2,
        "bad-nonce" => 0,
        _ => 1,
    }
}
