//! What the agent serves to programs of this machine, and to which of its users.

pub(crate) mod grant_socket;
mod peers;
mod server;

pub(crate) use self::{
    peers::{LocalPeers, OwnedSocket},
    server::{Answer, Listener, LocalAddress, LocalService, problem, serve},
};
