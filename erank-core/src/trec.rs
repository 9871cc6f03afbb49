//! TREC's files: runs, the ranked documents of many queries, and qrels, people's grades.
//!
//! [`Run`] and [`Qrels`] read from any [`BufRead`] and write to any [`Write`]. Both files hold one
//! entry per line, fields separated by white space:
//!
//! | file | fields |
//! |---|---|
//! | run | query id, `Q0`, document id, rank, score, tag |
//! | qrels | query id, `0`, document id, grade |
//!
//! They are read as trec_eval reads them: the second field, the rank and the tag are passed over;
//! empty lines and lines that begin with `#` are, too; lines may come in any order. Windows line
//! ends and a byte order mark do no harm. Where trec_eval would guess, reading stops with an error
//! that names the line: too many fields (an id with a space in it), a score or a grade that is no
//! number, a score that is NaN or infinite, a document that a query has twice.
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
//!     r#"line 2: the grade "good" is not a whole number; write one such as 0, 1 or 2"#
//! );
//! # Ok::<(), erank_core::trec::ReadError>(())
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io::{self, BufRead, Write};

use thiserror::Error;

/// By query id, then by document id. `str`'s order is that of trec_eval's `strcmp`.
type Table<V> = BTreeMap<String, BTreeMap<String, V>>;

/// The scored documents of many queries.
///
/// What orders a query's documents is the score alone, as in trec_eval, whatever rank a file gives:
/// the highest first, and of equal scores the document whose id is the greater string of bytes.
/// Scores are compared in double precision, as trec_eval does since version 10; before, it took
/// scores for equal that are in single precision (some seven digits).
///
/// Equal runs hold the same queries, documents and scores. A run without documents is an empty
/// file.
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
    /// A run without documents.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a document with its score, higher is better.
    ///
    /// # Errors
    /// [`EntryError`] for an id that cannot stand in a file, a score that is not finite, or a
    /// document that the query already has; the run is then unchanged.
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
    /// # Errors
    /// [`ReadError`] names the line; nothing is read beyond it.
    pub fn read(reader: impl BufRead) -> Result<Self, ReadError> {
        const FIELDS: &str = "6: query id, Q0, document id, rank, score, tag";
        let mut run = Self::new();
        read_lines(reader, FIELDS, |[query, _, document, _, score, _]: [&str; 6]| {
            let number = score.parse().ok().filter(|number: &f64| number.is_finite());
            let number = number.ok_or_else(|| EntryError::Score(score.to_owned()))?;
            run.insert(query, document, number)
        })?;
        Ok(run)
    }

    /// Writes the run, query by query in the order of their ids, each from rank 1 on in the order
    /// that [`ranking`](Self::ranking) gives. Scores have as many digits as it takes to read the
    /// same number again. `tag` names the system that made the run.
    ///
    /// Runs of single queries may be written one after the other to the same file.
    ///
    /// # Errors
    /// The writer's own, and [`io::ErrorKind::InvalidInput`] for a tag that is empty or holds white
    /// space.
    pub fn write(&self, mut writer: impl Write, tag: &str) -> io::Result<()> {
        check_name("tag", tag).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e))?;
        for query in self.queries() {
            for (rank, (document, score)) in (1..).zip(self.ranking(query)) {
                writeln!(writer, "{query} Q0 {document} {rank} {score:?} {tag}")?;
            }
        }
        writer.flush()
    }

    /// The ids of the queries that have documents, in the order of their bytes.
    pub fn queries(&self) -> impl ExactSizeIterator<Item = &str> {
        self.scores.keys().map(String::as_str)
    }

    /// Whether the query has documents.
    pub fn has_query(&self, query: &str) -> bool {
        self.scores.contains_key(query)
    }

    /// The query's documents with their scores, best first; empty for an unknown query.
    pub fn ranking(&self, query: &str) -> Vec<(&str, f64)> {
        let scores = self.scores.get(query).into_iter().flatten();
        // By document id, descending; the stable sort by score leaves equal scores in that order.
        let mut ranking: Vec<_> = scores.rev().map(|(id, score)| (id.as_str(), *score)).collect();
        ranking.sort_by(|(_, a), (_, b)| b.partial_cmp(a).unwrap_or(std::cmp::Ordering::Equal));
        ranking
    }
}

