//! Machines that Apple attests: how an attestation is bound, why it is refused, and when it ends.

use std::collections::BTreeMap;

use assay_authority::attestation::apple::{AttestationRoots, UnverifiedAttestation};
use assay_protocol::ProblemKind;
use assay_protocol::attestation::FreshnessCode;
use assay_protocol::machine::SecureBoot;
use assay_protocol::text::rfc3339;
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::apple::{Apple, Attested, FRESHNESS_CODE, OS_VERSION, SECURE_BOOT, SERIAL_NUMBER, SIP, body_of};
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use rstest::rstest;
use serde_json::{Value, json};
use time::macros::format_description;
use time::{Duration, OffsetDateTime, PrimitiveDateTime};

/// How often the test asks for the effect of a server's first periodic work.
const LOOKS: u32 = 10_000;

/// A server that trusts the test's stand-in for Apple.
struct Ground {
    server: InProcess,
    apple: Apple,
}

impl Ground {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(settings: &[(&str, &str)]) -> Self {
        let (server, apple) = InProcess::with_apple(settings).await;
        Self { server, apple }
    }

    /// One more server on the same database, with other settings.
    async fn replica(&self, settings: &[(&str, &str)]) -> InProcess {
        InProcess::start_on(&self.server.database().url(), settings).await
    }

    fn now(&self) -> OffsetDateTime {
        self.server.clock().now()
    }

    /// Apple's attestation of a healthy machine, from an hour ago.
    fn attested(&self, machine: &Machine) -> Attested {
        Attested::an_hour_ago(machine, self.now())
    }

    async fn post(&self, machine: &Machine, body: &Value) -> Answer {
        self.server.post(&attestation_path(machine), body).await
    }

    async fn bind(&self, machine: &Machine, attested: &Attested) -> Value {
        self.post(machine, &self.apple.body(attested)).await.expect(200).json()
    }

    /// A new attested machine.
    async fn attested_machine(&self, serial_number: &str) -> Machine {
        let machine = self.server.attestable(serial_number).await;
        let bound = self.bind(&machine, &self.attested(&machine)).await;
        assert_eq!(bound["assurance"], "attested");
        machine
    }

    /// The audit entries by action, because entries of one moment have no order. Leaves out what sealing adds later.
    async fn audit(&self, machine: &Machine) -> BTreeMap<String, Vec<Value>> {
        let path = format!("/v1/admin/audit?resource=machine:{}", machine.id());
        let mut entries: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for mut entry in self.server.items(&path).await {
            entry["hash"].take();
            let action = entry["action"].as_str().unwrap().to_owned();
            entries.entry(action).or_default().push(entry);
        }
        entries
    }

    /// Grants a permission to all machines under these conditions.
    async fn grant(&self, name: &str, conditions: Value) {
        let permission = json!({"audience": "build", "name": name});
        let permission = self
            .server
            .post("/v1/admin/permissions", &permission)
            .await
            .expect(201)
            .json();
        let grant = json!({"permission_id": permission["id"], "selector": {"all": true}, "conditions": conditions});
        let _granted = self.server.post("/v1/admin/grants", &grant).await.expect(201);
    }

    /// The result of a check-in: the assurance, the permissions, and the reasons for the denied ones.
    async fn check_in(&self, machine: &Machine) -> (Value, Vec<String>, Vec<String>) {
        let answer = machine.check_in(&self.server).await.expect(200).json();
        let strings = |value: &Value| -> Vec<String> {
            let items = value.as_array().unwrap().iter();
            items.map(|item| item.as_str().unwrap().to_owned()).collect()
        };
        let granted = answer["grants"].as_array().unwrap().iter();
        let granted = granted.flat_map(|grant| strings(&grant["permissions"])).collect();
        let denied = answer["denied"].as_array().unwrap().iter();
        let denied = denied.flat_map(|denial| strings(&denial["reasons"])).collect();
        (answer, granted, denied)
    }
}

fn attestation_path(machine: &Machine) -> String {
    format!("{}/apple-attestation", machine.path())
}

/// Removes the command, which has a new id in each response.
fn without_command(mut state: Value) -> Value {
    state["device_information"].take();
    state
}

#[tokio::test]
async fn the_nonce_for_the_mdm_is_the_digest_of_the_current_key() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02ASKS").await;
    let asked = ground.server.get(&attestation_path(&machine)).await.expect(200).json();
    let nonce = FreshnessCode::of(&machine.public_key());
    assert_eq!(asked["nonce"], STANDARD.encode(nonce.as_bytes()));
    assert_eq!(asked["nonce_hex"], nonce.to_string());
    assert_eq!(
        (&asked["attestation"], &asked["assurance"]),
        (&Value::Null, &json!("verified"))
    );
    let command = asked["device_information"].as_str().unwrap();
    let data = format!("<data>{}</data>", STANDARD.encode(nonce.as_bytes()));
    for part in [
        &data,
        "<string>DeviceInformation</string>",
        "<string>DevicePropertiesAttestation</string>",
    ] {
        assert!(command.contains(part), "{part} in {command}");
    }
    ground.server.stop().await;
}

