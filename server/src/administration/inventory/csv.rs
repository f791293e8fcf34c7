//! The inventory as CSV (RFC 4180), as spreadsheets write it. The first line is a header, with columns in any order.

use assay_protocol::admin_api::inventory::ImportItem;
use csv::{ByteRecord, ReaderBuilder};

use super::rows::{Lines, Rows};
use crate::machines::labels::Labels;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";
/// The byte order marks of UTF-16.
const UTF_16_MARKS: [&[u8]; 2] = [b"\xff\xfe", b"\xfe\xff"];
const COLUMNS: &str = "serial_number, labels, owner";

/// The positions of the columns.
#[derive(Debug, Default)]
struct Header {
    columns: usize,
    serial_number: Option<usize>,
    labels: Option<usize>,
    owner: Option<usize>,
}

/// Reads every row into `rows`. Fails if the file as a whole cannot be read.
pub(super) fn read(body: &[u8], rows: &mut Rows) -> Result<(), String> {
    // Without a mark, UTF-16 is recognized by the zero byte of its first letter.
    if UTF_16_MARKS.iter().any(|mark| body.starts_with(mark)) || body.iter().take(2).any(|byte| *byte == 0) {
        return Err("the file is UTF-16: save it as CSV UTF-8".to_owned());
    }
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
        let begin = begin(body, &record);
        let line = lines.at(begin);
        if is_unclosed(body, begin, &reader) {
            return Err(format!(
                "a quote in the row at line {line} is never closed, so that row contains the rest of the file"
            ));
        }
        match &header {
            None => header = Some(Header::read(&record)?),
            Some(header) => rows.push(line, None, header.item(&record))?,
        }
    }
    match header {
        Some(_) => Ok(()),
        None => Err(format!("the first line must be a header with the columns {COLUMNS}")),
    }
}

/// Whether a line has only spaces. The reader itself skips empty lines.
fn is_blank(record: &ByteRecord) -> bool {
    record.len() == 1 && record.get(0).is_some_and(|field| field.trim_ascii().is_empty())
}

/// Whether a record extends to the end of the file because a quote in it is never closed. In a valid record the number
/// of quotes is even, because a literal quote is doubled.
fn is_unclosed(body: &[u8], begin: usize, reader: &csv::Reader<&[u8]>) -> bool {
    let end = usize::try_from(reader.position().byte()).unwrap_or(usize::MAX);
    let rest = body.get(begin..).unwrap_or_default();
    end >= body.len() && rest.iter().filter(|byte| **byte == b'"').count() % 2 == 1
}

/// Where a record begins. The position from the reader comes before the line break of the previous record and before
/// empty lines.
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
                _ if header.columns == 1 && name.contains([';', '\t']) => {
                    let separator = if name.contains(';') { "semicolons" } else { "tabs" };
                    return Err(format!(
                        "the columns are separated by {separator}; they must be separated by commas"
                    ));
                }
                unknown => {
                    let unknown: String = unknown.chars().take(64).collect();
                    return Err(format!(
                        "the header has the unknown column {unknown:?}; the columns are {COLUMNS}"
                    ));
                }
            };
            if column.replace(place).is_some() {
                return Err(format!("the header has the column {:?} twice", name.trim()));
            }
        }
        if header.serial_number.is_none() {
            return Err("the header lacks the column serial_number".to_owned());
        }
        Ok(header)
    }

    fn item(&self, record: &ByteRecord) -> Result<ImportItem, String> {
        if record.len() != self.columns {
            return Err(format!(
                "the header has {} columns, but this row has {}",
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

/// Parses `key=value;key=value`.
fn labels(text: &str) -> Result<Labels, String> {
    let mut labels = Labels::new();
    for label in text.split(';').map(str::trim).filter(|label| !label.is_empty()) {
        let Some((key, value)) = label.split_once('=') else {
            return Err(format!("labels: {label:?} is not of the form key=value"));
        };
        let (key, value) = (key.trim(), value.trim());
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(format!("labels: {key:?} appears twice"));
        }
    }
    Ok(labels)
}
