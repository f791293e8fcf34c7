//! Calling NanoMDM: `PUT /v1/enqueue/{enrollment id}` with the command as a property list, and its answer.

use std::{collections::HashMap, time::Duration};

use reqwest::{StatusCode, header::CONTENT_TYPE};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::outgoing::{self, ClientError};

/// The user of NanoMDM's API.
const USER: &str = "nanomdm";
/// From the beginning to the last byte of the answer that is read.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How much of an answer is read: it names one device.
const LONGEST_ANSWER: usize = 16 * 1024;

/// A NanoMDM that commands are sent through.
pub(crate) struct NanoMdm {
    client: reqwest::Client,
    url: Url,
    api_key: SecretString,
}

/// What became of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It waits for its device.
    Taken,
    /// The MDM will not send it to this device.
    Refused(String),
    /// The MDM takes no command now, or none from this server.
    Failing(String),
    /// It may have been taken, and may not.
    Unclear(String),
}

/// What NanoMDM answers; errors are told for one device or for all.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Answer {
    status: HashMap<String, DeviceStatus>,
    command_error: Option<Value>,
    command_uuid: Option<String>,
}

#[derive(Debug, Deserialize)]
struct DeviceStatus {
    #[serde(default)]
    command_error: Option<Value>,
}

impl NanoMdm {
    /// The one at this address.
    pub(crate) fn new(url: Url, api_key: SecretString) -> Result<Self, ClientError> {
        Ok(Self {
            client: outgoing::client(ANSWERED_WITHIN)?,
            url,
            api_key,
        })
    }

    /// Has a command wait for a device, and the device be told.
    pub(super) async fn enqueue(&self, enrollment_id: &str, command: String) -> Outcome {
        let request = self
            .client
            .put(self.enqueue_url(enrollment_id))
            .basic_auth(USER, Some(self.api_key.expose_secret()))
            .header(CONTENT_TYPE, "application/xml")
            .body(command);
        match request.send().await {
            Ok(answer) => {
                let status = answer.status();
                let body = outgoing::read_some(answer, LONGEST_ANSWER).await;
                outcome(enrollment_id, status, &body)
            }
            Err(error) if error.is_connect() || error.is_builder() => Outcome::Failing(outgoing::in_words(error)),
            Err(error) => Outcome::Unclear(outgoing::in_words(error)),
        }
    }

    fn enqueue_url(&self, enrollment_id: &str) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(["v1", "enqueue", enrollment_id]);
        }
        url
    }
}

fn outcome(enrollment_id: &str, status: StatusCode, body: &[u8]) -> Outcome {
    // NanoMDM answers 500, too, when it took the command and could not tell the device, which then fetches it later.
    if let Ok(answer) = serde_json::from_slice::<Answer>(body) {
        let of_device = answer
            .status
            .get(enrollment_id)
            .and_then(|of_device| of_device.command_error.as_ref());
        if let Some(error) = of_device {
            return Outcome::Refused(format!("NanoMDM refused the command for this device: {error}"));
        }
        if let Some(error) = answer.command_error {
            return Outcome::Failing(format!("NanoMDM answered {status}: {error}"));
        }
        if answer.command_uuid.is_some() {
            return Outcome::Taken;
        }
    }
    let words = format!("NanoMDM answered {status}");
    match status {
        status if status.is_success() => Outcome::Taken,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Outcome::Failing(words),
        status if status.is_server_error() => Outcome::Unclear(words),
        _ => Outcome::Failing(words),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TAKEN: &str = r#"{"status":{"A":{"push_result":"1"}},"command_uuid":"2","request_type":"DeviceInformation"}"#;
    const NOT_TOLD: &str = r#"{"status":{"A":{"push_error":"no push"}},"command_uuid":"2"}"#;
    const REFUSED: &str = r#"{"status":{"A":{"command_error":"no such id"}},"command_uuid":"2"}"#;
    const FAILED: &str = r#"{"command_error":"disk full"}"#;

    #[rstest]
    #[case(200, TAKEN, Outcome::Taken)]
    #[case(200, "", Outcome::Taken)]
    #[case(207, NOT_TOLD, Outcome::Taken)]
    #[case(500, NOT_TOLD, Outcome::Taken)]
    #[case(500, REFUSED, Outcome::Refused("NanoMDM refused the command for this device: \"no such id\"".to_owned()))]
    #[case(500, FAILED, Outcome::Failing("NanoMDM answered 500 Internal Server Error: \"disk full\"".to_owned()))]
    #[case(401, "", Outcome::Failing("NanoMDM answered 401 Unauthorized".to_owned()))]
    #[case(404, "{}", Outcome::Failing("NanoMDM answered 404 Not Found".to_owned()))]
    #[case(503, "<h1>", Outcome::Failing("NanoMDM answered 503 Service Unavailable".to_owned()))]
    #[case(504, "<h1>", Outcome::Unclear("NanoMDM answered 504 Gateway Timeout".to_owned()))]
    fn an_answer_says_what_became_of_the_command(#[case] status: u16, #[case] body: &str, #[case] expected: Outcome) {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(outcome("A", status, body.as_bytes()), expected);
    }

    #[rstest]
    #[case("https://mdm.example.com", "https://mdm.example.com/v1/enqueue/A%2FB")]
    #[case("https://example.com/mdm/", "https://example.com/mdm/v1/enqueue/A%2FB")]
    fn a_device_is_one_part_of_the_path(#[case] url: &str, #[case] expected: &str) {
        let mdm = NanoMdm::new(url.parse().unwrap(), SecretString::from("key")).unwrap();
        assert_eq!(mdm.enqueue_url("A/B").as_str(), expected);
    }
}
