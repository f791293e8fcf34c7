//! The options of an enrollment.

use secrecy::SecretString;

use crate::trust::{ServerUrl, TrustAnchor};

/// The options of an enrollment.
#[derive(Debug, Clone)]
pub struct EnrollOptions {
    /// The server.
    pub server: ServerUrl,
    /// The enrollment token. If absent, the token of an incomplete enrollment is used, if any.
    pub token: Option<SecretString>,
    /// How to authenticate the server. If absent, the trust on record is used. At the first enrollment, this is the
    /// system's roots.
    pub trust: Option<TrustAnchor>,
}
