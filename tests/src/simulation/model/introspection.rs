//! What introspection may say of a token.

use assay_protocol::KeyThumbprint;
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Checked, Model, Presented, Status, require, violation};
use crate::simulation::replica::Answer;

/// A token that was granted.
#[derive(Clone, Debug)]
pub(in crate::simulation) struct Issued {
    pub(in crate::simulation) token: String,
    pub(in crate::simulation) machine: Uuid,
    pub(in crate::simulation) key: KeyThumbprint,
    pub(in crate::simulation) audience: String,
    pub(in crate::simulation) certificate_sha256: String,
    pub(in crate::simulation) not_before: i64,
    pub(in crate::simulation) expires: i64,
}

impl Model {
    /// Checks what introspection says of a token at this time.
    pub(in crate::simulation) fn require_introspection(
        &self,
        issued: &Issued,
        at: OffsetDateTime,
        answer: &Answer,
    ) -> Checked {
        let Some(active) = answer.body["active"].as_bool() else {
            return violation("introspection answers", answer.short());
        };
        let is_worth_something = self.is_worth_something(issued, at);
        let in_time = (issued.not_before..issued.expires).contains(&at.unix_timestamp());
        let rule = "a token is active while a check-in would give it and its certificate is in force";
        let detail = format!("{is_worth_something} and in time {in_time}, answered {}", answer.body);
        match active {
            true => require(is_worth_something && at.unix_timestamp() < issued.expires, rule, detail),
            false => require(!(is_worth_something && in_time), rule, detail),
        }
    }

    fn is_worth_something(&self, issued: &Issued, at: OffsetDateTime) -> bool {
        let machine = self.machine(issued.machine);
        if machine.status != Status::Active || machine.current != issued.key {
            return false;
        }
        let mut certificates = self.keys[&issued.key].certificates.iter();
        let certificate = certificates.find(|certificate| certificate.sha256 == issued.certificate_sha256);
        if certificate.is_none_or(|certificate| certificate.is_revoked || at >= certificate.not_after) {
            return false;
        }
        let Some(last) = &machine.last else {
            return false;
        };
        let now = Presented { at, ..last.clone() };
        self.due_grants(issued.machine, &now).contains(issued.audience.as_str())
    }
}
