//! Facts of a Linux system, from firmware and distribution. Apple's protections do not exist here, so they are null.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use assay_protocol::machine::{MachineIdentity, Posture};
use uuid::Uuid;

use super::{Facts, FactsError, MachineFacts, claim, hardware_id};

/// Placeholders that vendors leave in place of a serial number. Taken as serial numbers, they would make many machines
/// look like one.
const PLACEHOLDERS: &[&str] = &[
    "0",
    "0123456789",
    "123456789",
    "default string",
    "n/a",
    "none",
    "not applicable",
    "not available",
    "not specified",
    "system product name",
    "system serial number",
    "to be filled by o.e.m.",
    "unknown",
];

/// Reads the facts below a root directory.
#[derive(Debug, Clone)]
pub struct LinuxFacts {
    root: PathBuf,
}

impl Default for LinuxFacts {
    fn default() -> Self {
        Self { root: "/".into() }
    }
}

impl Facts for LinuxFacts {
    fn read(&self) -> Result<MachineFacts, FactsError> {
        let os_release = self.text("etc/os-release").or_else(|_| self.text("usr/lib/os-release"));
        let os_release = os_release.unwrap_or_default();
        Ok(MachineFacts {
            machine: MachineIdentity {
                serial_number: self.firmware("product_serial").as_deref().and_then(hardware_id),
                hardware_uuid: self.system_uuid(),
                model_identifier: self.firmware("product_name"),
                hostname: hostname::get()
                    .ok()
                    .and_then(|name| name.into_string().ok())
                    .and_then(|name| claim(&name)),
            },
            posture: Posture {
                os_name: os_release_value(&os_release, "NAME"),
                os_version: os_release_value(&os_release, "VERSION_ID"),
                os_build: os_release_value(&os_release, "BUILD_ID"),
                ..Posture::default()
            },
        })
    }

    fn hardware_uuid(&self) -> Result<Option<String>, FactsError> {
        Ok(self.system_uuid())
    }
}

impl LinuxFacts {
    /// The UUID of the firmware, or of the installation if there is no firmware (a container, a board without DMI).
    ///
    /// Null if the firmware exists but is not readable. If the UUID depended on the user who reads it, the machine
    /// would look like a copied identity and be quarantined.
    fn system_uuid(&self) -> Option<String> {
        let text = match self.text("sys/class/dmi/id/product_uuid") {
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.text("etc/machine-id"),
            answer => answer,
        };
        let uuid = Uuid::parse_str(text.ok()?.trim()).ok()?;
        (!uuid.is_nil() && !uuid.is_max()).then(|| uuid.hyphenated().to_string())
    }

    fn firmware(&self, name: &str) -> Option<String> {
        let text = self
            .text(Path::new("sys/class/dmi/id").join(name))
            .ok()
            .and_then(|text| claim(&text))?;
        let is_placeholder = PLACEHOLDERS.contains(&text.to_lowercase().as_str());
        (!is_placeholder).then_some(text)
    }

    fn text(&self, path: impl AsRef<Path>) -> io::Result<String> {
        fs::read_to_string(self.root.join(path))
    }
}

/// A value of `os-release` (os-release(5)): shell-like assignments, quoted or not.
fn os_release_value(os_release: &str, name: &str) -> Option<String> {
    let assigned = os_release
        .lines()
        .filter_map(|line| line.trim().split_once('='))
        .rfind(|(variable, _)| *variable == name);
    let (_, value) = assigned?;
    let value = value.trim();
    let unquoted = ['"', '\'']
        .iter()
        .find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
    claim(unquoted.unwrap_or(value))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, LinuxFacts) {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let facts = LinuxFacts {
            root: root.path().to_owned(),
        };
        (root, facts)
    }

    #[test]
    fn firmware_and_distribution_are_read() {
        let (_root, facts) = system(&[
            ("sys/class/dmi/id/product_serial", "PF2ABCDE\n"),
            (
                "sys/class/dmi/id/product_uuid",
                "4C4C4544-0042-3510-8052-B4C04F4E4D31\n",
            ),
            ("sys/class/dmi/id/product_name", "ThinkPad X1\n"),
            ("etc/machine-id", "ffffffffffffffffffffffffffffff00\n"),
            (
                "etc/os-release",
                "NAME=\"Debian GNU/Linux\"\nVERSION_ID='13'\nBUILD_ID=rolling\n",
            ),
        ]);
        let facts = facts.read().unwrap();
        assert_eq!(facts.machine.serial_number.as_deref(), Some("PF2ABCDE"));
        assert_eq!(
            facts.machine.hardware_uuid.as_deref(),
            Some("4c4c4544-0042-3510-8052-b4c04f4e4d31")
        );
        assert_eq!(facts.machine.model_identifier.as_deref(), Some("ThinkPad X1"));
        assert_eq!(facts.posture.os_name.as_deref(), Some("Debian GNU/Linux"));
        assert_eq!(facts.posture.os_version.as_deref(), Some("13"));
        assert_eq!(facts.posture.os_build.as_deref(), Some("rolling"));
        assert_eq!(facts.posture.sip_enabled, None);
    }

    #[test]
    fn without_firmware_the_hardware_uuid_is_the_machine_id() {
        let (_root, facts) = system(&[("etc/machine-id", "0123456789abcdef0123456789abcdef\n")]);
        let machine = facts.read().unwrap().machine;
        assert_eq!(
            machine.hardware_uuid.as_deref(),
            Some("01234567-89ab-cdef-0123-456789abcdef")
        );
        assert_eq!(machine.serial_number, None);
    }

    #[rstest]
    #[case("To Be Filled By O.E.M.")]
    #[case("  \n")]
    #[case("0")]
    #[case("a\u{1b}[31m")]
    #[case::not_ascii("PF2\u{e4}BCDE")]
    #[case::changes_direction("PF2\u{202e}ABCDE")]
    fn a_placeholder_serial_number_is_null(#[case] serial_number: &str) {
        let (_root, facts) = system(&[("sys/class/dmi/id/product_serial", serial_number)]);
        assert_eq!(facts.read().unwrap().machine.serial_number, None);
    }

    #[test]
    fn a_placeholder_firmware_uuid_is_null() {
        let (_root, facts) = system(&[
            ("sys/class/dmi/id/product_uuid", "00000000-0000-0000-0000-000000000000"),
            ("etc/machine-id", "0123456789abcdef0123456789abcdef"),
        ]);
        assert_eq!(facts.read().unwrap().machine.hardware_uuid, None);
    }
}
