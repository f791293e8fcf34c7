//! The search of machines: finds the ids of a page.
//!
//! Every filter has an index that returns its machines in the order of their ids. A page is found by walking one of
//! these indexes and checking the other filters along the way. That is fast unless matches are rare along the walk, so
//! the walk is bounded. If it ends before the page is full, the remaining machines are found through the indexes that
//! the planner expects to read least from, and then sorted.

use assay_protocol::machine::{Assurance, Liveness, MachineStatus};
use uuid::Uuid;

use crate::{
    machines::liveness::{LastCheckIns, LivenessBoundaries},
    store::{Connection, StoreError},
};

/// How many machines a walk checks before other indexes are used. This takes some milliseconds.
const WALK: i64 = 5_000;
/// The same for walks that only check texts, which are stored next to each other.
const WALK_FOR_PART: i64 = 10_000;
/// The same for a text that no index can find. After that the page ends, and the next one continues there.
const WALK_FOR_SHORT_PART: i64 = 20_000;
/// A trigram index cannot find shorter texts.
const TRIGRAM: usize = 3;

/// Which machines to list. An absent member selects all.
#[derive(Debug, Default)]
pub(crate) struct MachineFilter {
    pub(crate) status: Option<MachineStatus>,
    pub(crate) assurance: Option<Assurance>,
    pub(crate) liveness: Option<Liveness>,
    /// A label of the machine, as `key:value`.
    pub(crate) label: Option<String>,
    /// Part of a machine's identifiers, ignoring case.
    pub(crate) part: Option<String>,
    /// Whether the inventory contains the serial number.
    pub(crate) in_inventory: Option<bool>,
}

/// The ids of a page.
#[derive(Debug, Default)]
pub(crate) struct FoundIds {
    /// In order.
    pub(crate) ids: Vec<Uuid>,
    /// Where the search stopped, if that was before the page was full and before the last machine.
    pub(crate) stopped_at: Option<Uuid>,
}

