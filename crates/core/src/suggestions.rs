//! Suggestions in error messages: the accepted words, and the nearest one.

/// Formats a list of words for a message: `"a", "b" or "c"`.
pub fn one_of(words: &[&str]) -> String {
    match words {
        [] => "nothing".to_owned(),
        [only] => format!("\"{only}\""),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(|word| format!("\"{word}\"")).collect();
            format!("{} or \"{last}\"", first.join(", "))
        }
    }
}

/// Reads a word as one of the accepted values.
///
/// # Errors
///
/// Returns a message with the accepted words if `word` is not one of them.
pub fn read_word<T>(word: &str, from_word: fn(&str) -> Option<T>, words: &[&str]) -> Result<T, String> {
    from_word(word).ok_or_else(|| {
        let hint = did_you_mean(word, words);
        format!("unknown value \"{word}\", expected {}{hint}", one_of(words))
    })
}

/// Returns the candidate that is nearest to a mistyped word, or `None` if no candidate is similar.
pub fn nearest(word: &str, candidates: &[&str]) -> Option<String> {
    let lower = word.to_lowercase();
    let score = |candidate: &&str| strsim::jaro_winkler(&lower, &candidate.to_lowercase());
    let best = candidates.iter().copied().max_by(|a, b| score(a).total_cmp(&score(b)))?;
    (score(&best) > 0.8).then(|| best.to_owned())
}

/// Returns `; did you mean "…"?` with the nearest candidate, or an empty string if no candidate is similar.
pub fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    nearest(word, candidates).map(|meant| format!("; did you mean \"{meant}\"?")).unwrap_or_default()
}
