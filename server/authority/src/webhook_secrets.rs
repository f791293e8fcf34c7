//! The secrets that sign webhook deliveries (Standard Webhooks), and how they are sealed.

use aws_lc_rs::hmac;
use base64::{Engine, engine::general_purpose::STANDARD};
use secrecy::SecretString;
use zeroize::Zeroizing;

use super::sealing::{MasterKey, SealingContext, SealingError};
use crate::random_bytes;

/// The prefix of a secret in text form.
const PREFIX: &str = "whsec_";
const TABLE: &str = "webhooks";
const PURPOSE: &str = "webhook-secret";

/// Seals the secrets of webhooks under a key derived from the master key. The derived key opens nothing else, and the
/// master key need not stay in memory.
pub struct WebhookSecrets(MasterKey);

/// The secret of one webhook.
pub struct WebhookSecret(Zeroizing<Vec<u8>>);

impl WebhookSecrets {
    /// Derives the key from the master key.
    pub fn under(master_key: &MasterKey) -> Result<Self, SealingError> {
        master_key.derive(PURPOSE).map(Self)
    }

    /// Encrypts a secret for the row with this id.
    pub fn seal(&self, webhook_id: &str, secret: &WebhookSecret) -> Result<Vec<u8>, SealingError> {
        self.0.seal(&context(webhook_id), &secret.0)
    }

    /// Decrypts the secret of the row with this id.
    pub fn open(&self, webhook_id: &str, sealed: &[u8]) -> Result<WebhookSecret, SealingError> {
        self.0.open(&context(webhook_id), sealed).map(WebhookSecret)
    }
}

impl WebhookSecret {
    /// A random secret of 256 bits.
    #[must_use]
    pub fn generate() -> Self {
        let random = Zeroizing::new(random_bytes::<32>());
        Self(Zeroizing::new(random.to_vec()))
    }

    /// The text that receivers are configured with.
    #[must_use]
    pub fn to_text(&self) -> SecretString {
        let mut text = PREFIX.to_owned();
        STANDARD.encode_string(self.0.as_slice(), &mut text);
        text.into()
    }

    /// The value of `webhook-signature`. The timestamp is in seconds.
    #[must_use]
    pub fn sign(&self, webhook_id: &str, timestamp: i64, body: &[u8]) -> String {
        let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.0));
        context.update(format!("{webhook_id}.{timestamp}.").as_bytes());
        context.update(body);
        format!("v1,{}", STANDARD.encode(context.sign().as_ref()))
    }
}

fn context(webhook_id: &str) -> SealingContext<'_> {
    SealingContext {
        table: TABLE,
        row_id: webhook_id,
        purpose: PURPOSE,
    }
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    /// The test vector of the reference libraries of Standard Webhooks.
    #[test]
    fn signs_as_the_reference_libraries_do() {
        let secret = WebhookSecret(Zeroizing::new(
            STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap(),
        ));
        assert_eq!(
            secret.to_text().expose_secret(),
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
        );
        let signature = secret.sign(
            "msg_p5jXN8AQM9LWM0D4loKWxJek",
            1_614_265_330,
            br#"{"test": 2432232314}"#,
        );
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_opens_only_for_its_webhook_and_under_its_master_key() {
        let (master_key, secret) = (MasterKey::generate(), WebhookSecret::generate());
        let sealed = WebhookSecrets::under(&master_key)
            .unwrap()
            .seal("one", &secret)
            .unwrap();
        let again = WebhookSecrets::under(&master_key).unwrap();
        assert_eq!(*again.open("one", &sealed).unwrap().0, *secret.0);
        assert!(again.open("another", &sealed).is_err());
        assert!(master_key.open(&context("one"), &sealed).is_err());
        let other = WebhookSecrets::under(&MasterKey::generate()).unwrap();
        assert!(other.open("one", &sealed).is_err());
    }
}
