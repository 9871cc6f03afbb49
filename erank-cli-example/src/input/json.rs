//! JSON objects with untyped fields, and the values of a JSON array or of JSON objects that span lines.

use std::fmt;
use std::io::{self, BufRead};

use erank_core::LossyString;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::fields::{Fields, Value};
use super::lines::{MAX_RECORD_BYTES, too_long, utf8};
use crate::text;

/// Parses an object.
///
/// Numbers keep the characters that were written. A surrogate without its partner (`\ud83d`) becomes U+FFFD. The names
/// that Python writes for numbers that JSON lacks, `NaN` and `Infinity`, are read as null.
pub(super) fn object(json: &str) -> Result<Fields, String> {
    let with_nulls;
    let object: Object<'_> = match serde_json::from_str(json) {
        Ok(object) => object,
        Err(error) => {
            with_nulls = without_python_numbers(json).ok_or_else(|| not_json(&error))?;
            serde_json::from_str(&with_nulls).map_err(|_| not_json(&error))?
        }
    };
    let entries = object.0.into_iter();
    entries.map(|(name, raw)| Ok((name, value(raw.get())?))).collect::<Result<_, _>>().map(Fields)
}

/// Replaces `NaN`, `Infinity` and `-Infinity` outside strings by `null`. Returns `None` if there are none.
fn without_python_numbers(json: &str) -> Option<String> {
    if !json.contains("NaN") && !json.contains("Infinity") {
        return None;
    }
    let (mut replaced, mut rest) = (String::with_capacity(json.len()), json);
    while let Some(c) = rest.chars().next() {
        let names = ["NaN", "Infinity", "-Infinity"];
        let name = names.iter().find(|name| rest.starts_with(**name));
        let length = match c {
            '"' => Scanner::default().end(rest.as_bytes())?,
            _ => name.map_or(c.len_utf8(), |name| name.len()),
        };
        let (text, after) = rest.split_at(length);
        replaced.push_str(if name.is_some() { "null" } else { text });
        rest = after;
    }
    Some(replaced)
}

/// Parses the elements of an array, of which only the outer level is read.
pub(super) fn array(json: &str) -> Result<Vec<Value>, String> {
    let elements: Vec<&RawValue> = serde_json::from_str(json).map_err(|error| not_json(&error))?;
    elements.into_iter().map(|raw| value(raw.get())).collect()
}

/// Converts a value. Arrays, objects and booleans stay JSON.
fn value(json: &str) -> Result<Value, String> {
    Ok(match json.as_bytes().first() {
        Some(b'"') => Value::Text(string(json)?),
        Some(b'n') => Value::Null,
        Some(b'-' | b'0'..=b'9') => Value::Number(json.to_owned()),
        _ => Value::Other(json.to_owned()),
    })
}

/// Returns whether the text is one JSON value.
pub(super) fn is_value(json: &str) -> bool {
    serde_json::from_str::<&RawValue>(json).is_ok()
}

/// Parses a string.
pub(super) fn string(json: &str) -> Result<String, String> {
    serde_json::from_str(json).map(|LossyString(text)| text).map_err(|error| not_json(&error))
}

/// Returns serde_json's message, with the line only if it is not the first one.
pub fn not_json(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    let line = match error.line() {
        ..=1 => String::new(),
        line => format!("line {line}, "),
    };
    format!("bad JSON: {} ({line}column {})", text::line(message), error.column())
}

/// The fields of an object, with their values as they are written.
struct Object<'a>(Vec<(String, &'a RawValue)>);

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;

        impl<'de> Visitor<'de> for Entries {
            type Value = Object<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut entries = Vec::new();
                while let Some((LossyString(name), value)) = map.next_entry()? {
                    entries.push((name, value));
                }
                Ok(Object(entries))
            }
        }

        deserializer.deserialize_map(Entries)
    }
}

