//! ACME with `device-attest-01`: macOS gets a certificate for the key that Apple attests, and for no other key.

use std::time::Instant;

use assay_tests::acme::{
    AcmeAnswer, JwsKey, Mac, RawClient, Transport, attestation_object, external_account_binding, freshness_of, url_of,
};
use assay_tests::answer::Answer;
use assay_tests::api::Called;
use assay_tests::apple::{Apple, Attested, FRESHNESS_CODE, SERIAL_NUMBER};
use assay_tests::cluster::Database;
use assay_tests::in_process::{Connections, InProcess, PUBLIC_URL};
use assay_tests::machine::Machine;
use assay_tests::openssl::{Files, openssl};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use instant_acme::{
    Account, AuthorizationStatus, ChallengeStatus, ChallengeType, DeviceAttestation, ExternalAccountKey, Identifier,
    NewAccount, NewOrder, OrderStatus, RevocationReason, RevocationRequest,
};
use pem::Pem;
use rstest::rstest;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::commands::run;

const SERIAL: &str = "C02ACMEMAC01";
/// How often the audit is read before the test fails: far more often than removing some rows needs.
const LOOKS: u32 = 20_000;

/// A server with ACME that trusts the test's stand-in for Apple.
struct Fleet {
    server: InProcess,
    apple: Apple,
}

