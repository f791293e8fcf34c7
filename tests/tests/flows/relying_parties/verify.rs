//! nginx, HAProxy, Envoy and Caddy, each with `assay-verify`, which its file says how to start.

use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;

use assay_protocol::sha256;
use assay_tests::administrator::text;
use assay_tests::process::Process;
use assay_tests::processes::program;
use assay_tests::python::python_with;
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;

use super::super::revocation::Enrolled;
use super::possession::{escaped, leaf};
use super::web_servers::{nginx_command, says, serve_by_nginx, start_haproxy};
use super::{Client, Host, Machines, audience, free_port, granted, installed, permission};

/// A machine of each kind, and the audience of the service.
struct Setting {
    host: Host<'static>,
    machines: Machines,
    writer: Enrolled,
    audience: String,
    tokens: Tokens,
    verifier: u16,
}

struct Tokens {
    active: String,
    revoked: String,
    writer: String,
}

impl Setting {
    async fn new() -> Self {
        let host = Host::new().await;
        let (machines, writer) = (Machines::new(&host).await, host.party.enroll(&host.administrator).await);
        let audience = audience();
        let read = permission(&host, &audience, "read").await;
        let write = permission(&host, &audience, "write").await;
        let tokens = Tokens {
            active: granted(&host, &machines.active, &audience, &read).await,
            revoked: granted(&host, &machines.revoked, &audience, &read).await,
            writer: granted(&host, &writer, &audience, &write).await,
        };
        Self {
            host,
            machines,
            writer,
            audience,
            tokens,
            verifier: free_port(),
        }
    }

    /// Starts `assay-verify` as the first lines of a configuration say, with these further arguments.
    async fn start_verifier(&self, configuration: &Path, more: &[&str]) -> Process {
        let text = fs::read_to_string(configuration).unwrap();
        let (_, command) = text.split_once("#   assay-verify ").unwrap();
        let lines: Vec<&str> = command.lines().collect();
        let last = lines.iter().position(|line| !line.ends_with('\\')).unwrap();
        let arguments = lines[..=last]
            .iter()
            .flat_map(|line| line.trim_start_matches('#').trim_end_matches('\\').split_whitespace());
        let mut starting = Command::new(program("assay-verify"));
        starting.args(arguments).args(more);
        let verifier = Process::spawn(starting);
        verifier.writes(0, "listening").await;
        verifier
    }

