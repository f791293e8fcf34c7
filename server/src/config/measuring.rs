//! What only a server that is built to be measured reads (the feature `measuring`): a server that is shipped does not know
//! these keys, and refuses to start with them.

use super::settings::Settings;

/// How check-ins are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recording {
    /// As shipped: all that wait, in one statement.
    Group,
    /// Each in a transaction of its own.
    Single,
    /// Not at all, once a machine has checked in: what all the rest costs.
    None,
}

impl Recording {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let words = [("group", Self::Group), ("single", Self::Single), ("none", Self::None)];
        settings.word("measuring.recording", &words).unwrap_or(Self::Group)
    }
}
