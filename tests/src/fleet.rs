//! A large fleet in a database, created by `fleet.sql`, and the lists to read from it.

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Executor, PgConnection, Row};
use uuid::Uuid;

use crate::bulk;
use crate::cluster::execute;

/// A list to read.
#[derive(Debug, Clone)]
pub struct List {
    /// A description.
    pub name: &'static str,
    /// The path below `/v1/admin/`.
    pub path: String,
    /// Whether it has items in a fleet of every size.
    pub has_items: bool,
    /// The most pages that Postgres may read for it in a fleet of 12,000.
    pub most_pages: u64,
    /// Whether it uses the trigram index.
    pub by_part: bool,
    /// Whether tens of thousands of rows match, all far from the page's start. Postgres then collects all of them.
    pub is_far: bool,
}

/// The pages for fifty machines, each with rows of other tables.
const PAGE: u64 = 1_300;
/// The pages for a few rows along an index.
const FEW: u64 = 120;

/// Fills a database that has the schema and no machines.
pub async fn fill(options: &PgConnectOptions, machines: u64) {
    let mut connection = options.connect().await.unwrap();
    execute(&mut connection, format!("SET fleet.machines = {machines}")).await;
    bulk::fill(connection, include_str!("fleet.sql")).await;
}

/// The lists to read from a fleet of [`fill`]: each filter alone and in pairs, for values that are frequent, rare,
/// absent, and frequent but far from the page's start.
pub async fn lists(options: &PgConnectOptions) -> Vec<List> {
    let mut connection = options.connect().await.unwrap();
    let sample = Sample::read(&mut connection).await;
    connection.close().await.unwrap();
    let mut lists = machine_lists();
    lists.extend(search_lists(&sample));
    lists.extend(other_lists(&sample));
    lists
}

/// The lists of one machine in the middle of the fleet, and lists that continue from there.
struct Sample {
    id: Uuid,
    serial_number: String,
    thumbprint: String,
    busy: Uuid,
    last_event_of_busy: Uuid,
    entry: Uuid,
    token: Uuid,
    enrolled_at: String,
    a_month_later: String,
}

