//! The connection to a server: HTTP over TLS, with the machine's certificate if it has one.

mod certificate;
mod client;
mod client_certificate;
mod client_error;
mod handshake;
mod nonce;

pub use self::client_error::{ClientError, Refusal};
pub(crate) use self::{
    certificate::is_certificate_for,
    client::{ApiResponse, Client, fetch_root},
    client_certificate::{ClientCertificate, Identity, presentable},
    handshake::{Connector, connector},
};
