//! Plain-text tables. Columns are padded by display width, and long text is cut to the terminal's width.
//!
//! `console` measures, pads and cuts. Table libraries would replace the rest only in part. comfy-table and
//! tabled know no text that spans the columns below a row, and they divide the width between columns in
//! another way.

use std::io::{self, Write};

use console::{Alignment, measure_text_width, pad_str};

const GAP: &str = "  ";
const CUT: &str = "…";

/// Returns the width of the terminal in columns, or a fixed width if output is not a terminal.
pub(crate) fn output_width() -> usize {
    const DEFAULT: usize = 120;
    const MINIMUM: usize = 60;
    let terminal = console::Term::stdout();
    let size = terminal.is_term().then(|| terminal.size_checked()).flatten();
    size.map_or(DEFAULT, |(_, columns)| usize::from(columns).max(MINIMUM))
}

/// A column's title and layout.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column<'a> {
    /// Right-aligned, never cut.
    Number(&'a str),
    /// Left-aligned, cut to 24 columns.
    Word(&'a str),
    /// Left-aligned, cut to its share of the remaining width.
    Text(&'a str),
}

impl<'a> Column<'a> {
    fn title(self) -> &'a str {
        match self {
            Self::Number(title) | Self::Word(title) | Self::Text(title) => title,
        }
    }
}

struct Row {
    cells: Vec<String>,
    below: String,
}

/// A table of cells that are safe to print.
pub(crate) struct Table<'a> {
    columns: Vec<Column<'a>>,
    rows: Vec<Row>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(columns: Vec<Column<'a>>) -> Self {
        let titles = columns.iter().map(|column| column.title().to_owned()).collect();
        Self { columns, rows: vec![Row { cells: titles, below: String::new() }] }
    }

    /// Adds a row, and the text below it, which may be empty.
    pub(crate) fn row(&mut self, cells: Vec<String>, below: String) {
        self.rows.push(Row { cells, below });
    }

    /// Writes the table, wrapped and cut to `width` columns.
    ///
    /// # Errors
    ///
    /// Returns any I/O error of the writer.
    pub(crate) fn write(&self, width: usize, out: &mut dyn Write) -> io::Result<()> {
        let widths = self.widths(width);
        for row in &self.rows {
            let cells = row.cells.iter().zip(&self.columns).zip(&widths);
            let cells: Vec<_> =
                cells.map(|((cell, column), width)| pad(cell, *column, *width)).collect();
            writeln!(out, "{}", cells.join(GAP).trim_end())?;
            for line in wrapped(&row.below, width.saturating_sub(BELOW.len())) {
                writeln!(out, "{}", format!("{BELOW}{line}").trim_end())?;
            }
        }
        Ok(())
    }

    /// Returns the width of each column in a table of `width` columns.
    fn widths(&self, width: usize) -> Vec<usize> {
        const MAX_WORD_WIDTH: usize = 24;
        const MIN_TEXT_WIDTH: usize = 12;
        let widest = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(index));
            cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        let mut texts = Vec::new();
        let mut remaining = width.saturating_sub(GAP.len() * self.columns.len().saturating_sub(1));
        for (index, column) in self.columns.iter().enumerate() {
            match column {
                Column::Text(_) => texts.push(index),
                Column::Word(_) => widths[index] = widths[index].min(MAX_WORD_WIDTH),
                Column::Number(_) => {}
            }
            if !matches!(column, Column::Text(_)) {
                remaining = remaining.saturating_sub(widths[index]);
            }
        }
        // Narrow columns come first, because wider columns share the width that narrow ones do not need.
        texts.sort_by_key(|&index| widths[index]);
        for (done, &index) in texts.iter().enumerate() {
            let share = remaining / (texts.len() - done);
            widths[index] = widths[index].min(share.max(MIN_TEXT_WIDTH));
            remaining = remaining.saturating_sub(widths[index]);
        }
        widths
    }
}

/// The indentation of text below a row.
const BELOW: &str = "      ";

/// Pads or cuts a cell to `width` columns.
fn pad(cell: &str, column: Column<'_>, width: usize) -> String {
    let alignment = match column {
        Column::Number(_) => Alignment::Right,
        Column::Word(_) | Column::Text(_) => Alignment::Left,
    };
    pad_str(cell, width, alignment, Some(CUT)).into_owned()
}

/// Wraps text into lines of at most `width` columns. A line has at least one character, even if that is
/// wider.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        let mut line_width = 0;
        for word in paragraph.split(' ').filter(|word| !word.is_empty()) {
            let word_width = measure_text_width(word);
            if line_width > 0 && line_width + 1 + word_width > width {
                lines.push(std::mem::take(&mut line));
                line_width = 0;
            }
            if line_width > 0 {
                line.push(' ');
                line_width += 1;
            }
            for character in word.chars() {
                let character_width = measure_text_width(character.encode_utf8(&mut [0; 4]));
                if line_width > 0 && line_width + character_width > width {
                    lines.push(std::mem::take(&mut line));
                    line_width = 0;
                }
                line.push(character);
                line_width += character_width;
            }
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(table: &Table<'_>, width: usize) -> String {
        let mut out = Vec::new();
        table.write(width, &mut out).expect("written");
        String::from_utf8(out).expect("UTF-8")
    }

    fn table() -> Table<'static> {
        let mut table =
            Table::new(vec![Column::Number("rank"), Column::Word("id"), Column::Text("text")]);
        table.row(vec!["1".into(), "東京".into(), "x ".repeat(40)], String::new());
        table
            .row(vec!["10".into(), "b".into(), "short".into()], "a thought of its very own".into());
        table
    }

    #[test]
    fn write_aligns_columns_and_cuts_long_text() {
        let expected = "\
rank  id    text
   1  東京  x x x x x x x x…
  10  b     short
      a thought of its very
      own
";
        assert_eq!(written(&table(), 28), expected);
        assert!(written(&table(), 28).lines().all(|line| measure_text_width(line) <= 28));
    }

    #[test]
    fn widths_divides_remaining_width_between_text_columns() {
        let mut table = Table::new(vec![Column::Text("a"), Column::Text("b")]);
        table.row(vec!["y".repeat(100), "z".repeat(20)], String::new());
        assert_eq!(table.widths(82), [60, 20]);
        assert_eq!(table.widths(42), [20, 20]);
        assert_eq!(table.widths(0), [12, 12]);
    }

    #[test]
    fn wrapped_breaks_long_words_and_keeps_paragraphs() {
        assert_eq!(wrapped("ab cd\n\nefghij k", 5), ["ab cd", "", "efghi", "j k"]);
        assert_eq!(wrapped("東京", 1), ["東", "京"]);
        assert!(wrapped("", 5).is_empty());
    }
}
