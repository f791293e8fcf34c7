//! The command line. Its arguments override the configuration.

use std::path::PathBuf;

use assay_protocol::machine::KeyStoreKind;
use clap::{
    Args, Parser, Subcommand,
    builder::{PossibleValuesParser, TypedValueParser},
};
use secrecy::SecretString;

use crate::{
    config::{ConfigurationError, LogLevel, Settings, read_file, read_token},
    exchanges::EnrollOptions,
    local::LocalAddress,
    proxy::{ProofKind, ProxyOptions},
    trust::{Fingerprint, ServerUrl, Trust},
};

/// The version. A build with the stand-in says so, because it must not be mistaken for a release.
const VERSION: &str = if cfg!(feature = "enclave-stand-in") {
    concat!(
        env!("CARGO_PKG_VERSION"),
        " with a stand-in for the Secure Enclave: only for tests"
    )
} else {
    env!("CARGO_PKG_VERSION")
};

/// Machine identity: enrolls this machine with an Assay server, checks in and renews its certificate
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
    /// Configuration file (TOML); the environment variable is `ASSAY_AGENT_CONFIG`
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Directory of the machine's key and record [default: /var/db/assay]
    #[arg(long, global = true, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// Key store [default: secure-enclave]; `software` stores the key in a file, which can be copied
    #[arg(long, global = true, value_name = "STORE", value_parser = key_store())]
    pub(crate) key_store: Option<KeyStoreKind>,
    /// Read the facts about the machine from this file (JSON) instead of from the system
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) facts: Option<PathBuf>,
    /// Log level [default: info for `run` and `proxy`, warn for other commands]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub(crate) log_level: Option<LogLevel>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Enroll this machine: create a key if there is none, and get a certificate for it
    Enroll(EnrollArguments),
    /// Run the daemon: check in periodically, renew the certificate and serve the grant socket
    Run {
        /// Check in once, then exit
        #[arg(long)]
        once: bool,
    },
    /// Show the identity and status of this machine; works while the daemon runs
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print the current grant token for an audience; works while the daemon runs
    Grant {
        /// Name of the relying party
        #[arg(long)]
        audience: String,
    },
    /// Check what the agent needs on this machine, and print each problem with its remedy
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Test the key store: create keys, sign, verify and delete them; does not touch the machine's key
    Selftest {
        /// Number of iterations
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        iterations: u32,
    },
    /// Renew the certificate now
    Renew,
    /// Replace the machine's key now; the old key stays valid until the server has accepted the new one
    ///
    /// A key in the Secure Enclave is replaced only with a token that is bound to the serial number and allows
    /// re-enrollment, or once an administrator has approved the new key.
    RotateKey(TokenArguments),
    /// Run a local proxy to one service, which presents the machine's certificate and grant
    Proxy(ProxyArguments),
    /// Delete the identity of this machine: its key and its record
    Reset {
        /// Do not ask for confirmation
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ProxyArguments {
    /// Address to listen on: a loopback address (127.0.0.1:8080) or a Unix socket (unix:/path)
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: LocalAddress,
    /// URL of the service, for example https://wiki.example.com
    #[arg(long, value_name = "URL")]
    pub(crate) upstream: ServerUrl,
    /// Relying party whose grant token is sent as bearer token; replaces the program's Authorization header
    #[arg(long)]
    pub(crate) audience: Option<String>,
    /// Prove for each request that this machine holds the key of its grant; `dpop` sends the token as `DPoP` with a proof
    /// of RFC 9449, for services that cannot see the client certificate
    #[arg(long, value_name = "PROOF", requires = "audience")]
    pub(crate) proof: Option<ProofKind>,
    /// Trusted roots for the service's certificate (PEM) [default: the system's roots]
    #[arg(long, value_name = "FILE")]
    pub(crate) upstream_ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct TokenArguments {
    /// Enrollment token; other users can read it in the process list, so prefer --token-file
    #[arg(long, value_parser = token, conflicts_with = "token_file")]
    pub(crate) token: Option<SecretString>,
    /// File with an enrollment token
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct EnrollArguments {
    /// Public URL of the server
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<ServerUrl>,
    #[command(flatten)]
    pub(crate) token: TokenArguments,
    /// SHA-256 fingerprint of the server's root certificate; the agent fetches that root and pins it
    #[arg(long, value_name = "SHA256", conflicts_with = "ca_file")]
    pub(crate) ca_fingerprint: Option<Fingerprint>,
    /// Trusted roots for the server's certificate (PEM)
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

impl SharedArguments {
    /// The configuration, overridden by the command line.
    pub(crate) fn settings(&self) -> Result<Settings, ConfigurationError> {
        let mut settings = Settings::load(self.config.as_deref())?;
        settings.state_dir = self.state_dir.clone().or(settings.state_dir);
        settings.facts = self.facts.clone().or(settings.facts);
        settings.log_level = self.log_level.or(settings.log_level);
        settings.key_store = self.key_store.or(settings.key_store);
        Ok(settings)
    }
}

impl ProxyArguments {
    /// The options of the proxy.
    pub(crate) fn options(self, settings: &Settings) -> Result<ProxyOptions, ConfigurationError> {
        let trust = match &self.upstream_ca_file {
            Some(path) => {
                let roots = read_file("CA file", path)?;
                Trust::from_certificates(&roots).map_err(|error| ConfigurationError::Bad {
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
            proof: self.proof,
            peers: settings.grant_socket.clone(),
        })
    }
}

impl TokenArguments {
    fn are_empty(&self) -> bool {
        self.token.is_none() && self.token_file.is_none()
    }

    /// The token, which is read from its file if necessary.
    pub(crate) fn token(self) -> Result<Option<SecretString>, ConfigurationError> {
        match (self.token, self.token_file) {
            (Some(token), _) => Ok(Some(token)),
            (None, Some(path)) => read_token(&path).map(Some),
            (None, None) => Ok(None),
        }
    }
}

impl EnrollArguments {
    /// The options of the enrollment, overridden by the command line. `None` if no server is named.
    pub(crate) fn options(self, mut settings: Settings) -> Result<Option<EnrollOptions>, ConfigurationError> {
        if !self.token.are_empty() {
            (settings.token, settings.token_file) = (None, None);
        }
        if self.ca_fingerprint.is_some() || self.ca_file.is_some() {
            settings.ca_fingerprint = self.ca_fingerprint;
            settings.ca_file = self.ca_file;
        }
        settings.server = self.server.or(settings.server);
        let token = self.token.token()?;
        let options = settings.enroll_options()?;
        Ok(options.map(|options| EnrollOptions {
            token: token.or(options.token),
            ..options
        }))
    }
}

fn key_store() -> impl TypedValueParser<Value = KeyStoreKind> {
    PossibleValuesParser::new(KeyStoreKind::ALL.map(KeyStoreKind::as_str)).try_map(|text| text.parse::<KeyStoreKind>())
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
    #[case(&["rotate-key", "--token", "a", "--token-file", "b"])]
    #[case(&["enroll", "--ca-file", "a", "--ca-fingerprint", "b"])]
    #[case(&["enroll", "--server", "http://assay.example.com"])]
    #[case(&["enroll", "--ca-fingerprint", "abc"])]
    #[case(&["run", "--key-store", "tpm"])]
    #[case(&["grant"])]
    #[case(&["proxy", "--listen", "127.0.0.1:0"])]
    #[case(&["proxy", "--listen", "0.0.0.0:8080", "--upstream", "https://wiki.example.com"])]
    #[case(&["proxy", "--listen", "127.0.0.1:0", "--upstream", "http://wiki.example.com"])]
    #[case(&["proxy", "--listen", "127.0.0.1:0", "--upstream", "https://wiki.example.com", "--proof", "dpop"])]
    #[case(&["proxy", "--listen", "127.0.0.1:0", "--upstream", "https://a.example.com", "--audience", "a", "--proof", "x"])]
    #[case(&["dance"])]
    fn wrong_usage_is_rejected(#[case] arguments: &[&str]) {
        let arguments = ["assay-agent"].iter().chain(arguments);
        assert!(CommandLine::try_parse_from(arguments).unwrap_err().use_stderr());
    }

    #[test]
    fn the_command_line_overrides_the_configuration() {
        let configured = Settings {
            server: Some("https://one.example.com".parse().unwrap()),
            token_file: Some("/does/not/exist".into()),
            ca_file: Some("/does/not/exist".into()),
            ..Settings::default()
        };
        let fingerprint: Fingerprint = "ab".repeat(32).parse().unwrap();
        let arguments = EnrollArguments {
            server: Some("https://two.example.com".parse().unwrap()),
            token: TokenArguments {
                token: Some("secret".into()),
                token_file: None,
            },
            ca_fingerprint: Some(fingerprint),
            ca_file: None,
        };
        let options = arguments.options(configured).unwrap().unwrap();
        assert_eq!(options.server.as_str(), "https://two.example.com");
        assert_eq!(options.trust, Some(TrustAnchor::Fingerprint(fingerprint)));
        assert!(options.token.is_some());
    }
}
