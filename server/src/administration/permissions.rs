//! Creating, describing, listing and deleting permissions.

use assay_protocol::admin_api::permissions::{CreatePermission, Permission, ReplacePermission};
use serde_json::json;
use uuid::Uuid;

use crate::{
    changes::{Action, Change, Origin},
    store::{self, Store, StoreError, Transaction, permissions::PermissionFilter, tx},
    text::{is_line, is_prose},
};

pub(super) const LONGEST_AUDIENCE: usize = 256;
pub(super) const LONGEST_NAME: usize = 128;
pub(super) const LONGEST_DESCRIPTION: usize = 2_000;

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PermissionError {
    #[error(
        "audience must have 1 to {LONGEST_AUDIENCE} characters, without control characters or white space at either end"
    )]
    Audience,
    #[error("name must be a scope token of RFC 6749: 1 to {LONGEST_NAME} visible ASCII characters, without \" and \\")]
    Name,
    #[error("description must have at most {LONGEST_DESCRIPTION} characters, without control characters")]
    Description,
    #[error("this audience already has a permission with this name")]
    Exists,
    #[error(
        "this permission has {grants} grants; delete them first, or delete it with cascade=true, which deletes them with it"
    )]
    HasGrants { grants: usize },
    #[error("there is no such permission")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(PermissionError);

/// Creates a permission.
pub(crate) async fn create(
    store: &Store,
    origin: &Origin,
    request: CreatePermission,
) -> Result<Permission, PermissionError> {
    check(&request)?;
    let permission = Permission {
        id: store.new_id(),
        audience: request.audience,
        name: request.name,
        description: request.description,
        created_at: store.now(),
    };
    tx!(store, CreatePermission, origin => insert(&permission)).await?;
    Ok(permission)
}

/// Replaces the description of a permission.
pub(crate) async fn replace(
    store: &Store,
    origin: &Origin,
    id: Uuid,
    request: ReplacePermission,
) -> Result<Permission, PermissionError> {
    if !is_description(&request.description) {
        return Err(PermissionError::Description);
    }
    tx!(store, ReplacePermission, origin => describe(id, &request.description)).await
}

/// A page of permissions, oldest first.
pub(crate) async fn list(
    store: &Store,
    filter: &PermissionFilter,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<Permission>, PermissionError> {
    Ok(store::permissions::list(&mut *store.connection().await?, filter, after, rows).await?)
}

/// One permission.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<Permission, PermissionError> {
    store::permissions::find(&mut *store.connection().await?, id)
        .await?
        .ok_or(PermissionError::Unknown)
}

/// Deletes a permission. With `cascade`, deletes its grants with it; otherwise refuses if it has any.
pub(crate) async fn delete(store: &Store, origin: &Origin, id: Uuid, cascade: bool) -> Result<(), PermissionError> {
    tx!(store, DeletePermission, origin => delete_with_grants(id, cascade)).await
}

async fn insert(tx: &mut Transaction, permission: &Permission) -> Result<(), PermissionError> {
    store::settings::lock_policy(tx).await?;
    store::settings::begin_policy_version(tx).await?;
    write_new(tx, permission).await
}

async fn describe(tx: &mut Transaction, id: Uuid, description: &str) -> Result<Permission, PermissionError> {
    store::settings::lock_policy(tx).await?;
    let before = store::permissions::find(tx, id)
        .await?
        .ok_or(PermissionError::Unknown)?;
    if before.description == description {
        return Ok(before);
    }
    let after = Permission {
        description: description.to_owned(),
        ..before.clone()
    };
    store::settings::begin_policy_version(tx).await?;
    write_replaced(tx, &before, &after).await?;
    Ok(after)
}

