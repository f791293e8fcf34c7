//! Introspection (RFC 7662): what a grant token is worth now, which is what a check-in would give now.

use assay_authority::{GrantClaims, verify_grant_token};
use assay_grants::TokenContents;
use assay_protocol::machine::MachineStatus;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};
use time::OffsetDateTime;

use super::evaluation::evaluate_now;
use crate::{
    services::Services,
    store::{self, Connection, StoreError, certificates, machines::evaluable::Evaluable},
};

/// What a token that still grants something is worth now.
pub(crate) struct Introspected {
    pub(crate) claims: GrantClaims,
    /// The further claims of its audience, with the machine's present values.
    pub(crate) further: Map<String, Value>,
}

/// The claims of a token that still grants something, without permissions that are no longer granted, and with the machine's
/// present assurance. `None` for any other token: forged, expired, or overtaken by a decision.
pub(crate) async fn introspect(services: &Services, token: &str) -> Result<Option<Introspected>, StoreError> {
    let now = services.clock.now();
    let authority = services.authority.load_full();
    let verified = verify_grant_token(token, authority.grant_keys(), &services.policy.public_url, now);
    let Ok(mut claims) = verified else {
        return Ok(None);
    };
    let mut connection = services.store.connection().await?;
    let machine = store::machines::evaluable::find(&mut connection, claims.machine_id).await?;
    let Some(machine) = machine.filter(|machine| could_check_in(machine, &claims)) else {
        return Ok(None);
    };
    if !has_valid_certificate(&mut connection, &machine, &claims, now).await? {
        return Ok(None);
    }
    let catalog = store::grants::load_catalog(&mut connection).await?;
    drop(connection);
    let (assurance, evaluation) = evaluate_now(&services.policy, &catalog, &machine, now);
    let granted = evaluation
        .granted
        .iter()
        .find(|granted| granted.audience == claims.aud.as_str());
    claims
        .permissions
        .retain(|permission| granted.is_some_and(|granted| granted.permissions.contains(permission)));
    claims.scope = claims.permissions.join(" ");
    claims.assurance = assurance;
    let further = granted.and_then(|granted| granted.token.as_ref());
    let further = further.map(TokenContents::further_claims_map).unwrap_or_default();
    Ok((!claims.permissions.is_empty()).then_some(Introspected { claims, further }))
}

/// Whether the machine could check in with the key that the token is bound to, and would get a token, which it gets only
/// with a certificate.
fn could_check_in(machine: &Evaluable, claims: &GrantClaims) -> bool {
    machine.status == MachineStatus::Active && machine.key == claims.cnf.jkt && machine.certificate.is_some()
}

/// Whether the certificate that the token is bound to is neither revoked nor expired. After a renewal it may be an earlier
/// one of the machine.
async fn has_valid_certificate(
    connection: &mut Connection,
    machine: &Evaluable,
    claims: &GrantClaims,
    now: OffsetDateTime,
) -> Result<bool, StoreError> {
    let Ok(sha256) = URL_SAFE_NO_PAD.decode(&claims.cnf.certificate_sha256) else {
        return Ok(false);
    };
    certificates::is_valid_of_machine(connection, machine.machine_id, &sha256, now).await
}
