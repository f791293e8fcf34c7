//! Issuing to a machine: the certificate is a row before it leaves the server.

use assay_protocol::{PublicKey, agent_api::IssuedCertificate, machine::Assurance};
use serde_json::json;
use uuid::Uuid;

use super::EnrollError;
use crate::{
    audit::{Change, Origin},
    authority::{AuthorityError, MachineCertificateRequest},
    machines::record,
    services::Services,
    store::{
        Transaction, audit_entries,
        certificates::{self, CertificateRecord},
        events, machine_records,
    },
};

/// Issues a certificate for a key of the machine, records it and says so in the audit.
pub(super) async fn issue(
    tx: &mut Transaction,
    services: &Services,
    origin: &Origin,
    machine_id: Uuid,
    public_key: &PublicKey,
) -> Result<IssuedCertificate, EnrollError> {
    let now = services.clock.now();
    let attested_serial_number = attested_serial_number(tx, services, machine_id, public_key).await?;
    let authority = services.authority.load();
    let request = MachineCertificateRequest {
        machine_id,
        public_key,
        now,
        ttl: services.policy.certificate_ttl,
        attested_serial_number: attested_serial_number.as_deref(),
    };
    let issued = authority.issuing().issue_machine_certificate(&request)?;
    let key = public_key.thumbprint();
    certificates::insert(tx, machine_id, key, authority.issuing().id(), &issued, now).await?;
    let detail = json!({"serial_number": issued.serial_number, "key": key});
    events::insert(
        tx,
        services.clock.as_ref(),
        machine_id,
        "certificate.issued",
        detail.clone(),
    )
    .await?;
    let change = Change::new("certificate.issue", "certificate", &issued.serial_number)
        .after(json!({"machine_id": machine_id, "key": key}));
    audit_entries::insert(tx, services.clock.as_ref(), origin, change).await?;
    Ok(IssuedCertificate {
        serial_number: issued.serial_number,
        not_before: issued.not_before,
        not_after: issued.not_after,
        chain: issued.chain_pem,
    })
}

/// The serial number on record, if the machine is attested now and this is the key that the attestation is of.
async fn attested_serial_number(
    tx: &mut Transaction,
    services: &Services,
    machine_id: Uuid,
    public_key: &PublicKey,
) -> Result<Option<String>, EnrollError> {
    let attested_since = record::boundaries(services).attested_since;
    let identity = machine_records::find_identity(tx, machine_id).await?;
    let attested = identity.filter(|identity| {
        identity.assurance_at(attested_since) == Assurance::Attested && identity.current_key == public_key.thumbprint()
    });
    Ok(attested.and_then(|identity| identity.serial_number))
}

/// A certificate that was issued before, as it is shown to its machine.
pub(super) fn on_record(services: &Services, record: &CertificateRecord) -> Result<IssuedCertificate, AuthorityError> {
    Ok(IssuedCertificate {
        serial_number: record.serial_number.clone(),
        not_before: record.not_before,
        not_after: record.not_after,
        chain: services
            .authority
            .load()
            .issuer(record.issuer_id)?
            .chain_pem(&record.der),
    })
}
