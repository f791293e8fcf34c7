//! A file that is to become the inventory: every row checked before the first is written, and every wrong one named.

use aws_lc_rs::digest;
use serde_json::Value;

use assay_protocol::{admin_api::inventory::ImportItem, text::hardware_id};

use super::{InventoryError, csv, json};
use crate::{machines::labels, store::inventory::Columns, text::is_line};

/// The most rows of one file: what is kept of each while it is written is not much, but it adds up.
const MOST_ROWS: usize = 1_000_000;
/// How many wrong rows are told one by one.
const MOST_ERRORS: usize = 100;
/// A row may hold anything, and what is told of it has to fit in an answer.
const LONGEST_DETAIL: usize = 300;
const LONGEST_OWNER: usize = 256;
/// How many rows one statement writes.
const BATCH: usize = 5_000;

/// What a file is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Csv,
}

/// A row that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowError {
    /// Where it begins, from 1.
    pub(crate) line: u64,
    pub(crate) detail: String,
}

/// A file whose every row is right, in the order of the serial numbers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Import {
    serial_numbers: Vec<String>,
    labels: Vec<String>,
    owners: Vec<Option<String>>,
    sha256: String,
}

impl Import {
    pub(super) fn read(format: Format, body: &[u8]) -> Result<Self, InventoryError> {
        let mut rows = Rows::default();
        match format {
            Format::Json => json::read(body, &mut rows),
            Format::Csv => csv::read(body, &mut rows),
        }
        .map_err(InventoryError::Unreadable)?;
        rows.finish(hex::encode(digest::digest(&digest::SHA256, body)))
    }

    pub(super) fn serial_numbers(&self) -> &[String] {
        &self.serial_numbers
    }

    /// The digest of the file.
    pub(super) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The rows, as many at a time as one statement writes.
    pub(super) fn batches(&self) -> impl Iterator<Item = Columns<'_>> {
        let (labels, owners) = (self.labels.chunks(BATCH), self.owners.chunks(BATCH));
        let batches = self.serial_numbers.chunks(BATCH).zip(labels).zip(owners);
        batches.map(|((serial_numbers, labels), owners)| Columns {
            serial_numbers,
            labels,
            owners,
        })
    }
}

/// The rows of a file, as they are read one after the other.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    errors: Vec<RowError>,
    wrong: usize,
}

struct Row {
    serial_number: String,
    line: u64,
    labels: String,
    owner: Option<String>,
}

impl Rows {
    /// Takes a row, or what is wrong with it. `number` counts rows that may share a line. Fails where there are more than
    /// anybody has machines.
    pub(super) fn push(
        &mut self,
        line: u64,
        number: Option<usize>,
        item: Result<ImportItem, String>,
    ) -> Result<(), String> {
        if self.rows.len() + self.wrong >= MOST_ROWS {
            return Err(format!("there are more than {MOST_ROWS} rows"));
        }
        match item.and_then(|item| check(line, item)) {
            Ok(row) => self.rows.push(row),
            Err(detail) => match number {
                Some(number) => self.refuse(line, &format!("item {number}: {detail}")),
                None => self.refuse(line, &detail),
            },
        }
        Ok(())
    }

    fn refuse(&mut self, line: u64, detail: &str) {
        self.wrong += 1;
        if self.errors.len() < MOST_ERRORS {
            let detail = detail.chars().take(LONGEST_DETAIL).collect();
            self.errors.push(RowError { line, detail });
        }
    }

    /// In a file that is one serial number over and over, only what is told is put into words.
    fn refuse_repeated(&mut self) {
        let mut repeated: Vec<(u64, u64, &str)> = Vec::new();
        for pair in self.rows.windows(2) {
            if let [first, second] = pair
                && first.serial_number == second.serial_number
            {
                repeated.push((second.line, first.line, &second.serial_number));
            }
        }
        repeated.sort_unstable();
        let told = repeated
            .iter()
            .take(MOST_ERRORS)
            .map(|(line, first, serial_number)| RowError {
                line: *line,
                detail: format!("serial_number {serial_number:?} is in line {first} already"),
            });
        self.errors.extend(told);
        self.wrong += repeated.len();
    }

    /// Sorted: that brings equal serial numbers together, and what is written in one order neither deadlocks nor
    /// scatters over the index.
    fn finish(mut self, sha256: String) -> Result<Import, InventoryError> {
        self.rows
            .sort_unstable_by(|one, other| (&one.serial_number, one.line).cmp(&(&other.serial_number, other.line)));
        self.refuse_repeated();
        if self.wrong > 0 {
            self.errors.sort_by_key(|error| error.line);
            self.errors.truncate(MOST_ERRORS);
            return Err(InventoryError::Rows {
                total: self.wrong,
                first: self.errors,
            });
        }
        let mut import = Import {
            serial_numbers: Vec::with_capacity(self.rows.len()),
            labels: Vec::with_capacity(self.rows.len()),
            owners: Vec::with_capacity(self.rows.len()),
            sha256,
        };
        for row in self.rows {
            import.serial_numbers.push(row.serial_number);
            import.labels.push(row.labels);
            import.owners.push(row.owner);
        }
        Ok(import)
    }
}

