//! Webhooks: deliveries are signed, filtered, and repeated by any replica until the receiver accepts them.

use std::collections::BTreeSet;

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::Clock;
use assay_tests::administrator::{Administrator, text};
use assay_tests::cluster::Database;
use assay_tests::in_process::InProcess;
use assay_tests::installation::Installation;
use assay_tests::receiver::{Received, Receiver};
use http::Method;
use rstest::rstest;
use serde_json::{Value, json};
use time::format_description::well_known::Rfc3339;
use time::{Duration, OffsetDateTime};

/// How often the test reads a delivery before it fails: far more often than recording its result needs.
const LOOKS: u32 = 10_000;

/// A created webhook, with its secret.
struct Webhook {
    id: String,
    secret: String,
}

impl Webhook {
    async fn of(server: &InProcess, receiver: &Receiver, kinds: Value) -> Self {
        let request = json!({"url": receiver.url(), "description": "a test", "kinds": kinds});
        Self::read(&server.post("/v1/admin/webhooks", &request).await.expect(201).json())
    }

    fn read(created: &Value) -> Self {
        let member = |name: &str| created[name].as_str().unwrap().to_owned();
        Self {
            id: member("id"),
            secret: member("secret"),
        }
    }

    fn path(&self) -> String {
        format!("/v1/admin/webhooks/{}", self.id)
    }

    async fn record(&self, server: &InProcess) -> Value {
        server.get(&self.path()).await.expect(200).json()
    }

    async fn deliveries(&self, server: &InProcess, query: &str) -> Vec<Value> {
        let path = format!("{}/deliveries{query}", self.path());
        let list = server.get(&path).await.expect(200).json();
        list["items"].as_array().unwrap().clone()
    }

    /// Its only delivery, once this condition is true.
    async fn delivery(&self, server: &InProcess, holds: impl Fn(&Value) -> bool) -> Value {
        for _ in 0..LOOKS {
            let deliveries = self.deliveries(server, "").await;
            assert!(deliveries.len() <= 1, "{deliveries:?}");
            if let Some(delivery) = deliveries.into_iter().find(&holds) {
                return delivery;
            }
        }
        panic!("it never came to that: {:?}", self.deliveries(server, "").await);
    }
}

fn time(value: &Value) -> OffsetDateTime {
    OffsetDateTime::parse(value.as_str().unwrap(), &Rfc3339).unwrap()
}

/// The kinds of events of an enrollment.
const ENROLLMENT: [&str; 2] = ["machine.enrolled", "certificate.issued"];

/// Starts a server without rate limits, because the tests call it often.
async fn start() -> InProcess {
    InProcess::start_with(&[("rate_limit.api_key_per_minute", "0")]).await
}

#[tokio::test]
async fn two_replicas_deliver_each_wanted_event_once_and_signed() {
    let database = Database::create().await;
    let installation = Installation::replicated(&database).await;
    let administrator = installation.administrator();
    let (mut all, mut some) = (Receiver::start().await, Receiver::start().await);
    let wants_all = Webhook::read(
        &administrator
            .create("webhooks", &json!({"url": all.url(), "kinds": ENROLLMENT}))
            .await,
    );
    let wants_some = json!({"url": some.url(), "kinds": ["machine.enrolled"]});
    let wants_some = Webhook::read(&administrator.create("webhooks", &wants_some).await);

    let machines = 5;
    for replica in 0..machines {
        administrator.enrolled(&installation.api(replica % 2)).await;
    }
    let mut received: Vec<Value> = Vec::new();
    for _ in 0..2 * machines {
        let delivery = all.next().await;
        assert!(delivery.is_signed_with(&wants_all.secret) && !delivery.is_signed_with(&wants_some.secret));
        assert_eq!(delivery.header("content-type"), "application/json");
        let body = delivery.json();
        assert_eq!(body["type"], body["data"]["kind"], "{body}");
        assert_eq!(body["timestamp"], body["data"]["at"], "{body}");
        received.push(body["data"].clone());
        delivery.answer(204, None);
    }
    for _ in 0..machines {
        let delivery = some.next().await;
        assert!(delivery.is_signed_with(&wants_some.secret));
        assert_eq!(delivery.json()["type"], "machine.enrolled");
        delivery.answer(200, None);
    }
    let ids: BTreeSet<_> = received.iter().map(|event| text(event, "id")).collect();
    assert_eq!(ids.len(), received.len(), "each event once");

    for webhook in [&wants_all, &wants_some] {
        expect_all_taken_at_once(&administrator, webhook).await;
    }
    assert!(!all.has_more() && !some.has_more());
}

