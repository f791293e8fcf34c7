//! Renewal: replaces the certificate before it expires, with the same key.

use std::sync::Arc;

use assay_protocol::{
    PublicKey, Purpose,
    agent_api::{RenewRequest, Renewed},
};
use secrecy::{ExposeSecret, SecretString};

use super::{
    credential::Credential,
    error::AgentError,
    evidence::{Keys, Proof},
    machine::{Machine, update_record},
    trust_bundle,
};
use crate::{
    connection::{ApiResponse, Client, is_certificate_for},
    key_store::MachineKey,
    state::{Record, StateLock},
};

pub(super) async fn renew(machine: &Machine, lock: &Arc<StateLock>) -> Result<Renewed, AgentError> {
    let record = machine.record().await?;
    let current = Credential::current(&machine.key, &record).ok_or(AgentError::NotEnrolled)?;
    let public_key = machine.key_on_record(&record).await?;
    let (client, response) = send(machine, &record, &current, &current.key, None).await?;
    let renewed = read(&client, &response, &public_key)?;
    let (answer, now) = (renewed.clone(), machine.clock.now());
    update_record(lock, move |record| {
        if let Some(machine) = record.machine.as_mut() {
            machine.certificate = answer.certificate;
        }
        trust_bundle::adopt(record, Some(answer.trust_bundle), &answer.withdrawn_issuers, now);
        record.keep_continuity(answer.continuity);
        record.last_failure = None;
        record.suspension = None;
    })
    .await?;
    Ok(renewed)
}

/// Requests a certificate for a key: the current one, or the next one. The current key signs the evidence.
pub(super) async fn send(
    machine: &Machine,
    record: &Record,
    current: &Credential,
    certified: &MachineKey,
    token: Option<&SecretString>,
) -> Result<(Arc<Client>, ApiResponse), AgentError> {
    let (Some(server), Some(enrolled)) = (&record.server, &record.machine) else {
        return Err(AgentError::NotEnrolled);
    };
    let client = machine.client(server, current).await?;
    let keys = Keys {
        signing: current.key.clone(),
        certified: certified.clone(),
    };
    let request = |proof: Proof| RenewRequest {
        csr: proof.csr,
        evidence: proof.evidence,
        token: token.map(|token| token.expose_secret().to_owned()),
    };
    let what = (Purpose::Renew, Some(enrolled.machine_id));
    let response = machine.exchange(&client, &keys, what, request).await?;
    Ok((client, response))
}

/// Reads the response with a certificate for this key.
pub(super) fn read(client: &Client, response: &ApiResponse, public_key: &PublicKey) -> Result<Renewed, AgentError> {
    let renewed: Renewed = client.read(response)?;
    if !is_certificate_for(&renewed.certificate, public_key) {
        return Err(client.wrong_certificate(response).into());
    }
    Ok(renewed)
}
