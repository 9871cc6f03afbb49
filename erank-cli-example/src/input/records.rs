//! The records of a file: lines, rows or JSON values, whichever format the file has.

use std::io::{self, BufRead};
use std::path::Path;

use super::decode::{self, Peeked, peek};
use super::fields::{Columns, Fields, Value};
use super::json::{self, Elements, Scanner};
use super::lines::Lines;
use super::table::{self, Rows};

/// Number of bytes by which the format is recognised.
const SAMPLE_BYTES: u64 = 1 << 20;

/// The content of a record.
#[derive(Debug, PartialEq)]
pub(crate) enum Content {
    /// A line of plain text, or a string in a JSON array.
    Text(String),
    /// A line with an id, a tab and a text.
    Named { id: String, text: String },
    /// A JSON object, or a row of a table.
    Fields(Fields),
}

/// A record, or the reason why it cannot be used.
#[derive(Debug)]
pub(crate) struct Record {
    /// The number of the record's first line, or of the element of a JSON array, from 1.
    pub(crate) number: usize,
    pub(crate) content: Result<Content, String>,
}

/// What is known of a file before it is read.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Expected<'a> {
    /// The name of the file, whose ending may name the format.
    pub(crate) name: Option<&'a str>,
    /// Whether lines that are neither JSON nor a table have an id, a tab and a text.
    pub(crate) has_ids: bool,
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Format {
    /// Each line is a text.
    Text,
    /// Each line has an id, a tab and a text.
    NamedText,
    /// Each line is a JSON object.
    JsonLines,
    /// JSON arrays, or objects that span lines.
    Json,
    /// CSV or TSV with a header.
    Table { delimiter: u8 },
}

type Reader<'a> = Peeked<Box<dyn BufRead + 'a>>;

/// An iterator over the records of a file.
pub(crate) struct Records<'a>(Kind<'a>);

enum Kind<'a> {
    Lines { lines: Lines<Reader<'a>>, parse: fn(String) -> Result<Content, String> },
    Elements(Elements<Reader<'a>>),
    Table { rows: Rows<Reader<'a>>, header: Vec<String> },
}

impl Records<'static> {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// Returns any I/O error, and the errors of [`Records::new`].
    pub(crate) fn open(file: &Path, columns: Columns<'_>, has_ids: bool) -> io::Result<Self> {
        let name = file.file_name().map(|name| name.to_string_lossy());
        Self::new(decode::open(file)?, columns, Expected { name: name.as_deref(), has_ids })
    }
}

impl<'a> Records<'a> {
    /// Recognises the format of a reader's text.
    ///
    /// # Errors
    ///
    /// Returns any I/O error, and [`io::ErrorKind::InvalidData`] if the format is recognised, but cannot be read.
    pub(crate) fn new(
        reader: Box<dyn BufRead + 'a>,
        columns: Columns<'_>,
        expected: Expected<'_>,
    ) -> io::Result<Self> {
        let reader = peek(reader, SAMPLE_BYTES)?;
        let sample = Sample::new(reader.get_ref().0.get_ref());
        let format = sample.format(&columns, expected).map_err(invalid)?;
        let is_plain = matches!(format, Format::Text | Format::NamedText);
        if let Some(field) = columns.text_field
            && is_plain
            && !sample.lines.is_empty()
        {
            return Err(invalid(format!(
                "it is neither JSON nor a table with the field {field:?} in its first line, {:?}; mend the name, or \
                 leave --text-field {field} out",
                sample.first_line()
            )));
        }
        let lines = |reader, parse| Kind::Lines { lines: Lines::of(reader), parse };
        Ok(Self(match format {
            Format::Text => lines(reader, plain_text),
            Format::NamedText => lines(reader, named_text),
            Format::JsonLines => lines(reader, json_line),
            Format::Json => Kind::Elements(Elements::of(reader)),
            Format::Table { delimiter } => {
                let mut rows = Rows::of(reader, delimiter);
                let header = rows.next().transpose()?;
                let header = header.map_or(Ok(Vec::new()), |row| row.cells).map_err(invalid)?;
                let header = header.iter().map(|cell| columns.name(cell)).collect();
                Kind::Table { rows, header }
            }
        }))
    }

    /// Returns the word for a record in messages.
    pub(crate) fn unit(&self) -> &'static str {
        match self.0 {
            Kind::Lines { .. } | Kind::Table { .. } => "line",
            Kind::Elements(_) => "element",
        }
    }

    /// Returns the number of blank lines so far.
    pub(crate) fn blank(&self) -> usize {
        match &self.0 {
            Kind::Lines { lines, .. } => lines.blank(),
            Kind::Table { rows, .. } => rows.blank(),
            Kind::Elements(_) => 0,
        }
    }
}

