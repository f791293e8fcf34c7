//! What many runs share, because it takes long to make: a database and two replicas on it. Every run has machines, tokens
//! and permissions of its own, and removes its grants at the end.

use assay_protocol::admin_api::api_keys::Role;
use assay_server::config::Config;
use sqlx::PgPool;
use tempfile::TempDir;
use time::OffsetDateTime;
use time::macros::datetime;

use super::replica::Replica;
use crate::apple::Apple;
use crate::cluster::Database;
use crate::in_process::variables;

/// When every run begins. It is the same time in every run, because a seed must do the same again.
pub(super) const BEGINNING: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
const REPLICAS: usize = 2;

pub(super) struct Ground {
    pub(super) replicas: Vec<Replica>,
    pub(super) apple: Apple,
    pub(super) pool: PgPool,
    pub(super) admin: String,
    pub(super) relying_party: String,
    _database: Database<'static>,
    _data_dir: TempDir,
}

impl Ground {
    pub(super) async fn prepare() -> Self {
        let database = Database::create().await;
        let data_dir = tempfile::tempdir().unwrap();
        let apple = Apple::new();
        let settings = [
            apple.setting(),
            ("enrollment.without_token", "pending"),
            ("enrollment.without_token_limit", "100000"),
            ("rate_limit.machine_per_minute", "0"),
            ("rate_limit.address_per_minute", "0"),
            ("rate_limit.api_key_per_minute", "0"),
            ("rate_limit.renewals_per_day", "0"),
        ];
        let variables = variables(&database.url(), &data_dir, &settings);
        let mut replicas = Vec::new();
        for _ in 0..REPLICAS {
            let config = Config::load(None, variables.clone().into_iter()).unwrap();
            replicas.push(Replica::start(config, BEGINNING).await);
        }
        Self {
            admin: replicas[0].create_api_key(Role::Admin).await,
            relying_party: replicas[0].create_api_key(Role::RelyingParty).await,
            replicas,
            apple,
            pool: database.pool().await,
            _database: database,
            _data_dir: data_dir,
        }
    }
}
