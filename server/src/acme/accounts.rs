//! ACME accounts. An account is a client's key. Anyone may open one, and it authorizes nothing by itself.
//!
//! An account without a token and without orders has no value, and its creation is not recorded. Otherwise strangers
//! could fill the audit log, whose entries are never deleted.

use assay_authority::{AcmeSecrets, EcKey};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    AcmeError, external_account,
    jws::UnverifiedJws,
    requests::{self, AccountRequest, KeyRequest, Payload},
    urls::Urls,
};
use crate::{
    changes::{Action, Change, Origin},
    store::{
        Store, StoreError, Transaction,
        acme_accounts::{self, Account, AccountStatus},
        acme_orders, tx,
    },
};

/// How many unused accounts are kept, and for how long.
const MAX_IDLE: i64 = 10_000;
const IDLE_LIFE: time::Duration = time::Duration::days(1);

/// An account, and whether this call created it.
pub(crate) struct Opened {
    pub(crate) account: Account,
    pub(crate) is_new: bool,
}

/// Terms of service and contacts are ignored: the clients are Macs.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct NewAccount {
    #[serde(default)]
    only_return_existing: bool,
    #[serde(default)]
    external_account_binding: Option<Value>,
}

#[derive(Deserialize)]
struct AccountUpdate {
    #[serde(default)]
    status: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct KeyChange {
    account: String,
    old_key: Value,
}

/// Creates the account of a key, or finds it. A binding applies only to a new account, and uses its token once.
pub(crate) async fn open(store: &Store, secrets: &AcmeSecrets, request: KeyRequest) -> Result<Opened, AcmeError> {
    let wanted: NewAccount = request.payload.read()?;
    let id = store.new_id();
    let origin = Origin::acme_account(id, None, &request.source);
    match tx!(store, OpenAcmeAccount, &origin => open_once(secrets, id, &request, &wanted)).await {
        // The same request, sent twice, created the account in parallel.
        Err(AcmeError::Store(error)) if error.violates(acme_accounts::ONE_PER_KEY) => {
            let found = find(store, &request.key).await?;
            let account = found.ok_or(AcmeError::Store(error))?;
            Ok(Opened { account, is_new: false })
        }
        opened => opened,
    }
}

/// Changes an account: its holder can deactivate it permanently.
pub(crate) async fn update(store: &Store, id: Uuid, request: AccountRequest) -> Result<Account, AcmeError> {
    require_own(&request.account, id)?;
    if request.payload.is_empty() {
        return Ok(request.account);
    }
    let update: AccountUpdate = request.payload.read()?;
    match update.status.as_deref() {
        None | Some("valid") => Ok(request.account),
        Some("deactivated") => {
            let origin = requests::origin(&request.source, &request.account, None);
            tx!(store, DeactivateAcmeAccount, &origin => deactivate(&request.account)).await
        }
        Some(_) => Err(AcmeError::Malformed(
            "the status of an account can only be changed to deactivated",
        )),
    }
}

/// Replaces an account's key (RFC 8555, section 7.3.5). Both keys have signed the request.
pub(crate) async fn change_key(store: &Store, public_url: &str, request: AccountRequest) -> Result<Account, AcmeError> {
    let inner = UnverifiedJws::from_value(&request.payload.read::<Value>()?)?;
    requests::require_inner(&inner.header, &request.url)?;
    let new_key = requests::inner_key(&inner.header)?;
    let change: KeyChange = Payload::of_inner(inner.verify(&new_key)?).read()?;
    let account = &request.account;
    let is_account = change.account == Urls(public_url).account(account.id);
    if !is_account || EcKey::from_jwk(&change.old_key).ok().as_ref() != Some(&account.key) {
        return Err(AcmeError::Malformed(
            "account and oldKey in the inner JWS must be the account that signed the outer JWS, and its key",
        ));
    }
    let origin = requests::origin(&request.source, account, None);
    match tx!(store, ChangeAcmeAccountKey, &origin => replace_key(account, &new_key)).await {
        Err(AcmeError::Store(error)) if error.violates(acme_accounts::ONE_PER_KEY) => {
            match find(store, &new_key).await? {
                Some(holder) => Err(AcmeError::KeyInUse(holder.id)),
                None => Err(error.into()),
            }
        }
        changed => changed,
    }
}

/// Only its holder may read and use an account.
pub(super) fn require_own(account: &Account, id: Uuid) -> Result<(), AcmeError> {
    if account.id == id {
        return Ok(());
    }
    Err(AcmeError::OtherAccount)
}

/// Locks an account that has signed a request, and checks again that it may be used.
pub(super) async fn lock(tx: &mut Transaction, account: &Account) -> Result<Account, AcmeError> {
    let locked = acme_accounts::lock(tx, account.id)
        .await?
        .ok_or(AcmeError::UnknownAccount)?;
    requests::require_valid(&locked)?;
    // The key may have been replaced since the signature was verified.
    if locked.key != account.key {
        return Err(AcmeError::UnknownAccount);
    }
    Ok(locked)
}

async fn find(store: &Store, key: &EcKey) -> Result<Option<Account>, StoreError> {
    acme_accounts::find_by_key(&mut *store.connection().await?, key.thumbprint()).await
}

async fn open_once(
    tx: &mut Transaction,
    secrets: &AcmeSecrets,
    id: Uuid,
    request: &KeyRequest,
    wanted: &NewAccount,
) -> Result<Opened, AcmeError> {
    if let Some(account) = acme_accounts::find_by_key(tx, request.key.thumbprint()).await? {
        requests::require_valid(&account)?;
        return Ok(Opened { account, is_new: false });
    }
    if wanted.only_return_existing {
        return Err(AcmeError::UnknownAccount);
    }
    let now = tx.now();
    let binding = wanted.external_account_binding.as_ref();
    let token_id = binding
        .map(|binding| external_account::verify(secrets, binding, &request.key, &request.url))
        .transpose()?;
    let account = Account {
        id,
        key: request.key.clone(),
        status: AccountStatus::Valid,
        token_id,
        device_serial_number: None,
        has_ordered: false,
    };
    match token_id {
        Some(token_id) => external_account::spend(tx, token_id).await?,
        None => acme_accounts::remove_idle(tx, MAX_IDLE, now.saturating_sub(IDLE_LIFE)).await?,
    }
    acme_accounts::insert(tx, &account, now).await?;
    let after = json!({"token_id": token_id});
    record(tx, &account, Action::AcmeAccountBind, after).await?;
    Ok(Opened { account, is_new: true })
}

async fn deactivate(tx: &mut Transaction, account: &Account) -> Result<Account, AcmeError> {
    let account = lock(tx, account).await?;
    acme_accounts::deactivate(tx, account.id).await?;
    acme_orders::give_up_of_account(tx, account.id).await?;
    let status = json!({"status": "deactivated"});
    record(tx, &account, Action::AcmeAccountDeactivate, status).await?;
    Ok(Account {
        status: AccountStatus::Deactivated,
        ..account
    })
}

async fn replace_key(tx: &mut Transaction, account: &Account, new_key: &EcKey) -> Result<Account, AcmeError> {
    let account = lock(tx, account).await?;
    acme_accounts::set_key(tx, account.id, new_key).await?;
    let keys = json!({"key": new_key.thumbprint(), "previous_key": account.key.thumbprint()});
    record(tx, &account, Action::AcmeAccountChangeKey, keys).await?;
    Ok(Account {
        key: new_key.clone(),
        ..account
    })
}

/// Writes an audit entry, if a token or an order gives the account a meaning.
async fn record(tx: &mut Transaction, account: &Account, action: Action, after: Value) -> Result<(), StoreError> {
    if account.token_id.is_none() && !account.has_ordered {
        return Ok(());
    }
    tx.record(Change::new(action, account.id).after(after)).await
}
