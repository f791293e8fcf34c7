//! `/v1/admin/certificates`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        certificates::{Certificate, CertificateStatus, CertificateWithPem, RevokeCertificate},
        page::Page,
    },
};
use axum::{Json, extract::State};
use serde::Deserialize;
use time::OffsetDateTime;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::{
    administration::certificates,
    http::{
        authentication::{Authorized, Operator, Viewer},
        extract::{self, SerialNumber, parse_time},
        operation::routes,
        page::{List, PageParameters, Place},
        problem::{ApiProblem, ApiResult},
    },
    registry::certificate_revocation::{self, CertificateError},
    services::Services,
    store::certificates::{CertificateFilter, ExpiryPlace},
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(find))
        .routes(routes!(revoke))
}

impl From<CertificateError> for ApiProblem {
    fn from(error: CertificateError) -> Self {
        match error {
            CertificateError::Unknown => Self::not_found("certificate"),
            CertificateError::Note => Self::malformed(error.to_string()),
            CertificateError::Revoked(_) | CertificateError::Expired(_) => {
                Self::new(ProblemKind::Conflict, error.to_string())
            }
            CertificateError::Store(error) => error.into(),
        }
    }
}

/// Which certificates to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct CertificateParameters {
    /// Whether the certificates are valid, expired or revoked.
    #[param(inline)]
    status: Option<CertificateStatus>,
    /// The machine in their subject, even if it has been deleted.
    machine_id: Option<Uuid>,
    /// Certificates that expire before this time (RFC 3339).
    #[param(format = DateTime)]
    expires_before: Option<String>,
}

impl CertificateParameters {
    fn filter(self) -> ApiResult<CertificateFilter> {
        Ok(CertificateFilter {
            status: self.status,
            machine_id: self.machine_id,
            expires_before: parse_time("expires_before", self.expires_before)?,
        })
    }
}

/// The expiry and the issue time in microseconds, and the serial number.
impl Place for ExpiryPlace {
    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for time in [self.not_after, self.issued_at] {
            bytes.extend((time.unix_timestamp_nanos() / 1000).to_be_bytes());
        }
        bytes.extend(hex::decode(&self.serial_number).unwrap_or_default());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (not_after, bytes) = bytes.split_first_chunk()?;
        let (issued_at, serial_number) = bytes.split_first_chunk()?;
        Some(Self {
            not_after: time(*not_after)?,
            issued_at: time(*issued_at)?,
            serial_number: hex::encode(serial_number),
        })
    }
}

fn time(microseconds: [u8; 16]) -> Option<OffsetDateTime> {
    let nanoseconds = i128::from_be_bytes(microseconds).checked_mul(1000)?;
    OffsetDateTime::from_unix_timestamp_nanos(nanoseconds).ok()
}

/// List certificates in the order of their expiry.
#[utoipa::path(
    get, path = "/v1/admin/certificates", tag = "Certificates", security(("api_key" = [])),
    params(CertificateParameters, PageParameters),
    responses((status = 200, body = Page<Certificate>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List {
        filter: parameters,
        page,
    }: List<CertificateParameters, ExpiryPlace>,
) -> ApiResult<Json<Page<Certificate>>> {
    let found = certificates::list(&services.store, &parameters.filter()?, page.after.as_ref(), page.rows()).await?;
    Ok(Json(page.page(found, |certificate| certificate.into())))
}

/// Read a certificate.
#[utoipa::path(
    get, path = "/v1/admin/certificates/{serial}", tag = "Certificates", security(("api_key" = [])),
    params(("serial" = String, Path, description = "In hex, in any case, with or without colons")),
    responses((status = 200, body = CertificateWithPem), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    SerialNumber(serial_number): SerialNumber,
) -> ApiResult<Json<CertificateWithPem>> {
    Ok(Json(certificates::find(&services.store, &serial_number).await?))
}

/// Revoke a certificate permanently.
///
/// The machine keeps its key and is asked to renew. With the reason `key_compromise`, all certificates of the key are
/// revoked and the machine is quarantined. Repeating it with the same reason changes nothing.
#[utoipa::path(
    post, path = "/v1/admin/certificates/{serial}/revoke", tag = "Certificates", security(("api_key" = [])),
    params(("serial" = String, Path, description = "In hex, in any case, with or without colons")),
    request_body = RevokeCertificate,
    responses((status = 200, body = CertificateWithPem), (status = "4XX", body = Problem)),
)]
async fn revoke(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    SerialNumber(serial_number): SerialNumber,
    extract::Json(request): extract::Json<RevokeCertificate>,
) -> ApiResult<Json<CertificateWithPem>> {
    Ok(Json(
        certificate_revocation::revoke(&services, &caller.origin, &serial_number, &request).await?,
    ))
}
