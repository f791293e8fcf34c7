//! Enums with one text for each value: on the wire, in the database, in messages and in metrics.

use std::fmt::Display;

/// The text is not a value of the enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown value")]
pub struct UnknownWord;

/// Declares an enum with one text for each value.
///
/// A value that is not declared does not compile, and no list of all values is kept by hand. Unknown texts are
/// rejected.
#[macro_export]
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        $(#[derive($derived:ident)])?
        $visibility:vis enum $name:ident { $($(#[$meta:meta])* $value:ident = $text:literal,)+ }
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash $(, $derived)?)]
        $visibility enum $name { $($(#[$meta])* #[doc = concat!(" `", $text, "`")] $value,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            $visibility const ALL: [Self; [$($text),+].len()] = [$(Self::$value),+];

            /// The text of this value.
            #[must_use]
            $visibility const fn as_str(self) -> &'static str {
                match self { $(Self::$value => $text,)+ }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = $crate::word::UnknownWord;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let known = Self::ALL.into_iter().find(|value| value.as_str() == text);
                known.ok_or($crate::word::UnknownWord)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                let unknown = |_| serde::de::Error::unknown_variant(&text, &[$($text),+]);
                text.parse().map_err(unknown)
            }
        }

        $crate::schema_of_words! { $name, $($about)+ }
    };
}

/// Describes the enum in the OpenAPI document.
#[cfg(feature = "openapi")]
#[doc(hidden)]
#[macro_export]
macro_rules! schema_of_words {
    ($name:ident, $($about:literal)+) => {
        impl utoipa::ToSchema for $name {
            fn name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }
        }

        impl utoipa::PartialSchema for $name {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                let about = [$($about.trim()),+].join("\n");
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .description(Some(about))
                    .enum_values(Some(Self::ALL.map(Self::as_str)))
                    .into()
            }
        }
    };
}

#[cfg(not(feature = "openapi"))]
#[doc(hidden)]
#[macro_export]
macro_rules! schema_of_words {
    ($($ignored:tt)+) => {};
}

/// The texts of an enum, separated by commas, for a message.
#[must_use]
pub fn list<T: Display>(words: &[T]) -> String {
    words.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::list;
    use crate::machine::{KeyStoreKind, MachineStatus};

    #[test]
    fn the_text_is_the_same_on_the_wire_and_in_messages() {
        for status in MachineStatus::ALL {
            let json = serde_json::to_value(status).unwrap();
            assert_eq!(json, status.as_str());
            assert_eq!(serde_json::from_value::<MachineStatus>(json).unwrap(), status);
            assert_eq!(status.to_string().parse(), Ok(status));
        }
        assert!("tpm".parse::<KeyStoreKind>().is_err());
    }

    #[test]
    fn an_unknown_text_is_rejected_with_the_list_of_known_ones() {
        let error = serde_json::from_str::<KeyStoreKind>(r#""tpm""#)
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("unknown variant `tpm`, expected `secure-enclave` or `software`"),
            "{error}"
        );
        assert_eq!(list(&KeyStoreKind::ALL), "secure-enclave, software");
    }
}
