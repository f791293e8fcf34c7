//! Serves check-ins to count their instructions. `.ci/check-instructions` runs this under callgrind, which counts only
//! inside `check_ins_that_count`.
//!
//! The whole server runs on the thread inside that function. The machines run on another thread, which is not counted.
//! Each check-in is answered before the next begins, so the committer writes batches of one. No periodic work runs.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that cannot go on has failed and says where"
)]

use std::net::SocketAddr;
use std::sync::{Arc, mpsc};
use std::thread;

use assay_protocol::admin_api::api_keys::Role;
use assay_server::clock::SystemClock;
use assay_server::config::Config;
use assay_server::connections::{self, ConnectionLimits, Server};
use assay_server::measuring::Allocator;
use assay_server::running::Assembled;
use assay_server::telemetry::logging::{self, LogFormat};
use assay_tests::administrator::Administrator;
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::machine::Machine;
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

const PUBLIC_URL: &str = "https://assay.example.com";
/// The keys that it seals end with the program.
const MASTER_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";
const MACHINES: usize = 8;
/// Check-ins of each machine before counting starts, to fill the caches.
const WARM_UP: usize = 4;

/// The barrier between the machines and this thread.
struct Course {
    warm: oneshot::Sender<()>,
    go: mpsc::Receiver<()>,
    done: oneshot::Sender<()>,
}

fn main() {
    let check_ins: usize = std::env::args().nth(1).unwrap().parse().unwrap();
    let runtime = single_threaded();
    let database = runtime.block_on(Database::create());
    let (address, api_key) = runtime.block_on(serve(&database.url()));
    let ((warm, is_warm), (go, may_go), (done, is_done)) = (oneshot::channel(), mpsc::channel(), oneshot::channel());
    let course = Course { warm, go: may_go, done };
    let machines = thread::spawn(move || single_threaded().block_on(call(address, &api_key, check_ins, course)));
    runtime.block_on(is_warm).unwrap();
    go.send(()).unwrap();
    check_ins_that_count(&runtime, is_done);
    machines.join().unwrap();
}

/// The runtime waits here, and the server answers meanwhile. `.ci/check-instructions` contains this name.
#[inline(never)]
fn check_ins_that_count(runtime: &Runtime, is_done: oneshot::Receiver<()>) {
    runtime.block_on(is_done).unwrap();
}

fn single_threaded() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A server behind a proxy that ends TLS, with the default logging.
async fn serve(database_url: &str) -> (SocketAddr, String) {
    let clock = Arc::new(SystemClock);
    logging::start(LogFormat::Json, "info", clock.clone()).unwrap();
    let settings = [
        ("ASSAY_PUBLIC_URL", PUBLIC_URL),
        ("ASSAY_TRUST_DOMAIN", "example.com"),
        ("ASSAY_DATABASE__URL", database_url),
        ("ASSAY_MASTER_KEY", MASTER_KEY),
        // The limit is charged, but never reached.
        ("ASSAY_RATE_LIMIT__MACHINE_PER_MINUTE", "1000000"),
        ("ASSAY_RATE_LIMIT__ADDRESS_PER_MINUTE", "1000000"),
    ];
    let settings = settings.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let config = Config::load(None, settings.into_iter()).unwrap();
    let assembled = Assembled::new(&config, clock).await.unwrap();
    let api_key = assembled.create_api_key("measuring", Role::Admin).await.unwrap();
    let api_key = api_key.expose_secret().to_owned();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let server = Server {
            router: assembled.router(),
            tls: None,
            limits: ConnectionLimits::default(),
            metrics: Arc::clone(assembled.metrics()),
        };
        connections::serve(listener, server, CancellationToken::new()).await
    });
    (address, api_key)
}

/// The machines' check-ins, one after the other on one connection. Each machine was enrolled before.
async fn call(address: SocketAddr, api_key: &str, check_ins: usize, course: Course) {
    let api = Api::plain(&format!("http://{address}"), PUBLIC_URL);
    let administrator = Administrator::new(api.clone(), api_key);
    let permission = administrator.permission("read").await;
    let grant = json!({"permission_id": permission, "selector": {"all": true}, "conditions": {"sip_enabled": true}});
    let _made = administrator.create("grants", &grant).await;
    let mut machines = Vec::new();
    for _ in 0..MACHINES {
        machines.push(administrator.enrolled(&api).await);
    }
    check_in(&api, &machines, WARM_UP * MACHINES).await;
    course.warm.send(()).unwrap();
    course.go.recv().unwrap();
    check_in(&api, &machines, check_ins).await;
    course.done.send(()).unwrap();
}

async fn check_in(api: &Api, machines: &[Machine], times: usize) {
    for machine in machines.iter().cycle().take(times) {
        let answer = machine.check_in(api).await.expect(200).json();
        assert!(answer.pointer("/grants/0/token").is_some(), "{answer}");
    }
}
