//! The server's own keys: the first start makes them, every later one and every other replica reads them.

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

/// What the server works with.
pub(crate) struct Bootstrapped {
    pub(crate) authority: Authority,
    pub(crate) rotation: Rotation,
    pub(crate) nonce_key: Zeroizing<[u8; 32]>,
    pub(crate) webhook_secrets: WebhookSecrets,
    pub(crate) acme_secrets: AcmeSecrets,
}

/// Why the server's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// No master key.
    #[error("the master key cannot be had")]
    MasterKey(#[from] MasterKeyError),
    /// The configured master key cannot be read.
    #[error("master_key cannot be read")]
    ConfiguredMasterKey(#[source] SealingError),
    /// The library failed.
    #[error("a key cannot be derived from the master key")]
    Derived(#[source] SealingError),
    /// The keys do not open, or do not fit together.
    #[error(transparent)]
    Keyring(#[from] KeyringError),
    /// A key that was due to be replaced could not be.
    #[error("the keys of the authority cannot be brought up to date")]
    Rotation(#[from] RotationError),
    /// One mistyped replica would issue identities of a foreign domain.
    #[error("trust_domain is {configured:?}, and this server was founded for {founded:?}, which cannot change")]
    TrustDomain {
        /// What the first start was configured with.
        founded: String,
        /// What this one is configured with.
        configured: String,
    },
    /// No keys can be made.
    #[error("the certificate authority cannot be set up")]
    Authority(#[from] AuthorityError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

crate::store::has_store_error!(BootstrapError);

/// Reads the server's keys, or makes them where there are none.
pub(crate) async fn bootstrap(store: &Store, config: &Config) -> Result<Bootstrapped, BootstrapError> {
    let master_key = master_key(config, is_founded(store).await?)?;
    let webhook_secrets = WebhookSecrets::under(&master_key).map_err(BootstrapError::Derived)?;
    let acme_secrets = AcmeSecrets::under(&master_key).map_err(BootstrapError::Derived)?;
    let keyring = Keyring::new(master_key);
    let keys = tx!(store, Bootstrap, &Origin::system() => read_or_make(&keyring, config)).await?;
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

/// Whether a server has made its keys.
pub(crate) async fn is_founded(store: &Store) -> Result<bool, StoreError> {
    Ok(!sealed_keys::list(&mut *store.connection().await?).await?.is_empty())
}

/// Opens the keys of a server that was founded before.
pub(crate) fn keyring(config: &Config) -> Result<Keyring, BootstrapError> {
    Ok(Keyring::new(master_key(config, true)?))
}

/// A new master key is made for a new database alone: beside one that has keys, it would open none of them and stand in
/// the place of the one that does.
fn master_key(config: &Config, founded_before: bool) -> Result<MasterKey, BootstrapError> {
    match &config.master_key {
        config::MasterKey::File(path) if founded_before => Ok(master_key::load(path)?),
        config::MasterKey::File(path) => Ok(master_key::load_or_create(path)?),
        config::MasterKey::Value(value) => {
            MasterKey::from_base64url(value.expose_secret()).map_err(BootstrapError::ConfiguredMasterKey)
        }
    }
}

async fn read_or_make(
    tx: &mut Transaction,
    keyring: &Keyring,
    config: &Config,
) -> Result<Vec<SealedKey>, BootstrapError> {
    // One replica makes the keys, the others wait and then read them.
    duties::wait_for(tx, Duty::Found).await?;
    let keys = sealed_keys::list(tx).await?;
    let configured = config.trust_domain.as_str();
    match settings::trust_domain(tx).await? {
        Some(founded) if founded != configured => {
            return Err(BootstrapError::TrustDomain {
                founded,
                configured: configured.to_owned(),
            });
        }
        Some(_) => {}
        None => settings::set_trust_domain(tx, configured).await?,
    }
    if !keys.is_empty() {
        return Ok(keys);
    }
    let secrets = assay_authority::generate_initial(config.trust_domain.as_str(), tx.now())?;
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
    let missing = || KeyringError::Missing("nonce".to_owned());
    let key = keys.iter().find(|key| key.purpose == KeyPurpose::Nonce);
    let opened = keyring.open(key.ok_or_else(missing)?)?;
    let bytes = opened.as_slice().try_into().map_err(|_| missing())?;
    Ok(Zeroizing::new(bytes))
}
