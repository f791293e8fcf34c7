//! Retention: deletes rows that are past their retention, in small batches. One replica at a time does it.
//!
//! Audit entries, machines and refused keys are never deleted. The names and addresses beside audit entries are. A certificate stays while it can still be used, or while
//! it is its machine's current one. A revoked certificate therefore stays until it has expired.

use std::{sync::Arc, time::Duration};

use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    changes::{Action, Change, Origin},
    config,
    periodic::{Turns, Work},
    services::Services,
    store::{
        self, Store, StoreError, Transaction,
        duties::{self, Duty},
        tx,
    },
};

const NAME: &str = "delete rows past their retention";
const INTERVAL: Duration = Duration::from_secs(60);
pub(crate) const WORK: Work = Work::every(INTERVAL, NAME);
/// How many rows one transaction deletes, and the pause before the next. Requests run in between.
const BATCH: i64 = 500;
const PAUSE: Duration = Duration::from_millis(100);

/// How long failed orders are kept, which is long enough to find out why. Orders that led to a certificate are kept as
/// long, because they contain what Apple attested.
const ACME_ORDERS: Duration = Duration::from_hours(7 * 24);

/// How long rows are kept.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Retention {
    rules: [Rule; 9],
}

#[derive(Debug, Clone, Copy)]
struct Rule {
    noun: Noun,
    kept_for: time::Duration,
}

#[derive(Debug, Clone, Copy)]
enum Noun {
    Events,
    Certificates,
    Enrollments,
    EnrollmentTokens,
    ApiKeys,
    WebhookDeliveries,
    AcmeOrders,
    AuditPersonalData,
    EnrollmentAddresses,
}

impl Retention {
    pub(crate) fn of(config: &config::Retention) -> Self {
        let rule = |noun, kept_for| Rule {
            noun,
            // The configuration limits each value to a few years.
            kept_for: time::Duration::try_from(kept_for).unwrap_or(time::Duration::MAX),
        };
        Self {
            rules: [
                rule(Noun::Events, config.events),
                rule(Noun::Certificates, config.certificates),
                rule(Noun::Enrollments, config.enrollments),
                rule(Noun::EnrollmentTokens, config.enrollment_tokens),
                rule(Noun::ApiKeys, config.api_keys),
                rule(Noun::WebhookDeliveries, config.webhook_deliveries),
                rule(Noun::AcmeOrders, ACME_ORDERS),
                rule(Noun::AuditPersonalData, config.personal_data),
                rule(Noun::EnrollmentAddresses, config.personal_data),
            ],
        }
    }
}

impl Noun {
    const fn action(self) -> Action {
        match self {
            Self::Events => Action::EventRemove,
            Self::Certificates => Action::CertificateRemove,
            Self::Enrollments => Action::EnrollmentRemove,
            Self::EnrollmentTokens => Action::EnrollmentTokenRemove,
            Self::ApiKeys => Action::ApiKeyRemove,
            Self::WebhookDeliveries => Action::WebhookDeliveryRemove,
            Self::AcmeOrders => Action::AcmeOrderRemove,
            Self::AuditPersonalData => Action::AuditRemovePersonalData,
            Self::EnrollmentAddresses => Action::EnrollmentRemoveAddress,
        }
    }

    async fn remove(self, tx: &mut Transaction, before: OffsetDateTime) -> Result<u64, StoreError> {
        match self {
            Self::Events => store::events::remove_before(tx, before, BATCH).await,
            Self::Certificates => store::certificates::remove_expired_before(tx, before, BATCH).await,
            Self::Enrollments => store::enrollments::retention::remove_decided_before(tx, before, BATCH).await,
            Self::EnrollmentTokens => store::enrollment_tokens::remove_ended_before(tx, before, BATCH).await,
            Self::ApiKeys => store::api_keys::remove_ended_before(tx, before, BATCH).await,
            Self::WebhookDeliveries => store::webhook_deliveries::remove_finished_before(tx, before, BATCH).await,
            Self::AcmeOrders => store::acme_orders::remove_ended_before(tx, before, BATCH).await,
            Self::AuditPersonalData => store::audit_entries::remove_personal_data_before(tx, before, BATCH).await,
            Self::EnrollmentAddresses => {
                store::enrollments::retention::remove_addresses_before(tx, before, BATCH).await
            }
        }
    }
}

/// Deletes rows that are past their retention, until the server stops.
pub(crate) async fn run_retention(services: Arc<Services>, turns: Turns) {
    turns.repeat(|| remove_due(&services, turns.shutdown())).await;
}

async fn remove_due(services: &Services, shutdown: &CancellationToken) -> Result<(), StoreError> {
    for rule in services.policy.retention.rules {
        while remove_batch(&services.store, rule).await? == BATCH.unsigned_abs() {
            if shutdown.run_until_cancelled(sleep(PAUSE)).await.is_none() {
                return Ok(());
            }
        }
    }
    Ok(())
}

async fn remove_batch(store: &Store, rule: Rule) -> Result<u64, StoreError> {
    let Some(before) = store.now().checked_sub(rule.kept_for) else {
        return Ok(0);
    };
    tx!(store, RemoveExpired, &Origin::system() => remove_and_record(rule.noun, before)).await
}

/// Writes one audit entry per batch. Each row had its own entry when it was created.
async fn remove_and_record(tx: &mut Transaction, noun: Noun, before: OffsetDateTime) -> Result<u64, StoreError> {
    if !duties::try_take(tx, Duty::Retain).await? {
        return Ok(0);
    }
    let removed = noun.remove(tx, before).await?;
    if removed > 0 {
        let (action, kind) = (noun.action(), noun.action().resource().as_str());
        let before = before.format(&Rfc3339).unwrap_or_default();
        let change = Change::new(action, "*")
            .reason(Some("past its retention"))
            .after(json!({"removed": removed, "ended_before": before}));
        tx.record(change).await?;
        tracing::info!(kind, removed, before, "removed rows past their retention");
    }
    Ok(removed)
}
