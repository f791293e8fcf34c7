//! What assay-verify refuses behind nginx and Envoy, with the files of `deploy/relying-parties/assay-verify`: copied tokens
//! and proofs, and forged headers.

use std::fs;
use std::process::Command;
use std::time::Instant;

use assay_protocol::dpop::{ProofClaims, access_token_hash};
use assay_protocol::sha256;
use assay_server::clock::{Clock, SystemClock};
use assay_tests::administrator::text;
use assay_tests::installation::Installation;
use assay_tests::mac::{DONE, Mac};
use assay_tests::process::Process;
use assay_tests::processes::program;
use assay_tests::python::python_with;
use axum::Router;
use http::HeaderMap;
use pem::Pem;
use serde_json::json;
use tokio::net::TcpListener;
use url::form_urlencoded;
use uuid::Uuid;

use super::super::proxy::{get, proxy};
use super::super::revocation::Enrolled;
use super::web_servers::{says, serve_by_nginx};
use super::{Client, Host, WITHIN, audience, deployed, free_port, granted, permission};

/// A service behind a proxy that asks assay-verify.
struct Guarded {
    host: Host<'static>,
    audience: String,
    read: String,
    /// The origin under which clients know the service.
    origin: String,
    port: u16,
    verify: Process,
    /// The address of assay-verify.
    verify_port: u16,
    service_port: u16,
}

/// The header that a request carries, and its value.
type Header<'a> = (&'static str, &'a str);

impl Guarded {
    /// Starts everything but the proxy.
    async fn new(arguments: &[(&str, &str)]) -> Self {
        let host = Host::new().await;
        let audience = audience();
        let read = permission(&host, &audience, "read").await;
        let _write = permission(&host, &audience, "write").await;
        let (port, verify_port) = (free_port(), free_port());
        let origin = format!("https://127.0.0.1:{port}");
        let verify = start_verify(&host, &audience, verify_port, &origin, arguments).await;
        Self {
            service_port: start_service().await,
            host,
            audience,
            read,
            origin,
            port,
            verify,
            verify_port,
        }
    }

    async fn nginx(&self) -> Process {
        let listen = format!("listen 127.0.0.1:{} ssl;", self.port);
        let service = format!("127.0.0.1:{}", self.service_port);
        let replacements = [
            ("listen 443 ssl;", listen.as_str()),
            ("/etc/nginx/server", "server"),
            ("/etc/assay/", "assay/"),
            ("127.0.0.1:9321", &self.verify_address()),
            ("127.0.0.1:8000", &service),
            ("https://wiki.example.com", &self.origin),
        ];
        let site = self.host.configured("assay-verify/nginx-site.conf", &replacements);
        serve_by_nginx(&self.host, &site, "").await
    }

    async fn envoy(&self) -> Process {
        let python = python_with("relying_parties").await;
        let listen = format!("address: 127.0.0.1, port_value: {}", self.port);
        let verify = format!("address: 127.0.0.1, port_value: {}", self.verify_port);
        let service = format!("address: 127.0.0.1, port_value: {}", self.service_port);
        let replacements = [
            ("address: 0.0.0.0, port_value: 443", listen.as_str()),
            ("address: 127.0.0.1, port_value: 9321", &verify),
            ("address: 127.0.0.1, port_value: 8000", &service),
            ("127.0.0.1:9321", &self.verify_address()),
            ("/etc/envoy/server", &self.host.path("server")),
            ("/etc/assay/", &self.host.path("assay/")),
        ];
        let configuration = self.host.configured("assay-verify/envoy.yaml", &replacements);
        let mut starting = Command::new(python.with_file_name("envoy"));
        starting.arg("-c").arg(configuration);
        starting.args(["--use-dynamic-base-id", "--concurrency", "1"]);
        let envoy = Process::spawn(starting);
        envoy.writes(0, "starting main dispatch loop").await;
        envoy
    }

    fn verify_address(&self) -> String {
        format!("127.0.0.1:{}", self.verify_port)
    }

    /// A new machine with the permission "read", and its token.
    async fn reader(&self) -> (Enrolled, String) {
        let enrolled = self.host.party.enroll(&self.host.administrator).await;
        let token = granted(&self.host, &enrolled, &self.audience, &self.read).await;
        (enrolled, token)
    }

