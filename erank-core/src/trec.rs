//! TREC's file formats. A run holds the ranked documents of many queries. Qrels hold the judges' grades.
//!
//! [`Run`] and [`Qrels`] read from any [`BufRead`] and write to any [`Write`]. Both files have one entry
//! per line, with fields separated by white space:
//!
//! | file | fields |
//! |---|---|
//! | run | query id, `Q0`, document id, rank, score, tag |
//! | qrels | query id, `0`, document id, grade |
//!
//! Qrels of BEIR and of ir_datasets are read, too ([`Qrels::read`]), and runs with a header ([`Run::read`]).
//!
//! The parser follows trec_eval. It ignores the second field, the rank, the tag, empty lines, and lines
//! that begin with `#`. Lines may come in any order. Windows line ends and a byte order mark are
//! accepted. Where trec_eval accepts an unclear line, the parser returns an error with the line number. Such
//! a line has too many fields (an id with a space in it), a score or a grade that is not a number, a score
//! that is NaN or infinite, or a document that occurs twice in a query.
//!
//! The formats are implemented here because they take a few lines, and these errors need a parser that
//! checks every field.
//!
//! ```
//! use erank_core::metrics::Measure;
//! use erank_core::trec::{Qrels, Run};
//!
//! let qrels = Qrels::read("7 0 doc-a 0\n7 0 doc-b 3\n".as_bytes())?;
//! let run = Run::read("7 Q0 doc-a 1 12.5 bm25\n7 Q0 doc-b 2 11.0 bm25\n".as_bytes())?;
//! assert_eq!(Measure::reciprocal_rank(10).evaluate(&qrels, &run).mean(), Some(0.5));
//!
//! let error = Qrels::read("7 0 doc-a 0\n7 0 doc-b good\n".as_bytes()).unwrap_err();
//! assert_eq!(
//!     error.to_string(),
//!     r#"line 2: the grade "good" is not an integer; write one such as 0, 1 or 2"#
//! );
//! # Ok::<(), erank_core::trec::ReadError>(())
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, BufRead, Write};

use thiserror::Error;

use layout::Layout;

mod layout;

/// Values by query id, then by document id. The order of `str` is that of trec_eval's `strcmp`.
type Table<V> = BTreeMap<String, BTreeMap<String, V>>;

/// A run, which holds the scored documents of many queries.
///
/// As in trec_eval, a query's documents are ordered by score alone, highest first, and the ranks in a
/// file are ignored. Of two documents with the same score, the one with the greater id in byte order
/// comes first. Scores are compared in double precision, as in trec_eval since version 10. Earlier
/// versions compared them in single precision (about seven digits).
///
/// Two runs are equal if they have the same queries, documents and scores. A run without documents is an
/// empty file.
///
/// ```
/// use erank_core::trec::Run;
///
/// let mut run = Run::new();
/// run.insert("7", "doc-a", 1.5)?;
/// run.insert("7", "doc-b", 8.25)?;
/// let mut file = Vec::new();
/// run.write(&mut file, "erank")?;
/// assert_eq!(file, b"7 Q0 doc-b 1 8.25 erank\n7 Q0 doc-a 2 1.5 erank\n");
/// assert_eq!(Run::read(&file[..])?, run);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Run {
    scores: Table<f64>,
}

impl Run {
    /// Creates a run without documents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a document with its score. Higher is better.
    ///
    /// # Errors
    /// Returns an [`EntryError`] and leaves the run unchanged if an id cannot be written to a file, if
    /// the score is not finite, or if the query already has the document.
    pub fn insert(
        &mut self,
        query: impl Into<String>,
        document: impl Into<String>,
        score: f64,
    ) -> Result<(), EntryError> {
        if !score.is_finite() {
            return Err(EntryError::Score(score.to_string()));
        }
        insert(&mut self.scores, query.into(), document.into(), score)
    }

