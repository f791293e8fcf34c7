//! `grants`, with their permissions.

use std::collections::HashMap;

use assay_grants::{Catalog, CatalogGrant, TemplateError, TokenTemplate};
use assay_protocol::admin_api::grants::{Conditions, Grant, Selector};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, json, parse_json};

/// The constraint that a second grant of the same name violates.
pub(crate) const UNIQUE_NAME: &str = "grants_name_key";

/// Which grants to list. An absent member selects all.
#[derive(Debug, Default)]
pub(crate) struct GrantFilter {
    pub(crate) name: Option<String>,
    pub(crate) permission_id: Option<Uuid>,
    pub(crate) audience: Option<String>,
}

struct Row {
    id: Uuid,
    name: String,
    description: String,
    permission_id: Uuid,
    audience: String,
    permission: String,
    selector: Value,
    conditions: Value,
    expires_at: Option<OffsetDateTime>,
    created_at: OffsetDateTime,
    changed_at: OffsetDateTime,
}

impl TryFrom<Row> for Grant {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            name: row.name,
            description: row.description,
            permission_id: row.permission_id,
            audience: row.audience,
            permission: row.permission,
            selector: parse_json(row.selector)?,
            conditions: parse_json(row.conditions)?,
            expires_at: row.expires_at,
            created_at: row.created_at,
            changed_at: row.changed_at,
        })
    }
}

/// All grants and their version. A single statement reads them, so they belong to the same snapshot.
pub(crate) async fn load_catalog(connection: &mut Connection) -> Result<Catalog, StoreError> {
    let rows = sqlx::query!(
        r#"SELECT settings.grants_version, given.id AS "id?", given.audience AS "audience?", given.name AS "name?",
                  given.selector AS "selector?", given.conditions AS "conditions?", given.expires_at AS "expires_at?",
                  given.token AS "token?"
           FROM settings
           LEFT JOIN (SELECT grants.id, permissions.audience, permissions.name, selector, conditions, expires_at, NULL::jsonb AS token
                      FROM grants JOIN permissions ON permissions.id = grants.permission_id
                      UNION ALL
                      SELECT id, audience, NULL, NULL, NULL, NULL, token FROM audiences) AS given ON true"#
    )
    .fetch_all(connection)
    .await?;
    let version = rows
        .first()
        .map(|row| row.grants_version)
        .ok_or_else(|| StoreError::Corrupt("settings has no row".to_owned()))?;
    let (mut grants, mut tokens) = (Vec::with_capacity(rows.len()), HashMap::new());
    for row in rows {
        if let (Some(audience), Some(token)) = (&row.audience, row.token) {
            tokens.insert(audience.clone(), parse_token(token));
            continue;
        }
        // A version without grants is one row of nulls.
        let (Some(id), Some(audience), Some(permission), Some(selector), Some(conditions)) =
            (row.id, row.audience, row.name, row.selector, row.conditions)
        else {
            continue;
        };
        grants.push(CatalogGrant {
            id,
            audience,
            permission,
            selector: parse_json::<Selector>(selector)?,
            conditions: parse_json::<Conditions>(conditions)?,
            expires_at: row.expires_at,
        });
    }
    Ok(Catalog::new(version, grants).with_tokens(tokens))
}

fn parse_token(token: Value) -> Result<TokenTemplate, TemplateError> {
    let form = parse_json(token).map_err(|_| TemplateError::Unknown)?;
    TokenTemplate::parse(&form)
}

/// Inserts a grant.
pub(crate) async fn insert(connection: &mut Connection, grant: &Grant) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO grants (id, name, description, permission_id, selector, conditions, expires_at, created_at, changed_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        grant.id,
        grant.name,
        grant.description,
        grant.permission_id,
        json(&grant.selector)?,
        json(&grant.conditions)?,
        grant.expires_at,
        grant.created_at,
        grant.changed_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Replaces a grant, except for when it was created.
pub(crate) async fn replace(connection: &mut Connection, grant: &Grant) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE grants SET name = $2, description = $3, permission_id = $4, selector = $5, conditions = $6,
                           expires_at = $7, changed_at = $8
         WHERE id = $1",
        grant.id,
        grant.name,
        grant.description,
        grant.permission_id,
        json(&grant.selector)?,
        json(&grant.conditions)?,
        grant.expires_at,
        grant.changed_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The name of another grant that gives the same permission to the same machines under the same conditions.
pub(crate) async fn find_equal(connection: &mut Connection, grant: &Grant) -> Result<Option<String>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT name FROM grants
         WHERE permission_id = $1 AND selector = $2 AND conditions = $3 AND expires_at IS NOT DISTINCT FROM $4
               AND id <> $5
         LIMIT 1",
        grant.permission_id,
        json(&grant.selector)?,
        json(&grant.conditions)?,
        grant.expires_at,
        grant.id,
    )
    .fetch_optional(connection)
    .await?)
}

/// A page of grants, oldest first.
pub(crate) async fn list(
    connection: &mut Connection,
    filter: &GrantFilter,
    after: Option<Uuid>,
    limit: i64,
) -> Result<Vec<Grant>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT grants.id, grants.name, grants.description, permission_id, audience, permissions.name AS permission,
                selector, conditions, expires_at, grants.created_at, changed_at
         FROM grants JOIN permissions ON permissions.id = permission_id
         WHERE grants.id > $1 AND ($3::text IS NULL OR grants.name = $3)
               AND ($4::uuid IS NULL OR permission_id = $4) AND ($5::text IS NULL OR audience = $5)
         ORDER BY grants.id LIMIT $2",
        after.unwrap_or(Uuid::nil()),
        limit,
        filter.name.as_deref(),
        filter.permission_id,
        filter.audience.as_deref(),
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// Finds a grant.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<Grant>, StoreError> {
    sqlx::query_as!(
        Row,
        "SELECT grants.id, grants.name, grants.description, permission_id, audience, permissions.name AS permission,
                selector, conditions, expires_at, grants.created_at, changed_at
         FROM grants JOIN permissions ON permissions.id = permission_id WHERE grants.id = $1",
        id
    )
    .fetch_optional(connection)
    .await?
    .map(TryInto::try_into)
    .transpose()
}

/// The grants of a permission, which are deleted with it.
pub(crate) async fn ids_of_permission(
    connection: &mut Connection,
    permission_id: Uuid,
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM grants WHERE permission_id = $1 ORDER BY id",
        permission_id
    )
    .fetch_all(connection)
    .await?)
}

/// Deletes a grant.
pub(crate) async fn delete(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("DELETE FROM grants WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}
