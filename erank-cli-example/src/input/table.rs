//! The rows of CSV and of TSV with a header, as RFC 4180 and Python's csv module define them.

use std::io::{self, BufRead, Cursor, Read};

use super::lines::{MAX_RECORD_BYTES, too_long, utf8};

/// An iterator over the rows of a table. Blank lines between rows are skipped and counted.
///
/// A field in quotes may hold delimiters, line breaks and doubled quotes. Text after the closing quote is a part of
/// the field.
///
/// A quote that is not closed does not swallow the rows after it: a field spans lines only if its closing quote is
/// followed by a delimiter or a line end. Otherwise the quotes of the first line are characters. In TSV, where texts
/// are seldom quoted, lines within the quotes must not look like rows either.
pub(super) struct Rows<R> {
    reader: R,
    /// Lines that were read before, but are no part of the row.
    held: Cursor<Vec<u8>>,
    delimiter: u8,
    /// Number of fields of the first row, or 0 before it.
    columns: usize,
    /// Number of lines that were read.
    lines: usize,
    blank: usize,
    doubtful: Option<Doubtful>,
}

/// A row, or the reason why it cannot be used.
pub(super) struct Row {
    /// The number of the row's first line, from 1.
    pub(super) line: usize,
    pub(super) cells: Result<Vec<String>, String>,
}

/// The first row with quotes around lines that look like rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Doubtful {
    pub(super) line: usize,
    pub(super) inner: usize,
}

impl<R: BufRead> Rows<R> {
    pub(super) fn of(reader: R, delimiter: u8) -> Self {
        let held = Cursor::default();
        Self { reader, held, delimiter, columns: 0, lines: 0, blank: 0, doubtful: None }
    }

    /// Returns the number of blank lines so far.
    pub(super) fn blank(&self) -> usize {
        self.blank
    }

    pub(super) fn doubtful(&self) -> Option<Doubtful> {
        self.doubtful
    }

    /// Skips the first line.
    pub(super) fn skip_line(&mut self) -> io::Result<()> {
        self.reader.skip_until(b'\n')?;
        self.lines += 1;
        Ok(())
    }

    fn read(&mut self) -> io::Result<Option<Row>> {
        loop {
            let first = self.read_line()?;
            if first.is_empty() {
                return Ok(None);
            }
            self.lines += 1;
            let line = self.lines;
            if first.len() > MAX_RECORD_BYTES {
                if !first.ends_with(b"\n") {
                    self.reader.skip_until(b'\n')?;
                }
                return Ok(Some(Row { line, cells: Err(too_long("row")) }));
            }
            if first.trim_ascii().is_empty() {
                self.blank += 1;
                continue;
            }
            let mut quotes = Quotes::new(self.delimiter);
            first.iter().for_each(|byte| _ = quotes.read(*byte));
            let (bytes, has_quotes) = match quotes.are_open() {
                true => self.join(first, quotes)?,
                // Text after a closing quote: in TSV, the quotes are those of the text.
                false => (first, self.delimiter != b'\t' || !quotes.is_broken),
            };
            let cells = utf8(bytes, "row").map(|row| self.cells(&row, has_quotes));
            if let Ok(cells) = &cells
                && self.columns == 0
            {
                self.columns = cells.len();
            }
            return Ok(Some(Row { line, cells }));
        }
    }

