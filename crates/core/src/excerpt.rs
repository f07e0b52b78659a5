//! Excerpts of text from users, for messages, annotations and log lines.
//!
//! A user chooses the text, so it can be long, start another log line, or change a terminal. An excerpt can do neither.

use std::borrow::Cow;

/// Maximum characters of one word, such as a name. Label values have the same maximum.
pub const WORD: usize = 63;

/// Maximum characters of a message, such as an error.
pub const MESSAGE: usize = 256;

/// Maximum characters of a detail that can list several names.
pub const DETAIL: usize = 512;

/// Returns at most `max` characters of `text`, and an ellipsis if it is longer.
///
/// Control characters and characters that change the direction of text are escaped as in Rust: `\n`, `\u{1b}`. The cost
/// does not depend on the length of `text`.
pub fn excerpt(text: &str, max: usize) -> Cow<'_, str> {
    // A text has at most as many characters as bytes. Most texts are short.
    let cut = if text.len() > max { text.char_indices().nth(max) } else { None };
    let end = cut.map_or(text.len(), |(end, _)| end);
    let kept = text.get(..end).unwrap_or_default();
    if end == text.len() && !kept.contains(is_unsafe) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(kept.len() + '…'.len_utf8());
    for c in kept.chars() {
        if is_unsafe(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if end < text.len() {
        out.push('…');
    }
    Cow::Owned(out)
}

/// Cuts a text that is too long, and escapes it, as [`excerpt`] does.
pub fn shorten(text: &mut String, max: usize) {
    if let Cow::Owned(short) = excerpt(text, max) {
        *text = short;
    }
}

/// Returns whether a log viewer or terminal can take the character as a command: a control character, a separator of
/// lines, an invisible character, or one that changes the direction of text (Unicode Standard Annex 9, section 2).
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_that_is_short_and_plain_is_unchanged() {
        for text in ["", "web", "ünïcödé, \"quoted\" \\ and …"] {
            assert!(matches!(excerpt(text, WORD), Cow::Borrowed(same) if same == text), "{text}");
        }
        assert_eq!(excerpt(&"é".repeat(WORD), WORD), "é".repeat(WORD));
    }

    #[test]
    fn long_text_is_cut_at_a_character() {
        assert_eq!(excerpt("ééé", 2), "éé…");
        assert_eq!(excerpt(&"x".repeat(1 << 20), MESSAGE).chars().count(), MESSAGE + 1);
    }

    #[test]
    fn text_cannot_start_a_line_or_command_a_terminal() {
        assert_eq!(
            excerpt("a\nb\u{1b}[31m\u{202e}c\u{200b}\u{2028}", WORD),
            "a\\nb\\u{1b}[31m\\u{202e}c\\u{200b}\\u{2028}"
        );
    }

    #[test]
    fn a_shortened_text_is_its_excerpt() {
        let mut text = "a\nbcd".to_owned();
        shorten(&mut text, 3);
        assert_eq!(text, "a\\nb…");
        shorten(&mut text, WORD);
        assert_eq!(text, "a\\nb…");
    }
}