    /// Reads a run.
    ///
    /// The first line tells the layout. Six fields are TREC's. A header with names of [`Qrels::FIELD_NAMES`] for query
    /// and document, and with `score` or else `rank`, may have the fields in any order, and others beside them; fields
    /// are then separated as in [`Qrels::read`]. A rank counts as a score, the smallest rank as the highest one.
    ///
    /// # Errors
    /// Returns a [`ReadError`] for the first invalid line, and reads no further.
    pub fn read(reader: impl BufRead) -> Result<Self, ReadError> {
        let mut run = Self::new();
        read_entries(reader, Layout::of_run, |[query, document, score], is_rank| {
            let number = score.parse().ok().filter(|number: &f64| number.is_finite());
            let number = number.ok_or_else(|| EntryError::Score(score.to_owned()))?;
            let number = if is_rank { -number } else { number };
            run.insert(query, document, number)
        })?;
        Ok(run)
    }

    /// Writes the run in the order of query ids, and the documents of a query in the order of
    /// [`ranking`](Self::ranking), with ranks from 1. Scores have enough digits for an exact round trip.
    /// `tag` is the name of the system that produced the run.
    ///
    /// Several runs of different queries can be written to the same file in turn.
    ///
    /// # Errors
    /// Returns any I/O error of the writer, and [`io::ErrorKind::InvalidInput`] if the tag is empty or
    /// contains white space.
    pub fn write(&self, mut writer: impl Write, tag: &str) -> io::Result<()> {
        check_name("tag", tag).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        for query in self.queries() {
            for (rank, (document, score)) in (1..).zip(self.ranking(query)) {
                writeln!(writer, "{query} Q0 {document} {rank} {score:?} {tag}")?;
            }
        }
        writer.flush()
    }

    /// Returns the ids of the queries that have documents, in byte order.
    pub fn queries(&self) -> impl ExactSizeIterator<Item = &str> {
        self.scores.keys().map(String::as_str)
    }

    /// Returns whether the query has documents.
    pub fn has_query(&self, query: &str) -> bool {
        self.scores.contains_key(query)
    }

    /// Returns the query's documents with their scores, best first. Empty for an unknown query.
    pub fn ranking(&self, query: &str) -> Vec<(&str, f64)> {
        let scores = self.scores.get(query).into_iter().flatten();
        // Ids in descending order. The stable sort by score keeps that order for equal scores.
        let mut ranking: Vec<_> = scores.rev().map(|(id, score)| (id.as_str(), *score)).collect();
        ranking.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
        ranking
    }
}

/// Qrels, which hold the relevance grades of documents for many queries.
///
/// A grade above 0 means relevant, 0 means not relevant, and a negative grade means unjudged.
///
/// ```
/// use erank_core::trec::Qrels;
///
/// let mut qrels = Qrels::read("7 0 doc-a 2\n".as_bytes())?;
/// qrels.insert("7", "doc-b", 0)?;
/// assert_eq!(qrels.grade("7", "doc-a"), Some(2));
/// assert_eq!(qrels.grade("7", "doc-c"), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Qrels {
    grades: Table<i32>,
}

impl Qrels {
    /// The names of query id, document id and grade in files of BEIR and ir_datasets.
    pub const FIELD_NAMES: [&[&str]; 3] = [
        &["query-id", "query_id", "qid", "queryid", "topic", "topic_id"],
        &[
            "corpus-id",
            "corpus_id",
            "doc_id",
            "doc-id",
            "docid",
            "docno",
            "document_id",
            "pid",
            "passage_id",
        ],
        &["score", "relevance", "rel", "grade", "label", "judgment", "judgement"],
    ];

    /// Creates qrels without grades.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a document's grade.
    ///
    /// # Errors
    /// Returns an [`EntryError`] and leaves the qrels unchanged if an id cannot be written to a file, or
    /// if the query already has the document.
    pub fn insert(
        &mut self,
        query: impl Into<String>,
        document: impl Into<String>,
        grade: i32,
    ) -> Result<(), EntryError> {
        insert(&mut self.grades, query.into(), document.into(), grade)
    }

