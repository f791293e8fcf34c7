//! The roles in the database: the server's role cannot alter the audit, and the owner must drop triggers to do so.

use std::path::Path;

use assay_server::config::search_path;
use assay_server::database::MIGRATIONS;
use assay_server::database::private_postgres::{Options, PrivatePostgres, binary_places};
use assay_tests::cluster::Database;
use assay_tests::installation::Installation;
use assay_tests::processes::ServerConfiguration;
use rstest::rstest;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, PgConnection};

use super::audit::all_sealed;

/// What a server says whose role could.
const WARNING: &str = "this server's database role could alter the audit: let the owner of the schema be another \
                       (database.migration_url)";

/// Statements that alter the audit, or that gain the privilege to alter it.
const ATTEMPTS: [&str; 24] = [
    "UPDATE audit_entries SET reason = 'another'",
    "DELETE FROM audit_entries",
    "TRUNCATE audit_entries",
    "UPDATE audit_seals SET sequence = sequence + 1",
    "DELETE FROM audit_seals",
    "TRUNCATE audit_seals",
    "TRUNCATE audit_waiting",
    "INSERT INTO audit_seals SELECT sequence, entry_id, hash FROM audit_seals ON CONFLICT (sequence) DO UPDATE SET hash = excluded.hash",
    "ALTER TABLE audit_entries DISABLE TRIGGER only_added_to",
    "ALTER TABLE audit_seals DISABLE TRIGGER ALL",
    "ALTER TABLE audit_entries DROP COLUMN reason",
    "ALTER TABLE audit_entries OWNER TO CURRENT_USER",
    "DROP TRIGGER only_added_to ON audit_entries",
    "DROP FUNCTION refuse_to_change_audit() CASCADE",
    "CREATE OR REPLACE FUNCTION refuse_to_change_audit() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "CREATE TRIGGER mine BEFORE INSERT ON audit_entries FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "DROP TABLE audit_entries, audit_seals",
    "DROP SCHEMA public CASCADE",
    "CREATE TABLE public.mine ()",
    "DELETE FROM _sqlx_migrations",
    "SET session_replication_role = replica",
    "SET ROLE \"{owner}\"",
    "SET SESSION AUTHORIZATION \"{owner}\"",
    "GRANT \"{owner}\" TO CURRENT_USER",
];

/// Statements that the triggers refuse, even for the owner.
const CHANGES: [&str; 6] = [
    ATTEMPTS[0],
    ATTEMPTS[1],
    ATTEMPTS[2],
    ATTEMPTS[3],
    ATTEMPTS[4],
    ATTEMPTS[5],
];

async fn connect(options: PgConnectOptions) -> PgConnection {
    options.connect().await.unwrap()
}

/// Tries a statement in a transaction of its own, and returns the error of Postgres.
async fn refusal(connection: &mut PgConnection, statement: &str) -> Option<String> {
    let mut transaction = connection.begin().await.unwrap();
    let tried = sqlx::raw_sql(statement).execute(&mut *transaction).await;
    transaction.rollback().await.unwrap();
    let error = tried.err()?;
    Some(error.as_database_error().unwrap().code().unwrap().into_owned())
}

async fn check_that_all_are_refused(connection: &mut PgConnection, owner: &str) {
    // Postgres accepts this statement, with a warning that nothing was granted.
    let _warned = sqlx::raw_sql("GRANT UPDATE, DELETE ON audit_entries TO CURRENT_USER")
        .execute(&mut *connection)
        .await;
    for attempt in ATTEMPTS {
        let attempt = attempt.replace("{owner}", owner);
        let code = refusal(connection, &attempt).await;
        assert_eq!(code.as_deref(), Some("42501"), "{attempt}");
    }
    // The triggers would refuse the changes alone; the role has no privilege for them either.
    let privileged: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM unnest(ARRAY['audit_entries', 'audit_seals']) AS name
         WHERE has_table_privilege(name, 'UPDATE, DELETE, TRUNCATE, TRIGGER, REFERENCES')",
    )
    .fetch_all(&mut *connection)
    .await
    .unwrap();
    assert_eq!(privileged, Vec::<String>::new());
    // The role can read the audit, so the statements named existing tables.
    let entries: i64 = sqlx::query_scalar("SELECT count(*) FROM audit_entries")
        .fetch_one(connection)
        .await
        .unwrap();
    assert!(entries > 0);
}

