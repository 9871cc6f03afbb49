//! The reader of documents for all commands: plain text, JSON lines, JSON arrays, CSV and TSV, compressed or not, from
//! files, folders and standard input.
//!
//! ```text
//! file ─▶ decode: UTF-8 ─▶ records: lines, rows, elements ─▶ fields: id, title, text, score
//! ```
//!
//! Input is untrusted and read as bytes. A record that cannot be used is listed as bad; the others are read.

mod advice;
mod decode;
mod fields;
mod folder;
mod json;
mod lines;
mod records;
mod sample;
mod table;
mod tabs;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::{self, IsTerminal, Read};
use std::path::Path;

use erank_core::Document;

use crate::text;
use folder::{DocumentFile, Folder};
use lines::MAX_RECORD_BYTES;

pub use decode::{decode, open};
pub use fields::{Absent, Columns, FieldNames, Fields, Value};
pub use json::not_json;
pub use lines::Lines;
pub use records::{Content, Expected, Record, Records, is_json};

/// Maximum size of all texts, ids and reasons that [`read`] keeps in memory.
const MAX_BYTES: usize = 4 << 30;
/// Maximum number of documents and bad lines that [`read`] keeps in memory.
const MAX_DOCUMENTS: usize = 10_000_000;

/// The documents of a file or folder, and the lines that hold no document.
#[derive(Debug, PartialEq)]
pub struct Input {
    /// In the order of the file.
    pub documents: Vec<InputDocument>,
    /// In the order of the file.
    pub bad_lines: Vec<BadLine>,
    /// The word for what the numbers of documents and bad lines count.
    pub unit: &'static str,
}

impl Default for Input {
    fn default() -> Self {
        Self { documents: Vec::new(), bad_lines: Vec::new(), unit: "line" }
    }
}

/// A document with the number of its line, or of its element of a JSON array, from 1. In a folder, documents and bad
/// lines are numbered together.
#[derive(Debug, PartialEq)]
pub struct InputDocument {
    /// The number, from 1.
    pub line: usize,
    /// The id, never empty.
    pub id: Option<String>,
    /// The text, with the title before it if there is one.
    pub text: String,
    /// The score of an earlier stage of the search.
    pub score: Option<f64>,
}

impl InputDocument {
    /// Returns the document in the library's type.
    pub fn as_document(&self) -> Document<'_> {
        let mut document = Document::new(self.text.as_str());
        document.id = self.id.as_deref().map(Into::into);
        document.first_stage_score = self.score;
        document
    }

    /// Returns the document's id, or the number of its line.
    pub fn name(&self) -> String {
        self.id.clone().unwrap_or_else(|| self.line.to_string())
    }
}

/// A line that holds no document.
#[derive(Debug, PartialEq)]
pub struct BadLine {
    /// The number, as a document has it.
    pub line: usize,
    /// The id, if it is known.
    pub id: Option<String>,
    /// Why it holds no document.
    pub reason: String,
}

/// A record of a file of documents.
pub type Found = Result<InputDocument, BadLine>;

/// What is done with each record. An error ends the reading.
pub type Each<'a> = &'a mut dyn FnMut(Found) -> Result<(), String>;

/// What a file or folder has besides documents.
#[derive(Debug, Default)]
pub struct LeftOut {
    /// The word for a record.
    pub unit: &'static str,
    /// Number of entries that were left out, by reason.
    counts: BTreeMap<&'static str, usize>,
    /// How files were read, if other readings were possible.
    remarks: BTreeSet<String>,
}

impl LeftOut {
    fn add(&mut self, reason: &'static str, count: usize) {
        if count > 0 {
            *self.counts.entry(reason).or_default() += count;
        }
    }

