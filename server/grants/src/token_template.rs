//! Templates for the tokens of one audience: parsed once for each version of the grants, and filled in for one machine.

use std::{collections::BTreeMap, ops::RangeInclusive};

use assay_protocol::admin_api::audiences::{AudienceForm, TokenForm};
use serde_json::{Map, Number, Value};
use time::Duration;

use super::{
    evaluation::Subject,
    placeholders::{Missing, Piece, Placeholder, TextError, Values},
};

/// The shortest and the longest life of a token, in seconds. Relying parties verify tokens offline, so a long one
/// outlives a decision against its machine.
const LIFETIME_SECONDS: RangeInclusive<u32> = 60..=3_600;
/// The longest life of a token whose audience has a life of its own.
pub const LONGEST_LIFETIME: Duration = Duration::HOUR;
/// The most members of claims at the top, and how deep they may be nested.
const MOST_CLAIMS: usize = 32;
const DEEPEST: usize = 4;
const LONGEST_NAME: usize = 256;
/// The most bytes of the claims as JSON, both as a template and filled in. Many servers accept headers of at most 8 KiB.
const LONGEST_CLAIMS: usize = 4_096;
/// The largest number that every reader of JSON reads exactly.
const MOST_EXACT: u64 = (1 << 53) - 1;
/// OpenID Connect Core, section 2.
const LONGEST_SUBJECT: usize = 255;

/// Claims that a template cannot set. First, those of every grant token. Then those that introspection adds (RFC 7662).
/// The rest name a party of the token. Amazon, for example, takes `azp` for the audience.
const RESERVED: [&str; 22] = [
    "iss",
    "sub",
    "aud",
    "iat",
    "nbf",
    "exp",
    "jti",
    "cnf",
    "scope",
    "permissions",
    "machine_id",
    "assurance",
    "active",
    "token_type",
    "client_id",
    "username",
    "azp",
    "act",
    "may_act",
    "nonce",
    "typ",
    "events",
];

/// How the tokens for one audience differ from the usual ones.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenTemplate {
    aud: AudienceForm,
    lifetime: Option<Duration>,
    subject: Option<Vec<Piece>>,
    claims: Vec<(String, Node)>,
}

/// What the token of one machine for one audience contains besides the usual claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenContents {
    /// The form of `aud`.
    pub aud: AudienceForm,
    /// How long the token is valid, if not as long as usual.
    pub lifetime: Option<Duration>,
    /// The subject, if not the SPIFFE id.
    pub subject: Option<String>,
    /// Further claims: the members of a JSON object, without its braces. An empty text means no further claims.
    pub further_claims: String,
}

impl TokenContents {
    /// The further claims by name.
    #[must_use]
    pub fn further_claims_map(&self) -> Map<String, Value> {
        // It was made from a map.
        serde_json::from_str(&format!("{{{}}}", self.further_claims)).unwrap_or_default()
    }
}

/// Why a template is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// The life of a token is out of bounds.
    #[error("token.lifetime_seconds must be from {} to {}", LIFETIME_SECONDS.start(), LIFETIME_SECONDS.end())]
    Lifetime,
    /// A text of the template.
    #[error("{place}: {source}")]
    Text {
        /// Where it is.
        place: String,
        /// What is wrong with it.
        source: TextError,
    },
    /// Two machines could have the same subject.
    #[error("token.subject must contain {{machine_id}}, which makes it unique")]
    SubjectIsNotUnique,
    /// Texts on both sides of the id: two machines could have the same subject.
    #[error(
        "token.subject may have labels, the serial number and the scope on one side of {{machine_id}} alone: two machines \
         could otherwise have the same subject"
    )]
    SubjectIsAmbiguous,
    /// Not a subject.
    #[error("token.subject must have 1 to {LONGEST_SUBJECT} visible ASCII characters")]
    Subject,
    /// Another claim has this name.
    #[error("token.claims.{0} is reserved: the server or a standard defines it")]
    Reserved(String),
    /// Not a name.
    #[error(
        "token.claims: a name must have 1 to {LONGEST_NAME} characters, without control characters or direction marks"
    )]
    Name,
    /// Too many names.
    #[error("token.claims may have at most {MOST_CLAIMS} claims")]
    TooMany,
    /// Too many levels.
    #[error("token.claims.{0} is nested deeper than {DEEPEST} levels")]
    TooDeep(String),
    /// A claim without a value.
    #[error("{0} is null or empty: give it a value, or leave it out")]
    Empty(String),
    /// Too long.
    #[error("token.claims may have at most {LONGEST_CLAIMS} bytes as JSON")]
    TooLong,
    /// Readers of JSON agree on whole numbers up to 2^53 alone (RFC 8259, section 6).
    #[error("{0} must be a whole number from -{MOST_EXACT} to {MOST_EXACT}: write other numbers as text")]
    Number(String),
    /// A form of another version.
    #[error("it has members or values that this version does not know")]
    Unknown,
}

