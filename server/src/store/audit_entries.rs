//! `audit_entries`: each is written in the transaction of its change, and never changed.

use assay_protocol::admin_api::audit::{Actor, AuditEntry, Resource};
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use uuid::Uuid;

use super::{Connection, StoreError, parse_text};
use crate::{
    changes::{
        Change, Origin,
        personal_data::{self, PersonalData},
    },
    clock, secrets,
};

/// The longest time between generating an entry's id and reading its time, unless a clock is set.
const BETWEEN_ID_AND_TIME: Duration = Duration::MINUTE;

/// Which entries to list. An absent member selects all.
#[derive(Debug, Default)]
pub(crate) struct AuditFilter {
    pub(crate) resource_kind: Option<String>,
    pub(crate) resource_id: Option<String>,
    /// The actor's id or name.
    pub(crate) actor: Option<String>,
    /// Later than this.
    pub(crate) after: Option<OffsetDateTime>,
    /// Earlier than this.
    pub(crate) before: Option<OffsetDateTime>,
}

impl AuditFilter {
    /// No entry later than `after` has a smaller id.
    fn first_id(&self) -> Uuid {
        self.after.map_or(Uuid::nil(), |after| {
            clock::first_id_at(after.saturating_sub(BETWEEN_ID_AND_TIME))
        })
    }

    /// No entry earlier than `before` has this id or a greater one.
    fn last_id(&self, cursor: Uuid) -> Uuid {
        self.before.map_or(cursor, |before| {
            cursor.min(clock::first_id_at(before.saturating_add(BETWEEN_ID_AND_TIME)))
        })
    }
}

/// An entry as it is stored, with its seal if it has one.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) id: Uuid,
    pub(super) at: OffsetDateTime,
    pub(super) actor_kind: String,
    pub(super) actor_id: Option<String>,
    pub(super) actor_name: Option<String>,
    pub(super) action: String,
    pub(super) resource_kind: String,
    pub(super) resource_id: String,
    pub(super) request_id: Option<String>,
    pub(super) reason: Option<String>,
    pub(super) before: Option<Value>,
    pub(super) after: Option<Value>,
    pub(super) hash: Option<Vec<u8>>,
    pub(super) personal_name: Option<String>,
    pub(super) personal_salt: Option<Vec<u8>>,
    pub(super) address: Option<String>,
}

impl TryFrom<Row> for AuditEntry {
    type Error = StoreError;

    fn try_from(row: Row) -> Result<Self, StoreError> {
        let digest = row.actor_name.as_deref().and_then(personal_data::find_digest);
        let personal_digest = digest.map(str::to_owned);
        // Nothing covers a name or an address beside an entry without a digest. The verification of the chain finds their
        // salt.
        let (name, address) = match personal_digest {
            Some(_) => (row.personal_name, row.address),
            None => (row.actor_name, None),
        };
        Ok(Self {
            id: row.id,
            at: row.at,
            actor: Actor {
                kind: parse_text(&row.actor_kind)?,
                id: row.actor_id,
                name,
            },
            action: row.action,
            resource: Resource {
                kind: row.resource_kind,
                id: row.resource_id,
            },
            request_id: row.request_id,
            reason: row.reason,
            before: row.before,
            after: row.after,
            address,
            personal_digest,
            personal_salt: row.personal_salt.map(hex::encode),
            hash: row.hash.map(hex::encode),
        })
    }
}

/// A new entry, with its id and its time.
#[derive(Debug)]
pub(super) struct StampedEntry<'a> {
    pub(super) id: Uuid,
    pub(super) at: OffsetDateTime,
    pub(super) origin: &'a Origin,
    pub(super) change: &'a Change,
}

/// Inserts entries, to be sealed later.
pub(super) async fn insert(connection: &mut Connection, entries: &[StampedEntry<'_>]) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    let columns = Columns::of(entries)?;
    sqlx::query!(
        "WITH entry AS (
             INSERT INTO audit_entries (id, at, actor_kind, actor_id, actor_name, request_id, action, resource_kind,
                                        resource_id, reason, before, after)
             SELECT * FROM unnest($1::uuid[], $2::timestamptz[], $3::text[], $4::text[], $5::text[], $6::text[],
                                  $7::text[], $8::text[], $9::text[], $10::text[], $11::jsonb[], $12::jsonb[])
             RETURNING id
         ), personal AS (
             INSERT INTO audit_personal_data (entry_id, salt, actor_name, address)
             SELECT id, salt, actor_name, address
             FROM unnest($1::uuid[], $13::bytea[], $14::text[], $15::text[]) AS new (id, salt, actor_name, address)
             WHERE salt IS NOT NULL
         )
         INSERT INTO audit_waiting (entry_id) SELECT id FROM entry",
        &columns.ids,
        &columns.times,
        &columns.actor_kinds as &[&str],
        &columns.actor_ids as &[Option<&str>],
        &columns.personal_digests as &[Option<String>],
        &columns.request_ids as &[Option<&str>],
        &columns.actions as &[&str],
        &columns.resource_kinds as &[&str],
        &columns.resource_ids as &[&str],
        &columns.reasons as &[Option<&str>],
        &columns.before as &[Option<&Value>],
        &columns.after as &[Option<&Value>],
        &columns.salts as &[Option<Vec<u8>>],
        &columns.names as &[Option<String>],
        &columns.addresses as &[Option<String>],
    )
    .execute(connection)
    .await?;
    Ok(())
}

