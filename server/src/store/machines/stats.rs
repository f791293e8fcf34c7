//! Counts over whole tables, for `administration::stats`.

use time::{Duration, OffsetDateTime};

use crate::{
    machines::liveness::LivenessBoundaries,
    store::{Connection, StoreError},
};

/// The number of machines with one value.
#[derive(Debug, Clone)]
pub(crate) struct Count {
    pub(crate) value: String,
    pub(crate) machines: i64,
}

/// Machines by their last check-in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PresenceCounts {
    pub(crate) never: i64,
    pub(crate) live: i64,
    pub(crate) late: i64,
    pub(crate) unreachable: i64,
    /// Checked in within the last minute.
    pub(crate) within_a_minute: i64,
}

/// Certificates by their state.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CertificateCounts {
    pub(crate) valid: i64,
    pub(crate) expiring: i64,
    pub(crate) expired: i64,
    pub(crate) revoked: i64,
}

/// Raises the statement timeout in this transaction, because counting reads every machine, possibly from disk.
pub(crate) async fn allow_time(connection: &mut Connection, time: std::time::Duration) -> Result<(), StoreError> {
    let _set = sqlx::query_scalar!(
        "SELECT set_config('statement_timeout', $1, true)",
        time.as_millis().to_string()
    )
    .fetch_one(connection)
    .await?;
    Ok(())
}

/// Machines by status.
pub(crate) async fn by_status(connection: &mut Connection) -> Result<Vec<Count>, StoreError> {
    Ok(sqlx::query_as!(
        Count,
        r#"SELECT status AS value, count(*) AS "machines!" FROM machines GROUP BY status"#
    )
    .fetch_all(connection)
    .await?)
}

/// Machines by assurance.
pub(crate) async fn by_assurance(connection: &mut Connection) -> Result<Vec<Count>, StoreError> {
    Ok(sqlx::query_as!(
        Count,
        r#"SELECT assurance AS value, count(*) AS "machines!" FROM machines GROUP BY assurance"#
    )
    .fetch_all(connection)
    .await?)
}

/// Machines by the operating system version that they claim; only the most frequent versions.
pub(crate) async fn by_os_version(
    connection: &mut Connection,
    unknown: &str,
    limit: i64,
) -> Result<Vec<Count>, StoreError> {
    Ok(sqlx::query_as!(
        Count,
        r#"SELECT coalesce(claimed_posture ->> 'os_version', $1) AS "value!", count(*) AS "machines!"
           FROM machines GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT $2"#,
        unknown,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// Machines by their last check-in.
pub(crate) async fn by_last_check_in(
    connection: &mut Connection,
    boundaries: &LivenessBoundaries,
    now: OffsetDateTime,
) -> Result<PresenceCounts, StoreError> {
    Ok(sqlx::query_as!(
        PresenceCounts,
        r#"SELECT count(*) FILTER (WHERE last_check_in_at IS NULL) AS "never!",
                  count(*) FILTER (WHERE last_check_in_at >= $1) AS "live!",
                  count(*) FILTER (WHERE last_check_in_at < $1 AND last_check_in_at >= $2) AS "late!",
                  count(*) FILTER (WHERE last_check_in_at < $2) AS "unreachable!",
                  count(*) FILTER (WHERE last_check_in_at > $3) AS "within_a_minute!"
           FROM machine_presence"#,
        boundaries.live_since(),
        boundaries.reachable_since(),
        now.saturating_sub(Duration::MINUTE)
    )
    .fetch_one(connection)
    .await?)
}

/// Certificates by their state.
pub(crate) async fn certificates(
    connection: &mut Connection,
    now: OffsetDateTime,
    expiring_before: OffsetDateTime,
) -> Result<CertificateCounts, StoreError> {
    Ok(sqlx::query_as!(
        CertificateCounts,
        r#"SELECT count(*) FILTER (WHERE revoked_at IS NULL AND not_after >= $1) AS "valid!",
                  count(*) FILTER (WHERE revoked_at IS NULL AND not_after >= $1 AND not_after <= $2) AS "expiring!",
                  count(*) FILTER (WHERE revoked_at IS NULL AND not_after < $1) AS "expired!",
                  count(*) FILTER (WHERE revoked_at IS NOT NULL) AS "revoked!"
           FROM certificates"#,
        now,
        expiring_before
    )
    .fetch_one(connection)
    .await?)
}
