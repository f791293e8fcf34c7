//! TLS and certificates, as OpenSSL sees them.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use assay_protocol::ProblemKind;
use assay_server::clock::{Clock, SystemClock};
use assay_tests::administrator::{Administrator, text};
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::installation::{Installation, unlimited};
use assay_tests::machine::Machine;
use assay_tests::openssl::{Files, openssl};
use assay_tests::processes::{Server, ServerConfiguration, program};
use http::Method;
use serde_json::json;
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};
use uuid::Uuid;

use super::commands::run;

async fn handshake(address: SocketAddr, roots: &Path) -> (bool, String) {
    let (address, roots) = (address.to_string(), roots.to_str().unwrap());
    let verify = ["-verify_return_error", "-verify_ip", "127.0.0.1", "-CAfile", roots];
    openssl(&[["s_client", "-connect", &address].as_slice(), &verify].concat()).await
}

#[tokio::test]
async fn openssl_accepts_the_servers_certificate_with_its_roots() {
    let (installation, files) = (Installation::shared().await, Files::new());
    let roots = files.write("roots.pem", &installation.roots);
    let (other, _key) = files.certificate("other").await;
    for server in &installation.servers {
        let (accepted, said) = handshake(server.address(), &roots).await;
        assert!(accepted && said.contains("Verify return code: 0 (ok)"), "{said}");
        let (accepted, said) = handshake(server.address(), &other).await;
        assert!(!accepted, "{said}");
    }
}

#[tokio::test]
async fn openssl_accepts_a_machines_chain_and_its_contents() {
    let (installation, files) = (Installation::shared().await, Files::new());
    let (api, administrator) = (installation.api(0), installation.administrator());
    let token = administrator.token(json!({})).await;
    let machine = Machine::new();
    let begun = SystemClock.now();
    let enrolled = machine.enroll(&api, Some(&token.secret)).await.expect(201).json();
    let answered = SystemClock.now();
    let certificate = &enrolled["certificate"];
    let roots = files.write("roots.pem", text(&enrolled, "trust_bundle"));
    let chain = files.write("chain.pem", text(certificate, "chain"));
    let (roots, chain) = (roots.to_str().unwrap(), chain.to_str().unwrap());

    let verify = async |purpose: &[&str]| {
        openssl(&[&["verify"], purpose, &["-CAfile", roots, "-untrusted", chain, chain]].concat()).await
    };
    let (accepted, said) = verify(&["-purpose", "sslclient", "-x509_strict"]).await;
    assert!(accepted, "{said}");
    let (accepted, said) = verify(&["-purpose", "sslserver"]).await;
    assert!(!accepted, "a machine is no server: {said}");

    let (_, shown) = openssl(&["x509", "-in", chain, "-noout", "-text", "-nameopt", "RFC2253"]).await;
    let url = installation.servers[0].revocation_url();
    for expected in contracted(&url, machine.id(), &text(&enrolled, "spiffe_id")) {
        assert!(shown.contains(&expected), "no {expected:?} in\n{shown}");
    }
    let (_, serial) = openssl(&["x509", "-in", chain, "-noout", "-serial"]).await;
    let serial_number = text(certificate, "serial_number");
    assert_eq!(serial.trim().to_lowercase(), format!("serial={serial_number}"));
    assert_eq!(serial_number.len(), 32, "128 bits");
    let at = |member| OffsetDateTime::parse(&text(certificate, member), &Rfc3339).unwrap();
    let early = begun - at("not_before");
    assert!(
        (Duration::seconds(50)..Duration::seconds(70)).contains(&early),
        "{early}"
    );
    let life = at("not_after") - answered;
    assert!(
        (Duration::hours(7 * 24 - 1)..=Duration::days(7)).contains(&life),
        "{life}"
    );
}

/// The fields of a machine's certificate, as OpenSSL prints them.
fn contracted(url: &str, machine: Uuid, spiffe_id: &str) -> [String; 12] {
    [
        format!("Subject: CN={machine}"),
        format!("URI:{spiffe_id}"),
        "X509v3 Key Usage: critical\n                Digital Signature\n".to_owned(),
        "X509v3 Basic Constraints: critical\n                CA:FALSE".to_owned(),
        "X509v3 Extended Key Usage: \n                TLS Web Client Authentication\n".to_owned(),
        "X509v3 Subject Key Identifier".to_owned(),
        "X509v3 Authority Key Identifier".to_owned(),
        format!("URI:{url}/v1/ca/crl"),
        format!("OCSP - URI:{url}/v1/ca/ocsp"),
        format!("CA Issuers - URI:{url}/v1/ca/issuer/"),
        "Signature Algorithm: ecdsa-with-SHA256".to_owned(),
        "ASN1 OID: prime256v1".to_owned(),
    ]
}

