//! Machines replace their keys.

use assay_protocol::machine::KeyStoreKind;

use crate::simulation::dice::Dice;
use crate::simulation::holder::{Call, Holder};
use crate::simulation::model::{Checked, KeyStatus};
use crate::simulation::run::{MOST_HOLDERS, Run};

impl Run<'_> {
    /// Asks for a certificate for a next key, with or without a token. A next key that exists already is mostly used
    /// again.
    pub(in crate::simulation) async fn rotate(&mut self, dice: &mut Dice) -> Checked {
        let Some(holder) = self.known_holder(dice) else {
            return Ok(());
        };
        if self.holders[holder].next.is_none() || dice.one_in(4) {
            let mut next = self.holders[holder].machine.with_next_key();
            next.key_claim = Holder::key_claim(dice.pick(&[KeyStoreKind::Software, KeyStoreKind::SecureEnclave]));
            self.holders[holder].next = Some(next);
        }
        let next = self.holders[holder].next.clone().unwrap();
        let token = if dice.one_in(2) { self.any_token(dice) } else { None };
        let secret = token.map(|token| self.model.tokens[token].secret.clone());
        let csr = next.csr();
        let (presented, answer) = self.call(holder, &Call::Renew { csr, secret }, dice).await?;
        let asked = (next.thumbprint(), token);
        let request = self.model.learn_of_rotation(&presented, asked, &answer)?;
        self.requests.extend(request);
        if answer.problem() == "identity-mismatch" {
            self.holders[holder].next = None;
        }
        self.learn_of_superseded_key(&presented, &answer).await
    }

    /// Checks in by the next key, if there is one that the server knows. Once that is current, the old key stays with a
    /// party that may still use it.
    pub(in crate::simulation) async fn check_in_by_next_key(&mut self, holder: usize, dice: &mut Dice) -> Checked {
        let Some(mut next) = self.holders[holder].next.clone() else {
            return Ok(());
        };
        next.identity = self.holders[holder].machine.identity.clone();
        next.posture = self.holders[holder].machine.posture.clone();
        let old = std::mem::replace(&mut self.holders[holder].machine, next);
        let key = self.holders[holder].key();
        let (presented, answer) = self.call(holder, &Call::CheckIn, dice).await?;
        self.learn_of_check_in(&presented, &answer).await?;
        if self.model.key(key).is_some_and(|key| key.status == KeyStatus::Current) {
            self.holders[holder].next = None;
            if self.holders.len() < MOST_HOLDERS {
                let mut left = self.holders[holder].clone();
                left.name = format!("the old key of {}", left.name);
                left.machine = old;
                self.holders.push(left);
            }
        } else {
            self.holders[holder].machine = old;
        }
        Ok(())
    }
}
