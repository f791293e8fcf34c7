//! The privileges of the server's role: what the server needs, and nothing that could alter the audit log. Another role
//! owns the tables, migrates them, and grants these privileges afterwards.

use sqlx::{Connection, PgConnection};

use super::DatabaseError;
use crate::store::{
    StoreError,
    duties::{self, Duty},
};

/// Sorted, because they are compared with a role's privileges.
const OF_TABLES: [&str; 4] = ["DELETE", "INSERT", "SELECT", "UPDATE"];
const OF_SEQUENCES: [&str; 2] = ["SELECT", "USAGE"];

/// Tables with fewer privileges for the server's role. All other tables have [`OF_TABLES`], even those of future
/// migrations.
const RESTRICTED: [(&str, &[&str]); 6] = [
    ("_sqlx_migrations", &["SELECT"]),
    ("audit_entries", &["INSERT", "SELECT"]),
    ("audit_personal_data", &["DELETE", "INSERT", "SELECT"]),
    ("audit_seals", &["INSERT", "SELECT"]),
    ("audit_waiting", &["DELETE", "INSERT", "SELECT"]),
    ("policy_versions", &["SELECT"]),
];

/// A table or a sequence, and a role's privileges on it.
#[derive(sqlx::FromRow)]
struct Relation {
    name: String,
    /// The quoted name.
    identifier: String,
    is_sequence: bool,
    granted: Vec<String>,
}

impl Relation {
    fn needed(&self) -> &'static [&'static str] {
        if self.is_sequence {
            return &OF_SEQUENCES;
        }
        let restricted = RESTRICTED.iter().find(|(name, _)| *name == self.name);
        restricted.map_or(&OF_TABLES, |(_, privileges)| privileges)
    }
}

/// Grants a role the privileges that the server needs, and revokes all others. The owner of the tables calls it.
/// Repeating it changes nothing. A role that is the owner, or is a member of it, is left unchanged: it could restore
/// any privilege.
///
/// # Errors
///
/// `Privileges`, for example if the role does not exist.
pub async fn grant(owner: &mut PgConnection, role: &str) -> Result<(), DatabaseError> {
    let granted = grant_in_transaction(owner, role).await;
    granted.map_err(DatabaseError::Privileges)
}

async fn grant_in_transaction(owner: &mut PgConnection, role: &str) -> Result<(), StoreError> {
    let mut transaction = owner.begin().await?;
    // Two concurrent grants would conflict in the system catalogs.
    duties::wait_for(&mut transaction, Duty::GrantPrivileges).await?;
    let may_be_owner = sqlx::query_scalar::<_, bool>("SELECT pg_has_role($1, current_user, 'MEMBER')");
    if may_be_owner.bind(role).fetch_one(&mut *transaction).await? {
        return Ok(());
    }
    for statement in statements(&mut transaction, role).await? {
        sqlx::raw_sql(&statement).execute(&mut *transaction).await?;
    }
    Ok(transaction.commit().await?)
}

/// The statements that turn a role's privileges into those that it needs. Postgres quotes the names.
async fn statements(owner: &mut PgConnection, role: &str) -> Result<Vec<String>, sqlx::Error> {
    let schema = sqlx::query_as::<_, (String, String, bool, bool)>(
        "SELECT quote_ident($1), quote_ident(current_schema()),
                has_schema_privilege($1, current_schema(), 'USAGE'), has_schema_privilege($1, current_schema(), 'CREATE')",
    );
    let (role_identifier, schema, may_use, may_create) = schema.bind(role).fetch_one(&mut *owner).await?;
    let mut statements = Vec::new();
    if !may_use {
        statements.push(format!("GRANT USAGE ON SCHEMA {schema} TO {role_identifier}"));
    }
    if may_create {
        statements.push(format!("REVOKE CREATE ON SCHEMA {schema} FROM {role_identifier}"));
    }
    for relation in relations(owner, role).await? {
        let needed = relation.needed();
        if relation.granted == needed {
            continue;
        }
        let kind = if relation.is_sequence { "SEQUENCE" } else { "TABLE" };
        let (name, needed) = (&relation.identifier, needed.join(", "));
        statements.push(format!("REVOKE ALL ON {kind} {name} FROM {role_identifier}"));
        statements.push(format!("GRANT {needed} ON {kind} {name} TO {role_identifier}"));
    }
    Ok(statements)
}

async fn relations(owner: &mut PgConnection, role: &str) -> Result<Vec<Relation>, sqlx::Error> {
    sqlx::query_as(
        "SELECT relname::text AS name, pg_class.oid::regclass::text AS identifier, relkind = 'S' AS is_sequence,
                ARRAY(SELECT privilege_type FROM aclexplode(relacl) JOIN pg_roles ON pg_roles.oid = grantee
                      WHERE rolname = $1 ORDER BY privilege_type) AS granted
         FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
         WHERE nspname = current_schema() AND relkind IN ('r', 'p', 'v', 'm', 'S') AND pg_has_role(relowner, 'USAGE')
         ORDER BY relname",
    )
    .bind(role)
    .fetch_all(owner)
    .await
}

/// Whether the role of this connection could alter the audit log, or give itself the privilege. It could as the owner
/// of the log or the schema, as a superuser, with CREATEROLE, or with privileges that the server does not need.
pub(super) async fn could_alter_audit(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    sqlx::query_scalar(
        "SELECT rolsuper OR rolcreaterole OR EXISTS (
             SELECT FROM pg_class JOIN pg_namespace ON pg_namespace.oid = relnamespace
             WHERE pg_class.oid IN (to_regclass('audit_entries'), to_regclass('audit_seals'))
               AND (pg_has_role(relowner, 'MEMBER') OR pg_has_role(nspowner, 'MEMBER')
                    OR has_schema_privilege(pg_namespace.oid, 'CREATE')
                    OR has_table_privilege(pg_class.oid, 'UPDATE, DELETE, TRUNCATE, TRIGGER')))
         FROM pg_roles WHERE rolname = current_user",
    )
    .fetch_one(connection)
    .await
}
