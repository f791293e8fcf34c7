//! Errors as text for logs and for people.

use std::{error::Error, fmt};

/// Displays an error and each of its sources, on one line, separated by colons.
///
/// It expects that no error in the chain repeats its source in its own `Display`.
#[derive(Debug, Clone, Copy)]
pub struct Chain<'a>(pub &'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.0)?;
        let mut source = self.0.source();
        while let Some(error) = source {
            write!(formatter, ": {error}")?;
            source = error.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the file cannot be read")]
    struct Outer(#[source] Inner);

    #[derive(Debug, thiserror::Error)]
    #[error("permission denied")]
    struct Inner;

    #[test]
    fn each_source_follows_its_error() {
        assert_eq!(
            Chain(&Outer(Inner)).to_string(),
            "the file cannot be read: permission denied"
        );
        assert_eq!(Chain(&Inner).to_string(), "permission denied");
    }
}
