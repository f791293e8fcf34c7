//! `sealed_keys`: the server's own keys, sealed.

use assay_protocol::words;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, parse_text};

words! {
    /// The purpose of a key. Sealing binds the key to its text.
    pub(crate) enum KeyPurpose {
        RootCa = "root-ca",
        IssuingCa = "issuing-ca",
        GrantSigning = "grant-signing",
        Nonce = "nonce",
    }
}

words! {
    /// The state of a key.
    pub(crate) enum KeyState {
        /// A CSR for it is pending.
        Requested = "requested",
        /// Published, but does not sign yet.
        Next = "next",
        /// Signs.
        Current = "current",
        /// No longer signs, but what it signed may still be valid.
        Previous = "previous",
        /// Nothing that it signed is relied on.
        Retired = "retired",
    }
}

/// A sealed key.
#[derive(Debug, Clone)]
pub(crate) struct SealedKey {
    pub(crate) id: Uuid,
    pub(crate) purpose: KeyPurpose,
    pub(crate) state: KeyState,
    /// `None` for an external root and for a retired key.
    pub(crate) sealed: Option<Vec<u8>>,
    pub(crate) certificate: Option<Vec<u8>>,
    /// Only for an issuing CA.
    pub(crate) root_id: Option<Uuid>,
    /// Only for an issuing CA; the nearest first.
    pub(crate) intermediates: Vec<Vec<u8>>,
    /// `None` while its CSR is pending.
    pub(crate) signs_from: Option<OffsetDateTime>,
    /// Only for a previous key: when it can be retired at the earliest.
    pub(crate) retires_at: Option<OffsetDateTime>,
    pub(crate) retired_at: Option<OffsetDateTime>,
    /// Only for an issuing CA that no longer signs: when an administrator withdrew it.
    pub(crate) withdrawn_at: Option<OffsetDateTime>,
}

struct Row {
    id: Uuid,
    purpose: String,
    state: String,
    sealed: Option<Vec<u8>>,
    certificate: Option<Vec<u8>>,
    root_id: Option<Uuid>,
    intermediates: Vec<Vec<u8>>,
    signs_from: Option<OffsetDateTime>,
    retires_at: Option<OffsetDateTime>,
    retired_at: Option<OffsetDateTime>,
    withdrawn_at: Option<OffsetDateTime>,
}

impl TryFrom<Row> for SealedKey {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.id,
            purpose: parse_text(&row.purpose)?,
            state: parse_text(&row.state)?,
            sealed: row.sealed,
            certificate: row.certificate,
            root_id: row.root_id,
            intermediates: row.intermediates,
            signs_from: row.signs_from,
            retires_at: row.retires_at,
            retired_at: row.retired_at,
            withdrawn_at: row.withdrawn_at,
        })
    }
}

/// All keys, including retired ones, oldest first.
pub(crate) async fn list(connection: &mut Connection) -> Result<Vec<SealedKey>, StoreError> {
    let rows = sqlx::query_as!(
        Row,
        "SELECT id, purpose, state, sealed, certificate, root_id, intermediates, signs_from, retires_at, retired_at,
                withdrawn_at
         FROM sealed_keys ORDER BY id"
    )
    .fetch_all(connection)
    .await?;
    rows.into_iter().map(TryInto::try_into).collect()
}

/// Inserts a key.
pub(crate) async fn insert(
    connection: &mut Connection,
    key: &SealedKey,
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO sealed_keys (id, purpose, state, sealed, certificate, root_id, intermediates, signs_from, created_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        key.id,
        key.purpose.as_str(),
        key.state.as_str(),
        key.sealed,
        key.certificate,
        key.root_id,
        &key.intermediates,
        key.signs_from,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Updates the state of a key, its times and, after a CSR, its certificate. The caller must have the duty to rotate
/// keys.
pub(crate) async fn update(connection: &mut Connection, key: &SealedKey) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE sealed_keys
         SET state = $2, sealed = $3, certificate = $4, root_id = $5, intermediates = $6, signs_from = $7, retires_at = $8,
             retired_at = $9, withdrawn_at = $10
         WHERE id = $1",
        key.id,
        key.state.as_str(),
        key.sealed,
        key.certificate,
        key.root_id,
        &key.intermediates,
        key.signs_from,
        key.retires_at,
        key.retired_at,
        key.withdrawn_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The number of valid certificates that a CA has issued to machines.
pub(crate) async fn count_valid(
    connection: &mut Connection,
    issuer_id: Uuid,
    now: OffsetDateTime,
) -> Result<i64, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT count(*) AS "count!" FROM certificates WHERE issuer_id = $1 AND not_after >= $2 AND revoked_at IS NULL"#,
        issuer_id,
        now
    )
    .fetch_one(connection)
    .await?)
}

/// The last expiry of the certificates that a CA has issued to machines.
pub(crate) async fn last_expiry(
    connection: &mut Connection,
    issuer_id: Uuid,
) -> Result<Option<OffsetDateTime>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT max(not_after) FROM certificates WHERE issuer_id = $1",
        issuer_id
    )
    .fetch_one(connection)
    .await?)
}
