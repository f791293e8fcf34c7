//! Rotating the server's own keys while machines call: issuing CAs, roots and grant keys.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::{Clock, MockClock, SystemClock};
use assay_tests::administrator::{Administrator, text};
use assay_tests::answer::Answer;
use assay_tests::api::{Api, Called};
use assay_tests::cluster::Database;
use assay_tests::in_process::{Connections, InProcess};
use assay_tests::installation::{Installation, unlimited};
use assay_tests::mac::{DONE, FAILED, Mac};
use assay_tests::machine::Machine;
use assay_tests::openssl::{Files, openssl};
use assay_tests::processes::ServerConfiguration;
use aws_lc_rs::digest::{SHA256, digest};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use http::Method;
use rstest::rstest;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use super::commands::run;

/// The longest time until a replica notices a change.
const NOTICED_WITHIN: std::time::Duration = std::time::Duration::from_secs(60);
const UNLIMITED: [(&str, &str); 2] = [
    ("rate_limit.machine_per_minute", "0"),
    ("rate_limit.address_per_minute", "0"),
];

/// Two replicas with one clock, on one database.
struct Replicas {
    servers: [InProcess; 2],
    clock: MockClock,
    _database: Database<'static>,
}

/// An enrolled machine, and its newest chain.
struct Member {
    machine: Machine,
    chain: String,
}

impl Replicas {
    async fn start(settings: &[(&str, &str)]) -> Self {
        let (database, clock) = (Database::create().await, MockClock::new(SystemClock.now()));
        let settings = [UNLIMITED.as_slice(), settings].concat();
        let url = database.url();
        let servers = [
            InProcess::start_by(clock.clone(), &url, &settings).await,
            InProcess::start_by(clock.clone(), &url, &settings).await,
        ];
        Self {
            servers,
            clock,
            _database: database,
        }
    }

    async fn enroll(&self, at: usize) -> Member {
        let (server, machine) = (&self.servers[at], Machine::new());
        let token = server.enrollment_token(json!({})).await;
        let enrolled = machine.enroll(server, Some(&token)).await.expect(201).json();
        Member {
            machine,
            chain: text(&enrolled["certificate"], "chain"),
        }
    }

    /// The output of a command with the configuration of the first replica.
    async fn command(&self, arguments: &[&str]) -> String {
        succeeds(self.servers[0].command(arguments)).await
    }

    async fn status(&self) -> Value {
        serde_json::from_str(&self.command(&["ca", "status", "--json"]).await).unwrap()
    }

    /// Each replica renews the certificate of one machine. The machine checks in at the other replica, and with its
    /// certificate in TLS. A new machine enrolls.
    async fn serve(&self, members: &mut [Member; 2]) {
        let [one, two] = members;
        tokio::join!(self.serve_one(one, 0, 1), self.serve_one(two, 1, 0));
    }

    async fn serve_one(&self, member: &mut Member, here: usize, there: usize) {
        let renewed = member.machine.renew(&self.servers[here]).await.expect(200).json();
        member.chain = text(&renewed["certificate"], "chain");
        let _plain = member.machine.check_in(&self.servers[there]).await.expect(200);
        self.present(member, there).await;
        let _enrolled = self.enroll(here).await;
    }

    /// A machine checks in over new connections that present its certificate, alone and with its chain.
    async fn present(&self, member: &Member, at: usize) {
        for chain in [member.chain.as_str(), leaf(&member.chain)] {
            let connection = self.servers[at].presenting(chain, &member.machine, Connections::Kept);
            let _checked_in = member.machine.check_in(&connection).await.expect(200);
        }
    }

    /// Performs calls at both replicas until both are as expected.
    async fn serve_until(&self, members: &mut [Member; 2], is_right: impl AsyncFn(&Api) -> bool) {
        let begun = Instant::now();
        loop {
            self.serve(members).await;
            let [one, two] = [0, 1].map(|at| self.servers[at].api());
            if is_right(one).await && is_right(two).await {
                return;
            }
            assert!(begun.elapsed() < NOTICED_WITHIN, "the replicas do not notice");
        }
    }

    /// Sets the clock forward, and waits until the servers' own TLS certificates are valid again.
    async fn let_pass(&self, time: Duration) {
        self.clock.advance(time);
        let begun = Instant::now();
        for server in &self.servers {
            let health = || server.http1_client().get(server.api().url("/healthz"));
            while Answer::or_error(health()).await.is_err() {
                assert!(begun.elapsed() < NOTICED_WITHIN, "the server's certificate has expired");
            }
        }
    }

    /// Waits until both replicas are as expected.
    async fn until(&self, is_right: impl AsyncFn(&Api) -> bool) {
        for server in &self.servers {
            until(server.api(), &is_right).await;
        }
    }
}

async fn until(api: &Api, is_right: impl AsyncFn(&Api) -> bool) {
    let begun = Instant::now();
    while !is_right(api).await {
        assert!(begun.elapsed() < NOTICED_WITHIN, "the server does not notice");
    }
}

