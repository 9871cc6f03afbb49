//! The format of a file, as its beginning shows it.

use erank_core::trec::Qrels;

use super::fields::{Columns, is_alike};
use super::json::{self, Scanner};
use super::records::Expected;
use super::table::{self, Rows};
use super::tabs::TabLines;

/// Number of bytes by which the format is recognised.
pub(super) const SAMPLE_BYTES: u64 = 1 << 20;

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Format {
    /// Each line is a text.
    Text,
    /// Each line has an id, a tab and a text.
    NamedText,
    /// Each line has a query id, a passage id, the query and the passage, as MS MARCO's top1000 files do.
    Candidates,
    /// Each line has an id, an address and texts, as MS MARCO's files of documents do.
    Pages,
    /// Each line is a JSON object or string.
    JsonLines,
    /// JSON arrays, or objects that span lines.
    Json,
    /// CSV or TSV with a header.
    Table { delimiter: u8 },
}

impl Format {
    /// Returns whether fields have no names.
    pub(super) fn is_plain(self) -> bool {
        matches!(self, Self::Text | Self::NamedText | Self::Candidates | Self::Pages)
    }
}

/// The beginning of a file.
pub(super) struct Sample<'a> {
    bytes: &'a [u8],
    /// The whole lines that are not blank, without white space at the beginning.
    pub(super) lines: Vec<&'a [u8]>,
    /// The beginning of a line whose end is beyond the sample.
    cut: Option<&'a [u8]>,
    is_whole: bool,
    /// The delimiter that the first line names for Excel: `sep=;`.
    separator: Option<u8>,
}

