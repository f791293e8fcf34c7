//! The server's own keys: generated at the first start, and read by every later start and every other replica.

use assay_authority::{
    AcmeSecrets, Authority, AuthorityError, CertifiedKey, InitialSecrets, MasterKey, MasterKeyError, SealingError,
    WebhookSecrets, master_key,
};
use secrecy::ExposeSecret;
use zeroize::Zeroizing;

use super::{Rotation, RotationError, RotationPolicy};
use crate::{
    changes::{Action, Change, Origin},
    clock::Clock,
    config::{self, Config},
    keyring::{Keyring, KeyringError},
    store::{
        Store, StoreError, Transaction,
        duties::{self, Duty},
        sealed_keys::{self, KeyPurpose, SealedKey},
        settings, tx,
    },
};

/// What the server needs to run.
pub(crate) struct Bootstrapped {
    pub(crate) authority: Authority,
    pub(crate) rotation: Rotation,
    pub(crate) nonce_key: Zeroizing<[u8; 32]>,
    pub(crate) webhook_secrets: WebhookSecrets,
    pub(crate) acme_secrets: AcmeSecrets,
}

/// Why the server's keys cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The file of the master key cannot be read or created.
    #[error("the master key cannot be loaded")]
    MasterKey(#[from] MasterKeyError),
    /// The configured value is not a master key.
    #[error("master_key cannot be read")]
    ConfiguredMasterKey(#[source] SealingError),
    /// The cryptographic library failed.
    #[error("a key cannot be derived from the master key")]
    Derived(#[source] SealingError),
    /// The keys cannot be opened, or do not match.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A key was due for replacement, and that failed.
    #[error("the keys of the authority cannot be rotated")]
    Rotation(#[from] RotationError),
    /// Otherwise one mistyped replica would issue identities of another domain.
    #[error("trust_domain is {configured:?}, but the first start set it to {original:?}, and it cannot change")]
    TrustDomain {
        /// The trust domain of the first start.
        original: String,
        /// The configured trust domain.
        configured: String,
    },
    /// The keys cannot be generated.
    #[error("the certificate authority cannot be built")]
    Authority(#[from] AuthorityError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(BootstrapError);

/// Reads the server's keys, or generates them if there are none.
pub(crate) async fn bootstrap(store: &Store, config: &Config) -> Result<Bootstrapped, BootstrapError> {
    let master_key = master_key(config, is_bootstrapped(store).await?)?;
    let webhook_secrets = WebhookSecrets::under(&master_key).map_err(BootstrapError::Derived)?;
    let acme_secrets = AcmeSecrets::under(&master_key).map_err(BootstrapError::Derived)?;
    let keyring = Keyring::new(master_key);
    let keys = tx!(store, Bootstrap, &Origin::system() => read_or_generate(&keyring, config)).await?;
    let nonce_key = nonce_key(&keyring, &keys)?;
    let policy = RotationPolicy::of(config);
    let (rotation, authority) = Rotation::begin(store, keyring, policy).await?;
    Ok(Bootstrapped {
        authority,
        rotation,
        nonce_key,
        webhook_secrets,
        acme_secrets,
    })
}

/// Whether the database has a server's keys.
pub(crate) async fn is_bootstrapped(store: &Store) -> Result<bool, StoreError> {
    Ok(!sealed_keys::list(&mut *store.connection().await?).await?.is_empty())
}

/// Opens the keyring of a server that has started before.
pub(crate) fn keyring(config: &Config) -> Result<Keyring, BootstrapError> {
    Ok(Keyring::new(master_key(config, true)?))
}

/// Creates a new master key only for a new database. If the database already has keys, a new master key would open none
/// of them, and its file would take the place of the correct one.
fn master_key(config: &Config, is_bootstrapped: bool) -> Result<MasterKey, BootstrapError> {
    match &config.master_key {
        config::MasterKey::File(path) if is_bootstrapped => Ok(master_key::load(path)?),
        config::MasterKey::File(path) => Ok(master_key::load_or_create(path)?),
        config::MasterKey::Value(value) => {
            MasterKey::from_base64url(value.expose_secret()).map_err(BootstrapError::ConfiguredMasterKey)
        }
    }
}

async fn read_or_generate(
    tx: &mut Transaction,
    keyring: &Keyring,
    config: &Config,
) -> Result<Vec<SealedKey>, BootstrapError> {
    // One replica generates the keys. The others wait, and then read them.
    duties::wait_for(tx, Duty::Bootstrap).await?;
    let keys = sealed_keys::list(tx).await?;
    let configured = config.trust_domain.as_str();
    match settings::trust_domain(tx).await? {
        Some(original) if original != configured => {
            return Err(BootstrapError::TrustDomain {
                original,
                configured: configured.to_owned(),
            });
        }
        Some(_) => {}
        None => settings::set_trust_domain(tx, configured).await?,
    }
    if !keys.is_empty() {
        return Ok(keys);
    }
    let secrets = assay_authority::generate_initial(&config.installation(), tx.now())?;
    let keys = seal_all(keyring, &secrets, tx.clock())?;
    for key in &keys {
        let now = tx.now();
        sealed_keys::insert(tx, key, now).await?;
        let change = Change::new(Action::KeyCreate, key.id).after(serde_json::json!({"purpose": key.purpose}));
        tx.record(change).await?;
    }
    Ok(keys)
}

fn seal_all(keyring: &Keyring, secrets: &InitialSecrets, clock: &dyn Clock) -> Result<Vec<SealedKey>, KeyringError> {
    let ca = |purpose, ca: &CertifiedKey| keyring.seal(clock, purpose, ca.key.pkcs8_der(), Some(&ca.certificate));
    let root = ca(KeyPurpose::RootCa, &secrets.root)?;
    let mut issuing = ca(KeyPurpose::IssuingCa, &secrets.issuing)?;
    issuing.root_id = Some(root.id);
    let grant_key = secrets.grant_key.pkcs8_der();
    Ok(vec![
        root,
        issuing,
        keyring.seal(clock, KeyPurpose::GrantSigning, grant_key, None)?,
        keyring.seal(clock, KeyPurpose::Nonce, secrets.nonce_key.as_ref(), None)?,
    ])
}

fn nonce_key(keyring: &Keyring, keys: &[SealedKey]) -> Result<Zeroizing<[u8; 32]>, KeyringError> {
    let missing = || KeyringError::Missing(KeyPurpose::Nonce.as_str());
    let key = keys.iter().find(|key| key.purpose == KeyPurpose::Nonce);
    let opened = keyring.open(key.ok_or_else(missing)?)?;
    let bytes = opened.as_slice().try_into().map_err(|_| missing())?;
    Ok(Zeroizing::new(bytes))
}