/// Creates a cluster as versions without the server's role did: the superuser owns everything, and is the only role.
async fn make_cluster_of_an_older_version(data_dir: &Path) {
    let options = Options {
        data_dir: data_dir.to_owned(),
        max_connections: 16,
        binary_places: binary_places(&search_path()),
    };
    let postgres = PrivatePostgres::start(&options).await.unwrap();
    let mut superuser = connect(postgres.connect_options()).await;
    sqlx::raw_sql("DROP ROLE assay_server")
        .execute(&mut superuser)
        .await
        .unwrap();
    MIGRATIONS.run(&mut superuser).await.unwrap();
    superuser.close().await.unwrap();
    postgres.stop().await.unwrap();
}

#[tokio::test]
async fn a_server_on_a_private_postgres_of_an_older_version_works_as_a_role_that_cannot_alter_the_audit() {
    let configuration = ServerConfiguration::with_private_postgres();
    make_cluster_of_an_older_version(configuration.data_dir()).await;
    let installation = Installation::start(&configuration).await;
    let server = &installation.servers[0];
    let roles: Vec<String> = {
        let mut superuser = connect(private(&configuration, "assay")).await;
        for change in CHANGES {
            assert_eq!(
                refusal(&mut superuser, change).await.as_deref(),
                Some("42501"),
                "{change}"
            );
        }
        sqlx::query_scalar(
            "SELECT DISTINCT usename::text FROM pg_stat_activity WHERE application_name = 'assay-server'",
        )
        .fetch_all(&mut superuser)
        .await
        .unwrap()
    };
    assert_eq!(
        roles,
        ["assay_server"],
        "the server connects as the role that owns nothing"
    );
    let mut connection = connect(private(&configuration, "assay_server")).await;
    check_that_all_are_refused(&mut connection, "assay").await;
    connection.close().await.unwrap();
    let machine = installation.administrator().enrolled(&installation.api(0)).await;
    let _checked_in = machine.check_in(&installation.api(0)).await.expect(200);
    assert!(!server.output().to_string().contains(WARNING), "{}", server.output());
}

fn private(configuration: &ServerConfiguration, role: &str) -> PgConnectOptions {
    PgConnectOptions::new_without_pgpass()
        .socket(configuration.data_dir().join("postgres/socket"))
        .username(role)
        .database("assay")
}

/// A seal that takes a number, and one for an entry that waits, as a hostile server could write them.
const SEAL_WITH_THE_LAST_NUMBER: &str =
    "INSERT INTO audit_seals VALUES (9223372036854775807, gen_random_uuid(), sha256('x'))";
const SEAL_OF_A_WAITING_ENTRY: &str =
    "WITH entry AS (INSERT INTO audit_entries (id, at, actor_kind, action, resource_kind, resource_id)
                    VALUES (gen_random_uuid(), now(), 'system', 'forged', 'machine', 'x') RETURNING id),
          waiting AS (INSERT INTO audit_waiting SELECT id FROM entry RETURNING entry_id)
     INSERT INTO audit_seals SELECT (SELECT max(sequence) + 1 FROM audit_seals), entry_id, sha256('x') FROM waiting";

