//! How long a piece of JSON is, found out without reading it.

use wide::u8x16;

/// How long the number, `true`, `false` or `null` is that a text starts with.
pub(super) fn word_length(text: &[u8]) -> usize {
    let is_in_a_word = |byte: &&u8| matches!(byte, b'+' | b'-' | b'.') || byte.is_ascii_alphanumeric();
    text.iter().take_while(is_in_a_word).count()
}

/// How long the string is that a text starts with; nothing if it does not end.
pub(super) fn string_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    loop {
        at += plain_run(text.get(at..)?);
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => at += 2,
            _ => return None,
        }
    }
}

/// How many bytes come first that a string holds as they are: no quote, no backslash, no control character.
pub(super) fn plain_run(text: &[u8]) -> usize {
    const LAST_CONTROL: u8 = b' ' - 1;
    let mut rest = text;
    while let Some((chunk, after)) = rest.split_first_chunk() {
        let chunk = u8x16::new(*chunk);
        let is = |byte| chunk.simd_eq(u8x16::splat(byte));
        let is_control = chunk.min(u8x16::splat(LAST_CONTROL)).simd_eq(chunk);
        let ends = (is(b'"') | is(b'\\') | is_control).to_bitmask();
        if ends != 0 {
            return text.len() - rest.len() + ends.trailing_zeros() as usize;
        }
        rest = after;
    }
    let is_plain = |byte: &&u8| !matches!(byte, b'"' | b'\\' | ..=LAST_CONTROL);
    text.len() - rest.len() + rest.iter().take_while(is_plain).count()
}

/// How long the map or list is that a text starts with; nothing if it does not end.
///
/// Blocks of 64 bytes become masks with a bit for each byte, as in simdjson (Langdale and Lemire, "Parsing Gigabytes of JSON per
/// Second", section 3.1): there is hardly a branch left that could be predicted wrongly.
pub(super) fn nested_length(text: &[u8]) -> Option<usize> {
    let (mut depth, mut strings) = (0, Strings::default());
    let mut rest = text;
    while !rest.is_empty() {
        let block = rest.first_chunk().copied().unwrap_or_else(|| padded(rest));
        let outside = !strings.within(&block);
        let opening = (positions(&block, b'{') | positions(&block, b'[')) & outside;
        let closing = (positions(&block, b'}') | positions(&block, b']')) & outside;
        if closing.count_ones() < depth {
            depth = depth + opening.count_ones() - closing.count_ones();
        } else {
            let mut brackets = opening | closing;
            while brackets != 0 {
                let first = lowest(brackets);
                depth = if opening & first != 0 { depth + 1 } else { depth - 1 };
                if depth == 0 {
                    return Some(text.len() - rest.len() + first.trailing_zeros() as usize + 1);
                }
                brackets ^= first;
            }
        }
        rest = rest.get(block.len()..).unwrap_or_default();
    }
    None
}

/// Where strings are in a text, block by block.
#[derive(Default)]
struct Strings {
    /// All ones where the last block ended within a string.
    go_on: u64,
    /// One where the last block ended with a backslash that escapes what comes first in the next.
    escape: u64,
}

impl Strings {
    /// The bytes of the next block that stand in strings, with the first quote and without the last.
    fn within(&mut self, block: &[u8; 64]) -> u64 {
        let mut escaped = self.escape;
        let mut backslashes = positions(block, b'\\') & !escaped;
        self.escape = 0;
        while backslashes != 0 {
            let first = lowest(backslashes);
            escaped |= first << 1;
            self.escape = first >> 63;
            backslashes &= !(first | escaped);
        }
        // Each bit becomes whether an odd number of quotes stands up to it.
        let mut within = positions(block, b'"') & !escaped;
        for distance in [1, 2, 4, 8, 16, 32] {
            within ^= within << distance;
        }
        within ^= self.go_on;
        self.go_on = 0_u64.wrapping_sub(within >> 63);
        within
    }
}

/// Where a byte stands in a block.
fn positions(block: &[u8; 64], byte: u8) -> u64 {
    let wanted = u8x16::splat(byte);
    let quarters = block.as_chunks().0.iter().rev();
    quarters.fold(0, |bits, quarter| bits << 16 | u64::from(u8x16::new(*quarter).simd_eq(wanted).to_bitmask()))
}

fn lowest(bits: u64) -> u64 {
    bits & bits.wrapping_neg()
}

/// The rest of a text as a block: there is no quote and no bracket in zeros.
#[cold]
fn padded(rest: &[u8]) -> [u8; 64] {
    let mut block = [0; 64];
    block.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    block
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_length_does_not_depend_on_where_the_blocks_are_cut() {
        let values = [
            r#"{"a":[{},[]],"b":{"c":"}"}}"#,
            r#"["\\","\\\\",{"\"":"]"}]"#,
            r#"["\"]","\\\"]","\\\\"]"#,
            r#"["ünïcödé]","{"]"#,
            "[[[[[[[[[[]]]]]]]]]]",
        ];
        for value in values {
            for before in 0..70 {
                // A string of that length: each byte of the value comes to stand at the edge of a block once.
                let text = format!(r#"["{}",{value}]"#, "x".repeat(before));
                for after in ["", ",", r#"]]}}""#, &"x]".repeat(80)] {
                    let longer = format!("{text}{after}");
                    assert_eq!(nested_length(longer.as_bytes()), Some(text.len()), "{longer}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_end_has_no_length() {
        for text in ["[", "{", r#"["]"#, r#"["\"]"#, r#"["a",[]"#, r#"{"a":{}"#] {
            assert_eq!(nested_length(text.as_bytes()), None, "{text}");
        }
        for text in [r#"""#, r#""a"#, r#""\"#, r#""\""#, "\"a\nb\""] {
            assert_eq!(string_length(text.as_bytes()), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_plain_run_ends_where_a_search_byte_by_byte_ends_it(
            text in "([a-z~ ü\u{7f}]{0,20}[\"\\\\\u{0}-\u{1f}]?){0,4}",
        ) {
            let ends = |byte| matches!(byte, b'"' | b'\\' | ..b' ');
            prop_assert_eq!(plain_run(text.as_bytes()), text.bytes().position(ends).unwrap_or(text.len()));
        }
    }
}
