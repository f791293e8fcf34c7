//! Files that contain a secret, such as a private key.

use std::{fs::File, io, os::unix::fs::MetadataExt, path::Path};

/// The mode bits with which accounts other than the owner and the group read and write.
const OTHERS: u32 = 0o006;

/// Opens a file that contains a secret, unless other accounts may read or change it.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    match is_open_to_others(&file)? {
        false => Ok(file),
        true => Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "other accounts may read or change it: run chmod o-rw on it",
        )),
    }
}

/// Whether accounts other than the owner and the group may read or change a file. The group is the operator's choice.
pub fn is_open_to_others(file: &File) -> io::Result<bool> {
    Ok(file.metadata()?.mode() & OTHERS != 0)
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt,
    };

    use super::*;

    #[test]
    fn only_a_file_for_its_owner_and_its_group_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        fs::write(&path, "secret").unwrap();
        for (mode, is_opened) in [
            (0o400, true),
            (0o600, true),
            (0o640, true),
            (0o660, true),
            (0o644, false),
            (0o604, false),
            (0o602, false),
            (0o666, false),
        ] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            assert_eq!(open(&path).is_ok(), is_opened, "{mode:o}");
        }
    }
}
