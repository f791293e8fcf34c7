//! Texts from machines and administrators are stored as they are, or refused.

use assay_protocol::{ProblemKind, Purpose};
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::in_process::InProcess;
use assay_tests::machine::Machine;
use rstest::rstest;
use serde_json::{Value, json};

async fn enroll(machine: &Machine) -> Answer {
    let server = InProcess::start().await;
    let token = server.enrollment_token(json!({})).await;
    let answer = machine.enroll(&server, Some(&token)).await;
    server.stop().await;
    answer
}

/// An administrator would take two machines that look alike for one.
#[rstest]
#[case::zero_width_space("C02\u{200b}XYZ")]
#[case::zero_width_joiner_at_the_end("C02XYZ\u{200d}")]
#[case::soft_hyphen("C02\u{ad}XYZ")]
#[case::byte_order_mark("\u{feff}C02XYZ")]
#[case::right_to_left_override("C02\u{202e}XYZ")]
#[case::cyrillic("\u{0421}02XYZ")]
#[case::fullwidth("\u{ff23}02XYZ")]
#[tokio::test]
async fn a_serial_number_or_hardware_uuid_must_be_printable_ascii(#[case] id: &str) {
    let _refused = enroll(&Machine::with_serial_number(id))
        .await
        .expect_problem(ProblemKind::BadEvidence);
    let mut machine = Machine::new();
    machine.identity.hardware_uuid = Some(id.to_owned());
    let _refused = enroll(&machine).await.expect_problem(ProblemKind::BadEvidence);
}

#[tokio::test]
async fn a_host_name_that_turns_text_around_is_left_out_and_any_language_is_fine() {
    let server = InProcess::start().await;
    let token = server.enrollment_token(json!({})).await;
    let mut machine = Machine::new();
    machine.identity.hostname = Some("mac-\u{202e}gpj.exe".to_owned());
    let _enrolled = machine.enroll(&server, Some(&token)).await.expect(201);
    assert_eq!(server.record(&machine).await["hostname"], json!(null));
    let _checked_in = machine.check_in(&server).await.expect(200);
    server.stop().await;
    let mut machine = Machine::new();
    machine.identity.hostname = Some("Zoë’s Mac — 東京".to_owned());
    let _enrolled = enroll(&machine).await.expect(201);
}

/// Where a machine's text is in its evidence, and where it is on record. The agent sends null for a text that it cannot
/// send.
#[rstest]
#[case::model_identifier("/machine/model_identifier", "/model_identifier")]
#[case::os_name("/posture/os_name", "/posture/claimed/os_name")]
#[case::os_version("/posture/os_version", "/posture/claimed/os_version")]
#[case::os_build("/posture/os_build", "/posture/claimed/os_build")]
#[case::agent_version("/posture/agent_version", "/agent_version")]
#[tokio::test]
async fn a_text_of_a_machine_that_turns_text_around_is_refused(#[case] claim: &str, #[case] record: &str) {
    let server = InProcess::start().await;
    let machine = server.enrolled("MARKS").await;
    let check_in = async |text: &str| {
        let nonce = server.nonce().await;
        let mut claims = serde_json::to_value(machine.claims(server.audience(), Purpose::CheckIn, &nonce)).unwrap();
        *claims.pointer_mut(claim).unwrap() = json!(text);
        let evidence = json!({"evidence": machine.sign_payload(claims.to_string().as_bytes())});
        server.call("/v1/check-in", &evidence).await
    };
    let _recorded = check_in("26.3.1").await.expect(200);
    for mark in ['\u{202e}', '\u{2066}', '\u{200f}', '\u{61c}'] {
        let refused = check_in(&format!("26{mark}3.1")).await;
        let _refused = refused.expect_problem(ProblemKind::BadEvidence);
    }
    assert_eq!(server.record(&machine).await.pointer(record), Some(&json!("26.3.1")));
    server.stop().await;
}

/// RFC 7519 allows fractions in a NumericDate, and a machine's clock may be wrong. The time is recorded, but not
/// trusted.
#[rstest]
#[case::with_a_fraction("1795335945.5", 1_795_335_945)]
#[case::before_1970("-0.5", -1)]
#[case::beyond_all_times("1e30", i64::MAX)]
#[tokio::test]
async fn any_clock_skew_is_recorded(#[case] iat: &str, #[case] seconds: i64) {
    let server = InProcess::start().await;
    let machine = server.enrolled("CLOCK").await;
    let nonce = server.nonce().await;
    let mut claims = machine.claims(server.audience(), Purpose::CheckIn, &nonce);
    claims.iat = 123_456_789_012;
    let payload = serde_json::to_string(&claims).unwrap();
    let payload = payload.replace("\"iat\":123456789012", &format!("\"iat\":{iat}"));
    assert!(payload.contains(iat), "{payload}");

    let evidence = json!({"evidence": machine.sign_payload(payload.as_bytes())});
    let _checked_in = server.call("/v1/check-in", &evidence).await.expect(200);

    let record = server.get(&machine.path()).await.expect(200).json();
    let skew = seconds.saturating_sub(server.clock().now().unix_timestamp());
    assert_eq!(record["clock_skew_seconds"], skew, "{record}");
    server.stop().await;
}

/// JSON escapes the backslash, so the text after it is neither an escape nor a NUL.
#[tokio::test]
async fn an_escaped_backslash_before_u0000_is_stored_and_returned_unchanged() {
    let server = InProcess::start().await;
    let path = r"C:\u0000x";
    let token = server.create_enrollment_token(json!({"description": path})).await;
    assert_eq!(token["description"], path);
    let read = format!("/v1/admin/enrollment-tokens/{}", token["id"].as_str().unwrap());
    let read = server.get(&read).await.expect(200);
    assert!(read.text().contains(r#""C:\\u0000x""#), "{read}");
    let read: Value = read.json();
    assert_eq!(read["description"], path);
    server.stop().await;
}