impl<'a> Sample<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        let is_whole = (bytes.len() as u64) < SAMPLE_BYTES;
        let mut lines: Vec<&[u8]> = bytes.split(|byte| *byte == b'\n').collect();
        // The last line may be cut off.
        let cut = if !is_whole && lines.len() > 1 { lines.pop() } else { None };
        let cut = cut.filter(|line| !line.trim_ascii().is_empty()).map(trimmed);
        lines.retain(|line| !line.trim_ascii().is_empty());
        for line in &mut lines {
            *line = trimmed(line);
        }
        let separator = lines.first().and_then(|line| separator(line));
        if separator.is_some() {
            lines.remove(0);
        }
        Self { bytes: trimmed(bytes), lines, cut, is_whole, separator }
    }

    /// Returns the format of the file, or the reason why it cannot be read.
    pub(super) fn format(
        &self,
        columns: &Columns<'_>,
        expected: Expected<'_>,
    ) -> Result<Format, String> {
        let ending = expected.name.map(ending).unwrap_or_default();
        if let Some(format) = self.json(matches!(ending, "json" | "jsonl" | "ndjson"))? {
            return Ok(format);
        }
        if let Some(reason) = self.unreadable() {
            return Err(reason.into());
        }
        if self.is_judgements(columns) || self.is_trec() {
            return Err("it holds a run or relevance judgements, not documents".into());
        }
        if let Some(delimiter) = self.table(columns, ending) {
            return Ok(Format::Table { delimiter });
        }
        if self.is_strings() {
            return Ok(Format::JsonLines);
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
        if let Some(reason) = self.other_encoding(ending) {
            return Err(reason.into());
        }
        self.tab_lines().format(has_ids(expected))
    }

    /// Returns what the user should know about a format that is not certain.
    pub(super) fn remark(&self, format: Format, expected: Expected<'_>) -> Option<&'static str> {
        format.is_plain().then(|| self.tab_lines().remark(format, has_ids(expected)))?
    }

    fn tab_lines(&self) -> TabLines<'a> {
        TabLines::of(&self.lines)
    }

    /// Returns the format of JSON, or the reason why it cannot be read. `None` if the file is not JSON.
    fn json(&self, is_json_file: bool) -> Result<Option<Format>, String> {
        let lines = || self.lines.iter().chain(&self.cut);
        let count = |is_one: fn(&[u8]) -> bool| lines().filter(|line| is_one(line)).count();
        let (braces, objects) = (count(|line| line.starts_with(b"{")), count(is_object));
        let is_mostly_objects = braces * 2 > lines().count();
        let is_half_objects = objects > 0 && objects * 2 == lines().count();
        if self.is_array() || (is_json_file && self.bytes.starts_with(b"[")) {
            if self.is_lines_of_arrays() {
                let advice = "make objects of them: jq -c '{id: .[0], text: .[1]}'";
                return Err(format!("each line is a JSON array; {advice}"));
            }
            return Ok(Some(Format::Json));
        }
        if is_text_sequence(self.bytes) {
            return Ok(Some(Format::Json));
        }
        if is_object(self.bytes) {
            match self.after_first_value() {
                // Several values in a line.
                Some(b'{' | b',') => return Ok(Some(Format::Json)),
                None if !is_mostly_objects => return Ok(Some(Format::Json)),
                _ => {}
            }
        }
        let is_lines = is_mostly_objects || is_half_objects || is_json_file;
        Ok(is_lines.then_some(Format::JsonLines))
    }

    pub(super) fn has_separator(&self) -> bool {
        self.separator.is_some()
    }

    /// Returns whether the text is JSON.
    pub(super) fn is_json(&self) -> bool {
        self.is_array() || is_object(self.bytes) || is_text_sequence(self.bytes)
    }

    /// Returns why the text cannot be read by lines, if so.
    fn unreadable(&self) -> Option<&'static str> {
        // CRs within the quotes of a table follow a header, which has none.
        let lone_returns = |bytes: &[u8]| {
            let pairs = bytes.windows(2).filter(|pair| pair[0] == b'\r' && pair[1] != b'\n');
            pairs.count()
        };
        let ends = self.bytes.iter().filter(|byte| **byte == b'\n').count();
        let has_returns = || self.bytes.trim_ascii_end().contains(&b'\r');
        let in_first_line = self.lines.first().map_or(0, |line| lone_returns(line));
        if (ends == 0 && has_returns()) || (in_first_line > 0 && lone_returns(self.bytes) >= ends) {
            return Some(
                "its lines end with CR alone, as on old Macs; convert them: tr '\\r' '\\n'",
            );
        }
        self.markup()
    }

    /// Returns why a file in HTML, XML or SGML cannot be read.
    fn markup(&self) -> Option<&'static str> {
        const NAMES: [&str; 14] = [
            "?xml",
            "doc",
            "docs",
            "document",
            "documents",
            "top",
            "topic",
            "topics",
            "mediawiki",
            "add",
            "rss",
            "feed",
            "corpus",
            "root",
        ];
        const XML: &str = "it is XML or SGML; convert its documents to JSON lines";
        let tag = self.lines.first()?.strip_prefix(b"<")?.to_ascii_lowercase();
        let end = tag.iter().position(|byte| b" \t\r>/".contains(byte)).unwrap_or(tag.len());
        let name = std::str::from_utf8(&tag[..end]).ok()?;
        if matches!(name, "!doctype" | "html" | "head" | "body") {
            return Some("it is HTML; extract its text first");
        }
        if NAMES.contains(&name) || name.starts_with("!--") {
            return Some(XML);
        }
        // An element over several lines.
        let closing = format!("</{name}");
        let closes = |line: &[u8]| {
            let line = line.to_ascii_lowercase();
            line.windows(closing.len()).any(|window| window == closing.as_bytes())
        };
        let is_open = !name.is_empty() && !closes(&tag);
        let ends_with_tag = !self.is_whole || self.bytes.trim_ascii_end().ends_with(b">");
        let is_element =
            is_open && ends_with_tag && self.lines[1..].iter().any(|line| closes(line));
        is_element.then_some(XML)
    }

    /// Returns the beginning of the first line.
    pub(super) fn first_line(&self) -> String {
        let line = self.lines.first().copied().unwrap_or_default();
        String::from_utf8_lossy(line).chars().take(100).collect()
    }

    /// Returns whether the file is a JSON array. A line of text may begin with a bracket, too.
    fn is_array(&self) -> bool {
        begins_array(self.bytes)
            || self.is_whole
                && self.bytes.starts_with(b"[")
                && self.bytes.contains(&b'"')
                && std::str::from_utf8(self.bytes).is_ok_and(json::is_value)
    }

    /// Returns whether the first lines are arrays of anything but objects.
    fn is_lines_of_arrays(&self) -> bool {
        let is_array = |line: &&[u8]| {
            let Some(inner) = line.strip_prefix(b"[") else { return false };
            let first = inner.trim_ascii_start().first();
            let is_value = || std::str::from_utf8(line).is_ok_and(json::is_value);
            first == Some(&b'"') || (first != Some(&b'{') && is_value())
        };
        self.lines.len() > 1 && self.lines[..2].iter().all(is_array)
    }

    /// Returns whether the lines are JSON strings. A single line may also be a sentence in quotes.
    fn is_strings(&self) -> bool {
        let is_string = |line: &&&[u8]| {
            line.starts_with(b"\"") && std::str::from_utf8(line).is_ok_and(json::is_value)
        };
        let strings: Vec<_> = self.lines.iter().filter(is_string).collect();
        let has_escapes = strings.iter().any(|line| line.contains(&b'\\'));
        let (found, lines) = (strings.len(), self.lines.len());
        found > 1 && found == lines || found * 2 > lines && has_escapes
    }

    /// Returns the byte after the JSON value of the first line, or `\n` if the value ends the line. `None` if the
    /// value does not end in the first line.
    fn after_first_value(&self) -> Option<u8> {
        let line = self.lines.first()?;
        let rest = &line[Scanner::default().end(line)?..];
        Some(trimmed(rest).first().copied().unwrap_or(b'\n'))
    }

    /// Returns the delimiter if the first line is the header of a table: the name of the text is among its fields.
    ///
    /// That is enough if the ending is that of CSV, if the user gave the name, or if the fields of a TSV file look like
    /// names. Otherwise all fields must look like names, and either another known name must be there, too, or most
    /// rows must have as many fields.
    fn table(&self, columns: &Columns<'_>, ending: &str) -> Option<u8> {
        let header = std::str::from_utf8(self.lines.first()?).ok()?;
        let separator = self.separator.as_slice();
        let delimiters: &[u8] = match ending {
            _ if !separator.is_empty() => separator,
            "tsv" | "tab" => b"\t,;|",
            _ => b",;\t|",
        };
        delimiters.iter().copied().find(|delimiter| {
            let cells = table::cells(header, *delimiter);
            let names: Vec<String> = cells.iter().map(|cell| columns.name(cell)).collect();
            let known = names.iter().filter(|name| columns.is_known(name)).count();
            // Ids have digits, so that a row without a header is not taken for one.
            let is_word = |name: &String| {
                columns.is_known(name) || !name.contains(|c: char| c.is_ascii_digit())
            };
            let are_names = cells.iter().all(|cell| is_name(cell));
            let are_words = || are_names && names.iter().all(is_word);
            let is_certain =
                ending == "csv" || columns.text_field.is_some() || self.separator.is_some();
            let is_header = is_certain
                || (are_names && known > 1)
                || (are_words() && matches!(ending, "tsv" | "tab"))
                || (are_words() && self.has_rows(*delimiter, cells.len()));
            is_header && names.iter().any(|name| columns.is_text(name))
        })
    }

    /// Returns whether most rows after the header have this number of fields. Of one field, all must be in quotes.
    fn has_rows(&self, delimiter: u8, columns: usize) -> bool {
        if columns == 1 {
            return self.lines[0].starts_with(b"\"") && self.is_strings();
        }
        let rows = Rows::of(self.bytes, delimiter).flatten().skip(1);
        let has_all = |row: table::Row| row.cells.is_ok_and(|cells| cells.len() == columns);
        let (rows, whole) =
            rows.fold((0, 0), |(rows, whole), row| (rows + 1, whole + usize::from(has_all(row))));
        whole * 2 > rows
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

    /// Returns whether the first line is the header of judgements or of a run: it names a query, a document and a
    /// grade, and no text.
    fn is_judgements(&self, columns: &Columns<'_>) -> bool {
        let header = self.lines.first().map(|line| std::str::from_utf8(line));
        let Some(Ok(header)) = header else { return false };
        b",;\t| ".iter().any(|delimiter| {
            let cells = table::cells(header, *delimiter);
            let has = |names: &&[&str]| {
                cells.iter().any(|cell| names.iter().any(|name| is_alike(name, cell.trim())))
            };
            cells.len() <= 8
                && Qrels::FIELD_NAMES.iter().all(has)
                && !cells.iter().any(|cell| columns.is_text(&columns.name(cell)))
        })
    }

    /// Returns whether all lines are those of a run or of judgements in TREC's format.
    fn is_trec(&self) -> bool {
        let is_entry = |line: &&[u8]| {
            let fields = line.split(u8::is_ascii_whitespace).filter(|field| !field.is_empty());
            match fields.collect::<Vec<_>>()[..] {
                [_, b"Q0" | b"0", _, grade] => {
                    grade.iter().all(|byte| b"-0123456789".contains(byte))
                }
                [_, b"Q0", _, _, _, _] => true,
                _ => false,
            }
        };
        !self.lines.is_empty() && self.lines.iter().all(is_entry)
    }

    /// Returns why a file cannot be read whose first line would be a header, but is not UTF-8.
    fn other_encoding(&self, ending: &str) -> Option<&'static str> {
        let header = self.lines.first().filter(|line| std::str::from_utf8(line).is_err())?;
        let is_table = matches!(ending, "csv" | "tsv" | "tab");
        let header = String::from_utf8_lossy(header);
        let is_header = b",;\t|".iter().any(|delimiter| {
            let cells = table::cells(&header, *delimiter);
            let is_name = |cell: &String| is_name(&cell.replace('\u{fffd}', "x"));
            cells.len() > 1 && cells.iter().all(is_name)
        });
        (self.lines.len() > 1 && (is_table || is_header)).then_some(super::decode::NOT_UTF8)
    }
}

