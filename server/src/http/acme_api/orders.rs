//! Orders with their authorizations, challenges and certificates.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderValue, StatusCode, header},
    response::{AppendHeaders, IntoResponse, Response},
};
use serde::Deserialize;
use uuid::Uuid;

use super::{
    documents::{AuthorizationDocument, ChallengeDocument, OrderDocument, OrderList},
    problem::{AcmeProblem, AcmeResult},
};
use crate::{
    acme::{
        Signed, challenges, finalization, orders,
        requests::{self, AccountRequest},
        urls::Urls,
    },
    http::{extract::Id, problem::ApiProblem},
    services::Services,
};

const CHAIN: HeaderValue = HeaderValue::from_static("application/pem-certificate-chain");

/// An id from the path. An invalid id names no resource.
type Named = Result<Id, ApiProblem>;

/// The position in a list of orders.
#[derive(Deserialize)]
pub(super) struct Cursor {
    cursor: Option<Uuid>,
}

pub(super) async fn create(State(services): State<Arc<Services>>, signed: Signed) -> AcmeResult<Response> {
    let request = requests::of_account(&services, signed).await?;
    let order = orders::create(&services, &request).await?;
    let location = Urls(&services.policy.public_url).order(order.id);
    let document = Json(OrderDocument::of(&services, &order));
    Ok((StatusCode::CREATED, [(header::LOCATION, location)], document).into_response())
}

pub(super) async fn find(
    State(services): State<Arc<Services>>,
    id: Named,
    signed: Signed,
) -> AcmeResult<Json<OrderDocument>> {
    let (id, request) = of(&services, id, signed).await?;
    let order = orders::find(&services.store, &request, id).await?;
    Ok(Json(OrderDocument::of(&services, &order)))
}

pub(super) async fn list(
    State(services): State<Arc<Services>>,
    id: Named,
    query: Result<Query<Cursor>, axum::extract::rejection::QueryRejection>,
    signed: Signed,
) -> AcmeResult<Response> {
    let (account_id, request) = of(&services, id, signed).await?;
    let Ok(Query(Cursor { cursor })) = query else {
        return Err(AcmeProblem::no_such_resource());
    };
    let found = orders::list(&services.store, &request, account_id, cursor).await?;
    let urls = Urls(&services.policy.public_url);
    let page = usize::try_from(orders::PAGE).unwrap_or(usize::MAX);
    let shown = found.get(..page.min(found.len())).unwrap_or_default();
    let next = (found.len() > page).then(|| shown.last()).flatten();
    let next = next.map(|last| {
        let url = format!("<{}?cursor={last}>;rel=\"next\"", urls.orders(account_id));
        (header::LINK, url)
    });
    let orders = shown.iter().map(|id| urls.order(*id)).collect();
    Ok((AppendHeaders(next), Json(OrderList { orders })).into_response())
}

pub(super) async fn finalize(State(services): State<Arc<Services>>, id: Named, signed: Signed) -> AcmeResult<Response> {
    let (id, request) = of(&services, id, signed).await?;
    let (order, issued_now) = finalization::finalize(&services, &request, id).await?;
    if issued_now {
        services.metrics.certificate_issued("acme");
    }
    let location = Urls(&services.policy.public_url).order(order.id);
    let document = Json(OrderDocument::of(&services, &order));
    Ok(([(header::LOCATION, location)], document).into_response())
}

pub(super) async fn authorization(
    State(services): State<Arc<Services>>,
    id: Named,
    signed: Signed,
) -> AcmeResult<Json<AuthorizationDocument>> {
    let (id, request) = of(&services, id, signed).await?;
    let order = orders::authorization(&services.store, &request, id).await?;
    Ok(Json(AuthorizationDocument::of(&services, &order)))
}

pub(super) async fn challenge(
    State(services): State<Arc<Services>>,
    id: Named,
    signed: Signed,
) -> AcmeResult<Response> {
    let (id, request) = of(&services, id, signed).await?;
    let order = challenges::respond(&services, &request, id).await?;
    // RFC 8555, section 7.1.
    let up = Urls(&services.policy.public_url).authorization(order.id);
    let link = AppendHeaders([(header::LINK, format!("<{up}>;rel=\"up\""))]);
    Ok((link, Json(ChallengeDocument::of(&services, &order))).into_response())
}

pub(super) async fn certificate(
    State(services): State<Arc<Services>>,
    id: Named,
    signed: Signed,
) -> AcmeResult<Response> {
    let (id, request) = of(&services, id, signed).await?;
    let chain = orders::certificate(&services, &request, id).await?;
    Ok(([(header::CONTENT_TYPE, CHAIN)], chain).into_response())
}

async fn of(services: &Services, id: Named, signed: Signed) -> AcmeResult<(Uuid, AccountRequest)> {
    let Id(id) = id.map_err(|_| AcmeProblem::no_such_resource())?;
    Ok((id, requests::of_account(services, signed).await?))
}
