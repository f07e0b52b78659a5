//! Checks the language of documentation, comments and messages: sentence length in Markdown, and words that have a plainer form.
//!
//! `prose.txt` lists the places that still have findings, with their number. A number may fall but not rise.
//! `SPILLWAY_UPDATE_PROSE=1 cargo test --test offline prose` lowers the numbers to what is left.

use std::{
    collections::BTreeMap,
    env,
    fmt::Write,
    fs,
    iter::repeat_n,
    mem,
    path::{Path, PathBuf},
};

/// CONTRIBUTING.md asks for 20. A program counts some sentences differently than a person.
const MOST_WORDS: usize = 25;

/// Markdown files in which both sentences and words are checked. Directories stand for the `.md` files in them.
const DOCUMENTS: &[&str] = &[
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "SECURITY.md",
    "benches/README.md",
    "certs/README.md",
    "docs",
    "docs/decisions",
    "fuzz/README.md",
];

/// Directories of Rust files in which the words of comments and string literals are checked.
const SOURCES: &[&str] = &["crates", "src"];

/// Words and phrases, and what to write instead. A trailing `*` stands for any end of the word.
const WORDS: &[(&str, &str)] = &[
    ("afresh", "again"),
    ("anew", "again; made anew: recreated"),
    ("are none", "do not exist"),
    ("are there no more", "no longer exist"),
    ("are to be", "must be, or will be"),
    ("as a rule", "usually"),
    ("at the least", "at least"),
    ("at the most", "at most"),
    ("comes to nothing", "fails"),
    ("cure", "fix"),
    ("haste", "urgent"),
    ("is none", "does not exist"),
    ("is there no more", "no longer exists"),
    ("is to be", "must be, or will be"),
    ("lest", "so that ... not"),
    ("looked after", "maintained"),
    ("mend*", "fix, repair"),
    ("no business of", "does not concern"),
    ("nobody", "no user, no replica, no pod: name the subject"),
    ("somebody", "a user, another client: name the subject"),
    ("tell of", "report"),
    ("tells of", "reports"),
    ("told apart", "distinguished"),
    ("told of", "reported"),
    ("what becomes of", "the result of"),
    ("whatever becomes of", "whatever the result of"),
    ("whoever", "a user who, the client that: name the subject"),
];

/// First words of a doc comment, and what to write instead.
const STARTS: &[(&str, &str)] = &[
    ("That", "a noun or a third-person verb"),
    ("What", "a noun or a third-person verb"),
    ("Whether", "Returns whether, or `true` if"),
    ("Who", "a noun"),
];

const PENDING: &str = "tests/offline/prose.txt";
const UPDATE: &str = "SPILLWAY_UPDATE_PROSE";

#[derive(Debug, PartialEq)]
struct Finding {
    line: usize,
    message: String,
}

/// A piece of text with the line on which it starts.
#[derive(Debug, PartialEq)]
struct Piece {
    line: usize,
    text: String,
    is_doc_comment: bool,
}

#[test]
fn documentation_and_messages_use_plain_english() {
    let found = findings();
    let pending = pending();
    if env::var_os(UPDATE).is_some() {
        fs::write(project(PENDING), lowered(&pending, &found)).unwrap();
        return;
    }
    let mut report = String::new();
    for (place, lines) in &found {
        let most = pending.get(place).copied().unwrap_or_default();
        if lines.len() > most {
            let _ = writeln!(report, "{place} has {} findings, {PENDING} permits {most}:", lines.len());
            report.extend(lines.iter().map(|line| format!("  {line}\n")));
        }
    }
    for place in pending.keys().filter(|place| !found.contains_key(*place)) {
        let _ = writeln!(report, "{place} has no findings: remove it from {PENDING} ({UPDATE}=1 does this)");
    }
    assert!(report.is_empty(), "\n{report}CONTRIBUTING.md has the rules.");
}

fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The permitted number of findings by place.
fn pending() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(project(PENDING)).unwrap();
    let entry = |line: &str| {
        let (count, place) = line.split_once(' ').unwrap_or_else(|| panic!("{PENDING}: expected COUNT PLACE: {line}"));
        (place.to_owned(), count.parse().unwrap_or_else(|_| panic!("{PENDING}: no number: {line}")))
    };
    text.lines().map(entry).collect()
}