#[tokio::test]
async fn an_attestation_for_the_nonce_binds_the_key_to_the_serial_number() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02BINDS").await;
    ground.grant("attested", json!({"min_assurance": "attested"})).await;
    let (_, granted, denied) = ground.check_in(&machine).await;
    assert!(granted.is_empty(), "{granted:?}");
    assert_eq!(denied, ["min_assurance: required attested, on record verified"]);

    let attested = ground.attested(&machine).with(OS_VERSION, b"26.2");
    let bound = ground.bind(&machine, &attested).await;
    assert_eq!(bound["assurance"], "attested");
    let record = ground.server.record(&machine).await;
    assert_eq!(record["assurance"], "attested");
    let attested_at = (ground.now() - Duration::hours(1)).replace_nanosecond(0).unwrap();
    assert_eq!(record["attested_at"], rfc3339(attested_at));
    assert_eq!(bound["attestation"]["attested_at"], record["attested_at"]);
    assert_eq!(
        bound["attestation"]["lapses_at"],
        rfc3339(attested_at + Duration::days(90))
    );
    assert_eq!(record["posture"]["attested"], bound["attestation"]["claims"]);
    assert_eq!(record["posture"]["attested"]["os_version"], "26.2");
    assert_eq!(
        record["posture"]["claimed"]["os_version"], "26.1",
        "claimed and attested stay apart"
    );
    assert_eq!(record["posture"]["attested"]["third_party_kexts_allowed"], Value::Null);
    let reason = record["assurance_reason"].as_str().unwrap();
    assert!(
        reason.starts_with("attested: Apple attested this serial number to this key at "),
        "{reason}"
    );

    let (answer, granted, _) = ground.check_in(&machine).await;
    assert_eq!(
        (&answer["assurance"], granted.as_slice()),
        (&json!("attested"), ["attested".to_owned()].as_slice())
    );
    let audit = ground.audit(&machine).await;
    assert_eq!(audit["machine.attest"].len(), 1);
    let entry = &audit["machine.attest"][0];
    assert_eq!(
        (&entry["before"]["assurance"], &entry["after"]["assurance"]),
        (&json!("verified"), &json!("attested"))
    );
    let events = ground.server.events(&machine).await;
    let event = events.iter().find(|event| event["kind"] == "machine.attested").unwrap();
    assert_eq!(event["detail"]["attestation_id"], bound["attestation"]["id"]);
    ground.server.stop().await;
}

/// A response may be lost, and MDMs repeat their webhooks.
#[tokio::test]
async fn posting_the_same_chain_again_returns_the_same_and_changes_nothing() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02AGAIN").await;
    let chain = ground.apple.attest(&ground.attested(&machine));
    let bound = ground.post(&machine, &body_of(&chain)).await.expect(200).json();
    let (record, audit, events) = (
        ground.server.record(&machine).await,
        ground.audit(&machine).await,
        ground.server.events(&machine).await,
    );
    // With line breaks as in a property list, and without padding as in JWS.
    let wrapped = STANDARD
        .encode(&chain[0])
        .as_bytes()
        .chunks(52)
        .map(|line| format!("\t{}\n", std::str::from_utf8(line).unwrap()))
        .collect::<String>();
    let bodies = [
        body_of(&chain),
        json!({"x5c": [wrapped, STANDARD_NO_PAD.encode(&chain[1])]}),
        json!({"x5c": [STANDARD.encode(&chain[0]), STANDARD.encode(&chain[1]), STANDARD.encode(pem::parse(ground.apple.roots_pem()).unwrap().contents())]}),
    ];
    for body in bodies {
        ground.server.clock().advance(Duration::minutes(1));
        let again = ground.post(&machine, &body).await.expect(200).json();
        assert_eq!(without_command(again), without_command(bound.clone()));
    }
    assert_eq!(ground.server.record(&machine).await, record);
    assert_eq!(
        (ground.audit(&machine).await, ground.server.events(&machine).await),
        (audit, events)
    );
    ground.server.stop().await;
}

/// Builds a faulty chain from valid parts.
type Lacking = fn(&Ground, Attested) -> Vec<Vec<u8>>;

