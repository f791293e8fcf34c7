//! Compiles and links the Swift shim on macOS. Does nothing on other systems.
#![allow(
    clippy::disallowed_methods,
    reason = "cargo passes its parameters to a build script in the environment"
)]

use std::{env, error::Error, path::PathBuf, process::Command};

const SHIM: &str = "src/shim/shim.swift";
/// The first macOS on Apple silicon, and the oldest that Rust supports there.
const OLDEST_MACOS: &str = "11.0";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={SHIM}");
    let is_macos = env::var("CARGO_CFG_TARGET_OS")? == "macos";
    let has_stand_in = env::var_os("CARGO_FEATURE_ENCLAVE_STAND_IN").is_some();
    // On other systems the agent is only type-checked for macOS: there is no Swift compiler, and nothing is linked.
    let is_on_mac = env::var("HOST")?.contains("apple-darwin");
    if is_macos && is_on_mac && !has_stand_in {
        compile_shim()?;
    }
    Ok(())
}

fn compile_shim() -> Result<(), Box<dyn Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    let architecture = match env::var("CARGO_CFG_TARGET_ARCH")?.as_str() {
        "aarch64" => "arm64",
        _ => "x86_64",
    };
    let target = format!("{architecture}-apple-macos{OLDEST_MACOS}");
    let mut swiftc = xcrun();
    swiftc
        .args([
            "swiftc",
            "-O",
            "-swift-version",
            "5",
            "-parse-as-library",
            "-emit-library",
            "-static",
        ])
        .args(["-module-name", "AssayShim", "-target", &target, "-o"])
        .arg(out.join("libassay_shim.a"))
        .arg(SHIM);
    if !swiftc.status()?.success() {
        return Err(format!("{SHIM} does not compile: {swiftc:?}").into());
    }
    let asked = |what: &[&str]| Ok::<_, Box<dyn Error>>(String::from_utf8(xcrun().args(what).output()?.stdout)?);
    let (sdk, compiler) = (asked(&["--show-sdk-path"])?, asked(&["--find", "swiftc"])?);
    // macOS contains the Swift runtime, and the SDK contains its link libraries. The compiler contains compatibility
    // libraries for older systems.
    let toolchain = PathBuf::from(compiler.trim());
    let usr = toolchain
        .ancestors()
        .nth(2)
        .ok_or("swiftc is not in a folder usr/bin")?;
    let toolchain = usr.join("lib/swift/macosx");
    for place in [out, PathBuf::from(sdk.trim()).join("usr/lib/swift"), toolchain] {
        println!("cargo::rustc-link-search=native={}", place.display());
    }
    // On Intel, the oldest system that Rust links for has no Swift runtime of its own, so the linker uses @rpath.
    println!("cargo::rustc-link-arg-bins=-Wl,-rpath,/usr/lib/swift");
    println!("cargo::rustc-link-lib=static=assay_shim");
    for framework in ["CryptoKit", "Foundation", "CoreFoundation", "Security"] {
        println!("cargo::rustc-link-lib=framework={framework}");
    }
    Ok(())
}

fn xcrun() -> Command {
    let mut xcrun = Command::new("xcrun");
    xcrun.args(["--sdk", "macosx"]);
    xcrun
}
