//! Facts of a Mac, from the output of its own programs. Each has a fixed path and a time limit. Facts that no program
//! reports are null.
//!
//! The agent runs programs instead of calling IOKit or other libraries: their output is documented, tests on any system
//! can use recorded output, and no `unsafe` code is necessary.

use std::{thread, time::Duration};

use assay_protocol::machine::{MachineIdentity, Posture, SecureBoot};

use super::{Facts, FactsError, MachineFacts, claim, command::output_of, hardware_id};

/// `profiles` queries a daemon and may take a second. The others take milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

type Invocation = (&'static str, &'static [&'static str]);

const HARDWARE: Invocation = ("/usr/sbin/ioreg", &["-rd1", "-c", "IOPlatformExpertDevice"]);
const HARDWARE_UUID: &str = "IOPlatformUUID";
const SYSTEM: Invocation = (
    "/usr/sbin/sysctl",
    &["kern.osproductversion", "kern.osversion", "hw.model"],
);
const SIP: Invocation = ("/usr/bin/csrutil", &["status"]);
const FILEVAULT: Invocation = ("/usr/bin/fdesetup", &["status"]);
const FIREWALL: Invocation = ("/usr/libexec/ApplicationFirewall/socketfilterfw", &["--getglobalstate"]);
const GATEKEEPER: Invocation = ("/usr/sbin/spctl", &["--status"]);
const BOOT_POLICY: Invocation = ("/usr/bin/bputil", &["-d"]);
const T2_BOOT_POLICY: Invocation = (
    "/usr/sbin/nvram",
    &["94b73556-2197-4702-82a8-3e1337dafbfb:AppleSecureBootPolicy"],
);
const MDM: Invocation = ("/usr/bin/profiles", &["status", "-type", "enrollment"]);

/// Reads the facts of this Mac. Some are readable only by root.
#[derive(Debug, Clone, Copy, Default)]
pub struct MacFacts;

/// The output of the programs.
#[derive(Debug, Default)]
struct Outputs {
    hardware: Option<String>,
    system: Option<String>,
    sip: Option<String>,
    filevault: Option<String>,
    firewall: Option<String>,
    gatekeeper: Option<String>,
    boot_policy: Option<String>,
    t2_boot_policy: Option<String>,
    mdm: Option<String>,
}

impl Facts for MacFacts {
    fn read(&self) -> Result<MachineFacts, FactsError> {
        let mut facts = Outputs::collect().facts();
        let hostname = hostname::get().ok().and_then(|name| name.into_string().ok());
        facts.machine.hostname = hostname.as_deref().and_then(claim);
        Ok(facts)
    }

    fn hardware_uuid(&self) -> Result<Option<String>, FactsError> {
        let (program, arguments) = HARDWARE;
        let hardware = output_of(program, arguments, TIMEOUT);
        Ok(hardware.and_then(|text| registry_value(&text, HARDWARE_UUID)))
    }
}

impl Outputs {
    /// Runs all programs concurrently, so that a hanging one delays the result only once.
    fn collect() -> Self {
        thread::scope(|scope| {
            let output_of =
                |(program, arguments): Invocation| scope.spawn(move || output_of(program, arguments, TIMEOUT));
            let running = [
                HARDWARE,
                SYSTEM,
                SIP,
                FILEVAULT,
                FIREWALL,
                GATEKEEPER,
                BOOT_POLICY,
                T2_BOOT_POLICY,
                MDM,
            ]
            .map(output_of);
            let [
                hardware,
                system,
                sip,
                filevault,
                firewall,
                gatekeeper,
                boot_policy,
                t2_boot_policy,
                mdm,
            ] = running.map(|answer| answer.join().ok().flatten());
            Self {
                hardware,
                system,
                sip,
                filevault,
                firewall,
                gatekeeper,
                boot_policy,
                t2_boot_policy,
                mdm,
            }
        })
    }

    fn facts(&self) -> MachineFacts {
        let hardware = |name| self.hardware.as_deref().and_then(|text| registry_value(text, name));
        let system = |name| self.system.as_deref().and_then(|text| system_value(text, name));
        let from_bputil = self.boot_policy.as_deref().and_then(boot_policy);
        MachineFacts {
            machine: MachineIdentity {
                serial_number: hardware("IOPlatformSerialNumber"),
                hardware_uuid: hardware(HARDWARE_UUID),
                model_identifier: system("hw.model"),
                hostname: None,
            },
            posture: Posture {
                os_name: Some("macOS".to_owned()),
                os_version: system("kern.osproductversion"),
                os_build: system("kern.osversion"),
                sip_enabled: self.sip.as_deref().and_then(is_sip_enabled),
                filevault_enabled: self.filevault.as_deref().and_then(is_filevault_enabled),
                firewall_enabled: self.firewall.as_deref().and_then(is_firewall_enabled),
                gatekeeper_enabled: self.gatekeeper.as_deref().and_then(is_gatekeeper_enabled),
                secure_boot: from_bputil.or_else(|| self.t2_boot_policy.as_deref().and_then(t2_boot_policy)),
                mdm_enrolled: self.mdm.as_deref().and_then(is_mdm_enrolled),
                agent_version: None,
            },
        }
    }
}

/// `    "IOPlatformSerialNumber" = "C02ABCDEFGHI"`
fn registry_value(text: &str, name: &str) -> Option<String> {
    let named = text.lines().find_map(|line| {
        let (key, value) = line.split_once(" = ")?;
        (key.trim().trim_matches('"') == name).then_some(value)
    });
    let quoted = named?.trim().strip_prefix('"')?.strip_suffix('"')?;
    hardware_id(quoted)
}

/// `kern.osproductversion: 26.1`
fn system_value(text: &str, name: &str) -> Option<String> {
    let named = text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key == name).then_some(value)
    });
    claim(named?)
}

