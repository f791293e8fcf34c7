//! The kinds of events that there are, so that a misspelt one is told to whoever waits for it.

/// All of them, in the order of the alphabet.
pub(crate) const KINDS: &[&str] = &[
    "certificate.issued",
    "certificate.revoked",
    "device-certificate.issued",
    "device-certificate.refused",
    "device-certificate.revoked",
    "enrollment.denied",
    "enrollment.expired",
    "liveness.changed",
    "machine.approved",
    "machine.assurance-lowered",
    "machine.attestation-refused",
    "machine.attested",
    "machine.deleted",
    "machine.enrolled",
    "machine.identity-mismatch",
    "machine.key-rotated",
    "machine.key-rotation-begun",
    "machine.labels-changed",
    "machine.quarantined",
    "machine.re-enrolled",
    "machine.re-enrollment-requested",
    "machine.released",
    "machine.revoked",
    "posture.changed",
    "verdict.changed",
];

/// Whether there are events of this kind.
pub(crate) fn is_kind(kind: &str) -> bool {
    KINDS.contains(&kind)
}
