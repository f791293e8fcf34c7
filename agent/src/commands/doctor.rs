//! `assay-agent doctor`: checks what the agent needs on this machine, and prints each problem with its remedy. It
//! changes nothing, and can run while the daemon runs.

use std::{fmt, sync::Arc};

use assay_protocol::{Chain, machine::KeyAccessibility};
use serde::Serialize;
use serde_json::Value;

use super::status::{RotationStatus, printable};
use crate::{
    config::Settings,
    facts::Facts,
    key_store::{self, KeyFault, KeyStore, KeyStoreError, MachineKey},
    state::{KeyTrouble, Record, StateDirectory, is_excluded},
};

const MESSAGE: &[u8] = b"assay-agent doctor";

/// The result of all checks.
#[derive(Debug, Serialize)]
pub(crate) struct Diagnosis {
    findings: Vec<Finding>,
}

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    subject: &'static str,
    is_well: bool,
    /// The kind of a key problem, for scripts.
    key: Option<KeyTrouble>,
    finding: String,
    advice: Option<String>,
}

/// Runs all checks.
pub(crate) async fn diagnose(settings: &Settings, facts: Option<&dyn Facts>) -> Diagnosis {
    let directory = StateDirectory::at(settings.state_dir());
    let record = directory.record();
    let mut findings = vec![match &record {
        Ok(_) => Finding::ok("state", directory.path().display().to_string()),
        Err(error) => Finding::problem(
            "state",
            Chain(error).to_string(),
            "run this as root, or name the state directory with --state-dir; `assay-agent reset` deletes a damaged one",
        ),
    }];
    let record = record.unwrap_or_default();
    findings.extend(backups(&directory));
    findings.push(server(&record, settings));
    findings.push(match (foreign_state(&record, facts), key_store(settings)) {
        // Nothing is signed with another machine's key.
        (Some(foreign), _) => foreign,
        (None, Ok(store)) => {
            key(
                MachineKey::new(store, directory).at(record.key_place),
                &record,
                settings.accessibility(),
            )
            .await
        }
        (None, Err(error)) => Finding::of_key_fault(&KeyFault::Store(error)),
    });
    findings.extend(record.rotation.as_ref().map(|rotation| Finding {
        advice: Some("nothing: the daemon continues it at the next check-in".to_owned()),
        ..Finding::ok("key rotation", RotationStatus::of(rotation).to_string())
    }));
    findings.extend(facts.map(unreadable_facts));
    findings.push(last_exchange(&record));
    Diagnosis { findings }
}

fn key_store(settings: &Settings) -> Result<Arc<dyn KeyStore>, KeyStoreError> {
    key_store::open(settings.key_store(), settings.accessibility())
}

/// Whether Time Machine leaves the state directory out. `None` on other systems.
fn backups(directory: &StateDirectory) -> Option<Finding> {
    let path = directory.path();
    Some(match is_excluded(path)? || !path.exists() {
        true => Finding::ok("backups", "Time Machine leaves the state directory out".to_owned()),
        false => Finding::problem(
            "backups",
            "Time Machine backs the state directory up, and a restored state looks like a copied key".to_owned(),
            &format!("run `sudo tmutil addexclusion {}`", path.display()),
        ),
    })
}

/// A state that was copied from another machine.
fn foreign_state(record: &Record, facts: Option<&dyn Facts>) -> Option<Finding> {
    let present = facts?.hardware_uuid().ok().flatten()?;
    let recorded = record.other_hardware(Some(&present))?;
    Some(Finding::problem(
        "key",
        format!("it belongs to another machine: to the hardware UUID {recorded}, and this machine has {present}"),
        "nothing if the daemon runs and a token is configured: the agent enrolls this machine anew. Otherwise run \
         `assay-agent enroll`",
    ))
}

fn server(record: &Record, settings: &Settings) -> Finding {
    let on_record = record.server.as_ref().map(|server| &server.url);
    match (on_record, &settings.server) {
        (None, None) => Finding::problem(
            "server",
            "none is configured".to_owned(),
            "set `server` in the configuration or in a configuration profile, or use `assay-agent enroll --server URL`",
        ),
        (Some(on_record), Some(configured)) if on_record != configured && record.is_known_to_a_server() => {
            Finding::problem(
                "server",
                format!("this machine is enrolled with {on_record}, but configured for {configured}"),
                "configure the former, or run `assay-agent reset` and enroll with the latter",
            )
        }
        (on_record, configured) => {
            let server = on_record.or(configured.as_ref()).map(ToString::to_string);
            Finding::ok("server", server.unwrap_or_default())
        }
    }
}

