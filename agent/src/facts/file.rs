//! Facts from a file, instead of the system's: for tests and simulated fleets.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::{Facts, FactsError, MachineFacts};

/// A JSON file with `machine` and `posture` in the form of evidence. Each use reads the file again.
#[derive(Debug, Clone)]
pub struct FileFacts {
    file: PathBuf,
}

impl FileFacts {
    /// Names the file. It is read when facts are needed.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self { file }
    }
}

impl Facts for FileFacts {
    fn read(&self) -> Result<MachineFacts, FactsError> {
        let text = fs::read(&self.file).map_err(|source| FactsError::Unreadable {
            file: self.file.clone(),
            source,
        })?;
        parse(&self.file, &text)
    }
}

fn parse(file: &Path, text: &[u8]) -> Result<MachineFacts, FactsError> {
    let value: Value = serde_json::from_slice(text).map_err(|source| FactsError::NotAnObject {
        file: file.to_owned(),
        source: Some(source),
    })?;
    let Value::Object(members) = value else {
        return Err(FactsError::NotAnObject {
            file: file.to_owned(),
            source: None,
        });
    };
    let mut facts = MachineFacts::default();
    for (name, value) in members {
        match name.as_str() {
            "machine" => facts.machine = parse_object(file, &name, value)?,
            "posture" => facts.posture = parse_object(file, &name, value)?,
            _ => {
                return Err(FactsError::UnknownField {
                    file: file.to_owned(),
                    field: name,
                });
            }
        }
    }
    Ok(facts)
}

/// Parses an object field by field, because serde's errors do not name the field.
fn parse_object<T>(file: &Path, object: &str, value: Value) -> Result<T, FactsError>
where
    T: Default + Serialize + DeserializeOwned,
{
    let bad_value = |field: String, source| FactsError::BadValue {
        file: file.to_owned(),
        field,
        source,
    };
    let Value::Object(members) = value else {
        return Err(bad_value(object.to_owned(), None));
    };
    let known = fields(&T::default()).map_err(|error| bad_value(object.to_owned(), Some(error)))?;
    for (name, value) in &members {
        let field = format!("{object}.{name}");
        if !known.contains_key(name) {
            return Err(FactsError::UnknownField {
                file: file.to_owned(),
                field,
            });
        }
        let alone = Value::Object(Map::from_iter([(name.clone(), value.clone())]));
        let read = serde_json::from_value::<T>(alone)
            .and_then(|object| fields(&object))
            .map_err(|error| bad_value(field.clone(), Some(error)))?;
        let is_blank = value.is_null() || value.as_str().is_some_and(|text| text.trim().is_empty());
        // The wire format parses unknown words as null, for compatibility. In this file they are mistakes.
        if !is_blank && read.get(name).is_none_or(Value::is_null) {
            return Err(bad_value(field, None));
        }
    }
    serde_json::from_value(Value::Object(members)).map_err(|error| bad_value(object.to_owned(), Some(error)))
}

fn fields<T: Serialize>(object: &T) -> Result<Map<String, Value>, serde_json::Error> {
    match serde_json::to_value(object)? {
        Value::Object(members) => Ok(members),
        _ => Ok(Map::new()),
    }
}

#[cfg(test)]
mod tests {
    use assay_protocol::machine::SecureBoot;
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_file_contains_identity_and_posture() {
        let text = br#"{"machine": {"serial_number": "C02A", "hostname": null},
            "posture": {"sip_enabled": true, "secure_boot": "full"}}"#;
        let facts = parse(Path::new("facts.json"), text).unwrap();
        assert_eq!(facts.machine.serial_number.as_deref(), Some("C02A"));
        assert_eq!(facts.machine.hostname, None);
        assert_eq!(facts.posture.sip_enabled, Some(true));
        assert_eq!(facts.posture.secure_boot, Some(SecureBoot::Full));
        assert_eq!(facts.posture.filevault_enabled, None);
    }

    #[test]
    fn the_file_is_read_at_each_use() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("facts.json");
        let facts = FileFacts::new(file.clone());
        assert!(matches!(facts.read(), Err(FactsError::Unreadable { .. })));
        for enabled in [true, false] {
            fs::write(&file, format!(r#"{{"posture": {{"filevault_enabled": {enabled}}}}}"#)).unwrap();
            assert_eq!(facts.read().unwrap().posture.filevault_enabled, Some(enabled));
        }
    }

    #[rstest]
    #[case::unknown_member(r#"{"machines": {}}"#, "machines")]
    #[case::unknown_field(r#"{"machine": {"serial": "C02A"}}"#, "machine.serial")]
    #[case::wrong_type(r#"{"posture": {"sip_enabled": "yes"}}"#, "posture.sip_enabled")]
    #[case::number_for_text(r#"{"machine": {"hostname": 4}}"#, "machine.hostname")]
    #[case::unknown_word(r#"{"posture": {"secure_boot": "ful"}}"#, "posture.secure_boot")]
    #[case::control_character(r#"{"machine": {"hostname": "a\u0000b"}}"#, "machine.hostname")]
    #[case::no_object(r#"{"machine": 3}"#, "machine")]
    fn a_bad_field_is_named_with_its_file(#[case] text: &str, #[case] field: &str) {
        let error = parse(Path::new("/somewhere/facts.json"), text.as_bytes())
            .unwrap_err()
            .to_string();
        assert!(error.contains("/somewhere/facts.json"), "{error}");
        assert!(error.contains(&format!(": {field} ")), "{error}");
    }

    #[rstest]
    #[case("")]
    #[case("{")]
    #[case("[]")]
    fn a_file_without_an_object_is_rejected(#[case] text: &str) {
        let error = parse(Path::new("facts.json"), text.as_bytes()).unwrap_err();
        assert!(matches!(error, FactsError::NotAnObject { .. }), "{error}");
    }
}
