//! Check-in: proves the machine's presence and state, and brings its grants.

use std::{sync::Arc, time::Duration};

use assay_protocol::{
    Purpose,
    agent_api::{Action, CheckInRequest, CheckedIn},
};
use time::OffsetDateTime;

use super::{
    credential::Credential,
    error::AgentError,
    evidence::{Keys, Proof},
    machine::{Machine, update_record},
    trust_bundle,
};
use crate::state::{Record, RecordedCheckIn, StateLock};

/// Limits for the server's interval: one wrong response must neither flood the server nor silence the machine.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_hours(24);

/// Checks in with the current key.
pub(super) async fn check_in(
    machine: &Machine,
    lock: &Arc<StateLock>,
    record: &Record,
) -> Result<CheckedIn, AgentError> {
    let current = Credential::current(&machine.key, record).ok_or(AgentError::NotEnrolled)?;
    machine.key_on_record(record).await?;
    let checked_in = call(machine, record, &current).await?;
    record_result(machine, lock, &checked_in, |_| ()).await?;
    Ok(checked_in)
}

/// The exchange with the server, signed by this credential's key.
pub(super) async fn call(machine: &Machine, record: &Record, credential: &Credential) -> Result<CheckedIn, AgentError> {
    let (Some(server), Some(enrolled)) = (&record.server, &record.machine) else {
        return Err(AgentError::NotEnrolled);
    };
    let client = machine.client(server, credential).await?;
    let request = |proof: Proof| CheckInRequest {
        evidence: proof.evidence,
        trust_bundle_sha256: Some(trust_bundle::digest(&enrolled.trust_bundle)),
    };
    let (keys, what) = (
        Keys::one(credential.key.clone()),
        (Purpose::CheckIn, Some(enrolled.machine_id)),
    );
    let response = machine.exchange(&client, &keys, what, request).await?;
    let mut checked_in: CheckedIn = client.read(&response)?;
    if checked_in.machine_id != enrolled.machine_id {
        return Err(client
            .invalid_response(response.status, "it names another machine".to_owned())
            .into());
    }
    // Relying parties reject this certificate from now on.
    if trust_bundle::is_from_withdrawn_issuer(&credential.certificate, server, &checked_in.withdrawn_issuers) {
        checked_in.actions.push(Action::RenewCertificate);
    }
    Ok(checked_in)
}

/// Records the response, and applies a further change to the record in the same write.
pub(super) async fn record_result(
    machine: &Machine,
    lock: &Arc<StateLock>,
    checked_in: &CheckedIn,
    follows: impl FnOnce(&mut Record) + Send + 'static,
) -> Result<(), AgentError> {
    let now = machine.clock.now();
    let next = next_check_in(now, checked_in.next_check_in_seconds);
    let assurance = checked_in.assurance;
    let (roots, withdrawn) = (checked_in.trust_bundle.clone(), checked_in.withdrawn_issuers.clone());
    let continuity = checked_in.continuity.clone();
    let on_record = RecordedCheckIn {
        at: now,
        status: checked_in.status,
        grants: checked_in.grants.clone(),
        denied: checked_in.denied.clone(),
    };
    update_record(lock, move |record| {
        follows(record);
        if let Some(machine) = record.machine.as_mut() {
            machine.assurance = assurance;
        }
        trust_bundle::adopt(record, roots, &withdrawn, now);
        record.keep_continuity(continuity);
        record.last_check_in = Some(on_record);
        record.next_check_in_at = Some(next);
        record.last_failure = None;
        record.suspension = None;
    })
    .await
}

/// When the next check-in is due, without jitter.
pub(super) fn next_check_in(now: OffsetDateTime, seconds: u64) -> OffsetDateTime {
    now + interval(seconds)
}

/// The server's interval, within limits.
pub(crate) fn interval(seconds: u64) -> Duration {
    Duration::from_secs(seconds).clamp(MIN_INTERVAL, MAX_INTERVAL)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(0, 1)]
    #[case(300, 300)]
    #[case(u64::MAX, 86_400)]
    fn the_interval_of_the_server_is_limited(#[case] set: u64, #[case] seconds: i64) {
        let now = OffsetDateTime::UNIX_EPOCH;
        assert_eq!(next_check_in(now, set).unix_timestamp(), seconds);
    }
}
