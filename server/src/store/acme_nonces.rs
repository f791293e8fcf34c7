//! `acme_nonces`: used nonces, kept until they expire.

use time::OffsetDateTime;

use super::{Connection, StoreError};

/// How many expired nonces each use removes. It is more than a use adds, and few enough that no client waits for it.
const FORGOTTEN_EACH_TIME: i64 = 4;

/// Uses a nonce. Returns `false` if it was used before.
pub(crate) async fn use_up(
    connection: &mut Connection,
    nonce: &str,
    forget_at: OffsetDateTime,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let used = sqlx::query!(
        "WITH forgotten AS (
            DELETE FROM acme_nonces WHERE nonce = ANY(ARRAY(
                SELECT nonce FROM acme_nonces WHERE forget_at < $3 ORDER BY forget_at LIMIT $4 FOR UPDATE SKIP LOCKED))
         )
         INSERT INTO acme_nonces (nonce, forget_at) VALUES ($1, $2) ON CONFLICT (nonce) DO NOTHING",
        nonce,
        forget_at,
        now,
        FORGOTTEN_EACH_TIME
    )
    .execute(connection)
    .await?;
    Ok(used.rows_affected() == 1)
}
