//! The output of the demo.

use std::{
    io::{self, Write},
    path::Path,
};

use assay_agent::EnrollOutcome;
use assay_protocol::agent_api::CheckedIn;
use secrecy::{ExposeSecret, SecretString};
use time::format_description::well_known::Rfc3339;

use super::{DemoError, DemoOptions};

/// Prints the steps as they happen.
pub(crate) struct Story {
    out: io::Stdout,
}

impl Story {
    pub(super) fn begin(options: &DemoOptions, folder: &Path) -> Result<Self, DemoError> {
        let mut story = Self { out: io::stdout() };
        let machines = options.machines;
        story.say(&format!(
            "Assay demo: a server, Postgres and {machines} simulated machines, all under {}\n",
            folder.display()
        ))?;
        Ok(story)
    }

    pub(super) fn server_runs(&mut self, address: &str, root: &Path) -> Result<(), DemoError> {
        self.say("1. A server")?;
        self.say(&format!(
            "   listens on {address}, with a private Postgres and a certificate of its own CA"
        ))?;
        self.say(&format!("   its root certificate: {}", root.display()))
    }

    pub(super) fn administrator_has(&mut self, what: &str) -> Result<(), DemoError> {
        self.say(&format!("   {what}"))
    }

    pub(super) fn chapter(&mut self, title: &str) -> Result<(), DemoError> {
        self.say(&format!("\n{title}"))
    }

    pub(super) fn enrolled(&mut self, serial_number: &str, outcome: &EnrollOutcome) -> Result<(), DemoError> {
        match outcome {
            EnrollOutcome::Enrolled { enrolled, .. } => self.say(&format!(
                "   {serial_number} is {} ({}), certificate {} until {}",
                enrolled.spiffe_id,
                enrolled.assurance,
                enrolled.certificate.serial_number,
                enrolled.certificate.not_after.format(&Rfc3339).unwrap_or_default(),
            )),
            EnrollOutcome::Pending(_) => self.say(&format!("   {serial_number} waits for approval")),
        }
    }

    pub(super) fn checked_in(&mut self, serial_number: &str, answer: &CheckedIn) -> Result<(), DemoError> {
        for grant in &answer.grants {
            let permissions = grant.permissions.join(" ");
            self.say(&format!(
                "   {serial_number} granted  {permissions} at {}",
                grant.audience
            ))?;
        }
        for denial in &answer.denied {
            let reasons = denial.reasons.join("; ");
            self.say(&format!(
                "   {serial_number} denied   {} at {}: {reasons}",
                denial.permission, denial.audience
            ))?;
        }
        Ok(())
    }

    pub(super) fn commands_to_try(
        &mut self,
        address: &str,
        root: &Path,
        api_key: &SecretString,
        machine: &Path,
    ) -> Result<(), DemoError> {
        let (root, machine) = (root.display(), machine.display());
        let api_key = api_key.expose_secret();
        self.chapter("The machines go on checking in. Try, in another terminal:")?;
        self.say(&format!("   export API_KEY={api_key}"))?;
        for path in ["machines", "grants", "audit?limit=5"] {
            let call =
                format!("curl --cacert {root} -H \"Authorization: Bearer $API_KEY\" '{address}/v1/admin/{path}'");
            self.say(&format!("   {call}"))?;
        }
        self.say(&format!(
            "   curl --cacert {root} {address}/.well-known/openid-configuration"
        ))?;
        self.say(&format!(
            "   assay-agent --state-dir {machine} --key-store software status"
        ))?;
        self.say(&format!(
            "   assay-agent --state-dir {machine} --key-store software grant --audience https://builds.example"
        ))?;
        self.say("\nCtrl-C ends everything and removes the folder.")
    }

    pub(super) fn end(mut self) -> Result<(), DemoError> {
        self.say("\nDone: everything is stopped, and the folder is removed.")
    }

    fn say(&mut self, line: &str) -> Result<(), DemoError> {
        writeln!(self.out, "{line}")
            .and_then(|()| self.out.flush())
            .map_err(DemoError::Output)
    }
}