/// An iterator over the elements of JSON arrays, and over the values between the arrays.
///
/// The elements are read one at a time, so that a large array takes no memory. White space and commas separate them.
/// A string that holds a line end is broken, such as one with a stray quote. The next element is then the next line
/// that begins with a brace, indented as the broken element is.
pub(super) struct Elements<R> {
    reader: R,
    /// The number of the previous element.
    number: usize,
    in_array: bool,
    /// Number of white-space bytes before the element in its line, or `None` if the line has other bytes before it.
    indent: Option<usize>,
    ended: bool,
}

/// The JSON of an element, or the reason why it cannot be used.
pub(super) struct Element {
    /// The element's number, from 1.
    pub(super) number: usize,
    pub(super) json: Result<String, String>,
    /// Whether the file ends within the element.
    pub(super) is_cut: bool,
}

impl<R: BufRead> Elements<R> {
    pub(super) fn of(reader: R) -> Self {
        Self { reader, number: 0, in_array: false, indent: Some(0), ended: false }
    }

    fn read(&mut self) -> io::Result<Option<Element>> {
        loop {
            let Some(&byte) = self.reader.fill_buf()?.first() else {
                let reason = "the array does not end: its last element is missing or cut off";
                let cut_off = std::mem::take(&mut self.in_array);
                return Ok(cut_off.then(|| self.element(Err(reason.into()), false)));
            };
            self.indent = match (byte, self.indent) {
                (b'\n', _) => Some(0),
                (b' ' | b'\t', Some(bytes)) => Some(bytes + 1),
                (b'{', indent) => indent,
                _ => None,
            };
            match byte {
                // The record separator of RFC 7464, and the bytes of a byte order mark between two files.
                b' ' | b'\t' | b'\r' | b'\n' | b',' | 0x1e | 0xef | 0xbb | 0xbf => {}
                b'[' if !self.in_array => self.in_array = true,
                b']' => self.in_array = false,
                _ => {
                    let (json, is_cut) = self.value()?;
                    return Ok(Some(self.element(json, is_cut)));
                }
            }
            self.reader.consume(1);
        }
    }

    fn element(&mut self, json: Result<String, String>, is_cut: bool) -> Element {
        self.number += 1;
        Element { number: self.number, json, is_cut }
    }

    /// Reads a value to its end. Returns whether the file ends within it.
    fn value(&mut self) -> io::Result<(Result<String, String>, bool)> {
        let (mut bytes, mut length) = (Vec::new(), 0);
        let mut scanner = Scanner { is_strict: true, ..Scanner::default() };
        loop {
            let buffer = self.reader.fill_buf()?;
            let end = scanner.end(buffer);
            let part = &buffer[..end.unwrap_or(buffer.len())];
            length += part.len();
            if length <= MAX_RECORD_BYTES {
                bytes.extend_from_slice(part);
            }
            let (read, at_end) = (part.len(), end.is_some() || buffer.is_empty());
            self.reader.consume(read);
            if at_end {
                // An unfinished value is a part of the array that does not end.
                self.in_array &= end.is_some();
                let is_open = |line: &[u8]| line.trim_ascii_end() == b"{";
                let indent = self
                    .indent
                    .filter(|_| bytes.split(|byte| *byte == b'\n').next().is_some_and(is_open));
                if scanner.is_broken {
                    self.indent = Some(0);
                }
                if scanner.is_broken && scanner.depth > 0 {
                    self.skip_to_object(indent)?;
                }
                let json = match length {
                    ..=MAX_RECORD_BYTES => utf8(bytes, "element"),
                    _ => Err(too_long("element")),
                };
                return Ok((json, end.is_none()));
            }
        }
    }

    /// Skips the rest of a broken element: all bytes before a brace that begins a line, or follows a closing brace and
    /// a comma that do. Of an element over several lines, the brace must have the `indent`, because nested objects
    /// have a larger one.
    fn skip_to_object(&mut self, indent: Option<usize>) -> io::Result<()> {
        let (mut found, mut is_closed) = (Some(0), false);
        loop {
            let Some(&byte) = self.reader.fill_buf()?.first() else {
                self.in_array = false;
                return Ok(());
            };
            (found, is_closed) = match (byte, found) {
                (b'\n', _) => (Some(0), false),
                (b' ' | b'\t', Some(bytes)) if !is_closed => (Some(bytes + 1), false),
                (b' ' | b'\t' | b'}' | b',', Some(_)) => (found, true),
                (b'{', Some(bytes)) if indent.is_none_or(|indent| indent == bytes) => {
                    self.indent = found;
                    return Ok(());
                }
                _ => (None, false),
            };
            self.reader.consume(1);
        }
    }
}

