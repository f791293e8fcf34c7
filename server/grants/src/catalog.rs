//! All grants at one version, with an index that finds a machine's grants without a scan of all grants.

use std::collections::{BTreeMap, HashMap};

use assay_protocol::admin_api::grants::{Conditions, Selector};
use time::OffsetDateTime;
use uuid::Uuid;

use super::token_template::{TemplateError, TokenTemplate};

/// One grant with the permission that it gives.
#[derive(Debug, Clone)]
pub struct CatalogGrant {
    /// The grant.
    pub id: Uuid,
    /// The relying party of the permission.
    pub audience: String,
    /// The permission's name at that relying party.
    pub permission: String,
    /// Which machines it selects.
    pub selector: Selector,
    /// The conditions that a selected machine must satisfy.
    pub conditions: Conditions,
    /// When it expires; `None` for never.
    pub expires_at: Option<OffsetDateTime>,
}

/// All grants at one `settings.grants_version`.
#[derive(Debug)]
pub struct Catalog {
    /// The grants version. The statement that records a check-in must return the same one.
    pub version: i64,
    grants: Vec<CatalogGrant>,
    by_machine: HashMap<Uuid, Vec<usize>>,
    by_label: HashMap<String, HashMap<String, Vec<usize>>>,
    for_all: Vec<usize>,
    tokens: HashMap<String, Result<TokenTemplate, TemplateError>>,
}

impl Catalog {
    /// Indexes the grants of one version.
    pub fn new(version: i64, grants: Vec<CatalogGrant>) -> Self {
        let mut catalog = Self {
            version,
            grants: Vec::new(),
            by_machine: HashMap::new(),
            by_label: HashMap::new(),
            for_all: Vec::new(),
            tokens: HashMap::new(),
        };
        let uses = label_uses(&grants);
        for (place, grant) in grants.iter().enumerate() {
            catalog.index(place, &grant.selector, &uses);
        }
        catalog.grants = grants;
        catalog
    }

    /// Adds the audiences whose tokens differ from the usual ones. A template that is not accepted denies its audience.
    #[must_use]
    pub fn with_tokens(mut self, tokens: HashMap<String, Result<TokenTemplate, TemplateError>>) -> Self {
        self.tokens = tokens;
        self
    }

    /// The template of an audience's tokens; `None` for the usual ones.
    pub(super) fn token(&self, audience: &str) -> Option<&Result<TokenTemplate, TemplateError>> {
        self.tokens.get(audience)
    }

    /// The grants whose selector may match a machine with this id and these labels, each once. No matching grant is
    /// missing.
    pub fn candidates<'a>(
        &'a self,
        machine_id: Uuid,
        labels: &'a BTreeMap<String, String>,
    ) -> impl Iterator<Item = &'a CatalogGrant> {
        let by_label = labels
            .iter()
            .filter_map(|(key, value)| self.by_label.get(key)?.get(value))
            .flatten();
        self.by_machine
            .get(&machine_id)
            .into_iter()
            .flatten()
            .chain(by_label)
            .chain(&self.for_all)
            .filter_map(|&place| self.grants.get(place))
    }

    /// Adds a grant to the index under the member of its selector that matches the fewest machines. One member is
    /// enough, because every member must match.
    fn index(&mut self, place: usize, selector: &Selector, uses: &HashMap<(String, String), usize>) {
        if let Some(ids) = &selector.machine_ids {
            for id in ids {
                self.by_machine.entry(*id).or_default().push(place);
            }
            return;
        }
        let rarest = selector.labels.iter().flatten().min_by_key(|(key, value)| {
            uses.get(&((*key).clone(), (*value).clone()))
                .copied()
                .unwrap_or_default()
        });
        match rarest {
            Some((key, value)) => {
                let values = self.by_label.entry(key.clone()).or_default();
                values.entry(value.clone()).or_default().push(place);
            }
            None => self.for_all.push(place),
        }
    }
}

fn label_uses(grants: &[CatalogGrant]) -> HashMap<(String, String), usize> {
    let mut uses = HashMap::new();
    for (key, value) in grants
        .iter()
        .filter_map(|grant| grant.selector.labels.as_ref())
        .flatten()
    {
        *uses.entry((key.clone(), value.clone())).or_default() += 1;
    }
    uses
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn grant(number: u128, selector: Value) -> CatalogGrant {
        CatalogGrant {
            id: Uuid::from_u128(number),
            audience: "https://relying.example".into(),
            permission: "read".into(),
            selector: from_value(selector).unwrap(),
            conditions: Conditions::default(),
            expires_at: None,
        }
    }

    fn candidates(catalog: &Catalog, machine: u128, labels: Value) -> Vec<u128> {
        let labels = from_value(labels).unwrap();
        let found = catalog.candidates(Uuid::from_u128(machine), &labels);
        found.map(|grant| grant.id.as_u128()).collect()
    }

    #[test]
    fn candidates_are_the_grants_of_the_machine_of_its_labels_and_of_all_machines() {
        let catalog = Catalog::new(
            1,
            vec![
                grant(1, json!({"machine_ids": [Uuid::from_u128(7), Uuid::from_u128(8)]})),
                grant(2, json!({"labels": {"team": "build"}})),
                grant(3, json!({"all": true})),
                grant(
                    4,
                    json!({"machine_ids": [Uuid::from_u128(7)], "labels": {"team": "build"}}),
                ),
            ],
        );
        assert_eq!(candidates(&catalog, 7, json!({"team": "build"})), [1, 4, 2, 3]);
        assert_eq!(candidates(&catalog, 8, json!({"team": "sales"})), [1, 3]);
        assert_eq!(candidates(&catalog, 9, json!({"team": "build"})), [2, 3]);
    }

    #[test]
    fn a_label_that_all_grants_share_does_not_cause_a_full_scan() {
        let per_team = |number: u128| grant(number, json!({"labels": {"env": "prod", "team": number.to_string()}}));
        let catalog = Catalog::new(1, (0..10_000).map(per_team).collect());
        assert_eq!(candidates(&catalog, 1, json!({"env": "prod", "team": "77"})), [77]);
    }
}
