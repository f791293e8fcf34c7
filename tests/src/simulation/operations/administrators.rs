//! What administrators do.

use std::collections::BTreeSet;

use assay_protocol::machine::Assurance;
use http::Method;
use serde_json::{Map, Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use crate::simulation::dice::Dice;
use crate::simulation::interruption::cut_off;
use crate::simulation::model::{Checked, Decision, GrantModel, OpeningRequest, Permission, TokenModel, require};
use crate::simulation::plan::Operation;
use crate::simulation::replica::Answer;
use crate::simulation::run::{Fate, Run};

impl Run<'_> {
    pub(in crate::simulation) async fn create_token(&mut self, dice: &mut Dice) -> Checked {
        let replica = self.replica(dice);
        let lifetime = dice.pick(&[Duration::minutes(10), Duration::days(1), Duration::days(60)]);
        let bound_to = dice.one_in(2).then(|| self.serial_number(dice));
        let mut token = TokenModel {
            id: String::new(),
            secret: String::new(),
            allows_reenrollment: bound_to.is_some() && dice.one_in(2),
            bound_to,
            max_uses: dice.pick(&[1, 1, 2, 10]),
            is_manual: dice.one_in(6),
            expires_at: self.ground.replicas[replica].now() + lifetime,
            is_revoked: false,
            used_by: BTreeSet::new(),
            uses_lost: 0,
        };
        let body = json!({
            "description": "simulated",
            "expires_in_seconds": lifetime.whole_seconds(),
            "max_uses": token.max_uses,
            "serial_numbers": token.bound_to.as_ref().map(|serial_number| [serial_number]),
            "approval": if token.is_manual { "manual" } else { "automatic" },
            "allow_reenrollment": token.allows_reenrollment,
        });
        let answer = self
            .admin(replica, Method::POST, "/v1/admin/enrollment-tokens", Some(&body))
            .await;
        require(answer.status == 201, "a token can be made", answer.short())?;
        token.id = answer.text("id").unwrap().to_owned();
        token.secret = answer.text("token").unwrap().to_owned();
        self.note(format!("token {}: {body}", self.model.tokens.len()));
        self.model.tokens.push(token);
        Ok(())
    }

    /// A new permission with a grant, a further grant of one, or the end of a grant.
    pub(in crate::simulation) async fn change_grants(&mut self, dice: &mut Dice) -> Checked {
        if self.model.permissions.is_empty() || dice.one_in(4) {
            self.create_permission(dice).await?;
        }
        let permission = dice.below(self.model.permissions.len());
        let grants = self.model.permissions[permission].grants.len();
        if grants > 1 || (grants > 0 && dice.one_in(3)) {
            return self.delete_grant(permission, dice).await;
        }
        self.create_grant(permission, dice).await
    }

    /// Quarantines, releases or revokes any machine.
    pub(in crate::simulation) async fn decide(&mut self, operation: Operation, dice: &mut Dice) -> Checked {
        let decision = match operation {
            Operation::Quarantine => Decision::Quarantine,
            Operation::Release => Decision::Release,
            _ => dice.pick(&[Decision::Revoke, Decision::Delete]),
        };
        let Some(machine) = self.any_machine(dice) else {
            return Ok(());
        };
        let (replica, reason) = (self.replica(dice), Self::reason(dice));
        let (method, path) = decision_call(machine, decision);
        let body = (method == Method::POST).then_some(&reason);
        let fate = self.fate(dice);
        let mut was_dropped = false;
        if let Fate::Dropped(polls) = fate {
            let call =
                self.ground.replicas[replica].call(method.clone(), &path, Some(self.ground.admin.as_str()), body);
            was_dropped = cut_off(call, polls).await.is_none();
            self.settle().await;
        }
        let answer = self.admin(replica, method, &path, body).await;
        self.note(format!(
            "{decision:?} {machine}, dropped {was_dropped}: {}",
            answer.short()
        ));
        let at = self.ground.replicas[replica].now();
        self.learn_of_decision(machine, (decision, at), fate, &answer)
    }

    /// A decision that was sent before gets the first result again; a second deletion is not found.
    pub(in crate::simulation) fn learn_of_decision(
        &mut self,
        machine: Uuid,
        (decision, at): (Decision, OffsetDateTime),
        fate: Fate,
        answer: &Answer,
    ) -> Checked {
        let due = self.model.status_code_of(machine, decision);
        let is_repeated = matches!(fate, Fate::Dropped(_)) && decision == Decision::Delete && due == 204;
        let is_due = answer.status == due || (is_repeated && answer.status == 404);
        require(
            is_due,
            "a decision is carried out where the status allows it",
            format!("{due}: {}", answer.short()),
        )?;
        if due < 300 {
            self.model.decided(machine, decision, at);
        }
        Ok(())
    }

    /// Opens the record of any machine. Wiped Macs, or parties that claim to be one, enroll then.
    pub(in crate::simulation) async fn open(&mut self, dice: &mut Dice) -> Checked {
        let Some(machine) = self.any_machine(dice) else {
            return Ok(());
        };
        let request = OpeningRequest {
            // Replicas whose clocks differ by hours disagree for hours on whether an opening is over. The end of this long
            // one is a moment that hardly any run comes near to.
            hours: if self.model.clocks_agree {
                dice.pick(&[1, 24, 168])
            } else {
                110
            },
            reason: format!("reason {}", dice.below(2)),
        };
        let body = json!({"hours": request.hours, "reason": request.reason});
        let path = format!("/v1/admin/machines/{machine}/open");
        for _ in 0..=dice.below(2) {
            let replica = self.replica(dice);
            if let Fate::Dropped(polls) = self.fate(dice) {
                let admin = Some(self.ground.admin.as_str());
                let call = self.ground.replicas[replica].call(Method::POST, &path, admin, Some(&body));
                let _dropped = cut_off(call, polls).await;
                self.settle().await;
            }
            let answer = self.admin(replica, Method::POST, &path, Some(&body)).await;
            self.note(format!("open {machine} by {body}: {}", answer.short()));
            let at = self.ground.replicas[replica].now();
            self.model.learn_of_opening(machine, &request, at, &answer)?;
        }
        let before = self.holders.len();
        for _ in 0..dice.below(4) {
            self.claim_record(machine, dice).await?;
        }
        for claimant in before..self.holders.len() {
            let is_known = self.model.key(self.holders[claimant].key()).is_some();
            if is_known && dice.one_in(2) {
                self.check_in_by(claimant, dice).await?;
            }
        }
        Ok(())
    }

    async fn create_permission(&mut self, dice: &mut Dice) -> Checked {
        let audience = format!("https://{}-{}.example.com", self.name, self.model.permissions.len());
        let body = json!({"audience": audience, "name": "use"});
        let replica = self.replica(dice);
        let answer = self
            .admin(replica, Method::POST, "/v1/admin/permissions", Some(&body))
            .await;
        require(answer.status == 201, "a permission can be made", answer.short())?;
        self.model.permissions.push(Permission {
            id: answer.text("id").unwrap().to_owned(),
            audience,
            grants: Vec::new(),
        });
        Ok(())
    }

    async fn create_grant(&mut self, permission: usize, dice: &mut Dice) -> Checked {
        let mut grant = any_grant(dice);
        let body = json!({
            "permission_id": self.model.permissions[permission].id,
            "selector": {"all": true},
            "conditions": conditions(&grant),
        });
        let replica = self.replica(dice);
        let answer = self.admin(replica, Method::POST, "/v1/admin/grants", Some(&body)).await;
        let grants = &self.model.permissions[permission].grants;
        if grants.iter().any(|other| conditions(other) == body["conditions"]) {
            return require(answer.status == 409, "no grant is made twice", answer.short());
        }
        require(answer.status == 201, "a grant can be made", answer.short())?;
        grant.id = answer.text("id").unwrap().to_owned();
        self.note(format!("permission {permission} under {}", body["conditions"]));
        self.model.permissions[permission].grants.push(grant);
        Ok(())
    }

    async fn delete_grant(&mut self, permission: usize, dice: &mut Dice) -> Checked {
        let grants = &mut self.model.permissions[permission].grants;
        let grant = grants.swap_remove(dice.below(grants.len()));
        let path = format!("/v1/admin/grants/{}", grant.id);
        let replica = self.replica(dice);
        let answer = self.admin(replica, Method::DELETE, &path, None).await;
        self.note(format!("permission {permission} has one grant less"));
        require(answer.status == 204, "a grant can be deleted", answer.short())
    }
}

