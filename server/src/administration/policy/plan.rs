//! What a document changes. This module is pure.

use std::collections::{BTreeMap, HashMap};

use assay_protocol::admin_api::{
    audiences::Audience,
    grants::{Grant, GrantRequest},
    permissions::{CreatePermission, Permission},
    policy::{Policy, PolicyAudience, PolicyChange, PolicyGrant, PolicyKind, PolicyPermission, PolicyStep},
};
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{MOST_PARTS, PolicyError};
use crate::{
    administration::{audiences, grants, permissions},
    store::{self, StoreError},
};

/// The audience and the name of a permission.
type PermissionKey = (String, String);

/// What the server has.
pub(super) struct Present {
    permissions: BTreeMap<PermissionKey, Permission>,
    grants: BTreeMap<String, Grant>,
    audiences: BTreeMap<String, Audience>,
}

/// One part before and after. Both are equal if the document does not change it.
#[derive(Debug)]
pub(super) struct Difference<T> {
    pub(super) before: Option<T>,
    pub(super) after: Option<T>,
    /// Whether the document has it.
    named: bool,
}

/// What to write, in the order of names.
pub(super) struct Plan {
    pub(super) permissions: Vec<Difference<Permission>>,
    pub(super) audiences: Vec<Difference<Audience>>,
    pub(super) grants: Vec<Difference<Grant>>,
}

/// Checks each part of a document by itself, and normalizes times.
pub(super) fn checked(mut document: Policy) -> Result<Policy, PolicyError> {
    let most = [
        document.permissions.len(),
        document.grants.len(),
        document.audiences.len(),
    ]
    .into_iter()
    .max();
    if most > Some(MOST_PARTS) {
        return Err(PolicyError::TooMany);
    }
    for permission in &document.permissions {
        let request = CreatePermission {
            audience: permission.audience.clone(),
            name: permission.name.clone(),
            description: permission.description.clone(),
        };
        let name = || format!("{} at {}", permission.name, permission.audience);
        permissions::check(&request).map_err(|error| part(PolicyKind::Permission, name(), &error))?;
    }
    for grant in &mut document.grants {
        let request = GrantRequest {
            name: Some(grant.name.clone()),
            description: grant.description.clone(),
            permission_id: Uuid::nil(),
            selector: grant.selector.clone(),
            conditions: grant.conditions.clone(),
            expires_at: grant.expires_at,
        };
        let checked = grants::checked(request);
        let checked = checked.map_err(|error| part(PolicyKind::Grant, grant.name.clone(), &error))?;
        grant.expires_at = checked.expires_at;
    }
    Ok(document)
}

fn part(kind: PolicyKind, name: String, error: &dyn std::error::Error) -> PolicyError {
    PolicyError::Part {
        kind,
        name,
        detail: error.to_string(),
    }
}

impl Present {
    pub(super) fn new(permissions: Vec<Permission>, grants: Vec<Grant>, audiences: Vec<Audience>) -> Self {
        let key = |permission: &Permission| (permission.audience.clone(), permission.name.clone());
        Self {
            permissions: permissions.into_iter().map(|item| (key(&item), item)).collect(),
            grants: grants.into_iter().map(|item| (item.name.clone(), item)).collect(),
            audiences: audiences
                .into_iter()
                .map(|item| (item.audience.clone(), item))
                .collect(),
        }
    }

    /// All of it as a document.
    pub(super) fn document(self) -> Policy {
        Policy {
            permissions: self.permissions.values().map(permission_part).collect(),
            grants: self.grants.values().map(grant_part).collect(),
            audiences: self.audiences.values().map(audience_part).collect(),
        }
    }
}

