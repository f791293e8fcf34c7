//! The stored keys, sealed and opened.

use assay_authority::{
    AuthorityError, CertifiedKey, KeyError, MasterKey, PrivateKey, RevocationListSigner, SealingContext, SealingError,
};
use zeroize::Zeroizing;

use crate::{
    clock::{self, Clock},
    store::{
        StoreError,
        sealed_keys::{KeyPurpose, KeyState, SealedKey},
        text,
    },
};

const TABLE: &str = "sealed_keys";

/// Seals keys and opens them, each for the moment in which it is needed.
pub(crate) struct Keyring {
    master_key: MasterKey,
}

/// Why keys cannot be sealed or opened, or are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// Another master key, or a changed row.
    #[error(
        "the key {purpose} in the database does not open with this master key (is master_key_file the one that the first \
         start made?)"
    )]
    Sealed {
        /// What the key is for.
        purpose: String,
        /// Why.
        #[source]
        source: SealingError,
    },
    /// A key that is opened is no key.
    #[error("a key in the database is unreadable")]
    Key(#[from] KeyError),
    /// One of the keys that belong together is not there.
    #[error("the database has some of the server's keys and not the one for {0}")]
    Missing(String),
    /// The keys and certificates do not fit together.
    #[error("the certificate authority cannot be set up")]
    Authority(#[from] AuthorityError),
    /// A row holds what this program never writes.
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
        let (id, name) = (clock::new_id(clock), text(&purpose)?);
        let sealed = self
            .master_key
            .seal(&context(&id.to_string(), &name), secret)
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
        })
    }

    /// What was sealed.
    pub(crate) fn open(&self, key: &SealedKey) -> Result<Zeroizing<Vec<u8>>, KeyringError> {
        let purpose = text(&key.purpose)?;
        let Some(sealed) = &key.sealed else {
            return Err(KeyringError::Missing(purpose));
        };
        self.master_key
            .open(&context(&key.id.to_string(), &purpose), sealed)
            .map_err(|source| KeyringError::Sealed { purpose, source })
    }

    /// A private key that was sealed.
    pub(crate) fn private_key(&self, key: &SealedKey) -> Result<PrivateKey, KeyringError> {
        Ok(PrivateKey::from_pkcs8_der(self.open(key)?)?)
    }

    /// A CA's key, with its certificate.
    pub(crate) fn certified_key(&self, key: &SealedKey) -> Result<CertifiedKey, KeyringError> {
        Ok(CertifiedKey {
            key: self.private_key(key)?,
            certificate: certificate(key)?.to_vec(),
        })
    }

    /// What signs the lists of a root. Its key is opened for this moment alone: what it signs, it signs twice a month.
    pub(crate) fn root_lists(&self, root: &SealedKey) -> Result<RevocationListSigner, KeyringError> {
        Ok(RevocationListSigner::new(&self.private_key(root)?, certificate(root)?)?)
    }
}

/// The certificate of a CA.
pub(crate) fn certificate(key: &SealedKey) -> Result<&[u8], KeyringError> {
    match &key.certificate {
        Some(certificate) => Ok(certificate),
        None => Err(KeyringError::Missing(text(&key.purpose)?)),
    }
}

fn context<'a>(row_id: &'a str, purpose: &'a str) -> SealingContext<'a> {
    SealingContext {
        table: TABLE,
        row_id,
        purpose,
    }
}
