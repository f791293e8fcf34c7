//! The configuration: a TOML file, overridden by environment variables.
//!
//! The variable of the key `database.url` is `ASSAY_DATABASE__URL`. A server with an unknown key or an invalid value
//! does not start: a misspelled setting that is silently ignored could be a security hole.

mod check_in;
mod database;
mod enrollment;
mod environment;
mod error;
mod lifetimes;
mod mdm;
#[cfg(feature = "measuring")]
mod measuring;
mod public_url;
mod retention;
mod revocation;
mod settings;
mod tls;
mod trust_domain;
mod webhooks;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

use assay_authority::Installation;
use tracing::level_filters::LevelFilter;

use settings::Settings;

pub use check_in::{CheckIn, Continuity};
pub use database::{Database, MasterKey};
pub use enrollment::{Enrollment, OpeningPolicy, Reenrollment, WithoutToken};
pub use environment::{process_environment, search_path};
pub use error::{ConfigError, KeyError};
pub use lifetimes::{Certificates, Grants};
pub use mdm::{ApiKey, NanoMdm};
#[cfg(feature = "measuring")]
pub use measuring::Recording;
pub use public_url::{PublicUrl, PublicUrlError};
pub use retention::Retention;
pub use revocation::{Revocation, RevocationUrl, RevocationUrlError};
pub use tls::{ClientCertificates, Tls};
pub use trust_domain::{TrustDomain, TrustDomainError};
pub use webhooks::{PrivateAddresses, Webhooks};

/// An example with every key, its default and its meaning. `config example` prints it.
pub const EXAMPLE: &str = include_str!("../../../deploy/server/assay-server.example.toml");

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);
const DAY: Duration = Duration::from_hours(24);

/// The validated configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The URL under which machines and relying parties reach the server.
    pub public_url: PublicUrl,
    /// The trust domain in machines' SPIFFE ids.
    pub trust_domain: TrustDomain,
    /// Where the API listens. Port 0 means any free port.
    pub listen: SocketAddr,
    /// Where the administrators' API listens. `None` means with the rest of the API.
    pub admin_listen: Option<SocketAddr>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// Revocation lists and OCSP.
    pub revocation: Revocation,
    /// The directory for files outside of the database.
    pub data_dir: PathBuf,
    /// Postgres.
    pub database: Database,
    /// The key that seals the private keys in the database.
    pub master_key: MasterKey,
    /// TLS of the API.
    pub tls: Tls,
    /// Whether machines present their certificates in TLS.
    pub client_certificates: ClientCertificates,
    /// Certificates of machines.
    pub certificates: Certificates,
    /// Check-ins.
    pub check_in: CheckIn,
    /// Grant tokens.
    pub grants: Grants,
    /// Which machines may enroll.
    pub enrollment: Enrollment,
    /// How long rows are kept.
    pub retention: Retention,
    /// Webhooks.
    pub webhooks: Webhooks,
    /// Apple's attestations of machines.
    pub apple: Apple,
    /// The MDM through which attestations are requested. `None` if the server requests none.
    pub nano_mdm: Option<NanoMdm>,
    /// ACME: certificates for keys that macOS stores.
    pub acme: Acme,
    /// Limits of calls per minute.
    pub rate_limit: RateLimit,
    /// Logs.
    pub log: Log,
    /// How check-ins are recorded.
    #[cfg(feature = "measuring")]
    pub recording: Recording,
}

/// Metrics for Prometheus.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Where `/metrics` is served. Port 0 means any free port.
    pub listen: SocketAddr,
}

/// Apple's attestations of machines.
#[derive(Clone, Debug)]
pub struct Apple {
    /// A PEM file with roots to use instead of Apple's.
    pub attestation_roots: Option<PathBuf>,
    /// How long an attestation is valid after Apple signed it.
    pub attestation_max_age: Duration,
}

/// ACME, for MDMs.
#[derive(Clone, Debug)]
pub struct Acme {
    /// Whether ACME is enabled.
    pub enabled: bool,
    /// How long a device certificate is valid.
    pub certificate_ttl: Duration,
}

/// Limits of calls per minute and of connections. `None` means no limit.
#[derive(Clone, Debug)]
pub struct RateLimit {
    /// For one key or serial number.
    pub machine_per_minute: Option<NonZeroU32>,
    /// For one address, for calls that identify no machine.
    pub address_per_minute: Option<NonZeroU32>,
    /// For one API key.
    pub api_key_per_minute: Option<NonZeroU32>,
    /// For one address, at the listener for revocation status.
    pub revocation_per_minute: Option<NonZeroU32>,
    /// Open connections of one address that have proved no identity.
    pub connections_per_address: Option<NonZeroU32>,
    /// Renewals of one machine in a day. A sixth of them may be rotations.
    pub renewals_per_day: Option<NonZeroU32>,
}

