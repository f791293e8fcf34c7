//! Introspection (RFC 7662): what a grant token is worth now, which is what a check-in would give now.

use assay_authority::{GrantClaims, verify_grant_token};
use assay_protocol::machine::MachineStatus;

use super::evaluation::evaluate_now;
use crate::{
    services::Services,
    store::{self, StoreError, machines::evaluable::Evaluable},
};

/// A token that still grants something: its claims, with no permission that is not granted any more, and what is on record
/// of the machine's assurance now. `None` for every other, be it forged, expired, or overtaken by a decision.
pub(crate) async fn introspect(services: &Services, token: &str) -> Result<Option<GrantClaims>, StoreError> {
    let now = services.clock.now();
    let authority = services.authority.load_full();
    let verified = verify_grant_token(token, authority.grant_keys(), &services.policy.public_url, now);
    let Ok(mut claims) = verified else {
        return Ok(None);
    };
    let mut connection = services.store.connection().await?;
    let machine = store::machines::evaluable::find(&mut connection, claims.machine_id).await?;
    let Some(machine) = machine.filter(|machine| serves(machine, &claims)) else {
        return Ok(None);
    };
    let catalog = store::grants::load_catalog(&mut connection).await?;
    drop(connection);
    let (assurance, evaluation) = evaluate_now(&services.policy, &catalog, &machine, now);
    let granted = evaluation
        .granted
        .iter()
        .find(|granted| claims.aud.contains(&granted.audience));
    claims
        .permissions
        .retain(|permission| granted.is_some_and(|granted| granted.permissions.contains(permission)));
    claims.scope = claims.permissions.join(" ");
    claims.assurance = assurance;
    Ok((!claims.permissions.is_empty()).then_some(claims))
}

/// Whether the machine could check in with the key that the token is bound to, and would get a token: one is bound to a
/// certificate as well.
fn serves(machine: &Evaluable, claims: &GrantClaims) -> bool {
    machine.status == MachineStatus::Active && machine.key == claims.cnf.jkt && machine.certificate.is_some()
}
