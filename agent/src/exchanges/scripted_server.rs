//! A server for tests of the exchanges. It speaks plain HTTP on a loopback address, and responds as the test says.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use crate::trust::ServerUrl;

/// A received request.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    /// Method and path.
    pub(crate) what: String,
    pub(crate) body: Value,
}

/// The response to a request.
#[derive(Debug, Clone)]
pub(crate) enum Reply {
    /// Status, additional headers, body.
    Response(u16, String, Value),
    /// Close the connection: the response is lost.
    Lost,
}

/// The server. It stops with the test's runtime.
#[derive(Debug)]
pub(crate) struct ScriptedServer {
    pub(crate) url: ServerUrl,
    received: Arc<Mutex<Vec<Received>>>,
}

impl Reply {
    pub(crate) fn problem(status: u16, slug: &str) -> Self {
        let problem = json!({"type": format!("urn:assay:problem:{slug}"), "title": slug, "status": status});
        Self::Response(status, "content-type: application/problem+json\r\n".into(), problem)
    }
}

impl ScriptedServer {
    /// Responds to each `POST` with `reply`, and to everything else with 204. Each response brings a new nonce.
    pub(crate) async fn start(mut reply: impl FnMut(&Received) -> Reply + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&received);
        tokio::spawn(async move {
            for nonce in 1_u32.. {
                let (mut connection, _) = listener.accept().await.unwrap();
                let request = read_request(&mut connection).await;
                log.lock().unwrap().push(request.clone());
                let reply = match request.what.starts_with("POST") {
                    true => reply(&request),
                    false => Reply::Response(204, String::new(), Value::Null),
                };
                if let Reply::Response(status, headers, body) = reply {
                    let body = if body.is_null() {
                        String::new()
                    } else {
                        body.to_string()
                    };
                    let length = body.len();
                    let response = format!(
                        "HTTP/1.1 {status} X\r\nreplay-nonce: nonce-{nonce}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
                    );
                    connection.write_all(response.as_bytes()).await.unwrap();
                }
            }
        });
        Self { url, received }
    }

    /// All requests, in order.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// Methods and paths of all requests, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.received().into_iter().map(|request| request.what).collect()
    }
}

async fn read_request(connection: &mut TcpStream) -> Received {
    let mut bytes = Vec::new();
    loop {
        connection.read_buf(&mut bytes).await.unwrap();
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .filter_map(|line| line.split_once(": "))
            .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
            .map_or(0, |(_, length)| length.parse().unwrap());
        if body.len() >= length {
            let what = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
            let body = serde_json::from_str(body).unwrap_or(Value::Null);
            return Received { what, body };
        }
    }
}
