//! What can happen: the kinds of events, the actions that the audit knows, and the kinds of resources that they change.
//!
//! The API documents and the servers' messages take their lists from here. A newer server may have further names, so
//! callers read them as texts.

use crate::words;

/// An action with the kind of resource that it changes.
macro_rules! actions {
    ($($name:ident = $text:literal on $resource:ident,)+) => {
        words! {
            /// What the audit says was done.
            pub enum AuditAction { $($name = $text,)+ }
        }

        impl AuditAction {
            /// What it was done to.
            #[must_use]
            pub const fn resource(self) -> ResourceKind {
                match self { $(Self::$name => ResourceKind::$resource,)+ }
            }
        }
    };
}

words! {
    /// What an event says has happened.
    pub enum EventKind {
        ApiKeyExpiring = "api-key.expiring",
        CertificateIssued = "certificate.issued",
        CertificateRevoked = "certificate.revoked",
        DeviceCertificateIssued = "device-certificate.issued",
        DeviceCertificateRefused = "device-certificate.refused",
        DeviceCertificateRevoked = "device-certificate.revoked",
        EnrollmentDenied = "enrollment.denied",
        EnrollmentExpired = "enrollment.expired",
        IssuingCaWithdrawn = "issuing-ca.withdrawn",
        LivenessChanged = "liveness.changed",
        MachineApproved = "machine.approved",
        MachineAssuranceLowered = "machine.assurance-lowered",
        MachineAttestationRefused = "machine.attestation-refused",
        MachineAttested = "machine.attested",
        MachineContinuityBroken = "machine.continuity-broken",
        MachineDatabaseBehind = "machine.database-behind",
        MachineDeleted = "machine.deleted",
        MachineEnrolled = "machine.enrolled",
        MachineIdentityMismatch = "machine.identity-mismatch",
        MachineIdentityWithheld = "machine.identity-withheld",
        MachineKeyRotated = "machine.key-rotated",
        MachineKeyRotationBegun = "machine.key-rotation-begun",
        MachineKeyRotationRequested = "machine.key-rotation-requested",
        MachineLabelsChanged = "machine.labels-changed",
        MachineOpened = "machine.opened",
        MachineOpeningContested = "machine.opening-contested",
        MachineOpeningEnded = "machine.opening-ended",
        MachineQuarantined = "machine.quarantined",
        MachineReEnrolled = "machine.re-enrolled",
        MachineReEnrollmentRequested = "machine.re-enrollment-requested",
        MachineReleased = "machine.released",
        MachineRevoked = "machine.revoked",
        MachineSupersededKeyUsed = "machine.superseded-key-used",
        PostureChanged = "posture.changed",
        VerdictChanged = "verdict.changed",
    }
}

words! {
    /// What a change can be made to.
    pub enum ResourceKind {
        AcmeAccount = "acme-account",
        AcmeOrder = "acme-order",
        ApiKey = "api-key",
        Audience = "audience",
        Audit = "audit",
        Certificate = "certificate",
        Device = "device",
        Enrollment = "enrollment",
        EnrollmentToken = "enrollment-token",
        Event = "event",
        Grant = "grant",
        Inventory = "inventory",
        Machine = "machine",
        MdmDevice = "mdm-device",
        Permission = "permission",
        SealedKey = "sealed-key",
        Webhook = "webhook",
        WebhookDelivery = "webhook-delivery",
    }
}

