//! Unix sockets, and the users that may use them. The kernel reports the user of each peer.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    libc::O_NOFOLLOW,
    unistd::{Group, Uid, User, geteuid},
};
use tokio::net::UnixListener;

use crate::config::GrantSocketSettings;

/// The users that may use a socket: root, the agent's own user, and those that the configuration names.
#[derive(Debug, Clone)]
pub(crate) struct LocalPeers {
    named: Arc<GrantSocketSettings>,
}

/// Exclusive ownership of a socket path among the agent's processes, until it is dropped.
#[derive(Debug)]
pub(crate) struct OwnedSocket {
    path: PathBuf,
    lock: File,
}

impl LocalPeers {
    pub(crate) fn new(named: GrantSocketSettings) -> Self {
        Self { named: Arc::new(named) }
    }

    /// Whether users other than root and the agent's own are allowed.
    pub(crate) fn includes_others(&self) -> bool {
        !(self.named.users.is_empty() && self.named.groups.is_empty())
    }

    /// Whether this user is allowed. Each call looks the names up again, so changes of the user database take effect.
    pub(crate) async fn allows(&self, uid: u32, gid: u32) -> bool {
        if uid == 0 || uid == geteuid().as_raw() {
            return true;
        }
        if !self.includes_others() {
            return false;
        }
        let peers = self.clone();
        // A directory service may be slow or unavailable.
        let admitted = tokio::task::spawn_blocking(move || peers.names(uid, gid)).await;
        admitted.unwrap_or(false)
    }

    /// Configured names that this system does not know. They allow no one.
    pub(crate) fn unknown_names(&self) -> Vec<&str> {
        let users = self.named.users.iter().filter(|name| uid_of(name).is_none());
        let groups = self.named.groups.iter().filter(|name| group_of(name).is_none());
        users.chain(groups).map(String::as_str).collect()
    }

    fn names(&self, uid: u32, gid: u32) -> bool {
        if self.named.users.iter().any(|name| uid_of(name) == Some(uid)) {
            return true;
        }
        let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
        self.named.groups.iter().filter_map(|name| group_of(name)).any(|group| {
            let is_primary = group.gid.as_raw() == gid || user.as_ref().is_some_and(|user| user.gid == group.gid);
            is_primary || user.as_ref().is_some_and(|user| group.mem.contains(&user.name))
        })
    }
}

impl OwnedSocket {
    /// Waits until no other agent process owns this path. Blocks. The operating system releases the lock of a process
    /// that ended.
    pub(crate) fn wait(path: PathBuf) -> io::Result<Self> {
        let lock = lock_file(&path)?;
        if lock.try_lock().is_err() {
            tracing::info!(socket = %path.display(), "another agent listens on the socket: waiting for it to stop");
            lock.lock()?;
        }
        Ok(Self { path, lock })
    }

    /// Takes ownership of this path. Fails if another process owns it.
    pub(crate) fn take(path: PathBuf) -> io::Result<Self> {
        let lock = lock_file(&path)?;
        lock.try_lock().map_err(|error| match error {
            fs::TryLockError::WouldBlock => io::Error::new(io::ErrorKind::AddrInUse, "another process listens there"),
            fs::TryLockError::Error(error) => error,
        })?;
        Ok(Self { path, lock })
    }

    /// Listens. Replaces a socket that a crash left behind, but no other kind of file.
    pub(crate) fn listen(&self, is_for_others: bool) -> io::Result<UnixListener> {
        match fs::symlink_metadata(&self.path) {
            Ok(there) if there.file_type().is_socket() => fs::remove_file(&self.path)?,
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "the file exists and is not a socket",
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(&self.path)?;
        // All users may connect. The peer's user then decides whether the request is served.
        let mode = if is_for_others { 0o666 } else { 0o600 };
        fs::set_permissions(&self.path, Permissions::from_mode(mode))?;
        Ok(listener)
    }
}

impl Drop for OwnedSocket {
    fn drop(&mut self) {
        // No other agent process has bound the path, because this one still holds the lock.
        if fs::symlink_metadata(&self.path).is_ok_and(|there| there.file_type().is_socket()) {
            let _ = fs::remove_file(&self.path);
        }
        let _ = self.lock.unlock();
    }
}

/// Opens the lock, and makes it if it is missing. It follows no link: the folder may be open to other users.
fn lock_file(socket: &Path) -> io::Result<File> {
    let mut name = socket.as_os_str().to_owned();
    name.push(".lock");
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW)
        .open(PathBuf::from(name))
}

/// By name or by number.
fn uid_of(name: &str) -> Option<u32> {
    let user = User::from_name(name).ok().flatten();
    user.map(|user| user.uid.as_raw()).or_else(|| name.parse().ok())
}

fn group_of(name: &str) -> Option<Group> {
    let by_name = Group::from_name(name).ok().flatten();
    by_name.or_else(|| Group::from_gid(name.parse::<u32>().ok()?.into()).ok().flatten())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(users: &[&str], groups: &[&str]) -> LocalPeers {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        LocalPeers::new(GrantSocketSettings {
            users: owned(users),
            groups: owned(groups),
        })
    }

    #[tokio::test]
    async fn only_root_the_own_user_and_named_ones_are_allowed() {
        let nobody = User::from_name("nobody").unwrap().unwrap();
        let (uid, gid) = (nobody.uid.as_raw(), nobody.gid.as_raw());
        let group = Group::from_gid(nobody.gid).unwrap().unwrap().name;
        let own = geteuid().as_raw();
        assert!(peers(&[], &[]).allows(0, 0).await);
        assert!(peers(&[], &[]).allows(own, 12_345).await);
        assert!(!peers(&[], &[]).allows(uid, gid).await);
        assert!(!peers(&["root"], &["daemon"]).allows(uid, gid).await);
        assert!(peers(&["nobody"], &[]).allows(uid, gid).await);
        assert!(peers(&[&uid.to_string()], &[]).allows(uid, gid).await);
        assert!(peers(&[], &[&group]).allows(uid, gid).await);
        // The group in the user database counts, not the group of the process.
        assert!(peers(&[], &[&group]).allows(uid, 12_345).await);
        assert_eq!(
            peers(&["nobody", "no-such-user"], &["no-such-group"]).unknown_names(),
            ["no-such-user", "no-such-group"]
        );
    }

    /// In a folder that other users may write to, the agent, which is root, must not make or open the file of a link.
    #[test]
    fn the_lock_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let target = folder.path().join("made-by-root");
        std::os::unix::fs::symlink(&target, folder.path().join("a.sock.lock")).unwrap();
        let path = folder.path().join("a.sock");
        assert!(OwnedSocket::take(path.clone()).is_err());
        assert!(OwnedSocket::wait(path.clone()).is_err());
        assert!(!target.exists());
        fs::write(&target, "thesis").unwrap();
        assert!(OwnedSocket::take(path).is_err());
    }

    #[tokio::test]
    async fn only_a_stale_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = OwnedSocket::take(path.clone()).unwrap();
        let _listener = socket.listen(false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(
            OwnedSocket::take(path.clone()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        drop(socket);
        assert!(!path.exists());
        fs::write(&path, "thesis").unwrap();
        let socket = OwnedSocket::wait(path.clone()).unwrap();
        assert_eq!(socket.listen(true).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        drop(socket);
        assert_eq!(fs::read(&path).unwrap(), b"thesis");
    }
}
