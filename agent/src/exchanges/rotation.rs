//! Key rotation. The next key is on disk before the server learns of it. The current key signs the request for its
//! certificate. The first check-in with the next key completes the rotation: on the server by its commit, on this
//! machine by one write of the record. Both keys are kept until then. After a crash or a lost response at any step, the
//! machine still has a valid key, and the step is repeated.
//!
//! The next key of a key in the Secure Enclave waits for an administrator, unless a token admits it. The current key
//! continues, and the agent repeats the request until it is decided.
//!
//! A failure of the next key never leads to a new identity. While the next key has signed no evidence, it can be
//! abandoned. After that, the server may have superseded the current key. The agent then uses the current key again only
//! if the server says that the next key is not admitted. Otherwise the next key is the machine's key like any other.

use std::sync::Arc;

use assay_protocol::{
    Chain, KeyThumbprint, ProblemKind, PublicKey,
    agent_api::{CheckedIn, IssuedCertificate, Renewed, RotationPending},
};
use reqwest::StatusCode;
use secrecy::SecretString;
use time::OffsetDateTime;

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
    state::{DeniedKey, KeyRotation, Record, StateLock},
};

/// The result of a request for a certificate of the next key.
#[derive(Debug, Clone)]
pub enum RotationOutcome {
    /// The next key has its certificate, and signs the next check-in.
    Certified(IssuedCertificate),
    /// The next key waits for approval. The current key stays valid. Repeat the call later.
    Pending(RotationPending),
}

/// Creates the next key and gets its certificate. Steps that are already complete are skipped.
pub(super) async fn begin(
    machine: &Machine,
    lock: &Arc<StateLock>,
    token: Option<SecretString>,
) -> Result<RotationOutcome, AgentError> {
    let record = machine.record().await?;
    let current = Credential::current(&machine.key, &record).ok_or(AgentError::NotEnrolled)?;
    if let Some(next) = Credential::next(&machine.key, &record) {
        return Ok(RotationOutcome::Certified(next.certificate));
    }
    machine.key_on_record(&record).await?;
    let token = token.or_else(|| record.rotation.as_ref()?.token.clone());
    let public_key = next_key(machine, lock, &record, token.as_ref()).await?;
    let next = machine.key.at(record.key_place.other());
    let answer = match renewal::send(machine, &record, &current, &next, token.as_ref()).await {
        Ok((client, response)) if response.status == StatusCode::ACCEPTED => {
            RequestAnswer::Pending(client.read(&response)?)
        }
        Ok((client, response)) => RequestAnswer::Renewed(renewal::read(&client, &response, &public_key)?),
        Err(error) => {
            record_refusal(machine, lock, &error).await?;
            return Err(error);
        }
    };
    record_answer(lock, public_key.thumbprint(), answer, machine.clock.now()).await
}

/// Checks in with the next key, which then becomes the current one. Where [`Fallback`] allows it, the current key checks
/// in instead.
pub(super) async fn complete(
    machine: &Machine,
    lock: &Arc<StateLock>,
    record: &Record,
    next: Credential,
) -> Result<CheckedIn, AgentError> {
    let failure = match check_in_with_next_key(machine, lock, record, &next).await {
        Ok(checked_in) => {
            check_in::record_result(machine, lock, &checked_in, promote).await?;
            remove_key_left_over(lock).await?;
            tracing::info!("key rotation complete");
            return Ok(checked_in);
        }
        Err(error) => error,
    };
    let is_used = record.rotation.as_ref().is_some_and(|rotation| rotation.is_used);
    let Some(fallback) = Fallback::after(&failure, is_used) else {
        return Err(failure);
    };
    tracing::warn!(error = %Chain(&failure), ?fallback, "the next key failed");
    match fallback {
        Fallback::UseNextAsCurrent => {
            update_record(lock, promote).await?;
            return Err(failure);
        }
        Fallback::RequestAgain => update_record(lock, request_again).await?,
        Fallback::Denied => record_refusal(machine, lock, &failure).await?,
        Fallback::KeepNextKey | Fallback::AbandonNextKey => {}
    }
    let checked_in = check_in::check_in(machine, lock, record).await?;
    if fallback == Fallback::AbandonNextKey {
        abandon(lock).await?;
    }
    Ok(checked_in)
}

