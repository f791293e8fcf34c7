//! One server behind a network that loses responses.

use std::sync::Arc;

use sqlx::PgPool;

use crate::administrator::Administrator;
use crate::api::Api;
use crate::cluster::Database;
use crate::installation::{Installation, unlimited};
use crate::processes::ServerConfiguration;
use crate::proxy::{Condition, Proxy};

/// A server whose public URL leads through a [`Proxy`].
pub struct ProxiedServer {
    /// The network.
    pub proxy: Proxy,
    /// The server behind it.
    pub installation: Installation,
    /// The server's database.
    pub pool: PgPool,
    database: Database<'static>,
}

impl ProxiedServer {
    /// Starts a server without rate limits.
    pub async fn start(settings: &[(&str, &str)]) -> Self {
        let (database, proxy) = (Database::create().await, Proxy::start().await);
        let configuration = unlimited(ServerConfiguration::new(&database)).set("public_url", &proxy.url());
        let configuration = settings.iter().fold(configuration, |configuration, (key, value)| {
            configuration.set(key, value)
        });
        let installation = Installation::start(&configuration).await;
        proxy.forward_to(installation.servers[0].address());
        let pool = database.pool().await;
        Self {
            proxy,
            installation,
            pool,
            database,
        }
    }

    /// The server's API, through the network.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::new(&self.proxy.url(), &self.proxy.url(), &self.installation.roots)
    }

    /// An administrator, who reaches the server directly.
    #[must_use]
    pub fn administrator(&self) -> Administrator {
        self.installation.administrator()
    }

    /// The result of a query that counts rows.
    pub async fn count(&self, query: &'static str) -> i64 {
        count(&self.pool, query).await
    }

    /// Makes the network hold back all responses after the result of this query has risen.
    pub async fn hold_back_when_it_rises(&self, query: &'static str) {
        let before = self.count(query).await;
        let pool = self.pool.clone();
        let condition: Condition = Arc::new(move || {
            let pool = pool.clone();
            Box::pin(async move { count(&pool, query).await > before })
        });
        self.proxy.hold_back_once(condition);
    }

    /// Stops the server while the proxy delays its response, and starts it again.
    pub async fn kill_before_the_answer(&mut self) {
        self.proxy.holds_an_answer_back().await;
        self.installation.servers[0].kill().await;
        self.restart().await;
    }

    /// Stops the server for a copy of its database, and restarts it.
    pub async fn back_up_database(&mut self) -> Database<'static> {
        self.installation.servers[0].kill().await;
        let backup = self.database.copy().await;
        self.restart().await;
        backup
    }

    /// Replaces the server's database by a backup.
    pub async fn restore_database(&mut self, backup: &Database<'_>) {
        self.installation.servers[0].kill().await;
        self.database.replace_with(backup).await;
        self.restart().await;
    }

    /// Restarts the killed server, at another address.
    pub async fn restart(&mut self) {
        let server = &mut self.installation.servers[0];
        *server = server.configuration().start().await;
        self.proxy.forward_to(server.address());
    }
}

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query_scalar(query).fetch_one(pool).await.unwrap()
}
