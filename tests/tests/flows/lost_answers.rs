//! The server is killed when it has done what it was asked and before the answer has arrived: the machine asks again,
//! and it is as if nothing had happened.

use std::sync::Arc;

use assay_protocol::ProblemKind;
use assay_tests::administrator::Token;
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::installation::{Installation, unlimited};
use assay_tests::machine::Machine;
use assay_tests::process::Process;
use assay_tests::processes::{ServerConfiguration, agent_command};
use assay_tests::proxy::{Condition, Proxy};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, PgPool};

/// A server behind a network that loses answers.
struct Behind {
    proxy: Proxy,
    installation: Installation,
    pool: PgPool,
    _database: Database<'static>,
}

impl Behind {
    async fn new() -> Self {
        let (database, proxy) = (Database::create().await, Proxy::start().await);
        let configuration = unlimited(ServerConfiguration::new(&database)).set("public_url", &proxy.url());
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

    /// The API as the network reaches it.
    fn api(&self) -> Api {
        Api::new(&self.proxy.url(), &self.proxy.url(), &self.installation.roots)
    }

    /// Holds back what is said once `count` is another than now.
    async fn hold_back_when_it_rises(&self, count: &'static str) {
        let pool = self.pool.clone();
        let counted = move || {
            let pool = pool.clone();
            async move {
                let counted = sqlx::query_scalar::<_, i64>(AssertSqlSafe(count))
                    .fetch_one(&pool)
                    .await;
                counted.unwrap()
            }
        };
        let before = counted().await;
        let condition: Condition = Arc::new(move || {
            let counting = counted();
            Box::pin(async move { counting.await > before })
        });
        self.proxy.hold_back_once(condition);
    }

    /// Kills the server when it has done what it was asked, and starts it again where it was.
    async fn kill_before_the_answer(&mut self) {
        self.proxy.holds_an_answer_back().await;
        let server = &mut self.installation.servers[0];
        server.kill().await;
        *server = server.configuration().start().await;
        self.proxy.forward_to(server.address());
    }

    async fn token(&self) -> Token {
        self.installation.administrator().token(json!({})).await
    }

    async fn count(&self, count: &'static str) -> i64 {
        sqlx::query_scalar(count).fetch_one(&self.pool).await.unwrap()
    }
}

const MACHINES: &str = "SELECT count(*) FROM machines";
const CERTIFICATES: &str = "SELECT count(*) FROM certificates";
/// Rises with every nonce that is used.
const NONCES_USED: &str = "SELECT (extract(epoch FROM max(last_nonce_at)) * 1000000)::bigint FROM machine_presence";

#[tokio::test]
async fn an_enrollment_whose_answer_was_lost_gives_the_same_machine_and_uses_the_token_once() {
    let mut behind = Behind::new().await;
    let (token, machine, api) = (behind.token().await, Machine::new(), behind.api());
    behind.hold_back_when_it_rises(MACHINES).await;
    let nonce = api.nonce().await;
    let call = tokio::spawn(Answer::or_error(machine.enrollment(&api, Some(&token.secret), &nonce)));
    behind.kill_before_the_answer().await;
    assert!(call.await.unwrap().is_err(), "the answer was not lost");

    let id: uuid::Uuid = sqlx::query_scalar("SELECT id FROM machines")
        .fetch_one(&behind.pool)
        .await
        .unwrap();
    let api = behind.api();
    let _enrolled = machine.enroll(&api, Some(&token.secret)).await.expect(200);
    assert_eq!(machine.id(), id);
    assert_eq!((behind.count(MACHINES).await, behind.count(CERTIFICATES).await), (1, 1));
    assert_eq!(behind.installation.administrator().uses(&token).await, 1);
    let _checked_in = machine.check_in(&api).await.expect(200);
}

#[tokio::test]
async fn a_check_in_whose_answer_was_lost_has_used_its_nonce_and_the_next_goes_through() {
    let mut behind = Behind::new().await;
    let (administrator, api) = (behind.installation.administrator(), behind.api());
    let machine = administrator.enrolled(&api).await;
    let permission = administrator.permission("build").await;
    administrator.grant(&permission, &machine, json!({})).await;
    let nonce = api.nonce().await;
    behind.hold_back_when_it_rises(NONCES_USED).await;
    let call = tokio::spawn(Answer::or_error(machine.check_in_with(&api, &nonce)));
    behind.kill_before_the_answer().await;
    assert!(call.await.unwrap().is_err(), "the answer was not lost");

    let api = behind.api();
    let refused = Answer::to(machine.check_in_with(&api, &nonce))
        .await
        .expect_problem(ProblemKind::BadNonce);
    let checked_in = Answer::to(machine.check_in_with(&api, refused.nonce()))
        .await
        .expect(200)
        .json();
    assert_eq!(checked_in["grants"].as_array().unwrap().len(), 1, "{checked_in}");
}

#[tokio::test]
async fn a_renewal_whose_answer_was_lost_can_be_repeated() {
    let mut behind = Behind::new().await;
    let api = behind.api();
    let machine = behind.installation.administrator().enrolled(&api).await;
    let nonce = api.nonce().await;
    behind.hold_back_when_it_rises(CERTIFICATES).await;
    let call = tokio::spawn(Answer::or_error(machine.renewal(&api, &nonce)));
    behind.kill_before_the_answer().await;
    assert!(call.await.unwrap().is_err(), "the answer was not lost");

    let api = behind.api();
    machine.forget_nonce();
    let renewed = machine.renew(&api).await.expect(200).json();
    let record = behind.installation.administrator().machine(machine.id()).await;
    assert_eq!(
        record["certificate"]["serial_number"],
        renewed["certificate"]["serial_number"]
    );
    let _checked_in = machine.check_in(&api).await.expect(200);
}

#[tokio::test]
async fn an_agent_that_loses_every_kind_of_answer_stays_the_same_machine() {
    let mut behind = Behind::new().await;
    let token = behind.token().await;
    let folder = tempfile::tempdir().unwrap();
    let (state, roots) = (folder.path().join("state"), folder.path().join("roots.pem"));
    std::fs::write(&roots, &behind.installation.roots).unwrap();
    let agent = |arguments: &[&str]| {
        let mut command = agent_command(&state);
        command.args(arguments);
        Process::spawn(command)
    };
    let (url, roots) = (behind.proxy.url(), roots.to_str().unwrap().to_owned());
    let enroll = [
        "enroll",
        "--server",
        &url,
        "--ca-file",
        &roots,
        "--token",
        &token.secret,
    ];
    let rounds: [(&[&str], &'static str); 3] = [
        (&enroll, MACHINES),
        (&["run", "--once"], NONCES_USED),
        (&["renew"], CERTIFICATES),
    ];
    let mut certificates = Vec::new();
    for (arguments, count) in rounds {
        behind.hold_back_when_it_rises(count).await;
        let losing = agent(arguments);
        behind.kill_before_the_answer().await;
        let lost = losing.ended().await.code();
        assert!(matches!(lost, Some(0 | 5)), "{lost:?}: {}", losing.output());
        let retry = agent(arguments);
        assert_eq!(retry.ended().await.code(), Some(0), "{}", retry.output());
        let status = agent(&["status", "--json"]);
        status.output().ended().await;
        let status: Value = serde_json::from_str(&status.output().to_string()).unwrap();
        certificates.push(status["certificate"]["serial_number"].clone());
        let id: uuid::Uuid = sqlx::query_scalar("SELECT id FROM machines")
            .fetch_one(&behind.pool)
            .await
            .unwrap();
        assert_eq!(status["machine_id"], id.to_string());
    }
    assert_eq!(certificates[0], certificates[1]);
    assert_ne!(certificates[1], certificates[2]);
    assert_eq!(behind.count(MACHINES).await, 1);
    assert_eq!(behind.installation.administrator().uses(&token).await, 1);
}
