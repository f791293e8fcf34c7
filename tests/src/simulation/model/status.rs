//! What an administrator's decisions do to a machine.

use time::OffsetDateTime;
use uuid::Uuid;

use super::{Continuity, KeyStatus, Model, Status};

/// A decision on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::simulation) enum Decision {
    Quarantine,
    Release,
    Revoke,
    Delete,
}

impl Decision {
    /// The last part of the path of its call.
    pub(in crate::simulation) fn path(self) -> &'static str {
        match self {
            Self::Quarantine => "quarantine",
            Self::Release => "release",
            Self::Revoke => "revoke",
            Self::Delete => "",
        }
    }
}

impl Model {
    /// The status code that a decision must get.
    pub(in crate::simulation) fn status_code_of(&self, machine: Uuid, decision: Decision) -> u16 {
        match (decision, self.machine(machine).status) {
            (Decision::Delete, Status::Deleted) | (_, Status::Deleted) => 404,
            (Decision::Delete, _) => 204,
            (Decision::Revoke, Status::Revoked) => 409,
            (Decision::Revoke, _) => 200,
            (Decision::Quarantine, Status::Active) | (Decision::Release, Status::Quarantined) => 200,
            (Decision::Quarantine | Decision::Release, _) => 409,
        }
    }

    /// A decision was carried out.
    pub(in crate::simulation) fn decided(&mut self, id: Uuid, decision: Decision, at: OffsetDateTime) {
        if decision != Decision::Release {
            self.end_unused_opening(id, at);
        }
        match decision {
            Decision::Quarantine => {
                self.may_revoke_device(id);
                self.machine_mut(id).status = Status::Quarantined;
                self.audited(id, "machine.quarantine");
                self.announced(id, "machine.quarantined");
            }
            Decision::Release => {
                let machine = self.machine_mut(id);
                machine.status = Status::Active;
                machine.continuity = Continuity::open();
                self.audited(id, "machine.release");
                self.announced(id, "machine.released");
            }
            Decision::Revoke => {
                self.may_revoke_device(id);
                self.revoke_keys(id);
                self.machine_mut(id).status = Status::Revoked;
                self.audited(id, "machine.revoke");
                self.announced(id, "machine.revoked");
            }
            Decision::Delete => {
                self.may_revoke_device(id);
                if self.machine(id).status != Status::Revoked {
                    self.announced(id, "machine.revoked");
                }
                self.revoke_keys(id);
                self.deny_what_waits(id);
                self.machine_mut(id).status = Status::Deleted;
                self.audited(id, "machine.delete");
                self.announced(id, "machine.deleted");
            }
        }
    }

    /// The keys of the machine. One that waits to take the record over is a key of its own.
    fn revoke_keys(&mut self, id: Uuid) {
        self.retire_keys(id, KeyStatus::Revoked);
        let first = self.machine(id).current;
        for (thumbprint, key) in self.keys.iter_mut().filter(|(_, key)| key.machine == id) {
            let was_first = key.status == KeyStatus::Pending && *thumbprint == first;
            // A key that has sent no evidence yet came by a rotation.
            let is_next = key.status == KeyStatus::Pending && key.store.is_none();
            if was_first || is_next || key.status == KeyStatus::Superseded {
                key.status = KeyStatus::Revoked;
            }
        }
    }

    fn deny_what_waits(&mut self, id: Uuid) {
        let mut keys = self.keys.values_mut();
        while let Some(key) = keys.find(|key| key.machine == id && key.status == KeyStatus::Pending) {
            key.status = KeyStatus::Denied;
        }
    }
}
