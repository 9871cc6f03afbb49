//! Documents from plain text or JSON lines.
//!
//! Input is untrusted and read as bytes. A line that cannot be used is listed as bad; the others are read.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::path::Path;

use erank_core::Document;
use serde::Deserialize;
use serde_json::Value;

use crate::error::CommandError;
use crate::text;

/// Maximum number of bytes in a line. Documents are truncated to some 10 kB later.
const MAX_LINE_BYTES: usize = 16 << 20;

/// The documents of a file or folder, and the lines that hold no document.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Input {
    pub(crate) documents: Vec<InputDocument>,
    pub(crate) bad_lines: Vec<BadLine>,
}

/// A document with the number of its line, from 1. In a folder, documents and bad lines are numbered
/// together.
#[derive(Debug, PartialEq)]
pub(crate) struct InputDocument {
    pub(crate) line: usize,
    pub(crate) id: Option<String>,
    pub(crate) text: String,
    pub(crate) score: Option<f64>,
}

impl InputDocument {
    /// Returns the document in the library's type.
    pub(crate) fn as_document(&self) -> Document<'_> {
        let mut document = Document::new(self.text.as_str());
        document.id = self.id.as_deref().map(Into::into);
        document.first_stage_score = self.score;
        document
    }

    /// Returns the document's id, or the number of its line.
    pub(crate) fn name(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.line.to_string())
    }
}

/// A line that holds no document.
#[derive(Debug, PartialEq)]
pub(crate) struct BadLine {
    pub(crate) line: usize,
    pub(crate) id: Option<String>,
    pub(crate) reason: String,
}

/// Reads the file or the folder `docs`, or standard input if it is `-`.
pub(crate) fn read(docs: &str) -> Result<Input, CommandError> {
    let input = if docs == "-" {
        if io::stdin().is_terminal() {
            text::note("Reading documents from the terminal, one per line. End with Ctrl-D.");
        }
        read_from(&mut io::stdin().lock())
    } else if Path::new(docs).is_dir() {
        read_folder(Path::new(docs))
    } else {
        File::open(docs).and_then(|file| read_from(&mut BufReader::new(file)))
    };
    input.map_err(|source| {
        let what = if docs == "-" { "standard input".into() } else { text::line(docs) };
        CommandError::Read { what, source }
    })
}

/// Reads all documents. Bad lines are part of the result.
///
/// # Errors
///
/// Returns any I/O error of the reader.
fn read_from(reader: &mut dyn BufRead) -> io::Result<Input> {
    let lines = Lines::of(reader).collect::<io::Result<Vec<Line>>>()?;
    let parse = if is_json_lines(&lines) { json_line } else { plain_line };
    let mut input = Input::default();
    for line in lines {
        let number = line.number;
        match line.text().map_err(|reason| (None, reason)).and_then(|text| parse(number, text)) {
            Ok(document) => input.documents.push(document),
            Err((id, reason)) => input.bad_lines.push(BadLine { line: number, id, reason }),
        }
    }
    Ok(input)
}

/// Reads the files of a folder and its subfolders, sorted by name.
///
/// Each `.txt` or `.md` file is a document with its path as id, and each `.jsonl` file holds documents. Other
/// files and names that begin with a dot are skipped. A file that cannot be read is listed as bad.
///
/// # Errors
///
/// Returns an error if the folder itself cannot be read.
fn read_folder(folder: &Path) -> io::Result<Input> {
    let mut input = Input::default();
    add_folder(&mut input, folder, folder)?;
    Ok(input)
}

