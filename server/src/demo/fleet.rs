//! The demo's machines: the agent's code, with software keys and invented facts.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use assay_agent::{
    Agent, AgentError, AgentOptions, EnrollOptions, ServerUrl, TrustAnchor, clock::SystemClock, facts::MachineFacts,
    key_store::SoftwareKeyStore,
};
use assay_protocol::{
    Chain,
    machine::{MachineIdentity, Posture},
};
use secrecy::SecretString;
use tokio::time::{MissedTickBehavior, interval};

use super::{CHECK_IN_INTERVAL, DemoError, Story};

/// The machines of the demo.
pub(super) struct Fleet {
    machines: Vec<Machine>,
    server: ServerUrl,
    root: String,
    token: SecretString,
}

struct Machine {
    serial_number: String,
    state_dir: PathBuf,
    agent: Agent,
}

impl Fleet {
    pub(super) fn new(
        machines: u32,
        folder: &Path,
        address: &str,
        root: &Path,
        token: SecretString,
    ) -> Result<Self, DemoError> {
        Ok(Self {
            machines: (1..=machines)
                .map(|number| Machine::new(number, folder))
                .collect::<Result<_, _>>()?,
            server: address.parse().map_err(DemoError::Address)?,
            root: std::fs::read_to_string(root).map_err(DemoError::Folder)?,
            token,
        })
    }

    /// The state directory of one of the machines.
    pub(super) fn a_machine(&self) -> &Path {
        self.machines
            .first()
            .map_or(Path::new("."), |machine| &machine.state_dir)
    }

    pub(super) async fn enroll_and_check_in(&self, story: &mut Story) -> Result<(), DemoError> {
        story.chapter("3. The machines enroll: a key each, a CSR, a certificate")?;
        for machine in &self.machines {
            let options = EnrollOptions {
                server: self.server.clone(),
                token: Some(self.token.clone()),
                trust: Some(TrustAnchor::Certificates(self.root.clone())),
            };
            let outcome = machine
                .agent
                .enroll(options)
                .await
                .map_err(|error| machine.failed(error))?;
            story.enrolled(&machine.serial_number, &outcome)?;
        }
        story.chapter("4. The machines check in: a signed nonce each, and what it gets them")?;
        for machine in &self.machines {
            let answer = machine.agent.check_in().await.map_err(|error| machine.failed(error))?;
            story.checked_in(&machine.serial_number, &answer)?;
        }
        Ok(())
    }

    /// Checks in until `stop`. A machine that fails is logged, and tries again in the next round.
    pub(super) async fn keep_checking_in(&self, stop: impl Future<Output = ()>) {
        tokio::select! {
            () = stop => {}
            () = self.check_in_forever() => {}
        }
    }

    async fn check_in_forever(&self) {
        let mut turns = interval(Duration::from_secs(CHECK_IN_INTERVAL.whole_seconds().unsigned_abs()));
        turns.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            turns.tick().await;
            for machine in &self.machines {
                if let Err(error) = machine.agent.check_in().await {
                    tracing::warn!(
                        machine = machine.serial_number,
                        error = %Chain(&error),
                        "a check-in failed"
                    );
                }
            }
        }
    }
}

impl Machine {
    fn new(number: u32, folder: &Path) -> Result<Self, DemoError> {
        let serial_number = serial_number(number);
        let state_dir = folder.join("machines").join(&serial_number);
        std::fs::create_dir_all(folder.join("machines")).map_err(DemoError::Folder)?;
        let agent = Agent::open(AgentOptions {
            state_dir: state_dir.clone(),
            key_store: Arc::new(SoftwareKeyStore),
            facts: Arc::new(facts(number)),
            clock: Arc::new(SystemClock),
        });
        let agent = agent.map_err(|error| DemoError::Machine {
            serial_number: serial_number.clone(),
            source: Box::new(error),
        })?;
        Ok(Self {
            serial_number,
            state_dir,
            agent,
        })
    }

    fn failed(&self, source: AgentError) -> DemoError {
        DemoError::Machine {
            serial_number: self.serial_number.clone(),
            source: Box::new(source),
        }
    }
}

/// The serial number of machine `number`, starting at 1.
pub(super) fn serial_number(number: u32) -> String {
    format!("DEMO{number:06}")
}

/// FileVault is off on every second machine, which shows a denied permission.
fn facts(number: u32) -> MachineFacts {
    MachineFacts {
        machine: MachineIdentity {
            serial_number: Some(serial_number(number)),
            hardware_uuid: Some(format!("00000000-0000-4000-8000-{number:012}")),
            model_identifier: Some("Mac15,6".to_owned()),
            hostname: Some(format!("demo-{number}.local")),
        },
        posture: Posture {
            filevault_enabled: Some(number % 2 == 1),
            mdm_enrolled: Some(false),
            agent_version: None,
            ..Posture::healthy()
        },
    }
}
