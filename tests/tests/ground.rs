//! Tests of the suite's cluster: it starts fast, and never outlives the tests.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use assay_server::config::process_environment;
use assay_tests::cluster::{Cluster, Database};
use assay_tests::process::Process;
use sqlx::{ConnectOptions, Connection};

/// The times that a suite with a database for each test needs, with a margin for a busy machine.
#[tokio::test]
async fn a_cluster_and_a_database_start_fast() {
    // The first test may build the seed.
    let mut cluster = Cluster::start().await;
    let mut starts = Vec::new();
    for _ in 0..3 {
        let begun = Instant::now();
        cluster = Cluster::start().await;
        starts.push(begun.elapsed());
    }
    let mut databases = Vec::new();
    for _ in 0..9 {
        let begun = Instant::now();
        cluster.create_database().await;
        databases.push(begun.elapsed());
    }
    // The fastest attempt counts, because other tests run at the same time.
    let (start, database) = (starts.iter().min().unwrap(), databases.iter().min().unwrap());
    println!("a cluster starts in {start:?}, a database is made in {database:?}");
    assert!(*start < Duration::from_secs(1), "a cluster took {start:?} to start");
    assert!(
        *database < Duration::from_millis(150),
        "a database took {database:?} to be made"
    );
}

#[tokio::test]
async fn each_database_has_the_schema_and_is_separate() {
    let (first, second) = tokio::join!(Database::create(), Database::create());
    assert_ne!(first.name(), second.name());
    let count = "SELECT count(*) FROM machines";
    let insert = "INSERT INTO api_keys SELECT * FROM api_keys";
    for database in [&first, &second] {
        let pool = database.pool().await;
        assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&pool).await.unwrap(), 0);
        sqlx::query(insert).execute(&pool).await.unwrap();
    }
    let mut connection = first.connect_options().connect().await.unwrap();
    sqlx::query("DROP TABLE machines CASCADE")
        .execute(&mut connection)
        .await
        .unwrap();
    let second = second.pool().await;
    assert_eq!(sqlx::query_scalar::<_, i64>(count).fetch_one(&second).await.unwrap(), 0);
}

/// On a small machine, the memory for the databases of a long suite must not grow with their number.
#[tokio::test]
async fn unused_databases_are_dropped() {
    let cluster = Cluster::start().await;
    for _ in 0..60 {
        cluster.create_database().await;
    }
    let kept = cluster.create_database().await;
    let count = "SELECT count(*) FROM pg_database";
    let mut connection = kept.connect_options().connect().await.unwrap();
    let databases: i64 = sqlx::query_scalar(count).fetch_one(&mut connection).await.unwrap();
    assert!(databases < 30, "{databases} databases");
}

#[tokio::test]
async fn a_cluster_keeps_its_data_over_a_stop_and_a_crash() {
    let mut cluster = Cluster::start().await;
    let options = cluster.create_database().await.connect_options();
    let mut connection = options.clone().connect().await.unwrap();
    sqlx::query("CREATE TABLE kept AS SELECT 1 AS n")
        .execute(&mut connection)
        .await
        .unwrap();

    cluster.stop().await;
    assert!(connection.ping().await.is_err());
    assert!(options.clone().connect().await.is_err());
    cluster.restart().await;
    let mut connection = options.clone().connect().await.unwrap();
    assert_eq!(
        sqlx::query_scalar::<_, i32>("SELECT n FROM kept")
            .fetch_one(&mut connection)
            .await
            .unwrap(),
        1
    );

    cluster.crash().await;
    cluster.restart().await;
    let mut connection = options.connect().await.unwrap();
    assert_eq!(
        sqlx::query_scalar::<_, i32>("SELECT n FROM kept")
            .fetch_one(&mut connection)
            .await
            .unwrap(),
        1
    );
}

/// The variable by which the test below recognizes that it is the process to be killed. Its value is a FIFO.
const TO_BE_KILLED: &str = "TEST_PROCESS_TO_BE_KILLED";

/// Runs this test in another process, and kills that process.
#[tokio::test]
async fn a_killed_test_process_leaves_nothing_behind() {
    if let Some((_, fifo)) = process_environment().find(|(name, _)| name == TO_BE_KILLED) {
        return wait_to_be_killed(&fifo).await;
    }
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([
        "--exact",
        "ground::a_killed_test_process_leaves_nothing_behind",
        "--nocapture",
    ]);
    command
        .env(TO_BE_KILLED, &fifo)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    let mut of_its_processes = File::open(&fifo).unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let cluster = lines.find(|line| line.starts_with('/')).unwrap();
    assert!(Path::new(&cluster).join("cluster/postmaster.pid").exists());

    process.kill().unwrap();
    process.wait().unwrap();
    // Each of these ends when the last process that has it open ends: the cluster's keeper, and a process that has left
    // its parent.
    process.stderr.take().unwrap().read_to_end(&mut Vec::new()).unwrap();
    of_its_processes.read_to_end(&mut Vec::new()).unwrap();
    assert!(!Path::new(&cluster).exists());
}

async fn wait_to_be_killed(fifo: &str) {
    let run = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", fifo]);
        Process::spawn(command)
    };
    run("exit 3").ended().await;
    let _running = run("exec 3> \"$1\"; sleep 1000 & sleep 1000");
    run("exit 4").ended().await;
    println!("{}", Cluster::shared().await.directory().display());
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
}
