//! The connection to a server: HTTP over TLS, with the machine's certificate where it has one.

mod certificate;
mod client;
mod client_certificate;
mod handshake;
mod nonce;

pub use self::client::{ClientError, Refusal};
pub(crate) use self::{
    certificate::is_certificate_for,
    client::{Answer, Client, fetch_root},
    client_certificate::{ClientCertificate, Identity, presentable},
    handshake::connecting,
};
