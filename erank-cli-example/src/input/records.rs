//! The records of a file: lines, rows or JSON values, whichever format the file has.

use std::collections::VecDeque;
use std::io::{self, BufRead};
use std::path::Path;

use super::decode::{self, Peeked, peek};
use super::fields::{Columns, Fields, Value, is_alike};
use super::json::{self, Elements, Scanner};
use super::lines::{Line, Lines};
use super::sample::{Format, SAMPLE_BYTES, Sample};
use super::table::{Doubtful, Rows};

/// The content of a record.
#[derive(Debug, PartialEq)]
pub enum Content {
    /// A line of plain text, or a string in a JSON array.
    Text(String),
    /// A line with an id, a tab and a text.
    Named {
        /// The text before the tab.
        id: String,
        /// The text after it.
        text: String,
    },
    /// A JSON object, or a row of a table.
    Fields(Fields),
}

/// A record, or the reason why it cannot be used.
#[derive(Debug)]
pub struct Record {
    /// The number of the record's first line, or of the element of a JSON array, from 1.
    pub number: usize,
    /// The content, or the reason.
    pub content: Result<Content, String>,
}

/// What is known of a file before it is read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Expected<'a> {
    /// The name of the file, whose ending may name the format.
    pub name: Option<&'a str>,
    /// Whether lines that are neither JSON nor a table have an id, a tab and a text.
    pub has_ids: bool,
}

type Reader<'a> = Peeked<Box<dyn BufRead + 'a>>;

/// An iterator over the records of a file.
pub struct Records<'a> {
    kind: Kind<'a>,
    /// How the file is read, if other readings were possible.
    remark: Option<&'static str>,
}

enum Kind<'a> {
    Lines { lines: Lines<Reader<'a>>, parse: fn(String) -> Result<Content, String> },
    JsonLines(JsonLines<'a>),
    Elements(Elements<Reader<'a>>),
    Table { rows: Rows<Reader<'a>>, header: Vec<String>, repeated: usize },
}

/// Lines of JSON. A line may hold several objects, if a file was appended to one without a line end.
struct JsonLines<'a> {
    lines: Lines<Reader<'a>>,
    /// Records of a line that were not returned yet.
    waiting: VecDeque<Record>,
    /// The id in the previous line, if that was an action of an Elasticsearch bulk file.
    action_id: Option<String>,
}

impl Records<'static> {
    /// Opens a file.
    ///
    /// # Errors
    ///
    /// Returns any I/O error, and the errors of [`Records::new`].
    pub fn open(file: &Path, columns: Columns<'_>, has_ids: bool) -> io::Result<Self> {
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
    pub fn new(
        reader: Box<dyn BufRead + 'a>,
        columns: Columns<'_>,
        expected: Expected<'_>,
    ) -> io::Result<Self> {
        let reader = peek(reader, SAMPLE_BYTES)?;
        let sample = Sample::new(reader.get_ref().0.get_ref());
        let format = sample.format(&columns, expected).map_err(invalid)?;
        if let Some(field) = columns.text_field
            && format.is_plain()
            && !sample.lines.is_empty()
        {
            return Err(invalid(format!(
                "it is neither JSON nor a table with the field {field:?} in its first line, {:?}; mend the name, or \
                 leave --text-field {field} out",
                sample.first_line()
            )));
        }
        let (remark, has_separator) = (sample.remark(format, expected), sample.has_separator());
        let lines = |reader, parse| Kind::Lines { lines: Lines::of(reader), parse };
        let kind = match format {
            Format::Text => lines(reader, plain_text),
            Format::NamedText => lines(reader, named_text),
            Format::Candidates => lines(reader, candidate),
            Format::Pages => lines(reader, page),
            Format::JsonLines => Kind::JsonLines(JsonLines {
                lines: Lines::of(reader),
                waiting: VecDeque::new(),
                action_id: None,
            }),
            Format::Json => Kind::Elements(Elements::of(reader)),
            Format::Table { delimiter } => {
                let mut rows = Rows::of(reader, delimiter);
                if has_separator {
                    rows.skip_line()?;
                }
                let header = rows.next().transpose()?;
                let header = header.map_or(Ok(Vec::new()), |row| row.cells);
                let header = header.and_then(|cells| columns.header(&cells)).map_err(invalid)?;
                Kind::Table { rows, header, repeated: 0 }
            }
        };
        Ok(Self { kind, remark })
    }

    /// Returns the word for a record in messages.
    pub fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Lines { .. } | Kind::JsonLines(_) | Kind::Table { .. } => "line",
            Kind::Elements(_) => "element",
        }
    }

    /// Returns the number of blank lines so far.
    pub fn blank(&self) -> usize {
        match &self.kind {
            Kind::Lines { lines, .. } => lines.blank(),
            Kind::JsonLines(json) => json.lines.blank(),
            Kind::Table { rows, .. } => rows.blank(),
            Kind::Elements(_) => 0,
        }
    }

    /// Returns how often the header of a table occurred again so far, as in tables that were appended to each other.
    pub fn repeated_headers(&self) -> usize {
        match self.kind {
            Kind::Table { repeated, .. } => repeated,
            _ => 0,
        }
    }

    /// Returns what the user should know about how the file was read.
    pub fn remarks(&self) -> impl Iterator<Item = String> {
        let doubtful = match &self.kind {
            Kind::Table { rows, .. } => rows.doubtful(),
            _ => None,
        };
        let doubtful = doubtful.map(|Doubtful { line, inner }| {
            format!(
                "the quotes of line {line} hold {inner} more lines that look like rows; if they are rows, close the \
                 quote, or double it"
            )
        });
        self.remark.map(str::to_owned).into_iter().chain(doubtful)
    }
}