impl Fleet {
    async fn new() -> Self {
        Self::start(None, &[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        Self::start(None, settings).await
    }

    async fn start(database_url: Option<&str>, settings: &[(&str, &str)]) -> Self {
        let apple = Apple::new();
        let settings = [&[("acme.enabled", "true"), apple.setting()], settings].concat();
        let server = match database_url {
            Some(url) => InProcess::start_on(url, &settings).await,
            None => InProcess::start_with(&settings).await,
        };
        Self { server, apple }
    }

    fn now(&self) -> OffsetDateTime {
        use assay_server::clock::Clock as _;
        self.server.clock().now()
    }

    /// Adds serial numbers to the inventory.
    async fn list(&self, serial_numbers: &[&str]) {
        let items: Vec<_> = serial_numbers
            .iter()
            .map(|serial_number| json!({"serial_number": serial_number}))
            .collect();
        let body = json!({"items": items});
        let request = self
            .server
            .admin(reqwest::Method::PUT, "/v1/admin/inventory?mode=merge");
        let _ = self.server.send(request.json(&body)).await.expect(200);
    }

    /// The audited refusals of this serial number.
    async fn noted(&self, serial_number: &str) -> Vec<String> {
        let path = format!("/v1/admin/audit?resource=device:{serial_number}");
        let entries = self.server.get(&path).await.expect(200).json();
        let items = entries["items"].as_array().unwrap().clone();
        items
            .iter()
            .map(|entry| {
                assert_eq!(entry["action"], "device-certificate.refuse", "{entry}");
                entry["reason"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    /// The certificates of a device, the last to expire last.
    async fn certificates(&self, serial_number: &str) -> Vec<Value> {
        let found = self.server.get("/v1/admin/certificates").await.expect(200).json();
        let items = found["items"].as_array().unwrap().clone();
        items
            .into_iter()
            .filter(|certificate| certificate["device_serial_number"] == serial_number)
            .collect()
    }

    async fn machine(&self, machine: &Machine) -> Value {
        let path = format!("/v1/admin/machines/{}", machine.id());
        self.server.get(&path).await.expect(200).json()
    }

    /// Checks that a machine has an event of this kind.
    async fn expect_event(&self, machine: &Machine, kind: &str) {
        let path = format!("/v1/admin/machines/{}/events", machine.id());
        let events = self.server.get(&path).await.expect(200).json();
        let mut items = events["items"].as_array().unwrap().iter();
        assert!(items.any(|event| event["kind"] == kind), "no {kind} in {events}");
    }

    /// Checks that OpenSSL verifies a chain for client authentication. It must name the device, and nothing else from
    /// the CSR.
    async fn expect_openssl_to_verify(&self, chain: &str) {
        let files = Files::new();
        let roots = self
            .server
            .send(self.server.request(reqwest::Method::GET, "/v1/ca/bundle.pem"))
            .await;
        let roots = files.write("roots.pem", roots.text());
        let chain_file = files.write("chain.pem", chain);
        let [roots, chain_file] = [&roots, &chain_file].map(|path| path.to_str().unwrap());
        let verify = [
            "verify",
            "-x509_strict",
            "-purpose",
            "sslclient",
            "-CAfile",
            roots,
            "-untrusted",
            chain_file,
            chain_file,
        ];
        let (good, said) = openssl(&verify).await;
        assert!(good, "{said}");
        let (_, shown) = openssl(&["x509", "-in", chain_file, "-noout", "-text"]).await;
        for part in [
            format!("Subject: CN = {SERIAL}\n").replace(" = ", "=").as_str(),
            "Public-Key: (384 bit)",
            "TLS Web Client Authentication\n",
            "Digital Signature\n",
            "CA:FALSE",
            &format!("URI:spiffe://example.com/device/{SERIAL}"),
            "othername: ",
        ] {
            assert!(shown.replace(" = ", "=").contains(part), "{part:?} is not in {shown}");
        }
        // The names from the CSR.
        for wish in ["administrator", "of-another", "DNS:"] {
            assert!(!shown.contains(wish), "{shown}");
        }
    }

    /// A new enrollment token's id, and its MAC key.
    async fn binding_key(&self, fields: Value) -> (String, Vec<u8>) {
        let token = self.server.create_enrollment_token(fields).await;
        let mac_key = token["external_account"]["mac_key"].as_str().unwrap();
        let id = token["id"].as_str().unwrap().to_owned();
        (id, URL_SAFE_NO_PAD.decode(mac_key).unwrap())
    }

    /// Requests an account that is bound with this key.
    async fn bind(&self, key_id: &str, mac_key: &[u8]) -> (RawClient, AcmeAnswer) {
        let mut client = RawClient::stranger(&self.server);
        let binding = external_account_binding(&client.key, key_id, mac_key);
        let opened = client.open(&json!({"externalAccountBinding": binding})).await;
        client.account = opened.header("location").unwrap_or_default();
        (client, opened)
    }

    async fn stand(&self, machine: &Machine, decision: &str) -> Answer {
        let path = format!("/v1/admin/machines/{}/{decision}", machine.id());
        self.server.post(&path, &json!({"reason": "lost on a train"})).await
    }
}

fn leaf_of(chain_pem: &str) -> Vec<u8> {
    let certificates = pem::parse_many(chain_pem).unwrap();
    certificates[0].contents().to_vec()
}

fn token_of(challenge: &Value) -> &str {
    challenge["token"].as_str().unwrap()
}

async fn instant_account(fleet: &Fleet, external_account: Option<&ExternalAccountKey>) -> Account {
    let new = NewAccount {
        contact: &[],
        terms_of_service_agreed: true,
        only_return_existing: false,
    };
    let builder = Account::builder_with_http(Transport::to(&fleet.server));
    let directory = url_of("/acme/directory");
    let (account, _credentials) = builder.create(&new, directory, external_account).await.unwrap();
    account
}

/// A server with its stand-in for Apple, and the chain of a device's certificate that it has issued.
pub(super) async fn with_device_certificate() -> (InProcess, Apple, String) {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    (fleet.server, fleet.apple, chain)
}

/// `instant-acme` performs all steps, and OpenSSL verifies the certificate.
#[tokio::test]
async fn a_foreign_client_gets_a_certificate_that_openssl_verifies() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let mac = Mac::new(SERIAL);
    let account = instant_account(&fleet, None).await;
    let identifiers = [Identifier::PermanentIdentifier(SERIAL.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.unwrap();
    assert_eq!(order.state().status, OrderStatus::Pending);
    let mut authorizations = order.authorizations();
    let mut authorization = authorizations.next().await.unwrap().unwrap();
    assert_eq!(authorization.status, AuthorizationStatus::Pending);
    let mut challenge = authorization.challenge(ChallengeType::DeviceAttest01).unwrap();
    let attested = mac.attested(&challenge.token, fleet.now());
    let att_obj = mac.attestation_object(&fleet.apple, &attested).into();
    let status = challenge.send_device_attestation(&DeviceAttestation { att_obj }).await;
    assert_eq!(status.unwrap(), ChallengeStatus::Valid);
    assert_eq!(order.refresh().await.unwrap().status, OrderStatus::Ready);
    order.finalize_csr(&mac.csr()).await.unwrap();
    let chain = order.certificate().await.unwrap().unwrap();

    fleet.expect_openssl_to_verify(&chain).await;
    let [certificate] = fleet.certificates(SERIAL).await.try_into().unwrap();
    assert_eq!(
        (&certificate["purpose"], &certificate["machine_id"]),
        (&"device".into(), &Value::Null)
    );

    // The account that it was issued to can revoke it once.
    let leaf = leaf_of(&chain).into();
    let request = RevocationRequest {
        certificate: &leaf,
        reason: Some(RevocationReason::Superseded),
    };
    account.revoke(&request).await.unwrap();
    let again = account.revoke(&request).await.unwrap_err().to_string();
    assert!(again.contains("already revoked"), "{again}");
    let [certificate] = fleet.certificates(SERIAL).await.try_into().unwrap();
    assert_eq!(certificate["revocation_reason"], "superseded");
}

#[tokio::test]
async fn a_foreign_client_binds_its_account_changes_its_key_and_deactivates_it() {
    let fleet = Fleet::new().await;
    let token = fleet
        .server
        .create_enrollment_token(json!({"max_uses": 1, "serial_numbers": [SERIAL]}))
        .await;
    let mac_key = token["external_account"]["mac_key"].as_str().unwrap();
    let mac_key = URL_SAFE_NO_PAD.decode(mac_key).unwrap();
    let key_id = token["external_account"]["key_id"].as_str().unwrap().to_owned();
    let external_account = ExternalAccountKey::new(key_id, &mac_key);
    let mut account = instant_account(&fleet, Some(&external_account)).await;
    let _credentials = account.update_key().await.unwrap();
    let identifiers = [Identifier::PermanentIdentifier(SERIAL.to_owned())];
    let mut order = account.new_order(&NewOrder::new(&identifiers)).await.unwrap();
    let url = order.url().to_owned();
    assert_eq!(order.state().status, OrderStatus::Pending);
    // A binding with an unknown key identifier is refused.
    let other = [Identifier::PermanentIdentifier("C02OTHER".to_owned())];
    let refused = account
        .new_order(&NewOrder::new(&other))
        .await
        .err()
        .unwrap()
        .to_string();
    assert!(refused.contains("C02OTHER"), "{refused}");
    let id = account.id().rsplit('/').next().unwrap().to_owned();
    account.deactivate().await.unwrap();
    let audit = fleet
        .server
        .get(&format!("/v1/admin/audit?resource=acme-account:{id}"))
        .await
        .json();
    let mut actions: Vec<&str> = audit["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    actions.sort_unstable();
    assert_eq!(
        actions,
        [
            "acme-account.bind",
            "acme-account.change-key",
            "acme-account.deactivate"
        ]
    );
    let used = fleet
        .server
        .get(&format!(
            "/v1/admin/enrollment-tokens/{}",
            token["id"].as_str().unwrap()
        ))
        .await;
    assert_eq!(used.json()["uses"], 1);
    assert!(url.starts_with(PUBLIC_URL));
}

/// A Mac has two keys. An attestation of one confirms nothing about the other.
#[rstest]
#[case(Mac::new(SERIAL))]
#[case(Mac::on_p256(SERIAL))]
#[tokio::test]
async fn a_device_certificate_does_not_change_the_machine_with_that_serial_number(#[case] mac: Mac) {
    let fleet = Fleet::new().await;
    let machine = fleet.server.enrolled(SERIAL).await;
    let before = fleet.machine(&machine).await;
    let client = RawClient::with_account(&fleet.server).await;
    let chain = client.obtain(&mac, &fleet.apple, fleet.now()).await;
    let after = fleet.machine(&machine).await;
    assert_eq!(after["assurance"], "asserted");
    assert_eq!(after, before, "nothing of the machine's record has changed");
    let checked_in = machine.check_in(&fleet.server).await.expect(200).json();
    assert_eq!(checked_in["assurance"], "asserted");
    fleet.expect_event(&machine, "device-certificate.issued").await;

    // The list of the machine's certificates has both, with their purposes.
    let path = format!("/v1/admin/machines/{}/certificates", machine.id());
    let listed = fleet.server.get(&path).await.json();
    let seen: Vec<_> = listed["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|certificate| {
            assert_eq!(certificate["machine_id"], machine.id().to_string());
            (
                certificate["purpose"].as_str().unwrap(),
                certificate["device_serial_number"].as_str(),
            )
        })
        .collect();
    assert_eq!(seen.len(), 2, "{seen:?}");
    assert!(
        seen.contains(&("device", Some(SERIAL))) && seen.contains(&("machine", None)),
        "{seen:?}"
    );

    // A TLS connection with the device's certificate is refused, even with evidence that the agent's key signed.
    let presenting = fleet
        .server
        .presenting_key(&chain, &mac.key.serialize_pem(), Connections::Kept);
    let before = fleet.machine(&machine).await;
    let nonce = fleet.server.nonce().await;
    // No agent has a key on P-384, so the handshake fails.
    if let Ok(refused) = Answer::or_error(machine.check_in_with(&presenting, &nonce)).await {
        assert_eq!(refused.kind().slug(), "bad-evidence", "{refused}");
    }
    assert_eq!(fleet.machine(&machine).await, before);
}

#[tokio::test]
async fn evidence_signed_with_a_device_key_is_refused() {
    let fleet = Fleet::new().await;
    let machine = fleet.server.enrolled(SERIAL).await;
    // Both certificates have the same key. Only their purposes differ.
    let mac = Mac {
        serial_number: SERIAL.to_owned(),
        key: rcgen::KeyPair::from_pem(&machine.private_key_pem()).unwrap(),
    };
    let client = RawClient::with_account(&fleet.server).await;
    let chain = client.obtain(&mac, &fleet.apple, fleet.now()).await;
    assert_eq!(fleet.machine(&machine).await["assurance"], "asserted");
    let presenting = fleet.server.presenting(&chain, &machine, Connections::Kept);
    let refused = machine.check_in(&presenting).await;
    assert_eq!(refused.kind().slug(), "bad-evidence", "{refused}");
}

/// The response to a challenge, and why it is refused.
#[rstest]
#[case::another_token("freshness code", |mac: &Mac, fleet: &Fleet, token: &str| {
    mac.attestation_object(&fleet.apple, &mac.attested(&format!("{token}x"), fleet.now()))
})]
#[case::no_freshness_code("freshness code is missing", |mac: &Mac, fleet: &Fleet, token: &str| {
    mac.attestation_object(&fleet.apple, &mac.attested(token, fleet.now()).without(FRESHNESS_CODE))
})]
#[case::another_devices("C02OTHER", |mac: &Mac, fleet: &Fleet, token: &str| {
    mac.attestation_object(&fleet.apple, &mac.attested(token, fleet.now()).with(SERIAL_NUMBER, b"C02OTHER"))
})]
#[case::no_serial_number("no readable serial number", |mac: &Mac, fleet: &Fleet, token: &str| {
    mac.attestation_object(&fleet.apple, &mac.attested(token, fleet.now()).without(SERIAL_NUMBER))
})]
#[case::foreign_root("trusted attestation root", |mac: &Mac, fleet: &Fleet, token: &str| {
    mac.attestation_object(&Apple::new(), &mac.attested(token, fleet.now()))
})]
#[case::expired("expired", |mac: &Mac, fleet: &Fleet, token: &str| {
    mac.attestation_object(&fleet.apple, &mac.attested(token, fleet.now()).at(fleet.now() - Duration::days(100)))
})]
#[case::of_a_key_that_is_none("attested key", |_mac: &Mac, fleet: &Fleet, token: &str| {
    let attested = Attested::of_device(SERIAL, fleet.now()).with(FRESHNESS_CODE, freshness_of(token).as_bytes());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    attestation_object(&fleet.apple.attest_key(&attested, &key))
})]
#[case::another_format("format", |_mac: &Mac, _fleet: &Fleet, _token: &str| b"\xa1\x63fmt\x63tpm".to_vec())]
#[case::a_format_with_a_nul("format", |_mac: &Mac, _fleet: &Fleet, _token: &str| b"\xa2\x63fmt\x62t\x00\x67attStmt\xa0".to_vec())]
#[case::no_cbor("a map with a known length", |_mac: &Mac, _fleet: &Fleet, _token: &str| b"\xff\xff".to_vec())]
#[case::no_chain("no certificate", |_mac: &Mac, _fleet: &Fleet, _token: &str| attestation_object(&[]))]
#[tokio::test]
async fn a_bad_attestation_invalidates_the_challenge_and_is_audited(
    #[case] says: &str,
    #[case] object: fn(&Mac, &Fleet, &str) -> Vec<u8>,
) {
    let fleet = Fleet::new().await;
    let machine = fleet.server.enrolled(SERIAL).await;
    let (mac, client) = (Mac::new(SERIAL), RawClient::with_account(&fleet.server).await);
    let order = client.order(SERIAL).await.expect(201);
    let challenge = client.challenge(&order).await;
    let refused = client
        .attest(&challenge, &object(&mac, &fleet, token_of(&challenge)))
        .await;
    let detail = refused.expect_challenge_error("badAttestationStatement");
    assert!(detail.contains(says), "{detail}");
    // The machine's event and the audit contain the same sentence.
    assert_eq!(fleet.noted(SERIAL).await, [detail]);
    fleet.expect_event(&machine, "device-certificate.refused").await;
    // The order stays invalid, even if a valid attestation follows.
    let good = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    let _ = client
        .attest(&challenge, &good)
        .await
        .expect_challenge_error("badAttestationStatement");
    let read = client.read(&order.location()).await.expect(200);
    assert_eq!(read.body["status"], "invalid");
    assert_eq!(
        read.body["error"],
        client.read(challenge["url"].as_str().unwrap()).await.body["error"]
    );
    let finalized = client.finalize(&order, &mac.csr()).await;
    let _ = finalized.expect_error(403, "orderNotReady");
    let authorization = client.read(order.body["authorizations"][0].as_str().unwrap()).await;
    assert_eq!(authorization.body["status"], "invalid");
    assert!(fleet.certificates(SERIAL).await.is_empty());
    // A new order, with another token, succeeds.
    let next = client.order(SERIAL).await.expect(201);
    assert_ne!(next.location(), order.location());
    let _chain = client.obtain(&mac, &fleet.apple, fleet.now()).await;
}

