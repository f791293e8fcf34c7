//! Administrators decide on keys: requests that wait, current keys, certificates, and what the inventory lists.

use assay_protocol::KeyThumbprint;
use http::Method;
use serde_json::json;

use crate::simulation::dice::Dice;
use crate::simulation::model::{Checked, KeyStatus, Verdict, require};
use crate::simulation::run::Run;

impl Run<'_> {
    /// Approves or denies a request, by its id or by machine and thumbprint. It may have been decided before.
    pub(in crate::simulation) async fn decide_request(&mut self, dice: &mut Dice) -> Checked {
        if self.requests.is_empty() {
            return Ok(());
        }
        let key = self.requests[dice.below(self.requests.len())].key;
        // A key whose request has expired may have asked again.
        let last = self.requests.iter().rfind(|request| request.key == key);
        let request = last.unwrap().clone();
        let verdict = dice.pick(&[Verdict::Approve, Verdict::Approve, Verdict::Deny]);
        let (replica, mut reason) = (self.replica(dice), Self::reason(dice));
        let what = match verdict {
            Verdict::Approve => "approve",
            Verdict::Deny => "deny",
        };
        let by_machine = verdict == Verdict::Approve && dice.one_in(2);
        let path = match by_machine {
            true => {
                reason["key_thumbprint"] = json!(request.key);
                format!("/v1/admin/machines/{}/{what}", request.machine)
            }
            false => format!("/v1/admin/enrollments/{}/{what}", request.id),
        };
        if by_machine && self.is_current(request.key) {
            return Ok(());
        }
        let answer = self.admin(replica, Method::POST, &path, Some(&reason)).await;
        self.note(format!(
            "{what} {} of {}: {}",
            request.key,
            request.machine,
            answer.short()
        ));
        let at = (self.ground.replicas[replica].now(), by_machine);
        self.model.learn_of_verdict(&request, verdict, at, &answer)
    }

    /// Gives an approval to the current key of a machine.
    pub(in crate::simulation) async fn approve_key(&mut self, dice: &mut Dice) -> Checked {
        let Some(holder) = self.known_holder(dice) else {
            return Ok(());
        };
        let key = self.holders[holder].key();
        if !self.is_current(key) || self.model.key(key).unwrap().status != KeyStatus::Current {
            return Ok(());
        }
        let machine = self.model.key(key).unwrap().machine;
        let mut body = Self::reason(dice);
        body["key_thumbprint"] = json!(key);
        let replica = self.replica(dice);
        let path = format!("/v1/admin/machines/{machine}/approve");
        let answer = self.admin(replica, Method::POST, &path, Some(&body)).await;
        self.note(format!(
            "approve the current key {key} of {machine}: {}",
            answer.short()
        ));
        let at = self.ground.replicas[replica].now();
        self.model.learn_of_approved_key(machine, key, at, &answer)
    }

    pub(in crate::simulation) async fn revoke_certificate(&mut self, dice: &mut Dice) -> Checked {
        let replica = self.replica(dice);
        let now = self.ground.replicas[replica].now();
        let mut valid = Vec::new();
        for (key, known) in &self.model.keys {
            let certificates = known.certificates.iter().enumerate();
            let certificates = certificates.filter(|(_, certificate)| !certificate.is_revoked);
            valid.extend(certificates.map(|(place, certificate)| (*key, place, certificate.not_after)));
        }
        // Keys are in no order that follows from the seed. Their certificates are, by their end.
        valid.sort_by_key(|(_, place, end)| (*end, *place));
        let Some((key, place, end)) = dice.pick_any(&valid) else {
            return Ok(());
        };
        let certificate = &mut self.model.keys.get_mut(&key).unwrap().certificates[place];
        let path = format!("/v1/admin/certificates/{}/revoke", certificate.serial_number);
        let due = if now < end { 200 } else { 409 };
        certificate.is_revoked = due == 200;
        let body = json!({"reason": "superseded"});
        let answer = self.admin(replica, Method::POST, &path, Some(&body)).await;
        self.note(format!("revoke certificate {place} of {key}: {}", answer.short()));
        require(
            answer.status == due,
            "a certificate that has not expired can be revoked",
            answer.short(),
        )
    }

    pub(in crate::simulation) async fn revoke_token(&mut self, dice: &mut Dice) -> Checked {
        let tokens: Vec<usize> = (0..self.model.tokens.len())
            .filter(|token| !self.model.tokens[*token].is_revoked)
            .collect();
        let Some(token) = dice.pick_any(&tokens) else {
            return Ok(());
        };
        let path = format!("/v1/admin/enrollment-tokens/{}", self.model.tokens[token].id);
        let replica = self.replica(dice);
        let answer = self.admin(replica, Method::DELETE, &path, None).await;
        self.note(format!("revoke token {token}: {}", answer.short()));
        self.model.tokens[token].is_revoked = true;
        require(answer.status == 204, "a token can be revoked", answer.short())
    }

    /// Lists a serial number in the inventory, or takes it out.
    pub(in crate::simulation) async fn change_inventory(&mut self, dice: &mut Dice) -> Checked {
        let (serial_number, replica) = (self.serial_number(dice), self.replica(dice));
        let is_listed = self.model.inventory.contains(&serial_number);
        let answer = match is_listed {
            true => {
                let path = format!("/v1/admin/inventory/{serial_number}");
                self.admin(replica, Method::DELETE, &path, None).await
            }
            false => {
                let body = json!({"items": [{"serial_number": serial_number, "labels": {}, "owner": null}]});
                let path = "/v1/admin/inventory?mode=merge";
                self.admin(replica, Method::PUT, path, Some(&body)).await
            }
        };
        self.note(format!(
            "inventory has {serial_number}: {}: {}",
            !is_listed,
            answer.short()
        ));
        require(answer.is_success(), "the inventory can be changed", answer.short())?;
        match is_listed {
            true => self.model.unlist(&serial_number),
            false => drop(self.model.inventory.insert(serial_number)),
        }
        Ok(())
    }

    fn is_current(&self, key: KeyThumbprint) -> bool {
        let machine = self.model.key(key).map(|key| self.model.machine(key.machine));
        machine.is_some_and(|machine| machine.current == key)
    }
}