/// The output of a command, which must succeed.
async fn succeeds(command: Command) -> String {
    let outcome = run(command).await;
    assert_eq!(outcome.code, Some(0), "{}{}", outcome.stdout, outcome.stderr);
    outcome.stdout
}

/// The first certificate of a chain.
fn leaf(chain: &str) -> &str {
    const END: &str = "-----END CERTIFICATE-----\n";
    &chain[..chain.find(END).unwrap() + END.len()]
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// The key identifier of the only key with this purpose and this state.
fn identifier(status: &Value, kind: &str, state: &str) -> String {
    let found: Vec<&Value> = status[kind]
        .as_array()
        .unwrap()
        .iter()
        .filter(|key| key["state"] == state)
        .collect();
    assert_eq!(found.len(), 1, "{state} of {kind} in {status:#}");
    text(found[0], "key_identifier")
}

async fn read(api: &Api, path: &str) -> String {
    api.get(path).await.expect(200).text()
}

/// OpenSSL's report on a path at a time, with all published revocation lists.
async fn verify(api: &Api, chain: &str, at: OffsetDateTime) -> (bool, String) {
    let files = Files::new();
    let roots = files.write("roots.pem", read(api, "/v1/ca/bundle.pem").await);
    let lists = files.write("lists.pem", read(api, "/v1/ca/crls.pem").await);
    let (chain, at) = (files.write("chain.pem", chain), at.unix_timestamp().to_string());
    let [roots, lists, chain] = [&roots, &lists, &chain].map(|path| path.to_str().unwrap());
    openssl(&[
        "verify",
        "-x509_strict",
        "-crl_check_all",
        "-attime",
        &at,
        "-CRLfile",
        lists,
        "-CAfile",
        roots,
        "-untrusted",
        chain,
        chain,
    ])
    .await
}

/// The OCSP status of a CA's certificate, after OpenSSL has verified the response at a time.
async fn ocsp(api: &Api, issuer: &str, chain: &str, at: OffsetDateTime) -> String {
    let files = Files::new();
    let der = api.get(&format!("/v1/ca/issuer/{issuer}")).await.expect(200).body;
    let issuer = pem::encode(&pem::Pem::new("CERTIFICATE", der));
    let issuer = files.write("issuer.pem", issuer);
    let (leaf, roots) = (
        files.write("leaf.pem", leaf(chain)),
        files.write("roots.pem", read(api, "/v1/ca/bundle.pem").await),
    );
    let (request, response) = (files.path("request.der"), files.path("response.der"));
    let [issuer, leaf, roots, request_path, response_path] =
        [&issuer, &leaf, &roots, &request, &response].map(|path| path.to_str().unwrap());
    let which = ["ocsp", "-issuer", issuer, "-cert", leaf, "-no_nonce"];
    let (made, said) = openssl(&[&which[..], &["-reqout", request_path]].concat()).await;
    assert!(made, "{said}");
    let post = api.request(Method::POST, "/v1/ca/ocsp");
    let post = post.header("content-type", "application/ocsp-request");
    let answer = Answer::to(post.body(std::fs::read(&request).unwrap()))
        .await
        .expect(200);
    std::fs::write(&response, answer.body).unwrap();
    let at = at.unix_timestamp().to_string();
    let verify = [
        "-respin",
        response_path,
        "-CAfile",
        roots,
        "-verify_other",
        issuer,
        "-attime",
        &at,
    ];
    // This command of OpenSSL compares the response's time with the present time.
    let any_time = ["-validity_period", "1000000"];
    let (_, said) = openssl(&[&which[..], &verify, &any_time].concat()).await;
    assert!(said.contains("Response verify OK"), "{said}");
    said
}

/// The number of audit entries for each action on a key.
async fn actions(server: &InProcess, action: &str) -> usize {
    let audit = server.get("/v1/admin/audit?resource=sealed-key&limit=500").await.json();
    let entries = audit["items"].as_array().unwrap();
    entries.iter().filter(|entry| entry["action"] == action).count()
}

/// The path of a CA's revocation list.
fn list_of(ca: &str) -> String {
    format!("/v1/ca/crl/{ca}")
}

/// Whether the chain has an issuing CA, its root, and this many other certificates.
async fn has_others(api: &Api, others: usize) -> bool {
    certificates(&read(api, "/v1/ca/chain.pem").await) == 2 + others
}

async fn issues(api: &Api, ca: &str) -> bool {
    let [current, ca] = [
        api.get("/v1/ca/issuer.cer").await,
        api.get(&format!("/v1/ca/issuer/{ca}")).await,
    ];
    current.body == ca.expect(200).body
}

#[tokio::test]
async fn replacing_the_issuing_ca_under_load_refuses_no_call() {
    let replicas = Replicas::start(&[]).await;
    let mut members = [replicas.enroll(0).await, replicas.enroll(1).await];
    replicas.serve(&mut members).await;
    let old = identifier(&replicas.status().await, "issuing_cas", "current");
    let of_old = replicas.enroll(0).await;

    // Both replicas publish it with its list. It does not sign yet.
    let said = replicas.command(&["ca", "rotate"]).await;
    replicas
        .serve_until(&mut members, async |api| has_others(api, 1).await)
        .await;
    let status = replicas.status().await;
    let next = identifier(&status, "issuing_cas", "next");
    assert!(said.starts_with(&format!("{next} is prepared")), "{said}");
    assert_eq!(identifier(&status, "issuing_cas", "current"), old);
    replicas
        .until(async |api| api.get(&list_of(&next)).await.status == 200)
        .await;

    // It signs now. Certificates of the old CA are still valid.
    replicas.clock.advance(Duration::days(1) + Duration::minutes(1));
    replicas
        .serve_until(&mut members, async |api| issues(api, &next).await)
        .await;
    replicas.serve(&mut members).await;
    for at in [0, 1] {
        replicas.present(&of_old, at).await;
        both_are_good(&replicas, at, (&of_old, &old), (&members[at], &next)).await;
    }
    status_shows_both(&replicas, &old, &next).await;
    revocation_is_on_the_old_list(&replicas, &of_old, &old).await;

    // All that the old CA has signed has expired.
    replicas.clock.advance(Duration::days(6));
    replicas.serve(&mut members).await;
    let there = &replicas.servers[1];
    until(there.api(), async |api| api.get(&list_of(&old)).await.status == 200).await;
    replicas.clock.advance(Duration::days(3));
    replicas
        .serve_until(&mut members, async |api| has_others(api, 0).await)
        .await;
    for path in [list_of(&old), format!("/v1/ca/issuer/{old}")] {
        let _gone = there.api().get(&path).await.expect_problem(ProblemKind::NotFound);
    }
    for action in ["key.prepare", "key.supersede", "key.activate", "key.retire"] {
        assert_eq!(actions(there, action).await, 1, "{action}");
    }
}

/// Relying parties accept machines of both CAs. Each CA has its own list and OCSP responder.
async fn both_are_good(replicas: &Replicas, at: usize, old: (&Member, &str), next: (&Member, &str)) {
    let (api, now) = (replicas.servers[at].api(), replicas.clock.now());
    for (member, ca) in [old, next] {
        let (valid, said) = verify(api, &member.chain, now).await;
        assert!(valid, "{said}");
        let said = ocsp(api, ca, &member.chain, now).await;
        assert!(said.contains(": good"), "{said}");
    }
    let [list, of_next] = [api.get("/v1/ca/crl").await, api.get(&list_of(next.1)).await];
    assert_eq!(list.body, of_next.body);
}

async fn status_shows_both(replicas: &Replicas, old: &str, next: &str) {
    let status = replicas.status().await;
    assert_eq!(identifier(&status, "issuing_cas", "previous"), old);
    for ca in status["issuing_cas"].as_array().unwrap() {
        assert!(ca["valid_certificates"].as_u64().unwrap() > 2, "{status:#}");
        assert_eq!(ca["retires_at"].is_string(), ca["state"] == "previous", "{status:#}");
    }
    let said = replicas.command(&["ca", "status"]).await;
    for expected in [
        "Roots",
        "Issuing CAs",
        "Grant keys",
        old,
        next,
        "previous",
        "retires at",
        "valid certificates",
    ] {
        assert!(said.contains(expected), "{expected} in {said}");
    }
}

async fn revocation_is_on_the_old_list(replicas: &Replicas, of_old: &Member, old: &str) {
    let ([here, there], now) = (&replicas.servers, replicas.clock.now());
    let before = there.api().get(&list_of(old)).await;
    let (path, reason) = (format!("{}/revoke", of_old.machine.path()), json!({"reason": "sold"}));
    let _revoked = here.post(&path, &reason).await.expect(200);
    until(there.api(), async |api| {
        api.get(&list_of(old)).await.header("etag") != before.header("etag")
    })
    .await;
    let (valid, said) = verify(there.api(), &of_old.chain, now).await;
    assert!(!valid && said.contains("certificate revoked"), "{said}");
    assert!(ocsp(there.api(), old, &of_old.chain, now).await.contains(": revoked"));
}

#[tokio::test]
async fn of_two_concurrent_rotations_one_wins_and_both_use_its_result() {
    let server = InProcess::start().await;
    for what in [&["ca", "rotate"][..], &["ca", "rotate", "--grant-key"]] {
        let rotations = [(); 3].map(|()| succeeds(server.command(what)));
        let [one, two, three] = rotations;
        let (one, two, three) = tokio::join!(one, two, three);
        let said = [one, two, three];
        let new = said.iter().filter(|said| said.contains("is prepared")).count();
        let before = said.iter().filter(|said| said.contains("was already prepared")).count();
        assert_eq!((new, before), (1, 2), "{said:?}");
        let keys: Vec<&str> = said.iter().map(|said| said.split_once(' ').unwrap().0).collect();
        assert!(keys.iter().all(|key| *key == keys[0]), "{said:?}");
    }
    assert_eq!(actions(&server, "key.prepare").await, 2);
    // A second root cannot be prepared at the same time.
    let refused = run(server.command(&["ca", "rotate", "--root"])).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains("is already prepared"), "{}", refused.stderr);
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_keys_reports_it() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database);
    let _migrated = succeeds(configuration.command(&["migrate"])).await;
    for command in ["status", "rotate", "csr"] {
        let refused = run(configuration.command(&["ca", command])).await;
        assert_eq!(refused.code, Some(1));
        assert!(refused.stderr.contains("has no keys yet"), "{}", refused.stderr);
    }
}

