//! From a recorded check-in to its grants. They are evaluated in memory, and cached until something that they depend on
//! changes.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use assay_authority::{AudienceClaim, Confirmation, GrantClaims, GrantTokenError, spiffe_id};
use assay_grants::{Catalog, Evaluation, Granted};
use assay_protocol::{admin_api::audiences::AudienceForm, agent_api::AudienceGrant, machine::Assurance};
use aws_lc_rs::digest;
use moka::sync::Cache;
use serde_json::json;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{CheckInError, Verified};
use crate::{
    changes::{EventKind, Origin},
    machines::client_certificate::ClientCertificate,
    registry::admission::{self, Refusal},
    services::{Policy, Services},
    store::{
        self, Store, StoreError, Transaction,
        batcher::Batcher,
        machines::{self, check_ins::Recorded, evaluable::Evaluable},
        tx,
    },
    telemetry::Metrics,
};

/// The most bytes of cached evaluations, about 20,000 usual ones. They are weighed, because the claims for one audience may
/// have 4 KiB, and a machine may have many audiences.
const CAPACITY: u64 = 20_000 * USUAL_WEIGHT as u64;
/// What a cached evaluation needs besides its grants.
const USUAL_WEIGHT: u32 = 2048;

/// How far the clock of a relying party may be behind. Many JWT libraries refuse a token whose `iat` or `nbf` is in the
/// future, and allow no leeway.
const VERIFIERS_LAG: Duration = Duration::seconds(30);

/// Cached evaluations, and the grants that they were made of.
pub(crate) struct EvaluationCache {
    evaluated: Cache<Uuid, Arc<Evaluated>>,
    on_record: Batcher<Uuid, Evaluable>,
    catalog: ArcSwapOption<Catalog>,
}

/// What one machine is granted, and the record that this follows from. The record version rises with every change of
/// posture, too, so it stands for the posture's digest.
#[derive(Debug)]
pub(crate) struct Evaluated {
    pub(crate) machine: Evaluable,
    /// The assurance while the evaluation is valid.
    pub(crate) assurance: Assurance,
    pub(crate) evaluation: Evaluation,
    grants_version: i64,
    verdict_digest: [u8; 32],
}

impl EvaluationCache {
    /// Starts the task that reads machines that are not cached.
    pub(crate) fn start(store: Store, metrics: &Metrics) -> Self {
        Self {
            evaluated: Cache::builder()
                .weigher(|_, evaluated: &Arc<Evaluated>| weight(&evaluated.evaluation))
                .max_capacity(CAPACITY)
                .build(),
            on_record: Batcher::start_reader(store, metrics.machine_reader.clone(), |connection, ids| {
                Box::pin(machines::evaluable::find_all(connection, ids))
            }),
            catalog: ArcSwapOption::empty(),
        }
    }

    /// The grants of at least this version.
    async fn catalog(&self, store: &Store, at_least: i64) -> Result<Arc<Catalog>, StoreError> {
        if let Some(catalog) = self.catalog.load_full().filter(|catalog| catalog.version >= at_least) {
            return Ok(catalog);
        }
        let catalog = Arc::new(store::grants::load_catalog(&mut *store.connection().await?).await?);
        self.catalog.store(Some(Arc::clone(&catalog)));
        Ok(catalog)
    }
}

/// Evaluates for a machine whose check-in was recorded under these versions.
pub(super) async fn evaluate(
    services: &Services,
    verified: &Verified,
    recorded: &Recorded,
) -> Result<Arc<Evaluated>, CheckInError> {
    let now = services.clock.now();
    let cache = &services.evaluations;
    if let Some(evaluated) = cache.evaluated.get(&verified.machine_id)
        && evaluated.is_valid(recorded, now)
    {
        return Ok(evaluated);
    }
    let catalog = cache.catalog(&services.store, recorded.grants_version).await?;
    let machine = cache
        .on_record
        .call(verified.machine_id)
        .await?
        .ok_or(Refusal::Unknown)?;
    // Between the commit and this read, the machine may have been suspended, or another key may have replaced its key.
    refuse_unless_active(&machine, verified)?;
    let evaluated = Arc::new(Evaluated::new(&services.policy, &catalog, machine, now));
    cache.evaluated.insert(verified.machine_id, Arc::clone(&evaluated));
    Ok(evaluated)
}

/// What became of a verdict.
pub(super) enum Settled {
    /// It is on record, and the machine was still as it was evaluated.
    OnRecord,
    /// The machine's record has changed since it was evaluated, and has this version now.
    Overtaken { record_version: i64 },
    /// The machine was deleted.
    Deleted,
}

