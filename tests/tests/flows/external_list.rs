//! The revocation list of an external root, which is made with OpenSSL and served here.

use assay_protocol::ProblemKind;
use assay_server::clock::Clock;
use assay_tests::answer::Answer;
use assay_tests::api::{Api, Called};
use assay_tests::in_process::InProcess;
use assay_tests::openssl::openssl;

use super::commands::{Outcome, run};
use super::external_root::{CA, Pki, under_an_external_root};
use super::revocation::await_answer;

/// Signs a list of a root with OpenSSL, in PEM, and returns its path.
async fn signed(pki: &Pki, root: &str, name: &str, arguments: &[&str]) -> String {
    let (index, number) = (pki.path(&format!("{root}.index")), pki.path(&format!("{root}.number")));
    if !pki.0.path(&format!("{root}.index")).exists() {
        pki.0.write(&format!("{root}.index"), "");
        pki.0.write(&format!("{root}.number"), "01\n");
    }
    let configuration = format!(
        "[ca]\ndefault_ca = d\n[d]\ndatabase = {index}\ncrlnumber = {number}\ndefault_md = sha256\n\
         crl_extensions = e\n[e]\nauthorityKeyIdentifier = keyid\n"
    );
    let configuration = pki.0.write("ca.cnf", configuration);
    let [certificate, key] = ["pem", "key"].map(|kind| pki.path(&format!("{root}.{kind}")));
    let out = pki.path(name);
    let ca = [
        "ca",
        "-config",
        configuration.to_str().unwrap(),
        "-cert",
        &certificate,
        "-keyfile",
        &key,
    ];
    pki.openssl(&[ca.as_slice(), &["-gencrl", "-out", &out], arguments].concat())
        .await;
    out
}

async fn install(server: &InProcess, list: &str) -> Outcome {
    run(server.command(&["ca", "install-list", "--list", list])).await
}

/// What the command says.
async fn installed(server: &InProcess, list: &str) -> String {
    let installed = install(server, list).await;
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    installed.stdout
}

/// This list is served, byte by byte, within a second or two.
async fn is_served(api: &Api, path: &str, list: &str) {
    let der = pem::parse(std::fs::read(list).unwrap()).unwrap().into_contents();
    let _served = await_answer(api, path, async |answer: &Answer| answer.body == der).await;
}

/// Refused with a sentence.
async fn is_refused(server: &InProcess, list: &str, expected: &str) {
    let refused = install(server, list).await;
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(1), ""));
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
}

/// The path of the list of the CA with this certificate.
async fn path_of(certificate: &str) -> String {
    let (read, said) = openssl(&["x509", "-in", certificate, "-noout", "-ext", "subjectKeyIdentifier"]).await;
    assert!(read, "{said}");
    let key = said.lines().last().unwrap().trim().replace(':', "").to_lowercase();
    format!("/v1/ca/crl/{key}")
}

/// What OpenSSL says about the issuing CA, after it has read all lists of the server.
async fn verify(pki: &Pki, server: &InProcess) -> (bool, String) {
    let lists = server.api().get("/v1/ca/crls.pem").await.expect(200);
    let lists = pki.0.write("crls.pem", lists.text());
    let (root, issuing) = (pki.path("first.pem"), pki.path("issuing.pem"));
    let at = server.clock().now().unix_timestamp().to_string();
    let check = [
        "verify",
        "-attime",
        &at,
        "-crl_check_all",
        "-CRLfile",
        lists.to_str().unwrap(),
    ];
    openssl(&[check.as_slice(), &["-CAfile", &root, &issuing]].concat()).await
}

#[tokio::test]
async fn the_list_of_an_external_root_is_served_once_it_is_installed() {
    let pki = Pki::new();
    let server = under_an_external_root(&pki).await;
    let path = path_of(&pki.path("first.pem")).await;
    let plain = server.revocation_api();
    for api in [server.api(), &plain] {
        let _absent = api.get(&path).await.expect_problem(ProblemKind::NotFound);
    }
    assert!(!verify(&pki, &server).await.0, "the root's list is missing");

    let list = signed(&pki, "first", "first.crl", &["-crldays", "30"]).await;
    let said = installed(&server, &list).await;
    assert!(said.contains("is installed; install the next one before"), "{said}");
    assert!(!said.contains("warning"), "{said}");
    for api in [server.api(), &plain] {
        is_served(api, &path, &list).await;
    }
    let (valid, said) = verify(&pki, &server).await;
    assert!(valid, "{said}");
    assert!(installed(&server, &list).await.contains("was already installed"));
    let audit = server.get("/v1/admin/audit?resource=sealed-key&limit=500").await.json();
    let entries = audit["items"].as_array().unwrap().iter();
    assert_eq!(entries.filter(|entry| entry["action"] == "key.install-list").count(), 1);

    let (configuration, issuing) = (pki.path("ca.cnf"), pki.path("issuing.pem"));
    let [certificate, key] = ["first.pem", "first.key"].map(|name| pki.path(name));
    let ca = ["ca", "-config", &configuration, "-cert", &certificate, "-keyfile", &key];
    pki.openssl(&[ca.as_slice(), &["-revoke", &issuing]].concat()).await;
    let list = signed(&pki, "first", "revoked.crl", &["-crldays", "100"]).await;
    let said = installed(&server, &list).await;
    assert!(said.contains("\nwarning: the list is valid for "), "{said}");
    is_served(&plain, &path, &list).await;
    let (valid, said) = verify(&pki, &server).await;
    assert!(!valid && said.contains("certificate revoked"), "{said}");
    server.stop().await;
}

#[tokio::test]
async fn a_list_that_is_not_the_present_one_of_an_external_root_is_refused() {
    let pki = Pki::new();
    let server = under_an_external_root(&pki).await;
    pki.root("other", "P-256", CA).await;
    let of_another = signed(&pki, "other", "other.crl", &["-crldays", "30"]).await;
    is_refused(&server, &of_another, "none of the external roots has signed the list").await;
    is_refused(&server, &pki.path("first.pem"), "must contain one revocation list").await;
    let times = [
        "-crl_lastupdate",
        "20200101000000Z",
        "-crl_nextupdate",
        "20200201000000Z",
    ];
    let expired = signed(&pki, "first", "expired.crl", &times).await;
    is_refused(&server, &expired, "the list has expired at 2020-02-01T00:00:00Z").await;
    let path = path_of(&pki.path("first.pem")).await;
    let _absent = server.api().get(&path).await.expect_problem(ProblemKind::NotFound);

    // An older list would bring back what was revoked since.
    let list = signed(&pki, "first", "first.crl", &["-crldays", "30"]).await;
    let _installed = installed(&server, &list).await;
    let times = [
        "-crl_lastupdate",
        "20200101000000Z",
        "-crl_nextupdate",
        "20991231000000Z",
    ];
    let older = signed(&pki, "first", "older.crl", &times).await;
    is_refused(&server, &older, "a later list of this root is installed already").await;
    is_served(server.api(), &path, &list).await;
    server.stop().await;
}