/// The `kid` of a machine's grant token.
async fn kid_of_a_grant(server: &InProcess, machine: &Machine) -> (String, String) {
    let checked_in = machine.check_in(server).await.expect(200).json();
    let token = text(&checked_in["grants"][0], "token");
    let header = URL_SAFE_NO_PAD.decode(token.split('.').next().unwrap()).unwrap();
    let header: Value = serde_json::from_slice(&header).unwrap();
    (text(&header, "kid"), token)
}

async fn kids(api: &Api) -> Vec<String> {
    let keys = api.get("/.well-known/jwks.json").await.expect(200).json();
    let keys = keys["keys"].as_array().unwrap();
    keys.iter().map(|key| text(key, "kid")).collect()
}

/// A grant key is rotated by an administrator, or by its age.
#[rstest]
#[case::by_an_administrator(true)]
#[case::by_age(false)]
#[tokio::test]
async fn a_grant_key_is_published_before_it_signs_and_until_its_tokens_have_expired(#[case] is_asked_for: bool) {
    let replicas = Replicas::start(&[]).await;
    let [here, there] = &replicas.servers;
    let administrator = Administrator::new(here.api().clone(), here.api_key(Role::Admin));
    let member = replicas.enroll(0).await;
    let permission = administrator.permission("build").await;
    administrator.grant(&permission, &member.machine, json!({})).await;
    let (old, _) = kid_of_a_grant(here, &member.machine).await;
    assert_eq!(kids(here.api()).await, std::slice::from_ref(&old));

    if is_asked_for {
        let _prepared = replicas.command(&["ca", "rotate", "--grant-key"]).await;
    } else {
        replicas.let_pass(Duration::days(90) - Duration::hours(1)).await;
        let _renewed = member.machine.renew(here).await.expect(200);
    }
    replicas.until(async |api| kids(api).await.len() == 2).await;
    let next = kids(here.api()).await.remove(1);
    assert_eq!(kids(here.api()).await[0], old, "the one that signs now first");
    let (kid, token) = kid_of_a_grant(there, &member.machine).await;
    assert_eq!(kid, old);

    // An hour later it signs. Tokens of the old key are still valid.
    replicas.clock.advance(Duration::hours(1) + Duration::minutes(1));
    replicas.until(async |api| kids(api).await[0] == next).await;
    let (kid, fresh) = kid_of_a_grant(there, &member.machine).await;
    assert_eq!((&kid, kids(here.api()).await), (&next, vec![next.clone(), old.clone()]));
    let is_active = async |server: &InProcess, token: &str| {
        let introspect = server.request(Method::POST, "/v1/introspect");
        let introspect = introspect.bearer_auth(server.api_key(Role::RelyingParty));
        let answer = server
            .send(
                introspect
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(format!("token={token}")),
            )
            .await;
        answer.expect(200).json()["active"].clone()
    };
    assert_eq!(is_active(here, &fresh).await, true);
    assert_eq!(is_active(here, &token).await, false, "it has expired after ten minutes");

    // The tokens of another audience may have lived for an hour.
    replicas.clock.advance(Duration::minutes(64));
    replicas.until(async |api| kids(api).await.len() == 2).await;
    replicas.clock.advance(Duration::minutes(2));
    replicas.until(async |api| kids(api).await == [next.clone()]).await;
    let _goes_on = member.machine.check_in(here).await.expect(200);
}