#[tokio::test]
async fn an_empty_attestation_is_refused_with_the_keys_that_the_profile_lacks() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let challenge = client.challenge(&client.order(SERIAL).await).await;
    let refused = client.post(challenge["url"].as_str().unwrap(), &json!({})).await;
    let detail = refused.expect_challenge_error("badAttestationStatement");
    assert!(detail.contains("Attest and HardwareBound"), "{detail}");
}

#[tokio::test]
async fn a_csr_for_another_key_than_the_attested_one_is_refused() {
    let fleet = Fleet::new().await;
    let machine = fleet.server.enrolled(SERIAL).await;
    let (mac, other) = (Mac::new(SERIAL), Mac::new(SERIAL));
    let client = RawClient::with_account(&fleet.server).await;
    let order = client.order(SERIAL).await.expect(201);
    let challenge = client.challenge(&order).await;
    let early = client.finalize(&order, &mac.csr()).await;
    assert!(early.expect_error(403, "orderNotReady").contains("pending"));
    let attested = mac.attested(token_of(&challenge), fleet.now());
    let object = mac.attestation_object(&fleet.apple, &attested);
    let _ = client.attest(&challenge, &object).await.expect(200);
    let detail = client.finalize(&order, &other.csr()).await.expect_error(400, "badCSR");
    assert!(detail.contains("not the key that Apple attested"), "{detail}");
    assert_eq!(fleet.noted(SERIAL).await, [detail]);
    fleet.expect_event(&machine, "device-certificate.refused").await;
    // A CSR with a signature of another key is refused.
    let mut forged = mac.csr();
    *forged.last_mut().unwrap() ^= 1;
    let _ = client.finalize(&order, &forged).await.expect_error(400, "badCSR");
    assert_eq!(
        client.finalize(&order, &mac.csr()).await.expect(200).body["status"],
        "valid"
    );
    let _ = client.finalize(&order, &other.csr()).await.expect_error(400, "badCSR");
}

