//! Text from outside: bounded, and without characters that harm a database, a log or a terminal.

use serde::{Deserialize, Deserializer, de::Error};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The longest text that a machine may claim, in bytes.
const LONGEST_CLAIM: usize = 256;

/// Why a text is refused as a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// It is too long.
    #[error("a text is longer than {LONGEST_CLAIM} bytes")]
    TooLong,
    /// It could forge a log line or disguise another text.
    #[error("a text holds a control character")]
    ControlCharacter,
    /// It could look like another identifier.
    #[error("a serial number or hardware UUID is not printable ASCII")]
    NotPrintableAscii,
}

/// A time as the API writes it, for sentences.
#[must_use]
pub fn rfc3339(time: OffsetDateTime) -> String {
    // Only years that no clock of ours shows have no such form.
    time.format(&Rfc3339).unwrap_or_else(|_| time.to_string())
}

/// Reads an optional text.
pub(crate) fn optional_claim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let claim = text.as_deref().map(claim).transpose().map_err(D::Error::custom)?;
    Ok(claim.flatten().map(str::to_owned))
}

/// Reads an optional text for people. One that is unfit to be shown is absent: it is no reason to refuse a machine.
pub(crate) fn optional_display_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.as_deref().and_then(display_text).map(str::to_owned))
}

/// A text that may be shown, trimmed. `None` if it is blank, longer than a claim may be, or has characters that control a
/// terminal or change the direction of the text around it.
#[must_use]
pub fn display_text(text: &str) -> Option<&str> {
    claim(text).ok().flatten()
}

/// Reads an optional hardware identifier.
pub(crate) fn optional_hardware_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let id = text.as_deref().map(hardware_id).transpose().map_err(D::Error::custom)?;
    Ok(id.flatten().map(str::to_owned))
}

/// A hardware identifier as machines claim it and as the server stores it: trimmed, and `None` if blank.
/// Only printable ASCII is accepted, because two other texts could look alike.
pub fn hardware_id(text: &str) -> Result<Option<&str>, ClaimError> {
    let id = claim(text)?;
    if id.is_some_and(|id| !id.chars().all(|character| matches!(character, ' '..='~'))) {
        return Err(ClaimError::NotPrintableAscii);
    }
    Ok(id)
}

/// A blank text counts as absent, because a blank serial number identifies nothing. Control characters are refused: a
/// NUL cannot be stored, a newline forges log lines, and an escape sequence rewrites terminals.
fn claim(text: &str) -> Result<Option<&str>, ClaimError> {
    if text.len() > LONGEST_CLAIM {
        return Err(ClaimError::TooLong);
    }
    if text.chars().any(|character| !is_displayable(character)) {
        return Err(ClaimError::ControlCharacter);
    }
    let trimmed = text.trim();
    Ok((!trimmed.is_empty()).then_some(trimmed))
}

/// Whether a character only shows itself: it neither controls a terminal nor changes the direction of the text around it,
/// which can make one name look like another.
#[must_use]
pub fn is_displayable(character: char) -> bool {
    !character.is_control() && !changes_direction(character)
}

/// Whether a character is one of the control characters that a text of several lines may have.
#[must_use]
pub fn is_line_break_or_tab(character: char) -> bool {
    matches!(character, '\n' | '\r' | '\t')
}

/// The characters with the property `Bidi_Control` (UAX #9).
fn changes_direction(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Reads an optional time. The error message shows the expected format.
pub(crate) fn optional_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OffsetDateTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let parse = |text: String| {
        OffsetDateTime::parse(&text, &Rfc3339)
            .map_err(|_| D::Error::custom("not a time of RFC 3339, such as 2026-11-22T10:00:00Z"))
    };
    text.map(parse).transpose()
}