/// Loads the key and signs with it, as a check-in does.
async fn key(key: MachineKey, record: &Record, configured: KeyAccessibility) -> Finding {
    let used = key.use_key(|store: &dyn KeyStore, sealed| {
        let public_key = store.public_key(sealed).map_err(KeyFault::Store)?;
        let signature = store.sign(sealed, MESSAGE).map_err(KeyFault::Store)?;
        let is_good = public_key.verify_der(MESSAGE, &signature).is_ok();
        Ok((public_key, is_good, store.accessibility(sealed)))
    });
    match used.await {
        Ok((public_key, _, _)) if record.key.is_some_and(|known| known != public_key.thumbprint()) => {
            Finding::of_key_trouble(KeyTrouble::Changed, key.file().display().to_string())
        }
        Ok((_, false, _)) => {
            Finding::of_key_trouble(KeyTrouble::Unavailable, "its signature does not verify".to_owned())
        }
        Ok((public_key, true, accessibility)) => {
            let mut finding = format!("{} in {}", public_key.thumbprint(), key.file().display());
            if accessibility.is_some_and(|accessibility| accessibility != configured) {
                finding.push_str("; the configured accessibility differs, and applies only to new keys");
            }
            Finding::ok("key", finding)
        }
        Err(KeyFault::Missing(_)) if record.key.is_none() => {
            Finding::ok("key", "none yet: the enrollment creates one".to_owned())
        }
        Err(fault) => Finding::of_key_fault(&fault),
    }
}

fn unreadable_facts(facts: &dyn Facts) -> Finding {
    let facts = match facts.read() {
        Ok(facts) => facts,
        Err(error) => return Finding::problem("facts", Chain(&error).to_string(), "correct the file"),
    };
    let names = |value: serde_json::Result<Value>| match value {
        Ok(Value::Object(members)) => members
            .into_iter()
            .filter(|(name, value)| value.is_null() && name != "agent_version")
            .map(|(name, _)| name)
            .collect(),
        _ => Vec::new(),
    };
    let mut unreadable = names(serde_json::to_value(&facts.machine));
    unreadable.extend(names(serde_json::to_value(&facts.posture)));
    match unreadable.is_empty() {
        true => Finding::ok("facts", "all readable".to_owned()),
        false => Finding {
            advice: Some(
                "conditions on these facts fail. Some are readable only by root, some do not exist on every system"
                    .to_owned(),
            ),
            ..Finding::ok("facts", format!("not readable: {}", unreadable.join(", ")))
        },
    }
}

fn last_exchange(record: &Record) -> Finding {
    match (&record.last_failure, &record.last_check_in) {
        (Some(failure), _) => Finding {
            key: failure.key,
            advice: failure.key.map(|trouble| trouble.advice().to_owned()),
            ..Finding::problem(
                "last exchange",
                format!("{}: {}", failure.exchange, failure.message),
                "see above",
            )
        },
        (None, Some(_)) => Finding::ok("last exchange", "succeeded".to_owned()),
        (None, None) => Finding::ok("last exchange", "none yet".to_owned()),
    }
}

impl Diagnosis {
    /// Whether no check found a problem.
    pub(crate) fn is_well(&self) -> bool {
        self.findings.iter().all(|finding| finding.is_well)
    }

    /// Whether a check found a problem with the key.
    pub(crate) fn has_key_trouble(&self) -> bool {
        self.findings.iter().any(|finding| finding.key.is_some())
    }
}

impl Finding {
    fn ok(subject: &'static str, finding: String) -> Self {
        Self {
            subject,
            is_well: true,
            key: None,
            finding,
            advice: None,
        }
    }

    fn problem(subject: &'static str, finding: String, advice: &str) -> Self {
        Self {
            is_well: false,
            advice: Some(advice.to_owned()),
            ..Self::ok(subject, finding)
        }
    }

    fn of_key_fault(fault: &KeyFault) -> Self {
        Self::of_key_trouble(KeyTrouble::from(fault), Chain(fault).to_string())
    }

    fn of_key_trouble(trouble: KeyTrouble, detail: String) -> Self {
        Self {
            key: Some(trouble),
            ..Self::problem("key", format!("{} ({detail})", trouble.matter()), trouble.advice())
        }
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let word = if finding.is_well { "ok" } else { "PROBLEM" };
            writeln!(
                formatter,
                "{word:<9}{:<15}{}",
                finding.subject,
                printable(&finding.finding)
            )?;
            if let Some(advice) = &finding.advice {
                writeln!(formatter, "{:<9}{:<15}{}", "", "what to do", printable(advice))?;
            }
        }
        Ok(())
    }
}
