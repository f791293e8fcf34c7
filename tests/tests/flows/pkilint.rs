//! pkilint, a linter for certificates, revocation lists and OCSP responses, on one of every kind that the server signs.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use assay_server::clock::Clock;
use assay_tests::administrator::text;
use assay_tests::answer::Answer;
use assay_tests::api::Called;
use assay_tests::apple::{Apple, Attested};
use assay_tests::in_process::InProcess;
use assay_tests::openssl::{Files, openssl};
use assay_tests::python::python_with;
use serde_json::{Value, json};

use super::acme::with_device_certificate;
use super::commands::run;
use super::revocation::{RelyingParty, await_answer, post};

/// Accepted findings: the kinds of document, the finding's code, and the reason.
const EXPLAINED: [(&[&str], &str, &str); 3] = [
    (
        &["machine", "attested machine", "device"],
        "pkix.invalid_uri_syntax",
        "pkilint does not know the scheme spiffe, which SPIFFE's X.509-SVID requires",
    ),
    (
        &[
            "machine",
            "attested machine",
            "device",
            "issuing CA",
            "TLS",
            "OCSP responder",
            "root's OCSP responder",
        ],
        "pkix.subject_key_identifier_rfc7093_method_1_identified",
        "a remark: pkilint recognizes the method",
    ),
    (
        &["root", "cross-certificate"],
        "pkix.subject_key_identifier_method_1_identified",
        "a remark: roots keep the method of RFC 5280, which an external CA that certifies them uses as well",
    ),
];

/// pkilint's programs, and what they have found.
struct Linter {
    folder: PathBuf,
    kinds: BTreeSet<String>,
    findings: BTreeSet<(String, String)>,
}

impl Linter {
    async fn new() -> Self {
        let python = python_with("pkilint").await;
        Self {
            folder: python.parent().unwrap().to_owned(),
            kinds: BTreeSet::new(),
            findings: BTreeSet::new(),
        }
    }

    /// Runs one of pkilint's programs on a file, and keeps its findings under a name.
    async fn lint(&mut self, kind: &str, program: &str, arguments: &[&str]) {
        self.kinds.insert(kind.to_owned());
        let mut command = Command::new(self.folder.join(program));
        command.args(["lint", "-s", "INFO", "-f", "JSON"]).args(arguments);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let read: Value = serde_json::from_str(&said)
            .unwrap_or_else(|_| panic!("{kind}: {said}{}", String::from_utf8_lossy(&output.stderr)));
        for result in read["results"].as_array().unwrap() {
            for finding in result["finding_descriptions"].as_array().unwrap() {
                println!("{kind}: {finding} at {}", result["node_path"]);
                self.findings.insert((kind.to_owned(), text(finding, "code")));
            }
        }
    }

    /// Every finding is explained, and every explanation is still needed.
    fn expect_what_is_explained(&self) {
        let mut explained = BTreeSet::new();
        for (kinds, code, _why) in EXPLAINED {
            let kinds = kinds.iter().filter(|kind| self.kinds.contains(**kind));
            explained.extend(kinds.map(|kind| ((*kind).to_owned(), code.to_owned())));
        }
        assert_eq!(self.findings, explained);
    }

    async fn certificate(&mut self, kind: &str, file: &Path) {
        self.lint(kind, "lint_pkix_cert", &[file.to_str().unwrap()]).await;
    }
}

/// A certificate of an attested machine.
async fn attested(server: &InProcess, apple: &Apple, files: &Files) -> PathBuf {
    let machine = server.attestable("C02LINTED").await;
    let body = apple.body(&Attested::an_hour_ago(&machine, server.clock().now()));
    let path = format!("{}/apple-attestation", machine.path());
    let _bound = server.post(&path, &body).await.expect(200);
    let renewed = machine.renew(server).await.expect(200).json();
    first_certificate(files, "attested.pem", &text(&renewed["certificate"], "chain"))
}

/// The certificate of the responder in a response.
async fn responder(files: &Files, response: &Answer) -> PathBuf {
    let file = files.write("response.der", &response.body);
    let file = file.to_str().unwrap();
    let (_, said) = openssl(&["ocsp", "-respin", file, "-noverify", "-resp_text"]).await;
    first_certificate(files, "responder.pem", &said)
}

fn first_certificate(files: &Files, name: &str, pem: &str) -> PathBuf {
    let block = pem::parse_many(pem).unwrap().swap_remove(0);
    files.write(name, pem::encode(&block))
}

/// The list of the issuing CA, which contains this certificate, and the root's.
async fn lint_lists(linter: &mut Linter, server: &InProcess, files: &Files, serial_number: &str) {
    let api = server.api();
    let is_listed = async |answer: &Answer| hex::encode(&answer.body).contains(serial_number);
    let list = await_answer(api, "/v1/ca/crl", is_listed).await;
    let lists = pem::parse_many(api.get("/v1/ca/crls.pem").await.expect(200).text()).unwrap();
    let list = files.write("list.der", &list.body);
    let of_root = files.write("root-list.der", lists.last().unwrap().contents());
    for (kind, category, file) in [("list", "CRL", list), ("root's list", "ARL", of_root)] {
        let arguments = ["-p", "PKIX", "-t", category, file.to_str().unwrap()];
        linter.lint(kind, "lint_crl", &arguments).await;
    }
}