/// A custom configuration disables parts of SIP: `csr_get_active_config` is not 0.
fn is_sip_enabled(text: &str) -> Option<bool> {
    let status = text
        .lines()
        .find_map(|line| line.strip_prefix("System Integrity Protection status:"));
    match status?.trim() {
        "enabled." => Some(true),
        status if status.starts_with("disabled") || status.contains("Custom Configuration") => Some(false),
        _ => None,
    }
}

/// False while encryption or decryption is in progress, because part of the volume is not encrypted.
fn is_filevault_enabled(text: &str) -> Option<bool> {
    let status = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("FileVault is "))?;
    let is_under_way = text.contains("in progress");
    match status {
        "On." => Some(!is_under_way),
        status if status.starts_with("On,") || status.starts_with("Off") => Some(false),
        _ => None,
    }
}

/// `Firewall is enabled. (State = 1)`. State 2 blocks all incoming connections.
fn is_firewall_enabled(text: &str) -> Option<bool> {
    match text.split_once("(State = ")?.1.split_once(')')?.0.trim() {
        "0" => Some(false),
        "1" | "2" => Some(true),
        _ => None,
    }
}

fn is_gatekeeper_enabled(text: &str) -> Option<bool> {
    text.lines().find_map(|line| match line.trim() {
        "assessments enabled" => Some(true),
        "assessments disabled" => Some(false),
        _ => None,
    })
}

/// Apple silicon: `Security Mode:               Full       (smb0): absent`. The weakest of several policies counts.
fn boot_policy(text: &str) -> Option<SecureBoot> {
    let modes = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Security Mode:"));
    let levels = modes.map(|mode| match mode.split_whitespace().next() {
        Some("Full") => Some(SecureBoot::Full),
        Some("Reduced") => Some(SecureBoot::Reduced),
        Some("Permissive") => Some(SecureBoot::Permissive),
        _ => None,
    });
    levels.collect::<Option<Vec<_>>>()?.into_iter().min()
}

