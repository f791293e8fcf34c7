//! A stand-in for `shim.swift`, for tests on systems without a Secure Enclave. It has the same functions. Its keys are
//! sealed under a secret per simulated machine, and tests can inject faults.
//!
//! `ASSAY_STAND_IN` names the directory of the simulated machine. Without it there is no enclave. The directory
//! contains `secret` (created if missing; another directory is another machine), `managed.json`, `calls` (one line per
//! call), `log` (the unified log), and `faults`. A test writes `faults`, one per line:
//!
//! - `locked`: no user has logged in since boot;
//! - `hang COUNT`: this many calls never return;
//! - `fail DOMAIN CODE [COUNT]`: this many calls fail with this error, or all calls without a count;
//! - `swap`: a key loads as another key;
//! - `spoiled BLOB`: this key, in base64, loads but does not sign.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    slice,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey},
    rand,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use p256::{
    SecretKey,
    ecdsa::{DerSignature, SigningKey, signature::Signer},
};

static OPEN: AtomicU64 = AtomicU64::new(0);
static MOST: AtomicU64 = AtomicU64::new(0);
/// Only one call at a time reads and writes the files of a machine.
static MACHINE: Mutex<()> = Mutex::new(());

const STATUS: &str = "NSOSStatusErrorDomain";

/// Domain and code.
type Fault = (String, i64);

/// A loaded key. The number of loaded keys is counted, because the enclave has few channels.
struct LoadedKey(SigningKey);

impl LoadedKey {
    fn new(key: SigningKey) -> Self {
        let open = OPEN.fetch_add(1, Ordering::SeqCst) + 1;
        MOST.fetch_max(open, Ordering::SeqCst);
        Self(key)
    }

    fn public_key(&self) -> Vec<u8> {
        self.0.verifying_key().to_sec1_point(false).as_bytes().to_vec()
    }
}

impl Drop for LoadedKey {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::SeqCst);
    }
}

#[unsafe(no_mangle)]
extern "C" fn assay_se_available() -> i32 {
    i32::from(folder().is_some())
}

