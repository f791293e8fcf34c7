//! Searching and reading certificates.

use assay_protocol::admin_api::certificates::{Certificate, CertificateWithPem};

use crate::{
    registry::certificate_revocation::{CertificateError, find_with_pem},
    store::{
        self, Store,
        certificates::{CertificateFilter, ExpiryPlace},
    },
};

/// A page of the certificates that match a filter, in the order in which they expire.
pub(crate) async fn list(
    store: &Store,
    filter: &CertificateFilter,
    after: Option<&ExpiryPlace>,
    rows: i64,
) -> Result<Vec<Certificate>, CertificateError> {
    let mut connection = store.connection().await?;
    Ok(store::certificates::list(&mut connection, filter, after, rows, store.now()).await?)
}

/// One certificate, with its PEM.
pub(crate) async fn find(store: &Store, serial_number: &str) -> Result<CertificateWithPem, CertificateError> {
    find_with_pem(&mut *store.connection().await?, serial_number, store.now()).await
}
