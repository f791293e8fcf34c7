//! `acme_orders`: orders, each with its authorization and its challenge.

use assay_authority::EcKey;
use assay_protocol::words;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Connection, StoreError, json, parse_json, parse_text};

/// An order.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) id: Uuid,
    pub(crate) account_id: Uuid,
    pub(crate) serial_number: String,
    /// The token of the challenge.
    pub(crate) token: String,
    /// The recorded status. [`Self::status_at`] gives the current one.
    pub(crate) status: OrderStatus,
    pub(crate) expires_at: OffsetDateTime,
    pub(crate) refusal: Option<Refusal>,
    /// Whether the client deactivated it.
    pub(crate) deactivated: bool,
    pub(crate) validated_at: Option<OffsetDateTime>,
    pub(crate) attested_key: Option<EcKey>,
    pub(crate) certificate_serial_number: Option<String>,
}

words! {
    /// The status of an order (RFC 8555, section 7.1.6). There is no `processing`, because a certificate is issued at
    /// once.
    pub(crate) enum OrderStatus {
        Pending = "pending",
        Ready = "ready",
        Valid = "valid",
        Invalid = "invalid",
    }
}

/// Why an attestation was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refusal {
    /// The ACME error type, without `urn:ietf:params:acme:error:`.
    pub(crate) kind: String,
    /// The reason as a sentence.
    pub(crate) detail: String,
}

impl Order {
    /// The status at a time.
    pub(crate) fn status_at(&self, now: OffsetDateTime) -> OrderStatus {
        match self.status {
            OrderStatus::Pending | OrderStatus::Ready if now >= self.expires_at => OrderStatus::Invalid,
            status => status,
        }
    }
}

struct Row {
    id: Uuid,
    account_id: Uuid,
    serial_number: String,
    token: String,
    status: String,
    expires_at: OffsetDateTime,
    refusal: Option<Value>,
    deactivated: bool,
    validated_at: Option<OffsetDateTime>,
    attested_key: Option<Vec<u8>>,
    certificate_serial_number: Option<String>,
}

impl TryFrom<Row> for Order {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let key = |spki: Vec<u8>| EcKey::from_spki_der(&spki).map_err(|error| StoreError::Corrupt(error.to_string()));
        Ok(Self {
            id: row.id,
            account_id: row.account_id,
            serial_number: row.serial_number,
            token: row.token,
            status: parse_text(&row.status)?,
            expires_at: row.expires_at,
            refusal: row.refusal.map(parse_json).transpose()?,
            deactivated: row.deactivated,
            validated_at: row.validated_at,
            attested_key: row.attested_key.map(key).transpose()?,
            certificate_serial_number: row.certificate_serial_number,
        })
    }
}

macro_rules! select {
    ($condition:tt, $($argument:expr),+ $(,)?) => {
        sqlx::query_as!(
            Row,
            "SELECT id, account_id, serial_number, token, status, expires_at, refusal, deactivated, validated_at,
                    attested_key, certificate_serial_number
             FROM acme_orders " + $condition,
            $($argument),+
        )
    };
}

/// Finds an order.
pub(crate) async fn find(connection: &mut Connection, id: Uuid) -> Result<Option<Order>, StoreError> {
    let row = select!("WHERE id = $1", id).fetch_optional(connection).await?;
    row.map(TryInto::try_into).transpose()
}

/// Locks an order, and reads it.
pub(crate) async fn lock(connection: &mut Connection, id: Uuid) -> Result<Option<Order>, StoreError> {
    let row = select!("WHERE id = $1 FOR UPDATE", id)
        .fetch_optional(connection)
        .await?;
    row.map(TryInto::try_into).transpose()
}

/// The account's pending order for a device.
pub(crate) async fn find_pending(
    connection: &mut Connection,
    account_id: Uuid,
    serial_number: &str,
    now: OffsetDateTime,
) -> Result<Option<Order>, StoreError> {
    let row = select!(
        "WHERE account_id = $1 AND serial_number = $2 AND status = 'pending' AND expires_at > $3
         ORDER BY id DESC LIMIT 1",
        account_id,
        serial_number,
        now,
    )
    .fetch_optional(connection)
    .await?;
    row.map(TryInto::try_into).transpose()
}

