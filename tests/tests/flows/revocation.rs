//! How relying parties learn of a revocation: revocation lists and OCSP, read by OpenSSL.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use assay_protocol::{ProblemKind, sha256};
use assay_server::clock::Clock;
use assay_tests::administrator::{Administrator, text};
use assay_tests::answer::Answer;
use assay_tests::api::{Api, Called};
use assay_tests::in_process::{InProcess, REVOCATION_URL};
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use base64::{Engine, engine::general_purpose::STANDARD};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use http::Method;
use serde_json::json;
use time::format_description::{BorrowedFormatItem, well_known::Rfc2822};
use time::macros::format_description;
use time::{Duration, OffsetDateTime};
use tokio::time::timeout;

use assay_tests::openssl::{Files, openssl};

/// How often the test looks before it fails.
const LOOKS: u32 = 20_000;
pub(super) const OCSP_REQUEST: &str = "application/ocsp-request";
/// As OpenSSL prints a time.
const OPENSSL_TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[month repr:short] [day padding:space] [hour]:[minute]:[second] [year] GMT");

/// A relying party's files with certificates and keys.
pub(super) struct RelyingParty {
    pub(super) files: Files,
    api: Api,
}

/// The chain of an enrolled machine.
pub(super) struct Enrolled {
    pub(super) machine: Machine,
    pub(super) serial_number: String,
    pub(super) chain: PathBuf,
}

impl RelyingParty {
    pub(super) async fn of(api: &Api) -> Self {
        let files = Files::new();
        for (name, path) in [("roots.pem", "/v1/ca/bundle.pem"), ("chain.pem", "/v1/ca/chain.pem")] {
            files.write(name, api.get(path).await.expect(200).text());
        }
        Self {
            files,
            api: api.clone(),
        }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.files.path(name).to_str().unwrap().to_owned()
    }

    pub(super) async fn enroll(&self, administrator: &Administrator) -> Enrolled {
        let machine = Machine::new();
        let token = administrator.token(json!({})).await;
        let enrolled = machine.enroll(&self.api, Some(&token.secret)).await.expect(201).json();
        let serial_number = text(&enrolled["certificate"], "serial_number");
        let name = format!("{serial_number}.pem");
        Enrolled {
            machine,
            chain: self.files.write(&name, text(&enrolled["certificate"], "chain")),
            serial_number,
        }
    }

    /// Fetches the lists, and checks the certificates of a machine's path against them: all, or only the first.
    async fn verify(&self, api: &Api, enrolled: &Enrolled, check: &str) -> (bool, String) {
        let lists = api.get("/v1/ca/crls.pem").await.expect(200);
        self.verify_by(&lists, enrolled, check).await
    }

    /// Checks the certificates of a machine's path against these lists: all, or only the first.
    pub(super) async fn verify_by(&self, lists: &Answer, enrolled: &Enrolled, check: &str) -> (bool, String) {
        let lists = self.files.write("crls.pem", lists.text());
        let chain = enrolled.chain.to_str().unwrap();
        let (roots, lists) = (self.path("roots.pem"), lists.to_str().unwrap().to_owned());
        openssl(&[
            "verify",
            "-x509_strict",
            check,
            "-CRLfile",
            &lists,
            "-CAfile",
            &roots,
            "-untrusted",
            chain,
            chain,
        ])
        .await
    }

    /// A request from OpenSSL, in DER.
    pub(super) async fn ocsp_request(&self, which: &[&str], nonce: &str) -> Vec<u8> {
        let (chain, out) = (self.path("chain.pem"), self.path("request.der"));
        let (made, said) = openssl(&[&["ocsp", "-issuer", &chain], which, &[nonce, "-reqout", &out]].concat()).await;
        assert!(made, "{said}");
        fs::read(out).unwrap()
    }

    /// OpenSSL's report on a response.
    pub(super) async fn read_response(&self, response: &Answer, which: &[&str]) -> String {
        let (roots, chain) = (self.path("roots.pem"), self.path("chain.pem"));
        let name = self.files.write("response.der", &response.body);
        let arguments = [
            "-respin",
            name.to_str().unwrap(),
            "-CAfile",
            &roots,
            "-verify_other",
            &chain,
        ];
        let (_, said) = openssl(&[&["ocsp", "-issuer", &chain], which, &arguments].concat()).await;
        said
    }

