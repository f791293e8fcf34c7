//! A locked row of a machine: a call that waits for the lock sees the row's new values, and other calls do not wait.

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use http::Method;
use reqwest::RequestBuilder;
use serde_json::{Value, json};
use sqlx::{PgPool, Postgres, Transaction};

/// How often the test looks for waiting queries before it fails: far more often than reaching the row needs.
const LOOKS: u32 = 100_000;

/// A machine's presence row, locked by the test.
pub(crate) struct LockedRow {
    pool: PgPool,
    holder: Transaction<'static, Postgres>,
}

impl LockedRow {
    pub(crate) async fn of(server: &InProcess, machine: &Machine) -> Self {
        let pool = server.database().pool().await;
        let mut holder = pool.begin().await.unwrap();
        let held = sqlx::query("SELECT FROM machine_presence WHERE machine_id = $1 FOR UPDATE");
        held.bind(machine.id()).fetch_one(&mut *holder).await.unwrap();
        Self { pool, holder }
    }

    /// How many queries wait for the lock. Postgres grants it in order of arrival.
    async fn waiting(&self) -> i64 {
        sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%machine_presence%'",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap()
    }

    /// Waits until this many queries wait for the lock.
    pub(crate) async fn awaited_by(&self, number: i64) {
        for _ in 0..LOOKS {
            if self.waiting().await == number {
                return;
            }
        }
        panic!("{number} never waited for the row at once");
    }

    pub(crate) async fn release(self) {
        self.holder.rollback().await.unwrap();
    }
}

/// The erased machine enrolls with a token that allows re-enrollment, while `decision` on its record already waits for
/// the lock.
async fn reenroll_behind(server: &InProcess, machine: &Machine, decision: RequestBuilder) -> (Answer, Answer, Machine) {
    let token = json!({"serial_numbers": [machine.serial_number()], "allow_reenrollment": true});
    let token = server.enrollment_token(token).await;
    let erased = machine.erased();
    let row = LockedRow::of(server, machine).await;
    let (decided, enrolled) = tokio::join!(server.send(decision), async {
        row.awaited_by(1).await;
        let (enrolled, ()) = tokio::join!(erased.enroll(server, Some(&token)), async {
            row.awaited_by(2).await;
            row.release().await;
        });
        enrolled
    });
    (decided, enrolled, erased)
}

/// An administrator suspends the machine while it re-enrolls after being erased. The re-enrollment must wait for
/// approval.
async fn check_that_the_decision_stands(decision: &str, status: &str, problem: ProblemKind) {
    let server = InProcess::start().await;
    let machine = server.enrolled("HELD-BACK").await;
    let path = format!("{}/{decision}", machine.path());
    let decision = server.admin(Method::POST, &path).json(&json!({"reason": "stolen"}));

    let (decided, asked, erased) = reenroll_behind(&server, &machine, decision).await;

    assert_eq!(decided.expect(200).json()["status"], status);
    assert_eq!(asked.expect(202).json()["machine_id"], Value::Null);
    let record = server.get(&machine.path()).await.expect(200).json();
    assert_eq!(record["status"], status);
    assert_eq!(record["key"]["thumbprint"], machine.thumbprint().to_string());
    let _held_back = machine.check_in(&server).await.expect_problem(problem);
    erased.set_id(machine.id());
    assert_ne!(erased.check_in(&server).await.status, 200);
    server.stop().await;
}

#[tokio::test]
async fn a_reenrollment_that_waits_for_a_revocation_does_not_undo_it() {
    check_that_the_decision_stands("revoke", "revoked", ProblemKind::MachineRevoked).await;
}

#[tokio::test]
async fn a_reenrollment_that_waits_for_a_quarantine_does_not_undo_it() {
    check_that_the_decision_stands("quarantine", "quarantined", ProblemKind::MachineQuarantined).await;
}

#[tokio::test]
async fn a_reenrollment_that_waits_for_a_deletion_makes_a_new_machine() {
    let server = InProcess::start().await;
    let machine = server.enrolled("DELETED").await;
    let deletion = server.admin(Method::DELETE, &machine.path());

    let (deleted, enrolled, erased) = reenroll_behind(&server, &machine, deletion).await;

    let _deleted = deleted.expect(204);
    let _enrolled = enrolled.expect(201);
    assert_ne!(erased.id(), machine.id());
    assert_eq!(server.get(&machine.path()).await.status, 404);
    let _checked_in = erased.check_in(&server).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_locked_machine_delays_no_other_machine() {
    let server = InProcess::start().await;
    let (held, other) = (server.enrolled("HELD").await, server.enrolled("OTHER").await);
    for machine in [&held, &other] {
        let _checked_in = machine.check_in(&server).await.expect(200);
    }
    let row = LockedRow::of(&server, &held).await;
    let (waited, ()) = tokio::join!(held.check_in(&server), async {
        row.awaited_by(1).await;
        let _checked_in = other.check_in(&server).await.expect(200);
        assert_eq!(row.waiting().await, 1);
        row.release().await;
    });
    let _checked_in = waited.expect(200);
    server.stop().await;
}
