//! What ACME's secrets are derived from: the keys of external account bindings, and that of its nonces.

use uuid::Uuid;
use zeroize::Zeroizing;

use super::sealing::{MasterKey, SealingError};

const PURPOSE: &str = "acme";

/// Holds a key that is derived from the master key, and derives the others from it. None of them is kept anywhere: whoever
/// has the database alone binds no account.
pub struct AcmeSecrets(MasterKey);

impl AcmeSecrets {
    /// Derives it from the master key.
    pub fn under(master_key: &MasterKey) -> Result<Self, SealingError> {
        master_key.derive(PURPOSE).map(Self)
    }

    /// The MAC key by which an account is bound to an enrollment token (RFC 8555, section 7.3.4).
    #[must_use]
    pub fn external_account_key(&self, token_id: Uuid) -> Zeroizing<[u8; 32]> {
        self.0
            .authentication_code(&[b"external account ".as_slice(), token_id.as_bytes()].concat())
    }

    /// The MAC key of ACME's nonces, so that none of them serves as an agent's or the other way round.
    #[must_use]
    pub fn nonce_key(&self) -> Zeroizing<[u8; 32]> {
        self.0.authentication_code(b"nonces")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_token_has_a_key_of_its_own_that_is_the_same_each_time() {
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
