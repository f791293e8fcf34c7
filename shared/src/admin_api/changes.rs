//! What can happen: the kinds of events, the actions that the audit knows, and the kinds of resources that they change.
//!
//! The API documents and the servers' messages take their lists from here. A newer server may have further names, so
//! callers read them as texts.

use crate::words;

/// An action with the kind of resource that it changes, and the event of every change of this kind, if there is one.
macro_rules! actions {
    (@event) => { None };
    (@event $event:ident) => { Some(EventKind::$event) };
    ($($name:ident = $text:literal on $resource:ident $(=> $event:ident)?,)+) => {
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

            /// The event that announces each change of this kind. The changes of machines and certificates state their
            /// events themselves.
            #[must_use]
            pub const fn event(self) -> Option<EventKind> {
                match self { $(Self::$name => actions!(@event $($event)?),)+ }
            }
        }
    };
}

words! {
    /// What an event says has happened.
    pub enum EventKind {
        ApiKeyCreated = "api-key.created",
        ApiKeyEnded = "api-key.ended",
        ApiKeyExpiring = "api-key.expiring",
        ApiKeyRevoked = "api-key.revoked",
        AudienceCreated = "audience.created",
        AudienceDeleted = "audience.deleted",
        AudienceReplaced = "audience.replaced",
        CertificateIssued = "certificate.issued",
        CertificateRevoked = "certificate.revoked",
        DeviceCertificateIssued = "device-certificate.issued",
        DeviceCertificateRefused = "device-certificate.refused",
        DeviceCertificateRevoked = "device-certificate.revoked",
        EnrollmentTokenCreated = "enrollment-token.created",
        EnrollmentTokenRevoked = "enrollment-token.revoked",
        EnrollmentDenied = "enrollment.denied",
        EnrollmentExpired = "enrollment.expired",
        GrantCreated = "grant.created",
        GrantDeleted = "grant.deleted",
        GrantReplaced = "grant.replaced",
        InventoryImported = "inventory.imported",
        InventoryRemoved = "inventory.removed",
        IssuingCaWithdrawn = "issuing-ca.withdrawn",
        KeyActivated = "key.activated",
        KeyCertified = "key.certified",
        KeyInstalled = "key.installed",
        KeyListInstalled = "key.list-installed",
        KeyPrepared = "key.prepared",
        KeyRequested = "key.requested",
        KeyRetired = "key.retired",
        KeySuperseded = "key.superseded",
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
        MachineNoteChanged = "machine.note-changed",
        MachineOpened = "machine.opened",
        MachineOpeningContested = "machine.opening-contested",
        MachineOpeningEnded = "machine.opening-ended",
        MachineQuarantined = "machine.quarantined",
        MachineReEnrolled = "machine.re-enrolled",
        MachineReEnrollmentRequested = "machine.re-enrollment-requested",
        MachineReleased = "machine.released",
        MachineRevoked = "machine.revoked",
        MachineSupersededKeyUsed = "machine.superseded-key-used",
        PermissionCreated = "permission.created",
        PermissionDeleted = "permission.deleted",
        PermissionReplaced = "permission.replaced",
        PostureChanged = "posture.changed",
        VerdictChanged = "verdict.changed",
        WebhookCreated = "webhook.created",
        WebhookDeleted = "webhook.deleted",
        WebhookDisabled = "webhook.disabled",
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
    ApiKeyCreate = "api-key.create" on ApiKey => ApiKeyCreated,
    ApiKeyEnd = "api-key.end" on ApiKey => ApiKeyEnded,
    ApiKeyRemove = "api-key.remove" on ApiKey,
    ApiKeyRevoke = "api-key.revoke" on ApiKey => ApiKeyRevoked,
    AudienceCreate = "audience.create" on Audience => AudienceCreated,
    AudienceDelete = "audience.delete" on Audience => AudienceDeleted,
    AudienceReplace = "audience.replace" on Audience => AudienceReplaced,
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
    EnrollmentTokenCreate = "enrollment-token.create" on EnrollmentToken => EnrollmentTokenCreated,
    EnrollmentTokenRemove = "enrollment-token.remove" on EnrollmentToken,
    EnrollmentTokenRevoke = "enrollment-token.revoke" on EnrollmentToken => EnrollmentTokenRevoked,
    EventRemove = "event.remove" on Event,
    GrantCreate = "grant.create" on Grant => GrantCreated,
    GrantDelete = "grant.delete" on Grant => GrantDeleted,
    GrantReplace = "grant.replace" on Grant => GrantReplaced,
    InventoryImport = "inventory.import" on Inventory => InventoryImported,
    InventoryRemove = "inventory.remove" on Inventory => InventoryRemoved,
    KeyActivate = "key.activate" on SealedKey => KeyActivated,
    KeyCertify = "key.certify" on SealedKey => KeyCertified,
    KeyCreate = "key.create" on SealedKey,
    KeyInstall = "key.install" on SealedKey => KeyInstalled,
    KeyInstallList = "key.install-list" on SealedKey => KeyListInstalled,
    KeyPrepare = "key.prepare" on SealedKey => KeyPrepared,
    KeyRemoveCrossCertificate = "key.remove-cross-certificate" on SealedKey,
    KeyRequest = "key.request" on SealedKey => KeyRequested,
    KeyRetire = "key.retire" on SealedKey => KeyRetired,
    KeySupersede = "key.supersede" on SealedKey => KeySuperseded,
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
    PermissionCreate = "permission.create" on Permission => PermissionCreated,
    PermissionDelete = "permission.delete" on Permission => PermissionDeleted,
    PermissionReplace = "permission.replace" on Permission => PermissionReplaced,
    WebhookCreate = "webhook.create" on Webhook => WebhookCreated,
    WebhookDelete = "webhook.delete" on Webhook => WebhookDeleted,
    WebhookDeliveryRemove = "webhook-delivery.remove" on WebhookDelivery,
    WebhookDisable = "webhook.disable" on Webhook => WebhookDisabled,
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