impl Plan {
    /// Compares a checked document with what the server has.
    pub(super) fn new(
        present: &Present,
        document: &Policy,
        prune: bool,
        now: OffsetDateTime,
        mut new_id: impl FnMut() -> Uuid,
    ) -> Result<Self, PolicyError> {
        let wanted = named(&document.permissions, PolicyKind::Permission, |item| {
            (item.audience.clone(), item.name.clone())
        })?;
        let permissions = differences(
            &present.permissions,
            &wanted,
            prune,
            |before, item: &PolicyPermission| {
                Ok(Permission {
                    id: before.map_or_else(&mut new_id, |before| before.id),
                    audience: item.audience.clone(),
                    name: item.name.clone(),
                    description: item.description.clone(),
                    created_at: before.map_or(now, |before| before.created_at),
                })
            },
        )?;
        let wanted = named(&document.audiences, PolicyKind::Audience, |item| item.audience.clone())?;
        let audiences = differences(&present.audiences, &wanted, prune, |before, item: &PolicyAudience| {
            // A form that was accepted once may stay, even if it would be refused now.
            if before.is_none_or(|before| before.token != item.token) {
                audiences::check(&item.audience, &item.token)
                    .map_err(|error| part(PolicyKind::Audience, item.audience.clone(), &error))?;
            }
            Ok(Audience {
                id: before.map_or_else(&mut new_id, |before| before.id),
                audience: item.audience.clone(),
                token: item.token.clone(),
                created_at: before.map_or(now, |before| before.created_at),
            })
        })?;
        let after: HashMap<_, _> = permissions
            .iter()
            .filter_map(|difference| difference.after.as_ref())
            .map(|permission| ((permission.audience.as_str(), permission.name.as_str()), permission.id))
            .collect();
        let wanted = named(&document.grants, PolicyKind::Grant, |item| item.name.clone())?;
        let grants = differences(&present.grants, &wanted, prune, |before, item: &PolicyGrant| {
            let permission = after.get(&(item.audience.as_str(), item.permission.as_str()));
            let permission_id = *permission.ok_or_else(|| PolicyError::NoPermission {
                grant: item.name.clone(),
                audience: item.audience.clone(),
                permission: item.permission.clone(),
            })?;
            grant(before, item, permission_id, now, &mut new_id)
        })?;
        require_unequal(&grants)?;
        Ok(Self {
            permissions,
            audiences,
            grants,
        })
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.permissions.iter().all(Difference::is_none)
            && self.audiences.iter().all(Difference::is_none)
            && self.grants.iter().all(Difference::is_none)
    }

    /// The differences in words, with what is kept although the document lacks it.
    pub(super) fn changes(&self) -> Result<Vec<PolicyChange>, StoreError> {
        let mut changes = Vec::new();
        for difference in &self.permissions {
            let key = |item: &Permission| (Some(item.audience.clone()), Some(item.name.clone()));
            changes.extend(difference.change(PolicyKind::Permission, key, permission_part)?);
        }
        for difference in &self.audiences {
            let key = |item: &Audience| (Some(item.audience.clone()), None);
            changes.extend(difference.change(PolicyKind::Audience, key, audience_part)?);
        }
        for difference in &self.grants {
            let key = |item: &Grant| (None, Some(item.name.clone()));
            changes.extend(difference.change(PolicyKind::Grant, key, grant_part)?);
        }
        Ok(changes)
    }
}

impl<T: PartialEq> Difference<T> {
    fn is_none(&self) -> bool {
        self.before == self.after
    }

    /// `None` if the document has it and does not change it.
    fn change<P: Serialize>(
        &self,
        kind: PolicyKind,
        key: impl Fn(&T) -> (Option<String>, Option<String>),
        part: impl Fn(&T) -> P,
    ) -> Result<Option<PolicyChange>, StoreError> {
        let step = match (&self.before, &self.after) {
            (None, Some(_)) => PolicyStep::Create,
            (Some(_), None) => PolicyStep::Delete,
            (Some(before), Some(after)) if before != after => PolicyStep::Replace,
            _ if self.named => return Ok(None),
            _ => PolicyStep::Keep,
        };
        let Some((audience, name)) = self.after.as_ref().or(self.before.as_ref()).map(key) else {
            return Ok(None);
        };
        let shown = |item: &Option<T>| item.as_ref().map(|item| store::json(&part(item))).transpose();
        Ok(Some(PolicyChange {
            kind,
            audience,
            name,
            step,
            before: shown(&self.before)?,
            after: shown(&self.after)?,
        }))
    }
}