    /// Reads qrels.
    ///
    /// The first line tells the layout. Four fields are TREC's, and three are query id, document id and grade, as in
    /// BEIR. Fields are separated by white space, or by commas or semicolons if the first line has one after each
    /// field. A first line without digits whose grade is no number is a header. A header with names of
    /// [`FIELD_NAMES`](Self::FIELD_NAMES) may have the fields in any order, and others beside them; its delimiter is a
    /// tab, comma, semicolon, vertical bar or white space, and fields in quotes may hold it. A grade may be written as
    /// `1.0`.
    ///
    /// ```
    /// use erank_core::trec::Qrels;
    ///
    /// let beir = Qrels::read("query-id\tcorpus-id\tscore\n7\tdoc-a\t2\n".as_bytes())?;
    /// assert_eq!(beir, Qrels::read("7 0 doc-a 2\n".as_bytes())?);
    /// # Ok::<(), erank_core::trec::ReadError>(())
    /// ```
    ///
    /// # Errors
    /// Returns a [`ReadError`] for the first invalid line, and reads no further.
    pub fn read(reader: impl BufRead) -> Result<Self, ReadError> {
        let mut qrels = Self::new();
        read_entries(reader, Layout::of_qrels, |[query, document, grade], _| {
            qrels.insert(query, document, parse_grade(grade)?)
        })?;
        Ok(qrels)
    }

    /// Writes the qrels in the order of query ids, then of document ids.
    ///
    /// # Errors
    /// Returns any I/O error of the writer.
    pub fn write(&self, mut writer: impl Write) -> io::Result<()> {
        for query in self.queries() {
            for (document, grade) in self.grades(query) {
                writeln!(writer, "{query} 0 {document} {grade}")?;
            }
        }
        writer.flush()
    }

    /// Returns the ids of the judged queries, in byte order.
    pub fn queries(&self) -> impl ExactSizeIterator<Item = &str> {
        self.grades.keys().map(String::as_str)
    }

    /// Returns whether the query has a judged document.
    pub fn has_query(&self, query: &str) -> bool {
        self.grades.contains_key(query)
    }

    /// Keeps only the queries for which `keep` returns true.
    pub fn retain_queries(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.grades.retain(|query, _| keep(query));
    }

    /// Returns the judged documents of the query with their grades, in the byte order of their ids. Empty
    /// for an unknown query.
    pub fn grades(&self, query: &str) -> impl Iterator<Item = (&str, i32)> {
        let grades = self.grades.get(query).into_iter().flatten();
        grades.map(|(document, grade)| (document.as_str(), *grade))
    }

    /// Returns the document's grade, or `None` if the document was not judged for the query.
    pub fn grade(&self, query: &str, document: &str) -> Option<i32> {
        self.grades.get(query)?.get(document).copied()
    }
}

/// Adds an entry after checking both ids.
fn insert<V>(
    table: &mut Table<V>,
    query: String,
    document: String,
    value: V,
) -> Result<(), EntryError> {
    check_name("query id", &query)?;
    check_name("document id", &document)?;
    if query.starts_with(['#', BYTE_ORDER_MARK]) {
        return Err(EntryError::Name { what: "query id", name: query });
    }
    match table.entry(query) {
        Entry::Vacant(documents) => {
            documents.insert(BTreeMap::from([(document, value)]));
        }
        Entry::Occupied(mut documents) => match documents.get_mut().entry(document) {
            Entry::Vacant(entry) => {
                entry.insert(value);
            }
            Entry::Occupied(entry) => {
                let document = entry.key().clone();
                return Err(EntryError::Duplicate { query: documents.key().clone(), document });
            }
        },
    }
    Ok(())
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// The white space of C's `isspace`, which trec_eval uses.
const SPACE: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// Checks whether `name` can be a field of a line.
fn check_name(what: &'static str, name: &str) -> Result<(), EntryError> {
    if name.is_empty() || name.contains(SPACE) || name.contains('\0') {
        return Err(EntryError::Name { what, name: name.to_owned() });
    }
    Ok(())
}

/// Calls `entry` with every line that is neither empty nor a comment.
fn read_lines(
    mut reader: impl BufRead,
    mut entry: impl FnMut(&str) -> Result<(), EntryError>,
) -> Result<(), ReadError> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        let length = reader.read_until(b'\n', &mut line);
        if length.map_err(|source| ReadError::Io { line: number, source })? == 0 {
            break;
        }
        let malformed = |problem| ReadError::Malformed { line: number, problem };
        let text = std::str::from_utf8(&line).map_err(|_| malformed(EntryError::NotUtf8))?;
        let text =
            if number == 1 { text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text) } else { text };
        if by_white_space(text).next().is_some_and(|first| !first.starts_with('#')) {
            entry(text).map_err(malformed)?;
        }
    }
    Ok(())
}

