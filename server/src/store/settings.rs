//! `settings`, the one row of what all replicas share.

use super::{Connection, StoreError};

/// Makes everything that was evaluated so far stale. Belongs into the transaction that changes permissions or grants:
/// the row lock makes such transactions commit one after the other, so that a version names one state.
pub(crate) async fn bump_grants_version(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query!("UPDATE settings SET grants_version = grants_version + 1")
        .execute(connection)
        .await?;
    Ok(())
}

/// Makes every replica read the server's own keys anew. Belongs into the transaction that changes them.
pub(crate) async fn bump_authority_version(connection: &mut Connection) -> Result<(), StoreError> {
    sqlx::query!("UPDATE settings SET authority_version = authority_version + 1")
        .execute(connection)
        .await?;
    Ok(())
}

/// Which version of the server's own keys is the newest.
pub(crate) async fn authority_version(connection: &mut Connection) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!("SELECT authority_version FROM settings")
        .fetch_one(connection)
        .await?)
}

/// The trust domain that the server was founded for; `None` before its first start.
pub(crate) async fn trust_domain(connection: &mut Connection) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar!("SELECT trust_domain FROM settings")
        .fetch_one(connection)
        .await?)
}

/// Founds the server for a trust domain, for good.
pub(crate) async fn set_trust_domain(connection: &mut Connection, trust_domain: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE settings SET trust_domain = $1 WHERE trust_domain IS NULL",
        trust_domain
    )
    .execute(connection)
    .await?;
    Ok(())
}
