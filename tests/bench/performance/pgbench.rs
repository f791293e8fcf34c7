//! Measures Postgres alone with the statement that a server without a committer would send for each check-in.

use std::fs;
use std::process::Command;

use assay_tests::cluster::as_account;
use assay_tests::machine::{FIRST_ID, id_on_record};

use super::setting::{SEED, Setting};

/// The results of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pgbench {
    /// Transactions a second.
    pub(crate) rate: f64,
}

/// Updates one row as `record_unchanged` does. Key and claims are taken from the row itself.
const STATEMENT: &str = "
WITH held AS MATERIALIZED (
    SELECT machine_id FROM machine_presence WHERE machine_id = ANY (ARRAY[:id]) ORDER BY machine_id FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE machine_presence AS presence
SET last_nonce_at = seen.nonce, last_check_in_at = seen.at, clock_skew_seconds = seen.skew
FROM unnest(ARRAY[0::bigint], ARRAY[:id], ARRAY[clock_timestamp()], ARRAY[now()], ARRAY[0::bigint], ARRAY[now() - interval '10 minutes'])
     AS seen (place, machine_id, nonce, at, skew, live_since)
WHERE presence.machine_id = seen.machine_id AND (seen.machine_id IN (SELECT machine_id FROM held)) IS TRUE AND presence.admitted AND presence.current_key = presence.current_key
  AND presence.claims_digest = presence.claims_digest AND presence.last_nonce_at < seen.nonce
  AND presence.last_check_in_at >= seen.live_since AND presence.noted_liveness = 'live'
RETURNING seen.place, presence.record_version, presence.verdict_digest, (SELECT grants_version FROM settings);
";

pub(crate) async fn run(setting: &Setting<'_>) -> Pgbench {
    let arguments = setting.arguments;
    let directory = tempfile::Builder::new().prefix("assay-pgbench-").tempdir().unwrap();
    let script = directory.path().join("check-in.sql");
    let first = id_on_record(SEED, 0).simple().to_string();
    let id = format!("(lpad(to_hex({FIRST_ID} + :n), 12, '0') || '{}')::uuid", &first[12..]);
    let choice = format!(
        "\\set n random(0, {}) * {} / {}\n",
        arguments.active - 1,
        arguments.machines,
        arguments.active
    );
    fs::write(&script, choice + &STATEMENT.replace('\n', " ").replace(":id", &id)).unwrap();
    open_to_all(directory.path());
    let mut command = Command::new("pgbench");
    command.args([
        "--no-vacuum",
        "--protocol",
        "prepared",
        "--jobs",
        "2",
        "--username",
        "assay",
    ]);
    command.args(["--client", &arguments.connections.to_string()]);
    command.args(["--time", &arguments.seconds.to_string()]);
    command
        .arg("--host")
        .arg(setting.cluster.directory())
        .arg("--file")
        .arg(&script);
    command.arg(setting.database.name()).current_dir("/");
    as_account(&mut command);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let rate = text
        .lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    Pgbench {
        rate: rate.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))),
    }
}

/// Writes the script where Postgres' account can read it.
fn open_to_all(directory: &std::path::Path) {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}
