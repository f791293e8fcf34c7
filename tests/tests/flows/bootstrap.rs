//! What a server is founded for cannot change.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use assay_tests::cluster::Database;
use assay_tests::processes::ServerConfiguration;

/// A server that does not refuse would run for ever.
const ENDED_WITHIN: Duration = Duration::from_secs(60);

/// One mistyped replica would issue identities of a foreign domain.
#[tokio::test]
async fn a_server_refuses_to_start_with_another_trust_domain_than_its_database() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database).set("trust_domain", "founded.example");
    let server = configuration.start().await;

    let mistyped = configuration.clone().set("trust_domain", "mistyped.example");
    let line = refused(&mistyped).await;
    for domain in ["founded.example", "mistyped.example"] {
        assert!(line.contains(domain), "{line}");
    }

    assert_eq!(server.terminate().await.code(), Some(0));
    let again = configuration.start().await;
    assert_eq!(again.terminate().await.code(), Some(0));
}

/// A new master key would open none of the keys in the database, and would replace the one that does.
#[tokio::test]
async fn a_server_without_its_master_key_refuses_to_start_and_creates_no_other() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database).without("master_key");
    let server = configuration.start().await;
    assert_eq!(server.terminate().await.code(), Some(0));

    let file = configuration.data_dir().join("master.key");
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    let line = refused(&configuration).await;
    assert!(line.contains(file.to_str().unwrap()), "{line}");
    assert!(!file.exists());

    std::fs::write(&file, kept).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let again = configuration.start().await;
    assert_eq!(again.terminate().await.code(), Some(0));
}

/// The one line that a server says when it refuses to start.
pub(super) async fn refused(configuration: &ServerConfiguration) -> String {
    refused_command(configuration.command(&["serve"])).await
}

/// The same for a command that runs a server.
pub(super) async fn refused_command(command: std::process::Command) -> String {
    let mut command = tokio::process::Command::from(command);
    let ended = tokio::time::timeout(ENDED_WITHIN, command.kill_on_drop(true).output()).await;
    let refused = ended.expect("it serves").unwrap();
    let line = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    line
}