/// A claim or a part of one.
#[derive(Debug, Clone, PartialEq)]
enum Node {
    Constant(Value),
    Text(Vec<Piece>),
    Permissions,
    List(Vec<Node>),
    Object(Vec<(String, Node)>),
}

impl TokenTemplate {
    /// Parses what an administrator wrote.
    pub fn parse(form: &TokenForm) -> Result<Self, TemplateError> {
        let lifetime = match form.lifetime_seconds {
            Some(seconds) if LIFETIME_SECONDS.contains(&seconds) => Some(Duration::seconds(seconds.into())),
            Some(_) => return Err(TemplateError::Lifetime),
            None => None,
        };
        Ok(Self {
            aud: form.aud.unwrap_or(AudienceForm::List),
            lifetime,
            subject: form.subject.as_deref().map(parse_subject).transpose()?,
            claims: parse_claims(&form.claims)?,
        })
    }

    /// Fills the template in for a machine with these permissions. The error has every reason why it cannot be.
    pub fn fill_in(&self, subject: &Subject<'_>, permissions: &[String]) -> Result<TokenContents, Vec<String>> {
        let mut values = Values::new(subject, permissions);
        let sub = self.subject.as_ref().map(|pieces| values.text(pieces));
        let claims: Map<_, _> = self
            .claims
            .iter()
            .map(|(name, node)| (name.clone(), node.fill_in(&mut values)))
            .collect();
        let mut reasons: Vec<String> = values.missing().map(Missing::to_string).collect();
        let claims = match claims.is_empty() {
            true => String::new(),
            false => Value::Object(claims).to_string(),
        };
        if reasons.is_empty() {
            if sub.as_deref().is_some_and(|sub| !is_subject(sub)) {
                reasons.push(format!(
                    "token: the subject must have at most {LONGEST_SUBJECT} visible ASCII characters"
                ));
            }
            if claims.len() > LONGEST_CLAIMS {
                reasons.push(format!("token: the claims have more than {LONGEST_CLAIMS} bytes"));
            }
        }
        if !reasons.is_empty() {
            return Err(reasons);
        }
        let members = claims.strip_prefix('{').and_then(|claims| claims.strip_suffix('}'));
        Ok(TokenContents {
            aud: self.aud,
            lifetime: self.lifetime,
            subject: sub,
            further_claims: members.unwrap_or_default().to_owned(),
        })
    }
}

impl Node {
    fn parse(value: &Value, place: &str, depth: usize) -> Result<Self, TemplateError> {
        if depth > DEEPEST {
            return Err(TemplateError::TooDeep(place.to_owned()));
        }
        let at = || format!("token.claims.{place}");
        Ok(match value {
            Value::Null => return Err(TemplateError::Empty(at())),
            Value::Number(number) if !is_exact(number) => return Err(TemplateError::Number(at())),
            Value::Bool(_) | Value::Number(_) => Self::Constant(value.clone()),
            Value::String(text) if text.is_empty() => return Err(TemplateError::Empty(at())),
            Value::String(text) if text == "{permissions}" => Self::Permissions,
            Value::String(text) => Self::Text(parse_text(text, at)?),
            Value::Array(items) => {
                let items = items.iter().enumerate();
                let parsed = items.map(|(number, item)| Self::parse(item, &format!("{place}.{number}"), depth + 1));
                Self::List(parsed.collect::<Result<_, _>>()?)
            }
            Value::Object(members) => {
                let parsed = members.iter().map(|(name, member)| {
                    check_name(name)?;
                    Ok((
                        name.clone(),
                        Self::parse(member, &format!("{place}.{name}"), depth + 1)?,
                    ))
                });
                Self::Object(parsed.collect::<Result<_, TemplateError>>()?)
            }
        })
    }

    fn fill_in<'a>(&'a self, values: &mut Values<'a>) -> Value {
        match self {
            Self::Constant(value) => value.clone(),
            Self::Text(pieces) => Value::String(values.text(pieces)),
            Self::Permissions => values.permissions().iter().cloned().map(Value::String).collect(),
            Self::List(items) => items.iter().map(|item| item.fill_in(values)).collect(),
            Self::Object(members) => {
                let filled_in = members.iter().map(|(name, node)| (name.clone(), node.fill_in(values)));
                Value::Object(filled_in.collect())
            }
        }
    }
}