/// Waits until all results are recorded. Until then, a replica may repeat a delivery.
async fn expect_all_taken_at_once(administrator: &Administrator, webhook: &Webhook) {
    let path = format!("webhooks/{}", webhook.id);
    let mut record = administrator.get(&path).await;
    for _ in 0..LOOKS {
        if record["pending"] == 0 {
            break;
        }
        record = administrator.get(&path).await;
    }
    assert_eq!(
        (&record["pending"], &record["failing_since"]),
        (&json!(0), &Value::Null),
        "{record}"
    );
    assert!(record["last_delivered_at"].is_string(), "{record}");
    let deliveries = administrator.get(&format!("{path}/deliveries?limit=500")).await;
    for delivery in deliveries["items"].as_array().unwrap() {
        assert_eq!(
            (&delivery["status"], &delivery["attempts"]),
            (&json!("delivered"), &json!(1)),
            "{delivery}"
        );
    }
}

#[tokio::test]
async fn a_delivery_is_retried_with_back_off_under_one_id() {
    let server = start().await;
    let mut receiver = Receiver::start().await;
    let webhook = Webhook::of(&server, &receiver, json!(["machine.enrolled"])).await;
    let machine = server.enrolled("RETRIED").await;

    let first = receiver.next().await;
    let (id, body) = (first.header("webhook-id").to_owned(), first.body.clone());
    assert!(first.is_signed_with(&webhook.secret));
    assert_eq!(first.json()["data"]["machine_id"], json!(machine.id()));
    first.answer(500, None);
    let failed = webhook
        .delivery(&server, |delivery| !delivery["last_error"].is_null())
        .await;
    assert_eq!(
        (&failed["status"], &failed["attempts"], &failed["last_status"]),
        (&json!("pending"), &json!(1), &json!(500))
    );
    assert_eq!(failed["id"], json!(id));
    assert!(failed["last_error"].as_str().unwrap().contains("500"), "{failed}");
    let now = server.clock().now();
    let wait = time(&failed["next_attempt_at"]) - now;
    assert!((Duration::seconds(5)..=Duration::seconds(6)).contains(&wait), "{wait}");
    let record = webhook.record(&server).await;
    assert_eq!(
        (time(&record["failing_since"]), &record["pending"]),
        (now, &json!(1)),
        "{record}"
    );

    // Shortly before the delivery is due, another one is created and delivered. The first one must still wait.
    server.clock().advance(wait - Duration::microseconds(1));
    let test = server
        .send(server.admin(Method::POST, &format!("{}/test", webhook.path())))
        .await
        .expect(202)
        .json();
    let tested = receiver.next().await;
    assert_eq!(tested.header("webhook-id"), test["delivery_id"].as_str().unwrap());
    tested.answer(200, None);
    server.clock().advance(Duration::microseconds(1));
    let second = receiver.next().await;
    assert_eq!((second.header("webhook-id"), &second.body), (id.as_str(), &body));
    assert!(second.is_signed_with(&webhook.secret));
    let timestamp: i64 = second.header("webhook-timestamp").parse().unwrap();
    assert_eq!(
        timestamp,
        server.clock().now().unix_timestamp(),
        "each attempt has its own"
    );
    second.answer(200, None);
    while webhook.record(&server).await["pending"] != 0 {}
    let record = webhook.record(&server).await;
    assert_eq!(
        (&record["failing_since"], time(&record["last_delivered_at"])),
        (&Value::Null, server.clock().now())
    );
    let delivered = webhook.deliveries(&server, "?status=delivered").await;
    assert_eq!(delivered.len(), 2);
    assert_eq!(
        (&delivered[1]["attempts"], &delivered[1]["last_error"]),
        (&json!(2), &Value::Null)
    );
    server.stop().await;
}

