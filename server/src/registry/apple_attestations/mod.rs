//! Apple attestations: what to request from an MDM, and binding the result to a machine.

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
    changes::{Action, Change, EventKind, Origin},
    services::{Policy, Services},
    store::{
        self, Connection, StoreError, Transaction,
        apple_attestations::OnRecord,
        machines::{self, presence::LockedMachine},
        tx,
    },
};

/// Why no attestation was bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AppleAttestationError {
    #[error("there is no such machine")]
    Unknown,
    #[error("the machine is {0}; an attestation needs an enrolled machine")]
    Standing(&'static str),
    #[error(
        "the current key is not one that an attestation counts for: it must be on record as in the Secure Enclave, and an \
         enrollment token bound to the serial number or an approval must have been given to this very key; approve it by its \
         thumbprint"
    )]
    NotOfKey,
    #[error(transparent)]
    Refused(#[from] AttestationError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(AppleAttestationError);

/// What to request from a machine's MDM, and the attestation on record.
pub(crate) async fn find(services: &Services, id: Uuid) -> Result<AppleAttestationState, AppleAttestationError> {
    let mut connection = services.store.connection().await?;
    let machine = machines::find(
        &mut connection,
        id,
        &record::boundaries(&services.policy, services.store.now()),
    )
    .await?
    .ok_or(AppleAttestationError::Unknown)?;
    let key = public_key(&mut connection, &machine).await?;
    let on_record = store::apple_attestations::find_on_record(&mut connection, id).await?;
    let command_id = services.store.new_id();
    Ok(state(&services.policy, command_id, &machine, &key, on_record))
}

/// Verifies a chain in DER, leaf first, and binds it to the machine with its key and serial number. Binding the same
/// chain again changes nothing. A refusal keeps the attestation on record.
pub(crate) async fn bind(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    chain: Vec<Vec<u8>>,
) -> Result<AppleAttestationState, AppleAttestationError> {
    // Checked before the chain, so that a wrong id is not reported as a fault of the chain.
    if !machines::presence::exists(&mut *services.store.connection().await?, id).await? {
        return Err(AppleAttestationError::Unknown);
    }
    let unverified = UnverifiedAttestation::from_der(chain)?;
    let attestation = unverified.verify(&services.attestation_roots, services.store.now())?;
    bind_verified(services, origin, id, &attestation).await
}

/// Binds an attestation that was already verified.
pub(crate) async fn bind_verified(
    services: &Services,
    origin: &Origin,
    id: Uuid,
    attestation: &apple::AppleAttestation,
) -> Result<AppleAttestationState, AppleAttestationError> {
    let policy = &services.policy;
    tx!(services.store, BindAppleAttestation, origin => bind_once(policy, id, attestation)).await
}

async fn bind_once(
    tx: &mut Transaction,
    policy: &Policy,
    id: Uuid,
    attestation: &apple::AppleAttestation,
) -> Result<AppleAttestationState, AppleAttestationError> {
    let (locked, machine) = record::lock(tx, policy, id)
        .await?
        .ok_or(AppleAttestationError::Unknown)?;
    match machine.status {
        MachineStatus::Active | MachineStatus::Quarantined => {}
        MachineStatus::Pending => return Err(AppleAttestationError::Standing("pending")),
        MachineStatus::Revoked => return Err(AppleAttestationError::Standing("revoked")),
    }
    if !machines::grounds::is_attestable(tx, id).await? {
        return Err(AppleAttestationError::NotOfKey);
    }
    let key = public_key(tx, &machine).await?;
    let bound = attestation.clone().bind(Record {
        key: &key,
        serial_number: machine.serial_number.as_deref(),
        attested_since: record::boundaries(policy, tx.now()).attested_since,
    })?;
    let on_record = store::apple_attestations::find_on_record(tx, id).await?;
    let known_leaf = on_record.as_ref().and_then(|known| known.chain.first());
    if !bound.has_leaf(known_leaf.map(Vec::as_slice)) {
        if let Some(known) = &on_record {
            bound.require_newer_than(known.attested_at)?;
        }
    } else if machine.assurance == Assurance::Attested {
        return Ok(state(policy, tx.new_id(), &machine, &key, on_record));
    }
    let machine = put_on_record(tx, policy, &locked, &machine, &bound).await?;
    let on_record = store::apple_attestations::find_on_record(tx, id).await?;
    Ok(state(policy, tx.new_id(), &machine, &key, on_record))
}

async fn put_on_record(
    tx: &mut Transaction,
    policy: &Policy,
    locked: &LockedMachine,
    before: &Machine,
    bound: &BoundAttestation,
) -> Result<Machine, AppleAttestationError> {
    let (id, machine_id, now) = (tx.new_id(), before.id, tx.now());
    store::apple_attestations::insert(tx, id, locked, bound, now).await?;
    let grounds = machines::grounds::find(tx, machine_id).await?.unwrap_or_default();
    machines::grounds::set(tx, locked, grounds.attested(id, bound)).await?;
    machines::presence::bump_record_version(tx, locked).await?;
    let boundaries = record::boundaries(policy, tx.now());
    let after = machines::find(tx, machine_id, &boundaries)
        .await?
        .ok_or(AppleAttestationError::Unknown)?;
    let seen = |machine: &Machine| {
        json!({ "assurance": machine.assurance, "attested_at": machine.attested_at.map(rfc3339),
                "attested": machine.posture.attested })
    };
    let detail = json!({
        "attestation_id": id, "key": before.key.thumbprint, "before": seen(before), "after": seen(&after),
    });
    let change = Change::new(Action::MachineAttest, machine_id)
        .before(store::json(before)?)
        .after(store::json(&after)?)
        .event(machine_id, EventKind::MachineAttested, detail);
    tx.record(change).await?;
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
    policy: &Policy,
    command_id: Uuid,
    machine: &Machine,
    key: &PublicKey,
    on_record: Option<OnRecord>,
) -> AppleAttestationState {
    let nonce = FreshnessCode::of(key);
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
            lapses_at: known.attested_at.saturating_add(policy.attestation_max_age),
            not_after: known.not_after,
            claims: known.claims,
            chain: known.chain.iter().map(|der| certificate_pem(der)).collect(),
        }),
    }
}
