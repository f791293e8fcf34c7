//! What thieves and accidents do: copied keys, false claims, restored states.

use assay_protocol::machine::KeyStoreKind;

use crate::simulation::dice::Dice;
use crate::simulation::holder::Holder;
use crate::simulation::model::Checked;
use crate::simulation::run::{MOST_HOLDERS, Run};

impl Run<'_> {
    /// Copies a software key with the agent's state. The copy claims what the machine claims, nothing of its hardware, other
    /// hardware, or another store.
    pub(in crate::simulation) fn copy_key(&mut self, dice: &mut Dice) {
        let Some(from) = self.known_holder(dice) else {
            return;
        };
        let is_software = self.holders[from].machine.key_claim.store == KeyStoreKind::Software;
        if !is_software || self.holders.len() >= MOST_HOLDERS {
            return;
        }
        let mut thief = self.holders[from].clone();
        thief.name = format!("thief {} of {}", self.holders.len(), thief.name);
        thief.nonce = None;
        let claims = &mut thief.machine;
        match dice.below(5) {
            0 => {
                claims.identity.serial_number = None;
                claims.identity.hardware_uuid = None;
            }
            1 => claims.identity.hardware_uuid = None,
            2 => claims.identity.hardware_uuid = Some("UUID-OF-A-THIEF".to_owned()),
            3 => claims.key_claim = Holder::key_claim(KeyStoreKind::SecureEnclave),
            _ => {}
        }
        self.note(format!("{} claims {:?}", thief.name, thief.machine.identity));
        self.holders.push(thief);
    }

    /// Keeps an agent's state, or puts the one that was kept back: a disk that was restored.
    pub(in crate::simulation) fn restore_state(&mut self, dice: &mut Dice) {
        let Some(holder) = self.known_holder(dice) else {
            return;
        };
        let holder = &mut self.holders[holder];
        match holder.backup.take() {
            None => holder.backup = Some(holder.continuity.clone()),
            Some(kept) => holder.continuity = kept,
        }
        holder.nonce = None;
    }

    /// Checks in by a key that has no place any more, with a fresh nonce.
    pub(in crate::simulation) async fn use_old_key(&mut self, dice: &mut Dice) -> Checked {
        let old: Vec<usize> = (0..self.holders.len())
            .filter(|holder| {
                let key = self.model.key(self.holders[*holder].key());
                key.is_some_and(|key| key.is_replaced)
            })
            .collect();
        let Some(holder) = dice.pick_any(&old) else {
            return Ok(());
        };
        self.holders[holder].nonce = None;
        self.check_in_by(holder, dice).await
    }
}
