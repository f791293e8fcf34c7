//! Issuing a certificate to a machine. It is stored before it leaves the server.

use assay_authority::{Authority, AuthorityError, IssuedClientCertificate, MachineCertificateRequest};
use assay_protocol::{KeyThumbprint, PublicKey, agent_api::IssuedCertificate, machine::Assurance};
use serde_json::json;
use time::OffsetDateTime;
use uuid::Uuid;

use super::EnrollError;
use crate::{
    changes::{Action, Change, EventKind},
    registry::record,
    services::{Policy, Services},
    store::{
        Transaction,
        certificates::{self, CertificateRecord},
        machines::{self, new::FirstCertificate},
    },
    telemetry::Metrics,
};

/// A signed certificate that is not stored yet, so it must not leave the server.
pub(super) struct Signed {
    pub(super) certificate: IssuedClientCertificate,
    pub(super) issuer_id: Uuid,
    pub(super) at: OffsetDateTime,
}

impl Signed {
    /// The certificate as a row of a new machine.
    pub(super) fn first_of_machine(&self) -> FirstCertificate<'_> {
        FirstCertificate {
            certificate: &self.certificate,
            issuer_id: self.issuer_id,
            issued_at: self.at,
        }
    }

    /// The certificate for the response, after it was stored.
    pub(super) fn issued(&self) -> IssuedCertificate {
        IssuedCertificate {
            serial_number: self.certificate.serial_number.clone(),
            not_before: self.certificate.not_before,
            not_after: self.certificate.not_after,
            chain: self.certificate.chain_pem.clone(),
        }
    }

    /// Its audit entry and event.
    pub(super) fn change(&self, machine_id: Uuid, key: KeyThumbprint) -> Change {
        let serial_number = &self.certificate.serial_number;
        Change::new(Action::CertificateIssue, serial_number)
            .after(json!({"machine_id": machine_id, "key": key}))
            .event(
                machine_id,
                EventKind::CertificateIssued,
                json!({"serial_number": serial_number, "key": key}),
            )
    }
}

/// Signs a certificate for a key of a machine.
pub(super) fn sign(
    services: &Services,
    machine_id: Uuid,
    public_key: &PublicKey,
    attested_serial_number: Option<&str>,
) -> Result<Signed, AuthorityError> {
    let request = MachineCertificateRequest {
        machine_id,
        public_key,
        now: services.store.now(),
        ttl: services.policy.certificate_ttl,
        attested_serial_number,
    };
    sign_by(&services.metrics, &services.authority.load(), &request)
}

/// Signs a certificate with this authority.
pub(super) fn sign_by(
    metrics: &Metrics,
    authority: &Authority,
    request: &MachineCertificateRequest<'_>,
) -> Result<Signed, AuthorityError> {
    metrics.certificate_signed();
    Ok(Signed {
        certificate: authority.issuing().issue_machine_certificate(request)?,
        issuer_id: authority.issuing().id(),
        at: request.now,
    })
}

/// Issues a certificate for a key of the machine, stores it, and writes the audit entry.
pub(super) async fn issue(
    tx: &mut Transaction,
    services: &Services,
    machine_id: Uuid,
    public_key: &PublicKey,
) -> Result<IssuedCertificate, EnrollError> {
    let attested_serial_number = attested_serial_number(tx, &services.policy, machine_id, public_key).await?;
    let signed = sign(services, machine_id, public_key, attested_serial_number.as_deref())?;
    let key = public_key.thumbprint();
    certificates::insert(tx, machine_id, key, signed.issuer_id, &signed.certificate, signed.at).await?;
    tx.record(signed.change(machine_id, key)).await?;
    Ok(signed.issued())
}

/// The serial number on record, if the machine is attested now, and this is the attested key.
async fn attested_serial_number(
    tx: &mut Transaction,
    policy: &Policy,
    machine_id: Uuid,
    public_key: &PublicKey,
) -> Result<Option<String>, EnrollError> {
    let attested_since = record::boundaries(policy, tx.now()).attested_since;
    let identity = machines::record::find_identity(tx, machine_id).await?;
    let attested = identity.filter(|identity| {
        identity.assurance_at(attested_since) == Assurance::Attested && identity.current_key == public_key.thumbprint()
    });
    Ok(attested.and_then(|identity| identity.serial_number))
}

/// An earlier certificate for the response.
pub(super) fn on_record(
    authority: &Authority,
    record: &CertificateRecord,
) -> Result<IssuedCertificate, AuthorityError> {
    Ok(IssuedCertificate {
        serial_number: record.serial_number.clone(),
        not_before: record.not_before,
        not_after: record.not_after,
        chain: authority.issuer(record.issuer_id)?.chain_pem(&record.der),
    })
}