/// Relying parties that fetch the keys once a week refuse tokens of a key that they have not seen.
#[tokio::test]
async fn the_status_says_when_which_caches_have_the_next_grant_key() {
    let replicas = Replicas::start(&[("grants.key_overlap", "30d")]).await;
    let before = replicas.clock.now();
    let _prepared = replicas.command(&["ca", "rotate", "--grant-key"]).await;
    let status = replicas.status().await;
    let keys = status["grant_keys"].as_array().unwrap();
    assert!(keys[0]["caches"].is_null(), "{status}");
    let caches = keys[1]["caches"].as_array().unwrap();
    let ages: Vec<_> = caches
        .iter()
        .map(|cache| cache["max_age_seconds"].as_i64().unwrap())
        .collect();
    assert_eq!(ages, [300, 3_600, 86_400, 604_800, 2_592_000]);
    for (cache, age) in caches.iter().zip(ages) {
        let from = OffsetDateTime::parse(cache["from"].as_str().unwrap(), &Rfc3339).unwrap();
        assert!(
            (from - before - Duration::seconds(age)).abs() < Duration::minutes(1),
            "{cache}"
        );
        assert_eq!(cache["in_time"], true, "{cache}");
    }
    let words = replicas.command(&["ca", "status"]).await;
    assert!(words.contains("caches of at most 30 d have it from "), "{words}");
    for (path, cached) in [
        ("jwks.json", "public, max-age=300"),
        ("openid-configuration", "public, max-age=300"),
    ] {
        let answer = replicas.servers[0]
            .api()
            .get(&format!("/.well-known/{path}"))
            .await
            .expect(200);
        assert_eq!(answer.header("cache-control"), Some(cached), "{path}");
    }
}