/// The pending places with lower numbers, where there are fewer findings now.
fn lowered(pending: &BTreeMap<String, usize>, found: &BTreeMap<String, Vec<String>>) -> String {
    let counts = pending.iter().map(|(place, most)| (place, found.get(place).map_or(0, Vec::len).min(*most)));
    counts.filter(|(_, count)| *count > 0).fold(String::new(), |mut text, (place, count)| {
        let _ = writeln!(text, "{count} {place}");
        text
    })
}

/// The findings by place: a Markdown file, or a directory of Rust files.
fn findings() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::<String, Vec<String>>::new();
    let mut add = |place: String, file: &str, findings: Vec<Finding>| {
        if !findings.is_empty() {
            let lines = findings.into_iter().map(|Finding { line, message }| format!("{file}:{line}: {message}"));
            found.entry(place).or_default().extend(lines);
        }
    };
    for file in DOCUMENTS.iter().flat_map(|path| files(path, "md", false)) {
        add(file.clone(), &file, in_markdown(&fs::read_to_string(project(&file)).unwrap()));
    }
    for file in SOURCES.iter().flat_map(|path| files(path, "rs", true)) {
        add(place(&file), &file, in_rust(&fs::read_to_string(project(&file)).unwrap()));
    }
    found
}

/// `src/controller` for `src/controller/late/plan.rs`: a file that moves within a module changes no number.
fn place(file: &str) -> String {
    let parts: Vec<_> = file.split('/').collect();
    let depth = if parts[0] == "crates" { 4 } else { 2 };
    parts[..depth.min(parts.len() - 1)].join("/")
}

/// The file, or the files of this type in the directory. Empty if the path does not exist.
fn files(path: &str, extension: &str, is_recursive: bool) -> Vec<String> {
    let absolute = project(path);
    if absolute.is_file() {
        return vec![path.to_owned()];
    }
    let Ok(entries) = fs::read_dir(absolute) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.unwrap();
        let name = format!("{path}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            if is_recursive {
                found.extend(files(&name, extension, true));
            }
        } else if Path::new(&name).extension().is_some_and(|found| found == extension) {
            found.push(name);
        }
    }
    found.sort();
    found
}

fn in_markdown(text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Piece { line, text, .. } in blocks(text) {
        let text = without_code_and_links(&text);
        for sentence in sentences(&text) {
            let count = count_words(sentence);
            if count > MOST_WORDS {
                let message = format!("{count} words, at most {MOST_WORDS}: {sentence}");
                findings.push(Finding { line, message });
            }
        }
        findings.extend(words(line, &text));
    }
    findings
}

fn in_rust(source: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Piece { line, text, is_doc_comment } in texts(source) {
        let text = without_code_and_links(&text);
        let start = STARTS.iter().find(|(start, _)| is_doc_comment && starts_with_word(&text, start));
        findings.extend(start.map(|(start, better)| Finding {
            line,
            message: format!("the doc comment starts with \"{start}\": write {better}"),
        }));
        findings.extend(words(line, &text));
    }
    findings
}

fn starts_with_word(text: &str, word: &str) -> bool {
    text.strip_prefix(word).is_some_and(|rest| !rest.starts_with(char::is_alphanumeric))
}

fn words(line: usize, text: &str) -> Vec<Finding> {
    // Single spaces, and one at each end: a phrase is then a substring.
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let plain = text.to_lowercase().replace(|c: char| !is_part(c), " ");
    let plain = format!(" {} ", plain.split_whitespace().collect::<Vec<_>>().join(" "));
    let count = |word: &str| match word.strip_suffix('*') {
        Some(stem) => plain.matches(&format!(" {stem}")).count(),
        None => plain.matches(&format!(" {word} ")).count(),
    };
    let found = WORDS.iter().flat_map(|(word, better)| {
        let message = format!("\"{}\": write {better}", word.trim_end_matches('*'));
        repeat_n(message, count(word))
    });
    found.map(|message| Finding { line, message }).collect()
}

/// The paragraphs, list items, headings and table cells of a Markdown text, without code blocks and HTML comments.
fn blocks(text: &str) -> Vec<Piece> {
    let mut blocks: Vec<Piece> = Vec::new();
    let (mut is_code, mut is_comment, mut continues) = (false, false, false);
    for (line, raw) in (1..).zip(text.lines()) {
        let text = raw.trim();
        let piece = |text: &str| Piece { line, text: text.to_owned(), is_doc_comment: false };
        let is_fence = text.starts_with("```");
        is_comment |= text.starts_with("<!--");
        if is_fence || is_code || is_comment || text.is_empty() {
            is_code ^= is_fence;
            is_comment &= !text.ends_with("-->");
            continues = false;
        } else if text.starts_with('|') {
            blocks.extend(cells(text).iter().map(|cell| piece(cell)));
            continues = false;
        } else if let Some(heading) = heading(text) {
            blocks.push(piece(heading));
            continues = false;
        } else {
            match (item(text), blocks.last_mut()) {
                (None, Some(last)) if continues => last.text.extend([" ", text]),
                (item, _) => blocks.push(piece(item.unwrap_or(text))),
            }
            continues = true;
        }
    }
    blocks
}