/// Adds the files of `folder`, with ids relative to `root`.
fn add_folder(input: &mut Input, root: &Path, folder: &Path) -> io::Result<()> {
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        let name = path.strip_prefix(root).unwrap_or(&path).display().to_string();
        // Links to folders are not followed, because they may form a cycle.
        if entry.file_type()?.is_dir() {
            if let Err(error) = add_folder(input, root, &path) {
                input.add_bad(name, error.to_string());
            }
            continue;
        }
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("txt" | "md") => match read_text(&path) {
                Ok(text) => input.add(name, text, None),
                Err(reason) => input.add_bad(name, reason),
            },
            Some("jsonl") => {
                match File::open(&path).and_then(|file| read_from(&mut BufReader::new(file))) {
                    Ok(lines) => input.append(&name, lines),
                    Err(error) => input.add_bad(name, error.to_string()),
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Reads a whole file as one text, or returns the reason why it cannot be used.
fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_LINE_BYTES as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() > MAX_LINE_BYTES {
        return Err(format!("the file is longer than {} MiB", MAX_LINE_BYTES >> 20));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        format!("not UTF-8: byte {} of the file is invalid", valid + 1)
    })?;
    Ok(text.strip_prefix('\u{feff}').map(Into::into).unwrap_or(text))
}

impl Input {
    /// Returns the number of the next document or bad line.
    fn next_number(&self) -> usize {
        self.documents.len() + self.bad_lines.len() + 1
    }

    fn add(&mut self, id: String, text: String, score: Option<f64>) {
        let line = self.next_number();
        self.documents.push(InputDocument { line, id: Some(id), text, score });
    }

    fn add_bad(&mut self, id: String, reason: String) {
        let line = self.next_number();
        self.bad_lines.push(BadLine { line, id: Some(id), reason });
    }

    /// Adds the lines of the file `name`. Lines without an id get the name and the line number.
    fn append(&mut self, name: &str, lines: Input) {
        for InputDocument { line, id, text, score } in lines.documents {
            self.add(id.unwrap_or_else(|| format!("{name}:{line}")), text, score);
        }
        for BadLine { line, reason, .. } in lines.bad_lines {
            self.add_bad(format!("{name}:{line}"), reason);
        }
    }
}

/// A line that is not blank, or the reason why its bytes were dropped.
pub(crate) struct Line {
    /// The line number, from 1.
    pub(crate) number: usize,
    bytes: Result<Vec<u8>, String>,
}

impl Line {
    /// Returns the line's text, or the reason why it cannot be used.
    pub(crate) fn text(self) -> Result<String, String> {
        String::from_utf8(self.bytes?).map_err(|error| {
            let valid = error.utf8_error().valid_up_to();
            format!("not UTF-8: byte {} of the line is invalid", valid + 1)
        })
    }

    fn looks_like_json(&self) -> bool {
        let bytes = self.bytes.as_deref().unwrap_or_default();
        bytes.trim_ascii_start().starts_with(b"{")
    }
}

/// An iterator over the lines of a reader that are not blank.
pub(crate) struct Lines<R> {
    reader: R,
    /// The number of the previous line.
    number: usize,
}

impl<R: BufRead> Lines<R> {
    pub(crate) fn of(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    fn read(&mut self) -> io::Result<Option<Line>> {
        loop {
            self.number += 1;
            let number = self.number;
            let mut bytes = Vec::new();
            let limit = MAX_LINE_BYTES as u64 + 1;
            if self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            if bytes.len() > MAX_LINE_BYTES && bytes.last() != Some(&b'\n') {
                self.reader.skip_until(b'\n')?;
                let reason = format!("the line is longer than {} MiB", MAX_LINE_BYTES >> 20);
                return Ok(Some(Line { number, bytes: Err(reason) }));
            }
            if number == 1 && bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            bytes.truncate(bytes.trim_ascii_end().len());
            if !bytes.is_empty() {
                return Ok(Some(Line { number, bytes: Ok(bytes) }));
            }
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Returns whether most lines look like JSON. A few broken JSON lines, or a few text lines that begin with a
/// brace, do not change the result.
fn is_json_lines(lines: &[Line]) -> bool {
    lines.iter().filter(|line| line.looks_like_json()).count() * 2 > lines.len()
}

/// A document, or else its id, if known, and the error.
type Parsed = Result<InputDocument, (Option<String>, String)>;

fn plain_line(line: usize, text: String) -> Parsed {
    Ok(InputDocument { line, id: None, text, score: None })
}

/// The fields of a line, untyped so that each gets its own error message. Unknown fields are ignored.
#[derive(Deserialize)]
struct JsonLine {
    id: Option<Value>,
    text: Option<Value>,
    score: Option<Value>,
}

fn json_line(line: usize, text: String) -> Parsed {
    let fields: JsonLine = serde_json::from_str(&text).map_err(|error| (None, not_json(&error)))?;
    let id = fields.id.map_or(Ok(None), json_id).map_err(|reason| (None, reason))?;
    let text = match fields.text {
        Some(Value::String(text)) => text,
        Some(_) => return Err((id, "\"text\" is not a string".into())),
        None => return Err((id, "\"text\" is missing".into())),
    };
    let score = match fields.score {
        None | Some(Value::Null) => None,
        Some(Value::Number(score)) => score.as_f64(),
        Some(_) => return Err((id, "\"score\" is not a number".into())),
    };
    Ok(InputDocument { line, id, text, score })
}

/// Converts a JSON string or number to an id, and null to `None`.
pub(crate) fn json_id(value: Value) -> Result<Option<String>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(id) => Ok(Some(id)),
        Value::Number(id) => Ok(Some(id.to_string())),
        _ => Err("\"id\" is neither a string nor a number".into()),
    }
}

/// Returns serde_json's message without its line number, which is always 1.
pub(crate) fn not_json(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let message = message.split(" at line ").next().unwrap_or(&message);
    format!("bad JSON: {} (column {})", text::line(message), error.column())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Input {
        read_from(&mut &*bytes).expect("memory can be read")
    }

    fn texts(input: &Input) -> Vec<(usize, &str)> {
        input.documents.iter().map(|document| (document.line, document.text.as_str())).collect()
    }

    #[test]
    fn read_from_takes_plain_lines_as_documents() {
        let input = read(b"\xef\xbb\xbffirst\r\n\n  \n{second}\nthird \xff\n fourth");
        assert_eq!(texts(&input), [(1, "first"), (4, "{second}"), (6, " fourth")]);
        assert_eq!(input.documents[1].name(), "4");
        assert_eq!(input.bad_lines.len(), 1);
        assert_eq!((input.bad_lines[0].line, input.bad_lines[0].id.as_deref()), (5, None));
        assert!(input.bad_lines[0].reason.contains("byte 7"), "{}", input.bad_lines[0].reason);
    }

    #[test]
    fn read_from_parses_json_lines() {
        let input = read(
            b"{\"id\": \"a\", \"text\": \"x\", \"score\": 1.5, \"more\": []}\n\
              {\"id\": 7, \"text\": \"y\"}\n \n  {\"text\": \"\"}\n{\"id\": null, \"text\": \"z\", \"score\": null}",
        );
        let document = |line, id: Option<&str>, text: &str, score| InputDocument {
            line,
            id: id.map(Into::into),
            text: text.into(),
            score,
        };
        let expected = [
            document(1, Some("a"), "x", Some(1.5)),
            document(2, Some("7"), "y", None),
            document(4, None, "", None),
            document(5, None, "z", None),
        ];
        assert_eq!(input.documents, expected);
        assert_eq!(input.bad_lines, []);
    }

    #[test]
    fn read_from_lists_broken_json_lines_and_reads_the_others() {
        let good = "{\"text\": \"good\"}\n".repeat(20);
        let broken = [
            ("no JSON at all", "bad JSON"),
            ("{\"text\": \"cut off", "bad JSON"),
            ("{\"text\": \"x\"} trailing", "bad JSON"),
            ("[1]", "bad JSON"),
            ("{\"text\": \"\\ud800\"}", "bad JSON"),
            ("{\"text\": \"x\", \"score\": 1e999}", "bad JSON"),
            ("{\"id\": \"n\"}", "\"text\" is missing"),
            ("{\"id\": \"n\", \"text\": 3}", "\"text\" is not a string"),
            ("{\"id\": \"n\", \"text\": \"x\", \"score\": \"high\"}", "\"score\" is not a number"),
            ("{\"id\": [], \"text\": \"x\"}", "\"id\" is neither"),
        ];
        let lines: String = broken.iter().map(|(line, _)| format!("{line}\n")).collect();
        let input = read((lines + &good).as_bytes());
        assert_eq!(input.documents.len(), 20);
        assert_eq!(input.bad_lines.len(), broken.len());
        for (index, (bad, (_, reason))) in input.bad_lines.iter().zip(broken).enumerate() {
            assert_eq!(bad.line, index + 1);
            assert!(bad.reason.starts_with(reason), "{bad:?}");
            assert_eq!(bad.id.is_some(), reason.contains("text") || reason.contains("score"));
        }
        let nested = "{\"text\": ".to_owned() + &"[".repeat(100_000);
        assert_eq!(read(nested.as_bytes()).bad_lines.len(), 1);
    }

    #[test]
    fn read_from_drops_lines_beyond_the_limit() {
        let long = vec![b'x'; MAX_LINE_BYTES + 1];
        let bytes = [b"before\n", long.as_slice(), b"\nafter\n"].concat();
        let input = read(&bytes);
        assert_eq!(texts(&input), [(1, "before"), (3, "after")]);
        assert!(input.bad_lines[0].reason.contains("16 MiB"));
        let just_fits = [&long[1..], b"\n", b"after"].concat();
        assert_eq!(read(&just_fits).documents.len(), 2);
    }

    #[test]
    fn read_takes_files_of_a_folder_as_documents() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(path, bytes).expect("written");
        };
        file("b.txt", "\u{feff}first\nline".as_bytes());
        file("a/c.md", b"second");
        file("a/.hidden.txt", b"not this");
        file(".git/x.txt", b"nor this");
        file("a/image.png", b"\x89");
        file("bad.txt", b"caf\xe9");
        file("c.jsonl", b"{\"id\": \"x\", \"text\": \"third\"}\n{}\n{\"text\": \"fourth\"}");
        let path = folder.path().to_str().expect("UTF-8");
        let input = super::read(path).expect("it can be read");

        let found =
            input.documents.iter().map(|document| (document.name(), document.text.as_str()));
        let expected = [("a/c.md", "second"), ("b.txt", "first\nline"), ("x", "third")];
        let expected = expected.into_iter().chain([("c.jsonl:3", "fourth")]);
        let expected = expected.map(|(name, text)| (name.to_owned(), text));
        assert!(found.eq(expected), "{input:?}");
        let bad = input.bad_lines.iter().map(|bad| (bad.id.as_deref(), bad.reason.as_str()));
        let reasons = [
            (Some("bad.txt"), "not UTF-8: byte 4 of the file is invalid"),
            (Some("c.jsonl:2"), "\"text\" is missing"),
        ];
        assert!(bad.eq(reasons), "{input:?}");
        let lines = input.documents.iter().map(|document| document.line);
        let lines = lines.chain(input.bad_lines.iter().map(|bad| bad.line));
        let distinct: std::collections::BTreeSet<usize> = lines.collect();
        assert_eq!(distinct.len(), 6);
    }

    #[test]
    fn read_from_accepts_empty_input() {
        assert_eq!(read(b""), Input::default());
        assert_eq!(read(b"\n \r\n"), Input::default());
    }
}
