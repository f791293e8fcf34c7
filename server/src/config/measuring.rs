//! Keys for performance measurements. They exist only with the feature `measuring`; released servers reject them.

use super::settings::Settings;

/// How check-ins are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// As in releases: all waiting check-ins in one statement.
    Group,
    /// Each check-in in its own transaction.
    Single,
    /// Only the first check-in of a machine. This shows the cost of everything else.
    None,
}

impl Recording {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let words = [("group", Self::Group), ("single", Self::Single), ("none", Self::None)];
        settings.word("measuring.recording", &words).unwrap_or(Self::Group)
    }
}