    /// Says what was left out of `what`, if anything was, and how it was read.
    pub fn note(&self, what: &str) {
        const MAX_REMARKS: usize = 5;
        for remark in self.remarks.iter().take(MAX_REMARKS) {
            text::note(&format!("{what}: {remark}."));
        }
        if let Some(more) = self.remarks.len().checked_sub(MAX_REMARKS + 1) {
            text::note(&format!("{what}: {} more files have such remarks.", more + 1));
        }
        if !self.counts.is_empty() {
            let counts = self.counts.iter().map(|(reason, count)| format!("{count} {reason}"));
            let counts: Vec<String> = counts.collect();
            text::note(&format!("{what}: left out {}.", counts.join(", ")));
        }
    }
}

/// Reads the file or the folder `docs`, or standard input if it is `-`. Says what was left out, and which ids occur
/// twice.
///
/// # Errors
///
/// Returns the error of [`for_each`], or an error if the documents would fill the memory.
pub fn read(docs: &str, names: &FieldNames) -> io::Result<Input> {
    let what = shown(docs);
    let mut input = Input::default();
    let mut bytes = 0;
    let mut keep = |found: Found| -> Result<(), String> {
        bytes += size(&found);
        match found {
            Ok(document) => input.documents.push(document),
            Err(bad) => input.bad_lines.push(bad),
        }
        check_size(bytes, input.documents.len() + input.bad_lines.len())
    };
    let left_out = if docs == "-" {
        if io::stdin().is_terminal() {
            text::note("Reading documents from the terminal, one per line. End with Ctrl-D.");
        }
        for_each_of_reader(io::stdin().lock(), Expected::default(), names, &mut keep)
    } else {
        for_each(Path::new(docs), names, false, &mut keep)
    }?;
    input.unit = left_out.unit;
    left_out.note(&what);
    input.note_duplicates();
    Ok(input)
}

/// Returns the value of `--docs` for messages.
pub fn shown(docs: &str) -> String {
    if docs == "-" { "standard input".into() } else { text::line(docs) }
}

/// Returns the bytes of a record's strings.
fn size(found: &Found) -> usize {
    let (id, text) = match found {
        Ok(InputDocument { id, text, .. }) => (id, text),
        Err(BadLine { id, reason, .. }) => (id, reason),
    };
    id.as_ref().map_or(0, String::len) + text.len()
}

/// Returns an error if the documents would fill the memory.
fn check_size(bytes: usize, documents: usize) -> Result<(), String> {
    let problem = if bytes > MAX_BYTES {
        format!("the documents have more than {} GiB of texts and ids", MAX_BYTES >> 30)
    } else if documents > MAX_DOCUMENTS {
        format!("there are more than {MAX_DOCUMENTS} documents")
    } else {
        return Ok(());
    };
    Err(problem + ", which are kept in memory; give the candidates of a search engine")
}

/// Calls `each` with the documents and the bad records of a file or folder, in order.
///
/// If `has_ids`, a line that is neither JSON nor a row has an id, a tab and a text.
///
/// # Errors
///
/// Returns an error if the file or folder itself cannot be read, or [`io::ErrorKind::InvalidData`] with the number of
/// the record for which `each` returns an error.
pub fn for_each(
    docs: &Path,
    names: &FieldNames,
    has_ids: bool,
    each: Each<'_>,
) -> io::Result<LeftOut> {
    if docs.is_dir() {
        return for_each_of_folder(folder::list(docs)?, names, has_ids, each);
    }
    each_record(Records::open(docs, names.columns(), has_ids)?, names, each)
}

/// Calls `each` with the documents and the bad records of a reader, in order.
///
/// # Errors
///
/// Returns the errors of [`for_each`].
pub fn for_each_of_reader(
    reader: impl Read,
    expected: Expected<'_>,
    names: &FieldNames,
    each: Each<'_>,
) -> io::Result<LeftOut> {
    each_record(Records::new(decode(reader)?, names.columns(), expected)?, names, each)
}

fn each_record(
    mut records: Records<'_>,
    names: &FieldNames,
    each: Each<'_>,
) -> io::Result<LeftOut> {
    let unit = records.unit();
    let mut absent = names.absent();
    for record in records.by_ref() {
        let record = record?;
        let number = record.number;
        if let Ok(Content::Fields(fields)) = &record.content {
            absent.see(fields);
        }
        each(found(record, names)).map_err(|problem| at(unit, number, problem))?;
    }
    let mut left_out = LeftOut { unit, ..LeftOut::default() };
    left_out.add("blank lines", records.blank());
    left_out.add("repeated headers", records.repeated_headers());
    left_out.remarks.extend(records.remarks());
    left_out.remarks.extend(absent.remarks());
    Ok(left_out)
}

