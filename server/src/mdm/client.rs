//! The client for NanoMDM: `PUT /v1/enqueue/{enrollment id}`, with the command as a property list.

use std::{collections::HashMap, time::Duration};

use reqwest::{StatusCode, header::CONTENT_TYPE};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::Value;
use url::Url;

use crate::{
    config::PrivateAddresses,
    outgoing::{self, ClientError},
};

/// The user of NanoMDM's API.
const USER: &str = "nanomdm";
/// The limit for a whole call, up to the last byte read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a response is read. A response names one device.
const MAX_RESPONSE: usize = 16 * 1024;

/// A NanoMDM server that delivers commands.
pub(crate) struct NanoMdm {
    client: reqwest::Client,
    url: Url,
    api_key: SecretString,
}

/// The result of sending a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EnqueueResult {
    /// The command is queued for its device.
    Queued,
    /// The MDM refuses the command for this device.
    Refused(String),
    /// The MDM accepts no commands now, or none from this server.
    Failing(String),
    /// The MDM may or may not have accepted the command.
    Unclear(String),
}

/// NanoMDM's response. It reports errors for one device or for all.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EnqueueResponse {
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
    /// A client for the NanoMDM at `url`.
    pub(crate) fn new(url: Url, api_key: SecretString) -> Result<Self, ClientError> {
        Ok(Self {
            client: outgoing::client(TIMEOUT, PrivateAddresses::Allow)?,
            url,
            api_key,
        })
    }

    /// Queues a command for a device, and has the MDM notify the device.
    pub(super) async fn enqueue(&self, enrollment_id: &str, command: String) -> EnqueueResult {
        let request = self
            .client
            .put(self.enqueue_url(enrollment_id))
            .basic_auth(USER, Some(self.api_key.expose_secret()))
            .header(CONTENT_TYPE, "application/xml")
            .body(command);
        match request.send().await {
            Ok(response) => {
                let status = response.status();
                let body = outgoing::read_some(response, MAX_RESPONSE).await;
                parse_result(enrollment_id, status, &body)
            }
            Err(error) if error.is_connect() || error.is_builder() => EnqueueResult::Failing(outgoing::in_words(error)),
            Err(error) => EnqueueResult::Unclear(outgoing::in_words(error)),
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

fn parse_result(enrollment_id: &str, status: StatusCode, body: &[u8]) -> EnqueueResult {
    // NanoMDM also responds 500 if it queued the command but could not notify the device. The device then fetches it
    // later.
    if let Ok(response) = serde_json::from_slice::<EnqueueResponse>(body) {
        let of_device = response
            .status
            .get(enrollment_id)
            .and_then(|of_device| of_device.command_error.as_ref());
        if let Some(error) = of_device {
            return EnqueueResult::Refused(format!("NanoMDM refused the command for this device: {error}"));
        }
        if let Some(error) = response.command_error {
            return EnqueueResult::Failing(format!("NanoMDM responded {status}: {error}"));
        }
        if response.command_uuid.is_some() {
            return EnqueueResult::Queued;
        }
    }
    let words = format!("NanoMDM responded {status}");
    match status {
        status if status.is_success() => EnqueueResult::Queued,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => EnqueueResult::Failing(words),
        status if status.is_server_error() => EnqueueResult::Unclear(words),
        _ => EnqueueResult::Failing(words),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const QUEUED: &str =
        r#"{"status":{"A":{"push_result":"1"}},"command_uuid":"2","request_type":"DeviceInformation"}"#;
    const NOT_NOTIFIED: &str = r#"{"status":{"A":{"push_error":"no push"}},"command_uuid":"2"}"#;
    const REFUSED: &str = r#"{"status":{"A":{"command_error":"no such id"}},"command_uuid":"2"}"#;
    const FAILED: &str = r#"{"command_error":"disk full"}"#;

    #[rstest]
    #[case(200, QUEUED, EnqueueResult::Queued)]
    #[case(200, "", EnqueueResult::Queued)]
    #[case(207, NOT_NOTIFIED, EnqueueResult::Queued)]
    #[case(500, NOT_NOTIFIED, EnqueueResult::Queued)]
    #[case(500, REFUSED, EnqueueResult::Refused("NanoMDM refused the command for this device: \"no such id\"".to_owned()))]
    #[case(500, FAILED, EnqueueResult::Failing("NanoMDM responded 500 Internal Server Error: \"disk full\"".to_owned()))]
    #[case(401, "", EnqueueResult::Failing("NanoMDM responded 401 Unauthorized".to_owned()))]
    #[case(404, "{}", EnqueueResult::Failing("NanoMDM responded 404 Not Found".to_owned()))]
    #[case(503, "<h1>", EnqueueResult::Failing("NanoMDM responded 503 Service Unavailable".to_owned()))]
    #[case(504, "<h1>", EnqueueResult::Unclear("NanoMDM responded 504 Gateway Timeout".to_owned()))]
    fn a_response_says_what_became_of_the_command(
        #[case] status: u16,
        #[case] body: &str,
        #[case] expected: EnqueueResult,
    ) {
        let status = StatusCode::from_u16(status).unwrap();
        assert_eq!(parse_result("A", status, body.as_bytes()), expected);
    }

    #[rstest]
    #[case("https://mdm.example.com", "https://mdm.example.com/v1/enqueue/A%2FB")]
    #[case("https://example.com/mdm/", "https://example.com/mdm/v1/enqueue/A%2FB")]
    fn a_device_is_one_part_of_the_path(#[case] url: &str, #[case] expected: &str) {
        let mdm = NanoMdm::new(url.parse().unwrap(), SecretString::from("key")).unwrap();
        assert_eq!(mdm.enqueue_url("A/B").as_str(), expected);
    }
}