impl Iterator for Records<'_> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = |number, content| Record { number, content };
        Some(match &mut self.0 {
            Kind::Lines { lines, parse } => {
                lines.next()?.map(|line| record(line.number, line.text().and_then(*parse)))
            }
            Kind::Elements(elements) => elements.next()?.map(|element| {
                record(element.number, element.json.and_then(|json| json_content(&json)))
            }),
            Kind::Table { rows, header } => rows.next()?.map(|row| {
                record(row.line, row.cells.and_then(|cells| row_content(header, cells)))
            }),
        })
    }
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn json_line(line: String) -> Result<Content, String> {
    json_content(line.trim_ascii_start())
}

fn plain_text(line: String) -> Result<Content, String> {
    Ok(Content::Text(line.trim_ascii_end().to_owned()))
}

fn named_text(line: String) -> Result<Content, String> {
    let (id, text) = line.split_once('\t').ok_or("there is no tab after the id")?;
    Ok(Content::Named { id: id.to_owned(), text: text.trim_ascii_end().to_owned() })
}

/// Returns the content of a line or an element of JSON: an object or a string.
fn json_content(json: &str) -> Result<Content, String> {
    match json.as_bytes().first() {
        Some(b'"') => json::string(json).map(Content::Text),
        Some(b'[') => Err("it is an array, not an object or a string".into()),
        Some(b'0'..=b'9' | b'-' | b'n' | b't' | b'f') if json::is_value(json) => {
            Err("it is neither an object nor a string".into())
        }
        _ => json::object(json).map(Content::Fields),
    }
}

fn row_content(header: &[String], cells: Vec<String>) -> Result<Content, String> {
    if cells.len() != header.len() {
        return Err(format!("{} fields, but the header has {}", cells.len(), header.len()));
    }
    let fields = header.iter().cloned().zip(cells.into_iter().map(Value::Text));
    Ok(Content::Fields(Fields(fields.collect())))
}

/// Returns whether a text is JSON, and a reader of the whole text.
pub(crate) fn is_json(reader: Box<dyn BufRead>) -> io::Result<(bool, Box<dyn BufRead>)> {
    let reader = peek(reader, SAMPLE_BYTES)?;
    let sample = Sample::new(reader.get_ref().0.get_ref());
    let is_json = sample.is_array() || is_object(sample.bytes) || is_text_sequence(sample.bytes);
    Ok((is_json, Box::new(reader)))
}

/// The beginning of a file.
struct Sample<'a> {
    bytes: &'a [u8],
    /// The whole lines that are not blank, without white space at the beginning.
    lines: Vec<&'a [u8]>,
}

