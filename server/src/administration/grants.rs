//! Creating, changing, listing and deleting grants, and evaluating them for one machine.

use assay_grants::{Granted, OsVersion};
use assay_protocol::admin_api::grants::{
    Conditions, EvaluatedAudience, EvaluatedGrants, EvaluatedToken, Grant, GrantRequest, Selector,
};
use time::{Duration, OffsetDateTime, UtcOffset};
use uuid::Uuid;

use super::permissions::{LONGEST_DESCRIPTION, LONGEST_NAME, is_description, is_scope_token};
use crate::{
    changes::{Action, Change, Origin},
    check_in::evaluate_now,
    clock,
    machines::labels::{self, LabelError},
    services::Services,
    store::{self, Store, StoreError, Transaction, grants::GrantFilter, tx},
};

const MOST_MACHINE_IDS: usize = 10_000;
const LONGEST_OS_VERSION: usize = 64;
/// A hundred years. A grant without this condition leaves the member out.
const LONGEST_ATTESTATION_AGE_DAYS: u32 = 36_500;

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GrantError {
    #[error("name must be 1 to {LONGEST_NAME} visible ASCII characters, without \" and \\")]
    Name,
    #[error("description must have at most {LONGEST_DESCRIPTION} characters, without control characters")]
    Description,
    #[error("another grant has the name {0}; change that grant, or choose another name")]
    NameTaken(String),
    #[error(
        "the grant {0} gives the same permission to the same machines under the same conditions; change that grant"
    )]
    Equal(String),
    #[error("selector must have at least one member: machine_ids, labels or all")]
    SelectorEmpty,
    #[error("selector.machine_ids must have 1 to {MOST_MACHINE_IDS} ids")]
    SelectorMachineIds,
    #[error("selector.labels must have at least one label")]
    SelectorLabelsEmpty,
    #[error("selector.{0}")]
    SelectorLabels(LabelError),
    #[error("selector.all must be true; leave it out unless the grant is for all machines")]
    SelectorAll,
    #[error(
        "conditions.min_os_version must be numbers separated by dots, as in 26.3.1 or 26.3.1 (a), at most {LONGEST_OS_VERSION} characters"
    )]
    OsVersion,
    #[error("conditions.max_attestation_age_days must be from 1 to {LONGEST_ATTESTATION_AGE_DAYS}")]
    AttestationAge,
    #[error("expires_at must be in the future")]
    Expired,
    #[error("expires_at must be before the year 10000")]
    End,
    #[error("there is no such permission")]
    UnknownPermission,
    #[error("there is no such grant")]
    Unknown,
    #[error("there is no such machine")]
    UnknownMachine,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(GrantError);

/// Creates a grant.
pub(crate) async fn create(store: &Store, origin: &Origin, request: GrantRequest) -> Result<Grant, GrantError> {
    let request = checked(request)?;
    let id = store.new_id();
    tx!(store, CreateGrant, origin => insert(id, &request)).await
}

/// Replaces a grant. It keeps its id, when it was created and, if the request has none, its name.
pub(crate) async fn replace(
    store: &Store,
    origin: &Origin,
    id: Uuid,
    request: GrantRequest,
) -> Result<Grant, GrantError> {
    let request = checked(request)?;
    tx!(store, ReplaceGrant, origin => replace_once(id, &request)).await
}

/// A page of grants, oldest first.
pub(crate) async fn list(
    store: &Store,
    filter: &GrantFilter,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<Grant>, GrantError> {
    Ok(store::grants::list(&mut *store.connection().await?, filter, after, rows).await?)
}

/// One grant.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<Grant, GrantError> {
    store::grants::find(&mut *store.connection().await?, id)
        .await?
        .ok_or(GrantError::Unknown)
}

/// Deletes a grant.
pub(crate) async fn delete(store: &Store, origin: &Origin, id: Uuid) -> Result<(), GrantError> {
    tx!(store, DeleteGrant, origin => delete_once(id)).await
}

