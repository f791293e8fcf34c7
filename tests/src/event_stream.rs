//! A reader of the stream of events, after the standard for server-sent events.

use std::time::Duration;

use http::Method;
use reqwest::RequestBuilder;
use serde_json::Value;

use crate::api::Api;

const TOLD_WITHIN: Duration = Duration::from_secs(30);

/// An open stream.
#[derive(Debug)]
pub struct EventStream {
    response: reqwest::Response,
    buffer: Vec<u8>,
    only_of_machines: bool,
}

/// One message of the stream.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The field `id`.
    pub id: i64,
    /// The field `event`.
    pub kind: String,
    /// The field `data`, parsed as JSON.
    pub data: Value,
}

impl EventStream {
    /// Opens it.
    ///
    /// # Panics
    /// If the response is no stream.
    pub async fn open(request: RequestBuilder) -> Self {
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{response:?}");
        let header = |name: &str| response.headers().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("content-type"), Some("text/event-stream"));
        assert_eq!(header("cache-control"), Some("no-store"));
        assert_eq!(header("x-accel-buffering"), Some("no"));
        assert!(header("x-request-id").is_some());
        Self {
            response,
            buffer: Vec::new(),
            only_of_machines: false,
        }
    }

    /// From now on skips the events about no machine, such as those of new API keys and enrollment tokens.
    #[must_use]
    pub fn of_machines(mut self) -> Self {
        self.only_of_machines = true;
        self
    }

    /// A request for a server's stream, from an event on or from the present end on.
    pub fn request(api: &Api, api_key: &str, after: Option<i64>) -> RequestBuilder {
        let request = api.request(Method::GET, "/v1/admin/events/stream").bearer_auth(api_key);
        match after {
            Some(after) => request.header("last-event-id", after.to_string()),
            None => request,
        }
    }

    /// The next message. `None` at a clean end of the stream.
    ///
    /// # Errors
    /// If the connection is cut.
    ///
    /// # Panics
    /// If no message arrives for long.
    pub async fn read(&mut self) -> reqwest::Result<Option<Told>> {
        loop {
            while let Some(block) = self.block() {
                match parse(&block) {
                    Some(told) if self.only_of_machines && told.data["machine_id"].is_null() => {}
                    Some(told) => return Ok(Some(told)),
                    None => {}
                }
            }
            let chunk = tokio::time::timeout(TOLD_WITHIN, self.response.chunk()).await;
            match chunk.expect("the stream tells nothing")? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
        }
    }

    /// The next event.
    ///
    /// # Panics
    /// If the stream ends.
    pub async fn next(&mut self) -> Told {
        let told = self.read().await.unwrap();
        told.expect("the stream has ended")
    }

    /// The next `number` events.
    pub async fn take(&mut self, number: usize) -> Vec<Told> {
        let mut told = Vec::new();
        while told.len() < number {
            told.push(self.next().await);
        }
        told
    }

    /// All events up to the first one of this kind.
    pub async fn up_to(&mut self, kind: &str) -> Vec<Told> {
        let mut told = vec![self.next().await];
        while told.last().is_some_and(|last| last.kind != kind) {
            told.push(self.next().await);
        }
        told
    }

    fn block(&mut self) -> Option<String> {
        let end = self.buffer.windows(2).position(|window| window == b"\n\n")?;
        let block: Vec<u8> = self.buffer.drain(..end + 2).collect();
        Some(String::from_utf8(block).unwrap())
    }
}

/// `None` for a block without data, which is a comment or the reconnection time.
fn parse(block: &str) -> Option<Told> {
    let field = |name: &str| {
        let prefix = format!("{name}: ");
        block
            .lines()
            .find_map(|line| line.strip_prefix(&prefix).map(str::to_owned))
    };
    Some(Told {
        data: serde_json::from_str(&field("data")?).unwrap(),
        id: field("id").unwrap().parse().unwrap(),
        kind: field("event").unwrap(),
    })
}
