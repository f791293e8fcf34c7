//! Attestations through an MDM without an administrator: its webhook, the list of due machines, and the server's
//! requests.

use std::collections::BTreeSet;
use std::fs;
use std::io::Cursor;

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_protocol::attestation::FreshnessCode;
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::apple::{Apple, Attested, SERIAL_NUMBER, UDID, device_information};
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use assay_tests::receiver::{Received, Receiver};
use base64::{Engine, engine::general_purpose::STANDARD};
use reqwest::Method;
use rstest::rstest;
use serde_json::{Value, json};
use tempfile::NamedTempFile;
use time::Duration;

const WEBHOOK: &str = "/v1/mdm/nanomdm";
const DUE: &str = "/v1/admin/apple-attestations/due";
const NANOMDM_KEY: &str = "a key of NanoMDM";

/// A server that trusts the test's stand-in for Apple.
struct Ground {
    server: InProcess,
    apple: Apple,
}

impl Ground {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    /// A server that requests attestations through this MDM.
    async fn asking(mdm: &Receiver) -> Self {
        Self::with(&[("mdm.nanomdm.url", &mdm.origin()), ("mdm.nanomdm.api_key", NANOMDM_KEY)]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let (server, apple) = InProcess::with_apple(settings).await;
        Self { server, apple }
    }

    /// A new machine with a verified serial number. The server may send a command for it.
    async fn verified(&self, serial_number: &str) -> Machine {
        self.server.attestable(serial_number).await
    }

    /// Delivers the event that NanoMDM sends when a device enrolls.
    async fn tell_of_device(&self, serial_number: &str) {
        self.tell_of_claim(&udid(serial_number), serial_number).await;
    }

    /// A device enrolls, and says that it has this serial number.
    async fn tell_of_claim(&self, udid: &str, serial_number: &str) {
        let plist = format!(
            "<plist><dict><key>MessageType</key><string>Authenticate</string><key>SerialNumber</key>\
             <string>{serial_number}</string><key>UDID</key><string>{udid}</string></dict></plist>"
        );
        let event = json!({
            "topic": "mdm.Authenticate", "created_at": "2026-11-24T10:00:00Z",
            "checkin_event": {"udid": udid, "url_params": null, "raw_payload": STANDARD.encode(plist)},
        });
        let receipt = self.send(&event).await.expect(200).json();
        assert_eq!(receipt["outcome"], "ignored");
    }

    fn attested(&self, machine: &Machine) -> Attested {
        Attested::an_hour_ago(machine, self.server.clock().now())
    }

    /// Delivers a device's response with this chain, as the MDM does.
    async fn answer(&self, udid: &str, chain: &[Vec<u8>]) -> Value {
        let receipt = self.send(&report(udid, &device_information(udid, Some(chain)))).await;
        receipt.expect(200).json()
    }

    async fn send(&self, event: &Value) -> Answer {
        let request = self.server.request(Method::POST, WEBHOOK).json(event);
        self.server
            .send(request.basic_auth("any", Some(self.server.api_key(Role::Mdm))))
            .await
    }

    async fn events(&self, machine: &Machine, kind: &str) -> Vec<Value> {
        let mut events = self.server.events(machine).await;
        events.retain(|event| event["kind"] == kind);
        events
    }

    /// All audit entries, without what sealing adds later.
    async fn audit(&self) -> Vec<Value> {
        let mut entries = self.server.items("/v1/admin/audit?limit=500").await;
        for entry in &mut entries {
            entry["hash"].take();
        }
        entries
    }
}

fn udid(serial_number: &str) -> String {
    format!("UDID-{serial_number}")
}

fn report(udid: &str, plist: &str) -> Value {
    json!({
        "topic": "mdm.Connect", "event_id": "1", "created_at": "2026-11-24T10:00:00Z",
        "acknowledge_event": {
            "udid": udid, "status": "Acknowledged", "command_uuid": "0001", "url_params": {"a": "b"},
            "raw_payload": STANDARD.encode(plist),
        },
    })
}

/// The device that a command is for. Checks that the command has the nonce for this machine.
#[track_caller]
fn assert_asks(request: &Received, machine: &Machine) {
    let target = format!("PUT /v1/enqueue/{}", udid(machine.serial_number()));
    assert_eq!(request.target, target);
    let credentials = STANDARD.encode(format!("nanomdm:{NANOMDM_KEY}"));
    assert_eq!(request.header("authorization"), format!("Basic {credentials}"));
    let command = plist::Value::from_reader(Cursor::new(&request.body)).unwrap();
    let command = command.as_dictionary().unwrap();
    assert!(command["CommandUUID"].as_string().is_some_and(|id| id.len() == 36));
    let command = command["Command"].as_dictionary().unwrap();
    assert_eq!(command["RequestType"].as_string(), Some("DeviceInformation"));
    let queries = [plist::Value::from("DevicePropertiesAttestation")];
    assert_eq!(command["Queries"].as_array().unwrap(), &queries);
    let nonce = FreshnessCode::of(&machine.public_key());
    assert_eq!(
        command["DeviceAttestationNonce"].as_data(),
        Some(nonce.as_bytes().as_slice())
    );
}

/// NanoMDM's response to an accepted command.
fn take(request: Received) {
    request.answer_json(
        200,
        &json!({"status": {}, "command_uuid": "1", "request_type": "DeviceInformation"}),
    );
}

#[tokio::test]
async fn an_attestation_that_an_mdm_delivers_binds_its_machine_once() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02WEBHOOK").await;
    let chain = ground.apple.attest(&ground.attested(&machine));
    let receipt = ground.answer("A-UDID", &chain).await;
    assert_eq!(
        (&receipt["outcome"], &receipt["machine_id"]),
        (&json!("bound"), &json!(machine.id()))
    );
    let record = ground.server.record(&machine).await;
    assert_eq!(record["assurance"], "attested");
    let (audit, events) = (ground.audit().await, ground.events(&machine, "machine.attested").await);
    let entry = audit.iter().find(|entry| entry["action"] == "machine.attest").unwrap();
    assert!(entry["actor"]["name"].as_str().unwrap().starts_with("Mdm"), "{entry}");
    assert_eq!(events.len(), 1);