#[tokio::test]
async fn a_delivery_is_abandoned_after_ten_attempts_in_four_days() {
    let server = start().await;
    let mut receiver = Receiver::start().await;
    let webhook = Webhook::of(&server, &receiver, json!(["machine.enrolled"])).await;
    let begun = server.clock().now();
    server.enrolled("GIVEN-UP").await;
    for attempt in 1..10 {
        receiver.next().await.answer(503, None);
        let waits = |delivery: &Value| delivery["attempts"] == attempt && delivery["last_status"] == 503;
        let delivery = webhook
            .delivery(&server, |delivery| {
                waits(delivery) && time(&delivery["next_attempt_at"]) > server.clock().now()
            })
            .await;
        server.clock().set(time(&delivery["next_attempt_at"]));
    }
    receiver.next().await.answer(503, None);
    let failed = webhook
        .delivery(&server, |delivery| delivery["status"] == "failed")
        .await;
    assert_eq!(
        (&failed["attempts"], &failed["next_attempt_at"], &failed["delivered_at"]),
        (&json!(10), &Value::Null, &Value::Null)
    );
    let took = server.clock().now() - begun;
    assert!((Duration::hours(75)..Duration::hours(96)).contains(&took), "{took}");
    assert_eq!(webhook.deliveries(&server, "?status=failed").await, [failed]);
    assert_eq!(
        webhook.deliveries(&server, "?status=pending").await,
        Vec::<Value>::new()
    );
    server.stop().await;
}

#[tokio::test]
async fn status_gone_disables_the_webhook_and_abandons_pending_deliveries() {
    let server = start().await;
    let mut receiver = Receiver::start().await;
    let webhook = Webhook::of(&server, &receiver, json!(["machine.enrolled"])).await;
    server.enrolled("GONE-1").await;
    receiver.next().await.answer(500, None);
    let _waits = webhook
        .delivery(&server, |delivery| delivery["last_status"] == 500)
        .await;
    server.enrolled("GONE-2").await;
    receiver.next().await.answer(410, None);
    while webhook.record(&server).await["disabled_at"].is_null() {}
    let record = webhook.record(&server).await;
    assert!(record["disabled_reason"].as_str().unwrap().contains("410"), "{record}");
    assert_eq!(webhook.deliveries(&server, "?status=failed").await.len(), 2);
    let audit = server
        .get(&format!("/v1/admin/audit?resource=webhook:{}", webhook.id))
        .await
        .json();
    assert_eq!(audit["items"][0]["action"], "webhook.disable");
    assert_eq!(audit["items"][0]["actor"]["kind"], "system");

    let test = server
        .send(server.admin(Method::POST, &format!("{}/test", webhook.path())))
        .await;
    let _conflict = test.expect_problem(ProblemKind::Conflict);
    // Another webhook gets the next event. By then, this one would also have a delivery.
    let mut other = Receiver::start().await;
    let _other = Webhook::of(&server, &other, json!(["machine.enrolled"])).await;
    server.enrolled("GONE-3").await;
    other.next().await.answer(200, None);
    assert_eq!(webhook.deliveries(&server, "").await.len(), 2);
    assert!(!receiver.has_more());
    server.stop().await;
}

#[rstest]
#[case::moved(301)]
#[case::elsewhere(307)]
#[tokio::test]
async fn a_redirect_is_a_failure_and_is_not_followed(#[case] status: u16) {
    let server = start().await;
    let (mut receiver, mut elsewhere) = (Receiver::start().await, Receiver::start().await);
    let webhook = Webhook::of(&server, &receiver, json!(["machine.enrolled"])).await;
    server.enrolled("REDIRECTED").await;
    let location = format!("Location: {}", elsewhere.url());
    receiver.next().await.answer(status, Some(&location));
    let delivery = webhook
        .delivery(&server, |delivery| !delivery["last_status"].is_null())
        .await;
    assert_eq!(
        (&delivery["status"], &delivery["last_status"]),
        (&json!("pending"), &json!(status))
    );
    assert!(!elsewhere.has_more());
    server.stop().await;
}

