//! An issuing CA under an external root, which is made with OpenSSL.

use assay_protocol::ProblemKind;
use assay_server::clock::Clock;
use assay_tests::administrator::text;
use assay_tests::api::Called;
use assay_tests::in_process::{Connections, InProcess};
use assay_tests::machine::Machine;
use assay_tests::openssl::{Files, openssl};
use rstest::rstest;
use serde_json::{Value, json};
use time::Duration;

use super::commands::{Outcome, run};

pub(super) const CA: &str =
    "basicConstraints=critical,CA:TRUE\nkeyUsage=critical,keyCertSign,cRLSign\nsubjectKeyIdentifier=hash\n";
const ISSUING: &str = "basicConstraints=critical,CA:TRUE,pathlen:0\nkeyUsage=critical,keyCertSign,cRLSign\n\
                       subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n";

/// An external PKI.
pub(super) struct Pki(pub(super) Files);

impl Pki {
    pub(super) fn new() -> Self {
        Self(Files::new())
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.0.path(name).to_str().unwrap().to_owned()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.0.path(name)).unwrap()
    }

    pub(super) async fn openssl(&self, arguments: &[&str]) {
        let (done, said) = openssl(arguments).await;
        assert!(done, "{arguments:?}: {said}");
    }

    /// Creates a self-signed root `NAME.pem`.
    pub(super) async fn root(&self, name: &str, curve: &str, extensions: &str) {
        self.request(name, curve).await;
        let key = self.path(&format!("{name}.key"));
        self.sign(name, &["-signkey", &key], extensions, "3650").await;
    }

    /// Creates a key `NAME.key` and a CSR `NAME.csr`.
    async fn request(&self, name: &str, curve: &str) {
        let [key, csr] = ["key", "csr"].map(|kind| self.path(&format!("{name}.{kind}")));
        let (curve, subject) = (
            format!("ec_paramgen_curve:{curve}"),
            format!("/O=Corporation/CN={name}"),
        );
        let new = [
            "req", "-new", "-newkey", "ec", "-pkeyopt", &curve, "-nodes", "-subj", &subject,
        ];
        self.openssl(&[&new[..], &["-keyout", &key, "-out", &csr]].concat())
            .await;
    }

    /// Issues `NAME.pem` for `NAME.csr`, signed by a CA.
    async fn issue(&self, name: &str, by: &str, extensions: &str, days: &str) {
        let [ca, key] = ["pem", "key"].map(|kind| self.path(&format!("{by}.{kind}")));
        self.sign(name, &["-CA", &ca, "-CAkey", &key, "-CAcreateserial"], extensions, days)
            .await;
    }

    /// The cross-certificate `NAME.cross` for `NAME.csr`, by a root.
    async fn certify(&self, name: &str, by: &str, extensions: &str) -> String {
        let [ca, key] = ["pem", "key"].map(|kind| self.path(&format!("{by}.{kind}")));
        let (csr, cross) = (self.path(&format!("{name}.csr")), self.path(&format!("{name}.cross")));
        let extensions = self.0.write("extensions", extensions);
        let sign = ["x509", "-req", "-in", &csr, "-out", &cross, "-days", "3650", "-extfile"];
        let signer = [
            extensions.to_str().unwrap(),
            "-CA",
            &ca,
            "-CAkey",
            &key,
            "-CAcreateserial",
        ];
        self.openssl(&[&sign[..], &signer].concat()).await;
        cross
    }

    async fn sign(&self, name: &str, signer: &[&str], extensions: &str, days: &str) {
        let [csr, pem] = ["csr", "pem"].map(|kind| self.path(&format!("{name}.{kind}")));
        let extensions = self.0.write("extensions", extensions);
        let extensions = extensions.to_str().unwrap();
        let sign = [
            "x509", "-req", "-in", &csr, "-out", &pem, "-days", days, "-extfile", extensions,
        ];
        self.openssl(&[&sign[..], signer].concat()).await;
    }

    /// Writes certificates into `chain.pem`.
    fn chain(&self, names: &[&str]) -> String {
        let chain: String = names.iter().map(|name| self.read(&format!("{name}.pem"))).collect();
        self.0.write("chain.pem", chain).to_str().unwrap().to_owned()
    }

    /// Writes a server's CSR to `issuing.csr`.
    async fn take_csr(&self, server: &InProcess) -> String {
        let printed = run(server.command(&["ca", "csr"])).await;
        assert_eq!(printed.code, Some(0), "{}", printed.stderr);
        let csr = self.0.write("issuing.csr", &printed.stdout);
        let csr = csr.to_str().unwrap();
        let (valid, said) = openssl(&["req", "-in", csr, "-noout", "-verify", "-text"]).await;
        for expected in ["CA:TRUE, pathlen:0", "Certificate Sign, CRL Sign", "Assay Issuing CA"] {
            assert!(valid && said.contains(expected), "{expected} in {said}");
        }
        let (_, key) = openssl(&["req", "-in", csr, "-noout", "-pubkey"]).await;
        key
    }
}

