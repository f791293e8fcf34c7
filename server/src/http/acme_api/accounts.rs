//! Accounts, and their keys.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
};

use super::{
    documents::AccountDocument,
    problem::{AcmeProblem, AcmeResult},
};
use crate::{
    acme::{Signed, accounts, requests, urls::Urls},
    http::extract::Id,
    services::Services,
};

pub(super) async fn open(State(services): State<Arc<Services>>, signed: Signed) -> AcmeResult<Response> {
    let request = requests::of_key(&services, signed).await?;
    let opened = accounts::open(&services.store, &services.acme.secrets, request).await?;
    let status = if opened.is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let location = Urls(&services.policy.public_url).account(opened.account.id);
    let document = Json(AccountDocument::of(&services, &opened.account));
    Ok((status, [(header::LOCATION, location)], document).into_response())
}

pub(super) async fn update(
    State(services): State<Arc<Services>>,
    id: Result<Id, crate::http::problem::ApiProblem>,
    signed: Signed,
) -> AcmeResult<Json<AccountDocument>> {
    let Id(id) = id.map_err(|_| AcmeProblem::no_such_resource())?;
    let request = requests::of_account(&services, signed).await?;
    let account = accounts::update(&services.store, id, request).await?;
    Ok(Json(AccountDocument::of(&services, &account)))
}

pub(super) async fn change_key(
    State(services): State<Arc<Services>>,
    signed: Signed,
) -> Result<Json<AccountDocument>, Response> {
    let located = |problem: AcmeProblem| problem.located(&services);
    let request = requests::of_account(&services, signed).await;
    let request = request.map_err(|error| located(error.into()))?;
    let changed = accounts::change_key(&services.store, &services.policy.public_url, request).await;
    let account = changed.map_err(|error| located(error.into()))?;
    Ok(Json(AccountDocument::of(&services, &account)))
}