#[tokio::test]
async fn a_hanging_receiver_delays_no_other() {
    let server = start().await;
    let (mut silent, mut other) = (Receiver::start().await, Receiver::start().await);
    let _webhook = Webhook::of(&server, &silent, json!(null)).await;
    let mut held: Vec<Received> = Vec::new();
    for number in 0..6 {
        server.enrolled(&format!("HELD-UP-{number}")).await;
    }
    for _ in 0..8 {
        held.push(silent.next().await);
    }
    // The attempts for one receiver are at their limit, and further deliveries wait.
    let _other = Webhook::of(&server, &other, json!(["machine.quarantined"])).await;
    let machine = server.enrolled("HELD-UP").await;
    let quarantined = server
        .post(&format!("{}/quarantine", machine.path()), &json!({"reason": "lost"}))
        .await;
    assert_eq!(quarantined.status, 200);
    other.next().await.answer(200, None);
    assert!(!silent.has_more(), "more than eight at once");
    drop(held);
    server.stop().await;
}

#[tokio::test]
async fn after_a_kill_another_replica_repeats_the_delivery_under_the_same_id() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let administrator = installation.administrator();
    let mut receiver = Receiver::start().await;
    let request = json!({"url": receiver.url(), "kinds": ["machine.enrolled"]});
    let webhook = Webhook::read(&administrator.create("webhooks", &request).await);
    administrator.enrolled(&installation.api(0)).await;
    let first = receiver.next().await;
    installation.servers[0].kill().await;
    let (id, body) = (first.header("webhook-id").to_owned(), first.body.clone());
    first.answer(200, None);

    let other = InProcess::start_on(&database.url(), &[("rate_limit.api_key_per_minute", "0")]).await;
    // The replica has looked for due deliveries before it delivered this one. The other replica's claim is still valid.
    let test = other
        .send(other.admin(Method::POST, &format!("{}/test", webhook.path())))
        .await;
    assert_eq!(test.status, 202, "{test}");
    let tested = receiver.next().await;
    assert_eq!(tested.json()["type"], "webhook.test");
    tested.answer(200, None);
    assert!(!receiver.has_more());
    other.clock().advance(Duration::seconds(31));
    let again = receiver.next().await;
    assert_eq!((again.header("webhook-id"), &again.body), (id.as_str(), &body));
    assert!(
        again.is_signed_with(&webhook.secret),
        "the other replica has the secret"
    );
    again.answer(200, None);
    while webhook.record(&other).await["pending"] != 0 {}
    let delivered = webhook.deliveries(&other, "?status=delivered").await;
    assert_eq!(
        (&delivered[1]["id"], &delivered[1]["attempts"]),
        (&json!(id), &json!(2))
    );
    other.stop().await;
}

/// The receiver is the server itself, which has a certificate and refuses deliveries.
#[tokio::test]
async fn https_receivers_are_verified_with_the_systems_roots() {
    let database = Database::create().await;
    let mut installation = Installation::unlimited(&database).await;
    let administrator = installation.administrator();
    let url = format!("https://{}/v1/nonce", installation.servers[0].address());
    let webhook = Webhook::read(
        &administrator
            .create("webhooks", &json!({"url": url, "kinds": ["machine.deleted"]}))
            .await,
    );
    let attempted = async |administrator: &Administrator| {
        let path = format!("webhooks/{}", webhook.id);
        let test = administrator
            .call(Method::POST, &format!("{path}/test"), None)
            .await
            .expect(202)
            .json();
        for _ in 0..LOOKS {
            let deliveries = administrator.get(&format!("{path}/deliveries")).await;
            let newest = &deliveries["items"][0];
            assert_eq!(newest["id"], test["delivery_id"]);
            if !newest["last_error"].is_null() {
                return newest.clone();
            }
        }
        panic!("it was never attempted");
    };
    let refused = attempted(&administrator).await;
    assert_eq!(refused["last_status"], Value::Null, "{refused}");
    assert!(
        refused["last_error"].as_str().unwrap().contains("certificate"),
        "{refused}"
    );

    let configuration = installation.servers[0].configuration();
    let roots = configuration.data_dir().join("roots.pem");
    std::fs::write(&roots, &installation.roots).unwrap();
    installation.servers[0].terminate().await;
    let configuration = configuration.variable("SSL_CERT_FILE", roots.to_str().unwrap());
    installation.servers[0] = configuration.start().await;
    let taken_up = attempted(&installation.administrator()).await;
    assert_eq!(taken_up["last_status"], 405, "{taken_up}");
}

