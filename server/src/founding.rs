//! The server's own keys: the first start makes them, every later one and every other replica reads them.

use std::sync::Arc;

use secrecy::ExposeSecret;
use uuid::Uuid;
use zeroize::Zeroizing;

use crate::{
    audit::{Change, Origin},
    authority::{
        self, Authority, AuthorityError, AuthorityParts, CertifiedKey, InitialSecrets, KeyError, MasterKey,
        MasterKeyError, PrivateKey, RevocationListSigner, SealingContext, SealingError, WebhookSecrets, master_key,
    },
    clock::{self, Clock},
    config::{self, Config},
    store::{
        AsStoreError, Store, StoreError, Transaction, audit_entries,
        duties::{self, Duty},
        sealed_keys::{self, SealedKey},
        settings,
    },
};

const TABLE: &str = "sealed_keys";
const ROOT: &str = "root-ca";
const ISSUING: &str = "issuing-ca";
const GRANTS: &str = "grant-signing";
const NONCES: &str = "nonce";

/// What the server works with.
pub(crate) struct Founded {
    pub(crate) authority: Authority,
    pub(crate) issuer_id: Uuid,
    pub(crate) nonce_key: Zeroizing<[u8; 32]>,
    pub(crate) webhook_secrets: WebhookSecrets,
    pub(crate) root: SealedRoot,
}

/// The root CA as it is kept. Its key is opened for the moment in which it signs: what it signs, it signs twice a month.
pub(crate) struct SealedRoot {
    /// The CA, as lists name it.
    pub(crate) id: Uuid,
    /// Its subject key identifier.
    pub(crate) key_identifier: Vec<u8>,
    key: SealedKey,
    certificate: Vec<u8>,
    master_key: MasterKey,
}

impl SealedRoot {
    fn new(key: &SealedKey, certificate: &[u8], master_key: MasterKey) -> Result<Self, FoundingError> {
        Ok(Self {
            id: key.id,
            key_identifier: authority::key_identifier(certificate)?,
            key: key.clone(),
            certificate: certificate.to_vec(),
            master_key,
        })
    }

    /// Opens the key to sign lists of what the root has issued and revoked.
    pub(crate) fn revocation_lists(&self) -> Result<RevocationListSigner, FoundingError> {
        let key = PrivateKey::from_pkcs8_der(open_one(&self.master_key, &self.key)?)?;
        Ok(RevocationListSigner::new(&key, &self.certificate)?)
    }
}