impl Iterator for Records<'_> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        let record = |number, content| Record { number, content };
        Some(match &mut self.kind {
            Kind::Lines { lines, parse } => {
                lines.next()?.map(|line| record(line.number, line.text().and_then(*parse)))
            }
            Kind::JsonLines(json) => json.next()?,
            Kind::Elements(elements) => elements.next()?.map(|element| {
                let content = element.json.and_then(|json| {
                    let advice =
                        "; make objects of the arrays: jq -c '.[] | {id: .[0], text: .[1]}'";
                    let content = json_content(&json);
                    content.map_err(|reason| match json.starts_with('[') {
                        true => reason + advice,
                        false => reason,
                    })
                });
                let cut = "; the file ends within this element, and elements after it may be lost";
                let content = content.map_err(|reason| match element.is_cut {
                    true => reason + cut,
                    false => reason,
                });
                record(element.number, content)
            }),
            Kind::Table { rows, header, repeated } => loop {
                let row = match rows.next()? {
                    Ok(row) => row,
                    Err(error) => break Err(error),
                };
                if let Ok(cells) = &row.cells
                    && let Some(again) = same_header(header, cells)
                {
                    (*header, *repeated) = (again, *repeated + 1);
                    continue;
                }
                break Ok(record(row.line, row.cells.and_then(|cells| row_content(header, cells))));
            },
        })
    }
}

impl Iterator for JsonLines<'_> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.waiting.pop_front() {
                return Some(Ok(record));
            }
            match self.lines.next()? {
                Ok(line) => self.add(line),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl JsonLines<'_> {
    /// Adds the records of a line.
    fn add(&mut self, line: Line) {
        let number = line.number;
        let text = match line.text() {
            Ok(text) => text,
            Err(reason) => return self.waiting.push_back(Record { number, content: Err(reason) }),
        };
        for json in objects(&text) {
            let mut content = json_content(json);
            let previous = self.action_id.take();
            if let Ok(Content::Fields(fields)) = &mut content {
                self.action_id = action_id(fields);
                if self.action_id.is_some() {
                    continue;
                }
                if let Some(id) = previous {
                    let source = ("_source".into(), Value::Other(json.trim_ascii_end().into()));
                    *fields = Fields(vec![("_id".into(), Value::Text(id)), source]);
                }
            }
            self.waiting.push_back(Record { number, content });
        }
    }
}

