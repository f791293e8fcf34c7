//! The server is killed after its commit and before the response arrives. The machine repeats the call, and gets the
//! same result.

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::machine::Machine;
use assay_tests::process::Process;
use assay_tests::processes::agent_command;
use assay_tests::proxied::ProxiedServer;
use serde_json::{Value, json};

const MACHINES: &str = "SELECT count(*) FROM machines";
const CERTIFICATES: &str = "SELECT count(*) FROM certificates";
/// A value that rises with every used nonce.
const NONCES_USED: &str = "SELECT (extract(epoch FROM max(last_nonce_at)) * 1000000)::bigint FROM machine_presence";

#[tokio::test]
async fn after_a_lost_answer_enrolling_again_gives_the_same_machine_and_uses_the_token_once() {
    let mut server = ProxiedServer::start(&[]).await;
    let (token, machine, api) = (
        server.administrator().token(json!({})).await,
        Machine::new(),
        server.api(),
    );
    server.hold_back_when_it_rises(MACHINES).await;
    let nonce = api.nonce().await;
    let call = tokio::spawn(Answer::or_error(machine.enrollment(&api, Some(&token.secret), &nonce)));
    server.kill_before_the_answer().await;
    assert!(call.await.unwrap().is_err(), "the answer was not lost");

    let id: uuid::Uuid = sqlx::query_scalar("SELECT id FROM machines")
        .fetch_one(&server.pool)
        .await
        .unwrap();
    let api = server.api();
    let _enrolled = machine.enroll(&api, Some(&token.secret)).await.expect(200);
    assert_eq!(machine.id(), id);
    assert_eq!((server.count(MACHINES).await, server.count(CERTIFICATES).await), (1, 1));
    assert_eq!(server.administrator().uses(&token).await, 1);
    let _checked_in = machine.check_in(&api).await.expect(200);
}

#[tokio::test]
async fn after_a_lost_answer_the_nonce_is_used_and_the_next_check_in_succeeds() {
    let mut server = ProxiedServer::start(&[]).await;
    let (administrator, api) = (server.administrator(), server.api());
    let machine = administrator.enrolled(&api).await;
    let permission = administrator.permission("build").await;
    administrator.grant(&permission, &machine, json!({})).await;
    let nonce = api.nonce().await;
    server.hold_back_when_it_rises(NONCES_USED).await;
    let call = tokio::spawn(Answer::or_error(machine.check_in_with(&api, &nonce)));
    server.kill_before_the_answer().await;
    assert!(call.await.unwrap().is_err(), "the answer was not lost");

    let api = server.api();
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
async fn after_a_lost_answer_a_renewal_can_be_repeated() {
    let mut server = ProxiedServer::start(&[]).await;
    let api = server.api();
    let machine = server.administrator().enrolled(&api).await;
    let nonce = api.nonce().await;
    server.hold_back_when_it_rises(CERTIFICATES).await;
    let call = tokio::spawn(Answer::or_error(machine.renewal(&api, &nonce)));
    server.kill_before_the_answer().await;
    assert!(call.await.unwrap().is_err(), "the answer was not lost");

    let api = server.api();
    machine.forget_nonce();
    let renewed = machine.renew(&api).await.expect(200).json();
    let record = server.administrator().machine(machine.id()).await;
    assert_eq!(
        record["certificate"]["serial_number"],
        renewed["certificate"]["serial_number"]
    );
    let _checked_in = machine.check_in(&api).await.expect(200);
}

#[tokio::test]
async fn an_agent_that_loses_any_answer_stays_the_same_machine() {
    let mut server = ProxiedServer::start(&[]).await;
    let token = server.administrator().token(json!({})).await;
    let folder = tempfile::tempdir().unwrap();
    let (state, roots) = (folder.path().join("state"), folder.path().join("roots.pem"));
    std::fs::write(&roots, &server.installation.roots).unwrap();
    let agent = |arguments: &[&str]| {
        let mut command = agent_command(&state);
        command.args(arguments);
        Process::spawn(command)
    };
    let (url, roots) = (server.proxy.url(), roots.to_str().unwrap().to_owned());
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
        server.hold_back_when_it_rises(count).await;
        let losing = agent(arguments);
        server.kill_before_the_answer().await;
        let lost = losing.ended().await.code();
        assert!(matches!(lost, Some(0 | 5)), "{lost:?}: {}", losing.output());
        let retry = agent(arguments);
        assert_eq!(retry.ended().await.code(), Some(0), "{}", retry.output());
        let status = agent(&["status", "--json"]);
        status.output().ended().await;
        let status: Value = serde_json::from_str(&status.output().to_string()).unwrap();
        certificates.push(status["certificate"]["serial_number"].clone());
        let id: uuid::Uuid = sqlx::query_scalar("SELECT id FROM machines")
            .fetch_one(&server.pool)
            .await
            .unwrap();
        assert_eq!(status["machine_id"], id.to_string());
    }
    assert_eq!(certificates[0], certificates[1]);
    assert_ne!(certificates[1], certificates[2]);
    assert_eq!(server.count(MACHINES).await, 1);
    assert_eq!(server.administrator().uses(&token).await, 1);
}
