//! Revocation status over plain HTTP, where verifiers look for it: by the URLs in certificates.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use assay_protocol::ProblemKind;
use assay_protocol::admin_api::api_keys::Role;
use assay_tests::administrator::text;
use assay_tests::answer::Answer;
use assay_tests::api::{Api, Called};
use assay_tests::cluster::Database;
use assay_tests::in_process::{InProcess, PUBLIC_URL, REVOCATION_URL};
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use assay_tests::openssl::{Files, openssl};
use assay_tests::processes::ServerConfiguration;
use http::Method;
use serde_json::json;

use super::revocation::{OCSP_REQUEST, RelyingParty, await_answer, post, revoke};

/// What the listener serves, besides what is named by a key identifier.
const SERVED: [&str; 3] = ["/v1/ca/crl", "/v1/ca/crls.pem", "/v1/ca/issuer.cer"];

/// Absent paths: trust anchors and unsigned content.
const ABSENT: [&str; 13] = [
    "/",
    "/v1/ca/bundle.pem",
    "/v1/ca/chain.pem",
    "/.well-known/jwks.json",
    "/.well-known/openid-configuration",
    "/.well-known/spiffe-bundle",
    "/openapi.json",
    "/healthz",
    "/readyz",
    "/metrics",
    "/v1/nonce",
    "/v1/admin/machines",
    "/acme/directory",
];
const ABSENT_BY_POST: [&str; 5] = [
    "/v1/enroll",
    "/v1/check-in",
    "/v1/renew",
    "/v1/introspect",
    "/v1/mdm/nanomdm",
];

/// The URLs in the first certificate of a file.
#[derive(Debug)]
struct Urls {
    list: String,
    ocsp: String,
    issuer: String,
}

impl Urls {
    async fn of(certificate: &Path) -> Self {
        let certificate = certificate.to_str().unwrap();
        let extensions = "crlDistributionPoints,authorityInfoAccess";
        let (read, said) = openssl(&["x509", "-in", certificate, "-noout", "-ext", extensions]).await;
        assert!(read, "{said}");
        let after = |label: &str| {
            let (_, rest) = said.split_once(label).unwrap_or_else(|| panic!("no {label} in {said}"));
            rest.split_whitespace().next().unwrap().to_owned()
        };
        Self {
            list: after("Full Name:\n").replace("URI:", ""),
            ocsp: after("OCSP - URI:"),
            issuer: after("CA Issuers - URI:"),
        }
    }
}

/// Fetches the certificate at a URL as a verifier does, and writes it as PEM.
async fn fetch(files: &Files, name: &str, url: &str) -> String {
    let (origin, path) = url.split_at(url.find("/v1/").unwrap());
    let der = Api::plain(origin, PUBLIC_URL).get(path).await.expect(200);
    assert_eq!(der.header("content-type"), Some("application/pkix-cert"));
    let pem = pem::encode(&pem::Pem::new("CERTIFICATE", der.body));
    files.write(name, pem).to_str().unwrap().to_owned()
}

/// What OpenSSL says about a certificate, whose list it fetches from the URL in the certificate.
async fn verify(party: &RelyingParty, certificate: &Path) -> (bool, String) {
    let (roots, chain) = (party.path("roots.pem"), party.path("chain.pem"));
    let check = ["verify", "-x509_strict", "-crl_check", "-crl_download"];
    let path = ["-CAfile", &roots, "-untrusted", &chain, certificate.to_str().unwrap()];
    openssl(&[check.as_slice(), &path].concat()).await
}

/// The OCSP status of a certificate, from the URL in it, verified with the issuer that the certificate leads to.
async fn ocsp_status(party: &RelyingParty, certificate: &Path) -> String {
    let urls = Urls::of(certificate).await;
    let issuer = fetch(&party.files, "fetched-issuer.pem", &urls.issuer).await;
    let (roots, certificate) = (party.path("roots.pem"), certificate.to_str().unwrap());
    let asked = ["ocsp", "-issuer", &issuer, "-cert", certificate, "-url", &urls.ocsp];
    let trusted = ["-CAfile", &roots, "-verify_other", &issuer];
    let (_, said) = openssl(&[asked.as_slice(), &trusted].concat()).await;
    assert!(
        said.contains("Response verify OK") && !said.contains("WARNING"),
        "{said}"
    );
    said
}

/// The certificates of a server's TLS handshake, one to a file.
pub(super) async fn tls_chain(files: &Files, address: SocketAddr) -> Vec<std::path::PathBuf> {
    let (_, said) = openssl(&["s_client", "-showcerts", "-connect", &address.to_string()]).await;
    let blocks = pem::parse_many(&said).unwrap();
    let certificates = blocks.iter().filter(|block| block.tag() == "CERTIFICATE").take(2);
    let write = |(number, block)| files.write(&format!("tls-{number}.pem"), pem::encode(block));
    certificates.enumerate().map(write).collect()
}