    /// Connections with the certificate of a machine.
    fn with_certificate(&self, enrolled: &Enrolled) -> reqwest::Client {
        Client::new(&self.host, enrolled, self.port).client
    }

    fn without_certificate(&self) -> reqwest::Client {
        let root = fs::read(self.host.path("server.pem")).unwrap();
        reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([reqwest::Certificate::from_pem(&root).unwrap()])
            .build()
            .unwrap()
    }

    async fn get(&self, client: &reqwest::Client, path: &str, headers: &[Header<'_>]) -> (u16, String) {
        self.send(client, "GET", path, headers).await
    }

    async fn send(&self, client: &reqwest::Client, method: &str, path: &str, headers: &[Header<'_>]) -> (u16, String) {
        let mut request = client.request(method.parse().unwrap(), format!("{}{path}", self.origin));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    }

    /// The claims of a proof for `GET /a`.
    fn proof_claims(&self, token: &str) -> ProofClaims {
        ProofClaims {
            jti: Uuid::new_v4().to_string(),
            htm: "GET".parse().unwrap(),
            htu: format!("{}/a", self.origin).parse().unwrap(),
            iat: SystemClock.now().unix_timestamp(),
            ath: Some(access_token_hash(token)),
            nonce: None,
        }
    }

    async fn revoke(&self, enrolled: &Enrolled) {
        let id = enrolled.machine.id();
        let _revoked = self.host.administrator.decide(id, "revoke", "stolen").await.expect(200);
    }
}

/// Starts assay-verify with the command of its unit, with these replacements.
async fn start_verify(
    host: &Host<'_>,
    audience: &str,
    port: u16,
    origin: &str,
    replacements: &[(&str, &str)],
) -> Process {
    let name = format!("the service of {audience}");
    let api_key = json!({"name": name, "role": "relying-party"});
    let api_key = text(&host.administrator.create("api-keys", &api_key).await, "key");
    let api_key = host.files.write("verify.key", api_key);
    let unit = fs::read_to_string(deployed("assay-verify/assay-verify.service")).unwrap();
    let (_, command) = unit.split_once("ExecStart=/usr/local/bin/assay-verify ").unwrap();
    let (command, _) = command.split_once("\nRestart").unwrap();
    let listen = format!("127.0.0.1:{port}");
    let usual = [
        ("\\\n", ""),
        ("127.0.0.1:9321", listen.as_str()),
        ("https://assay.example.com", &host.server()),
        ("/etc/assay/roots.pem", &host.path("assay/roots.pem")),
        ("${CREDENTIALS_DIRECTORY}/verify.key", api_key.to_str().unwrap()),
        // A revocation works after this time.
        ("--introspection-lifetime 30", "--introspection-lifetime 1"),
    ];
    let mut command = command.to_owned();
    for (from, to) in usual.iter().chain(replacements) {
        assert!(command.contains(from), "no {from} in {command}");
        command = command.replace(from, to);
    }
    // Not before: a replacement may name them.
    command = command
        .replace("https://wiki.example.com", audience)
        .replace("ORIGIN", origin);
    let mut starting = Command::new(program("assay-verify"));
    starting.args(command.split_ascii_whitespace());
    let verify = Process::spawn(starting);
    says(&verify, 0, "listening").await;
    verify
}

/// A service that says which of its headers concern it.
async fn start_service() -> u16 {
    let said = async |headers: HeaderMap| {
        let ours = headers.iter().filter(|(name, _)| {
            let name = name.as_str();
            name.contains("assay") || name == "authorization" || name == "dpop"
        });
        let mut ours: Vec<_> = ours
            .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()))
            .collect();
        ours.sort();
        ours.join(" ")
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move { axum::serve(listener, Router::new().fallback(said)).await });
    port
}

/// What the service says of a machine with the permission "read".
fn said_of(enrolled: &Enrolled) -> String {
    let id = enrolled.machine.id();
    format!("x-assay-assurance=asserted x-assay-machine={id} x-assay-permissions=read")
}

