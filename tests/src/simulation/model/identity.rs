//! What a machine may leave out of its evidence.

use std::collections::BTreeSet;

use super::{Model, Presented};

impl Model {
    /// A check-in was accepted. What it leaves out and the record has is an event, once until it comes back.
    pub(in crate::simulation) fn learn_of_claims(&mut self, presented: &Presented) {
        let id = self.keys[&presented.key].machine;
        let claimed = &presented.claims.machine;
        let machine = self.machine_mut(id);
        if machine.hardware_uuid.is_none() {
            machine.hardware_uuid.clone_from(&claimed.hardware_uuid);
        }
        let values = [
            ("serial_number", &machine.serial_number, &claimed.serial_number),
            ("hardware_uuid", &machine.hardware_uuid, &claimed.hardware_uuid),
        ];
        let withheld: BTreeSet<&'static str> = values
            .into_iter()
            .filter(|(_, recorded, claimed)| recorded.is_some() && claimed.is_none())
            .map(|(name, ..)| name)
            .collect();
        self.end_unused_opening(id, presented.at);
        let machine = self.machine_mut(id);
        let is_new = !withheld.is_subset(&machine.withheld);
        machine.withheld = withheld;
        machine.last = Some(presented.clone());
        if is_new {
            self.announced(id, "machine.identity-withheld");
        }
    }
}
