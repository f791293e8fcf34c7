//! The inventory as JSON: `{"items": […]}`. Each item is read by itself. One import thus reports all wrong items.

use std::fmt;

use assay_protocol::admin_api::inventory::ImportItem;
use serde::{
    Deserializer,
    de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::value::RawValue;

use super::rows::{Lines, Rows};
use crate::text::json;

/// Reads every item into `rows`. Fails if the body as a whole cannot be read.
pub(super) fn read(body: &[u8], rows: &mut Rows) -> Result<(), String> {
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err("the body must be a JSON object".to_owned());
    }
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let reading = Reading {
        begin: body.as_ptr().addr(),
        lines: Lines::of(body),
        number: 0,
        rows,
    };
    let read = deserializer.deserialize_map(Whole(reading));
    read.and_then(|()| deserializer.end())
        .map_err(|error| error.to_string())
}

struct Reading<'a> {
    /// The address of the body in memory. An item borrows from the body, so its own address gives its position.
    begin: usize,
    lines: Lines<'a>,
    number: usize,
    rows: &'a mut Rows,
}

struct Whole<'a>(Reading<'a>);

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object with items")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut members: A) -> Result<(), A::Error> {
        let mut has_items = false;
        while let Some(name) = members.next_key::<String>()? {
            if name != "items" {
                members.next_value::<IgnoredAny>()?;
                return Err(A::Error::unknown_field(&name, &["items"]));
            }
            if has_items {
                return Err(A::Error::duplicate_field("items"));
            }
            has_items = true;
            members.next_value_seed(Items(&mut self.0))?;
        }
        if has_items {
            Ok(())
        } else {
            Err(A::Error::missing_field("items"))
        }
    }
}

struct Items<'a, 'b>(&'a mut Reading<'b>);

impl<'de> DeserializeSeed<'de> for Items<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items<'_, '_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("items to be an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while let Some(item) = items.next_element::<&'de RawValue>()? {
            self.0.take(item.get()).map_err(A::Error::custom)?;
        }
        Ok(())
    }
}

impl Reading<'_> {
    fn take(&mut self, text: &str) -> Result<(), String> {
        self.number += 1;
        let line = self.lines.at(text.as_ptr().addr().saturating_sub(self.begin));
        self.rows.push(line, Some(self.number), item(text))
    }
}

fn item(text: &str) -> Result<ImportItem, String> {
    // serde would accept an array of the members' values too.
    if !text.starts_with('{') {
        return Err("it must be an object".to_owned());
    }
    let item = serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| {
        let why = error.inner().to_string();
        // The position inside the item is left out, because the error names the item and the member.
        let why = why.rsplit_once(" at line ").map_or(why.as_str(), |(why, _)| why);
        match error.path().to_string().as_str() {
            "." => why.to_owned(),
            path => format!("{path}: {why}"),
        }
    })?;
    json::check(text.as_bytes())?;
    Ok(item)
}