impl<'a> Sample<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        let is_whole = (bytes.len() as u64) < SAMPLE_BYTES;
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        // The last line may be cut off.
        if !is_whole && lines.len() > 1 {
            lines.pop();
        }
        lines.retain(|line| !line.trim_ascii().is_empty());
        for line in &mut lines {
            *line = trimmed(line);
        }
        Self { bytes: trimmed(bytes), lines }
    }

    /// Returns the format of the file, or the reason why it cannot be read.
    fn format(&self, columns: &Columns<'_>, expected: Expected<'_>) -> Result<Format, String> {
        let ending = expected.name.map(ending).unwrap_or_default();
        let is_json_file = matches!(ending, "json" | "jsonl" | "ndjson");
        let count =
            |is_one: fn(&[u8]) -> bool| self.lines.iter().filter(|line| is_one(line)).count();
        let (braces, objects) = (count(|line| line.starts_with(b"{")), count(is_object));
        let is_mostly_objects = braces * 2 > self.lines.len();
        let is_half_objects = objects > 0 && objects * 2 == self.lines.len();
        if self.is_array() || (is_json_file && self.bytes.starts_with(b"[")) {
            if self.is_lines_of_strings() {
                let advice = "make objects of them: jq -c '{id: .[0], text: .[1]}'";
                return Err(format!("each line is a JSON array of strings; {advice}"));
            }
            return Ok(Format::Json);
        }
        if is_text_sequence(self.bytes) {
            return Ok(Format::Json);
        }
        if is_object(self.bytes) {
            match self.after_first_value() {
                // Several values in a line.
                Some(b'{' | b',') => return Ok(Format::Json),
                None if !is_mostly_objects => return Ok(Format::Json),
                _ => {}
            }
        }
        if is_mostly_objects || is_half_objects || is_json_file {
            return Ok(Format::JsonLines);
        }
        if let Some(reason) = self.unreadable() {
            return Err(reason.into());
        }
        if let Some(delimiter) = self.table(columns, ending) {
            return Ok(Format::Table { delimiter });
        }
        if columns.text_field.is_none()
            && (ending == "csv" && !self.lines.is_empty() || self.has_header_without_text(columns))
        {
            return Err(format!(
                "its first line, {:?}, does not name the field of the text; name it with --text-field, or write \
                 a header such as id,text",
                self.first_line()
            ));
        }
        let is_named =
            expected.has_ids || matches!(ending, "tsv" | "tab") || self.has_numbered_lines();
        Ok(if is_named { Format::NamedText } else { Format::Text })
    }

    /// Returns why the text cannot be read by lines, if so.
    fn unreadable(&self) -> Option<&'static str> {
        let first = self.lines.first().map_or(&[][..], |line| line.trim_ascii_end());
        let has_returns = || self.bytes.trim_ascii_end().contains(&b'\r');
        if !self.bytes.contains(&b'\n') && has_returns() {
            return Some(
                "its lines end with CR alone, as on old Macs; convert them: tr '\\r' '\\n'",
            );
        }
        if first.eq_ignore_ascii_case(b"<doc>") || first.starts_with(b"<?xml ") {
            return Some("it is XML or SGML; convert its documents to JSON lines");
        }
        None
    }

    /// Returns the beginning of the first line.
    fn first_line(&self) -> String {
        let line = self.lines.first().copied().unwrap_or_default();
        String::from_utf8_lossy(line).chars().take(100).collect()
    }

    /// Returns whether the file is a JSON array. A line of text may begin with a bracket, too.
    fn is_array(&self) -> bool {
        let Some(rest) = self.bytes.strip_prefix(b"[") else { return false };
        let rest = rest.trim_ascii_start();
        match rest.first() {
            Some(b'{') => is_object(rest),
            Some(b'"') => {
                let end = Scanner::default().end(rest);
                let next = end.and_then(|end| rest[end..].trim_ascii_start().first());
                matches!(next, None | Some(b',' | b']'))
            }
            // An array of arrays, whose elements are refused one by one. Two brackets may also be a link in a text.
            Some(b'[') => matches!(rest[1..].trim_ascii_start().first(), Some(b'"' | b'{')),
            Some(b']') => rest[1..].trim_ascii().is_empty(),
            _ => false,
        }
    }

    /// Returns whether the first lines are arrays of strings.
    fn is_lines_of_strings(&self) -> bool {
        let is_array = |line: &&[u8]| {
            let inner = line.strip_prefix(b"[");
            inner.is_some_and(|inner| inner.trim_ascii_start().starts_with(b"\""))
        };
        self.lines.len() > 1 && self.lines[..2].iter().all(is_array)
    }

    /// Returns the byte after the JSON value of the first line, or `\n` if the value ends the line. `None` if the
    /// value does not end in the first line.
    fn after_first_value(&self) -> Option<u8> {
        let line = self.lines.first()?;
        let rest = &line[Scanner::default().end(line)?..];
        Some(rest.trim_ascii_start().first().copied().unwrap_or(b'\n'))
    }

    /// Returns the delimiter if the first line is the header of a table: the name of the text is among its fields.
    /// Unless the ending is that of CSV or the user gave the name, another known name must be there, too, and all
    /// fields must look like names.
    fn table(&self, columns: &Columns<'_>, ending: &str) -> Option<u8> {
        let header = std::str::from_utf8(self.lines.first()?).ok()?;
        let delimiters: &[u8] = match ending {
            "tsv" | "tab" => b"\t,;|",
            _ => b",;\t|",
        };
        delimiters.iter().copied().find(|delimiter| {
            let cells = table::cells(header, *delimiter);
            let names: Vec<String> = cells.iter().map(|cell| columns.name(cell)).collect();
            let known = names.iter().filter(|name| columns.is_known(name)).count();
            let is_certain = ending == "csv" || columns.text_field.is_some();
            let is_header = is_certain || (known > 1 && cells.iter().all(|cell| is_name(cell)));
            is_header && names.iter().any(|name| columns.is_text(name))
        })
    }

    /// Returns whether the first line is the header of a table that lacks the text: its first field is the name of the
    /// id, all fields look like names, and the second line has as many fields.
    fn has_header_without_text(&self, columns: &Columns<'_>) -> bool {
        let lines = self.lines.iter().take(2).map(|line| std::str::from_utf8(line));
        let Ok(lines) = lines.collect::<Result<Vec<&str>, _>>() else { return false };
        let [header, row] = lines[..] else { return false };
        b",;\t|".iter().any(|delimiter| {
            let cells = table::cells(header, *delimiter);
            let is_header = cells.len() > 1 && cells.iter().all(|cell| is_name(cell));
            is_header
                && columns.is_id(&columns.name(&cells[0]))
                && table::cells(row, *delimiter).len() == cells.len()
        })
    }

    /// Returns whether all lines begin with a number and a tab, as those of MS MARCO do.
    fn has_numbered_lines(&self) -> bool {
        let is_numbered = |line: &&[u8]| {
            let tab = line.iter().position(|byte| *byte == b'\t');
            tab.is_some_and(|tab| tab > 0 && line[..tab].iter().all(u8::is_ascii_digit))
        };
        !self.lines.is_empty() && self.lines.iter().all(is_numbered)
    }
}

