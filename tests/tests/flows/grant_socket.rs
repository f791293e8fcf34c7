//! The daemon's socket: grants for the users of the machine that the configuration names.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use assay_protocol::dpop::{DpopNonce, Expectation, UnverifiedProof, access_token_hash};
use assay_server::clock::{Clock, SystemClock};
use assay_tests::administrator::text;
use assay_tests::installation::Installation;
use assay_tests::mac::{DONE, Mac};
use assay_tests::process::Process;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use uuid::Uuid;

/// Users that every system has.
const NOBODY: u32 = 65_534;
const DAEMON: u32 = 1;

fn socket(mac: &Mac) -> PathBuf {
    mac.state().join("run/agent.sock")
}

/// A daemon that has checked in with one grant and one denial, and their audiences.
async fn daemon(configuration: &str) -> (Mac, Process, [String; 2]) {
    let installation = Installation::shared().await;
    let (mac, administrator) = (Mac::new(installation), installation.administrator());
    mac.open_folder();
    let token = administrator.token(json!({})).await.secret;
    let _enrolled = mac.enroll(&token, DONE).await;
    let id: Uuid = text(&mac.status().await, "machine_id").parse().unwrap();
    let mut audiences = [String::new(), String::new()];
    for (audience, conditions) in audiences.iter_mut().zip([json!({}), json!({"sip_enabled": true})]) {
        let permission = administrator.permission("read").await;
        *audience = text(
            &administrator.get(&format!("permissions/{permission}")).await,
            "audience",
        );
        let grant = json!({"permission_id": permission, "selector": {"machine_ids": [id]}, "conditions": conditions});
        administrator.create("grants", &grant).await;
    }
    let _checked_in = mac.run(&["run", "--once"], DONE).await;
    let daemon = mac.start_daemon_with(&token, configuration);
    daemon.writes(0, "serving grants").await;
    (mac, daemon, audiences)
}

