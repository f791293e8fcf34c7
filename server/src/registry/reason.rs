//! Why an administrator decided as they did.

use crate::text::is_line;

/// The most characters of a reason.
pub(super) const LONGEST: usize = 500;

/// A reason that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reason(String);

/// The reason says nothing, or too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("reason has to have from 1 to {LONGEST} characters, none of them a control character")]
pub(crate) struct NoReason;

impl Reason {
    /// Takes an administrator's words, without the white space around them.
    pub(crate) fn parse(text: &str) -> Result<Self, NoReason> {
        let text = text.trim();
        is_line(text, 1..=LONGEST)
            .then(|| Self(text.to_owned()))
            .ok_or(NoReason)
    }

    /// The words.
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
    #[case("lost\nrevoked by: nobody")]
    #[case(&"x".repeat(501))]
    fn what_says_nothing_or_forges_a_line_is_no_reason(#[case] text: &str) {
        assert_eq!(Reason::parse(text), Err(NoReason));
    }
}