    /// Reads a line with its end. It is longer than the limit if the line is.
    fn read_line(&mut self) -> io::Result<Vec<u8>> {
        let mut line = Vec::new();
        self.held.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            let limit = (MAX_RECORD_BYTES + 1).saturating_sub(line.len());
            self.reader.by_ref().take(limit as u64).read_until(b'\n', &mut line)?;
        }
        Ok(line)
    }

    /// Joins a line and the lines after it that its open quotes hold. Returns the line alone, and false, if the quotes
    /// do not end as those of a field do.
    fn join(&mut self, first: Vec<u8>, mut quotes: Quotes) -> io::Result<(Vec<u8>, bool)> {
        let (length, mut bytes) = (first.len(), first);
        let (mut lines, mut like_rows) = (0, 0);
        quotes.is_broken &= self.delimiter == b'\t';
        while quotes.are_open() {
            let line = self.read_line()?;
            let is_end = line.is_empty();
            let inside = quotes.read_line(&line);
            let looks_like_row = self.columns > 1
                && inside.contains(&self.delimiter)
                && line.split(|byte| *byte == self.delimiter).count() == self.columns;
            if looks_like_row && self.begins_alike(&bytes, &line) {
                like_rows += 1;
            }
            bytes.extend_from_slice(&line);
            lines += 1;
            let is_tsv_row = looks_like_row && self.delimiter == b'\t';
            if is_end || is_tsv_row || quotes.is_broken || bytes.len() > MAX_RECORD_BYTES {
                let mut held = bytes.split_off(length);
                self.held.read_to_end(&mut held)?;
                self.held = Cursor::new(held);
                return Ok((bytes, false));
            }
        }
        if like_rows > 0 {
            self.doubtful.get_or_insert(Doubtful { line: self.lines, inner: like_rows });
        }
        self.lines += lines;
        Ok((bytes, true))
    }

    /// Returns whether the first fields of two lines have the same form, such as two numbers.
    fn begins_alike(&self, row: &[u8], line: &[u8]) -> bool {
        let form = |line: &[u8]| {
            let field = line.split(|byte| *byte == self.delimiter).next().unwrap_or_default();
            let others = field.iter().filter(|byte| !byte.is_ascii_alphanumeric());
            let mut others: Vec<u8> = others.copied().collect();
            others.dedup();
            let (digit, letter) = (u8::is_ascii_digit, u8::is_ascii_alphabetic);
            (field.iter().any(digit), field.iter().any(letter), others)
        };
        form(row) == form(line)
    }

    /// Splits a row into its fields. Without quotes, a line whose number of fields is wrong is split as if its last
    /// field were closed.
    fn cells(&self, row: &str, has_quotes: bool) -> Vec<String> {
        let quoted = || cells(row, self.delimiter);
        if has_quotes {
            return quoted();
        }
        let plain = trimmed(row).split(char::from(self.delimiter));
        let plain: Vec<String> = plain.map(str::to_owned).collect();
        if plain.len() == self.columns {
            return plain;
        }
        Some(quoted()).filter(|cells| cells.len() == self.columns).unwrap_or(plain)
    }
}

impl<R: BufRead> Iterator for Rows<R> {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// The quotes of a row, byte by byte.
struct Quotes {
    delimiter: u8,
    state: QuoteState,
    /// Whether a closing quote was followed by text.
    is_broken: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum QuoteState {
    AtStart,
    Unquoted,
    Open,
    /// After a quote within quotes: it closes the field, or the next one makes it a character.
    Closing,
    /// After a closing quote and spaces.
    Closed,
}

impl Quotes {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, state: QuoteState::AtStart, is_broken: false }
    }

    fn are_open(&self) -> bool {
        self.state == QuoteState::Open
    }

    /// Reads a byte. Returns whether it is a part of the field's text.
    fn read(&mut self, byte: u8) -> bool {
        use QuoteState::{AtStart, Closed, Closing, Open, Unquoted};
        let (state, is_text) = match (self.state, byte) {
            (AtStart, b'"') | (Closing, b'"') => (Open, self.state == Closing),
            (Open, b'"') => (Closing, false),
            (Open, _) => (Open, true),
            (_, byte) if byte == self.delimiter => (AtStart, false),
            (Closing | Closed, b' ') => (Closed, true),
            (Closing | Closed, byte) => {
                self.is_broken |= !matches!(byte, b'\r' | b'\n');
                (Unquoted, true)
            }
            _ => (Unquoted, true),
        };
        self.state = state;
        is_text
    }

    /// Reads a line that begins within quotes. Returns the part of it before the quotes end.
    fn read_line<'a>(&mut self, line: &'a [u8]) -> &'a [u8] {
        let mut inside = line.len();
        for (position, byte) in line.iter().enumerate() {
            self.read(*byte);
            if !matches!(self.state, QuoteState::Open | QuoteState::Closing) {
                inside = inside.min(position);
            }
        }
        &line[..inside]
    }
}

/// Splits a row into its fields.
pub(super) fn cells(row: &str, delimiter: u8) -> Vec<String> {
    let mut quotes = Quotes::new(delimiter);
    let mut cells = vec![Vec::new()];
    for byte in trimmed(row).bytes() {
        let is_delimiter = !quotes.are_open() && byte == delimiter;
        let is_text = quotes.read(byte);
        match cells.last_mut() {
            _ if is_delimiter => cells.push(Vec::new()),
            Some(cell) if is_text => cell.push(byte),
            _ => {}
        }
    }
    // Delimiters and quotes are ASCII, so that no character was split.
    cells.into_iter().map(|cell| String::from_utf8_lossy(&cell).into_owned()).collect()
}