/// The audit then says that the chain is broken, but new entries are still sealed.
#[tokio::test]
async fn no_row_that_the_servers_role_may_insert_ends_the_sealing() {
    let database = Database::create().await;
    let configuration = ServerConfiguration::new(&database)
        .set("database.url", &database.url_of("assay_server"))
        .set("database.migration_url", &database.url());
    let installation = Installation::start(&configuration).await;
    let pool = database.pool().await;
    let entries = all_sealed(&pool).await;

    let mut as_server = connect(database.url_of("assay_server").parse().unwrap()).await;
    for number in [
        "9223372036854775807",
        "0",
        "(SELECT max(sequence) FROM audit_seals)",
        "(SELECT max(sequence) + 2 FROM audit_seals)",
    ] {
        let insert = SEAL_WITH_THE_LAST_NUMBER.replace("9223372036854775807", number);
        assert_eq!(
            refusal(&mut as_server, &insert).await.as_deref(),
            Some("23514"),
            "{number}"
        );
    }
    // Postgres looks for a name without a schema among the temporary tables first.
    let beside =
        "CREATE TEMP TABLE audit_seals (sequence bigint); INSERT INTO audit_seals VALUES (9223372036854775806);
                  INSERT INTO public.audit_seals VALUES (9223372036854775807, gen_random_uuid(), sha256('x'))";
    assert_eq!(refusal(&mut as_server, beside).await.as_deref(), Some("23514"));
    // It is the trigger that refuses.
    let without = format!("ALTER TABLE audit_seals DISABLE TRIGGER next_number; {SEAL_WITH_THE_LAST_NUMBER}");
    let mut as_owner = connect(database.connect_options()).await;
    assert_eq!(refusal(&mut as_owner, &without).await, None);

    sqlx::raw_sql(SEAL_OF_A_WAITING_ENTRY)
        .execute(&mut as_server)
        .await
        .unwrap();
    let _token = installation.administrator().token(serde_json::json!({})).await;
    assert_eq!(all_sealed(&pool).await, entries + 2);
}

/// An empty database of an owner who is neither a superuser nor the server.
async fn database_of(owner: &str, server: &str) -> Database<'static> {
    let database = Database::create().await;
    let statements = format!(
        "CREATE ROLE \"{owner}\" LOGIN; CREATE ROLE \"{server}\" LOGIN;
         ALTER DATABASE {} OWNER TO \"{owner}\";
         DROP SCHEMA public CASCADE; CREATE SCHEMA public AUTHORIZATION \"{owner}\"",
        database.name()
    );
    sqlx::raw_sql(&statements)
        .execute(&mut connect(database.connect_options()).await)
        .await
        .unwrap();
    database
}

#[tokio::test]
async fn a_server_on_an_external_postgres_with_two_roles_cannot_alter_the_audit() {
    // These names need quoting in SQL.
    let (owner, server_role) = ("Owner-of-assay", "Server-of-assay");
    let database = database_of(owner, server_role).await;
    let configuration = ServerConfiguration::new(&database)
        .set("database.url", &database.url_of(server_role))
        .set("database.migration_url", &database.url_of(owner));
    let server = configuration.start().await;
    assert_eq!(server.terminate().await.code(), Some(0));
    // A table has no privileges, and another one has too many. The next start corrects both.
    let meddling = format!(
        "CREATE TABLE of_a_later_version (id bigserial, name text);
         GRANT ALL ON audit_entries TO \"{server_role}\"; GRANT CREATE ON SCHEMA public TO \"{server_role}\""
    );
    sqlx::raw_sql(&meddling)
        .execute(&mut connect(database.url_of(owner).parse().unwrap()).await)
        .await
        .unwrap();
    let installation = Installation::start(&server.configuration()).await;
    let machine = installation.administrator().enrolled(&installation.api(0)).await;
    let _checked_in = machine.check_in(&installation.api(0)).await.expect(200);
    let log = installation.servers[0].output().to_string();
    assert!(!log.contains(WARNING), "{log}");

    let mut as_server = connect(database.url_of(server_role).parse().unwrap()).await;
    check_that_all_are_refused(&mut as_server, owner).await;
    let ordinary = "INSERT INTO of_a_later_version (name) VALUES ('a'); UPDATE of_a_later_version SET name = 'b';
                    DELETE FROM of_a_later_version";
    sqlx::raw_sql(ordinary).execute(&mut as_server).await.unwrap();
    let mut as_owner = connect(database.url_of(owner).parse().unwrap()).await;
    for change in CHANGES {
        assert_eq!(
            refusal(&mut as_owner, change).await.as_deref(),
            Some("42501"),
            "{change}"
        );
    }
}

