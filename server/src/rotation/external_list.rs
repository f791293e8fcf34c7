//! The revocation list of a root elsewhere. Its owner signs it, and an administrator installs it here, where verifiers
//! look for it.

use assay_authority::{ListRefusal, external_list};
use assay_protocol::text::rfc3339;
use serde_json::json;
use time::OffsetDateTime;

use super::{RotationError, changes};
use crate::{
    changes::{Action, Change, Origin},
    keyring::certificate,
    store::{
        Store, Transaction,
        revocation_lists::{self, StoredList},
        sealed_keys::{KeyPurpose, SealedKey},
        tx,
    },
};

/// An installed list.
#[derive(Debug)]
pub(crate) struct InstalledList {
    pub(crate) root: SealedKey,
    pub(crate) next_update: OffsetDateTime,
    /// Whether this call installed it.
    pub(crate) is_new: bool,
}

/// Installs the list that the owner of an external root has signed, in PEM or DER. Repeating the call changes nothing.
pub(crate) async fn install_list(store: &Store, origin: &Origin, list: &[u8]) -> Result<InstalledList, RotationError> {
    tx!(store, InstallList, origin => install_in(list)).await
}

async fn install_in(tx: &mut Transaction, list: &[u8]) -> Result<InstalledList, RotationError> {
    let keys = changes::lock(tx).await?;
    let is_external = |key: &&SealedKey| key.purpose == KeyPurpose::RootCa && key.sealed.is_none();
    let roots: Vec<&SealedKey> = keys.keys.iter().filter(is_external).collect();
    let certificates = roots
        .iter()
        .map(|root| certificate(root))
        .collect::<Result<Vec<_>, _>>()?;
    let (signer, list) = external_list::verify(list, &certificates, tx.now())?;
    let root = *roots.get(signer).ok_or(ListRefusal::OtherIssuer)?;
    let installed = |is_new| InstalledList {
        root: root.clone(),
        next_update: list.next_update,
        is_new,
    };
    let states = revocation_lists::states(tx).await?;
    let last = states.iter().find(|state| state.issuer_id == root.id);
    if last.is_some_and(|last| last.this_update > list.this_update) {
        return Err(RotationError::OlderList);
    }
    let stored = revocation_lists::find(tx, root.id).await?;
    if stored.is_some_and(|stored| stored.der == list.der) {
        return Ok(installed(false));
    }
    let number = last.map_or(0, |last| last.number) + 1;
    let next = StoredList {
        number,
        der: list.der.clone(),
        next_update: list.next_update,
    };
    revocation_lists::replace(tx, root.id, list.this_update, &next).await?;
    let [this_update, next_update] = [list.this_update, list.next_update].map(rfc3339);
    let shown = json!({"this_update": this_update, "next_update": next_update});
    tx.record(Change::new(Action::KeyInstallList, root.id).after(shown))
        .await?;
    Ok(installed(true))
}