#[tokio::test]
async fn the_published_chain_and_roots_verify_each_other() {
    let (installation, files) = (Installation::shared().await, Files::new());
    let api = installation.api(1);
    let (roots, chain) = (api.get("/v1/ca/bundle.pem").await, api.get("/v1/ca/chain.pem").await);
    assert_eq!(roots.text(), installation.roots);
    let (roots, chain) = (
        files.write("roots.pem", roots.text()),
        files.write("chain.pem", chain.text()),
    );
    let (accepted, said) = openssl(&[
        "verify",
        "-x509_strict",
        "-CAfile",
        roots.to_str().unwrap(),
        chain.to_str().unwrap(),
    ])
    .await;
    assert!(accepted, "{said}");
}

#[tokio::test]
async fn a_certificate_from_files_is_used_and_reloaded() {
    let (database, files) = (Database::create().await, Files::new());
    let (certificate, key) = files.certificate("first").await;
    let configuration = unlimited(ServerConfiguration::new(&database))
        .set("tls.mode", "files")
        .set("tls.certificate", certificate.to_str().unwrap())
        .set("tls.private_key", key.to_str().unwrap());
    let server = configuration.start().await;
    let first = fs::read_to_string(&certificate).unwrap();
    let api_key = server.configuration().create_api_key("the tests", "admin").await;
    let api = Api::new(&server.public_url(), &server.public_url(), &first);
    let machine = Administrator::new(api.clone(), &api_key).enrolled(&api).await;

    let (new_certificate, new_key) = files.certificate("second").await;
    // Renewing replaces two files one after the other. The server ignores a certificate that does not match the key.
    fs::rename(&new_key, &key).unwrap();
    fs::rename(&new_certificate, &certificate).unwrap();
    let second = fs::read_to_string(&certificate).unwrap();
    assert_ne!(first, second);
    let replaced = server.wait_for_message("replaced the TLS certificate").await;
    assert!(replaced.is_some());
    let (accepted, said) = handshake(server.address(), &certificate).await;
    assert!(accepted, "{said}");
    let api = Api::new(&server.public_url(), &server.public_url(), &second);
    let _checked_in = machine.check_in(&api).await.expect(200);
}

/// `openssl req -x509` makes such a certificate by default, and curl accepts it.
#[tokio::test]
async fn an_agent_says_in_words_that_the_servers_certificate_is_that_of_a_ca() {
    let (database, files) = (Database::create().await, Files::new());
    let [certificate, key, state] = ["ca.pem", "ca.key", "state"].map(|name| files.path(name).display().to_string());
    let arguments = format!(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=localhost \
         -addext subjectAltName=IP:127.0.0.1 -keyout {key} -out {certificate}"
    );
    let (made, said) = openssl(&arguments.split(' ').collect::<Vec<_>>()).await;
    assert!(made, "{said}");
    let configuration = unlimited(ServerConfiguration::new(&database))
        .set("tls.mode", "files")
        .set("tls.certificate", &certificate)
        .set("tls.private_key", &key);
    let server = configuration.start().await;
    let mut enroll = Command::new(program("assay-agent"));
    enroll.args([
        "enroll",
        "--server",
        &server.public_url(),
        "--ca-file",
        &certificate,
        "--token",
        "assay_enroll_x",
    ]);
    enroll.args(["--key-store", "software", "--state-dir", &state]);
    let refused = run(enroll).await;
    assert_eq!(refused.code, Some(5), "{}", refused.stderr);
    assert!(
        refused.stderr.contains("is that of a CA (CA:TRUE)"),
        "{}",
        refused.stderr
    );
    assert!(!refused.stderr.contains("CaUsedAsEndEntity"), "{}", refused.stderr);
    let lines = server.output().lines();
    let warned = |line: &String| line.contains("tls.certificate begins with the certificate of a CA");
    assert!(lines.iter().any(warned), "{lines:?}");
}

