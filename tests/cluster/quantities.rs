//! Spillway parses quantities as Kubernetes does.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use proptest::{
    prelude::*,
    sample::select,
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use spillway::pod::Quantity;

use crate::harness::control_plane;

const SAMPLE: usize = 8000;

/// Quantities and texts that are nearly quantities. Exponents have two digits at most: Go's parser takes minutes for more.
fn text() -> impl Strategy<Value = String> {
    let number = r"[+-]?([0-9]{1,25}(\.[0-9]{0,25})?|\.[0-9]{1,25})";
    let usual = r"[+-]?[0-9]{1,4}(\.[0-9]{1,3})?";
    // Where apimachinery switches from 64 bits to arbitrary precision, and where it caps values.
    let limits = select(vec![
        "999999999999999",
        "1000000000000000",
        "999999999999999999",
        "1000000000000000000",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775808",
        "8589934591.9999999999",
        "0.000000000000000000867361737988403547205962240695953369140625", // 2^-60
    ]);
    let number = prop_oneof![3 => usual, 3 => number, 1 => limits.prop_map(str::to_owned)];
    let suffix = "([numkMGTPE]|[KMGTPE]i|[eE][+-]?[0-9]{1,2})?";
    prop_oneof![
        7 => (number, suffix).prop_map(|(number, suffix)| number + &suffix),
        3 => "[+-]?[0-9.]{0,3}[eEinumkKMGTP]{0,3}[+-]?[0-9]{0,2}",
        1 => "[+. 0-9inumkKMGTP-]{0,12}",
        1 => "[^\n]{0,8}",
    ]
}

/// Returns the value of each text in nanos, or nothing if Go's parser refuses it.
fn asked_of_kubernetes(texts: &[String]) -> Vec<Option<String>> {
    let mut child = Command::new(&control_plane().program)
        .arg("quantity")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let lines: String = texts.iter().flat_map(|text| [text, "\n"]).collect();
    let writer = std::thread::spawn(move || stdin.write_all(lines.as_bytes()).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(output.status.success(), "{output:?}");
    let answers = String::from_utf8(output.stdout).unwrap();
    answers.lines().map(|answer| (answer != "error").then(|| answer.to_owned())).collect()
}

#[test]
fn a_quantity_has_the_value_that_kubernetes_gives_it() {
    let mut runner = TestRunner::deterministic();
    let texts: Vec<_> = (0..SAMPLE).map(|_| text().new_tree(&mut runner).unwrap().current()).collect();
    let answers = asked_of_kubernetes(&texts);
    assert_eq!(answers.len(), texts.len());
    for (text, answer) in texts.iter().zip(&answers) {
        // Both sides cap values at 2^127-1 nanos.
        let expected = answer.as_ref().map(|nanos| Quantity::parse(&format!("{nanos}n")).unwrap());
        assert_eq!(Quantity::parse(text).ok(), expected, "{text:?} is {answer:?} nanos");
    }
    let accepted = answers.iter().flatten().count();
    assert!(
        (SAMPLE / 4..SAMPLE * 3 / 4).contains(&accepted),
        "{accepted} accepted: the sample is too thin on one side"
    );
}
