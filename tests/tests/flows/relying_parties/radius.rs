//! FreeRADIUS, and eapol_test as a machine at an access point.

use std::fs;
use std::process::Command;

use assay_tests::process::Process;
use rstest::rstest;

use super::super::revocation::Enrolled;
use super::{Host, Machines, WITHIN, free_port, installed, run};

const SECRET: &str = "a secret of the tests";

/// Starts FreeRADIUS with the one of the two EAP modules, the site and the clients of the repository.
async fn start(host: &Host<'_>, eap: &str, port: u16) -> Process {
    let certificates = host.path("");
    let replacements = [
        ("/etc/freeradius/3.0/certs/", certificates.as_str()),
        ("/etc/assay/", &host.path("assay/")),
    ];
    let eap = host.configured(eap, &replacements);
    let port = format!("port = {port}");
    let site = host.configured(
        "freeradius/site",
        &[("ipaddr = *", "ipaddr = 127.0.0.1"), ("port = 1812", &port)],
    );
    let secret = format!("\"{SECRET}\"");
    let clients = [("192.0.2.0/24", "127.0.0.1"), ("REPLACE-WITH-A-RANDOM-SECRET", &secret)];
    let clients = host.configured("freeradius/clients.conf", &clients);
    let configuration = format!(
        "name = freeradius\nraddbdir = {folder}\nlogdir = {folder}\nrun_dir = {folder}\npidfile = {folder}/radiusd.pid
         max_requests = 1024\nsecurity {{\n reject_delay = 0\n }}\nlog {{\n destination = stdout\n auth = yes\n }}
         modules {{\n $INCLUDE {}\n }}\n$INCLUDE {}\n$INCLUDE {}\n",
        eap.display(),
        clients.display(),
        site.display(),
        folder = host.path(""),
    );
    host.files.write("radiusd.conf", configuration);
    host.files.write("dictionary", "");
    let mut starting = Command::new(installed(&["freeradius", "radiusd"]));
    starting.args(["-f", "-l", "stdout", "-d", &host.path("")]);
    let radius = Process::spawn(starting);
    let ready = |line: &str| line.contains("Ready to process requests").then_some(());
    let ready = radius.output().wait_for(0, WITHIN, ready).await;
    assert!(ready.is_some(), "{}", radius.output());
    radius
}

/// Whether FreeRADIUS lets this machine in under this name.
async fn is_let_in(host: &Host<'_>, enrolled: &Enrolled, name: &str, port: u16) -> bool {
    let key = host.files.write("machine.key", enrolled.machine.private_key_pem());
    let network = format!(
        "network={{\n key_mgmt=WPA-EAP\n eap=TLS\n identity=\"{name}\"\n ca_cert=\"{}\"\n client_cert=\"{}\"
         private_key=\"{}\"\n}}\n",
        host.path("server.pem"),
        enrolled.chain.display(),
        key.display()
    );
    let network = host.files.write("eapol.conf", network);
    let mut command = Command::new(installed(&["eapol_test"]));
    command.arg("-c").arg(network);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-s", SECRET, "-t", "20"]);
    let output = run(command).await;
    let said = String::from_utf8_lossy(&output.stdout);
    let outcome = said.lines().last().unwrap();
    // FAILURE is also the outcome without any response.
    let rejected = said.contains("CTRL-EVENT-EAP-FAILURE");
    match outcome {
        "SUCCESS" => true,
        "FAILURE" if rejected => false,
        _ => panic!("{said}"),
    }
}

#[rstest]
#[case::lists("freeradius/eap-lists")]
#[case::ocsp("freeradius/eap-ocsp")]
#[tokio::test]
async fn freeradius_refuses_a_revoked_machine(#[case] eap: &str) {
    let (host, port) = (Host::new().await, free_port());
    let machines = Machines::new(&host).await;
    let [active, revoked] = [&machines.active, &machines.revoked];
    let [active_id, revoked_id] = [active, revoked].map(|enrolled| enrolled.machine.id().to_string());
    let radius = start(&host, eap, port).await;
    assert!(is_let_in(&host, active, &active_id, port).await, "{}", radius.output());
    assert!(
        is_let_in(&host, revoked, &revoked_id, port).await,
        "{}",
        radius.output()
    );
    let under_another_name = is_let_in(&host, revoked, &active_id, port).await;
    assert!(!under_another_name, "{}", radius.output());

    machines.revoke(&host).await;
    let radius = if eap == "freeradius/eap-lists" {
        // A restart, as FreeRADIUS reads the lists at its start.
        host.refresh(&["kill", &radius.id().to_string()]).await;
        let _status = radius.ended().await;
        fs::remove_file(host.path("radiusd.pid")).unwrap_or_default();
        start(&host, eap, port).await
    } else {
        radius
    };
    assert!(
        !is_let_in(&host, revoked, &revoked_id, port).await,
        "{}",
        radius.output()
    );
    let why = |line: &str| line.contains("revoked").then_some(());
    let why = radius.output().wait_for(0, WITHIN, why).await;
    assert!(why.is_some(), "{}", radius.output());
    assert!(is_let_in(&host, active, &active_id, port).await, "{}", radius.output());
}