/// Returns a row without its line end and byte order mark.
fn trimmed(row: &str) -> &str {
    let row = row.strip_suffix('\n').unwrap_or(row);
    let row = row.strip_suffix('\r').unwrap_or(row);
    row.strip_prefix('\u{feff}').unwrap_or(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(bytes: &[u8]) -> Vec<(usize, Result<Vec<String>, String>)> {
        let reader = io::BufReader::with_capacity(3, bytes);
        let rows = Rows::of(reader, b',').map(|row| row.expect("memory"));
        rows.map(|row| (row.line, row.cells)).collect()
    }

    fn row(cells: &[&str]) -> Result<Vec<String>, String> {
        Ok(cells.iter().map(|cell| (*cell).to_owned()).collect())
    }

    #[test]
    fn rows_have_quoted_delimiters_breaks_and_quotes() {
        let text = "id,text\r\n1,\"a, \"\"b\"\"\r\nc\"\n\n2,a \"quoted\" word\n3,\"x\" y\n\"\",\"\",\n4,last";
        assert_eq!(
            rows(text.as_bytes()),
            [
                (1, row(&["id", "text"])),
                (2, row(&["1", "a, \"b\"\r\nc"])),
                (5, row(&["2", "a \"quoted\" word"])),
                (6, row(&["3", "x y"])),
                (7, row(&["", "", ""])),
                (8, row(&["4", "last"])),
            ]
        );
        assert_eq!(rows(b"").len(), 0);
        let mut counted = Rows::of(&b"\n \na\n\n"[..], b',');
        assert_eq!((counted.by_ref().count(), counted.blank()), (1, 3));
    }

    #[test]
    fn rows_report_open_quotes_bad_bytes_and_long_rows() {
        let found = rows(b"1,caf\xe9\n2,ok\n3,\"open\nmore\n");
        assert!(found[0].1.as_ref().is_err_and(|reason| reason.contains("byte 6 of the row")));
        assert_eq!(found[1], (2, row(&["2", "ok"])));
        assert_eq!(found[2].0, 3);
        assert_eq!(found[2].1, row(&["3", "\"open"]));
        assert_eq!(found[3..], [(4, row(&["more"]))]);
        for start in ["1,", "1,\""] {
            let long = [start, &"x".repeat(MAX_RECORD_BYTES), "\n2,x\n"].concat();
            let found: Vec<_> = Rows::of(long.as_bytes(), b',').flatten().collect();
            assert!(found[0].cells.as_ref().is_err_and(|reason| reason.contains("16 MiB")));
            assert_eq!((found[1].line, found.len()), (2, 2));
        }
    }

    #[test]
    fn rows_after_a_stray_quote_are_read() {
        for (delimiter, text, expected) in [
            (
                b'\t',
                "id\ttext\n1\t\"Who?\n2\ta\n3\t\"I do,\" said he\n",
                "1|\"Who?,2|a,3|\"I do,\" said he",
            ),
            (b'\t', "id\ttext\n1\t\"\n2\tb\n3\t\"\n", "1|\",2|b,3|\""),
            (b'\t', "id\ttext\n1\t\"a\nb\"\n2\tc\n", "1|a\nb,2|c"),
            (b'\t', "text\tid\n\"a\nb\"\t1\nc\t2\n", "a\nb|1,c|2"),
            (b';', "id;text\n1;\"a\n2;b\n3;\"c; d\" e\n", "1|\"a,2|b,3|c; d e"),
            (b';', "id;text\n1;\"a; b\n2;c\n3;d\n", "1|a; b,2|c,3|d"),
            (b';', "id;text\n1;\"a\nb\" \n2;c\n", "1|a\nb ,2|c"),
        ] {
            let rows = Rows::of(io::BufReader::with_capacity(3, text.as_bytes()), delimiter);
            let rows = rows.skip(1).map(|row| row.expect("memory").cells.expect("UTF-8").join("|"));
            assert_eq!(rows.collect::<Vec<_>>().join(","), expected, "{text}");
        }
        let doubtful = |text: &'static str| {
            let mut rows = Rows::of(text.as_bytes(), b',');
            rows.by_ref().for_each(drop);
            rows.doubtful()
        };
        let both = Doubtful { line: 2, inner: 2 };
        assert_eq!(doubtful("id,text\n1,\"a\n2,b\n3,5\"\n4,d\n"), Some(both));
        assert_eq!(doubtful("id,text\n1,\"a,\nb, c\nd\"\n2,e\n"), None);
    }
}
