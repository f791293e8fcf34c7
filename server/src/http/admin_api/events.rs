//! `/v1/admin/events`: the events of all machines, as a list and as a stream of server-sent events
//! (<https://html.spec.whatwg.org/multipage/server-sent-events.html>).

use std::{convert::Infallible, sync::Arc};

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{changes::EventKind, events::Event, page::Page},
    word,
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

/// Tells clients of a stream to reconnect after this many milliseconds.
const RECONNECT: &str = "retry: 2000\n\n";
const KEEP_ALIVE: &str = ": nothing has happened\n\n";
/// The name of the event that reports missing events.
const GAP: &str = "assay.gap";
/// When a caller may retry to open a stream, in seconds.
const RETRY_SECONDS: u64 = 30;

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// nginx does not buffer responses with this header.
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
    /// The kind, such as `machine.enrolled`.
    #[param(value_type = Option<EventKind>)]
    kind: Option<String>,
    /// The machine concerned.
    machine_id: Option<Uuid>,
}

/// Which events to stream, and from which on.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct StreamParameters {
    /// The kind, such as `machine.enrolled`.
    #[param(value_type = Option<EventKind>)]
    kind: Option<String>,
    /// The machine concerned.
    machine_id: Option<Uuid>,
    /// Stream events after this sequence. `Last-Event-ID` takes precedence. Without both, the stream begins with the
    /// next event.
    #[serde(default, deserialize_with = "sequence")]
    after: Option<i64>,
}

/// List the events of all machines, newest first.
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

/// Stream the events of all machines in one order, as server-sent events.
///
/// The `id` is the sequence. Send it as `Last-Event-ID` to continue after it, on any replica.
#[utoipa::path(
    get, path = "/v1/admin/events/stream", tag = "Events", security(("api_key" = [])),
    params(
        StreamParameters,
        ("Last-Event-ID" = Option<i64>, Header, description = "The last event that was received."),
    ),
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
    let items = stream::poll_fn(move |context| items.poll_recv(context)).map(|item| encode(&item));
    let begin = stream::iter([Bytes::from_static(RECONNECT.as_bytes())]);
    let body = Body::from_stream(begin.chain(items).map(Ok::<_, Infallible>));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (ACCEL_BUFFERING, HeaderValue::from_static("no")),
    ];
    Ok((headers, body).into_response())
}

fn checked_kind(kind: Option<String>) -> ApiResult<Option<EventKind>> {
    let refusal = || {
        let kinds = word::list(&EventKind::ALL);
        ApiProblem::malformed(format!("kind: this kind is unknown; known kinds are {kinds}"))
    };
    let find = |kind: String| kind.parse().map_err(|_| refusal());
    kind.map(find).transpose()
}

fn sequence<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<i64>, D::Error> {
    let sequence = String::deserialize(deserializer)?.parse();
    let words = format_args!(
        "must be the sequence of an event: a whole number from 0 to {}",
        i64::MAX
    );
    sequence.map(Some).map_err(|_| D::Error::custom(words))
}

/// The header takes precedence: a browser that reconnects repeats the original URL.
fn resume_point(headers: &HeaderMap, after: Option<i64>) -> ApiResult<Option<i64>> {
    let point = match headers.get(LAST_EVENT_ID) {
        Some(value) if value.is_empty() => after,
        Some(value) => {
            let sequence = value.to_str().ok().and_then(|value| value.trim().parse().ok());
            let refusal = || ApiProblem::malformed("Last-Event-ID must be the id of an event of this stream");
            Some(sequence.ok_or_else(refusal)?)
        }
        None => after,
    };
    if point.is_some_and(|point| point < 0) {
        return Err(ApiProblem::malformed("after must not be negative"));
    }
    Ok(point)
}

fn encode(item: &Item) -> Bytes {
    let text = match item {
        Item::Event(event) => block(event.sequence, &event.event.kind, event.as_ref()),
        Item::Gap(gap) => block(gap.oldest_available.saturating_sub(1), GAP, gap),
        Item::KeepAlive => KEEP_ALIVE.to_owned(),
    };
    text.into()
}

/// serde writes JSON without line breaks, so the data is one line.
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
    fn the_header_takes_precedence_over_the_query_and_must_be_a_sequence() {
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
