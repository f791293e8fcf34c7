//! Who becomes a machine: a key that proves itself, a token that lets it in, and a record that it gets or takes over.

pub(crate) mod approval;
mod certificate;
pub(crate) mod committer;
mod effects;
pub(crate) mod expiry;
mod known_key;
mod new_key;
mod new_machines;
pub(crate) mod renewal;
mod renewal_limit;
mod rotation;
mod token;

use std::{net::IpAddr, sync::Arc};

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
pub(crate) use self::token::{TokenRefusal, demand_service};
use crate::{
    changes::Origin,
    check_in::{self, nonce::NonceError},
    machines::{claims::Claims, client_certificate::ClientCertificate, continuity::Carried},
    rate_limits::{AddressCharge, Exceeded, Network},
    registry::{admission::Refusal, client_certificate::CertificateRefusal},
    secrets::SecretHash,
    services::Services,
    store::{StoreError, Transaction, batcher::BatchError, certificates, enrollments, machines, tx},
};

/// A machine that was just enrolled has no grants yet, and so no reason to wait for the first.
const FIRST_CHECK_IN_SECONDS: u64 = 1;
/// How often an agent that waits for an administrator asks again: at first often, as somebody may stand beside the machine
/// and approve it, then ever less.
const SHORTEST_PENDING_RETRY_SECONDS: u64 = 2;
const LONGEST_PENDING_RETRY_SECONDS: u64 = 60;
/// When a machine that found no room to wait without a token asks again: administrators decide in hours, not in seconds.
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
        "{limit} machines without an enrollment token wait for an administrator already, and no more may; one with a token need not wait for that"
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
    #[error("the machine's claims cannot be kept")]
    Claims(#[from] serde_json::Error),
    #[error("the certificate cannot be issued")]
    Issue(#[from] AuthorityError),
    #[error("the enrollment could not be recorded")]
    Batch(#[from] BatchError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(EnrollError);

/// What came of an enrollment.
pub(crate) enum Outcome {
    /// This call issued the certificate.
    Issued(Enrolled),
    /// An earlier call did.
    IssuedBefore(Enrolled),
    /// An administrator has to approve.
    Pending(EnrollmentPending),
}

/// The answer, and the nonce that was used up with it.
pub(crate) struct Answer {
    pub(crate) outcome: Outcome,
    pub(crate) nonce_used: OffsetDateTime,
}

/// Where a call comes from.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) request_id: String,
    /// Unknown behind a proxy that does not tell.
    pub(crate) address: Option<IpAddr>,
    pub(crate) address_charge: AddressCharge,
    /// What was presented in TLS, if anything was.
    pub(crate) certificate: Option<Arc<ClientCertificate>>,
}

/// A key that asks, with everything about it that is verified, and what it claims.
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

/// What a transaction decided; the answer is made of it after the commit.
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

    /// What its evidence carries for this machine.
    fn carried(&self, services: &Services, machine_id: Uuid) -> Carried {
        check_in::carried(services, machine_id, self.continuity.as_deref())
    }

    fn origin(&self, machine_id: Uuid) -> Origin {
        Origin::machine(machine_id, self.caller.request_id.clone())
    }

    /// The network that the call comes from.
    fn network(&self) -> Option<Network> {
        self.caller.address.map(Network::of)
    }

    /// An applicant without a token has proved only a key that it made itself, so the call stays charged to its address.
    fn keep_address_charge(&self) {
        self.caller.address_charge.keep();
    }
}

/// Enrolls a key, or answers again for one that is enrolled.
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

/// Decides in a transaction of its own, which knows every special case.
async fn decide_alone(services: &Services, applicant: &Applicant) -> Result<Decided, EnrollError> {
    let origin = Origin::applicant(applicant.caller.request_id.clone());
    let decided = tx!(services.store, Enroll, &origin => decide(services, applicant)).await;
    // A machine that took the serial number in the same moment is found by the next try.
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

/// Two transactions that make the same key or the same serial number's machine: one wins, the other looks again.
fn lost_a_race(error: &StoreError) -> bool {
    [machines::keys::PRIMARY_KEY, machines::ONE_PER_SERIAL_NUMBER]
        .iter()
        .any(|index| error.violates(index))
}

/// The inner result is a refusal that is committed: a mismatch of identity has quarantined a machine.
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
        // Another call of this very key may have used the token up while this one waited for it.
        Err(EnrollError::Token(refusal)) => match machines::keys::find(tx, applicant.key()).await? {
            Some(record) => known_key::decide(tx, services, applicant, &record).await,
            None => Err(refused(tx, applicant, refusal).await?),
        },
        decided => decided.map(Ok),
    }
}

/// Tells a key that waited in vain what became of it, beside why it cannot ask anew.
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

/// A sixth of the time that it has waited.
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
                trust_bundle: services.authority.load().roots_pem().to_owned(),
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
