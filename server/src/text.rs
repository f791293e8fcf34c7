//! Checks of texts from administrators: bounded length, and no characters that could corrupt a log line or a terminal.

use std::ops::RangeInclusive;

/// Whether `text` is one line of so many characters, without control characters.
pub(crate) fn is_line(text: &str, characters: RangeInclusive<usize>) -> bool {
    characters.contains(&text.chars().count()) && !text.chars().any(char::is_control)
}

/// Whether `text` has so many characters, without control characters other than line breaks and tabs.
pub(crate) fn is_prose(text: &str, characters: RangeInclusive<usize>) -> bool {
    let is_forbidden = |character: char| character.is_control() && !matches!(character, '\n' | '\r' | '\t');
    characters.contains(&text.chars().count()) && !text.chars().any(is_forbidden)
}