#[tokio::test]
async fn an_unknown_serial_number_is_refused_and_audited() {
    let fleet = Fleet::new().await;
    let client = RawClient::with_account(&fleet.server).await;
    let detail = client
        .order("C02STRANGER")
        .await
        .expect_error(403, "rejectedIdentifier");
    assert!(
        detail.contains("C02STRANGER") && detail.contains("not admitted"),
        "{detail}"
    );
    let noted = fleet.noted("C02STRANGER").await;
    assert!(noted.len() == 1 && noted[0].contains("inventory"), "{noted:?}");
    let detail = client
        .order("$SERIALNUMBER")
        .await
        .expect_error(403, "rejectedIdentifier");
    assert!(detail.contains("$SERIALNUMBER"), "{detail}");
    let _ = client.order("C02\0").await.expect_error(403, "rejectedIdentifier");
    // A pending machine only claims its serial number, which confirms nothing.
    let token = fleet.server.enrollment_token(json!({"approval": "manual"})).await;
    let waiting = Machine::with_serial_number("C02WAITS");
    let _ = waiting.enroll(&fleet.server, Some(&token)).await.expect(202);
    let _ = client.order("C02WAITS").await.expect_error(403, "rejectedIdentifier");
    // Strangers cannot fill the audit: it has only some of 40 more refusals.
    for number in 0..40 {
        let _ = client
            .order(&format!("C02STRANGER{number}"))
            .await
            .expect_error(403, "rejectedIdentifier");
    }
    let audit = fleet
        .server
        .get("/v1/admin/audit?resource=device&limit=500")
        .await
        .json();
    assert_eq!(audit["items"].as_array().unwrap().len(), 30);
}

#[rstest]
#[case("quarantine", "quarantined")]
#[case("revoke", "revoked")]
#[tokio::test]
async fn quarantine_and_revocation_revoke_the_device_certificate_and_block_a_new_one(
    #[case] decision: &str,
    #[case] status: &str,
) {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL, "C02OTHER"]).await;
    let machine = fleet.server.attestable(SERIAL).await;
    let client = RawClient::with_account(&fleet.server).await;
    let mac = Mac::new(SERIAL);
    let _chain = client.obtain(&mac, &fleet.apple, fleet.now()).await;
    let _chain = client.obtain(&Mac::new("C02OTHER"), &fleet.apple, fleet.now()).await;
    // One order is ready, and one is pending.
    let ready = client.order(SERIAL).await.expect(201);
    let challenge = client.challenge(&ready).await;
    let object = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    let _ = client.attest(&challenge, &object).await.expect(200);
    let waiting = client.order(SERIAL).await.expect(201);

    let _ = fleet.stand(&machine, decision).await.expect(200);
    let [certificate] = fleet.certificates(SERIAL).await.try_into().unwrap();
    assert_eq!(certificate["status"], "revoked");
    assert_eq!(certificate["revocation_reason"], "privilege_withdrawn");
    assert_eq!(certificate["machine_id"], machine.id().to_string());
    fleet.expect_event(&machine, "device-certificate.revoked").await;
    assert_eq!(fleet.certificates("C02OTHER").await[0]["status"], "valid");

    // Anyone can make an account, so the client learns neither the status nor an administrator's reason.
    let says = |detail: String| {
        assert!(
            detail.contains("not admitted") && !detail.contains(status) && !detail.contains("lost on a train"),
            "{detail}"
        )
    };
    let refused = client.order(SERIAL).await.expect_error(403, "rejectedIdentifier");
    let unknown = client
        .order("C02STRANGER")
        .await
        .expect_error(403, "rejectedIdentifier");
    assert_eq!(
        refused.replace(SERIAL, "C02STRANGER"),
        unknown,
        "the refusal tells that the serial number is on record"
    );
    says(refused);
    says(
        client
            .finalize(&ready, &mac.csr())
            .await
            .expect_error(403, "rejectedIdentifier"),
    );
    let challenge = client.challenge(&waiting).await;
    let object = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    says(
        client
            .attest(&challenge, &object)
            .await
            .expect_challenge_error("rejectedIdentifier"),
    );
    let noted = fleet.noted(SERIAL).await;
    assert_eq!(noted.len(), 3);
    assert!(
        noted
            .iter()
            .all(|reason| reason.contains(status) && reason.contains("lost on a train")),
        "{noted:?}"
    );
    assert_eq!(fleet.certificates(SERIAL).await.len(), 1);
}

#[tokio::test]
async fn a_released_machine_gets_a_new_device_certificate_and_a_deleted_one_loses_it() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let machine = fleet.server.attestable(SERIAL).await;
    let client = RawClient::with_account(&fleet.server).await;
    let _chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    let _ = fleet.stand(&machine, "quarantine").await.expect(200);
    let _ = fleet.stand(&machine, "release").await.expect(200);
    assert_eq!(
        fleet.certificates(SERIAL).await[0]["status"],
        "revoked",
        "a revocation is final"
    );
    let _chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    let path = format!("/v1/admin/machines/{}", machine.id());
    let _ = fleet.server.delete(&path).await.expect(204);
    let certificates = fleet.certificates(SERIAL).await;
    assert_eq!(certificates.len(), 2);
    assert!(
        certificates
            .iter()
            .all(|certificate| certificate["status"] == "revoked"),
        "{certificates:?}"
    );
    // A machine that moves in under a copied identity is quarantined by itself. That takes no certificate from the device.
    let machine = fleet.server.attestable(SERIAL).await;
    let _chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    let mut copy = machine.clone();
    copy.identity.hardware_uuid = Some("UUID-OF-ANOTHER".to_owned());
    let _ = copy.check_in(&fleet.server).await.expect(403);
    let valid = fleet.certificates(SERIAL).await;
    let valid = valid.iter().filter(|certificate| certificate["status"] == "valid");
    assert_eq!(valid.count(), 1);
}

/// Denying a stranger that claims this Mac's serial number does not affect the Mac.
#[tokio::test]
async fn denying_a_machine_with_the_same_serial_number_revokes_no_device_certificate() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let _chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    let token = fleet.server.enrollment_token(json!({"approval": "manual"})).await;
    let stranger = Machine::with_serial_number(SERIAL);
    let _ = stranger.enroll(&fleet.server, Some(&token)).await.expect(202);
    let _ = fleet.stand(&stranger, "deny").await.expect(200);
    assert_eq!(fleet.certificates(SERIAL).await[0]["status"], "valid");
}

/// A stranger with a shared token claims the serial number, gets quarantined, and even revoked: the device keeps its
/// certificate and gets the next one.
#[tokio::test]
async fn a_machine_that_only_claims_the_serial_number_neither_revokes_nor_blocks_certificates() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let _chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    let stranger = fleet.server.enrolled(SERIAL).await;
    for decision in ["quarantine", "revoke"] {
        let _ = fleet.stand(&stranger, decision).await.expect(200);
        let certificates = fleet.certificates(SERIAL).await;
        assert!(
            certificates.iter().all(|certificate| certificate["status"] == "valid"),
            "{certificates:?}"
        );
        let _chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    }
    assert_eq!(fleet.certificates(SERIAL).await.len(), 3);
}