fn at(unit: &str, number: usize, problem: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{unit} {number}: {problem}"))
}

/// Returns the document of a record.
fn found(record: Record, names: &FieldNames) -> Found {
    let line = record.number;
    let document = match record.content {
        Ok(Content::Text(text)) => Ok(InputDocument { line, id: None, text, score: None }),
        Ok(Content::Named { id, text }) => {
            let id = Some(id).filter(|id| !id.is_empty());
            Ok(InputDocument { line, id, text, score: None })
        }
        Ok(Content::Fields(fields)) => names.document(line, fields),
        Err(reason) => Err((None, reason)),
    };
    document.map_err(|(id, reason)| BadLine { line, id, reason })
}

/// Calls `each` with the documents of a folder's files. A file that cannot be read is a bad record. Records without an
/// id get the file's name and their number.
fn for_each_of_folder(
    folder: Folder,
    names: &FieldNames,
    has_ids: bool,
    each: Each<'_>,
) -> io::Result<LeftOut> {
    let mut left_out = LeftOut { unit: "document", counts: folder.left_out, ..LeftOut::default() };
    let mut number = 0;
    let mut each = |found: Found| {
        number += 1;
        let found = match found {
            Ok(document) => Ok(InputDocument { line: number, ..document }),
            Err(bad) => Err(BadLine { line: number, ..bad }),
        };
        each(found).map_err(|problem| at("document", number, problem))
    };
    let bad = |name: String, reason| Err(BadLine { line: 0, id: Some(name), reason });
    for (name, error) in folder.unreadable {
        each(bad(name, error.to_string()))?;
    }
    for DocumentFile { path, name, is_document } in folder.files {
        if is_document {
            each(match read_text(&path) {
                Ok(text) => Ok(InputDocument { line: 0, id: Some(name), text, score: None }),
                Err(reason) => bad(name, reason),
            })?;
            continue;
        }
        let mut failure = None;
        let mut of_file = |found: Found| {
            let named = |line: usize| Some(format!("{name}:{line}"));
            let found = match found {
                Ok(mut document) => {
                    document.id = document.id.or_else(|| named(document.line));
                    Ok(document)
                }
                Err(BadLine { line, id: None, reason }) => {
                    Err(BadLine { line, id: named(line), reason })
                }
                Err(BadLine { line, id, reason }) => {
                    Err(BadLine { line, id, reason: format!("{name}:{line}: {reason}") })
                }
            };
            each(found).map_err(|error| {
                failure = Some(error);
                String::new()
            })
        };
        let read = Records::open(&path, names.columns(), has_ids)
            .and_then(|records| each_record(records, names, &mut of_file));
        match (read, failure) {
            (_, Some(error)) => return Err(error),
            (Ok(of_file), None) => {
                of_file.counts.into_iter().for_each(|(reason, count)| left_out.add(reason, count));
                let remarks = of_file.remarks.iter();
                left_out.remarks.extend(remarks.map(|remark| format!("{name}: {remark}")));
            }
            (Err(error), None) => each(bad(name, error.to_string()))?,
        }
    }
    Ok(left_out)
}

/// Reads a whole file as one text, or returns the reason why it cannot be used.
fn read_text(path: &Path) -> Result<String, String> {
    let mut bytes = Vec::new();
    let limit = MAX_RECORD_BYTES as u64 + 1;
    let file = open(path).map_err(|error| error.to_string())?;
    file.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(lines::too_long("file"));
    }
    lines::utf8(bytes, "file")
}