/// Returns whether lines of text begin with an id.
fn has_ids(expected: Expected<'_>) -> bool {
    expected.has_ids || matches!(expected.name.map(ending), Some("tsv" | "tab"))
}

/// Returns the delimiter that a line names for Excel, as in `sep=;`.
fn separator(line: &[u8]) -> Option<u8> {
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let line = line.strip_prefix(b"\"").and_then(|line| line.strip_suffix(b"\"")).unwrap_or(line);
    match line {
        [b's', b'e', b'p', b'=', separator] => Some(*separator),
        _ => None,
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

/// Returns whether the bytes begin as a JSON array of objects or strings does. Before the first one, there may be
/// numbers and nulls, and brackets of nested arrays. Brackets alone may also be a citation or a link in a text.
fn begins_array(bytes: &[u8]) -> bool {
    let Some(mut rest) = bytes.strip_prefix(b"[").map(<[u8]>::trim_ascii_start) else {
        return false;
    };
    if let Some(rest) = rest.strip_prefix(b"]") {
        return rest.trim_ascii().is_empty();
    }
    loop {
        match rest.first() {
            Some(b'{') => return is_object(rest),
            Some(b'"') => {
                let end = Scanner::default().end(rest);
                let next = end.and_then(|end| rest[end..].trim_ascii_start().first());
                return matches!(next, None | Some(b',' | b']'));
            }
            Some(b'[') => rest = rest[1..].trim_ascii_start(),
            _ => {
                let Some(end) = rest.iter().position(|byte| *byte == b',') else { return false };
                if !std::str::from_utf8(&rest[..end]).is_ok_and(json::is_value) {
                    return false;
                }
                rest = rest[end + 1..].trim_ascii_start();
            }
        }
    }
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
