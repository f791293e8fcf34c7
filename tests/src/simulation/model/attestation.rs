//! What an attestation by Apple counts for.

use assay_protocol::machine::KeyStoreKind;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Attested, Checked, Model, Presented, Status, require};
use crate::simulation::replica::Answer;

impl Model {
    /// Checks the answer to a posted attestation of a machine's current key, and learns from it.
    pub(in crate::simulation) fn learn_of_attestation(
        &mut self,
        id: Uuid,
        attested: Attested,
        answer: &Answer,
    ) -> Checked {
        let status = self.machine(id).status;
        let key = self.current_key(id);
        let counts = key.grounds.of_key && key.store == Some(KeyStoreKind::SecureEnclave);
        let due = match status {
            Status::Active | Status::Quarantined if counts => 200,
            Status::Deleted => 404,
            _ => 409,
        };
        let rule = "an attestation counts for a key in the enclave with a ground of its own";
        require(
            answer.status == due,
            rule,
            format!("{due} expected: {}", answer.short()),
        )?;
        if due == 200 {
            let current = self.machine(id).current;
            self.keys.get_mut(&current).unwrap().attested = Some(attested);
            self.machine_mut(id).attested = Some(attested);
            self.audited(id, "machine.attest");
            self.announced(id, "machine.attested");
        }
        Ok(())
    }

    /// Whether SIP counts as enabled: by the attestation of the current key, by what Apple last said against it of any key,
    /// or by the machine's own claim.
    pub(super) fn sip_enabled(&self, machine: Uuid, presented: &Presented) -> bool {
        let fresh = |attested: &Attested| attested.is_fresh(presented.at);
        let said = self.machine(machine).attested.filter(fresh);
        if said.is_some_and(|attested| !attested.sip_enabled) {
            return false;
        }
        let of_key = self.current_key(machine).attested.filter(fresh);
        of_key.map_or(presented.posture().sip_enabled == Some(true), |attested| {
            attested.sip_enabled
        })
    }

    /// When the last attestation of a machine was signed.
    pub(in crate::simulation) fn attested_at(&self, machine: Uuid) -> Option<OffsetDateTime> {
        self.machine(machine).attested.map(|attested| attested.at)
    }

    /// A serial number was taken out of the inventory.
    pub(in crate::simulation) fn unlist(&mut self, serial_number: &str) {
        self.inventory.remove(serial_number);
        let machines = self.machines.iter();
        let of_it = machines.filter(|(_, machine)| machine.serial_number.as_deref() == Some(serial_number));
        let current: Vec<_> = of_it.map(|(_, machine)| machine.current).collect();
        for key in current {
            self.keys.get_mut(&key).unwrap().grounds.inventory = false;
        }
    }

    /// An administrator's decision on a machine may end the certificates of its device.
    pub(super) fn may_revoke_device(&mut self, machine: Uuid) {
        let key = self.current_key(machine);
        let speaks = key.grounds.token || key.grounds.approval || key.attested.is_some();
        if speaks && self.machine(machine).status != Status::Pending {
            self.machine_mut(machine).device_may_be_revoked = true;
        }
    }
}
