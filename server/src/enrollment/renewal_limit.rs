//! How often one machine may renew. Each renewal leaves a certificate and audit entries, which are never deleted, and
//! each rotation puts a certificate on the revocation list. Without a limit, one machine could fill both.
//!
//! The rows are counted and not the calls, so the limit holds on all replicas, and a repeated call costs nothing.

use std::num::NonZeroU32;

use time::{Duration, OffsetDateTime};

use super::{EnrollError, renewal::RenewError};
use crate::{
    rate_limits::Exceeded,
    store::{
        Transaction,
        certificates::{self, Recent},
        machines::{self, presence::LockedMachine},
    },
};

const WINDOW: Duration = Duration::DAY;
/// How far another replica's clock may be ahead. What was issued later than this was issued by a clock that was wrong.
const REPLICAS_LAG: Duration = Duration::HOUR;
/// One renewal in so many may be a rotation.
const RENEWALS_PER_ROTATION: u32 = 6;

/// Checks that a machine may get another certificate today.
pub(super) async fn require_renewal(
    tx: &mut Transaction,
    limit: Option<NonZeroU32>,
    machine: &LockedMachine,
) -> Result<(), RenewError> {
    let Some(limit) = limit else { return Ok(()) };
    let now = tx.now();
    let within = (now.saturating_sub(WINDOW), now.saturating_add(REPLICAS_LAG));
    let recent = certificates::renewals_within(tx, machine, within).await?;
    require(recent, limit.get(), now)
}

/// Checks that a machine may request another next key today.
pub(super) async fn require_rotation(
    tx: &mut Transaction,
    limit: Option<NonZeroU32>,
    machine: &LockedMachine,
) -> Result<(), RenewError> {
    let Some(limit) = limit else { return Ok(()) };
    let now = tx.now();
    let recent = machines::keys::rotations_since(tx, machine, now.saturating_sub(WINDOW)).await?;
    require(recent, limit.get().div_ceil(RENEWALS_PER_ROTATION), now)
}

fn require(recent: Recent, limit: u32, now: OffsetDateTime) -> Result<(), RenewError> {
    if recent.count < i64::from(limit) {
        return Ok(());
    }
    let ends = recent.first_at.unwrap_or(now).saturating_add(WINDOW);
    let retry_after_seconds = u64::try_from((ends - now).whole_seconds()).unwrap_or(0).max(1);
    Err(EnrollError::from(Exceeded { retry_after_seconds }).into())
}