    /// What every configuration names, as it is on this host.
    fn replacements(&self) -> [(&'static str, String); 4] {
        let verifier = (Ipv4Addr::LOCALHOST, self.verifier);
        [
            ("127.0.0.1:9321", format!("{}:{}", verifier.0, verifier.1)),
            ("https://assay.example.com", self.host.server()),
            ("https://wiki.example.com", self.audience.clone()),
            ("/etc/assay/", self.host.path("assay/")),
        ]
    }

    fn client(&self, enrolled: &Enrolled, port: u16) -> Client {
        Client::new(&self.host, enrolled, port)
    }

    /// Checks who is accepted, and returns the machine that will be revoked.
    async fn is_enforced(&self, port: u16) -> [Client; 2] {
        let active = self.client(&self.machines.active, port).with_token(&self.tokens.active);
        let revoked = self
            .client(&self.machines.revoked, port)
            .with_token(&self.tokens.revoked);
        active.is_recognized().await;
        revoked.is_recognized().await;
        for (token, expected) in [
            (Some(&self.tokens.writer), 403),
            (Some(&self.tokens.active), 401),
            (None, 401),
        ] {
            let writer = self.client(&self.writer, port);
            let writer = match token {
                Some(token) => writer.with_token(token),
                None => writer,
            };
            let (status, said) = writer.get().await.unwrap();
            assert_eq!(status, expected, "{said}");
        }
        self.nothing_is_forged(port).await;
        [active, revoked]
    }

    /// A client that has a certificate of its own forges what the proxy says to `assay-verify` and to the service.
    async fn nothing_is_forged(&self, port: u16) {
        let victim = &self.machines.active;
        let (leaf, escaped) = (leaf(victim), escaped(victim));
        let element = format!("Hash={}", hex::encode(sha256(leaf.contents())));
        let der = STANDARD.encode(leaf.contents());
        let thief = self.client(&self.writer, port);
        for certificate in [escaped.as_str(), &der] {
            let request = thief.client.get(&thief.url).bearer_auth(&self.tokens.active);
            let request = request
                .header("x-client-certificate", certificate)
                .header("x-forwarded-client-cert", &element);
            assert_eq!(request.send().await.unwrap().status(), 401);
        }
        let client = self.client(victim, port);
        let request = client.client.get(&client.url).bearer_auth(&self.tokens.active);
        let answer = request.header("x-assay-machine", "forged").send().await.unwrap();
        let names = format!("{:?}", answer.headers());
        let said = names + &answer.text().await.unwrap();
        assert!(said.contains(&client.id) && !said.contains("forged"), "{said}");
    }
}

/// Text replacements as [`Host::configured`] takes them.
fn borrowed<'a>(replacements: &'a [(&'a str, String)]) -> Vec<(&'a str, &'a str)> {
    replacements.iter().map(|(from, to)| (*from, to.as_str())).collect()
}

#[tokio::test]
async fn nginx_asks_assay_verify_about_each_request() {
    let setting = Setting::new().await;
    let (host, port, service) = (&setting.host, free_port(), free_port());
    let mut replacements = setting.replacements().to_vec();
    replacements.extend([
        ("listen 443 ssl;", format!("listen 127.0.0.1:{port} ssl;")),
        ("/etc/nginx/server", "server".to_owned()),
        ("127.0.0.1:8000", format!("127.0.0.1:{service}")),
    ]);
    let site = host.configured("nginx/auth_request.conf", &borrowed(&replacements));
    let _verifier = setting.start_verifier(&site, &[]).await;
    let behind = format!("server {{ listen 127.0.0.1:{service}; location / {{ return 200 $http_x_assay_machine; }} }}");
    let _nginx = serve_by_nginx(host, &site, &behind).await;
    let [active, revoked] = setting.is_enforced(port).await;

    setting.machines.revoke(host).await;
    let mut reload = nginx_command(host);
    reload.extend(["-s", "reload"].map(ToOwned::to_owned));
    host.refresh(&reload.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    revoked.will_be_refused().await;
    active.is_recognized().await;
}

#[tokio::test]
async fn haproxy_asks_assay_verify_about_each_request() {
    let setting = Setting::new().await;
    let (host, port) = (&setting.host, free_port());
    let [verifier, _, url, _] = setting.replacements();
    let lua = host.configured("haproxy/assay-verify.lua", &borrowed(&[verifier, url]));
    let mut replacements = setting.replacements().to_vec();
    replacements.push(("/etc/haproxy/assay-verify.lua", lua.to_str().unwrap().to_owned()));
    let (haproxy, configuration) = start_haproxy(host, "haproxy/verify.cfg", port, &borrowed(&replacements)).await;
    let _verifier = setting.start_verifier(&configuration, &[]).await;
    let [active, revoked] = setting.is_enforced(port).await;

    setting.machines.revoke(host).await;
    host.refresh(&["kill", "-USR2", &haproxy.id().to_string()]).await;
    revoked.will_be_refused().await;
    active.is_recognized().await;
}

#[tokio::test]
async fn envoy_asks_assay_verify_about_each_request() {
    let setting = Setting::new().await;
    let (host, port) = (&setting.host, free_port());
    let python = python_with("relying_parties").await;
    let machines = host.configured("envoy/machines.yaml", &[("/etc/assay", &host.path("assay"))]);
    let mut replacements = setting.replacements().to_vec();
    replacements.extend([
        (
            "address: 0.0.0.0, port_value: 443",
            format!("address: 127.0.0.1, port_value: {port}"),
        ),
        ("port_value: 9321", format!("port_value: {}", setting.verifier)),
        ("/etc/envoy/server", host.path("server")),
        ("/etc/envoy/machines.yaml", machines.to_str().unwrap().to_owned()),
    ]);
    let configuration = host.configured("envoy/ext_authz.yaml", &borrowed(&replacements));
    let _verifier = setting.start_verifier(&configuration, &[]).await;
    let mut starting = Command::new(python.with_file_name("envoy"));
    starting.arg("-c").arg(configuration);
    starting.args(["--use-dynamic-base-id", "--concurrency", "1"]);
    let envoy = Process::spawn(starting);
    envoy.writes(0, "starting main dispatch loop").await;
    let [active, revoked] = setting.is_enforced(port).await;

    setting.machines.revoke(host).await;
    host.refresh(&["true"]).await;
    revoked.will_be_refused().await;
    active.is_recognized().await;
}

/// Caddy reads no lists, so `assay-verify` introspects each token.
#[tokio::test]
async fn caddy_asks_assay_verify_which_asks_the_server() {
    let setting = Setting::new().await;
    let (host, port) = (&setting.host, free_port());
    let name = format!("caddy {port} {}", setting.audience);
    let key = json!({"name": name, "role": "relying-party"});
    let key = text(&host.administrator.create("api-keys", &key).await, "key");
    host.files.write("introspection.key", key);
    let mut replacements = setting.replacements().to_vec();
    replacements.extend([
        ("\nwiki.example.com {", format!("\nhttps://wiki.example.com:{port} {{")),
        ("/etc/caddy/", host.path("")),
    ]);
    let site = host.configured("caddy/Caddyfile", &borrowed(&replacements));
    let _verifier = setting.start_verifier(&site, &["--introspection-lifetime", "1"]).await;
    let global = format!(
        "{{\n admin off\n auto_https off\n storage file_system {}\n}}\n",
        host.path("storage")
    );
    let configuration = global + &fs::read_to_string(&site).unwrap();
    let configuration = host.files.write("caddy.conf", configuration);
    let mut starting = Command::new(installed(&["caddy"]));
    starting
        .arg("run")
        .arg("--adapter")
        .arg("caddyfile")
        .arg("--config")
        .arg(configuration);
    starting.env("HOME", host.path("")).env_remove("XDG_CONFIG_HOME");
    let caddy = Process::spawn(starting);
    says(&caddy, 0, "serving initial configuration").await;
    let [active, revoked] = setting.is_enforced(port).await;

    setting.machines.revoke(host).await;
    revoked.will_be_refused().await;
    active.is_recognized().await;
}
