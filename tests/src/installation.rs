//! An installation: replicas on one database, and what callers need to reach them.

use aws_lc_rs::digest;
use tokio::sync::OnceCell;

use crate::administrator::Administrator;
use crate::api::{Api, unverified_roots};
use crate::cluster::Database;
use crate::processes::{Server, ServerConfiguration};

/// Running servers, an administrator's API key, and the roots.
#[derive(Debug)]
pub struct Installation {
    /// The replicas.
    pub servers: Vec<Server>,
    /// The key of an administrator.
    pub api_key: String,
    /// The root certificates in PEM.
    pub roots: String,
}

impl Installation {
    /// Two shared replicas without rate limits, for tests that do not stop them and have machines of their own. The first
    /// reaches Postgres through its Unix socket, and the second over TCP and TLS.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Installation> = OnceCell::const_new();
        let start = async || {
            let database = Database::create().await;
            let mut replicated = Self::unlimited(&database).await;
            let replica = replicated.servers[0]
                .replica()
                .set("database.url", &database.url_over_tls());
            replicated.servers.push(replica.start().await);
            // The servers use the database until the process ends.
            std::mem::forget(database);
            replicated
        };
        SHARED.get_or_init(start).await
    }

    /// Starts one server.
    pub async fn start(configuration: &ServerConfiguration) -> Self {
        let server = configuration.start().await;
        // A test may start several on one database, where names are unique.
        let name = format!("the tests {:016x}", rand::random::<u64>());
        let api_key = server.configuration().create_api_key(&name, "admin").await;
        let roots = roots(&server).await;
        Self {
            servers: vec![server],
            api_key,
            roots,
        }
    }

    /// Starts one server without rate limits.
    pub async fn unlimited(database: &Database<'_>) -> Self {
        Self::start(&unlimited(ServerConfiguration::new(database))).await
    }

    /// Starts two replicas without rate limits.
    pub async fn replicated(database: &Database<'_>) -> Self {
        Self::unlimited(database).await.with_a_replica().await
    }

    /// Starts one more replica on the same database.
    #[must_use]
    pub async fn with_a_replica(mut self) -> Self {
        let replica = self.servers[0].replica().start().await;
        self.servers.push(replica);
        self
    }

    /// What one of the replicas serves over plain HTTP.
    #[must_use]
    pub fn revocation_api(&self, replica: usize) -> Api {
        let server = &self.servers[replica];
        Api::plain(&format!("http://{}", server.revocation_address()), &server.public_url())
    }

    /// The API of one of the replicas.
    #[must_use]
    pub fn api(&self, replica: usize) -> Api {
        let server = &self.servers[replica];
        Api::new(
            &format!("https://{}", server.address()),
            &server.public_url(),
            &self.roots,
        )
    }

    /// The administrator, at the first replica.
    #[must_use]
    pub fn administrator(&self) -> Administrator {
        Administrator::new(self.api(0), &self.api_key)
    }
}

/// A configuration without rate limits.
#[must_use]
pub fn unlimited(configuration: ServerConfiguration) -> ServerConfiguration {
    [
        "machine_per_minute",
        "address_per_minute",
        "api_key_per_minute",
        "revocation_per_minute",
        "connections_per_address",
        "renewals_per_day",
    ]
    .iter()
    .fold(configuration, |configuration, limit| {
        configuration.set(&format!("rate_limit.{limit}"), "0")
    })
}

/// The fingerprint of the root, from the server's log.
pub async fn ca_fingerprint(server: &Server) -> String {
    let line = server.wait_for_message("listening").await.unwrap();
    line["ca_fingerprint"].as_str().unwrap().to_owned()
}

/// Fetches the roots from the server, and compares them with the fingerprint in its log.
async fn roots(server: &Server) -> String {
    let roots = unverified_roots(&format!("https://{}", server.address())).await;
    let root = pem::parse(&roots).unwrap();
    let fingerprint = hex::encode(digest::digest(&digest::SHA256, root.contents()));
    assert_eq!(fingerprint, ca_fingerprint(server).await);
    roots
}
