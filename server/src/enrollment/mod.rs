//! Who becomes a machine: a key that proves itself, a token that lets it in, and a record that it gets or takes over.

pub(crate) mod approval;
mod certificate;
mod known_key;
mod new_key;
pub(crate) mod renewal;
mod token;

use assay_protocol::{
    Csr, KeyThumbprint, UnverifiedCsr, UnverifiedEvidence,
    agent_api::{EnrollRequest, Enrolled, EnrollmentPending, IssuedCertificate},
    csr::CsrError,
    evidence::{EvidenceError, Expectation, Purpose},
    machine::{Assurance, MachineStatus},
};
use time::OffsetDateTime;
use uuid::Uuid;

pub(crate) use self::token::TokenRefusal;
use crate::{
    audit::Origin,
    authority::{AuthorityError, spiffe_id},
    check_in::nonce::NonceError,
    machines::{admission::Refusal, claims::Claims},
    rate_limits::Exceeded,
    secrets::SecretHash,
    services::Services,
    store::{AsStoreError, StoreError, Transaction, machine_keys},
};

/// A machine that was just enrolled has no grants yet, and so no reason to wait for the first.
const FIRST_CHECK_IN_SECONDS: u64 = 1;
/// How often an agent that waits for an administrator asks again.
const PENDING_RETRY_SECONDS: u64 = 60;

/// Why an enrollment is refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    #[error(transparent)]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error(transparent)]
    Nonce(#[from] NonceError),
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "the serial number {serial_number:?} is enrolled with another key, and the token does not allow to replace it"
    )]
    Exists { serial_number: String },
    #[error(transparent)]
    RateLimited(#[from] Exceeded),
    #[error("the machine's claims cannot be kept")]
    Claims(#[from] serde_json::Error),
    #[error("the certificate cannot be issued")]
    Issue(#[from] AuthorityError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for EnrollError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

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

/// A key that asks, with everything about it that is verified, and what it claims.
struct Applicant {
    csr: Csr,
    nonce: OffsetDateTime,
    claims: Claims,
    token: Option<SecretHash>,
    request_id: String,
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
    },
}

impl Applicant {
    fn key(&self) -> KeyThumbprint {
        self.csr.public_key().thumbprint()
    }

    fn origin(&self, machine_id: Uuid) -> Origin {
        Origin::machine(machine_id, self.request_id.clone())
    }
}

/// Enrolls a key, or answers again for one that is enrolled.
pub(crate) async fn enroll(
    services: &Services,
    request_id: &str,
    request: &EnrollRequest,
) -> Result<Answer, EnrollError> {
    let applicant = verify(services, request_id, request)?;
    let decided = services
        .store
        .tx("enroll", &(services, &applicant), |tx, &(services, applicant)| {
            Box::pin(decide(tx, services, applicant))
        })
        .await;
    // A machine that took the serial number in the same moment is found by the next try.
    let decided = match decided {
        Err(EnrollError::Store(error)) if lost_a_race(&error) => {
            let context = (services, &applicant);
            let again = services.store.tx("enroll", &context, |tx, &(services, applicant)| {
                Box::pin(decide(tx, services, applicant))
            });
            again.await??
        }
        other => other??,
    };
    Ok(Answer {
        outcome: answer(services, decided),
        nonce_used: applicant.nonce,
    })
}

fn verify(services: &Services, request_id: &str, request: &EnrollRequest) -> Result<Applicant, EnrollError> {
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
    services.rate_limits.charge_key(evidence.key())?;
    let claims = Claims::of(&evidence);
    Ok(Applicant {
        csr,
        nonce: nonce.order(),
        claims,
        token: request.token.as_deref().map(SecretHash::of),
        request_id: request_id.to_owned(),
        now,
    })
}

/// Two transactions that make the same key or the same serial number's machine: one wins, the other looks again.
fn lost_a_race(error: &StoreError) -> bool {
    [machine_keys::PRIMARY_KEY, crate::store::machines::ONE_PER_SERIAL_NUMBER]
        .iter()
        .any(|index| error.violates(index))
}

/// The inner result is a refusal that is committed: a mismatch of identity has quarantined a machine.
async fn decide(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
) -> Result<Result<Decided, Refusal>, EnrollError> {
    if let Some(record) = machine_keys::find(tx, applicant.key()).await? {
        return known_key::decide(tx, services, applicant, &record).await;
    }
    match new_key::decide(tx, services, applicant).await {
        // Another call of this very key may have used the token up while this one waited for it.
        Err(EnrollError::Token(refusal)) => match machine_keys::find(tx, applicant.key()).await? {
            Some(record) => known_key::decide(tx, services, applicant, &record).await,
            None => Err(refusal.into()),
        },
        decided => decided.map(Ok),
    }
}

fn answer(services: &Services, decided: Decided) -> Outcome {
    match decided {
        Decided::Pending {
            enrollment_id,
            machine_id,
        } => Outcome::Pending(EnrollmentPending {
            enrollment_id,
            machine_id,
            status: MachineStatus::Pending,
            retry_after_seconds: PENDING_RETRY_SECONDS,
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
            };
            if issued_now {
                Outcome::Issued(enrolled)
            } else {
                Outcome::IssuedBefore(enrolled)
            }
        }
    }
}
