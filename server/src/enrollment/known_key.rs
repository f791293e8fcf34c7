//! Enrollment of a key on record: its response was lost, it waits for approval, or its certificate has expired.

use assay_authority::AuthorityError;
use assay_protocol::{
    admin_api::enrollments::{EnrollmentKind, EnrollmentStatus},
    agent_api::IssuedCertificate,
};

use super::{Applicant, Decided, EnrollError, TokenRefusal, certificate, opening, token};
use crate::{
    changes::Identity,
    registry::{
        admission::{self, Attempt, Refusal},
        record::boundaries,
    },
    services::Services,
    store::{
        Transaction, certificates, enrollments,
        machines::{
            self,
            keys::{KeyRecord, KeyStatus},
        },
    },
};

/// Returns the earlier result if nothing has changed, and issues a certificate if one is due.
pub(super) async fn decide(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    record: &KeyRecord,
) -> Result<Result<Decided, Refusal>, EnrollError> {
    // The request is signed by this key.
    if record.status.proves_machine() {
        applicant.caller.source.identify(Identity::Machine(record.machine_id));
    }
    // A decision on a key remains valid after the record is deleted.
    if matches!(record.status, KeyStatus::Revoked | KeyStatus::Denied)
        && let Some(refusal) = admission::key_refusal(record)
    {
        return Ok(Err(refusal));
    }
    // A key that waits for the machine's record, or was replaced, must not use up the machine's limit.
    if record.status.is_machines_own() {
        services.rate_limits.charge_machine(record.machine_id)?;
    }
    tx.act_as(applicant.origin(record.machine_id));
    let attempt = Attempt {
        key: applicant.key(),
        nonce: applicant.nonce,
        claims: &applicant.claims,
        carried: applicant.carried(services, record.machine_id),
        continuity: services.policy.continuity,
    };
    match admission::admit(tx, record, &attempt).await? {
        Ok(admitted) => {
            let assurance = admitted
                .identity
                .assurance_at(boundaries(&services.policy, tx.now()).attested_since);
            let (certificate, issued_now) = current_certificate(tx, services, applicant, record).await?;
            machines::presence::use_nonce(tx, &admitted.presence.machine, applicant.nonce).await?;
            Ok(Ok(Decided::Active {
                machine_id: record.machine_id,
                assurance,
                certificate,
                issued_now,
            }))
        }
        Err(Refusal::Pending) => still_pending(tx, services, applicant, record).await,
        Err(refusal) => Ok(Err(refusal)),
    }
}

/// Returns the earlier certificate. Issues a new one if there is none, as after an approval, if the earlier one has expired
/// or was revoked, or if its CA is retired.
///
/// Past the renewal grace the key alone is not sufficient, and the machine needs a token.
async fn current_certificate(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    record: &KeyRecord,
) -> Result<(IssuedCertificate, bool), EnrollError> {
    if let Some(last) = certificates::find_last_of_key(tx, record.machine_id, applicant.key()).await? {
        if last.is_in_force(applicant.now) {
            match certificate::on_record(&services.authority.load(), &last) {
                // No verifier has a path to a retired CA.
                Err(AuthorityError::Retired) => {}
                on_record => return Ok((on_record?, false)),
            }
        }
        if applicant.now >= last.not_after + services.policy.renewal_grace {
            let secret = applicant.token.ok_or(TokenRefusal::MissingForReturn)?;
            let serial_number = applicant.claims.machine.serial_number.as_deref();
            token::spend(tx, secret, serial_number, applicant.now).await?;
        }
    }
    let public_key = applicant.csr.public_key();
    let issued = certificate::issue(tx, services, record.machine_id, public_key).await?;
    Ok((issued, true))
}

async fn still_pending(
    tx: &mut Transaction,
    services: &Services,
    applicant: &Applicant,
    record: &KeyRecord,
) -> Result<Result<Decided, Refusal>, EnrollError> {
    let decision = enrollments::find_decision(tx, applicant.key()).await?;
    let Some(decision) = decision.filter(|decision| decision.status == EnrollmentStatus::Pending) else {
        return Ok(Err(Refusal::Pending));
    };
    if decision.kind == EnrollmentKind::ReEnrollment {
        let waiting = (record.machine_id, decision.id);
        if let Some(decided) = opening::decide_waiting(tx, services, applicant, waiting).await? {
            return Ok(Ok(decided));
        }
    }
    // The token of this call was not looked up. Only the one that the request was recorded with counts.
    if decision.token_id.is_none() {
        applicant.keep_address_charge();
    }
    let machine_id = match decision.kind {
        EnrollmentKind::Enrollment => {
            if let Some(presence) = machines::presence::lock(tx, record.machine_id).await? {
                machines::presence::use_nonce(tx, &presence.machine, applicant.nonce).await?;
            }
            Some(record.machine_id)
        }
        // The old key is still valid, so this key must not use up the machine's nonces.
        EnrollmentKind::ReEnrollment | EnrollmentKind::Rotation => None,
    };
    Ok(Ok(Decided::Pending {
        enrollment_id: decision.id,
        machine_id,
        waiting_since: decision.requested_at,
    }))
}
