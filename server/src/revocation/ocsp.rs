//! OCSP responses. They are made from the database, so every replica responds correctly right after a revocation.

use std::sync::Arc;

use assay_authority::{
    AuthorityError, IssuingAuthority, OcspRequest, OcspResponder,
    ocsp::{CertificateStatus, OcspError, StatusAnswer},
};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{
    services::Services,
    store::{self, StoreError, revocations::RevocationRecord},
};

pub(crate) struct Response {
    pub(crate) der: Vec<u8>,
    /// Whether caches may give it to other clients that send the same request.
    pub(crate) is_for_all: bool,
}

/// Responds to a request in DER. Errors are OCSP responses too, because OCSP clients read nothing else.
pub(crate) async fn answer(services: &Services, request: &[u8]) -> Result<Response, AuthorityError> {
    let Ok(request) = OcspRequest::parse(request) else {
        services.metrics.revocation.ocsp_answered("malformed");
        return Ok(refused(OcspError::Malformed));
    };
    let records = match records(services, &request).await {
        Ok(records) => records,
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot read the status of a certificate"
            );
            services.metrics.revocation.ocsp_answered("try_later");
            return Ok(refused(OcspError::TryLater));
        }
    };
    let (authority, now) = (services.authority.load(), services.clock.now());
    // A responder speaks for the CA that issued its certificate, and a response has one responder. It is the one for
    // the first certificate in the request that one of our CAs issued.
    let mut questions = request.questions().iter();
    let asked = questions.find_map(|question| authority.all_issuing().find(|ca| ca.is_issuer_in(question)));
    let issuing = asked.unwrap_or_else(|| authority.issuing());
    let answers: Vec<StatusAnswer<'_>> = request
        .questions()
        .iter()
        .map(|question| StatusAnswer {
            question,
            status: match issuing.is_issuer_in(question) {
                true => status(&records, issuing.id(), &question.serial_number()),
                // RFC 6960, section 2.2: a responder also says "unknown" for another CA's certificates.
                false => CertificateStatus::Unknown,
            },
        })
        .collect();
    let der = responder(services, issuing, now)?.respond(&request, &answers, now)?;
    for answer in &answers {
        services.metrics.revocation.ocsp_answered(match answer.status {
            CertificateStatus::Good => "good",
            CertificateStatus::Revoked { .. } => "revoked",
            CertificateStatus::Unknown => "unknown",
        });
    }
    Ok(Response {
        der,
        is_for_all: !request.has_nonce(),
    })
}

fn refused(refusal: OcspError) -> Response {
    Response {
        der: refusal.response(),
        is_for_all: false,
    }
}

async fn records(services: &Services, request: &OcspRequest) -> Result<Vec<RevocationRecord>, StoreError> {
    let questions = request.questions().iter();
    let serial_numbers: Vec<String> = questions.map(|question| question.serial_number()).collect();
    let mut connection = services.store.connection().await?;
    store::revocations::find(&mut connection, &serial_numbers).await
}

fn status(records: &[RevocationRecord], issuer_id: Uuid, serial_number: &str) -> CertificateStatus {
    let mut records = records.iter();
    match records.find(|record| record.issuer_id == issuer_id && record.serial_number == serial_number) {
        None => CertificateStatus::Unknown,
        Some(RevocationRecord { revoked: None, .. }) => CertificateStatus::Good,
        Some(RevocationRecord {
            revoked: Some((at, reason)),
            ..
        }) => CertificateStatus::Revoked {
            at: *at,
            reason: *reason,
        },
    }
}

/// This replica's responder for a CA. It is replaced when its certificate expires soon. Two requests may each make one;
/// both are valid.
fn responder(
    services: &Services,
    issuing: &IssuingAuthority,
    now: OffsetDateTime,
) -> Result<Arc<OcspResponder>, AuthorityError> {
    let usable = |responder: &&Arc<OcspResponder>| responder.is_usable(issuing.key_identifier(), now);
    if let Some(responder) = services.revocation.responders.load().iter().find(usable) {
        return Ok(Arc::clone(responder));
    }
    let made = Arc::new(issuing.issue_ocsp_responder(now)?);
    services.revocation.responders.rcu(|responders| {
        let others = responders.iter().filter(|other| other.is_in_time(now));
        others.chain([&made]).cloned().collect::<Vec<_>>()
    });
    Ok(made)
}
