//! `settings`: one row that all replicas share.

use super::{Connection, StoreError, Transaction};

/// Locks permissions, grants and audiences against other changes, and returns their version. Call it first in a
/// transaction that changes them.
pub(crate) async fn lock_policy(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("SELECT grants_version FROM settings FOR UPDATE")
        .fetch_one(connection)
        .await?)
}

/// The version of permissions, grants and audiences.
pub(crate) async fn policy_version(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("SELECT grants_version FROM settings")
        .fetch_one(connection)
        .await?)
}

/// Begins the next version of permissions, grants and audiences, and invalidates all evaluated grants. Call it before the
/// first change: a trigger keeps each changed row with this version and time. Times never decrease, whatever a replica's clock says.
pub(crate) async fn begin_policy_version(tx: &mut Transaction) -> Result<(), StoreError> {
    let now = tx.now();
    sqlx::query!(
        "UPDATE settings SET grants_version = grants_version + 1, grants_changed_at = greatest(grants_changed_at, $1)",
        now
    )
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Makes every replica reload the server's own keys. Call it in the transaction that changes them.
pub(crate) async fn bump_authority_version(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query!("UPDATE settings SET authority_version = authority_version + 1")
        .execute(connection)
        .await?;
    Ok(())
}

/// The current version of the server's own keys.
pub(crate) async fn authority_version(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("SELECT authority_version FROM settings")
        .fetch_one(connection)
        .await?)
}

/// The trust domain of the server; `None` before its first start.
pub(crate) async fn trust_domain(connection: &mut Connection) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar!("SELECT trust_domain FROM settings")
        .fetch_one(connection)
        .await?)
}

/// Sets the trust domain, which cannot change afterwards.
pub(crate) async fn set_trust_domain(connection: &mut Connection, trust_domain: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE settings SET trust_domain = $1 WHERE trust_domain IS NULL",
        trust_domain
    )
    .execute(connection)
    .await?;
    Ok(())
}
