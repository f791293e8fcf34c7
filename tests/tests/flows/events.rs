//! Events of real replicas: cut connections, restarts, outages.

use std::time::{Duration, Instant};

use assay_tests::administrator::items;
use assay_tests::api::Api;
use assay_tests::cluster::{Cluster, Database};
use assay_tests::event_stream::{EventStream, Told};
use assay_tests::installation::{Installation, unlimited};
use assay_tests::processes::ServerConfiguration;
use assay_tests::proxy::Proxy;
use serde_json::{Value, json};

/// The events of an enrollment: the machine and its certificate.
const ENROLLMENT: usize = 2;

/// How long a stop may take with open streams: far less than the 20 s after which connections are cut.
const STOPPED_WITHIN: Duration = Duration::from_secs(10);

async fn open(api: &Api, installation: &Installation, after: Option<i64>) -> EventStream {
    EventStream::open(EventStream::request(api, &installation.api_key, after))
        .await
        .of_machines()
}

/// Each event of a machine is told once, in order.
async fn expect_all(told: &[Told], installation: &Installation) {
    assert!(told.is_sorted_by_key(|told| told.id));
    let id = |event: &Value| event["id"].as_str().unwrap().to_owned();
    let mut ids: Vec<String> = told.iter().map(|told| id(&told.data)).collect();
    let listed = items(installation.administrator().get("events?limit=500").await);
    let of_machines = listed.iter().filter(|event| !event["machine_id"].is_null());
    let mut listed: Vec<String> = of_machines.map(id).collect();
    ids.sort();
    listed.sort();
    assert_eq!(ids, listed);
}

#[tokio::test]
async fn a_stream_continues_on_the_other_replica_and_after_a_restart() {
    let database = Database::create().await;
    let mut installation = Installation::replicated(&database).await;
    let proxy = Proxy::start().await;
    proxy.forward_to(installation.servers[0].address());
    let through_proxy = Api::new(&proxy.url(), &installation.servers[0].public_url(), &installation.roots);
    let (first, second) = (installation.api(0), installation.api(1));
    let mut told: Vec<Told> = Vec::new();
    let last = |told: &[Told]| told.last().map(|told| told.id);

    let mut stream = open(&through_proxy, &installation, None).await;
    installation.administrator().enrolled(&second).await;
    told.extend(stream.take(ENROLLMENT).await);
    proxy.cut();
    assert!(stream.read().await.is_err(), "it was cut");

    // No stream is open meanwhile.
    let machine = installation.administrator().enrolled(&first).await;
    let mut stream = open(&second, &installation, last(&told)).await;
    told.extend(stream.take(ENROLLMENT).await);

    let (begun, configuration) = (Instant::now(), installation.servers[1].configuration());
    let status = installation.servers[1].terminate().await;
    assert_eq!(status.code(), Some(0));
    assert!(begun.elapsed() < STOPPED_WITHIN, "{:?}", begun.elapsed());
    assert_eq!(stream.read().await.unwrap(), None, "its end is a clean one");
    let stopped = installation.servers[1].wait_for_message("stopped").await.unwrap();
    assert_eq!(stopped["cut_off"], 0);
    let revoke = format!("machines/{}/revoke", machine.id());
    let (administrator, reason) = (installation.administrator(), json!({"reason": "lost"}));
    let _revoked = administrator
        .call(http::Method::POST, &revoke, Some(&reason))
        .await
        .expect(200);
    installation.servers[1] = configuration.start().await;
    let mut stream = open(&installation.api(1), &installation, last(&told)).await;
    told.extend(stream.up_to("machine.revoked").await);

    expect_all(&told, &installation).await;
}

#[tokio::test]
async fn a_stream_continues_without_a_gap_after_a_postgres_outage() {
    let mut cluster = Cluster::start().await;
    let configuration = unlimited(ServerConfiguration::new(&cluster.create_database().await));
    let installation = Installation::start(&configuration).await;
    let api = installation.api(0);
    let mut stream = open(&api, &installation, None).await;
    installation.administrator().enrolled(&api).await;
    let mut told = stream.take(ENROLLMENT).await;

    cluster.stop().await;
    // The reader fails from now on, until the database is back.
    let noticed = installation.servers[0].wait_for_message("periodic work failed").await;
    assert!(noticed.is_some());
    cluster.restart().await;
    installation.administrator().enrolled(&api).await;
    told.extend(stream.take(ENROLLMENT).await);
    expect_all(&told, &installation).await;
}
