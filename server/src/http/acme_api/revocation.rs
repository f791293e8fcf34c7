//! `revokeCert`

use std::sync::Arc;

use axum::extract::State;

use super::problem::AcmeResult;
use crate::{
    acme::{Signed, requests, revocation},
    services::Services,
};

pub(super) async fn revoke(State(services): State<Arc<Services>>, signed: Signed) -> AcmeResult<()> {
    let request = requests::either(&services, signed).await?;
    Ok(revocation::revoke(&services, request).await?)
}
