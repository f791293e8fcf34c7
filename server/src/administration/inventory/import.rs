//! Parsing an inventory file. Every row is checked before the first one is written, and every wrong row is reported.

use assay_protocol::sha256;

use super::{InventoryError, csv, json, rows::Rows};
use crate::store::inventory::Columns;

/// How many rows one statement writes.
const BATCH: usize = 5_000;

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Csv,
}

/// A file without a wrong row, in the order of the serial numbers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Import {
    serial_numbers: Vec<String>,
    labels: Vec<String>,
    owners: Vec<Option<String>>,
    sha256: String,
}

impl Import {
    pub(crate) fn read(format: Format, body: &[u8]) -> Result<Self, InventoryError> {
        let mut rows = Rows::default();
        match format {
            Format::Json => json::read(body, &mut rows),
            Format::Csv => csv::read(body, &mut rows),
        }
        .map_err(InventoryError::Unreadable)?;
        let rows = rows.finish()?;
        let mut import = Import {
            serial_numbers: Vec::with_capacity(rows.len()),
            labels: Vec::with_capacity(rows.len()),
            owners: Vec::with_capacity(rows.len()),
            sha256: hex::encode(sha256(body)),
        };
        for row in rows {
            import.serial_numbers.push(row.serial_number);
            import.labels.push(row.labels);
            import.owners.push(row.owner);
        }
        Ok(import)
    }

    pub(crate) fn serial_numbers(&self) -> &[String] {
        &self.serial_numbers
    }

    /// The digest of the file, in hex.
    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    /// The rows, in batches for one statement each.
    pub(crate) fn batches(&self) -> impl Iterator<Item = Columns<'_>> {
        let (labels, owners) = (self.labels.chunks(BATCH), self.owners.chunks(BATCH));
        let batches = self.serial_numbers.chunks(BATCH).zip(labels).zip(owners);
        batches.map(|((serial_numbers, labels), owners)| Columns {
            serial_numbers,
            labels,
            owners,
        })
    }
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

    /// The wrong rows, with their lines.
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
    fn every_form_gives_the_same_inventory(#[case] format: Format, #[case] text: String) {
        let import = read(format, &text).unwrap();
        assert_eq!(import.serial_numbers, ["C02A", "C02B"]);
        assert_eq!(import.labels, ["{}", r#"{"team":"ios"}"#]);
        assert_eq!(import.owners, [None, Some("Ada".to_owned())]);
    }

    #[test]
    fn a_file_without_rows_is_an_empty_inventory() {
        for (format, text) in [(Format::Json, r#"{"items":[]}"#), (Format::Csv, "serial_number\n")] {
            assert_eq!(read(format, text).unwrap().serial_numbers(), [""; 0]);
        }
    }

    #[rstest]
    #[case::json(Format::Json, "{\"items\":[{\"serial_number\":\"A\"},\n\n{\"serial_number\":\" A\"},{\"serial_number\":\"A\"}]}", [3, 3], 1)]
    #[case::csv(Format::Csv, "serial_number\r\n\r\nA\r\nB\r\n\"A \"\r\nA\r\n", [5, 6], 3)]
    fn a_repeated_serial_number_is_reported_with_both_lines(
        #[case] format: Format,
        #[case] text: &str,
        #[case] lines: [u64; 2],
        #[case] first: u64,
    ) {
        let errors = errors(format, text);
        assert_eq!(errors.iter().map(|(line, _)| *line).collect::<Vec<_>>(), lines);
        assert!(errors[0].1.contains(&format!("already in line {first}")), "{errors:?}");
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
    #[case("{\"items\":[{\"serial_number\":\"A\\u0000\"}]}", "contains U+0000")]
    #[case("{\"items\":[{\"serial_number\":\" \"}]}", "is empty")]
    #[case("{\"items\":[{\"serial_number\":\"\u{0410}\"}]}", "ASCII")]
    fn a_wrong_json_item_is_reported_with_its_fault(#[case] text: &str, #[case] names: &str) {
        let errors = errors(Format::Json, text);
        assert_eq!((errors.len(), errors[0].0), (1, 1));
        assert!(errors[0].1.contains(names), "{errors:?}");
    }

    #[rstest]
    #[case("A,a=1", "3 columns, but this row has 2")]
    #[case("A,a=1,y,z", "3 columns, but this row has 4")]
    #[case("A,team,y", "key=value")]
    #[case("A,=1,y", "labels: the key")]
    #[case("A,a=1;a=2,y", "\"a\" appears twice")]
    #[case(",a=1,y", "serial_number is empty")]
    #[case("\"A\nB\",,", "control character")]
    #[case("A,,\"two\nlines\"", "owner")]
    fn a_wrong_csv_row_is_reported_with_its_fault(#[case] row: &str, #[case] names: &str) {
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
    fn an_unreadable_file_is_refused_with_the_reason(#[case] format: Format, #[case] text: &str, #[case] names: &str) {
        let why = unreadable(format, text);
        assert!(why.contains(names), "{why}");
    }

    #[test]
    fn a_row_that_is_not_utf_8_is_reported_with_its_line() {
        let error = Import::read(Format::Csv, b"serial_number\nA\n\xff\n").unwrap_err();
        assert!(error.to_string().contains("line 3: not UTF-8"), "{error}");
    }

    #[test]
    fn a_hundred_wrong_rows_are_reported_and_all_are_counted() {
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