/// Calls `entry` with query id, document id and value of every entry, and whether the value is a rank. `of_first_line` returns
/// the layout that the first line shows, and whether this line is a header.
fn read_entries(
    reader: impl BufRead,
    of_first_line: fn(&str) -> Result<(Layout, bool), EntryError>,
    mut entry: impl FnMut([&str; 3], bool) -> Result<(), EntryError>,
) -> Result<(), ReadError> {
    let mut layout: Option<Layout> = None;
    read_lines(reader, |line| {
        let layout = match &layout {
            Some(layout) => layout,
            None => {
                let (found, is_header) = of_first_line(line)?;
                let found = layout.insert(found);
                if is_header {
                    return Ok(());
                }
                found
            }
        };
        entry(layout.fields(line)?, layout.is_rank)
    })
}

fn by_white_space(line: &str) -> impl Iterator<Item = &str> {
    line.split(SPACE).filter(|field| !field.is_empty())
}

/// Parses a grade, which some files write as `1.0`.
///
/// # Errors
/// Returns [`EntryError::Grade`] if the grade is not a 32-bit integer.
pub fn parse_grade(grade: &str) -> Result<i32, EntryError> {
    // A trailing fraction of zeros does not change the number.
    let digits = grade.trim_end_matches('0').strip_suffix('.').unwrap_or(grade);
    digits.parse().map_err(|_| EntryError::Grade(grade.to_owned()))
}

/// The error of reading a file.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The reader failed. The file itself may be valid.
    #[error("line {line}: the reader failed")]
    Io {
        /// The line number, from 1.
        line: u64,
        /// The reader's error.
        source: io::Error,
    },
    /// A line is invalid.
    #[error("line {line}: {problem}")]
    Malformed {
        /// The line number, from 1.
        line: u64,
        /// The error in the line.
        problem: EntryError,
    },
}

/// The error in an entry of a run or of qrels.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The line has too few or too many fields.
    #[error(
        "found {found} fields instead of {expected}; separate fields by white space, and use none in \
         an id or in the tag"
    )]
    Fields {
        /// The number of fields found.
        found: usize,
        /// The expected number of fields and their names.
        expected: &'static str,
    },
    /// The header of qrels names some fields, but not all, and they are not where they are expected.
    #[error(
        "the header {0:?} does not tell which field is which; name the query id query-id, the document id corpus-id \
         and the grade score"
    )]
    Header(String),
    /// The line is not UTF-8.
    #[error("the line is not UTF-8; convert the file, or decompress it")]
    NotUtf8,
    /// An id or a tag cannot be written to a file, or would be read as something else.
    #[error(
        "{name:?} cannot be a {what}: it must have characters, but no white space or NUL, and a \
         query id must not begin with `#` or a byte order mark"
    )]
    Name {
        /// The kind of name, such as `query id`.
        what: &'static str,
        /// The invalid name.
        name: String,
    },
    /// The score is not a finite number.
    #[error(
        "the score {0:?} is not a finite number; omit documents without a score, or give them a \
         score below all others"
    )]
    Score(String),
    /// The grade is not a 32-bit integer.
    #[error("the grade {0:?} is not an integer; write one such as 0, 1 or 2")]
    Grade(String),
    /// The query already has the document.
    #[error("query {query:?} has document {document:?} twice; remove one of the two lines")]
    Duplicate {
        /// The query id.
        query: String,
        /// The document id.
        document: String,
    },
}

#[cfg(test)]
mod tests;
