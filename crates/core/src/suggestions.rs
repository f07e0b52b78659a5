//! Suggestions in error messages: the accepted words, and the nearest one.

use crate::excerpt::{WORD, excerpt};

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
    Suggester::default().read_word(word, from_word, words)
}

/// Returns the candidate that is nearest to a mistyped word, or `None` if no candidate is similar.
///
/// A word that is longer than any name in Kubernetes is similar to none, because a comparison costs time in proportion
/// to its length.
pub fn nearest(word: &str, candidates: &[&str]) -> Option<String> {
    if word.len() > WORD {
        return None;
    }
    let lower = word.to_lowercase();
    let scored =
        candidates.iter().map(|candidate| (strsim::jaro_winkler(&lower, &candidate.to_lowercase()), candidate));
    let (score, best) = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (score > 0.8).then(|| (*best).to_owned())
}

/// Returns `; did you mean "…"?` with the nearest candidate, or an empty string if no candidate is similar.
pub fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    Suggester::default().did_you_mean(word, candidates)
}

/// Looks for the nearest accepted word once. Later mistakes get no suggestion.
///
/// The search is the most expensive part of a message, and a user chooses the number of mistakes.
#[derive(Debug, Default)]
pub struct Suggester {
    is_used: bool,
}

impl Suggester {
    /// Returns the nearest candidate, as [`nearest`] does, if this is the first search.
    pub fn nearest(&mut self, word: &str, candidates: &[&str]) -> Option<String> {
        if std::mem::replace(&mut self.is_used, true) { None } else { nearest(word, candidates) }
    }

    /// Returns a suggestion for a message, as [`did_you_mean`] does, if this is the first search.
    pub fn did_you_mean(&mut self, word: &str, candidates: &[&str]) -> String {
        self.nearest(word, candidates).map(|meant| format!("; did you mean \"{meant}\"?")).unwrap_or_default()
    }

    /// Reads a word as one of the accepted values.
    ///
    /// # Errors
    ///
    /// Returns a message with the accepted words if `word` is not one of them.
    pub fn read_word<T>(&mut self, word: &str, from_word: fn(&str) -> Option<T>, words: &[&str]) -> Result<T, String> {
        from_word(word).ok_or_else(|| {
            let hint = self.did_you_mean(word, words);
            format!("unknown value \"{}\", expected {}{hint}", excerpt(word, WORD), one_of(words))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_mistake_gets_a_suggestion() {
        let mut suggester = Suggester::default();
        assert_eq!(suggester.did_you_mean("prefr", &["late", "prefer"]), "; did you mean \"prefer\"?");
        assert_eq!(suggester.did_you_mean("prefr", &["late", "prefer"]), "");
    }

    #[test]
    fn a_word_longer_than_any_name_gets_no_suggestion() {
        assert_eq!(nearest(&"a".repeat(WORD), &[&"a".repeat(WORD)]), Some("a".repeat(WORD)));
        assert_eq!(nearest(&"a".repeat(WORD + 1), &[&"a".repeat(WORD + 1)]), None);
    }
}