    ground.server.clock().advance(Duration::minutes(5));
    assert_eq!(ground.answer("A-UDID", &chain).await, receipt);
    assert_eq!(ground.server.record(&machine).await, record);
    assert_eq!(ground.audit().await, audit);
    ground.server.stop().await;
}

/// The envelope of an MDM's event can claim anything, so it binds nothing by itself.
#[tokio::test]
async fn the_attestation_and_not_the_envelope_identifies_the_machine() {
    let ground = Ground::new().await;
    let one = ground.server.attestable("C02ONE").await;
    let other = ground.server.attestable("C02OTHER").await;
    ground.tell_of_device("C02OTHER").await;
    let chain = ground.apple.attest(&ground.attested(&one));
    let receipt = ground.answer(&udid("C02OTHER"), &chain).await;
    assert_eq!(receipt["machine_id"], json!(one.id()));
    assert_eq!(ground.server.record(&one).await["assurance"], "attested");
    assert_eq!(ground.server.record(&other).await["assurance"], "verified");
    ground.server.stop().await;
}

/// Root on a managed Mac has it answer with the serial number of another one.
#[tokio::test]
async fn a_claimed_serial_number_never_replaces_an_attested_one() {
    let mut mdm = Receiver::start().await;
    let ground = Ground::asking(&mdm).await;
    let victim = ground.verified("C02VICTIM").await;
    let attested = ground.attested(&victim).and(UDID, udid("C02VICTIM").as_bytes());
    let chain = ground.apple.attest(&attested);
    assert_eq!(ground.answer(&udid("C02VICTIM"), &chain).await["outcome"], "bound");
    ground.tell_of_claim("UDID-MALLORY", "C02VICTIM").await;
    ground.tell_of_claim(&udid("C02VICTIM"), "C02OTHER").await;
    // Once another attestation is due, the Mac itself is asked.
    ground.server.clock().advance(Duration::days(61));
    let request = mdm.next_request().await;
    assert_asks(&request, &victim);
    take(request);
    ground.server.stop().await;
}

