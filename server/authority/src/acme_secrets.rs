//! Derives the secrets of ACME: the keys of external account bindings, and the nonce key.

use uuid::Uuid;
use zeroize::Zeroizing;

use super::sealing::{MasterKey, SealingError};

const PURPOSE: &str = "acme";

/// Derives ACME's secrets from a key that is itself derived from the master key. No secret is stored: a leaked database
/// alone does not let an attacker bind an account.
pub struct AcmeSecrets(MasterKey);

impl AcmeSecrets {
    /// Derives the key from the master key.
    pub fn under(master_key: &MasterKey) -> Result<Self, SealingError> {
        master_key.derive(PURPOSE).map(Self)
    }

    /// The MAC key that binds an account to an enrollment token (RFC 8555, section 7.3.4).
    #[must_use]
    pub fn external_account_key(&self, token_id: Uuid) -> Zeroizing<[u8; 32]> {
        self.0
            .authentication_code(&[b"external account ".as_slice(), token_id.as_bytes()].concat())
    }

    /// The MAC key of ACME's nonces. It differs from the agents' nonce key, so neither protocol accepts the other's
    /// nonces.
    #[must_use]
    pub fn nonce_key(&self) -> Zeroizing<[u8; 32]> {
        self.0.authentication_code(b"nonces")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_its_own_key_and_derives_it_again() {
        let master_key = MasterKey::generate();
        let secrets = || AcmeSecrets::under(&master_key).unwrap();
        let (one, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(secrets().external_account_key(one), secrets().external_account_key(one));
        assert_ne!(
            secrets().external_account_key(one),
            secrets().external_account_key(other)
        );
        let elsewhere = AcmeSecrets::under(&MasterKey::generate()).unwrap();
        assert_ne!(secrets().external_account_key(one), elsewhere.external_account_key(one));
        assert_ne!(secrets().nonce_key(), elsewhere.nonce_key());
    }
}