/// A faulty chain, with the problem's `reason`, and a part of its `detail`.
const LACKING: [(&str, &str, Lacking); 16] = [
    ("path", "trusted attestation root", |_, good| Apple::new().attest(&good)),
    ("path", "trusted attestation root", |ground, good| {
        ground.apple.attest(&good)[..1].to_vec()
    }),
    ("path", "expired at", |ground, good| {
        ground.apple.attest(&good.at(ground.now() - Duration::days(92)))
    }),
    ("path", "not valid before", |ground, good| {
        ground.apple.attest(&good.at(ground.now() + Duration::hours(1)))
    }),
    ("path", "twice", |ground, good| {
        ground.apple.attest(&good.and(SERIAL_NUMBER, b"C02OTHER"))
    }),
    ("path", "no certificate", |_, _| Vec::new()),
    ("path", "certificate 1 is not", |_, _| vec![b"nothing".to_vec()]),
    ("path", "more than 4", |ground, good| {
        let chain = ground.apple.attest(&good);
        [vec![chain[0].clone()], vec![chain[1].clone(); 100]].concat()
    }),
    ("stale", "longer ago than", |ground, good| {
        ground.apple.attest(&good.at(ground.now() - Duration::days(61)))
    }),
    ("stale", "ask again later", |ground, good| {
        ground.apple.attest(&good.with(FRESHNESS_CODE, &[7; 32]))
    }),
    ("stale", "no freshness code", |ground, good| {
        ground.apple.attest(&good.without(FRESHNESS_CODE))
    }),
    ("stale", "no freshness code", |ground, good| {
        ground.apple.attest(&good.with(FRESHNESS_CODE, &[7; 16]))
    }),
    ("serial-number-mismatch", "C02OTHER", |ground, good| {
        ground.apple.attest(&good.with(SERIAL_NUMBER, b"C02OTHER"))
    }),
    ("serial-number-mismatch", "c02lacks", |ground, good| {
        ground.apple.attest(&good.with(SERIAL_NUMBER, b"c02lacks"))
    }),
    ("no-serial-number", "names no readable serial number", |ground, good| {
        ground.apple.attest(&good.without(SERIAL_NUMBER))
    }),
    ("no-serial-number", "names no readable serial number", |ground, good| {
        ground.apple.attest(&good.with(SERIAL_NUMBER, b""))
    }),
];

/// Path, time, key and serial number must all match. A refusal names the one that does not, and changes neither a
/// machine without an attestation nor an attested one.
#[tokio::test]
async fn a_refused_attestation_names_the_fault_and_keeps_the_record() {
    let ground = Ground::with(&[("apple.attestation_max_age", "60d")]).await;
    let machine = ground.server.attestable("C02LACKS").await;
    for assurance in ["verified", "attested"] {
        let (record, audit) = (ground.server.record(&machine).await, ground.audit(&machine).await);
        assert_eq!(record["assurance"], assurance);
        for (reason, detail, make) in LACKING {
            let body = body_of(&make(&ground, ground.attested(&machine)));
            let refused = ground.post(&machine, &body).await;
            let refused = refused.expect_problem(ProblemKind::AttestationRefused);
            assert_eq!(refused.json()["reason"], reason, "{refused}");
            assert!(refused.detail().contains(detail), "{refused}");
        }
        assert_eq!(ground.server.record(&machine).await, record);
        assert_eq!(ground.audit(&machine).await, audit);
        if assurance == "verified" {
            let _bound = ground.bind(&machine, &ground.attested(&machine)).await;
        }
    }
    ground.server.stop().await;
}

#[tokio::test]
async fn a_newer_attestation_replaces_the_one_on_record_and_an_older_one_does_not() {
    let ground = Ground::new().await;
    let machine = ground.attested_machine("C02NEWER").await;
    let first = ground.server.record(&machine).await;
    let older = ground
        .attested(&machine)
        .at(ground.now() - Duration::hours(2))
        .with(SIP, &[2, 1, 0]);
    let refused = ground
        .post(&machine, &ground.apple.body(&older))
        .await
        .expect_problem(ProblemKind::AttestationRefused);
    assert_eq!(refused.json()["reason"], "stale", "{refused}");
    assert!(refused.detail().contains("only a newer one replaces it"), "{refused}");
    assert_eq!(ground.server.record(&machine).await, first);
    ground.server.clock().advance(Duration::days(7));
    let newer = ground.attested(&machine).with(SIP, &[2, 1, 1]);
    let bound = ground.bind(&machine, &newer).await;
    let record = ground.server.record(&machine).await;
    assert_eq!(record["posture"]["attested"]["sip_enabled"], false);
    assert_ne!(record["attested_at"], first["attested_at"]);
    assert_eq!(bound["attestation"]["attested_at"], record["attested_at"]);
    ground.server.stop().await;
}

#[tokio::test]
async fn a_machine_without_a_serial_number_cannot_be_attested() {
    let ground = Ground::new().await;
    let mut machine = Machine::with_serial_number("C02NONE").in_enclave();
    let attested = Attested::of("C02NONE", &machine.public_key(), ground.now() - Duration::hours(1));
    machine.identity.serial_number = None;
    let token = ground.server.enrollment_token(json!({})).await;
    let _enrolled = machine.enroll(&ground.server, Some(&token)).await.expect(201);
    let approve = json!({"key_thumbprint": machine.thumbprint()});
    let path = format!("{}/approve", machine.path());
    let _approved = ground.server.post(&path, &approve).await.expect(200);
    let refused = ground.post(&machine, &ground.apple.body(&attested)).await;
    let refused = refused.expect_problem(ProblemKind::AttestationRefused);
    assert_eq!(refused.json()["reason"], "no-serial-number", "{refused}");
    ground.server.stop().await;
}

