//! Renewal: one exchange that replaces the certificate before it expires, with the same key.

use std::sync::Arc;

use assay_protocol::{
    PublicKey, Purpose,
    agent_api::{RenewRequest, Renewed},
};

use crate::{
    agent::{Agent, AgentError, Proof, update_record},
    certificate,
    credential::Credential,
    evidence::Keys,
    key_store::MachineKey,
    state::{Record, StateLock},
    trust_bundle,
};

pub(crate) async fn renew(agent: &Agent, lock: &Arc<StateLock>) -> Result<Renewed, AgentError> {
    let record = agent.record().await?;
    let current = Credential::current(&agent.key, &record).ok_or(AgentError::NotEnrolled)?;
    let public_key = agent.key_on_record(&record).await?;
    let renewed = request(agent, &record, &current, (&current.key, &public_key)).await?;
    let (certificate, roots) = (renewed.certificate.clone(), renewed.trust_bundle.clone());
    update_record(lock, move |record| {
        if let Some(machine) = record.machine.as_mut() {
            machine.certificate = certificate;
        }
        trust_bundle::adopt(record, roots);
        record.last_failure = None;
    })
    .await?;
    Ok(renewed)
}

/// Has a key certified, for which the current one speaks: itself, or the one that is to replace it.
pub(crate) async fn request(
    agent: &Agent,
    record: &Record,
    current: &Credential,
    (certified, public_key): (&MachineKey, &PublicKey),
) -> Result<Renewed, AgentError> {
    let (Some(server), Some(machine)) = (&record.server, &record.machine) else {
        return Err(AgentError::NotEnrolled);
    };
    let client = agent.client(server, current).await?;
    let keys = Keys {
        signing: current.key.clone(),
        certified: certified.clone(),
    };
    let request = |proof: Proof| RenewRequest {
        csr: proof.csr,
        evidence: proof.evidence,
    };
    let what = (Purpose::Renew, Some(machine.machine_id));
    let answer = agent.exchange(&client, &keys, what, request).await?;
    let renewed: Renewed = client.read(&answer)?;
    certificate::check(&client, &answer, &renewed.certificate, public_key)?;
    Ok(renewed)
}