/// Makes the next key the current one before an enrollment, if it may have signed evidence.
pub(super) fn keep_used_key(record: &mut Record) {
    if record.rotation.as_ref().is_some_and(|rotation| rotation.is_used) {
        promote(record);
    }
}

/// Whether a refusal of [`begin`] says nothing about the current key.
pub(super) fn concerns_next_key_alone(error: &AgentError) -> bool {
    matches!(
        error.refusal().and_then(Refusal::kind),
        Some(ProblemKind::Conflict | ProblemKind::EnrollmentDenied | ProblemKind::EnrollmentTokenInvalid)
    )
}

/// What the server said to a request for the next key's certificate.
enum RequestAnswer {
    Renewed(Renewed),
    Pending(RotationPending),
}

/// What follows from a failed check-in with the next key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fallback {
    /// The next key cannot be used now. The current key checks in.
    KeepNextKey,
    /// The next key will never work. The current key checks in, and the next key is deleted if that succeeds.
    AbandonNextKey,
    /// The next key is not admitted yet. The current key checks in, and the agent asks for the next key again.
    RequestAgain,
    /// An administrator denied the next key. It is deleted, and the current key checks in.
    Denied,
    /// The current key may be superseded, and the next key will never work. The next key becomes the current one, whose
    /// loss leads to an enrollment.
    UseNextAsCurrent,
}

impl Fallback {
    /// `None` if the next key is to be tried again.
    fn after(error: &AgentError, is_used: bool) -> Option<Self> {
        match (KeyFailure::of(error), is_used) {
            (Some(KeyFailure::Permanent), true) => return Some(Self::UseNextAsCurrent),
            (Some(KeyFailure::Permanent), false) => return Some(Self::AbandonNextKey),
            (Some(KeyFailure::Temporary), true) => return None,
            (Some(KeyFailure::Temporary), false) => return Some(Self::KeepNextKey),
            (None, _) => {}
        }
        match error.refusal()?.kind()? {
            ProblemKind::MachinePending => Some(Self::RequestAgain),
            ProblemKind::EnrollmentDenied => Some(Self::Denied),
            // The server's database was restored from before the rotation, and still has the current key.
            ProblemKind::MachineUnknown => Some(Self::AbandonNextKey),
            _ => None,
        }
    }
}

/// A failure of the key store with the next key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyFailure {
    /// The next key may work later.
    Temporary,
    /// The next key will never work.
    Permanent,
}

impl KeyFailure {
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
            _ => None,
        }
    }
}

/// The record says that the next key is used before it signs evidence. A crash in between errs on the safe side.
async fn check_in_with_next_key(
    machine: &Machine,
    lock: &Arc<StateLock>,
    record: &Record,
    next: &Credential,
) -> Result<CheckedIn, AgentError> {
    machine.expect_key(&next.key, thumbprint(record)).await?;
    // A key that cannot sign is not used, so the current key remains.
    next.key.test_signing().await.map_err(ProofError::Key)?;
    update_record(lock, |record| {
        if let Some(rotation) = record.rotation.as_mut() {
            rotation.is_used = true;
        }
    })
    .await?;
    check_in::call(machine, record, next).await
}