/// Splits a line into its objects. A line that does not begin with an object and another one is returned whole.
fn objects(line: &str) -> Vec<&str> {
    let start = |json: &'_ str| json.len() - json.trim_start_matches(is_between_values).len();
    let mut rest = line.trim_ascii_start();
    let mut objects = Vec::new();
    while rest.starts_with('{')
        && let Some(end) = Scanner::default().end(rest.as_bytes())
    {
        let next = end + start(&rest[end..]);
        if !rest[next..].starts_with('{') {
            break;
        }
        objects.push(&rest[..end]);
        rest = &rest[next..];
    }
    objects.push(rest);
    objects
}

/// White space, commas, byte order marks and the record separator of RFC 7464.
fn is_between_values(c: char) -> bool {
    c.is_ascii_whitespace() || matches!(c, ',' | '\u{feff}' | '\u{1e}')
}

/// Returns the id in an action of an Elasticsearch bulk file, which precedes the document: `{"index": {"_id": "1"}}`.
/// It is empty if the action has none.
fn action_id(fields: &Fields) -> Option<String> {
    match &fields.0[..] {
        [(name, Value::Other(action))] if matches!(name.as_str(), "index" | "create") => {
            let mut action = json::object(action).ok()?;
            let is_action =
                action.0.iter().all(|(name, _)| name.starts_with('_') || name == "routing");
            is_action.then(|| action.take_id(&["_id"]).ok().flatten().unwrap_or_default())
        }
        _ => None,
    }
}

/// Returns the names of a row's columns if it is the header again, perhaps in another order.
fn same_header(header: &[String], cells: &[String]) -> Option<Vec<String>> {
    let mut names: Vec<&String> = header.iter().collect();
    let mut take = |cell: &String| {
        let position = names.iter().position(|name| is_alike(name, cell))?;
        Some(names.swap_remove(position).clone())
    };
    let again = cells.iter().map(&mut take).collect::<Option<Vec<String>>>()?;
    names.is_empty().then_some(again)
}