#[tokio::test]
async fn pkilint_finds_nothing_in_what_the_server_signs_but_what_is_explained() {
    let mut linter = Linter::new().await;
    let (server, apple, device) = with_device_certificate().await;
    let party = RelyingParty::of(server.api()).await;
    let (api, files) = (server.api(), &party.files);
    let machine = server.enrolled("LINTED").await;
    let record = server.get(&machine.path()).await.json();
    let serial_number = text(&record["certificate"], "serial_number");
    let path = format!("/v1/admin/certificates/{serial_number}");
    let leaf = files.write("machine.pem", text(&server.get(&path).await.json(), "pem"));
    let chain = pem::parse_many(api.get("/v1/ca/chain.pem").await.expect(200).text()).unwrap();
    let [issuing, root] = chain.as_slice() else {
        panic!("an issuing CA and a root")
    };
    let issuing = files.write("issuing.pem", pem::encode(issuing));
    let root = files.write("root.pem", pem::encode(root));
    let tls = super::revocation_listener::tls_chain(files, server.address()).await;
    linter.certificate("machine", &leaf).await;
    linter
        .certificate("device", &first_certificate(files, "device.pem", &device))
        .await;
    linter
        .certificate("attested machine", &attested(&server, &apple, files).await)
        .await;
    linter.certificate("issuing CA", &issuing).await;
    linter.certificate("root", &root).await;
    linter.certificate("TLS", &tls[0]).await;
    let paths = [&root, &issuing, &leaf].map(|path| path.to_str().unwrap());
    for pair in paths.windows(2) {
        linter.lint("path", "lint_pkix_signer_signee_cert_chain", pair).await;
    }

    let known = format!("0x{serial_number}");
    let ocsp = async |linter: &mut Linter, kind: &str, which: &[&str]| {
        let answer = post(api, &party.ocsp_request(which, "-nonce").await).await;
        let file = files.write("response.der", &answer.body);
        linter.lint(kind, "lint_ocsp_response", &[file.to_str().unwrap()]).await;
        answer
    };
    for digest in ["-sha1", "-sha256", "-sha384", "-sha512"] {
        let _good = ocsp(&mut linter, "OCSP good", &[digest, "-serial", &known]).await;
    }
    let _unknown = ocsp(&mut linter, "OCSP unknown", &["-serial", "0x4242"]).await;
    let body = json!({"reason": "key_compromise"});
    let _revoked = server.post(&format!("{path}/revoke"), &body).await.expect(200);
    let revoked = ocsp(&mut linter, "OCSP revoked", &["-serial", &known]).await;
    linter
        .certificate("OCSP responder", &responder(files, &revoked).await)
        .await;

    lint_lists(&mut linter, &server, files, &serial_number).await;
    linter.expect_what_is_explained();
    server.stop().await;
}

#[tokio::test]
async fn pkilint_finds_nothing_in_what_a_root_signs_but_what_is_explained() {
    let mut linter = Linter::new().await;
    let server = InProcess::start().await;
    let (api, files) = (server.api(), Files::new());
    let chain = pem::parse_many(api.get("/v1/ca/chain.pem").await.expect(200).text()).unwrap();
    let paths: Vec<PathBuf> = (chain.iter().zip(["issuing.pem", "root.pem"]))
        .map(|(block, name)| files.write(name, pem::encode(block)))
        .collect();
    let [issuing, root] = [0, 1].map(|place| paths[place].to_str().unwrap());
    let request = files.path("request.der");
    let asked = ["ocsp", "-issuer", root, "-cert", issuing, "-no_nonce", "-reqout"];
    let (made, said) = openssl(&[asked.as_slice(), &[request.to_str().unwrap()]].concat()).await;
    assert!(made, "{said}");
    let answer = post(api, &std::fs::read(&request).unwrap()).await;
    let response = files.write("response.der", &answer.body);
    linter
        .lint("root's OCSP", "lint_ocsp_response", &[response.to_str().unwrap()])
        .await;
    linter
        .certificate("root's OCSP responder", &responder(&files, &answer).await)
        .await;

    let rotated = run(server.command(&["ca", "rotate", "--root"])).await;
    assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    // Both issuing CAs with their roots, and the certificate by which the first root vouches for the next.
    let is_complete = async |answer: &Answer| answer.text().matches("BEGIN").count() == 5;
    let chain = await_answer(api, "/v1/ca/chain.pem", is_complete).await;
    let cross = pem::parse_many(chain.text()).unwrap().pop().unwrap();
    let cross = files.write("cross.pem", pem::encode(&cross));
    linter.certificate("cross-certificate", &cross).await;
    linter.expect_what_is_explained();
    server.stop().await;
}