/// The parts of a document by their names.
fn named<T, K: Ord + Clone + Into<Name>>(
    items: &[T],
    kind: PolicyKind,
    key: impl Fn(&T) -> K,
) -> Result<BTreeMap<K, &T>, PolicyError> {
    let mut found = BTreeMap::new();
    for item in items {
        let key = key(item);
        if found.insert(key.clone(), item).is_some() {
            let Name(name) = key.into();
            return Err(PolicyError::Twice { kind, name });
        }
    }
    Ok(found)
}

/// What a message calls a part.
struct Name(String);

impl From<PermissionKey> for Name {
    fn from((audience, name): PermissionKey) -> Self {
        Self(format!("{name} at {audience}"))
    }
}

impl From<String> for Name {
    fn from(name: String) -> Self {
        Self(name)
    }
}

fn differences<K: Ord, T: Clone, P>(
    present: &BTreeMap<K, T>,
    wanted: &BTreeMap<K, &P>,
    prune: bool,
    mut after: impl FnMut(Option<&T>, &P) -> Result<T, PolicyError>,
) -> Result<Vec<Difference<T>>, PolicyError> {
    let mut found = Vec::with_capacity(present.len().max(wanted.len()));
    for (key, &item) in wanted {
        let before = present.get(key);
        found.push(Difference {
            after: Some(after(before, item)?),
            before: before.cloned(),
            named: true,
        });
    }
    let lacking = present.iter().filter(|(key, _)| !wanted.contains_key(key));
    found.extend(lacking.map(|(_, before)| Difference {
        before: Some(before.clone()),
        after: (!prune).then(|| before.clone()),
        named: false,
    }));
    Ok(found)
}

/// A grant of the document, with the id and the times of the one that has this name.
fn grant(
    before: Option<&Grant>,
    item: &PolicyGrant,
    permission_id: Uuid,
    now: OffsetDateTime,
    new_id: impl FnMut() -> Uuid,
) -> Result<Grant, PolicyError> {
    let mut after = Grant {
        id: before.map_or_else(new_id, |before| before.id),
        name: item.name.clone(),
        description: item.description.clone(),
        permission_id,
        audience: item.audience.clone(),
        permission: item.permission.clone(),
        selector: item.selector.clone(),
        conditions: item.conditions.clone(),
        expires_at: item.expires_at,
        created_at: before.map_or(now, |before| before.created_at),
        changed_at: before.map_or(now, |before| before.changed_at),
    };
    if before == Some(&after) {
        return Ok(after);
    }
    // A grant that has ended may stay in the document.
    if before.map(|before| before.expires_at) != Some(after.expires_at) {
        grants::require_future(after.expires_at, now)
            .map_err(|error| part(PolicyKind::Grant, item.name.clone(), &error))?;
    }
    after.changed_at = now;
    Ok(after)
}

/// Refuses a new or changed grant that equals another one. What was equal before this was refused may stay.
fn require_unequal(grants: &[Difference<Grant>]) -> Result<(), PolicyError> {
    let mut names: HashMap<String, (&str, bool)> = HashMap::new();
    for difference in grants {
        let Some(grant) = &difference.after else {
            continue;
        };
        let effect = (
            grant.permission_id,
            &grant.selector,
            &grant.conditions,
            grant.expires_at,
        );
        let changed = difference
            .before
            .as_ref()
            .is_none_or(|before| !grants::have_equal_effects(before, grant));
        let effect = store::json(&effect)?.to_string();
        if let Some((first, first_changed)) = names.insert(effect, (&grant.name, changed))
            && (changed || first_changed)
        {
            return Err(PolicyError::Equal {
                first: first.to_owned(),
                second: grant.name.clone(),
            });
        }
    }
    Ok(())
}

fn permission_part(permission: &Permission) -> PolicyPermission {
    PolicyPermission {
        audience: permission.audience.clone(),
        name: permission.name.clone(),
        description: permission.description.clone(),
    }
}

fn grant_part(grant: &Grant) -> PolicyGrant {
    PolicyGrant {
        name: grant.name.clone(),
        description: grant.description.clone(),
        audience: grant.audience.clone(),
        permission: grant.permission.clone(),
        selector: grant.selector.clone(),
        conditions: grant.conditions.clone(),
        expires_at: grant.expires_at,
    }
}

fn audience_part(audience: &Audience) -> PolicyAudience {
    PolicyAudience {
        audience: audience.audience.clone(),
        token: audience.token.clone(),
    }
}
