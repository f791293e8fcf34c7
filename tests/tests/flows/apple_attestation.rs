//! `assay-server apple-attestation verify`, which needs neither a server nor a configuration nor a network.

use std::fs;
use std::process::Command;

use assay_authority::attestation::apple::{AttestationError, AttestationRoots, UnverifiedAttestation};
use assay_protocol::PublicKey;
use assay_protocol::attestation::FreshnessCode;
use assay_tests::apple::{Apple, Attested, FRESHNESS_CODE, SERIAL_NUMBER};
use assay_tests::machine::Machine;
use assay_tests::processes::{ServerConfiguration, program};
use base64::{Engine, engine::general_purpose::STANDARD, engine::general_purpose::URL_SAFE_NO_PAD};
use pem::Pem;
use rstest::rstest;
use serde_json::Value;
use tempfile::TempDir;
use time::Duration;
use time::macros::datetime;

use super::commands::{Outcome, run};

const CORPUS: &str = include_str!("../../../server/testdata/apple-attestation.json");

struct Auditor {
    folder: TempDir,
    corpus: Value,
}

impl Auditor {
    fn new() -> Self {
        let auditor = Self {
            folder: tempfile::tempdir().unwrap(),
            corpus: serde_json::from_str(CORPUS).unwrap(),
        };
        auditor.keep("roots.pem", auditor.corpus["root"].as_str().unwrap());
        auditor
    }

    fn keep(&self, name: &str, content: &str) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// The nonce of the vectors' key, in hex.
    fn nonce(&self) -> String {
        let spki = self.corpus["agent_public_key_spki"].as_str().unwrap();
        let key = PublicKey::from_spki_der(&URL_SAFE_NO_PAD.decode(spki).unwrap()).unwrap();
        FreshnessCode::of(&key).to_string()
    }

    /// Verifies the chain of a vector at the vector's time, with further arguments.
    async fn verify(&self, name: &str, arguments: &[&str]) -> Outcome {
        let cases = self.corpus["cases"].as_array().unwrap();
        let case = cases.iter().find(|case| case["name"] == name).unwrap();
        let chain = case["x5c"].as_array().unwrap().iter().map(|der| {
            let der = STANDARD.decode(der.as_str().unwrap()).unwrap();
            Pem::new("CERTIFICATE", der)
        });
        let chain = self.keep("chain.pem", &pem::encode_many(&chain.collect::<Vec<_>>()));
        let at = case["at"].as_str().unwrap();
        self.run(&[&["--chain", &chain, "--at", at], arguments].concat()).await
    }

    async fn run(&self, arguments: &[&str]) -> Outcome {
        let mut command = Command::new(program("assay-server"));
        command
            .args(["apple-attestation", "verify"])
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear();
        run(command).await
    }
}

impl Outcome {
    fn verification(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {} {}", self.stdout, self.stderr))
    }
}

#[tokio::test]
async fn a_chain_is_verified_offline_and_its_claims_are_shown() {
    let auditor = Auditor::new();
    let nonce = auditor.nonce();
    let outcome = auditor
        .verify(
            "SIP absent",
            &["--roots", "roots.pem", "--nonce", &nonce.to_uppercase()],
        )
        .await;
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    let verification = outcome.verification();
    assert_eq!(verification["valid"], true);
    assert_eq!(
        verification["claims"],
        serde_json::json!({
            "serial_number": "C02TESTVEC01", "udid": "00006032-001C2D3E4F5A801E", "software_update_device_id": "J516sAP",
            "os_version": "15.5", "sep_os_version": "15.5", "llb_version": "15.5", "sip_enabled": null,
            "secure_boot": "full", "third_party_kexts_allowed": false, "freshness_code": nonce,
        })
    );
    let chain = verification["chain"].as_array().unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[0]["not_before"], "2026-04-28T00:00:00Z");
    assert_eq!(chain[0]["issuer"], chain[1]["subject"]);
}

#[rstest]
#[case("leaf expired", &["--roots", "roots.pem"], "path")]
#[case("from another root", &["--roots", "roots.pem"], "path")]
#[case("not DER", &["--roots", "roots.pem"], "path")]
#[case("empty chain", &["--roots", "roots.pem"], "path")]
#[case::apples_root_alone_by_default("good", &[], "path")]
#[case("freshness absent", &["--roots", "roots.pem", "--nonce", "NONCE"], "stale")]
#[case("freshness of another key", &["--roots", "roots.pem", "--nonce", "NONCE"], "stale")]
#[tokio::test]
async fn an_invalid_attestation_is_reported_with_the_reason_and_an_exit_code(
    #[case] name: &str,
    #[case] arguments: &[&str],
    #[case] failed: &str,
) {
    let auditor = Auditor::new();
    let nonce = auditor.nonce();
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| if *argument == "NONCE" { &nonce } else { *argument })
        .collect();
    let outcome = auditor.verify(name, &arguments).await;
    assert_eq!(outcome.code, Some(1), "{}", outcome.stdout);
    let verification = outcome.verification();
    let members: Vec<&String> = verification.as_object().unwrap().keys().collect();
    assert_eq!(members, ["detail", "failed", "valid"]);
    assert_eq!(
        (&verification["valid"], &verification["failed"]),
        (&false.into(), &failed.into()),
        "{verification}"
    );
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
}