#[tokio::test]
async fn an_attestation_does_not_change_the_status_of_a_machine() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02STANDS").await;
    let body = ground.apple.body(&ground.attested(&machine));
    for (decision, status) in [("quarantine", 200), ("revoke", 409)] {
        let decide = format!("{}/{decision}", machine.path());
        let _decided = ground
            .server
            .post(&decide, &json!({"reason": "a reason"}))
            .await
            .expect(200);
        let _answer = ground.post(&machine, &body).await.expect(status);
        let stands = if decision == "revoke" { "revoked" } else { "quarantined" };
        assert_eq!(ground.server.record(&machine).await["status"], stands);
    }
    let pending = Machine::with_serial_number("C02WAITS");
    let token = ground.server.enrollment_token(json!({"approval": "manual"})).await;
    let _pending = pending.enroll(&ground.server, Some(&token)).await.expect(202);
    let body = ground.apple.body(&ground.attested(&pending));
    let _refused = ground.post(&pending, &body).await.expect_problem(ProblemKind::Conflict);
    let unknown = "/v1/admin/machines/0193b5a0-0000-7000-8000-000000000000/apple-attestation";
    for body in [&body, &json!({"x5c": []})] {
        let unknown = ground.server.post(unknown, body).await;
        let _unknown = unknown.expect_problem(ProblemKind::NotFound);
    }
    let bad = ground
        .post(&machine, &json!({"x5c": ["AAAA", "no base64!"]}))
        .await
        .expect_problem(ProblemKind::Malformed);
    assert!(bad.detail().contains("x5c[1]"), "{bad}");
    ground.server.stop().await;
}

#[tokio::test]
async fn an_auditor_verifies_a_stored_attestation_offline() {
    let ground = Ground::new().await;
    let machine = ground.attested_machine("C02AUDIT").await;
    ground.server.clock().advance(Duration::days(200));
    let kept = ground.server.get(&attestation_path(&machine)).await.expect(200).json();
    let roots = AttestationRoots::from_pem(&ground.apple.roots_pem()).unwrap();
    let chain = kept["attestation"]["chain"].as_str().unwrap();
    let bound_at = kept["attestation"]["bound_at"].as_str().unwrap();
    let bound_at = OffsetDateTime::parse(bound_at, &time::format_description::well_known::Rfc3339).unwrap();
    let verified = UnverifiedAttestation::from_pem(chain)
        .unwrap()
        .verify(&roots, bound_at)
        .unwrap();
    assert_eq!(
        serde_json::to_value(verified.claims()).unwrap(),
        kept["attestation"]["claims"]
    );
    verified
        .require_freshness(kept["nonce_hex"].as_str().unwrap().parse().unwrap())
        .unwrap();
    ground.server.stop().await;
}

/// The next check-in is exactly at the attestation's end, with the evaluation of the previous one still in the cache.
#[tokio::test]
async fn an_attestation_that_is_too_old_ends_its_grants_at_the_next_check_in() {
    let ground = Ground::with(&[("apple.attestation_max_age", "30d")]).await;
    let machine = ground.attested_machine("C02LAPSES").await;
    ground.grant("attested", json!({"min_assurance": "attested"})).await;
    ground.grant("anybody", json!({})).await;
    let lapses_at = ground.server.get(&attestation_path(&machine)).await.json()["attestation"]["lapses_at"].clone();
    let lapses_at = time_of(&lapses_at);

    // Fetching the nonce sets the clock forward by a millisecond.
    ground.server.clock().set(lapses_at - Duration::seconds(5));
    let _renewed = machine.renew(&ground.server).await.expect(200);
    let (answer, granted, _) = ground.check_in(&machine).await;
    assert_eq!((&answer["assurance"], granted.len()), (&json!("attested"), 2));
    assert_eq!(
        time_of(&answer["grants"][0]["expires_at"]),
        lapses_at,
        "no token outlives it"
    );

    ground.server.clock().set(lapses_at - Duration::milliseconds(1));
    let (answer, granted, denied) = ground.check_in(&machine).await;
    assert_eq!(
        (&answer["assurance"], granted.as_slice()),
        (&json!("verified"), ["anybody".to_owned()].as_slice())
    );
    let reason = format!(
        "min_assurance: required attested, on record verified, as the Apple attestation of {} is too old",
        rfc3339(lapses_at - Duration::days(30))
    );
    assert_eq!(denied, [reason]);
    let record = ground.server.record(&machine).await;
    assert_eq!(record["assurance"], "verified");
    assert!(
        record["assurance_reason"].as_str().unwrap().ends_with(" is too old"),
        "{record}"
    );
    assert!(
        record["attested_at"].is_string() && record["posture"]["attested"].is_object(),
        "{record}"
    );
    let evaluated = ground
        .server
        .post("/v1/admin/grants/evaluate", &json!({"machine_id": machine.id()}))
        .await
        .json();
    assert_eq!(
        (&evaluated["assurance"], &evaluated["denied"]),
        (&json!("verified"), &answer["denied"])
    );
    let stale = ground
        .post(
            &machine,
            &ground
                .apple
                .body(&ground.attested(&machine).at(lapses_at - Duration::days(30))),
        )
        .await;
    assert_eq!(
        stale.expect_problem(ProblemKind::AttestationRefused).json()["reason"],
        "stale"
    );
    ground.server.stop().await;
}

