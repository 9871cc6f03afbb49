//! The rows of CSV and of TSV with a header, as RFC 4180 and Python's csv module define them.

use std::io::{self, BufRead};

use super::lines::{MAX_RECORD_BYTES, too_long, utf8};

/// An iterator over the rows of a table. Blank lines between rows are skipped and counted.
///
/// A field in quotes may hold delimiters, line breaks and doubled quotes. Text after the closing quote is a part of
/// the field.
pub(super) struct Rows<R> {
    reader: R,
    delimiter: u8,
    /// Number of lines that were read.
    lines: usize,
    blank: usize,
    ended: bool,
}

/// A row, or the reason why it cannot be used.
pub(super) struct Row {
    /// The number of the row's first line, from 1.
    pub(super) line: usize,
    pub(super) cells: Result<Vec<String>, String>,
}

impl<R: BufRead> Rows<R> {
    pub(super) fn of(reader: R, delimiter: u8) -> Self {
        Self { reader, delimiter, lines: 0, blank: 0, ended: false }
    }

    /// Returns the number of blank lines so far.
    pub(super) fn blank(&self) -> usize {
        self.blank
    }

    fn read(&mut self) -> io::Result<Option<Row>> {
        loop {
            let line = self.lines + 1;
            let mut bytes = Vec::new();
            match self.read_bytes(&mut bytes)? {
                End::Row if bytes.trim_ascii().is_empty() => self.blank += 1,
                End::Row => {
                    let cells = utf8(bytes, "row").map(|row| cells(&row, self.delimiter));
                    return Ok(Some(Row { line, cells }));
                }
                End::Quote => {
                    // The rows after it cannot be told from the field.
                    self.ended = true;
                    let reason =
                        "the quotes of a field do not end; the rows after this line are not read";
                    return Ok(Some(Row { line, cells: Err(reason.into()) }));
                }
                End::TooLong => {
                    let reason = too_long("row") + "; the rows after this line are not read";
                    self.ended = true;
                    return Ok(Some(Row { line, cells: Err(reason) }));
                }
                End::Data => return Ok(None),
            }
        }
    }

    /// Reads the lines of a row.
    fn read_bytes(&mut self, bytes: &mut Vec<u8>) -> io::Result<End> {
        let mut quotes = Quotes::new(self.delimiter);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(match bytes.is_empty() {
                    true => End::Data,
                    false if quotes.are_open() => End::Quote,
                    false => End::Row,
                });
            }
            let end = buffer.iter().position(|byte| {
                let is_break = *byte == b'\n';
                self.lines += usize::from(is_break);
                quotes.read(*byte);
                is_break && !quotes.are_open()
            });
            let part = end.map_or(buffer.len(), |end| end + 1);
            bytes.extend_from_slice(&buffer[..part]);
            self.reader.consume(part);
            if bytes.len() > MAX_RECORD_BYTES {
                return Ok(End::TooLong);
            }
            if end.is_some() {
                return Ok(End::Row);
            }
        }
    }
}

/// What ended the bytes of a row.
enum End {
    Row,
    /// The data ended within quotes.
    Quote,
    TooLong,
    /// There is no row.
    Data,
}

impl<R: BufRead> Iterator for Rows<R> {
    type Item = io::Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let row = self.read().transpose();
        self.ended |= !matches!(row, Some(Ok(_)));
        row
    }
}

/// The quotes of a row, byte by byte.
struct Quotes {
    delimiter: u8,
    state: QuoteState,
}

#[derive(Clone, Copy, PartialEq)]
enum QuoteState {
    AtStart,
    Unquoted,
    Open,
    /// After a quote within quotes: it closes the field, or the next one makes it a character.
    Closing,
}

impl Quotes {
    fn new(delimiter: u8) -> Self {
        Self { delimiter, state: QuoteState::AtStart }
    }

    fn are_open(&self) -> bool {
        self.state == QuoteState::Open
    }

    /// Reads a byte. Returns whether it is a part of the field's text.
    fn read(&mut self, byte: u8) -> bool {
        use QuoteState::{AtStart, Closing, Open, Unquoted};
        let (state, is_text) = match (self.state, byte) {
            (AtStart, b'"') | (Closing, b'"') => (Open, self.state == Closing),
            (Open, b'"') => (Closing, false),
            (Open, _) => (Open, true),
            (_, byte) if byte == self.delimiter => (AtStart, false),
            _ => (Unquoted, true),
        };
        self.state = state;
        is_text
    }
}

/// Splits a row into its fields.
pub(super) fn cells(row: &str, delimiter: u8) -> Vec<String> {
    let row = row.strip_suffix('\n').unwrap_or(row);
    let row = row.strip_suffix('\r').unwrap_or(row);
    let row = row.strip_prefix('\u{feff}').unwrap_or(row);
    let mut quotes = Quotes::new(delimiter);
    let mut cells = vec![Vec::new()];
    for byte in row.bytes() {
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
        assert!(found[2].1.as_ref().is_err_and(|reason| reason.contains("quotes of a field")));
        assert_eq!(found.len(), 3);
        let long = ["1,", &"x".repeat(MAX_RECORD_BYTES), "\n2,x\n"].concat();
        let found: Vec<_> = Rows::of(long.as_bytes(), b',').flatten().collect();
        assert!(found[0].cells.as_ref().is_err_and(|reason| reason.contains("16 MiB")));
        assert_eq!(found.len(), 1);
    }
}
