//! OCSP responses. They are made from the database, so every replica responds correctly right after a revocation.

use std::{sync::Arc, time::Duration};

use assay_authority::{
    Authority, AuthorityError, CertificateQuestion, IssuingAuthority, OcspIssuer, OcspRequest, OcspResponder,
    ocsp::{BACKDATING, CertificateStatus, OcspError, RESPONSE_LIFE, StatusAnswer, issue_for_root},
    serial_number,
};
use assay_protocol::admin_api::certificates::RevocationReason;
use time::OffsetDateTime;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    keyring::KeyringError,
    services::Services,
    store::{
        self, Connection, StoreError,
        revocations::RevocationRecord,
        sealed_keys::{KeyPurpose, SealedKey},
    },
};

/// How long a request waits for its look-up. Most OCSP clients give up after a few seconds.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

pub(crate) struct Response {
    pub(crate) der: Vec<u8>,
    /// `None` if caches must not give it to other clients: it has a nonce, or is an error.
    pub(crate) validity: Option<Validity>,
}

/// `thisUpdate` and `nextUpdate` of a response.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Validity {
    pub(crate) from: OffsetDateTime,
    pub(crate) until: OffsetDateTime,
}

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OcspFailure {
    #[error("an OCSP response cannot be signed")]
    Sign(#[from] AuthorityError),
    #[error("cannot open the root's key")]
    Root(#[from] KeyringError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// The CA that a request asks about. A responder speaks for the CA that issued its certificate, and a response has one
/// responder.
enum Asked<'a> {
    Issuing(&'a IssuingAuthority),
    Root(&'a OcspIssuer),
}

/// What is known about the certificates in a request, and the keys to speak for a root.
struct Known {
    records: Vec<RevocationRecord>,
    root: Option<SealedKey>,
}

/// Responds to a request in DER. Errors are OCSP responses too, because OCSP clients read nothing else.
pub(crate) async fn answer(services: &Services, request: &[u8]) -> Result<Response, OcspFailure> {
    let Ok(request) = OcspRequest::parse(request) else {
        return Ok(refused(services, OcspError::Malformed));
    };
    let (authority, now) = (services.authority.load_full(), services.clock.now());
    // The CA of the first certificate in the request that one of our CAs issued.
    let mut questions = request.questions().iter();
    let Some(asked) = questions.find_map(|question| Asked::of(&authority, question)) else {
        return Ok(refused(services, OcspError::Unauthorized));
    };
    let known = match known(services, &asked, &request).await {
        Ok(Some(known)) => known,
        Ok(None) => return Ok(refused(services, OcspError::TryLater)),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot read the status of a certificate"
            );
            return Ok(refused(services, OcspError::TryLater));
        }
    };
    let issuer = asked.issuer();
    let answers: Vec<StatusAnswer<'_>> = request
        .questions()
        .iter()
        .map(|question| StatusAnswer {
            question,
            status: match issuer.is_in(question) {
                true => status(&known.records, issuer.id, &question.serial_number()),
                // RFC 6960, section 2.2: a responder also says "unknown" for another CA's certificates.
                false => CertificateStatus::Unknown,
            },
        })
        .collect();
    let responder = match responder(services, &asked, known.root.as_ref(), now) {
        Ok(responder) => responder,
        // The root has just retired, for example. This replica will know soon.
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot make an OCSP responder"
            );
            return Ok(refused(services, OcspError::TryLater));
        }
    };
    let der = responder.respond(&request, &answers, now)?;
    for answer in &answers {
        services.metrics.revocation.ocsp_answered(match answer.status {
            CertificateStatus::Good => "good",
            CertificateStatus::Revoked { .. } => "revoked",
            CertificateStatus::Unknown => "unknown",
        });
    }
    let from = now - BACKDATING;
    let validity = Validity {
        from,
        until: from + RESPONSE_LIFE,
    };
    Ok(Response {
        der,
        validity: (!request.has_nonce()).then_some(validity),
    })
}

impl<'a> Asked<'a> {
    fn of(authority: &'a Authority, question: &CertificateQuestion) -> Option<Self> {
        let mut issuing = authority.all_issuing();
        if let Some(issuing) = issuing.find(|ca| ca.ocsp_issuer().is_in(question)) {
            return Some(Self::Issuing(issuing));
        }
        let mut roots = authority.ocsp_roots().iter();
        roots.find(|root| root.is_in(question)).map(Self::Root)
    }