/// A page of entries, the newest first.
pub(crate) async fn list(
    connection: &mut Connection,
    filter: &AuditFilter,
    before: Option<Uuid>,
    limit: i64,
) -> Result<Vec<AuditEntry>, StoreError> {
    let before = before.unwrap_or(Uuid::max());
    let ids = match &filter.actor {
        Some(actor) => find_ids_of_actor(connection, filter, actor, before, limit).await?,
        None => find_ids(connection, filter, before, limit).await?,
    };
    sqlx::query_as!(
        Row,
        r#"SELECT id, at, actor_kind, actor_id, audit_entries.actor_name, action, resource_kind, resource_id, request_id,
                  reason, before, after, hash AS "hash?", audit_personal_data.actor_name AS personal_name,
                  salt AS "personal_salt?", address
           FROM audit_entries
                LEFT JOIN audit_seals ON audit_seals.entry_id = id
                LEFT JOIN audit_personal_data ON audit_personal_data.entry_id = id
           WHERE id = ANY ($1) ORDER BY id DESC"#,
        &ids
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// The ids of a page. Ids contain the time of their entries, so a range of times is also a range of ids.
async fn find_ids(
    connection: &mut Connection,
    filter: &AuditFilter,
    before: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        "SELECT id FROM audit_entries
         WHERE id < $1 AND id >= $2
           AND ($3::text IS NULL OR resource_kind = $3) AND ($4::text IS NULL OR resource_id = $4)
           AND ($5::timestamptz IS NULL OR at > $5) AND ($6::timestamptz IS NULL OR at < $6)
         ORDER BY id DESC LIMIT $7",
        filter.last_id(before),
        filter.first_id(),
        filter.resource_kind,
        filter.resource_id,
        filter.after,
        filter.before,
        limit
    )
    .fetch_all(connection)
    .await?)
}

/// The ids of a page for one actor. Uses three indexes, each of which returns its entries in order.
async fn find_ids_of_actor(
    connection: &mut Connection,
    filter: &AuditFilter,
    actor: &str,
    before: Uuid,
    limit: i64,
) -> Result<Vec<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"(SELECT id AS "id!" FROM audit_entries
            WHERE id < $1 AND id >= $2 AND actor_id = $8
              AND ($3::text IS NULL OR resource_kind = $3) AND ($4::text IS NULL OR resource_id = $4)
              AND ($5::timestamptz IS NULL OR at > $5) AND ($6::timestamptz IS NULL OR at < $6)
            ORDER BY id DESC LIMIT $7)
           UNION
           (SELECT id FROM audit_entries
            WHERE id < $1 AND id >= $2 AND audit_entries.actor_name = $8 AND audit_entries.actor_name NOT LIKE 'sha256:%'
              AND ($3::text IS NULL OR resource_kind = $3) AND ($4::text IS NULL OR resource_id = $4)
              AND ($5::timestamptz IS NULL OR at > $5) AND ($6::timestamptz IS NULL OR at < $6)
            ORDER BY id DESC LIMIT $7)
           UNION
           (SELECT id FROM audit_personal_data JOIN audit_entries ON id = entry_id
            WHERE entry_id < $1 AND entry_id >= $2 AND audit_personal_data.actor_name = $8
              AND ($3::text IS NULL OR resource_kind = $3) AND ($4::text IS NULL OR resource_id = $4)
              AND ($5::timestamptz IS NULL OR at > $5) AND ($6::timestamptz IS NULL OR at < $6)
            ORDER BY entry_id DESC LIMIT $7)
           ORDER BY 1 DESC LIMIT $7"#,
        filter.last_id(before),
        filter.first_id(),
        filter.resource_kind,
        filter.resource_id,
        filter.after,
        filter.before,
        limit,
        actor
    )
    .fetch_all(connection)
    .await?)
}

