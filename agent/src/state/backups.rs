//! Time Machine must not back up the state directory: a restored state looks like a copied key, and the server quarantines
//! the machine.

use std::path::Path;

/// The attribute that `tmutil addexclusion` sets (tmutil(8)). It stays with the directory, and covers what is in it.
#[cfg(target_os = "macos")]
const ATTRIBUTE: &str = "com.apple.metadata:com_apple_backup_excludeItem";
/// The value that `tmutil addexclusion` sets: the text `com.apple.backupd` as a binary property list.
#[cfg(any(target_os = "macos", test))]
const VALUE: &[u8] = b"bplist00\x5f\x10\x11com.apple.backupd\x08\0\0\0\0\0\0\x01\x01\0\0\0\0\0\0\0\x01\
    \0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x1c";

/// Excludes a directory from Time Machine. A failure is logged, and `doctor` reports it.
#[cfg(target_os = "macos")]
pub(super) fn exclude(directory: &Path) {
    if is_excluded(directory) == Some(true) {
        return;
    }
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(error) = rustix::fs::setxattr(directory, ATTRIBUTE, VALUE, flags) {
        let directory = directory.display();
        tracing::warn!(%directory, %error, "the state directory cannot be excluded from Time Machine");
    }
}

/// Other systems have no such mark.
#[cfg(not(target_os = "macos"))]
pub(super) fn exclude(_directory: &Path) {}

/// Whether a directory is excluded from Time Machine. `None` on other systems.
#[cfg(target_os = "macos")]
pub(crate) fn is_excluded(directory: &Path) -> Option<bool> {
    let mut value = [0; 256];
    let length = rustix::fs::getxattr(directory, ATTRIBUTE, &mut value);
    Some(length.is_ok_and(|length| length > 0))
}

/// Other systems have no such mark.
#[cfg(not(target_os = "macos"))]
pub(crate) fn is_excluded(_directory: &Path) -> Option<bool> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `plistlib.dumps("com.apple.backupd", fmt=FMT_BINARY)` of Python writes it.
    #[test]
    fn the_value_is_a_binary_property_list() {
        let hexadecimal = "62706c6973743030 5f1011 636f6d2e6170706c652e6261636b757064 08 \
                           000000000000 01 01 0000000000000001 0000000000000000 000000000000001c";
        assert_eq!(hex::encode(VALUE), hexadecimal.replace(' ', ""));
    }
}
