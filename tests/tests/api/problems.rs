//! Every problem of the registry, reached through a running server. `assay_tests::answer` checks what all problems have
//! in common, from the media type to the texts that a `detail` must not contain.

mod machines;
mod proofs;
mod requests;
mod servers;

use std::time::Instant;

use assay_protocol::ProblemKind;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use futures_util::future::join_all;

#[tokio::test]
async fn every_problem_kind_can_be_reached() {
    let server = InProcess::start().await;
    for &kind in ProblemKind::ALL {
        let answers = reach(kind, &server).await;
        assert!(!answers.is_empty());
        for answer in answers {
            assert_eq!(answer.kind(), kind, "{answer}");
        }
    }
    server.stop().await;
}

/// A database that does not respond at all. The caller gets a response in time to call another replica, and waiting
/// calls take nothing from later ones.
#[tokio::test]
async fn a_database_that_hangs_is_unavailable_within_five_seconds() {
    let server = InProcess::start().await;
    let machine = server.enrolled("HANGS").await;
    let pool = server.database().pool().await;
    let mut lock = pool.begin().await.unwrap();
    sqlx::query("LOCK TABLE machine_presence, permissions IN ACCESS EXCLUSIVE MODE")
        .execute(&mut *lock)
        .await
        .unwrap();
    let begun = Instant::now();
    let lists = (0..8).map(|_| server.get("/v1/admin/permissions"));
    let (check_in, renewal, lists) = tokio::join!(machine.check_in(&server), machine.renew(&server), join_all(lists));
    assert!(begun.elapsed().as_secs_f64() < 5.0, "after {:?}", begun.elapsed());
    for answer in lists.iter().chain([&check_in, &renewal]) {
        assert_eq!(answer.kind(), ProblemKind::Unavailable, "{answer}");
    }
    lock.rollback().await.unwrap();
    assert_eq!(machine.check_in(&server).await.status, 200);
    assert_eq!(machine.renew(&server).await.status, 200);
    assert_eq!(server.get("/v1/admin/permissions").await.status, 200);
    server.stop().await;
}

/// How to reach each problem. A new kind does not compile without it.
async fn reach(kind: ProblemKind, server: &InProcess) -> Vec<Answer> {
    match kind {
        ProblemKind::Malformed => requests::malformed(server).await,
        ProblemKind::BadCsr => proofs::bad_csr(server).await,
        ProblemKind::BadNonce => proofs::bad_nonce(server).await,
        ProblemKind::BadEvidence => proofs::bad_evidence(server).await,
        ProblemKind::EnrollmentTokenInvalid => proofs::enrollment_token_invalid(server).await,
        ProblemKind::Unauthenticated => requests::unauthenticated(server).await,
        ProblemKind::Forbidden => requests::forbidden(server).await,
        ProblemKind::MachinePending => machines::machine_pending(server).await,
        ProblemKind::MachineQuarantined => machines::machine_quarantined(server).await,
        ProblemKind::MachineRevoked => machines::machine_revoked(server).await,
        ProblemKind::KeySuperseded => machines::key_superseded(server).await,
        ProblemKind::IdentityMismatch => machines::identity_mismatch(server).await,
        ProblemKind::EnrollmentDenied => machines::enrollment_denied(server).await,
        ProblemKind::MachineUnknown => machines::machine_unknown(server).await,
        ProblemKind::NotFound => requests::not_found(server).await,
        ProblemKind::MethodNotAllowed => requests::method_not_allowed(server).await,
        ProblemKind::UnsupportedMediaType => requests::unsupported_media_type(server).await,
        ProblemKind::RenewalExpired => servers::renewal_expired().await,
        ProblemKind::MachineExists => servers::machine_exists().await,
        ProblemKind::AttestationRefused => requests::attestation_refused(server).await,
        ProblemKind::Conflict => requests::conflict(server).await,
        ProblemKind::PreconditionFailed => requests::precondition_failed(server).await,
        ProblemKind::PreconditionRequired => requests::precondition_required(server).await,
        ProblemKind::PayloadTooLarge => requests::payload_too_large(server).await,
        ProblemKind::RateLimited => servers::rate_limited().await,
        ProblemKind::Unavailable => servers::unavailable().await,
        ProblemKind::Internal => servers::internal().await,
    }
}
