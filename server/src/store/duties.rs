//! Work that only one replica does at a time. The replica has the work's advisory lock until its transaction ends. If a
//! replica dies, Postgres releases the lock with its connection.

use super::{Connection, StoreError};

/// A piece of work for one replica at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Generates the server's own keys.
    Bootstrap,
    /// Appends to the audit's hash chain.
    SealAudit,
    /// Grants privileges to the server's role.
    GrantPrivileges,
    /// Expires enrollments that were not decided in time.
    ExpireEnrollments,
    /// Adds a waiting enrollment without a token. One at a time, because their number is limited.
    WaitWithoutToken,
    /// Imports the inventory.
    ImportInventory,
    /// Assigns positions to events, and creates deliveries.
    AnnounceEvents,
    /// Removes what is past its retention.
    Retain,
    /// Signs revocation lists.
    SignRevocationLists,
    /// Updates the recorded liveness of machines.
    NoteLiveness,
    /// Lapses attestations that are too old.
    LapseAttestations,
    /// Changes the server's own keys.
    RotateKeys,
    /// Records the serial numbers of an MDM's devices.
    LearnMdmDevices,
    /// Asks machines for attestations.
    AskForAttestations,
    /// Creates, ends or revokes an API key. One at a time, because names are unique and one administrator stays.
    ChangeApiKeys,
    /// Announces the ends of API keys.
    AnnounceEndOfApiKeys,
}

impl Duty {
    /// The number of the advisory lock, the same in all versions. It must never change: otherwise an older replica
    /// would do the same work beside a newer one.
    const fn lock(self) -> i64 {
        match self {
            Self::Bootstrap => 0x6173_7361_7901,
            Self::SealAudit => 0x0061_7373_6179_0001,
            Self::GrantPrivileges => 0x0061_7373_6179_0008,
            Self::ExpireEnrollments => 0x0061_7373_6179_0501,
            Self::WaitWithoutToken => 0x0061_7373_6179_0502,
            Self::ImportInventory => 0x0061_7373_6179_0503,
            Self::AnnounceEvents => 0x0061_7373_6179_0701,
            Self::Retain => 0x0061_7373_6179_0702,
            Self::SignRevocationLists => 0x0061_7373_6179_0002,
            Self::NoteLiveness => 0x0061_7373_6179_0006,
            Self::LapseAttestations => 0x0061_7373_6179_1001,
            Self::RotateKeys => 0x0061_7373_6179_1201,
            Self::LearnMdmDevices => 0x0061_7373_6179_1601,
            Self::AskForAttestations => 0x0061_7373_6179_1602,
            Self::ChangeApiKeys => 0x0061_7373_6179_2301,
            Self::AnnounceEndOfApiKeys => 0x0061_7373_6179_2302,
        }
    }
}

/// Waits for a duty. The transaction has it until its end.
pub(crate) async fn wait_for(connection: &mut Connection, duty: Duty) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", duty.lock())
        .execute(connection)
        .await?;
    Ok(())
}

/// Tries to take a duty until the end of the transaction. Returns `false` if another replica has it.
pub(crate) async fn try_take(connection: &mut Connection, duty: Duty) -> Result<bool, StoreError> {
    Ok(
        sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "taken!""#, duty.lock())
            .fetch_one(connection)
            .await?,
    )
}
