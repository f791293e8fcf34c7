//! Creating, listing and revoking enrollment tokens.

use std::collections::BTreeSet;

use assay_protocol::{
    admin_api::enrollment_tokens::{CreateEnrollmentToken, EnrollmentToken, ExternalAccountKey},
    text::{ClaimError, hardware_id},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret, SecretString};
use time::Duration;
use uuid::Uuid;

use crate::{
    changes::{Action, Change, Origin},
    machines::labels::{self, LabelError},
    secrets::{self, ENROLLMENT_TOKEN_PREFIX, SecretHash},
    services::Services,
    store::{self, Store, StoreError, Transaction, tx},
    text::is_prose,
};

const LONGEST_DESCRIPTION: usize = 2_000;
const SHORTEST_LIFE_SECONDS: u64 = 1;
const LONGEST_LIFE_SECONDS: u64 = 366 * 24 * 60 * 60;
const MOST_USES: u32 = 1_000_000;
const MOST_SERIAL_NUMBERS: usize = 10_000;

/// Why nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollmentTokenError {
    #[error("description must have at most {LONGEST_DESCRIPTION} characters, without control characters")]
    Description,
    #[error("expires_in_seconds must be from {SHORTEST_LIFE_SECONDS} to {LONGEST_LIFE_SECONDS}")]
    Life,
    #[error("max_uses must be from 1 to {MOST_USES}")]
    MaxUses,
    #[error("serial_numbers must have 1 to {MOST_SERIAL_NUMBERS} elements; leave it out to accept any serial number")]
    SerialNumberCount,
    #[error("serial_numbers: one is empty")]
    SerialNumberEmpty,
    #[error("serial_numbers: {0}")]
    SerialNumber(ClaimError),
    #[error("serial_numbers contains {0:?} more than once")]
    SerialNumberRepeated(String),
    #[error("{0}")]
    Labels(LabelError),
    #[error("there is no such enrollment token")]
    Unknown,
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(EnrollmentTokenError);

/// Creates a token, and returns it with its secret. The server stores only the secret's hash.
pub(crate) async fn create(
    store: &Store,
    origin: &Origin,
    request: CreateEnrollmentToken,
) -> Result<(EnrollmentToken, SecretString), EnrollmentTokenError> {
    let (request, life) = check(request)?;
    let now = store.now();
    let token = EnrollmentToken {
        id: store.new_id(),
        description: request.description,
        created_at: now,
        expires_at: now.checked_add(life).ok_or(EnrollmentTokenError::Life)?,
        max_uses: request.max_uses,
        uses: 0,
        serial_numbers: request.serial_numbers,
        labels: request.labels,
        approval: request.approval,
        allow_reenrollment: request.allow_reenrollment,
        revoked_at: None,
    };
    let secret = secrets::generate(ENROLLMENT_TOKEN_PREFIX);
    let hash = SecretHash::of(secret.expose_secret());
    tx!(store, CreateEnrollmentToken, origin => insert(&token, hash)).await?;
    Ok((token, secret))
}

/// The external account key (RFC 8555, section 7.3.4) that binds an ACME account to a token, if ACME is enabled.
pub(crate) fn external_account(services: &Services, token_id: Uuid) -> Option<ExternalAccountKey> {
    let mac_key = services.acme.secrets.external_account_key(token_id);
    services.policy.acme_enabled.then(|| ExternalAccountKey {
        key_id: token_id.to_string(),
        mac_key: URL_SAFE_NO_PAD.encode(mac_key.as_slice()),
    })
}

/// A page of tokens, oldest first.
pub(crate) async fn list(
    store: &Store,
    after: Option<Uuid>,
    rows: i64,
) -> Result<Vec<EnrollmentToken>, EnrollmentTokenError> {
    Ok(store::enrollment_tokens::list(&mut *store.connection().await?, after, rows).await?)
}

/// One token.
pub(crate) async fn find(store: &Store, id: Uuid) -> Result<EnrollmentToken, EnrollmentTokenError> {
    store::enrollment_tokens::find(&mut *store.connection().await?, id)
        .await?
        .ok_or(EnrollmentTokenError::Unknown)
}

/// Revokes a token. A token can be revoked once.
pub(crate) async fn revoke(store: &Store, origin: &Origin, id: Uuid) -> Result<(), EnrollmentTokenError> {
    tx!(store, RevokeEnrollmentToken, origin => revoke_once(id)).await
}

async fn insert(tx: &mut Transaction, token: &EnrollmentToken, secret: SecretHash) -> Result<(), EnrollmentTokenError> {
    store::enrollment_tokens::insert(tx, token, secret).await?;
    let change = Change::new(Action::EnrollmentTokenCreate, token.id).after(store::json(token)?);
    Ok(tx.record(change).await?)
}

async fn revoke_once(tx: &mut Transaction, id: Uuid) -> Result<(), EnrollmentTokenError> {
    let before = store::enrollment_tokens::lock(tx, id)
        .await?
        .ok_or(EnrollmentTokenError::Unknown)?;
    // A second `DELETE` of the same resource is `not-found`, although lists still show the record.
    if before.revoked_at.is_some() {
        return Err(EnrollmentTokenError::Unknown);
    }
    let now = tx.now();
    let after = EnrollmentToken {
        revoked_at: Some(now),
        ..before.clone()
    };
    store::enrollment_tokens::revoke(tx, id, now).await?;
    let change = Change::new(Action::EnrollmentTokenRevoke, id)
        .before(store::json(&before)?)
        .after(store::json(&after)?);
    Ok(tx.record(change).await?)
}