#[tokio::test]
async fn revoking_a_device_certificate_leaves_the_machine_unchanged() {
    let fleet = Fleet::new().await;
    let machine = fleet.server.enrolled(SERIAL).await;
    let client = RawClient::with_account(&fleet.server).await;
    let chain = client.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    let [certificate] = fleet.certificates(SERIAL).await.try_into().unwrap();
    let path = format!(
        "/v1/admin/certificates/{}/revoke",
        certificate["serial_number"].as_str().unwrap()
    );
    let revoked = fleet
        .server
        .post(&path, &json!({"reason": "key_compromise"}))
        .await
        .expect(200)
        .json();
    assert_eq!(revoked["revocation_reason"], "key_compromise");
    assert_eq!(fleet.machine(&machine).await["status"], "active");
    fleet.expect_event(&machine, "device-certificate.revoked").await;
    let payload = json!({"certificate": URL_SAFE_NO_PAD.encode(leaf_of(&chain))});
    let again = client.post(&url_of("/acme/revoke-cert"), &payload).await;
    let _ = again.expect_error(400, "alreadyRevoked");
}

#[tokio::test]
async fn a_certificate_of_an_earlier_ca_is_fetched_with_the_chain_of_that_ca() {
    let fleet = Fleet::with(&[("certificates.ca_overlap", "1s")]).await;
    fleet.list(&[SERIAL]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let (order, chain) = client
        .obtain_with_order(&Mac::new(SERIAL), &fleet.apple, fleet.now())
        .await;
    let issuer = async || fleet.server.api().get("/v1/ca/issuer.cer").await.expect(200).body;
    let before = issuer().await;
    let rotated = run(fleet.server.command(&["ca", "rotate"])).await;
    assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    let begun = Instant::now();
    while issuer().await == before {
        assert!(begun.elapsed().as_secs() < 60, "the next CA does not issue");
        fleet.server.clock().advance(Duration::seconds(1));
    }
    let certificate = order.body["certificate"].as_str().unwrap();
    let _may_be_of_a_nonce_that_is_over = client.read(certificate).await;
    assert_eq!(client.read(certificate).await.expect(200).body, chain.as_str());
    fleet.expect_openssl_to_verify(&chain).await;
}

#[tokio::test]
async fn the_key_of_a_certificate_revokes_it_and_no_other_key_does() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let mac = Mac::new(SERIAL);
    let client = RawClient::with_account(&fleet.server).await;
    let chain = client.obtain(&mac, &fleet.apple, fleet.now()).await;
    let url = url_of("/acme/revoke-cert");
    let payload = json!({"certificate": URL_SAFE_NO_PAD.encode(leaf_of(&chain)), "reason": 1});
    let signed_by = async |key: &JwsKey, payload: &Value| {
        let header = json!({"jwk": key.jwk(), "nonce": client.nonce().await, "url": url});
        client.send(&url, &key.sign(header, &payload.to_string())).await
    };
    let _ = signed_by(&JwsKey::new(), &payload)
        .await
        .expect_error(403, "unauthorized");
    let other = RawClient::with_account(&fleet.server).await;
    let _ = other.post(&url, &payload).await.expect_error(403, "unauthorized");
    let own = JwsKey::of(&mac.key);
    let held = json!({"certificate": payload["certificate"], "reason": 6});
    let _ = signed_by(&own, &held).await.expect_error(400, "badRevocationReason");
    // ACME does not revoke an agent's certificate, even for the holder of its key.
    let machine = fleet.server.enrolled("C02AGENT").await;
    let issued = machine.enroll(&fleet.server, None).await.expect(200).json();
    let agents = leaf_of(issued["certificate"]["chain"].as_str().unwrap());
    let agents = json!({"certificate": URL_SAFE_NO_PAD.encode(agents)});
    let agents_key = JwsKey::of(&rcgen::KeyPair::from_pem(&machine.private_key_pem()).unwrap());
    let _ = signed_by(&agents_key, &agents).await.expect_error(404, "malformed");
    assert_eq!(signed_by(&own, &payload).await.status, 200);
    assert_eq!(
        fleet.certificates(SERIAL).await[0]["revocation_reason"],
        "key_compromise"
    );
    let _ = signed_by(&own, &payload).await.expect_error(400, "alreadyRevoked");
}

#[tokio::test]
async fn requests_that_are_not_signed_for_this_url_and_once_are_refused() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let (url, account) = (url_of("/acme/new-order"), client.account.clone());
    let payload = json!({"identifiers": [{"type": "permanent-identifier", "value": SERIAL}]}).to_string();
    let sent = client.signed(&url, &payload).await;
    let _ = client.send(&url, &sent).await.expect(201);
    let _ = client.send(&url, &sent).await.expect_error(400, "badNonce");
    // Signed for another URL.
    let elsewhere = client.signed(&account, "").await;
    let _ = client.send(&url, &elsewhere).await.expect_error(401, "unauthorized");
    let http = client.signed(&url.replace("https", "http"), &payload).await;
    let _ = client.send(&url, &http).await.expect_error(401, "unauthorized");
    let header = |extra: Value, nonce: String| {
        let mut header = json!({"kid": account, "nonce": nonce, "url": url});
        for (name, value) in extra.as_object().unwrap() {
            header[name] = value.clone();
        }
        header
    };
    for (extra, status, kind) in [
        (json!({"nonce": "no-such-nonce"}), 400, "badNonce"),
        (json!({"nonce": null}), 400, "malformed"),
        (json!({"kid": url_of("/acme/account/0191")}), 400, "accountDoesNotExist"),
        (
            json!({"kid": url_of(&format!("/acme/account/{}", uuid::Uuid::nil()))}),
            400,
            "accountDoesNotExist",
        ),
        (json!({"jwk": client.key.jwk()}), 400, "malformed"),
        (json!({"kid": null}), 400, "malformed"),
        (json!({"alg": "RS256"}), 400, "badSignatureAlgorithm"),
        (json!({"alg": "ES384"}), 400, "malformed"),
    ] {
        let jws = client.key.sign(header(extra, client.nonce().await), &payload);
        let answer = client.send(&url, &jws).await;
        let _ = answer.expect_error(status, kind);
        if kind == "badSignatureAlgorithm" {
            assert_eq!(answer.body["algorithms"], json!(["ES256", "ES384"]));
        }
    }
    // A nonce for agents is not valid for ACME.
    let jws = client.key.sign(
        header(json!({"nonce": fleet.server.nonce().await}), String::new()),
        &payload,
    );
    let _ = client.send(&url, &jws).await.expect_error(400, "badNonce");
    // A nonce is valid as long as one for agents.
    let late = client.signed(&url, &payload).await;
    fleet.server.clock().advance(Duration::seconds(301));
    let _ = client.send(&url, &late).await.expect_error(400, "badNonce");
    let again = client.signed(&url, &payload).await;
    let _ = client.send(&url, &again).await.expect(201);
}

#[tokio::test]
async fn an_unsigned_request_is_refused_with_an_acme_error() {
    let fleet = Fleet::new().await;
    let client = RawClient::with_account(&fleet.server).await;
    let (url, payload) = (url_of("/acme/new-order"), "{}");
    let header = json!({"kid": client.account, "nonce": client.nonce().await, "url": url});
    let forged = JwsKey::new().sign(header, payload);
    let _ = client.send(&url, &forged).await.expect_error(400, "malformed");
    let plain = client.signed(&url, payload).await.to_string();
    let answer = client.send_as(&url, "application/json", plain).await;
    let _ = answer.expect_error(415, "malformed");
    let _ = client
        .send_as(&url, "application/jose+json", "{}".to_owned())
        .await
        .expect_error(400, "malformed");
    let long = "x".repeat(65 * 1024);
    let _ = client
        .send_as(&url, "application/jose+json", long)
        .await
        .expect_error(413, "malformed");
    let _ = client.get("/acme/new-order").await.expect_error(405, "malformed");
    let _ = client
        .read(&url_of("/acme/order/none"))
        .await
        .expect_error(404, "malformed");
}