    /// Sends a request, and returns OpenSSL's report on the response.
    pub(super) async fn ask(&self, api: &Api, which: &[&str], nonce: &str) -> String {
        let request = self.ocsp_request(which, nonce).await;
        let response = post(api, &request).await;
        let request = self.path("request.der");
        // Compared with the request: the nonce is the same.
        let said = self.read_response(&response, &["-reqin", &request]).await;
        assert!(said.contains("Response verify OK") && !said.contains("rror"), "{said}");
        self.read_response(&response, &[which, &["-no_nonce"]].concat()).await
    }

    /// Lets OpenSSL send the request itself.
    pub(super) async fn ask_by_openssl(&self, api: &Api, which: &[&str], nonce: &str) -> String {
        let (roots, chain) = (self.path("roots.pem"), self.path("chain.pem"));
        let url = api.url("/v1/ca/ocsp");
        let arguments = ["-url", &url, "-CAfile", &roots, "-verify_other", &chain, nonce];
        let (_, said) = openssl(&[&["ocsp", "-issuer", &chain], which, &arguments].concat()).await;
        assert!(
            said.contains("Response verify OK") && !said.contains("WARNING"),
            "{said}"
        );
        said
    }
}

pub(super) async fn post(api: &Api, request: &[u8]) -> Answer {
    let post = api
        .request(Method::POST, "/v1/ca/ocsp")
        .header("content-type", OCSP_REQUEST);
    let answer = Answer::to(post.body(request.to_vec())).await.expect(200);
    assert_eq!(answer.header("content-type"), Some("application/ocsp-response"));
    answer
}

/// Repeats a request until the response is as expected.
pub(super) async fn await_answer(api: &Api, path: &str, is_right: impl AsyncFn(&Answer) -> bool) -> Answer {
    let begun = Instant::now();
    for _ in 0..LOOKS {
        let answer = api.get(path).await;
        if is_right(&answer).await {
            return answer;
        }
        assert!(
            begun.elapsed().as_secs() < 60,
            "{path} is not right for a minute: {answer}"
        );
    }
    panic!("{path} was never right");
}

/// The list at a path, as soon as it differs from this one.
async fn next_list(api: &Api, path: &str, than: &Answer) -> Answer {
    let tag = than.header("etag").unwrap().to_owned();
    let is_another = async |answer: &Answer| answer.status == 200 && answer.header("etag") != Some(&tag);
    await_answer(api, path, is_another).await
}

/// OpenSSL's report on a list, after it has verified it.
async fn read_list(files: &Files, list: &Answer, ca: &str) -> String {
    let name = files.write("list.der", &list.body);
    let (read, said) = openssl(&[
        "crl",
        "-inform",
        "DER",
        "-in",
        name.to_str().unwrap(),
        "-CAfile",
        ca,
        "-noout",
        "-text",
        "-verify",
    ])
    .await;
    assert!(read && said.contains("verify OK"), "{said}");
    said
}

pub(super) async fn revoke(administrator: &Administrator, serial_number: &str, reason: &str) {
    let path = format!("certificates/{serial_number}/revoke");
    let _revoked = administrator
        .call(Method::POST, &path, Some(&json!({"reason": reason})))
        .await
        .expect(200);
}

