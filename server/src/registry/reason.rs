//! The reason that an administrator gives for a decision.

use crate::text::is_line;

/// The most characters of a reason.
pub(super) const LONGEST: usize = 500;

/// One line of text that is not empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason(String);

/// The reason is empty, too long, or has control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reason must have 1 to {LONGEST} characters, without control characters")]
pub(crate) struct NoReason;

impl Reason {
    /// Checks a text, without the white space around it.
    pub(crate) fn parse(text: &str) -> Result<Self, NoReason> {
        let text = text.trim();
        is_line(text, 1..=LONGEST)
            .then(|| Self(text.to_owned()))
            .ok_or(NoReason)
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn a_reason_is_trimmed() {
        assert_eq!(Reason::parse(" lost in a taxi \n").unwrap().as_str(), "lost in a taxi");
        assert!(Reason::parse(&"é".repeat(500)).is_ok());
    }

    #[rstest]
    #[case("")]
    #[case("  ")]
    #[case("lost\nrevoked by: admin")]
    #[case(&"x".repeat(501))]
    fn an_empty_or_long_text_or_one_of_several_lines_is_refused(#[case] text: &str) {
        assert_eq!(Reason::parse(text), Err(NoReason));
    }
}