/// People's grades of documents for many queries.
///
/// A grade above 0 is relevant, 0 is not, a negative one means that nobody judged the document.
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
    /// Without grades.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a document's grade.
    ///
    /// # Errors
    /// [`EntryError`] for an id that cannot stand in a file, or a document that the query already
    /// has; the qrels are then unchanged.
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
    /// # Errors
    /// [`ReadError`] names the line; nothing is read beyond it.
    pub fn read(reader: impl BufRead) -> Result<Self, ReadError> {
        const FIELDS: &str = "4: query id, 0, document id, grade";
        let mut qrels = Self::new();
        read_lines(reader, FIELDS, |[query, _, document, grade]: [&str; 4]| {
            let number = grade.parse().map_err(|_| EntryError::Grade(grade.to_owned()))?;
            qrels.insert(query, document, number)
        })?;
        Ok(qrels)
    }

    /// Writes the qrels, in the order of query ids, then of document ids.
    ///
    /// # Errors
    /// The writer's own.
    pub fn write(&self, mut writer: impl Write) -> io::Result<()> {
        for query in self.queries() {
            for (document, grade) in self.grades(query) {
                writeln!(writer, "{query} 0 {document} {grade}")?;
            }
        }
        writer.flush()
    }

    /// The ids of the judged queries, in the order of their bytes.
    pub fn queries(&self) -> impl ExactSizeIterator<Item = &str> {
        self.grades.keys().map(String::as_str)
    }

    /// Whether any document was judged for the query.
    pub fn has_query(&self, query: &str) -> bool {
        self.grades.contains_key(query)
    }

    /// Keeps only the queries for which `keep` is true.
    pub fn retain_queries(&mut self, mut keep: impl FnMut(&str) -> bool) {
        self.grades.retain(|query, _| keep(query));
    }

    /// The documents judged for the query with their grades, in the order of their ids; empty for
    /// an unknown query.
    pub fn grades(&self, query: &str) -> impl Iterator<Item = (&str, i32)> {
        let grades = self.grades.get(query).into_iter().flatten();
        grades.map(|(document, grade)| (document.as_str(), *grade))
    }

    /// The document's grade; `None` if it was not judged for the query.
    pub fn grade(&self, query: &str, document: &str) -> Option<i32> {
        self.grades.get(query)?.get(document).copied()
    }
}

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
            Entry::Vacant(place) => {
                place.insert(value);
            }
            Entry::Occupied(place) => {
                let document = place.key().clone();
                return Err(EntryError::Duplicate { query: documents.key().clone(), document });
            }
        },
    }
    Ok(())
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// White space to C's `isspace`, and so to trec_eval.
const SPACE: [char; 6] = [' ', '\t', '\n', '\u{b}', '\u{c}', '\r'];

/// Whether `name` can be one field of a line.
fn check_name(what: &'static str, name: &str) -> Result<(), EntryError> {
    if name.is_empty() || name.contains(SPACE) || name.contains('\0') {
        return Err(EntryError::Name { what, name: name.to_owned() });
    }
    Ok(())
}

/// Hands the fields of every line that is neither empty nor a comment to `entry`.
fn read_lines<const N: usize>(
    mut reader: impl BufRead,
    expected: &'static str,
    mut entry: impl FnMut([&str; N]) -> Result<(), EntryError>,
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
        let fields: Vec<&str> = text.split(SPACE).filter(|field| !field.is_empty()).collect();
        if fields.first().is_none_or(|first| first.starts_with('#')) {
            continue;
        }
        let wrong_count = |fields: Vec<&str>| EntryError::Fields { found: fields.len(), expected };
        fields.try_into().map_err(wrong_count).and_then(&mut entry).map_err(malformed)?;
    }
    Ok(())
}

/// Why a file cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The reader failed: see its error. The file itself may be well.
    #[error("line {line}: cannot be read")]
    Io {
        /// The line, from 1.
        line: u64,
        /// The reader's error.
        source: io::Error,
    },
    /// A line is not as it must be: correct the file.
    #[error("line {line}: {problem}")]
    Malformed {
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        problem: EntryError,
    },
}