/// A client chooses its certificate by the CAs that the server names. Go's offers one only if its issuer is among them.
#[tokio::test]
async fn the_server_names_new_roots_and_issuing_cas_in_its_request_for_a_certificate() {
    let replicas = Replicas::start(&[("certificates.root_overlap", "1s"), ("certificates.ca_overlap", "1s")]).await;
    let named = async || {
        let address = replicas.servers[0].address().to_string();
        let (_, said) = openssl(&["s_client", "-connect", &address, "-servername", "localhost"]).await;
        let (_, names) = said
            .split_once("Acceptable client certificate CA names")
            .expect("no names");
        let names = names.lines().skip(1).take_while(|line| line.contains("CN"));
        names.map(str::to_owned).collect::<BTreeSet<_>>()
    };
    let before = named().await;
    assert_eq!(before.len(), 2, "a root and an issuing CA: {before:?}");
    let _prepared = replicas.command(&["ca", "rotate", "--root"]).await;
    let begun = Instant::now();
    while named().await.len() != 4 {
        assert!(
            begun.elapsed() < NOTICED_WITHIN,
            "the names do not follow: {:?}",
            named().await
        );
    }
    assert!(named().await.is_superset(&before));
}

#[tokio::test]
async fn the_issuing_ca_is_replaced_automatically_long_before_it_expires() {
    let replicas = Replicas::start(&[]).await;
    let mut members = [replicas.enroll(0).await, replicas.enroll(1).await];
    let first = identifier(&replicas.status().await, "issuing_cas", "current");
    let is_published = async |api: &Api| has_others(api, 1).await;
    let [here, there] = &replicas.servers;
    // A machine that was away for longer than its renewal grace must enroll again.
    for _ in 0..6 {
        replicas.let_pass(Duration::days(80)).await;
        replicas.serve(&mut members).await;
        assert!(
            !is_published(here.api()).await,
            "two thirds of its two years are not over"
        );
    }
    replicas.clock.advance(Duration::days(8));
    replicas.serve_until(&mut members, is_published).await;
    replicas.clock.advance(Duration::days(1) + Duration::minutes(1));
    let old = here.api().get(&format!("/v1/ca/issuer/{first}")).await.expect(200).body;
    let is_replaced = async |api: &Api| api.get("/v1/ca/issuer.cer").await.body != old;
    replicas.serve_until(&mut members, is_replaced).await;
    for server in [here, there] {
        assert!(
            certificates(&read(server.api(), "/v1/ca/bundle.pem").await) == 1,
            "under the same root"
        );
    }
}

#[tokio::test]
async fn a_rotation_continues_after_a_restart() {
    let database = Database::create().await;
    let server = InProcess::start_on(&database.url(), &[]).await;
    let said = succeeds(server.command(&["ca", "rotate"])).await;
    let next = said.split_once(' ').unwrap().0;
    let later = server.clock().now() + Duration::days(2);
    server.stop().await;
    let server = InProcess::start_at(later, &database.url(), &[]).await;
    assert!(issues(server.api(), next).await);
    let _enrolled = server.enrolled("AFTERWARDS").await;
    server.stop().await;
}

/// A server that was off so long that its issuing CA has expired, and in the second case its root, too.
#[rstest]
#[case::the_issuing_ca(19 * 365, 1)]
#[case::the_root_too(21 * 365, 0)]
#[tokio::test]
async fn a_server_with_expired_cas_creates_others_at_start(#[case] days: i64, #[case] cross_certificates: usize) {
    let database = Database::create().await;
    let server = InProcess::start_on(&database.url(), &[]).await;
    let machine = server.enrolled("LONG-AGO").await;
    let later = server.clock().now() + Duration::days(days);
    server.stop().await;
    let server = InProcess::start_at(later, &database.url(), &[]).await;
    let _enrolled = server.enrolled("NOW").await;
    let refused = machine.check_in(&server).await;
    let _still_known = refused.expect_problem(ProblemKind::RenewalExpired);
    let bundle = read(server.api(), "/v1/ca/bundle.pem").await;
    assert_eq!(
        certificates(&bundle),
        2,
        "the old root would cut the new CA's life short"
    );
    assert_eq!(certificates(&trust_bundle(&server).await), 2 + cross_certificates);
    assert_eq!(actions(&server, "key.certify").await, cross_certificates);
    server.stop().await;
    // A cross-certificate ends with the root that signed it.
    let server = InProcess::start_at(later + Duration::days(400), &database.url(), &[]).await;
    let bundle = read(server.api(), "/v1/ca/bundle.pem").await;
    assert_eq!(trust_bundle(&server).await, bundle);
    assert_eq!(
        actions(&server, "key.remove-cross-certificate").await,
        cross_certificates
    );
    server.stop().await;
}

