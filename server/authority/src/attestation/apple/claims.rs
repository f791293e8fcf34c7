//! Parses the attested claims from the extensions of the leaf.
//!
//! No extension is critical, and any of them may be absent. A value in an unexpected form is unknown, and is never
//! guessed: a condition on it then fails.

use assay_protocol::{
    attestation::{AttestedClaims, FreshnessCode},
    machine::SecureBoot,
};
use x509_cert::{der::oid::ObjectIdentifier, ext::Extension};

const SERIAL_NUMBER: ObjectIdentifier = oid("1.2.840.113635.100.8.9.1");
const UDID: ObjectIdentifier = oid("1.2.840.113635.100.8.9.2");
const SOFTWARE_UPDATE_DEVICE_ID: ObjectIdentifier = oid("1.2.840.113635.100.8.9.4");
const OS_VERSION: ObjectIdentifier = oid("1.2.840.113635.100.8.10.1");
const SEP_OS_VERSION: ObjectIdentifier = oid("1.2.840.113635.100.8.10.2");
const LLB_VERSION: ObjectIdentifier = oid("1.2.840.113635.100.8.10.3");
const FRESHNESS_CODE: ObjectIdentifier = oid("1.2.840.113635.100.8.11.1");
const SIP_STATUS: ObjectIdentifier = oid("1.2.840.113635.100.8.13.1");
const SECURE_BOOT: ObjectIdentifier = oid("1.2.840.113635.100.8.13.2");
const THIRD_PARTY_KEXTS: ObjectIdentifier = oid("1.2.840.113635.100.8.13.3");

/// The longest accepted text, in bytes. A serial number has about 12, a UDID 25.
const LONGEST_TEXT: usize = 64;

/// Parses the claims of a leaf in which no extension occurs twice.
pub(super) fn read(extensions: &[Extension]) -> AttestedClaims {
    let value = |oid| {
        let extension = extensions.iter().find(|extension| extension.extn_id == oid)?;
        Some(extension.extn_value.as_bytes())
    };
    let text = |oid| value(oid).and_then(text);
    AttestedClaims {
        serial_number: text(SERIAL_NUMBER),
        udid: text(UDID),
        software_update_device_id: text(SOFTWARE_UPDATE_DEVICE_ID),
        os_version: text(OS_VERSION),
        sep_os_version: text(SEP_OS_VERSION),
        llb_version: text(LLB_VERSION),
        // The status counts what is switched off: 0 means enabled.
        sip_enabled: value(SIP_STATUS).and_then(flag).map(|disabled| !disabled),
        secure_boot: value(SECURE_BOOT).and_then(secure_boot),
        third_party_kexts_allowed: value(THIRD_PARTY_KEXTS).and_then(flag),
        freshness_code: value(FRESHNESS_CODE).and_then(|bytes| FreshnessCode::from_bytes(bytes).ok()),
    }
}

/// Raw printable ASCII. Surrounding blanks are rejected, because they would make different texts look alike.
fn text(bytes: &[u8]) -> Option<String> {
    let printable = bytes.iter().all(|byte| matches!(byte, b' '..=b'~'));
    let trimmed = bytes.trim_ascii() == bytes;
    if bytes.is_empty() || bytes.len() > LONGEST_TEXT || !printable || !trimmed {
        return None;
    }
    String::from_utf8(bytes.to_vec()).ok()
}

/// A DER INTEGER with the value 0 or 1.
fn flag(bytes: &[u8]) -> Option<bool> {
    match bytes {
        [0x02, 0x01, 0x00] => Some(false),
        [0x02, 0x01, 0x01] => Some(true),
        _ => None,
    }
}

fn secure_boot(bytes: &[u8]) -> Option<SecureBoot> {
    match bytes {
        b"Full Security" => Some(SecureBoot::Full),
        b"Reduced Security" => Some(SecureBoot::Reduced),
        b"Permissive Security" => Some(SecureBoot::Permissive),
        _ => None,
    }
}

