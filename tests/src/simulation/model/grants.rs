//! What a machine is granted.

use std::collections::BTreeSet;

use assay_protocol::machine::{Assurance, KeyStoreKind, SecureBoot};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;
use time::Duration;
use uuid::Uuid;

use super::{Checked, KeyStatus, Model, Presented, Status, require, violation};
use crate::simulation::replica::Answer;

/// `grants.ttl` by default.
const TOKEN_TTL: Duration = Duration::minutes(10);

/// A permission at an audience of its own, with its grants. Every grant is for all machines.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct Permission {
    pub(in crate::simulation) id: String,
    pub(in crate::simulation) audience: String,
    pub(in crate::simulation) grants: Vec<GrantModel>,
}

/// One grant, with its conditions.
#[derive(Clone, Debug, Default)]
pub(in crate::simulation) struct GrantModel {
    pub(in crate::simulation) id: String,
    pub(in crate::simulation) min_assurance: Option<Assurance>,
    pub(in crate::simulation) sip_enabled: bool,
    pub(in crate::simulation) full_security: bool,
    pub(in crate::simulation) filevault_enabled: bool,
    pub(in crate::simulation) enclave: bool,
}

impl GrantModel {
    fn holds(&self, presented: &Presented, sip_enabled: bool, store: KeyStoreKind, assurance: Assurance) -> bool {
        let posture = presented.posture();
        self.min_assurance.is_none_or(|least| assurance >= least)
            && (!self.sip_enabled || sip_enabled)
            && (!self.full_security || posture.secure_boot == Some(SecureBoot::Full))
            && (!self.filevault_enabled || posture.filevault_enabled == Some(true))
            && (!self.enclave || store == KeyStoreKind::SecureEnclave)
    }
}

impl Model {
    /// Checks what a check-in was granted: exactly what is due to it.
    pub(in crate::simulation) fn require_grants(&self, presented: &Presented, answer: &Answer) -> Checked {
        let machine = self.keys[&presented.key].machine;
        self.require_assurance(machine, presented.at, answer)?;
        let granted: BTreeSet<&str> = grants(answer).filter_map(|grant| grant["audience"].as_str()).collect();
        let due = self.due_grants(machine, presented);
        let rule = "a check-in is granted what its evidence, its key and its certificate allow";
        require(granted == due, rule, format!("due {due:?}, granted {granted:?}"))?;
        for grant in grants(answer) {
            self.require_token(machine, presented, grant)?;
        }
        Ok(())
    }

    /// Checks that an answer grants nothing.
    pub(in crate::simulation) fn require_no_grants(answer: &Answer, rule: &'static str) -> Checked {
        require(grants(answer).next().is_none(), rule, &answer.body["grants"])
    }

    pub(super) fn due_grants(&self, machine: Uuid, presented: &Presented) -> BTreeSet<&str> {
        let key = self.current_key(machine);
        let is_active = self.machine(machine).status == Status::Active && key.status == KeyStatus::Current;
        let is_contested = self.is_contested(machine);
        let certificate = key.certificate();
        let has_certificate =
            certificate.is_some_and(|certificate| !certificate.is_revoked && presented.at < certificate.not_after);
        if !is_active || is_contested || !has_certificate {
            return BTreeSet::new();
        }
        let (store, assurance) = (presented.claims.key.store, self.assurance(machine, presented.at));
        let sip_enabled = self.sip_enabled(machine, presented);
        let due = self.permissions.iter().filter(|permission| {
            let mut grants = permission.grants.iter();
            grants.any(|grant| grant.holds(presented, sip_enabled, store, assurance))
        });
        due.map(|permission| permission.audience.as_str()).collect()
    }

    fn require_token(&self, machine: Uuid, presented: &Presented, grant: &Value) -> Checked {
        let claims = claims_of(grant["token"].as_str().unwrap_or_default())?;
        let certificate = self.current_key(machine).certificate().unwrap();
        let bound = (&claims["cnf"]["jkt"], &claims["cnf"]["x5t#S256"]);
        let is_bound = *bound.0 == presented.key.to_string() && *bound.1 == certificate.sha256;
        require(is_bound, "a token is bound to its key and certificate", &claims)?;
        let end = claims["exp"].as_i64().unwrap_or(i64::MAX);
        let latest = certificate.not_after.min(presented.at + TOKEN_TTL);
        let is_short = end <= latest.unix_timestamp();
        require(is_short, "a token ends with its certificate at the latest", &claims)
    }
}

pub(in crate::simulation) fn grants(answer: &Answer) -> impl Iterator<Item = &Value> {
    answer.body["grants"].as_array().into_iter().flatten()
}

/// The claims of a token. The signature is not verified.
pub(in crate::simulation) fn claims_of(token: &str) -> Checked<Value> {
    let payload = token.split('.').nth(1).unwrap_or_default();
    let payload = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
    match serde_json::from_slice(&payload) {
        Ok(claims) => Ok(claims),
        Err(error) => violation("a grant is a JWT", error),
    }
}
