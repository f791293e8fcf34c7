//! Webhooks.

use super::settings::Settings;

/// Webhooks.
#[derive(Clone, Debug)]
pub struct Webhooks {
    /// Whether deliveries may go to addresses that are not public.
    pub private_addresses: PrivateAddresses,
}

/// Whether the server connects to addresses of its own host and network where an administrator chose the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrivateAddresses {
    /// It does.
    Allow,
    /// It does not: a webhook cannot be used to reach what only the server can reach.
    Deny,
}

impl Webhooks {
    pub(super) fn read(settings: &mut Settings) -> Self {
        let words = [("allow", PrivateAddresses::Allow), ("deny", PrivateAddresses::Deny)];
        Self {
            private_addresses: settings
                .word("webhooks.private_addresses", &words)
                .unwrap_or(PrivateAddresses::Allow),
        }
    }
}
