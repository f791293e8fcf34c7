//! Inserts a fleet of simulated machines into a database, as if each had enrolled and checked in.

use assay_protocol::machine::{KeyClaim, MachineIdentity, Posture};
use aws_lc_rs::digest;
use serde::Serialize;
use sqlx::ConnectOptions;
use sqlx::postgres::PgConnectOptions;
use tokio::sync::mpsc;

use crate::bulk;
use crate::cluster::execute;
use crate::machine::{Machine, id_on_record};

/// How many machines are sent at once.
const BATCH: usize = 2_000;

/// The claims as the server digests them. If this differs, each machine's first check-in takes the slow path.
#[derive(Serialize)]
struct Claims {
    machine: MachineIdentity,
    posture: Posture,
    key: KeyClaim,
}

/// Fills a database that has the schema and none of these machines.
pub async fn put_on_record(options: &PgConnectOptions, seed: &str, machines: u64) {
    let mut connection = options.connect().await.unwrap();
    let table = "CREATE TEMP TABLE simulated (number bigint, id uuid, key bytea, spki bytea, serial_number text,
                                              hardware_uuid text, hostname text, claims_digest bytea)";
    execute(&mut connection, table.to_owned()).await;
    let mut copy = connection.copy_in_raw("COPY simulated FROM STDIN").await.unwrap();
    let mut lines = made(seed, machines);
    while let Some(lines) = lines.recv().await {
        copy.send(lines.into_bytes()).await.unwrap();
    }
    copy.finish().await.unwrap();
    let posture = serde_json::to_string(&Posture::healthy()).unwrap();
    let set = sqlx::query("SELECT set_config('fleet.posture', $1, false)").bind(posture);
    set.execute(&mut connection).await.unwrap();
    bulk::fill(connection, include_str!("record.sql")).await;
}

/// Generates the machines on a thread for each core, because generating keys takes longer than inserting them.
fn made(seed: &str, machines: u64) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel(4);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    for thread in 0..threads {
        let (sender, seed) = (sender.clone(), seed.to_owned());
        tokio::task::spawn_blocking(move || {
            let numbers: Vec<u64> = (0..machines).skip(thread).step_by(threads).collect();
            for batch in numbers.chunks(BATCH) {
                let lines = batch.iter().map(|number| line(&seed, *number));
                if sender.blocking_send(lines.collect()).is_err() {
                    return;
                }
            }
        });
    }
    receiver
}

/// A row in the format of `COPY`.
fn line(seed: &str, number: u64) -> String {
    let machine = Machine::of_fleet(seed, number);
    let key = machine.public_key();
    let identity = machine.identity;
    let claims = Claims {
        machine: identity.clone(),
        posture: machine.posture,
        key: Machine::KEY_CLAIM,
    };
    let digest = digest::digest(&digest::SHA256, &serde_json::to_vec(&claims).unwrap());
    let bytea = |bytes: &[u8]| format!(r"\\x{}", hex::encode(bytes));
    let columns = [
        number.to_string(),
        id_on_record(seed, number).to_string(),
        bytea(key.thumbprint().as_bytes()),
        bytea(key.spki_der()),
        identity.serial_number.unwrap_or_default(),
        identity.hardware_uuid.unwrap_or_default(),
        identity.hostname.unwrap_or_default(),
        bytea(digest.as_ref()),
    ];
    format!("{}\n", columns.join("\t"))
}
