//! Python, for clients and services in another language.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use aws_lc_rs::digest::{SHA256, digest};

use crate::seed::target_directory;

/// Python in a virtual environment with the pinned packages of `tests/{folder}/requirements.txt`. The environment is kept
/// under `target`, and rebuilt when the file changes.
///
/// # Panics
/// If a prerequisite is missing, with a sentence that names it.
pub async fn python_with(folder: &'static str) -> PathBuf {
    tokio::task::spawn_blocking(move || environment(folder)).await.unwrap()
}

fn environment(folder: &str) -> PathBuf {
    let requirements = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join(folder)
        .join("requirements.txt");
    let hash = digest(&SHA256, &fs::read(&requirements).unwrap());
    let directory = target_directory().join(folder.replace('_', "-"));
    fs::create_dir_all(&directory).unwrap();
    // Concurrent runs of the suite wait for the one that builds the environment.
    let lock = File::create(directory.join("lock")).unwrap();
    lock.lock().unwrap();

    let environment = directory.join(&hex::encode(hash)[..16]);
    let python = environment.join("bin/python");
    let complete = environment.join("complete");
    if !complete.exists() {
        let missing = "the tests need Python 3.11 or later with venv and pip: apt-get install \
                       python3-venv, dnf install python3 or brew install python";
        run(
            Command::new("python3").args(["-c", "import sys; assert sys.version_info >= (3, 11), sys.version"]),
            missing,
        );
        run(
            Command::new("python3")
                .args(["-m", "venv", "--clear"])
                .arg(&environment),
            missing,
        );
        run(
            Command::new(&python)
                .args([
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--requirement",
                ])
                .arg(&requirements),
            &format!(
                "the tests need the packages of tests/{folder}/requirements.txt, and pip cannot install them here"
            ),
        );
        File::create(complete).unwrap();
    }
    python
}

/// # Panics
/// If the command fails, with the advice in `or_else` and the command's output.
fn run(command: &mut Command, or_else: &str) {
    let name = command.get_program().to_owned();
    match command.output() {
        Ok(output) if output.status.success() => {}
        Ok(output) => {
            let wrote = [output.stdout, output.stderr].concat();
            panic!(
                "{or_else}.\n{} wrote:\n{}",
                display(&name),
                String::from_utf8_lossy(&wrote)
            );
        }
        Err(error) => panic!("{or_else}.\n{}: {error}", display(&name)),
    }
}

fn display(name: &OsStr) -> String {
    name.to_string_lossy().into_owned()
}
