//! Reads structs from JSON objects only. Serde also reads a struct from an array, member by member: `"conditions": []`
//! would make a grant without conditions.

use std::{fmt, marker::PhantomData};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor, value::MapAccessDeserializer},
};
use serde_json::{Map, Value};

/// Reads a struct from an object only.
pub(crate) fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_map(Members(PhantomData))
}

/// Reads structs from a list of objects only.
pub(crate) fn objects<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Vec<T>, D::Error> {
    let items = Vec::<Item<T>>::deserialize(deserializer)?;
    Ok(items.into_iter().map(|Item(item)| item).collect())
}

/// The same as [`object`], but refuses nulls: `{"sip_enabled": null}` would be no condition, which its sender does not expect.
pub(crate) fn object_without_nulls<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: for<'a> Deserialize<'a>,
{
    let members = deserializer.deserialize_map(Given)?;
    serde_path_to_error::deserialize(Value::Object(members)).map_err(|error| match error.path().to_string().as_str() {
        "." => D::Error::custom(error.inner()),
        path => D::Error::custom(format_args!("{path}: {}", error.inner())),
    })
}

struct Item<T>(T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Item<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        object(deserializer).map(Self)
    }
}

/// Collects members, and refuses nulls and duplicates.
struct Given;

impl<'de> Visitor<'de> for Given {
    type Value = Map<String, Value>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let mut given = Map::new();
        while let Some((name, value)) = members.next_entry::<String, Value>()? {
            if value.is_null() {
                return Err(A::Error::custom(format_args!(
                    "{name} is null: give it a value, or leave it out"
                )));
            }
            if given.contains_key(&name) {
                return Err(A::Error::custom(format_args!("{name} is there twice")));
            }
            given.insert(name, value);
        }
        Ok(given)
    }
}

struct Members<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for Members<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, members: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(members))
    }
}
