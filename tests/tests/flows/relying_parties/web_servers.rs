//! nginx, HAProxy and Apache httpd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use assay_tests::process::Process;
use rstest::rstest;

use super::{Client, Host, Machines, WITHIN, free_port, installed};

/// Waits until the program has written a line with this text, after so many lines.
pub(super) async fn says(process: &Process, after: usize, text: &str) {
    let said = |line: &str| line.contains(text).then_some(());
    let said = process.output().wait_for(after, WITHIN, said).await;
    assert!(said.is_some(), "{}", process.output());
}

pub(super) fn nginx_command(host: &Host<'_>) -> Vec<String> {
    let nginx = installed(&["nginx"]);
    [
        nginx.to_str().unwrap(),
        "-p",
        &host.path(""),
        "-c",
        "nginx.conf",
        "-e",
        "stderr",
    ]
    .map(ToOwned::to_owned)
    .to_vec()
}

async fn start_nginx(host: &Host<'_>, file: &str) -> (Process, u16) {
    let port = free_port();
    let listen = format!("listen 127.0.0.1:{port} ssl;");
    let replacements = [
        ("listen 443 ssl;", listen.as_str()),
        ("/etc/nginx/server", "server"),
        ("/etc/assay/", "assay/"),
    ];
    let site = host.configured(file, &replacements);
    (serve_by_nginx(host, &site, "").await, port)
}

/// Starts nginx with this site and this further configuration.
pub(super) async fn serve_by_nginx(host: &Host<'_>, site: &Path, further: &str) -> Process {
    let configuration = format!(
        "daemon off; pid nginx.pid; error_log stderr notice; events {{ }}
         http {{
             access_log off; client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
             uwsgi_temp_path uwsgi; scgi_temp_path scgi;
             include {};
             {further}
         }}",
        site.display()
    );
    host.files.write("nginx.conf", configuration);
    let command = nginx_command(host);
    let mut starting = Command::new(&command[0]);
    starting.args(&command[1..]);
    let nginx = Process::spawn(starting);
    says(&nginx, 0, "start worker process ").await;
    nginx
}