impl<R: BufRead> Iterator for Elements<R> {
    type Item = io::Result<Element>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let element = self.read().transpose();
        self.ended = !matches!(element, Some(Ok(_)));
        element
    }
}

/// A scanner for the end of a value. Broken values end somewhere, and the parser refuses them.
#[derive(Default)]
pub(super) struct Scanner {
    depth: usize,
    in_string: bool,
    is_escaped: bool,
    /// Whether the value is neither an object, an array nor a string.
    is_bare: bool,
    /// Whether the value ends where no JSON goes on: at a line end within a string, and at a brace in an object that
    /// does not follow a colon, as after a closing brace that is missing.
    is_strict: bool,
    /// Whether a line end within a string ended the value.
    is_broken: bool,
    /// Whether the value is an object.
    is_object: bool,
    /// The previous byte outside strings that is not white space.
    previous: u8,
}

impl Scanner {
    /// Returns the position after the value's last byte, if it is in `bytes`, which follow those of the last call.
    pub(super) fn end(&mut self, bytes: &[u8]) -> Option<usize> {
        for (position, byte) in bytes.iter().enumerate() {
            if self.in_string {
                match byte {
                    b'\n' if self.is_strict => {
                        self.is_broken = true;
                        return Some(position + 1);
                    }
                    _ if self.is_escaped => self.is_escaped = false,
                    b'\\' => self.is_escaped = true,
                    b'"' => {
                        (self.in_string, self.previous) = (false, b'"');
                        if self.depth == 0 {
                            return Some(position + 1);
                        }
                    }
                    _ => {}
                }
                continue;
            }
            match byte {
                b',' | b']' | b'}' | b'\n' if self.depth == 0 && self.is_bare => {
                    return Some(position);
                }
                b'{' if self.is_strict
                    && self.is_object
                    && self.depth == 1
                    && self.previous != b':' =>
                {
                    return Some(position);
                }
                b'"' if !self.is_bare || self.depth > 0 => self.in_string = true,
                b'{' | b'[' => {
                    self.is_object |= self.depth == 0 && *byte == b'{';
                    self.depth += 1;
                }
                b'}' | b']' if self.depth <= 1 => return Some(position + 1),
                b'}' | b']' => self.depth -= 1,
                _ if self.depth == 0 => self.is_bare = true,
                _ => {}
            }
            if !byte.is_ascii_whitespace() {
                self.previous = *byte;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(json: &[u8]) -> Vec<Result<String, String>> {
        // A small buffer splits values everywhere.
        let reader = io::BufReader::with_capacity(3, json);
        Elements::of(reader).map(|element| element.expect("memory").json).collect()
    }

    fn texts(json: &str) -> Vec<String> {
        elements(json.as_bytes()).into_iter().map(|json| json.expect("whole")).collect()
    }

    #[test]
    fn elements_are_the_values_of_arrays_and_between_them() {
        assert_eq!(
            texts(r#"[{"a": [1, "]"]}, "x\"]", 7 ,null]"#),
            [r#"{"a": [1, "]"]}"#, r#""x\"]""#, "7 ", "null"]
        );
        assert_eq!(texts("{\n\"a\": 1\n}\n{\"b\":\n {}}\n"), ["{\n\"a\": 1\n}", "{\"b\":\n {}}"]);
        assert_eq!(texts("{}{}\n\u{feff}[[1],\n[2],]\n\x1e{}"), ["{}", "{}", "[1]", "[2]", "{}"]);
        assert_eq!(texts(" [ ]\n"), [""; 0]);
        assert_eq!(texts(""), [""; 0]);
    }

    #[test]
    fn elements_report_what_is_cut_off() {
        let cut = elements(br#"[{"a": 1}, {"b": "#);
        assert_eq!(cut.len(), 2);
        assert_eq!(cut[1].as_deref(), Ok(r#"{"b": "#));
        let open = elements(br#"[{"a": 1},"#);
        assert!(open[1].as_ref().is_err_and(|reason| reason.contains("does not end")), "{open:?}");
        let invalid = elements(b"[\"caf\xe9\", \"x\"]");
        assert!(invalid[0].as_ref().is_err_and(|reason| reason.contains("byte 5 of the element")));
        assert_eq!(invalid[1].as_deref(), Ok("\"x\""));
    }

    #[test]
    fn elements_after_a_broken_string_are_read() {
        for (text, expected) in [
            ("[\n{\"a\": \"x \" y\"},\n{\"b\": 1}, {\"c\": 2}\n]", 3),
            ("[{\"a\": \"C:\\\"},\n {\"b\": 1},\n{\"c\": 2}]\n{\"d\": 3}", 4),
            ("{\n \"a\": \"x \" y\",\n \"n\": [\n  {\n  }]\n}\n{\n \"b\": 1\n}\n{}", 3),
            ("[{\n\"a\": \"x \" y\"\n},{\n\"b\": 1\n}, {\n\"c\": 2}]", 3),
            ("[{\"a\": {\"x\":\n{}}, \"y\": 1\n,{\"b\": 1},\n{\"c\": 2}]", 3),
            ("{\n \"a\": \"x\"\n{\n \"b\": [{}, {}]\n}\n{}", 3),
            ("[\"x\\\",\n\"b\",\n\"c\"]", 3),
        ] {
            let found = elements(text.as_bytes());
            let valid = found.iter().flatten().filter(|json| is_value(json)).count();
            assert_eq!((found.len(), valid), (expected, expected - 1), "{found:?}");
        }
        let cut: Vec<bool> =
            Elements::of(&b"[{}, {\"a\": 1,"[..]).flatten().map(|element| element.is_cut).collect();
        assert_eq!(cut, [false, true]);
    }

    #[test]
    fn elements_drop_values_beyond_the_limit() {
        let long = format!("[\"{}\", \"after\"]", "x".repeat(MAX_RECORD_BYTES));
        let elements: Vec<_> = Elements::of(long.as_bytes()).flatten().collect();
        assert!(elements[0].json.as_ref().is_err_and(|reason| reason.contains("16 MiB")));
        assert_eq!(elements[1].json.as_deref(), Ok("\"after\""));
    }

    #[test]
    fn object_keeps_numbers_as_written_and_replaces_lone_surrogates() {
        let Fields(fields) = object(
            r#"{"a": 1e3, "b": 340282366920938463463374607431768211457, "c": -0.10,
                "\ud83d": "\ud83d\ude00 \ude00\ud83d \ud83d", "d": null, "e": {"f": [1, "\udfff"]}, "g": true}"#,
        )
        .expect("JSON");
        let number = |digits: &str| Value::Number(digits.into());
        let other = |json: &str| Value::Other(json.into());
        let expected = [
            ("a", number("1e3")),
            ("b", number("340282366920938463463374607431768211457")),
            ("c", number("-0.10")),
            ("\u{fffd}", Value::Text("\u{1f600} \u{fffd}\u{fffd} \u{fffd}".into())),
            ("d", Value::Null),
            ("e", other(r#"{"f": [1, "\udfff"]}"#)),
            ("g", other("true")),
        ];
        assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value)));
        for broken in
            ["", "{", "[]", "7", "{\"a\": 007}", "{\"a\": Nan}", "{\"a\": 1} {}", "{'a': 1}"]
        {
            assert!(object(broken).is_err_and(|reason| reason.starts_with("bad JSON")), "{broken}");
        }
        let python =
            object(r#"{"NaN": NaN, "b": "é NaN \"Infinity", "c": -Infinity, "d": [Infinity]}"#);
        let expected = [
            ("NaN", Value::Null),
            ("b", Value::Text("é NaN \"Infinity".into())),
            ("c", Value::Null),
            ("d", other("[null]")),
        ];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(python, Ok(Fields(expected.into())));
        let deep = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(object(&deep).is_ok());
    }
}
