//! Audiences whose grant tokens differ from the usual ones.

use assay_grants::{TemplateError, TokenTemplate};
use assay_protocol::admin_api::audiences::{Audience, CreateAudience, ReplaceAudience, TokenForm};
use uuid::Uuid;

use super::permissions::{LONGEST_AUDIENCE, is_audience};
use crate::{
    changes::{Action, Change, Origin},
    store::{self, Store, StoreError, Transaction, tx},
};

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AudienceError {
    #[error(
        "audience must have 1 to {LONGEST_AUDIENCE} characters, without control characters or white space at either end"
    )]
    Audience,
    #[error(transparent)]
    Token(#[from] TemplateError),
    #[error("this audience already has a form of tokens; replace it with PUT")]
    Exists,
    #[error("there is no such audience")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(AudienceError);

/// Creates an audience. It needs no permission yet.
pub(crate) async fn create(store: &Store, origin: &Origin, request: CreateAudience) -> Result<Audience, AudienceError> {
    check(&request.audience, &request.token)?;
    let audience = Audience {
        id: store.new_id(),
        audience: request.audience,
        token: request.token,
        created_at: store.now(),
    };
    tx!(store, CreateAudience, origin => insert(&audience)).await?;
    Ok(audience)
}

/// Replaces the form of an audience's tokens.
pub(crate) async fn replace(
    store: &Store,
    origin: &Origin,
    id: Uuid,
    request: ReplaceAudience,
) -> Result<Audience, AudienceError> {
    TokenTemplate::parse(&request.token)?;
    tx!(store, ReplaceAudience, origin => replace_token(id, &request.token)).await
}

/// A page of audiences, oldest first.
pub(crate) async fn list(store: &Store, after: Option<Uuid>, rows: i64) -> Result<Vec<Audience>, AudienceError> {
    Ok(store::audiences::list(&mut *store.connection().await?, after, rows).await?)
}

/// One audience.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<Audience, AudienceError> {
    store::audiences::find(&mut *store.connection().await?, id)
        .await?
        .ok_or(AudienceError::Unknown)
}

/// Deletes an audience. Its tokens are the usual ones from then on.
pub(crate) async fn delete(store: &Store, origin: &Origin, id: Uuid) -> Result<(), AudienceError> {
    tx!(store, DeleteAudience, origin => delete_once(id)).await
}

async fn insert(tx: &mut Transaction, audience: &Audience) -> Result<(), AudienceError> {
    store::settings::lock_policy(tx).await?;
    store::settings::begin_policy_version(tx).await?;
    write_new(tx, audience).await
}

async fn replace_token(tx: &mut Transaction, id: Uuid, token: &TokenForm) -> Result<Audience, AudienceError> {
    store::settings::lock_policy(tx).await?;
    let before = store::audiences::find(tx, id).await?.ok_or(AudienceError::Unknown)?;
    if before.token == *token {
        return Ok(before);
    }
    let after = Audience {
        token: token.clone(),
        ..before.clone()
    };
    store::settings::begin_policy_version(tx).await?;
    write_replaced(tx, &before, &after).await?;
    Ok(after)
}

async fn delete_once(tx: &mut Transaction, id: Uuid) -> Result<(), AudienceError> {
    store::settings::lock_policy(tx).await?;
    let audience = store::audiences::find(tx, id).await?.ok_or(AudienceError::Unknown)?;
    store::settings::begin_policy_version(tx).await?;
    Ok(write_deleted(tx, &audience).await?)
}

/// Inserts an audience in a version that has begun.
pub(super) async fn write_new(tx: &mut Transaction, audience: &Audience) -> Result<(), AudienceError> {
    match store::audiences::insert(tx, audience).await {
        Err(error) if error.violates(store::audiences::UNIQUE_AUDIENCE) => return Err(AudienceError::Exists),
        done => done?,
    }
    let change = Change::new(Action::AudienceCreate, audience.id).after(store::json(audience)?);
    Ok(tx.record(change).await?)
}

/// Replaces the form of an audience's tokens in a version that has begun.
pub(super) async fn write_replaced(
    tx: &mut Transaction,
    before: &Audience,
    after: &Audience,
) -> Result<(), StoreError> {
    store::audiences::set_token(tx, after.id, &after.token).await?;
    let change = Change::new(Action::AudienceReplace, after.id)
        .before(store::json(before)?)
        .after(store::json(after)?);
    tx.record(change).await
}

/// Deletes an audience in a version that has begun.
pub(super) async fn write_deleted(tx: &mut Transaction, audience: &Audience) -> Result<(), StoreError> {
    store::audiences::delete(tx, audience.id).await?;
    let change = Change::new(Action::AudienceDelete, audience.id).before(store::json(audience)?);
    tx.record(change).await
}

/// Checks the name of an audience and the form of its tokens.
pub(super) fn check(audience: &str, token: &TokenForm) -> Result<(), AudienceError> {
    if !is_audience(audience) {
        return Err(AudienceError::Audience);
    }
    TokenTemplate::parse(token)?;
    Ok(())
}
