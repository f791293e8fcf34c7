//! Texts from administrators: bounded, and free of what a log line or a terminal could trip over.

use std::ops::RangeInclusive;

/// Whether this is one line of so many characters, none of them a control character.
pub(crate) fn is_line(text: &str, characters: RangeInclusive<usize>) -> bool {
    characters.contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Whether this is a text of so many characters, which may have line breaks and tabs.
pub(crate) fn is_prose(text: &str, characters: RangeInclusive<usize>) -> bool {
    let is_forbidden = |character: char| character.is_control() && !matches!(character, '\n' | '\r' | '\t');
    characters.contains(&text.chars().count()) && !text.chars().any(is_forbidden)
}