#[tokio::test]
async fn every_replica_publishes_a_revocation_by_crl_and_ocsp() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let party = RelyingParty::of(&apis[0]).await;
    let (good, revoked, out) = (
        party.enroll(&administrator).await,
        party.enroll(&administrator).await,
        party.enroll(&administrator).await,
    );
    for enrolled in [&good, &revoked, &out] {
        for check in ["-crl_check", "-crl_check_all"] {
            let (accepted, said) = party.verify(&apis[1], enrolled, check).await;
            assert!(accepted, "{said}");
        }
    }
    let before = apis[1].get("/v1/ca/crl").await.expect(200);

    revoke(&administrator, &revoked.serial_number, "affiliation_changed").await;
    let _out = administrator
        .decide(out.machine.id(), "revoke", "sold")
        .await
        .expect(200);

    for api in &apis {
        for (enrolled, expected) in [(&revoked, "affiliationChanged"), (&out, "(UNKNOWN)")] {
            // Immediately, with and without a nonce, because responses come from the database. This command of OpenSSL
            // has no name for the reason `privilegeWithdrawn`.
            let serial_number = format!("0x{}", enrolled.serial_number);
            for nonce in ["-nonce", "-no_nonce"] {
                let said = party.ask_by_openssl(api, &["-serial", &serial_number], nonce).await;
                assert!(said.contains(": revoked") && said.contains(expected), "{said}");
            }
        }
        let has_both = async |answer: &Answer| {
            let said = read_list(&party.files, answer, &party.path("chain.pem"))
                .await
                .to_lowercase();
            [&revoked, &out]
                .iter()
                .all(|enrolled| said.contains(&enrolled.serial_number))
        };
        let list = await_answer(api, "/v1/ca/crl", has_both).await;
        let said = read_list(&party.files, &list, &party.path("chain.pem")).await;
        for expected in [
            "Affiliation Changed",
            "Privilege Withdrawn",
            "X509v3 CRL Number",
            "Next Update",
        ] {
            assert!(said.contains(expected), "{expected}: {said}");
        }
        assert!(!said.to_lowercase().contains(&good.serial_number), "{said}");
        for (enrolled, accepted) in [(&good, true), (&revoked, false), (&out, false)] {
            let verified = party.verify(api, enrolled, "-crl_check_all").await;
            assert_eq!(verified.0, accepted, "{}", verified.1);
            assert_eq!(verified.1.contains("certificate revoked"), !accepted, "{}", verified.1);
        }
    }
    let after = apis[1].get("/v1/ca/crl").await.expect(200);
    assert!(number(&after) > number(&before), "the number rises");
}

#[tokio::test]
async fn ocsp_distinguishes_good_revoked_and_unknown() {
    let server = InProcess::start().await;
    let api = server.api().clone();
    let party = RelyingParty::of(&api).await;
    let machine = server.enrolled("OCSP").await;
    let record = server.get(&machine.path()).await.json();
    let known = format!("0x{}", record["certificate"]["serial_number"].as_str().unwrap());
    for nonce in ["-nonce", "-no_nonce"] {
        for digest in ["-sha1", "-sha256", "-sha384", "-sha512"] {
            let said = party.ask(&api, &[digest, "-serial", &known], nonce).await;
            assert!(said.contains(": good"), "{said}");
            // A certificate is unknown if it was never issued, or if another CA issued it, such as the root here.
            let said = party.ask(&api, &[digest, "-serial", "0x4242"], nonce).await;
            assert!(said.contains(": unknown"), "{said}");
        }
    }
    let roots = party.path("roots.pem");
    let request = party.path("other.der");
    let (made, said) = openssl(&[
        "ocsp",
        "-issuer",
        &roots,
        "-serial",
        &known,
        "-no_nonce",
        "-reqout",
        &request,
    ])
    .await;
    assert!(made, "{said}");
    let response = post(&api, &fs::read(&request).unwrap()).await;
    let file = party.files.write("response.der", &response.body);
    let (_, said) = openssl(&["ocsp", "-respin", file.to_str().unwrap(), "-noverify", "-resp_text"]).await;
    assert!(said.contains("Cert Status: unknown"), "{said}");

    // Several certificates in one request.
    let said = party
        .ask(&api, &["-serial", &known, "-serial", "0x4242"], "-nonce")
        .await;
    assert!(said.contains(": good") && said.contains(": unknown"), "{said}");
    server.stop().await;
}