#[tokio::test]
async fn behind_a_proxy_the_callers_address_comes_from_the_proxy() {
    let database = Database::create().await;
    let configuration = unlimited(ServerConfiguration::new(&database))
        .set("tls.mode", "upstream")
        .set("public_url", "https://assay.example.com")
        .set("rate_limit.address_per_minute", "3");
    let server = configuration.start().await;
    let api_key = server.configuration().create_api_key("the tests", "admin").await;
    let api = Api::plain(&format!("http://{}", server.address()), "https://assay.example.com");
    let machine = Administrator::new(api.clone(), &api_key).enrolled(&api).await;
    let _checked_in = machine.check_in(&api).await.expect(200);

    let from = async |forwarded: &str| {
        Answer::to(
            api.request(Method::GET, "/v1/nonce")
                .header("x-forwarded-for", forwarded),
        )
        .await
    };
    let mut limited = None;
    for _ in 0..10 {
        // Addresses that the caller itself adds in front are ignored.
        let answer = from("203.0.113.1, 198.51.100.7").await;
        limited = (answer.status != 204).then_some(answer).or(limited);
    }
    let _limited = limited
        .expect("no caller is limited")
        .expect_problem(ProblemKind::RateLimited);
    let _another = from("198.51.100.7, 203.0.113.1").await.expect(204);
}

/// A server behind a proxy, and its API as a peer of the loopback network reaches it.
async fn upstream(database: &Database<'_>, settings: &[(&str, &str)]) -> (Server, Api) {
    let configuration = unlimited(ServerConfiguration::new(database))
        .set("tls.mode", "upstream")
        .set("public_url", "https://assay.example.com");
    let configuration = settings.iter().fold(configuration, |configuration, (key, value)| {
        configuration.set(key, value)
    });
    let server = configuration.start().await;
    let api = Api::plain(&format!("http://{}", server.address()), "https://assay.example.com");
    (server, api)
}

/// How many of ten calls for a nonce are served, each of another forwarded address.
async fn served(api: &Api, forwarded: impl Fn(u32) -> String) -> usize {
    let mut served = 0;
    for number in 0..10 {
        let request = api.request(Method::GET, "/v1/nonce");
        let answer = Answer::to(request.header("x-forwarded-for", forwarded(number))).await;
        served += usize::from(answer.status == 204);
    }
    served
}

#[tokio::test]
async fn a_peer_that_is_no_trusted_proxy_cannot_choose_its_address() {
    let database = Database::create().await;
    let settings = [
        ("tls.trusted_proxies", "192.0.2.7, 2001:db8::/32"),
        ("rate_limit.address_per_minute", "3"),
    ];
    let (_server, api) = upstream(&database, &settings).await;
    assert_eq!(served(&api, |number| format!("198.51.100.{number}")).await, 3);
}

#[tokio::test]
async fn the_addresses_of_one_ipv6_network_share_one_limit() {
    let database = Database::create().await;
    let (_server, api) = upstream(&database, &[("rate_limit.address_per_minute", "3")]).await;
    assert_eq!(served(&api, |number| format!("2001:db8:0:1::{number}")).await, 3);
    assert_eq!(served(&api, |number| format!("2001:db8:0:{}::1", number + 2)).await, 10);
}

#[tokio::test]
async fn a_claimed_serial_number_is_limited_for_each_address_by_itself() {
    let database = Database::create().await;
    let (server, api) = upstream(&database, &[("rate_limit.machine_per_minute", "2")]).await;
    let api_key = server.configuration().create_api_key("the tests", "admin").await;
    let token = Administrator::new(api.clone(), &api_key)
        .token(json!({"max_uses": 100}))
        .await
        .secret;
    let enroll = async |from: &str| {
        let machine = Machine::with_serial_number("CLAIMED");
        let nonce = api.nonce().await;
        let request = machine.enrollment(&api, Some(&token), &nonce);
        Answer::to(request.header("x-forwarded-for", from)).await
    };
    for _ in 0..2 {
        assert!(enroll("203.0.113.1").await.status < 300);
    }
    let _refused = enroll("203.0.113.1").await.expect_problem(ProblemKind::RateLimited);
    assert!(enroll("198.51.100.7").await.status < 300);
}
