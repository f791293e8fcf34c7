//! The rows of a file: each is checked, and the wrong ones are collected.

use serde_json::Value;

use assay_protocol::{admin_api::inventory::ImportItem, text::hardware_id};

use super::InventoryError;
use crate::{machines::labels, text::is_line};

/// The most rows in one file. It limits the memory for an import.
const MOST_ROWS: usize = 1_000_000;
/// How many wrong rows the response lists.
const MOST_ERRORS: usize = 100;
/// A row may contain anything of any length; this limits what the response quotes of it, in characters.
const LONGEST_DETAIL: usize = 300;
const LONGEST_OWNER: usize = 256;

/// Why a row is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RowError {
    /// The line where the row begins, from 1.
    pub(crate) line: u64,
    pub(crate) detail: String,
}

/// The rows that were read so far.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Row>,
    errors: Vec<RowError>,
    wrong: usize,
}

/// A valid row.
pub(super) struct Row {
    pub(super) serial_number: String,
    line: u64,
    /// The labels as JSON.
    pub(super) labels: String,
    pub(super) owner: Option<String>,
}

impl Rows {
    /// Adds a row, or the reason why it is wrong. `number` is the item's number in a format whose items may share a
    /// line. Fails if there are too many rows.
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

    /// Refuses repeated serial numbers. Formats only the errors that the response lists: a file may repeat one serial
    /// number a million times.
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
        let listed = repeated
            .iter()
            .take(MOST_ERRORS)
            .map(|(line, first, serial_number)| RowError {
                line: *line,
                detail: format!("serial_number {serial_number:?} is already in line {first}"),
            });
        self.errors.extend(listed);
        self.wrong += repeated.len();
    }

    /// The rows, sorted by serial number. Sorting finds repeated ones, writes to the index in its order, and lets two
    /// transactions lock rows in one order, so they cannot deadlock.
    pub(super) fn finish(mut self) -> Result<Vec<Row>, InventoryError> {
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
        Ok(self.rows)
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
            "owner must have at most {LONGEST_OWNER} characters, without control characters or direction marks"
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
