//! The agent's proxy: any program reaches a service that accepts only machines.

use std::time::Duration;

use assay_protocol::dpop::{DpopNonce, Expectation, ProofClaims, UnverifiedProof, access_token_hash};
use assay_server::clock::{Clock, SystemClock};
use assay_tests::administrator::text;
use assay_tests::installation::Installation;
use assay_tests::mac::{DONE, FAILED, Mac, WRONG_USAGE};
use assay_tests::nginx::Nginx;
use assay_tests::openssl::Files;
use assay_tests::process::Process;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use uuid::Uuid;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// A running proxy, and its address.
pub(super) struct Proxy {
    process: Process,
    pub(super) url: String,
}

/// Starts a proxy of this machine for a service with the certificate `service`.
pub(super) async fn proxy(mac: &Mac, upstream: &str, files: &Files, more: &[&str]) -> Proxy {
    let roots = files.folder().join("service.pem");
    let mut arguments = vec!["proxy", "--upstream", upstream];
    if roots.exists() {
        arguments.extend(["--upstream-ca-file", roots.to_str().unwrap()]);
    }
    if !more.contains(&"--listen") {
        arguments.extend(["--listen", "127.0.0.1:0"]);
    }
    arguments.extend(more);
    let process = mac.start(&arguments);
    let listening = |line: &str| line.strip_prefix("Listening on ").map(ToOwned::to_owned);
    let url = process.output().wait_for(0, READY_WITHIN, listening).await;
    let url = url.unwrap_or_else(|| panic!("it has ended:\n{}", process.output()));
    Proxy { process, url }
}

fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// A response through the proxy.
pub(super) async fn get(proxy: &Proxy, path: &str) -> (u16, String) {
    let answer = client().get(format!("{}{path}", proxy.url)).send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

/// A machine that has checked in, with a grant for the audience.
async fn granted(conditions: Value) -> (Mac, String) {
    let installation = Installation::shared().await;
    let (mac, administrator) = (Mac::new(installation), installation.administrator());
    let _enrolled = mac.enroll(&administrator.token(json!({})).await.secret, DONE).await;
    let id: Uuid = text(&mac.status().await, "machine_id").parse().unwrap();
    let permission = administrator.permission("read").await;
    let permission_path = format!("permissions/{permission}");
    let audience = text(&administrator.get(&permission_path).await, "audience");
    let grant = json!({"permission_id": permission, "selector": {"machine_ids": [id]}, "conditions": conditions});
    administrator.create("grants", &grant).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    (mac, audience)
}

#[tokio::test]
async fn a_program_reaches_a_service_as_the_machine_with_its_current_grant_and_certificate() {
    let ((mac, audience), files) = (granted(json!({})).await, Files::new());
    let nginx = Nginx::start(&files, "TLSv1.3", &Installation::shared().await.roots).await;
    let proxy = proxy(&mac, &nginx.url(), &files, &["--audience", &audience]).await;
    let ask = async || {
        let request = client()
            .get(format!("{}/wiki?a=b", proxy.url))
            .bearer_auth("the program's own");
        request.send().await.unwrap().text().await.unwrap()
    };
    let serial_number = async || text(&mac.status().await["certificate"], "serial_number").to_uppercase();
    let token = mac.run(&["grant", "--audience", &audience], DONE).await;
    let said = ask().await;
    let first = serial_number().await;
    for expected in [
        format!("authorization=Bearer {token}"),
        format!("serial={first}"),
        "host=127.0.0.1".to_owned(),
    ] {
        assert!(said.contains(&expected), "no {expected} in {said}");
    }
    // The next request uses what the daemon has written meanwhile.
    let _renewed = mac.run(&["renew"], DONE).await;
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let new_token = mac.run(&["grant", "--audience", &audience], DONE).await;
    let said = ask().await;
    let second = serial_number().await;
    assert_ne!((&first, &token), (&second, &new_token));
    for expected in [format!("authorization=Bearer {new_token}"), format!("serial={second}")] {
        assert!(said.contains(&expected), "no {expected} in {said}");
    }
    proxy.process.signal(Signal::TERM);
    assert_eq!(proxy.process.ended().await.code(), Some(DONE));
}

#[tokio::test]
async fn without_a_grant_or_service_the_proxy_explains_why() {
    let ((mac, audience), files) = (granted(json!({"sip_enabled": true})).await, Files::new());
    // No service listens on this port.
    let nowhere = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = nowhere.local_addr().unwrap();
    drop(nowhere);
    let (certificate, _) = files.certificate("service").await;
    assert!(certificate.exists());
    let upstream = format!("https://{address}");
    let denied = proxy(&mac, &upstream, &files, &["--audience", &audience]).await;
    let (status, said) = get(&denied, "/").await;
    let problem: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((status, &problem["status"]), (403, &json!(403)), "{said}");
    assert!(text(&problem, "detail").contains("sip_enabled"), "{said}");
    assert!(
        problem["reasons"][0].as_str().unwrap().contains("sip_enabled"),
        "{said}"
    );

    let away = proxy(&mac, &upstream, &files, &[]).await;
    let (status, said) = get(&away, "/").await;
    assert_eq!(status, 502, "{said}");
    assert!(said.contains("does not answer"), "{said}");

    mac.rewrite_state(|state| state["machine"]["certificate"]["not_after"] = json!("2020-01-01T00:00:00Z"));
    let (status, said) = get(&away, "/").await;
    assert_eq!(status, 502, "{said}");
    assert!(said.contains("certificate has expired"), "{said}");
}

#[tokio::test]
async fn the_proxy_refuses_requests_of_web_pages() {
    let ((mac, _), files) = (granted(json!({})).await, Files::new());
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = proxy(&mac, &format!("http://{}", upstream.local_addr().unwrap()), &files, &[]).await;
    for (name, value) in [
        ("host", "evil.example.com"),
        ("origin", "https://evil.example.com"),
        ("sec-fetch-site", "cross-site"),
        ("referer", "https://evil.example.com/"),
    ] {
        let refused = client().get(&proxy.url).header(name, value).send().await.unwrap();
        assert_eq!(refused.status(), 403, "{name}: {value}");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
    }
}

#[tokio::test]
async fn bodies_are_streamed_in_both_directions() {
    const HALF: usize = 2 * 1024 * 1024;
    let ((mac, _), files) = (granted(json!({})).await, Files::new());
    let upstream = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = upstream.local_addr().unwrap();
    // A service that returns each part of a body as it arrives.
    let echo = tokio::spawn(async move {
        let (mut stream, _) = upstream.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let length = 2 * HALF;
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        stream.write_all(answer.as_bytes()).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        tokio::io::copy(&mut (&mut reader).take(length as u64), &mut writer)
            .await
            .unwrap();
        String::from_utf8(head).unwrap()
    });
    let socket = files.folder().join("proxy.sock");
    let listen = format!("unix:{}", socket.display());
    let proxy = proxy(&mac, &format!("http://{address}/fleet"), &files, &["--listen", &listen]).await;
    assert_eq!(proxy.url, listen);
    let mut stream = UnixStream::connect(&socket).await.unwrap();
    let head = format!(
        "POST /a HTTP/1.1\r\nhost: service\r\ncontent-length: {}\r\nkeep-alive: 5\r\n\r\n",
        2 * HALF
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut answer_head = Vec::new();
    for half in [b'a', b'b'] {
        // The second half is sent after the first has been returned.
        let sent = vec![half; HALF];
        let mut received = vec![0; HALF];
        let receive = async {
            while !answer_head.ends_with(b"\r\n\r\n") {
                answer_head.push(reader.read_u8().await.unwrap());
            }
            reader.read_exact(&mut received).await.unwrap();
        };
        let ((), sending) = tokio::join!(receive, writer.write_all(&sent));
        sending.unwrap();
        assert!(received == sent);
    }
    let seen = echo.await.unwrap().to_lowercase();
    assert!(seen.starts_with("post /fleet/a http/1.1\r\n"), "{seen}");
    assert!(
        seen.contains(&format!("host: {address}\r\n")) && !seen.contains("keep-alive"),
        "{seen}"
    );

    // The socket is in use, so no other process can take it.
    let second = ["proxy", "--upstream", "http://127.0.0.1:1", "--listen", &listen];
    let said = mac.run(&second, FAILED).await;
    assert!(said.contains("another process listens there"), "{said}");
    drop(UnixStream::connect(&socket).await.unwrap());
}

#[tokio::test]
async fn the_proxy_listens_on_loopback_only() {
    let mac = Mac::new(Installation::shared().await);
    let arguments = [
        "proxy",
        "--upstream",
        "https://wiki.example.com",
        "--listen",
        "0.0.0.0:8080",
    ];
    let said = mac.run(&arguments, WRONG_USAGE).await;
    assert!(said.contains("loopback"), "{said}");
}

#[tokio::test]
async fn garbage_ends_only_its_own_connection() {
    let ((mac, _), files) = (granted(json!({})).await, Files::new());
    let proxy = proxy(&mac, "http://127.0.0.1:1", &files, &[]).await;
    let address = proxy.url.strip_prefix("http://").unwrap();
    let long = format!(
        "GET / HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n",
        "x".repeat(400_000)
    );
    for garbage in [b"\x16\x03\x01\x00\xff\xff".as_slice(), b"GET\r\n\r\n", long.as_bytes()] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        // It may be cut off while it still sends.
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert_eq!(get(&proxy, "/").await.0, 502);
}

/// A service that reports each request, and answers them one after another.
struct Service {
    url: String,
    requests: UnboundedReceiver<Seen>,
}

/// A request as it arrived.
struct Seen {
    head: String,
    body: String,
}

impl Service {
    async fn answering(mut answer: impl FnMut(&Seen) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (sender, requests) = unbounded_channel();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let seen = Seen::read(&mut stream).await;
                let answer = answer(&seen);
                // The test may have ended.
                let _ = sender.send(seen);
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Self { url, requests }
    }
}

impl Seen {
    /// Reads the head and, up to its announced length, the body.
    async fn read(stream: &mut TcpStream) -> Self {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let mut seen = Self {
            head: String::from_utf8(head).unwrap(),
            body: String::new(),
        };
        let length = seen
            .header("content-length")
            .map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await.unwrap();
        seen.body = String::from_utf8(body).unwrap();
        seen
    }

    fn target(&self) -> &str {
        self.head.split(' ').nth(1).unwrap()
    }

    fn header(&self, name: &str) -> Option<&str> {
        let mut found = self.head.lines().skip(1).filter_map(|line| {
            let (other, value) = line.split_once(": ")?;
            other.eq_ignore_ascii_case(name).then_some(value)
        });
        let value = found.next();
        assert!(found.next().is_none(), "{name} is there twice: {}", self.head);
        value
    }

    /// The claims of its proof, which must be for this method and URL and be made with the token's key.
    fn proof(&self, method: &str, url: &str, nonce: Option<&str>) -> ProofClaims {
        let token = self.header("authorization").unwrap().strip_prefix("DPoP ").unwrap();
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        let nonce = nonce.map(|nonce| nonce.parse::<DpopNonce>().unwrap());
        let expected = Expectation {
            key: claims["cnf"]["jkt"].as_str().unwrap().parse().unwrap(),
            method: &method.parse().unwrap(),
            target: &url.parse().unwrap(),
            access_token_hash: &access_token_hash(token),
            nonce: nonce.as_ref(),
            now: SystemClock.now().unix_timestamp(),
        };
        let proof = UnverifiedProof::parse(self.header("dpop").unwrap()).unwrap();
        let proof = proof.verify(&expected).unwrap().claims().clone();
        assert_eq!(proof.nonce, nonce);
        proof
    }
}

fn no_content(_request: &Seen) -> String {
    "HTTP/1.1 204 X\r\nconnection: close\r\n\r\n".to_owned()
}

#[tokio::test]
async fn the_service_gets_the_path_byte_for_byte() {
    let ((mac, _), files) = (granted(json!({})).await, Files::new());
    let mut service = Service::answering(no_content).await;
    for base in ["", "/fleet"] {
        let proxy = proxy(&mac, &format!("{}{base}", service.url), &files, &[]).await;
        for path in [
            "/",
            "/?",
            "/a?",
            "/a/../b",
            "/a/%2e%2E/./b/%2f",
            "//wiki.example.com/a",
            "/a//b///",
            "/a;b=c|d\"e'f{h}^i",
            "/%00%zz%",
            "/a?b=%2e/../c//d?e&&f=|",
        ] {
            let mut stream = TcpStream::connect(proxy.url.strip_prefix("http://").unwrap())
                .await
                .unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 204 "), "{path}: {answer}");
            assert_eq!(service.requests.recv().await.unwrap().target(), format!("{base}{path}"));
        }
    }
}

/// A service that asks for a nonce at the second request, and replaces it at the fourth.
async fn asks_for_nonces() -> Service {
    let mut answers = 0;
    Service::answering(move |request| {
        answers += 1;
        match answers {
            2 => "HTTP/1.1 401 X\r\nDPoP-Nonce: first\r\nWWW-Authenticate: DPoP error=\"use_dpop_nonce\"\r\n\
                  content-length: 0\r\nconnection: close\r\n\r\n"
                .to_owned(),
            4 => "HTTP/1.1 204 X\r\nDPoP-Nonce: second\r\nconnection: close\r\n\r\n".to_owned(),
            6 => "HTTP/1.1 401 X\r\nDPoP-Nonce: second\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned(),
            _ => no_content(request),
        }
    })
    .await
}

#[tokio::test]
async fn with_dpop_each_request_has_its_own_proof_and_the_nonce_that_the_service_asks_for() {
    let ((mac, audience), files) = (granted(json!({})).await, Files::new());
    let mut service = asks_for_nonces().await;
    let proxy = proxy(
        &mac,
        &service.url,
        &files,
        &["--audience", &audience, "--proof", "dpop"],
    )
    .await;
    let send = async |method: &str, path: &str, body: &'static str| {
        let request = client().request(method.parse().unwrap(), format!("{}{path}", proxy.url));
        let request = request
            .header("dpop", "the program's own")
            .bearer_auth("its own")
            .body(body);
        request.send().await.unwrap().status().as_u16()
    };
    let url = |path: &str| format!("{}{path}", service.url);

    assert_eq!(send("GET", "/a?b=c", "").await, 204);
    let first = service.requests.recv().await.unwrap().proof("GET", &url("/a"), None);
    // The second request is answered with a nonce, and repeated with it.
    assert_eq!(send("POST", "/b", "a body").await, 204);
    let refused = service.requests.recv().await.unwrap();
    let repeated = service.requests.recv().await.unwrap();
    let ids = [
        first.jti,
        refused.proof("POST", &url("/b"), None).jti,
        repeated.proof("POST", &url("/b"), Some("first")).jti,
    ];
    assert_eq!((refused.body.as_str(), repeated.body.as_str()), ("a body", "a body"));
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2], "{ids:?}");
    // It is remembered, and replaced by that of any response.
    assert_eq!(send("GET", "/c", "").await, 204);
    service
        .requests
        .recv()
        .await
        .unwrap()
        .proof("GET", &url("/c"), Some("first"));
    assert_eq!(send("GET", "/d", "").await, 204);
    service
        .requests
        .recv()
        .await
        .unwrap()
        .proof("GET", &url("/d"), Some("second"));
    // A nonce that was sent already is no reason to repeat.
    assert_eq!(send("GET", "/e", "").await, 401);
    service
        .requests
        .recv()
        .await
        .unwrap()
        .proof("GET", &url("/e"), Some("second"));
    assert!(service.requests.try_recv().is_err());
}

/// A request whose body is streamed cannot be repeated: the program gets the refusal, and can repeat it itself.
#[tokio::test]
async fn a_streamed_request_is_not_repeated_but_its_nonce_is_remembered() {
    let ((mac, audience), files) = (granted(json!({})).await, Files::new());
    let mut service = Service::answering(move |_| {
        "HTTP/1.1 401 X\r\nDPoP-Nonce: first\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".to_owned()
    })
    .await;
    let proxy = proxy(
        &mac,
        &service.url,
        &files,
        &["--audience", &audience, "--proof", "dpop"],
    )
    .await;
    for nonce in [None, Some("first")] {
        let request = client().post(&proxy.url).body("x".repeat(70_000));
        assert_eq!(request.send().await.unwrap().status(), 401);
        let seen = service.requests.recv().await.unwrap();
        seen.proof("POST", &service.url, nonce);
        assert_eq!(seen.body.len(), 70_000);
        assert!(service.requests.try_recv().is_err());
    }
}
