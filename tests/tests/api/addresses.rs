//! Malformed paths and queries, and headers and versions of HTTP.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use reqwest::{Method, Version};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};
use serde_json::json;
use uuid::Uuid;

use crate::api::document::{Operation, operations};

#[tokio::test]
async fn an_unknown_path_is_not_found() {
    let server = InProcess::start().await;
    let long = "a".repeat(5000);
    for operation in operations(&server).await {
        // OCSP's path contains the request. A malformed one gets an OCSP response.
        if operation.path_parameters.is_empty() || operation.path == "/v1/ca/ocsp/{request}" {
            continue;
        }
        for id in [
            "0",
            "no-id",
            "%00",
            "%ff%fe",
            "..%2f..",
            "%27",
            "+",
            &long,
            &format!("{}x", Uuid::nil()),
        ] {
            let request = server.admin(operation.method.clone(), &operation.path_with(id));
            let answer = server.send(request.json(&json!({"reason": "why"}))).await;
            assert_eq!(answer.kind(), ProblemKind::NotFound, "{answer}");
        }
    }
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/nonce/",
        "//v1/nonce",
        "/v1/admin",
        "/V1/NONCE",
        "/%ff",
        "/%00",
        "/?x=%00",
    ] {
        let answer = server.send(server.request(Method::GET, path)).await;
        assert_eq!(answer.kind(), ProblemKind::NotFound, "{answer}");
    }
    server.stop().await;
}

/// Sends a request with a query. For an endless stream it requests only the head.
async fn look(server: &InProcess, operation: &Operation, query: &str) -> Answer {
    let method = if operation.is_endless() {
        Method::HEAD
    } else {
        Method::GET
    };
    let path = operation.path_with(&Uuid::nil().to_string());
    server.send(server.admin(method, &format!("{path}?{query}"))).await
}