/// Writes the verdict, with an event, if it differs from the one of the last check-in.
///
/// Writing waits for the machine's row, and a revocation may have been answered meanwhile. So the row is read again
/// once it is locked. An unchanged verdict is not written: such a check-in may be answered milliseconds after a
/// revocation that followed its record.
pub(super) async fn settle_verdict(
    services: &Services,
    machine_id: Uuid,
    recorded: &Recorded,
    evaluated: &Evaluated,
) -> Result<Settled, StoreError> {
    if recorded.verdict_digest.as_deref() == Some(&evaluated.verdict_digest) {
        return Ok(Settled::OnRecord);
    }
    let origin = Origin::system();
    tx!(services.store, RecordVerdict, &origin => write_verdict(machine_id, evaluated)).await
}

/// One token for each audience.
pub(super) fn sign(
    services: &Services,
    evaluated: &Evaluated,
    now: OffsetDateTime,
) -> Result<Vec<AudienceGrant>, GrantTokenError> {
    let authority = services.authority.load();
    let granted = evaluated.evaluation.granted.iter();
    granted
        .filter_map(|granted| {
            let token = granted.token.as_ref();
            let ttl = token
                .and_then(|token| token.lifetime)
                .unwrap_or(services.policy.grants_ttl);
            let expires_at = evaluated.tokens_expire_at(now, ttl);
            let claims = evaluated.claims(services, granted, now, expires_at)?;
            let further = token.map_or("", |token| token.further_claims.as_str());
            Some(
                authority
                    .grant_signer()
                    .sign(&claims, further)
                    .map(|token| AudienceGrant {
                        audience: granted.audience.clone(),
                        permissions: granted.permissions.clone(),
                        token,
                        expires_at,
                    }),
            )
        })
        .collect()
}

/// Evaluates what is on record of a machine: its assurance and its grants at this time.
pub(crate) fn evaluate_now(
    policy: &Policy,
    catalog: &Catalog,
    machine: &Evaluable,
    now: OffsetDateTime,
) -> (Assurance, Evaluation) {
    let subject = machine.subject(now, policy.attestation_max_age);
    (subject.assurance, assay_grants::evaluate(catalog, &subject, now))
}

impl Evaluated {
    fn new(policy: &Policy, catalog: &Catalog, machine: Evaluable, now: OffsetDateTime) -> Self {
        let (assurance, evaluation) = evaluate_now(policy, catalog, &machine, now);
        let verdict_digest = verdict_digest(&reasons(&evaluation));
        Self {
            machine,
            assurance,
            evaluation,
            grants_version: catalog.version,
            verdict_digest,
        }
    }

    /// Whether a new evaluation would have the same result.
    fn is_valid(&self, recorded: &Recorded, now: OffsetDateTime) -> bool {
        self.machine.record_version == recorded.record_version
            && self.grants_version == recorded.grants_version
            && self.evaluation.valid_until.is_none_or(|until| now < until)
    }

    /// How long its tokens live for audiences that say so.
    pub(super) fn own_lives_of_tokens(&self) -> impl Iterator<Item = Duration> {
        let granted = self.evaluation.granted.iter();
        granted.filter_map(|granted| granted.token.as_ref()?.lifetime)
    }

    /// Whether this is the machine's current certificate.
    pub(super) fn has_current(&self, certificate: &ClientCertificate) -> bool {
        let current = self.machine.certificate.as_ref();
        current.is_some_and(|current| current.sha256 == certificate.sha256)
    }

    /// A token outlives neither the grant that it was made of nor the machine's certificate.
    fn tokens_expire_at(&self, now: OffsetDateTime, ttl: Duration) -> OffsetDateTime {
        let end = now + ttl;
        let end = self.evaluation.valid_until.map_or(end, |until| until.min(end));
        // `exp` has whole seconds, and what the answer says is what the token says.
        end.replace_nanosecond(0).unwrap_or(end)
    }

