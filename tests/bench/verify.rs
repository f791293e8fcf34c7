//! Measures assay-verify: requests a second on one core, from its cache, with client certificates and with DPoP.
//!
//! It starts the program of the same profile with one worker thread, behind an issuer of its own. The requests are those of
//! nginx. The proofs are signed before the measurement.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a measurement that cannot go on has failed and says where; the result is its output"
)]

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use assay_authority::{AudienceClaim, Confirmation, GrantClaims, GrantSigner, PrivateKey};
use assay_protocol::dpop::{ProofClaims, access_token_hash};
use assay_protocol::machine::Assurance;
use assay_protocol::sha256;
use assay_tests::machine::Machine;
use assay_tests::openssl::Files;
use assay_tests::process::Process;
use assay_tests::processes::program;
use axum::Router;
use clap::Parser;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use url::form_urlencoded;
use uuid::Uuid;

const AUDIENCE: &str = "https://wiki.example.com";
const URL: &str = "https://wiki.example.com/a/page";

/// Requests a second of assay-verify on one core
#[derive(Debug, Parser)]
struct Arguments {
    /// Machines, each with a token and a certificate
    #[arg(long, default_value_t = 1000)]
    machines: usize,
    /// Connections of the proxy
    #[arg(long, default_value_t = 32)]
    connections: usize,
    /// Duration of the measurement with certificates
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Requests with DPoP
    #[arg(long, default_value_t = 60_000)]
    proofs: usize,
}

/// A machine as the proxy sees it.
struct Client {
    machine: Machine,
    certificate: String,
    token: String,
}

struct Figure {
    requests: usize,
    elapsed: Duration,
    /// Of assay-verify.
    cpu: Duration,
}

fn main() {
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(measure(&arguments));
}

async fn measure(arguments: &Arguments) {
    let key = PrivateKey::generate().unwrap();
    let issuer = issuer(&key).await;
    let clients: Vec<_> = (0..arguments.machines).map(|_| client(&key, &issuer)).collect();
    let (verify, address) = start(&issuer).await;
    let bearers: Vec<_> = clients.iter().map(with_certificate).collect();
    // Fills the cache.
    let _warm = run(&verify, address, arguments, &bearers, Some(bearers.len())).await;
    let certificates = run(&verify, address, arguments, &bearers, None).await;
    let proofs: Vec<_> = (0..arguments.proofs)
        .map(|number| with_proof(&clients[number % clients.len()]))
        .collect();
    let dpop = run(&verify, address, arguments, &proofs, Some(proofs.len())).await;
    println!("| assay-verify, one worker thread | requests a second | CPU µs a request | requests a CPU second |");
    println!("|---|---|---|---|");
    for (name, figure) in [("client certificates, from the cache", certificates), ("DPoP", dpop)] {
        let requests = figure.requests as f64;
        println!(
            "| {name} | {:.0} | {:.1} | {:.0} |",
            requests / figure.elapsed.as_secs_f64(),
            figure.cpu.as_secs_f64() * 1e6 / requests,
            requests / figure.cpu.as_secs_f64(),
        );
    }
}

/// Publishes the key, and returns its own URL.
async fn issuer(key: &PrivateKey) -> String {
    let (x, y) = key.public_key().jwk_coordinates();
    let kid = key.public_key().thumbprint();
    let keys = json!({"keys": [{"kty": "EC", "crv": "P-256", "x": x, "y": y, "kid": kid}]}).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let router = Router::new().fallback(async move || keys);
    tokio::spawn(async move { axum::serve(listener, router).await });
    url
}

fn client(key: &PrivateKey, issuer: &str) -> Client {
    let machine = Machine::new();
    let certificate = rcgen::generate_simple_self_signed([Uuid::new_v4().to_string()])
        .unwrap()
        .cert;
    let now = now();
    let machine_id = Uuid::new_v4();
    let claims = GrantClaims {
        iss: issuer.to_owned(),
        sub: format!("spiffe://example.com/machine/{machine_id}"),
        aud: AudienceClaim::List([AUDIENCE.to_owned()]),
        iat: now - 30,
        nbf: now - 30,
        exp: now + 3600,
        jti: Uuid::new_v4(),
        cnf: Confirmation::new(machine.thumbprint(), &sha256(certificate.der())),
        scope: "read write".to_owned(),
        permissions: vec!["read".to_owned(), "write".to_owned()],
        machine_id,
        assurance: Assurance::Verified,
    };
    let escaped: String = form_urlencoded::byte_serialize(certificate.pem().as_bytes()).collect();
    Client {
        machine,
        certificate: escaped.replace('+', "%20"),
        token: GrantSigner::new(key).unwrap().sign(&claims, "").unwrap(),
    }
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs().try_into().unwrap()
}