#[tokio::test]
async fn an_unreadable_query_is_malformed() {
    let server = InProcess::start().await;
    for operation in operations(&server).await {
        if operation.query_parameters.is_empty() || operation.method != "GET" {
            continue;
        }
        let path = operation.path_with(&Uuid::nil().to_string());
        let mut queries = Vec::new();
        for limit in [
            "0",
            "501",
            "-1",
            "abc",
            "",
            "1.5",
            "1e2",
            "99999999999999999999",
            "%31%00",
            "true",
        ] {
            queries.push(format!("limit={limit}"));
        }
        for cursor in [
            "",
            "x",
            "%00",
            "%ff",
            "AAAA",
            &"A".repeat(9000),
            "null",
            "AAAAAAAAAAAAAAAAAAAAAA==",
        ] {
            queries.push(format!("cursor={cursor}"));
        }
        queries.extend(["limits=1", "limit=1&limit=2", "%ff=1", "limit=%ff", "x", "a%00b=c"].map(str::to_owned));
        for query in queries {
            let answer = server.get(&format!("{path}?{query}")).await;
            assert_eq!(answer.kind(), ProblemKind::Malformed, "{answer}");
        }
        for name in &operation.query_parameters {
            for value in [
                "%00",
                "%ff",
                "%25",
                "%27",
                "%5c",
                "a:b",
                ":",
                "%f0%9f%92%bb",
                &"x".repeat(300),
                "%",
                "%zz",
            ] {
                let answer = look(&server, &operation, &format!("{name}={value}")).await;
                let known = [200, 400, 404].contains(&answer.status);
                assert!(known, "{answer}");
                assert!(answer.status == 400 || value != "%00", "{answer}");
            }
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn head_is_get_without_a_body() {
    let server = InProcess::start().await;
    for operation in operations(&server).await {
        // The tests of streams request the head of endless ones.
        if operation.method != Method::GET || operation.is_endless() {
            continue;
        }
        let path = operation.path_with(&Uuid::nil().to_string());
        let get = server.get(&path).await;
        let head = server.send(server.admin(Method::HEAD, &path)).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{head}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{head}");
    }
    let nonce = server.send(server.request(Method::HEAD, "/v1/nonce")).await;
    assert_eq!(nonce.status, 204);
    server.stop().await;
}

#[tokio::test]
async fn request_ids_and_nonces_are_unique() {
    let server = InProcess::start().await;
    let (mut ids, mut nonces) = (HashSet::new(), HashSet::new());
    for _ in 0..200 {
        // An id from the caller could forge another request's trail in the audit.
        let request = server
            .request(Method::GET, "/v1/nonce")
            .header("x-request-id", Uuid::nil().to_string());
        let answer = server.send(request).await;
        assert!(
            ids.insert(answer.request_id()) && nonces.insert(answer.nonce().to_owned()),
            "{answer}"
        );
        assert!(!answer.request_id().is_nil());
    }
    server.stop().await;
}

#[tokio::test]
async fn http_1_and_http_2_are_supported() {
    let server = InProcess::start().await;
    let answer = server.send(server.request(Method::GET, "/v1/nonce")).await;
    assert_eq!((answer.status, answer.version), (204, Version::HTTP_2));
    let request = server
        .http1_client()
        .get(format!("{}/v1/nonce", assay_tests::in_process::PUBLIC_URL));
    let answer = server.send(request).await;
    assert_eq!((answer.status, answer.version), (204, Version::HTTP_11));
    server.stop().await;
}

/// The body is shorter than announced. A caller that still reads gets a problem.
#[tokio::test]
async fn a_body_that_ends_too_early_is_malformed() {
    let server = InProcess::start().await;
    let (address, tls) = (server.address(), Arc::clone(server.tls()));
    let answer = tokio::task::spawn_blocking(move || {
        let name = ServerName::try_from("assay.example.com").unwrap();
        let mut tls = rustls::ClientConfig::clone(&tls);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connection = ClientConnection::new(Arc::new(tls), name).unwrap();
        let mut stream = StreamOwned::new(connection, TcpStream::connect(address).unwrap());
        let head = "POST /v1/check-in HTTP/1.1\r\nhost: assay.example.com\r\ncontent-type: application/json\r\n";
        stream
            .write_all(format!("{head}content-length: 100\r\n\r\n{{\"evidence\":").as_bytes())
            .unwrap();
        stream.conn.send_close_notify();
        stream.flush().unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    });
    let answer = answer.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("urn:assay:problem:malformed"), "{answer}");
    server.stop().await;
}

/// After a refusal that left a body unread, the next request on the same HTTP/1.1 connection must succeed.
#[tokio::test]
async fn a_connection_stays_usable_after_a_refusal() {
    let server = InProcess::start().await;
    let client = server.http1_client();
    let url = |path: &str| format!("{}{path}", assay_tests::in_process::PUBLIC_URL);
    for length in [10, 100_000, 1_500_000, 5_000_000] {
        for path in ["/v1/admin/permissions", "/v1/check-in", "/v1/nowhere", "/healthz"] {
            let answer = server.send(client.post(url(path)).body("x".repeat(length))).await;
            assert!((400..500).contains(&answer.status), "{answer}");
            let next = server.send(client.get(url("/readyz"))).await;
            assert_eq!(next.status, 200, "{length} bytes to {path}: {next}");
        }
    }
    server.stop().await;
}

/// With HTTP/2, curl would often see the reset of an unread body before the response.
#[tokio::test]
async fn over_http_2_a_refusal_arrives_although_the_body_was_not_read() {
    let server = InProcess::start().await;
    let address = server.address();
    let url = format!("{}/v1/introspect", assay_tests::in_process::PUBLIC_URL);
    let calls = tokio::task::spawn_blocking(move || {
        let call = || {
            let mut curl = Command::new("curl");
            curl.args(["--silent", "--insecure", "--http2", "--output", "/dev/null"])
                .args(["--connect-to", &format!("::{address}")])
                .args(["--write-out", "%{http_version} %{http_code}", "--data", "token=x", &url]);
            String::from_utf8(curl.output().unwrap().stdout).unwrap()
        };
        (0..20).map(|_| call()).collect::<Vec<_>>()
    });
    for call in calls.await.unwrap() {
        assert_eq!(call, "2 401");
    }
    server.stop().await;
}
