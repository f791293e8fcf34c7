//! Checks the texts of a JSON body from an administrator, whatever its fields are. Other administrators see these texts, so
//! a character that controls a terminal or the direction of text could make one name look like another. No object may have
//! a member twice: parsers disagree on which one counts.

use std::{collections::HashSet, fmt};

use assay_protocol::text::{is_displayable, is_line_break_or_tab};
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, MapAccess, SeqAccess, Visitor},
};

/// How many characters of a member's name an error quotes.
const MOST_QUOTED: usize = 100;

/// Checks a body that is valid JSON. The error names the member.
pub(crate) fn check(body: &[u8]) -> Result<(), String> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let mut fault = None;
    let checked = Checking {
        path: String::new(),
        fault: &mut fault,
    }
    .deserialize(&mut deserializer);
    match (checked, fault) {
        (Ok(()), _) => Ok(()),
        (Err(_), Some(fault)) => Err(fault),
        (Err(error), None) => Err(error.to_string()),
    }
}

/// Checks one value at a path, such as `selector.labels`.
struct Checking<'a> {
    path: String,
    /// The first fault. Errors of serde would have a position added.
    fault: &'a mut Option<String>,
}

impl Checking<'_> {
    fn refuse<E: Error>(&mut self, fault: String) -> E {
        let error = E::custom(&fault);
        *self.fault = Some(fault);
        error
    }

    fn check_text<E: Error>(&mut self, path: &str, text: &str) -> Result<(), E> {
        let is_fit = |character: &char| is_displayable(*character) || is_line_break_or_tab(*character);
        match text.chars().find(|character| !is_fit(character)) {
            None => Ok(()),
            Some(character) => {
                let code = u32::from(character);
                Err(self.refuse(format!(
                    "{path}: contains U+{code:04X}, a character that controls how text is displayed"
                )))
            }
        }
    }

    fn below(&mut self, path: String) -> Checking<'_> {
        Checking {
            path,
            fault: self.fault,
        }
    }

    fn path_of_member(&self, name: &str) -> String {
        let name: String = name.chars().take(MOST_QUOTED).flat_map(char::escape_debug).collect();
        match self.path.as_str() {
            "" => name,
            path => format!("{path}.{name}"),
        }
    }
}

impl<'de> DeserializeSeed<'de> for Checking<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Checking<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _value: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _value: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _value: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _value: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(mut self, text: &str) -> Result<(), E> {
        let path = std::mem::take(&mut self.path);
        self.check_text(&path, text)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<(), A::Error> {
        let mut place = 0_usize;
        loop {
            let path = format!("{}[{place}]", self.path);
            if items.next_element_seed(self.below(path))?.is_none() {
                return Ok(());
            }
            place += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = members.next_key::<String>()? {
            let path = self.path_of_member(&name);
            self.check_text(&path, &name)?;
            if names.contains(&name) {
                return Err(self.refuse(format!("{path} is there twice")));
            }
            members.next_value_seed(self.below(path))?;
            names.insert(name);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(
        r#"{"a": [1, -1, 1.5, true, null, "x"], "b": {"a": "Grüße, 東京 💻"}, "note": "two\nlines\tand a tab\r\n"}"#
    )]
    #[case(r#""x""#)]
    #[case(r#"{"labels": {"a": "x", "b": "x"}, "other": {"labels": {}}}"#)]
    fn ordinary_texts_pass(#[case] body: &str) {
        assert_eq!(check(body.as_bytes()), Ok(()));
    }

    #[rstest]
    #[case(r#"{"name": "a\u202eb"}"#, "name: contains U+202E")]
    #[case("{\"name\": \"a\u{2066}b\"}", "name: contains U+2066")]
    #[case(r#"{"a": {"b": ["x", "\u001b[2J"]}}"#, "a.b[1]: contains U+001B")]
    #[case(r#"{"labels": {"te\u200fam": "x"}}"#, r"labels.te\u{200f}am: contains U+200F")]
    #[case(
        r#"{"labels": {"team": "a", "site": "b", "team": "a"}}"#,
        "labels.team is there twice"
    )]
    #[case(r#"{"items": [{"a": 1}, {"a": 1, "a": 2}]}"#, "items[1].a is there twice")]
    #[case(r#"{"labels": {"team": "a", "t\u0065am": "b"}}"#, "labels.team is there twice")]
    fn a_fault_is_named_with_its_path(#[case] body: &str, #[case] expected: &str) {
        let fault = check(body.as_bytes()).unwrap_err();
        assert!(fault.starts_with(expected), "{fault}");
    }
}