/// What a check-in would grant a machine now, and why.
///
/// Reads the grants from the database and not from this replica's cache. An administrator thus sees every change.
pub(crate) async fn evaluate_for(services: &Services, machine_id: Uuid) -> Result<EvaluatedGrants, GrantError> {
    let now = services.clock.now();
    let mut connection = services.store.connection().await?;
    let machine = store::machines::evaluable::find(&mut connection, machine_id)
        .await?
        .ok_or(GrantError::UnknownMachine)?;
    let catalog = store::grants::load_catalog(&mut connection).await?;
    drop(connection);
    let (assurance, evaluation) = evaluate_now(&services.policy, &catalog, &machine, now);
    Ok(EvaluatedGrants {
        machine_id,
        status: machine.status,
        assurance,
        grants: evaluation.granted.into_iter().map(evaluated_audience).collect(),
        denied: evaluation.denied,
        evaluations: evaluation.evaluations,
    })
}

fn evaluated_audience(granted: Granted) -> EvaluatedAudience {
    EvaluatedAudience {
        token: granted.token.map(|token| EvaluatedToken {
            aud: token.aud,
            lifetime_seconds: token.lifetime.map(Duration::whole_seconds),
            claims: token.further_claims_map(),
            subject: token.subject,
        }),
        audience: granted.audience,
        permissions: granted.permissions,
    }
}

async fn insert(tx: &mut Transaction, id: Uuid, request: &GrantRequest) -> Result<Grant, GrantError> {
    store::settings::lock_policy(tx).await?;
    let name = request.name.clone().unwrap_or_else(|| id.to_string());
    let now = tx.now();
    let grant = of_request(tx, (id, name), request, (now, now)).await?;
    require_future(grant.expires_at, now)?;
    require_unequal(tx, &grant).await?;
    store::settings::begin_policy_version(tx).await?;
    write_new(tx, &grant).await?;
    Ok(grant)
}

async fn replace_once(tx: &mut Transaction, id: Uuid, request: &GrantRequest) -> Result<Grant, GrantError> {
    store::settings::lock_policy(tx).await?;
    let before = store::grants::find(tx, id).await?.ok_or(GrantError::Unknown)?;
    let name = request.name.clone().unwrap_or_else(|| before.name.clone());
    let times = (before.created_at, before.changed_at);
    let mut after = of_request(tx, (id, name), request, times).await?;
    if after == before {
        return Ok(before);
    }
    after.changed_at = tx.now();
    // A grant that has ended can be described without a new end.
    if after.expires_at != before.expires_at {
        require_future(after.expires_at, after.changed_at)?;
    }
    // What was equal before this was refused can still be named and described.
    if !have_equal_effects(&before, &after) {
        require_unequal(tx, &after).await?;
    }
    store::settings::begin_policy_version(tx).await?;
    write_replaced(tx, &before, &after).await?;
    Ok(after)
}

async fn delete_once(tx: &mut Transaction, id: Uuid) -> Result<(), GrantError> {
    store::settings::lock_policy(tx).await?;
    let grant = store::grants::find(tx, id).await?.ok_or(GrantError::Unknown)?;
    store::settings::begin_policy_version(tx).await?;
    Ok(write_deleted(tx, &grant).await?)
}

/// Inserts a grant in a version that has begun.
pub(super) async fn write_new(tx: &mut Transaction, grant: &Grant) -> Result<(), GrantError> {
    named(store::grants::insert(tx, grant).await, grant)?;
    let change = Change::new(Action::GrantCreate, grant.id).after(store::json(grant)?);
    Ok(tx.record(change).await?)
}

/// Replaces a grant in a version that has begun.
pub(super) async fn write_replaced(tx: &mut Transaction, before: &Grant, after: &Grant) -> Result<(), GrantError> {
    named(store::grants::replace(tx, after).await, after)?;
    let change = Change::new(Action::GrantReplace, after.id)
        .before(store::json(before)?)
        .after(store::json(after)?);
    Ok(tx.record(change).await?)
}

