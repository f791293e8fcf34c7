//! Tests how `.ci/check-instructions` compares a count of instructions with the baseline. CI runs the count itself.

use std::process::Command;

use rstest::rstest;

#[rstest]
#[case::as_it_was(1000, true)]
#[case::three_percent_more(1030, true)]
#[case::three_percent_less(970, true)]
#[case::more_than_that(1031, false)]
#[case::less_than_that(969, false)]
fn a_count_may_differ_from_its_figure_by_3_percent_either_way(#[case] counted: u32, #[case] is_fine: bool) {
    let figure = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        figure.path(),
        "# A comment.\ninstructions = 1000\nrustc = rustc 1.95.0\n",
    )
    .unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../.ci/check-instructions");
    let mut comparison = Command::new(script);
    comparison
        .arg("--counted")
        .arg(counted.to_string())
        .arg("--figure")
        .arg(figure.path());
    let output = comparison.output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!is_fine)), "{text}");
    // The message gives the command that updates the figure.
    assert_eq!(text.contains(".ci/check-instructions --write"), !is_fine, "{text}");
}
