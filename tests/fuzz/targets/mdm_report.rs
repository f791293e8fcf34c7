//! Property lists that managed devices send through their MDM.

#![no_main]

use assay_server::fuzzing::{MdmReport, mdm_report};
use libfuzzer_sys::fuzz_target;
use plist::{Dictionary, Value};

/// `plist::Value` overflows the stack with deep documents, so the target does not read those.
const MOST_COLLECTIONS: usize = 64;

fuzz_target!(|bytes: &[u8]| {
    let Some(report) = mdm_report(bytes) else { return };
    assert!(report.attestation.as_ref().is_none_or(|chain| chain.len() <= 16));
    assert_eq!(mdm_report(&write(&report)).as_ref(), Some(&report));
    let collections = bytes
        .windows(5)
        .filter(|window| matches!(*window, b"<dict" | b"<arra"))
        .count();
    if collections > MOST_COLLECTIONS {
        return;
    }
    // A second reader of the same document. It refuses keys that appear twice, and more.
    let Ok(Value::Dictionary(document)) = Value::from_reader_xml(bytes) else {
        return;
    };
    let text = |dictionary: &Dictionary, key| dictionary.get(key).and_then(Value::as_string).map(str::to_owned);
    assert_eq!(report.udid, text(&document, "UDID"));
    assert_eq!(report.enrollment_id, text(&document, "EnrollmentID"));
    let responses = document.get("QueryResponses").and_then(Value::as_dictionary);
    let inner = responses.and_then(|responses| text(responses, "SerialNumber"));
    assert_eq!(report.serial_number, text(&document, "SerialNumber").or(inner));
    let chain = responses.and_then(|responses| responses.get("DevicePropertiesAttestation")?.as_array());
    let chain = chain.map(|chain| chain.iter().map(|der| der.as_data().unwrap().to_vec()).collect());
    assert_eq!(report.attestation, chain);
});

fn write(report: &MdmReport) -> Vec<u8> {
    let mut document = Dictionary::new();
    let texts = [
        ("UDID", &report.udid),
        ("EnrollmentID", &report.enrollment_id),
        ("SerialNumber", &report.serial_number),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            document.insert(key.to_owned(), text.clone().into());
        }
    }
    if let Some(chain) = &report.attestation {
        let chain: Vec<_> = chain.iter().map(|der| Value::Data(der.clone())).collect();
        let responses = Dictionary::from_iter([("DevicePropertiesAttestation", Value::Array(chain))]);
        document.insert("QueryResponses".to_owned(), responses.into());
    }
    let mut xml = Vec::new();
    Value::Dictionary(document).to_writer_xml(&mut xml).unwrap();
    xml
}