async fn start(issuer: &str) -> (Process, SocketAddr) {
    let mut command = Command::new(program("assay-verify"));
    command.args(["--listen", "127.0.0.1:0", "--issuer", issuer, "--audience", AUDIENCE]);
    command.args(["--proof", "either", "--certificate-form", "escaped-pem"]);
    // An https issuer needs roots. This one is on a loopback address, but the client is set up before it is called.
    let files = Files::new();
    let (root, _) = files.certificate("root").await;
    command.arg("--ca-file").arg(&root);
    command
        .args(["--require-header", "X-Assay-Require"])
        .env("TOKIO_WORKER_THREADS", "1");
    let verify = Process::spawn(command);
    let address = |line: &str| {
        line.split_once("listening address=")
            .map(|(_, address)| address.to_owned())
    };
    let address = verify
        .output()
        .wait_for(0, Duration::from_secs(60), address)
        .await
        .unwrap();
    (verify, address.parse().unwrap())
}

/// The request of nginx for a request with a client certificate.
fn with_certificate(client: &Client) -> Vec<u8> {
    let Client { certificate, token, .. } = client;
    question(&format!(
        "Authorization: Bearer {token}\r\nX-Client-Certificate: {certificate}\r\n"
    ))
}

fn with_proof(client: &Client) -> Vec<u8> {
    let claims = ProofClaims {
        jti: Uuid::new_v4().to_string(),
        htm: "GET".parse().unwrap(),
        htu: URL.parse().unwrap(),
        // Signing takes a while, and the program refuses proofs from before its start.
        iat: now() + 30,
        ath: Some(access_token_hash(&client.token)),
        nonce: None,
    };
    let proof = client.machine.prove(&claims);
    question(&format!("Authorization: DPoP {}\r\nDPoP: {proof}\r\n", client.token))
}

fn question(credentials: &str) -> Vec<u8> {
    format!(
        "GET /assay-verify HTTP/1.1\r\nHost: assay_verify\r\nX-Original-Method: GET\r\nX-Original-URL: {URL}?a=b\r\n\
         X-Assay-Require: read\r\nUser-Agent: curl/7.88.1\r\nAccept: */*\r\nAccept-Encoding: gzip\r\n\
         Cookie: session=0123456789abcdef0123456789abcdef\r\n{credentials}\r\n"
    )
    .into_bytes()
}

/// Sends the requests in turns over all connections, once each or for the configured time.
async fn run(
    verify: &Process,
    address: SocketAddr,
    arguments: &Arguments,
    requests: &[Vec<u8>],
    once: Option<usize>,
) -> Figure {
    let (begun, cpu) = (Instant::now(), cpu_time(verify));
    let until = begun + Duration::from_secs_f64(arguments.seconds);
    let lanes = (0..arguments.connections).map(async |lane| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut sent = 0;
        let mut answer = vec![0; 4096];
        for request in requests.iter().cycle().skip(lane).step_by(arguments.connections) {
            let is_over = match once {
                Some(count) => lane + sent * arguments.connections >= count,
                None => Instant::now() >= until,
            };
            if is_over {
                break;
            }
            stream.write_all(request).await.unwrap();
            let mut length = 0;
            while !answer[..length].ends_with(b"\r\n\r\n") {
                let read = stream.read(&mut answer[length..]).await.unwrap();
                assert!(read > 0, "the connection has ended");
                length += read;
            }
            let answer = String::from_utf8_lossy(&answer[..length]);
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            sent += 1;
        }
        sent
    });
    let sent = futures_util::future::join_all(lanes).await;
    Figure {
        requests: sent.iter().sum(),
        elapsed: begun.elapsed(),
        cpu: cpu_time(verify) - cpu,
    }
}

/// The CPU time that a process has used (proc(5), `stat`, fields 14 and 15), in ticks of 10 ms.
fn cpu_time(process: &Process) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let ticks: Vec<u64> = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse().unwrap())
        .collect();
    Duration::from_millis(10 * ticks.iter().sum::<u64>())
}
