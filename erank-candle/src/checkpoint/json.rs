//! JSON files, read as Python's `json` module reads them.

use std::borrow::Cow;

use serde::de::DeserializeOwned;

use crate::error::LoadError;

/// Parses a JSON file. `Infinity`, `-Infinity`, `NaN` and numbers beyond the range of F64, which Python reads and
/// writes, become strings: they are no error in a field that nothing reads, and an error in a number. A surrogate without
/// its other half becomes U+FFFD.
///
/// # Errors
/// Returns [`LoadError::Invalid`] with the file and the reason.
pub(crate) fn parse<T: DeserializeOwned>(file: &str, bytes: &[u8]) -> Result<T, LoadError> {
    let text = str::from_utf8(bytes)
        .map_err(|error| LoadError::unparsable(file, "it is not UTF-8 text", error))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text)
        .or_else(|error| {
            let quoted = quote_special_numbers(text);
            match (replace_lone_surrogates(&quoted), &quoted) {
                (Cow::Borrowed(_), Cow::Borrowed(_)) => Err(error),
                (changed, _) => serde_json::from_str(&changed),
            }
        })
        .map_err(|error| {
            let problem = match error.is_data() {
                true => "it does not have the expected form",
                false => "it cannot be parsed; if it is damaged, download it again",
            };
            LoadError::unparsable(file, problem, error)
        })
}

/// Puts numbers that Rust's parser does not read in quotes.
fn quote_special_numbers(text: &str) -> Cow<'_, str> {
    let mut quoted = String::new();
    let mut copied = 0;
    let mut position = 0;
    while let Some(rest) = text.get(position..).filter(|rest| !rest.is_empty()) {
        position += match rest.as_bytes()[0] {
            b'"' => string_length(rest).unwrap_or(rest.len()),
            b'-' | b'0'..=b'9' | b'N' | b'I' => {
                let is_word = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
                let word = &rest[..rest.find(|c| !is_word(c)).unwrap_or(rest.len())];
                let number = word.parse::<f64>();
                let is_special = ["NaN", "Infinity", "-Infinity"].contains(&word)
                    || (word.ends_with(|c: char| c.is_ascii_digit())
                        && number.is_ok_and(f64::is_infinite));
                if is_special {
                    quoted += &text[copied..position];
                    quoted += &format!("\"{word}\"");
                    copied = position + word.len();
                }
                word.len().max(1)
            }
            _ => rest.chars().next().map_or(1, char::len_utf8),
        };
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    quoted += &text[copied..];
    Cow::Owned(quoted)
}

/// Replaces escapes of surrogates that are not those of a pair by that of U+FFFD.
fn replace_lone_surrogates(text: &str) -> Cow<'_, str> {
    const ESCAPE: usize = r"\uD800".len();
    let unit = |text: &str| u16::from_str_radix(text.strip_prefix(r"\u")?.get(..4)?, 16).ok();
    let mut replaced = String::new();
    let mut copied = 0;
    let mut position = 0;
    while let Some(escape) = text[position..].find('\\').map(|offset| position + offset) {
        let next = |offset| text.get(escape + offset..).and_then(unit);
        position = match (next(0), next(ESCAPE)) {
            (Some(0xd800..0xdc00), Some(0xdc00..0xe000)) => escape + 2 * ESCAPE,
            (Some(0xd800..0xe000), _) => {
                replaced += &text[copied..escape];
                replaced += r"\uFFFD";
                copied = escape + ESCAPE;
                copied
            }
            // The escaped character may be a backslash.
            _ => {
                text[escape + 1..].chars().next().map_or(text.len(), |c| escape + 1 + c.len_utf8())
            }
        };
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    replaced += &text[copied..];
    Cow::Owned(replaced)
}

/// Returns the length of the string at the beginning of a text, with its quotes, or `None` if the string has no end.
pub(crate) fn string_length(text: &str) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut position = 1;
    loop {
        match bytes.get(position)? {
            b'\\' => position += 2,
            byte if *byte == bytes[0] => return Some(position + 1),
            _ => position += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn parse_reads_what_python_writes() {
        for (text, expected) in [
            (
                r#"{"a": Infinity, "b": [NaN, -Infinity]}"#,
                json!({"a": "Infinity", "b": ["NaN", "-Infinity"]}),
            ),
            (r#"{"a": 1e999, "b": -1.5e400}"#, json!({"a": "1e999", "b": "-1.5e400"})),
            (r#"{"a": "NaN \" Infinity", "é": NaN}"#, json!({"a": "NaN \" Infinity", "é": "NaN"})),
            (r#"{"a": 1, "a": 2}"#, json!({"a": 2})),
            ("\u{feff}[1e5, -3]", json!([1e5, -3])),
            (
                r#"["a\ud800é", "\\ud800", "\uDC00\ud83d\ude00\ud83d"]"#,
                json!(["a\u{fffd}é", r"\ud800", "\u{fffd}😀\u{fffd}"]),
            ),
            (r#"[NaN, "\udfff"]"#, json!(["NaN", "\u{fffd}"])),
        ] {
            assert_eq!(parse::<Value>("x", text.as_bytes()).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn parse_names_the_file_and_the_reason() {
        for text in ["{", "[NaN", "[NaNs]", "[Infinity8]", "[--1]", "", "[\"\\", "[1e]", "[nan]"] {
            let error = parse::<Value>("the file", text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains("the file") && error.contains("parsed"), "{error}");
        }
        let error = parse::<Value>("f", b"\xff\xfe{\0").expect_err("UTF-16").to_string();
        assert!(error.contains("UTF-8"), "{error}");
    }
}
