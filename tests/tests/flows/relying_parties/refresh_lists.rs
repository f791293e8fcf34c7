//! `refresh-lists`, which keeps the lists of all these programs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use assay_server::config::search_path;
use assay_tests::cluster::Database;
use assay_tests::installation::Installation;
use assay_tests::process::Process;

use super::{Host, Machines, WITHIN, run};

const FILES: [&str; 4] = ["roots.pem", "chain.pem", "crls.pem", "roots-and-lists.pem"];

/// What the folder has.
fn content(host: &Host<'_>) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(host.path("assay"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn files(host: &Host<'_>) -> [Vec<u8>; 4] {
    FILES.map(|name| fs::read(host.path(&format!("assay/{name}"))).unwrap())
}

#[tokio::test]
async fn a_refresh_reloads_the_service_only_after_a_change_and_until_that_succeeds() {
    // Other tests do not revoke machines of this one.
    let database = Database::create().await;
    let installation = Installation::unlimited(&database).await;
    let host = Host::of(&installation).await;
    let reloads = host.path("reloads");
    let reload = ["sh", "-c", "echo reloaded >> \"$0\"", &reloads];
    host.refresh(&reload).await;
    assert!(!fs::exists(&reloads).unwrap(), "nothing has changed");

    let before = files(&host);
    Machines::new(&host).await.revoke(&host).await;
    let failed = run(host.refreshing(&host.server(), &["false"])).await;
    assert!(!failed.status.success());
    assert_ne!(files(&host), before);
    assert!(!fs::exists(&reloads).unwrap());
    host.refresh(&reload).await;
    assert!(fs::exists(&reloads).unwrap(), "the reload that failed is repeated");
    let mut expected = FILES;
    expected.sort_unstable();
    assert_eq!(content(&host), expected);
}

#[tokio::test]
async fn a_refresh_that_fails_changes_nothing() {
    let host = Host::new().await;
    let (before, names) = (files(&host), content(&host));
    let reload = ["touch", &host.path("reloaded")].map(str::to_owned);
    let reload = reload.each_ref().map(String::as_str);
    // The server's certificate is of another CA than the roots at hand.
    let (other, _key) = host.files.certificate("other").await;
    fs::copy(&other, host.path("assay/roots.pem")).unwrap();
    let refused = run(host.refreshing(&host.server(), &reload)).await;
    assert!(!refused.status.success(), "{refused:?}");
    fs::write(host.path("assay/roots.pem"), &before[0]).unwrap();
    // Nothing answers there.
    let unreachable = run(host.refreshing("https://127.0.0.1:1", &reload)).await;
    assert!(!unreachable.status.success(), "{unreachable:?}");
    assert_eq!((files(&host), content(&host)), (before, names));
    assert!(!fs::exists(host.path("reloaded")).unwrap());
}

/// A server with these files, and the certificate of the host.
async fn serve(host: &Host<'_>) -> (Process, String) {
    let mut command = Command::new("openssl");
    command
        .args(["s_server", "-WWW", "-accept", "127.0.0.1:0", "-cert"])
        .args([&host.path("server.pem"), "-key", &host.path("server.key")])
        .current_dir(host.path("site"));
    let server = Process::spawn(command);
    let accepting = |line: &str| line.strip_prefix("ACCEPT ").map(ToOwned::to_owned);
    let address = server.output().wait_for(0, WITHIN, accepting).await.unwrap();
    (server, format!("https://{address}"))
}

/// Lists that do not fit the server, and what `refresh-lists` says of them.
fn tampered(lists: &str, others: String) -> [(String, &'static str); 6] {
    let each: Vec<&str> = lists.split_inclusive("-----END X509 CRL-----\n").collect();
    assert!(each.len() >= 2, "{lists}");
    [
        (String::new(), "the issuing CA does not verify"),
        (each[0].to_owned(), ""),
        (each[1].to_owned(), ""),
        (lists[..lists.len() - 200].to_owned(), ""),
        (format!("{lists}{others}"), "a list is not signed by a CA of the server"),
        (others, "the issuing CA does not verify"),
    ]
}

#[tokio::test]
async fn lists_that_would_refuse_all_machines_or_that_another_ca_signed_change_nothing() {
    let host = Host::new().await;
    let database = Database::create().await;
    let other = Installation::unlimited(&database).await;
    let other = Host::of(&other).await;
    fs::create_dir_all(host.path("site/v1/ca")).unwrap();
    for (name, path) in [("chain.pem", "chain.pem"), ("roots.pem", "bundle.pem")] {
        fs::copy(
            host.path(&format!("assay/{name}")),
            host.path(&format!("site/v1/ca/{path}")),
        )
        .unwrap();
    }
    let (_server, url) = serve(&host).await;
    let (before, others) = (files(&host), fs::read_to_string(other.path("assay/crls.pem")).unwrap());
    let lists = fs::read_to_string(host.path("assay/crls.pem")).unwrap();
    let clock = host.path("clock");
    fs::create_dir(&clock).unwrap();
    let refreshing = |reload: &str, path: &str| {
        let mut refreshing = host.refreshing(&url, &["touch", reload]);
        refreshing.env("SERVER_CA", host.path("server.pem")).env("PATH", path);
        refreshing
    };
    let path = search_path().into_string().unwrap();
    for (lists, expected) in tampered(&lists, others) {
        host.files.write("site/v1/ca/crls.pem", lists);
        let refused = run(refreshing(&host.path("reloaded"), &path)).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(expected), "{said}");
        assert_eq!(files(&host), before);
    }

    // A clock at which every list has expired.
    let date = host
        .files
        .write("clock/date", "#!/bin/sh\necho '2999-01-01 00:00:00Z'\n");
    fs::set_permissions(date, fs::Permissions::from_mode(0o755)).unwrap();
    host.files.write("site/v1/ca/crls.pem", &lists);
    let expired = run(refreshing(&host.path("reloaded"), &format!("{clock}:{path}"))).await;
    let said = String::from_utf8_lossy(&expired.stderr);
    assert!(
        !expired.status.success() && said.contains("a list has expired"),
        "{said}"
    );
    assert!(!fs::exists(host.path("reloaded")).unwrap());

    // The same lists are accepted by the right clock.
    fs::remove_file(host.path("assay/crls.pem")).unwrap();
    let accepted = run(refreshing(&host.path("reloaded"), &path)).await;
    assert!(accepted.status.success(), "{accepted:?}");
    assert!(fs::exists(host.path("reloaded")).unwrap());
}
