//! A network between a machine and its server that loses responses.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const HELD_WITHIN: Duration = Duration::from_secs(60);

/// Whether the change that a response reports has been made.
pub type Condition = Arc<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

/// Forwards connections. On demand, it holds back all that the server sends after a condition has become true. That is
/// the response to the request that made it true, because earlier responses were sent before.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    rule: watch::Sender<Rule>,
    held: Arc<watch::Sender<u32>>,
    accepting: JoinHandle<()>,
}

#[derive(Clone)]
struct Rule {
    server: Option<SocketAddr>,
    condition: Option<Condition>,
    /// How often all connections were cut.
    cuts: u32,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "to {:?}", self.server)
    }
}

impl Proxy {
    /// Listens. Refuses every connection until [`forward_to`](Self::forward_to) names the server.
    pub async fn start() -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let rule = watch::Sender::new(Rule {
            server: None,
            condition: None,
            cuts: 0,
        });
        let held = Arc::new(watch::Sender::new(0));
        let counting = Arc::clone(&held);
        let rules = rule.subscribe();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(forward(client, rules.clone(), Arc::clone(&counting)));
            }
        });
        Self {
            address,
            rule,
            held,
            accepting,
        }
    }

    /// Its URL, which callers use as the server's.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Forwards all connections and responses to this server.
    pub fn forward_to(&self, server: SocketAddr) {
        self.rule.send_modify(|rule| {
            rule.server = Some(server);
            rule.condition = None;
        });
    }

    /// Holds back all responses after `condition` has become true.
    pub fn hold_back_once(&self, condition: Condition) {
        self.held.send_replace(0);
        self.rule.send_modify(|rule| rule.condition = Some(condition));
    }

    /// Cuts all connections.
    pub fn cut(&self) {
        self.rule.send_modify(|rule| rule.cuts += 1);
    }

    /// Waits until the proxy delays a response. By then the server has made the change, and the caller has no reply.
    pub async fn holds_an_answer_back(&self) {
        let mut held = self.held.subscribe();
        let waiting = tokio::time::timeout(HELD_WITHIN, held.wait_for(|held| *held > 0));
        waiting.await.expect("no response was held back").unwrap();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// One connection, until either side ends it.
async fn forward(client: TcpStream, rules: watch::Receiver<Rule>, held: Arc<watch::Sender<u32>>) {
    let (server, cuts) = {
        let rule = rules.borrow();
        (rule.server, rule.cuts)
    };
    let mut cut_rules = rules.clone();
    let Some(server) = server else { return };
    let Ok(server) = TcpStream::connect(server).await else {
        return;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let requests = async { drop(tokio::io::copy(&mut from_client, &mut to_server).await) };
    let answers = async {
        let mut buffer = vec![0; 16 * 1024];
        let mut is_held = false;
        while let Ok(length @ 1..) = from_server.read(&mut buffer).await {
            let condition = rules.borrow().condition.clone();
            if let Some(condition) = condition {
                is_held = is_held || condition().await;
            }
            if is_held {
                held.send_modify(|held| *held += 1);
            } else if to_client.write_all(&buffer[..length]).await.is_err() {
                break;
            }
        }
    };
    tokio::select! {
        () = requests => {}
        () = answers => {}
        _ = cut_rules.wait_for(|rule| rule.cuts != cuts) => {}
    }
}