#[rstest]
#[case::attested("mdm", true)]
#[case::claimed("mdm", false)]
#[case::switched_off("off", true)]
#[tokio::test]
async fn an_mdm_opens_a_record_only_where_apple_attested_the_device(#[case] opening: &str, #[case] is_attested: bool) {
    let ground = Ground::with(&[("enrollment.opening", opening)]).await;
    let machine = ground.verified("C02WIPED").await;
    ground.tell_of_device("C02WIPED").await;
    if is_attested {
        let attested = ground.attested(&machine).and(UDID, udid("C02WIPED").as_bytes());
        let chain = ground.apple.attest(&attested);
        assert_eq!(ground.answer(&udid("C02WIPED"), &chain).await["outcome"], "bound");
    }
    // The Mac is wiped, and enrolls with its MDM again.
    ground.tell_of_device("C02WIPED").await;
    let erased = machine.erased();
    let answer = erased.enroll(&ground.server, None).await;
    if is_attested && opening == "mdm" {
        assert_eq!(answer.expect(201).json()["assurance"], "asserted");
        // Repeating the message does not open it again.
        ground.tell_of_device("C02WIPED").await;
        let _waits = machine.erased().enroll(&ground.server, None).await.expect(202);
    } else {
        let _refused = answer.expect_problem(ProblemKind::EnrollmentTokenInvalid);
    }
    ground.server.stop().await;
}

/// The MDM gets a 200, because sending the event again would not help. One event tells administrators the reason.
#[tokio::test]
async fn a_refused_attestation_is_reported_once_and_leaves_the_record() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02KEEPS").await;
    ground.tell_of_device("C02KEEPS").await;
    let good = ground.apple.attest(&ground.attested(&machine));
    assert_eq!(ground.answer(&udid("C02KEEPS"), &good).await["outcome"], "bound");
    let record = ground.server.record(&machine).await;

    let other_key = Machine::new();
    let now = ground.server.clock().now();
    let stale = Attested::of("C02KEEPS", &other_key.public_key(), now);
    let chains = [
        (ground.apple.attest(&stale), "stale", "ask again later"),
        (
            Apple::new().attest(&ground.attested(&machine)),
            "path",
            "trusted attestation root",
        ),
        (
            ground.apple.attest(&ground.attested(&machine).without(SERIAL_NUMBER)),
            "no-serial-number",
            "no readable serial number",
        ),
        (
            ground
                .apple
                .attest(&ground.attested(&machine).with(SERIAL_NUMBER, b"C02NOBODY")),
            "serial-number-mismatch",
            "no machine is enrolled with that serial number",
        ),
    ];
    for (chain, reason, words) in chains {
        ground.server.clock().advance(Duration::seconds(1));
        let receipt = ground.answer(&udid("C02KEEPS"), &chain).await;
        assert_eq!(
            (&receipt["outcome"], &receipt["reason"]),
            (&json!("refused"), &json!(reason))
        );
        let audit = ground.audit().await;
        let mut refusals = audit
            .iter()
            .filter(|entry| entry["action"] == "mdm-device.refuse-attestation");
        let entry = refusals.next().unwrap();
        assert!(entry["reason"].as_str().unwrap().contains(words), "{entry}");
        // A device that sends another device's attestation no longer belongs to this machine.
        let events = ground.events(&machine, "machine.attestation-refused").await;
        if reason != "serial-number-mismatch" {
            assert!(
                events[0]["detail"]["detail"].as_str().unwrap().contains(words),
                "{events:?}"
            );
        }
        assert_eq!(ground.answer(&udid("C02KEEPS"), &chain).await, receipt);
        assert_eq!(ground.audit().await, audit);
        assert_eq!(ground.events(&machine, "machine.attestation-refused").await, events);
    }
    assert_eq!(ground.server.record(&machine).await, record);
    ground.server.stop().await;
}

