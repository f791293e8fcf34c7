//! A lane: performs the exchanges of its machines one after the other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use assay_protocol::agent_api::Enrolled;
use rustls::ClientConfig;
use serde_json::Value;
use tokio::time::{Instant, timeout};

use super::connection::{Address, Answer, Connection};
use super::options::{ConnectionUse, Exchange, Options};
use super::target::{Target, TargetError};
use crate::machine::Machine;

/// A server must answer within 5 s.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// A nonce lives 300 s.
const NONCE_SERVES: Duration = Duration::from_secs(240);
const PROBLEM: &str = "urn:assay:problem:";

/// A part of the fleet, with its connections.
pub struct Lane {
    target: Arc<Target>,
    address: Address,
    machines: Vec<Machine>,
    next: usize,
    token: Option<String>,
    connection: ConnectionUse,
    tls: Arc<ClientConfig>,
    /// One for each machine with a certificate, otherwise one for all machines.
    peers: Vec<Peer>,
    presents_certificates: bool,
    nonce: Option<(String, Instant)>,
}

/// The client's end of a connection, for one machine or for all machines of the lane.
#[derive(Default)]
struct Peer {
    /// The certificate to present, with its chain in PEM.
    chain: Option<String>,
    tls: Option<Arc<ClientConfig>>,
    open: Option<Connection>,
}

impl Lane {
    /// The lane with this number, and with these machines.
    pub fn new(
        options: &Options,
        target: &Arc<Target>,
        number: usize,
        machines: Vec<Machine>,
    ) -> Result<Self, TargetError> {
        let peers = if options.client_certificates { machines.len() } else { 1 };
        Ok(Self {
            address: target.addresses[number % target.addresses.len()].clone(),
            token: match options.tokens.as_slice() {
                [] => None,
                tokens => Some(tokens[number % tokens.len()].clone()),
            },
            tls: target.tls(None)?,
            target: Arc::clone(target),
            machines,
            next: 0,
            connection: options.connection,
            peers: std::iter::repeat_with(Peer::default).take(peers).collect(),
            presents_certificates: options.client_certificates,
            nonce: None,
        })
    }

    /// Enrolls all of its machines.
    pub async fn enroll_all(&mut self, mut enrolled: impl FnMut()) -> Result<(), String> {
        for _ in 0..self.machines.len() {
            self.call(Exchange::Enroll).await?;
            enrolled();
        }
        Ok(())
    }

    /// How many machines it has.
    #[must_use]
    pub fn machines(&self) -> usize {
        self.machines.len()
    }

    /// Fetches the nonce for the first call.
    pub async fn prepare(&mut self) -> Result<(), String> {
        timeout(ANSWERED_WITHIN, self.fetch_nonce())
            .await
            .map_err(|_| "timeout".to_owned())?
            .map_err(|error| failure(&error))
    }

    /// Performs the next machine's call. An error is the problem's slug or the failure of the connection.
    pub async fn call(&mut self, exchange: Exchange) -> Result<(), String> {
        let machine = self.next;
        self.next = (self.next + 1) % self.machines.len();
        let outcome = match timeout(ANSWERED_WITHIN, self.exchange(exchange, machine)).await {
            Ok(outcome) => outcome.map_err(|error| failure(&error)),
            Err(_) => Err("timeout".to_owned()),
        };
        let answer = outcome.inspect_err(|_| {
            // A late response would be read as the response to the next call.
            self.peer(machine).open = None;
            self.nonce = None;
        })?;
        self.take(exchange, machine, &answer)
    }

    async fn exchange(&mut self, exchange: Exchange, machine: usize) -> io::Result<Answer> {
        if self
            .nonce
            .as_ref()
            .is_none_or(|(_, since)| since.elapsed() > NONCE_SERVES)
        {
            self.fetch_nonce().await?;
        }
        let (nonce, _) = self.nonce.take().ok_or_else(|| io::Error::other("no nonce"))?;
        let audience = &self.target.audience;
        let caller = &self.machines[machine];
        let (path, body) = match exchange {
            Exchange::Enroll => (
                "/v1/enroll",
                caller.enroll_body(audience, self.token.as_deref(), &nonce),
            ),
            Exchange::CheckIn => ("/v1/check-in", caller.check_in_body(audience, &nonce)),
            Exchange::Renew => ("/v1/renew", caller.renew_body(audience, &caller.csr(), &nonce)),
        };
        self.send(machine, path, Some(body.to_string().as_bytes())).await
    }

    async fn fetch_nonce(&mut self) -> io::Result<()> {
        let answer = self.send(self.next, "/v1/nonce", None).await?;
        match self.nonce {
            Some(_) => Ok(()),
            None => Err(io::Error::other(format!("{} instead of a nonce", answer.status))),
        }
    }

    async fn send(&mut self, machine: usize, path: &str, body: Option<&[u8]>) -> io::Result<Answer> {
        let mut connection = match self.peer(machine).open.take() {
            Some(open) => open,
            None => self.connect(machine).await?,
        };
        let answer = connection.call(path, body).await?;
        if let Some(nonce) = &answer.nonce {
            self.nonce = Some((nonce.clone(), Instant::now()));
        }
        match self.connection {
            ConnectionUse::KeepAlive if answer.stays_open => self.peer(machine).open = Some(connection),
            ConnectionUse::KeepAlive | ConnectionUse::Resumed | ConnectionUse::Full => connection.close().await,
        }
        Ok(answer)
    }

    async fn connect(&mut self, machine: usize) -> io::Result<Connection> {
        let place = machine % self.peers.len();
        let peer = &mut self.peers[place];
        let tls = match (&peer.tls, &peer.chain) {
            (Some(tls), _) => tls,
            (None, Some(chain)) => {
                let presented = (&self.machines[machine], chain.as_str());
                let tls = self.target.tls(Some(presented)).map_err(io::Error::other)?;
                &*peer.tls.insert(tls)
            }
            (None, None) => &self.tls,
        };
        Connection::open(&self.address, tls, &self.target.traffic).await
    }

    fn peer(&mut self, machine: usize) -> &mut Peer {
        let place = machine % self.peers.len();
        &mut self.peers[place]
    }

    fn take(&mut self, exchange: Exchange, machine: usize, answer: &Answer) -> Result<(), String> {
        match (exchange, answer.status) {
            (Exchange::CheckIn | Exchange::Renew, 200) => Ok(()),
            (Exchange::Enroll, 200 | 201) => {
                let enrolled: Enrolled = serde_json::from_slice(&answer.body).map_err(|_| "unreadable".to_owned())?;
                self.machines[machine].set_id(enrolled.machine_id);
                if self.presents_certificates {
                    self.peer(machine).chain = Some(enrolled.certificate.chain);
                }
                Ok(())
            }
            (Exchange::Enroll, 202) => Err("pending".to_owned()),
            (_, status) => {
                let problem: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
                let slug = problem["type"].as_str().and_then(|kind| kind.strip_prefix(PROBLEM));
                Err(slug.map_or_else(|| format!("status {status}"), str::to_owned))
            }
        }
    }
}

fn failure(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::Other => error.to_string(),
        kind => format!("connection: {kind}"),
    }
}