/// Logs, on standard output.
#[derive(Clone, Debug)]
pub struct Log {
    /// The least severe level that is logged.
    pub level: LevelFilter,
    /// The format of a line.
    pub format: LogFormat,
}

/// The format of the logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object per line.
    Json,
    /// Text for people.
    Text,
}

impl Config {
    /// Reads the file, if any. The variables in `environment` that begin with `ASSAY_` override it.
    ///
    /// # Errors
    /// One line. It names the file, or all keys that are unknown, missing or invalid, and where they come from.
    pub fn load(path: Option<&Path>, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        Self::load_with_keys(path, environment).map(|(config, _)| config)
    }

    /// Like [`Self::load`]. Also returns the known keys.
    fn load_with_keys(
        path: Option<&Path>,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<(Self, BTreeSet<&'static str>), ConfigError> {
        let mut settings = Settings::collect(path, environment)?;
        let config = Self::read(&mut settings);
        match (config, settings.finish()) {
            (Some(config), (keys, None)) => Ok((config, keys)),
            (_, (_, error)) => Err(error.unwrap_or_else(|| ConfigError::Keys(Vec::new()))),
        }
    }

    /// The names in the certificates that this configuration leads to.
    #[must_use]
    pub fn installation(&self) -> Installation {
        Installation {
            trust_domain: self.trust_domain.as_str().to_owned(),
            public_url: self.public_url.url().clone(),
            revocation_url: self.revocation.url.url().clone(),
        }
    }

    /// `None` if a required key is missing; `settings` has the error.
    fn read(settings: &mut Settings) -> Option<Self> {
        let public_url = settings.parsed("public_url");
        let public_url: Option<PublicUrl> = settings.require("public_url", public_url);
        let trust_domain = settings.parsed("trust_domain");
        let trust_domain = settings.require("trust_domain", trust_domain);
        let data_dir = settings
            .path("data_dir")
            .unwrap_or_else(|| PathBuf::from("/var/lib/assay"));
        let listen = settings
            .parsed("listen")
            .unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443)));
        let admin_listen = settings.parsed("admin.listen");
        let telemetry_listen = settings
            .parsed("telemetry.listen")
            .unwrap_or(SocketAddr::from((Ipv4Addr::LOCALHOST, 9464)));
        let revocation = Revocation::read(settings, public_url.as_ref(), listen);
        let master_key = MasterKey::read(settings, &data_dir);
        let tls = Tls::read(settings);
        let client_certificates = ClientCertificates::read(settings, &tls);
        let database = Database::read(settings);
        let certificates = Certificates::read(settings);
        let check_in = CheckIn::read(settings);
        let grants = Grants::read(settings);
        let enrollment = Enrollment::read(settings);
        let retention = Retention::read(settings);
        let webhooks = Webhooks::read(settings);
        let apple = Apple::read(settings);
        let nano_mdm = NanoMdm::read(settings);
        let acme = Acme::read(settings);
        let rate_limit = RateLimit::read(settings);
        let log = Log::read(settings);
        #[cfg(feature = "measuring")]
        let recording = Recording::read(settings);
        Some(Self {
            public_url: public_url?,
            trust_domain: trust_domain?,
            listen,
            admin_listen,
            telemetry: Telemetry {
                listen: telemetry_listen,
            },
            revocation: revocation?,
            data_dir,
            database,
            master_key,
            tls,
            client_certificates,
            certificates,
            check_in,
            grants,
            enrollment,
            retention,
            webhooks,
            apple,
            nano_mdm,
            acme,
            rate_limit,
            log,
            #[cfg(feature = "measuring")]
            recording,
        })
    }
}

impl Apple {
    fn read(settings: &mut Settings) -> Self {
        Self {
            attestation_roots: settings.path("apple.attestation_roots"),
            attestation_max_age: settings
                .duration("apple.attestation_max_age", SECOND..=3660 * DAY)
                .unwrap_or(90 * DAY),
        }
    }
}

impl Acme {
    fn read(settings: &mut Settings) -> Self {
        Self {
            enabled: settings.boolean("acme.enabled").unwrap_or(false),
            // Macs do not renew by themselves: the MDM must install the profile again.
            certificate_ttl: settings
                .duration("acme.certificate_ttl", HOUR..=366 * DAY)
                .unwrap_or(90 * DAY),
        }
    }
}