#[rstest]
#[case::idle(report("A", "<plist><dict><key>Status</key><string>Idle</string></dict></plist>"))]
#[case::another_command(report("A", "<plist><dict><key>ProfileList</key><array><dict/></array></dict></plist>"))]
#[case::information_without_it(report("A", &device_information("A", None)))]
#[case::check_in(json!({"topic": "mdm.TokenUpdate", "checkin_event": {"udid": "A", "raw_payload": "bm90IGEgcGxpc3Q="}}))]
#[case::no_message(json!({"topic": "mdm.CheckOut"}))]
#[case::of_the_future(json!({"topic": "mdm.Sings", "a_field": {"of": "the future"}}))]
#[tokio::test]
async fn other_mdm_events_are_accepted_and_ignored(#[case] event: Value) {
    let ground = Ground::new().await;
    let receipt = ground.send(&event).await.expect(200).json();
    assert_eq!(receipt["outcome"], "ignored");
    ground.server.stop().await;
}

#[tokio::test]
async fn an_unreadable_mdm_event_is_refused_with_the_reason() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02GOOD").await;
    let chain = ground.apple.attest(&ground.attested(&machine));
    let good = device_information("A", Some(&chain));
    let with = |name: &str, value: Value| {
        let mut event = report("A", &good);
        event["acknowledge_event"][name] = value;
        event
    };
    let cut = STANDARD.encode(&good[..good.len() / 2]);
    let cases = [
        (json!({}), "topic"),
        (json!({"topic": 1}), "topic: invalid type"),
        (json!({"topic": "mdm.Connect"}), "acknowledge_event is missing"),
        (with("raw_payload", Value::Null), "raw_payload is missing"),
        (with("raw_payload", json!("***")), "raw_payload is not base64"),
        (
            with("raw_payload", json!(cut)),
            "raw_payload cannot be read: it is not a property list in XML, or it is truncated",
        ),
        (
            with("raw_payload", json!(STANDARD.encode("bplist00"))),
            "not a property list in XML",
        ),
        (
            with("udid", json!("\u{1b}[2J")),
            "udid or enrollment_id: a text holds a control character",
        ),
        (
            json!({"topic": "mdm.Connect", "acknowledge_event": {"raw_payload": STANDARD.encode("<plist><dict/></plist>")}}),
            "neither udid nor enrollment_id",
        ),
    ];
    for (event, words) in cases {
        let refused = ground.send(&event).await.expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains(words), "{words}: {refused}");
    }
    ground.server.stop().await;
}

/// NanoMDM can configure a URL but no header, so the key is the URL's password. No other endpoint accepts it there.
#[tokio::test]
async fn an_mdm_key_works_as_a_password_and_only_for_the_webhook() {
    let ground = Ground::new().await;
    let server = &ground.server;
    let event = json!({"topic": "mdm.CheckOut"});
    let post = || server.request(Method::POST, WEBHOOK).json(&event);
    let key = server.api_key(Role::Mdm);
    for request in [post().bearer_auth(key), post().basic_auth("", Some(key))] {
        let _taken = server.send(request).await.expect(200);
    }
    for request in [
        post().basic_auth(key, Some("")),
        post().basic_auth("any", Some("wrong")),
    ] {
        let _refused = server.send(request).await.expect_problem(ProblemKind::Unauthenticated);
    }
    let admin = server.request(Method::GET, "/v1/admin/machines");
    let _forbidden = server
        .send(admin.bearer_auth(key))
        .await
        .expect_problem(ProblemKind::Forbidden);
    let admin = server.request(Method::GET, "/v1/admin/machines");
    let admin = server
        .send(admin.basic_auth("any", Some(server.api_key(Role::Admin))))
        .await;
    let _refused = admin.expect_problem(ProblemKind::Unauthenticated);
    ground.server.stop().await;
}

