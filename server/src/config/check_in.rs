//! Check-ins.

use std::time::Duration;

use assay_protocol::machine::KeyStoreKind;

use super::{DAY, MINUTE, SECOND, settings::Settings};

/// Check-ins.
#[derive(Clone, Debug)]
pub struct CheckIn {
    /// How often a machine checks in.
    pub interval: Duration,
    /// What happens when evidence does not continue from the last answer.
    pub continuity: Continuity,
}

/// What happens when evidence does not continue from the last answer: two parties use the key, or its state was restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Continuity {
    /// A key in software is quarantined, one in the Secure Enclave gets an event.
    ByStore,
    /// The machine is quarantined.
    Quarantine,
    /// An event.
    Event,
    /// Nothing: continuity is recorded, but not judged.
    Off,
}

impl CheckIn {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let words = [
            ("by-store", Continuity::ByStore),
            ("quarantine", Continuity::Quarantine),
            ("event", Continuity::Event),
            ("off", Continuity::Off),
        ];
        Self {
            // A machine that is silent for a day is unreachable.
            interval: settings
                .duration("check_in.interval", SECOND..=DAY)
                .unwrap_or(5 * MINUTE),
            continuity: settings
                .word("check_in.continuity", &words)
                .unwrap_or(Continuity::ByStore),
        }
    }
}

impl Continuity {
    /// Whether a machine is quarantined whose key is in this store. A key in the Secure Enclave cannot be copied.
    pub(crate) fn quarantines(self, store: KeyStoreKind) -> bool {
        match self {
            Self::ByStore => store == KeyStoreKind::Software,
            Self::Quarantine => true,
            Self::Event | Self::Off => false,
        }
    }
}