/// Checks a request. Returns it with trimmed serial numbers, as those of a machine are, and its lifetime.
fn check(request: CreateEnrollmentToken) -> Result<(CreateEnrollmentToken, Duration), EnrollmentTokenError> {
    if !is_prose(&request.description, 0..=LONGEST_DESCRIPTION) {
        return Err(EnrollmentTokenError::Description);
    }
    if !(SHORTEST_LIFE_SECONDS..=LONGEST_LIFE_SECONDS).contains(&request.expires_in_seconds) {
        return Err(EnrollmentTokenError::Life);
    }
    let life = i64::try_from(request.expires_in_seconds).map_err(|_| EnrollmentTokenError::Life)?;
    if !(1..=MOST_USES).contains(&request.max_uses) {
        return Err(EnrollmentTokenError::MaxUses);
    }
    labels::check(&request.labels).map_err(EnrollmentTokenError::Labels)?;
    let serial_numbers = request.serial_numbers.map(checked_serial_numbers).transpose()?;
    Ok((
        CreateEnrollmentToken {
            serial_numbers,
            ..request
        },
        Duration::seconds(life),
    ))
}

fn checked_serial_numbers(serial_numbers: Vec<String>) -> Result<Vec<String>, EnrollmentTokenError> {
    if !(1..=MOST_SERIAL_NUMBERS).contains(&serial_numbers.len()) {
        return Err(EnrollmentTokenError::SerialNumberCount);
    }
    let mut seen = BTreeSet::new();
    for serial_number in serial_numbers {
        let serial_number = match hardware_id(&serial_number) {
            Ok(Some(serial_number)) => serial_number.to_owned(),
            Ok(None) => return Err(EnrollmentTokenError::SerialNumberEmpty),
            Err(error) => return Err(EnrollmentTokenError::SerialNumber(error)),
        };
        if seen.contains(&serial_number) {
            return Err(EnrollmentTokenError::SerialNumberRepeated(serial_number));
        }
        seen.insert(serial_number);
    }
    Ok(seen.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, from_value, json};

    use super::*;

    /// Checks a valid request that has these members replaced.
    fn checked(members: Value) -> Result<(CreateEnrollmentToken, Duration), EnrollmentTokenError> {
        let mut request = json!({"max_uses": 1, "expires_in_seconds": 3600});
        request
            .as_object_mut()
            .unwrap()
            .extend(members.as_object().unwrap().clone());
        check(from_value(request).unwrap())
    }

    #[rstest]
    #[case(json!({}))]
    #[case(json!({"max_uses": 1}))]
    #[case(json!({"expires_in_seconds": 60}))]
    fn max_uses_and_lifetime_are_required(#[case] request: Value) {
        assert!(from_value::<CreateEnrollmentToken>(request).is_err());
    }

    #[test]
    fn serial_numbers_are_trimmed() {
        let request = json!({"serial_numbers": [" C02XYZ ", "A1"], "allow_reenrollment": true, "max_uses": 2});
        let (token, _) = checked(request).unwrap();
        assert_eq!(token.serial_numbers.unwrap(), ["A1", "C02XYZ"]);
    }

    #[rstest]
    #[case(json!({"expires_in_seconds": 1}))]
    #[case(json!({"expires_in_seconds": 31_622_400}))]
    #[case(json!({"max_uses": 1_000_000, "labels": {"team": "build"}, "approval": "manual"}))]
    fn a_request_within_the_limits_is_accepted(#[case] request: Value) {
        assert!(checked(request).is_ok());
    }

    #[rstest]
    #[case(json!({"expires_in_seconds": 0}), "expires_in_seconds")]
    #[case(json!({"expires_in_seconds": 31_622_401}), "expires_in_seconds")]
    #[case(json!({"expires_in_seconds": u64::MAX}), "expires_in_seconds")]
    #[case(json!({"max_uses": 0}), "max_uses")]
    #[case(json!({"max_uses": 1_000_001}), "max_uses")]
    #[case(json!({"serial_numbers": []}), "serial_numbers")]
    #[case(json!({"serial_numbers": ["A", " "]}), "serial_numbers")]
    #[case(json!({"serial_numbers": ["A\u{1}"]}), "serial_numbers")]
    #[case(json!({"serial_numbers": ["A", " A"]}), "serial_numbers contains \"A\" more than once")]
    #[case(json!({"serial_numbers": ["A".repeat(257)]}), "serial_numbers")]
    #[case(json!({"serial_numbers": ["\u{0410}"]}), "serial_numbers: a serial number or hardware UUID is not printable ASCII")]
    #[case(json!({"labels": {"": ""}}), "labels")]
    #[case(json!({"description": "\u{1b}[2J"}), "description")]
    fn a_refusal_starts_with_the_name_of_the_wrong_member(#[case] request: Value, #[case] names: &str) {
        let refusal = checked(request).unwrap_err().to_string();
        assert!(refusal.starts_with(names), "{refusal}");
    }
}
