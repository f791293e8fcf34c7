//! The record of a change: its origin, its audit entry, and the kinds of events. This module is pure.

pub(crate) mod chain;
pub(crate) mod personal_data;

use std::{
    borrow::Cow,
    net::IpAddr,
    sync::{Arc, OnceLock},
};

pub(crate) use assay_protocol::admin_api::changes::{AuditAction as Action, EventKind, ResourceKind};
use assay_protocol::{
    KeyThumbprint,
    admin_api::audit::{Actor, ActorKind},
};
use serde_json::{Value, json};
use uuid::Uuid;

/// Who made a change, in which request, and from which address.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) actor: Actor,
    pub(crate) request_id: Option<String>,
    pub(crate) address: Option<IpAddr>,
}

/// The request that a change comes from.
#[derive(Debug, Clone)]
pub(crate) struct RequestSource {
    pub(crate) request_id: Arc<str>,
    /// `None` if the peer has no address, as in a measurement.
    pub(crate) address: Option<IpAddr>,
    identity: Arc<OnceLock<Identity>>,
}

/// The identity that a request has proved. The log names it if the request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Identity {
    ApiKey(Uuid),
    Machine(Uuid),
    AcmeAccount(Uuid),
}

impl RequestSource {
    pub(crate) fn new(request_id: &str, address: Option<IpAddr>) -> Self {
        Self {
            request_id: request_id.into(),
            address,
            identity: Arc::default(),
        }
    }

    /// Notes the identity that this request has proved. The first one counts.
    pub(crate) fn identify(&self, identity: Identity) {
        let _noted_before = self.identity.set(identity);
    }

    /// The identity that this request has proved.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.get().copied()
    }
}

/// A change to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct Change {
    /// What was done, such as `machine.revoke`.
    pub(crate) action: Action,
    pub(crate) resource_id: String,
    /// Why, in the actor's words.
    pub(crate) reason: Option<String>,
    /// The resource before the change; null if it did not exist.
    pub(crate) before: Option<Value>,
    /// The resource after the change; null if it no longer exists.
    pub(crate) after: Option<Value>,
    /// What streams and webhooks receive of it; the event of the action if absent.
    pub(crate) event: Option<NewEvent>,
}

/// An event, as streams and webhooks receive it.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    /// `None` for an event that concerns no machine.
    pub(crate) machine_id: Option<Uuid>,
    pub(crate) kind: EventKind,
    pub(crate) detail: Value,
}

impl Origin {
    /// A machine, authenticated by its key.
    pub(crate) fn machine(id: Uuid, source: &RequestSource) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: Some(id.to_string()),
                name: None,
            },
            request_id: Some(source.request_id.to_string()),
            address: source.address,
        }
    }

    /// A key that requests enrollment, before the server knows whether a machine has it.
    pub(crate) fn applicant(source: &RequestSource) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: None,
                name: None,
            },
            request_id: Some(source.request_id.to_string()),
            address: source.address,
        }
    }

    /// An ACME client, authenticated by its account. `machine_id` is the machine it acts for, if one is registered.
    pub(crate) fn acme_account(account_id: Uuid, machine_id: Option<Uuid>, source: &RequestSource) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: machine_id.map(|id| id.to_string()),
                name: Some(format!("ACME account {account_id}")),
            },
            request_id: Some(source.request_id.to_string()),
            address: source.address,
        }
    }

    /// The key of a device's certificate, if the request uses no account.
    pub(crate) fn device_key(key: KeyThumbprint, source: &RequestSource) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: None,
                name: Some(format!("the key {key}")),
            },
            request_id: Some(source.request_id.to_string()),
            address: source.address,
        }
    }

    /// The server itself.
    pub(crate) fn system() -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::System,
                id: None,
                name: None,
            },
            request_id: None,
            address: None,
        }
    }

    /// A user of the server's command line.
    pub(crate) fn command_line() -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::CommandLine,
                id: None,
                name: None,
            },
            request_id: None,
            address: None,
        }
    }
}

impl Change {
    /// A change to the resource of this id.
    pub(crate) fn new(action: Action, resource_id: impl ToString) -> Self {
        Self {
            action,
            resource_id: resource_id.to_string(),
            reason: None,
            before: None,
            after: None,
            event: None,
        }
    }

    pub(crate) fn reason(mut self, reason: Option<&str>) -> Self {
        self.reason = reason.map(str::to_owned);
        self
    }

    pub(crate) fn before(mut self, before: impl Into<Value>) -> Self {
        self.before = Some(before.into());
        self
    }

    pub(crate) fn after(mut self, after: impl Into<Value>) -> Self {
        self.after = Some(after.into());
        self
    }

    /// The event that announces this change. What is behind an id is for callers that may read it.
    pub(crate) fn announced(&self, origin: &Origin) -> Option<Cow<'_, NewEvent>> {
        if let Some(event) = &self.event {
            return Some(Cow::Borrowed(event));
        }
        let kind = self.action.event()?;
        Some(Cow::Owned(NewEvent {
            machine_id: None,
            kind,
            detail: json!({
                "resource": {"kind": self.action.resource(), "id": self.resource_id},
                "actor": {"kind": origin.actor.kind, "id": origin.actor.id},
            }),
        }))
    }

    /// With an event of a machine.
    pub(crate) fn event(mut self, machine_id: Uuid, kind: EventKind, detail: Value) -> Self {
        self.event = Some(NewEvent {
            machine_id: Some(machine_id),
            kind,
            detail,
        });
        self
    }
}
