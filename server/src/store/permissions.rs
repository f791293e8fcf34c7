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

/// Which permissions to list.
#[derive(Debug, Default)]
pub(crate) struct PermissionFilter {
    pub(crate) audience: Option<String>,
    pub(crate) name: Option<String>,
}

/// A page of permissions, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    filter: &PermissionFilter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Permission>, StoreError> {
    Ok(sqlx::query_as!(
        Permission,
        "SELECT id, audience, name, description, created_at FROM permissions
         WHERE id > $1 AND ($3::text IS NULL OR audience = $3) AND ($4::text IS NULL OR name = $4)
         ORDER BY id LIMIT $2",
        after.unwrap_or(Uuid::nil()),
        limit,
        filter.audience.as_deref(),
        filter.name.as_deref(),
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

/// Replaces what it allows.
pub(crate) async fn set_description(
    connection: &mut Connection,
    id: Uuid,
    description: &str,
) -> Result<(), StoreError> {
    sqlx::query!("UPDATE permissions SET description = $2 WHERE id = $1", id, description)
        .execute(connection)
        .await?;
    Ok(())
}

/// Deletes a permission and its grants.
pub(crate) async fn delete(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM permissions WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}
