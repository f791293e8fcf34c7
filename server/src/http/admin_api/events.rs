//! `/v1/admin/events`: what happened to all machines, as a list and as a stream of server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::{convert::Infallible, sync::Arc};

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{events::Event, page::Page},
};
use axum::{
    Json,
    body::{Body, Bytes},
    extract::State,
    http::{HeaderMap, HeaderName, HeaderValue, header},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use serde::{Deserialize, Deserializer, Serialize, de::Error};
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::{
    changes::event_kinds::{KINDS, is_kind},
    events::{
        self, EventFilter,
        feed::TooManyStreams,
        subscription::{self, Item, SubscribeError},
    },
    http::{
        authentication::{Authorized, Viewer},
        extract::Parameters,
        operation::routes,
        page::{List, PageParameters},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
};

/// After how many milliseconds a caller connects again, as a stream tells it.
const RECONNECT: &str = "retry: 2000\n\n";
const KEEP_ALIVE: &str = ": nothing has happened\n\n";
/// The name of the event that says that events are missing.
const GAP: &str = "assay.gap";
/// When a caller may try for a stream again, in seconds.
const RETRY_SECONDS: u64 = 30;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// nginx passes on at once what carries this.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(stream_events))
}

impl From<SubscribeError> for ApiProblem {
    fn from(error: SubscribeError) -> Self {
        match error {
            SubscribeError::TooMany(refusal) => {
                let kind = match refusal {
                    TooManyStreams::OfKey => ProblemKind::RateLimited,
                    TooManyStreams::OfReplica => ProblemKind::Unavailable,
                };
                Self::new(kind, refusal.to_string()).retry_after(RETRY_SECONDS)
            }
            SubscribeError::Store(error) => error.into(),
        }
    }
}

/// Which events to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct EventParameters {
    /// What happened, such as `machine.enrolled`.
    kind: Option<String>,
    /// The machine that it happened to.
    machine_id: Option<Uuid>,
}

/// Which events to stream, and from where on.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct StreamParameters {
    /// What happened, such as `machine.enrolled`.
    kind: Option<String>,
    /// The machine that it happened to.
    machine_id: Option<Uuid>,
    /// The sequence to read on after, where there is no `Last-Event-ID`; without either, the stream begins with what happens next.
    #[serde(default, deserialize_with = "sequence")]
    after: Option<i64>,
}

/// List what happened to all machines, the newest first.
#[utoipa::path(
    get, path = "/v1/admin/events", tag = "Events", security(("api_key" = [])), params(EventParameters, PageParameters),
    responses((status = 200, body = Page<Event>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List {
        filter: parameters,
        page,
    }: List<EventParameters>,
) -> ApiResult<Json<Page<Event>>> {
    let filter = EventFilter {
        machine_id: parameters.machine_id,
        kind: checked_kind(parameters.kind)?,
    };
    let found = events::list(&services, &filter, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |event| event.id)))
}

/// Stream what happens to all machines, in one order, as server-sent events. `id` is the sequence; with it in
/// `Last-Event-ID` a stream goes on where another one stopped, on any replica.
#[utoipa::path(
    get, path = "/v1/admin/events/stream", tag = "Events", security(("api_key" = [])),
    params(StreamParameters, ("Last-Event-ID" = Option<i64>, Header)),
    responses(
        (status = 200, body = String, content_type = "text/event-stream"), (status = "4XX", body = Problem),
        (status = 503, body = Problem),
    ),
)]
async fn stream_events(
    caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    headers: HeaderMap,
    Parameters(parameters): Parameters<StreamParameters>,
) -> ApiResult<Response> {
    let after = resume_point(&headers, parameters.after)?;
    let filter = EventFilter {
        machine_id: parameters.machine_id,
        kind: checked_kind(parameters.kind)?,
    };
    let mut items = subscription::subscribe(&services, caller.api_key, after, filter).await?;
    let items = stream::poll_fn(move |context| items.poll_recv(context)).map(|item| written(&item));
    let begin = stream::iter([Bytes::from_static(RECONNECT.as_bytes())]);
    let body = Body::from_stream(begin.chain(items).map(Ok::<_, Infallible>));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    Ok((headers, body).into_response())
}

fn checked_kind(kind: Option<String>) -> ApiResult<Option<String>> {
    match kind {
        Some(unknown) if !is_kind(&unknown) => Err(ApiProblem::malformed(format!(
            "kind: there are no events of this kind; there are {}",
            KINDS.join(", ")
        ))),
        kind => Ok(kind),
    }
}

fn sequence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let sequence = String::deserialize(deserializer)?.parse();
    let words = format_args!(
        "must be the sequence of an event: a whole number from 0 to {}",
        i64::MAX
    );
    sequence.map(Some).map_err(|_| D::Error::custom(words))
}

/// The header wins: a browser that connects again sends the address that it was given at first.
fn resume_point(headers: &HeaderMap, after: Option<i64>) -> ApiResult<Option<i64>> {
    let point = match headers.get(LAST_EVENT_ID) {
        Some(value) if value.is_empty() => after,
        Some(value) => {
            let sequence = value.to_str().ok().and_then(|value| value.trim().parse().ok());
            let refusal = || ApiProblem::malformed("Last-Event-ID has to be the id of an event of this stream");
            Some(sequence.ok_or_else(refusal)?)
        }
        None => after,
    };
    if point.is_some_and(|point| point < 0) {
        return Err(ApiProblem::malformed("a stream cannot begin after a negative sequence"));
    }
    Ok(point)
}

fn written(item: &Item) -> Bytes {
    let text = match item {
        Item::Event(event) => block(event.sequence, &event.event.kind, event.as_ref()),
        Item::Gap(gap) => block(gap.oldest_available.saturating_sub(1), GAP, gap),
        Item::KeepAlive => KEEP_ALIVE.to_owned(),
    };
    text.into()
}

/// JSON of serde has no line break, so the data is one line.
fn block<T: Serialize>(id: i64, kind: &str, value: &T) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    format!("id: {id}\nevent: {kind}\ndata: {json}\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(LAST_EVENT_ID, HeaderValue::from_static(value))])
    }

    #[test]
    fn the_header_wins_over_the_address_and_has_to_be_a_sequence() {
        assert_eq!(resume_point(&HeaderMap::new(), None).unwrap(), None);
        assert_eq!(resume_point(&HeaderMap::new(), Some(3)).unwrap(), Some(3));
        assert_eq!(resume_point(&headers("7"), Some(3)).unwrap(), Some(7));
        assert_eq!(resume_point(&headers("0"), None).unwrap(), Some(0));
        assert_eq!(resume_point(&headers(""), Some(3)).unwrap(), Some(3));
        for bad in ["-1", "seven", "7;8", "99999999999999999999"] {
            assert!(resume_point(&headers(bad), Some(3)).is_err(), "{bad}");
        }
        assert!(resume_point(&HeaderMap::new(), Some(-1)).is_err());
    }
}
