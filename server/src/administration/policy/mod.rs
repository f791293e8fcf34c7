//! All permissions, grants and audiences as one document.

mod plan;

use assay_protocol::admin_api::policy::{AppliedPolicy, Policy, PolicyKind};

use self::plan::{Difference, Plan, Present};
use super::{
    audiences::{self, AudienceError},
    grants::{self, GrantError},
    permissions::{self, PermissionError},
};
use crate::{
    changes::Origin,
    store::{self, Connection, Store, StoreError, Transaction, grants::GrantFilter, permissions::PermissionFilter, tx},
};

/// The most permissions, grants or audiences of a document.
const MOST_PARTS: usize = 10_000;

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    #[error("the policy was changed after it was read; read it again, and compare")]
    Changed,
    #[error("permissions, grants and audiences: at most {MOST_PARTS} each")]
    TooMany,
    /// One part is invalid by itself.
    #[error("the {kind} {name}: {detail}")]
    Part {
        kind: PolicyKind,
        name: String,
        detail: String,
    },
    #[error("the {kind} {name} is there twice")]
    Twice { kind: PolicyKind, name: String },
    #[error("the grant {grant}: there is no permission {permission} at {audience}; add it to permissions")]
    NoPermission {
        grant: String,
        audience: String,
        permission: String,
    },
    #[error("the grants {first} and {second} give the same permission to the same machines under the same conditions")]
    Equal { first: String, second: String },
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(PolicyError);

/// How to apply a document.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mode {
    /// Whether what the document lacks is deleted.
    pub(crate) prune: bool,
    /// Whether nothing is changed.
    pub(crate) dry_run: bool,
}

/// The version of the policy, and the policy.
pub(crate) async fn read(store: &Store) -> Result<(i64, Policy), PolicyError> {
    let mut snapshot = store.snapshot().await?;
    let version = store::settings::policy_version(&mut snapshot).await?;
    Ok((version, load(&mut snapshot).await?.document()))
}

/// Makes permissions, grants and audiences equal to a document that was made for the version `expected`. Returns the
/// version afterwards and the differences.
pub(crate) async fn apply(
    store: &Store,
    origin: &Origin,
    expected: i64,
    mode: Mode,
    document: Policy,
) -> Result<(i64, AppliedPolicy), PolicyError> {
    let document = plan::checked(document)?;
    tx!(store, ApplyPolicy, origin => apply_once(expected, mode, &document)).await
}

async fn load(connection: &mut Connection) -> Result<Present, StoreError> {
    let permissions = store::permissions::list(connection, &PermissionFilter::default(), None, i64::MAX).await?;
    let grants = store::grants::list(connection, &GrantFilter::default(), None, i64::MAX).await?;
    let audiences = store::audiences::list(connection, None, i64::MAX).await?;
    Ok(Present::new(permissions, grants, audiences))
}

async fn apply_once(
    tx: &mut Transaction,
    expected: i64,
    mode: Mode,
    document: &Policy,
) -> Result<(i64, AppliedPolicy), PolicyError> {
    let version = store::settings::lock_policy(tx).await?;
    let present = load(tx).await?;
    let now = tx.now();
    let plan = Plan::new(&present, document, mode.prune, now, || tx.new_id())?;
    // A call whose answer was lost is repeated with the tag of the version before it.
    if version != expected && !plan.is_empty() {
        return Err(PolicyError::Changed);
    }
    let applied = AppliedPolicy {
        dry_run: mode.dry_run,
        changes: plan.changes()?,
    };
    if mode.dry_run || plan.is_empty() {
        return Ok((version, applied));
    }
    store::settings::begin_policy_version(tx).await?;
    write(tx, &plan).await?;
    Ok((version.saturating_add(1), applied))
}

/// Creates and replaces before it deletes: a grant that moves to another permission must have left the one that is
/// deleted, because Postgres deletes a permission's grants with it.
async fn write(tx: &mut Transaction, plan: &Plan) -> Result<(), PolicyError> {
    for Difference { before, after, .. } in &plan.permissions {
        match (before, after) {
            (None, Some(after)) => permissions::write_new(tx, after).await.map_err(of_permission)?,
            (Some(before), Some(after)) if before != after => permissions::write_replaced(tx, before, after).await?,
            _ => {}
        }
    }
    for Difference { before, after, .. } in &plan.audiences {
        match (before, after) {
            (None, Some(after)) => audiences::write_new(tx, after).await.map_err(of_audience)?,
            (Some(before), Some(after)) if before != after => audiences::write_replaced(tx, before, after).await?,
            (Some(before), None) => audiences::write_deleted(tx, before).await?,
            _ => {}
        }
    }
    for Difference { before, after, .. } in &plan.grants {
        match (before, after) {
            (None, Some(after)) => grants::write_new(tx, after).await.map_err(of_grant)?,
            (Some(before), Some(after)) if before != after => {
                grants::write_replaced(tx, before, after).await.map_err(of_grant)?;
            }
            (Some(before), None) => grants::write_deleted(tx, before).await?,
            _ => {}
        }
    }
    for Difference { before, after, .. } in &plan.permissions {
        if let (Some(before), None) = (before, after) {
            permissions::write_deleted(tx, before, &[]).await?;
        }
    }
    Ok(())
}

/// The plan has excluded every other error.
fn of_permission(error: PermissionError) -> PolicyError {
    match error {
        PermissionError::Store(error) => error.into(),
        other => corrupt(&other),
    }
}

fn of_audience(error: AudienceError) -> PolicyError {
    match error {
        AudienceError::Store(error) => error.into(),
        other => corrupt(&other),
    }
}

fn of_grant(error: GrantError) -> PolicyError {
    match error {
        GrantError::Store(error) => error.into(),
        other => corrupt(&other),
    }
}

fn corrupt(error: &dyn std::error::Error) -> PolicyError {
    StoreError::Corrupt(format!("a policy that was checked is refused: {error}")).into()
}