/// The orders of an account that are not invalid, oldest first.
pub(crate) async fn list_of_account(
    connection: &mut Connection,
    account_id: Uuid,
    after: Option<Uuid>,
    now: OffsetDateTime,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM acme_orders
         WHERE account_id = $1 AND id > $2 AND (status = 'valid' OR (status IN ('pending', 'ready') AND expires_at > $3))
         ORDER BY id LIMIT $4",
        account_id,
        after.unwrap_or(Uuid::nil()),
        now,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Inserts an order.
pub(crate) async fn insert(connection: &mut Connection, order: &Order, now: OffsetDateTime) -> Result<(), StoreError> {
    sqlx::query!(
        "INSERT INTO acme_orders (id, account_id, serial_number, token, status, created_at, expires_at)
         VALUES ($1, $2, $3, $4, 'pending', $5, $6)",
        order.id,
        order.account_id,
        order.serial_number,
        order.token,
        now,
        order.expires_at,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records what was attested for a pending order, and the attestation's chain.
pub(crate) async fn set_attested(
    connection: &mut Connection,
    id: Uuid,
    key: &EcKey,
    chain: &[Vec<u8>],
    now: OffsetDateTime,
) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE acme_orders SET status = 'ready', attested_key = $2, attestation = $3, validated_at = $4
         WHERE id = $1 AND status = 'pending'",
        id,
        key.spki_der(),
        chain,
        now,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes an order invalid because its attestation was refused.
pub(crate) async fn refuse(connection: &mut Connection, id: Uuid, refusal: &Refusal) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE acme_orders SET status = 'invalid', refusal = $2 WHERE id = $1 AND status = 'pending'",
        id,
        json(refusal)?,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Records the certificate of an order that was ready.
pub(crate) async fn set_issued(connection: &mut Connection, id: Uuid, serial_number: &str) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE acme_orders SET status = 'valid', certificate_serial_number = $2 WHERE id = $1 AND status = 'ready'",
        id,
        serial_number,
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes an order invalid because its client deactivated it.
pub(crate) async fn give_up(connection: &mut Connection, id: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE acme_orders SET status = 'invalid', deactivated = true WHERE id = $1 AND status IN ('pending', 'ready')",
        id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// Makes all unfinished orders of an account invalid.
pub(crate) async fn give_up_of_account(connection: &mut Connection, account_id: Uuid) -> Result<(), StoreError> {
    sqlx::query!(
        "UPDATE acme_orders SET status = 'invalid', deactivated = true
         WHERE account_id = $1 AND status IN ('pending', 'ready')",
        account_id
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// The account that ordered a certificate.
pub(crate) async fn account_of_certificate(
    connection: &mut Connection,
    serial_number: &str,
) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT account_id FROM acme_orders WHERE certificate_serial_number = $1",
        serial_number
    )
    .fetch_optional(connection)
    .await?)
}

/// Removes orders that ended before a time and have no certificate on record, oldest first. Also removes their accounts
/// if those have no other order. Returns the number of orders.
pub(crate) async fn remove_ended_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let accounts = sqlx::query_scalar!(
        "DELETE FROM acme_orders WHERE id = ANY(ARRAY(
             SELECT id FROM acme_orders
             WHERE expires_at < $1
               AND NOT EXISTS (SELECT FROM certificates WHERE serial_number = certificate_serial_number)
             ORDER BY expires_at, id LIMIT $2))
         RETURNING account_id",
        before,
        limit
    )
    .fetch_all(&mut *connection)
    .await?;
    sqlx::query!(
        "DELETE FROM acme_accounts
         WHERE id = ANY($1) AND token_id IS NULL
           AND NOT EXISTS (SELECT FROM acme_orders WHERE account_id = acme_accounts.id)",
        &accounts
    )
    .execute(connection)
    .await?;
    Ok(u64::try_from(accounts.len()).unwrap_or(u64::MAX))
}