#[tokio::test]
async fn a_lapsed_attestation_is_recorded_and_does_not_return_by_itself() {
    let ground = Ground::new().await;
    let machine = ground.server.attestable("C02DOWN").await;
    let attested = ground.attested(&machine).at(ground.now() - Duration::days(5));
    let chain = body_of(&ground.apple.attest(&attested));
    let _bound = ground.post(&machine, &chain).await.expect(200);
    // A server with another policy looks for old attestations at its start, and then periodically.
    let strict = ground.replica(&[("apple.attestation_max_age", "4d")]).await;
    let is_lowered = |event: &Value| event["kind"] == "machine.assurance-lowered";
    let mut looks = 0;
    let event = loop {
        if let Some(event) = ground.server.events(&machine).await.into_iter().find(is_lowered) {
            break event;
        }
        looks += 1;
        assert!(looks < LOOKS, "it never lapsed");
    };
    strict.stop().await;
    assert_eq!(
        (
            &event["detail"]["before"]["assurance"],
            &event["detail"]["after"]["assurance"]
        ),
        (&json!("attested"), &json!("verified"))
    );
    let audit = ground.audit(&machine).await;
    assert_eq!(audit["machine.lower-assurance"][0]["actor"]["kind"], "system");
    assert_eq!(
        ground.server.record(&machine).await["assurance"],
        "verified",
        "although 90 days are allowed here"
    );
    assert_eq!(ground.check_in(&machine).await.0["assurance"], "verified");
    let found = ground.server.items("/v1/admin/machines?assurance=attested").await;
    assert_eq!(found, Vec::<Value>::new());
    // Posting the chain again binds it again.
    let _bound = ground.post(&machine, &chain).await.expect(200);
    assert_eq!(ground.server.record(&machine).await["assurance"], "attested");
    ground.server.stop().await;
}

#[tokio::test]
async fn a_fresh_attestation_overrides_the_agents_claims() {
    let ground = Ground::with(&[("apple.attestation_max_age", "30d")]).await;
    ground.grant("sip", json!({"sip_enabled": true})).await;
    ground.grant("boot", json!({"secure_boot": "full"})).await;
    let mut machine = ground.server.attestable("C02WORD").await;
    let at = ground.now() - Duration::hours(1);
    let said = rfc3339(at.replace_nanosecond(0).unwrap());
    for (sip, boot, claimed, reasons) in [
        (
            None,
            None,
            true,
            vec![
                format!("secure_boot: required full, unknown to the Apple attestation of {said}"),
                format!("sip_enabled: required true, unknown to the Apple attestation of {said}"),
            ],
        ),
        (
            Some(1),
            Some("Reduced Security"),
            true,
            vec![
                format!("secure_boot: required full, attested reduced by Apple at {said}"),
                format!("sip_enabled: required true, attested false by Apple at {said}"),
            ],
        ),
        (Some(0), Some("Full Security"), false, vec![]),
    ] {
        let mut attested = Attested::of("C02WORD", &machine.public_key(), at)
            .without(SIP)
            .without(SECURE_BOOT);
        if let (Some(sip), Some(boot)) = (sip, boot) {
            attested = attested.with(SIP, &[2, 1, sip]).with(SECURE_BOOT, boot.as_bytes());
        }
        take_off_the_record(&ground, &machine).await;
        let _bound = ground.bind(&machine, &attested).await;
        machine.posture.sip_enabled = Some(claimed);
        machine.posture.secure_boot = Some(if claimed {
            SecureBoot::Full
        } else {
            SecureBoot::Permissive
        });
        let (_, granted, denied) = ground.check_in(&machine).await;
        assert_eq!((granted.len(), denied), (2 - reasons.len(), reasons));
    }
    ground.server.clock().advance(Duration::days(30));
    let _renewed = machine.renew(&ground.server).await.expect(200);
    let (_, _, denied) = ground.check_in(&machine).await;
    assert_eq!(
        denied,
        [
            "secure_boot: required full, claimed permissive",
            "sip_enabled: required true, claimed false"
        ]
    );
    ground.server.stop().await;
}

/// Removes the attestation from the record, so that another one of the same time can be bound.
async fn take_off_the_record(ground: &Ground, machine: &Machine) {
    sqlx::query(
        "UPDATE machines SET apple_attestation_id = NULL, attested_at = NULL, ground_attestation = NULL, assurance = 'verified'
         WHERE id = $1",
    )
    .bind(machine.id())
    .execute(&ground.server.database().pool().await)
    .await
    .unwrap();
}

#[tokio::test]
async fn a_grant_can_require_a_younger_attestation() {
    let ground = Ground::new().await;
    ground.grant("fresh", json!({"max_attestation_age_days": 3})).await;
    let machine = ground.server.attestable("C02FRESH").await;
    let (_, granted, denied) = ground.check_in(&machine).await;
    assert!(
        granted.is_empty() && denied[0].ends_with("there is no Apple attestation on record"),
        "{denied:?}"
    );
    let _bound = ground.bind(&machine, &ground.attested(&machine)).await;
    let end = time_of(&ground.server.record(&machine).await["attested_at"]) + Duration::days(3);
    ground.server.clock().set(end - Duration::seconds(5));
    let (answer, granted, _) = ground.check_in(&machine).await;
    assert_eq!(granted, ["fresh"]);
    assert_eq!(time_of(&answer["grants"][0]["expires_at"]), end);
    ground.server.clock().set(end - Duration::milliseconds(1));
    let (answer, granted, denied) = ground.check_in(&machine).await;
    assert!(
        granted.is_empty() && denied[0].starts_with("max_attestation_age_days: required 3, "),
        "{denied:?}"
    );
    assert_eq!(answer["assurance"], "attested", "that goes by the server's own limit");
    ground.server.stop().await;
}

