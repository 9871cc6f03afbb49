use super::*;
use proptest::prelude::*;

fn run(text: &str) -> Run {
    Run::read(text.as_bytes()).expect("a run")
}

/// Returns the line and the error of an invalid run.
fn refused(text: impl AsRef<[u8]>) -> (u64, EntryError) {
    match Run::read(text.as_ref()) {
        Err(ReadError::Malformed { line, problem }) => (line, problem),
        other => panic!("{other:?}"),
    }
}

#[test]
fn ranking_sorts_by_score_then_descending_id() {
    let run = run("q Q0 a 1 1 t\nq Q0 b 2 1.0 t\nq Q0 B 3 1e0 t\nq Q0 c 4 -0.0 t\n\
                   q Q0 d 5 0 t\nq Q0 é 6 -3 t\nq Q0 10 7 2 t\nq Q0 9 8 2 t\n");
    let order: Vec<&str> = run.ranking("q").into_iter().map(|(id, _)| id).collect();
    assert_eq!(order, ["9", "10", "b", "a", "B", "d", "c", "é"]);
    assert_eq!(run.ranking("another"), []);
    // These scores are equal in single precision, but not in double precision.
    let near = self::run("q Q0 a 1 1.000000000001 t\nq Q0 b 1 1 t\n");
    assert_eq!(near.ranking("q")[0].0, "a");
}

#[test]
fn read_accepts_any_white_space_and_order() {
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
fn read_errors_name_the_line() {
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
        refused("q 0 a 1\nq a 1\n"),
        "line 2: found 3 fields instead of 4: query id, 0, document id, grade; separate fields by \
         white space, and use none in an id or in the tag"
    );
    for (text, said) in [
        (
            "q a\n",
            "line 1: found 2 fields instead of 4: query id, 0, document id, grade; or 3 without",
        ),
        ("q a 1\nq 0 b 1\n", "line 2: found 4 fields instead of 3"),
        ("query_id,doc_id,rel\nq,a\n", "line 2: found 2 fields instead of as many as the header"),
    ] {
        assert!(refused(text).contains(said), "{}", refused(text));
    }
    assert!(refused("q1 d1 high\nq1 d2 1\n").starts_with("line 1: the grade \"high\""));
    let header = refused("docid\tsearch\tlabel\na\tq\t1\n");
    assert!(header.contains("the header \"docid\\tsearch\\tlabel\" does not tell"), "{header}");
    for grade in ["1.5", "1.01", "1.0.0", ".0", "yes", "2147483648", "0x1", "--1", "nan", "1e0"] {
        let said = refused(&format!("q 0 a {grade}"));
        assert!(said.contains("is not an integer"), "{grade}: {said}");
    }
    assert_eq!(
        refused("q 0 a 1\nq 0 a 1"),
        "line 2: query \"q\" has document \"a\" twice; remove one of the two lines"
    );
}

#[test]
fn qrels_are_read_in_the_layouts_of_beir_and_ir_datasets() {
    let expected = Qrels::read(&b"q1 0 d1 2\nq1 0 d2 0\nq2 0 d1 -1\n"[..]).expect("qrels");
    for text in [
        "\u{feff}query-id\tcorpus-id\tscore\r\nq1\td1\t2\r\n\r\nq1\td2\t0\r\nq2\td1\t-1\r\n",
        "query_id doc_id score\nq1 d1 2.0\nq1 d2 0.0\nq2 d1 -1.00\n",
        "topic\tpassage\tjudgement\nq1\td1\t2\nq1\td2\t0\nq2\td1\t-1",
        "q1\td1\t2\nq1\td2\t0\nq2\td1\t-1\n",
        "number iter document judged\nq1 0 d1 2\nq1 0 d2 0\nq2 0 d1 -1\n",
        "q1, 0, d1, 2\nq1, 0, d2, 0\nq2, 0, d1, -1\n",
        "topic;docno;judgment\nq1;d1;2\nq1;d2;0\nq2;d1;-1\n",
        "Query_ID,iteration,doc_id,relevance\nq1,0,d1,2\nq1,0,d2,0\nq2,0,d1,-1\n",
        "query_id\tdoc_id\trelevance\titeration\nq1\td1\t2\t0\nq1\td2\t0\t0\nq2\td1\t-1\t0\n",
        "\"q1\",\"d1\",\"2\"\nq1,d2,0\nq2,d1,-1\n",
        "# a comment\n\nscore rank docid qid\n2 7 d1 q1\n0 8 d2 q1\n-1 9 d1 q2\n",
        "query id,doc id,score\nq1,d1,2\nq1,d2,0\nq2,d1,-1\n",
        "query-id\tcorpus-id\tscore\ttext\nq1\td1\t2\ta leaf\nq1\td2\t0\t\nq2 d1 -1 x\n",
        "\"qid\",\"query\",\"docid\",\"label\"\nq1,\"a, b\",d1,2\nq1,\"c\",d2,0\nq2,a \"d\",d1,-1\n",
    ] {
        assert_eq!(Qrels::read(text.as_bytes()).expect(text), expected, "{text}");
    }
    assert_eq!(Qrels::read(&b"query-id\tcorpus-id\tscore\n"[..]).expect("empty"), Qrels::new());
}

#[test]
fn runs_are_read_with_a_header() {
    let expected = run("q1 Q0 a 1 2.5 t\nq1 Q0 b 2 1 t\n");
    for text in [
        "query_id,doc_id,score\nq1,a,2.5\nq1,b,1\n",
        "qid\tquery\tdocno\trank\tscore\nq1\ta leaf\ta\t1\t2.5\nq1\ta leaf\tb\t2\t1\n",
        "qid Q0 docno rank score tag\nq1 Q0 a 1 2.5 t\nq1 Q0 b 2 1 t\n",
        "topicid Q0 document rank sim tag\nq1 Q0 a 1 2.5 t\nq1 Q0 b 2 1 t\n",
        "q1,Q0,a,1,2.5,t\nq1,Q0,b,2,1,t\n",
    ] {
        assert_eq!(run(text), expected, "{text}");
    }
    assert_eq!(run("qid Q0 docid 1 2 score\n").ranking("qid"), [("docid", 2.0)]);
    let ranks = run("qid\tpid\trank\nq\tb\t1\nq\ta\t2\n");
    assert_eq!(ranks.ranking("q"), [("b", -1.0), ("a", -2.0)]);
    let (line, problem) = refused("q1\t7\t1\nq1\t8\t2\n");
    assert_eq!(line, 1);
    assert!(problem.to_string().contains("with a header that names them"), "{problem}");
}

#[test]
fn insert_rejects_entries_that_no_file_can_hold() {
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

/// A reader that fails after one line, and a writer that always fails.
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
fn io_errors_are_returned() {
    let read = Run::read(io::BufReader::new(Broken(b"q Q0 a 1 2 t\n")));
    let Err(ReadError::Io { line: 2, source }) = read else { panic!("{read:?}") };
    assert_eq!(source.kind(), io::ErrorKind::ConnectionReset);
    let error = run("q Q0 a 1 2 t").write(Broken(b""), "t").expect_err("full");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn retain_queries_removes_the_others() {
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
    /// No bytes cause a panic.
    #[test]
    fn read_handles_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = (Run::read(&bytes[..]), Qrels::read(&bytes[..]));
    }

    /// No text causes a panic, and everything that can be read round-trips.
    #[test]
    fn read_handles_any_text(lines in proptest::collection::vec(any_line(), 0..6)) {
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

    /// Everything that can be inserted round-trips exactly and in order.
    #[test]
    fn write_round_trips_through_read(
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