fn parse_subject(text: &str) -> Result<Vec<Piece>, TemplateError> {
    if !is_subject(text) {
        return Err(TemplateError::Subject);
    }
    let pieces = parse_text(text, || "token.subject".to_owned())?;
    let is_id = |piece: &Piece| *piece == Piece::Value(Placeholder::MachineId);
    let mut around = pieces.split(is_id);
    let (Some(before), Some(after)) = (around.next(), around.next_back()) else {
        return Err(TemplateError::SubjectIsNotUnique);
    };
    // A label may hold any character, also another machine's id. With the id at a fixed distance from either end, the
    // subject still names one machine alone.
    match has_free_text(before) && has_free_text(after) {
        true => Err(TemplateError::SubjectIsAmbiguous),
        false => Ok(pieces),
    }
}

/// Whether these pieces have a value of any length. The levels of assurance are words of which none contains an id.
fn has_free_text(pieces: &[Piece]) -> bool {
    pieces.iter().any(|piece| match piece {
        Piece::Literal(_) | Piece::Value(Placeholder::MachineId | Placeholder::Assurance) => false,
        Piece::Value(Placeholder::SerialNumber | Placeholder::Scope | Placeholder::Label(_)) => true,
    })
}

fn is_subject(text: &str) -> bool {
    (1..=LONGEST_SUBJECT).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
}

fn parse_claims(claims: &BTreeMap<String, Value>) -> Result<Vec<(String, Node)>, TemplateError> {
    if claims.len() > MOST_CLAIMS {
        return Err(TemplateError::TooMany);
    }
    let mut parsed = Vec::with_capacity(claims.len());
    for (name, value) in claims {
        check_name(name)?;
        if is_reserved(name) {
            return Err(TemplateError::Reserved(name.clone()));
        }
        parsed.push((name.clone(), Node::parse(value, name, 1)?));
    }
    let length = serde_json::to_string(claims).map_or(usize::MAX, |claims| claims.len());
    (length <= LONGEST_CLAIMS)
        .then_some(parsed)
        .ok_or(TemplateError::TooLong)
}

/// Postgres writes numbers in its own way. A large one with an exponent would come back much longer than it was sent.
fn is_exact(number: &Number) -> bool {
    number
        .as_i64()
        .is_some_and(|number| number.unsigned_abs() <= MOST_EXACT)
}

/// Whether a name means a reserved claim to some reader. Go takes a name in another case for the same one, with the two
/// letters outside ASCII that fold to `s` and `k`.
fn is_reserved(name: &str) -> bool {
    let folded = name
        .replace('\u{17f}', "s")
        .replace('\u{212a}', "k")
        .to_ascii_lowercase();
    RESERVED.contains(&folded.as_str())
}

fn check_name(name: &str) -> Result<(), TemplateError> {
    let is_name = (1..=LONGEST_NAME).contains(&name.chars().count()) && !name.chars().any(char::is_control);
    is_name.then_some(()).ok_or(TemplateError::Name)
}

fn parse_text(text: &str, place: impl FnOnce() -> String) -> Result<Vec<Piece>, TemplateError> {
    Piece::parse_all(text).map_err(|source| TemplateError::Text { place: place(), source })
}

#[cfg(test)]
mod tests {
    use assay_protocol::machine::{Assurance, KeyStoreKind, MachineStatus, Posture};
    use proptest::prelude::*;
    use rstest::rstest;
    use serde_json::{from_value, json};
    use uuid::Uuid;

    use super::*;

    const MACHINE: Uuid = Uuid::from_u128(7);

    fn template(form: Value) -> Result<TokenTemplate, TemplateError> {
        TokenTemplate::parse(&from_value(form).unwrap())
    }

    fn fill_in(
        template: &TokenTemplate,
        labels: &BTreeMap<String, String>,
        serial_number: Option<&str>,
        assurance: Assurance,
    ) -> Result<TokenContents, Vec<String>> {
        let subject = Subject {
            machine_id: MACHINE,
            status: MachineStatus::Active,
            assurance,
            serial_number,
            labels,
            claimed_key_store: KeyStoreKind::Software,
            claimed_posture: &Posture::default(),
            attestation: None,
            sip_attestation: None,
            boot_attestation: None,
            is_contested: false,
            certificate_expires_at: None,
        };
        template.fill_in(&subject, &["read".to_owned(), "write".to_owned()])
    }

    fn claims(contents: &TokenContents) -> Value {
        Value::Object(contents.further_claims_map())
    }

