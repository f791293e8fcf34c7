//! Enrollment: a verified key and a token become a machine, or replace the key of a machine on record.

pub(crate) mod approval;
mod basis;
mod certificate;
pub(crate) mod committer;
mod effects;
pub(crate) mod expiry;
mod known_key;
mod new_key;
mod new_machines;
mod opening;
pub(crate) mod renewal;
mod renewal_limit;
mod rotation;
mod token;

use std::sync::Arc;

use assay_authority::{AuthorityError, spiffe_id};
use assay_protocol::{
    Csr, KeyThumbprint, UnverifiedCsr, UnverifiedEvidence,
    agent_api::{EnrollRequest, Enrolled, EnrollmentPending, IssuedCertificate},
    csr::CsrError,
    evidence::{EvidenceError, Expectation, Purpose},
    machine::{Assurance, MachineStatus},
};
use time::OffsetDateTime;
use uuid::Uuid;

use self::new_machines::NewMachine;
pub(crate) use self::token::{TokenRefusal, require_valid};
use crate::{
    changes::{Origin, RequestSource},
    check_in::nonce::NonceError,
    machines::{claims::Claims, client_certificate::ClientCertificate, continuity::Carried},
    rate_limits::{AddressCharge, Exceeded, Network},
    registry::{admission::Refusal, client_certificate::CertificateRefusal},
    secrets::SecretHash,
    services::Services,
    store::{StoreError, Transaction, batcher::BatchError, certificates, enrollments, machines, tx},
};

/// A new machine has no grants yet, so it checks in immediately.
const FIRST_CHECK_IN_SECONDS: u64 = 1;
/// How often an agent repeats a pending enrollment. It starts often, because an administrator may be at the machine,
/// and becomes slower.
const SHORTEST_PENDING_RETRY_SECONDS: u64 = 2;
const LONGEST_PENDING_RETRY_SECONDS: u64 = 60;
/// When a machine repeats an enrollment after too many others were pending. Administrators decide within hours.
pub(crate) const NO_ROOM_RETRY_SECONDS: u64 = 600;