/// Returns whether a cell looks like the name of a column.
fn is_name(cell: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || "_-.".contains(c);
    let is_word = |word: &str| !word.is_empty() && word.chars().all(is_part);
    cell.is_empty() || (cell.len() <= 64 && cell.split(' ').all(is_word))
}

/// Returns the bytes without white space and byte order marks at the beginning.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let mut bytes = bytes.trim_ascii_start();
    while let Some(rest) = bytes.strip_prefix(b"\xef\xbb\xbf") {
        bytes = rest.trim_ascii_start();
    }
    bytes
}

/// Returns whether the bytes begin as a JSON text sequence of objects does, with the record separator of RFC 7464.
fn is_text_sequence(bytes: &[u8]) -> bool {
    bytes.strip_prefix(b"\x1e").is_some_and(is_object)
}

/// Returns whether the bytes begin as a JSON object does: with a brace, a string and a colon.
fn is_object(bytes: &[u8]) -> bool {
    let Some(rest) = bytes.strip_prefix(b"{") else { return false };
    let rest = rest.trim_ascii_start();
    match rest.first() {
        None | Some(b'}') => true,
        Some(b'"') => {
            let end = Scanner::default().end(rest);
            let next = end.and_then(|end| rest[end..].trim_ascii_start().first());
            matches!(next, None | Some(b':'))
        }
        _ => false,
    }
}