/// Deletes a grant in a version that has begun.
pub(super) async fn write_deleted(tx: &mut Transaction, grant: &Grant) -> Result<(), StoreError> {
    store::grants::delete(tx, grant.id).await?;
    let change = Change::new(Action::GrantDelete, grant.id).before(store::json(grant)?);
    tx.record(change).await
}

/// The grant that a request describes.
async fn of_request(
    tx: &mut Transaction,
    (id, name): (Uuid, String),
    request: &GrantRequest,
    (created_at, changed_at): (OffsetDateTime, OffsetDateTime),
) -> Result<Grant, GrantError> {
    let permission = store::permissions::find(tx, request.permission_id)
        .await?
        .ok_or(GrantError::UnknownPermission)?;
    Ok(Grant {
        id,
        name,
        description: request.description.clone(),
        permission_id: permission.id,
        audience: permission.audience,
        permission: permission.name,
        selector: request.selector.clone(),
        conditions: request.conditions.clone(),
        expires_at: request.expires_at,
        created_at,
        changed_at,
    })
}

/// Refuses a second grant with the same effect: deleting one of the two would change nothing, which its administrator
/// does not expect.
async fn require_unequal(tx: &mut Transaction, grant: &Grant) -> Result<(), GrantError> {
    match store::grants::find_equal(tx, grant).await? {
        Some(name) => Err(GrantError::Equal(name)),
        None => Ok(()),
    }
}

/// Whether two grants give the same permission to the same machines under the same conditions.
pub(super) fn have_equal_effects(one: &Grant, other: &Grant) -> bool {
    one.permission_id == other.permission_id
        && one.selector == other.selector
        && one.conditions == other.conditions
        && one.expires_at == other.expires_at
}

fn named(written: Result<(), StoreError>, grant: &Grant) -> Result<(), GrantError> {
    match written {
        Err(error) if error.violates(store::grants::UNIQUE_NAME) => Err(GrantError::NameTaken(grant.name.clone())),
        written => Ok(written?),
    }
}

pub(super) fn require_future(end: Option<OffsetDateTime>, now: OffsetDateTime) -> Result<(), GrantError> {
    match end {
        Some(end) if end <= now => Err(GrantError::Expired),
        _ => Ok(()),
    }
}

/// When a grant expires, as the database returns it: in UTC and in whole microseconds. RFC 3339 has times that need a
/// fifth digit for the year in UTC: `9999-12-31T23:59:59-01:00`.
fn checked_end(end: Option<OffsetDateTime>) -> Result<Option<OffsetDateTime>, GrantError> {
    let in_utc = |end: OffsetDateTime| end.checked_to_offset(UtcOffset::UTC).ok_or(GrantError::End);
    let end = end.map(in_utc).transpose()?;
    Ok(end.map(clock::truncate_to_microseconds))
}

/// Checks a request, but for whether it has expired.
pub(super) fn checked(request: GrantRequest) -> Result<GrantRequest, GrantError> {
    if request.name.as_deref().is_some_and(|name| !is_scope_token(name)) {
        return Err(GrantError::Name);
    }
    if !is_description(&request.description) {
        return Err(GrantError::Description);
    }
    check_selector(&request.selector)?;
    check_conditions(&request.conditions)?;
    let expires_at = checked_end(request.expires_at)?;
    Ok(GrantRequest { expires_at, ..request })
}

