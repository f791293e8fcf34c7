//! Safe functions for what Rust cannot call on macOS: CryptoKit's keys in the Secure Enclave, managed settings, and the
//! unified log.
//!
//! This is the only module with `unsafe` code. The other side is `shim.swift`, which documents the contract. For tests
//! on other systems, `stand_in.rs` exports the same functions. Each call gets a buffer of fixed size. The result is
//! truncated to that size, whatever length the other side claims.

#[cfg(any(feature = "enclave-stand-in", all(test, not(target_os = "macos"))))]
mod stand_in;

use assay_protocol::machine::KeyAccessibility;

/// A blob is about 300 bytes.
const MAX_BLOB_BYTES: usize = 4096;
/// Two integers of at most 33 bytes, with their headers, are 72 bytes.
const MAX_SIGNATURE_BYTES: usize = 128;
/// All managed settings as JSON. The largest is a trust anchor in PEM, which is far smaller.
const MAX_SETTINGS_BYTES: usize = 64 * 1024;
const MAX_REPORT_BYTES: usize = 4096;

/// A point on P-256, uncompressed.
pub(crate) type Point = [u8; 65];

/// A new key in the enclave.
pub(crate) struct Created {
    pub(crate) blob: Vec<u8>,
    pub(crate) public_key: Point,
}

/// A signature, and the public half of the key that made it.
pub(crate) struct Signed {
    pub(crate) der: Vec<u8>,
    pub(crate) public_key: Point,
}

/// The number of keys that are loaded in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handles {
    /// Now.
    pub(crate) open: u64,
    /// The maximum since the process began.
    pub(crate) most: u64,
}

/// An error of the system with its causes, outermost first. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Report(pub(crate) Vec<SystemError>);

/// One error of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SystemError {
    pub(crate) domain: String,
    pub(crate) code: i64,
    pub(crate) text: String,
}

unsafe extern "C" {
    safe fn assay_se_available() -> i32;
    fn assay_se_create(
        accessibility: i32,
        blob: *mut u8,
        blob_capacity: usize,
        blob_length: *mut usize,
        public_key: *mut u8,
        report: *mut u8,
        report_capacity: usize,
    ) -> i32;
    fn assay_se_public_key(
        blob: *const u8,
        blob_length: usize,
        public_key: *mut u8,
        report: *mut u8,
        report_capacity: usize,
    ) -> i32;
    fn assay_se_sign(
        blob: *const u8,
        blob_length: usize,
        message: *const u8,
        message_length: usize,
        public_key: *mut u8,
        der: *mut u8,
        der_capacity: usize,
        der_length: *mut usize,
        report: *mut u8,
        report_capacity: usize,
    ) -> i32;
    fn assay_se_handles(most: *mut u64) -> u64;
    fn assay_managed_settings(
        domain: *const u8,
        domain_length: usize,
        keys: *const u8,
        keys_length: usize,
        json: *mut u8,
        json_capacity: usize,
        json_length: *mut usize,
        report: *mut u8,
        report_capacity: usize,
    ) -> i32;
    fn assay_log(level: i32, message: *const u8, message_length: usize);
}

/// Whether this machine has a Secure Enclave.
pub(crate) fn has_enclave() -> bool {
    assay_se_available() == 1
}

/// Creates a key in the enclave.
pub(crate) fn create(accessibility: KeyAccessibility) -> Result<Created, Report> {
    let accessibility = match accessibility {
        KeyAccessibility::Always => 0,
        KeyAccessibility::AfterFirstUnlock => 1,
    };
    let (mut blob, mut public_key) = (Buffer::new(MAX_BLOB_BYTES), [0; 65]);
    reported(|report, capacity| {
        // SAFETY: each pointer is to memory of this function, which lives until the call returns. Its length is the one
        // that is passed with it; the public key has 65 bytes by contract. The call keeps no pointer.
        unsafe {
            assay_se_create(
                accessibility,
                blob.bytes.as_mut_ptr(),
                blob.bytes.len(),
                &raw mut blob.length,
                public_key.as_mut_ptr(),
                report,
                capacity,
            )
        }
    })?;
    Ok(Created {
        blob: blob.filled(),
        public_key,
    })
}

/// Loads a key, and returns its public half.
pub(crate) fn public_key(blob: &[u8]) -> Result<Point, Report> {
    let mut public_key = [0; 65];
    reported(|report, capacity| {
        // SAFETY: as above; the blob is only read.
        unsafe { assay_se_public_key(blob.as_ptr(), blob.len(), public_key.as_mut_ptr(), report, capacity) }
    })?;
    Ok(public_key)
}