/// What is wrong with an entry of a run or of qrels.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The line has too few or too many fields.
    #[error(
        "{found} fields, there must be {expected}; separate them by white space and leave none in \
         an id or the tag"
    )]
    Fields {
        /// Fields found.
        found: usize,
        /// How many there must be, and which.
        expected: &'static str,
    },
    /// The line is not UTF-8.
    #[error("not UTF-8; convert the file, or unpack it if it is compressed")]
    NotUtf8,
    /// An id or a tag that no field of a file can hold, or that would be read as something else.
    #[error(
        "{name:?} cannot be a {what}: it must not be empty, hold white space or NUL, and a query id \
         must not begin with `#` or a byte order mark"
    )]
    Name {
        /// What it was to be.
        what: &'static str,
        /// What was found.
        name: String,
    },
    /// A score that is not a finite number.
    #[error(
        "the score {0:?} is not a finite number; leave out documents that have no score, or rank \
         them last with a score below all others"
    )]
    Score(String),
    /// A grade that is not a whole number of 32 bits.
    #[error("the grade {0:?} is not a whole number; write one such as 0, 1 or 2")]
    Grade(String),
    /// The query has the document already.
    #[error("query {query:?} has document {document:?} twice; remove one of the two lines")]
    Duplicate {
        /// The query's id.
        query: String,
        /// The document's id.
        document: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(text: &str) -> Run {
        Run::read(text.as_bytes()).expect("a run")
    }

    /// The line and the problem for which a run is refused.
    fn refused(text: impl AsRef<[u8]>) -> (u64, EntryError) {
        match Run::read(text.as_ref()) {
            Err(ReadError::Malformed { line, problem }) => (line, problem),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn scores_order_a_run_then_ids_descending() {
        let run = run("q Q0 a 1 1 t\nq Q0 b 2 1.0 t\nq Q0 B 3 1e0 t\nq Q0 c 4 -0.0 t\n\
                       q Q0 d 5 0 t\nq Q0 é 6 -3 t\nq Q0 10 7 2 t\nq Q0 9 8 2 t\n");
        let order: Vec<&str> = run.ranking("q").into_iter().map(|(id, _)| id).collect();
        assert_eq!(order, ["9", "10", "b", "a", "B", "d", "c", "é"]);
        assert_eq!(run.ranking("another"), []);
        // What is equal in single precision is not in double.
        let near = self::run("q Q0 a 1 1.000000000001 t\nq Q0 b 1 1 t\n");
        assert_eq!(near.ranking("q")[0].0, "a");
    }

    #[test]
    fn any_layout_is_read() {
        let plain = run("q1 Q0 a 1 2.5 t\nq1 Q0 b 2 1 t\nq2 Q0 a 1 -1 t\n");
        for text in [
            "\u{feff}q1 Q0 a 1 2.5 t\r\nq1 Q0 b 2 1 t\r\n\r\nq2 Q0 a 1 -1 t\r\n",
            "\n# a comment\nq2\tQ0\ta\t1\t-1.0\tt\n \t\nq1 x b 7 1e0 t\n  #\nq1  -  a  -  +2.5  u",
            "\u{feff}#\nq1 Q0 b 2 1. t\x0b\x0c\nq1 Q0 a 1 .25e1 t\nq2 Q0 a 1 -1 t",
        ] {
            assert_eq!(run(text), plain, "{text:?}");
        }
        assert_eq!(run(""), Run::new());
        assert_eq!(plain.queries().collect::<Vec<_>>(), ["q1", "q2"]);
        let qrels = Qrels::read("\u{feff}q 0 a 1\r\n\nq\t0\tb\t-1 \r\n#\nq 1 c +2".as_bytes());
        let qrels = qrels.expect("qrels");
        assert_eq!(qrels.grades("q").collect::<Vec<_>>(), [("a", 1), ("b", -1), ("c", 2)]);
    }

    #[test]
    fn malformed_lines_are_named() {
        let fields = |found| EntryError::Fields {
            found,
            expected: "6: query id, Q0, document id, rank, score, tag",
        };
        assert_eq!(refused("q Q0 a 1 2.5 t\n\nq Q0 b 2 1\n"), (3, fields(5)));
        assert_eq!(refused("q Q0 a b 1 2.5 t"), (1, fields(7)));
        assert_eq!(refused("\u{feff}\u{feff}"), (1, fields(1)));
        for score in ["NaN", "-nan", "inf", "-Infinity", "1e999", "1,5", "0x1p3", "high", "1.2.3"] {
            let text = format!("q Q0 a 1 2.5 t\nq Q0 b 2 {score} t\n");
            assert_eq!(refused(&text), (2, EntryError::Score(score.to_owned())));
        }
        let twice = EntryError::Duplicate { query: "q".into(), document: "a".into() };
        assert_eq!(refused("q Q0 a 1 2 t\nr Q0 a 1 2 t\nq Q0 a 2 1 t\n"), (3, twice));
        assert_eq!(refused(b"q Q0 a 1 2 t\nq Q0 \xff 1 2 t\n"), (2, EntryError::NotUtf8));
        let nul = EntryError::Name { what: "document id", name: "a\0".into() };
        assert_eq!(refused("q Q0 a\0 1 2 t"), (1, nul));

        let refused = |text: &str| Qrels::read(text.as_bytes()).expect_err(text).to_string();
        assert_eq!(
            refused("query-id\tcorpus-id\tscore\n"),
            "line 1: 3 fields, there must be 4: query id, 0, document id, grade; separate them by \
             white space and leave none in an id or the tag"
        );
        for grade in ["1.0", "yes", "2147483648", "0x1", "--1"] {
            assert!(refused(&format!("q 0 a {grade}")).contains("is not a whole number"));
        }
        assert_eq!(
            refused("q 0 a 1\nq 0 a 1"),
            "line 2: query \"q\" has document \"a\" twice; remove one of the two lines"
        );
    }

    #[test]
    fn what_no_file_can_hold_is_refused() {
        let mut run = Run::new();
        for (query, document, score) in [
            ("", "a", 1.0),
            ("q", "", 1.0),
            ("q q", "a", 1.0),
            ("q", "a\n", 1.0),
            ("q", "a\0", 1.0),
            ("#q", "a", 1.0),
            ("\u{feff}q", "a", 1.0),
            ("q", "a", f64::NAN),
            ("q", "a", f64::NEG_INFINITY),
        ] {
            run.insert(query, document, score).expect_err(query);
        }
        assert_eq!(run, Run::new());
        run.insert("q", "#a", 1.0).expect("a document id may begin with a #");
        run.insert("q", "#a", 2.0).expect_err("twice");
        assert_eq!(run.ranking("q"), [("#a", 1.0)]);
        for tag in ["", "my run", "a\n"] {
            let error = run.write(io::sink(), tag).expect_err(tag);
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }

    /// Gives one line and fails then, or fails from the first byte written on.
    struct Broken(&'static [u8]);

    impl io::Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match std::mem::take(&mut self.0) {
                [] => Err(io::ErrorKind::ConnectionReset.into()),
                mut line => line.read(buffer),
            }
        }
    }

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn errors_of_readers_and_writers_are_handed_on() {
        let read = Run::read(io::BufReader::new(Broken(b"q Q0 a 1 2 t\n")));
        let Err(ReadError::Io { line: 2, source }) = read else { panic!("{read:?}") };
        assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
        let error = run("q Q0 a 1 2 t").write(Broken(b""), "t").expect_err("full");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn queries_can_be_dropped() {
        let mut qrels = Qrels::read("q 0 a 1\nr 0 a 1\n".as_bytes()).expect("qrels");
        let run = run("r Q0 a 1 2 t\n");
        qrels.retain_queries(|query| run.has_query(query));
        assert_eq!(qrels.queries().collect::<Vec<_>>(), ["r"]);
        assert!(!qrels.has_query("q") && qrels.grade("q", "a").is_none());
    }

    fn any_line() -> impl Strategy<Value = String> {
        let field = prop_oneof![
            "[a-c]",
            "[0-9]{1,2}",
            "-?[0-9]\\.[0-9e]{0,3}",
            Just("NaN".to_owned()),
            "\\PC{0,3}",
        ];
        let space = prop_oneof![4 => Just(" ".to_owned()), 1 => "[ \t\r\u{b}\u{feff}\u{a0}#]{0,2}"];
        proptest::collection::vec((field, space), 0..8)
            .prop_map(|fields| fields.into_iter().map(|(field, space)| field + &space).collect())
    }

    proptest! {
        /// No bytes panic.
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = (Run::read(&bytes[..]), Qrels::read(&bytes[..]));
        }

        /// No text panics; what is read can be written and reads the same again.
        #[test]
        fn any_text_is_read_or_refused(lines in proptest::collection::vec(any_line(), 0..6)) {
            let text = lines.join("\n");
            if let Ok(run) = Run::read(text.as_bytes()) {
                let mut file = Vec::new();
                run.write(&mut file, "t").expect("written");
                prop_assert_eq!(Run::read(&file[..]).expect("read again"), run);
            }
            if let Ok(qrels) = Qrels::read(text.as_bytes()) {
                let mut file = Vec::new();
                qrels.write(&mut file).expect("written");
                prop_assert_eq!(Qrels::read(&file[..]).expect("read again"), qrels);
            }
        }

        /// What can be inserted is written so that it reads the same, to the bit, and in order.
        #[test]
        fn what_is_written_reads_the_same(
            entries in proptest::collection::vec(
                ("\\PC{0,3}", "[a-e#\u{feff}é]{1,2}", any::<f64>(), any::<i32>()), 0..40)
        ) {
            let (mut run, mut qrels) = (Run::new(), Qrels::new());
            for (query, document, score, grade) in entries {
                let _ = run.insert(query.clone(), document.clone(), score);
                let _ = qrels.insert(query, document, grade);
            }
            let mut file = Vec::new();
            run.write(&mut file, "a-tag").expect("written");
            let read = Run::read(&file[..]).expect("read again");
            for query in run.queries() {
                let bits = |run: &Run| -> Vec<(String, u64)> {
                    let ranking = run.ranking(query).into_iter();
                    ranking.map(|(id, score)| (id.to_owned(), score.to_bits())).collect()
                };
                prop_assert_eq!(bits(&read), bits(&run));
            }
            prop_assert_eq!(read, run);
            let mut file = Vec::new();
            qrels.write(&mut file).expect("written");
            prop_assert_eq!(Qrels::read(&file[..]).expect("read again"), qrels);
        }
    }
}
