//! `assay-agent selftest`: creates keys in this machine's key store, signs with them and verifies, then prints the rate
//! and the failures. It touches neither the machine's key nor the disk.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use assay_protocol::Chain;

use crate::key_store::{Calls, KeyFault, KeyStore, KeyStoreError};

const MESSAGE: &[u8] = b"assay-agent selftest";

/// The result of the test.
#[derive(Debug)]
pub(crate) struct SelftestResult {
    store: &'static str,
    iterations: u32,
    took: Duration,
    failures: BTreeMap<String, u32>,
    handles: Option<Handles>,
}

/// The number of keys that the hardware had loaded for this process.
#[derive(Debug, Clone, Copy)]
struct Handles {
    open: u64,
    most: u64,
}

/// Runs the test.
pub(crate) async fn run(store: Arc<dyn KeyStore>, iterations: u32) -> SelftestResult {
    let (calls, begin) = (Calls::default(), Instant::now());
    let mut failures = BTreeMap::new();
    for _ in 0..iterations {
        let store = Arc::clone(&store);
        // Same calls as the daemon's: on a thread of their own, with a timeout.
        if let Err(fault) = calls.call(move || once(store.as_ref())).await {
            *failures.entry(Chain(&fault).to_string()).or_default() += 1;
        }
    }
    SelftestResult {
        store: store.kind().as_str(),
        iterations,
        took: begin.elapsed(),
        failures,
        handles: handles(),
    }
}

fn once(store: &dyn KeyStore) -> Result<(), KeyFault> {
    let key = store.create()?;
    let public_key = store.public_key(&key)?;
    let signature = store.sign(&key, MESSAGE)?;
    let verified = public_key.verify_der(MESSAGE, &signature);
    verified.map_err(|error| {
        KeyFault::Store(KeyStoreError::Unavailable {
            reason: format!("its signature does not verify: {error}"),
        })
    })
}

#[cfg(any(target_os = "macos", feature = "enclave-stand-in", test))]
fn handles() -> Option<Handles> {
    let crate::shim::Handles { open, most } = crate::shim::handles();
    Some(Handles { open, most })
}

#[cfg(not(any(target_os = "macos", feature = "enclave-stand-in", test)))]
fn handles() -> Option<Handles> {
    None
}

impl SelftestResult {
    /// Whether every iteration succeeded, and no key stayed loaded.
    pub(crate) fn is_well(&self) -> bool {
        // The calls run one after the other, so at most one key is loaded.
        let are_released = self
            .handles
            .is_none_or(|handles| handles.open == 0 && handles.most <= 1);
        self.failures.is_empty() && are_released
    }
}

impl fmt::Display for SelftestResult {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = f64::from(self.iterations) / self.took.as_secs_f64().max(f64::EPSILON);
        writeln!(formatter, "key store     {}", self.store)?;
        writeln!(
            formatter,
            "iterations    {} in {:.2} s, {rate:.0} a second",
            self.iterations,
            self.took.as_secs_f64()
        )?;
        if self.failures.is_empty() {
            writeln!(formatter, "failures      0")?;
        }
        for (failure, count) in &self.failures {
            writeln!(formatter, "failures      {count}: {failure}")?;
        }
        if let Some(Handles { open, most }) = self.handles {
            writeln!(formatter, "handles       {open} open, at most {most} at a time")?;
        }
        Ok(())
    }
}