#[tokio::test]
async fn a_deleted_webhook_gets_no_more_deliveries() {
    let server = start().await;
    let (mut receiver, mut other) = (Receiver::start().await, Receiver::start().await);
    let webhook = Webhook::of(&server, &receiver, json!(["machine.enrolled"])).await;
    server.enrolled("DELETED-1").await;
    receiver.next().await.answer(500, None);
    let delivery = webhook
        .delivery(&server, |delivery| delivery["last_status"] == 500)
        .await;
    assert_eq!(server.delete(&webhook.path()).await.status, 204);
    for path in [webhook.path(), format!("{}/deliveries", webhook.path())] {
        let _gone = server.get(&path).await.expect_problem(ProblemKind::NotFound);
    }
    let _other = Webhook::of(&server, &other, json!(["machine.enrolled"])).await;
    server.clock().set(time(&delivery["next_attempt_at"]));
    server.enrolled("DELETED-2").await;
    other.next().await.answer(200, None);
    assert!(!receiver.has_more());
    server.stop().await;
}

#[tokio::test]
async fn a_secret_is_shown_once_and_stored_sealed_and_a_bad_webhook_is_refused() {
    let server = start().await;
    let receiver = Receiver::start().await;
    let webhook = Webhook::of(
        &server,
        &receiver,
        json!(["machine.revoked", "machine.deleted", "machine.revoked"]),
    )
    .await;
    let record = webhook.record(&server).await;
    assert_eq!(record["kinds"], json!(["machine.deleted", "machine.revoked"]));
    assert_eq!(record["secret"], Value::Null);
    let audit = server
        .get(&format!("/v1/admin/audit?resource=webhook:{}", webhook.id))
        .await;
    assert_eq!(audit.json()["items"][0]["action"], "webhook.create");
    assert!(!audit.text().contains(&webhook.secret));
    let row: Vec<u8> = sqlx::query_scalar("SELECT sealed_secret FROM webhooks")
        .fetch_one(&server.database().pool().await)
        .await
        .unwrap();
    let secret = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        webhook.secret.strip_prefix("whsec_").unwrap(),
    );
    let secret = secret.unwrap();
    assert_eq!(secret.len(), 32);
    assert!(!row.windows(secret.len()).any(|window| window == secret));

    for (request, named) in [
        (json!({"url": "http://example.com/"}), "https"),
        (json!({"url": "http://169.254.169.254/"}), "https"),
        (json!({"url": "https://user:secret@example.com/"}), "credentials"),
        (json!({"url": "/hook"}), "url"),
        (json!({"url": "https://example.com/", "kinds": []}), "kinds"),
        (
            json!({"url": "https://example.com/", "kinds": ["Machine Enrolled"]}),
            "kinds",
        ),
        (
            json!({"url": "https://example.com/", "description": "a\u{7}"}),
            "description",
        ),
        (json!({"url": "https://example.com/", "colour": "red"}), "colour"),
        (json!({"kinds": ["machine.enrolled"]}), "url"),
    ] {
        let refused = server
            .post("/v1/admin/webhooks", &request)
            .await
            .expect_problem(ProblemKind::Malformed);
        assert!(refused.detail().contains(named), "{refused}");
    }
    let list = server.get("/v1/admin/webhooks").await.json();
    assert_eq!(list["items"], json!([record]));
    let viewer = server
        .request(Method::GET, &webhook.path())
        .bearer_auth(server.api_key(Role::Viewer));
    assert_eq!(server.send(viewer).await.status, 200);
    server.stop().await;
}

