//! The challenge `device-attest-01`: the client responds with Apple's attestation of the key and the device.

use assay_authority::{
    EcKey,
    attestation::apple::{AppleAttestation, AttestationError, AttestationRoots, UnverifiedAttestation},
    ec_key::NotAnEcKey,
};
use assay_protocol::{Chain, attestation::FreshnessCode, sha256};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{
    AcmeError, AttestationObjectError, accounts, admission, attestation_object, orders,
    refusals::{self, Refused},
    requests::{self, AccountRequest},
};
use crate::{
    rate_limits::RateLimits,
    services::Services,
    store::{
        Transaction,
        acme_orders::{self, Order, OrderStatus, Refusal},
        tx,
    },
};

/// The client's response. Without `Attest` in its profile, a Mac sends no attestation.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ChallengeResponse {
    #[serde(default)]
    att_obj: Option<String>,
}

/// Why an attestation is refused.
#[derive(Debug, thiserror::Error)]
enum BadAttestation {
    #[error(
        "the device sent no attestation; the profile must set Attest and HardwareBound, and the Mac needs Apple silicon and macOS 14 or later"
    )]
    Missing,
    #[error("attObj is not base64url without padding")]
    NotBase64,
    #[error(transparent)]
    Object(#[from] AttestationObjectError),
    #[error(transparent)]
    Chain(#[from] AttestationError),
    #[error(
        "the attestation was not made for this challenge: its freshness code is {attested} and must be SHA-256 of the token, {expected}"
    )]
    NotFresh { attested: String, expected: FreshnessCode },
    #[error("Apple attested the device {attested}, and the order is for {ordered}")]
    OtherDevice { attested: String, ordered: String },
    #[error("the attested key cannot be used")]
    Key(#[from] NotAnEcKey),
}

/// What an attestation proves for one order.
struct Proven {
    key: EcKey,
    attestation: AppleAttestation,
}

/// Handles the response to a challenge. A decided challenge does not change: a repeated call gets the same result. A
/// refusal is final; the client needs a new order.
pub(crate) async fn respond(services: &Services, request: &AccountRequest, id: Uuid) -> Result<Order, AcmeError> {
    if request.payload.is_empty() {
        return orders::find(&services.store, request, id).await;
    }
    let response: ChallengeResponse = request.payload.read()?;
    let origin = requests::origin(&request.source, &request.account, None);
    let (roots, rate_limits) = (&services.attestation_roots, services.rate_limits.as_ref());
    tx!(services.store, AnswerAcmeChallenge, &origin => respond_once(roots, rate_limits, request, id, &response)).await
}

async fn respond_once(
    tx: &mut Transaction,
    roots: &AttestationRoots,
    rate_limits: &RateLimits,
    request: &AccountRequest,
    id: Uuid,
    response: &ChallengeResponse,
) -> Result<Order, AcmeError> {
    let account = accounts::lock(tx, &request.account).await?;
    let order = orders::require_own(request, acme_orders::lock(tx, id).await?)?;
    let now = tx.now();
    if order.status != OrderStatus::Pending {
        return Ok(order);
    }
    if order.status_at(now) == OrderStatus::Invalid {
        return Err(AcmeError::Expired);
    }
    let admitted = admission::admit(tx, &account, &order.serial_number).await?;
    let refusal = match (&admitted, verify(roots, now, &order, response)) {
        (Ok(_), Ok(proven)) => {
            let chain: Vec<Vec<u8>> = proven.attestation.chain().map(<[u8]>::to_vec).collect();
            acme_orders::set_attested(tx, id, &proven.key, &chain, now).await?;
            None
        }
        (Err(inadmissible), _) => Some(("rejectedIdentifier", inadmissible.to_string(), inadmissible.reason())),
        (_, Err(bad)) => {
            let detail = Chain(&bad).to_string();
            Some(("badAttestationStatement", detail.clone(), detail))
        }
    };
    if let Some((kind, detail, reason)) = refusal {
        let machine_id = match &admitted {
            Ok(admitted) => admitted.machine_id,
            Err(inadmissible) => inadmissible.machine_id(),
        };
        let refused = Refused {
            account: &account,
            source: &request.source,
            serial_number: &order.serial_number,
            machine_id,
            order_id: Some(id),
            reason: &reason,
        };
        refusals::record(tx, rate_limits, &refused).await?;
        let kind = kind.to_owned();
        acme_orders::refuse(tx, id, &Refusal { kind, detail }).await?;
    }
    orders::require_own(request, acme_orders::find(tx, id).await?)
}

/// Checks everything that an attestation must prove: Apple's chain, valid now; this challenge's token; this order's
/// device; a key.
fn verify(
    roots: &AttestationRoots,
    now: OffsetDateTime,
    order: &Order,
    response: &ChallengeResponse,
) -> Result<Proven, BadAttestation> {
    let object = response.att_obj.as_deref().ok_or(BadAttestation::Missing)?;
    let object = URL_SAFE_NO_PAD.decode(object).map_err(|_| BadAttestation::NotBase64)?;
    let chain = attestation_object::parse(&object)?;
    let unverified = UnverifiedAttestation::from_der(chain)?;
    let attestation = unverified.verify(roots, now)?;
    require_freshness(&attestation, &order.token)?;
    let attested = attestation.claims().serial_number.clone();
    let attested = attested.ok_or(AttestationError::NoSerialNumber)?;
    if attested != order.serial_number {
        return Err(BadAttestation::OtherDevice {
            attested,
            ordered: order.serial_number.clone(),
        });
    }
    Ok(Proven {
        key: EcKey::from_spki_der(attestation.attested_key())?,
        attestation,
    })
}

/// Some verifiers accept an attestation without a freshness code. An attestation captured elsewhere would then be
/// accepted.
fn require_freshness(attestation: &AppleAttestation, token: &str) -> Result<(), BadAttestation> {
    let expected = FreshnessCode::from(sha256(token.as_bytes()));
    attestation.require_freshness(expected).map_err(|_| {
        let attested = attestation.claims().freshness_code;
        BadAttestation::NotFresh {
            attested: attested.map_or_else(|| "missing".to_owned(), |code| code.to_string()),
            expected,
        }
    })
}
