//! The machine replaces its key. The next key is on the disk before anybody hears of it, the current one lets it in, and
//! the next one's first check-in makes it the current one: of the server's record by its commit, of this machine's by one
//! write. Until then both keys are kept, so that a crash or a lost answer, on either side and at any step, leaves a
//! machine with a key that serves, and the step is repeated.
//!
//! What the key store says of the next key never leads to another identity: while the current key serves, the next one
//! can be let go, and once it does not, the next one is the machine's key like any other.

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
    machine::{Machine, off_the_network, update_record},
    renewal, trust_bundle,
};
use crate::{
    connection::{ClientError, Refusal},
    key_store::{self, KeyFault, KeyStoreError},
    state::{KeyRotation, Record, StateLock},
};

/// Makes the next key and has it certified; what is done already is not done again.
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
        // It was this machine's before, or is another's: none that can be used.
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

/// Checks in with the next key, which then is the current one.
///
/// Where it does not serve, the current key is asked for: if that one still serves, nothing has been replaced.
pub(super) async fn complete(
    machine: &Machine,
    lock: &Arc<StateLock>,
    record: &Record,
    next: Credential,
) -> Result<CheckedIn, AgentError> {
    let doubt = match check_in_with(machine, record, &next).await {
        Ok(checked_in) => {
            check_in::remember(machine, lock, &checked_in, promote).await?;
            remove_key_left_over(lock).await?;
            tracing::info!("the key is replaced");
            return Ok(checked_in);
        }
        Err(error) if Doubt::of(&error).is_some() => error,
        Err(error) => return Err(error),
    };
    tracing::warn!(error = %Chain(&doubt), "the next key does not serve: trying the current one");
    match check_in::check_in(machine, lock, record).await {
        Ok(checked_in) => {
            if Doubt::of(&doubt) == Some(Doubt::ForGood) {
                abandon(lock).await?;
            }
            Ok(checked_in)
        }
        // The server has gone over to the next key already, so that one is what has to be mended.
        Err(error) if is_superseded(&error) && doubt.refusal().is_none() => {
            update_record(lock, promote).await?;
            Err(doubt)
        }
        Err(error) => Err(error),
    }
}

/// What a failure of the next key means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doubt {
    /// It may serve later.
    ForNow,
    /// It will not.
    ForGood,
}

impl Doubt {
    /// `None` where the failure says nothing of this key: the current one would fare no better.
    fn of(error: &AgentError) -> Option<Self> {
        match error {
            AgentError::KeyLost(_) | AgentError::KeyReplaced(_) => Some(Self::ForGood),
            AgentError::Proof(ProofError::Key(fault)) | AgentError::Server(ClientError::Key { fault, .. }) => {
                Some(match fault {
                    KeyFault::Store(
                        KeyStoreError::Corrupt { .. } | KeyStoreError::Foreign { .. } | KeyStoreError::Changed,
                    ) => Self::ForGood,
                    _ => Self::ForNow,
                })
            }
            _ => match error.refusal()?.kind()? {
                ProblemKind::KeySuperseded | ProblemKind::BadEvidence | ProblemKind::MachineUnknown => {
                    Some(Self::ForGood)
                }
                _ => None,
            },
        }
    }
}

async fn check_in_with(machine: &Machine, record: &Record, next: &Credential) -> Result<CheckedIn, AgentError> {
    machine.expect_key(&next.key, thumbprint(record)).await?;
    check_in::call(machine, record, next).await
}

/// The next key: the one that was made for this, and a new one where there is none, or none that ever served.
async fn next_key(machine: &Machine, lock: &Arc<StateLock>, record: &Record) -> Result<PublicKey, AgentError> {
    let key = machine.key.at(record.key_place.other());
    if record.rotation.is_some() {
        match machine.expect_key(&key, thumbprint(record)).await {
            Err(error) if Doubt::of(&error) == Some(Doubt::ForGood) => {
                tracing::warn!(error = %Chain(&error), "the next key is let go, and another one made");
                abandon(lock).await?;
            }
            result => return result,
        }
    }
    let new = key.make().await.map_err(ProofError::Key)?;
    // The key comes first: of a record without it nothing could be repeated, and a key without one is nobody's.
    let public_key = key.keep(Arc::clone(lock), new).await.map_err(ProofError::Key)?;
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

/// The next key is the current one from now on, with all that belongs to it.
fn promote(record: &mut Record) {
    let Some(rotation) = record.rotation.take() else { return };
    record.key = Some(rotation.key);
    record.key_place = record.key_place.other();
    if let (Some(machine), Some(certificate)) = (record.machine.as_mut(), rotation.certificate) {
        machine.certificate = certificate;
    }
    // Its tokens are bound to the old key.
    if let Some(last) = record.last_check_in.as_mut() {
        last.grants.clear();
    }
}

/// Lets the next key go.
async fn abandon(lock: &Arc<StateLock>) -> Result<(), AgentError> {
    update_record(lock, |record| record.rotation = None).await?;
    remove_key_left_over(lock).await
}

fn is_superseded(error: &AgentError) -> bool {
    error.refusal().and_then(Refusal::kind) == Some(ProblemKind::KeySuperseded)
}

async fn remove_key_left_over(lock: &Arc<StateLock>) -> Result<(), AgentError> {
    let lock = Arc::clone(lock);
    off_the_network(move || Ok(key_store::remove_left_over(&lock)?)).await
}