fn heading(line: &str) -> Option<&str> {
    let heading = line.trim_start_matches('#');
    (heading.len() < line.len() && heading.starts_with(' ')).then(|| heading.trim())
}

/// The text of a list item or a quotation.
fn item(line: &str) -> Option<&str> {
    let bullet = ["- ", "* ", "> "].iter().find_map(|mark| line.strip_prefix(mark));
    let after_number = line.trim_start_matches(|c: char| c.is_ascii_digit());
    bullet.or_else(|| after_number.strip_prefix(". ").filter(|_| after_number.len() < line.len()))
}

/// The cells of a table row. A `|` in code or after a backslash separates no cells.
fn cells(row: &str) -> Vec<String> {
    let (mut cells, mut cell, mut is_code, mut previous) = (Vec::new(), String::new(), false, ' ');
    for c in row.chars() {
        is_code ^= c == '`';
        if c == '|' && !is_code && previous != '\\' {
            cells.push(mem::take(&mut cell));
        } else {
            cell.push(c);
        }
        previous = c;
    }
    cells.push(cell);
    let has_words = |cell: &String| cell.contains(char::is_alphanumeric);
    cells.into_iter().map(|cell| cell.trim().to_owned()).filter(has_words).collect()
}

/// The text with one word in place of each code span and link, and without emphasis.
fn without_code_and_links(text: &str) -> String {
    let mut rest = text;
    let mut plain = String::new();
    while let Some(start) = rest.find(['`', '[']) {
        let (before, from) = rest.split_at(start);
        plain += before;
        let length = code_or_link(from);
        plain += if length.is_some() { "CODE" } else { " " };
        rest = &from[length.unwrap_or(1)..];
    }
    plain += rest;
    plain.replace('*', "")
}

/// The length of the code span or link that a text begins with.
fn code_or_link(text: &str) -> Option<usize> {
    let ticks = text.len() - text.trim_start_matches('`').len();
    if ticks > 0 {
        return text[ticks..].find(&text[..ticks]).map(|end| end + 2 * ticks);
    }
    let middle = text.find("](").filter(|middle| !text[1..*middle].contains('['))?;
    text[middle..].find(')').map(|end| middle + end + 1)
}

fn sentences(text: &str) -> Vec<&str> {
    let begins = |c: char| c.is_uppercase() || c.is_ascii_digit() || matches!(c, '"' | '“' | '(');
    let mut sentences = Vec::new();
    let mut start = 0;
    for (at, _) in text.match_indices(['.', '!', '?']) {
        let after = text[at + 1..].trim_start_matches([')', '"', '”']);
        let next = after.trim_start();
        // A small letter follows an abbreviation.
        if next.is_empty() || (next.len() < after.len() && next.starts_with(begins)) {
            let end = text.len() - after.len();
            sentences.push(text[start..end].trim());
            start = end;
        }
    }
    sentences.push(text[start..].trim());
    sentences.retain(|sentence| !sentence.is_empty());
    sentences
}

fn count_words(sentence: &str) -> usize {
    sentence.split_whitespace().filter(|word| word.contains(char::is_alphanumeric)).count()
}