/// Why an enrollment is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Certificate(#[from] CertificateRefusal),
    #[error(transparent)]
    Nonce(#[from] NonceError),
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    #[error(
        "the request of {requested_at} expired before an administrator decided it, and a new one is refused: {refusal}"
    )]
    Expired {
        requested_at: OffsetDateTime,
        refusal: TokenRefusal,
    },
    #[error(
        "{limit} keys without a valid enrollment token already wait for an administrator, which is the limit; it does not \
         apply to a key with one"
    )]
    NoRoom { limit: u32 },
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "the serial number {serial_number:?} is enrolled with another key, and the token does not allow to replace it: it takes \
         a token that names this serial number and has allow_reenrollment, or the record's deletion"
    )]
    Exists { serial_number: String },
    #[error(transparent)]
    RateLimited(#[from] Exceeded),
    #[error("cannot serialize the machine's claims")]
    Claims(#[from] serde_json::Error),
    #[error("the certificate cannot be issued")]
    Issue(#[from] AuthorityError),
    #[error("the enrollment could not be recorded")]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(EnrollError);

/// The result of an enrollment.
pub(crate) enum Outcome {
    /// This call issued the certificate.
    Issued(Enrolled),
    /// An earlier call issued the certificate.
    IssuedBefore(Enrolled),
    /// An administrator must approve.
    Pending(EnrollmentPending),
}

/// The result, and the nonce that was used.
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) nonce_used: OffsetDateTime,
}

/// The origin of a call.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) source: RequestSource,
    pub(crate) address_charge: AddressCharge,
    /// The client certificate of the TLS connection.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

/// A key that requests enrollment, with its verified proofs and its claims.
struct Applicant {
    csr: Csr,
    nonce: OffsetDateTime,
    /// The continuity value in its evidence.
    continuity: Option<String>,
    claims: Claims,
    token: Option<SecretHash>,
    caller: Caller,
    now: OffsetDateTime,
}

/// The decision of a transaction, from which the response is built after the commit.
enum Decided {
    Active {
        machine_id: Uuid,
        assurance: Assurance,
        certificate: IssuedCertificate,
        issued_now: bool,
    },
    Pending {
        enrollment_id: Uuid,
        machine_id: Option<Uuid>,
        waiting_since: OffsetDateTime,
    },
}

impl Applicant {
    fn key(&self) -> KeyThumbprint {
        self.csr.public_key().thumbprint()
    }

    /// The continuity of its evidence with this machine.
    fn carried(&self, services: &Services, machine_id: Uuid) -> Carried {
        services.continuity.recognize(machine_id, self.continuity.as_deref())
    }

    fn origin(&self, machine_id: Uuid) -> Origin {
        Origin::machine(machine_id, &self.caller.source)
    }

    /// The network that the call comes from.
    fn network(&self) -> Option<Network> {
        self.caller.source.address.map(Network::of)
    }

    /// An applicant without a token has proved only a key that it made itself, so the call stays charged to its
    /// address.
    fn keep_address_charge(&self) {
        self.caller.address_charge.keep();
    }
}

/// Enrolls a key, or repeats the response for an enrolled one.
pub(crate) async fn enroll(
    services: &Services,
    caller: Caller,
    request: &EnrollRequest,
) -> Result<Answer, EnrollError> {
    let applicant = Arc::new(verify(services, caller, request)?);
    let decided = match NewMachine::prepare(services, &applicant) {
        Some(new_machine) => services.enrollments.admit(new_machine).await?,
        None => None,
    };
    let decided = match decided {
        Some(decided) => decided,
        None => decide_alone(services, &applicant).await?,
    };
    Ok(Answer {
        outcome: answer(services, decided, applicant.nonce),
        nonce_used: applicant.nonce,
    })
}

/// Decides in a transaction of its own, which handles all cases.
async fn decide_alone(services: &Services, applicant: &Applicant) -> Result<Decided, EnrollError> {
    let origin = Origin::applicant(&applicant.caller.source);
    let decided = tx!(services.store, Enroll, &origin => decide(services, applicant)).await;
    // The second attempt finds the machine that took the serial number at the same time.
    match decided {
        Err(EnrollError::Store(error)) if lost_a_race(&error) => {
            Ok(tx!(services.store, Enroll, &origin => decide(services, applicant)).await??)
        }
        other => Ok(other??),
    }
}

fn verify(services: &Services, caller: Caller, request: &EnrollRequest) -> Result<Applicant, EnrollError> {
    let now = services.clock.now();
    let csr = UnverifiedCsr::from_pem(&request.csr)?.verify()?;
    let unverified = UnverifiedEvidence::parse(&request.evidence)?;
    let nonce = services.nonces.recognize(unverified.unverified_nonce(), now)?;
    let expected = Expectation {
        audience: &services.policy.public_url,
        purpose: Purpose::Enroll,
        subject: None,
    };
    let evidence = unverified.verify(csr.public_key(), &expected)?;
    services.rate_limits.charge_applicant(evidence.key())?;
    if let Some(certificate) = &caller.certificate {
        certificate.appraise(evidence.key(), now)?;
    }
    let claims = Claims::of(&evidence);
    Ok(Applicant {
        csr,
        nonce: nonce.order(),
        continuity: evidence.claims().continuity.clone(),
        claims,
        token: request.token.as_deref().map(SecretHash::of),
        caller,
        now,
    })
}

/// Whether a concurrent transaction has inserted the same key or serial number. The loser then tries again.
fn lost_a_race(error: &StoreError) -> bool {
    [machines::keys::PRIMARY_KEY, machines::ONE_PER_SERIAL_NUMBER]
        .iter()
        .any(|index| error.violates(index))
}

/// The inner result is a refusal to commit, because an identity mismatch has quarantined a machine.
async fn decide(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<Result<Decided, Refusal>, EnrollError> {
    if let Some(presented) = &applicant.caller.certificate
        && !certificates::is_in_force(tx, presented).await?
    {
        return Err(presented.not_in_force().into());
    }
    let serial_number = applicant.claims.machine.serial_number.as_deref();
    expiry::forget_if_overdue(tx, &services.policy, applicant.key(), serial_number).await?;
    if let Some(record) = machines::keys::find(tx, applicant.key()).await? {
        return known_key::decide(tx, services, applicant, &record).await;
    }
    match new_key::decide(tx, services, applicant).await {
        // Another call with this key may have used up the token while this one waited for its lock.
        Err(EnrollError::Token(refusal)) => match machines::keys::find(tx, applicant.key()).await? {
            Some(record) => known_key::decide(tx, services, applicant, &record).await,
            None => Err(refused(tx, applicant, refusal).await?),
        },
        decided => decided.map(Ok),
    }
}

/// The error for a refused token. For a key whose enrollment has expired, it says that too.
async fn refused(
    tx: &mut Transaction,
    applicant: &Applicant,
    refusal: TokenRefusal,
) -> Result<EnrollError, StoreError> {
    let expired = enrollments::last_expired_of_key(tx, applicant.key()).await?;
    Ok(match expired {
        Some(requested_at) => EnrollError::Expired { requested_at, refusal },
        None => refusal.into(),
    })
}

/// A sixth of the time since the request, within limits.
fn pending_retry_seconds(waiting_since: OffsetDateTime, now: OffsetDateTime) -> u64 {
    let waited = u64::try_from((now - waiting_since).whole_seconds()).unwrap_or(0);
    (waited / 6).clamp(SHORTEST_PENDING_RETRY_SECONDS, LONGEST_PENDING_RETRY_SECONDS)
}

fn answer(services: &Services, decided: Decided, nonce: OffsetDateTime) -> Outcome {
    match decided {
        Decided::Pending {
            enrollment_id,
            machine_id,
            waiting_since,
        } => Outcome::Pending(EnrollmentPending {
            enrollment_id,
            machine_id,
            status: MachineStatus::Pending,
            retry_after_seconds: pending_retry_seconds(waiting_since, services.clock.now()),
        }),
        Decided::Active {
            machine_id,
            assurance,
            certificate,
            issued_now,
        } => {
            let enrolled = Enrolled {
                machine_id,
                status: MachineStatus::Active,
                assurance,
                spiffe_id: spiffe_id(&services.policy.trust_domain, machine_id),
                certificate,
                trust_bundle: services.authority.load().trust_bundle().to_owned(),
                withdrawn_issuers: services.authority.load().withdrawn_issuers().to_vec(),
                next_check_in_seconds: FIRST_CHECK_IN_SECONDS,
                continuity: Some(services.continuity.issue(machine_id, nonce)),
            };
            if issued_now {
                Outcome::Issued(enrolled)
            } else {
                Outcome::IssuedBefore(enrolled)
            }
        }
    }
}
