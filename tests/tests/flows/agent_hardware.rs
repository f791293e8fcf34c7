//! A state directory that was copied to another Mac: the agent signs nothing with a key that belongs to other hardware.

use std::fs;

use assay_tests::administrator::text;
use assay_tests::installation::Installation;
use assay_tests::mac::{DONE, FAILED, Mac};
use rstest::rstest;
use serde_json::{Value, json};
use uuid::Uuid;

const RUN_ONCE: &[&str] = &["run", "--once"];

async fn enrolled() -> Mac {
    let installation = Installation::shared().await;
    let mac = Mac::with_key_store(installation, "software");
    let token = installation.administrator().token(json!({})).await;
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    mac
}

/// The server's record of the machine with this status.
async fn machine(status: &Value) -> Value {
    let id: Uuid = text(status, "machine_id").parse().unwrap();
    Installation::shared().await.administrator().machine(id).await
}

#[tokio::test]
async fn a_software_key_copied_by_migration_assistant_signs_nothing_and_the_other_mac_enrolls_anew() {
    let mut mac = enrolled().await;
    let before = mac.status().await;
    let checked_in = text(&machine(&before).await, "last_check_in_at");
    let key = fs::read(mac.state().join("software.key")).unwrap();
    mac.becomes_another_machine();
    for command in [&["renew"][..], &["rotate-key"]] {
        let said = mac.run(command, FAILED).await;
        assert!(said.contains("copied from another machine"), "{said}");
    }
    let said = mac.run(&["doctor"], FAILED).await;
    assert!(said.contains("belongs to another machine"), "{said}");
    assert_eq!(fs::read(mac.state().join("software.key")).unwrap(), key);

    let token = Installation::shared().await.administrator().token(json!({})).await;
    let configuration = mac.configure(&token.secret, "");
    let said = mac.run(&["run", "--once", "--config", &configuration], DONE).await;
    assert!(said.contains("set aside"), "{said}");
    let after = mac.status().await;
    assert_ne!(after["machine_id"], before["machine_id"]);
    assert_ne!(after["key_thumbprint"], before["key_thumbprint"]);
    assert_eq!(fs::read(mac.state().join("software.key.refused")).unwrap(), key);
    assert_eq!(machine(&after).await["serial_number"], mac.serial_number());
    // The key of the original was not used.
    let original = machine(&before).await;
    assert_eq!(original["status"], "active");
    assert_eq!(text(&original, "last_check_in_at"), checked_in);
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
}

#[tokio::test]
async fn a_crash_after_foreign_keys_are_set_aside_ends_in_a_new_identity() {
    let mut mac = enrolled().await;
    let before = mac.status().await;
    mac.becomes_another_machine();
    let (key, aside) = (
        mac.state().join("software.key"),
        mac.state().join("software.key.refused"),
    );
    // The keys are set aside before the record is replaced.
    fs::rename(&key, &aside).unwrap();
    let token = Installation::shared().await.administrator().token(json!({})).await;
    let _enrolled = mac.enroll(&token.secret, DONE).await;
    let after = mac.status().await;
    assert_ne!(after["key_thumbprint"], before["key_thumbprint"]);
    assert_ne!(after["machine_id"], before["machine_id"]);
    assert!(key.exists() && aside.exists());
}

#[rstest]
#[case::another_case(|mac: &Mac| json!(mac.hardware_uuid().to_lowercase()))]
#[case::unreadable(|_: &Mac| Value::Null)]
#[tokio::test]
async fn a_hardware_uuid_in_another_case_or_an_unreadable_one_is_no_other_machine(
    #[case] hardware_uuid: fn(&Mac) -> Value,
) {
    let mac = enrolled().await;
    let before = mac.status().await;
    mac.states(&json!({"machine": {"serial_number": mac.serial_number(), "hardware_uuid": hardware_uuid(&mac)}}));
    let _checked_in = mac.run(RUN_ONCE, DONE).await;
    let after = mac.status().await;
    assert_eq!(after["machine_id"], before["machine_id"]);
    assert_eq!(after["key_thumbprint"], before["key_thumbprint"]);
}

#[tokio::test]
async fn a_record_of_an_earlier_version_takes_the_hardware_uuid_at_its_next_call() {
    let mut mac = enrolled().await;
    mac.rewrite_state(|state| {
        for name in ["hardware_uuid", "suspension"] {
            assert!(state.as_object_mut().unwrap().remove(name).is_some(), "{state}");
        }
    });
    let _renewed = mac.run(&["renew"], DONE).await;
    mac.becomes_another_machine();
    let said = mac.run(&["renew"], FAILED).await;
    assert!(said.contains("copied from another machine"), "{said}");
}