#[rstest]
#[case::by_a_token(json!({"serial_numbers": ["C02ERASED"], "allow_reenrollment": true}))]
#[case::by_an_administrator(json!({}))]
#[tokio::test]
async fn a_new_key_needs_an_attestation_of_its_own(#[case] token: Value) {
    let ground = Ground::new().await;
    let machine = ground.attested_machine("C02ERASED").await;
    ground.grant("attested", json!({"min_assurance": "attested"})).await;
    let chain = ground.apple.body(&ground.attested(&machine));
    let before = ground.server.get(&attestation_path(&machine)).await.json();
    let erased = machine.erased();
    erased.set_id(machine.id());
    let token = ground.server.enrollment_token(token).await;
    if erased.enroll(&ground.server, Some(&token)).await.status == 202 {
        assert_eq!(
            ground.server.record(&machine).await["assurance"],
            "attested",
            "the old key serves on"
        );
        let approve = format!("{}/approve", machine.path());
        let _approved = ground
            .server
            .post(&approve, &json!({"reason": "a new disk"}))
            .await
            .expect(200);
        let _enrolled = erased.enroll(&ground.server, None).await.expect(201);
    }
    let record = ground.server.record(&erased).await;
    assert_eq!(
        (&record["assurance"], &record["attested_at"]),
        (&json!("verified"), &Value::Null)
    );
    assert_eq!(record["posture"]["attested"], Value::Null);
    let after = ground.server.get(&attestation_path(&erased)).await.json();
    assert_ne!(after["nonce"], before["nonce"]);
    assert_eq!(after["attestation"], Value::Null);
    let (answer, granted, denied) = ground.check_in(&erased).await;
    assert_eq!(
        (&answer["assurance"], granted.len(), denied.len()),
        (&json!("verified"), 0, 1)
    );
    let stale = ground
        .post(&erased, &chain)
        .await
        .expect_problem(ProblemKind::AttestationRefused);
    assert_eq!(stale.json()["reason"], "stale");
    let _bound = ground.bind(&erased, &ground.attested(&erased)).await;
    assert_eq!(ground.check_in(&erased).await.1, ["attested"]);
    ground.server.stop().await;
}

/// Apple attested the old key. The next one has the ground that was given to it.
#[tokio::test]
async fn a_rotation_removes_the_old_keys_attestation_from_the_record() {
    let ground = Ground::new().await;
    let machine = ground.attested_machine("C02ROTATES").await;
    ground.grant("attested", json!({"min_assurance": "attested"})).await;
    let next = machine.with_next_key();
    let _waits = machine.rotate_to(&ground.server, &next).await.expect(202);
    let approve = json!({"key_thumbprint": next.thumbprint()});
    let path = format!("{}/approve", machine.path());
    let _approved = ground.server.post(&path, &approve).await.expect(200);
    let begun = machine.rotate_to(&ground.server, &next).await.expect(200).json();
    let chain = begun["certificate"]["chain"].as_str().unwrap().to_owned();
    let leaf = pem::parse_many(chain).unwrap().swap_remove(0).into_contents();
    assert!(
        !leaf.windows(10).any(|part| part == b"C02ROTATES"),
        "the next key is not attested"
    );
    assert_eq!(ground.check_in(&machine).await.1, ["attested"], "the old key still is");

    let (answer, granted, _) = ground.check_in(&next).await;
    assert_eq!((&answer["assurance"], granted.len()), (&json!("verified"), 0));
    let record = ground.server.record(&next).await;
    assert_eq!(
        (
            &record["assurance"],
            &record["attested_at"],
            &record["posture"]["attested"]
        ),
        (&json!("verified"), &Value::Null, &Value::Null)
    );
    let entry = &ground.audit(&next).await["machine.rotate-key"][0];
    assert_eq!(
        (&entry["before"]["assurance"], &entry["after"]["assurance"]),
        (&json!("attested"), &json!("verified"))
    );
    let old = ground.post(&next, &ground.apple.body(&ground.attested(&machine))).await;
    assert_eq!(
        old.expect_problem(ProblemKind::AttestationRefused).json()["reason"],
        "stale"
    );
    let _bound = ground.bind(&next, &ground.attested(&next)).await;
    assert_eq!(ground.check_in(&next).await.1, ["attested"]);
    ground.server.stop().await;
}

