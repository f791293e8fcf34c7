//! What an enrollment takes.

use secrecy::SecretString;

use crate::trust::{ServerUrl, TrustAnchor};

/// What an enrollment takes.
#[derive(Debug, Clone)]
pub struct EnrollOptions {
    /// The server.
    pub server: ServerUrl,
    /// An enrollment token. Without one, that of an unfinished enrollment is used, if there is one.
    pub token: Option<SecretString>,
    /// How to recognize the server. Without it, as before; at the first time, by what the system trusts.
    pub trust: Option<TrustAnchor>,
}
