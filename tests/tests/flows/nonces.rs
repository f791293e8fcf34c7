//! A nonce is valid once, for one machine, on any replica.

use std::sync::Arc;

use assay_protocol::ProblemKind;
use assay_server::clock::{Clock, MockClock, SystemClock};
use assay_server::config::Config;
use assay_server::running::RunningServer;
use assay_tests::answer::Answer;
use assay_tests::api::Api;
use assay_tests::cluster::Database;
use assay_tests::installation::{Installation, unlimited};
use assay_tests::machine::Machine;
use assay_tests::processes::ServerConfiguration;
use futures_util::future::join_all;
use time::Duration;

#[tokio::test]
async fn of_50_check_ins_with_one_nonce_on_two_replicas_exactly_one_succeeds() {
    let installation = Installation::shared().await;
    let apis = [installation.api(0), installation.api(1)];
    let machine = installation.administrator().enrolled(&apis[0]).await;
    let nonce = apis[0].nonce().await;

    let calls = (0..50).map(|call| Answer::to(machine.check_in_with(&apis[call % 2], &nonce)));
    let answers = join_all(calls).await;

    let (through, refused): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status == 200);
    assert_eq!(through.len(), 1);
    assert_eq!(refused.len(), 49);
    for (call, refused) in refused.into_iter().enumerate() {
        let refused = refused.expect_problem(ProblemKind::BadNonce);
        let fresh = refused.nonce();
        assert_ne!(fresh, nonce);
        // Only the last of these stays valid: using one makes earlier ones too old.
        if call == 48 {
            let _checked_in = Answer::to(machine.check_in_with(&apis[1], fresh)).await.expect(200);
        }
    }
}

#[tokio::test]
async fn machines_that_check_in_on_both_replicas_never_delay_each_other() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let machines = join_all((0..3).map(|_| administrator.enrolled(&apis[0]))).await;
    // The batches of both replicas contain the same machines, and each check-in changes its row.
    let callers = (0..30).map(async |caller| {
        let (machine, api) = (&machines[caller % 3], &apis[caller % 2]);
        let mut nonce = api.nonce().await;
        for _ in 0..60 {
            let answer = Answer::to(machine.check_in_with(api, &nonce)).await;
            answer.nonce().clone_into(&mut nonce);
            // Another caller of the same machine may have used a later nonce.
            if answer.status != 200 {
                let _used = answer.expect_problem(ProblemKind::BadNonce);
            }
        }
    });
    join_all(callers).await;
}

#[tokio::test]
async fn every_agent_response_has_a_nonce_for_the_next_call() {
    let installation = Installation::shared().await;
    let apis = [installation.api(0), installation.api(1)];
    let machine = installation.administrator().enrolled(&apis[0]).await;
    for call in 0..6 {
        let nonce = machine.nonce_at_hand().unwrap();
        let _checked_in = machine.check_in(&apis[call % 2]).await.expect(200);
        let _renewed = machine.renew(&apis[call % 2]).await.expect(200);
        let _enrolled = machine.enroll(&apis[call % 2], None).await.expect(200);
        for used in [
            machine.check_in_with(&apis[0], &nonce),
            machine.renewal(&apis[1], &nonce),
        ] {
            let _used = Answer::to(used).await.expect_problem(ProblemKind::BadNonce);
        }
    }
}

#[tokio::test]
async fn a_nonce_older_than_the_last_used_one_is_refused() {
    let installation = Installation::shared().await;
    let api = installation.api(0);
    let machine = installation.administrator().enrolled(&api).await;
    let (older, newer) = (api.nonce().await, api.nonce().await);
    let _checked_in = Answer::to(machine.check_in_with(&api, &newer)).await.expect(200);
    let refused = Answer::to(machine.check_in_with(&api, &older))
        .await
        .expect_problem(ProblemKind::BadNonce);
    let _checked_in = Answer::to(machine.check_in_with(&api, refused.nonce()))
        .await
        .expect(200);
}

#[tokio::test]
async fn a_nonce_is_valid_on_every_replica_and_after_a_restart() {
    let database = Database::create().await;
    let mut installation = Installation::unlimited(&database).await;
    installation = installation.with_a_replica().await;
    let machine = installation.administrator().enrolled(&installation.api(0)).await;

    let of_one = installation.api(0).nonce().await;
    let _checked_in = Answer::to(machine.check_in_with(&installation.api(1), &of_one))
        .await
        .expect(200);

    let before = installation.api(0).nonce().await;
    for server in &mut installation.servers {
        server.kill().await;
        *server = server.configuration().start().await;
    }
    // A nonce that was used before the restart is still used.
    let _used = Answer::to(machine.check_in_with(&installation.api(0), &of_one))
        .await
        .expect_problem(ProblemKind::BadNonce);
    let _checked_in = Answer::to(machine.check_in_with(&installation.api(0), &before))
        .await
        .expect(200);
    let used = Answer::to(machine.check_in_with(&installation.api(1), &before)).await;
    let _used = used.expect_problem(ProblemKind::BadNonce);
}

/// A replica in the test process, with a clock of its own.
async fn replica(configuration: &ServerConfiguration, clock: &MockClock) -> (RunningServer, Api) {
    let environment = configuration.environment().into_iter();
    let config = Config::load(None, environment).unwrap();
    let server = RunningServer::start(&config, Arc::new(clock.clone())).await.unwrap();
    let origin = format!("https://{}", server.address());
    let api = Api::new(&origin, config.public_url.as_str(), &server.roots_pem());
    (server, api)
}

#[tokio::test]
async fn replicas_whose_clocks_are_hours_apart_never_lock_a_machine_out() {
    let database = Database::create().await;
    let configuration = unlimited(ServerConfiguration::new(&database)).set("public_url", "https://127.0.0.1:8443");
    // TLS uses the callers' clock, by which the certificates of both replicas must be valid.
    let now = SystemClock.now();
    let clocks = [MockClock::new(now + Duration::hours(5)), MockClock::new(now)];
    // The replica whose clock is behind creates the keys and the first certificates.
    let (behind, api_behind) = replica(&configuration, &clocks[1]).await;
    let (ahead, api_ahead) = replica(&configuration, &clocks[0]).await;
    let key = configuration.create_api_key("the tests", "admin").await;
    let administrator = assay_tests::administrator::Administrator::new(api_behind.clone(), &key);
    let machine: Machine = administrator.enrolled(&api_behind).await;

    let mut retries = 0;
    for call in 0..40 {
        for clock in &clocks {
            clock.advance(Duration::seconds(7));
        }
        let api = if call % 2 == 0 { &api_ahead } else { &api_behind };
        let answer = machine.check_in(api).await;
        if answer.status == 200 {
            continue;
        }
        let _refused = answer.expect_problem(ProblemKind::BadNonce);
        retries += 1;
        let _checked_in = machine.check_in(api).await.expect(200);
    }
    println!("{retries} retries in 40 check-ins that alternate between two replicas 5 h apart");
    for server in [ahead, behind] {
        server.stop().await.unwrap();
    }
}