/// An attestation proves that the Mac exists. Only a ground of the key itself supports that the key is that Mac's.
#[rstest]
#[case::a_shared_token_and_the_inventory(json!({}), false)]
#[case::a_key_in_software(json!({"serial_numbers": ["C02CLAIM"]}), true)]
#[tokio::test]
async fn an_attestation_of_a_key_without_a_ground_of_its_own_changes_nothing(
    #[case] token: Value,
    #[case] in_software: bool,
) {
    let ground = Ground::new().await;
    let inventory = json!({"items": [{"serial_number": "C02CLAIM"}]});
    let request = ground
        .server
        .admin(http::Method::PUT, "/v1/admin/inventory")
        .json(&inventory);
    let _imported = ground.server.send(request).await.expect(200);
    let mut machine = Machine::with_serial_number("C02CLAIM").in_enclave();
    if in_software {
        machine.key_claim = Machine::KEY_CLAIM;
    }
    let token = ground.server.enrollment_token(token).await;
    let enrolled = machine.enroll(&ground.server, Some(&token)).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "verified");
    let refused = ground
        .post(&machine, &ground.apple.body(&ground.attested(&machine)))
        .await;
    let _refused = refused.expect_problem(ProblemKind::Conflict);
    let record = ground.server.record(&machine).await;
    assert_eq!(
        (&record["assurance"], &record["attested_at"]),
        (&json!("verified"), &Value::Null)
    );
    assert!(ground.server.items("/v1/admin/apple-attestations/due").await.is_empty());
    ground.server.stop().await;
}

#[tokio::test]
async fn an_attestation_does_not_count_with_a_ground_that_a_rotation_handed_on() {
    let ground = Ground::new().await;
    let token = json!({"serial_numbers": ["C02HANDED"], "allow_reenrollment": true});
    let token = ground.server.enrollment_token(token).await;
    let software = Machine::with_serial_number("C02HANDED");
    let _enrolled = software.enroll(&ground.server, Some(&token)).await.expect(201);
    let enclave = software.with_next_key().in_enclave();
    let _begun = software.rotate_to(&ground.server, &enclave).await.expect(200);
    let rotated = enclave.check_in(&ground.server).await.expect(200).json();
    assert_eq!(rotated["assurance"], "verified");
    let chain = ground.apple.body(&ground.attested(&enclave));
    let _refused = ground
        .post(&enclave, &chain)
        .await
        .expect_problem(ProblemKind::Conflict);
    assert_eq!(ground.server.record(&enclave).await["assurance"], "verified");
    assert!(ground.server.items("/v1/admin/apple-attestations/due").await.is_empty());
    ground.server.stop().await;
}

#[tokio::test]
async fn the_second_key_of_a_bound_token_is_attested_after_an_approval_of_its_own() {
    let ground = Ground::new().await;
    let token = json!({"serial_numbers": ["C02SECOND"], "allow_reenrollment": true, "max_uses": 2});
    let token = ground.server.enrollment_token(token).await;
    let first = Machine::with_serial_number("C02SECOND").in_enclave();
    let _enrolled = first.enroll(&ground.server, Some(&token)).await.expect(201);
    let second = first.erased();
    let enrolled = second.enroll(&ground.server, Some(&token)).await.expect(201).json();
    assert_eq!(enrolled["assurance"], "verified");
    let chain = ground.apple.body(&ground.attested(&second));
    let _refused = ground.post(&second, &chain).await.expect_problem(ProblemKind::Conflict);
    let approve = json!({"key_thumbprint": second.thumbprint()});
    let path = format!("{}/approve", second.path());
    let _approved = ground.server.post(&path, &approve).await.expect(200);
    let bound = ground.post(&second, &chain).await.expect(200).json();
    assert_eq!(bound["assurance"], "attested");
    ground.server.stop().await;
}

#[tokio::test]
async fn what_apple_said_against_a_machine_outlives_its_key() {
    let ground = Ground::with(&[("apple.attestation_max_age", "30d")]).await;
    ground.grant("sip", json!({"sip_enabled": true})).await;
    let machine = ground.server.attestable("C02SHEDS").await;
    let attested = ground.attested(&machine).with(SIP, &[2, 1, 1]);
    let _bound = ground.bind(&machine, &attested).await;
    let is_denied = |denied: &[String]| denied[0].starts_with("sip_enabled: required true, attested false by Apple");
    assert!(is_denied(&ground.check_in(&machine).await.2));

    let next = machine.with_next_key();
    let _waits = machine.rotate_to(&ground.server, &next).await.expect(202);
    let path = format!("{}/approve", machine.path());
    let _approved = ground
        .server
        .post(&path, &json!({"reason": "planned"}))
        .await
        .expect(200);
    let _issued = machine.rotate_to(&ground.server, &next).await.expect(200);
    let (_, granted, denied) = ground.check_in(&next).await;
    assert!(granted.is_empty() && is_denied(&denied), "{denied:?}");

    let newer = ground
        .attested(&next)
        .at(ground.now() - Duration::minutes(30))
        .with(SIP, &[2, 1, 0]);
    let _bound = ground.bind(&next, &newer).await;
    assert_eq!(ground.check_in(&next).await.1, ["sip"]);
    ground.server.stop().await;
}

