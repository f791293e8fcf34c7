//! `acme_accounts`

use assay_authority::EcKey;
use assay_protocol::{KeyThumbprint, words};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, parse_text};

/// The constraint that a second account with the same key violates.
pub(crate) const ONE_PER_KEY: &str = "acme_accounts_key_thumbprint_key";

/// An account.
#[derive(Debug, Clone)]
pub(crate) struct Account {
    pub(crate) id: Uuid,
    pub(crate) key: EcKey,
    pub(crate) status: AccountStatus,
    /// The enrollment token that it is bound to.
    pub(crate) token_id: Option<Uuid>,
    /// The device that the token is for. `None` before the first order.
    pub(crate) device_serial_number: Option<String>,
    /// Whether one of its orders was admitted.
    pub(crate) has_ordered: bool,
}

words! {
    /// Whether an account may be used.
    pub(crate) enum AccountStatus {
        Valid = "valid",
        Deactivated = "deactivated",
    }
}

struct Row {
    id: Uuid,
    spki: Vec<u8>,
    status: String,
    token_id: Option<Uuid>,
    device_serial_number: Option<String>,
    has_ordered: bool,
}

impl TryFrom<Row> for Account {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            key: EcKey::from_spki_der(&row.spki).map_err(|error| StoreError::Corrupt(error.to_string()))?,
            status: parse_text(&row.status)?,
            token_id: row.token_id,
            device_serial_number: row.device_serial_number,
            has_ordered: row.has_ordered,
        })
    }
}

macro_rules! select {
    ($condition:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            "SELECT id, spki, status, token_id, device_serial_number, has_ordered FROM acme_accounts " + $condition,
            $($argument),+
        )
    };
}

/// Finds an account.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<Account>, StoreError> {
    let row = select!("WHERE id = $1", id).fetch_optional(connection).await?;
    row.map(TryInto::try_into).transpose()
}

/// Finds the account of a key.
pub(crate) async fn find_by_key(
    connection: &mut Connection,
    key: KeyThumbprint,
) -> Result<Option<Account>, StoreError> {
    let row = select!("WHERE key_thumbprint = $1", key.as_bytes().as_slice())
        .fetch_optional(connection)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// Locks an account, and reads it.
pub(crate) async fn lock(connection: &mut Connection, id: Uuid) -> Result<Option<Account>, StoreError> {
    let row = select!("WHERE id = $1 FOR UPDATE", id)
        .fetch_optional(connection)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// Inserts an account.
pub(crate) async fn insert(
    connection: &mut Connection,
    account: &Account,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    let thumbprint = account.key.thumbprint();
    sqlx::query!(
        "INSERT INTO acme_accounts (id, key_thumbprint, spki, status, token_id, created_at)
         VALUES ($1, $2, $3, $4, $5, $6)",
        account.id,
        thumbprint.as_bytes(),
        account.key.spki_der(),
        account.status.as_str(),
        account.token_id,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Removes unused accounts: the oldest ones beyond a number, and those older than a time.
pub(crate) async fn remove_idle(
    connection: &mut Connection,
    most: i64,
    before: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "DELETE FROM acme_accounts WHERE id = ANY(ARRAY(
             SELECT id FROM acme_accounts
             WHERE token_id IS NULL AND NOT has_ordered
               AND (id < $2 OR id < (SELECT id FROM acme_accounts WHERE token_id IS NULL AND NOT has_ordered
                                     ORDER BY id DESC OFFSET $1 LIMIT 1))
             ORDER BY id LIMIT 100 FOR UPDATE SKIP LOCKED))",
        most,
        crate::clock::first_id_at(before)
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records that an order was admitted, and the device if only a token vouched for it.
pub(crate) async fn note_order(
    connection: &mut Connection,
    id: Uuid,
    vouched_for: Option<&str>,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE acme_accounts SET has_ordered = true, device_serial_number = coalesce(device_serial_number, $2)
         WHERE id = $1",
        id,
        vouched_for
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Replaces the key of an account.
pub(crate) async fn set_key(connection: &mut Connection, id: Uuid, key: &EcKey) -> Result<(), StoreError> {
    let thumbprint = key.thumbprint();
    sqlx::query!(
        "UPDATE acme_accounts SET key_thumbprint = $2, spki = $3 WHERE id = $1",
        id,
        thumbprint.as_bytes(),
        key.spki_der()
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Deactivates an account.
pub(crate) async fn deactivate(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!("UPDATE acme_accounts SET status = 'deactivated' WHERE id = $1", id)
        .execute(connection)
        .await?;
    Ok(())
}