#[tokio::test]
async fn ocsp_works_by_get_and_its_responses_can_be_cached() {
    let server = InProcess::start().await;
    let api = server.api().clone();
    let party = RelyingParty::of(&api).await;
    let machine = server.enrolled("GET").await;
    let record = server.get(&machine.path()).await.json();
    let known = format!("0x{}", record["certificate"]["serial_number"].as_str().unwrap());
    let which = ["-serial", known.as_str()];
    let request = party.ocsp_request(&which, "-no_nonce").await;
    let encoded = STANDARD.encode(&request);
    let escaped = encoded.replace('/', "%2F").replace('+', "%2B").replace('=', "%3D");
    let url_safe = encoded.replace('/', "_").replace('+', "-");
    // Some clients append a slash to the URL in the certificate.
    let doubled = format!("/{encoded}");
    for written in [&encoded, &escaped, &url_safe, &doubled, encoded.trim_end_matches('=')] {
        let answer = api.get(&format!("/v1/ca/ocsp/{written}")).await.expect(200);
        let said = party.read_response(&answer, &which).await;
        assert!(
            said.contains("Response verify OK") && said.contains(": good"),
            "{written}: {said}"
        );
        assert_eq!(
            answer.header("cache-control"),
            Some("public, max-age=2, no-transform, must-revalidate")
        );
        let tag = format!("\"{}\"", hex::encode(sha256(&answer.body)));
        assert_eq!(answer.header("etag"), Some(tag.as_str()));
        // The headers say what the response says, and it is valid for five minutes.
        let time = |name: &str| {
            let text = answer.header(name).unwrap();
            OffsetDateTime::parse(&text.replace("GMT", "+0000"), &Rfc2822).unwrap()
        };
        let [from, until] = ["last-modified", "expires"].map(time);
        assert_eq!(until - from, Duration::minutes(5));
        // A verifier whose clock is half a minute behind accepts it.
        assert!(from <= server.clock().now() - Duration::seconds(30), "{from}");
        for (name, time) in [("This Update", from), ("Next Update", until)] {
            let shown = time.format(OPENSSL_TIME).unwrap();
            assert!(said.contains(&format!("{name}: {shown}")), "{name} {shown}: {said}");
        }
    }
    let with_nonce = STANDARD
        .encode(party.ocsp_request(&which, "-nonce").await)
        .replace('/', "%2F");
    let answer = api.get(&format!("/v1/ca/ocsp/{with_nonce}")).await.expect(200);
    assert_eq!(answer.header("cache-control"), Some("no-store"));
    server.stop().await;
}

