//! The inventory as CSV (RFC 4180), as spreadsheets write it: with a header whose columns may come in any order.

use assay_protocol::admin_api::inventory::ImportItem;
use csv::{ByteRecord, ReaderBuilder};

use super::import::{Lines, Rows};
use crate::machines::labels::Labels;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
const COLUMNS: &str = "serial_number, labels, owner";

/// Where the columns are.
#[derive(Debug, Default)]
struct Header {
    columns: usize,
    serial_number: Option<usize>,
    labels: Option<usize>,
    owner: Option<usize>,
}

/// Reads every row into `rows`. Fails where the whole is not readable.
pub(super) fn read(body: &[u8], rows: &mut Rows) -> Result<(), String> {
    let body = body.strip_prefix(BYTE_ORDER_MARK).unwrap_or(body);
    let mut reader = ReaderBuilder::new().has_headers(false).flexible(true).from_reader(body);
    let (mut record, mut lines, mut header) = (ByteRecord::new(), Lines::of(body), None);
    while reader
        .read_byte_record(&mut record)
        .map_err(|error| error.to_string())?
    {
        if is_blank(&record) {
            continue;
        }
        let line = lines.at(begin(body, &record));
        match &header {
            None => header = Some(Header::read(&record)?),
            Some(header) => rows.push(line, None, header.item(&record))?,
        }
    }
    match header {
        Some(_) => Ok(()),
        None => Err(format!("the first line has to be a header, with the columns {COLUMNS}")),
    }
}

/// A line of spaces; the reader skips those that hold nothing at all.
fn is_blank(record: &ByteRecord) -> bool {
    record.len() == 1 && record.get(0).is_some_and(|field| field.trim_ascii().is_empty())
}

/// Where a record begins: the reader tells where it began to look for it, which is before the end of the line above
/// and any empty ones.
fn begin(body: &[u8], record: &ByteRecord) -> usize {
    let from = record.position().map_or(0, csv::Position::byte);
    let from = usize::try_from(from).unwrap_or(usize::MAX);
    let rest = body.get(from..).unwrap_or_default();
    let breaks = rest.iter().take_while(|byte| matches!(**byte, b'\r' | b'\n')).count();
    from.saturating_add(breaks)
}

impl Header {
    fn read(record: &ByteRecord) -> Result<Self, String> {
        let mut header = Self {
            columns: record.len(),
            ..Self::default()
        };
        for (place, name) in record.iter().enumerate() {
            let name = String::from_utf8_lossy(name);
            let column = match name.trim() {
                "serial_number" => &mut header.serial_number,
                "labels" => &mut header.labels,
                "owner" => &mut header.owner,
                unknown => {
                    let unknown: String = unknown.chars().take(64).collect();
                    return Err(format!(
                        "the header has the unknown column {unknown:?}; there are {COLUMNS}"
                    ));
                }
            };
            if column.replace(place).is_some() {
                return Err(format!("the header has the column {:?} twice", name.trim()));
            }
        }
        if header.serial_number.is_none() {
            return Err("the header has no column serial_number".to_owned());
        }
        Ok(header)
    }

    fn item(&self, record: &ByteRecord) -> Result<ImportItem, String> {
        if record.len() != self.columns {
            return Err(format!(
                "the header has {} columns, and this row has {}",
                self.columns,
                record.len()
            ));
        }
        let text = |column: Option<usize>| {
            let field = column.and_then(|column| record.get(column)).unwrap_or_default();
            std::str::from_utf8(field).map_err(|_| "not UTF-8".to_owned())
        };
        Ok(ImportItem {
            serial_number: text(self.serial_number)?.to_owned(),
            labels: labels(text(self.labels)?)?,
            owner: Some(text(self.owner)?.to_owned()),
        })
    }
}

/// `key=value;key=value`
fn labels(text: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for label in text.split(';').map(str::trim).filter(|label| !label.is_empty()) {
        let Some((key, value)) = label.split_once('=') else {
            return Err(format!("labels: {label:?} is not of the form key=value"));
        };
        let (key, value) = (key.trim(), value.trim());
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("labels: {key:?} comes twice"));
        }
    }
    Ok(labels)
}
