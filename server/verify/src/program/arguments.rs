//! The command line.

use std::{fs, io, path::PathBuf, time::Duration};

use clap::{Parser, ValueEnum, builder::PossibleValuesParser};
use http::HeaderName;
use secrecy::SecretString;

use super::{
    listener::ListenAddress,
    question::{RequestSource, TrustedHeaders},
};
use crate::{
    certificate_header::CertificateForm,
    https::{IssuerUrl, Roots},
    introspection::{IntrospectionOptions, WhenAway},
    verifier::{RequiredProof, VerifierOptions},
};

/// Verifies requests of machines for nginx (auth_request), HAProxy, or Envoy (external authorization over HTTP)
///
/// The proxy in front must overwrite every header that the options below name, and must remove X-Assay-* from requests.
#[derive(Debug, Parser)]
#[command(name = "assay-verify", version)]
pub(super) struct Arguments {
    /// Address for the proxy's questions: a loopback address (127.0.0.1:9321) or a Unix socket (unix:/path)
    #[arg(long, value_name = "ADDRESS")]
    pub(super) listen: ListenAddress,
    /// Public URL of the Assay server, the `iss` of its tokens
    #[arg(long, value_name = "URL")]
    issuer: IssuerUrl,
    /// Trusted roots for the server's certificate (PEM) [default: the system's roots]
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Audience of the tokens: this service
    #[arg(long)]
    audience: String,
    /// Permission that every request needs; may be repeated
    #[arg(long, value_name = "PERMISSION")]
    require: Vec<String>,
    /// Header in which the proxy names the permissions that this request needs, separated by spaces; every request must
    /// have it
    #[arg(long, value_name = "HEADER")]
    require_header: Option<HeaderName>,
    /// How the caller must prove that it holds the token's key: by its client certificate, with DPoP, or by either
    #[arg(long, value_enum, required_unless_present = "allow_unbound")]
    proof: Option<ProofArgument>,
    /// Accept tokens without a proof: anyone with a copy of a token can use it until it expires
    #[arg(long, conflicts_with = "proof")]
    allow_unbound: bool,
    /// Header with the client certificate
    #[arg(long, value_name = "HEADER", default_value = "x-client-certificate")]
    certificate_header: HeaderName,
    /// Form of that header: nginx's $ssl_client_escaped_cert, HAProxy's ssl_c_der,base64, or Envoy's
    /// x-forwarded-client-cert
    #[arg(
        long,
        value_enum,
        value_name = "FORM",
        required_if_eq_any([("proof", "certificate"), ("proof", "either")])
    )]
    certificate_form: Option<CertificateForm>,
    /// Header with the method of the request
    #[arg(long, value_name = "HEADER", default_value = "x-original-method")]
    method_header: HeaderName,
    /// Header with the URL of the request
    #[arg(long, value_name = "HEADER", default_value = "x-original-url")]
    url_header: HeaderName,
    /// Take method and path from the proxy's own request, as Envoy sends it; URLs are this origin with the path
    #[arg(long, value_name = "URL")]
    origin: Option<String>,
    /// File with an API key of the role relying-party; introspects each token, so that a revoked machine is refused
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// How long the result of an introspection is used, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    introspection_lifetime: u64,
    /// What happens while the server does not answer introspections
    #[arg(long, value_enum, value_name = "ACTION", default_value = "refuse")]
    when_away: WhenAway,
    /// Log level
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = levels())]
    pub(super) log_level: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ProofArgument {
    Certificate,
    Dpop,
    Either,
}

/// Why the arguments cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ArgumentsError {
    #[error("{} cannot be read", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} contains no API key", .0.display())]
    NoApiKey(PathBuf),
    #[error("--origin must be a scheme and an authority, such as https://wiki.example.com")]
    Origin,
}

impl Arguments {
    pub(super) fn options(self) -> Result<(VerifierOptions, TrustedHeaders), ArgumentsError> {
        let roots = match &self.ca_file {
            Some(path) => Roots::Pem(read(path)?),
            None => Roots::System,
        };
        let introspection = match &self.api_key_file {
            Some(path) => Some(IntrospectionOptions {
                api_key: api_key(path)?,
                lifetime: Duration::from_secs(self.introspection_lifetime),
                when_away: self.when_away,
            }),
            None => None,
        };
        let request = match self.origin {
            Some(origin) => RequestSource::of_origin(&origin).ok_or(ArgumentsError::Origin)?,
            None => RequestSource::Headers {
                method: self.method_header,
                url: self.url_header,
            },
        };
        let trusted = TrustedHeaders {
            certificate: self.certificate_form.map(|form| (self.certificate_header, form)),
            request,
            required: self.require,
            require_header: self.require_header,
        };
        let options = VerifierOptions {
            issuer: self.issuer,
            roots,
            audience: self.audience,
            proof: match self.proof {
                Some(ProofArgument::Certificate) => RequiredProof::Certificate,
                Some(ProofArgument::Dpop) => RequiredProof::Dpop,
                Some(ProofArgument::Either) => RequiredProof::Either,
                None => RequiredProof::Unbound,
            },
            introspection,
        };
        Ok((options, trusted))
    }
}

fn read(path: &PathBuf) -> Result<String, ArgumentsError> {
    fs::read_to_string(path).map_err(|source| ArgumentsError::File {
        path: path.clone(),
        source,
    })
}

fn api_key(path: &PathBuf) -> Result<SecretString, ArgumentsError> {
    match read(path)?.trim() {
        "" => Err(ArgumentsError::NoApiKey(path.clone())),
        key => Ok(key.into()),
    }
}

fn levels() -> PossibleValuesParser {
    PossibleValuesParser::new(["error", "warn", "info", "debug"])
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use rstest::rstest;

    use super::*;

    const USUAL: [&str; 7] = [
        "assay-verify",
        "--listen",
        "127.0.0.1:0",
        "--issuer",
        "https://assay.example.com",
        "--audience",
        "a",
    ];

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[rstest]
    #[case::no_proof(&[], false)]
    #[case::certificate_without_form(&["--proof", "certificate"], false)]
    #[case::either_without_form(&["--proof", "either"], false)]
    #[case::unbound_with_proof(&["--proof", "dpop", "--allow-unbound"], false)]
    #[case::unbound_as_proof(&["--proof", "none"], false)]
    #[case::certificate(&["--proof", "certificate", "--certificate-form", "xfcc"], true)]
    #[case::dpop(&["--proof", "dpop"], true)]
    #[case::unbound(&["--allow-unbound"], true)]
    fn a_token_without_proof_is_accepted_only_if_that_is_said(#[case] more: &[&str], #[case] is_accepted: bool) {
        let arguments = USUAL.iter().chain(more);
        assert_eq!(Arguments::try_parse_from(arguments).is_ok(), is_accepted);
    }

    #[rstest]
    #[case("0.0.0.0:80")]
    #[case("192.0.2.1:80")]
    #[case("localhost")]
    #[case("unix:")]
    fn only_this_machine_is_listened_to(#[case] address: &str) {
        assert!(address.parse::<ListenAddress>().is_err());
    }
}