/// Intel with T2: 2 is full security, 1 is medium, 0 is none.
fn t2_boot_policy(text: &str) -> Option<SecureBoot> {
    let (name, value) = text.trim().split_once(char::is_whitespace)?;
    match value.trim() {
        _ if !name.ends_with(":AppleSecureBootPolicy") => None,
        "%02" => Some(SecureBoot::Full),
        "%01" => Some(SecureBoot::Reduced),
        "%00" => Some(SecureBoot::Permissive),
        _ => None,
    }
}

/// `MDM enrollment: Yes (User Approved)`
fn is_mdm_enrolled(text: &str) -> Option<bool> {
    let status = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("MDM enrollment:"));
    match status?.split_whitespace().next() {
        Some("Yes") => Some(true),
        Some("No") => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    //! These outputs follow the public documentation for macOS 12 to 26: Apple's manual pages and reports of
    //! administrators. None was recorded on a Mac by this project.

    use rstest::rstest;

    use super::*;

    const IOREG: &str = r#"+-o J514sAP  <class IOPlatformExpertDevice, id 0x100000227, registered, matched, active, busy 0 (17826 ms), retain 44>
    {
      "IOPolledInterface" = "AppleARMWatchdogTimerHibernateHandler is not serializable"
      "compatible" = <"J514sAP","Mac15,8","AppleARM">
      "IOPlatformSerialNumber" = "F4KEXAMPLE"
      "IOPlatformUUID" = "6F1A2B3C-0000-5000-8000-000000000001"
      "manufacturer" = <"Apple Inc.">
    }
"#;
    const SYSCTL: &str = "kern.osproductversion: 26.1\nkern.osversion: 25B78\nhw.model: Mac15,8\n";
    const BPUTIL: &str = "This utility is not meant for normal users or even sysadmins.\n\nCurrent OS environment:\n\
        OS Type                                       : macOS\n\
        User Authorized Kext List Hash          (auxp): absent\n\
        CustomKC or fuOS Image4 Hash            (coih): absent\n\
        Security Mode:               Full       (smb0): absent\n\
        3rd Party Kexts Status:      Disabled   (smb2): absent\n\
        SIP Status:                  Enabled    (sip0): absent\n";

    #[test]
    fn a_mac_in_order_says_so() {
        let answers = Outputs {
            hardware: Some(IOREG.into()),
            system: Some(SYSCTL.into()),
            sip: Some("System Integrity Protection status: enabled.\n".into()),
            filevault: Some("FileVault is On.\n".into()),
            firewall: Some("Firewall is enabled. (State = 1)\n".into()),
            gatekeeper: Some("assessments enabled\n".into()),
            boot_policy: Some(BPUTIL.into()),
            t2_boot_policy: Some("nvram: Error getting variable: (iokit/common) data was not found\n".into()),
            mdm: Some("Enrolled via DEP: Yes\nMDM enrollment: Yes (User Approved)\n".into()),
        };
        let MachineFacts { machine, posture } = answers.facts();
        assert_eq!(machine.serial_number.as_deref(), Some("F4KEXAMPLE"));
        assert_eq!(
            machine.hardware_uuid.as_deref(),
            Some("6F1A2B3C-0000-5000-8000-000000000001")
        );
        assert_eq!(machine.model_identifier.as_deref(), Some("Mac15,8"));
        assert_eq!(posture.os_version.as_deref(), Some("26.1"));
        assert_eq!(posture.os_build.as_deref(), Some("25B78"));
        assert_eq!(posture.sip_enabled, Some(true));
        assert_eq!(posture.filevault_enabled, Some(true));
        assert_eq!(posture.firewall_enabled, Some(true));
        assert_eq!(posture.gatekeeper_enabled, Some(true));
        assert_eq!(posture.secure_boot, Some(SecureBoot::Full));
        assert_eq!(posture.mdm_enrolled, Some(true));
    }

    #[test]
    fn unreported_facts_are_null() {
        let nothing = MachineFacts {
            posture: Posture {
                os_name: Some("macOS".into()),
                ..Posture::default()
            },
            ..MachineFacts::default()
        };
        assert_eq!(Outputs::default().facts(), nothing);
        let nonsense = || Some("\u{1b}[31mSegmentation fault\n".to_owned());
        let answers = Outputs {
            hardware: nonsense(),
            system: nonsense(),
            sip: nonsense(),
            filevault: nonsense(),
            firewall: nonsense(),
            gatekeeper: nonsense(),
            boot_policy: nonsense(),
            t2_boot_policy: nonsense(),
            mdm: nonsense(),
        };
        assert_eq!(answers.facts(), nothing);
    }

    #[rstest]
    #[case("System Integrity Protection status: enabled.\n", Some(true))]
    #[case("System Integrity Protection status: disabled.\n", Some(false))]
    #[case::monterey_to_tahoe(
        "System Integrity Protection status: unknown (Custom Configuration).\n\nConfiguration:\n\tApple Internal: disabled\n\tKext Signing: enabled\n\nThis is an unsupported configuration, likely to break in the future and leave your machine in an unknown state.\n",
        Some(false)
    )]
    #[case("System Integrity Protection status: enabled (Custom Configuration).\n", Some(false))]
    #[case("System Integrity Protection status: unknown.\n", None)]
    fn sip(#[case] text: &str, #[case] enabled: Option<bool>) {
        assert_eq!(is_sip_enabled(text), enabled);
    }

    #[rstest]
    #[case("FileVault is On.\n", Some(true))]
    #[case("FileVault is Off.\n", Some(false))]
    #[case("FileVault is On, but needs to be restarted to finish.\n", Some(false))]
    #[case("FileVault is Off, but will be enabled after the next restart.\n", Some(false))]
    #[case("FileVault is On.\nEncryption in progress: Percent completed = 53.21\n", Some(false))]
    #[case("FileVault is Off.\nDecryption in progress: Percent completed = 99\n", Some(false))]
    #[case(
        "FileVault is Off.\nDeferred enablement appears to be active for user 'anna'.\n",
        Some(false)
    )]
    #[case("Error: you must be root.\n", None)]
    fn filevault(#[case] text: &str, #[case] enabled: Option<bool>) {
        assert_eq!(is_filevault_enabled(text), enabled);
    }

    #[rstest]
    #[case("Firewall is enabled. (State = 1)\n", Some(true))]
    #[case("Firewall is disabled. (State = 0)\n", Some(false))]
    #[case(
        "Firewall is blocking all non-essential incoming connections. (State = 2)\n",
        Some(true)
    )]
    #[case(
        "Firewall settings cannot be modified from command line on managed Mac computers.\n",
        None
    )]
    #[case("Firewall is confused. (State = 7)\n", None)]
    fn firewall(#[case] text: &str, #[case] enabled: Option<bool>) {
        assert_eq!(is_firewall_enabled(text), enabled);
    }

    #[rstest]
    #[case("assessments enabled\n", Some(true))]
    #[case("assessments disabled\n", Some(false))]
    #[case("assessments enabled\ndeveloper id enabled\n", Some(true))]
    #[case("This operation is no longer supported.\n", None)]
    fn gatekeeper(#[case] text: &str, #[case] enabled: Option<bool>) {
        assert_eq!(is_gatekeeper_enabled(text), enabled);
    }

    #[rstest]
    #[case("Security Mode:               Full       (smb0): absent\n", Some(SecureBoot::Full))]
    #[case("    Security Mode:               Reduced    (smb0): 1\n", Some(SecureBoot::Reduced))]
    #[case(
        "Security Mode:               Permissive (smb0 && smb1): 1\n",
        Some(SecureBoot::Permissive)
    )]
    #[case::of_two_systems(
        "Security Mode: Full (smb0): absent\nSecurity Mode: Reduced (smb0): 1\n",
        Some(SecureBoot::Reduced)
    )]
    #[case::of_which_one_is_unknown("Security Mode: Full (smb0): absent\nSecurity Mode: Paranoid (smb9): 1\n", None)]
    #[case("bputil: this utility must be run as root\n", None)]
    fn apple_silicons_boot_policy(#[case] text: &str, #[case] level: Option<SecureBoot>) {
        assert_eq!(boot_policy(text), level);
    }

    #[rstest]
    #[case(
        "94b73556-2197-4702-82a8-3e1337dafbfb:AppleSecureBootPolicy\t%02\n",
        Some(SecureBoot::Full)
    )]
    #[case(
        "94b73556-2197-4702-82a8-3e1337dafbfb:AppleSecureBootPolicy\t%01\n",
        Some(SecureBoot::Reduced)
    )]
    #[case(
        "94b73556-2197-4702-82a8-3e1337dafbfb:AppleSecureBootPolicy\t%00\n",
        Some(SecureBoot::Permissive)
    )]
    #[case("94b73556-2197-4702-82a8-3e1337dafbfb:AppleSecureBootPolicy\t%05\n", None)]
    #[case(
        "nvram: Error getting variable - '94b7…:AppleSecureBootPolicy': (iokit/common) data was not found\n",
        None
    )]
    fn a_t2s_boot_policy(#[case] text: &str, #[case] level: Option<SecureBoot>) {
        assert_eq!(t2_boot_policy(text), level);
    }

    #[rstest]
    #[case("Enrolled via DEP: No\nMDM enrollment: No\n", Some(false))]
    #[case("Enrolled via DEP: No\nMDM enrollment: Yes\n", Some(true))]
    #[case(
        "Enrolled via DEP: Yes\nMDM enrollment: Yes (User Approved)\nMDM server: https://mdm.example.com/\n",
        Some(true)
    )]
    #[case("profiles: the command requires root\n", None)]
    fn mdm(#[case] text: &str, #[case] enrolled: Option<bool>) {
        assert_eq!(is_mdm_enrolled(text), enrolled);
    }

    #[rstest]
    #[case::monterey(
        "kern.osproductversion: 12.7.6\nkern.osversion: 21H1320\nhw.model: MacBookPro18,1\n",
        "12.7.6",
        "MacBookPro18,1"
    )]
    #[case::ventura(
        "kern.osproductversion: 13.7.8\nkern.osversion: 22H730\nhw.model: Mac14,2\n",
        "13.7.8",
        "Mac14,2"
    )]
    #[case::sonoma(
        "kern.osproductversion: 14.8\nkern.osversion: 23J21\nhw.model: Mac14,7\n",
        "14.8",
        "Mac14,7"
    )]
    #[case::sequoia(
        "kern.osproductversion: 15.7.1\nkern.osversion: 24G231\nhw.model: Mac16,1\n",
        "15.7.1",
        "Mac16,1"
    )]
    #[case::tahoe(SYSCTL, "26.1", "Mac15,8")]
    fn the_system(#[case] text: &str, #[case] version: &str, #[case] model: &str) {
        assert_eq!(system_value(text, "kern.osproductversion").as_deref(), Some(version));
        assert_eq!(system_value(text, "hw.model").as_deref(), Some(model));
    }

    #[test]
    fn a_value_that_the_server_would_reject_is_null() {
        assert_eq!(
            registry_value("\"IOPlatformSerialNumber\" = \"\"\n", "IOPlatformSerialNumber"),
            None
        );
        assert_eq!(
            registry_value("\"IOPlatformSerialNumber\" = <00>\n", "IOPlatformSerialNumber"),
            None
        );
        assert_eq!(
            registry_value(
                "\"IOPlatformSerialNumber\" = \"C02\u{202e}A\"\n",
                "IOPlatformSerialNumber"
            ),
            None
        );
        assert_eq!(system_value("hw.model: Mac\u{200f}\n", "hw.model"), None);
        let long = format!("\"IOPlatformSerialNumber\" = \"{}\"\n", "A".repeat(300));
        assert_eq!(registry_value(&long, "IOPlatformSerialNumber"), None);
    }
}
