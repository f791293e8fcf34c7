//! Finds the Postgres installations of this system in the directories of various packages.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::PrivatePostgresError;

/// The oldest usable major version.
pub const OLDEST_MAJOR: u16 = 15;

/// Where packages install programs outside the search path. Each entry is a directory, the prefix before a version, and
/// the subdirectory.
const PACKAGE_PLACES: [(&str, &str, &str); 5] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql@", "bin"),
    ("/usr/local/opt", "postgresql@", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// The directories that may contain Postgres' programs: those of a search path such as `PATH`, then those of Debian,
/// Fedora, the Postgres project's packages, Homebrew and Postgres.app.
#[must_use]
pub fn binary_places(search_path: &OsStr) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> = std::env::split_paths(search_path)
        .filter(|place| place.is_absolute())
        .collect();
    for (parent, prefix, binaries) in PACKAGE_PLACES {
        let mut versions: Vec<PathBuf> = fs::read_dir(parent)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()))
            .map(|entry| entry.path().join(binaries))
            .filter(|place| place.join("postgres").is_file())
            .collect();
        versions.sort();
        places.append(&mut versions);
    }
    places.extend(["/usr/bin", "/usr/local/bin"].map(PathBuf::from));
    places
}

/// All installations in these directories, newest version first. Equal versions keep the order of the directories. This
/// runs `postgres --version` in each, which takes milliseconds.
#[must_use]
pub fn installed(places: &[PathBuf]) -> Vec<Installation> {
    let mut installations: Vec<Installation> = Vec::new();
    for place in places {
        if installations.iter().any(|known| known.directory == *place) {
            continue;
        }
        installations.extend(Installation::at(place));
    }
    installations.sort_by_key(|installation| std::cmp::Reverse(installation.version));
    installations
}

/// Chooses an installation: the major version `made_by` for an existing database, or the newest for a new one.
///
/// # Errors
/// `NotInstalled` and `VersionNotInstalled`, which say what to install.
pub(super) fn choose(
    installations: Vec<Installation>,
    made_by: Option<u16>,
    directory: &Path,
) -> Result<Installation, PrivatePostgresError> {
    let found = installations.first().map(|newest| newest.version.to_string());
    let usable = installations.into_iter().find(|installation| match made_by {
        Some(major) => installation.version.major == major,
        None => installation.version.major >= OLDEST_MAJOR,
    });
    usable.ok_or_else(|| match made_by {
        Some(major) => PrivatePostgresError::VersionNotInstalled {
            major,
            directory: directory.to_owned(),
        },
        None => PrivatePostgresError::NotInstalled { found },
    })
}

/// An installed Postgres with its server and `initdb`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    directory: PathBuf,
    version: Version,
}

impl Installation {
    /// The version according to `postgres --version`.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The path of one of its programs.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The locale arguments for `initdb`. Text is compared byte by byte, so no system update can change the order of an
    /// index. Upper and lower case follow Unicode, because the search for machines ignores case in every language.
    #[must_use]
    pub fn locale_arguments(&self) -> &'static [&'static str] {
        match self.version.major {
            17.. => &["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"],
            _ if cfg!(target_os = "macos") => &["--lc-collate=C", "--lc-ctype=UTF-8"],
            _ => &["--lc-collate=C", "--lc-ctype=C.UTF-8"],
        }
    }

    fn at(directory: &Path) -> Option<Self> {
        if !directory.join("initdb").is_file() {
            return None;
        }
        let output = Command::new(directory.join("postgres"))
            .arg("--version")
            .env_clear()
            .stdin(Stdio::null())
            .output()
            .ok()?;
        let version = Version::parse(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self {
            directory: directory.to_owned(),
            version,
        })
    }
}

/// The version of a release, such as `17.2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Determines the format of the files.
    pub major: u16,
    /// Counts the fixes.
    pub minor: u16,
}

impl Version {
    /// Parses the output of `postgres --version`. Betas and development versions are ignored: the following release
    /// cannot read their files.
    fn parse(output: &str) -> Option<Self> {
        let number = output
            .trim()
            .strip_prefix("postgres ")?
            .split_once(") ")?
            .1
            .split_whitespace()
            .next()?;
        let (major, minor) = number.split_once('.')?;
        // Before version 10 the major version had two parts (9.6.24).
        let minor = minor.split('.').next()?;
        Some(Self {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.major, self.minor)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some((15, 14)))]
    #[case("postgres (PostgreSQL) 17.2 (Homebrew)\n", Some((17, 2)))]
    #[case("postgres (PostgreSQL) 16.4 (Postgres.app)\n", Some((16, 4)))]
    #[case("postgres (PostgreSQL) 18.0\n", Some((18, 0)))]
    #[case("postgres (PostgreSQL) 9.6.24\n", Some((9, 6)))]
    #[case("postgres (PostgreSQL) 18beta1\n", None)]
    #[case("postgres (PostgreSQL) 19devel\n", None)]
    #[case("initdb (PostgreSQL) 17.2\n", None)]
    #[case("command not found", None)]
    #[case("", None)]
    fn reads_versions(#[case] output: &str, #[case] expected: Option<(u16, u16)>) {
        assert_eq!(
            Version::parse(output).map(|version| (version.major, version.minor)),
            expected
        );
    }

    fn installation(major: u16, minor: u16) -> Installation {
        Installation {
            directory: PathBuf::from(format!("/pg/{major}.{minor}")),
            version: Version { major, minor },
        }
    }

    #[test]
    fn chooses_the_newest_for_a_new_database_and_the_same_major_for_an_old_one() {
        let installations = || vec![installation(17, 2), installation(16, 9), installation(14, 1)];
        let directory = Path::new("/data/postgres/cluster");
        assert_eq!(choose(installations(), None, directory).unwrap(), installation(17, 2));
        assert_eq!(
            choose(installations(), Some(16), directory).unwrap(),
            installation(16, 9)
        );
        assert_eq!(
            choose(installations(), Some(15), directory).unwrap_err().to_string(),
            "the database in /data/postgres/cluster was made by Postgres 15, which is no longer installed: install \
             Postgres 15 again, or move the database with pg_upgrade"
        );
    }

    #[test]
    fn says_in_one_line_what_to_install() {
        let directory = Path::new("/data/postgres/cluster");
        let message = choose(Vec::new(), None, directory).unwrap_err().to_string();
        assert_eq!(
            message,
            "no Postgres 15 or later is installed: set database.url, or install one with `apt-get install \
             postgresql`, `dnf install postgresql-server` or `brew install postgresql@17`"
        );
        let message = choose(vec![installation(14, 1)], None, directory)
            .unwrap_err()
            .to_string();
        assert!(
            message.starts_with("no Postgres 15 or later is installed (found 14.1): "),
            "{message}"
        );
    }
}
