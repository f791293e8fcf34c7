//! `permissions`

use assay_protocol::admin_api::permissions::Permission;
use uuid::Uuid;

use super::{Connection, StoreError};

/// The constraint that a second permission of the same audience and name violates.
pub(crate) const UNIQUE_NAME: &str = "permissions_audience_name_key";

/// Inserts a permission.
pub(crate) async fn insert(connection: &mut Connection, permission: &Permission) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO permissions (id, audience, name, description, created_at) VALUES ($1, $2, $3, $4, $5)",
        permission.id,
        permission.audience,
        permission.name,
        permission.description,
        permission.created_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of permissions, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Permission>, StoreError> {
    Ok(sqlx::query_as!(
        Permission,
        "SELECT id, audience, name, description, created_at FROM permissions
         WHERE id > $1 ORDER BY id LIMIT $2",
        after.unwrap_or(Uuid::nil()),
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Finds a permission.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<Permission>, StoreError> {
    Ok(sqlx::query_as!(
        Permission,
        "SELECT id, audience, name, description, created_at FROM permissions WHERE id = $1",
        id
    )
    .fetch_optional(connection)
    .await?)
}

/// Locks a permission against deletion, and reads it. Several transactions can have this lock at once.
pub(crate) async fn lock_shared(connection: &mut Connection, id: Uuid) -> Result<Option<Permission>, StoreError> {
    Ok(sqlx::query_as!(
        Permission,
        "SELECT id, audience, name, description, created_at FROM permissions WHERE id = $1 FOR KEY SHARE",
        id
    )
    .fetch_optional(connection)
    .await?)
}

/// Locks a permission, and reads it. Other transactions cannot create grants of it meanwhile.
pub(crate) async fn lock(connection: &mut Connection, id: Uuid) -> Result<Option<Permission>, StoreError> {
    Ok(sqlx::query_as!(
        Permission,
        "SELECT id, audience, name, description, created_at FROM permissions WHERE id = $1 FOR UPDATE",
        id
    )
    .fetch_optional(connection)
    .await?)
}

/// Deletes a permission and its grants.
pub(crate) async fn delete(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM permissions WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}
