//! New machines with a token, many in one transaction. This admits only simple enrollments. All others are left to
//! [`super::decide`], in transactions of their own.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use assay_authority::{Authority, AuthorityError, MachineCertificateRequest};
use assay_protocol::{
    KeyThumbprint,
    admin_api::enrollment_tokens::{Approval, EnrollmentToken},
};
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{
    Applicant, Decided, basis,
    certificate::{self, Signed},
    new_key, token,
};
use crate::{
    changes::Origin,
    clock,
    machines::{
        assurance::Grounds,
        claims::ClaimsDigest,
        continuity::{Carried, Continuity},
        labels::Labels,
    },
    rate_limits::RateLimits,
    secrets::SecretHash,
    services::Services,
    store::{
        self, Connection, StoreError,
        changes::{self, Stamp},
        enrollment_tokens,
        machines::{
            self,
            new::{Asking, NewRows, OnRecord},
        },
    },
    telemetry::Metrics,
};

/// A key that looks simple before the database is read. It has the rows of its machine that depend neither on the token
/// nor on the inventory, and the parts of its certificate, which is signed once its token has admitted it.
pub(super) struct NewMachine {
    applicant: Arc<Applicant>,
    secret: SecretHash,
    claims_digest: ClaimsDigest,
    origin: Origin,
    machine_id: Uuid,
    enrollment_id: Uuid,
    waits_until: OffsetDateTime,
    enrolled: Stamp,
    authority: Arc<Authority>,
    metrics: Arc<Metrics>,
    certificate_ttl: Duration,
    issued: Stamp,
}

/// An admitted machine, with what its token and the inventory add.
struct Admitted<'a> {
    new_machine: &'a NewMachine,
    token_id: Uuid,
    grounds: Grounds,
    labels: Labels,
    signed: Signed,
}

impl NewMachine {
    /// Prepares a request with a token, but without a client certificate and a continuity value. `None` for any other
    /// request, because its key may be on record.
    pub(super) fn prepare(services: &Services, applicant: &Arc<Applicant>) -> Option<Self> {
        let secret = applicant
            .token
            .filter(|_| applicant.caller.certificate.is_none() && applicant.continuity.is_none())?;
        let clock = services.clock.as_ref();
        let machine_id = clock::new_id(clock);
        let enrollment_id = clock::new_id(clock);
        let enrolled = Stamp::now(clock);
        Some(Self {
            secret,
            claims_digest: applicant.claims.digest().ok()?,
            origin: applicant.origin(machine_id),
            machine_id,
            enrollment_id,
            waits_until: applicant.now.saturating_add(services.policy.pending_ttl),
            enrolled,
            authority: services.authority.load_full(),
            metrics: Arc::clone(&services.metrics),
            certificate_ttl: services.policy.certificate_ttl,
            issued: Stamp::now(clock),
            applicant: Arc::clone(applicant),
        })
    }

    fn key(&self) -> KeyThumbprint {
        self.applicant.key()
    }

    fn sign(&self) -> Result<Signed, AuthorityError> {
        let request = MachineCertificateRequest {
            machine_id: self.machine_id,
            public_key: self.applicant.csr.public_key(),
            now: self.applicant.now,
            ttl: self.certificate_ttl,
            attested_serial_number: None,
        };
        certificate::sign_by(&self.metrics, &self.authority, &request)
    }

    fn serial_number(&self) -> Option<&str> {
        self.applicant.claims.machine.serial_number.as_deref()
    }
}

/// Admits the simple requests, and returns the decisions in the order of the requests. `None` for the others, of which
/// nothing is written.
///
/// Locks the tokens first, then the serial numbers' rows in the inventory. Rows of machines are not locked. If a
/// concurrent transaction inserts the same key or serial number, one of the two violates an index and is rolled back.
pub(super) async fn admit(
    connection: &mut Connection,
    rate_limits: &RateLimits,
    asking: &[NewMachine],
) -> Result<Vec<Option<Decided>>, StoreError> {
    let mut tx = store::begin_group(connection).await?;
    let secrets: HashSet<SecretHash> = asking.iter().map(|new_machine| new_machine.secret).collect();
    let secrets: Vec<SecretHash> = secrets.into_iter().collect();
    let tokens = enrollment_tokens::lock_by_secrets(&mut tx, &secrets).await?;
    let looked_up: Vec<Asking<'_>> = asking
        .iter()
        .map(|new_machine| Asking {
            key: new_machine.key(),
            serial_number: new_machine.serial_number(),
        })
        .collect();
    let on_record = machines::new::look_up(&mut tx, &looked_up).await?;
    let mut tokens: HashMap<SecretHash, EnrollmentToken> = tokens.into_iter().collect();
    let chosen = choose(rate_limits, asking, on_record, &mut tokens);
    let admitted: Vec<&Admitted<'_>> = chosen.iter().flatten().collect();
    if !admitted.is_empty() {
        let used: HashSet<Uuid> = admitted.iter().map(|admitted| admitted.token_id).collect();
        let used: Vec<&EnrollmentToken> = tokens.values().filter(|token| used.contains(&token.id)).collect();
        enrollment_tokens::set_uses(&mut tx, &used).await?;
        write(&mut tx, &admitted).await?;
    }
    store::commit_group(tx).await?;
    Ok(chosen
        .iter()
        .map(|admitted| Some(admitted.as_ref()?.decided()))
        .collect())
}