#[tokio::test]
async fn orders_are_for_one_device_and_of_one_account() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL, "C02OTHER"]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let url = url_of("/acme/new-order");
    let one = json!({"type": "permanent-identifier", "value": SERIAL});
    for identifiers in [
        json!([]),
        json!([one, one]),
        json!([{"type": "dns", "value": "assay.example.com"}]),
    ] {
        let refused = client.post(&url, &json!({"identifiers": identifiers})).await;
        let _ = refused.expect_error(400, "unsupportedIdentifier");
    }
    let dated = json!({"identifiers": [one], "notAfter": "2030-01-01T00:00:00Z"});
    let _ = client.post(&url, &dated).await.expect_error(400, "malformed");
    let _ = client.post(&url, &json!([one])).await.expect_error(400, "malformed");
    let order = client.order(SERIAL).await.expect(201);
    let challenge = client.challenge(&order).await;
    // Another account can neither read nor change it.
    let other = RawClient::with_account(&fleet.server).await;
    let mac = Mac::new(SERIAL);
    let (order_url, authorization) = (
        order.location(),
        order.body["authorizations"][0].as_str().unwrap().to_owned(),
    );
    for url in [
        &order_url,
        &authorization,
        challenge["url"].as_str().unwrap(),
        &client.account,
    ] {
        let _ = other.read(url).await.expect_error(403, "unauthorized");
    }
    let object = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    let _ = other
        .attest(&challenge, &object)
        .await
        .expect_error(403, "unauthorized");
    let _ = other
        .finalize(&order, &mac.csr())
        .await
        .expect_error(403, "unauthorized");
    let _ = other
        .read(&format!("{}/orders", client.account))
        .await
        .expect_error(403, "unauthorized");
    // Its account can read it with POST-as-GET, and lists it.
    let _ = client.post(&order_url, &json!({})).await.expect_error(400, "malformed");
    let listed = client.read(&format!("{}/orders", client.account)).await.expect(200);
    assert_eq!(listed.body, json!({"orders": [order_url]}));
    // Deactivating the authorization makes the order invalid.
    let given_up = client
        .post(&authorization, &json!({"status": "deactivated"}))
        .await
        .expect(200);
    assert_eq!(given_up.body["status"], "deactivated");
    assert_eq!(client.read(&order_url).await.body["status"], "invalid");
    assert_eq!(
        client.attest(&challenge, &object).await.expect(200).body["status"],
        "pending"
    );
    let listed = client.read(&format!("{}/orders", client.account)).await.expect(200);
    assert_eq!(listed.body, json!({"orders": []}));
}

#[tokio::test]
async fn an_accounts_orders_are_listed_page_by_page() {
    let fleet = Fleet::with(&[("rate_limit.machine_per_minute", "0")]).await;
    let serial_numbers: Vec<String> = (0..51).map(|number| format!("C02LIST{number}")).collect();
    fleet
        .list(&serial_numbers.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let client = RawClient::with_account(&fleet.server).await;
    let mut made = Vec::new();
    for serial_number in &serial_numbers {
        fleet.server.clock().advance(Duration::milliseconds(1));
        made.push(client.order(serial_number).await.expect(201).location());
    }
    let first = client.read(&format!("{}/orders", client.account)).await.expect(200);
    let mut links = first.headers.get_all("link").iter().map(|link| link.to_str().unwrap());
    let next = links.find(|link| link.ends_with("rel=\"next\"")).unwrap();
    let next = next.trim_start_matches('<').split('>').next().unwrap();
    let second = client.read(next).await.expect(200);
    let listed = [&first, &second]
        .map(|page| page.body["orders"].as_array().unwrap().clone())
        .concat();
    assert_eq!(json!(listed), json!(made));
    assert!(
        second
            .headers
            .get_all("link")
            .iter()
            .all(|link| !link.to_str().unwrap().contains("next"))
    );
}

#[tokio::test]
async fn an_expired_order_is_invalid() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let (mac, client) = (Mac::new(SERIAL), RawClient::with_account(&fleet.server).await);
    let order = client.order(SERIAL).await.expect(201);
    let challenge = client.challenge(&order).await;
    fleet.server.clock().advance(Duration::hours(1));
    let client = client.at(&fleet.server);
    let object = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    let detail = client.attest(&challenge, &object).await.expect_error(400, "malformed");
    assert!(detail.contains("expired"), "{detail}");
    assert_eq!(client.read(&order.location()).await.body["status"], "invalid");
    let authorization = client.read(order.body["authorizations"][0].as_str().unwrap()).await;
    assert_eq!(authorization.body["status"], "expired");
    // One that became ready in time, but was not finalized.
    let order = client.order(SERIAL).await.expect(201);
    let challenge = client.challenge(&order).await;
    let object = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    assert_eq!(client.attest(&challenge, &object).await.body["status"], "valid");
    fleet.server.clock().advance(Duration::hours(1));
    let client = client.at(&fleet.server);
    let _ = client
        .finalize(&order, &mac.csr())
        .await
        .expect_error(403, "orderNotReady");
}

#[tokio::test]
async fn accounts_can_be_found_changed_and_deactivated() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let mut client = RawClient::stranger(&fleet.server);
    let existing = json!({"onlyReturnExisting": true});
    let _ = client.open(&existing).await.expect_error(400, "accountDoesNotExist");
    let opened = client.open(&json!({})).await.expect(201);
    client.account = opened.location();
    assert_eq!(opened.body["status"], "valid");
    for payload in [json!({}), existing] {
        let again = client.open(&payload).await.expect(200);
        assert_eq!(again.location(), client.account);
    }
    assert_eq!(client.read(&client.account).await.expect(200).body, opened.body);
    let ignored = json!({"contact": ["mailto:admin@example.com"]});
    assert_eq!(
        client.post(&client.account, &ignored).await.expect(200).body,
        opened.body
    );

    // The new key replaces the old one, which no longer belongs to an account.
    let url = url_of("/acme/key-change");
    let taken = RawClient::with_account(&fleet.server).await;
    let new_key = JwsKey::new();
    let inner = |key: &JwsKey, account: &str, old: &Value, url: &str| {
        let payload = json!({"account": account, "oldKey": old}).to_string();
        key.sign(json!({"jwk": key.jwk(), "url": url}), &payload)
    };
    let old = client.key.jwk();
    for (jws, says) in [
        (inner(&new_key, &taken.account, &old, &url), "account and oldKey"),
        (
            inner(&new_key, &client.account, &new_key.jwk(), &url),
            "account and oldKey",
        ),
    ] {
        let detail = client.post(&url, &jws).await.expect_error(400, "malformed");
        assert!(detail.contains(says), "{detail}");
    }
    let other_url = inner(&new_key, &client.account, &old, &url_of("/acme/new-order"));
    let _ = client.post(&url, &other_url).await.expect_error(401, "unauthorized");
    let in_use = client.post(&url, &inner(&taken.key, &client.account, &old, &url)).await;
    let _ = in_use.expect_error(409, "malformed");
    assert_eq!(in_use.location(), taken.account);
    let _ = client
        .post(&url, &inner(&new_key, &client.account, &old, &url))
        .await
        .expect(200);
    let _ = client.read(&client.account).await.expect_error(400, "malformed");
    client.key = new_key;
    assert_eq!(client.read(&client.account).await.expect(200).body, opened.body);

    let order = client.order(SERIAL).await.expect(201);
    let ended = client
        .post(&client.account, &json!({"status": "deactivated"}))
        .await
        .expect(200);
    assert_eq!(ended.body["status"], "deactivated");
    let _ = client.read(&order.location()).await.expect_error(401, "unauthorized");
    let _ = client.open(&json!({})).await.expect_error(401, "unauthorized");
}

