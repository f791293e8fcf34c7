//! Work that one replica does at a time: the one that has the work's advisory lock, until its transaction ends. A
//! replica that dies lets go of it with its connection.

use super::{Connection, StoreError};

/// A piece of work for one replica at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Making the server's own keys.
    Bootstrap,
    /// Appending to the audit's hash chain.
    SealAudit,
    /// Giving the server's role its privileges.
    GrantPrivileges,
    /// Ending the requests that nobody decided in time.
    ExpireEnrollments,
    /// Letting a machine wait that brings no token: counted one after the other, so that the bound holds.
    WaitWithoutToken,
    /// Importing the inventory.
    ImportInventory,
    /// Giving events their places, and webhooks their deliveries.
    AnnounceEvents,
    /// Removing what is past its retention.
    Retain,
    /// Signing revocation lists.
    SignRevocationLists,
    /// Noting which machines have fallen silent.
    NoteLiveness,
    /// Letting attestations lapse that are too old.
    LapseAttestations,
    /// Changing the server's own keys.
    RotateKeys,
    /// Keeping the serial numbers of an MDM's devices.
    LearnMdmDevices,
    /// Having machines asked for their attestations.
    AskForAttestations,
}

impl Duty {
    /// The number that all replicas of every version lock. It never changes: an older replica must not do the same work
    /// beside a newer one.
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
        }
    }
}

/// Waits for a duty, and has it until the end of the transaction.
pub(crate) async fn wait_for(connection: &mut Connection, duty: Duty) -> Result<(), StoreError> {
    sqlx::query!("SELECT pg_advisory_xact_lock($1)", duty.lock())
        .execute(connection)
        .await?;
    Ok(())
}

/// Takes a duty until the end of the transaction; `false` when another replica has it.
pub(crate) async fn try_take(connection: &mut Connection, duty: Duty) -> Result<bool, StoreError> {
    Ok(
        sqlx::query_scalar!(r#"SELECT pg_try_advisory_xact_lock($1) AS "taken!""#, duty.lock())
            .fetch_one(connection)
            .await?,
    )
}
