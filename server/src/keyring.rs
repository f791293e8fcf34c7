//! Seals and opens the keys that are stored in the database.

use assay_authority::{
    AuthorityError, CertifiedKey, KeyError, MasterKey, PrivateKey, RevocationListSigner, SealingContext, SealingError,
};
use zeroize::Zeroizing;

use crate::{
    clock::{self, Clock},
    store::{
        StoreError,
        sealed_keys::{KeyPurpose, KeyState, SealedKey},
    },
};

const TABLE: &str = "sealed_keys";

/// Seals and opens stored keys. An opened key should be dropped as soon as it has been used.
pub(crate) struct Keyring {
    master_key: MasterKey,
}

/// Why a key cannot be sealed, opened or used.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Another master key, or a changed row.
    #[error(
        "the key {purpose} in the database cannot be opened with this master key (is master_key_file the file that the \
         first start created?)"
    )]
    Sealed {
        /// The purpose of the key.
        purpose: &'static str,
        /// Why it cannot be opened.
        #[source]
        source: SealingError,
    },
    /// An opened key is not a private key.
    #[error("a key in the database is unreadable")]
    Key(#[from] KeyError),
    /// One of the keys that belong together is missing.
    #[error("the database has only some of the server's keys: the key {0} is missing")]
    Missing(&'static str),
    /// The keys and certificates do not match.
    #[error("the certificate authority cannot be built")]
    Authority(#[from] AuthorityError),
    /// A row contains a value that this program never writes.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Keyring {
    pub(crate) fn new(master_key: MasterKey) -> Self {
        Self { master_key }
    }

    /// Seals a new key, which signs from now on.
    pub(crate) fn seal(
        &self,
        clock: &dyn Clock,
        purpose: KeyPurpose,
        secret: &[u8],
        certificate: Option<&[u8]>,
    ) -> Result<SealedKey, KeyringError> {
        let (id, name) = (clock::new_id(clock), purpose.as_str());
        let sealed = self
            .master_key
            .seal(&context(&id.to_string(), name), secret)
            .map_err(|source| KeyringError::Sealed { purpose: name, source })?;
        Ok(SealedKey {
            id,
            purpose,
            state: KeyState::Current,
            sealed: Some(sealed),
            certificate: certificate.map(<[u8]>::to_vec),
            root_id: None,
            intermediates: Vec::new(),
            signs_from: Some(clock.now()),
            retires_at: None,
            retired_at: None,
            withdrawn_at: None,
        })
    }

    /// Decrypts a sealed secret.
    pub(crate) fn open(&self, key: &SealedKey) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        let purpose = key.purpose.as_str();
        let Some(sealed) = &key.sealed else {
            return Err(KeyringError::Missing(purpose));
        };
        self.master_key
            .open(&context(&key.id.to_string(), purpose), sealed)
            .map_err(|source| KeyringError::Sealed { purpose, source })
    }

    /// Decrypts a private key.
    pub(crate) fn private_key(&self, key: &SealedKey) -> Result<PrivateKey, KeyringError> {
        Ok(PrivateKey::from_pkcs8_der(self.open(key)?)?)
    }

    /// Decrypts a CA's private key, and adds its certificate.
    pub(crate) fn certified_key(&self, key: &SealedKey) -> Result<CertifiedKey, KeyringError> {
        Ok(CertifiedKey {
            key: self.private_key(key)?,
            certificate: certificate(key)?.to_vec(),
        })
    }

    /// Opens a root's key to sign a revocation list. The key is not kept, because it signs only a few times a day.
    pub(crate) fn root_lists(&self, root: &SealedKey) -> Result<RevocationListSigner, KeyringError> {
        Ok(RevocationListSigner::new(&self.private_key(root)?, certificate(root)?)?)
    }
}

pub(crate) fn certificate(key: &SealedKey) -> Result<&[u8], KeyringError> {
    match &key.certificate {
        Some(certificate) => Ok(certificate),
        None => Err(KeyringError::Missing(key.purpose.as_str())),
    }
}

fn context<'a>(row_id: &'a str, purpose: &'a str) -> SealingContext<'a> {
    SealingContext {
        table: TABLE,
        row_id,
        purpose,
    }
}