/// The trust bundle that a machine gets.
async fn trust_bundle(server: &InProcess) -> String {
    let token = server.enrollment_token(json!({})).await;
    let enrolled = Machine::new().enroll(server, Some(&token)).await.expect(201).json();
    text(&enrolled, "trust_bundle")
}

/// Three machines that were set up by the fingerprint of the root.
async fn set_up_by_fingerprint(installation: &Installation, fingerprint: &str) -> [Mac; 3] {
    let macs = [(); 3].map(|()| Mac::new(installation));
    for mac in &macs {
        let token = installation.administrator().token(json!({})).await.secret;
        let enroll = ["enroll", "--server", mac.url(), "--ca-fingerprint", fingerprint];
        let _enrolled = mac.run(&[&enroll[..], &["--token", &token]].concat(), DONE).await;
    }
    macs
}

/// The agent's record.
fn state(mac: &Mac) -> Value {
    serde_json::from_slice(&std::fs::read(mac.state().join("state.json")).unwrap()).unwrap()
}

/// Makes the prepared key sign now, in the database. These servers use the system's clock, which a test cannot set.
async fn overlap_is_over(database: &Database<'_>) {
    let mut transaction = database.pool().await.begin().await.unwrap();
    for statement in [
        "UPDATE sealed_keys SET signs_from = now() WHERE state = 'next'",
        "UPDATE settings SET authority_version = authority_version + 1",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

/// Waits until the server's own certificate is under this root, of which nothing else leads to it.
async fn root_is_replaced(installation: &Installation, root: &str) {
    let origin = format!("https://{}", installation.servers[0].address());
    let begun = Instant::now();
    loop {
        let by_the_new_root = Api::new(&origin, &origin, root);
        if Answer::or_error(by_the_new_root.request(Method::GET, "/healthz"))
            .await
            .is_ok()
        {
            return;
        }
        assert!(
            begun.elapsed() < NOTICED_WITHIN,
            "the server's certificate stays as it was"
        );
    }
}

/// Replaces the root, and returns the new one.
async fn rotate_root(installation: &Installation, database: &Database<'_>) -> String {
    let api = installation.api(0);
    let before = certificates(&read(&api, "/v1/ca/bundle.pem").await);
    let rotate = installation.servers[0].configuration();
    let _rotated = succeeds(rotate.command(&["ca", "rotate", "--root"])).await;
    let is_published = async |api: &Api| certificates(&read(api, "/v1/ca/bundle.pem").await) == before + 1;
    until(&api, is_published).await;
    let status = succeeds(rotate.command(&["ca", "status", "--json"])).await;
    let status: Value = serde_json::from_str(&status).unwrap();
    let roots = status["roots"].as_array().unwrap();
    let next = text(
        roots.iter().find(|root| root["state"] == "next").unwrap(),
        "fingerprint",
    );
    let bundle = pem::parse_many(read(&api, "/v1/ca/bundle.pem").await).unwrap();
    let root = bundle.iter().find(|root| fingerprint(root.contents()) == next);
    let root = pem::encode(root.unwrap());
    overlap_is_over(database).await;
    root_is_replaced(installation, &root).await;
    root
}

fn fingerprint(der: &[u8]) -> String {
    hex::encode(digest(&SHA256, der))
}

/// The roots that an agent trusts.
fn trusted(mac: &Mac) -> Vec<Vec<u8>> {
    ders(&text(&state(mac)["server"]["trust"], "certificates"))
}

/// Certificates in DER.
fn ders(pem: &str) -> Vec<Vec<u8>> {
    let certificates = pem::parse_many(pem).unwrap().into_iter();
    certificates.map(pem::Pem::into_contents).collect()
}

#[tokio::test]
async fn machines_learn_a_new_root_by_check_in_before_it_issues_anything() {
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let api = installation.api(0);
    let root = pem::parse(&installation.roots).unwrap();
    let old = fingerprint(root.contents());
    let [follows, sleeps, sleeps_longer] = set_up_by_fingerprint(&installation, &old).await;

    let command = |arguments: &[&str]| installation.servers[0].configuration().command(arguments);
    let _rotated = succeeds(command(&["ca", "rotate", "--root"])).await;
    until(&api, async |api| {
        certificates(&read(api, "/v1/ca/bundle.pem").await) == 2
    })
    .await;
    let _checked_in = follows.run(&["run", "--once"], DONE).await;
    let bundle = read(&api, "/v1/ca/bundle.pem").await;
    let remembered = text(&state(&follows)["machine"], "trust_bundle");
    assert!(remembered.starts_with(&bundle));
    assert_eq!(certificates(&remembered), 3, "the roots and a cross-certificate");
    assert!(
        read(&api, "/v1/ca/chain.pem")
            .await
            .ends_with(&remembered[bundle.len()..])
    );
    assert_eq!(trusted(&follows), ders(&bundle));
    let [first, second] = pem::parse_many(&bundle).unwrap().try_into().unwrap();
    assert_eq!(
        first.contents(),
        root.contents(),
        "the root of the CA that issues now comes first"
    );

    overlap_is_over(&database).await;
    root_is_replaced(&installation, &pem::encode(&second)).await;
    let _checked_in = follows.run(&["run", "--once"], DONE).await;
    let _renewed = follows.run(&["renew"], DONE).await;
    let _woke = sleeps.run(&["run", "--once"], DONE).await;
    assert_eq!(trusted(&sleeps).len(), 2);
    // Each fingerprint trusts the server, and a bundle drops no root that it still has.
    let current = fingerprint(second.contents());
    for (mac, fingerprint, roots) in [(&follows, &old, 2), (&sleeps, &current, 1)] {
        let enroll = ["enroll", "--server", mac.url(), "--ca-fingerprint", fingerprint];
        let _again = mac.run(&enroll, DONE).await;
        assert_eq!(trusted(mac).len(), roots);
        let _checked_in = mac.run(&["run", "--once"], DONE).await;
    }

    let third = ders(&rotate_root(&installation, &database).await);
    retire_previous(&database).await;
    until(&api, async |api| ders(&read(api, "/v1/ca/bundle.pem").await) == third).await;
    for mac in [&sleeps_longer, &sleeps, &follows] {
        let _woke = mac.run(&["run", "--once"], DONE).await;
        assert_eq!(trusted(mac), third);
    }
    // It was set up by the first root, and only certificates lead from there.
    let enroll = ["enroll", "--server", follows.url(), "--ca-fingerprint", &old];
    let _again = follows.run(&enroll, DONE).await;
    assert_eq!(trusted(&follows), third);
    let unknown = Mac::new(&installation);
    let enroll = ["enroll", "--server", unknown.url(), "--ca-fingerprint", &old];
    let said = unknown.run(&enroll, FAILED).await;
    assert!(
        said.contains("none of the server's roots has the fingerprint"),
        "{said}"
    );
}

/// Every previous key is retired, as it would be long after.
async fn retire_previous(database: &Database<'_>) {
    let mut transaction = database.pool().await.begin().await.unwrap();
    for statement in [
        "UPDATE sealed_keys SET state = 'retired', sealed = NULL, retired_at = now() WHERE state = 'previous'",
        "UPDATE settings SET authority_version = authority_version + 1",
    ] {
        sqlx::query(statement).execute(&mut *transaction).await.unwrap();
    }
    transaction.commit().await.unwrap();
}

/// A command that fails, and what it says.
async fn fails(command: Command) -> String {
    let outcome = run(command).await;
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(1), ""));
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    outcome.stderr
}

