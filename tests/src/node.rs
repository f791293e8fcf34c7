//! Packages of Node.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};

use crate::seed::target_directory;

/// The folder with the packages of `tests/{folder}/package-lock.json`. It is kept under `target`, and made again when the
/// file changes.
///
/// # Panics
/// If npm is missing or fails, with its output.
pub async fn node_modules(folder: &'static str) -> PathBuf {
    tokio::task::spawn_blocking(move || installed(folder)).await.unwrap()
}

fn installed(folder: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let lock_file = fs::read(source.join("package-lock.json")).unwrap();
    let hash = hex::encode(digest(&SHA256, &lock_file));
    let directory = target_directory().join(folder.replace('_', "-"));
    fs::create_dir_all(&directory).unwrap();
    // Concurrent runs of the suite wait for the one that installs the packages.
    let lock = File::create(directory.join("lock-node")).unwrap();
    lock.lock().unwrap();

    let packages = directory.join(format!("node-{}", &hash[..16]));
    let complete = packages.join("complete");
    if !complete.exists() {
        fs::create_dir_all(&packages).unwrap();
        for name in ["package.json", "package-lock.json"] {
            fs::copy(source.join(name), packages.join(name)).unwrap();
        }
        let output = Command::new("npm")
            .args(["ci", "--no-audit", "--no-fund", "--ignore-scripts"])
            .current_dir(&packages)
            .output();
        let output =
            output.unwrap_or_else(|error| panic!("the tests need npm; deploy/prerequisites installs it: {error}"));
        let wrote = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "npm cannot install jose here:\n{wrote}");
        File::create(complete).unwrap();
    }
    packages.join("node_modules")
}
