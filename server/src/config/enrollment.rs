//! Which machines may enroll.

use std::time::Duration;

use super::{DAY, MINUTE, settings::Settings};

/// Which machines may enroll.
#[derive(Clone, Debug)]
pub struct Enrollment {
    /// What happens to an enrollment without a token.
    pub without_token: WithoutToken,
    /// How many enrollments without a token may wait at the same time.
    pub without_token_limit: u32,
    /// How long an enrollment waits for an administrator's decision.
    pub pending_ttl: Duration,
    /// What happens to a new key for a known serial number, if no token allows it.
    pub reenrollment: Reenrollment,
    /// Who may open a machine's record for a new key, besides administrators.
    pub opening: OpeningPolicy,
}

/// The response to an enrollment without a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutToken {
    /// `enrollment-token-invalid`.
    Refuse,
    /// An administrator decides.
    Pending,
}

/// The response to a new key for a known serial number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reenrollment {
    /// An administrator decides.
    Pending,
    /// `machine-exists`.
    Refuse,
}

/// Who may open a machine's record for a new key, besides administrators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpeningPolicy {
    /// Nothing else.
    Off,
    /// The MDM, for devices whose serial number Apple attested.
    Mdm,
}

impl Enrollment {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let without_token = [("refuse", WithoutToken::Refuse), ("pending", WithoutToken::Pending)];
        let words = [("pending", Reenrollment::Pending), ("refuse", Reenrollment::Refuse)];
        Self {
            without_token: settings
                .word("enrollment.without_token", &without_token)
                .unwrap_or(WithoutToken::Refuse),
            without_token_limit: settings
                .number("enrollment.without_token_limit", 1..=1_000_000)
                .unwrap_or(1000),
            pending_ttl: settings
                .duration("enrollment.pending_ttl", MINUTE..=366 * DAY)
                .unwrap_or(7 * DAY),
            reenrollment: settings
                .word("enrollment.reenrollment", &words)
                .unwrap_or(Reenrollment::Pending),
            opening: settings
                .word(
                    "enrollment.opening",
                    &[("off", OpeningPolicy::Off), ("mdm", OpeningPolicy::Mdm)],
                )
                .unwrap_or(OpeningPolicy::Off),
        }
    }
}