#[tokio::test]
async fn without_the_owner_role_a_server_starts_only_on_a_matching_schema() {
    let (owner, server_role) = ("the_owner", "the_server");
    let database = database_of(owner, server_role).await;
    let as_server = ServerConfiguration::new(&database).set("database.url", &database.url_of(server_role));
    let refused = super::commands::run(as_server.command(&["serve"])).await;
    assert_eq!(
        (refused.code, refused.stderr.lines().count()),
        (Some(1), 1),
        "{}",
        refused.stderr
    );
    assert!(refused.stderr.contains("database.migration_url"), "{}", refused.stderr);

    let migration = as_server.clone().set("database.migration_url", &database.url_of(owner));
    let migrated = super::commands::run(migration.command(&["migrate"])).await;
    assert_eq!(migrated.code, Some(0), "{}", migrated.stderr);
    let server = as_server.start().await;
    assert_eq!(server.terminate().await.code(), Some(0));
}

#[tokio::test]
async fn a_server_starts_on_the_schema_of_a_newer_version() {
    let database = Database::create().await;
    let newer = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
                 VALUES (9999, 'of a newer version', true, '\\x00', 0)";
    sqlx::raw_sql(newer)
        .execute(&mut connect(database.connect_options()).await)
        .await
        .unwrap();
    for role in ["assay", "assay_server"] {
        let configuration = ServerConfiguration::new(&database).set("database.url", &database.url_of(role));
        assert_eq!(configuration.start().await.terminate().await.code(), Some(0), "{role}");
    }
}

#[rstest]
#[case::superuser("assay")]
#[case::owner("owner_and_server")]
#[tokio::test]
async fn a_server_warns_once_if_its_role_could_alter_the_audit(#[case] role: &str) {
    let database = if role == "assay" {
        Database::create().await
    } else {
        database_of(role, "nobody_else").await
    };
    let configuration = ServerConfiguration::new(&database).set("database.url", &database.url_of(role));
    let server = configuration.start().await;
    let warned = server.output().lines();
    let warned = warned.iter().filter(|line| line.contains(WARNING)).count();
    assert_eq!(warned, 1, "{}", server.output());
    // The triggers refuse it nevertheless, until the owner drops them.
    let _key = server.configuration().create_api_key("somebody", "viewer").await;
    let mut connection = connect(database.url_of(role).parse().unwrap()).await;
    for change in CHANGES {
        assert_eq!(
            refusal(&mut connection, change).await.as_deref(),
            Some("42501"),
            "{change}"
        );
    }
}

/// A schema whose newest migration is applied may still lack an earlier one.
#[tokio::test]
async fn a_schema_that_lacks_one_migration_or_has_another_is_refused_with_its_number() {
    for (change, words) in [
        (
            "DELETE FROM _sqlx_migrations WHERE version = 9",
            "lacks this server's migration 9",
        ),
        (
            "UPDATE _sqlx_migrations SET checksum = '\\x00' WHERE version = 5",
            "the migration 5 in the database differs",
        ),
    ] {
        let database = Database::create().await;
        sqlx::raw_sql(change).execute(&database.pool().await).await.unwrap();
        let configuration = ServerConfiguration::new(&database).set("database.migrate", "false");
        let refused = super::commands::run(configuration.command(&["serve"])).await;
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
}
