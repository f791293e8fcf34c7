//! What supports an enrollment: the token, the inventory, or nothing but the key's own claims.

use assay_protocol::admin_api::enrollment_tokens::{Approval, EnrollmentToken};
use uuid::Uuid;

use super::{Applicant, EnrollError, TokenRefusal, token};
use crate::{
    config::{Reenrollment, WithoutToken},
    machines::{assurance::Grounds, labels::Labels},
    services::Services,
    store::{
        Transaction,
        duties::{self, Duty},
        enrollments, inventory, machines,
    },
};

/// What supports an enrollment.
pub(super) struct EnrollmentBasis {
    /// `None` if the request has no token, and none is required.
    pub(super) token: Option<EnrollmentToken>,
    pub(super) grounds: Grounds,
    /// The labels for a new machine: the token's, and those of the inventory that the token does not set. The token
    /// takes precedence, because the machine only claims to be the one in the inventory.
    pub(super) labels: Labels,
    /// Why the token that came does not count. With it, a key may only wait for a record.
    pub(super) lapsed: Option<TokenRefusal>,
}

impl EnrollmentBasis {
    /// Finds it for a key that is not on record.
    pub(super) async fn find(
        tx: &mut Transaction,
        services: &Services,
        applicant: &Applicant,
    ) -> Result<Self, EnrollError> {
        match with_token_or_without(tx, services, applicant).await {
            Err(EnrollError::Token(refusal)) => without_lapsed_token(tx, services, applicant, refusal).await,
            basis => basis,
        }
    }

    /// Only the key's own claims.
    pub(super) fn none() -> Self {
        Self {
            token: None,
            grounds: Grounds::default(),
            labels: Labels::new(),
            lapsed: None,
        }
    }

    /// Whether an administrator must decide.
    pub(super) fn waits(&self) -> bool {
        self.token
            .as_ref()
            .is_none_or(|token| token.approval == Approval::Manual)
    }

    pub(super) fn token_id(&self) -> Option<Uuid> {
        self.token.as_ref().map(|token| token.id)
    }

    /// Whether the token is bound to this serial number, and allows a new key to take over its record.
    pub(super) fn allows_to_replace(&self) -> bool {
        self.grounds.token.is_some() && self.token.as_ref().is_some_and(|token| token.allow_reenrollment)
    }
}

/// Locks the token first, then the serial number's row in the inventory. A concurrent removal of that row either came
/// first, or waits and then removes the ground of this enrollment.
async fn with_token_or_without(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<EnrollmentBasis, EnrollError> {
    let serial_number = applicant.claims.machine.serial_number.as_deref();
    let token = match (applicant.token, services.policy.without_token) {
        (Some(secret), _) => Some(token::spend(tx, secret, serial_number, applicant.now).await?),
        (None, WithoutToken::Refuse) => return Err(TokenRefusal::Missing.into()),
        (None, WithoutToken::Pending) => {
            require_room(tx, services, applicant).await?;
            None
        }
    };
    // Charged only with a valid token. Otherwise a stranger could use up the limit of this serial number.
    if let (Some(_), Some(serial_number)) = (&token, serial_number) {
        services
            .rate_limits
            .charge_serial_number(applicant.network(), serial_number)?;
    }
    let listed = match serial_number {
        Some(serial_number) => inventory::lock(tx, serial_number).await?,
        None => None,
    };
    let (grounds, labels) = grounds_and_labels(token.as_ref(), serial_number, listed);
    Ok(EnrollmentBasis {
        token,
        grounds,
        labels,
        lapsed: None,
    })
}

/// The basis of a key whose token was for its serial number, and was used up or expired. It may wait for the record, if
/// there is one, as a key without a token does. The token no longer limits how
/// many keys wait, so the limits of keys without a token do.
async fn without_lapsed_token(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    refusal: TokenRefusal,
) -> Result<EnrollmentBasis, EnrollError> {
    let (Some(secret), Some(serial_number)) = (applicant.token, applicant.claims.machine.serial_number.as_deref())
    else {
        return Err(refusal.into());
    };
    let may_wait = services.policy.reenrollment != Reenrollment::Refuse
        && token::has_lapsed(tx, secret, Some(serial_number), refusal).await?
        && machines::record::find_by_serial_number(tx, serial_number)
            .await?
            .is_some();
    if !may_wait {
        return Err(refusal.into());
    }
    services
        .rate_limits
        .charge_serial_number(applicant.network(), serial_number)?;
    require_room(tx, services, applicant).await?;
    Ok(EnrollmentBasis {
        lapsed: Some(refusal),
        ..EnrollmentBasis::none()
    })
}

/// The grounds of a key, and the labels of its machine if that is new. The token's labels take precedence over those of
/// the inventory.
pub(super) fn grounds_and_labels(
    token: Option<&EnrollmentToken>,
    serial_number: Option<&str>,
    listed: Option<Labels>,
) -> (Grounds, Labels) {
    let grounds = Grounds::of(token, serial_number, listed.is_some());
    let mut labels = listed.unwrap_or_default();
    labels.extend(token.into_iter().flat_map(|token| token.labels.clone()));
    (grounds, labels)
}

/// Limits how many machines without a token wait at the same time. Administrators could otherwise not keep up.
async fn require_room(tx: &mut Transaction, services: &Services, applicant: &Applicant) -> Result<(), EnrollError> {
    applicant.keep_address_charge();
    let limit = services.policy.without_token_limit;
    let is_full = async |tx: &mut Transaction| {
        let waiting = enrollments::count_waiting_without_token(tx, applicant.now).await?;
        Ok::<_, EnrollError>(waiting >= i64::from(limit))
    };
    // Checked without the lock first, so a flood of calls does not queue for it.
    if is_full(tx).await? {
        return Err(EnrollError::NoRoom { limit });
    }
    duties::wait_for(tx, Duty::WaitWithoutToken).await?;
    if is_full(tx).await? {
        return Err(EnrollError::NoRoom { limit });
    }
    Ok(())
}