/// The next key of the rotation in progress. A new one if there is none, or if it can never work.
async fn next_key(
    machine: &Machine,
    lock: &Arc<StateLock>,
    record: &Record,
    token: Option<&SecretString>,
) -> Result<PublicKey, AgentError> {
    let key = machine.key.at(record.key_place.other());
    let token = token.cloned();
    if record.rotation.is_some() {
        match machine.expect_key(&key, thumbprint(record)).await {
            Err(error) if KeyFailure::of(&error) == Some(KeyFailure::Permanent) => {
                tracing::warn!(error = %Chain(&error), "the next key is unusable: creating another one");
                abandon(lock).await?;
            }
            Err(error) => return Err(error),
            Ok(public_key) => {
                update_record(lock, |record| {
                    if let Some(rotation) = record.rotation.as_mut() {
                        rotation.token = token;
                    }
                })
                .await?;
                return Ok(public_key);
            }
        }
    }
    let new = key.create().await.map_err(ProofError::Key)?;
    // The key is written first: a key without a record entry is deleted later, but a record entry without its key could
    // not be used.
    let public_key = key.save(Arc::clone(lock), new).await.map_err(ProofError::Key)?;
    let rotation = KeyRotation {
        key: public_key.thumbprint(),
        begun_at: machine.clock.now(),
        token,
        enrollment_id: None,
        certificate: None,
        is_used: false,
    };
    update_record(lock, move |record| {
        record.rotation = Some(rotation);
        record.denied_next_key = None;
    })
    .await?;
    Ok(public_key)
}

async fn record_answer(
    lock: &Arc<StateLock>,
    key: KeyThumbprint,
    answer: RequestAnswer,
    now: OffsetDateTime,
) -> Result<RotationOutcome, AgentError> {
    let outcome = match &answer {
        RequestAnswer::Renewed(renewed) => RotationOutcome::Certified(renewed.certificate.clone()),
        RequestAnswer::Pending(pending) => RotationOutcome::Pending(pending.clone()),
    };
    update_record(lock, move |record| {
        if let Some(rotation) = record.rotation.as_mut().filter(|rotation| rotation.key == key) {
            // The server keeps the token with the key, so a repetition needs none.
            rotation.token = None;
            match &answer {
                RequestAnswer::Renewed(renewed) => rotation.certificate = Some(renewed.certificate.clone()),
                RequestAnswer::Pending(pending) => rotation.enrollment_id = Some(pending.enrollment_id),
            }
        }
        if let RequestAnswer::Renewed(renewed) = answer {
            trust_bundle::adopt(record, Some(renewed.trust_bundle), &renewed.withdrawn_issuers, now);
            record.keep_continuity(renewed.continuity);
        }
        record.last_failure = None;
    })
    .await?;
    Ok(outcome)
}

/// Applies a refusal to the rotation in progress.
async fn record_refusal(machine: &Machine, lock: &Arc<StateLock>, error: &AgentError) -> Result<(), AgentError> {
    match error.refusal().and_then(Refusal::kind) {
        // The server knows this key already, so it cannot become the next key.
        Some(ProblemKind::Conflict) => abandon(lock).await,
        Some(ProblemKind::EnrollmentDenied) => {
            tracing::warn!(error = %Chain(error), "the next key was denied: deleting it, and keeping the current key");
            let (at, message) = (machine.clock.now(), Chain(error).to_string());
            update_record(lock, move |record| {
                let denied = record.rotation.take();
                record.denied_next_key = denied.map(|denied| DeniedKey {
                    key: denied.key,
                    at,
                    message,
                });
            })
            .await?;
            remove_key_left_over(lock).await
        }
        Some(ProblemKind::EnrollmentTokenInvalid) => {
            update_record(lock, |record| {
                // The server has a key that waits on record, and no other one. Without its token, the other one would
                // start to wait, which its user has not asked for.
                let waiting = record.rotation.take();
                record.rotation = waiting.filter(|rotation| rotation.enrollment_id.is_some());
                if let Some(rotation) = record.rotation.as_mut() {
                    rotation.token = None;
                }
            })
            .await?;
            remove_key_left_over(lock).await
        }
        _ => Ok(()),
    }
}

/// The certificate belongs to a key that the server does not admit.
fn request_again(record: &mut Record) {
    if let Some(rotation) = record.rotation.as_mut() {
        rotation.certificate = None;
        rotation.is_used = false;
    }
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

async fn remove_key_left_over(lock: &Arc<StateLock>) -> Result<(), AgentError> {
    let lock = Arc::clone(lock);
    run_blocking(move || Ok(key_store::remove_left_over(&lock)?)).await
}
