//! The addresses to listen on, which only this machine can reach.

use std::{
    fmt, fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::PathBuf,
    str::FromStr,
};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// An address that only this machine can reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ListenAddress {
    Loopback(SocketAddr),
    Unix(PathBuf),
}

/// The text is not such an address.
#[derive(Debug, thiserror::Error)]
pub(super) enum ListenAddressError {
    #[error("{0:?} is not an address to listen on; examples are 127.0.0.1:9321, [::1]:9321 and unix:/path/to/socket")]
    Invalid(String),
    #[error("{0} is not a loopback address; other machines could forge the headers that this program believes")]
    NotLoopback(SocketAddr),
}

/// Why the program cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}")]
pub(super) struct BindError {
    address: ListenAddress,
    #[source]
    source: io::Error,
}

#[derive(Debug)]
pub(super) enum Listener {
    Loopback(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// An accepted connection.
#[derive(Debug)]
pub(super) enum Accepted {
    Loopback(TcpStream),
    Unix(UnixStream),
}

impl Listener {
    pub(super) async fn bind(address: &ListenAddress) -> Result<Self, BindError> {
        let bound = match address {
            ListenAddress::Loopback(address) => TcpListener::bind(address).await.map(Self::Loopback),
            ListenAddress::Unix(path) => bind_unix(path).map(|listener| Self::Unix(listener, path.clone())),
        };
        bound.map_err(|source| BindError {
            address: address.clone(),
            source,
        })
    }

    /// The address that it listens on.
    pub(super) fn address(&self) -> String {
        match self {
            Self::Loopback(listener) => listener
                .local_addr()
                .map_or_else(|error| error.to_string(), |address| address.to_string()),
            Self::Unix(_, path) => format!("unix:{}", path.display()),
        }
    }

    pub(super) async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Loopback(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Accepted::Loopback(stream))
            }
            Self::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
        }
    }
}

/// Replaces a socket that an earlier process left behind, but no other kind of file. The group may connect: the proxy
/// runs as another user.
fn bind_unix(path: &PathBuf) -> io::Result<UnixListener> {
    match fs::symlink_metadata(path) {
        Ok(there) if there.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the file exists and is not a socket",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
    Ok(listener)
}

impl FromStr for ListenAddress {
    type Err = ListenAddressError;

    fn from_str(text: &str) -> Result<Self, ListenAddressError> {
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        let address: SocketAddr = text.parse().map_err(|_| ListenAddressError::Invalid(text.to_owned()))?;
        match address.ip().is_loopback() {
            true => Ok(Self::Loopback(address)),
            false => Err(ListenAddressError::NotLoopback(address)),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Loopback(address) => write!(formatter, "{address}"),
            Self::Unix(path) => write!(formatter, "unix:{}", path.display()),
        }
    }
}