/// Returns the lower-case ending of a file's name, without that of its compression.
pub(super) fn ending(name: &str) -> &'static str {
    const KNOWN: [&str; 9] =
        ["json", "jsonl", "ndjson", "csv", "tsv", "tab", "txt", "md", "markdown"];
    let name = name.to_ascii_lowercase();
    let compressed = [".gz", ".gzip", ".zst", ".zstd"];
    let name = compressed.iter().find_map(|ending| name.strip_suffix(ending)).unwrap_or(&name);
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    KNOWN.into_iter().find(|known| *known == ending).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::FieldNames;

    fn records<'a>(text: &'a str, name: &str, has_ids: bool) -> io::Result<Records<'a>> {
        let expected = Expected { name: Some(name), has_ids };
        Records::new(Box::new(text.as_bytes()), FieldNames::default().columns(), expected)
    }

    /// Returns the format of a file with this name and text, or the error.
    fn format(name: &str, text: &str) -> String {
        let records = match records(text, name, false) {
            Ok(records) => records,
            Err(error) => return error.to_string(),
        };
        match records.0 {
            Kind::Elements(_) => "json".into(),
            Kind::Table { rows: _, header } => format!("table {}", header.join("|")),
            Kind::Lines { parse, .. } => match parse("{}\tx".into()) {
                Ok(Content::Named { .. }) => "named".into(),
                Ok(_) => "text".into(),
                Err(_) => "json lines".into(),
            },
        }
    }

    #[test]
    fn format_is_recognised_by_the_text() {
        for (text, expected) in [
            ("[{\"text\": \"a\"}]", "json"),
            ("\n [\n{\n\"text\"\n: \"a\"}]", "json"),
            ("[\"a\", \"b\"]", "json"),
            ("[]\n", "json"),
            ("{\n  \"text\": \"a\"\n}\n{\n  \"text\": \"b\"\n}\n", "json"),
            ("{\"id\": 1,\n \"text\": \"a\"}", "json"),
            ("{\"text\": \"a\"}\n{\"text\": \"b\"}", "json lines"),
            ("{\"text\": \"cut off\n{\"text\": \"b\"}\n{}", "json lines"),
            ("{\"text\": \"cut off", "json lines"),
            ("{\"text\": \"a\"}{\"text\": \"b\"}", "json"),
            ("{\"text\": \"a\"},\n{\"text\": \"b\"}", "json"),
            ("[1] A citation.\n[2] Another.", "text"),
            ("[[Link]] to a page", "text"),
            ("[[\"d1\", \"a\"], [\"d2\", \"b\"]]", "json"),
            ("[\"Quoted\" words]", "text"),
            ("[] an empty box", "text"),
            ("{braces}\n{more}\ntext\ntext", "text"),
            ("{\"text\": \"a\"}\nno JSON", "json lines"),
            ("{\"text\": \"a\"}\n\u{feff}{\"text\": \"b\"}", "json lines"),
            ("first\n{second}\nthird", "text"),
            ("id,text\n1,a", "table id|text"),
            ("id\ttitle\ttext\n1\tA\ta", "table id|title|text"),
            ("\"id\";\"text\"\n1;a", "table id|text"),
            ("In this, contents, are words\n", "text"),
            ("text\nmore", "text"),
            ("id|text\n1|a", "table id|text"),
            ("Doc ID,Text\n1,a", "table doc_id|text"),
            ("\u{feff}\u{feff}[{\"text\": \"a\"}]", "json"),
            ("\u{1e}{\"text\": \"a\"}\n\u{1e}{\"text\": \"b\"}\n", "json"),
            ("id, please\nid, card", "text"),
            ("q1\tbody\nq2\ttext", "text"),
            ("0\tA leaf.\n1\tBread.", "named"),
            ("0\tA leaf.\nnot numbered", "text"),
            ("word\tmeaning", "text"),
            ("", "text"),
        ] {
            assert_eq!(format("-", text), expected, "{text}");
        }
    }

    #[test]
    fn format_is_recognised_by_the_ending() {
        for (name, text, expected) in [
            ("a.jsonl", "no JSON\nat all", "json lines"),
            ("a.json", "[null, {\"text\": \"a\"}, 7]", "json"),
            ("a.csv", "text\na", "table text"),
            ("a.csv.gz", "Full name, Text\n1,a", "table Full name|text"),
            ("a.tsv", "d1\ta leaf", "named"),
            ("a.TSV.zst", "pid\tpassage\n1\ta", "table pid|passage"),
            ("a.tsv", "pid,passage\n1,a", "table pid|passage"),
            ("a.txt", "d1\ta leaf", "text"),
        ] {
            assert_eq!(format(name, text), expected, "{name}");
        }
        for (name, text, said) in [
            ("a.csv", "a,b\n1,2", "--text-field"),
            ("a.tsv", "docno\turl\tabstract\n1\tu\ta", "\"docno\\turl\\tabstract\", does not name"),
            ("-", "id,abstract\n1,a", "does not name the field of the text"),
            ("-", "a leaf\rbread\r", "end with CR alone"),
            ("a.csv", "id,text\r1,a\r", "end with CR alone"),
            ("a.txt", "<DOC>\n<DOCNO>1</DOCNO>\n", "XML or SGML"),
            ("-", "<?xml version=\"1.0\"?>\n<doc/>\n", "XML or SGML"),
        ] {
            assert!(format(name, text).contains(said), "{}", format(name, text));
        }
        assert!(format("-", "[\"d1\", \"a\"]\n[\"d2\", \"b\"]").contains("jq -c"));
        let named = records("d1\ta leaf", "a.txt", true).expect("read").next();
        let content = named.expect("a record").expect("memory").content.expect("usable");
        assert_eq!(content, Content::Named { id: "d1".into(), text: "a leaf".into() });
    }

    #[test]
    fn format_is_recognised_by_the_name_of_the_text() {
        let names = FieldNames { text_field: Some("full text".into()), ..FieldNames::default() };
        let read = |name: &str, text: &'static str| -> Result<String, String> {
            let expected = Expected { name: Some(name), has_ids: false };
            let records = Records::new(Box::new(text.as_bytes()), names.columns(), expected);
            match records.map_err(|error| error.to_string())?.0 {
                Kind::Table { header, .. } => Ok(header.join("|")),
                _ => Ok("no table".to_owned()),
            }
        };
        for name in ["-", "a.txt", "a.tsv", "a.csv"] {
            for text in ["key (old);full text\n1;a", "key (old)\tFull Text\n1\ta"] {
                assert_eq!(read(name, text).as_deref(), Ok("key (old)|full text"), "{name}");
            }
            let error = read(name, "id,text\n1,a").expect_err("another field");
            assert!(error.contains("the field \"full text\""), "{name}: {error}");
            assert!(error.contains("first line, \"id,text\"; mend the name"), "{name}: {error}");
        }
    }

    #[test]
    fn records_number_lines_rows_and_elements() {
        let numbers = |text: &str| {
            let mut records = records(text, "-", false).expect("read");
            let numbers: Vec<_> = records.by_ref().flatten().map(|record| record.number).collect();
            (numbers, records.unit(), records.blank())
        };
        assert_eq!(numbers("a\n\nb\r\n \n"), (vec![1, 3], "line", 2));
        assert_eq!(numbers("id,text\n1,\"a\nb\"\n\n2,c"), (vec![2, 5], "line", 1));
        assert_eq!(numbers("[{\"text\": \"a\"},\n\n\"b\"]"), (vec![1, 2], "element", 0));
    }

    #[test]
    fn records_report_rows_and_elements_without_fields() {
        let reasons = |text: &str| -> Vec<String> {
            let records = records(text, "-", false).expect("read").flatten();
            records.filter_map(|record| record.content.err()).collect()
        };
        assert_eq!(
            reasons("id,text\n1,a,b\n2\n"),
            ["3 fields, but the header has 2", "1 fields, but the header has 2"]
        );
        let elements = reasons("[{\"text\": \"a\"}, 7, [], {\"text\": , null]");
        let lines = reasons("{\"text\": \"a\"}\n\"b\"\n{}\n7\n[1]\n{\"text\": 1}\n");
        assert_eq!(
            lines,
            ["it is neither an object nor a string", "it is an array, not an object or a string"]
        );
        assert!(elements[0].contains("neither an object"), "{elements:?}");
        assert!(elements[1].contains("is an array"), "{elements:?}");
        assert!(elements[2].contains("bad JSON"), "{elements:?}");
    }
}