/// For Slack, Teams and others, the URL is the secret.
#[tokio::test]
async fn only_administrators_see_more_of_a_webhooks_url_than_its_host() {
    let server = InProcess::start().await;
    let request = json!({"url": "https://hooks.example.com/services/T0/SECRET?key=SECRET"});
    let created = server.post("/v1/admin/webhooks", &request).await.expect(201).json();
    let webhook = Webhook::read(&created);
    assert_eq!(webhook.record(&server).await["url"], request["url"]);
    let _sent = server
        .post(&format!("{}/test", webhook.path()), &json!({}))
        .await
        .expect(202);
    // An entry of an earlier version has the whole URL.
    let pool = server.database().pool().await;
    let earlier = "INSERT INTO audit_entries (id, at, actor_kind, action, resource_kind, resource_id, after)
                   VALUES (gen_random_uuid(), now(), 'system', 'webhook.create', 'webhook', 'earlier', '{\"url\": \"https://hooks.example.com/SECRET\"}')";
    sqlx::query(earlier).execute(&pool).await.unwrap();
    let audit = "/v1/admin/audit?resource=webhook";
    for (role, sees) in [(Role::Viewer, false), (Role::Operator, false), (Role::Admin, true)] {
        let read = async |path: &str| {
            let request = server.request(Method::GET, path).bearer_auth(server.api_key(role));
            server.send(request).await.expect(200).text()
        };
        for path in ["/v1/admin/webhooks", &webhook.path()] {
            let shown = read(path).await;
            assert_eq!(shown.contains("SECRET"), sees, "{role} {path}: {shown}");
            assert!(shown.contains("https://hooks.example.com/"), "{role} {path}: {shown}");
        }
        let deliveries = read(&format!("{}/deliveries", webhook.path())).await;
        assert!(!deliveries.contains("SECRET"), "{deliveries}");
        let entries = read(audit).await;
        assert_eq!(
            entries.matches("SECRET").count(),
            usize::from(sees),
            "only the earlier entry has it: {entries}"
        );
    }
    let _deleted = server.delete(&webhook.path()).await.expect(204);
    assert_eq!(server.get(audit).await.expect(200).text().matches("SECRET").count(), 1);
    server.stop().await;
}

/// A name is resolved at each connection, and an address is written in many ways.
#[rstest]
#[case("http://127.0.0.1:PORT/")]
#[case("http://localhost:PORT/")]
#[case("http://[::ffff:127.0.0.1]:PORT/")]
#[case("https://169.254.169.254/latest/meta-data")]
#[case("https://10.0.0.1/")]
#[tokio::test]
async fn a_delivery_to_a_private_address_fails_if_the_configuration_denies_it(#[case] url: &str) {
    let server = InProcess::start_with(&[
        ("webhooks.private_addresses", "deny"),
        ("rate_limit.api_key_per_minute", "0"),
    ])
    .await;
    let mut receiver = Receiver::start().await;
    let port = receiver.origin().rsplit_once(':').unwrap().1.to_owned();
    let request = json!({"url": url.replace("PORT", &port), "kinds": ENROLLMENT});
    let webhook = Webhook::read(&server.post("/v1/admin/webhooks", &request).await.expect(201).json());
    let _sent = server
        .post(&format!("{}/test", webhook.path()), &json!({}))
        .await
        .expect(202);
    let delivery = webhook
        .delivery(&server, |delivery| !delivery["last_error"].is_null())
        .await;
    assert!(
        delivery["last_error"].as_str().unwrap().contains("not public"),
        "{delivery}"
    );
    assert!(!receiver.has_more());
    server.stop().await;
}
