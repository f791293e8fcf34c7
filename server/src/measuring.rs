//! What measurements of the server's insides need (the feature `measuring`). None of it is part of a server that is shipped.

#![allow(
    clippy::unwrap_used,
    reason = "a measurement that cannot be set up has failed, and says where"
)]

use assay_grants::{Catalog, CatalogGrant, Subject};
use assay_protocol::{
    admin_api::grants::{Conditions, Selector},
    machine::{Assurance, KeyStoreKind, MachineStatus, Posture, SecureBoot},
};
use serde_json::{from_value, json};
use time::{OffsetDateTime, macros::datetime};
use uuid::Uuid;

use crate::check_in::nonce::Nonces;

/// What the server's program allocates with, for the programs that stand in for it.
pub use mimalloc::MiMalloc as Allocator;

const NOW: OffsetDateTime = datetime!(2026-11-22 10:00 UTC);
const MACHINE: Uuid = Uuid::from_u128(0x0191_0000_0000_7000_8000_0000_0000_0001);

/// Recognizes a nonce, the same at every call.
pub fn recognize_nonce() -> impl Fn() -> OffsetDateTime {
    let nonces = Nonces::new(&[7; 32]);
    let nonce = nonces.issue(NOW, None);
    move || nonces.recognize(&nonce, NOW).unwrap().order()
}

/// Evaluates 30 grants for a machine that 25 of them are for, and returns how many audiences it is granted something at.
pub fn evaluate_grants() -> impl Fn() -> usize {
    let catalog = Catalog::new(1, grants());
    let labels = from_value(json!({"team": "build", "site": "berlin", "managed": "yes"})).unwrap();
    let posture = Posture {
        os_version: Some("26.1".to_owned()),
        sip_enabled: Some(true),
        filevault_enabled: Some(true),
        secure_boot: Some(SecureBoot::Full),
        ..Posture::default()
    };
    move || {
        let subject = Subject {
            machine_id: MACHINE,
            status: MachineStatus::Active,
            assurance: Assurance::Verified,
            serial_number: None,
            labels: &labels,
            claimed_key_store: KeyStoreKind::Software,
            claimed_posture: &posture,
            attestation: None,
            sip_attestation: None,
            boot_attestation: None,
            is_contested: false,
            certificate_expires_at: Some(NOW + time::Duration::DAY),
        };
        assay_grants::evaluate(&catalog, &subject, NOW).granted.len()
    }
}

/// Every kind of selector with every kind of condition: one that holds for the machine, and of each one that does not.
fn grants() -> Vec<CatalogGrant> {
    let selectors = [
        json!({"all": true}),
        json!({"labels": {"team": "build"}}),
        json!({"labels": {"site": "berlin"}}),
        json!({"labels": {"site": "berlin", "team": "build"}}),
        json!({"machine_ids": [MACHINE, Uuid::from_u128(2)]}),
        json!({"labels": {"team": "sales"}}),
    ];
    let conditions = [
        json!({}),
        json!({"sip_enabled": true, "filevault_enabled": true}),
        json!({"min_assurance": "verified"}),
        json!({"min_os_version": "26.0", "secure_boot": "full"}),
        json!({"max_attestation_age_days": 30}),
    ];
    let mut grants = Vec::new();
    for (place, selector) in selectors.iter().enumerate() {
        for (number, conditions) in conditions.iter().enumerate() {
            grants.push(CatalogGrant {
                id: Uuid::from_u128(u128::try_from(grants.len()).unwrap()),
                audience: format!("https://audience-{number}.example.com"),
                permission: format!("permission-{place}"),
                selector: from_value::<Selector>(selector.clone()).unwrap(),
                conditions: from_value::<Conditions>(conditions.clone()).unwrap(),
                expires_at: None,
            });
        }
    }
    grants
}
