//! `revokeCert` (RFC 8555, section 7.6): by the account that owns the certificate, or with the certificate's own key.

use assay_authority::EcKey;
use assay_protocol::{admin_api::certificates::RevocationReason, sha256};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::Deserialize;
use x509_cert::{Certificate, der::Decode};

use super::{
    AcmeError,
    requests::{self, EitherRequest, Payload},
};
use crate::{
    changes::{Origin, RequestSource},
    registry::certificate_revocation::{CertificateError, revoke_device_certificate},
    services::Services,
    store::{
        Connection,
        acme_accounts::Account,
        acme_orders,
        device_certificates::{self, DeviceCertificate},
    },
};

#[derive(Deserialize)]
struct Revoke {
    certificate: String,
    #[serde(default)]
    reason: Option<u64>,
}

/// Revokes a device certificate.
pub(crate) async fn revoke(services: &Services, request: EitherRequest) -> Result<(), AcmeError> {
    match request {
        EitherRequest::Account(request) => {
            by_account(services, &request.account, &request.payload, &request.source).await
        }
        EitherRequest::Key(request) => by_key(services, &request.key, &request.payload, &request.source).await,
    }
}

async fn by_account(
    services: &Services,
    account: &Account,
    payload: &Payload,
    source: &RequestSource,
) -> Result<(), AcmeError> {
    let (der, reason) = read(payload)?;
    let mut connection = services.store.connection().await?;
    let found = find(&mut connection, &der).await?;
    let issued_to = acme_orders::account_of_certificate(&mut connection, &found.serial_number).await?;
    drop(connection);
    if issued_to != Some(account.id) {
        return Err(AcmeError::OtherAccount);
    }
    carry_out(
        services,
        &requests::origin(source, account, None),
        &found.serial_number,
        reason,
    )
    .await
}

async fn by_key(services: &Services, key: &EcKey, payload: &Payload, source: &RequestSource) -> Result<(), AcmeError> {
    let (der, reason) = read(payload)?;
    let found = find(&mut *services.store.connection().await?, &der).await?;
    if found.key != key.thumbprint() {
        return Err(AcmeError::NotTheCertificatesKey);
    }
    let origin = Origin::device_key(key.thumbprint(), source);
    carry_out(services, &origin, &found.serial_number, reason).await
}

fn read(payload: &Payload) -> Result<(Vec<u8>, RevocationReason), AcmeError> {
    let wanted: Revoke = payload.read()?;
    let der = URL_SAFE_NO_PAD
        .decode(&wanted.certificate)
        .map_err(|_| AcmeError::Malformed("certificate is not base64url without padding"))?;
    Ok((der, reason(wanted.reason.unwrap_or(0))?))
}

/// The certificate with exactly these bytes.
async fn find(connection: &mut Connection, der: &[u8]) -> Result<DeviceCertificate, AcmeError> {
    let parsed = Certificate::from_der(der).map_err(|_| AcmeError::UnknownCertificate)?;
    let serial_number = hex::encode(parsed.tbs_certificate().serial_number().as_bytes());
    let found = device_certificates::find(connection, &serial_number, &sha256(der)).await?;
    found.ok_or(AcmeError::UnknownCertificate)
}

async fn carry_out(
    services: &Services,
    origin: &Origin,
    serial_number: &str,
    reason: RevocationReason,
) -> Result<(), AcmeError> {
    match revoke_device_certificate(services, origin, serial_number, reason).await {
        Ok(true) => Ok(()),
        Ok(false) => Err(AcmeError::AlreadyRevoked),
        Err(CertificateError::Store(error)) => Err(error.into()),
        Err(CertificateError::Expired(_)) => Err(AcmeError::CertificateExpired),
        Err(CertificateError::Unknown | CertificateError::Note | CertificateError::Revoked(_)) => {
            Err(AcmeError::UnknownCertificate)
        }
    }
}

/// The reasons of RFC 5280, section 5.3.1, that a subject can give for its own certificate.
fn reason(code: u64) -> Result<RevocationReason, AcmeError> {
    match code {
        0 => Ok(RevocationReason::Unspecified),
        1 => Ok(RevocationReason::KeyCompromise),
        3 => Ok(RevocationReason::AffiliationChanged),
        4 => Ok(RevocationReason::Superseded),
        5 => Ok(RevocationReason::CessationOfOperation),
        9 => Ok(RevocationReason::PrivilegeWithdrawn),
        _ => Err(AcmeError::RevocationReason),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_reasons_that_a_subject_can_give_are_accepted() {
        let accepted: Vec<u64> = (0..300).filter(|code| reason(*code).is_ok()).collect();
        assert_eq!(accepted, [0, 1, 3, 4, 5, 9]);
    }
}
