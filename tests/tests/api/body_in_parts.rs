//! A body that arrives in parts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use assay_tests::in_process::{InProcess, PUBLIC_URL};
use assay_tests::machine::Machine;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

/// A slow sender gets its response and delays no other caller.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_body_delays_no_other_request() {
    let server = InProcess::start().await;
    let (slow, other) = (server.enrolled("SLOW").await, server.enrolled("OTHER").await);
    let nonce = server.nonce().await;
    let body = slow.check_in_body(server.audience(), &nonce).to_string();
    let (first, second) = body.split_at(body.len() / 2);
    let mut connection = connect(&server);
    let head = format!(
        "POST /v1/check-in HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: \
         close\r\n\r\n",
        PUBLIC_URL.trim_start_matches("https://"),
        body.len()
    );
    connection.write_all(format!("{head}{first}").as_bytes()).unwrap();
    connection.flush().unwrap();
    let _checked_in = other.check_in(&server).await.expect(200);
    connection.write_all(second.as_bytes()).unwrap();
    connection.flush().unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    check_recorded(&server, &slow).await;
    server.stop().await;
}

/// RFC 9112, section 3.2. Servers that disagree about the host of a request disagree about what it asks for.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_one_host_header_is_malformed() {
    let server = InProcess::start().await;
    for (version, hosts, status) in [
        ("1.1", "", "400"),
        ("1.1", "Host: localhost\r\nHost: elsewhere\r\n", "400"),
        ("1.1", "Host: localhost\r\n", "200"),
        ("1.0", "", "200"),
    ] {
        let mut connection = connect(&server);
        let request = format!("GET /healthz HTTP/{version}\r\n{hosts}Connection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        let _end = connection.read_to_string(&mut answer);
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.contains(&format!(" {status} ")), "{version} {hosts:?}: {answer}");
    }
    server.stop().await;
}

async fn check_recorded(server: &InProcess, machine: &Machine) {
    let record = server.get(&machine.path()).await.expect(200).json();
    assert!(record["last_check_in_at"].is_string(), "{record}");
}

fn connect(server: &InProcess) -> StreamOwned<ClientConnection, TcpStream> {
    let name = ServerName::try_from(PUBLIC_URL.trim_start_matches("https://")).unwrap();
    let connection = ClientConnection::new(Arc::clone(server.tls()), name).unwrap();
    StreamOwned::new(connection, TcpStream::connect(server.address()).unwrap())
}