async fn install(server: &InProcess, chain: &str) -> Outcome {
    run(server.command(&["ca", "install", "--chain", chain])).await
}

async fn install_with(server: &InProcess, chain: &str, cross_certificate: &str) -> Outcome {
    let install = [
        "ca",
        "install",
        "--chain",
        chain,
        "--cross-certificate",
        cross_certificate,
    ];
    run(server.command(&install)).await
}

/// A server under an external root, `first.pem`, that signs now.
pub(super) async fn under_an_external_root(pki: &Pki) -> InProcess {
    let settings = [
        ("certificates.root_overlap", "1s"),
        ("certificates.ca_overlap", "1s"),
        ("rate_limit.address_per_minute", "0"),
    ];
    let mut server = InProcess::start_with(&settings).await;
    pki.root("first", "P-256", CA).await;
    let _key = pki.take_csr(&server).await;
    pki.issue("issuing", "first", ISSUING, "365").await;
    let installed = install(&server, &pki.chain(&["issuing", "first"])).await;
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    signs(&mut server, &pki.read("issuing.pem")).await;
    server
}

/// The overlap is over, and this CA signs. The command that installed it had the system's clock, which went on while
/// the server's did not.
async fn signs(server: &mut InProcess, issuing: &str) {
    server.clock().advance(Duration::hours(1));
    until(server, async || {
        text_of(server, "/v1/ca/chain.pem").await.starts_with(issuing)
    })
    .await;
    server.trust_again();
}

/// The trust bundle without the roots.
async fn cross_certificates(server: &InProcess) -> Vec<pem::Pem> {
    let token = server.enrollment_token(json!({})).await;
    let enrolled = Machine::new().enroll(server, Some(&token)).await.expect(201).json();
    let roots = pem::parse_many(text_of(server, "/v1/ca/bundle.pem").await).unwrap();
    let bundle = pem::parse_many(text(&enrolled, "trust_bundle")).unwrap();
    bundle
        .into_iter()
        .filter(|certificate| !roots.contains(certificate))
        .collect()
}

/// What OpenSSL says of the chain of a new machine, by this root and the cross-certificates alone.
async fn verify_by(pki: &Pki, server: &InProcess, root: &str) -> (bool, String) {
    let token = server.enrollment_token(json!({})).await;
    let enrolled = Machine::new().enroll(server, Some(&token)).await.expect(201).json();
    let chain = text(&enrolled["certificate"], "chain");
    let leaf = pki.0.write("leaf.pem", &chain);
    let others = pki.0.write(
        "others.pem",
        chain + &pem::encode_many(&cross_certificates(server).await),
    );
    let at = server.clock().now().unix_timestamp().to_string();
    let (leaf, others, root) = (leaf.to_str().unwrap(), others.to_str().unwrap(), pki.path(root));
    let verify = [
        "verify",
        "-x509_strict",
        "-attime",
        &at,
        "-CAfile",
        &root,
        "-untrusted",
        others,
        leaf,
    ];
    openssl(&verify).await
}

