//! The lines of a text file.

use std::io::{self, BufRead, Read};

/// Maximum number of bytes of a line, a row, an element of a JSON array, or a text file in a folder. A longer one is
/// reported as bad, so that it cannot fill the memory.
pub(super) const MAX_RECORD_BYTES: usize = 16 << 20;

/// A line that is not blank, or the reason why its bytes were dropped.
pub struct Line {
    /// The line number, from 1.
    pub number: usize,
    bytes: Result<Vec<u8>, String>,
}

impl Line {
    /// Returns the line's text without its line end, or the reason why it cannot be used.
    pub fn text(self) -> Result<String, String> {
        utf8(self.bytes?, "line")
    }
}

/// Returns the text of the `what`, or the position of the first invalid byte.
pub(super) fn utf8(bytes: Vec<u8>, what: &str) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.utf8_error().valid_up_to();
        let advice = "convert the file, for example: iconv -f WINDOWS-1252 -t UTF-8";
        format!("not UTF-8: byte {} of the {what} is invalid; {advice}", valid + 1)
    })
}

/// An iterator over the lines of a reader that are not blank.
///
/// Lines end with `\n` or `\r\n`. A byte order mark at the beginning of a line is dropped, because it comes from a
/// file that was appended to another.
pub struct Lines<R> {
    reader: R,
    /// The number of the previous line.
    number: usize,
    blank: usize,
}

impl<R: BufRead> Lines<R> {
    /// Reads lines from a reader.
    pub fn of(reader: R) -> Self {
        Self { reader, number: 0, blank: 0 }
    }

    /// Returns the number of blank lines so far.
    pub fn blank(&self) -> usize {
        self.blank
    }

    fn read(&mut self) -> io::Result<Option<Line>> {
        loop {
            self.number += 1;
            let number = self.number;
            let mut bytes = Vec::new();
            let limit = MAX_RECORD_BYTES as u64 + 1;
            if self.reader.by_ref().take(limit).read_until(b'\n', &mut bytes)? == 0 {
                return Ok(None);
            }
            if bytes.len() > MAX_RECORD_BYTES && bytes.last() != Some(&b'\n') {
                self.reader.skip_until(b'\n')?;
                return Ok(Some(Line { number, bytes: Err(too_long("line")) }));
            }
            if bytes.trim_ascii().is_empty() {
                self.blank += 1;
                continue;
            }
            while bytes.starts_with(b"\xef\xbb\xbf") {
                bytes.drain(..3);
            }
            bytes.pop_if(|byte| *byte == b'\n');
            bytes.pop_if(|byte| *byte == b'\r');
            return Ok(Some(Line { number, bytes: Ok(bytes) }));
        }
    }
}

/// Returns the reason why a `what` beyond the limit was dropped.
pub(super) fn too_long(what: &str) -> String {
    format!("the {what} is longer than {} MiB", MAX_RECORD_BYTES >> 20)
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<Line>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