#[tokio::test]
async fn what_apple_said_against_a_machine_outlives_a_later_attestation_that_does_not_say_it() {
    let ground = Ground::new().await;
    ground.grant("sip", json!({"sip_enabled": true})).await;
    ground.grant("boot", json!({"secure_boot": "full"})).await;
    let machine = ground.server.attestable("C02SILENT").await;
    // One attestation says something against SIP, a later one against the boot policy, and the last one nothing.
    let at = |minutes| ground.now() - Duration::minutes(minutes);
    let (sip, boot) = (at(50), at(40));
    let silent = |at| {
        Attested::of("C02SILENT", &machine.public_key(), at)
            .without(SIP)
            .without(SECURE_BOOT)
    };
    for attested in [
        silent(sip).with(SIP, &[2, 1, 1]),
        silent(boot).with(SECURE_BOOT, b"Reduced Security"),
        silent(at(30)),
    ] {
        let _bound = ground.bind(&machine, &attested).await;
    }
    let said = |at: OffsetDateTime| rfc3339(at.replace_nanosecond(0).unwrap());
    let reasons = [
        format!(
            "secure_boot: required full, attested reduced by Apple at {}",
            said(boot)
        ),
        format!("sip_enabled: required true, attested false by Apple at {}", said(sip)),
    ];
    assert_eq!(ground.check_in(&machine).await.2, reasons);

    let next = machine.with_next_key();
    let _waits = machine.rotate_to(&ground.server, &next).await.expect(202);
    let path = format!("{}/approve", machine.path());
    let reason = json!({"reason": "planned"});
    let _approved = ground.server.post(&path, &reason).await.expect(200);
    let _issued = machine.rotate_to(&ground.server, &next).await.expect(200);
    let (_, granted, denied) = ground.check_in(&next).await;
    assert_eq!((granted.len(), denied), (0, reasons.to_vec()));

    let healthy = Attested::of("C02SILENT", &next.public_key(), at(20));
    let _bound = ground.bind(&next, &healthy).await;
    assert_eq!(ground.check_in(&next).await.1.len(), 2);
    ground.server.stop().await;
}

/// RFC 4043: 1.3.6.1.5.5.7.8.3, and in it a SEQUENCE of the serial number as UTF8String.
#[tokio::test]
async fn a_certificate_renewed_while_attested_carries_the_serial_number() {
    let ground = Ground::with(&[("apple.attestation_max_age", "30d")]).await;
    let machine = ground.server.attestable("C02RENEW").await;
    let identifier = [
        b"\x06\x08\x2b\x06\x01\x05\x05\x07\x08\x03\xa0\x0c\x30\x0a\x0c\x08",
        b"C02RENEW".as_slice(),
    ]
    .concat();
    let renewed = async || {
        let renewed = machine.renew(&ground.server).await.expect(200).json();
        let chain = renewed["certificate"]["chain"].as_str().unwrap().to_owned();
        let leaf = pem::parse_many(chain).unwrap().swap_remove(0).into_contents();
        leaf.windows(identifier.len()).any(|part| part == identifier)
    };
    assert!(!renewed().await);
    let _bound = ground.bind(&machine, &ground.attested(&machine)).await;
    assert!(renewed().await);
    ground.server.clock().advance(Duration::days(30));
    assert!(!renewed().await, "the attestation has become too old");
    ground.server.stop().await;
}

/// The database checks this itself, in case a later version or a manual statement does not.
#[tokio::test]
async fn the_database_rejects_an_attestation_of_another_machine() {
    let ground = Ground::new().await;
    let (one, other) = (
        ground.attested_machine("C02ONE").await,
        ground.attested_machine("C02TWO").await,
    );
    let plain = ground.server.attestable("C02THREE").await;
    let pool = ground.server.database().pool().await;
    let refused = async |statement: &str, machine: &Machine| {
        let done = sqlx::query(statement).bind(machine.id()).execute(&pool).await;
        let error = done.unwrap_err().to_string();
        assert!(error.contains("machines_attestation"), "{statement}: {error}");
    };
    refused("UPDATE machines SET assurance = 'attested' WHERE id = $1", &plain).await;
    let of_another = format!(
        "UPDATE machines SET assurance = 'attested', ground_attestation = 'bound', (apple_attestation_id, attested_at)
             = (SELECT apple_attestation_id, attested_at FROM machines WHERE id = '{}') WHERE id = $1",
        other.id()
    );
    for machine in [&one, &plain] {
        refused(&of_another, machine).await;
    }
    refused("UPDATE machines SET serial_number = 'C02FOUR' WHERE id = $1", &one).await;
    refused("UPDATE machines SET ground_attestation = 'lapsed' WHERE id = $1", &one).await;
    refused(
        "UPDATE machines SET current_key = sha256('another') WHERE id = $1",
        &one,
    )
    .await;
    sqlx::query("UPDATE machines SET current_key = sha256('another'), assurance = 'asserted' WHERE id = $1")
        .bind(one.id())
        .execute(&pool)
        .await
        .unwrap();
    let left: Option<uuid::Uuid> = sqlx::query_scalar("SELECT apple_attestation_id FROM machines WHERE id = $1")
        .bind(one.id())
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(left, None, "with the key its attestation goes");
    ground.server.stop().await;
}

fn time_of(value: &Value) -> OffsetDateTime {
    let format = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
    PrimitiveDateTime::parse(value.as_str().unwrap(), format)
        .unwrap()
        .assume_utc()
}