/// The comments and string literals of a Rust source. Consecutive comment lines are one text.
fn texts(source: &str) -> Vec<Piece> {
    let mut texts: Vec<Piece> = Vec::new();
    let mut rest = source;
    let mut line = 1;
    // The line after the last comment, and the mark of that comment.
    let mut open = (0, "");
    while let Some(c) = rest.chars().next() {
        let (length, text, mark) = if rest.starts_with("//") {
            let length = rest.find('\n').unwrap_or(rest.len());
            let mark = ["///", "//!", "//"].into_iter().find(|mark| rest.starts_with(mark)).unwrap_or_default();
            (length, Some(rest[mark.len()..length].trim().to_owned()), mark)
        } else if let Some((length, text)) = token(rest) {
            (length, text, "")
        } else {
            (c.len_utf8(), None, "")
        };
        if let Some(text) = text {
            let follows = !mark.is_empty() && open == (line, mark);
            match texts.last_mut() {
                Some(last) if follows => last.text.extend([" ", &text]),
                _ => texts.push(Piece { line, text, is_doc_comment: mark == "///" }),
            }
            open = (line + 1, mark);
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    texts
}

/// The length of the token that a source begins with, and its text if it is a string literal or a block comment.
fn token(source: &str) -> Option<(usize, Option<String>)> {
    let space = source.len() - source.trim_start().len();
    if space > 0 {
        return Some((space, None));
    }
    let found = |length: usize, text: &str| Some((length, Some(text.to_owned())));
    if source.starts_with("/*") {
        let end = source.find("*/").map_or(source.len(), |end| end + 2);
        return found(end, &source[2..end]);
    }
    if source.starts_with('"') {
        let end = end_of_string(source);
        return found((end + 1).min(source.len()), &source[1..end].replace("\\n", " ").replace('\\', " "));
    }
    if source.starts_with('\'') {
        return character(source).map(|length| (length, None));
    }
    let word = source.len() - source.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_').len();
    let (word, after) = source.split_at(word);
    if matches!(word, "r" | "br" | "cr") {
        let hashes = after.len() - after.trim_start_matches('#').len();
        if after[hashes..].starts_with('"') {
            let (start, close) = (word.len() + hashes + 1, format!("\"{}", "#".repeat(hashes)));
            let end = source[start..].find(&close)? + start;
            return found(end + close.len(), &source[start..end]);
        }
    }
    (!word.is_empty()).then_some((word.len(), None))
}

/// The position of the closing quote.
fn end_of_string(source: &str) -> usize {
    let mut is_escaped = false;
    let closing = source.char_indices().skip(1).find(|(_, c)| {
        let closes = *c == '"' && !is_escaped;
        is_escaped = *c == '\\' && !is_escaped;
        closes
    });
    closing.map_or(source.len(), |(at, _)| at)
}

/// The length of a character literal. `None` for a lifetime.
fn character(source: &str) -> Option<usize> {
    let inner = &source[1..];
    let content = if inner.starts_with('\\') {
        // The character after the backslash may be a quote.
        inner.get(2..)?.find('\'')? + 2
    } else {
        inner.chars().next()?.len_utf8()
    };
    inner.get(content..)?.starts_with('\'').then_some(content + 2)
}

#[test]
fn a_code_span_and_a_link_count_as_one_word() {
    let text = without_code_and_links("See `a b c` and [the other page](page.md#of-this). **Two** words.");
    let counts: Vec<_> = sentences(&text).into_iter().map(count_words).collect();
    assert_eq!(counts, [4, 2]);
    assert_eq!(sentences("Version 1.36 of e.g. this. Next."), ["Version 1.36 of e.g. this.", "Next."]);
}

#[test]
fn markdown_is_checked_item_by_item_and_cell_by_cell() {
    let text = "# Title\n\nOne\nparagraph.\n\n- item\n  continues\n1. first\n\n| a | `b|c` d |\n| --- | --- |\n\n\
        ```\ncode anew\n```\n<!-- anew -->\n";
    let found: Vec<_> = blocks(text).into_iter().map(|block| block.text).collect();
    assert_eq!(found, ["Title", "One paragraph.", "item continues", "first", "a", "`b|c` d"]);
    let long = format!("{} end. Short.", "word ".repeat(MOST_WORDS));
    assert_eq!(in_markdown(&long).len(), 1);
}

#[test]
fn only_comments_and_string_literals_of_rust_are_checked() {
    let source = [
        "/// What is",
        "/// none.",
        r"fn mend<'a>(c: char) -> bool { c == '\'' || c == '\n' } // mended `anew`",
        r#"let text = "told\n of"; let quote = '"'; let empty = "";"#,
        "let raw = r#\"nobody \"here\"\"#;",
    ];
    let found: Vec<_> =
        in_rust(&source.join("\n")).into_iter().map(|finding| (finding.line, finding.message)).collect();
    let expected = [(1, "What"), (1, "is none"), (3, "mend"), (4, "told of"), (5, "nobody")];
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for ((line, message), (expected_line, word)) in found.iter().zip(expected) {
        assert!(*line == expected_line && message.contains(&format!("\"{word}\"")), "{found:?}");
    }
}