    fn issuer(&self) -> &'a OcspIssuer {
        match self {
            Self::Issuing(issuing) => issuing.ocsp_issuer(),
            Self::Root(root) => root,
        }
    }
}

fn refused(services: &Services, refusal: OcspError) -> Response {
    services.metrics.revocation.ocsp_answered(match refusal {
        OcspError::Malformed => "malformed",
        OcspError::TryLater => "try_later",
        OcspError::Unauthorized => "unauthorized",
    });
    Response {
        der: refusal.response(),
        validity: None,
    }
}

/// `None` if too many look-ups are in progress.
async fn known(services: &Services, asked: &Asked<'_>, request: &OcspRequest) -> Result<Option<Known>, OcspFailure> {
    let Ok(Ok(_place)) = timeout(LONGEST_WAIT, services.revocation.look_ups.acquire()).await else {
        return Ok(None);
    };
    let mut connection = services.store.connection().await?;
    match asked {
        Asked::Issuing(issuing) => {
            let questions = request.questions().iter();
            let serial_numbers: Vec<String> = questions.map(CertificateQuestion::serial_number).collect();
            Ok(Some(Known {
                records: issued_by(&mut connection, issuing.id(), &serial_numbers).await?,
                root: None,
            }))
        }
        Asked::Root(root) => Ok(Some(certified_by(&mut connection, root.id).await?)),
    }
}

/// What an issuing CA has issued: certificates of machines and devices, and TLS certificates of the server.
async fn issued_by(
    connection: &mut Connection,
    issuer_id: Uuid,
    serial_numbers: &[String],
) -> Result<Vec<RevocationRecord>, StoreError> {
    let mut records = store::revocations::find(connection, serial_numbers).await?;
    if records.len() < serial_numbers.len() {
        let own = store::server_certificates::find(connection, issuer_id, serial_numbers).await?;
        records.extend(own.into_iter().map(|serial_number| RevocationRecord {
            issuer_id,
            serial_number,
            revoked: None,
        }));
    }
    Ok(records)
}

/// What a root has certified: issuing CAs, also retired ones, and the roots that follow it.
async fn certified_by(connection: &mut Connection, root_id: Uuid) -> Result<Known, OcspFailure> {
    let keys = store::sealed_keys::list(connection).await?;
    let cross_certificates = store::cross_certificates::list(connection).await?;
    let issuing = keys.iter().filter(|key| key.root_id == Some(root_id));
    let issuing = issuing.filter_map(|key| Some((key.certificate.as_deref()?, key.withdrawn_at)));
    let roots = cross_certificates.iter().filter(|cross| cross.issuer_id == root_id);
    let roots = roots.map(|cross| (cross.certificate.as_slice(), None));
    let record = |(certificate, withdrawn_at): (&[u8], Option<OffsetDateTime>)| {
        Ok(RevocationRecord {
            issuer_id: root_id,
            serial_number: hex::encode(serial_number(certificate)?),
            revoked: withdrawn_at.map(|at| (at, RevocationReason::CaCompromise)),
        })
    };
    Ok(Known {
        records: issuing
            .chain(roots)
            .map(record)
            .collect::<Result<_, AuthorityError>>()?,
        root: keys
            .into_iter()
            .find(|key| key.id == root_id && key.purpose == KeyPurpose::RootCa && key.sealed.is_some()),
    })
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
    asked: &Asked<'_>,
    root: Option<&SealedKey>,
    now: OffsetDateTime,
) -> Result<Arc<OcspResponder>, OcspFailure> {
    let key_identifier = &asked.issuer().key_identifier;
    let usable = |responder: &&Arc<OcspResponder>| responder.is_usable(key_identifier, now);
    if let Some(responder) = services.revocation.responders.load().iter().find(usable) {
        return Ok(Arc::clone(responder));
    }
    let made = match asked {
        Asked::Issuing(issuing) => issuing.issue_ocsp_responder(now)?,
        Asked::Root(_) => {
            let root = root.ok_or(KeyringError::Missing(KeyPurpose::RootCa.as_str()))?;
            issue_for_root(&services.rotation.keyring.certified_key(root)?, now)?
        }
    };
    let made = Arc::new(made);
    services.revocation.responders.rcu(|responders| {
        let others = responders.iter().filter(|other| other.is_in_time(now));
        others.chain([&made]).cloned().collect::<Vec<_>>()
    });
    Ok(made)
}
