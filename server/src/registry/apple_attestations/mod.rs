//! Apple attestations: what to ask an MDM for, and binding what it answers to a machine.

pub(crate) mod due;
pub(crate) mod lapsing;
pub(crate) mod request;

use assay_authority::{
    attestation::apple::{self, AttestationError, BoundAttestation, Record, UnverifiedAttestation},
    issuing::certificate_pem,
};
use assay_protocol::{
    PublicKey,
    admin_api::{
        apple_attestations::{AppleAttestation, AppleAttestationState},
        machines::Machine,
    },
    attestation::FreshnessCode,
    machine::{Assurance, MachineStatus},
    text::rfc3339,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use uuid::Uuid;

use super::record;
use crate::{
    changes::{Change, Origin},
    clock,
    services::Services,
    store::{self, AsStoreError, Connection, StoreError, Transaction, apple_attestations::OnRecord, machines},
};

/// Why nothing was bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppleAttestationError {
    #[error("there is no such machine")]
    Unknown,
    #[error("the machine is {0}, and an attestation is bound to one that is enrolled")]
    Standing(&'static str),
    #[error(transparent)]
    Refused(#[from] AttestationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for AppleAttestationError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// What to ask a machine's MDM for, and what is on record.
pub(crate) async fn find(services: &Services, id: Uuid) -> Result<AppleAttestationState, AppleAttestationError> {
    let mut connection = services.store.connection().await?;
    let machine = machines::find(&mut connection, id, &record::boundaries(services))
        .await?
        .ok_or(AppleAttestationError::Unknown)?;
    let key = public_key(&mut connection, &machine).await?;
    let on_record = store::apple_attestations::find_on_record(&mut connection, id).await?;
    Ok(state(services, &machine, &key, on_record))
}

/// Verifies a chain in DER, leaf first, and binds it to the machine whose key and serial number it is of. The one that is
/// bound already changes nothing, and what is refused leaves what is on record.
pub(crate) async fn bind(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    chain: Vec<Vec<u8>>,
) -> Result<AppleAttestationState, AppleAttestationError> {
    // Before what is wrong with the chain: whoever mistyped the id would look for a mistake there.
    if !machines::presence::exists(&mut *services.store.connection().await?, id).await? {
        return Err(AppleAttestationError::Unknown);
    }
    let unverified = UnverifiedAttestation::from_der(chain)?;
    let attestation = unverified.verify(&services.attestation_roots, services.clock.now())?;
    bind_verified(services, origin, id, &attestation).await
}

/// The same with an attestation that was verified.
pub(crate) async fn bind_verified(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    attestation: &apple::AppleAttestation,
) -> Result<AppleAttestationState, AppleAttestationError> {
    services
        .store
        .tx(
            "bind an Apple attestation",
            &(services, origin, id, attestation),
            |tx, &(services, origin, id, attestation)| Box::pin(bind_once(tx, services, origin, id, attestation)),
        )
        .await
}

async fn bind_once(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    id: Uuid,
    attestation: &apple::AppleAttestation,
) -> Result<AppleAttestationState, AppleAttestationError> {
    let machine = record::hold(tx, services, id)
        .await?
        .ok_or(AppleAttestationError::Unknown)?;
    match machine.status {
        MachineStatus::Active | MachineStatus::Quarantined => {}
        MachineStatus::Pending => return Err(AppleAttestationError::Standing("pending")),
        MachineStatus::Revoked => return Err(AppleAttestationError::Standing("revoked")),
    }
    let key = public_key(tx, &machine).await?;
    let bound = attestation.clone().bind(Record {
        key: &key,
        serial_number: machine.serial_number.as_deref(),
        attested_since: record::boundaries(services).attested_since,
    })?;
    let on_record = store::apple_attestations::find_on_record(tx, id).await?;
    let known_leaf = on_record.as_ref().and_then(|known| known.chain.first());
    if !bound.is(known_leaf.map(Vec::as_slice)) {
        if let Some(known) = &on_record {
            bound.require_newer_than(known.attested_at)?;
        }
    } else if machine.assurance == Assurance::Attested {
        return Ok(state(services, &machine, &key, on_record));
    }
    let machine = put_on_record(tx, services, origin, &machine, &bound).await?;
    let on_record = store::apple_attestations::find_on_record(tx, id).await?;
    Ok(state(services, &machine, &key, on_record))
}

async fn put_on_record(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    before: &Machine,
    bound: &BoundAttestation,
) -> Result<Machine, AppleAttestationError> {
    let clock = services.clock.as_ref();
    let (id, machine_id) = (clock::new_id(clock), before.id);
    store::apple_attestations::insert(tx, id, machine_id, bound, clock.now()).await?;
    let grounds = machines::grounds::find(tx, machine_id).await?.unwrap_or_default();
    machines::grounds::set(tx, machine_id, grounds.attested(id, bound)).await?;
    machines::presence::bump_record_version(tx, machine_id).await?;
    let change = Change::new("machine.attest", "machine", machine_id);
    let after = record::audit(tx, services, origin, change, before).await?;
    let seen = |machine: &Machine| {
        json!({ "assurance": machine.assurance, "attested_at": machine.attested_at.map(rfc3339),
                "attested": machine.posture.attested })
    };
    let detail = json!({
        "attestation_id": id, "key": before.key.thumbprint, "before": seen(before), "after": seen(&after),
    });
    store::events::insert(tx, clock, machine_id, "machine.attested", detail).await?;
    Ok(after)
}

/// The machine's current key, which every machine has.
async fn public_key(connection: &mut Connection, machine: &Machine) -> Result<PublicKey, StoreError> {
    let found = machines::keys::find_public_key(connection, machine.key.thumbprint).await?;
    found
        .map(|owned| owned.public_key)
        .ok_or_else(|| StoreError::Corrupt(format!("the key of the machine {} is not on record", machine.id)))
}

fn state(
    services: &Services,
    machine: &Machine,
    key: &PublicKey,
    on_record: Option<OnRecord>,
) -> AppleAttestationState {
    let nonce = FreshnessCode::of(key);
    let command_id = clock::new_id(services.clock.as_ref());
    AppleAttestationState {
        machine_id: machine.id,
        serial_number: machine.serial_number.clone(),
        key_thumbprint: key.thumbprint(),
        nonce: STANDARD.encode(nonce.as_bytes()),
        nonce_hex: nonce,
        device_information: request::device_information(nonce, command_id),
        assurance: machine.assurance,
        attestation: on_record.map(|known| AppleAttestation {
            id: known.id,
            attested_at: known.attested_at,
            bound_at: known.bound_at,
            lapses_at: known.attested_at.saturating_add(services.policy.attestation_max_age),
            not_after: known.not_after,
            claims: known.claims,
            chain: known.chain.iter().map(|der| certificate_pem(der)).collect(),
        }),
    }
}
