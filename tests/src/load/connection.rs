//! One connection to a server, with as little HTTP/1.1 as the exchanges need: the load generator shares the CPU with
//! the server that it measures.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The most headers of a response.
const MOST_HEADERS: usize = 32;

/// Traffic on the wire, including TLS and its handshakes.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Bytes to the servers.
    pub sent: AtomicU64,
    /// Bytes from the servers.
    pub received: AtomicU64,
    /// Handshakes with a key exchange and signatures.
    pub full_handshakes: AtomicU64,
    /// Handshakes that resumed a session.
    pub resumed_handshakes: AtomicU64,
}

/// A server's address.
#[derive(Debug, Clone)]
pub struct Address {
    /// Its socket address.
    pub socket: SocketAddr,
    /// The name that its certificate must have. `None` without TLS.
    pub name: Option<ServerName<'static>>,
    /// The value of the header `Host`.
    pub host: String,
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The fresh nonce.
    pub nonce: Option<String>,
    /// The body.
    pub body: Vec<u8>,
    /// Whether the connection can be used again.
    pub stays_open: bool,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// A connection.
pub struct Connection {
    stream: Box<dyn Stream>,
    host: String,
    /// Bytes that were read, but belong to no complete response yet.
    read: Vec<u8>,
}

impl Connection {
    /// Connects, with TLS if the address has a name.
    pub async fn open(address: &Address, tls: &Arc<ClientConfig>, traffic: &Arc<Traffic>) -> io::Result<Self> {
        let stream = TcpStream::connect(address.socket).await?;
        stream.set_nodelay(true)?;
        let stream = Counted {
            stream,
            traffic: Arc::clone(traffic),
        };
        let stream: Box<dyn Stream> = match &address.name {
            None => Box::new(stream),
            Some(name) => {
                let connector = TlsConnector::from(Arc::clone(tls));
                let stream = connector.connect(name.clone(), stream).await?;
                let counter = match stream.get_ref().1.handshake_kind() {
                    Some(HandshakeKind::Resumed) => &traffic.resumed_handshakes,
                    _ => &traffic.full_handshakes,
                };
                count(counter, 1);
                Box::new(stream)
            }
        };
        Ok(Self {
            stream,
            host: address.host.clone(),
            read: Vec::with_capacity(4096),
        })
    }

    /// Sends a request, and reads its response. `body` is JSON; without a body the request is a GET.
    pub async fn call(&mut self, path: &str, body: Option<&[u8]>) -> io::Result<Answer> {
        let mut request = match body {
            None => format!("GET {path} HTTP/1.1\r\nhost: {}\r\n\r\n", self.host).into_bytes(),
            Some(body) => format!(
                "POST {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                self.host,
                body.len()
            )
            .into_bytes(),
        };
        request.extend_from_slice(body.unwrap_or_default());
        self.stream.write_all(&request).await?;
        self.stream.flush().await?;
        loop {
            if let Some((head, mut answer, length)) = read_head(&self.read)? {
                while self.read.len() < head + length {
                    self.read_more().await?;
                }
                let rest = self.read.split_off(head + length);
                let mut whole = std::mem::replace(&mut self.read, rest);
                answer.body = whole.split_off(head);
                return Ok(answer);
            }
            self.read_more().await?;
        }
    }

    /// Closes the connection properly.
    pub async fn close(mut self) {
        // The server may have closed it first.
        let _ = self.stream.shutdown().await;
    }

    async fn read_more(&mut self) -> io::Result<()> {
        match self.stream.read_buf(&mut self.read).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

/// The length of a complete head, the response without its body, and the length of the body.
fn read_head(bytes: &[u8]) -> io::Result<Option<(usize, Answer, usize)>> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let value = |name: &str| {
        let header = response
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case(name));
        header.and_then(|header| std::str::from_utf8(header.value).ok())
    };
    let status = response.code.unwrap_or_default();
    let length = value("content-length").and_then(|length| length.parse().ok());
    let length = match (length, status) {
        (Some(length), _) => length,
        (None, 204 | 304) => 0,
        (None, _) => return Err(io::Error::other("an answer without a length")),
    };
    let answer = Answer {
        status,
        nonce: value("replay-nonce").map(str::to_owned),
        body: Vec::new(),
        stays_open: !value("connection").is_some_and(|connection| connection.eq_ignore_ascii_case("close")),
    };
    Ok(Some((head, answer, length)))
}

/// Counts the bytes that pass.
struct Counted {
    stream: TcpStream,
    traffic: Arc<Traffic>,
}

fn count(counter: &AtomicU64, many: usize) {
    counter.fetch_add(many.try_into().unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        count(&self.traffic.received, buffer.filled().len() - before);
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = &written {
            count(&self.traffic.sent, *written);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