impl RateLimit {
    fn read(settings: &mut Settings) -> Self {
        Self {
            machine_per_minute: settings.limit("rate_limit.machine_per_minute", 60),
            address_per_minute: settings.limit("rate_limit.address_per_minute", 6000),
            api_key_per_minute: settings.limit("rate_limit.api_key_per_minute", 6000),
            revocation_per_minute: settings.limit("rate_limit.revocation_per_minute", 6000),
            connections_per_address: settings.limit("rate_limit.connections_per_address", 5000),
            renewals_per_day: settings.limit("rate_limit.renewals_per_day", 24),
        }
    }
}

impl Log {
    fn read(settings: &mut Settings) -> Self {
        let levels = [
            ("off", LevelFilter::OFF),
            ("error", LevelFilter::ERROR),
            ("warn", LevelFilter::WARN),
            ("info", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("trace", LevelFilter::TRACE),
        ];
        let formats = [("json", LogFormat::Json), ("text", LogFormat::Text)];
        Self {
            level: settings.word("log.level", &levels).unwrap_or(LevelFilter::INFO),
            format: settings.word("log.format", &formats).unwrap_or(LogFormat::Json),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use rstest::rstest;

    use super::*;

    const REQUIRED: [(&str, &str); 2] = [
        ("ASSAY_PUBLIC_URL", "https://assay.example.com"),
        ("ASSAY_TRUST_DOMAIN", "example.com"),
    ];
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    fn load(file: Option<&str>, variables: &[(&str, &str)]) -> Result<Config, String> {
        load_with_mode(file, 0o600, variables)
    }

    fn load_with_mode(file: Option<&str>, mode: u32, variables: &[(&str, &str)]) -> Result<Config, String> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("assay.toml");
        if let Some(text) = file {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let variables = variables
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::load(file.map(|_| path.as_path()), variables)
            .map_err(|error| error.to_string().replace(&path.display().to_string(), "FILE"))
    }

    fn with_required(variables: &[(&'static str, &'static str)]) -> Result<Config, String> {
        load(None, &[REQUIRED.as_slice(), variables].concat())
    }

    /// The example, with the commented-out defaults enabled.
    fn example_with_defaults() -> String {
        let lines = EXAMPLE.lines().map(|line| match line.strip_prefix('#') {
            Some(rest) if rest.starts_with(|first: char| first.is_ascii_lowercase()) => rest,
            _ => line,
        });
        lines.collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn has_the_documented_defaults() {
        let config = with_required(&[]).unwrap();
        assert_eq!(config.public_url.as_str(), "https://assay.example.com");
        assert_eq!(config.trust_domain.as_str(), "example.com");
        assert_eq!(config.listen.to_string(), "0.0.0.0:8443");
        assert_eq!(config.admin_listen, None);
        assert_eq!(config.telemetry.listen.to_string(), "127.0.0.1:9464");
        assert_eq!(config.revocation.listen.unwrap().to_string(), "0.0.0.0:8080");
        assert_eq!(config.revocation.url.to_string(), "http://assay.example.com:8080");
        assert_eq!(config.revocation.list_lifetime, DAY);
        assert_eq!(config.data_dir, Path::new("/var/lib/assay"));
        assert!(config.database.url.is_none() && config.database.migrate);
        assert_eq!(config.database.max_connections, 16);
        assert!(matches!(&config.master_key, MasterKey::File(path) if path == Path::new("/var/lib/assay/master.key")));
        assert_eq!(config.tls, Tls::SelfIssued);
        assert_eq!(config.client_certificates, ClientCertificates::Optional);
        assert_eq!(config.certificates.ttl, 7 * DAY);
        assert_eq!(config.certificates.renewal_grace, 90 * DAY);
        assert_eq!(config.check_in.interval, Duration::from_secs(300));
        assert_eq!(config.check_in.continuity, Continuity::ByStore);
        assert_eq!(config.grants.ttl, Duration::from_secs(600));
        assert_eq!(config.enrollment.reenrollment, Reenrollment::Pending);
        assert_eq!(config.enrollment.without_token, WithoutToken::Refuse);
        assert_eq!(config.enrollment.pending_ttl, 7 * DAY);
        assert_eq!(config.webhooks.private_addresses, PrivateAddresses::Allow);
        assert_eq!(config.apple.attestation_roots, None);
        assert_eq!(config.apple.attestation_max_age, 90 * DAY);
        let limits = &config.rate_limit;
        let limits = [
            limits.machine_per_minute,
            limits.address_per_minute,
            limits.api_key_per_minute,
        ];
        assert_eq!(limits.map(|limit| limit.unwrap().get()), [60, 6000, 6000]);
        assert_eq!(config.rate_limit.revocation_per_minute.unwrap().get(), 6000);
        assert_eq!(config.rate_limit.connections_per_address.unwrap().get(), 5000);
        assert_eq!(config.rate_limit.renewals_per_day.unwrap().get(), 24);
        assert_eq!(
            (config.log.level, config.log.format),
            (LevelFilter::INFO, LogFormat::Json)
        );
    }

    #[test]
    fn the_example_shows_every_key_and_its_default() {
        let from_example = format!("{:?}", load(Some(&example_with_defaults()), &[]).unwrap());
        assert_eq!(from_example, format!("{:?}", with_required(&[]).unwrap()));
        assert_eq!(format!("{:?}", load(Some(EXAMPLE), &[]).unwrap()), from_example);

        let (_, keys) = Config::load_with_keys(None, REQUIRED.map(|(k, v)| (k.into(), v.into())).into_iter()).unwrap();
        let every_key = example_with_defaults().replace("# e.g. ", "");
        fn names(parent: &str, table: &toml::Table) -> BTreeSet<String> {
            let name = |(name, value): (&String, &toml::Value)| match value {
                toml::Value::Table(table) => names(&format!("{parent}{name}."), table),
                _ => BTreeSet::from([format!("{parent}{name}")]),
            };
            table.iter().flat_map(name).collect()
        }
        assert_eq!(
            names("", &every_key.parse().unwrap()),
            keys.iter().map(|key| (*key).to_owned()).collect()
        );
    }

    #[test]
    fn the_environment_overrides_the_file_and_stays_text() {
        let file = "public_url = 'https://a.example'\ntrust_domain = 'file'\n[database]\nmax_connections = 3\n";
        let config = load(
            Some(file),
            &[("ASSAY_TRUST_DOMAIN", "123"), ("ASSAY_DATABASE__MAX_CONNECTIONS", "5")],
        );
        let config = config.unwrap();
        assert_eq!(
            (config.public_url.as_str(), config.trust_domain.as_str()),
            ("https://a.example", "123")
        );
        assert_eq!(config.database.max_connections, 5);
    }

    #[test]
    fn reads_keys_without_a_default() {
        let config = with_required(&[
            ("ASSAY_DATABASE__URL", "postgres://u:hunter2@db/assay"),
            ("ASSAY_DATABASE__MIGRATION_URL", "postgres://owner:hunter2@db/assay"),
            ("ASSAY_MASTER_KEY", KEY),
            ("ASSAY_TLS__MODE", "files"),
            ("ASSAY_TLS__CERTIFICATE", "/tls.crt"),
            ("ASSAY_TLS__PRIVATE_KEY", "/tls.key"),
            ("ASSAY_RATE_LIMIT__MACHINE_PER_MINUTE", "0"),
            ("ASSAY_DATABASE__MIGRATE", "false"),
        ])
        .unwrap();
        let paths = (PathBuf::from("/tls.crt"), PathBuf::from("/tls.key"));
        assert_eq!(
            config.tls,
            Tls::Files {
                certificate: paths.0,
                private_key: paths.1
            }
        );
        assert_eq!(config.rate_limit.machine_per_minute, None);
        assert!(!config.database.migrate);
        let debug = format!("{config:?}");
        assert!(!debug.contains("hunter2") && !debug.contains(KEY), "{debug}");
    }

    #[rstest]
    #[case("ASSAY_FOO__BAR", "1", "foo.bar (ASSAY_FOO__BAR) is not a key of the configuration")]
    #[case(
        "ASSAY_LISTEN",
        "8443",
        "listen (ASSAY_LISTEN) is \"8443\": invalid socket address syntax"
    )]
    #[case(
        "ASSAY_LISTEN",
        "127.0.0.1:8080",
        "revocation.listen (ASSAY_REVOCATION__LISTEN) is 0.0.0.0:8080, which overlaps with listen, 127.0.0.1:8080: set \
         another port, or \"off\""
    )]
    #[case("ASSAY_DATA_DIR", "", "data_dir (ASSAY_DATA_DIR) is empty")]
    #[case(
        "ASSAY_CHECK_IN__INTERVAL",
        "0s",
        "check_in.interval (ASSAY_CHECK_IN__INTERVAL) is 0s; it must be whole seconds from 1s to 1day"
    )]
    #[case(
        "ASSAY_GRANTS__TTL",
        "1500ms",
        "grants.ttl (ASSAY_GRANTS__TTL) is 1500ms; it must be whole seconds from 1s to 1day"
    )]
    #[case(
        "ASSAY_CERTIFICATES__TTL",
        "7",
        "certificates.ttl (ASSAY_CERTIFICATES__TTL) is \"7\"; it must be a time with a unit, such as 90s, 5m or 7d"
    )]
    #[case(
        "ASSAY_DATABASE__MAX_CONNECTIONS",
        "0",
        "database.max_connections (ASSAY_DATABASE__MAX_CONNECTIONS) must be a whole number from 2 to 10000"
    )]
    #[case(
        "ASSAY_DATABASE__MIGRATE",
        "yes",
        "database.migrate (ASSAY_DATABASE__MIGRATE) must be true or false"
    )]
    #[case(
        "ASSAY_DATABASE__URL",
        "mysql://u:hunter2@db/assay",
        "database.url (ASSAY_DATABASE__URL) must be a Postgres URL, such as postgres://user:password@host:5432/database"
    )]
    #[case(
        "ASSAY_DATABASE__MIGRATION_URL",
        "postgres://u:hunter2@db/assay",
        "database.migration_url (ASSAY_DATABASE__MIGRATION_URL) can only be used with database.url"
    )]
    #[case(
        "ASSAY_MASTER_KEY",
        "hunter2",
        "master_key (ASSAY_MASTER_KEY) must be 32 bytes in base64url without padding (43 characters)"
    )]
    #[case(
        "ASSAY_TLS__MODE",
        "none",
        "tls.mode (ASSAY_TLS__MODE) is \"none\"; it must be one of self-issued, files, upstream"
    )]
    #[case(
        "ASSAY_TLS__CERTIFICATE",
        "/x",
        "tls.certificate (ASSAY_TLS__CERTIFICATE) can only be used if tls.mode is \"files\""
    )]
    #[case(
        "ASSAY_TLS__MODE",
        "files",
        "tls.certificate (ASSAY_TLS__CERTIFICATE) is required; tls.private_key (ASSAY_TLS__PRIVATE_KEY) is required"
    )]
    #[case(
        "ASSAY_TLS__CLIENT_CERTIFICATES",
        "yes",
        "tls.client_certificates (ASSAY_TLS__CLIENT_CERTIFICATES) is \"yes\"; it must be one of off, optional, required"
    )]
    #[case(
        "ASSAY_ENROLLMENT__REENROLLMENT",
        "allow",
        "enrollment.reenrollment (ASSAY_ENROLLMENT__REENROLLMENT) is \"allow\"; it must be one of pending, refuse"
    )]
    #[case(
        "ASSAY_APPLE__ATTESTATION_MAX_AGE",
        "90",
        "apple.attestation_max_age (ASSAY_APPLE__ATTESTATION_MAX_AGE) is \"90\"; it must be a time with a unit, such as 90s, 5m or 7d"
    )]
    #[case(
        "ASSAY_MDM__NANOMDM__URL",
        "http://mdm.example.com:9000",
        "mdm.nanomdm.api_key (ASSAY_MDM__NANOMDM__API_KEY) or mdm.nanomdm.api_key_file is required with mdm.nanomdm.url; mdm.nanomdm.url (ASSAY_MDM__NANOMDM__URL) is \"http://mdm.example.com:9000\": it must begin with https:// (plain http only for a loopback host), and must not contain credentials or a query"
    )]
    #[case(
        "ASSAY_MDM__NANOMDM__URL",
        "https://mdm.example.com",
        "mdm.nanomdm.api_key (ASSAY_MDM__NANOMDM__API_KEY) or mdm.nanomdm.api_key_file is required with mdm.nanomdm.url"
    )]
    #[case(
        "ASSAY_MDM__NANOMDM__API_KEY",
        "hunter2",
        "mdm.nanomdm.api_key (ASSAY_MDM__NANOMDM__API_KEY) can only be used with mdm.nanomdm.url"
    )]
    #[case(
        "ASSAY_LOG__LEVEL",
        "loud",
        "log.level (ASSAY_LOG__LEVEL) is \"loud\"; it must be one of off, error, warn, info, debug, trace"
    )]
    fn names_a_bad_variable(#[case] name: &'static str, #[case] value: &'static str, #[case] expected: &str) {
        assert_eq!(
            with_required(&[(name, value)]).unwrap_err(),
            format!("configuration: {expected}")
        );
    }

    #[rstest]
    #[case(
        "",
        "configuration: public_url (ASSAY_PUBLIC_URL) is required; trust_domain (ASSAY_TRUST_DOMAIN) is required"
    )]
    #[case(
        "public_url = 'http://a.example'\ntrust_domain = 'A'",
        "configuration: public_url (FILE) is \"http://a.example\": it must begin with https:// (plain http only for a loopback host); trust_domain (FILE) is \"A\": it must be 1 to 255 lower-case letters, digits, dots, dashes and underscores, such as example.com"
    )]
    #[case(
        "public_url = 'https://a.example'\ntrust_domain = 'a'\nlisten = 8443\n[tsl]\nmode = 'files'\n",
        "configuration: tsl.mode (FILE) is not a key of the configuration; listen (FILE) must be a string"
    )]
    #[case(
        "public_url = 'https://a.example'\ntrust_domain = 'a'\nmaster_key_file = '/k'\nmaster_key = 'AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8'\n",
        "configuration: master_key_file (FILE) cannot be used together with master_key"
    )]
    #[case(
        "public_url = 'https://a.example'\nmaster_key = \"hunter2\n",
        "the configuration FILE is not TOML: line 2: invalid basic string, expected `\"`"
    )]
    fn names_everything_that_is_wrong_with_a_file(#[case] file: &str, #[case] expected: &str) {
        assert_eq!(load(Some(file), &[]).unwrap_err(), expected);
    }

    #[rstest]
    #[case::password("[database]\nurl = 'postgres://u:hunter2@db/assay'", 0o644, true)]
    #[case::password_in_the_query("[database]\nurl = 'postgres://u@db/assay?password=hunter2'", 0o644, true)]
    #[case::no_password("[database]\nurl = 'postgres://u@db/assay'", 0o644, false)]
    #[case::closed("[database]\nurl = 'postgres://u:hunter2@db/assay'", 0o640, false)]
    #[case::no_secret("listen = '127.0.0.1:8443'", 0o666, false)]
    fn a_secret_in_a_file_that_others_may_read_is_refused(
        #[case] keys: &str,
        #[case] mode: u32,
        #[case] is_refused: bool,
    ) {
        let loaded = load_with_mode(Some(keys), mode, &REQUIRED);
        let error = loaded.err().unwrap_or_default();
        assert_eq!(
            error.contains("database.url (FILE) is a secret, but other accounts"),
            is_refused,
            "{error}"
        );
        // A variable takes the place of what is in the file.
        let variable = ("ASSAY_DATABASE__URL", "postgres://u:hunter2@db/assay");
        load_with_mode(Some(keys), mode, &[REQUIRED.as_slice(), &[variable]].concat()).unwrap();
    }

    #[test]
    fn behind_a_proxy_client_certificates_are_off_and_cannot_be_required() {
        let upstream = ("ASSAY_TLS__MODE", "upstream");
        let config = with_required(&[upstream]).unwrap();
        assert_eq!(config.client_certificates, ClientCertificates::Off);
        let error = with_required(&[upstream, ("ASSAY_TLS__CLIENT_CERTIFICATES", "required")]).unwrap_err();
        assert_eq!(
            error,
            "configuration: tls.client_certificates (ASSAY_TLS__CLIENT_CERTIFICATES) is \"required\", which tls.mode \"upstream\" does not allow: the proxy terminates TLS"
        );
    }

    #[test]
    fn ignores_the_variables_of_a_kubernetes_service_named_assay() {
        let links = [
            ("ASSAY_SERVICE_HOST", "10.0.0.7"),
            ("ASSAY_SERVICE_PORT_HTTPS", "8443"),
            ("ASSAY_PORT", "tcp://10.0.0.7:8443"),
            ("ASSAY_SERVER_PORT_8443_TCP_ADDR", "10.0.0.7"),
        ];
        with_required(&links).unwrap();
    }

    #[test]
    fn ignores_the_configuration_of_an_agent_on_the_same_host() {
        with_required(&[("ASSAY_AGENT_SERVER", "https://assay.example.com")]).unwrap();
    }

    #[test]
    fn names_a_missing_file() {
        let error = Config::load(Some(Path::new("/no/such.toml")), std::iter::empty()).unwrap_err();
        assert_eq!(error.to_string(), "cannot read the configuration /no/such.toml");
    }
}
