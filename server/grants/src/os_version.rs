//! Versions of operating systems, compared where possible.

use std::cmp::Ordering;

/// A version of numbers separated by dots. Missing numbers count as 0, so `26` equals `26.0`. A rapid security response
/// of macOS adds a letter: `26.3.1 (a)` is later than `26.3.1` and earlier than `26.3.1 (b)` and `26.3.2`.
#[derive(Debug, Clone)]
pub struct OsVersion {
    numbers: Vec<u64>,
    response: Option<char>,
}

impl OsVersion {
    /// Parses a version; `None` for any other text. This excludes pre-releases: vendors order them differently, and a
    /// wrong guess could grant a permission.
    pub fn parse(text: &str) -> Option<Self> {
        let (numbers, response) = match text.split_once(" (") {
            Some((numbers, response)) => (numbers, Some(letter(response.strip_suffix(')')?)?)),
            None => (text, None),
        };
        let numbers = numbers.split('.').map(number).collect::<Option<Vec<_>>>()?;
        Some(Self { numbers, response })
    }
}

impl PartialEq for OsVersion {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for OsVersion {}

impl PartialOrd for OsVersion {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for OsVersion {
    fn cmp(&self, other: &Self) -> Ordering {
        significant(&self.numbers)
            .cmp(significant(&other.numbers))
            .then_with(|| self.response.cmp(&other.response))
    }
}

fn letter(text: &str) -> Option<char> {
    let mut characters = text.chars();
    let letter = characters.next().filter(char::is_ascii_lowercase)?;
    characters.next().is_none().then_some(letter)
}

fn number(part: &str) -> Option<u64> {
    // `u64::from_str` accepts a leading plus sign.
    part.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    part.parse().ok()
}

fn significant(mut parts: &[u64]) -> &[u64] {
    while let Some((0, rest)) = parts.split_last() {
        parts = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("26.1", "26.1", Ordering::Equal)]
    #[case("26", "26.0.0", Ordering::Equal)]
    #[case("26.1", "26.10", Ordering::Less)]
    #[case("26.9", "26.10", Ordering::Less)]
    #[case("15.7.2", "26", Ordering::Less)]
    #[case("26.0.1", "26", Ordering::Greater)]
    #[case("026.1", "26.1", Ordering::Equal)]
    #[case("26.3.1 (a)", "26.3.1", Ordering::Greater)]
    #[case("26.3.1 (a)", "26.3.1 (a)", Ordering::Equal)]
    #[case("26.3.1 (a)", "26.3.1 (b)", Ordering::Less)]
    #[case("26.3.1 (c)", "26.3.2", Ordering::Less)]
    #[case("26.3 (a)", "26.3.0", Ordering::Greater)]
    fn versions_compare_number_by_number(#[case] left: &str, #[case] right: &str, #[case] expected: Ordering) {
        let (left, right) = (OsVersion::parse(left).unwrap(), OsVersion::parse(right).unwrap());
        assert_eq!(left.cmp(&right), expected);
        assert_eq!(right.cmp(&left), expected.reverse());
    }

    #[rstest]
    fn other_texts_are_not_versions(
        #[values(
            "",
            ".",
            "26.",
            ".1",
            "26..1",
            "26.1 beta",
            "26.1-rc1",
            "v26",
            "+26",
            "-1",
            " 26",
            "99999999999999999999",
            "26.3.1 (a",
            "26.3.1 ()",
            "26.3.1 (ab)",
            "26.3.1 (A)",
            "26.3.1 (1)",
            "26.3.1(a)",
            "26.3.1 (a) ",
            "26.0.1 (25A362)",
            " (a)"
        )]
        text: &str,
    ) {
        assert!(OsVersion::parse(text).is_none());
    }

    proptest! {
        #[test]
        fn text_from_outside_never_panics(text in ".*") {
            let _ = OsVersion::parse(&text);
        }

        #[test]
        fn trailing_zeros_change_nothing(parts in prop::collection::vec(0_u64..100, 1..5), zeros in 0_usize..4) {
            let text = parts.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
            let longer = format!("{text}{}", ".0".repeat(zeros));
            prop_assert!(OsVersion::parse(&text) == OsVersion::parse(&longer));
        }
    }
}
