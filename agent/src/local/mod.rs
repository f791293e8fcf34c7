//! Services for other programs on this machine, and the users that may use them.

pub(crate) mod grant_socket;
mod peers;
mod server;

pub(crate) use self::{
    peers::{LocalPeers, OwnedSocket},
    server::{Listener, LocalAddress, LocalResponse, LocalService, problem, serve},
};
