//! TLS for a cluster: a certificate of the cluster's own authority, and the clients that may connect by TCP.

use std::fs::File;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt, fchown};
use std::path::Path;

use assay_server::database::private_postgres::Account;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

/// The file in the cluster with the root certificate for `sslrootcert`.
pub(crate) const ROOT: &str = "root.crt";

/// Writes the certificates and the key where Postgres looks for them.
pub(crate) fn certify(cluster: &Path, address: Ipv4Addr) {
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::new([]).unwrap();
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&root_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([address.to_string()])
        .unwrap()
        .signed_by(&key, &Issuer::new(root, root_key))
        .unwrap();
    write(&cluster.join(ROOT), &root_pem);
    write(&cluster.join("server.crt"), &certificate.pem());
    write(&cluster.join("server.key"), &key.serialize_pem());
}

/// Lets in clients with TLS from any loopback address.
pub(super) fn let_clients_in(cluster: &Path) {
    let mut clients = File::options().append(true).open(cluster.join("pg_hba.conf")).unwrap();
    writeln!(clients, "hostssl all all 127.0.0.0/8 trust").unwrap();
}

/// Postgres refuses a key that others can read.
fn write(path: &Path, pem: &str) {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
        .unwrap();
    file.write_all(pem.as_bytes()).unwrap();
    if let Some(account) = Account::unprivileged().unwrap() {
        fchown(&file, Some(account.uid), Some(account.gid)).unwrap();
    }
}
