//! The one source of randomness: AWS-LC's generator, seeded by the operating system.

use aws_lc_rs::rand::{SecureRandom, SystemRandom};

/// Unpredictable random bytes.
///
/// Aborts the process if the operating system provides no randomness, as AWS-LC itself does. Weak keys, nonces and
/// serial numbers would be worse than an outage.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    if SystemRandom::new().fill(&mut bytes).is_err() {
        std::process::abort();
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(random_bytes::<32>(), random_bytes::<32>());
    }
}
