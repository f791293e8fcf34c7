//! `assay-agent selftest`: makes keys in this machine's key store, signs with them, verifies and lets them go, over and
//! over, and says how fast that was and what failed. It touches no key of the machine's and nothing on the disk.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use assay_protocol::Chain;

use crate::key_store::{Calls, KeyFault, KeyStore, KeyStoreError, name};

const MESSAGE: &[u8] = b"assay-agent selftest";

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome {
    store: &'static str,
    iterations: u32,
    took: Duration,
    failures: BTreeMap<String, u32>,
    handles: Option<Handles>,
}

/// How many keys the hardware had loaded for this process.
#[derive(Debug, Clone, Copy)]
struct Handles {
    open: u64,
    most: u64,
}

/// Does it.
pub(crate) async fn run(store: Arc<dyn KeyStore>, iterations: u32) -> Outcome {
    let (calls, begin) = (Calls::default(), Instant::now());
    let mut failures = BTreeMap::new();
    for _ in 0..iterations {
        let store = Arc::clone(&store);
        // Four calls of a key's life, made as the daemon makes them: on a thread of their own, with a timeout.
        if let Err(fault) = calls.call(move || once(store.as_ref())).await {
            *failures.entry(Chain(&fault).to_string()).or_default() += 1;
        }
    }
    Outcome {
        store: name(store.kind()),
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
            reason: format!("its own signature: {error}"),
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

impl Outcome {
    /// Whether every iteration went well, and no key stayed loaded.
    pub(crate) fn is_well(&self) -> bool {
        // One call at a time is one key at a time.
        let are_released = self
            .handles
            .is_none_or(|handles| handles.open == 0 && handles.most <= 1);
        self.failures.is_empty() && are_released
    }
}

impl fmt::Display for Outcome {
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