fn invalid(message: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn plain_text(line: String) -> Result<Content, String> {
    Ok(Content::Text(line.trim_ascii_end().to_owned()))
}

fn named_text(line: String) -> Result<Content, String> {
    let (id, text) = line.split_once('\t').ok_or("there is no tab after the id")?;
    Ok(Content::Named { id: id.to_owned(), text: text.trim_ascii_end().to_owned() })
}

/// Returns the passage of a line of MS MARCO's top1000 files: query id, passage id, query, passage.
fn candidate(line: String) -> Result<Content, String> {
    let columns: Vec<&str> = line.trim_ascii_end().split('\t').collect();
    match columns[..] {
        [_, id, _, text] => Ok(Content::Named { id: id.to_owned(), text: text.to_owned() }),
        _ => Err(format!("{} columns, but most lines have 4", columns.len())),
    }
}

/// Returns the page of a line of MS MARCO's files of documents: id, address, title, body.
fn page(line: String) -> Result<Content, String> {
    let mut columns = line.trim_ascii_end().split('\t');
    let (Some(id), Some(_), Some(first)) = (columns.next(), columns.next(), columns.next()) else {
        return Err("there is no text after the id and the address".into());
    };
    let texts: Vec<&str> =
        std::iter::once(first).chain(columns).filter(|text| !text.trim().is_empty()).collect();
    Ok(Content::Named { id: id.to_owned(), text: texts.join(" ") })
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
pub fn is_json(reader: Box<dyn BufRead>) -> io::Result<(bool, Box<dyn BufRead>)> {
    let reader = peek(reader, SAMPLE_BYTES)?;
    let sample = Sample::new(reader.get_ref().0.get_ref());
    let is_json = sample.is_json();
    Ok((is_json, Box::new(reader)))
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
        match records.kind {
            Kind::Elements(_) => "json".into(),
            Kind::JsonLines(_) => "json lines".into(),
            Kind::Table { header, .. } => format!("table {}", header.join("|")),
            Kind::Lines { parse, .. } => match parse("{}\tx".into()) {
                Ok(Content::Named { .. }) => "named".into(),
                Ok(_) => "text".into(),
                Err(_) => "columns".into(),
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
            ("q1\tbody\nq2\ttext", "named"),
            ("0\tA leaf.\n1\tBread.", "named"),
            ("0\tA leaf.\nnot numbered", "text"),
            ("1\tA leaf.\n2\tBread needs\nsalt.\n3\tTea.", "named"),
            ("d1\tA leaf.\nd2\tBread.\nbroken", "named"),
            ("0.5\tA leaf.\n0.25\tBread.", "text"),
            ("d1\tA leaf.\nd1\tBread.", "text"),
            ("7\t9\tq\tA leaf.\n7\t10\tq\tBread.", "columns"),
            ("D1\thttps://a.org\tA\tleaf\nD2\thttp://b.org\tB\tread", "columns"),
            ("uid,text\nx,a leaf\ny,bread", "table uid|text"),
            ("text,label\nA leaf.,1\n\"Bread,\nold\",0", "table text|label"),
            ("docId\tText\n1\ta", "table docid|text"),
            ("sep=;\nid;text\n1;a, b", "table id|text"),
            ("\"A \\\"leaf\\\".\"\n\"Bread\"", "json lines"),
            ("\"A leaf\\nfalls.\"", "json lines"),
            ("\"A leaf,\" he said.\n\"Bread.\"", "text"),
            ("\"A leaf.\"", "text"),
            ("\"text\"\n\"A leaf.\"", "table text"),
            ("[null, {\"text\": \"a\"}]", "json"),
            ("[\n  null,\n  {\n  \"text\": \"a\"}]", "json"),
            ("[[1, \"a leaf\"], [2, \"bread\"]]", "json"),
            ("[1, 2] A citation.\n[[3]] Another.", "text"),
            ("<b>A leaf</b> falls.\n<b>Bread</b>", "text"),
            ("<3 this leaf\nbread", "text"),
            ("a \r leaf\nbread\ntea", "text"),
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
            ("a.tsv", "text\tlabel\na leaf\t1", "table text|label"),
            ("a.tsv", "doc\ttext\nd1\ta leaf", "table doc|text"),
            ("a.tsv", "d1\ttext", "named"),
            ("a.csv", "id,text\n1,\"a\rb\rc\"\n", "table id|text"),
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
            ("wiki_00", "<doc id=\"12\" url=\"u\">\nTide\n</doc>\n", "XML or SGML"),
            ("-", "<DOC><DOCNO>1</DOCNO>\n<TEXT>a</TEXT></DOC>\n", "XML or SGML"),
            ("-", "<top>\n<num> 1\n", "XML or SGML"),
            ("-", "<add><doc><field>a</field></doc></add>", "XML or SGML"),
            ("-", "<mediawiki xmlns=\"x\">\n<page/>", "XML or SGML"),
            ("-", "<!-- a -->\n<x/>", "XML or SGML"),
            ("-", "<Articles n=\"2\">\n<a>leaf</a>\n</Articles>\n", "XML or SGML"),
            ("p.html", "<!DOCTYPE html>\n<html><body>\n<p>a</p>", "HTML; extract its text"),
            ("-", "a leaf\rbread\rtea\n", "end with CR alone"),
            ("-", "id,text\r1,a\r2,b\n", "end with CR alone"),
            ("-", "[1, \"a leaf\"]\n[2, \"bread\"]", "each line is a JSON array"),
            (
                "-",
                "a\tb\tA leaf.\nc\td\tBread.",
                "have 3 columns, separated by tabs, but no header",
            ),
            ("a.tsv", "query-id\tcorpus-id\tscore\nq1\td1\t1", "a run or relevance judgements"),
            ("-", "q1 Q0 d1 1 2.5 t\nq1 Q0 d2 2 1 t", "a run or relevance judgements"),
            ("-", "q1 0 d1 1\nq1 0 d2 0", "a run or relevance judgements"),
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
            match records.map_err(|error| error.to_string())?.kind {
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
    fn records_of_columns_have_ids_and_texts() {
        let named = |text: &str| -> Vec<String> {
            let records = records(text, "-", false).expect("read").flatten();
            let content = |record: Record| match record.content {
                Ok(Content::Named { id, text }) => format!("{id}: {text}"),
                other => format!("{other:?}"),
            };
            records.map(content).collect()
        };
        let top = "1048585\t7187158\twhat is tide\tThe tide turns.\n\
                   1048585\t7187157\twhat is tide\tBread.\nbroken\n";
        let bad = "Err(\"1 columns, but most lines have 4\")";
        assert_eq!(named(top), ["7187158: The tide turns.", "7187157: Bread.", bad]);
        let pages =
            "D1\thttps://a.org/tide\tTides\tThe tide turns.\nD3\thttp://b.org/x\t\tBread.\n";
        assert_eq!(named(pages), ["D1: Tides The tide turns.", "D3: Bread."]);
    }

    #[test]
    fn records_skip_headers_of_appended_tables() {
        for text in [
            "id,text\n1,a\nid,text\n2,b\n",
            "id,text\n1,a\n\u{feff}\"ID\",Text\r\n2,b\n",
            "id,text\n1,a\ntext,id\nb,2\n",
        ] {
            let mut records = records(text, "-", false).expect("read");
            let texts: Vec<String> = records
                .by_ref()
                .map(|record| match record.expect("memory").content {
                    Ok(Content::Fields(mut fields)) => {
                        fields.take_text(&["text"]).expect("a string").unwrap_or_default()
                    }
                    other => format!("{other:?}"),
                })
                .collect();
            assert_eq!((texts, records.repeated_headers()), (vec!["a".into(), "b".into()], 1));
        }
    }

    #[test]
    fn records_of_a_line_are_its_objects() {
        assert_eq!(
            objects("{\"a\": \"}{\"}{} \u{feff}{\"b\""),
            ["{\"a\": \"}{\"}", "{}", "{\"b\""]
        );
        assert_eq!(objects("{\"a\": 1} trailing"), ["{\"a\": 1} trailing"]);
        let bulk =
            "{\"index\": {\"_id\": 7}}\n{\"text\": \"a\"}\n{\"create\": {}}\n{\"text\": \"b\"}\n";
        let names = FieldNames::default();
        let read = records(bulk, "-", false).expect("read").flatten().map(|record| {
            let Ok(Content::Fields(fields)) = record.content else { panic!("no fields") };
            let document = names.document(record.number, fields).expect("a document");
            (document.line, document.id, document.text)
        });
        let expected = [(2, Some("7".to_owned()), "a".to_owned()), (4, None, "b".to_owned())];
        assert!(read.eq(expected));
    }

    #[test]
    fn records_of_a_long_first_object_are_read() {
        let long = "x".repeat(SAMPLE_BYTES as usize);
        let text =
            format!("{{\n\"id\":\"a\",\"text\":\"{long}\"\n}}\n{{\"id\":\"b\",\n\"text\":\"y\"}}");
        let records = records(&text, "-", false).expect("read").flatten();
        assert_eq!(records.filter(|record| record.content.is_ok()).count(), 2);
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