async fn fails_with(command: Command, expected: &str) {
    let said = fails(command).await;
    assert!(said.contains(expected), "{said}");
}

/// Both replicas know this CA.
async fn is_published(replicas: &Replicas, ca: &str) {
    let path = format!("/v1/ca/issuer/{ca}");
    replicas.until(async |api| api.get(&path).await.status == 200).await;
}

/// A withdrawn CA's machines can be told apart by the root's list, on each replica.
async fn is_revoked_by_the_root(replicas: &Replicas, revoked: &str, valid: &str) {
    for server in &replicas.servers {
        until(server.api(), async |api| {
            let (valid, said) = verify(api, revoked, replicas.clock.now()).await;
            !valid && said.contains("certificate revoked")
        })
        .await;
        let (valid, said) = verify(server.api(), valid, replicas.clock.now()).await;
        assert!(valid, "{said}");
    }
}

/// The root's OCSP responder says this of issuing CAs, on each replica.
async fn ocsp_says(replicas: &Replicas, expected: &[(&str, &str)]) {
    let root = identifier(&replicas.status().await, "roots", "current");
    for server in &replicas.servers {
        for (ca, status) in expected {
            let der = server.api().get(&format!("/v1/ca/issuer/{ca}")).await.expect(200).body;
            let issuing = pem::encode(&pem::Pem::new("CERTIFICATE", der)).replace("\r\n", "\n");
            let said = ocsp(server.api(), &root, &issuing, replicas.clock.now()).await;
            assert!(said.contains(status), "{said}");
        }
    }
}