#[tokio::test]
async fn openssl_follows_the_urls_in_certificates_to_the_revocation() {
    let installation = Installation::shared().await;
    let administrator = installation.administrator();
    let party = RelyingParty::of(&installation.api(0)).await;
    let (good, revoked) = (party.enroll(&administrator).await, party.enroll(&administrator).await);
    for enrolled in [&good, &revoked] {
        let (accepted, said) = verify(&party, &enrolled.chain).await;
        assert!(accepted, "{said}");
        assert!(ocsp_status(&party, &enrolled.chain).await.contains(": good"));
    }
    revoke(&administrator, &revoked.serial_number, "superseded").await;
    assert!(ocsp_status(&party, &revoked.chain).await.contains(": revoked"));
    let urls = Urls::of(&revoked.chain).await;
    let base = installation.servers[0].revocation_url();
    let path = urls.list.strip_prefix(&base).unwrap();
    let is_listed = async |answer: &Answer| hex::encode(&answer.body).contains(&revoked.serial_number);
    // Every replica serves the list at its own address.
    for replica in 0..installation.servers.len() {
        let _listed = await_answer(&installation.revocation_api(replica), path, is_listed).await;
    }
    let (_, said) = verify(&party, &revoked.chain).await;
    assert!(said.contains("certificate revoked"), "{said}");
    let (accepted, said) = verify(&party, &good.chain).await;
    assert!(accepted, "{said}");
}

#[tokio::test]
async fn a_servers_own_certificates_are_answered_for_by_any_replica() {
    let installation = Installation::shared().await;
    let party = RelyingParty::of(&installation.api(0)).await;
    for server in &installation.servers {
        let chain = tls_chain(&party.files, server.address()).await;
        let [leaf, issuing] = chain.as_slice() else {
            panic!("{chain:?}")
        };
        // The URL leads to the first replica. The root's responder answers for the issuing CA.
        for certificate in [leaf, issuing] {
            let said = ocsp_status(&party, certificate).await;
            assert!(said.contains(": good"), "{said}");
            let (accepted, said) = verify(&party, certificate).await;
            assert!(accepted, "{said}");
            let urls = Urls::of(certificate).await;
            for url in [&urls.list, &urls.ocsp, &urls.issuer] {
                assert!(url.starts_with(&installation.servers[0].revocation_url()), "{urls:?}");
            }
        }
    }
}

#[tokio::test]
async fn ocsp_is_unauthorized_for_certificates_of_other_cas() {
    let server = InProcess::start().await;
    let party = RelyingParty::of(server.api()).await;
    let (other, _key) = party.files.certificate("other").await;
    let request = party.files.path("other.der");
    let (other, out) = (other.to_str().unwrap(), request.to_str().unwrap());
    let asked = [
        "ocsp",
        "-issuer",
        other,
        "-serial",
        "0x4242",
        "-no_nonce",
        "-reqout",
        out,
    ];
    let (made, said) = openssl(&asked).await;
    assert!(made, "{said}");
    for api in [server.api(), &server.revocation_api()] {
        let answer = post(api, &std::fs::read(&request).unwrap()).await;
        assert_eq!(answer.body, [0x30, 3, 0x0a, 1, 6], "unauthorized");
        assert_eq!(answer.header("cache-control"), Some("no-store"));
    }
    server.stop().await;
}

#[tokio::test]
async fn the_listener_serves_revocation_status_and_nothing_else() {
    let server = InProcess::start().await;
    let (plain, machine) = (server.revocation_api(), server.enrolled("PLAIN").await);
    for path in SERVED {
        let _list = await_answer(&plain, path, async |answer| answer.status == 200).await;
        let (same, other) = (
            plain.get(path).await.expect(200),
            server.api().get(path).await.expect(200),
        );
        assert_eq!(same.body, other.body, "{path}");
    }
    let roots = RelyingParty::of(server.api()).await;
    let root = pem::parse(std::fs::read(roots.path("roots.pem")).unwrap()).unwrap();
    let arguments = [
        "x509",
        "-in",
        &roots.path("roots.pem"),
        "-noout",
        "-ext",
        "subjectKeyIdentifier",
    ];
    let (read, said) = openssl(&arguments).await;
    assert!(read, "{said}");
    let key = said.lines().last().unwrap().trim().replace(':', "").to_lowercase();
    let by_name = plain.get(&format!("/v1/ca/issuer/{key}")).await.expect(200);
    assert_eq!(by_name.body, root.contents(), "a root only by its key identifier");
    let _list = plain.get(&format!("/v1/ca/crl/{key}")).await.expect(200);

    for path in ABSENT.iter().copied().chain([machine.path().as_str()]) {
        let request = plain
            .request(Method::GET, path)
            .bearer_auth(server.api_key(Role::Admin));
        assert_eq!(request.send().await.unwrap().status(), 404, "{path}");
    }
    for path in ABSENT_BY_POST {
        let request = plain.request(Method::POST, path).json(&json!({}));
        assert_eq!(request.send().await.unwrap().status(), 404, "{path}");
    }
    let _method = plain
        .post("/v1/ca/crl", &json!({}))
        .await
        .expect_problem(ProblemKind::MethodNotAllowed);
    server.stop().await;
}