async fn text_of(server: &InProcess, path: &str) -> String {
    server.reached().get(path).await.expect(200).text()
}

async fn until(server: &InProcess, is_right: impl AsyncFn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_right().await {
        assert!(begun.elapsed().as_secs() < 60, "the server does not notice");
        let _breath = server.reached().get("/healthz").await;
    }
}

async fn actions(server: &InProcess) -> usize {
    let audit = server.get("/v1/admin/audit?resource=sealed-key&limit=500").await.json();
    audit["items"].as_array().unwrap().len()
}

async fn issuing_cas(server: &InProcess) -> Vec<Value> {
    let status = run(server.command(&["ca", "status", "--json"])).await;
    let status: Value = serde_json::from_str(&status.stdout).unwrap();
    status["issuing_cas"].as_array().unwrap().clone()
}

/// The issuing CA is under the root, on either curve, or under a policy CA.
#[rstest]
#[case::under_the_root("P-256", false)]
#[case::under_a_policy_ca("P-384", true)]
#[tokio::test]
async fn machines_are_issued_certificates_under_an_external_root(#[case] curve: &str, #[case] has_policy_ca: bool) {
    let mut server = InProcess::start().await;
    let pki = Pki::new();
    pki.root("root", curve, CA).await;
    let key = pki.take_csr(&server).await;
    assert_eq!(
        pki.take_csr(&server).await,
        key,
        "a repeated call is about the same key"
    );
    if has_policy_ca {
        pki.request("policy", curve).await;
        pki.issue("policy", "root", &CA.replace("CA:TRUE", "CA:TRUE,pathlen:1"), "3000")
            .await;
        pki.issue("issuing", "policy", ISSUING, "365").await;
    } else {
        pki.issue("issuing", "root", ISSUING, "365").await;
    }
    let chain = match has_policy_ca {
        true => pki.chain(&["issuing", "policy", "root"]),
        false => pki.chain(&["issuing", "root"]),
    };
    let before = server.enrolled("BEFORE").await;
    let installed = install(&server, &chain).await;
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    let again = install(&server, &chain).await;
    assert_eq!(again.code, Some(0), "{}", again.stderr);
    assert!(again.stdout.contains("was already prepared"), "{}", again.stdout);

    // The bundle has the root immediately. It is used only after the machines had time to fetch the bundle.
    let external = pki.read("root.pem");
    until(&server, async || {
        text_of(&server, "/v1/ca/bundle.pem").await.contains(&external)
    })
    .await;
    server.trust_again();
    server.clock().advance(Duration::days(2));
    let issuing = pki.read("issuing.pem");
    assert!(!text_of(&server, "/v1/ca/chain.pem").await.starts_with(&issuing));
    server.clock().advance(Duration::days(28) + Duration::minutes(1));
    let begun = std::time::Instant::now();
    let health = || server.http1_client().get(server.api().url("/healthz"));
    while assay_tests::answer::Answer::or_error(health()).await.is_err() {
        assert!(begun.elapsed().as_secs() < 60, "the server's certificate is over");
    }
    until(&server, async || {
        text_of(&server, "/v1/ca/chain.pem").await.starts_with(&issuing)
    })
    .await;

    let token = server.enrollment_token(json!({})).await;
    let machine = Machine::with_serial_number("EXTERNAL");
    let enrolled = machine.enroll(&server, Some(&token)).await.expect(201).json();
    let machines_chain = text(&enrolled["certificate"], "chain");
    let certificates = if has_policy_ca { 3 } else { 2 };
    assert_eq!(
        machines_chain.matches("BEGIN").count(),
        certificates,
        "the root is left out"
    );
    let files = Files::new();
    let path = files.write("chain.pem", &machines_chain);
    let (path, at) = (
        path.to_str().unwrap(),
        server.clock().now().unix_timestamp().to_string(),
    );
    let root = pki.path("root.pem");
    let verify = [
        "verify",
        "-x509_strict",
        "-attime",
        &at,
        "-CAfile",
        &root,
        "-untrusted",
        path,
        path,
    ];
    let (valid, said) = openssl(&verify).await;
    assert!(valid, "{said}");
    // The server publishes the CA's list. The root's owner publishes the root's list.
    let lists = text_of(&server, "/v1/ca/crls.pem").await;
    assert_eq!(
        lists.matches("BEGIN X509 CRL").count(),
        3,
        "two issuing CAs, and our own root"
    );
    let lists = files.write("lists.pem", lists);
    let with_list = ["-crl_check", "-CRLfile", lists.to_str().unwrap()];
    let (valid, said) = openssl(&[&verify[..1], &with_list, &verify[1..]].concat()).await;
    assert!(valid, "{said}");
    for at_home in [
        machines_chain.as_str(),
        &machines_chain[..machines_chain.find("-----END").unwrap() + 26],
    ] {
        let presenting = server.presenting(at_home, &machine, Connections::Kept);
        let _checked_in = machine.check_in(&presenting).await.expect(200);
    }
    let _renewed = before.renew(&server).await.expect(200);

    // The first root vouches for it, under the name that OpenSSL has written.
    let enrolled = text(&enrolled, "trust_bundle");
    let cross = enrolled.trim_start_matches(&text_of(&server, "/v1/ca/bundle.pem").await);
    assert_eq!(cross.matches("BEGIN CERTIFICATE").count(), 1);

    // The next one is not ours to make.
    let refused = run(server.command(&["ca", "rotate"])).await;
    assert!(refused.stderr.contains("under an external root"), "{}", refused.stderr);
    server.stop().await;
}

