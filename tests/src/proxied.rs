//! One server behind a network that loses answers.

use std::sync::Arc;

use sqlx::{AssertSqlSafe, PgPool};

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
    _database: Database<'static>,
}

impl ProxiedServer {
    /// Starts one without rate limits.
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
            _database: database,
        }
    }

    /// The API through the network.
    #[must_use]
    pub fn api(&self) -> Api {
        Api::new(&self.proxy.url(), &self.proxy.url(), &self.installation.roots)
    }

    /// An administrator who is not behind that network.
    #[must_use]
    pub fn administrator(&self) -> Administrator {
        self.installation.administrator()
    }

    /// What this query counts now.
    pub async fn count(&self, query: &'static str) -> i64 {
        count(&self.pool, query).await
    }

    /// Makes the network hold back responses once this query counts more than now.
    pub async fn hold_back_when_it_rises(&self, query: &'static str) {
        let before = self.count(query).await;
        let pool = self.pool.clone();
        let condition: Condition = Arc::new(move || {
            let pool = pool.clone();
            Box::pin(async move { count(&pool, query).await > before })
        });
        self.proxy.hold_back_once(condition);
    }

    /// Kills the server once its response is held back, and starts it again.
    pub async fn kill_before_the_answer(&mut self) {
        self.proxy.holds_an_answer_back().await;
        self.installation.servers[0].kill().await;
        self.restart().await;
    }

    /// Starts the server that was killed again, at another address.
    pub async fn restart(&mut self) {
        let server = &mut self.installation.servers[0];
        *server = server.configuration().start().await;
        self.proxy.forward_to(server.address());
    }
}

async fn count(pool: &PgPool, query: &'static str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query)).fetch_one(pool).await.unwrap()
}