#[unsafe(no_mangle)]
extern "C" fn assay_se_create(
    accessibility: i32,
    blob: *mut u8,
    blob_capacity: usize,
    blob_length: *mut usize,
    public_key: *mut u8,
    report: *mut u8,
    report_capacity: usize,
) -> i32 {
    reporting(report, report_capacity, || {
        let machine = Machine::call("create")?;
        let accessibility = u8::try_from(accessibility).map_err(|_| status(-50))?;
        machine.admit(accessibility)?;
        let loaded = LoadedKey::new(random_key()?);
        let sealed = machine.seal(accessibility, &loaded.0)?;
        give(&sealed, blob, blob_capacity, blob_length)?;
        give(&loaded.public_key(), public_key, 65, &mut 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn assay_se_public_key(
    blob: *const u8,
    blob_length: usize,
    public_key: *mut u8,
    report: *mut u8,
    report_capacity: usize,
) -> i32 {
    reporting(report, report_capacity, || {
        let loaded = Machine::call("public-key")?.load(taken(blob, blob_length))?;
        give(&loaded.public_key(), public_key, 65, &mut 0)
    })
}

#[unsafe(no_mangle)]
extern "C" fn assay_se_sign(
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
) -> i32 {
    reporting(report, report_capacity, || {
        let machine = Machine::call("sign")?;
        let loaded = machine.load(taken(blob, blob_length))?;
        machine.refuse_spoiled(taken(blob, blob_length))?;
        let signature: DerSignature = loaded.0.sign(taken(message, message_length));
        give(&loaded.public_key(), public_key, 65, &mut 0)?;
        give(signature.as_bytes(), der, der_capacity, der_length)
    })
}

#[unsafe(no_mangle)]
extern "C" fn assay_se_handles(most: *mut u64) -> u64 {
    // SAFETY: by contract, the caller's pointer is to a number.
    unsafe { most.write(MOST.load(Ordering::SeqCst)) };
    OPEN.load(Ordering::SeqCst)
}

#[unsafe(no_mangle)]
extern "C" fn assay_managed_settings(
    _domain: *const u8,
    _domain_length: usize,
    keys: *const u8,
    keys_length: usize,
    json: *mut u8,
    json_capacity: usize,
    json_length: *mut usize,
    report: *mut u8,
    report_capacity: usize,
) -> i32 {
    reporting(report, report_capacity, || {
        let file = folder().map(|folder| folder.join("managed.json"));
        let text = file
            .and_then(|file| fs::read(file).ok())
            .unwrap_or_else(|| b"{}".to_vec());
        let mut settings: serde_json::Map<String, serde_json::Value> =
            serde_json::from_slice(&text).map_err(|_| status(-50))?;
        let keys = String::from_utf8_lossy(taken(keys, keys_length)).into_owned();
        settings.retain(|key, _| keys.lines().any(|known| known == key));
        let text = serde_json::to_vec(&settings).map_err(|_| status(-50))?;
        give(&text, json, json_capacity, json_length)
    })
}

#[unsafe(no_mangle)]
extern "C" fn assay_log(level: i32, message: *const u8, message_length: usize) {
    let message = String::from_utf8_lossy(taken(message, message_length)).into_owned();
    if let Some(folder) = folder() {
        append(&folder, "log", &format!("{level} {message}"));
    }
}

/// The directory of this process's machine.
#[allow(clippy::disallowed_methods, reason = "not a setting of the agent: only tests use it")]
fn folder() -> Option<PathBuf> {
    std::env::var_os("ASSAY_STAND_IN").map(PathBuf::from)
}

struct Machine {
    secret: [u8; 32],
    is_locked: bool,
    is_swapped: bool,
    spoiled: String,
}

impl Machine {
    /// Logs the call, and carries out the fault that a test injected.
    fn call(name: &str) -> Result<Self, Fault> {
        let folder = folder().ok_or_else(|| status(-26276))?;
        let (machine, fault) = {
            let _one_at_a_time = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
            append(&folder, "calls", name);
            let fault = take_fault(&folder);
            let machine = Self {
                secret: secret(&folder)?,
                is_locked: has_fault(&folder, "locked"),
                is_swapped: has_fault(&folder, "swap"),
                spoiled: fault_of(&folder, "spoiled "),
            };
            (machine, fault)
        };
        match fault {
            Some(Take::Hang) => loop {
                std::thread::park();
            },
            Some(Take::Fail(domain, code)) => Err((domain, code)),
            None => Ok(machine),
        }
    }

    /// Before the first unlock, only keys with the accessibility `always` are usable.
    fn admit(&self, accessibility: u8) -> Result<(), Fault> {
        match self.is_locked && accessibility != 0 {
            true => Err(status(-25308)),
            false => Ok(()),
        }
    }

    fn seal(&self, accessibility: u8, key: &SigningKey) -> Result<Vec<u8>, Fault> {
        let mut sealed = key.to_bytes().to_vec();
        sealed.push(accessibility);
        let nonce = self.key()?.seal_in_place_append_tag(Aad::empty(), &mut sealed);
        let nonce = nonce.map_err(|_| status(-26276))?;
        Ok([nonce.as_ref().as_slice(), &sealed].concat())
    }

    fn load(&self, blob: &[u8]) -> Result<LoadedKey, Fault> {
        let corrupt = || ("CryptoTokenKit".to_owned(), -3);
        let (nonce, sealed) = blob.split_at_checked(12).ok_or_else(corrupt)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| corrupt())?;
        let mut sealed = sealed.to_vec();
        let opened = self.key()?.open_in_place(nonce, Aad::empty(), &mut sealed);
        let (accessibility, scalar) = opened.map_err(|_| corrupt())?.split_last().ok_or_else(corrupt)?;
        self.admit(*accessibility)?;
        match self.is_swapped {
            true => Ok(LoadedKey::new(random_key()?)),
            false => Ok(LoadedKey::new(SigningKey::from_slice(scalar).map_err(|_| corrupt())?)),
        }
    }

    fn refuse_spoiled(&self, blob: &[u8]) -> Result<(), Fault> {
        match self.spoiled == STANDARD.encode(blob) {
            true => Err(("CryptoTokenKit".to_owned(), -3)),
            false => Ok(()),
        }
    }

    fn key(&self) -> Result<RandomizedNonceKey, Fault> {
        RandomizedNonceKey::new(&AES_256_GCM, &self.secret).map_err(|_| status(-26276))
    }
}

enum Take {
    Hang,
    Fail(String, i64),
}

fn status(code: i64) -> Fault {
    (STATUS.to_owned(), code)
}

fn random_key() -> Result<SigningKey, Fault> {
    let mut scalar = [0; 32];
    loop {
        rand::fill(&mut scalar).map_err(|_| status(-26276))?;
        if let Ok(key) = SecretKey::from_slice(&scalar) {
            return Ok(key.into());
        }
    }
}

fn secret(folder: &Path) -> Result<[u8; 32], Fault> {
    let path = folder.join("secret");
    if !path.exists() {
        let mut secret = [0; 32];
        rand::fill(&mut secret).map_err(|_| status(-26276))?;
        fs::write(&path, secret).map_err(|_| status(-26276))?;
    }
    let secret = fs::read(path).map_err(|_| status(-26276))?;
    secret.try_into().map_err(|_| status(-26276))
}

fn has_fault(folder: &Path, fault: &str) -> bool {
    let faults = fs::read_to_string(folder.join("faults")).unwrap_or_default();
    faults.lines().any(|line| line == fault)
}

/// The rest of the line with this prefix, or nothing.
fn fault_of(folder: &Path, prefix: &str) -> String {
    let faults = fs::read_to_string(folder.join("faults")).unwrap_or_default();
    let found = faults.lines().find_map(|line| line.strip_prefix(prefix));
    found.unwrap_or_default().to_owned()
}

/// The first fault that has calls left. Decrements its count.
fn take_fault(folder: &Path) -> Option<Take> {
    let path = folder.join("faults");
    let text = fs::read_to_string(&path).ok()?;
    let (mut taken, mut left) = (None, String::new());
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (take, what, count) = match (words.next(), words.next(), words.next(), words.next()) {
            (Some("hang"), Some(count), ..) => (Take::Hang, "hang".to_owned(), Some(count)),
            (Some("fail"), Some(domain), Some(code), count) => {
                let number = code.parse().unwrap_or_default();
                (
                    Take::Fail(domain.to_owned(), number),
                    format!("fail {domain} {code}"),
                    count,
                )
            }
            _ => {
                left = format!("{left}{line}\n");
                continue;
            }
        };
        let count = count.map(|count| count.parse::<u64>().unwrap_or_default());
        let is_taken = taken.is_none() && count != Some(0);
        match count {
            None => left = format!("{left}{what}\n"),
            Some(count) => left = format!("{left}{what} {}\n", count.saturating_sub(u64::from(is_taken))),
        }
        if is_taken {
            taken = Some(take);
        }
    }
    if left != text {
        fs::write(path, left).ok()?;
    }
    taken
}

fn append(folder: &Path, file: &str, line: &str) {
    let opened = OpenOptions::new().create(true).append(true).open(folder.join(file));
    // If the line cannot be written, the test that expects it fails.
    let _ = opened.and_then(|mut file| writeln!(file, "{line}"));
}

fn taken<'a>(bytes: *const u8, length: usize) -> &'a [u8] {
    // SAFETY: by contract, the caller's pointer is to this many bytes, which outlive the call. Nothing here keeps them.
    unsafe { slice::from_raw_parts(bytes, length) }
}

fn give(bytes: &[u8], to: *mut u8, capacity: usize, length: *mut usize) -> Result<(), Fault> {
    if bytes.len() > capacity {
        return Err(("Assay".to_owned(), 1));
    }
    // SAFETY: by contract, the caller's buffer has this capacity, and its length is a number.
    unsafe {
        to.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        length.write(bytes.len());
    }
    Ok(())
}

fn reporting(report: *mut u8, capacity: usize, work: impl FnOnce() -> Result<(), Fault>) -> i32 {
    let Err((domain, code)) = work() else {
        return 0;
    };
    let text = format!("{domain}\t{code}\tinjected by a test\n\0");
    // If the report does not fit, it is omitted. The call still fails.
    let _ = give(text.as_bytes(), report, capacity, &mut 0);
    1
}
