//! A revocation and check-ins of the same machine at the same time, on two replicas.

use assay_protocol::ProblemKind;
use assay_protocol::machine::SecureBoot;
use assay_tests::api::Api;
use assay_tests::installation::Installation;
use assay_tests::machine::Machine;
use futures_util::future::join_all;
use serde_json::{Value, json};

/// Checks in until the machine is refused. Each check-in has another verdict than the previous one.
async fn check_in_until_refused(api: &Api, machine: &Machine) {
    let mut machine = machine.clone();
    machine.forget_nonce();
    for number in 0.. {
        machine.posture.secure_boot = Some(if number % 2 == 0 {
            SecureBoot::Full
        } else {
            SecureBoot::Reduced
        });
        let answer = machine.check_in(api).await;
        match answer.status {
            200 => {}
            // The other caller has used a later nonce.
            400 => drop(answer.expect_problem(ProblemKind::BadNonce)),
            _ => return drop(answer.expect_problem(ProblemKind::MachineRevoked)),
        }
    }
}

#[tokio::test]
async fn after_a_revocation_has_answered_no_check_in_is_granted_anything() {
    let installation = Installation::shared().await;
    let (apis, administrator) = ([installation.api(0), installation.api(1)], installation.administrator());
    let permission = administrator.permission("connect").await;
    let rounds = (0..8).map(async |_| {
        for _ in 0..12 {
            let machine = administrator.enrolled(&apis[0]).await;
            administrator
                .grant(&permission, &machine, json!({"secure_boot": "full"}))
                .await;
            let revoke = async {
                let _checked_in = machine.check_in(&apis[0]).await;
                let _revoked = administrator.decide(machine.id(), "revoke", "stolen").await.expect(200);
            };
            let callers = join_all(apis.iter().map(|api| check_in_until_refused(api, &machine)));
            let ((), _) = tokio::join!(revoke, callers);
            // A verdict is written before the response with its grants. A verdict after the revocation would mean a
            // grant after it.
            let kinds = administrator.event_kinds(machine.id()).await;
            let after: Vec<&Value> = kinds.iter().take_while(|kind| **kind != "machine.revoked").collect();
            assert!(after.iter().all(|kind| **kind != "verdict.changed"), "{kinds:?}");
        }
    });
    join_all(rounds).await;
}