impl Input {
    /// Says which ids several documents have. They are all ranked, and their numbers tell them apart.
    fn note_duplicates(&self) {
        let mut lines: HashMap<&str, usize> = HashMap::new();
        let mut duplicates = self.documents.iter().filter_map(|document| {
            let id = document.id.as_deref()?;
            let first = *lines.entry(id).or_insert(document.line);
            (first != document.line).then_some((id, first, document.line))
        });
        let Some((id, first, second)) = duplicates.next() else { return };
        let (count, unit) = (1 + duplicates.count(), self.unit);
        text::note(&format!(
            "{count} documents have the id of an earlier one, such as {} ({unit}s {first} and {second}). All are ranked.",
            text::beginning(id)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn read(bytes: &[u8]) -> Input {
        let mut input = Input::default();
        let mut keep = |found: Found| -> Result<(), String> {
            match found {
                Ok(document) => input.documents.push(document),
                Err(bad) => input.bad_lines.push(bad),
            }
            Ok(())
        };
        let names = FieldNames::default();
        let left_out = for_each_of_reader(bytes, Expected::default(), &names, &mut keep);
        input.unit = left_out.expect("memory can be read").unit;
        input
    }

    fn texts(input: &Input) -> Vec<(usize, &str)> {
        input.documents.iter().map(|document| (document.line, document.text.as_str())).collect()
    }

    #[test]
    fn documents_are_plain_lines() {
        let input = read(b"\xef\xbb\xbffirst\r\n\n  \n{second}\nthird \xff\n fourth");
        assert_eq!(texts(&input), [(1, "first"), (4, "{second}"), (6, " fourth")]);
        assert_eq!(input.documents[1].name(), "4");
        assert_eq!(input.bad_lines.len(), 1);
        assert_eq!((input.bad_lines[0].line, input.bad_lines[0].id.as_deref()), (5, None));
        assert!(input.bad_lines[0].reason.contains("byte 7"), "{}", input.bad_lines[0].reason);
    }

    #[test]
    fn documents_are_json_lines() {
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
    fn documents_are_elements_and_rows() {
        let input = read(b"[{\"id\": 1, \"text\": \"a\"},\n \"b\", 7]");
        assert_eq!((texts(&input), input.unit), (vec![(1, "a"), (2, "b")], "element"));
        assert_eq!(input.bad_lines.len(), 1);
        let input = read(b"id,title,text,score\r\n007,T,\"a\r\nb\",2.5\r\n1e3,,c,\r\n");
        let document = |line, id: &str, text: &str, score| {
            let (id, text) = (Some(id.to_owned()), text.to_owned());
            InputDocument { line, id, text, score }
        };
        let expected = [document(2, "007", "T a\r\nb", Some(2.5)), document(4, "1e3", "c", None)];
        assert_eq!(input.documents, expected);
        assert_eq!(texts(&read(b"12\ta leaf\r\n13\tbread\n")), [(1, "a leaf"), (2, "bread")]);
    }

    #[test]
    fn broken_json_lines_are_listed_and_the_others_are_read() {
        let good = "{\"text\": \"good\"}\n".repeat(20);
        let broken = [
            ("no JSON at all", "bad JSON"),
            ("{\"text\": \"cut off", "bad JSON"),
            ("{\"text\": \"x\"} trailing", "bad JSON"),
            ("[1]", "it is an array"),
            ("{\"text\": \"\\ud8\"}", "bad JSON"),
            ("{\"text\": \"x\", \"score\": 1e999}", "\"score\" is not a number"),
            ("{\"id\": \"n\"}", "\"text\" is missing"),
            ("{\"id\": \"n\", \"text\": 3}", "\"text\" is not a string"),
            ("{\"id\": \"n\", \"text\": \"x\", \"score\": \"high\"}", "\"score\" is not a number"),
            ("{\"id\": [], \"text\": \"x\"}", "\"id\" is neither"),
        ];
        let lines: String = broken.iter().map(|(line, _)| format!("{line}\n")).collect();
        let input = read((lines + &good).as_bytes());
        assert_eq!(input.documents.len(), 20);
        assert_eq!(input.bad_lines.len(), broken.len());
        for (index, (bad, (line, reason))) in input.bad_lines.iter().zip(broken).enumerate() {
            assert_eq!(bad.line, index + 1);
            assert!(bad.reason.starts_with(reason), "{bad:?}");
            assert_eq!(bad.id.is_some(), line.contains("\"n\""));
        }
        let nested = "{\"text\": ".to_owned() + &"[".repeat(100_000);
        assert_eq!(read(nested.as_bytes()).bad_lines.len(), 1);
    }

    #[test]
    fn lone_surrogates_and_marks_between_files_lose_no_document() {
        let input = read(
            b"{\"id\": \"\\udc00\", \"text\": \"cut \\ud83d off\", \"x\": \"\\ud83d\"}\n\
                           \xef\xbb\xbf{\"text\": \"next file\"}\n",
        );
        assert_eq!(texts(&input), [(1, "cut \u{fffd} off"), (2, "next file")]);
        assert_eq!(input.documents[0].name(), "\u{fffd}");
        assert_eq!(input.bad_lines, []);
    }

    #[test]
    fn lines_beyond_the_limit_are_dropped() {
        let long = vec![b'x'; MAX_RECORD_BYTES + 1];
        let bytes = [b"before\n", long.as_slice(), b"\nafter\n"].concat();
        let input = read(&bytes);
        assert_eq!(texts(&input), [(1, "before"), (3, "after")]);
        assert!(input.bad_lines[0].reason.contains("16 MiB"));
        let just_fits = [&long[1..], b"\n", b"after"].concat();
        assert_eq!(read(&just_fits).documents.len(), 2);
    }

    #[test]
    fn check_size_counts_texts_ids_and_reasons() {
        assert!(check_size(MAX_BYTES, MAX_DOCUMENTS).is_ok());
        assert!(check_size(MAX_BYTES + 1, 1).is_err() && check_size(1, MAX_DOCUMENTS + 1).is_err());
        let (id, text) = (Some("id".to_owned()), "text".to_owned());
        assert_eq!(size(&Ok(InputDocument { line: 1, id: id.clone(), text, score: None })), 6);
        assert_eq!(size(&Err(BadLine { line: 1, id, reason: "why".into() })), 5);
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
        file(
            "c.jsonl",
            b"{\"id\": \"x\", \"text\": \"third\"}\n{}\n{\"text\": \"fourth\"}\n{\"id\": \"w\", \"text\": 7}\n",
        );
        file("d.json", b"[{\"_id\": \"y\", \"text\": \"fifth\"}]");
        file("e.csv", b"id;text\nz;sixth");
        file("f.csv", b"no,header");
        let path = folder.path().to_str().expect("UTF-8");
        let input = super::read(path, &FieldNames::default()).expect("it can be read");

        let found =
            input.documents.iter().map(|document| (document.name(), document.text.as_str()));
        let expected = [
            ("a/c.md", "second"),
            ("b.txt", "first\nline"),
            ("x", "third"),
            ("c.jsonl:3", "fourth"),
            ("y", "fifth"),
            ("z", "sixth"),
        ];
        let expected = expected.map(|(name, text)| (name.to_owned(), text));
        assert!(found.eq(expected), "{input:?}");
        let bad = input.bad_lines.iter().map(|bad| bad.id.as_deref().expect("a name"));
        assert!(bad.eq(["bad.txt", "c.jsonl:2", "w", "f.csv"]), "{input:?}");
        assert_eq!(input.bad_lines[2].reason, "c.jsonl:4: \"text\" is not a string");
        assert_eq!(
            input.bad_lines[0].reason,
            "not UTF-8: byte 4 of the file is invalid; convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8"
        );
        let lines = input.documents.iter().map(|document| document.line);
        let lines = lines.chain(input.bad_lines.iter().map(|bad| bad.line));
        let distinct: std::collections::BTreeSet<usize> = lines.collect();
        assert_eq!(distinct.len(), 10);
    }

    #[test]
    fn empty_input_has_no_documents() {
        for empty in [&b""[..], b"\n \r\n", b"\xef\xbb\xbf", b"\xff\xfe"] {
            assert_eq!(read(empty), Input::default());
        }
    }
}