#[tokio::test]
async fn machines_due_for_attestation_are_listed_with_their_commands() {
    let ground = Ground::new().await;
    let attested = ground.server.attestable("C02DONE").await;
    let chain = ground.apple.attest(&ground.attested(&attested));
    assert_eq!(ground.answer(&udid("C02DONE"), &chain).await["outcome"], "bound");
    let missing = [
        ground.server.attestable("C02NONE1").await,
        ground.server.attestable("C02NONE2").await,
    ];
    ground.tell_of_device("C02NONE2").await;
    let revoked = ground.server.attestable("C02OUT").await;
    let _revoked = ground
        .server
        .post(&format!("{}/revoke", revoked.path()), &json!({"reason": "lost"}))
        .await
        .expect(200);

    let listed = |items: &[Value]| -> Vec<String> {
        items
            .iter()
            .map(|item| item["machine_id"].as_str().unwrap().to_owned())
            .collect()
    };
    let due = ground.server.items(DUE).await;
    let ids: Vec<String> = missing.iter().map(|machine| machine.id().to_string()).collect();
    assert_eq!(listed(&due), ids);
    let nonce = FreshnessCode::of(&missing[0].public_key());
    assert_eq!(due[0]["nonce"], STANDARD.encode(nonce.as_bytes()));
    assert!(
        due[0]["device_information"]
            .as_str()
            .unwrap()
            .contains(due[0]["nonce"].as_str().unwrap())
    );
    assert_eq!(
        (&due[0]["attested_at"], &due[0]["mdm_device"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(due[1]["mdm_device"]["enrollment_id"], udid("C02NONE2"));

    // Two thirds of 90 days.
    ground.server.clock().advance(Duration::days(60));
    assert_eq!(
        listed(&ground.server.items(DUE).await),
        [ids.as_slice(), &[attested.id().to_string()]].concat()
    );
    let mut cursor = String::new();
    let mut walked = Vec::new();
    loop {
        let page = ground
            .server
            .get(&format!("{DUE}?limit=1{cursor}"))
            .await
            .expect(200)
            .json();
        walked.extend(listed(page["items"].as_array().unwrap()));
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(walked, [ids.as_slice(), &[attested.id().to_string()]].concat());
    ground.server.stop().await;
}

#[tokio::test]
async fn a_due_machine_gets_one_command_in_7_days() {
    let mut mdm = Receiver::start().await;
    let ground = Ground::asking(&mdm).await;
    let machine = ground.verified("C02ASKED").await;
    ground.tell_of_device("C02ASKED").await;
    let request = mdm.next_request().await;
    assert_asks(&request, &machine);
    take(request);

    // The server asks a new device, which would come after a device that it asked again too soon.
    ground.server.clock().advance(Duration::days(7) - Duration::minutes(1));
    for serial_number in ["C02LATER1", "C02LATER2"] {
        ground.tell_of_device(serial_number).await;
        let later = ground.verified(serial_number).await;
        let request = mdm.next_request().await;
        assert_asks(&request, &later);
        take(request);
    }
    ground.server.clock().advance(Duration::minutes(2));
    let request = mdm.next_request().await;
    assert_asks(&request, &machine);
    take(request);
    let asked = ground
        .audit()
        .await
        .into_iter()
        .filter(|entry| entry["action"] == "machine.ask-for-attestation");
    assert_eq!(asked.count(), 4);

    // The server asks an attested machine only when its attestation is due for renewal.
    let chain = ground.apple.attest(&ground.attested(&machine));
    assert_eq!(ground.answer(&udid("C02ASKED"), &chain).await["outcome"], "bound");
    ground.server.clock().advance(Duration::days(8));
    let mut again = BTreeSet::new();
    for _ in 0..2 {
        let request = mdm.next_request().await;
        again.insert(request.target.clone());
        take(request);
    }
    let expected = ["C02LATER1", "C02LATER2"].map(|serial_number| format!("PUT /v1/enqueue/{}", udid(serial_number)));
    assert_eq!(again, BTreeSet::from(expected));
    ground.server.clock().advance(Duration::days(53));
    let mut renewed = false;
    for _ in 0..3 {
        let request = mdm.next_request().await;
        renewed |= request.target.ends_with(&udid("C02ASKED"));
        take(request);
    }
    assert!(renewed);
    ground.server.stop().await;
}

/// With a shared token, any machine can claim another one's serial number. The server sends no command for such a
/// claim.
#[tokio::test]
async fn a_machine_with_asserted_assurance_gets_no_command() {
    let mut mdm = Receiver::start().await;
    let ground = Ground::asking(&mdm).await;
    ground.tell_of_device("C02CLAIMED").await;
    let claimed = ground.server.enrolled("C02CLAIMED").await;
    ground.tell_of_device("C02NAMED").await;
    let named = ground.verified("C02NAMED").await;
    let request = mdm.next_request().await;
    assert_asks(&request, &named);
    take(request);
    let due: Vec<Value> = ground
        .server
        .items(DUE)
        .await
        .iter()
        .map(|due| due["machine_id"].clone())
        .collect();
    assert_eq!(due, [json!(named.id())]);

    // The inventory says who owns the serial number, and not that this key is that Mac's.
    let inventory = json!({"items": [{"serial_number": "C02CLAIMED"}]});
    let request = ground.server.admin(Method::PUT, "/v1/admin/inventory").json(&inventory);
    let _imported = ground.server.send(request).await.expect(200);
    let _deleted = ground.server.delete(&claimed.path()).await.expect(204);
    let again = ground.server.enrolled("C02CLAIMED").await;
    assert_eq!(ground.server.record(&again).await["assurance"], "verified");
    ground.tell_of_device("C02LATER").await;
    let later = ground.verified("C02LATER").await;
    let request = mdm.next_request().await;
    assert_asks(&request, &later);
    take(request);
    let asked = ground.audit().await;
    assert!(
        !asked.iter().any(|entry| {
            entry["action"] == "machine.ask-for-attestation" && entry["resource"]["id"] == json!(again.id())
        }),
        "{asked:?}"
    );
    ground.server.stop().await;
}

/// In a fleet that was enrolled in its MDM before, each event has the device's UDID, but none has the serial number.
#[tokio::test]
async fn a_device_is_also_matched_by_its_hardware_uuid() {
    let mut mdm = Receiver::start().await;
    let ground = Ground::asking(&mdm).await;
    let machine = ground.verified("C02LONGAGO").await;
    let hardware_uuid = machine.identity.hardware_uuid.clone().unwrap().to_lowercase();
    let _taken = ground
        .send(&report(&hardware_uuid, "<plist><dict/></plist>"))
        .await
        .expect(200);
    let request = mdm.next_request().await;
    assert_eq!(request.target, format!("PUT /v1/enqueue/{hardware_uuid}"));
    take(request);
    ground.server.stop().await;
}

#[tokio::test]
async fn a_command_is_sent_again_only_if_the_mdm_rejected_it() {
    let mut mdm = Receiver::start().await;
    let ground = Ground::asking(&mdm).await;
    ground.tell_of_device("C02RETRIED").await;
    let machine = ground.verified("C02RETRIED").await;
    let mut pause = Duration::minutes(1);
    for status in [503, 401] {
        let request = mdm.next_request().await;
        assert_asks(&request, &machine);
        request.answer(status, None);
        recorded(&ground, &machine, &status.to_string()).await;
        ground.server.clock().advance(pause);
        pause *= 2;
    }
    // The MDM's result for one device.
    let request = mdm.next_request().await;
    request.answer_json(
        500,
        &json!({"status": {udid("C02RETRIED"): {"command_error": "no such id"}}, "command_uuid": "1"}),
    );
    recorded(&ground, &machine, "no such id").await;
    ground.server.clock().advance(Duration::minutes(1));
    // The connection ends without a response: the command may have been accepted.
    drop(mdm.next_request().await);
    let unclear = |due: &Value| !due["mdm_device"]["asked_at"].is_null() && !due["mdm_device"]["last_error"].is_null();
    due_until(&ground, &machine, unclear).await;
    ground.server.clock().advance(Duration::hours(2));
    for serial_number in ["C02NEXT1", "C02NEXT2"] {
        ground.tell_of_device(serial_number).await;
        let next = ground.verified(serial_number).await;
        let request = mdm.next_request().await;
        assert_asks(&request, &next);
        take(request);
    }
    ground.server.clock().advance(Duration::days(7));
    let request = mdm.next_request().await;
    assert_asks(&request, &machine);
    take(request);
    ground.server.stop().await;
}

/// Waits until the list of due machines has this entry for a machine.
async fn due_until(ground: &Ground, machine: &Machine, holds: impl Fn(&Value) -> bool) {
    for _ in 0..10_000 {
        let due = ground.server.items(DUE).await;
        if due
            .iter()
            .any(|due| due["machine_id"] == json!(machine.id()) && holds(due))
        {
            return;
        }
    }
    panic!("the list never says it");
}

async fn recorded(ground: &Ground, machine: &Machine, error: &str) {
    let says = |due: &Value| {
        let device = &due["mdm_device"];
        device["asked_at"].is_null() && device["last_error"].as_str().is_some_and(|last| last.contains(error))
    };
    due_until(ground, machine, says).await;
}

#[tokio::test]
async fn two_replicas_send_each_machine_one_command() {
    let mut mdm = Receiver::start().await;
    let ground = Ground::asking(&mdm).await;
    let key = NamedTempFile::new().unwrap();
    fs::write(key.path(), format!("{NANOMDM_KEY}\n")).unwrap();
    let url = mdm.origin();
    let settings = [
        ("mdm.nanomdm.url", url.as_str()),
        ("mdm.nanomdm.api_key_file", key.path().to_str().unwrap()),
        ground.apple.setting(),
    ];
    let replica = InProcess::start_on(&ground.server.database().url(), &settings).await;
    let serial_numbers: Vec<String> = (0..12).map(|number| format!("C02REPLICA{number}")).collect();
    for serial_number in &serial_numbers {
        ground.tell_of_device(serial_number).await;
        ground.verified(serial_number).await;
    }
    let mut asked = Vec::new();
    for _ in &serial_numbers {
        let request = mdm.next_request().await;
        let credentials = STANDARD.encode(format!("nanomdm:{NANOMDM_KEY}"));
        assert_eq!(request.header("authorization"), format!("Basic {credentials}"));
        asked.push(request.target.clone());
        take(request);
    }
    asked.sort();
    let mut expected: Vec<String> = serial_numbers
        .iter()
        .map(|number| format!("PUT /v1/enqueue/{}", udid(number)))
        .collect();
    expected.sort();
    assert_eq!(asked, expected);
    replica.stop().await;
    ground.server.stop().await;
    assert!(!mdm.has_more());
}

/// An old Mac or macOS cannot attest. Without a report, the server would ask forever, and the administrator would not
/// know why.
#[tokio::test]
async fn an_answer_without_the_requested_attestation_is_reported() {
    let mut mdm = Receiver::start().await;
    let ground = Ground::asking(&mdm).await;
    ground.tell_of_device("C02INTEL").await;
    let machine = ground.verified("C02INTEL").await;
    let request = mdm.next_request().await;
    let command = plist::Value::from_reader(Cursor::new(&request.body)).unwrap();
    let command = command.as_dictionary().unwrap()["CommandUUID"]
        .as_string()
        .unwrap()
        .to_owned();
    take(request);
    let mut event = report(&udid("C02INTEL"), &device_information(&udid("C02INTEL"), None));
    event["acknowledge_event"]["command_uuid"] = json!(command);
    for _ in 0..2 {
        let receipt = ground.send(&event).await.expect(200).json();
        assert_eq!(receipt["outcome"], "refused");
        let told = ground.events(&machine, "machine.attestation-refused").await;
        assert_eq!(told.len(), 1);
        assert!(told[0]["detail"]["detail"].as_str().unwrap().contains("macOS 14"));
    }
    ground.server.stop().await;
}
