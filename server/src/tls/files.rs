//! Reads a certificate and its private key from two PEM files, and detects changes of the files.

use std::{
    fs,
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use assay_authority::secret_file;
use rustls::{Error, InconsistentKeys, crypto::CryptoProvider, sign::CertifiedKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use zeroize::Zeroizing;

use super::TlsError;

/// The two files of `tls.mode = "files"`.
#[derive(Debug, Clone)]
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) private_key: PathBuf,
}

/// Identifies a version of the files. The modification time is not enough: renewal tools may preserve it, and a file
/// may be replaced twice within its resolution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version([Option<FileVersion>; 2]);

#[derive(Debug, Clone, PartialEq, Eq)]
struct FileVersion {
    device: u64,
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl Files {
    /// The current version. A missing file has a version too.
    pub(super) fn version(&self) -> Version {
        Version([file_version(&self.certificate), file_version(&self.private_key)])
    }

    /// Reads both files, and checks that they match.
    pub(super) fn load(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let chain = self.certificates()?;
        self.warn_of_ca(&chain);
        let key = provider
            .key_provider
            .load_private_key(self.private_key()?)
            .map_err(|_| self.no_private_key())?;
        let certified = CertifiedKey::new(chain, key);
        match certified.keys_match() {
            // For a key type whose public half is unknown here, a mismatch shows in the first handshake.
            Ok(()) | Err(Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
            Err(Error::InconsistentKeys(_)) => Err(TlsError::KeyMismatch {
                certificate: self.certificate.clone(),
                private_key: self.private_key.clone(),
            }),
            Err(source) => Err(TlsError::BadCertificate {
                path: self.certificate.clone(),
                source,
            }),
        }
    }

    /// Some clients accept such a certificate, but agents do not.
    fn warn_of_ca(&self, chain: &[CertificateDer<'_>]) {
        if chain
            .first()
            .is_some_and(|leaf| assay_authority::is_ca(leaf).unwrap_or_default())
        {
            let path = self.certificate.display();
            tracing::warn!(
                certificate = %path,
                "tls.certificate begins with the certificate of a CA (CA:TRUE), which agents refuse for a server: use one with \
                 CA:FALSE"
            );
        }
    }

    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let pem = fs::read(&self.certificate).map_err(read_error(&self.certificate))?;
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
        match chain {
            Ok(chain) if !chain.is_empty() => Ok(chain),
            _ => Err(TlsError::NoCertificate {
                path: self.certificate.clone(),
            }),
        }
    }

    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        let mut pem = Zeroizing::new(Vec::new());
        secret_file::open(&self.private_key)
            .and_then(|mut file| file.read_to_end(&mut pem))
            .map_err(read_error(&self.private_key))?;
        PrivateKeyDer::from_pem_slice(&pem).map_err(|_| self.no_private_key())
    }

    fn no_private_key(&self) -> TlsError {
        TlsError::NoPrivateKey {
            path: self.private_key.clone(),
        }
    }
}

fn read_error(path: &Path) -> impl FnOnce(io::Error) -> TlsError {
    |source| TlsError::Read {
        path: path.to_owned(),
        source,
    }
}

/// Follows links: Kubernetes replaces mounted secrets by changing a link.
fn file_version(path: &Path) -> Option<FileVersion> {
    let metadata = fs::metadata(path).ok()?;
    Some(FileVersion {
        device: metadata.dev(),
        inode: metadata.ino(),
        length: metadata.len(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
    })
}
