//! ACME's resources as JSON (RFC 8555, section 7.1).

use assay_protocol::text::rfc3339;
use serde::Serialize;

use super::problem::ErrorDocument;
use crate::{
    acme::urls::Urls,
    services::Services,
    store::{
        acme_accounts::{Account, AccountStatus},
        acme_orders::{Order, OrderStatus},
    },
};

/// An account. Contacts are not stored.
#[derive(Serialize)]
pub(super) struct AccountDocument {
    status: AccountStatus,
    orders: String,
}

/// A page of an account's orders.
#[derive(Serialize)]
pub(super) struct OrderList {
    pub(super) orders: Vec<String>,
}

#[derive(Serialize)]
pub(super) struct OrderDocument {
    status: OrderStatus,
    expires: String,
    identifiers: [Identifier; 1],
    authorizations: [String; 1],
    finalize: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDocument>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<String>,
}

/// The authorization of an order.
#[derive(Serialize)]
pub(super) struct AuthorizationDocument {
    identifier: Identifier,
    status: &'static str,
    expires: String,
    challenges: [ChallengeDocument; 1],
}

/// The challenge of an authorization.
#[derive(Serialize)]
pub(super) struct ChallengeDocument {
    #[serde(rename = "type")]
    kind: &'static str,
    url: String,
    token: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    validated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<ErrorDocument>,
}

#[derive(Serialize)]
struct Identifier {
    #[serde(rename = "type")]
    kind: &'static str,
    value: String,
}

impl AccountDocument {
    pub(super) fn of(services: &Services, account: &Account) -> Self {
        Self {
            status: account.status,
            orders: Urls(&services.policy.public_url).orders(account.id),
        }
    }
}

impl OrderDocument {
    pub(super) fn of(services: &Services, order: &Order) -> Self {
        let urls = Urls(&services.policy.public_url);
        Self {
            status: order.status_at(services.clock.now()),
            expires: rfc3339(order.expires_at),
            identifiers: [Identifier::of(order)],
            authorizations: [urls.authorization(order.id)],
            finalize: urls.finalize(order.id),
            error: error_of(order),
            certificate: order
                .certificate_serial_number
                .as_ref()
                .map(|_| urls.certificate(order.id)),
        }
    }
}

impl AuthorizationDocument {
    pub(super) fn of(services: &Services, order: &Order) -> Self {
        // RFC 8555, section 7.1.6: an authorization has more final states than its order.
        let status = match order.status_at(services.clock.now()) {
            OrderStatus::Pending => "pending",
            OrderStatus::Ready | OrderStatus::Valid => "valid",
            OrderStatus::Invalid if order.deactivated => "deactivated",
            OrderStatus::Invalid if order.refusal.is_some() => "invalid",
            OrderStatus::Invalid => "expired",
        };
        Self {
            identifier: Identifier::of(order),
            status,
            expires: rfc3339(order.expires_at),
            challenges: [ChallengeDocument::of(services, order)],
        }
    }
}

impl ChallengeDocument {
    pub(super) fn of(services: &Services, order: &Order) -> Self {
        let status = match (&order.refusal, order.validated_at) {
            (Some(_), _) => "invalid",
            (None, Some(_)) => "valid",
            (None, None) => "pending",
        };
        Self {
            kind: "device-attest-01",
            url: Urls(&services.policy.public_url).challenge(order.id),
            token: order.token.clone(),
            status,
            validated: order.validated_at.map(rfc3339),
            error: error_of(order),
        }
    }
}

impl Identifier {
    fn of(order: &Order) -> Self {
        Self {
            kind: "permanent-identifier",
            value: order.serial_number.clone(),
        }
    }
}

fn error_of(order: &Order) -> Option<ErrorDocument> {
    let refusal = order.refusal.as_ref()?;
    Some(ErrorDocument::new(&refusal.kind, &refusal.detail))
}
