//! Renewal: one exchange that replaces the certificate before it expires, with the same key.

use std::sync::Arc;

use assay_protocol::{
    Purpose,
    agent_api::{RenewRequest, Renewed},
};

use crate::{
    agent::{Agent, AgentError, update_record},
    certificate,
    state::StateLock,
    trust_bundle,
};

pub(crate) async fn renew(agent: &Agent, lock: &Arc<StateLock>) -> Result<Renewed, AgentError> {
    let record = agent.record().await?;
    let (Some(server), Some(machine)) = (&record.server, &record.machine) else {
        return Err(AgentError::NotEnrolled);
    };
    let public_key = agent.key_on_record(&record).await?;
    let client = agent.client(server, &record).await?;
    let subject = Some(machine.machine_id);
    let request = |proof: crate::agent::Proof| RenewRequest {
        csr: proof.csr,
        evidence: proof.evidence,
    };
    let answer = agent
        .exchange(&client, "/v1/renew", (Purpose::Renew, subject), request)
        .await?;
    let renewed: Renewed = client.read(&answer)?;
    certificate::check(&client, &answer, &renewed.certificate, &public_key)?;
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