pub(super) fn leaf(enrolled: &Enrolled) -> Pem {
    let chain = fs::read_to_string(&enrolled.chain).unwrap();
    pem::parse_many(chain).unwrap().swap_remove(0)
}

/// The certificate as nginx writes it.
pub(super) fn escaped(enrolled: &Enrolled) -> String {
    let pem = pem::encode(&leaf(enrolled));
    let escaped: String = form_urlencoded::byte_serialize(pem.as_bytes()).collect();
    escaped.replace('+', "%20")
}

/// With a certificate: own token, stolen token, no token, no certificate, and forged headers.
async fn certificates_are_compared(guarded: &Guarded) {
    let ((reader, token), (thief, own)) = (guarded.reader().await, guarded.reader().await);
    let (client, stolen) = (guarded.with_certificate(&reader), guarded.with_certificate(&thief));
    let bearer = format!("Bearer {token}");
    for _ in 0..2 {
        let answer = guarded.get(&client, "/a?b=c", &[("authorization", &bearer)]).await;
        assert_eq!(answer, (200, said_of(&reader)), "{}", guarded.verify.output());
    }
    // Without one, and with another machine's.
    assert_eq!(guarded.get(&client, "/a", &[]).await.0, 401);
    assert_eq!(guarded.get(&stolen, "/a", &[("authorization", &bearer)]).await.0, 401);
    let bare = guarded.without_certificate();
    assert_eq!(guarded.get(&bare, "/a", &[("authorization", &bearer)]).await.0, 401);
    assert_eq!(
        guarded.get(&client, "/a", &[("authorization", "Bearer a.b.c")]).await.0,
        401
    );

    // What the client sends under these names does not reach the service.
    let forged = [
        ("authorization", bearer.as_str()),
        ("x-assay-machine", "forged"),
        ("x_assay_machine", "forged"),
        ("x-assay-permissions", "read write forged"),
        ("x-assay-assurance", "attested"),
    ];
    assert_eq!(guarded.get(&client, "/a", &forged).await, (200, said_of(&reader)));
    // A thief has the token and the public certificate of its machine.
    let (leaf, escaped) = (leaf(&reader), escaped(&reader));
    let element = format!("Hash={}", hex::encode(sha256(leaf.contents())));
    for client in [&stolen, &bare] {
        let forged = [
            ("authorization", bearer.as_str()),
            ("x-client-certificate", &escaped),
            ("x-forwarded-client-cert", &element),
        ];
        assert_eq!(guarded.get(client, "/a", &forged).await.0, 401);
    }
    let answer = guarded
        .get(&stolen, "/a", &[("authorization", &format!("Bearer {own}"))])
        .await;
    assert_eq!(answer, (200, said_of(&thief)));
}

/// With DPoP: a good proof, the same again, and proofs for something else.
async fn proofs_are_verified(guarded: &Guarded) {
    let ((reader, token), (thief, own)) = (guarded.reader().await, guarded.reader().await);
    let bare = guarded.without_certificate();
    let authorization = format!("DPoP {token}");
    let send = async |proof: &str, more: &[Header<'_>]| {
        let headers = [&[("authorization", authorization.as_str()), ("dpop", proof)], more].concat();
        guarded.get(&bare, "/a", &headers).await
    };
    let fresh = || guarded.proof_claims(&token);
    let proof = reader.machine.prove(&fresh());
    assert_eq!(
        send(&proof, &[]).await,
        (200, said_of(&reader)),
        "{}",
        guarded.verify.output()
    );
    assert_eq!(send(&proof, &[]).await.0, 401, "used twice");
    // The query is not part of it.
    let proof = reader.machine.prove(&fresh());
    let headers = [("authorization", authorization.as_str()), ("dpop", &proof)];
    assert_eq!(guarded.get(&bare, "/a?b=c", &headers).await.0, 200);

    for claims in proofs_for_others(&fresh(), guarded, &own) {
        // Headers that say what the proof says change nothing.
        let url = claims.htu.to_string();
        let forged = [
            ("x-original-method", claims.htm.as_str()),
            ("x-original-url", url.as_str()),
            ("x-forwarded-host", "evil.example.com"),
            ("x-forwarded-proto", "https"),
        ];
        let proof = reader.machine.prove(&claims);
        assert_eq!(send(&proof, &forged).await.0, 401, "{claims:?}");
    }
    let elsewhere = ProofClaims {
        htu: "https://evil.example.com/a".parse().unwrap(),
        ..fresh()
    };
    let proof = reader.machine.prove(&elsewhere);
    assert_eq!(send(&proof, &[("host", "evil.example.com")]).await.0, 401);
    // A copied token without its key.
    assert_eq!(send(&thief.machine.prove(&fresh()), &[]).await.0, 401);
    assert_eq!(send("", &[]).await.0, 401);
    let bearer = format!("Bearer {token}");
    let proof = reader.machine.prove(&fresh());
    let headers = [("authorization", bearer.as_str()), ("dpop", &proof)];
    assert_eq!(guarded.get(&bare, "/a", &headers).await.0, 401);
    // The method is that of the request.
    let post = ProofClaims {
        htm: "POST".parse().unwrap(),
        ..fresh()
    };
    let proof = reader.machine.prove(&post);
    let headers = [("authorization", authorization.as_str()), ("dpop", &proof)];
    assert_eq!(guarded.send(&bare, "POST", "/a", &headers).await.0, 200);
}