actions! {
    AcmeAccountBind = "acme-account.bind" on AcmeAccount,
    AcmeAccountChangeKey = "acme-account.change-key" on AcmeAccount,
    AcmeAccountDeactivate = "acme-account.deactivate" on AcmeAccount,
    AcmeOrderRemove = "acme-order.remove" on AcmeOrder,
    ApiKeyCreate = "api-key.create" on ApiKey,
    ApiKeyEnd = "api-key.end" on ApiKey,
    ApiKeyRemove = "api-key.remove" on ApiKey,
    ApiKeyRevoke = "api-key.revoke" on ApiKey,
    AudienceCreate = "audience.create" on Audience,
    AudienceDelete = "audience.delete" on Audience,
    AudienceReplace = "audience.replace" on Audience,
    AuditRemovePersonalData = "audit.remove-personal-data" on Audit,
    CertificateIssue = "certificate.issue" on Certificate,
    CertificateRemove = "certificate.remove" on Certificate,
    CertificateRevoke = "certificate.revoke" on Certificate,
    DeviceCertificateRefuse = "device-certificate.refuse" on Device,
    EnrollmentApprove = "enrollment.approve" on Enrollment,
    EnrollmentDeny = "enrollment.deny" on Enrollment,
    EnrollmentExpire = "enrollment.expire" on Enrollment,
    EnrollmentRemove = "enrollment.remove" on Enrollment,
    EnrollmentRemoveAddress = "enrollment.remove-address" on Enrollment,
    EnrollmentRequest = "enrollment.request" on Enrollment,
    EnrollmentTokenCreate = "enrollment-token.create" on EnrollmentToken,
    EnrollmentTokenRemove = "enrollment-token.remove" on EnrollmentToken,
    EnrollmentTokenRevoke = "enrollment-token.revoke" on EnrollmentToken,
    EventRemove = "event.remove" on Event,
    GrantCreate = "grant.create" on Grant,
    GrantDelete = "grant.delete" on Grant,
    InventoryImport = "inventory.import" on Inventory,
    InventoryRemove = "inventory.remove" on Inventory,
    KeyActivate = "key.activate" on SealedKey,
    KeyCertify = "key.certify" on SealedKey,
    KeyCreate = "key.create" on SealedKey,
    KeyInstall = "key.install" on SealedKey,
    KeyInstallList = "key.install-list" on SealedKey,
    KeyPrepare = "key.prepare" on SealedKey,
    KeyRemoveCrossCertificate = "key.remove-cross-certificate" on SealedKey,
    KeyRequest = "key.request" on SealedKey,
    KeyRetire = "key.retire" on SealedKey,
    KeySupersede = "key.supersede" on SealedKey,
    KeyWithdraw = "key.withdraw" on SealedKey,
    MachineApprove = "machine.approve" on Machine,
    MachineAskForAttestation = "machine.ask-for-attestation" on Machine,
    MachineAttest = "machine.attest" on Machine,
    MachineBeginKeyRotation = "machine.begin-key-rotation" on Machine,
    MachineContestOpening = "machine.contest-opening" on Machine,
    MachineDelete = "machine.delete" on Machine,
    MachineDeny = "machine.deny" on Machine,
    MachineEndOpening = "machine.end-opening" on Machine,
    MachineEnroll = "machine.enroll" on Machine,
    MachineGiveToken = "machine.give-token" on Machine,
    MachineLowerAssurance = "machine.lower-assurance" on Machine,
    MachineOpen = "machine.open" on Machine,
    MachinePatch = "machine.patch" on Machine,
    MachineQuarantine = "machine.quarantine" on Machine,
    MachineReEnroll = "machine.re-enroll" on Machine,
    MachineRelease = "machine.release" on Machine,
    MachineRevoke = "machine.revoke" on Machine,
    MachineRotateKey = "machine.rotate-key" on Machine,
    MdmDeviceLearn = "mdm-device.learn" on MdmDevice,
    MdmDeviceRefuseAttestation = "mdm-device.refuse-attestation" on MdmDevice,
    PermissionCreate = "permission.create" on Permission,
    PermissionDelete = "permission.delete" on Permission,
    WebhookCreate = "webhook.create" on Webhook,
    WebhookDelete = "webhook.delete" on Webhook,
    WebhookDeliveryRemove = "webhook-delivery.remove" on WebhookDelivery,
    WebhookDisable = "webhook.disable" on Webhook,
    WebhookTest = "webhook.test" on Webhook,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_names_every_kind_of_event() {
        let manual = include_str!("../../../docs/operating.md");
        for kind in EventKind::ALL {
            let quoted = format!("`{}`", kind.as_str());
            assert!(manual.contains(&quoted), "docs/operating.md lacks {quoted}");
        }
    }

    #[test]
    fn lists_are_in_the_order_of_the_alphabet() {
        assert!(EventKind::ALL.is_sorted_by_key(|kind| kind.as_str()));
        assert!(ResourceKind::ALL.is_sorted_by_key(|kind| kind.as_str()));
    }
}
