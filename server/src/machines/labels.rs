//! The rules for labels, wherever they come from.

use std::collections::BTreeMap;

use crate::text::is_line;

pub(crate) type Labels = BTreeMap<String, String>;

const MOST_LABELS: usize = 64;
const LONGEST_KEY: usize = 63;
const LONGEST_VALUE: usize = 256;

/// Why labels are not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LabelError {
    #[error("labels: at most {MOST_LABELS} are allowed")]
    TooMany,
    #[error("labels: the key {0:?} must have 1 to {LONGEST_KEY} of the characters A-Z a-z 0-9 . _ / -")]
    Key(String),
    #[error(
        "labels: the value of {0:?} must have at most {LONGEST_VALUE} characters, and no control characters or direction marks"
    )]
    Value(String),
}

/// Checks all labels of one machine, token or selector.
pub(crate) fn check(labels: &Labels) -> Result<(), LabelError> {
    if labels.len() > MOST_LABELS {
        return Err(LabelError::TooMany);
    }
    for (key, value) in labels {
        // A key must not contain a colon, because searches write a label as key:value.
        if key.is_empty() || key.len() > LONGEST_KEY || !key.bytes().all(is_key_byte) {
            return Err(LabelError::Key(key.chars().take(LONGEST_KEY).collect()));
        }
        if !is_line(value, 0..=LONGEST_VALUE) {
            return Err(LabelError::Value(key.clone()));
        }
    }
    Ok(())
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'-')
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn one(key: &str, value: &str) -> Labels {
        Labels::from([(key.to_owned(), value.to_owned())])
    }

    #[rstest]
    #[case("team", "build")]
    #[case("example.com/cost-centre_1", "")]
    #[case("k", "Grüße, 東京: 1=2")]
    fn these_are_labels(#[case] key: &str, #[case] value: &str) {
        assert_eq!(check(&one(key, value)), Ok(()));
    }

    #[rstest]
    fn a_key_has_the_characters_of_a_key(#[values("", "a b", "a:b", "a=b", "ä", "a\n", "\u{200b}")] key: &str) {
        assert_eq!(check(&one(key, "x")), Err(LabelError::Key(key.to_owned())));
    }

    #[test]
    fn lengths_are_bounded() {
        assert_eq!(check(&one(&"k".repeat(63), &"é".repeat(256))), Ok(()));
        assert!(matches!(check(&one(&"k".repeat(64), "")), Err(LabelError::Key(_))));
        assert!(matches!(check(&one("k", &"v".repeat(257))), Err(LabelError::Value(_))));
        assert!(matches!(check(&one("k", "a\tb")), Err(LabelError::Value(_))));
    }

    #[test]
    fn there_are_64_at_most() {
        let many = |count: usize| {
            (0..count)
                .map(|key| (key.to_string(), String::new()))
                .collect::<Labels>()
        };
        assert_eq!(check(&many(64)), Ok(()));
        assert_eq!(check(&many(65)), Err(LabelError::TooMany));
    }
}