impl Sample {
    async fn read(connection: &mut PgConnection) -> Self {
        let machine = "SELECT id, serial_number, current_key,
                              to_char(enrolled_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"') AS enrolled_at,
                              to_char((enrolled_at + interval '1 month') AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
                                  AS a_month_later
                       FROM machines ORDER BY id OFFSET (SELECT count(*) / 2 FROM machines) LIMIT 1";
        let machine = connection.fetch_one(machine).await.unwrap();
        let busy: Uuid = id(connection, "SELECT id FROM machines ORDER BY id OFFSET 1 LIMIT 1").await;
        let key: Vec<u8> = machine.get("current_key");
        Self {
            id: machine.get("id"),
            serial_number: machine.get("serial_number"),
            thumbprint: URL_SAFE_NO_PAD.encode(key),
            busy,
            last_event_of_busy: id(
                connection,
                "SELECT id FROM events WHERE kind = 'posture.changed'
                 AND machine_id = (SELECT id FROM machines ORDER BY id OFFSET 1 LIMIT 1) ORDER BY id OFFSET 500 LIMIT 1",
            )
            .await,
            entry: id(
                connection,
                "SELECT id FROM audit_entries ORDER BY id OFFSET (SELECT count(*) / 2 FROM audit_entries) LIMIT 1",
            )
            .await,
            token: id(connection, "SELECT id FROM enrollment_tokens ORDER BY id OFFSET 90 LIMIT 1").await,
            enrolled_at: machine.get("enrolled_at"),
            a_month_later: machine.get("a_month_later"),
        }
    }
}

async fn id(connection: &mut PgConnection, query: &'static str) -> Uuid {
    connection.fetch_one(query).await.unwrap().get(0)
}

/// The list from this item on. Builds the server's cursor, because paging to the item would take too long.
fn from(list: impl AsRef<str>, id: Uuid) -> String {
    let list = list.as_ref();
    let (path, query) = list.split_once('?').unwrap_or((list, ""));
    let mut filters: Vec<_> = url::form_urlencoded::parse(query.as_bytes()).into_owned().collect();
    filters.sort_unstable();
    let filters = filters.into_iter().flat_map(|(name, value)| [name, value]);
    let parts = [format!("/v1/admin/{path}")].into_iter().chain(filters);
    let tagged: String = parts.map(|part| part + "\0").collect();
    let tag = digest::digest(&digest::SHA256, tagged.as_bytes());
    let cursor = URL_SAFE_NO_PAD.encode([&tag.as_ref()[..8], id.as_bytes()].concat());
    let separator = if query.is_empty() { '?' } else { '&' };
    format!("{list}{separator}cursor={cursor}")
}

fn list(name: &'static str, path: impl Into<String>) -> List {
    List {
        name,
        path: path.into(),
        has_items: true,
        most_pages: PAGE,
        by_part: false,
        is_far: false,
    }
}

fn empty(name: &'static str, path: impl Into<String>) -> List {
    List {
        has_items: false,
        ..list(name, path)
    }
}

fn machine_lists() -> Vec<List> {
    vec![
        list("all", "machines"),
        list("all, 500 a page", "machines?limit=500").most_pages(5_000),
        list("status, nearly all", "machines?status=active"),
        list("status, 1 in 1000", "machines?status=pending").most_pages(FEW),
        list("status, 1 in 40", "machines?status=revoked"),
        list("assurance, most", "machines?assurance=verified"),
        list("assurance, 1 in 2000", "machines?assurance=attested").most_pages(FEW),
        list("liveness, most", "machines?liveness=live"),
        list("liveness, late", "machines?liveness=late"),
        list("liveness, unreachable", "machines?liveness=unreachable"),
        list("liveness, never", "machines?liveness=never"),
        list("label, every second", "machines?label=managed:yes"),
        list("label, three machines", "machines?label=canary:yes").most_pages(FEW),
        list("label, the last twelfth", "machines?label=site:site-11"),
        empty("label, none", "machines?label=no:such").most_pages(FEW),
        list("status and label", "machines?status=revoked&label=team:team-1"),
        list("rare status and liveness", "machines?status=pending&liveness=never"),
        empty(
            "status and liveness that exclude each other",
            "machines?status=pending&liveness=live",
        ),
        list("rare label and status", "machines?status=active&label=canary:yes").most_pages(FEW),
        list("label and liveness", "machines?label=managed:yes&liveness=unreachable"),
        list(
            "rare assurance and label",
            "machines?assurance=attested&label=managed:no",
        )
        .or_empty(),
        list("far label and status", "machines?label=site:site-11&status=quarantined"),
        list("assurance and liveness", "machines?assurance=asserted&liveness=late"),
    ]
}

fn search_lists(sample: &Sample) -> Vec<List> {
    let q = |part: &str| {
        let part: String = url::form_urlencoded::byte_serialize(part.as_bytes()).collect();
        format!("machines?q={part}")
    };
    let id = sample.id.to_string();
    vec![
        list("all, from the middle", from("machines", sample.id)),
        list("status, from the middle", from("machines?status=revoked", sample.id)),
        list("label, from the middle", from("machines?label=managed:yes", sample.id)),
        list("q, a serial number", q(&sample.serial_number)).by_part(),
        list(
            "q, the end of a serial number",
            q(&sample.serial_number[5..].to_lowercase()),
        ),
        list("q, an id", q(&id)).by_part(),
        list("q, the beginning of an id", q(&id[..11])),
        list("q, the end of an id", q(&id[28..])),
        list("q, a part of a thumbprint", q(&sample.thumbprint[10..20])).by_part(),
        list("q, host names of most", q("MAC-")),
        list("q, host names of 1 in 100", q("Büro-ärger")),
        list("q, host names of 1 in 9", q("mac-9")),
        list("q, a label of 1 in 20", q("team-7")),
        list("q, a label of three", q("canary")),
        list("q, a label of the last twelfth", q("site-11")).far(),
        empty("q, none", q("no-such-machine")).by_part(),
        empty("q, wildcards are none", q("%%%")),
        list("q of two characters, all", q("C0")),
        empty("q of two characters, none", q("~~")),
        list("q and status", format!("{}&status=pending", q("mac-"))),
        list("rare q and liveness", format!("{}&liveness=live", q("canary"))).or_empty(),
        list("far q and rare status", format!("{}&status=quarantined", q("site-11"))),
        list("q from the middle", from(q("build-host"), sample.id)),
    ]
}

fn other_lists(sample: &Sample) -> Vec<List> {
    let Sample {
        id,
        busy,
        enrolled_at,
        a_month_later,
        ..
    } = sample;
    vec![
        list("events of a machine", format!("machines/{id}/events")).most_pages(FEW),
        list("events of a busy machine", format!("machines/{busy}/events")).most_pages(FEW),
        list(
            "events of a busy machine, the oldest",
            from(format!("machines/{busy}/events"), sample.last_event_of_busy),
        )
        .most_pages(FEW),
        list("certificates of a machine", format!("machines/{busy}/certificates"))
            .most_pages(FEW)
            .or_empty(),
        list("machines to attest", "apple-attestations/due"),
        list("enrollments", "enrollments").most_pages(FEW),
        list("enrollments that wait, 1 in 1000", "enrollments?status=pending").most_pages(FEW),
        empty("enrollments that were denied, none", "enrollments?status=denied").most_pages(FEW),
        list("enrollment tokens", "enrollment-tokens").most_pages(FEW),
        list("enrollment tokens, later ones", from("enrollment-tokens", sample.token)).most_pages(FEW),
        list("API keys", "api-keys").most_pages(FEW),
        list("audit", "audit"),
        list("audit, from the middle", from("audit", sample.entry)),
        list("audit of a machine", format!("audit?resource=machine:{id}")).most_pages(FEW),
        list("audit of all machines", "audit?resource=machine"),
        list("audit of a rare kind, long ago", "audit?resource=enrollment-token"),
        empty("audit of a kind that is not there", "audit?resource=grant").most_pages(FEW),
        list("audit by an actor's name, half, long ago", "audit?actor=operator-0"),
        list("audit by an actor's name, three", "audit?actor=operator-99").most_pages(FEW),
        list("audit by a machine", format!("audit?actor={id}")).most_pages(FEW),
        empty("audit by an unknown actor", "audit?actor=unknown").most_pages(FEW),
        list(
            "audit of a month",
            format!("audit?after={enrolled_at}&before={a_month_later}"),
        ),
        list("audit until the middle", format!("audit?before={enrolled_at}")),
        list(
            "audit by actor and time",
            format!("audit?actor=operator-0&before={enrolled_at}"),
        ),
        list(
            "audit by actor and resource",
            "audit?actor=operator-99&resource=machine",
        )
        .most_pages(FEW),
    ]
}

impl List {
    fn most_pages(self, most_pages: u64) -> Self {
        Self { most_pages, ..self }
    }

    fn by_part(self) -> Self {
        Self { by_part: true, ..self }
    }

    fn far(self) -> Self {
        Self { is_far: true, ..self }
    }

    /// Allows the list to be empty in a small fleet.
    fn or_empty(self) -> Self {
        Self {
            has_items: false,
            ..self
        }
    }
}
