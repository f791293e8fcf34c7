//! Postgres on another host: over TCP and TLS.
//!
//! sqlx 0.9.0 left out TCP_NODELAY. A statement longer than one TLS record then waited 40 ms for a delayed
//! acknowledgement, and a server enrolled a sixth of the Macs.

use std::net::{SocketAddr, TcpStream};
use std::os::fd::RawFd;
use std::str::FromStr;
use std::time::{Duration, Instant};

use assay_tests::cluster::{Cluster, Database};
use assay_tests::in_process::InProcess;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};

/// The connections of this process to an address.
fn connections_to(address: SocketAddr) -> Vec<TcpStream> {
    let process = pidfd_open(getpid(), PidfdFlags::empty()).unwrap();
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap();
    let numbers = descriptors.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let sockets = numbers.filter_map(|number| {
        // Another test may close it meanwhile.
        let target = std::fs::read_link(format!("/proc/self/fd/{number}")).ok()?;
        let is_socket = target.to_str()?.starts_with("socket:");
        let number = RawFd::from_str(&number).unwrap();
        let descriptor = is_socket.then(|| pidfd_getfd(&process, number, PidfdGetfdFlags::empty()))?;
        Some(TcpStream::from(descriptor.ok()?))
    });
    sockets
        .filter(|socket| socket.peer_addr().is_ok_and(|peer| peer == address))
        .collect()
}

#[tokio::test]
async fn the_server_s_connections_send_each_record_at_once() {
    let database = Database::create().await;
    let server = InProcess::start_on(&database.url_over_tls(), &[]).await;
    let machine = server.enrolled("TLS").await;
    let _checked_in = machine.check_in(&server).await.expect(200);
    let connections = connections_to(Cluster::shared().await.tcp_address().into());
    assert!(!connections.is_empty(), "the server is connected by TCP");
    for connection in connections {
        assert!(connection.nodelay().unwrap(), "{connection:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_statement_of_many_records_does_not_wait_for_a_delayed_acknowledgement() {
    let database = Database::create().await;
    let options = PgConnectOptions::from_str(&database.url_over_tls()).unwrap();
    let mut connection = options.connect().await.unwrap();
    let text = "x".repeat(100_000);
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let start = Instant::now();
        let length: i32 = sqlx::query_scalar("SELECT length($1)")
            .bind(&text)
            .fetch_one(&mut connection)
            .await
            .unwrap();
        fastest = fastest.min(start.elapsed());
        assert_eq!(length, 100_000);
    }
    // A busy machine makes some of them slow. A delayed acknowledgement would make each of them slow.
    assert!(fastest < Duration::from_millis(30), "{fastest:?}");
    connection.close().await.unwrap();
}
