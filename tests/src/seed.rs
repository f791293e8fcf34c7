//! A cluster with the schema. It is built once and kept under `target`, because copying it takes a twentieth of the time.

pub(crate) mod tls;

use std::collections::hash_map::DefaultHasher;
use std::fs::{self, File};
use std::hash::Hasher;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use assay_server::config::search_path;
use assay_server::database::private_postgres::{Account, Installation, OLDEST_MAJOR, binary_places, installed};
use assay_server::database::privileges;
use sqlx::migrate::Migrator;
use sqlx::{ConnectOptions, Connection};

use crate::cluster::{Cluster, IN_MEMORY, SERVER_ROLE, TEMPLATE, as_account, execute};

/// The memory that a run of the suite may need, in bytes. With less free memory, the files are on disk.
const MEMORY_NEEDED: u64 = 1 << 30;

/// The cluster to copy, and the programs that run it.
pub(crate) struct Seed {
    pub(crate) cluster: PathBuf,
    pub(crate) binaries: PathBuf,
}

/// The seed for the newest installed Postgres and the current migrations. Builds it if it is missing.
pub(crate) async fn seed() -> Seed {
    let installation = installation();
    let binaries = installation.program("postgres").parent().unwrap().to_owned();
    let uid = Account::unprivileged()
        .unwrap()
        .map_or_else(|| rustix::process::getuid().as_raw(), |account| account.uid);
    let kind = format!("postgres-{}-{uid}-", installation.version());
    let directory = target_directory().join("assay-tests");
    fs::create_dir_all(&directory).unwrap();
    let cluster = directory.join(format!("{kind}{:016x}", schema_hash()));

    let lock_path = directory.join("lock");
    let lock = tokio::task::spawn_blocking(move || {
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock_path)
            .unwrap();
        lock.lock().unwrap();
        lock
    });
    let _lock = lock.await.unwrap();
    if !cluster.exists() {
        for old in fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()) {
            if old.file_name().unwrap().to_str().unwrap().starts_with(&kind) {
                fs::remove_dir_all(old).unwrap();
            }
        }
        let new = directory.join(format!("{kind}new"));
        make(&installation, &binaries, &new).await;
        fs::rename(new, &cluster).unwrap();
    }
    Seed { cluster, binaries }
}

/// The newest installed Postgres.
pub(crate) fn installation() -> Installation {
    installed(&binary_places(&search_path()))
        .into_iter()
        .find(|installation| installation.version().major >= OLDEST_MAJOR)
        .expect("the tests need Postgres 15 or later: apt-get install postgresql, or your system's package")
}

/// A directory in memory that Postgres' account owns. With too little free memory, a temporary directory on disk.
pub(crate) fn memory_directory() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let has_room = rustix::fs::statvfs(memory).is_ok_and(|memory| memory.f_bavail * memory.f_frsize > MEMORY_NEEDED);
    let parent = if has_room {
        memory.to_owned()
    } else {
        std::env::temp_dir()
    };
    directory_in(&parent)
}

/// A new directory in `parent` that Postgres' account owns.
pub(crate) fn directory_in(parent: &Path) -> PathBuf {
    let directory = tempfile::Builder::new()
        .prefix("assay-")
        .tempdir_in(parent)
        .unwrap()
        .keep();
    // The tests may run as root, and connect as another account than that of Postgres.
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o711)).unwrap();
    if let Some(account) = Account::unprivileged().unwrap() {
        chown(&directory, Some(account.uid), Some(account.gid)).unwrap();
    }
    directory
}

/// Copies a cluster with its owner and modes.
pub(crate) fn copy(from: &Path, to: &Path) {
    assert!(
        Command::new("cp")
            .arg("-Rp")
            .args([from, to])
            .status()
            .unwrap()
            .success()
    );
}

async fn make(installation: &Installation, binaries: &Path, to: &Path) {
    let directory = memory_directory();
    let cluster = directory.join("cluster");
    // WAL segments of 1 MB instead of 16, because every start copies them.
    initialize(installation, &cluster, &["--wal-segsize=1"]);
    let mut running = Cluster::run(binaries, directory, IN_MEMORY).await;
    let mut connection = running.administer().await;
    execute(&mut connection, format!("CREATE DATABASE {TEMPLATE}")).await;
    let mut template = running.connect_options(TEMPLATE).connect().await.unwrap();
    Migrator::new(migrations())
        .await
        .unwrap()
        .run(&mut template)
        .await
        .unwrap();
    execute(&mut connection, format!("CREATE ROLE {SERVER_ROLE} LOGIN")).await;
    privileges::grant(&mut template, SERVER_ROLE).await.unwrap();
    template.close().await.unwrap();
    // These two databases are unused, and would be half of the files to copy.
    execute(&mut connection, "DROP DATABASE postgres".to_owned()).await;
    execute(&mut connection, "ALTER DATABASE template0 IS_TEMPLATE false".to_owned()).await;
    execute(&mut connection, "DROP DATABASE template0".to_owned()).await;
    connection.close().await.unwrap();
    running.stop().await;
    copy(&cluster, to);
}

/// Initializes a cluster.
pub(crate) fn initialize(installation: &Installation, cluster: &Path, arguments: &[&str]) {
    let mut initdb = Command::new(installation.program("initdb"));
    initdb
        .arg("-D")
        .arg(cluster)
        .args(["--username=assay", "--auth=trust", "--encoding=UTF8", "--no-sync"])
        .args(arguments)
        .args(installation.locale_arguments())
        .current_dir("/");
    as_account(&mut initdb);
    let output = initdb.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    tls::let_clients_in(cluster);
}

fn migrations() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../migrations")
}

/// A digest that changes with the migrations, with the server's privileges, and with the way in which the seed is built.
fn schema_hash() -> u64 {
    let mut files: Vec<PathBuf> = fs::read_dir(migrations())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut hasher = DefaultHasher::new();
    hasher.write(include_bytes!("seed.rs"));
    hasher.write(include_bytes!("seed/tls.rs"));
    hasher.write(include_bytes!("../../server/src/database/privileges.rs"));
    for file in files {
        hasher.write(&fs::read(file).unwrap());
    }
    hasher.finish()
}

/// Cargo's target directory.
pub fn target_directory() -> PathBuf {
    profile_directory().parent().unwrap().to_owned()
}

/// The directory with the programs of this profile. The tests are in its folder `deps`.
pub(crate) fn profile_directory() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let directory = this.parent().unwrap();
    if directory.ends_with("deps") {
        directory.parent().unwrap().to_owned()
    } else {
        directory.to_owned()
    }
}
