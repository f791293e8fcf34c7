//! Which next key a machine's current key may admit. A key in software admits it alone. A key in the Secure Enclave
//! does not: one signature, made by root in a moment, would otherwise move the identity to another computer for good.

use assay_protocol::{
    PublicKey,
    admin_api::{
        enrollment_tokens::{Approval, EnrollmentToken},
        enrollments::{EnrollmentKind, EnrollmentStatus},
    },
    machine::KeyStoreKind,
};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{EnrollError, TokenRefusal, renewal::RenewError, renewal_limit, token};
use crate::{
    changes::{Action, Change, EventKind},
    machines::claims::Claims,
    registry::{
        admission::{self, Admitted, Refusal},
        key_rotation::{self, NextKey, RotationRefusal},
    },
    services::Policy,
    store::{
        Transaction, enrollment_tokens,
        enrollments::{self, NewKeyRequest},
        machines::{
            self,
            keys::{GroundOfNext, KeyRecord, KeyStatus},
        },
    },
};

/// A machine's key that requests a next key, or a ground of its own.
pub(super) struct Asking<'a> {
    pub(super) admitted: &'a Admitted,
    /// The machine's present claims.
    pub(super) claims: &'a Claims,
    /// The token of the request, locked.
    pub(super) token: Presented,
}

/// A token in a renewal.
pub(super) enum Presented {
    None,
    Unknown,
    Known(Box<EnrollmentToken>),
}

/// Whether a next key may have a certificate.
pub(super) enum Begun {
    Admitted,
    Waits { enrollment_id: Uuid, since: OffsetDateTime },
}

impl Asking<'_> {
    /// The token, if it is bound to this machine's serial number.
    fn bound_token(&self, now: OffsetDateTime) -> Result<Option<&EnrollmentToken>, TokenRefusal> {
        match &self.token {
            Presented::None => Ok(None),
            Presented::Unknown => Err(TokenRefusal::Unknown),
            Presented::Known(token) => {
                token::check_bound(token, self.admitted.identity.serial_number.as_deref(), now)?;
                Ok(Some(token.as_ref()))
            }
        }
    }

    /// The token, if it also allows a new key for this machine.
    fn replacing_token(&self, now: OffsetDateTime) -> Result<Option<&EnrollmentToken>, TokenRefusal> {
        let token = self.bound_token(now)?;
        match token {
            Some(token) if !token.allow_reenrollment => Err(TokenRefusal::NoReenrollment),
            token => Ok(token),
        }
    }

    fn was_given(&self, token_id: Option<Uuid>) -> bool {
        matches!(&self.token, Presented::Known(token) if Some(token.id) == token_id)
    }
}

/// Admits the next key, or makes it wait. A repeated call changes nothing, and returns the earlier decision.
pub(super) async fn begin(
    tx: &mut Transaction,
    policy: &Policy,
    asking: &Asking<'_>,
    next: &PublicKey,
) -> Result<Result<Begun, Refusal>, RenewError> {
    let Some(known) = machines::keys::find(tx, next.thumbprint()).await? else {
        return Ok(Ok(begin_new(tx, policy, asking, next).await?));
    };
    if known.machine_id != asking.admitted.identity.id {
        return Err(RotationRefusal::OtherMachinesKey.into());
    }
    match known.status {
        KeyStatus::Next => Ok(Ok(Begun::Admitted)),
        KeyStatus::Pending => Ok(Ok(still_waiting(tx, asking, next).await?)),
        KeyStatus::Denied => Ok(Err(denial(&known))),
        KeyStatus::Current | KeyStatus::Superseded | KeyStatus::Revoked => Err(RotationRefusal::UsedBefore.into()),
    }
}

/// Adds a bound token to the grounds of the signing key. A token that the key already has is not used again.
pub(super) async fn give_token_to_signer(tx: &mut Transaction, asking: &Asking<'_>) -> Result<(), RenewError> {
    let Admitted {
        presence,
        identity,
        key,
        ..
    } = asking.admitted;
    let signer = presence.current_key;
    if *key == KeyStatus::Next || asking.was_given(identity.grounds.token) {
        return Ok(());
    }
    let own = enrollments::find_decision(tx, signer).await?;
    if asking.was_given(own.and_then(|own| own.token_id)) {
        return Ok(());
    }
    let Some(token) = asking.bound_token(tx.now()).map_err(EnrollError::from)? else {
        return Ok(());
    };
    if token.approval == Approval::Manual {
        return Err(EnrollError::from(TokenRefusal::Manual).into());
    }
    enrollment_tokens::count_use(tx, token.id).await?;
    let (before, after) = (identity.grounds, identity.grounds.with_token(token));
    machines::grounds::set(tx, &presence.machine, after).await?;
    machines::presence::bump_record_version(tx, &presence.machine).await?;
    let change = Change::new(Action::MachineGiveToken, identity.id)
        .before(json!({ "assurance": before.assurance() }))
        .after(json!({ "assurance": after.assurance(), "key": signer, "token_id": token.id }));
    Ok(tx.record(change).await?)
}