/// Chooses the simple requests in the order of their arrival, and counts the uses of their tokens. Of two with the same
/// key or serial number, only the first is simple.
fn choose<'a>(
    rate_limits: &RateLimits,
    asking: &'a [NewMachine],
    on_record: Vec<OnRecord>,
    tokens: &mut HashMap<SecretHash, EnrollmentToken>,
) -> Vec<Option<Admitted<'a>>> {
    let (mut keys, mut serial_numbers) = (HashSet::new(), HashSet::new());
    let mut choose_one = |new_machine: &'a NewMachine, found: OnRecord| {
        let serial_number = new_machine.serial_number();
        let is_free = !found.is_known
            && !found.is_contended
            && !keys.contains(&new_machine.key())
            && !serial_number.is_some_and(|serial_number| serial_numbers.contains(serial_number));
        let token = tokens.get_mut(&new_machine.secret).filter(|_| is_free)?;
        token::check(token, serial_number, new_machine.applicant.now).ok()?;
        if token.approval != Approval::Automatic {
            return None;
        }
        if let Some(serial_number) = serial_number {
            let network = new_machine.applicant.network();
            rate_limits.charge_serial_number(network, serial_number).ok()?;
            serial_numbers.insert(serial_number);
        }
        // Signed only after the token was found valid, so a stranger cannot make the CA sign. If signing fails, a
        // transaction of its own decides whether the key needs a certificate.
        let signed = new_machine.sign().ok()?;
        keys.insert(new_machine.key());
        let (grounds, labels) = basis::grounds_and_labels(Some(token), serial_number, found.listed);
        token.uses = token.uses.saturating_add(1);
        Some(Admitted {
            new_machine,
            token_id: token.id,
            grounds,
            labels,
            signed,
        })
    };
    asking
        .iter()
        .zip(on_record)
        .map(|(new_machine, found)| choose_one(new_machine, found))
        .collect()
}

async fn write(connection: &mut Connection, admitted: &[&Admitted<'_>]) -> Result<(), StoreError> {
    let rows: Vec<NewRows<'_>> = admitted.iter().map(|admitted| admitted.rows()).collect();
    machines::new::insert(connection, &rows).await?;
    let mut changes = Vec::with_capacity(admitted.len() * 2);
    for Admitted {
        new_machine,
        labels,
        signed,
        ..
    } in admitted
    {
        let (applicant, machine_id, labels) = (
            &new_machine.applicant,
            new_machine.machine_id,
            ("labels", json!(labels)),
        );
        let enrolled = new_key::change(applicant, machine_id, new_key::ENROLLED, Value::Null, labels)?;
        changes.push((new_machine.enrolled, &new_machine.origin, enrolled));
        let issued = signed.change(machine_id, new_machine.key());
        changes.push((new_machine.issued, &new_machine.origin, issued));
    }
    let stamped: Vec<_> = changes
        .iter()
        .map(|(stamp, origin, change)| (*stamp, *origin, change))
        .collect();
    changes::record(connection, &stamped).await
}

impl Admitted<'_> {
    fn decided(&self) -> Decided {
        Decided::Active {
            machine_id: self.new_machine.machine_id,
            assurance: self.grounds.assurance(),
            certificate: self.signed.issued(),
            issued_now: true,
        }
    }

    fn rows(&self) -> NewRows<'_> {
        let (NewMachine { applicant, .. }, signed) = (self.new_machine, &self.signed);
        NewRows {
            machine_id: self.new_machine.machine_id,
            enrollment_id: self.new_machine.enrollment_id,
            token_id: Some(self.token_id),
            grounds: self.grounds,
            labels: &self.labels,
            key: applicant.csr.public_key(),
            claims: &applicant.claims,
            claims_digest: self.new_machine.claims_digest,
            nonce: applicant.nonce,
            continuity: Continuity::starting_with(Carried::Nothing),
            address: applicant.caller.source.address,
            asked_at: applicant.now,
            waits_until: self.new_machine.waits_until,
            first_certificate: Some(signed.first_of_machine()),
        }
    }
}