#[tokio::test]
async fn a_withdrawn_issuing_ca_is_named_to_machines_and_on_the_roots_list() {
    let replicas = Replicas::start(&[("certificates.ca_overlap", "1s")]).await;
    let [here, there] = &replicas.servers;
    let of_old = replicas.enroll(0).await;
    let old = identifier(&replicas.status().await, "issuing_cas", "current");
    fails_with(here.command(&["ca", "withdraw", &old]), "has not been replaced yet").await;
    let _prepared = replicas.command(&["ca", "rotate"]).await;
    let next = identifier(&replicas.status().await, "issuing_cas", "next");
    fails_with(here.command(&["ca", "withdraw", &next]), "has not been replaced yet").await;
    for unknown in ["00ff", "nonsense"] {
        let expected = "no issuing CA of this server has the key identifier";
        fails_with(here.command(&["ca", "withdraw", unknown]), expected).await;
    }
    is_published(&replicas, &next).await;
    // The command has the system's clock, which went on while that of the servers did not.
    replicas.clock.advance(Duration::hours(1));
    replicas.until(async |api| issues(api, &next).await).await;
    let checked_in = of_old.machine.check_in(there).await.expect(200).json();
    assert!(checked_in.get("withdrawn_issuers").is_none());
    let (valid, said) = verify(there.api(), &of_old.chain, replicas.clock.now()).await;
    assert!(valid, "{said}");

    let said = replicas.command(&["ca", "withdraw", &old.to_uppercase()]).await;
    assert_eq!(said.trim(), format!("{old} is withdrawn"));
    let said = replicas.command(&["ca", "withdraw", &old]).await;
    assert!(said.contains("was already withdrawn"), "{said}");
    assert_eq!(actions(there, "key.withdraw").await, 1);
    let is_announced = async |_: &Api| {
        let events = there.items("/v1/admin/events?kind=issuing-ca.withdrawn").await;
        events.len() == 1 && events[0]["machine_id"].is_null() && events[0]["detail"]["key_identifier"] == old.as_str()
    };
    until(there.api(), is_announced).await;
    replicas.until(async |api| has_others(api, 0).await).await;
    let named = json!([old]);
    for server in [here, there] {
        let checked_in = of_old.machine.check_in(server).await.expect(200).json();
        assert_eq!(checked_in["withdrawn_issuers"], named);
    }
    let renewed = of_old.machine.renew(there).await.expect(200).json();
    let token = here.enrollment_token(json!({})).await;
    let enrolled = Machine::new().enroll(here, Some(&token)).await.expect(201).json();
    assert_eq!(
        [&renewed["withdrawn_issuers"], &enrolled["withdrawn_issuers"]],
        [&named; 2]
    );

    let chain = text(&renewed["certificate"], "chain");
    is_revoked_by_the_root(&replicas, &of_old.chain, &chain).await;
    ocsp_says(&replicas, &[(&old, ": revoked"), (&next, ": good")]).await;
    assert!(replicas.command(&["ca", "status"]).await.contains("withdrawn at"));
    // It stays withdrawn after it is retired.
    replicas.let_pass(Duration::days(10)).await;
    replicas
        .until(async |api| api.get(&list_of(&old)).await.status == 404)
        .await;
    let enrolled = replicas.enroll(1).await;
    let checked_in = enrolled.machine.check_in(here).await.expect(200).json();
    assert_eq!(checked_in["withdrawn_issuers"], named);
}

#[tokio::test]
async fn an_agent_renews_a_certificate_of_a_withdrawn_ca_and_accepts_the_ca_no_more() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database).set("certificates.ca_overlap", "1s");
    let installation = Installation::start(&unlimited(configuration)).await;
    let (mac, api) = (Mac::new(&installation), installation.api(0));
    let token = installation.administrator().token(json!({})).await.secret;
    let _enrolled = mac.enroll(&token, DONE).await;
    let command = |arguments: &[&str]| installation.servers[0].configuration().command(arguments);
    let status = succeeds(command(&["ca", "status", "--json"])).await;
    let old = identifier(&serde_json::from_str(&status).unwrap(), "issuing_cas", "current");
    let said = succeeds(command(&["ca", "rotate"])).await;
    let next = said.split_once(' ').unwrap().0;
    let path = format!("/v1/ca/issuer/{next}");
    until(&api, async |api| api.get(&path).await.status == 200).await;
    until(&api, async |api| issues(api, next).await).await;
    // An agent that knows of the withdrawal refuses the TLS certificate of the old CA.
    let replaced = installation.servers[0]
        .wait_for_message("replaced the TLS certificate")
        .await;
    assert!(replaced.is_some());
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let before = text(&state(&mac)["machine"]["certificate"], "chain");
    let _withdrawn = succeeds(command(&["ca", "withdraw", &old])).await;
    until(&api, async |api| has_others(api, 0).await).await;
    let _told = mac.run(&["run", "--once"], DONE).await;
    let state = state(&mac);
    assert_eq!(state["server"]["withdrawn"], json!([old]));
    assert_ne!(text(&state["machine"]["certificate"], "chain"), before);
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
}

#[tokio::test]
async fn a_check_in_returns_the_roots_to_a_machine_with_other_roots() {
    let server = InProcess::start().await;
    let machine = server.enrolled("ROOTS").await;
    let bundle = read(server.api(), "/v1/ca/bundle.pem").await;
    let same = URL_SAFE_NO_PAD.encode(digest(&SHA256, bundle.as_bytes()));
    for (names, brought) in [
        (json!(null), Value::Null),
        (json!(same), Value::Null),
        (json!(""), json!(bundle)),
        (json!("x".repeat(1000)), json!(bundle)),
    ] {
        let mut body = machine.check_in_body(server.audience(), &server.nonce().await);
        body["trust_bundle_sha256"] = names;
        let answer = server.call("/v1/check-in", &body).await.expect(200).json();
        assert_eq!(answer["trust_bundle"], brought, "{body}");
    }
    server.stop().await;
}