/// Refuses an empty selector rather than reading it as all machines: a client whose list turned out empty sends one.
fn check_selector(selector: &Selector) -> Result<(), GrantError> {
    if *selector == Selector::default() {
        return Err(GrantError::SelectorEmpty);
    }
    if let Some(ids) = &selector.machine_ids
        && !(1..=MOST_MACHINE_IDS).contains(&ids.len())
    {
        return Err(GrantError::SelectorMachineIds);
    }
    if let Some(labels) = &selector.labels {
        if labels.is_empty() {
            return Err(GrantError::SelectorLabelsEmpty);
        }
        labels::check(labels).map_err(GrantError::SelectorLabels)?;
    }
    if selector.all == Some(false) {
        return Err(GrantError::SelectorAll);
    }
    Ok(())
}

fn check_conditions(conditions: &Conditions) -> Result<(), GrantError> {
    if let Some(version) = &conditions.min_os_version
        && (version.len() > LONGEST_OS_VERSION || OsVersion::parse(version).is_none())
    {
        return Err(GrantError::OsVersion);
    }
    if let Some(days) = conditions.max_attestation_age_days
        && !(1..=LONGEST_ATTESTATION_AGE_DAYS).contains(&days)
    {
        return Err(GrantError::AttestationAge);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, from_value, json};
    use time::macros::datetime;

    use super::*;

    const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);

    fn check(request: GrantRequest) -> Result<(), GrantError> {
        require_future(checked(request)?.expires_at, NOW)
    }

    fn request(selector: Value, conditions: Value, expires_at: Option<&str>) -> GrantRequest {
        let id = Uuid::nil();
        from_value(json!({
            "permission_id": id, "selector": selector, "conditions": conditions, "expires_at": expires_at,
        }))
        .unwrap()
    }

    #[rstest]
    #[case(json!({"all": true}), json!({}), None)]
    #[case(json!({"all": true, "labels": {"team": "build"}}), json!({"min_os_version": "26.1"}), None)]
    #[case(json!({"machine_ids": [Uuid::nil()]}), json!({"max_attestation_age_days": 30}), Some("2026-11-22T10:00:01Z"))]
    fn a_request_within_the_limits_is_accepted(
        #[case] selector: Value,
        #[case] conditions: Value,
        #[case] expires_at: Option<&str>,
    ) {
        assert!(check(request(selector, conditions, expires_at)).is_ok());
    }

    #[rstest]
    #[case(json!({}), json!({}), None, "selector ")]
    #[case(json!({"all": false}), json!({}), None, "selector.all")]
    #[case(json!({"all": false, "labels": {"team": "build"}}), json!({}), None, "selector.all")]
    #[case(json!({"machine_ids": []}), json!({}), None, "selector.machine_ids")]
    #[case(json!({"all": true, "machine_ids": []}), json!({}), None, "selector.machine_ids")]
    #[case(json!({"labels": {}}), json!({}), None, "selector.labels")]
    #[case(json!({"labels": {"a b": ""}}), json!({}), None, "selector.labels")]
    #[case(json!({"all": true}), json!({"min_os_version": "26.1 beta"}), None, "conditions.min_os_version")]
    #[case(json!({"all": true}), json!({"min_os_version": ""}), None, "conditions.min_os_version")]
    #[case(json!({"all": true}), json!({"max_attestation_age_days": 0}), None, "conditions.max_attestation_age_days")]
    #[case(json!({"all": true}), json!({}), Some("2026-11-22T10:00:00Z"), "expires_at")]
    #[case(json!({"all": true}), json!({}), Some("2026-11-22T10:00:00.0000009Z"), "expires_at")]
    #[case(json!({"all": true}), json!({}), Some("2026-11-22T11:00:00+01:00"), "expires_at")]
    #[case(json!({"all": true}), json!({}), Some("9999-12-31T23:59:59-01:00"), "expires_at")]
    fn a_refusal_starts_with_the_name_of_the_wrong_member(
        #[case] selector: Value,
        #[case] conditions: Value,
        #[case] expires_at: Option<&str>,
        #[case] names: &str,
    ) {
        let refusal = check(request(selector, conditions, expires_at))
            .unwrap_err()
            .to_string();
        assert!(refusal.starts_with(names), "{refusal}");
    }
}
