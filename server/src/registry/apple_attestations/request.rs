//! The MDM command that requests an attestation from a Mac, in the format for raw commands.

use assay_protocol::attestation::FreshnessCode;
use base64::{Engine, engine::general_purpose::STANDARD};
use uuid::Uuid;

/// The command as a property list in XML. No value in it needs escaping.
pub(crate) fn device_information(nonce: FreshnessCode, command_id: Uuid) -> String {
    let nonce = STANDARD.encode(nonce.as_bytes());
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
    <key>CommandUUID</key>
    <string>{command_id}</string>
    <key>Command</key>
    <dict>
        <key>RequestType</key>
        <string>DeviceInformation</string>
        <key>Queries</key>
        <array>
            <string>DevicePropertiesAttestation</string>
        </array>
        <key>DeviceAttestationNonce</key>
        <data>{nonce}</data>
    </dict>
</dict>
</plist>
"#
    )
}
