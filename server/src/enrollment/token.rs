//! Whether an enrollment token admits a machine.

use assay_protocol::admin_api::enrollment_tokens::EnrollmentToken;
use time::OffsetDateTime;

use super::EnrollError;
use crate::{
    machines::assurance::names,
    secrets::SecretHash,
    store::{StoreError, Transaction, enrollment_tokens},
};

/// Why a token is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenRefusal {
    #[error("this server requires an enrollment token")]
    Missing,
    #[error(
        "the certificate expired longer ago than the renewal grace, so the machine needs an enrollment token to return"
    )]
    MissingForReturn,
    #[error("the enrollment token is unknown")]
    Unknown,
    #[error("the enrollment token is revoked")]
    Revoked,
    #[error("the enrollment token has expired")]
    Expired,
    #[error("the enrollment token is used up")]
    UsedUp,
    #[error("the enrollment token is for another serial number")]
    OtherSerialNumber,
    #[error("the enrollment token is not bound to this machine's serial number, so it cannot confirm a key of it")]
    NotBound,
    #[error("the enrollment token does not allow re-enrollment, which replacing a key requires")]
    NoReenrollment,
    #[error("the enrollment token requires an administrator's approval, which the current key gets by its thumbprint")]
    Manual,
}

/// Locks a token and uses it once. Returns the token before this use.
pub(super) async fn spend(
    tx: &mut Transaction,
    secret: SecretHash,
    serial_number: Option<&str>,
    now: OffsetDateTime,
) -> Result<EnrollmentToken, EnrollError> {
    let token = enrollment_tokens::lock_by_secret(tx, secret)
        .await?
        .ok_or(TokenRefusal::Unknown)?;
    check(&token, serial_number, now)?;
    enrollment_tokens::count_use(tx, token.id).await?;
    Ok(token)
}

/// Whether this token was for this serial number before it was used up or expired.
pub(super) async fn has_lapsed(
    tx: &mut Transaction,
    secret: SecretHash,
    serial_number: Option<&str>,
    refusal: TokenRefusal,
) -> Result<bool, StoreError> {
    if !matches!(refusal, TokenRefusal::Expired | TokenRefusal::UsedUp) {
        return Ok(false);
    }
    let token = enrollment_tokens::lock_by_secret(tx, secret).await?;
    Ok(token.is_some_and(|token| names(&token, serial_number)))
}

/// Checks that a token is neither revoked nor expired.
pub(crate) fn require_valid(token: &EnrollmentToken, now: OffsetDateTime) -> Result<(), TokenRefusal> {
    if token.revoked_at.is_some() {
        return Err(TokenRefusal::Revoked);
    }
    if now >= token.expires_at {
        return Err(TokenRefusal::Expired);
    }
    Ok(())
}

/// Checks that a token admits this serial number now.
pub(super) fn check(
    token: &EnrollmentToken,
    serial_number: Option<&str>,
    now: OffsetDateTime,
) -> Result<(), TokenRefusal> {
    require_valid(token, now)?;
    if token.serial_numbers.is_some() && !names(token, serial_number) {
        return Err(TokenRefusal::OtherSerialNumber);
    }
    if token.uses >= token.max_uses {
        return Err(TokenRefusal::UsedUp);
    }
    Ok(())
}

/// Checks that a token confirms a key of the machine with this serial number.
pub(super) fn check_bound(
    token: &EnrollmentToken,
    serial_number: Option<&str>,
    now: OffsetDateTime,
) -> Result<(), TokenRefusal> {
    check(token, serial_number, now)?;
    if !names(token, serial_number) {
        return Err(TokenRefusal::NotBound);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use assay_protocol::admin_api::enrollment_tokens::Approval;
    use time::{Duration, macros::datetime};
    use uuid::Uuid;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    fn token() -> EnrollmentToken {
        EnrollmentToken {
            id: Uuid::nil(),
            description: String::new(),
            created_at: NOW,
            expires_at: NOW + Duration::hours(1),
            max_uses: 2,
            uses: 1,
            serial_numbers: None,
            labels: Default::default(),
            approval: Approval::Automatic,
            allow_reenrollment: false,
            revoked_at: None,
        }
    }

    #[test]
    fn a_token_is_valid_until_its_last_use_and_its_last_second() {
        assert_eq!(check(&token(), None, NOW), Ok(()));
        assert_eq!(
            check(&EnrollmentToken { uses: 2, ..token() }, None, NOW),
            Err(TokenRefusal::UsedUp)
        );
        assert_eq!(
            check(&token(), None, NOW + Duration::hours(1)),
            Err(TokenRefusal::Expired)
        );
        let revoked = EnrollmentToken {
            revoked_at: Some(NOW),
            ..token()
        };
        assert_eq!(check(&revoked, None, NOW), Err(TokenRefusal::Revoked));
    }

    #[test]
    fn a_bound_token_admits_only_its_serial_numbers() {
        let bound = EnrollmentToken {
            serial_numbers: Some(vec!["C02ONE".into(), "C02TWO".into()]),
            ..token()
        };
        assert_eq!(check(&bound, Some("C02TWO"), NOW), Ok(()));
        for other in [Some("C02THREE"), Some("c02two"), Some(""), None] {
            assert_eq!(
                check(&bound, other, NOW),
                Err(TokenRefusal::OtherSerialNumber),
                "{other:?}"
            );
        }
    }
}