#[tokio::test]
async fn a_malformed_ocsp_request_gets_an_ocsp_error() {
    let server = InProcess::start().await;
    let api = server.api().clone();
    const MALFORMED: [u8; 5] = [0x30, 3, 0x0a, 1, 1];
    for body in [
        &b""[..],
        b"0",
        b"not DER",
        &[0x30, 0x80],
        &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        &[0; 60_000],
    ] {
        assert_eq!(post(&api, body).await.body, MALFORMED);
    }
    for path in ["AAAA", "%00", "!!!!", "MAA%3D", "a/b/c/", "%ff"] {
        let answer = api.get(&format!("/v1/ca/ocsp/{path}")).await.expect(200);
        assert_eq!(answer.body, MALFORMED, "{path}");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    let sent = |body: Vec<u8>, media_type: &str| {
        let post = api
            .request(Method::POST, "/v1/ca/ocsp")
            .header("content-type", media_type);
        Answer::to(post.body(body))
    };
    let _large = sent(vec![0; 65 * 1024], OCSP_REQUEST)
        .await
        .expect_problem(ProblemKind::PayloadTooLarge);
    // The type is without case, and may have parameters (RFC 9110, section 8.3.1).
    for media_type in ["Application/OCSP-Request", "application/ocsp-request; charset=utf-8"] {
        assert_eq!(
            sent(Vec::new(), media_type).await.expect(200).body,
            MALFORMED,
            "{media_type}"
        );
    }
    let _json = sent(b"{}".to_vec(), "application/json")
        .await
        .expect_problem(ProblemKind::UnsupportedMediaType);
    server.stop().await;
}

#[tokio::test]
async fn an_unchanged_crl_is_not_sent_again() {
    let server = InProcess::start().await;
    let api = server.api().clone();
    let list = await_answer(&api, "/v1/ca/crl", async |answer| answer.status == 200).await;
    let tag = list.header("etag").unwrap();
    assert_eq!(list.header("content-type"), Some("application/pkix-crl"));
    assert!(list.header("cache-control").unwrap().contains("max-age=2"), "{list}");
    let machine = server.enrolled("TAG").await;
    let by_point = api.get(&path_of_list(&server, &machine).await).await.expect(200);
    assert_eq!((by_point.header("etag"), &by_point.body), (Some(tag), &list.body));
    for path in ["/v1/ca/crl", "/v1/ca/crls.pem"] {
        let tag = api.get(path).await.header("etag").unwrap().to_owned();
        for held in [tag.clone(), format!("W/{tag}"), format!("\"x\", {tag}"), "*".to_owned()] {
            let answer = Answer::to(api.request(Method::GET, path).header("if-none-match", held))
                .await
                .expect(304);
            assert!(answer.body.is_empty());
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
        }
        let _other = Answer::to(api.request(Method::GET, path).header("if-none-match", "\"x\""))
            .await
            .expect(200);
    }
    for unknown in ["00", "xyz", &"0".repeat(40)] {
        let _unknown = api
            .get(&format!("/v1/ca/crl/{unknown}"))
            .await
            .expect_problem(ProblemKind::NotFound);
    }
    server.stop().await;
}

/// The path of the list that a machine's newest certificate names.
pub(crate) async fn path_of_list(server: &InProcess, machine: &Machine) -> String {
    let certificates = server.get(&format!("{}/certificates", machine.path())).await.json();
    let serial_number = text(&certificates["items"][0], "serial_number");
    let read = server
        .get(&format!("/v1/admin/certificates/{serial_number}"))
        .await
        .json();
    let files = Files::new();
    let file = files.write("certificate.pem", text(&read, "pem"));
    let (_, said) = openssl(&[
        "x509",
        "-in",
        file.to_str().unwrap(),
        "-noout",
        "-ext",
        "crlDistributionPoints",
    ])
    .await;
    let uri = said.split("URI:").nth(1).unwrap_or_else(|| panic!("{said}"));
    uri.trim().strip_prefix(REVOCATION_URL).unwrap().to_owned()
}

#[tokio::test]
async fn a_crl_is_renewed_before_it_expires_and_never_published_expired() {
    let server = InProcess::start().await;
    let api = server.api().clone();
    let machine = server.enrolled("LISTED").await;
    let serial_number = text(
        &server.get(&machine.path()).await.json()["certificate"],
        "serial_number",
    );
    let empty = await_answer(&api, "/v1/ca/crl", async |answer| answer.status == 200).await;
    let body = json!({"reason": "superseded"});
    let path = format!("/v1/admin/certificates/{serial_number}/revoke");
    let _revoked = server.post(&path, &body).await.expect(200);
    let listed = next_list(&api, "/v1/ca/crl", &empty).await;
    let chain = RelyingParty::of(&api).await;
    let has = async |list: &Answer| {
        let said = read_list(&chain.files, list, &chain.path("chain.pem"))
            .await
            .to_lowercase();
        said.contains(&serial_number)
    };
    assert!(has(&listed).await);

    // After half a day there is a new list, although nothing was revoked.
    server.clock().advance(Duration::hours(12));
    let again = next_list(&api, "/v1/ca/crl", &listed).await;
    assert!(has(&again).await);
    // The certificate has expired, and is on one more list (RFC 5280, section 3.3).
    server.clock().advance(Duration::days(7));
    let after_end = next_list(&api, "/v1/ca/crl", &again).await;
    assert!(has(&after_end).await);
    server.clock().advance(Duration::days(1) + Duration::hours(1));
    let without = next_list(&api, "/v1/ca/crl", &after_end).await;
    assert!(!has(&without).await);

    // While no server can sign, the list in memory is used until it expires.
    let pool = server.database().pool().await;
    let mut transaction = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE revocation_lists IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await
        .unwrap();
    server.clock().advance(Duration::hours(23));
    let served = api.get("/v1/ca/crl").await.expect(200);
    assert_eq!(served.header("etag"), without.header("etag"));
    server.clock().advance(Duration::hours(1));
    let _run_out = api.get("/v1/ca/crl").await.expect_problem(ProblemKind::Unavailable);
    let _run_out = api
        .get("/v1/ca/crls.pem")
        .await
        .expect_problem(ProblemKind::Unavailable);
    transaction.rollback().await.unwrap();
    let _signed = await_answer(&api, "/v1/ca/crl", async |answer| answer.status == 200).await;
    server.stop().await;
}

/// The time and size for the longest list that a server should have.
#[tokio::test]
async fn a_crl_of_a_hundred_thousand_certificates_is_signed_in_seconds() {
    let server = InProcess::start().await;
    let api = server.api().clone();
    let _machine = server.enrolled("ONE-OF-MANY").await;
    let empty = await_answer(&api, "/v1/ca/crl", async |answer| answer.status == 200).await;
    revoke_many(&server, 100_000).await;
    let begun = Instant::now();
    let list = next_list(&api, "/v1/ca/crl", &empty).await;
    println!(
        "{} bytes, signed and served {:?} after the revocation",
        list.body.len(),
        begun.elapsed()
    );
    let party = RelyingParty::of(&api).await;
    let said = read_list(&party.files, &list, &party.path("chain.pem")).await;
    assert_eq!(said.matches("Serial Number:").count(), 100_000);
    server.stop().await;
}

/// Revokes this many certificates of machines that are no longer on record.
async fn revoke_many(server: &InProcess, count: i32) {
    let insert = "WITH many AS (
            INSERT INTO certificates (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before,
                                      not_after, issued_at, revoked_at, revocation_reason)
            SELECT '4' || lpad(to_hex(n), 31, '0'), gen_random_uuid(), key_thumbprint, issuer_id, sha256, '', not_before,
                   not_after, issued_at, issued_at, 'superseded'
            FROM (SELECT * FROM certificates LIMIT 1) AS issued, generate_series(1, $1) AS n
            RETURNING serial_number, issuer_id)
        INSERT INTO revocations_waiting SELECT serial_number, issuer_id FROM many LIMIT 1";
    let pool = server.database().pool().await;
    sqlx::query(insert).bind(count).execute(&pool).await.unwrap();
}

