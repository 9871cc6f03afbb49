//! Plain tables: columns padded by what is seen, long text cut to the width there is.

use std::io::{self, Write};

use console::{Alignment, measure_text_width, pad_str};

const GAP: &str = "  ";
const CUT: &str = "…";

/// How wide output may be: the terminal, or a fixed width if there is none.
pub(crate) fn output_width() -> usize {
    const ELSEWHERE: usize = 120;
    const NARROWEST: usize = 60;
    let terminal = console::Term::stdout();
    let size = terminal.is_term().then(|| terminal.size_checked()).flatten();
    size.map_or(ELSEWHERE, |(_, columns)| usize::from(columns).max(NARROWEST))
}

/// A column's title and how it is laid out.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Column<'a> {
    /// To the right, as wide as needed.
    Number(&'a str),
    /// To the left, as wide as needed but for very long ones.
    Word(&'a str),
    /// To the left, cut to its share of what the others leave.
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

/// A table of texts that are safe to show.
pub(crate) struct Table<'a> {
    columns: Vec<Column<'a>>,
    rows: Vec<Row>,
}

impl<'a> Table<'a> {
    pub(crate) fn new(columns: Vec<Column<'a>>) -> Self {
        let titles = columns.iter().map(|column| column.title().to_owned()).collect();
        Self { columns, rows: vec![Row { cells: titles, below: String::new() }] }
    }

    /// Adds a row, with a text to stand below it, which may be empty.
    pub(crate) fn row(&mut self, cells: Vec<String>, below: String) {
        self.rows.push(Row { cells, below });
    }

    /// Writes the table, at most `width` columns wide.
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

    fn widths(&self, width: usize) -> Vec<usize> {
        const WIDEST_WORD: usize = 24;
        const NARROWEST_TEXT: usize = 12;
        let widest = |index: usize| {
            let cells = self.rows.iter().filter_map(|row| row.cells.get(index));
            cells.map(|cell| measure_text_width(cell)).max().unwrap_or(0)
        };
        let mut widths: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        let mut texts = Vec::new();
        let mut left = width.saturating_sub(GAP.len() * self.columns.len().saturating_sub(1));
        for (index, column) in self.columns.iter().enumerate() {
            match column {
                Column::Text(_) => texts.push(index),
                Column::Word(_) => widths[index] = widths[index].min(WIDEST_WORD),
                Column::Number(_) => {}
            }
            if !matches!(column, Column::Text(_)) {
                left = left.saturating_sub(widths[index]);
            }
        }
        // The narrower first: what one does not need, the others may have.
        texts.sort_by_key(|&index| widths[index]);
        for (done, &index) in texts.iter().enumerate() {
            let share = left / (texts.len() - done);
            widths[index] = widths[index].min(share.max(NARROWEST_TEXT));
            left = left.saturating_sub(widths[index]);
        }
        widths
    }
}

/// Stands before every line below a row.
const BELOW: &str = "      ";

fn pad(cell: &str, column: Column<'_>, width: usize) -> String {
    let alignment = match column {
        Column::Number(_) => Alignment::Right,
        Column::Word(_) | Column::Text(_) => Alignment::Left,
    };
    pad_str(cell, width, alignment, Some(CUT)).into_owned()
}

/// The lines of a text, none wider than `width` (nor than a character).
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
    fn columns_line_up_and_long_text_is_cut() {
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
    fn text_columns_share_what_is_left() {
        let mut table = Table::new(vec![Column::Text("a"), Column::Text("b")]);
        table.row(vec!["y".repeat(100), "z".repeat(20)], String::new());
        assert_eq!(table.widths(82), [60, 20]);
        assert_eq!(table.widths(42), [20, 20]);
        assert_eq!(table.widths(0), [12, 12]);
    }

    #[test]
    fn wrapping_breaks_long_words_and_keeps_paragraphs() {
        assert_eq!(wrapped("ab cd\n\nefghij k", 5), ["ab cd", "", "efghi", "j k"]);
        assert_eq!(wrapped("東京", 1), ["東", "京"]);
        assert!(wrapped("", 5).is_empty());
    }
}