    /// `None` for a machine without a certificate: a token is bound to one.
    fn claims(
        &self,
        services: &Services,
        granted: &Granted,
        now: OffsetDateTime,
        expires_at: OffsetDateTime,
    ) -> Option<GrantClaims> {
        let certificate = self.machine.certificate.as_ref()?;
        let sha256 = certificate.sha256.as_slice().try_into().ok()?;
        let token = granted.token.as_ref();
        let subject = token.and_then(|token| token.subject.clone());
        let audience = granted.audience.clone();
        let valid_from = (now - VERIFIERS_LAG).unix_timestamp();
        Some(GrantClaims {
            iss: services.policy.public_url.clone(),
            sub: subject.unwrap_or_else(|| spiffe_id(&services.policy.trust_domain, self.machine.machine_id)),
            aud: match token.map(|token| token.aud) {
                Some(AudienceForm::Text) => AudienceClaim::Text(audience),
                Some(AudienceForm::List) | None => AudienceClaim::List([audience]),
            },
            iat: valid_from,
            nbf: valid_from,
            exp: expires_at.unix_timestamp(),
            jti: crate::clock::new_id(services.clock.as_ref()),
            cnf: Confirmation::new(self.machine.key, sha256),
            scope: granted.permissions.join(" "),
            permissions: granted.permissions.clone(),
            machine_id: self.machine.machine_id,
            assurance: self.assurance,
        })
    }
}

/// About how many bytes a cached evaluation needs.
fn weight(evaluation: &Evaluation) -> u32 {
    let granted = evaluation.granted.iter().map(|granted| {
        let token = granted.token.as_ref().map_or(0, |token| {
            token.further_claims.len() + token.subject.as_ref().map_or(0, String::len)
        });
        let permissions: usize = granted.permissions.iter().map(String::len).sum();
        granted.audience.len() + permissions + token
    });
    let denied = evaluation.denied.iter().map(|denial| {
        let reasons: usize = denial.reasons.iter().map(String::len).sum();
        denial.audience.len() + denial.permission.len() + reasons
    });
    let texts: usize = granted.chain(denied).sum();
    // What each grant adds by itself, with the texts of its own evaluation.
    let grants = evaluation.evaluations.len().saturating_mul(256);
    u32::try_from(texts.saturating_add(grants))
        .unwrap_or(u32::MAX)
        .saturating_add(USUAL_WEIGHT)
}

fn refuse_unless_active(machine: &Evaluable, verified: &Verified) -> Result<(), Refusal> {
    if let Some(refusal) = admission::status_refusal(machine.status) {
        return Err(refusal);
    }
    if machine.key != verified.evidence.key() {
        return Err(Refusal::KeySuperseded);
    }
    Ok(())
}

/// Every failing condition in words, after the permission that it denies.
fn reasons(evaluation: &Evaluation) -> Vec<String> {
    let denied = evaluation.denied.iter();
    denied
        .flat_map(|denial| {
            let permission = format!("{} at {}", denial.permission, denial.audience);
            denial
                .reasons
                .iter()
                .map(move |reason| format!("{permission}: {reason}"))
        })
        .collect()
}

fn verdict_digest(reasons: &[String]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for reason in reasons {
        context.update(reason.as_bytes());
        context.update(&[0]);
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

async fn write_verdict(tx: &mut Transaction, machine_id: Uuid, evaluated: &Evaluated) -> Result<Settled, StoreError> {
    let Some(presence) = machines::presence::lock(tx, machine_id).await? else {
        return Ok(Settled::Deleted);
    };
    let record_version = presence.record_version;
    if !presence.admitted || record_version != evaluated.machine.record_version {
        return Ok(Settled::Overtaken { record_version });
    }
    if presence.verdict_digest.as_deref() == Some(&evaluated.verdict_digest) {
        return Ok(Settled::OnRecord);
    }
    machines::presence::set_verdict(tx, &presence.machine, &evaluated.verdict_digest).await?;
    let reasons = reasons(&evaluated.evaluation);
    machines::record::set_verdict(tx, &presence.machine, &reasons).await?;
    let result = if reasons.is_empty() { "pass" } else { "fail" };
    let detail = json!({"result": result, "reasons": reasons});
    tx.announce(machine_id, EventKind::VerdictChanged, detail).await?;
    Ok(Settled::OnRecord)
}

#[cfg(test)]
mod tests {
    use assay_grants::TokenContents;

    use super::*;

    #[test]
    fn an_evaluation_weighs_what_its_claims_need() {
        let granted = |claims: usize| Granted {
            audience: "https://vpn.example.com".to_owned(),
            permissions: vec!["connect".to_owned()],
            token: Some(TokenContents {
                aud: AudienceForm::List,
                lifetime: None,
                subject: None,
                further_claims: "x".repeat(claims),
            }),
        };
        let evaluation = |claims: usize| Evaluation {
            granted: (0..100).map(|_| granted(claims)).collect(),
            ..Evaluation::default()
        };
        assert!(weight(&Evaluation::default()) >= USUAL_WEIGHT);
        assert_eq!(weight(&evaluation(4096)) - weight(&evaluation(0)), 100 * 4096);
    }
}
