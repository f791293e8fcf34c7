//! What the agent needs of macOS and Rust cannot call, behind functions that are safe: CryptoKit's keys in the Secure
//! Enclave, managed settings, the unified log.
//!
//! The one place with `unsafe`. The other side is `shim.swift`, which holds the contract; for tests on other systems
//! it is `stand_in.rs`, which exports the same functions. A buffer of fixed size goes in, and what came back is taken
//! no further than that size, whatever length the other side claims.

#[cfg(any(feature = "enclave-stand-in", all(test, not(target_os = "macos"))))]
mod stand_in;

use assay_protocol::machine::KeyAccessibility;

/// A blob is about 300 bytes.
const LONGEST_BLOB: usize = 4096;
/// Two integers of 33 bytes at most, with their headers, are 72.
const LONGEST_SIGNATURE: usize = 128;
/// Everything that is managed, as JSON: a trust anchor in PEM would fit many times.
const LONGEST_SETTINGS: usize = 64 * 1024;
const LONGEST_REPORT: usize = 4096;

/// A point on P-256, uncompressed.
pub(crate) type Point = [u8; 65];

/// A key that the enclave has made.
pub(crate) struct Created {
    pub(crate) blob: Vec<u8>,
    pub(crate) public_key: Point,
}

/// A signature, and the public half of the key that made it.
pub(crate) struct Signed {
    pub(crate) der: Vec<u8>,
    pub(crate) public_key: Point,
}

/// How many keys are loaded in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Handles {
    /// Now.
    pub(crate) open: u64,
    /// At a time, since the process began.
    pub(crate) most: u64,
}

/// What the system said: the error, and what caused it, outermost first. Never empty.
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

/// Makes a key in the enclave.
pub(crate) fn create(accessibility: KeyAccessibility) -> Result<Created, Report> {
    let accessibility = match accessibility {
        KeyAccessibility::Always => 0,
        KeyAccessibility::AfterFirstUnlock => 1,
    };
    let (mut blob, mut public_key) = (Buffer::new(LONGEST_BLOB), [0; 65]);
    reported(|report, capacity| {
        // SAFETY: each pointer is to memory of this function, which lives until the call returns, and is as long as is said
        // beside it; the public key is 65 bytes by contract. The call keeps none of them.
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

/// Loads a key, and tells its public half.
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
    let (mut der, mut public_key) = (Buffer::new(LONGEST_SIGNATURE), [0; 65]);
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

/// How many keys are loaded in this process.
pub(crate) fn handles() -> Handles {
    let mut most = 0;
    // SAFETY: the pointer is to a number of this function, and the call does not keep it.
    let open = unsafe { assay_se_handles(&raw mut most) };
    Handles { open, most }
}

/// What a configuration profile forces of this domain, as a JSON object.
pub(crate) fn managed_settings(domain: &str, keys: &[&str]) -> Result<Vec<u8>, Report> {
    let (keys, mut json) = (keys.join("\n"), Buffer::new(LONGEST_SETTINGS));
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

/// Writes a line to the system's log.
pub(crate) fn log(level: tracing::Level, message: &str) {
    let level = match level {
        tracing::Level::ERROR => 0,
        // What unified logging calls info is kept in memory alone, and is not shown when somebody looks a day later.
        tracing::Level::WARN | tracing::Level::INFO => 1,
        _ => 3,
    };
    // SAFETY: the message is only read, while the call lasts.
    unsafe { assay_log(level, message.as_ptr(), message.len()) }
}

/// What the other side fills.
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

/// Makes a call that reports what went wrong.
fn reported(call: impl FnOnce(*mut u8, usize) -> i32) -> Result<(), Report> {
    let mut report = vec![0; LONGEST_REPORT];
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
                text: "the shim said no more".to_owned(),
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
            let because = if place == 0 { "" } else { ", because of " };
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
        let text = "CryptoTokenKit -3 (corrupt), because of NSOSStatusErrorDomain -25308 ()";
        assert_eq!(report.to_string(), text);
    }

    #[test]
    fn a_report_that_says_nothing_is_an_error_all_the_same() {
        for bytes in [b"".as_slice(), b"\0", b"nonsense\n", b"domain\tno number\t\n"] {
            let report = Report::parse(bytes, 7);
            assert_eq!(report.0, [error("Assay", 7, "the shim said no more")]);
        }
    }
}