async fn ask(mac: &Mac, method: &str, target: &str) -> (u16, Value) {
    let mut stream = UnixStream::connect(socket(mac)).await.unwrap();
    let request = format!("{method} {target} HTTP/1.1\r\nhost: agent\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    parse(&answer)
}

fn parse(answer: &str) -> (u16, Value) {
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {answer:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    assert!(head.to_lowercase().contains("cache-control: no-store"), "{head}");
    (status, serde_json::from_str(body).unwrap())
}

fn grant_of(audience: &str) -> String {
    let query: String = url::form_urlencoded::Serializer::new(String::new())
        .append_pair("audience", audience)
        .finish();
    format!("/grant?{query}")
}

/// Sends the request as another user of this machine.
async fn ask_as(user: u32, mac: &Mac, target: &str) -> (u16, Value) {
    const ASK: &str = "import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(f'GET {sys.argv[2]} HTTP/1.1\\r\\nhost: agent\\r\\nconnection: close\\r\\n\\r\\n'.encode())
sys.stdout.write(s.makefile(newline='').read())";
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", ASK]).arg(socket(mac)).arg(target).current_dir("/");
    command.uid(user).gid(user);
    let output = tokio::task::spawn_blocking(move || command.output())
        .await
        .unwrap()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    parse(&String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn grants_are_handed_out_and_denials_explained() {
    let (mac, _daemon, [granted, denied]) = daemon("").await;
    let (status, grant) = ask(&mac, "GET", &grant_of(&granted)).await;
    assert_eq!(status, 200, "{grant}");
    assert_eq!(
        (&grant["audience"], &grant["permissions"]),
        (&json!(granted), &json!(["read"]))
    );
    // The daemon may have checked in since.
    assert_eq!(text(&grant, "token").split('.').count(), 3);
    assert!(grant["expires_at"].is_string());

    let (status, problem) = ask(&mac, "GET", &grant_of(&denied)).await;
    assert_eq!(status, 403, "{problem}");
    assert!(
        problem["reasons"][0].as_str().unwrap().contains("sip_enabled"),
        "{problem}"
    );
    for (method, target, expected) in [
        ("GET", grant_of("https://unknown.example.com"), 404),
        ("GET", "/grant".to_owned(), 400),
        ("GET", "/grant?audience=a&audience=b".to_owned(), 400),
        ("GET", "/".to_owned(), 404),
        ("POST", grant_of(&granted), 405),
    ] {
        let (status, problem) = ask(&mac, method, &target).await;
        assert_eq!(
            (status, &problem["status"]),
            (expected, &json!(expected)),
            "{method} {target}: {problem}"
        );
    }

    mac.rewrite_state(|state| {
        let grants = state["last_check_in"]["grants"].as_array_mut().unwrap();
        grants[0]["expires_at"] = json!("2020-01-01T00:00:00Z");
    });
    let (status, problem) = ask(&mac, "GET", &grant_of(&granted)).await;
    assert_eq!(status, 503, "{problem}");
    assert!(text(&problem, "detail").contains("expired"), "{problem}");
}

fn proof_of(parameters: &[(&str, &str)]) -> String {
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    format!("/proof?{}", query.extend_pairs(parameters).finish())
}

#[tokio::test]
async fn a_proof_comes_with_the_token_that_it_is_for() {
    let (mac, _daemon, [granted, denied]) = daemon("").await;
    let url = "https://wiki.example.com/a/%2e%2e//b?c=d";
    let asked = [("audience", granted.as_str()), ("method", "DELETE"), ("url", url)];
    for nonce in [None, Some("a-nonce")] {
        let asked: Vec<_> = asked.into_iter().chain(nonce.map(|nonce| ("nonce", nonce))).collect();
        let (status, proven) = ask(&mac, "GET", &proof_of(&asked)).await;
        assert_eq!((status, &proven["audience"]), (200, &json!(granted)), "{proven}");
        let token = text(&proven, "token");
        let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
        let claims: Value = serde_json::from_slice(&claims).unwrap();
        let nonce = nonce.map(|nonce| nonce.parse::<DpopNonce>().unwrap());
        let expected = Expectation {
            key: text(&claims["cnf"], "jkt").parse().unwrap(),
            method: &"DELETE".parse().unwrap(),
            target: &url.parse().unwrap(),
            access_token_hash: &access_token_hash(&token),
            nonce: nonce.as_ref(),
            now: SystemClock.now().unix_timestamp(),
        };
        let proof = text(&proven, "proof");
        UnverifiedProof::parse(&proof).unwrap().verify(&expected).unwrap();
    }
    let with = |name: &'static str, value: &'static str| {
        let changed = asked.map(|(other, old)| (other, if other == name { value } else { old }));
        proof_of(&changed)
    };
    for (target, expected) in [
        (proof_of(&[("audience", &denied), ("method", "GET"), ("url", url)]), 403),
        (with("audience", "https://nowhere.example.com"), 404),
        (with("method", "GE T"), 400),
        (with("url", "/a"), 400),
        (with("url", "https://user@wiki.example.com/"), 400),
        (proof_of(&asked[..2]), 400),
        (proof_of(&[asked.as_slice(), &asked[2..]].concat()), 400),
        (proof_of(&[asked.as_slice(), &[("nonce", "a b")]].concat()), 400),
        (
            proof_of(&[asked.as_slice(), &[("nonce", "a"), ("nonce", "b")]].concat()),
            400,
        ),
    ] {
        let (status, problem) = ask(&mac, "GET", &target).await;
        assert_eq!(status, expected, "{target}: {problem}");
    }
    assert_eq!(ask(&mac, "POST", &proof_of(&asked)).await.0, 405);
}

#[tokio::test]
async fn only_configured_users_get_grants_and_none_gets_the_key() {
    if !rustix::process::geteuid().is_root() {
        println!("only root can be several users");
        return;
    }
    let (mac, daemon, [granted, _]) = daemon("[grant_socket]\nusers = [\"nobody\"]\n").await;
    let (status, grant) = ask_as(NOBODY, &mac, &grant_of(&granted)).await;
    assert_eq!(status, 200, "{grant}");
    let proof = proof_of(&[
        ("audience", &granted),
        ("method", "GET"),
        ("url", "https://wiki.example.com/"),
    ]);
    let (status, proven) = ask_as(NOBODY, &mac, &proof).await;
    assert_eq!(status, 200, "{proven}");
    let (status, problem) = ask_as(DAEMON, &mac, &proof).await;
    assert_eq!(status, 403, "{problem}");
    let (status, problem) = ask_as(DAEMON, &mac, &grant_of(&granted)).await;
    assert_eq!(status, 403, "{problem}");
    assert!(text(&problem, "detail").contains("grant_socket.users"), "{problem}");
    // The user can reach the socket, but no other file of the agent.
    for command in [
        "ls \"$1\"",
        "cat \"$1/state.json\"",
        "cat \"$1/software.key\"",
        "touch \"$1/run/x\"",
    ] {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", command, "sh"])
            .arg(mac.state())
            .uid(NOBODY)
            .gid(NOBODY)
            .current_dir("/");
        let output = tokio::task::spawn_blocking(move || shell.output())
            .await
            .unwrap()
            .unwrap();
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{command}: {output:?}"
        );
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().await.code(), Some(DONE), "{}", daemon.output());
}

#[tokio::test]
async fn a_stale_socket_is_replaced_and_a_daemon_waits_for_one_in_use() {
    let (mac, first, [granted, _]) = daemon("").await;
    first.signal(Signal::KILL);
    let _killed = first.ended().await;
    assert!(socket(&mac).exists());
    let second = mac.start(&["run"]);
    second.writes(0, "serving grants").await;
    assert_eq!(ask(&mac, "GET", &grant_of(&granted)).await.0, 200);

    let third = mac.start(&["run"]);
    third.writes(0, "waiting for it to stop").await;
    // The socket belongs to the second daemon. The third one can use it only after that has ended.
    assert!(
        !third.output().to_string().contains("serving grants"),
        "{}",
        third.output()
    );
    assert_eq!(ask(&mac, "GET", &grant_of(&granted)).await.0, 200);
    second.signal(Signal::TERM);
    assert_eq!(second.ended().await.code(), Some(DONE), "{}", second.output());
    third.writes(0, "serving grants").await;
    assert_eq!(ask(&mac, "GET", &grant_of(&granted)).await.0, 200);
}
