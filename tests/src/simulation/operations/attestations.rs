//! Attestations by Apple, and introspection by relying parties.

use http::Method;
use time::Duration;

use crate::apple::{Attested as Statement, SIP};
use crate::simulation::dice::Dice;
use crate::simulation::model::Presented;
use crate::simulation::model::{Attested, Checked, Issued, claims_of, grants};
use crate::simulation::replica::Answer;
use crate::simulation::run::Run;

/// How old an attestation is when it is posted. It is in the past of every replica's clock.
const AGE: Duration = Duration::hours(3);

impl Run<'_> {
    /// Apple attests the current key of a machine, whether or not that counts.
    pub(in crate::simulation) async fn attest(&mut self, dice: &mut Dice) -> Checked {
        let Some(holder) = self.known_holder(dice) else {
            return Ok(());
        };
        let key = self.holders[holder].key();
        let machine = self.model.key(key).unwrap().machine;
        let at = (self.now() - AGE).replace_nanosecond(0).unwrap();
        let is_newest = self.model.attested_at(machine).is_none_or(|before| before < at);
        if self.model.machine(machine).current != key || !is_newest {
            return Ok(());
        }
        let sip_enabled = !dice.one_in(3);
        let serial_number = self.model.machine(machine).serial_number.clone().unwrap();
        let statement = Statement::of(&serial_number, &self.holders[holder].machine.public_key(), at);
        let statement = statement.with(SIP, &[2, 1, u8::from(!sip_enabled)]);
        let body = self.ground.apple.body(&statement);
        let path = format!("/v1/admin/machines/{machine}/apple-attestation");
        let replica = self.replica(dice);
        let answer = self.admin(replica, Method::POST, &path, Some(&body)).await;
        self.note(format!(
            "Apple attests {key} with SIP {sip_enabled}: {}",
            answer.short()
        ));
        self.model
            .learn_of_attestation(machine, Attested { at, sip_enabled }, &answer)
    }

    pub(in crate::simulation) async fn introspect(&mut self, dice: &mut Dice) -> Checked {
        if self.issued.is_empty() {
            return Ok(());
        }
        let issued = self.issued[dice.below(self.issued.len())].clone();
        let replica = self.replica(dice);
        let replica = &self.ground.replicas[replica];
        let answer = replica.introspect(&issued.token, &self.ground.relying_party).await;
        let at = replica.now();
        self.note(format!("introspection at {}: {}", issued.audience, answer.body));
        self.model.require_introspection(&issued, at, &answer)
    }

    /// Keeps the tokens of a check-in for introspection.
    pub(in crate::simulation) fn keep_tokens(&mut self, presented: &Presented, answer: &Answer) -> Checked {
        for grant in grants(answer) {
            let token = grant["token"].as_str().unwrap_or_default();
            let claims = claims_of(token)?;
            self.issued.push(Issued {
                token: token.to_owned(),
                machine: self.model.key(presented.key).unwrap().machine,
                key: presented.key,
                audience: grant["audience"].as_str().unwrap_or_default().to_owned(),
                certificate_sha256: claims["cnf"]["x5t#S256"].as_str().unwrap_or_default().to_owned(),
                not_before: claims["nbf"].as_i64().unwrap_or_default(),
                expires: claims["exp"].as_i64().unwrap_or_default(),
            });
        }
        Ok(())
    }
}
