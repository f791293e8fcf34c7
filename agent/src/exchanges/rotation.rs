//! Key rotation. The next key is on disk before the server learns of it. The current key signs the request for its
//! certificate. The first check-in with the next key completes the rotation: on the server by its commit, on this
//! machine by one write of the record. Both keys are kept until then. After a crash or a lost response at any step, the
//! machine still has a valid key, and the step is repeated.
//!
//! A failure of the next key never leads to a new identity. While the current key is valid, the next key can be
//! abandoned. After that, the next key is the machine's key like any other.

use std::sync::Arc;

use assay_protocol::{
    Chain, KeyThumbprint, ProblemKind, PublicKey,
    agent_api::{CheckedIn, IssuedCertificate},
};

use super::{
    check_in,
    credential::Credential,
    error::AgentError,
    evidence::ProofError,
    machine::{Machine, run_blocking, update_record},
    renewal, trust_bundle,
};
use crate::{
    connection::{ClientError, Refusal},
    key_store::{self, KeyFault, KeyStoreError},
    state::{KeyRotation, Record, StateLock},
};

/// Creates the next key and gets its certificate. Steps that are already complete are skipped.
pub(super) async fn begin(machine: &Machine, lock: &Arc<StateLock>) -> Result<IssuedCertificate, AgentError> {
    let record = machine.record().await?;
    let current = Credential::current(&machine.key, &record).ok_or(AgentError::NotEnrolled)?;
    if let Some(next) = Credential::next(&machine.key, &record) {
        return Ok(next.certificate);
    }
    machine.key_on_record(&record).await?;
    let public_key = next_key(machine, lock, &record).await?;
    let next = machine.key.at(record.key_place.other());
    let renewed = match renewal::request(machine, &record, &current, (&next, &public_key)).await {
        // The server knows this key already, so it cannot become the next key.
        Err(error) if error.refusal().and_then(Refusal::kind) == Some(ProblemKind::Conflict) => {
            abandon(lock).await?;
            return Err(error);
        }
        result => result?,
    };
    let (certificate, key) = (renewed.certificate.clone(), public_key.thumbprint());
    update_record(lock, move |record| {
        trust_bundle::adopt(record, renewed.trust_bundle);
        if let Some(rotation) = record.rotation.as_mut().filter(|rotation| rotation.key == key) {
            rotation.certificate = Some(renewed.certificate);
        }
        record.last_failure = None;
    })
    .await?;
    Ok(certificate)
}

/// Checks in with the next key, which then becomes the current one.
///
/// If the next key fails, the current key checks in. If that succeeds, the rotation is not complete.
pub(super) async fn complete(
    machine: &Machine,
    lock: &Arc<StateLock>,
    record: &Record,
    next: Credential,
) -> Result<CheckedIn, AgentError> {
    let failure = match check_in_with_next_key(machine, record, &next).await {
        Ok(checked_in) => {
            check_in::record_result(machine, lock, &checked_in, promote).await?;
            remove_key_left_over(lock).await?;
            tracing::info!("key rotation complete");
            return Ok(checked_in);
        }
        Err(error) if NextKeyFailure::of(&error).is_some() => error,
        Err(error) => return Err(error),
    };
    tracing::warn!(error = %Chain(&failure), "the next key failed: checking in with the current one");
    match check_in::check_in(machine, lock, record).await {
        Ok(checked_in) => {
            if NextKeyFailure::of(&failure) == Some(NextKeyFailure::Permanent) {
                abandon(lock).await?;
            }
            Ok(checked_in)
        }
        // The server has already replaced the current key, so the next key is now the machine's key.
        Err(error) if is_superseded(&error) && failure.refusal().is_none() => {
            update_record(lock, promote).await?;
            Err(failure)
        }
        Err(error) => Err(error),
    }
}

/// What a failure says about the next key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NextKeyFailure {
    /// The next key may work later.
    Temporary,
    /// The next key will never work.
    Permanent,
}

impl NextKeyFailure {
    /// `None` if the failure is not about this key. The current key would fail, too.
    fn of(error: &AgentError) -> Option<Self> {
        match error {
            AgentError::KeyLost(_) | AgentError::KeyReplaced(_) => Some(Self::Permanent),
            AgentError::Proof(ProofError::Key(fault)) | AgentError::Server(ClientError::Key { fault, .. }) => {
                Some(match fault {
                    KeyFault::Store(
                        KeyStoreError::Corrupt { .. } | KeyStoreError::Foreign { .. } | KeyStoreError::Changed,
                    ) => Self::Permanent,
                    _ => Self::Temporary,
                })
            }
            _ => match error.refusal()?.kind()? {
                ProblemKind::KeySuperseded | ProblemKind::BadEvidence | ProblemKind::MachineUnknown => {
                    Some(Self::Permanent)
                }
                _ => None,
            },
        }
    }
}

async fn check_in_with_next_key(
    machine: &Machine,
    record: &Record,
    next: &Credential,
) -> Result<CheckedIn, AgentError> {
    machine.expect_key(&next.key, thumbprint(record)).await?;
    check_in::call(machine, record, next).await
}

/// The next key of the rotation in progress. A new one if there is none, or if it can never work.
async fn next_key(machine: &Machine, lock: &Arc<StateLock>, record: &Record) -> Result<PublicKey, AgentError> {
    let key = machine.key.at(record.key_place.other());
    if record.rotation.is_some() {
        match machine.expect_key(&key, thumbprint(record)).await {
            Err(error) if NextKeyFailure::of(&error) == Some(NextKeyFailure::Permanent) => {
                tracing::warn!(error = %Chain(&error), "the next key is unusable: creating another one");
                abandon(lock).await?;
            }
            result => return result,
        }
    }
    let new = key.create().await.map_err(ProofError::Key)?;
    // The key is written first: a key without a record entry is deleted later, but a record entry without its key could
    // not be used.
    let public_key = key.save(Arc::clone(lock), new).await.map_err(ProofError::Key)?;
    let rotation = KeyRotation {
        key: public_key.thumbprint(),
        begun_at: machine.clock.now(),
        certificate: None,
    };
    update_record(lock, move |record| record.rotation = Some(rotation)).await?;
    Ok(public_key)
}

fn thumbprint(record: &Record) -> Option<KeyThumbprint> {
    record.rotation.as_ref().map(|rotation| rotation.key)
}

/// Makes the next key the current one.
fn promote(record: &mut Record) {
    let Some(rotation) = record.rotation.take() else { return };
    record.key = Some(rotation.key);
    record.key_place = record.key_place.other();
    if let (Some(machine), Some(certificate)) = (record.machine.as_mut(), rotation.certificate) {
        machine.certificate = certificate;
    }
    // The tokens are bound to the old key.
    if let Some(last) = record.last_check_in.as_mut() {
        last.grants.clear();
    }
}

/// Abandons the next key.
async fn abandon(lock: &Arc<StateLock>) -> Result<(), AgentError> {
    update_record(lock, |record| record.rotation = None).await?;
    remove_key_left_over(lock).await
}

fn is_superseded(error: &AgentError) -> bool {
    error.refusal().and_then(Refusal::kind) == Some(ProblemKind::KeySuperseded)
}

async fn remove_key_left_over(lock: &Arc<StateLock>) -> Result<(), AgentError> {
    let lock = Arc::clone(lock);
    run_blocking(move || Ok(key_store::remove_left_over(&lock)?)).await
}
