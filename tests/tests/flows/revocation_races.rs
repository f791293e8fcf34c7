//! A revocation and check-ins of the same machine at the same time, on two replicas.

use assay_tests::installation::Installation;
use assay_tests::revocation_race;

/// `race-revocations` tries more often.
#[tokio::test]
async fn after_a_revocation_has_answered_no_check_in_is_granted_anything() {
    let tally = revocation_race::run(Installation::shared().await, 8, 30).await;
    assert!(tally.holds(), "{tally}");
    assert!(tally.granted >= tally.tries, "the race is not one: {tally}");
}
