//! Text from outside: bounded, and free of what a database, a log line or a terminal could trip over.

use serde::{Deserialize, Deserializer, de::Error};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The longest text that a machine may claim about itself, in bytes.
const LONGEST_CLAIM: usize = 256;

/// Reads an optional text; blank is the same as absent, since a blank serial number identifies nobody.
///
/// Control characters are refused: a NUL cannot be stored, a newline forges log lines, an escape rewrites terminals.
pub(crate) fn optional_claim<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let Some(text) = Option::<String>::deserialize(deserializer)? else {
        return Ok(None);
    };
    if text.len() > LONGEST_CLAIM {
        return Err(D::Error::custom(format_args!(
            "a text is longer than {LONGEST_CLAIM} bytes"
        )));
    }
    if text
        .chars()
        .any(|character| character.is_control() || turns_text(character))
    {
        return Err(D::Error::custom("a text holds a control character"));
    }
    let trimmed = text.trim();
    Ok((!trimmed.is_empty()).then(|| trimmed.to_owned()))
}

/// Reads what names a piece of hardware: printable ASCII, so that no two of them look alike on a screen.
pub(crate) fn optional_hardware_id<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let id = optional_claim(deserializer)?;
    if id
        .iter()
        .flat_map(|id| id.chars())
        .any(|character| !matches!(character, ' '..='~'))
    {
        return Err(D::Error::custom(
            "a serial number or hardware UUID is not printable ASCII",
        ));
    }
    Ok(id)
}

/// Whether a character changes the direction of the text around it, which makes one name look like another.
fn turns_text(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Reads an optional time; the refusal says what to write rather than what this program calls it.
pub(crate) fn optional_time<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<OffsetDateTime>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    let parse = |text: String| {
        OffsetDateTime::parse(&text, &Rfc3339)
            .map_err(|_| D::Error::custom("not a time of RFC 3339, as 2026-11-22T10:00:00Z"))
    };
    text.map(parse).transpose()
}