    fn labels(labels: Value) -> BTreeMap<String, String> {
        from_value(labels).unwrap()
    }

    #[rstest]
    #[case("{labels.team}", json!("build"))]
    #[case("{labels.team}/{labels.a/b}-x", json!("build/c-x"))]
    #[case("{serial_number}", json!("C02XYZ"))]
    #[case("{assurance}", json!("verified"))]
    #[case("{scope}", json!("read write"))]
    #[case("{permissions}", json!(["read", "write"]))]
    #[case("{machine_id}", json!(MACHINE.to_string()))]
    #[case("{{labels.team}}", json!("{labels.team}"))]
    #[case("{{{labels.team}}}", json!("{build}"))]
    fn a_placeholder_becomes_the_machines_value(#[case] text: &str, #[case] expected: Value) {
        let template = template(json!({"claims": {"claim": text, "list": [text, 1, true]}})).unwrap();
        let labels = labels(json!({"team": "build", "a/b": "c"}));
        let contents = fill_in(&template, &labels, Some("C02XYZ"), Assurance::Verified).unwrap();
        assert_eq!(
            claims(&contents),
            json!({"claim": expected, "list": [expected, 1, true]})
        );
    }

    #[rstest]
    #[case(
        None,
        Assurance::Attested,
        "token: a serial number is required, and the machine has none"
    )]
    #[case(
        Some(""),
        Assurance::Verified,
        "token: a serial number is required, and the machine has none"
    )]
    #[case(
        Some("C02XYZ"),
        Assurance::Asserted,
        "token: a serial number of assurance verified is required, on record asserted"
    )]
    fn a_serial_number_below_verified_counts_as_missing(
        #[case] serial_number: Option<&str>,
        #[case] assurance: Assurance,
        #[case] reason: &str,
    ) {
        for form in [
            json!({"claims": {"a": "{serial_number}"}}),
            json!({"subject": "{serial_number}/{machine_id}"}),
        ] {
            let template = template(form).unwrap();
            let filled_in = fill_in(&template, &BTreeMap::new(), serial_number, assurance);
            assert_eq!(filled_in, Err(vec![reason.to_owned()]));
        }
    }

    #[test]
    fn every_missing_value_is_named_once() {
        let form =
            json!({"subject": "{labels.b}{machine_id}", "claims": {"x": ["{labels.a}", "{labels.b}", "{labels.a}"]}});
        let filled_in = fill_in(
            &template(form).unwrap(),
            &labels(json!({"b": ""})),
            None,
            Assurance::Asserted,
        );
        let lacks = |key: &str| format!("token: the label {key} is required, and the machine lacks it");
        assert_eq!(filled_in, Err(vec![lacks("a"), lacks("b")]));
    }

    #[rstest]
    #[case(json!({"site": "Köln"}), "token: the subject must have at most 255 visible ASCII characters")]
    #[case(json!({"site": "x".repeat(256)}), "token: the subject must have at most 255 visible ASCII characters")]
    fn a_subject_that_does_not_fit_is_a_reason(#[case] given: Value, #[case] reason: &str) {
        let template = template(json!({"subject": "{labels.site}/{machine_id}"})).unwrap();
        let filled_in = fill_in(&template, &labels(given), None, Assurance::Asserted);
        assert_eq!(filled_in, Err(vec![reason.to_owned()]));
    }

    /// A machine with the labels `x` and `ID2/y`, and the machine ID2 with `x/ID1` and `y`, had the same subject.
    #[rstest]
    #[case::labels_on_both_sides("{labels.a}/{machine_id}/{labels.b}", false)]
    #[case::serial_number_and_scope("{serial_number}:{machine_id}:{scope}", false)]
    #[case::beyond_two_ids("{labels.a}{machine_id}-{machine_id}{labels.b}", false)]
    #[case::before_the_id("a/{labels.a}/{labels.b}/{machine_id}", true)]
    #[case::after_the_id("{machine_id}/{labels.a}/{serial_number}", true)]
    #[case::assurance_beside_a_label("{assurance}/{machine_id}/{labels.a}", true)]
    #[case::between_two_ids("{machine_id}{labels.a}{machine_id}", true)]
    fn a_subject_has_texts_of_a_machine_on_one_side_of_its_id_alone(#[case] subject: &str, #[case] is_accepted: bool) {
        let parsed = template(json!({"subject": subject}));
        assert_eq!(parsed.is_ok(), is_accepted, "{parsed:?}");
        if !is_accepted {
            assert_eq!(parsed.unwrap_err(), TemplateError::SubjectIsAmbiguous);
        }
    }

    #[test]
    fn claims_that_grow_too_long_are_a_reason() {
        let many = vec!["{labels.site}"; 20];
        let template = template(json!({"claims": {"a": many}})).unwrap();
        assert!(fill_in(&template, &labels(json!({"site": "x"})), None, Assurance::Asserted).is_ok());
        let filled_in = fill_in(
            &template,
            &labels(json!({"site": "x".repeat(256)})),
            None,
            Assurance::Asserted,
        );
        assert_eq!(
            filled_in,
            Err(vec!["token: the claims have more than 4096 bytes".to_owned()])
        );
    }

    #[test]
    fn no_form_changes_nothing() {
        let contents = fill_in(
            &template(json!({})).unwrap(),
            &BTreeMap::new(),
            None,
            Assurance::Asserted,
        )
        .unwrap();
        let expected = TokenContents {
            aud: AudienceForm::List,
            lifetime: None,
            subject: None,
            further_claims: String::new(),
        };
        assert_eq!(contents, expected);
    }

    #[test]
    fn no_reserved_claim_can_be_set_at_the_top() {
        for name in RESERVED {
            let reserved = template(json!({"claims": {name: "x"}})).unwrap_err();
            assert_eq!(reserved, TemplateError::Reserved(name.to_owned()));
            assert!(template(json!({"claims": {"nested": {name: "x"}}})).is_ok());
        }
    }

    #[rstest]
    #[case::upper_case("AUD")]
    #[case::mixed_case("Permissions")]
    #[case::long_s("i\u{17f}s")]
    #[case::kelvin_sign("to\u{212a}en_type")]
    fn a_reserved_claim_in_another_case_is_reserved(#[case] name: &str) {
        let reserved = template(json!({"claims": {name: "x"}})).unwrap_err();
        assert_eq!(reserved, TemplateError::Reserved(name.to_owned()));
    }

    #[rstest]
    #[case::fraction(json!(1.5), false)]
    #[case::exponent(json!(1e19), false)]
    #[case::beyond_every_reader(json!(9_007_199_254_740_992_u64), false)]
    #[case::the_largest(json!(9_007_199_254_740_991_u64), true)]
    #[case::the_smallest(json!(-9_007_199_254_740_991_i64), true)]
    fn a_number_is_one_that_every_reader_reads_exactly(#[case] number: Value, #[case] is_accepted: bool) {
        for claims in [json!({"n": number}), json!({"n": [{"m": number}]})] {
            let parsed = template(json!({"claims": claims}));
            match is_accepted {
                true => assert!(parsed.is_ok(), "{parsed:?}"),
                false => assert!(matches!(parsed, Err(TemplateError::Number(_))), "{parsed:?}"),
            }
        }
    }

    fn any_template_text() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            "[a-z {}\"\\\\é]{0,6}",
            Just("{labels.team}".to_owned()),
            Just("{serial_number}".to_owned()),
            Just("{scope}".to_owned()),
            Just("{permissions}".to_owned()),
        ];
        prop::collection::vec(part, 1..4).prop_map(|parts| parts.concat())
    }

    proptest! {
        /// A value of a machine never changes the structure of a token.
        #[test]
        fn filled_in_claims_have_the_names_of_the_template(
            texts in prop::collection::btree_map("[a-z:/]{1,8}", any_template_text(), 0..6),
            team in ".{0,20}",
        ) {
            let Ok(template) = template(json!({"claims": texts})) else { return Ok(()) };
            let labels = BTreeMap::from([("team".to_owned(), team.clone())]);
            let Ok(contents) = fill_in(&template, &labels, Some("C02XYZ"), Assurance::Verified) else {
                let lacks_label = team.is_empty() && texts.values().any(|text| text.contains("{labels.team}"));
                prop_assert!(lacks_label);
                return Ok(());
            };
            let token: Value = serde_json::from_str(&format!("{{{}}}", contents.further_claims)).unwrap();
            let token = token.as_object().unwrap();
            prop_assert!(token.keys().eq(texts.keys()));
            for (name, value) in token {
                prop_assert!(value.is_array() || value.as_str().is_some_and(|text| !text.is_empty()), "{name}: {value}");
            }
        }

        #[test]
        fn a_text_without_braces_stays_as_it_is(text in "[^{}]{1,40}") {
            let template = template(json!({"claims": {"a": text}})).unwrap();
            let contents = fill_in(&template, &BTreeMap::new(), None, Assurance::Asserted).unwrap();
            prop_assert_eq!(claims(&contents), json!({"a": text}));
        }
    }
}
