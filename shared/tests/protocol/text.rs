//! What a machine may write about itself.

use assay_protocol::machine::{MachineIdentity, Posture, SecureBoot};
use serde_json::{Value, json};

fn serial_number(value: &Value) -> Result<Option<String>, String> {
    let identity: Result<MachineIdentity, _> = serde_json::from_value(json!({"serial_number": value}));
    identity
        .map(|identity| identity.serial_number)
        .map_err(|error| error.to_string())
}

fn hostname(value: &Value) -> Result<Option<String>, String> {
    let identity: Result<MachineIdentity, _> = serde_json::from_value(json!({"hostname": value}));
    identity
        .map(|identity| identity.hostname)
        .map_err(|error| error.to_string())
}

#[test]
fn a_text_is_kept_without_the_space_around_it() {
    assert_eq!(serial_number(&json!("  C02 XYZ\u{a0}")), Ok(Some("C02 XYZ".to_owned())));
    assert_eq!(hostname(&json!("Büro 🖥")), Ok(Some("Büro 🖥".to_owned())));
}

/// Two serial numbers that look alike on a screen would let an administrator approve the wrong machine.
#[test]
fn a_serial_number_is_printable_ascii_and_no_text_turns_what_stands_around_it() {
    for text in ["C02\u{200b}XYZ", "C02ХYZ", "Büro"] {
        assert!(
            serial_number(&json!(text)).unwrap_err().contains("printable ASCII"),
            "{text:?}"
        );
    }
    // A user chooses the host name, so an unfit one is absent rather than a reason to refuse the machine.
    for text in ["anna\u{202e}gnp.local", "mac\u{1b}[31m", &"x".repeat(257)] {
        assert_eq!(hostname(&json!(text)), Ok(None), "{text:?}");
    }
}

/// A blank serial number identifies nothing: two machines that claim it are not the same machine.
#[test]
fn blank_is_the_same_as_absent() {
    for blank in [json!(null), json!(""), json!(" "), json!("\u{2003}\u{a0} ")] {
        assert_eq!(serial_number(&blank), Ok(None), "{blank}");
    }
    assert_eq!(
        serde_json::from_str::<MachineIdentity>("{}").unwrap(),
        MachineIdentity::default()
    );
}

/// A NUL cannot be stored, a newline forges log lines, an escape rewrites terminals.
#[test]
fn control_characters_are_refused_wherever_they_stand() {
    for control in ['\0', '\n', '\r', '\t', '\u{1b}', '\u{7f}', '\u{85}', '\u{9b}'] {
        for text in [
            format!("C02{control}XYZ"),
            format!("{control}"),
            format!("C02XYZ{control}"),
        ] {
            let refused = serial_number(&json!(text)).unwrap_err();
            assert!(refused.contains("control character"), "{text:?}: {refused}");
            assert!(
                !refused.contains(control),
                "the refusal repeats what it refuses: {refused:?}"
            );
        }
    }
}

#[test]
fn a_text_has_at_most_256_bytes() {
    assert!(serial_number(&json!("x".repeat(256))).is_ok());
    assert!(hostname(&json!("ü".repeat(128))).is_ok());
    for text in ["x".repeat(257), "ü".repeat(129), " ".repeat(257)] {
        assert!(serial_number(&json!(text)).unwrap_err().contains("256 bytes"));
    }
}

#[test]
fn what_is_no_text_is_refused() {
    for value in [json!(1), json!(true), json!([]), json!({}), json!(["C02XYZ"])] {
        assert!(serial_number(&value).is_err(), "{value}");
    }
}

/// A level of a newer agent is unknown, and so fails conditions; it does not keep the machine out.
#[test]
fn an_unknown_level_of_secure_boot_is_null() {
    let level =
        |value: Value| serde_json::from_value::<Posture>(json!({"secure_boot": value})).map(|it| it.secure_boot);
    assert_eq!(level(json!("full")).unwrap(), Some(SecureBoot::Full));
    assert_eq!(level(json!("fuller")).unwrap(), None);
    assert_eq!(level(json!(null)).unwrap(), None);
    assert!(level(json!(3)).is_err());
    assert!(level(json!("fu\0ll")).is_err());
}
