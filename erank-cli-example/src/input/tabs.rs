//! Lines of columns that are separated by tabs and have no header.

use std::collections::HashSet;

use super::sample::Format;

/// The columns of lines.
pub(super) struct TabLines<'a>(Vec<Vec<&'a [u8]>>);

impl<'a> TabLines<'a> {
    pub(super) fn of(lines: &[&'a [u8]]) -> Self {
        let columns =
            |line: &&'a [u8]| line.trim_ascii_end().split(|byte| *byte == b'\t').collect();
        Self(lines.iter().map(columns).collect())
    }

    /// Returns the format of the lines, or the reason why they need a header. If `has_ids`, the first column is an id.
    ///
    /// What most lines show counts, because a line break in a text would otherwise hide the columns of all others.
    pub(super) fn format(&self, has_ids: bool) -> Result<Format, String> {
        if self.most(|row| row.len() > 2 && is_address(row[1])) {
            return Ok(Format::Pages);
        }
        if self.most(|row| row.len() == 4 && is_number(row[0]) && is_number(row[1])) {
            return Ok(Format::Candidates);
        }
        if let Some(columns) = self.constant_columns() {
            return Err(format!(
                "its lines have {columns} columns, separated by tabs, but no header; write one that names them, such \
                 as id, title, text"
            ));
        }
        let is_named = has_ids
            || self.most(|row| row.len() > 1 && is_number(row[0]))
            || (self.has_words() && self.most(|row| row.len() > 1 && is_id(row[0])));
        Ok(if is_named { Format::NamedText } else { Format::Text })
    }

    /// Returns what the user should know about a format that is not certain.
    pub(super) fn remark(&self, format: Format, has_ids: bool) -> Option<&'static str> {
        match format {
            Format::Candidates => {
                Some("of each line, the second column is the id and the last one the text")
            }
            Format::Pages => {
                Some("of each line, the first column is the id, and the address is left out")
            }
            Format::NamedText if !has_ids && !self.most(|row| is_number(row[0])) => {
                Some("the text of each line before the first tab is its id")
            }
            Format::Text if self.has_words() => Some(
                "the lines have tabs, but are read as texts; if the first column is the id, name the file .tsv",
            ),
            _ => None,
        }
    }

    fn most(&self, is_one: impl Fn(&[&[u8]]) -> bool) -> bool {
        self.0.iter().filter(|row| is_one(row)).count() * 2 > self.0.len()
    }

    /// Returns the number of columns if there are more than two, and nine of ten lines have as many.
    fn constant_columns(&self) -> Option<usize> {
        let columns = self.0.get(1)?.len();
        let alike = self.0.iter().filter(|row| row.len() == columns).count();
        (columns > 2 && alike * 10 >= self.0.len() * 9).then_some(columns)
    }

    /// Returns whether most lines begin with a word and a tab, and these words are all different.
    fn has_words(&self) -> bool {
        let words = self.0.iter().filter(|row| row.len() > 1 && is_word(row[0]));
        let words: Vec<&[u8]> = words.map(|row| row[0]).collect();
        let distinct: HashSet<&&[u8]> = words.iter().collect();
        let is_most = words.len() * 2 > self.0.len();
        self.0.len() > 1 && is_most && distinct.len() == words.len()
    }
}

fn is_number(cell: &[u8]) -> bool {
    !cell.is_empty() && cell.iter().all(u8::is_ascii_digit)
}

/// Returns whether a cell is a word without white space.
fn is_word(cell: &[u8]) -> bool {
    !cell.is_empty() && !cell.iter().any(u8::is_ascii_whitespace)
}

/// Returns whether a word looks like an id: it has a digit, and is no number, which may also be a score.
fn is_id(cell: &[u8]) -> bool {
    let is_number = || std::str::from_utf8(cell).is_ok_and(|cell| cell.parse::<f64>().is_ok());
    is_word(cell) && cell.iter().any(u8::is_ascii_digit) && !is_number()
}

fn is_address(cell: &[u8]) -> bool {
    cell.starts_with(b"http://") || cell.starts_with(b"https://")
}