#[track_caller]
fn unauthorized(answer: &AcmeAnswer, says: &str) {
    let detail = answer.expect_error(401, "unauthorized");
    assert_eq!(detail.matches(says).count(), 1, "{detail}");
}

#[tokio::test]
async fn a_token_binds_an_account_once_and_vouches_for_one_device() {
    let fleet = Fleet::new().await;
    let (once, once_key) = fleet.binding_key(json!({"max_uses": 1})).await;
    let (client, opened) = fleet.bind(&once, &once_key).await;
    let _ = opened.expect(201);
    // Neither inventory nor machines have these serial numbers. The token admits one device, which is the first.
    let _ = client.order(SERIAL).await.expect(201);
    let _ = client.order("C02SECOND").await.expect_error(403, "rejectedIdentifier");
    // Binding the same account again uses nothing. For another account, the token is used up.
    let binding = external_account_binding(&client.key, &once, &once_key);
    let _ = client
        .open(&json!({"externalAccountBinding": binding}))
        .await
        .expect(200);
    unauthorized(&fleet.bind(&once, &once_key).await.1, "used up");

    let (bound, bound_key) = fleet.binding_key(json!({"serial_numbers": ["C02BOUND"]})).await;
    let (client, _) = fleet.bind(&bound, &bound_key).await;
    let _ = client.order(SERIAL).await.expect_error(403, "rejectedIdentifier");
    let _ = client.order("C02BOUND").await.expect(201);

    // A revoked or expired token admits no device, not even for accounts that were bound before.
    let _ = fleet
        .server
        .delete(&format!("/v1/admin/enrollment-tokens/{bound}"))
        .await
        .expect(204);
    unauthorized(&fleet.bind(&bound, &bound_key).await.1, "revoked");
    let _ = client.order("C02BOUND").await.expect_error(403, "rejectedIdentifier");
    let (short, short_key) = fleet.binding_key(json!({"expires_in_seconds": 60})).await;
    fleet.server.clock().advance(Duration::seconds(60));
    unauthorized(&fleet.bind(&short, &short_key).await.1, "expired");
}

#[tokio::test]
async fn a_binding_that_was_not_made_for_this_account_with_a_tokens_key_is_refused() {
    let fleet = Fleet::new().await;
    let (bound, bound_key) = fleet.binding_key(json!({"serial_numbers": ["C02BOUND"]})).await;
    let (_, other_key) = fleet.binding_key(json!({})).await;
    unauthorized(&fleet.bind(&bound, &other_key).await.1, "MAC key");
    unauthorized(&fleet.bind("no-such-token", &other_key).await.1, "unknown");
    let stranger = RawClient::stranger(&fleet.server);
    let others = external_account_binding(&JwsKey::new(), &bound, &bound_key);
    unauthorized(
        &stranger.open(&json!({"externalAccountBinding": others})).await,
        "a key other than",
    );
    let mut tampered = external_account_binding(&stranger.key, &bound, &bound_key);
    tampered["signature"] = "AAAA".into();
    unauthorized(
        &stranger.open(&json!({"externalAccountBinding": tampered})).await,
        "MAC key",
    );
    let (manual, manual_key) = fleet.binding_key(json!({"approval": "manual"})).await;
    unauthorized(&fleet.bind(&manual, &manual_key).await.1, "approval");
}

/// Each response may be lost. The client then repeats the call at another replica.
#[tokio::test]
async fn a_lost_answer_at_any_step_is_repaired_by_repeating_the_call_at_another_replica() {
    let database = Database::create().await;
    let first = Fleet::start(Some(&database.url()), &[]).await;
    let settings = [("acme.enabled", "true"), first.apple.setting()];
    let second = InProcess::start_on(&database.url(), &settings).await;
    first.list(&[SERIAL]).await;
    let mac = Mac::new(SERIAL);
    // A nonce from one replica is valid once on the other.
    let mut client = RawClient::stranger(&first.server);
    let opened = client.open(&json!({})).await.expect(201);
    client = client.at(&second);
    assert_eq!(client.open(&json!({})).await.expect(200).location(), opened.location());
    client.account = opened.location();
    let signed = client.signed(&client.account, "").await;
    let _ = client.send(&client.account, &signed).await.expect(200);
    client = client.at(&first.server);
    let _ = client
        .send(&client.account, &signed)
        .await
        .expect_error(400, "badNonce");

    let order = client.order(SERIAL).await.expect(201);
    client = client.at(&second);
    let again = client.order(SERIAL).await.expect(201);
    assert_eq!((again.location(), &again.body), (order.location(), &order.body));
    let challenge = client.challenge(&order).await;
    let object = mac.attestation_object(&first.apple, &mac.attested(token_of(&challenge), first.now()));
    let answered = client.attest(&challenge, &object).await.expect(200);
    client = client.at(&first.server);
    assert_eq!(client.attest(&challenge, &object).await.expect(200).body, answered.body);
    let finalized = client.finalize(&order, &mac.csr()).await.expect(200);
    client = client.at(&second);
    assert_eq!(
        client.finalize(&order, &mac.csr()).await.expect(200).body,
        finalized.body
    );
    let certificate = finalized.body["certificate"].as_str().unwrap();
    let chain = client.read(certificate).await.expect(200);
    assert_eq!(
        chain.header("content-type").as_deref(),
        Some("application/pem-certificate-chain")
    );
    client = client.at(&first.server);
    assert_eq!(client.read(certificate).await.expect(200).body, chain.body);
    assert_eq!(first.certificates(SERIAL).await.len(), 1);
    drop(client);
    second.stop().await;
    first.server.stop().await;
}

