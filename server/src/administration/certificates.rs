//! Certificates: searched and read.

use assay_protocol::admin_api::certificates::{Certificate, CertificateWithPem};

use crate::{
    registry::certificate_revocation::{CertificateError, find_with_pem},
    services::Services,
    store::{
        self,
        certificates::{CertificateFilter, ExpiryPlace},
    },
};

/// A page of the certificates that a filter lets through, in the order in which they expire.
pub(crate) async fn list(
    services: &Services,
    filter: &CertificateFilter,
    after: Option<&ExpiryPlace>,
    rows: i64,
) -> Result<Vec<Certificate>, CertificateError> {
    let mut connection = services.store.connection().await?;
    Ok(store::certificates::list(&mut connection, filter, after, rows, services.clock.now()).await?)
}

/// One certificate, with itself in PEM.
pub(crate) async fn find(services: &Services, serial_number: &str) -> Result<CertificateWithPem, CertificateError> {
    let mut connection = services.store.connection().await?;
    find_with_pem(&mut connection, services, serial_number).await
}