/// Why the server's keys cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// No master key.
    #[error("the master key cannot be had")]
    MasterKey(#[from] MasterKeyError),
    /// The configured master key cannot be read.
    #[error("master_key cannot be read")]
    ConfiguredMasterKey(#[source] SealingError),
    /// The library failed.
    #[error("the key that seals the secrets of webhooks cannot be derived")]
    Derived(#[source] SealingError),
    /// Another master key, or a changed row.
    #[error(
        "the key {purpose} in the database does not open with this master key (is master_key_file the one that the first start made?)"
    )]
    Sealed {
        /// What the key is for.
        purpose: String,
        /// Why.
        #[source]
        source: SealingError,
    },
    /// One mistyped replica would issue identities of a foreign domain.
    #[error("trust_domain is {configured:?}, and this server was founded for {founded:?}, which cannot change")]
    TrustDomain {
        /// What the first start was configured with.
        founded: String,
        /// What this one is configured with.
        configured: String,
    },
    /// A key that is opened is no key.
    #[error("a key in the database is unreadable")]
    Key(#[from] KeyError),
    /// One of the keys that belong together is not there.
    #[error("the database has some of the server's keys and not the one for {0}")]
    Missing(&'static str),
    /// The keys and certificates do not fit together.
    #[error("the certificate authority cannot be set up")]
    Authority(#[from] AuthorityError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl AsStoreError for FoundingError {
    fn as_store_error(&self) -> Option<&StoreError> {
        match self {
            Self::Store(error) => Some(error),
            _ => None,
        }
    }
}

/// Reads the server's keys, or makes them where there are none.
pub(crate) async fn found(store: &Store, config: &Config, clock: &Arc<dyn Clock>) -> Result<Founded, FoundingError> {
    let founded_before = !sealed_keys::list(&mut *store.connection().await?).await?.is_empty();
    let master_key = master_key(config, founded_before)?;
    let keys = store
        .tx(
            "found",
            &(&master_key, config, clock),
            |tx, &(master_key, config, clock)| Box::pin(read_or_make(tx, master_key, config, clock.as_ref())),
        )
        .await?;
    open(master_key, config, &keys)
}

/// A new master key is made for a new database alone: beside one that has keys, it would open none of them and stand in
/// the place of the one that does.
fn master_key(config: &Config, founded_before: bool) -> Result<MasterKey, FoundingError> {
    match &config.master_key {
        config::MasterKey::File(path) if founded_before => Ok(master_key::load(path)?),
        config::MasterKey::File(path) => Ok(master_key::load_or_create(path)?),
        config::MasterKey::Value(value) => {
            MasterKey::from_base64url(value.expose_secret()).map_err(FoundingError::ConfiguredMasterKey)
        }
    }
}

async fn read_or_make(
    tx: &mut Transaction,
    master_key: &MasterKey,
    config: &Config,
    clock: &dyn Clock,
) -> Result<Vec<SealedKey>, FoundingError> {
    // One replica makes the keys, the others wait and then read them.
    duties::wait_for(tx, Duty::Found).await?;
    let keys = sealed_keys::list(tx).await?;
    let configured = config.trust_domain.as_str();
    match settings::trust_domain(tx).await? {
        Some(founded) if founded != configured => {
            return Err(FoundingError::TrustDomain {
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
    let secrets = authority::generate_initial(config.trust_domain.as_str(), clock.now())?;
    let keys = seal_all(master_key, &secrets, clock)?;
    for key in &keys {
        sealed_keys::insert(tx, key, clock.now()).await?;
        let change = Change::new("key.create", "sealed-key", key.id).after(serde_json::json!({"purpose": key.purpose}));
        audit_entries::insert(tx, clock, &Origin::system(), change).await?;
    }
    Ok(keys)
}

fn seal_all(
    master_key: &MasterKey,
    secrets: &InitialSecrets,
    clock: &dyn Clock,
) -> Result<Vec<SealedKey>, FoundingError> {
    let seal = |purpose: &str, secret: &[u8], certificate: Option<&[u8]>| {
        let id = clock::new_id(clock);
        let sealed = master_key
            .seal(&context(&id.to_string(), purpose), secret)
            .map_err(|source| FoundingError::Sealed {
                purpose: purpose.to_owned(),
                source,
            })?;
        Ok::<_, FoundingError>(SealedKey {
            id,
            purpose: purpose.to_owned(),
            sealed,
            certificate: certificate.map(<[u8]>::to_vec),
        })
    };
    Ok(vec![
        seal(ROOT, secrets.root.key.pkcs8_der(), Some(&secrets.root.certificate))?,
        seal(
            ISSUING,
            secrets.issuing.key.pkcs8_der(),
            Some(&secrets.issuing.certificate),
        )?,
        seal(GRANTS, secrets.grant_key.pkcs8_der(), None)?,
        seal(NONCES, secrets.nonce_key.as_ref(), None)?,
    ])
}

fn open(master_key: MasterKey, config: &Config, keys: &[SealedKey]) -> Result<Founded, FoundingError> {
    let (root, issuing) = (find(keys, ROOT)?, find(keys, ISSUING)?);
    let root_certificate = root.certificate.clone().ok_or(FoundingError::Missing(ROOT))?;
    let parts = AuthorityParts {
        issuing: CertifiedKey {
            key: PrivateKey::from_pkcs8_der(open_one(&master_key, issuing)?)?,
            certificate: issuing.certificate.clone().ok_or(FoundingError::Missing(ISSUING))?,
        },
        root_certificates: vec![root_certificate.clone()],
        grant_key: PrivateKey::from_pkcs8_der(open_one(&master_key, find(keys, GRANTS)?)?)?,
        other_grant_keys: Vec::new(),
    };
    let nonce_key = open_one(&master_key, find(keys, NONCES)?)?;
    let nonce_key = nonce_key
        .as_slice()
        .try_into()
        .map_err(|_| FoundingError::Missing(NONCES))?;
    Ok(Founded {
        authority: Authority::from_parts(&parts, config.trust_domain.as_str(), config.public_url.url())?,
        issuer_id: issuing.id,
        nonce_key: Zeroizing::new(nonce_key),
        webhook_secrets: WebhookSecrets::under(&master_key).map_err(FoundingError::Derived)?,
        root: SealedRoot::new(root, &root_certificate, master_key)?,
    })
}

fn find<'a>(keys: &'a [SealedKey], purpose: &'static str) -> Result<&'a SealedKey, FoundingError> {
    keys.iter()
        .find(|key| key.purpose == purpose)
        .ok_or(FoundingError::Missing(purpose))
}

fn open_one(master_key: &MasterKey, key: &SealedKey) -> Result<Zeroizing<Vec<u8>>, FoundingError> {
    master_key
        .open(&context(&key.id.to_string(), &key.purpose), &key.sealed)
        .map_err(|source| FoundingError::Sealed {
            purpose: key.purpose.clone(),
            source,
        })
}

fn context<'a>(row_id: &'a str, purpose: &'a str) -> SealingContext<'a> {
    SealingContext {
        table: TABLE,
        row_id,
        purpose,
    }
}
