//! Transport security: where the certificate comes from, and what becomes of those that machines present.

use std::path::PathBuf;

use super::settings::Settings;

/// Transport security of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tls {
    /// A certificate of the server's own CA, renewed by itself.
    SelfIssued,
    /// PEM files, read again when they change.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The key of the leaf.
        private_key: PathBuf,
    },
    /// None: a proxy in front terminates TLS.
    Upstream,
}

/// What becomes of a machine's certificate in TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Nobody is asked for one.
    Off,
    /// One that is presented must be in force.
    Optional,
    /// Check-in and renew are refused without one.
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
            settings.refuse_given(key, "has a meaning only when tls.mode is \"files\"");
            None
        };
        let files = (path("tls.certificate"), path("tls.private_key"));
        match (mode, files) {
            (Mode::Upstream, _) => Self::Upstream,
            (Mode::Files, (Some(certificate), Some(private_key))) => Self::Files {
                certificate,
                private_key,
            },
            // Without its files it is an error, which `settings` knows.
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
        let asked_for = settings.word(KEY, &words).unwrap_or(Self::Optional);
        if *tls != Tls::Upstream {
            return asked_for;
        }
        // The proxy is the peer; what a header says of a certificate, anybody who reaches the port could say.
        if asked_for == Self::Required {
            let problem =
                "is \"required\", which tls.mode \"upstream\" cannot give: only the proxy sees the certificates";
            let _: Option<()> = settings.refuse(KEY, origin, problem);
        }
        Self::Off
    }
}