/// Loads a key, and signs the SHA-256 digest of a message with it.
pub(crate) fn sign(blob: &[u8], message: &[u8]) -> Result<Signed, Report> {
    let (mut der, mut public_key) = (Buffer::new(MAX_SIGNATURE_BYTES), [0; 65]);
    reported(|report, capacity| {
        // SAFETY: as above; blob and message are only read.
        unsafe {
            assay_se_sign(
                blob.as_ptr(),
                blob.len(),
                message.as_ptr(),
                message.len(),
                public_key.as_mut_ptr(),
                der.bytes.as_mut_ptr(),
                der.bytes.len(),
                &raw mut der.length,
                report,
                capacity,
            )
        }
    })?;
    Ok(Signed {
        der: der.filled(),
        public_key,
    })
}

/// The number of keys that are loaded in this process.
pub(crate) fn handles() -> Handles {
    let mut most = 0;
    // SAFETY: the pointer is to a variable of this function, and the call does not keep it.
    let open = unsafe { assay_se_handles(&raw mut most) };
    Handles { open, most }
}

/// The settings of this domain that a configuration profile forces, as a JSON object.
pub(crate) fn managed_settings(domain: &str, keys: &[&str]) -> Result<Vec<u8>, Report> {
    let (keys, mut json) = (keys.join("\n"), Buffer::new(MAX_SETTINGS_BYTES));
    reported(|report, capacity| {
        // SAFETY: as above; domain and keys are only read.
        unsafe {
            assay_managed_settings(
                domain.as_ptr(),
                domain.len(),
                keys.as_ptr(),
                keys.len(),
                json.bytes.as_mut_ptr(),
                json.bytes.len(),
                &raw mut json.length,
                report,
                capacity,
            )
        }
    })?;
    Ok(json.filled())
}

/// Writes a line to the system log.
pub(crate) fn log(level: tracing::Level, message: &str) {
    let level = match level {
        tracing::Level::ERROR => 0,
        // The unified log keeps its level "info" only in memory, so a later search would not find it.
        tracing::Level::WARN | tracing::Level::INFO => 1,
        _ => 3,
    };
    // SAFETY: the message is only read, during the call.
    unsafe { assay_log(level, message.as_ptr(), message.len()) }
}

/// A buffer that the other side fills.
struct Buffer {
    bytes: Vec<u8>,
    length: usize,
}

impl Buffer {
    fn new(capacity: usize) -> Self {
        Self {
            bytes: vec![0; capacity],
            length: 0,
        }
    }

    fn filled(mut self) -> Vec<u8> {
        self.bytes.truncate(self.length);
        self.bytes
    }
}

/// Makes a call, and parses its error report.
fn reported(call: impl FnOnce(*mut u8, usize) -> i32) -> Result<(), Report> {
    let mut report = vec![0; MAX_REPORT_BYTES];
    match call(report.as_mut_ptr(), report.len()) {
        0 => Ok(()),
        status => Err(Report::parse(&report, status)),
    }
}

impl Report {
    fn parse(bytes: &[u8], status: i32) -> Self {
        let bytes = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        let text = String::from_utf8_lossy(bytes);
        let errors: Vec<_> = text.lines().filter_map(SystemError::parse).collect();
        match errors.is_empty() {
            false => Self(errors),
            true => Self(vec![SystemError {
                domain: "Assay".to_owned(),
                code: i64::from(status),
                text: "no error report".to_owned(),
            }]),
        }
    }
}

impl SystemError {
    fn parse(line: &str) -> Option<Self> {
        let mut parts = line.splitn(3, '\t');
        Some(Self {
            domain: parts.next()?.to_owned(),
            code: parts.next()?.parse().ok()?,
            text: parts.next().unwrap_or_default().to_owned(),
        })
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (place, SystemError { domain, code, text }) in self.0.iter().enumerate() {
            let because = if place == 0 { "" } else { ", caused by " };
            write!(formatter, "{because}{domain} {code} ({text})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(domain: &str, code: i64, text: &str) -> SystemError {
        SystemError {
            domain: domain.to_owned(),
            code,
            text: text.to_owned(),
        }
    }

    #[test]
    fn a_report_is_read_up_to_its_end_and_names_every_cause() {
        let report = Report::parse(
            b"CryptoTokenKit\t-3\tcorrupt\nNSOSStatusErrorDomain\t-25308\t\n\0rest\t1\t",
            1,
        );
        let errors = [
            error("CryptoTokenKit", -3, "corrupt"),
            error("NSOSStatusErrorDomain", -25308, ""),
        ];
        assert_eq!(report.0, errors);
        let text = "CryptoTokenKit -3 (corrupt), caused by NSOSStatusErrorDomain -25308 ()";
        assert_eq!(report.to_string(), text);
    }

    #[test]
    fn an_empty_report_is_still_an_error() {
        for bytes in [b"".as_slice(), b"\0", b"nonsense\n", b"domain\tno number\t\n"] {
            let report = Report::parse(bytes, 7);
            assert_eq!(report.0, [error("Assay", 7, "no error report")]);
        }
    }
}
