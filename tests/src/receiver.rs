//! A server for one test: a receiver of webhooks, or an MDM. It passes each request to the test, which decides the
//! response.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const SENT_WITHIN: Duration = Duration::from_secs(30);

/// Listens on a loopback address.
#[derive(Debug)]
pub struct Receiver {
    address: SocketAddr,
    received: mpsc::UnboundedReceiver<Received>,
    accepting: JoinHandle<()>,
}

/// A request that waits for its response. Dropping it closes the connection without one.
#[derive(Debug)]
pub struct Received {
    /// Method and path.
    pub target: String,
    /// The headers, by their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body, as it was sent.
    pub body: Vec<u8>,
    answer: oneshot::Sender<String>,
}

impl Receiver {
    /// Starts a server.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, received) = mpsc::unbounded_channel();
        let accepting = tokio::spawn(async move {
            loop {
                let (connection, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(connection, sender.clone()));
            }
        });
        Self {
            address,
            received,
            accepting,
        }
    }

    /// The address that it listens on.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The URL for deliveries.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}/hook", self.origin())
    }

    /// The next delivery.
    ///
    /// # Panics
    /// If no request arrives for long, or if it is no delivery.
    pub async fn next(&mut self) -> Received {
        let received = self.next_request().await;
        assert_eq!(received.target, "POST /hook");
        received
    }

    /// The next request.
    ///
    /// # Panics
    /// If no request arrives for long.
    pub async fn next_request(&mut self) -> Received {
        let received = tokio::time::timeout(SENT_WITHIN, self.received.recv()).await;
        received.expect("no request arrived").unwrap()
    }

    /// Whether a request has arrived that the test has not read.
    pub fn has_more(&mut self) -> bool {
        self.received.try_recv().is_ok()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Received {
    /// The value of a header.
    ///
    /// # Panics
    /// If the request does not have this header.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}"))
    }

    /// The body.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    /// Whether the signature is valid for this secret (`whsec_…`).
    #[must_use]
    pub fn is_signed_with(&self, secret: &str) -> bool {
        let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
        let signed = format!("{}.{}.", self.header("webhook-id"), self.header("webhook-timestamp"));
        let signed = [signed.as_bytes(), &self.body].concat();
        let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), &signed);
        self.header("webhook-signature") == format!("v1,{}", STANDARD.encode(tag.as_ref()))
    }

    /// Responds with a status, and with a header if one is given.
    pub fn answer(self, status: u16, header: Option<&str>) {
        self.answer_with(status, header, "");
    }

    /// Responds with a status and a JSON body.
    pub fn answer_json(self, status: u16, body: &Value) {
        self.answer_with(status, Some("Content-Type: application/json"), &body.to_string());
    }

    fn answer_with(self, status: u16, header: Option<&str>, body: &str) {
        let header = header.map(|header| format!("{header}\r\n")).unwrap_or_default();
        let length = body.len();
        let answer =
            format!("HTTP/1.1 {status} Status\r\n{header}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        // The caller may have closed the connection.
        let _ = self.answer.send(answer);
    }
}

async fn serve(mut connection: TcpStream, received: mpsc::UnboundedSender<Received>) {
    let Some((target, headers, body)) = read(&mut connection).await else {
        return;
    };
    let (answer, answered) = oneshot::channel();
    let request = Received {
        target,
        headers,
        body,
        answer,
    };
    if received.send(request).is_err() {
        return;
    }
    if let Ok(answer) = answered.await {
        // The caller may have closed the connection.
        let _ = connection.write_all(answer.as_bytes()).await;
    }
}

async fn read(connection: &mut TcpStream) -> Option<(String, BTreeMap<String, String>, Vec<u8>)> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if connection.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let mut body = bytes.split_off(end + 4);
    let head = String::from_utf8(bytes).unwrap();
    let mut lines = head.lines();
    let target = lines.next()?.strip_suffix(" HTTP/1.1").unwrap().to_owned();
    let header = |line: &str| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_lowercase(), value.trim().to_owned()))
    };
    let headers: BTreeMap<String, String> = lines.filter_map(header).collect();
    let length: usize = headers["content-length"].parse().unwrap();
    while body.len() < length {
        if connection.read_buf(&mut body).await.ok()? == 0 {
            return None;
        }
    }
    Some((target, headers, body))
}
