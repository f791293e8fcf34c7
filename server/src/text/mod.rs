//! Checks of texts from administrators: bounded length, and no characters that could corrupt a log line or a terminal, or
//! make one name look like another.

pub(crate) mod json;

use std::ops::RangeInclusive;

use assay_protocol::text::{is_displayable, is_line_break_or_tab};

/// Whether `text` is one line of so many characters, all of them displayable.
pub(crate) fn is_line(text: &str, characters: RangeInclusive<usize>) -> bool {
    characters.contains(&text.chars().count()) && text.chars().all(is_displayable)
}

/// Whether `text` has so many characters, all of them displayable, apart from line breaks and tabs.
pub(crate) fn is_prose(text: &str, characters: RangeInclusive<usize>) -> bool {
    let is_fit = |character: char| is_displayable(character) || is_line_break_or_tab(character);
    characters.contains(&text.chars().count()) && text.chars().all(is_fit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn direction_marks_and_control_characters_are_unfit() {
        for unfit in ["a\u{202e}b", "a\u{2066}b", "a\u{61c}b", "a\u{1b}b", "a\u{85}b", "a\0b"] {
            assert!(!is_line(unfit, 1..=9) && !is_prose(unfit, 1..=9), "{unfit:?}");
        }
        assert!(!is_line("a\nb", 1..=9) && is_prose("a\nb\tc\r", 1..=9));
        assert!(is_line("Grüße, שלום 東京 💻", 1..=99));
    }
}
