//! Reads the agent's installer package back with the crates of apple-platform-rs, which are independent of build-package.

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::Read,
        path::{Path, PathBuf},
        process::Command,
    };

    use apple_bom::ParsedBom;
    use apple_flat_package::{ComponentPackageReader, PkgFlavor, PkgReader};
    use apple_xar::reader::XarReader;
    use cpio_archive::CpioReader;

    const AGENT: &[u8] = b"not really the agent";
    /// Path and mode, in the order of the archive.
    const PAYLOAD: &[(&str, u32)] = &[
        (".", 0o040755),
        ("./Library", 0o040755),
        ("./Library/Assay", 0o040755),
        ("./Library/Assay/assay-agent", 0o100755),
        ("./Library/Assay/uninstall", 0o100755),
        ("./Library/LaunchDaemons", 0o040755),
        ("./Library/LaunchDaemons/dev.assay.agent.plist", 0o100644),
        ("./private", 0o040755),
        ("./private/etc", 0o040755),
        ("./private/etc/paths.d", 0o040755),
        ("./private/etc/paths.d/assay", 0o100644),
    ];

    struct Entry {
        name: String,
        mode: u32,
        owner: (u32, u32),
        content: Vec<u8>,
    }

    fn deploy() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
    }

    fn build(folder: &Path, name: &str) -> PathBuf {
        let (agent, package) = (folder.join("agent"), folder.join(name));
        fs::write(&agent, AGENT).unwrap();
        let mut build = Command::new(deploy().join("build-package"));
        build.arg("--agent").arg(agent).arg("--output").arg(&package);
        assert!(build.arg("--allow-any-program").status().unwrap().success());
        package
    }

    fn component(package: &Path) -> ComponentPackageReader {
        let mut reader = PkgReader::new(File::open(package).unwrap()).unwrap();
        assert_eq!(reader.flavor(), PkgFlavor::Component);
        reader.root_component().unwrap().unwrap()
    }

    fn entries<T: Read + Sized>(archive: &mut (impl CpioReader<T> + ?Sized)) -> Vec<Entry> {
        let mut entries = Vec::new();
        while let Some(header) = archive.read_next().unwrap() {
            let mut content = Vec::new();
            archive.read_to_end(&mut content).unwrap();
            entries.push(Entry {
                name: header.name().to_owned(),
                mode: header.mode(),
                owner: (header.uid(), header.gid()),
                content,
            });
        }
        entries
    }

    #[test]
    fn the_payload_is_listed_with_owners_and_modes() {
        let folder = tempfile::tempdir().unwrap();
        let component = component(&build(folder.path(), "a.pkg"));
        let payload = entries(component.payload_reader().unwrap().unwrap().as_mut());
        let listed: Vec<_> = payload.iter().map(|entry| (entry.name.as_str(), entry.mode)).collect();
        assert_eq!(listed, PAYLOAD);
        assert!(payload.iter().all(|entry| entry.owner == (0, 0)), "root and wheel own everything");
        let content = |name: &str| &payload.iter().find(|entry| entry.name == name).unwrap().content;
        assert_eq!(content("./Library/Assay/assay-agent"), AGENT);
        let plist = fs::read(deploy().join("dev.assay.agent.plist")).unwrap();
        assert_eq!(content("./Library/LaunchDaemons/dev.assay.agent.plist"), &plist);
        // An upgrade must not touch the key, so the package installs nothing into its folder.
        assert!(!payload.iter().any(|entry| entry.name.contains("/var/db")));
    }

    #[test]
    fn the_bill_of_materials_says_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let component = component(&build(folder.path(), "a.pkg"));
        let bom = ParsedBom::parse(component.bom().unwrap()).unwrap();
        let paths = bom.paths().unwrap();
        let mut listed: Vec<_> = paths
            .iter()
            .map(|path| (path.path().to_owned(), u32::from(path.file_mode()), path.user_id(), path.group_id()))
            .collect();
        listed.sort();
        let mut expected: Vec<_> = PAYLOAD
            .iter()
            .map(|(path, mode)| ((*path).to_owned(), *mode, 0, 0))
            .collect();
        expected.sort();
        assert_eq!(listed, expected);
        let agent = paths.iter().find(|path| path.path().ends_with("/assay-agent")).unwrap();
        assert_eq!(agent.size(), AGENT.len());
        assert_eq!(bom.bom_info().unwrap().number_of_paths, u32::try_from(PAYLOAD.len() + 1).unwrap());
    }

    #[test]
    fn what_installer_shows_and_runs() {
        let folder = tempfile::tempdir().unwrap();
        let component = component(&build(folder.path(), "a.pkg"));
        let info = component.package_info().unwrap();
        assert_eq!((info.identifier.as_str(), info.auth.as_str()), ("dev.assay.agent", "root"));
        assert_eq!(info.install_location.as_deref(), Some("/"));
        assert_eq!(info.overwrite_permissions, Some(false), "folders of the system keep theirs");
        assert_eq!(info.payload.as_ref().unwrap().number_of_files, PAYLOAD.len() as u64);
        let scripts = entries(component.scripts_reader().unwrap().unwrap().as_mut());
        let listed: Vec<_> = scripts.iter().map(|entry| (entry.name.as_str(), entry.mode)).collect();
        assert_eq!(listed, [(".", 0o040755), ("./postinstall", 0o100755), ("./preinstall", 0o100755)]);
        let says = |entry: &Entry, text: &str| String::from_utf8_lossy(&entry.content).contains(text);
        assert!(says(&scripts[1], "launchctl bootstrap system"));
        assert!(says(&scripts[2], "launchctl bootout"));
    }

    #[test]
    fn the_archive_is_whole_and_the_same_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) = (build(folder.path(), "1.pkg"), build(folder.path(), "2.pkg"));
        assert_eq!(fs::read(&one).unwrap(), fs::read(&two).unwrap());
        let mut archive = XarReader::new(File::open(&one).unwrap()).unwrap();
        assert!(archive.verify_table_of_contents_checksum().unwrap());
    }

    #[test]
    fn what_is_no_agent_for_a_mac_is_not_packed() {
        let folder = tempfile::tempdir().unwrap();
        let (agent, package) = (folder.path().join("agent"), folder.path().join("a.pkg"));
        let mach_o = b"\xcf\xfa\xed\xfe".as_slice();
        let stand_in = [mach_o, b" 0.1.0 with a stand-in for the Secure Enclave: only for tests"].concat();
        for (content, is_packed) in [(b"\x7fELF".as_slice(), false), (&stand_in, false), (mach_o, true)] {
            fs::write(&agent, content).unwrap();
            let mut build = Command::new(deploy().join("build-package"));
            build.arg("--agent").arg(&agent).arg("--output").arg(&package);
            assert_eq!(build.output().unwrap().status.success(), is_packed);
            assert_eq!(package.exists(), is_packed);
        }
    }
}
