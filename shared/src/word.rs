//! Enums with one text per value: on the wire, in the database and in messages. Unlike [`names`](crate::names), they
//! reject an unknown text, and each value has its own documentation.

/// The text is not a value of the enum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown value")]
pub struct UnknownWord;

macro_rules! words {
    (
        $(#[$meta:meta])*
        pub enum $name:ident { $($(#[$doc:meta])* $value:ident = $text:tt,)+ }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
        #[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
        pub enum $name { $($(#[$doc])* #[serde(rename = $text)] $value,)+ }

        impl $name {
            /// Every value, in the order of declaration.
            pub const ALL: [Self; [$($text),+].len()] = [$(Self::$value),+];

            /// The text of this value.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
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
    };
}
pub(crate) use words;

#[cfg(test)]
mod tests {
    use crate::machine::{KeyStoreKind, MachineStatus};

    #[test]
    fn the_text_is_the_same_on_the_wire_and_in_messages() {
        for status in MachineStatus::ALL {
            assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
            assert_eq!(status.to_string().parse(), Ok(status));
        }
        assert!("tpm".parse::<KeyStoreKind>().is_err());
    }
}