/// The serial number of a certificate that the storm revokes.
fn of_the_storm(number: usize) -> String {
    format!("5{number:031x}")
}

/// The number of a list.
fn number(list: &Answer) -> u64 {
    let tag = list.header("etag").unwrap().trim_matches('"');
    tag.rsplit('-').next().unwrap().parse().unwrap()
}

/// How many certificates of the storm a list has. They are revoked in their order.
fn listed(list: &Answer) -> usize {
    // The entry begins with a sequence and the integer of 16 bytes.
    let serial_numbers = list.body.windows(18).filter(|entry| entry[..3] == [0x02, 0x10, 0x50]);
    let listed: BTreeSet<_> = serial_numbers.map(|entry| hex::encode(&entry[2..])).collect();
    assert_eq!(listed, (0..listed.len()).map(of_the_storm).collect());
    listed.len()
}

/// Reads a replica's list until it has all that the storm revoked. Returns when each of them was first on it.
async fn watch(api: &Api, all: &Cell<Option<usize>>) -> Vec<Instant> {
    let (mut first_seen, mut tag) = (Vec::new(), String::new());
    while all.get() != Some(first_seen.len()) {
        let unchanged = api.request(Method::GET, "/v1/ca/crl").header("if-none-match", &tag);
        let list = Answer::to(unchanged).await;
        if list.status == 304 {
            continue;
        }
        list.header("etag").unwrap().clone_into(&mut tag);
        let now = Instant::now();
        first_seen.resize(listed(&list), now);
    }
    first_seen
}

