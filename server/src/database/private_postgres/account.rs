//! The account that runs Postgres. Postgres refuses to run as root, and root may start the server.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::PrivatePostgresError;

/// Accounts that own nothing of value, in the order of preference: Debian's and Fedora's, macOS's, and the common one.
const UNPRIVILEGED: [&str; 3] = ["postgres", "_postgres", "nobody"];

/// An account other than that of this process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
    name: String,
}

impl Account {
    /// The account to run Postgres as. `None` if this process is not root; its own account then runs Postgres.
    ///
    /// Root uses the owner of the database. Otherwise it uses the owner of `data_dir`, which may later run the server
    /// and must then own its database, even if root created it with `api-key create`. Otherwise it uses an unprivileged
    /// account.
    ///
    /// # Errors
    /// `NoUnprivilegedAccount`, and `Io` if `/etc/passwd` cannot be read.
    pub(super) fn to_run_postgres(cluster: &Path, data_dir: &Path) -> Result<Option<Self>, PrivatePostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let owner = [cluster, data_dir]
            .into_iter()
            .filter_map(Self::owner)
            .find(|owner| owner.uid != 0);
        if owner.is_some() {
            return Ok(owner);
        }
        Self::unprivileged()
    }

    /// An unprivileged account that can run Postgres. `None` if this process is not root.
    ///
    /// # Errors
    /// `NoUnprivilegedAccount`, and `Io` if `/etc/passwd` cannot be read.
    pub fn unprivileged() -> Result<Option<Self>, PrivatePostgresError> {
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        let accounts = fs::read_to_string("/etc/passwd")
            .map_err(PrivatePostgresError::io("read the accounts in", "/etc/passwd"))?;
        let unprivileged = UNPRIVILEGED.iter().find_map(|name| Self::named(name, &accounts));
        unprivileged
            .map(Some)
            .ok_or(PrivatePostgresError::NoUnprivilegedAccount)
    }

    /// Checks that this account may enter every directory on the way to `path`. The error names the first one it may
    /// not enter.
    ///
    /// # Errors
    /// `NotTraversable`, and `Io` if a directory cannot be read.
    pub(super) fn check_way_to(&self, path: &Path) -> Result<(), PrivatePostgresError> {
        let mut directories: Vec<&Path> = path.ancestors().collect();
        directories.reverse();
        for directory in directories {
            let metadata = fs::metadata(directory).map_err(PrivatePostgresError::io("read", directory))?;
            let search_bit = if metadata.uid() == self.uid {
                0o100
            } else if metadata.gid() == self.gid {
                0o010
            } else {
                0o001
            };
            if metadata.mode() & search_bit == 0 {
                let directory = directory.to_owned();
                return Err(PrivatePostgresError::NotTraversable {
                    directory,
                    account: self.name.clone(),
                });
            }
        }
        Ok(())
    }

    fn owner(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            uid: metadata.uid(),
            gid: metadata.gid(),
            name: format!("the user {}", metadata.uid()),
        })
    }

    fn named(name: &str, accounts: &str) -> Option<Self> {
        accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            if fields.next()? != name {
                return None;
            }
            let uid = identifier(fields.nth(1)?)?;
            let gid = identifier(fields.next()?)?;
            (uid != 0).then(|| Self {
                uid,
                gid,
                name: name.to_owned(),
            })
        })
    }
}

/// The names of the accounts with these ids. An account that `/etc/passwd` does not list has none.
///
/// # Errors
/// `Io` if `/etc/passwd` cannot be read.
pub(super) fn names_of(uids: &[u32]) -> Result<Vec<String>, PrivatePostgresError> {
    let accounts =
        fs::read_to_string("/etc/passwd").map_err(PrivatePostgresError::io("read the accounts in", "/etc/passwd"))?;
    Ok(uids.iter().filter_map(|uid| name_of(*uid, &accounts)).collect())
}

fn name_of(uid: u32, accounts: &str) -> Option<String> {
    accounts.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (identifier(fields.nth(1)?)? == uid).then(|| name.to_owned())
    })
}

/// macOS writes the ids of `nobody` as -2.
fn identifier(field: &str) -> Option<u32> {
    field
        .parse::<u32>()
        .ok()
        .or_else(|| field.parse::<i32>().ok().map(i32::cast_unsigned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_accounts_of_linux_and_macos() {
        let account = |name, accounts| Account::named(name, accounts).map(|account| (account.uid, account.gid));
        let linux = "root:x:0:0:root:/root:/bin/bash\npostgres:x:101:104:PostgreSQL administrator,,,:/:/bin/bash\n";
        let macos = "##\n# User Database\n##\nnobody:*:-2:-2:Unprivileged User:/var/empty:/usr/bin/false\n";
        assert_eq!(account("postgres", linux), Some((101, 104)));
        assert_eq!(account("nobody", macos), Some((4_294_967_294, 4_294_967_294)));
        assert_eq!(account("postgres", macos), None);
        assert_eq!(name_of(101, linux).as_deref(), Some("postgres"));
        assert_eq!(name_of(0, linux).as_deref(), Some("root"));
        assert_eq!(name_of(7, linux), None);
        assert_eq!(
            account("root", linux),
            None,
            "an account with another name and the id of root must not be used"
        );
    }
}