/// Counts the lines of a file, from one place in it to the next.
pub(super) struct Lines<'a> {
    body: &'a [u8],
    counted: usize,
    line: u64,
}

impl<'a> Lines<'a> {
    pub(super) fn of(body: &'a [u8]) -> Self {
        Self {
            body,
            counted: 0,
            line: 1,
        }
    }

    /// The line of this place, which is not before the last one.
    pub(super) fn at(&mut self, place: usize) -> u64 {
        let between = self.body.get(self.counted..place).unwrap_or_default();
        let breaks = between.iter().filter(|byte| **byte == b'\n').count();
        self.line += u64::try_from(breaks).unwrap_or(0);
        self.counted = place;
        self.line
    }
}

fn check(line: u64, item: ImportItem) -> Result<Row, String> {
    let serial_number = match hardware_id(&item.serial_number) {
        Ok(Some(serial_number)) => serial_number.to_owned(),
        Ok(None) => return Err("serial_number is empty".to_owned()),
        Err(error) => return Err(format!("serial_number: {error}")),
    };
    labels::check(&item.labels).map_err(|error| error.to_string())?;
    let owner = item.owner.map(|owner| owner.trim().to_owned());
    let owner = owner.filter(|owner| !owner.is_empty());
    if owner.as_ref().is_some_and(|owner| !is_line(owner, 1..=LONGEST_OWNER)) {
        return Err(format!(
            "owner has to have {LONGEST_OWNER} characters at most, none of them a control character"
        ));
    }
    let labels = item.labels.into_iter().map(|(key, value)| (key, Value::String(value)));
    Ok(Row {
        serial_number,
        line,
        labels: Value::Object(labels.collect()).to_string(),
        owner,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const JSON: &str = "{\"items\": [\n  {\"serial_number\": \" C02B \", \"labels\": {\"team\": \"ios\"}, \"owner\": \"Ada\"},\n  {\"serial_number\": \"C02A\"}\n]}";
    const CSV: &str = "owner,serial_number,labels\nAda,C02B,team=ios\n,C02A,\n";

    fn read(format: Format, text: &str) -> Result<Import, InventoryError> {
        Import::read(format, text.as_bytes())
    }

    /// What is wrong, with the lines.
    fn errors(format: Format, text: &str) -> Vec<(u64, String)> {
        match read(format, text) {
            Err(InventoryError::Rows { total, first }) => {
                assert_eq!(total, first.len());
                first.into_iter().map(|error| (error.line, error.detail)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn unreadable(format: Format, text: &str) -> String {
        match read(format, text) {
            Err(InventoryError::Unreadable(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[rstest]
    #[case::json(Format::Json, JSON.to_owned())]
    #[case::csv(Format::Csv, CSV.to_owned())]
    #[case::csv_with_a_byte_order_mark(Format::Csv, format!("\u{feff}{CSV}"))]
    #[case::csv_of_windows(Format::Csv, CSV.replace('\n', "\r\n"))]
    #[case::csv_with_empty_lines(Format::Csv, CSV.replace('\n', "\n\n  \n"))]
    #[case::csv_without_an_end(Format::Csv, CSV.trim_end().to_owned())]
    #[case::csv_with_quotes(Format::Csv, "owner,\"serial_number\",labels\n\"Ada\",\"C02B\",\"team=ios;\"\n,C02A,\n".to_owned())]
    fn these_are_the_same_inventory(#[case] format: Format, #[case] text: String) {
        let import = read(format, &text).unwrap();
        assert_eq!(import.serial_numbers, ["C02A", "C02B"]);
        assert_eq!(import.labels, ["{}", r#"{"team":"ios"}"#]);
        assert_eq!(import.owners, [None, Some("Ada".to_owned())]);
    }

    #[test]
    fn a_file_without_rows_is_an_inventory_without_machines() {
        for (format, text) in [(Format::Json, r#"{"items":[]}"#), (Format::Csv, "serial_number\n")] {
            assert_eq!(read(format, text).unwrap().serial_numbers(), [""; 0]);
        }
    }

    #[rstest]
    #[case::json(Format::Json, "{\"items\":[{\"serial_number\":\"A\"},\n\n{\"serial_number\":\" A\"},{\"serial_number\":\"A\"}]}", [3, 3], 1)]
    #[case::csv(Format::Csv, "serial_number\r\n\r\nA\r\nB\r\n\"A \"\r\nA\r\n", [5, 6], 3)]
    fn a_serial_number_that_comes_twice_names_both_lines(
        #[case] format: Format,
        #[case] text: &str,
        #[case] lines: [u64; 2],
        #[case] first: u64,
    ) {
        let errors = errors(format, text);
        assert_eq!(errors.iter().map(|(line, _)| *line).collect::<Vec<_>>(), lines);
        assert!(errors[0].1.contains(&format!("in line {first} already")), "{errors:?}");
    }

    #[rstest]
    #[case("{\"items\":[1]}", "an object")]
    #[case("{\"items\":[[\"A\"]]}", "an object")]
    #[case("{\"items\":[{}]}", "serial_number")]
    #[case("{\"items\":[{\"serial_number\":null}]}", "expected a string")]
    #[case("{\"items\":[{\"serial_number\":\"A\",\"lables\":{}}]}", "lables")]
    #[case("{\"items\":[{\"serial_number\":\"A\",\"labels\":{\"k\":1}}]}", "expected a string")]
    #[case(
        "{\"items\":[{\"serial_number\":\"A\",\"labels\":{\"a b\":\"\"}}]}",
        "labels: the key"
    )]
    #[case("{\"items\":[{\"serial_number\":\"A\",\"owner\":\"\\u0000\"}]}", "owner")]
    #[case("{\"items\":[{\"serial_number\":\"A\\u0000\"}]}", "control character")]
    #[case("{\"items\":[{\"serial_number\":\" \"}]}", "is empty")]
    #[case("{\"items\":[{\"serial_number\":\"\u{0410}\"}]}", "ASCII")]
    fn what_is_wrong_in_json_is_named(#[case] text: &str, #[case] names: &str) {
        let errors = errors(Format::Json, text);
        assert_eq!((errors.len(), errors[0].0), (1, 1));
        assert!(errors[0].1.contains(names), "{errors:?}");
    }

    #[rstest]
    #[case("A,a=1", "3 columns, and this row has 2")]
    #[case("A,a=1,y,z", "3 columns, and this row has 4")]
    #[case("A,team,y", "key=value")]
    #[case("A,=1,y", "labels: the key")]
    #[case("A,a=1;a=2,y", "\"a\" comes twice")]
    #[case(",a=1,y", "serial_number is empty")]
    #[case("\"A\nB\",,", "control character")]
    #[case("A,,\"two\nlines\"", "owner")]
    fn what_is_wrong_in_csv_is_named(#[case] row: &str, #[case] names: &str) {
        let errors = errors(Format::Csv, &format!("serial_number,labels,owner\nB,,\n{row}\n"));
        assert_eq!((errors.len(), errors[0].0), (1, 3));
        assert!(errors[0].1.contains(names), "{errors:?}");
    }

    #[rstest]
    #[case(Format::Json, "", "JSON object")]
    #[case(Format::Json, "[]", "JSON object")]
    #[case(Format::Json, "{}", "items")]
    #[case(Format::Json, "{\"items\":{}}", "items")]
    #[case(Format::Json, "{\"items\":[],\"mode\":1}", "mode")]
    #[case(Format::Json, "{\"items\":[],\"items\":[]}", "items")]
    #[case(Format::Json, "{\"items\":[]}x", "line 1")]
    #[case(Format::Json, "{\"items\":[{\"serial_number\":\"A\"}\n", "line 2")]
    #[case(Format::Csv, "", "header")]
    #[case(Format::Csv, "\n\n", "header")]
    #[case(Format::Csv, "serial_number,Asset Tag\nA,1\n", "\"Asset Tag\"")]
    #[case(Format::Csv, "labels,owner\na=1,x\n", "serial_number")]
    #[case(Format::Csv, "serial_number,serial_number\nA,A\n", "twice")]
    fn what_is_no_inventory_at_all_is_said(#[case] format: Format, #[case] text: &str, #[case] names: &str) {
        let why = unreadable(format, text);
        assert!(why.contains(names), "{why}");
    }

    #[test]
    fn what_is_no_text_is_named_by_its_line() {
        let error = Import::read(Format::Csv, b"serial_number\nA\n\xff\n").unwrap_err();
        assert!(error.to_string().contains("line 3: not UTF-8"), "{error}");
    }

    #[test]
    fn a_hundred_wrong_rows_are_told_and_all_are_counted() {
        let text = format!("serial_number\n{}", "é\n".repeat(250));
        match read(Format::Csv, &text) {
            Err(InventoryError::Rows { total, first }) => {
                assert_eq!((total, first.len()), (250, 100));
                assert_eq!((first[0].line, first[99].line), (2, 101));
            }
            other => panic!("{other:?}"),
        }
    }
}
