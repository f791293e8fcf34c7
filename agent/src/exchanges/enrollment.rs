//! Enrollment: registers the machine with its server. It can be repeated until it is complete.
//!
//! Everything that a repetition needs is on disk before the first request. A lost response, a crash or a late approval
//! therefore ends in the same machine with the same key, and uses the token once.

use std::sync::Arc;

use assay_protocol::{
    Chain, PublicKey, Purpose, Retry,
    agent_api::{EnrollRequest, Enrolled, EnrollmentPending},
};
use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString};
use time::OffsetDateTime;

use super::{
    check_in::next_check_in,
    error::AgentError,
    evidence::{Keys, Proof, ProofError},
    machine::{Machine, update_record},
    options::EnrollOptions,
    trust_bundle,
};
use crate::{
    connection::{Client, ClientError, fetch_root, is_certificate_for},
    key_store::{KeyFault, KeyStoreError, MachineKey},
    state::{EnrolledMachine, PendingEnrollment, Record, StateLock},
    trust::{KnownServer, Trust, TrustAnchor},
};

/// The result of an enrollment.
#[derive(Debug, Clone)]
pub enum EnrollOutcome {
    /// The machine is enrolled.
    Enrolled {
        /// The server's response.
        enrolled: Box<Enrolled>,
        /// Whether this machine was enrolled before, under the same id.
        was_enrolled: bool,
    },
    /// The enrollment waits for approval. Repeat the call later.
    Pending(EnrollmentPending),
}

pub(super) async fn enroll(
    machine: &Machine,
    lock: &Arc<StateLock>,
    options: EnrollOptions,
) -> Result<EnrollOutcome, AgentError> {
    let record = machine.record().await?;
    let server = server(&record, &options).await?;
    let public_key = key(machine, lock, &record).await?;
    let unfinished = record.pending.as_ref();
    let token = options
        .token
        .or_else(|| unfinished.and_then(|pending| pending.token.clone()));
    let pending = PendingEnrollment {
        token: token.clone(),
        enrollment_id: unfinished.and_then(|pending| pending.enrollment_id),
    };
    let (thumbprint, on_record) = (public_key.thumbprint(), server.clone());
    let keys = Keys::one(machine.key.at(record.key_place));
    update_record(lock, move |record| {
        record.server = Some(on_record);
        record.key = Some(thumbprint);
        record.pending = Some(pending);
    })
    .await?;
    let client = machine.anonymous_client(&server)?;
    let result = call(machine, &client, &keys, token.as_ref(), &public_key).await;
    record_result(machine, lock, &result).await?;
    result.map(|outcome| with_history(outcome, &record))
}

async fn call(
    machine: &Machine,
    client: &Client,
    keys: &Keys,
    token: Option<&SecretString>,
    public_key: &PublicKey,
) -> Result<EnrollOutcome, AgentError> {
    let request = |proof: Proof| EnrollRequest {
        token: token.map(|token| token.expose_secret().to_owned()),
        csr: proof.csr,
        evidence: proof.evidence,
    };
    let response = machine.exchange(client, keys, (Purpose::Enroll, None), request).await?;
    if response.status == StatusCode::ACCEPTED {
        return Ok(EnrollOutcome::Pending(client.read(&response)?));
    }
    let enrolled: Enrolled = client.read(&response)?;
    if !is_certificate_for(&enrolled.certificate, public_key) {
        return Err(client.wrong_certificate(&response).into());
    }
    Ok(EnrollOutcome::Enrolled {
        enrolled: Box::new(enrolled),
        was_enrolled: false,
    })
}

/// The server, and how to authenticate it.
async fn server(record: &Record, options: &EnrollOptions) -> Result<KnownServer, AgentError> {
    let known = record.server.as_ref();
    if let Some(known) = known.filter(|known| known.url != options.server && record.is_known_to_a_server()) {
        return Err(AgentError::OtherServer {
            on_record: known.url.clone(),
            requested: options.server.clone(),
        });
    }
    let known = known.filter(|known| known.url == options.server);
    let trust = match (&options.trust, known) {
        (Some(TrustAnchor::Fingerprint(fingerprint)), known) => {
            match known.and_then(|known| known.trust.pinned_again(*fingerprint)) {
                Some(trust) => trust,
                None => fetch_root(&options.server, *fingerprint).await?,
            }
        }
        (Some(TrustAnchor::Certificates(pem)), _) => Trust::from_certificates(pem).map_err(ClientError::Trust)?,
        (Some(TrustAnchor::System), _) | (None, None) => Trust::System,
        (None, Some(known)) => known.trust.clone(),
    };
    Ok(KnownServer {
        url: options.server.clone(),
        trust,
        withdrawn: known.map(|known| known.withdrawn.clone()).unwrap_or_default(),
    })
}

