//! nginx as a service that accepts only machines, and reports what it knows of each.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::Command;
use std::time::Duration;

use crate::openssl::Files;
use crate::process::Process;

const READY_WITHIN: Duration = Duration::from_secs(60);

/// nginx with `ssl_verify_client on`. It answers with `verify=… subject=… serial=… protocol=… host=… authorization=…`.
#[derive(Debug)]
pub struct Nginx {
    address: SocketAddr,
    _process: Process,
}

impl Nginx {
    /// Starts nginx with these roots for client certificates, and with a certificate for 127.0.0.1.
    pub async fn start(files: &Files, protocol: &str, client_roots: &str) -> Self {
        let (certificate, key) = files.certificate("service").await;
        let roots = files.write("client-roots.pem", client_roots);
        // The port is free again when nginx binds it. All other programs of the tests let the system choose their ports.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let folder = files.folder().display();
        let user = if rustix::process::geteuid().is_root() {
            "user root;"
        } else {
            ""
        };
        let configuration = format!(
            "{user} daemon off; master_process off; pid {folder}/nginx.pid; error_log stderr notice;
             events {{ }}
             http {{
                 access_log off;
                 client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
                 uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
                 server {{
                     listen {address} ssl;
                     ssl_certificate {}; ssl_certificate_key {};
                     ssl_protocols {protocol};
                     ssl_verify_client on; ssl_verify_depth 2; ssl_client_certificate {};
                     location / {{
                         return 200 'verify=$ssl_client_verify subject=$ssl_client_s_dn serial=$ssl_client_serial protocol=$ssl_protocol host=$host authorization=$http_authorization';
                     }}
                 }}
             }}",
            certificate.display(),
            key.display(),
            roots.display(),
        );
        let file = files.write("nginx.conf", &configuration);
        let mut command = Command::new("nginx");
        command
            .arg("-p")
            .arg(files.folder())
            .arg("-e")
            .arg("stderr")
            .arg("-c")
            .arg(file);
        let process = Process::spawn(command);
        let started = |line: &str| line.contains("nginx/").then_some(());
        let started = process.output().wait_for(0, READY_WITHIN, started).await;
        assert_eq!(started, Some(()), "nginx has ended:\n{}", process.output());
        Self {
            address,
            _process: process,
        }
    }

    /// Its address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }
}