async fn delete_with_grants(tx: &mut Transaction, id: Uuid, cascade: bool) -> Result<(), PermissionError> {
    store::settings::lock_policy(tx).await?;
    let permission = store::permissions::find(tx, id)
        .await?
        .ok_or(PermissionError::Unknown)?;
    let grants = store::grants::ids_of_permission(tx, id).await?;
    if !cascade && !grants.is_empty() {
        return Err(PermissionError::HasGrants { grants: grants.len() });
    }
    store::settings::begin_policy_version(tx).await?;
    Ok(write_deleted(tx, &permission, &grants).await?)
}

/// Inserts a permission in a version that has begun.
pub(super) async fn write_new(tx: &mut Transaction, permission: &Permission) -> Result<(), PermissionError> {
    match store::permissions::insert(tx, permission).await {
        Err(error) if error.violates(store::permissions::UNIQUE_NAME) => return Err(PermissionError::Exists),
        done => done?,
    }
    let change = Change::new(Action::PermissionCreate, permission.id).after(store::json(permission)?);
    Ok(tx.record(change).await?)
}

/// Replaces the description of a permission in a version that has begun.
pub(super) async fn write_replaced(
    tx: &mut Transaction,
    before: &Permission,
    after: &Permission,
) -> Result<(), StoreError> {
    store::permissions::set_description(tx, after.id, &after.description).await?;
    let change = Change::new(Action::PermissionReplace, after.id)
        .before(store::json(before)?)
        .after(store::json(after)?);
    tx.record(change).await
}

/// Deletes a permission with these grants in a version that has begun.
pub(super) async fn write_deleted(
    tx: &mut Transaction,
    permission: &Permission,
    grants: &[Uuid],
) -> Result<(), StoreError> {
    store::permissions::delete(tx, permission.id).await?;
    let before = json!({ "permission": store::json(permission)?, "grants": grants });
    let change = Change::new(Action::PermissionDelete, permission.id).before(before);
    tx.record(change).await
}

pub(super) fn check(request: &CreatePermission) -> Result<(), PermissionError> {
    if !is_audience(&request.audience) {
        return Err(PermissionError::Audience);
    }
    if !is_scope_token(&request.name) {
        return Err(PermissionError::Name);
    }
    if !is_description(&request.description) {
        return Err(PermissionError::Description);
    }
    Ok(())
}

pub(super) fn is_audience(text: &str) -> bool {
    is_line(text, 1..=LONGEST_AUDIENCE) && text.trim() == text
}

pub(super) fn is_description(text: &str) -> bool {
    is_prose(text, 0..=LONGEST_DESCRIPTION)
}

/// RFC 6749, section 3.3. A relying party splits the `scope` of a grant token at spaces.
pub(super) fn is_scope_token(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(is_scope_byte)
}

fn is_scope_byte(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn request(audience: &str, name: &str) -> CreatePermission {
        CreatePermission {
            audience: audience.into(),
            name: name.into(),
            description: String::new(),
        }
    }

    #[rstest]
    #[case("https://git.example", "repo:read")]
    #[case("build cluster", "deploy/production!#$%&'()*+,-./[]^_`{|}~")]
    fn a_request_within_the_limits_is_accepted(#[case] audience: &str, #[case] name: &str) {
        assert!(check(&request(audience, name)).is_ok());
    }

    #[rstest]
    fn a_name_is_a_scope_token(#[values("", "a b", "a\"b", "a\\b", "ä", "a\u{7f}", "a\n")] name: &str) {
        assert!(matches!(check(&request("a", name)), Err(PermissionError::Name)));
    }

    #[rstest]
    fn an_audience_is_one_line(#[values("", " ", " a", "a\n", "a\u{1b}[2J")] audience: &str) {
        assert!(matches!(check(&request(audience, "a")), Err(PermissionError::Audience)));
    }

    #[test]
    fn lengths_are_bounded() {
        assert!(check(&request(&"a".repeat(256), &"n".repeat(128))).is_ok());
        assert!(check(&request(&"a".repeat(257), "n")).is_err());
        assert!(check(&request("a", &"n".repeat(129))).is_err());
    }
}
