//! The programs of `docs/relying-parties`, each run with its files of `deploy/relying-parties`. A program accepts a machine
//! until it is revoked, and goes on accepting another one.

mod envoy;
mod possession;
#[cfg(target_os = "linux")]
mod radius;
mod refresh_lists;
mod services;
mod shapes;
mod verify;
mod web_servers;

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use assay_server::config::search_path;
use assay_tests::administrator::{Administrator, text};
use assay_tests::answer::Answer;
use assay_tests::installation::Installation;
use assay_tests::openssl::Files;
use serde_json::json;
use uuid::Uuid;

use super::revocation::{Enrolled, RelyingParty, await_answer};

/// The longest time that a program needs to start, or to read replaced files.
const WITHIN: Duration = Duration::from_secs(60);

/// The files of the repository with which these programs run.
fn deployed(file: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    root.join("deploy/relying-parties").join(file)
}

/// A program that `deploy/prerequisites` installs. Debian has some in `/usr/sbin`, which only root has in its path.
fn installed(names: &[&str]) -> PathBuf {
    let mut folders: Vec<PathBuf> = std::env::split_paths(&search_path()).collect();
    folders.extend(["/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin"].map(PathBuf::from));
    let places = names
        .iter()
        .flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let found = places.into_iter().find(|place| place.exists());
    found.unwrap_or_else(|| panic!("the tests need {}; deploy/prerequisites installs it", names[0]))
}

/// A port that is free again when a program binds it.
fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap().port()
}

/// Runs a command to its end.
async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap()
}

/// The host of a relying party. Its folder has what the configurations expect: `assay`, which `refresh-lists` fills, and
/// the host's own certificate in `server.pem` and `server.key`.
struct Host<'a> {
    files: Files,
    installation: &'a Installation,
    administrator: Administrator,
    party: RelyingParty,
}

impl Host<'static> {
    async fn new() -> Self {
        Self::of(Installation::shared().await).await
    }
}