/// A list of 100,000 certificates takes about a second to sign. A list for each revocation would occupy all replicas. The
/// build of the tests is not optimized, and takes half as long for a tenth of them.
#[tokio::test]
async fn under_a_storm_few_lists_are_signed_and_each_revocation_is_listed_within_5_s() {
    const LISTED: i32 = 10_000;
    const CERTIFICATES: i32 = 5000;
    const STORM: std::time::Duration = std::time::Duration::from_secs(10);
    const LISTED_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);
    let first = InProcess::start().await;
    let second = InProcess::start_by(first.clock().clone(), &first.database().url(), &[]).await;
    let _machine = first.enrolled("ONE-OF-MANY").await;
    let empty = await_answer(first.api(), "/v1/ca/crl", async |answer| answer.status == 200).await;
    let pool = first.database().pool().await;
    let insert =
        "INSERT INTO certificates (serial_number, machine_id, key_thumbprint, issuer_id, sha256, der, not_before,
                                            not_after, issued_at)
                  SELECT '5' || lpad(to_hex(n), 31, '0'), machine_id, key_thumbprint, issuer_id, sha256, '', not_before,
                         not_after, issued_at
                  FROM certificates, generate_series(0, $1 - 1) AS n";
    sqlx::query(insert).bind(CERTIFICATES).execute(&pool).await.unwrap();
    revoke_many(&first, LISTED).await;
    let before = next_list(first.api(), "/v1/ca/crl", &empty).await;
    let _both = next_list(second.api(), "/v1/ca/crl", &empty).await;

    let all = Cell::new(None);
    let begun = Instant::now();
    let storm = async {
        let mut revoked_at = Vec::new();
        while begun.elapsed() < STORM {
            let path = format!("/v1/admin/certificates/{}/revoke", of_the_storm(revoked_at.len()));
            let replica = [&first, &second][revoked_at.len() % 2];
            let _revoked = replica.post(&path, &json!({"reason": "superseded"})).await.expect(200);
            revoked_at.push(Instant::now());
        }
        all.set(Some(revoked_at.len()));
        revoked_at
    };
    let watched = async { tokio::join!(storm, watch(first.api(), &all), watch(second.api(), &all)) };
    let bound = STORM + std::time::Duration::from_secs(60);
    let (revoked_at, here, there) = timeout(bound, watched).await.expect("a revocation is not listed");

    let longest = [here, there].into_iter().flat_map(|first_seen| {
        let waited = first_seen.into_iter().zip(&revoked_at);
        waited.map(|(seen, revoked_at)| seen.saturating_duration_since(*revoked_at))
    });
    let longest = longest.max().unwrap();
    let after = first.api().get("/v1/ca/crl").await.expect(200);
    let signed = number(&after) - number(&before);
    println!(
        "{} revocations, {signed} lists, listed after at most {longest:?}",
        revoked_at.len()
    );
    assert!(longest <= LISTED_WITHIN, "a revocation was listed after {longest:?}");
    // Every list is kept for two seconds at least.
    let most = begun.elapsed().as_secs() / 2 + 1;
    assert!(signed <= most, "{signed} lists, at most {most}");
    second.stop().await;
    first.stop().await;
}

/// A database that was restored from a backup lacks the record of a replica's TLS certificate.
#[tokio::test]
async fn the_lost_record_of_a_servers_tls_certificate_is_written_again() {
    let server = InProcess::start().await;
    let pool = server.database().pool().await;
    let records = "SELECT serial_number FROM server_certificates ORDER BY serial_number";
    let before: Vec<String> = sqlx::query_scalar(records).fetch_all(&pool).await.unwrap();
    assert_eq!(before.len(), 1);
    let lost = sqlx::query("DELETE FROM server_certificates").execute(&pool).await;
    assert_eq!(lost.unwrap().rows_affected(), 1);
    server.clock().advance(Duration::MINUTE);
    for _ in 0..LOOKS {
        let found: Vec<String> = sqlx::query_scalar(records).fetch_all(&pool).await.unwrap();
        if found == before {
            server.stop().await;
            return;
        }
    }
    panic!("the record is lost");
}

/// Anyone may ask at the open listener. The status of a certificate is less urgent than a check-in.
#[tokio::test]
async fn ocsp_does_not_use_up_the_connections_to_the_database() {
    const TRY_LATER: [u8; 5] = [0x30, 3, 0x0a, 1, 3];
    let server = InProcess::start().await;
    let api = server.api().clone();
    let party = RelyingParty::of(&api).await;
    let request = party.ocsp_request(&["-serial", "0x4242"], "-no_nonce").await;
    let pool = server.database().pool().await;
    let mut table = pool.begin().await.unwrap();
    // A look-up of an unknown certificate waits for this lock.
    sqlx::query("LOCK TABLE server_certificates IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *table)
        .await
        .unwrap();
    let mut asked: FuturesUnordered<_> = (0..12).map(|_| post(&api, &request)).collect();
    assert_eq!(asked.next().await.unwrap().body, TRY_LATER);
    let _served = server.get("/v1/admin/permissions").await.expect(200);
    table.rollback().await.unwrap();
    let answers: Vec<_> = asked.collect().await;
    assert!(answers.iter().any(|answer| answer.body != TRY_LATER));
    server.stop().await;
}
