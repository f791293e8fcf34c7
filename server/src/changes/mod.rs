//! The record of a change: its origin, its audit entry, and the kinds of events. This module is pure.

pub(crate) mod chain;

pub(crate) use assay_protocol::admin_api::changes::{AuditAction as Action, EventKind, ResourceKind};
use assay_protocol::{
    KeyThumbprint,
    admin_api::audit::{Actor, ActorKind},
};
use serde_json::Value;
use uuid::Uuid;

/// Who made a change, and in which request.
#[derive(Debug, Clone)]
pub(crate) struct Origin {
    pub(crate) actor: Actor,
    pub(crate) request_id: Option<String>,
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
    /// What streams and webhooks are told of it.
    pub(crate) event: Option<NewEvent>,
}

/// An event, as streams and webhooks are told of it.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    /// `None` for an event that concerns no machine.
    pub(crate) machine_id: Option<Uuid>,
    pub(crate) kind: EventKind,
    pub(crate) detail: Value,
}

impl Origin {
    /// A machine, authenticated by its key.
    pub(crate) fn machine(id: Uuid, request_id: String) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: Some(id.to_string()),
                name: None,
            },
            request_id: Some(request_id),
        }
    }

    /// A key that asks to be let in, before it is known whether a machine has it.
    pub(crate) fn applicant(request_id: String) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: None,
                name: None,
            },
            request_id: Some(request_id),
        }
    }

    /// An ACME client, authenticated by its account. `machine_id` is the machine it acts for, if one is registered.
    pub(crate) fn acme_account(account_id: Uuid, machine_id: Option<Uuid>, request_id: String) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: machine_id.map(|id| id.to_string()),
                name: Some(format!("ACME account {account_id}")),
            },
            request_id: Some(request_id),
        }
    }

    /// The key of a device's certificate, if the request uses no account.
    pub(crate) fn device_key(key: KeyThumbprint, request_id: String) -> Self {
        Self {
            actor: Actor {
                kind: ActorKind::Machine,
                id: None,
                name: Some(format!("the key {key}")),
            },
            request_id: Some(request_id),
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