/// Proofs that are like a good one but for one claim.
fn proofs_for_others(right: &ProofClaims, guarded: &Guarded, token: &str) -> [ProofClaims; 7] {
    [
        ProofClaims {
            htm: "POST".parse().unwrap(),
            ..right.clone()
        },
        ProofClaims {
            htu: format!("{}/b", guarded.origin).parse().unwrap(),
            ..right.clone()
        },
        ProofClaims {
            htu: "https://evil.example.com/a".parse().unwrap(),
            ..right.clone()
        },
        ProofClaims {
            ath: Some(access_token_hash(token)),
            ..right.clone()
        },
        ProofClaims {
            ath: None,
            ..right.clone()
        },
        ProofClaims {
            iat: right.iat - 61,
            ..right.clone()
        },
        ProofClaims {
            iat: right.iat + 120,
            ..right.clone()
        },
    ]
}

/// A revoked machine is refused as soon as the last introspection is too old.
async fn a_revoked_machine_is_refused(guarded: &Guarded) {
    let ((active, token), (revoked, stolen)) = (guarded.reader().await, guarded.reader().await);
    let (client, refused) = (guarded.with_certificate(&active), guarded.with_certificate(&revoked));
    let (bearer, stolen) = (format!("Bearer {token}"), format!("Bearer {stolen}"));
    let answer = guarded.get(&refused, "/a", &[("authorization", &stolen)]).await;
    assert_eq!(answer, (200, said_of(&revoked)));
    guarded.revoke(&revoked).await;
    let begun = Instant::now();
    while guarded.get(&refused, "/a", &[("authorization", &stolen)]).await.0 != 401 {
        assert!(begun.elapsed() < WITHIN, "it is still accepted");
    }
    assert_eq!(guarded.get(&client, "/a", &[("authorization", &bearer)]).await.0, 200);
}

#[tokio::test]
async fn nginx_lets_in_only_machines_that_assay_verify_accepts() {
    let guarded = Guarded::new(&[]).await;
    let _nginx = guarded.nginx().await;
    certificates_are_compared(&guarded).await;
    proofs_are_verified(&guarded).await;
    a_revoked_machine_is_refused(&guarded).await;
}

#[tokio::test]
async fn each_location_of_nginx_requires_its_own_permission() {
    let guarded = Guarded::new(&[]).await;
    let _nginx = guarded.nginx().await;
    let (reader, token) = guarded.reader().await;
    let (client, bearer) = (guarded.with_certificate(&reader), format!("Bearer {token}"));
    let forged = [("authorization", bearer.as_str()), ("x-assay-require", "read")];
    for path in ["/edit", "/edit/a", "//edit", "/%65dit"] {
        assert_eq!(guarded.get(&client, path, &forged).await.0, 403, "{path}");
    }
    assert_eq!(guarded.get(&client, "/a", &forged).await.0, 200);
    // The location that asks is nothing that a client can request.
    assert_eq!(guarded.get(&client, "/assay-verify", &forged).await.0, 404);
}

