//! Creating and listing permissions, and deleting them with their grants.

use assay_protocol::admin_api::permissions::{CreatePermission, Permission};
use serde_json::json;
use uuid::Uuid;

use crate::{
    changes::{Action, Change, Origin},
    store::{self, Store, StoreError, Transaction, tx},
    text::{is_line, is_prose},
};

pub(super) const LONGEST_AUDIENCE: usize = 256;
const LONGEST_NAME: usize = 128;
const LONGEST_DESCRIPTION: usize = 2_000;

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

/// A page of permissions, oldest first.
pub(crate) async fn list(store: &Store, after: Option<Uuid>, rows: i64) -> Result<Vec<Permission>, PermissionError> {
    Ok(store::permissions::list(&mut *store.connection().await?, after, rows).await?)
}

/// One permission.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<Permission, PermissionError> {
    store::permissions::find(&mut *store.connection().await?, id)
        .await?
        .ok_or(PermissionError::Unknown)
}

/// Deletes a permission and its grants.
pub(crate) async fn delete(store: &Store, origin: &Origin, id: Uuid) -> Result<(), PermissionError> {
    tx!(store, DeletePermission, origin => delete_with_grants(id)).await
}

async fn insert(tx: &mut Transaction, permission: &Permission) -> Result<(), PermissionError> {
    match store::permissions::insert(tx, permission).await {
        Err(error) if error.violates(store::permissions::UNIQUE_NAME) => return Err(PermissionError::Exists),
        done => done?,
    }
    store::settings::bump_grants_version(tx).await?;
    let change = Change::new(Action::PermissionCreate, permission.id).after(store::json(permission)?);
    Ok(tx.record(change).await?)
}

async fn delete_with_grants(tx: &mut Transaction, id: Uuid) -> Result<(), PermissionError> {
    let permission = store::permissions::lock(tx, id)
        .await?
        .ok_or(PermissionError::Unknown)?;
    let grants = store::grants::ids_of_permission(tx, id).await?;
    store::permissions::delete(tx, id).await?;
    store::settings::bump_grants_version(tx).await?;
    let before = json!({ "permission": store::json(&permission)?, "grants": grants });
    let change = Change::new(Action::PermissionDelete, id).before(before);
    Ok(tx.record(change).await?)
}

fn check(request: &CreatePermission) -> Result<(), PermissionError> {
    if !is_audience(&request.audience) {
        return Err(PermissionError::Audience);
    }
    let name = request.name.as_bytes();
    if name.is_empty() || name.len() > LONGEST_NAME || !name.iter().copied().all(is_scope_byte) {
        return Err(PermissionError::Name);
    }
    if !is_prose(&request.description, 0..=LONGEST_DESCRIPTION) {
        return Err(PermissionError::Description);
    }
    Ok(())
}

pub(super) fn is_audience(text: &str) -> bool {
    is_line(text, 1..=LONGEST_AUDIENCE) && text.trim() == text
}

/// RFC 6749, section 3.3. A relying party splits the `scope` of a grant token at spaces.
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