/// The oldest unsealed entries, in the order of their times. An entry that a seal names already is not waiting: sealing
/// it again would fail, and with it the sealing of all entries.
pub(crate) async fn waiting(connection: &mut Connection, limit: i64) -> Result<Vec<AuditEntry>, StoreError> {
    sqlx::query_as!(
        Row,
        r#"SELECT id, at, actor_kind, actor_id, actor_name, action, resource_kind, resource_id, request_id, reason, before,
                  after, NULL::bytea AS hash, NULL::text AS personal_name, NULL::bytea AS personal_salt, NULL::text AS address
           FROM audit_entries JOIN audit_waiting ON audit_waiting.entry_id = id
           WHERE NOT EXISTS (SELECT FROM audit_seals WHERE audit_seals.entry_id = id)
           ORDER BY at, id LIMIT $1"#,
        limit
    )
    .fetch_all(connection)
    .await?
    .into_iter()
    .map(TryInto::try_into)
    .collect()
}

/// The first entry that was removed from the chain's reach: one that is neither sealed nor waiting, or that is waiting
/// but missing.
pub(crate) async fn first_left_out(connection: &mut Connection) -> Result<Option<Uuid>, StoreError> {
    Ok(sqlx::query_scalar!(
        r#"SELECT min(entry_id::text)::uuid AS "entry_id"
           FROM (SELECT id AS entry_id FROM audit_entries
                 WHERE NOT EXISTS (SELECT FROM audit_seals WHERE audit_seals.entry_id = id)
                   AND NOT EXISTS (SELECT FROM audit_waiting WHERE audit_waiting.entry_id = id)
                 UNION ALL
                 SELECT entry_id FROM audit_waiting
                 WHERE NOT EXISTS (SELECT FROM audit_entries WHERE audit_entries.id = audit_waiting.entry_id)) AS left_out"#
    )
    .fetch_one(connection)
    .await?)
}

/// Removes the names and addresses of the oldest entries, from before a time. Returns the number of entries.
pub(crate) async fn remove_personal_data_before(
    connection: &mut Connection,
    before: OffsetDateTime,
    limit: i64,
) -> Result<u64, StoreError> {
    let removed = sqlx::query!(
        "DELETE FROM audit_personal_data
         WHERE entry_id = ANY(ARRAY(SELECT entry_id FROM audit_personal_data WHERE entry_id < $1
                                    ORDER BY entry_id LIMIT $2))",
        clock::first_id_at(before),
        limit
    )
    .execute(connection)
    .await?;
    Ok(removed.rows_affected())
}

/// The columns of entries, as arguments of `unnest`.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<Uuid>,
    times: Vec<OffsetDateTime>,
    actor_kinds: Vec<&'static str>,
    actor_ids: Vec<Option<&'a str>>,
    request_ids: Vec<Option<&'a str>>,
    actions: Vec<&'a str>,
    resource_kinds: Vec<&'a str>,
    resource_ids: Vec<&'a str>,
    reasons: Vec<Option<&'a str>>,
    before: Vec<Option<&'a Value>>,
    after: Vec<Option<&'a Value>>,
    /// Each in place of the actor's name.
    personal_digests: Vec<Option<String>>,
    salts: Vec<Option<Vec<u8>>>,
    names: Vec<Option<String>>,
    addresses: Vec<Option<String>>,
}

impl<'a> Columns<'a> {
    fn of(entries: &[StampedEntry<'a>]) -> Result<Self, StoreError> {
        let mut columns = Self::default();
        for StampedEntry { id, at, origin, change } in entries {
            columns.ids.push(*id);
            columns.times.push(*at);
            columns.actor_kinds.push(origin.actor.kind.as_str());
            columns.actor_ids.push(origin.actor.id.as_deref());
            columns.request_ids.push(origin.request_id.as_deref());
            columns.actions.push(change.action.as_str());
            columns.resource_kinds.push(change.action.resource().as_str());
            columns.resource_ids.push(&change.resource_id);
            columns.reasons.push(change.reason.as_deref());
            columns.before.push(change.before.as_ref());
            columns.after.push(change.after.as_ref());
            let personal = personal_data_of(origin);
            let digest = personal.as_ref().map(PersonalData::digest);
            let digest = digest.as_deref().map(personal_data::in_place_of_name);
            columns.personal_digests.push(digest);
            columns
                .salts
                .push(personal.as_ref().map(|personal| personal.salt.to_vec()));
            let (name, address) = personal.map_or((None, None), |personal| (personal.name, personal.address));
            columns.names.push(name);
            columns.addresses.push(address);
        }
        Ok(columns)
    }
}

/// The name and the address of an actor, if it has either, under a new salt.
fn personal_data_of(origin: &Origin) -> Option<PersonalData> {
    let address = origin.address.map(|address| address.to_string());
    let name = origin.actor.name.clone();
    (name.is_some() || address.is_some()).then(|| PersonalData {
        name,
        address,
        salt: secrets::salt(),
    })
}