/// Both calls of each pair run at the same time.
#[tokio::test]
async fn concurrent_repetitions_of_a_call_create_one_resource() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let mac = Mac::new(SERIAL);
    let mut client = RawClient::stranger(&fleet.server);
    let (payload, url) = (json!({}), url_of("/acme/new-account"));
    let sign = async |client: &RawClient| {
        let header = json!({"jwk": client.key.jwk(), "nonce": client.get("/acme/new-nonce").await.header("replay-nonce").unwrap(), "url": url});
        client.key.sign(header, &payload.to_string())
    };
    let (one, other) = (sign(&client).await, sign(&client).await);
    let (one, other) = tokio::join!(client.send(&url, &one), client.send(&url, &other));
    assert_eq!(one.location(), other.location());
    client.account = one.location();
    let (one, other) = tokio::join!(client.order(SERIAL), client.order(SERIAL));
    let (order, other) = (one.expect(201), other.expect(201));
    assert_eq!(order.location(), other.location());
    let challenge = client.challenge(&order).await;
    let object = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    let (one, other) = tokio::join!(client.attest(&challenge, &object), client.attest(&challenge, &object));
    assert_eq!(
        (&one.body["status"], &other.body["status"]),
        (&"valid".into(), &"valid".into())
    );
    let csr = mac.csr();
    let (one, other) = tokio::join!(client.finalize(&order, &csr), client.finalize(&order, &csr));
    assert_eq!(one.expect(200).body, other.expect(200).body);
    assert_eq!(fleet.certificates(SERIAL).await.len(), 1);
}

#[tokio::test]
async fn the_directory_lists_the_urls_and_anyone_may_fetch_a_nonce() {
    let fleet = Fleet::new().await;
    let client = RawClient::stranger(&fleet.server);
    let directory = client.get("/acme/directory").await.expect(200).body;
    for (name, path) in [
        ("newNonce", "new-nonce"),
        ("newAccount", "new-account"),
        ("newOrder", "new-order"),
        ("revokeCert", "revoke-cert"),
        ("keyChange", "key-change"),
    ] {
        assert_eq!(directory[name], url_of(&format!("/acme/{path}")));
    }
    assert_eq!(directory["meta"], json!({"externalAccountRequired": false}));
    let head = fleet
        .server
        .http1_client()
        .head(url_of("/acme/new-nonce"))
        .send()
        .await
        .unwrap();
    assert_eq!(head.status(), 200);
    assert_ne!(head.headers()["replay-nonce"], client.nonce().await.as_str());
}

#[tokio::test]
async fn acme_is_off_by_default() {
    let server = InProcess::start().await;
    for path in ["/acme/directory", "/acme/new-nonce"] {
        let answer = server.send(server.request(reqwest::Method::GET, path)).await;
        assert_eq!(answer.kind().slug(), "not-found");
    }
    let token = server.create_enrollment_token(json!({})).await;
    assert_eq!(token["external_account"], Value::Null);
}

/// The server deletes what strangers leave behind. It keeps an attestation as long as its certificate.
#[tokio::test]
async fn the_attestation_of_a_device_certificate_is_stored_and_can_be_verified_again() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let client = RawClient::with_account(&fleet.server).await;
    let mac = Mac::new(SERIAL);
    let (order, _chain) = client.obtain_with_order(&mac, &fleet.apple, fleet.now()).await;
    let id = order.location().rsplit('/').next().unwrap().to_owned();
    let id: uuid::Uuid = id.parse().unwrap();
    let leaf: Vec<u8> = sqlx::query_scalar("SELECT attestation[1] FROM acme_orders WHERE id = $1")
        .bind(id)
        .fetch_one(&fleet.server.database().pool().await)
        .await
        .unwrap();
    let leaf = Pem::new("CERTIFICATE", leaf);
    let files = Files::new();
    let leaf = files.write("leaf.pem", pem::encode(&leaf));
    let (good, shown) = openssl(&["x509", "-in", leaf.to_str().unwrap(), "-noout", "-pubkey"]).await;
    assert!(good, "{shown}");
    assert_eq!(shown.trim(), mac.key.public_key_pem().trim());
}

#[tokio::test]
async fn unfinished_orders_are_deleted_with_their_accounts() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL, "C02OTHER"]).await;
    let (kept, gone) = (
        RawClient::with_account(&fleet.server).await,
        RawClient::with_account(&fleet.server).await,
    );
    let _chain = kept.obtain(&Mac::new(SERIAL), &fleet.apple, fleet.now()).await;
    let _ = gone.order("C02OTHER").await.expect(201);
    let pool = fleet.server.database().pool().await;
    let count = async |table: &str| {
        let count = format!("SELECT count(*) FROM {table}");
        let count: i64 = sqlx::query_scalar(&count).fetch_one(&pool).await.unwrap();
        count
    };
    assert_eq!((count("acme_orders").await, count("acme_accounts").await), (2, 2));
    fleet.server.clock().advance(Duration::days(8));
    // The server's periodic work does it, first right after a start.
    let settings = [("acme.enabled", "true")];
    let restarted = InProcess::start_at(fleet.now(), &fleet.server.database().url(), &settings).await;
    for _ in 0..LOOKS {
        let audit = restarted.get("/v1/admin/audit?resource=acme-order:*").await.json();
        if audit["items"] != json!([]) {
            break;
        }
    }
    assert_eq!((count("acme_orders").await, count("acme_accounts").await), (1, 1));
    restarted.stop().await;
}

/// Anyone can open an account, so unused ones leave no trace.
#[tokio::test]
async fn unused_accounts_are_deleted_without_a_trace() {
    let fleet = Fleet::new().await;
    fleet.list(&[SERIAL]).await;
    let idle = RawClient::with_account(&fleet.server).await;
    let _ = idle
        .post(&idle.account, &json!({"status": "deactivated"}))
        .await
        .expect(200);
    let in_use = RawClient::with_account(&fleet.server).await;
    let _ = in_use.order(SERIAL).await.expect(201);
    fleet.server.clock().advance(Duration::hours(25));
    let (idle, in_use) = (idle.at(&fleet.server), in_use.at(&fleet.server));
    let _newer = RawClient::with_account(&fleet.server).await;
    let _ = idle.read(&idle.account).await.expect_error(400, "accountDoesNotExist");
    let _ = in_use.read(&in_use.account).await.expect(200);
    let audit = fleet.server.get("/v1/admin/audit?resource=acme-account").await.json();
    assert_eq!(audit["items"], json!([]));
}

/// The two race, and either may be first.
#[tokio::test]
async fn a_certificate_that_is_issued_while_its_machine_is_quarantined_is_revoked() {
    let fleet = Fleet::new().await;
    let machine = fleet.server.attestable(SERIAL).await;
    let (mac, client) = (Mac::new(SERIAL), RawClient::with_account(&fleet.server).await);
    let order = client.order(SERIAL).await.expect(201);
    let challenge = client.challenge(&order).await;
    let object = mac.attestation_object(&fleet.apple, &mac.attested(token_of(&challenge), fleet.now()));
    let _ = client.attest(&challenge, &object).await.expect(200);
    let csr = mac.csr();
    let (finalized, quarantined) = tokio::join!(client.finalize(&order, &csr), fleet.stand(&machine, "quarantine"));
    let _ = quarantined.expect(200);
    let certificates = fleet.certificates(SERIAL).await;
    assert_eq!(
        certificates.len(),
        usize::from(finalized.status == 200),
        "{finalized:?}"
    );
    assert!(
        certificates
            .iter()
            .all(|certificate| certificate["status"] == "revoked"),
        "{certificates:?}"
    );
}
