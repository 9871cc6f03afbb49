//! Escaping of untrusted text.
//!
//! Documents, ids, reasoning and names from model folders may contain characters that move the cursor,
//! change a terminal's colours or title, or reverse the direction of the following text. These characters
//! are printed as escapes.

use std::borrow::Cow;
use std::io::{self, Write};
use std::path::Path;

/// Returns the text on one line. White space becomes single spaces, and dangerous characters become escapes.
pub fn line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for word in text.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().flat_map(Shown::of));
    }
    line
}

/// Returns a path as a [`line`](fn@line).
pub fn path(path: &Path) -> String {
    line(&path.display().to_string())
}

/// Returns the first 1,000 characters of a text as one [`line`](fn@line).
pub fn beginning(text: &str) -> String {
    // More than a terminal's width.
    const LONGEST: usize = 1000;
    line(
        text.trim_start()
            .char_indices()
            .nth(LONGEST)
            .map_or(text, |(end, _)| &text.trim_start()[..end]),
    )
}

/// Returns the text with its line breaks. Other dangerous characters become escapes.
pub fn block(text: &str) -> String {
    let shown = |c| if c == '\t' { Shown::Same(' ') } else { Shown::of(c) };
    let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
    let lines: Vec<String> = lines.map(|line| line.chars().flat_map(shown).collect()).collect();
    lines.join("\n")
}

/// Escapes dangerous characters in JSON. JSON itself allows some of them, such as U+202E.
pub fn json(json: &str) -> Cow<'_, str> {
    if !json.contains(is_dangerous) {
        return Cow::Borrowed(json);
    }
    let mut safe = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if is_dangerous(c) {
            // serde_json writes no such character outside strings, so an escape is valid here.
            let mut units = [0; 2];
            safe.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Prints a diagnostic to standard error. Errors are ignored, because there is no other place to report them.
pub fn note(message: &str) {
    let _ = writeln!(io::stderr(), "{}", block(message));
}

/// The printed form of a character.
enum Shown {
    Same(char),
    Escaped(std::char::EscapeUnicode),
    Nothing,
}

impl Shown {
    fn of(c: char) -> Self {
        if is_dangerous(c) { Self::Escaped(c.escape_unicode()) } else { Self::Same(c) }
    }
}

impl Iterator for Shown {
    type Item = char;

    fn next(&mut self) -> Option<char> {
        match self {
            Self::Same(c) => {
                let c = *c;
                *self = Self::Nothing;
                Some(c)
            }
            Self::Escaped(escape) => escape.next(),
            Self::Nothing => None,
        }
    }
}

/// Returns whether a character controls the terminal or the surrounding text.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_joins_lines_and_escapes_control_characters() {
        assert_eq!(line("  a\tb\r\n\nc  "), "a b c");
        assert_eq!(line("\u{1b}[31mred\u{1b}]0;title\u{7}"), r"\u{1b}[31mred\u{1b}]0;title\u{7}");
        assert_eq!(line("\u{9b}2J \u{202e}evil\u{200b}"), r"\u{9b}2J \u{202e}evil\u{200b}");
        assert_eq!(line("naïve 東京 🦀"), "naïve 東京 🦀");
    }

    #[test]
    fn beginning_cuts_long_text() {
        let long = format!("  {}", "é".repeat(100_000));
        assert_eq!(beginning(&long).chars().count(), 1000);
        assert_eq!(beginning(" a b "), "a b");
    }

    #[test]
    fn block_keeps_line_breaks() {
        assert_eq!(block("a\r\n\n\tb\u{1b}\rc"), "a\n\n b\\u{1b}\\u{d}c");
    }

    #[test]
    fn json_escapes_without_changing_the_value() {
        let text = "a\u{9b}b\u{202e}c\u{e0041}d\u{1b}é";
        let written = serde_json::to_string(text).expect("a string");
        let safe = json(&written);
        assert!(!safe.contains(is_dangerous), "{safe}");
        assert_eq!(serde_json::from_str::<String>(&safe).expect("JSON"), text);
        assert!(matches!(json("{}"), Cow::Borrowed("{}")));
    }
}