#[tokio::test]
async fn another_external_root_needs_a_certificate_of_the_present_one() {
    let pki = Pki::new();
    let mut server = under_an_external_root(&pki).await;
    pki.root("second", "P-384", CA).await;
    let _key = pki.take_csr(&server).await;
    pki.issue("issuing", "second", ISSUING, "365").await;
    let chain = pki.chain(&["issuing", "second"]);
    refused(&server, &chain, "--cross-certificate").await;
    // The owner of the first root certifies the second one, from its CSR.
    for (extensions, said) in [
        (
            CA.replace("CA:TRUE", "CA:TRUE,pathlen:0"),
            "path length of the cross-certificate",
        ),
        (CA.replace("keyCertSign,", ""), "keyCertSign"),
        (format!("{CA}extendedKeyUsage=serverAuth\n"), "extended key usage"),
    ] {
        let cross = pki.certify("second", "first", &extensions).await;
        let refused = install_with(&server, &chain, &cross).await;
        assert_eq!(refused.code, Some(1), "{said}");
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
    for (file, said) in [
        (pki.path("first.pem"), "does not have the subject and key"),
        (pki.path("second.pem"), "did not sign"),
        (pki.path("second.csr"), "must be one certificate"),
        (pki.path("missing"), "missing"),
    ] {
        let refused = install_with(&server, &chain, &file).await;
        assert_eq!(refused.code, Some(1), "{said}");
        assert!(refused.stderr.contains(said), "{}", refused.stderr);
    }
    assert_eq!(
        cross_certificates(&server).await.len(),
        1,
        "of the server's own root, by which it was replaced"
    );
    let cross = pki.certify("second", "first", CA).await;
    let installed = install_with(&server, &chain, &cross).await;
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    let again = install_with(&server, &chain, &cross).await;
    assert!(
        again.stdout.contains("was already prepared"),
        "{}{}",
        again.stdout,
        again.stderr
    );
    signs(&mut server, &pki.read("issuing.pem")).await;
    let cross = pem::parse(std::fs::read(cross).unwrap()).unwrap();
    assert!(cross_certificates(&server).await.contains(&cross));
    let (valid, said) = verify_by(&pki, &server, "first.pem").await;
    assert!(valid, "{said}");
    server.stop().await;
}

#[tokio::test]
async fn the_next_issuing_ca_under_the_same_external_root_needs_no_such_certificate() {
    let pki = Pki::new();
    let mut server = under_an_external_root(&pki).await;
    let _key = pki.take_csr(&server).await;
    pki.issue("issuing", "first", ISSUING, "365").await;
    let installed = install(&server, &pki.chain(&["issuing", "first"])).await;
    assert_eq!(installed.code, Some(0), "{}", installed.stderr);
    signs(&mut server, &pki.read("issuing.pem")).await;
    server.stop().await;
}

#[tokio::test]
async fn an_external_root_certifies_the_next_root_of_the_server() {
    let pki = Pki::new();
    let mut server = under_an_external_root(&pki).await;
    let rotate = ["ca", "rotate", "--root"];
    let refused = run(server.command(&rotate)).await;
    assert_eq!((refused.code, refused.stderr.lines().count()), (Some(1), 1));
    assert!(refused.stderr.contains("ca csr --root"), "{}", refused.stderr);
    let before = actions(&server).await;
    let print = async || run(server.command(&["ca", "csr", "--root"])).await;
    let (csr, again) = (print().await, print().await);
    assert_eq!(csr.code, Some(0), "{}", csr.stderr);
    assert_eq!(
        actions(&server).await,
        before + 1,
        "a repeated call is about the same key"
    );
    let [key, same] = [&csr, &again].map(|csr| pki.0.write("next.csr", &csr.stdout));
    let (_, key) = openssl(&["req", "-in", key.to_str().unwrap(), "-noout", "-pubkey"]).await;
    let (_, same) = openssl(&["req", "-in", same.to_str().unwrap(), "-noout", "-pubkey"]).await;
    assert_eq!(key, same);
    let with = async |file: &str| run(server.command(&[&rotate[..], &["--cross-certificate", file]].concat())).await;
    let refused = with(&pki.path("first.pem")).await;
    assert!(
        refused.stderr.contains("does not have the subject and key"),
        "{}",
        refused.stderr
    );
    let cross = pki.certify("next", "first", CA).await;
    let rotated = with(&cross).await;
    assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    let again = with(&cross).await;
    assert!(again.stdout.contains("was already prepared"), "{}", again.stdout);
    let next = rotated.stdout.split_once(' ').unwrap().0.to_owned();
    until(&server, async || {
        server.reached().get(&format!("/v1/ca/issuer/{next}")).await.status == 200
    })
    .await;
    let issuing = server.reached().get(&format!("/v1/ca/issuer/{next}")).await.body;
    let issuing = pem::encode_config(
        &pem::Pem::new("CERTIFICATE", issuing),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    );
    signs(&mut server, &issuing).await;
    let cross = pem::parse(std::fs::read(cross).unwrap()).unwrap();
    assert!(cross_certificates(&server).await.contains(&cross));
    let (valid, said) = verify_by(&pki, &server, "first.pem").await;
    assert!(valid, "{said}");
    // From here on the server's own roots follow each other.
    let rotated = run(server.command(&rotate)).await;
    assert_eq!(rotated.code, Some(0), "{}", rotated.stderr);
    server.stop().await;
}

/// What an issuing CA can be, and what is said of it.
fn wrong_issuing_cas() -> Vec<(String, &'static str)> {
    let changed = |from: &str, to: &str| ISSUING.replace(from, to);
    let none = "subjectKeyIdentifier=none";
    vec![
        (changed("CA:TRUE,pathlen:0", "CA:FALSE"), "is not a CA certificate"),
        (changed("pathlen:0", "pathlen:1"), "must be 0"),
        (changed(",pathlen:0", ""), "must be 0"),
        (changed("keyCertSign,", "digitalSignature,"), "keyCertSign and cRLSign"),
        (changed(",cRLSign", ""), "keyCertSign and cRLSign"),
        (changed("subjectKeyIdentifier=hash", none), "no subject key identifier"),
        (format!("{ISSUING}extendedKeyUsage=serverAuth\n"), "would not be valid"),
        (
            format!("{ISSUING}nameConstraints=critical,permitted;DNS:corporation.example\n"),
            "would not be valid",
        ),
    ]
}

/// A wrong chain above a valid issuing CA, the issuer, and the message about it.
const WRONG_CHAINS: [(&str, &[&str], &str); 9] = [
    ("root", &["foreign", "root"], "is not for the key of the pending CSR"),
    ("root", &["root", "issuing"], "is not for the key of the pending CSR"),
    ("root", &["issuing"], "has 1 certificates"),
    ("root", &["issuing", "foreign"], "is not a root"),
    ("root", &["issuing", "other"], "was not issued by the next certificate"),
    ("long", &["issuing", "long"], "is not a root"),
    ("leaf", &["issuing", "leaf"], "is not a CA certificate"),
    ("narrow", &["issuing", "narrow"], "does not allow a path this long"),
    (
        "policy",
        &["issuing", "policy", "narrow"],
        "does not allow a path this long",
    ),
];

async fn refused(server: &InProcess, chain: &str, said: &str) {
    let refused = install(server, chain).await;
    assert_eq!(refused.code, Some(1), "{said}: {}", refused.stdout);
    assert_eq!(refused.stderr.lines().count(), 1, "{}", refused.stderr);
    assert!(refused.stderr.contains(said), "{said}: {}", refused.stderr);
}

/// The command prints what is wrong with a chain, and changes nothing.
#[tokio::test]
async fn an_invalid_external_chain_is_refused_and_changes_nothing() {
    let server = InProcess::start().await;
    let pki = Pki::new();
    let [narrow, leaf] = ["CA:TRUE,pathlen:0", "CA:FALSE"].map(|constraint| CA.replace("CA:TRUE", constraint));
    for (name, curve, extensions) in [
        ("root", "P-256", CA),
        ("other", "P-256", CA),
        ("narrow", "P-256", &narrow),
        ("leaf", "P-256", &leaf),
        ("long", "P-521", CA),
    ] {
        pki.root(name, curve, extensions).await;
    }
    refused(&server, &pki.chain(&["root", "other"]), "no CSR is pending").await;
    let _key = pki.take_csr(&server).await;
    for (name, by, extensions) in [("foreign", "root", ISSUING), ("policy", "narrow", CA)] {
        pki.request(name, "P-256").await;
        pki.issue(name, by, extensions, "365").await;
    }
    let before = (issuing_cas(&server).await, actions(&server).await);
    for (extensions, said) in wrong_issuing_cas() {
        pki.issue("issuing", "root", &extensions, "365").await;
        refused(&server, &pki.chain(&["issuing", "root"]), said).await;
    }
    pki.issue("issuing", "root", ISSUING, "30").await;
    refused(&server, &pki.chain(&["issuing", "root"]), "must be valid until").await;
    for (by, chain, said) in WRONG_CHAINS {
        pki.issue("issuing", by, ISSUING, "365").await;
        refused(&server, &pki.chain(chain), said).await;
    }
    for nonsense in [
        "",
        "no certificate",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    ] {
        let file = pki.0.write("nonsense", nonsense);
        refused(&server, file.to_str().unwrap(), "certificates").await;
    }
    refused(&server, &pki.path("missing"), "missing").await;
    assert_eq!((issuing_cas(&server).await, actions(&server).await), before);
    assert_eq!(text_of(&server, "/v1/ca/bundle.pem").await.matches("BEGIN").count(), 1);

    // A rotation in progress must be finished first.
    let _rotated = run(server.command(&["ca", "rotate"])).await;
    pki.issue("issuing", "root", ISSUING, "365").await;
    refused(&server, &pki.chain(&["issuing", "root"]), "is already prepared").await;
    let unknown = server.reached().get("/v1/ca/issuer/00").await;
    let _unknown = unknown.expect_problem(ProblemKind::NotFound);
    server.stop().await;
}
