//! The layouts of runs and qrels: which field of a line is which.

use super::{EntryError, Qrels, by_white_space};

/// The names of scores in the header of a run.
const SCORE: &[&str] = &["score", "similarity"];
const RANK: &[&str] = &["rank", "position"];

/// The positions of the fields in a line.
pub(super) struct Layout {
    /// The character that separates fields, or `None` for white space.
    delimiter: Option<char>,
    /// Number of fields of a line.
    fields: usize,
    /// What the fields are, for errors.
    expected: &'static str,
    /// The positions of query id, document id, and score or grade.
    positions: [usize; 3],
    /// Whether the third one is a rank.
    pub(super) is_rank: bool,
}

impl Layout {
    /// Returns the layout of a run that the first line shows, and whether this line is a header.
    pub(super) fn of_run(line: &str) -> Result<(Self, bool), EntryError> {
        let [query, document, _] = Qrels::FIELD_NAMES;
        if let Some(layout) = Self::of_header(line, [query, document, SCORE]) {
            return Ok((layout, true));
        }
        if let Some(layout) = Self::of_header(line, [query, document, RANK]) {
            return Ok((Self { is_rank: true, ..layout }, true));
        }
        let delimiter = Self::delimiter(line);
        let fields = split(line, delimiter);
        let expected = match fields.len() {
            3 | 4 => {
                "6: query id, Q0, document id, rank, score, tag; or, with a header that names them, a query_id, a \
                 doc_id, and a score or rank"
            }
            _ => "6: query id, Q0, document id, rank, score, tag",
        };
        let [query, _, document, rank, score, _] = fields[..] else {
            return Err(EntryError::Fields { found: fields.len(), expected });
        };
        let has_digits = [query, document, rank, score]
            .iter()
            .any(|field| field.contains(|c: char| c.is_ascii_digit()));
        let is_header = score.parse::<f64>().is_err() && !has_digits;
        let positions = [0, 2, 4];
        Ok((Self { delimiter, fields: 6, expected, positions, is_rank: false }, is_header))
    }

    /// Returns the layout of qrels that the first line shows, and whether this line is a header.
    pub(super) fn of_qrels(line: &str) -> Result<(Self, bool), EntryError> {
        if let Some(layout) = Self::of_header(line, Qrels::FIELD_NAMES) {
            return Ok((layout, true));
        }
        let delimiter = Self::delimiter(line);
        let fields = split(line, delimiter);
        // Most ids have digits, so that an entry with a wrong grade is not taken for a header.
        let has_digits = || line.contains(|c: char| c.is_ascii_digit());
        let is_header =
            fields.last().is_some_and(|grade| grade.parse::<f64>().is_err()) && !has_digits();
        let of = |expected, positions| Self {
            delimiter,
            fields: fields.len(),
            expected,
            positions,
            is_rank: false,
        };
        let layout = match fields[..] {
            [_, _, _, _] => of("4: query id, 0, document id, grade", [0, 2, 3]),
            [_, _, _] => of("3: query id, document id, grade", [0, 1, 2]),
            _ => {
                return Err(EntryError::Fields {
                    found: fields.len(),
                    expected: "4: query id, 0, document id, grade; or 3 without the 0",
                });
            }
        };
        let named = Qrels::FIELD_NAMES.map(|names| position(&fields, names));
        let mut positions = named.into_iter().zip(layout.positions);
        if is_header && positions.any(|(named, position)| named.is_some_and(|n| n != position)) {
            return Err(EntryError::Header(line.trim().to_owned()));
        }
        Ok((layout, is_header))
    }

    /// Returns the layout of a header that has all of these names.
    fn of_header(line: &str, names: [&[&str]; 3]) -> Option<Self> {
        let delimiters = [Some('\t'), Some(','), Some(';'), Some('|'), None];
        delimiters.into_iter().find_map(|delimiter| {
            let fields = split(line, delimiter);
            let [Some(query), Some(document), Some(value)] =
                names.map(|names| position(&fields, names))
            else {
                return None;
            };
            // An entry in TREC's format may have ids and a tag that are names of fields.
            let has_number = || fields.iter().any(|field| field.parse::<f64>().is_ok());
            if matches!(delimiter, Some('\t') | None) && has_number() {
                return None;
            }
            let (fields, positions) = (fields.len(), [query, document, value]);
            let expected = "as many as the header";
            Some(Self { delimiter, fields, expected, positions, is_rank: false })
        })
    }

    /// Returns the comma or semicolon that follows each field of a line but the last.
    fn delimiter(line: &str) -> Option<char> {
        let fields: Vec<&str> = by_white_space(line).collect();
        [',', ';'].into_iter().find(|delimiter| match &fields[..] {
            [field] => field.contains(*delimiter),
            [fields @ .., _] => fields.iter().all(|field| field.ends_with(*delimiter)),
            [] => false,
        })
    }

    /// Returns query id, document id, and score or grade of a line.
    pub(super) fn fields<'a>(&self, line: &'a str) -> Result<[&'a str; 3], EntryError> {
        let mut fields = split(line, self.delimiter);
        if fields.len() != self.fields && self.delimiter == Some('\t') {
            // The header has tabs, but this line has spaces.
            let others: Vec<&str> = by_white_space(line).collect();
            fields = if others.len() == self.fields { others } else { fields };
        }
        if fields.len() != self.fields {
            return Err(EntryError::Fields { found: fields.len(), expected: self.expected });
        }
        Ok(self.positions.map(|position| fields[position]))
    }
}

/// Returns the position of the first field with one of these names, in any case, and with spaces for underscores.
fn position(fields: &[&str], names: &[&str]) -> Option<usize> {
    let name = |field: &&str| field.to_ascii_lowercase().replace(' ', "_");
    fields.iter().position(|field| names.contains(&name(field).as_str()))
}

/// Splits a line into fields. A field in quotes may hold delimiters, unless the quotes do not end in the line.
fn split(line: &str, delimiter: Option<char>) -> Vec<&str> {
    let Some(delimiter) = delimiter else { return by_white_space(line).collect() };
    let line = line.trim_matches(['\r', '\n']);
    let (mut is_quoted, mut is_start) = (false, true);
    let fields = line.split(|c: char| {
        let is_end = c == delimiter && !is_quoted;
        is_quoted ^= c == '"' && (is_quoted || is_start);
        is_start = is_end || (is_start && c == ' ');
        is_end
    });
    let mut fields: Vec<&str> = fields.collect();
    if is_quoted {
        fields = line.split(delimiter).collect();
    }
    for field in &mut fields {
        *field = field.trim().trim_matches('"');
    }
    fields
}