impl<'a> Host<'a> {
    async fn of(installation: &'a Installation) -> Self {
        let host = Self {
            files: Files::new(),
            installation,
            administrator: installation.administrator(),
            party: RelyingParty::of(&installation.api(0)).await,
        };
        // Some of the programs change their user.
        fs::set_permissions(host.files.folder(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(host.files.path("assay")).unwrap();
        host.files.write("assay/roots.pem", &installation.roots);
        let _names = host.files.certificate("server").await;
        let lists_are_served = async |answer: &Answer| answer.status == 200;
        let _lists = await_answer(&installation.api(0), "/v1/ca/crls.pem", lists_are_served).await;
        host.refresh(&["true"]).await;
        host
    }

    fn path(&self, name: &str) -> String {
        self.files.path(name).to_str().unwrap().to_owned()
    }

    fn server(&self) -> String {
        self.installation.servers[0].public_url()
    }

    /// A file of the repository with these replacements, as a file of this host. Each text to replace must be in it.
    fn configured(&self, file: &str, replacements: &[(&str, &str)]) -> PathBuf {
        let mut content = fs::read_to_string(deployed(file)).unwrap();
        for (from, to) in replacements {
            assert!(content.contains(from), "no {from} in {file}");
            content = content.replace(from, to);
        }
        self.files
            .write(Path::new(file).file_name().unwrap().to_str().unwrap(), content)
    }

    /// Fetches the lists, and then runs this command if they changed.
    async fn refresh(&self, command: &[&str]) {
        let refreshed = run(self.refreshing(&self.server(), command)).await;
        assert!(refreshed.status.success(), "{refreshed:?}");
    }

    fn refreshing(&self, server: &str, command: &[&str]) -> Command {
        let mut refreshing = Command::new(deployed("refresh-lists"));
        refreshing.args([server, &self.path("assay")]).args(command);
        refreshing
    }
}

/// Two machines, of which one will be revoked.
struct Machines {
    active: Enrolled,
    revoked: Enrolled,
}

impl Machines {
    async fn new(host: &Host<'_>) -> Self {
        Self {
            active: host.party.enroll(&host.administrator).await,
            revoked: host.party.enroll(&host.administrator).await,
        }
    }

    /// Revokes one, and waits until the server's list has its certificate.
    async fn revoke(&self, host: &Host<'_>) {
        let id = self.revoked.machine.id();
        let _revoked = host.administrator.decide(id, "revoke", "stolen").await.expect(200);
        let is_listed = async |lists: &Answer| {
            lists.status == 200 && !host.party.verify_by(lists, &self.revoked, "-crl_check").await.0
        };
        let _lists = await_answer(&host.installation.api(0), "/v1/ca/crls.pem", is_listed).await;
    }
}

/// A machine as the client of one service. Each request has a connection of its own, which resumes the session of the
/// connection before if the service allows that.
struct Client {
    client: reqwest::Client,
    url: String,
    token: Option<String>,
    id: String,
}

impl Client {
    fn new(host: &Host<'_>, enrolled: &Enrolled, port: u16) -> Self {
        let chain = fs::read_to_string(&enrolled.chain).unwrap();
        let identity = [enrolled.machine.private_key_pem(), chain].concat();
        let root = fs::read(host.path("server.pem")).unwrap();
        let client = reqwest::Client::builder()
            .no_proxy()
            .pool_max_idle_per_host(0)
            .identity(reqwest::Identity::from_pem(identity.as_bytes()).unwrap())
            .resolve("wiki.example.com", (Ipv4Addr::LOCALHOST, port).into())
            .tls_certs_only([reqwest::Certificate::from_pem(&root).unwrap()]);
        Self {
            client: client.build().unwrap(),
            url: format!("https://wiki.example.com:{port}/"),
            token: None,
            id: enrolled.machine.id().to_string(),
        }
    }

    fn with_token(self, token: &str) -> Self {
        let token = Some(token.to_owned());
        Self { token, ..self }
    }

    /// The status, and the header with the machine and the content. `None` if the service ended the connection without a
    /// response.
    async fn get(&self) -> Option<(u16, String)> {
        // Programs that tell the service which machine this is must overwrite these.
        let forged = ["x-machine", "x-assay-machine"];
        let request = self.client.get(&self.url);
        let request = forged
            .iter()
            .fold(request, |request, name| request.header(*name, "forged"));
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        match request.send().await {
            Ok(answer) => {
                let named: Vec<String> = forged
                    .iter()
                    .filter_map(|name| answer.headers().get(*name))
                    .map(|name| name.to_str().unwrap().to_owned())
                    .collect();
                let status = answer.status().as_u16();
                Some((status, named.join(" ") + &answer.text().await.unwrap()))
            }
            Err(error) => {
                let said = format!("{error:?}");
                assert!(!said.contains("ConnectionRefused"), "the service does not run: {said}");
                None
            }
        }
    }

    /// Checks that the service accepts it twice, and returns the last response.
    async fn is_accepted(&self) -> String {
        let mut said = String::new();
        for _ in 0..2 {
            let answer = self.get().await;
            let Some((200, content)) = answer else {
                panic!("{} is not accepted: {answer:?}", self.id);
            };
            said = content;
        }
        said
    }

    /// Checks that the service knows which machine this is.
    async fn is_recognized(&self) {
        let said = self.is_accepted().await;
        assert!(said.contains(&self.id) && !said.contains("forged"), "{said}");
    }

    /// Checks that the service refuses it by its certificate.
    async fn is_refused(&self) {
        let answer = self.get().await;
        assert!(is_refusal(answer.as_ref()), "{answer:?}");
    }

    /// Waits until the service has read the lists that refuse it. For a moment after a reload, old and new workers accept
    /// connections side by side, so one refusal does not tell that.
    async fn will_be_refused(&self) {
        let (begun, mut in_a_row) = (Instant::now(), 0);
        while in_a_row < 3 {
            assert!(begun.elapsed() < WITHIN, "{} is still accepted", self.id);
            match self.get().await {
                Some((200, _)) => in_a_row = 0,
                answer if is_refusal(answer.as_ref()) => in_a_row += 1,
                answer => panic!("{answer:?}"),
            }
        }
    }
}

/// Whether a service refused a machine that it accepted before. nginx completes the handshake first, the service in Java
/// looks again at each request of a connection, and Caddy looks at tokens alone.
fn is_refusal(answer: Option<&(u16, String)>) -> bool {
    matches!(answer, None | Some((400 | 401 | 403, _)))
}

/// Creates a permission, and returns its id.
async fn permission(host: &Host<'_>, audience: &str, name: &str) -> String {
    let permission = json!({"audience": audience, "name": name, "description": ""});
    text(&host.administrator.create("permissions", &permission).await, "id")
}

/// Grants a machine this permission, and returns its token for the audience.
async fn granted(host: &Host<'_>, enrolled: &Enrolled, audience: &str, permission: &str) -> String {
    let _grant = host.administrator.grant(permission, &enrolled.machine, json!({})).await;
    let api = host.installation.api(0);
    let checked_in = enrolled.machine.check_in(&api).await.expect(200).json();
    let grants = checked_in["grants"].as_array().unwrap();
    let grant = grants.iter().find(|grant| grant["audience"] == audience).unwrap();
    text(grant, "token")
}

/// A new audience.
fn audience() -> String {
    format!("https://wiki-{}.example.com", Uuid::new_v4().simple())
}
