//! Texts with placeholders in braces, such as `build-{labels.site}`. A doubled brace stands for the brace itself.

use std::{collections::BTreeSet, fmt};

use assay_protocol::machine::Assurance;

use super::evaluation::Subject;

/// A part of a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Piece {
    Literal(String),
    Value(Placeholder),
}

/// What a placeholder stands for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Placeholder {
    MachineId,
    SerialNumber,
    Assurance,
    Scope,
    Label(String),
}

/// Why a text is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TextError {
    /// No such placeholder.
    #[error(
        "{{{0}}} is not a placeholder; there are {{machine_id}}, {{serial_number}}, {{assurance}}, {{scope}} and \
         {{labels.KEY}}"
    )]
    Unknown(String),
    /// The placeholder for a list within a text.
    #[error("{{permissions}} is a list and must be the whole text of a claim; within a text, use {{scope}}")]
    Permissions,
    /// A brace without its partner.
    #[error("a brace is not closed or not opened; write {{{{ or }}}} for the brace itself")]
    Brace,
}

/// What a machine lacks for the tokens of an audience, in words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Missing {
    Label(String),
    SerialNumber,
    VerifiedSerialNumber(Assurance),
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Label(key) => write!(
                formatter,
                "token: the label {key} is required, and the machine lacks it"
            ),
            Self::SerialNumber => write!(
                formatter,
                "token: a serial number is required, and the machine has none"
            ),
            Self::VerifiedSerialNumber(present) => write!(
                formatter,
                "token: a serial number of assurance {} is required, on record {present}",
                Assurance::Verified
            ),
        }
    }
}

impl Piece {
    /// Parses a text.
    pub(super) fn parse_all(text: &str) -> Result<Vec<Self>, TextError> {
        let (mut pieces, mut literal) = (Vec::new(), String::new());
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            let (before, from) = rest.split_at(at);
            literal.push_str(before);
            if let Some(after) = from.strip_prefix("{{") {
                literal.push('{');
                rest = after;
            } else if let Some(after) = from.strip_prefix("}}") {
                literal.push('}');
                rest = after;
            } else {
                let inner = from.strip_prefix('{').ok_or(TextError::Brace)?;
                let (name, after) = inner.split_once('}').ok_or(TextError::Brace)?;
                if !literal.is_empty() {
                    pieces.push(Self::Literal(std::mem::take(&mut literal)));
                }
                pieces.push(Self::Value(Placeholder::parse(name)?));
                rest = after;
            }
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            pieces.push(Self::Literal(literal));
        }
        Ok(pieces)
    }
}

impl Placeholder {
    fn parse(name: &str) -> Result<Self, TextError> {
        Ok(match name {
            "machine_id" => Self::MachineId,
            "serial_number" => Self::SerialNumber,
            "assurance" => Self::Assurance,
            "scope" => Self::Scope,
            "permissions" => return Err(TextError::Permissions),
            _ => match name.strip_prefix("labels.") {
                Some(key) if !key.is_empty() && key.bytes().all(is_label_byte) => Self::Label(key.to_owned()),
                _ => return Err(TextError::Unknown(name.chars().take(64).collect())),
            },
        })
    }
}

/// As the keys of labels are.
fn is_label_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'/' | b'-')
}

/// The values of one machine, and which of them were asked for in vain.
pub(super) struct Values<'a> {
    subject: &'a Subject<'a>,
    permissions: &'a [String],
    missing: BTreeSet<Missing>,
}

impl<'a> Values<'a> {
    pub(super) fn new(subject: &'a Subject<'a>, permissions: &'a [String]) -> Self {
        Self {
            subject,
            permissions,
            missing: BTreeSet::new(),
        }
    }

    pub(super) fn permissions(&self) -> &'a [String] {
        self.permissions
    }

    pub(super) fn missing(&self) -> impl Iterator<Item = &Missing> {
        self.missing.iter()
    }

    /// The text with its values. If one is missing, the text is incomplete and [`Self::missing`] says why.
    pub(super) fn text(&mut self, pieces: &[Piece]) -> String {
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Literal(literal) => text.push_str(literal),
                Piece::Value(placeholder) => match self.value(placeholder) {
                    Ok(value) => text.push_str(&value),
                    Err(missing) => {
                        self.missing.insert(missing);
                    }
                },
            }
        }
        text
    }

    /// An empty value counts as missing. A relying party could take an empty claim for one that matches everything.
    fn value(&self, placeholder: &Placeholder) -> Result<String, Missing> {
        let given = |value: Option<&str>, missing: Missing| {
            value
                .filter(|value| !value.is_empty())
                .map(str::to_owned)
                .ok_or(missing)
        };
        match placeholder {
            Placeholder::MachineId => Ok(self.subject.machine_id.to_string()),
            Placeholder::Assurance => Ok(self.subject.assurance.to_string()),
            Placeholder::Scope => Ok(self.permissions.join(" ")),
            Placeholder::Label(key) => {
                let value = self.subject.labels.get(key).map(String::as_str);
                given(value, Missing::Label(key.clone()))
            }
            // Below this, the serial number is only what the machine says of itself.
            Placeholder::SerialNumber if self.subject.assurance < Assurance::Verified => {
                Err(Missing::VerifiedSerialNumber(self.subject.assurance))
            }
            Placeholder::SerialNumber => given(self.subject.serial_number, Missing::SerialNumber),
        }
    }
}