/// The call that carries a decision out.
pub(super) fn decision_call(machine: Uuid, decision: Decision) -> (Method, String) {
    let path = format!("/v1/admin/machines/{machine}");
    match decision {
        Decision::Delete => (Method::DELETE, path),
        _ => (Method::POST, format!("{path}/{}", decision.path())),
    }
}

fn any_grant(dice: &mut Dice) -> GrantModel {
    let mut grant = GrantModel::default();
    match dice.below(7) {
        0 => grant.min_assurance = Some(Assurance::Verified),
        1 => grant.min_assurance = Some(Assurance::Attested),
        2 => grant.sip_enabled = true,
        3 => grant.full_security = true,
        4 => grant.filevault_enabled = true,
        5 => grant.enclave = true,
        _ => {}
    }
    grant
}

fn conditions(grant: &GrantModel) -> Value {
    let mut conditions = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            conditions.insert(name.to_owned(), value);
        }
    };
    set("min_assurance", grant.min_assurance.map(|least| json!(least)));
    set("sip_enabled", grant.sip_enabled.then_some(json!(true)));
    set("secure_boot", grant.full_security.then(|| json!("full")));
    set("filevault_enabled", grant.filevault_enabled.then_some(json!(true)));
    set("key_store", grant.enclave.then(|| json!("secure-enclave")));
    Value::Object(conditions)
}