/// The index to walk, and the value to walk it for.
#[derive(Debug)]
enum Along {
    Everything,
    Label(String),
    Liveness(&'static str),
    Status(&'static str),
    Assurance(&'static str),
}

/// The remaining conditions, as parameters of the statements.
#[derive(Debug, Default)]
struct Conditions {
    status: Option<&'static str>,
    assurance: Option<&'static str>,
    label: Option<String>,
    noted_liveness: Option<&'static str>,
    last_check_ins: Option<LastCheckIns>,
    /// For `LIKE`.
    pattern: Option<String>,
    in_inventory: Option<bool>,
}

/// Where to start, how far to walk, and how many to find.
#[derive(Debug, Clone, Copy)]
struct Extent {
    after: Uuid,
    walk: i64,
    limit: i64,
}

/// Finds the ids of a page, oldest record first.
pub(crate) async fn find_ids(
    connection: &mut Connection,
    filter: &MachineFilter,
    boundaries: &LivenessBoundaries,
    after: Option<Uuid>,
    limit: i64,
) -> Result<FoundIds, StoreError> {
    let indexed = filter.part.as_deref().is_none_or(has_trigram);
    let all = Conditions::of(filter, boundaries);
    let (along, others) = Conditions::of(filter, boundaries).split();
    let extent = Extent {
        after: after.unwrap_or(Uuid::nil()),
        walk: match along {
            _ if !indexed => WALK_FOR_SHORT_PART,
            Along::Everything => WALK_FOR_PART,
            _ => WALK,
        },
        limit,
    };
    let ids = walk(connection, &along, &others, extent).await?;
    if i64::try_from(ids.len()).is_ok_and(|found| found == limit) {
        return Ok(FoundIds { ids, stopped_at: None });
    }
    match end_of_walk(connection, &along, extent).await? {
        None => Ok(FoundIds { ids, stopped_at: None }),
        stopped_at if !indexed => Ok(FoundIds { ids, stopped_at }),
        Some(_) => Ok(FoundIds {
            ids: find_by_indexes(connection, &all, extent).await?,
            stopped_at: None,
        }),
    }
}

impl Conditions {
    fn of(filter: &MachineFilter, boundaries: &LivenessBoundaries) -> Self {
        Self {
            status: filter.status.map(MachineStatus::as_str),
            assurance: filter.assurance.map(Assurance::as_str),
            label: filter.label.clone(),
            noted_liveness: filter.liveness.map(Liveness::as_str),
            last_check_ins: filter.liveness.map(|liveness| boundaries.last_check_ins(liveness)),
            pattern: filter.part.as_deref().map(pattern),
            in_inventory: filter.in_inventory,
        }
    }

    /// Splits off the condition whose index to walk: the one that is probably the rarest.
    fn split(mut self) -> (Along, Self) {
        let along = if let Some(label) = self.label.take() {
            Along::Label(label)
        } else if let Some(liveness) = self.noted_liveness.take() {
            Along::Liveness(liveness)
        } else if let Some(status) = self.status.take() {
            Along::Status(status)
        } else if let Some(assurance) = self.assurance.take() {
            Along::Assurance(assurance)
        } else {
            Along::Everything
        };
        (along, self)
    }
}

/// The same conditions for all sources of candidates. The planner removes joins that no condition needs.
macro_rules! matching {
    ($materialized:tt, [$($candidates:tt)+], $conditions:expr, $($argument:expr),+ $(,)?) => {
        sqlx::query_scalar!(
            "WITH matching AS " + $materialized + " (SELECT candidate.id FROM " + $($candidates)+ +
            r#" WHERE ($1::text IS NULL OR status = $1)
                  AND ($2::text IS NULL OR assurance = $2)
                  AND ($3::text IS NULL OR EXISTS (SELECT FROM machine_labels
                                                   WHERE machine_labels.machine_id = candidate.id AND label = $3))
                  AND ($4::text IS NULL OR noted_liveness = $4)
                  AND ($5::boolean IS NULL OR (last_check_in_at IS NULL) = $5)
                  AND ($6::timestamptz IS NULL OR last_check_in_at >= $6)
                  AND ($7::timestamptz IS NULL OR last_check_in_at < $7)
                  AND ($8::text IS NULL OR content LIKE lower($8))
                  AND ($9::boolean IS NULL OR EXISTS (SELECT FROM inventory
                                                      WHERE inventory.serial_number = machines.serial_number) = $9)
                  AND candidate.id > $11)
                SELECT id AS "id!" FROM matching ORDER BY id LIMIT $10"#,
            $conditions.status,
            $conditions.assurance,
            $conditions.label,
            $conditions.noted_liveness,
            $conditions.last_check_ins.map(|range| range.never),
            $conditions.last_check_ins.and_then(|range| range.from),
            $conditions.last_check_ins.and_then(|range| range.before),
            $conditions.pattern,
            $conditions.in_inventory,
            $($argument),+
        )
    };
}

/// Checks the next candidates along an index, in order.
macro_rules! walk {
    ($along:tt, $search:tt, $connection:expr, $conditions:expr, $extent:expr $(, $value:expr)?) => {
        matching!(
            "NOT MATERIALIZED",
            ["(" + $along + " LIMIT $12) AS candidate
              LEFT JOIN machines ON machines.id = candidate.id
              LEFT JOIN machine_presence ON machine_presence.machine_id = candidate.id " + $search],
            $conditions, $extent.limit, $extent.after, $extent.walk $(, $value)?
        )
        .fetch_all($connection)
        .await
    };
}

/// The same along an index without the text that is searched.
macro_rules! walk_along {
    ($along:tt, $connection:expr, $conditions:expr, $extent:expr, $value:expr) => {
        walk!(
            $along,
            "LEFT JOIN machine_search ON machine_search.machine_id = candidate.id",
            $connection,
            $conditions,
            $extent,
            $value
        )
    };
}

async fn walk(
    connection: &mut Connection,
    along: &Along,
    conditions: &Conditions,
    extent: Extent,
) -> Result<Vec<Uuid>, StoreError> {
    Ok(match along {
        Along::Everything => {
            walk!(
                "SELECT machine_id AS id, content FROM machine_search WHERE machine_id > $11 ORDER BY machine_id",
                "",
                connection,
                conditions,
                extent
            )
        }
        Along::Label(label) => walk_along!(
            "SELECT machine_id AS id FROM machine_labels WHERE label = $13 AND machine_id > $11 ORDER BY machine_id",
            connection,
            conditions,
            extent,
            label
        ),
        Along::Liveness(noted) => walk_along!(
            "SELECT machine_id AS id FROM machine_presence WHERE noted_liveness = $13 AND machine_id > $11
             ORDER BY machine_id",
            connection,
            conditions,
            extent,
            noted
        ),
        Along::Status(status) => walk_along!(
            "SELECT id FROM machines WHERE status = $13 AND id > $11 ORDER BY id",
            connection,
            conditions,
            extent,
            status
        ),
        Along::Assurance(assurance) => walk_along!(
            "SELECT id FROM machines WHERE assurance = $13 AND id > $11 ORDER BY id",
            connection,
            conditions,
            extent,
            assurance
        ),
    }?)
}

/// Where a walk ended, unless it reached the last machine of its index.
async fn end_of_walk(connection: &mut Connection, along: &Along, extent: Extent) -> Result<Option<Uuid>, StoreError> {
    let (after, skipped) = (extent.after, extent.walk - 1);
    let end = match along {
        Along::Everything => {
            sqlx::query_scalar!(
                "SELECT machine_id FROM machine_search WHERE machine_id > $1 ORDER BY machine_id OFFSET $2 LIMIT 1",
                after,
                skipped
            )
            .fetch_optional(connection)
            .await
        }
        Along::Label(label) => {
            sqlx::query_scalar!(
                "SELECT machine_id FROM machine_labels WHERE label = $3 AND machine_id > $1
                 ORDER BY machine_id OFFSET $2 LIMIT 1",
                after,
                skipped,
                label
            )
            .fetch_optional(connection)
            .await
        }
        Along::Liveness(noted) => {
            sqlx::query_scalar!(
                "SELECT machine_id FROM machine_presence WHERE noted_liveness = $3 AND machine_id > $1
                 ORDER BY machine_id OFFSET $2 LIMIT 1",
                after,
                skipped,
                noted
            )
            .fetch_optional(connection)
            .await
        }
        Along::Status(status) => {
            sqlx::query_scalar!(
                "SELECT id FROM machines WHERE status = $3 AND id > $1 ORDER BY id OFFSET $2 LIMIT 1",
                after,
                skipped,
                status
            )
            .fetch_optional(connection)
            .await
        }
        Along::Assurance(assurance) => {
            sqlx::query_scalar!(
                "SELECT id FROM machines WHERE assurance = $3 AND id > $1 ORDER BY id OFFSET $2 LIMIT 1",
                after,
                skipped,
                assurance
            )
            .fetch_optional(connection)
            .await
        }
    };
    Ok(end?)
}

/// Finds all matches, and returns the first of them. Without a limit in the inner query, the planner is not tempted to
/// walk machines one by one for rare matches.
async fn find_by_indexes(
    connection: &mut Connection,
    conditions: &Conditions,
    extent: Extent,
) -> Result<Vec<Uuid>, StoreError> {
    let found = if conditions.pattern.is_some() {
        matching!(
            "MATERIALIZED",
            [
                "machine_search AS candidate (id, content) LEFT JOIN machines ON machines.id = candidate.id
              LEFT JOIN machine_presence ON machine_presence.machine_id = candidate.id"
            ],
            conditions,
            extent.limit,
            extent.after,
        )
        .fetch_all(connection)
        .await
    } else {
        matching!(
            "MATERIALIZED",
            ["machines CROSS JOIN LATERAL (SELECT machines.id) AS candidate
              LEFT JOIN machine_presence ON machine_presence.machine_id = candidate.id
              LEFT JOIN machine_search ON machine_search.machine_id = candidate.id"],
            conditions,
            extent.limit,
            extent.after,
        )
        .fetch_all(connection)
        .await
    };
    Ok(found?)
}

/// A `LIKE` pattern that matches the text literally.
fn pattern(part: &str) -> String {
    let mut pattern = String::with_capacity(part.len() + 2);
    pattern.push('%');
    for character in part.chars() {
        if matches!(character, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(character);
    }
    pattern.push('%');
    pattern
}

/// Whether the trigram index can find a text. It indexes runs of letters and digits.
fn has_trigram(part: &str) -> bool {
    part.split(|character: char| !character.is_alphanumeric())
        .any(|run| run.chars().count() >= TRIGRAM)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("C02", "%C02%")]
    #[case("100%", "%100\\%%")]
    #[case("a_b", "%a\\_b%")]
    #[case("a\\b", "%a\\\\b%")]
    fn a_part_is_literal(#[case] part: &str, #[case] expected: &str) {
        assert_eq!(pattern(part), expected);
    }

    #[rstest]
    #[case("c02", true)]
    #[case("büro", true)]
    #[case("a-bcd", true)]
    #[case("c0", false)]
    #[case("a-b-c", false)]
    #[case("%%%", false)]
    fn three_letters_in_a_row_can_be_looked_up(#[case] part: &str, #[case] expected: bool) {
        assert_eq!(has_trigram(part), expected);
    }
}
