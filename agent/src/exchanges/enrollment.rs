//! Enrollment: one exchange that makes the machine known to its server, and that can be repeated until it is through.
//!
//! What it takes to repeat it is on the disk before anything is sent, so that a lost answer, a crash or an approval that
//! takes days all end in the same machine, with the same key and the token used once.

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
    trust::{ServerOnRecord, Trust, TrustAnchor},
};

/// What came of an enrollment.
#[derive(Debug, Clone)]
pub enum EnrollOutcome {
    /// The machine is enrolled.
    Enrolled {
        /// What the server answered.
        enrolled: Box<Enrolled>,
        /// Whether it was this very machine before.
        was_enrolled: bool,
    },
    /// An administrator has to approve it; the call is to be repeated.
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
    remember(machine, lock, &result).await?;
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
    let answer = machine.exchange(client, keys, (Purpose::Enroll, None), request).await?;
    if answer.status == StatusCode::ACCEPTED {
        return Ok(EnrollOutcome::Pending(client.read(&answer)?));
    }
    let enrolled: Enrolled = client.read(&answer)?;
    if !is_certificate_for(&enrolled.certificate, public_key) {
        return Err(client.foreign_certificate(&answer).into());
    }
    Ok(EnrollOutcome::Enrolled {
        enrolled: Box::new(enrolled),
        was_enrolled: false,
    })
}

/// The server to enroll with, and how to recognize it.
async fn server(record: &Record, options: &EnrollOptions) -> Result<ServerOnRecord, AgentError> {
    let known = record.server.as_ref();
    if let Some(known) = known.filter(|known| known.url != options.server && record.is_known_to_a_server()) {
        return Err(AgentError::OtherServer {
            on_record: known.url.clone(),
            asked_for: options.server.clone(),
        });
    }
    let known = known.filter(|known| known.url == options.server);
    let trust = match (&options.trust, known) {
        (Some(TrustAnchor::Fingerprint(fingerprint)), Some(known)) if known.trust.is_pinned_to(*fingerprint) => {
            known.trust.clone()
        }
        (Some(TrustAnchor::Fingerprint(fingerprint)), _) => fetch_root(&options.server, *fingerprint).await?,
        (Some(TrustAnchor::Certificates(pem)), _) => Trust::in_certificates(pem).map_err(ClientError::Trust)?,
        (Some(TrustAnchor::System), _) | (None, None) => Trust::System,
        (None, Some(known)) => known.trust.clone(),
    };
    Ok(ServerOnRecord {
        url: options.server.clone(),
        trust,
    })
}

/// The machine's key: the one that there is, and a new one only where none was ever shown to a server, or where the
/// hardware says that it will never use the old one again.
async fn key(machine: &Machine, lock: &Arc<StateLock>, record: &Record) -> Result<PublicKey, AgentError> {
    let key = machine.key.at(record.key_place);
    match key.signing().await {
        Ok(None) if record.key.is_none() => {
            let new = key.make().await.map_err(ProofError::Key)?;
            let kept = key.keep(Arc::clone(lock), new).await;
            Ok(kept.map_err(ProofError::Key)?)
        }
        Err(KeyFault::Store(error @ KeyStoreError::Foreign { .. })) => {
            tracing::warn!(error = %Chain(&error), "the old key is set aside, and a new one made");
            replace_key(&key, lock).await
        }
        Err(fault) => Err(ProofError::Key(fault).into()),
        Ok(_) => machine.key_on_record(record).await,
    }
}

/// The record comes first: a crash in between leaves a key that the hardware refuses, and all of this is done again.
/// In the other order it would leave a key that nobody knows why to trust.
async fn replace_key(key: &MachineKey, lock: &Arc<StateLock>) -> Result<PublicKey, AgentError> {
    let new = key.make().await.map_err(ProofError::Key)?;
    let thumbprint = new.public_key.thumbprint();
    update_record(lock, move |record| {
        record.key = Some(thumbprint);
        record.key_is_unknown = true;
        // The key that was to follow the old one goes with it: only that could have let it in.
        record.rotation = None;
        // Its tokens are bound to the old key.
        if let Some(last) = record.last_check_in.as_mut() {
            last.grants.clear();
        }
    })
    .await?;
    let kept = key.keep_in_place_of_refused(Arc::clone(lock), new).await;
    Ok(kept.map_err(ProofError::Key)?)
}

async fn remember(
    machine: &Machine,
    lock: &Arc<StateLock>,
    result: &Result<EnrollOutcome, AgentError>,
) -> Result<(), AgentError> {
    match result {
        Ok(EnrollOutcome::Enrolled { enrolled, .. }) => {
            let (enrolled, now) = (enrolled.clone(), machine.clock.now());
            update_record(lock, move |record| admit(record, *enrolled, now)).await
        }
        Ok(EnrollOutcome::Pending(answer)) => {
            let enrollment_id = Some(answer.enrollment_id);
            update_record(lock, move |record| {
                if let Some(pending) = record.pending.as_mut() {
                    pending.enrollment_id = enrollment_id;
                }
                record.last_failure = None;
            })
            .await
        }
        Err(error) if is_final(error) => update_record(lock, |record| record.pending = None).await,
        Err(_) => Ok(()),
    }
}

fn admit(record: &mut Record, enrolled: Enrolled, now: OffsetDateTime) {
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
    trust_bundle::adopt(record, enrolled.trust_bundle);
    record.next_check_in_at = Some(next_check_in(now, enrolled.next_check_in_seconds));
    record.pending = None;
    record.key_is_unknown = false;
    record.last_failure = None;
}

/// A refusal that repeating cannot mend: the token in it is of no more use, and is not kept.
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
