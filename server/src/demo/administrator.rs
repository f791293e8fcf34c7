//! The demo's administrator: makes the usual settings over the REST API.

use std::{sync::Arc, time::Duration};

use reqwest::Client;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use secrecy::{ExposeSecret, SecretString};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{DemoError, Story, fleet};

const TIMEOUT: Duration = Duration::from_secs(10);

/// A client for the admin API that trusts only the demo's root.
pub(super) struct Administrator {
    client: Client,
    address: String,
    api_key: SecretString,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdministratorError {
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
    #[error("cannot read the root certificate")]
    Root,
    #[error("{call} failed")]
    Call {
        call: String,
        #[source]
        source: reqwest::Error,
    },
    #[error("{call} was refused: {response}")]
    Refused { call: String, response: String },
    #[error("{call} got an unexpected response")]
    Response { call: String },
}

impl Administrator {
    pub(super) fn new(address: &str, roots_pem: &str, api_key: SecretString) -> Result<Self, AdministratorError> {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(roots_pem.as_bytes()) {
            roots.add(root.map_err(|_| AdministratorError::Root)?)?;
        }
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Client::builder()
            .tls_backend_preconfigured(tls)
            .timeout(TIMEOUT)
            .build();
        let client = client.map_err(|source| AdministratorError::Call {
            call: "connecting".to_owned(),
            source,
        })?;
        Ok(Self {
            client,
            address: address.to_owned(),
            api_key,
        })
    }

    pub(super) fn api_key(&self) -> &SecretString {
        &self.api_key
    }

    /// Creates two permissions, a grant for each, and a token for the machines. Returns the token.
    pub(super) async fn set_up(&self, machines: u32, story: &mut Story) -> Result<SecretString, DemoError> {
        story.chapter("2. An administrator")?;
        let read = self
            .permission("https://builds.example", "artifacts.read", "Fetch build artifacts")
            .await?;
        self.grant(&read, &json!({"all": true}), &json!({})).await?;
        story.administrator_has("grants artifacts.read at https://builds.example to every machine")?;
        let sign = self
            .permission("https://signing.example", "releases.sign", "Sign releases")
            .await?;
        let conditions = json!({"filevault_enabled": true, "sip_enabled": true, "min_os_version": "15.0"});
        self.grant(&sign, &json!({"labels": {"team": "release"}}), &conditions)
            .await?;
        story.administrator_has(
            "grants releases.sign at https://signing.example to machines labelled team=release,\n   \
             while FileVault and SIP are on and the system is at 15.0 or later",
        )?;
        let serial_numbers: Vec<_> = (1..=machines).map(fleet::serial_number).collect();
        let token = json!({
            "description": "demo machines", "max_uses": machines, "expires_in_seconds": 3600,
            "serial_numbers": serial_numbers, "labels": {"team": "release"},
        });
        let token: Value = self.post("enrollment-tokens", &token).await?;
        story.administrator_has("makes an enrollment token for these machines' serial numbers")?;
        Ok(text(&token, "token", "enrollment-tokens")?.into())
    }

    async fn permission(&self, audience: &str, name: &str, description: &str) -> Result<String, AdministratorError> {
        let permission = json!({"audience": audience, "name": name, "description": description});
        text(&self.post("permissions", &permission).await?, "id", "permissions")
    }

    async fn grant(&self, permission_id: &str, selector: &Value, conditions: &Value) -> Result<(), AdministratorError> {
        let grant = json!({"permission_id": permission_id, "selector": selector, "conditions": conditions});
        self.post::<Value>("grants", &grant).await.map(drop)
    }

    async fn post<T: DeserializeOwned>(&self, noun: &str, body: &Value) -> Result<T, AdministratorError> {
        let call = format!("POST /v1/admin/{noun}");
        let failed = |source| AdministratorError::Call {
            call: call.clone(),
            source,
        };
        let request = self.client.post(format!("{}/v1/admin/{noun}", self.address));
        let response = request
            .bearer_auth(self.api_key.expose_secret())
            .json(body)
            .send()
            .await
            .map_err(failed)?;
        if response.status().is_success() {
            return response.json().await.map_err(failed);
        }
        let response = response.text().await.map_err(failed)?;
        Err(AdministratorError::Refused { call, response })
    }
}

fn text(response: &Value, member: &str, noun: &str) -> Result<String, AdministratorError> {
    let text = response.get(member).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| AdministratorError::Response {
        call: format!("POST /v1/admin/{noun}"),
    })
}