#[tokio::test]
async fn envoy_lets_in_only_machines_that_assay_verify_accepts() {
    let envoy = [
        ("--require-header X-Assay-Require", "--require read --origin ORIGIN"),
        ("escaped-pem", "xfcc --certificate-header x-forwarded-client-cert"),
    ];
    let guarded = Guarded::new(&envoy).await;
    let _envoy = guarded.envoy().await;
    certificates_are_compared(&guarded).await;
    proofs_are_verified(&guarded).await;
    a_revoked_machine_is_refused(&guarded).await;
}

#[tokio::test]
async fn the_agents_proxy_reaches_the_service_with_its_certificate_and_with_dpop() {
    let guarded = Guarded::new(&[]).await;
    let _nginx = guarded.nginx().await;
    let mac = Mac::new(Installation::shared().await);
    let administrator = &guarded.host.administrator;
    let _enrolled = mac.enroll(&administrator.token(json!({})).await.secret, DONE).await;
    let id: Uuid = text(&mac.status().await, "machine_id").parse().unwrap();
    let grant = json!({"permission_id": guarded.read, "selector": {"machine_ids": [id]}, "conditions": {}});
    let _grant = administrator.create("grants", &grant).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let root = guarded.host.path("server.pem");
    let usual = ["--audience", &guarded.audience, "--upstream-ca-file", &root];
    for more in [[].as_slice(), &["--proof", "dpop"]] {
        let proxy = proxy(&mac, &guarded.origin, &guarded.host.files, &[&usual, more].concat()).await;
        for path in ["/a/%2e%2e//b?c=d", "/a"] {
            let (status, said) = get(&proxy, path).await;
            assert_eq!(status, 200, "{said}\n{}", guarded.verify.output());
            assert!(said.contains(&id.to_string()), "{said}");
        }
    }
}

#[tokio::test]
async fn assay_verify_believes_only_complete_questions() {
    let guarded = Guarded::new(&[]).await;
    let (reader, token) = guarded.reader().await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |headers: &[Header<'_>]| {
        let mut request = client.get(format!("http://{}/", guarded.verify_address()));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let challenge = answer
            .headers()
            .get("www-authenticate")
            .map(|value| value.to_str().unwrap().to_owned());
        (answer.status().as_u16(), challenge.unwrap_or_default())
    };
    let escaped = escaped(&reader);
    let bearer = format!("Bearer {token}");
    let authorization = ("authorization", bearer.as_str());
    let certificate = ("x-client-certificate", escaped.as_str());
    let require = ("x-assay-require", "read");
    assert_eq!(ask(&[authorization, certificate, require]).await.0, 200);
    // Only a proof needs the URL.
    let long = format!("https://wiki.example.com/{}", "a".repeat(5000));
    assert_eq!(
        ask(&[authorization, certificate, require, ("x-original-url", &long)])
            .await
            .0,
        200
    );
    // A proxy that does not say what is required would let machines do anything.
    assert_eq!(ask(&[authorization, certificate]).await.0, 500);
    assert_eq!(
        ask(&[authorization, certificate, ("x-assay-require", " ")]).await.0,
        500
    );
    assert_eq!(
        ask(&[authorization, ("x-client-certificate", "nonsense"), require])
            .await
            .0,
        500
    );
    let (status, challenge) = ask(&[authorization, certificate, ("x-assay-require", "read delete")]).await;
    assert!(
        status == 403 && challenge.contains("insufficient_scope"),
        "{status} {challenge}"
    );
    // Twice: one of them may be the client's.
    assert_eq!(ask(&[authorization, authorization, certificate, require]).await.0, 401);
    assert_eq!(ask(&[authorization, certificate, certificate, require]).await.0, 401);
    let proof = reader.machine.prove(&guarded.proof_claims(&token));
    let dpop = format!("DPoP {token}");
    let dpop = [("authorization", dpop.as_str()), ("dpop", &proof), require];
    assert_eq!(ask(&dpop).await.0, 500, "without method and URL");
    let (status, challenge) = ask(&[require]).await;
    assert_eq!((status, challenge.as_str()), (401, "Bearer"));
}