#[tokio::test]
async fn the_listener_has_limits_of_its_own() {
    let server = InProcess::start_with(&[("rate_limit.revocation_per_minute", "3")]).await;
    let (plain, party) = (server.revocation_api(), RelyingParty::of(server.api()).await);
    let sent = async |body: Vec<u8>| {
        let post = plain.request(Method::POST, "/v1/ca/ocsp");
        Answer::to(post.header("content-type", OCSP_REQUEST).body(body)).await
    };
    let _large = sent(vec![0; 8 * 1024 + 1])
        .await
        .expect_problem(ProblemKind::PayloadTooLarge);
    let long = format!("/v1/ca/ocsp/{}", "A".repeat(9000));
    assert_eq!(
        plain.get(&long).await.expect(200).body,
        [0x30, 3, 0x0a, 1, 1],
        "malformed"
    );
    let request = party.ocsp_request(&["-serial", "0x4242"], "-no_nonce").await;
    let _unknown = sent(request.clone()).await.expect(200);
    let refused = sent(request).await.expect_problem(ProblemKind::RateLimited);
    assert!(refused.header("retry-after").is_some());
    // The limits of the API are others.
    for _ in 0..10 {
        let _served = server.api().get("/v1/ca/issuer.cer").await.expect(200);
    }
    server.stop().await;
}

#[tokio::test]
async fn certificates_get_another_revocation_url_when_they_are_renewed() {
    let database = Database::create().await;
    let first = InProcess::start_on(&database.url(), &[]).await;
    let machine = first.enrolled("MOVED").await;
    let files = Files::new();
    let url = async |server: &InProcess, machine: &Machine| {
        let certificates = server.items(&format!("{}/certificates", machine.path())).await;
        let serial_number = text(&certificates[0], "serial_number");
        let read = server
            .get(&format!("/v1/admin/certificates/{serial_number}"))
            .await
            .json();
        Urls::of(&files.write("machine.pem", text(&read, "pem"))).await.ocsp
    };
    assert_eq!(url(&first, &machine).await, format!("{REVOCATION_URL}/v1/ca/ocsp"));
    first.stop().await;

    let moved = [("revocation.url", "http://pki.example.com")];
    let second = InProcess::start_on(&database.url(), &moved).await;
    let _renewed = machine.renew(&second).await.expect(200);
    assert_eq!(url(&second, &machine).await, "http://pki.example.com/v1/ca/ocsp");
    second.stop().await;

    // Without the listener, certificates lead to the API.
    let off = [("revocation.listen", "off"), ("revocation.url", PUBLIC_URL)];
    let third = InProcess::start_on(&database.url(), &off).await;
    let _renewed = machine.renew(&third).await.expect(200);
    assert_eq!(url(&third, &machine).await, format!("{PUBLIC_URL}/v1/ca/ocsp"));
    third.stop().await;
}

#[tokio::test]
async fn a_list_lives_as_long_as_configured() {
    let database = Database::create().await;
    let party = Files::new();
    let life = async |server: &InProcess, path: &str, expected: &str| {
        let times = async |answer: &Answer| {
            let list = party.write("list.der", &answer.body);
            let arguments = ["crl", "-inform", "DER", "-in", list.to_str().unwrap(), "-noout"];
            openssl(&[arguments.as_slice(), &["-lastupdate", "-nextupdate"]].concat())
                .await
                .1
        };
        let is_right = async |answer: &Answer| {
            let said = times(answer).await;
            let mut seconds = said.lines().filter_map(|line| {
                let time = line.split_once('=')?.1.split_whitespace().nth(2)?;
                let parts: Vec<u32> = time.split(':').map(|part| part.parse().unwrap()).collect();
                Some(parts[0] * 3600 + parts[1] * 60 + parts[2])
            });
            let (from, until) = (seconds.next().unwrap(), seconds.next().unwrap());
            // It is backdated by a minute.
            expected == ((until + 86_400 - from - 60) % 86_400 / 60).to_string()
        };
        let _right = await_answer(server.api(), path, is_right).await;
    };
    let day = InProcess::start_on(&database.url(), &[]).await;
    life(&day, "/v1/ca/crl", "0").await;
    day.stop().await;
    // A list that was signed under another configuration is replaced.
    let hour = InProcess::start_on(&database.url(), &[("revocation.list_lifetime", "1h")]).await;
    life(&hour, "/v1/ca/crl", "60").await;
    hour.stop().await;
}

#[tokio::test]
async fn a_taken_port_stops_the_start_and_is_named() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database).set("revocation.listen", &address);
    let mut command = configuration.command(&["serve"]);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success());
    assert!(
        said.contains(&format!("cannot listen on {address} (revocation.listen)")),
        "{said}"
    );
}