async fn begin_new(
    tx: &mut Transaction,
    policy: &Policy,
    asking: &Asking<'_>,
    next: &PublicKey,
) -> Result<Begun, RenewError> {
    let Admitted {
        presence,
        identity,
        key,
        store,
        ..
    } = asking.admitted;
    if *key == KeyStatus::Next {
        return Err(RotationRefusal::Unfinished.into());
    }
    renewal_limit::require_rotation(tx, policy.renewals_per_day, &presence.machine).await?;
    let token = asking.replacing_token(tx.now()).map_err(EnrollError::from)?;
    let machine = (&presence.machine, identity.current_key);
    match token {
        None if *store == Some(KeyStoreKind::Software) => {
            key_rotation::begin(tx, machine, NextKey::New(next), None).await?;
            Ok(Begun::Admitted)
        }
        Some(token) if token.approval == Approval::Automatic => {
            enrollment_tokens::count_use(tx, token.id).await?;
            let ground = Some(ground_of(token));
            key_rotation::begin(tx, machine, NextKey::New(next), ground).await?;
            record(tx, policy, asking, next, (EnrollmentStatus::Approved, Some(token.id))).await?;
            Ok(Begun::Admitted)
        }
        token => {
            if let Some(token) = token {
                enrollment_tokens::count_use(tx, token.id).await?;
            }
            wait(tx, policy, asking, next, token.map(|token| token.id)).await
        }
    }
}

async fn wait(
    tx: &mut Transaction,
    policy: &Policy,
    asking: &Asking<'_>,
    next: &PublicKey,
    token_id: Option<Uuid>,
) -> Result<Begun, RenewError> {
    let (machine, since) = (&asking.admitted.identity, tx.now());
    machines::keys::insert(tx, next, machine.id, (KeyStatus::Pending, None), since).await?;
    let enrollment_id = record(tx, policy, asking, next, (EnrollmentStatus::Pending, token_id)).await?;
    let detail = json!({
        "enrollment_id": enrollment_id, "key": next.thumbprint(), "previous_key": machine.current_key,
    });
    let change = Change::new(Action::EnrollmentRequest, enrollment_id)
        .after(detail.clone())
        .event(machine.id, EventKind::MachineKeyRotationRequested, detail);
    tx.record(change).await?;
    Ok(Begun::Waits { enrollment_id, since })
}

/// Admits a pending key whose machine sends a token later.
async fn still_waiting(tx: &mut Transaction, asking: &Asking<'_>, next: &PublicKey) -> Result<Begun, RenewError> {
    let key = next.thumbprint();
    let decision = enrollments::find_decision(tx, key).await?;
    let Some(decision) = decision.filter(|decision| decision.kind == EnrollmentKind::Rotation) else {
        return Err(RotationRefusal::Reenrolls.into());
    };
    let waits = Begun::Waits {
        enrollment_id: decision.id,
        since: decision.requested_at,
    };
    if asking.was_given(decision.token_id) {
        return Ok(waits);
    }
    let token = asking.replacing_token(tx.now()).map_err(EnrollError::from)?;
    let Some(token) = token.filter(|token| token.approval == Approval::Automatic) else {
        return Ok(waits);
    };
    let Admitted { presence, identity, .. } = asking.admitted;
    enrollment_tokens::count_use(tx, token.id).await?;
    enrollments::admit(tx, decision.id, Some(token.id)).await?;
    let machine = (&presence.machine, identity.current_key);
    key_rotation::begin(tx, machine, NextKey::Waited(key), Some(ground_of(token))).await?;
    Ok(Begun::Admitted)
}

fn ground_of(token: &EnrollmentToken) -> GroundOfNext {
    GroundOfNext {
        token: Some(token.id),
        approval: None,
        of_key: token.uses == 0,
    }
}

async fn record(
    tx: &mut Transaction,
    policy: &Policy,
    asking: &Asking<'_>,
    next: &PublicKey,
    (status, token_id): (EnrollmentStatus, Option<Uuid>),
) -> Result<Uuid, RenewError> {
    let (machine, now) = (&asking.admitted.identity, tx.now());
    let new = NewKeyRequest {
        id: tx.new_id(),
        kind: EnrollmentKind::Rotation,
        status,
        machine_id: machine.id,
        key: next.thumbprint(),
        previous_key: Some(machine.current_key),
        token_id,
        claims: asking.claims,
        address: tx.origin().address,
        now,
        expires_at: now.saturating_add(policy.pending_ttl),
    };
    enrollments::insert(tx, &new).await?;
    Ok(new.id)
}

fn denial(denied: &KeyRecord) -> Refusal {
    admission::key_refusal(denied).unwrap_or(Refusal::Unknown)
}
