//! Binds an account to an enrollment token (RFC 8555, section 7.3.4). The token's id is the key's id, and the MAC key
//! is derived from it. A client can use its token without sending it to the server, and there is no second kind of
//! secret.

use assay_authority::{AcmeSecrets, EcKey};
use assay_protocol::admin_api::enrollment_tokens::Approval;
use serde_json::Value;
use uuid::Uuid;

use super::{AcmeError, jws::UnverifiedJws, requests};
use crate::{
    enrollment::{TokenRefusal, require_valid},
    store::{Transaction, enrollment_tokens},
};

/// Why a binding is rejected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExternalAccountError {
    #[error("it is not a JWS authenticated with the token's MAC key")]
    Jws(#[source] super::jws::JwsError),
    #[error("it must have the token's id as kid, no nonce, and the URL of newAccount")]
    Header,
    #[error("it is for a key other than the account's")]
    OtherKey,
    #[error(transparent)]
    Token(#[from] TokenRefusal),
    #[error("the enrollment token requires an administrator's approval, which ACME does not support")]
    Manual,
}

/// Verifies a binding of this key, sent to this URL. Returns the token's id.
pub(super) fn verify(secrets: &AcmeSecrets, binding: &Value, key: &EcKey, url: &str) -> Result<Uuid, AcmeError> {
    let jws = UnverifiedJws::from_value(binding).map_err(ExternalAccountError::Jws)?;
    requests::require_inner(&jws.header, url).map_err(|_| ExternalAccountError::Header)?;
    let kid = jws.header.kid.as_deref().ok_or(ExternalAccountError::Header)?;
    // A `kid` that is not an id cannot belong to a token.
    let token_id: Uuid = kid
        .parse()
        .map_err(|_| ExternalAccountError::Token(TokenRefusal::Unknown))?;
    let mac_key = secrets.external_account_key(token_id);
    let bound = jws.verify_mac(&mac_key).map_err(ExternalAccountError::Jws)?;
    let bound: Value = serde_json::from_slice(&bound).map_err(|_| ExternalAccountError::OtherKey)?;
    if EcKey::from_jwk(&bound).ok().as_ref() != Some(key) {
        return Err(ExternalAccountError::OtherKey.into());
    }
    Ok(token_id)
}

/// Uses the token once, for an account created in this transaction.
pub(super) async fn spend(tx: &mut Transaction, token_id: Uuid) -> Result<(), AcmeError> {
    let token = enrollment_tokens::lock(tx, token_id)
        .await?
        .ok_or(ExternalAccountError::Token(TokenRefusal::Unknown))?;
    require_valid(&token, tx.now()).map_err(ExternalAccountError::Token)?;
    if token.uses >= token.max_uses {
        return Err(ExternalAccountError::Token(TokenRefusal::UsedUp).into());
    }
    if token.approval == Approval::Manual {
        return Err(ExternalAccountError::Manual.into());
    }
    Ok(enrollment_tokens::count_use(tx, token_id).await?)
}
