//! The command line's grammar, and how it goes over the configuration.

use std::path::PathBuf;

use assay_protocol::machine::KeyStoreKind;
use clap::{Args, Parser, Subcommand, ValueEnum};
use secrecy::SecretString;

use crate::{
    config::{ConfigurationError, LogLevel, Settings, read_file, read_token},
    exchanges::EnrollOptions,
    local::LocalAddress,
    proxy::ProxyOptions,
    trust::{Fingerprint, ServerUrl, Trust},
};

/// The version, with what must not be mistaken for a release.
const VERSION: &str = if cfg!(feature = "enclave-stand-in") {
    concat!(
        env!("CARGO_PKG_VERSION"),
        " with a stand-in for the Secure Enclave: for tests alone"
    )
} else {
    env!("CARGO_PKG_VERSION")
};

/// Gives this machine an identity of its own, and keeps it.
#[derive(Debug, Parser)]
#[command(name = "assay-agent", version = VERSION, propagate_version = true)]
pub(crate) struct CommandLine {
    #[command(flatten)]
    pub(crate) shared: SharedArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct SharedArguments {
    /// A configuration file (TOML); `ASSAY_AGENT_CONFIG` names one too
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Where the key and the record of this machine are kept [default: /var/db/assay]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Where the key lives [default: secure-enclave]; `software` is a file, which can be copied
    #[arg(long, global = true, value_name = "STORE")]
    pub(crate) key_store: Option<KeyStoreArgument>,
    /// Facts about the machine (JSON), in place of what the system says
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) facts: Option<PathBuf>,
    /// How much is logged [default: info for `run`, else warn]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum KeyStoreArgument {
    SecureEnclave,
    Software,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a key, if there is none, and have the server issue a certificate for it
    Enroll(EnrollArguments),
    /// Check in again and again, and renew the certificate in time: the daemon
    Run {
        /// Check in once, then end
        #[arg(long)]
        once: bool,
    },
    /// Say who this machine is and how it stands; works while the daemon runs
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the current grant token for an audience; works while the daemon runs
    Grant {
        /// The relying party
        #[arg(long)]
        audience: String,
    },
    /// Look at everything that the agent needs on this machine, and say what is the matter and what to do
    Doctor {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Make keys in this machine's key store, sign, verify and let them go; touches nothing of the machine's
    Selftest {
        /// How often
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        iterations: u32,
    },
    /// Renew the certificate now
    Renew,
    /// Replace this machine's key now: the old one serves until the server has taken the new one
    RotateKey,
    /// Lead programs of this machine to a service, with the machine's certificate and grant
    Proxy(ProxyArguments),
    /// Give this machine's identity up: delete its key and everything it remembers
    Reset {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArguments {
    /// Where to listen: a loopback address, as 127.0.0.1:8080, or a socket, as unix:/path
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: LocalAddress,
    /// The service, as https://wiki.example.com
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: ServerUrl,
    /// The relying party whose grant goes along as bearer token, in place of what the program sends as Authorization
    #[arg(long)]
    pub(crate) audience: Option<String>,
    /// The roots that the service's certificate may lead to (PEM) [default: what the system trusts]
    #[arg(long, value_name = "FILE")]
    pub(crate) upstream_ca_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EnrollArguments {
    /// The server's public URL
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<ServerUrl>,
    /// An enrollment token; other users of this machine can read it off the process list, so rather use --token-file
    #[arg(long, value_parser = token, conflicts_with = "token_file")]
    pub(crate) token: Option<SecretString>,
    /// A file with an enrollment token
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// The SHA-256 fingerprint of the server's root certificate, which is then fetched and pinned
    #[arg(long, value_name = "SHA256", conflicts_with = "ca_file")]
    pub(crate) ca_fingerprint: Option<Fingerprint>,
    /// The roots that the server's certificate may lead to (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl SharedArguments {
    /// The configuration, with what the command line says over it.
    pub(crate) fn settings(&self) -> Result<Settings, ConfigurationError> {
        let mut settings = Settings::load(self.config.as_deref())?;
        settings.state_dir = self.state_dir.clone().or(settings.state_dir);
        settings.facts = self.facts.clone().or(settings.facts);
        settings.log_level = self.log_level.or(settings.log_level);
        let key_store = self.key_store.map(|store| match store {
            KeyStoreArgument::SecureEnclave => KeyStoreKind::SecureEnclave,
            KeyStoreArgument::Software => KeyStoreKind::Software,
        });
        settings.key_store = key_store.or(settings.key_store);
        Ok(settings)
    }
}

impl ProxyArguments {
    /// What the proxy takes.
    pub(crate) fn options(self, settings: &Settings) -> Result<ProxyOptions, ConfigurationError> {
        let trust = match &self.upstream_ca_file {
            Some(path) => {
                let roots = read_file("CA file", path)?;
                Trust::in_certificates(&roots).map_err(|error| ConfigurationError::Bad {
                    place: path.display().to_string(),
                    reason: error.to_string(),
                })?
            }
            None => Trust::System,
        };
        Ok(ProxyOptions {
            listen: self.listen,
            upstream: self.upstream,
            trust,
            audience: self.audience,
            peers: settings.grant_socket.clone(),
        })
    }
}

impl EnrollArguments {
    /// What the enrollment takes, by the command line over the configuration; `None` where neither names a server.
    pub(crate) fn options(self, mut settings: Settings) -> Result<Option<EnrollOptions>, ConfigurationError> {
        if self.token.is_some() || self.token_file.is_some() {
            (settings.token, settings.token_file) = (None, None);
        }
        if self.ca_fingerprint.is_some() || self.ca_file.is_some() {
            settings.ca_fingerprint = self.ca_fingerprint;
            settings.ca_file = self.ca_file;
        }
        settings.server = self.server.or(settings.server);
        let token = match (self.token, self.token_file) {
            (Some(token), _) => Some(token),
            (None, Some(path)) => Some(read_token(&path)?),
            (None, None) => None,
        };
        let options = settings.enroll_options()?;
        Ok(options.map(|options| EnrollOptions {
            token: token.or(options.token),
            ..options
        }))
    }
}

fn token(text: &str) -> Result<SecretString, &'static str> {
    match text.trim() {
        "" => Err("the token is empty"),
        token => Ok(token.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use clap::CommandFactory;
    use rstest::rstest;

    use super::*;
    use crate::trust::TrustAnchor;

    #[test]
    fn the_command_line_is_consistent() {
        CommandLine::command().debug_assert();
    }

    #[test]
    fn shared_arguments_may_stand_after_the_command() {
        let arguments = [
            "assay-agent",
            "run",
            "--once",
            "--state-dir",
            "/tmp/x",
            "--key-store",
            "software",
        ];
        let command_line = CommandLine::try_parse_from(arguments).unwrap();
        assert_eq!(command_line.shared.state_dir.unwrap(), Path::new("/tmp/x"));
        assert!(matches!(command_line.command, Command::Run { once: true }));
    }

    #[test]
    fn a_token_on_the_command_line_is_not_shown() {
        let arguments = [
            "assay-agent",
            "enroll",
            "--server",
            "https://a.example.com",
            "--token",
            "secret",
        ];
        let command_line = CommandLine::try_parse_from(arguments).unwrap();
        assert!(!format!("{command_line:?}").contains("secret"));
    }

    #[rstest]
    #[case(&["enroll", "--token", "a", "--token-file", "b"])]
    #[case(&["enroll", "--ca-file", "a", "--ca-fingerprint", "b"])]
    #[case(&["enroll", "--server", "http://assay.example.com"])]
    #[case(&["enroll", "--ca-fingerprint", "abc"])]
    #[case(&["run", "--key-store", "tpm"])]
    #[case(&["grant"])]
    #[case(&["proxy", "--listen", "127.0.0.1:0"])]
    #[case(&["proxy", "--listen", "0.0.0.0:8080", "--upstream", "https://wiki.example.com"])]
    #[case(&["proxy", "--listen", "127.0.0.1:0", "--upstream", "http://wiki.example.com"])]
    #[case(&["dance"])]
    fn wrong_usage_is_refused(#[case] arguments: &[&str]) {
        let arguments = ["assay-agent"].iter().chain(arguments);
        assert!(CommandLine::try_parse_from(arguments).unwrap_err().use_stderr());
    }

    #[test]
    fn the_command_line_goes_over_the_configuration() {
        let configured = Settings {
            server: Some("https://one.example.com".parse().unwrap()),
            token_file: Some("/does/not/exist".into()),
            ca_file: Some("/does/not/exist".into()),
            ..Settings::default()
        };
        let fingerprint: Fingerprint = "ab".repeat(32).parse().unwrap();
        let arguments = EnrollArguments {
            server: Some("https://two.example.com".parse().unwrap()),
            token: Some("secret".into()),
            token_file: None,
            ca_fingerprint: Some(fingerprint),
            ca_file: None,
        };
        let options = arguments.options(configured).unwrap().unwrap();
        assert_eq!(options.server.as_str(), "https://two.example.com");
        assert_eq!(options.trust, Some(TrustAnchor::Fingerprint(fingerprint)));
        assert!(options.token.is_some());
    }
}