/// An auditor must not take a certificate for verified that only came along.
#[tokio::test]
async fn a_certificate_that_rides_along_is_not_listed_as_verified() {
    let auditor = Auditor::new();
    let case = |name: &str| {
        let cases = auditor.corpus["cases"].as_array().unwrap();
        cases.iter().find(|case| case["name"] == name).unwrap().clone()
    };
    let der = |der: &Value| Pem::new("CERTIFICATE", STANDARD.decode(der.as_str().unwrap()).unwrap());
    let (good, other) = (case("good"), case("from another root"));
    let mut chain: Vec<Pem> = good["x5c"].as_array().unwrap().iter().map(der).collect();
    chain.push(der(&other["x5c"][1]));
    let chain = auditor.keep("chain.pem", &pem::encode_many(&chain));
    let at = good["at"].as_str().unwrap();
    let outcome = auditor
        .run(&["--chain", &chain, "--at", at, "--roots", "roots.pem"])
        .await;
    assert_eq!(outcome.code, Some(0), "{} {}", outcome.stdout, outcome.stderr);
    let verification = outcome.verification();
    let listed = verification["chain"].as_array().unwrap();
    assert_eq!(listed.len(), 2, "{verification}");
    assert_eq!(listed[0]["issuer"], listed[1]["subject"]);
}

#[tokio::test]
async fn a_refused_chain_is_explained_in_words() {
    let auditor = Auditor::new();
    let refused = auditor.verify("from another root", &["--roots", "roots.pem"]).await;
    let verification = refused.verification();
    let detail = verification["detail"].as_str().unwrap();
    assert!(detail.ends_with("no trusted root issued it"), "{detail}");
}

#[tokio::test]
async fn an_unusable_file_is_named() {
    let auditor = Auditor::new();
    let missing = auditor.run(&["--chain", "no-such.pem"]).await;
    assert_eq!((missing.code, missing.stdout.as_str()), (Some(1), ""));
    assert!(missing.stderr.contains("no-such.pem"), "{}", missing.stderr);
    let roots = auditor.keep("bad-roots.pem", "no PEM");
    let bad = auditor.verify("good", &["--roots", &roots]).await;
    assert_eq!((bad.code, bad.stdout.as_str()), (Some(1), ""), "{}", bad.stderr);
    assert!(bad.stderr.contains("bad-roots.pem"), "{}", bad.stderr);
    for wrong in [["--at", "yesterday"], ["--nonce", "00"]] {
        let outcome = auditor.verify("good", &wrong).await;
        assert_eq!(
            (outcome.code, outcome.stdout.as_str()),
            (Some(2), ""),
            "{}",
            outcome.stderr
        );
    }
}

#[rstest]
#[case::missing("/no/such.pem")]
#[case::no_certificates("/etc/hostname")]
#[tokio::test]
async fn a_server_does_not_start_with_unusable_attestation_roots(#[case] roots: &str) {
    let configuration = ServerConfiguration::with_private_postgres().set("apple.attestation_roots", roots);
    let refused = run(configuration.command(&["serve"])).await;
    assert_eq!(refused.code, Some(1));
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("apple.attestation_roots"), "{}", refused.stderr);
}

/// Leaves that the vectors cannot contain, because they need the intermediate's private key.
#[test]
fn an_ambiguous_leaf_is_refused() {
    let at = datetime!(2026-11-22 10:00 UTC);
    let (apple, machine) = (Apple::new(), Machine::with_serial_number("C02ONE"));
    let roots = AttestationRoots::from_pem(&apple.roots_pem()).unwrap();
    let verify = |attested: &Attested| {
        UnverifiedAttestation::from_der(apple.attest(attested))?.verify(&roots, at + Duration::hours(1))
    };
    let good = Attested::of("C02ONE", &machine.public_key(), at);
    assert_eq!(verify(&good).unwrap().claims().serial_number.as_deref(), Some("C02ONE"));
    for (oid, value) in [
        (SERIAL_NUMBER, b"C02TWO".as_slice()),
        (SERIAL_NUMBER, b"C02ONE"),
        (FRESHNESS_CODE, &[7; 32]),
    ] {
        let twice = verify(&good.clone().and(oid, value)).unwrap_err();
        assert!(
            matches!(twice, AttestationError::RepeatedExtension { position: 1, .. }),
            "{twice:?}"
        );
    }
    let critical = verify(&good.critical()).unwrap_err();
    assert!(matches!(critical, AttestationError::Path(_)), "{critical:?}");
    let other = Attested::of("C02ONE", &machine.public_key(), at);
    let foreign = UnverifiedAttestation::from_der(Apple::new().attest(&other)).unwrap();
    assert!(matches!(foreign.verify(&roots, at), Err(AttestationError::Path(_))));
}