#[tokio::test]
async fn nginx_refuses_a_revoked_machine_by_its_lists() {
    let host = Host::new().await;
    let machines = Machines::new(&host).await;
    let (_nginx, port) = start_nginx(&host, "nginx/lists.conf").await;
    let (active, revoked) = clients(&host, &machines, port);
    active.is_recognized().await;
    revoked.is_recognized().await;

    machines.revoke(&host).await;
    let mut reload = nginx_command(&host);
    reload.extend(["-s", "reload"].map(ToOwned::to_owned));
    host.refresh(&reload.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    revoked.will_be_refused().await;
    active.is_recognized().await;
}

#[tokio::test]
async fn nginx_refuses_a_revoked_machine_by_ocsp() {
    let host = Host::new().await;
    let machines = Machines::new(&host).await;
    let (_nginx, port) = start_nginx(&host, "nginx/ocsp.conf").await;
    let (active, revoked) = clients(&host, &machines, port);
    active.is_recognized().await;
    revoked.is_recognized().await;

    machines.revoke(&host).await;
    revoked.is_refused().await;
    active.is_recognized().await;
}

fn clients(host: &Host<'_>, machines: &Machines, port: u16) -> (Client, Client) {
    (
        Client::new(host, &machines.active, port),
        Client::new(host, &machines.revoked, port),
    )
}

/// Starts HAProxy with this file, these replacements and those that its files have in common. Also returns its
/// configuration.
pub(super) async fn start_haproxy(host: &Host<'_>, file: &str, port: u16, more: &[(&str, &str)]) -> (Process, PathBuf) {
    let identity = ["server.pem", "server.key"].map(|name| fs::read(host.path(name)).unwrap());
    let identity = host.files.write("haproxy.pem", identity.concat());
    let bind = format!("bind 127.0.0.1:{port} ");
    let replacements = [
        ("bind :443 ", bind.as_str()),
        ("/etc/haproxy/server.pem", identity.to_str().unwrap()),
    ];
    let configuration = host.configured(file, &[&replacements, more].concat());
    let mut starting = Command::new(installed(&["haproxy"]));
    starting.arg("-W").arg("-f").arg(&configuration);
    let haproxy = Process::spawn(starting);
    says(&haproxy, 0, "Loading success").await;
    (haproxy, configuration)
}

#[tokio::test]
async fn haproxy_refuses_a_revoked_machine_by_its_lists() {
    let host = Host::new().await;
    let machines = Machines::new(&host).await;
    let port = free_port();
    let lists = [("/etc/assay/", host.path("assay/"))];
    let lists = lists.each_ref().map(|(from, to)| (*from, to.as_str()));
    let (haproxy, _) = start_haproxy(&host, "haproxy/haproxy.cfg", port, &lists).await;
    let (active, revoked) = clients(&host, &machines, port);
    active.is_recognized().await;
    revoked.is_recognized().await;

    machines.revoke(&host).await;
    host.refresh(&["kill", "-USR2", &haproxy.id().to_string()]).await;
    revoked.will_be_refused().await;
    active.is_recognized().await;
}

/// Debian has the first, and other systems have the others.
const MODULES: [&str; 4] = [
    "/usr/lib/apache2/modules",
    "/usr/lib64/httpd/modules",
    "/opt/homebrew/opt/httpd/lib/httpd/modules",
    "/usr/local/opt/httpd/lib/httpd/modules",
];

async fn start_httpd(host: &Host<'_>, file: &str) -> (Process, u16) {
    let port = free_port();
    fs::create_dir(host.path("wiki")).unwrap();
    host.files.write("wiki/index.html", "wiki\n");
    let virtual_host = format!("<VirtualHost 127.0.0.1:{port}>");
    let replacements = [
        ("<VirtualHost *:443>", virtual_host.as_str()),
        ("/etc/apache2/server", &host.path("server")),
        ("/etc/assay/", &host.path("assay/")),
        ("/srv/wiki", &host.path("wiki")),
    ];
    let site = host.configured(file, &replacements);
    let modules = MODULES.iter().map(PathBuf::from).find(|place| place.exists()).unwrap();
    // Debian has unixd within the program.
    let loaded = [
        "mpm_event",
        "unixd",
        "authz_core",
        "headers",
        "dir",
        "ssl",
        "socache_shmcb",
    ]
    .map(|module| (module, modules.join(format!("mod_{module}.so"))))
    .into_iter()
    .filter(|(_, file)| file.exists())
    .map(|(module, file)| format!("LoadModule {module}_module {}\n", file.display()));
    let folder = host.path("");
    // Debian's mods-available/ssl.conf has the cache, which the file with OCSP says to delete.
    let cache = match file {
        "apache/lists.conf" => format!("SSLSessionCache shmcb:{folder}/sessions(512000)\n"),
        _ => String::new(),
    };
    let configuration = format!(
        "{}ServerName localhost\nServerRoot {folder}\nPidFile {folder}/httpd.pid\nDefaultRuntimeDir {folder}
         Listen 127.0.0.1:{port}\nErrorLog /dev/stderr\nMutex file:{folder} default\n{cache}{}Include {}\n",
        loaded.collect::<String>(),
        account(),
        site.display()
    );
    let configuration = host.files.write("httpd.conf", configuration);
    let mut starting = Command::new(installed(&["apache2", "httpd"]));
    starting.arg("-f").arg(configuration).arg("-DFOREGROUND");
    let httpd = Process::spawn(starting);
    says(&httpd, 0, "resuming normal operations").await;
    (httpd, port)
}

/// httpd refuses to serve as root.
fn account() -> &'static str {
    match Path::new("/etc/debian_version").exists() {
        true => "User www-data\nGroup www-data\n",
        false => "User nobody\nGroup nobody\n",
    }
}

#[rstest]
#[case::lists("apache/lists.conf")]
#[case::ocsp("apache/ocsp.conf")]
#[tokio::test]
async fn httpd_refuses_a_revoked_machine(#[case] file: &str) {
    let host = Host::new().await;
    let machines = Machines::new(&host).await;
    let (httpd, port) = start_httpd(&host, file).await;
    let (active, revoked) = clients(&host, &machines, port);
    active.is_recognized().await;
    revoked.is_recognized().await;

    machines.revoke(&host).await;
    if file == "apache/lists.conf" {
        host.refresh(&["kill", "-USR1", &httpd.id().to_string()]).await;
        revoked.will_be_refused().await;
    } else {
        revoked.is_refused().await;
    }
    active.is_recognized().await;
}