const fn oid(dotted: &str) -> ObjectIdentifier {
    ObjectIdentifier::new_unwrap(dotted)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use x509_cert::der::asn1::OctetString;

    use super::*;

    fn with(extn_id: ObjectIdentifier, value: &[u8]) -> AttestedClaims {
        read(&[Extension {
            extn_id,
            critical: false,
            extn_value: OctetString::new(value).unwrap(),
        }])
    }

    #[rstest]
    #[case(b"C02XYZ", Some("C02XYZ"))]
    #[case(b"", None)]
    #[case(b" ", None)]
    #[case(b"C02XYZ ", None)]
    #[case(b" C02XYZ", None)]
    #[case(b"13.3.1 (a)", Some("13.3.1 (a)"))]
    #[case(b"C02XYZ\0", None)]
    #[case(b"C02XYZ\n", None)]
    #[case("C02XYZ\u{e9}".as_bytes(), None)]
    #[case(b"C02\xff", None)]
    #[case(b"\x0c\x06C02XYZ", None)]
    #[case(&[b'C'; LONGEST_TEXT], Some("CCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCCC"))]
    #[case(&[b'C'; LONGEST_TEXT + 1], None)]
    fn a_text_is_printable_ascii_of_a_bounded_length(#[case] value: &[u8], #[case] read: Option<&str>) {
        let each = [
            SERIAL_NUMBER,
            UDID,
            SOFTWARE_UPDATE_DEVICE_ID,
            OS_VERSION,
            SEP_OS_VERSION,
            LLB_VERSION,
        ];
        for oid in each {
            let claims = with(oid, value);
            let texts = [
                claims.serial_number,
                claims.udid,
                claims.software_update_device_id,
                claims.os_version,
                claims.sep_os_version,
                claims.llb_version,
            ];
            let known: Vec<_> = texts.iter().flatten().map(String::as_str).collect();
            assert_eq!(known, read.into_iter().collect::<Vec<_>>(), "{oid}");
        }
    }

    #[rstest]
    #[case(&[2, 1, 0], Some(false))]
    #[case(&[2, 1, 1], Some(true))]
    #[case(&[2, 1, 2], None)]
    #[case(&[2, 1, 0xff], None)]
    #[case(&[2, 2, 0, 1], None)]
    #[case(&[2, 1, 0, 0], None)]
    #[case(&[2, 1], None)]
    #[case(&[2, 0], None)]
    #[case(&[1, 1, 0], None)]
    #[case(&[0], None)]
    #[case(b"0", None)]
    #[case(&[], None)]
    fn a_flag_is_an_integer_of_0_or_1_and_that_of_sip_is_inverted(#[case] value: &[u8], #[case] flag: Option<bool>) {
        assert_eq!(with(THIRD_PARTY_KEXTS, value).third_party_kexts_allowed, flag);
        assert_eq!(with(SIP_STATUS, value).sip_enabled, flag.map(|disabled| !disabled));
    }

    #[rstest]
    #[case(b"Full Security", Some(SecureBoot::Full))]
    #[case(b"Reduced Security", Some(SecureBoot::Reduced))]
    #[case(b"Permissive Security", Some(SecureBoot::Permissive))]
    #[case(b"full security", None)]
    #[case(b"Full Security ", None)]
    #[case(b"\x0c\x0dFull Security", None)]
    #[case(b"Fuller Security", None)]
    #[case(b"", None)]
    fn secure_boot_is_one_of_three_words(#[case] value: &[u8], #[case] level: Option<SecureBoot>) {
        assert_eq!(with(SECURE_BOOT, value).secure_boot, level);
    }

    #[test]
    fn a_freshness_code_is_exactly_32_bytes() {
        let code = |value: &[u8]| with(FRESHNESS_CODE, value).freshness_code;
        assert_eq!(code(&[7; 32]), FreshnessCode::from_bytes(&[7; 32]).ok());
        for other in [&[7; 31][..], &[7; 33], &[], &[&[4, 32][..], &[7; 32]].concat()] {
            assert_eq!(code(other), None);
        }
    }

    #[test]
    fn other_extensions_are_ignored() {
        for other in ["1.2.840.113635.100.8.9.3", "1.2.840.113635.100.8.13", "2.5.29.14"] {
            assert_eq!(with(oid(other), b"C02XYZ"), AttestedClaims::default());
        }
    }
}