/// The machine's key. A new key is created only if no server knows one, or if the hardware permanently rejects the old
/// one.
async fn key(machine: &Machine, lock: &Arc<StateLock>, record: &Record) -> Result<PublicKey, AgentError> {
    let key = machine.key.at(record.key_place);
    match key.test_signing().await {
        Ok(None) if record.key.is_none() => {
            let new = key.create().await.map_err(ProofError::Key)?;
            let kept = key.save(Arc::clone(lock), new).await;
            Ok(kept.map_err(ProofError::Key)?)
        }
        Err(KeyFault::Store(error @ KeyStoreError::Foreign { .. })) => {
            tracing::warn!(error = %Chain(&error), "the hardware rejects the key: creating a new one, and keeping the old file as *.key.refused");
            replace_key(&key, lock).await
        }
        Err(fault) => Err(ProofError::Key(fault).into()),
        Ok(_) => machine.key_on_record(record).await,
    }
}

/// The record is written first. After a crash before the key file is written, the hardware rejects the old key again,
/// and this function runs again. In the other order, a crash would leave a key that does not match the record.
async fn replace_key(key: &MachineKey, lock: &Arc<StateLock>) -> Result<PublicKey, AgentError> {
    let new = key.create().await.map_err(ProofError::Key)?;
    let thumbprint = new.public_key.thumbprint();
    update_record(lock, move |record| {
        record.key = Some(thumbprint);
        record.key_is_unknown = true;
        // Its continuity starts anew, at the call that admits it.
        record.continuity = None;
        // A rotation in progress ends, because only the old key could admit the next one.
        record.rotation = None;
        // The tokens are bound to the old key.
        if let Some(last) = record.last_check_in.as_mut() {
            last.grants.clear();
        }
    })
    .await?;
    let kept = key.save_in_place_of_rejected(Arc::clone(lock), new).await;
    Ok(kept.map_err(ProofError::Key)?)
}

async fn record_result(
    machine: &Machine,
    lock: &Arc<StateLock>,
    result: &Result<EnrollOutcome, AgentError>,
) -> Result<(), AgentError> {
    match result {
        Ok(EnrollOutcome::Enrolled { enrolled, .. }) => {
            let (enrolled, now) = (enrolled.clone(), machine.clock.now());
            update_record(lock, move |record| record_enrollment(record, *enrolled, now)).await
        }
        Ok(EnrollOutcome::Pending(response)) => {
            let enrollment_id = Some(response.enrollment_id);
            update_record(lock, move |record| {
                if let Some(pending) = record.pending.as_mut() {
                    pending.enrollment_id = enrollment_id;
                }
                record.last_failure = None;
                record.suspension = None;
            })
            .await
        }
        Err(error) if is_final(error) => update_record(lock, |record| record.pending = None).await,
        Err(_) => Ok(()),
    }
}

fn record_enrollment(record: &mut Record, enrolled: Enrolled, now: OffsetDateTime) {
    let before = record.machine.take();
    let same = before.filter(|machine| machine.machine_id == enrolled.machine_id);
    if same.is_none() {
        record.last_check_in = None;
        record.rotation = None;
    }
    record.machine = Some(EnrolledMachine {
        machine_id: enrolled.machine_id,
        spiffe_id: enrolled.spiffe_id,
        assurance: enrolled.assurance,
        enrolled_at: same.as_ref().map_or(now, |machine| machine.enrolled_at),
        certificate: enrolled.certificate,
        trust_bundle: same.map(|machine| machine.trust_bundle).unwrap_or_default(),
    });
    trust_bundle::adopt(record, Some(enrolled.trust_bundle), &enrolled.withdrawn_issuers, now);
    record.keep_continuity(enrolled.continuity);
    record.next_check_in_at = Some(next_check_in(now, enrolled.next_check_in_seconds));
    record.pending = None;
    record.key_is_unknown = false;
    record.last_failure = None;
    record.suspension = None;
}

/// Whether a repetition would be refused again. The token is then useless and is deleted.
fn is_final(error: &AgentError) -> bool {
    error
        .refusal()
        .is_some_and(|refusal| refusal.problem.retry() == Retry::Never)
}

fn with_history(outcome: EnrollOutcome, before: &Record) -> EnrollOutcome {
    match outcome {
        EnrollOutcome::Enrolled { enrolled, .. } => EnrollOutcome::Enrolled {
            was_enrolled: before
                .machine
                .as_ref()
                .is_some_and(|machine| machine.machine_id == enrolled.machine_id),
            enrolled,
        },
        EnrollOutcome::Pending(pending) => EnrollOutcome::Pending(pending),
    }
}
