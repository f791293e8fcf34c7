//! TLS: the server's certificate, and the certificates of machines.

use std::path::PathBuf;

use super::settings::Settings;

/// TLS of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// A certificate of the server's own CA, renewed automatically.
    SelfIssued,
    /// PEM files, reloaded when they change.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The leaf's private key.
        private_key: PathBuf,
    },
    /// No TLS: a proxy terminates it.
    Upstream,
}

/// How certificates of machines are used in TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Clients are not asked for a certificate.
    Off,
    /// A certificate is optional. If one is presented, it must be valid.
    Optional,
    /// Check-in and renewal require a certificate.
    Required,
}

impl Tls {
    pub(super) fn read(settings: &mut Settings) -> Self {
        #[derive(Clone, Copy, PartialEq)]
        enum Mode {
            SelfIssued,
            Files,
            Upstream,
        }
        let modes = [
            ("self-issued", Mode::SelfIssued),
            ("files", Mode::Files),
            ("upstream", Mode::Upstream),
        ];
        let mode = settings.word("tls.mode", &modes).unwrap_or(Mode::SelfIssued);
        let mut path = |key| {
            if mode == Mode::Files {
                let path = settings.path(key);
                return settings.require(key, path);
            }
            settings.refuse_given(key, "can only be used if tls.mode is \"files\"");
            None
        };
        let files = (path("tls.certificate"), path("tls.private_key"));
        match (mode, files) {
            (Mode::Upstream, _) => Self::Upstream,
            (Mode::Files, (Some(certificate), Some(private_key))) => Self::Files {
                certificate,
                private_key,
            },
            // Without its files this is an error, which `settings` has.
            (Mode::SelfIssued | Mode::Files, _) => Self::SelfIssued,
        }
    }
}

impl ClientCertificates {
    pub(super) fn read(settings: &mut Settings, tls: &Tls) -> Self {
        const KEY: &str = "tls.client_certificates";
        let words = [
            ("off", Self::Off),
            ("optional", Self::Optional),
            ("required", Self::Required),
        ];
        let origin = settings.origin(KEY);
        let configured = settings.word(KEY, &words).unwrap_or(Self::Optional);
        if *tls != Tls::Upstream {
            return configured;
        }
        // The proxy terminates TLS. A header with a certificate is not accepted, because anyone who reaches the port
        // could send one.
        if configured == Self::Required {
            let problem = "is \"required\", which tls.mode \"upstream\" does not allow: the proxy terminates TLS";
            let _: Option<()> = settings.refuse(KEY, origin, problem);
        }
        Self::Off
    }
}
