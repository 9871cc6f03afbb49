//! Defects of a collection are reported, and do not affect the rest of it.

use serde_json::Value;

use super::{Collection, QRELS, string};

#[test]
fn eval_lists_candidates_without_text_and_ranks_them_last() {
    let collection = Collection::new();
    collection.edit("corpus.tsv", |text| {
        let lines = text.lines().filter(|line| !line.starts_with("bees-2\t"));
        let lines =
            lines.map(|line| if line.starts_with("tap-1\t") { "tap-1\t\u{a0}" } else { line });
        let lines = lines.map(|line| if line.starts_with("bees-4\t") { "no tab" } else { line });
        lines.collect::<Vec<_>>().join("\n")
    });
    collection.edit("topics.tsv", |text| text.replace("sea\t", "see\t"));
    let run = collection.eval("trec", "out", "--answer-only");
    assert_eq!(run.code, Some(3), "{run:?}");
    for said in [
        "corpus.tsv: skipped 1 lines that cannot be used; line 3: there is no tab",
        "11 documents could not be scored; they rank last",
        "query bees, document bees-2: the texts of the documents do not contain the document's id",
        "query tap, document tap-1: the document is empty",
        "query sea, document sea-1: the texts of the queries do not contain the query's id",
    ] {
        assert!(run.err.contains(said), "{said}: {}", run.err);
    }
    let ranking = collection.ranking("out/reranked.run", "bees");
    assert_eq!(ranking[6..], ["bees-2", "bees-4"]);
    assert_eq!(collection.ranking("out/hybrid.run", "bees")[6..], ["bees-2", "bees-4"]);
    let sea = collection.ranking("out/reranked.run", "sea");
    assert_eq!(sea, collection.ranking("out/first_stage.run", "sea"));
    let report = collection.report("out");
    assert_eq!(report["counts"]["unscored"], 11);
    let unscored = report["unscored"].as_array().expect("a list");
    let names: Vec<&str> = unscored.iter().map(|entry| string(&entry["document"])).collect();
    assert_eq!(names[..3], ["bees-2", "bees-4", "sea-1"]);
    assert_eq!(report["queries"][0]["unscored"], 2);

    // With complete texts, only the missing scores are computed.
    let whole = Collection::new();
    for file in ["corpus.tsv", "topics.tsv"] {
        collection.write(file, &whole.read(file));
    }
    let run = collection.eval("trec", "out", "--answer-only");
    assert_eq!(run.code, Some(0), "{run:?}");
    assert!(run.err.contains("48 documents, 11 of them to be scored"), "{}", run.err);
    let changed = "Wasps make paper from wood, and honey.";
    collection.edit("corpus.tsv", |text| text.replace("Wasps make paper from wood.", changed));
    let run = collection.eval("trec", "out", "--answer-only");
    assert!(run.err.contains("48 documents, 1 of them to be scored"), "{}", run.err);
}

#[test]
fn eval_names_the_file_of_a_bad_document_in_a_folder() {
    let collection = Collection::new();
    collection.write("corpus/a.tsv", &collection.read("corpus.tsv"));
    collection.write("corpus/b.jsonl", "{\"id\": \"x\"}\n{}\n");
    let run = collection.eval("trec", "out", "--answer-only --depth 1");
    assert_eq!(run.code, Some(0), "{run:?}");
    let mut arguments = collection.arguments("trec", "out", "--answer-only --depth 1");
    let corpus = arguments.iter().position(|word| word.ends_with("corpus.tsv")).expect("there");
    arguments[corpus] = collection.path("corpus");
    let run = crate::erank(&arguments, b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    let said =
        "skipped 2 documents that cannot be used; document 48 (x): b.jsonl:1: \"text\" is missing";
    assert!(run.err.contains(said), "{}", run.err);
}

#[test]
fn eval_refuses_scores_of_other_settings() {
    let collection = Collection::new();
    let run = collection.eval("jsonl", "out", "--answer-only --depth 1");
    assert_eq!(run.code, Some(0), "{run:?}");
    let scores = collection.read("out/scores.jsonl");
    for (more, said) in [
        ("--depth 1", "max_tokens was null and is 4096"),
        ("--answer-only --task bright", "instruction was \"Retrieve relevant documents"),
        ("--template qwen3-reranker", "template was \"erank\" and is \"qwen3-reranker\""),
        ("--answer-only --max-prompt-tokens 99", "max_prompt_tokens was null and is 99"),
        ("--answer-only --weights f32", "weights was null and is \"F32\""),
        ("--answer-only --kv-cache f32", "kv_cache was null and is \"f32\""),
        ("--answer-only --max-document-tokens 3", "max_document_tokens was "),
    ] {
        let run = collection.eval("jsonl", "out", more);
        assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{run:?}");
        assert!(run.err.contains(said) && run.err.contains("--output"), "{said}: {}", run.err);
    }
    // The last bits of scores depend on the kernels.
    let mut portable = std::process::Command::new(crate::ERANK);
    portable.args(collection.arguments("jsonl", "out", "--answer-only"));
    let run = crate::Ended::new(
        portable.env("ERANK_INSTRUCTION_SET", "portable").output().expect("it starts"),
    );
    let is_portable = scores.contains("portable kernels");
    let said = run.err.contains("and is \"BF16 weights, portable kernels\"");
    assert_eq!(said, !is_portable, "{}", run.err);
    collection.edit("out/scores.jsonl", |text| {
        let mut header: Value =
            serde_json::from_str(text.lines().next().expect("a line")).expect("JSON");
        header["fingerprint"] = 7.into();
        format!("{header}\n")
    });
    let run = collection.eval("jsonl", "out", "--answer-only");
    assert!(run.err.contains("fingerprint was 7 and is "), "{}", run.err);
    collection.write("out/scores.jsonl", &scores.replace("\"integer\":", "\"number\":"));
    let run = collection.eval("jsonl", "out", "--answer-only");
    assert!(run.err.contains("scores.jsonl: line 2: bad JSON"), "{}", run.err);
    collection.write("out/scores.jsonl", "my notes\n");
    let run = collection.eval("jsonl", "out", "--answer-only");
    assert!(run.err.contains("is not a score file of erank eval"), "{}", run.err);
    assert_eq!(collection.read("out/scores.jsonl"), "my notes\n");
}

#[test]
fn eval_takes_the_instruction_of_a_query() {
    let collection = Collection::new();
    let model = crate::tiny_with_yes_and_no(collection.folder.path(), "tiny-reranker");
    let options = format!("--model {} --depth 2", model.display());
    let options = options.as_str();
    let run = collection.eval("jsonl", "out", options);
    assert_eq!(run.code, Some(0), "{run:?}");
    let before = collection.read("out/scores.jsonl");
    assert_eq!(before.lines().count(), 1 + 12);
    assert!(before.contains("\"template\":\"qwen3-reranker\""), "{before}");
    collection.edit("candidates.jsonl", |text| {
        text.replacen("\"query\":", "\"instruction\": \"Find recipes for bread.\", \"query\":", 1)
    });
    let run = collection.eval("jsonl", "out", options);
    assert!(run.err.contains("12 documents, 2 of them to be scored"), "{}", run.err);
    let after = collection.read("out/scores.jsonl");
    let last = |text: &str| text.lines().last().expect("a line").to_owned();
    assert_ne!(last(&before), last(&after));

    // The same instruction in a file of queries makes the same scores.
    let first: Value =
        serde_json::from_str(collection.read("candidates.jsonl").lines().next().expect("a line"))
            .expect("JSON");
    collection.edit("topics.tsv", |text| {
        let query = |line: &str| {
            let (id, text) = line.split_once('\t').expect("a tab");
            let mut query = serde_json::json!({"id": id, "text": text});
            if id == string(&first["id"]) {
                query["instruction"] = "Find recipes for bread.".into();
            }
            format!("{query}\n")
        };
        text.lines().map(query).collect()
    });
    let run = collection.eval("trec", "out", options);
    assert!(run.err.contains("12 documents, 0 of them to be scored"), "{}", run.err);
}

#[test]
fn eval_names_invalid_input() {
    let fails = |change: &dyn Fn(&Collection), said: &str| {
        let collection = Collection::new();
        change(&collection);
        let run = collection.eval("trec", "out", "--answer-only");
        assert_eq!((run.code, run.out.as_str()), (Some(1), ""), "{run:?}");
        assert!(run.err.contains(said), "{said}: {}", run.err);
        assert!(!std::path::Path::new(&collection.path("out")).exists(), "{said}");
    };
    let twice = |file: &'static str| {
        move |collection: &Collection| {
            collection.edit(file, |text| {
                let first = text.lines().next().expect("a line");
                format!("{text}{first}\n")
            });
        }
    };
    fails(&twice("bm25.run"), "bm25.run: line 49: query \"bees\" has document \"bees-1\" twice");
    fails(&twice("qrels.txt"), "qrels.txt: line 45: query \"bees\" has document \"bees-1\" twice");
    fails(&twice("topics.tsv"), "topics.tsv: line 7: duplicate id \"bees\"");
    fails(&twice("corpus.tsv"), "corpus.tsv: line 48: duplicate id \"bees-1\"");
    let write = |file: &'static str, text: String| {
        move |collection: &Collection| collection.write(file, &text)
    };
    let other_queries = QRELS.replace("bees 0", "1 0").replace("sea 0", "2 0");
    let other_queries: String = other_queries
        .lines()
        .filter(|line| line.starts_with(['1', '2']))
        .map(|l| format!("{l}\n"))
        .collect();
    fails(
        &write("qrels.txt", other_queries),
        "the first query of the run is \"bees\", that of the qrels \"1\"",
    );
    let other_documents = QRELS.replace("-", "_");
    fails(&write("qrels.txt", other_documents), "no candidate is judged, for example \"bees-1\"");
    fails(&write("bm25.run", "bees Q0 bees-1 1 high x\n".into()), "line 1: the score \"high\"");
    fails(&write("bm25.run", String::new()), "the first query of the run is nothing");
    fails(&write("corpus.tsv", "x\ty\n".into()), "corpus.tsv has none of the 47 texts");
    fails(&write("topics.tsv", String::new()), "topics.tsv has none of the 6 texts");
    let gone = |collection: &Collection| {
        std::fs::remove_file(collection.path("corpus.tsv")).expect("removed");
    };
    fails(&gone, "corpus.tsv: No such file");
}

/// The bytes of a text as UTF-16LE with a byte order mark.
fn utf16(text: &str) -> Vec<u8> {
    format!("\u{feff}{text}").encode_utf16().flat_map(u16::to_le_bytes).collect()
}

#[test]
fn eval_reads_the_same_collection_from_all_layouts() {
    let collection = Collection::new();
    let run = collection.eval("trec", "out", "--answer-only");
    assert_eq!(run.code, Some(0), "{run:?}");
    let same = |change: &dyn Fn(&Collection), format: &str| {
        change(&collection);
        let again = collection.eval(format, "out", "--answer-only");
        assert_eq!((again.code, &again.out), (Some(0), &run.out), "{again:?}");
        assert!(again.err.contains("48 documents, 0 of them to be scored"), "{}", again.err);
    };
    // UTF-16, as PowerShell writes it.
    same(
        &|collection| {
            for file in ["bm25.run", "qrels.txt", "topics.tsv", "corpus.tsv", "candidates.jsonl"] {
                let text = collection.read(file);
                std::fs::write(collection.path(file), utf16(&text)).expect("written");
            }
        },
        "trec",
    );
    same(&|_| {}, "jsonl");
    let rows = |header: &str, text: String, delimiter: &str| {
        let row = |line: &str| {
            let (id, text) = line.split_once('\t').expect("a tab");
            format!("{id}{delimiter}\"{}\"\r\n", text.replace('"', "\"\""))
        };
        format!("{header}\r\n{}", text.lines().map(row).collect::<String>())
    };
    let plain = Collection::new();
    same(
        &|collection| {
            collection.write("bm25.run", &plain.read("bm25.run"));
            let qrels = QRELS.lines().map(|line| line.replace(" 0 ", "\t") + ".0\n");
            let qrels: String = qrels.map(|line| line.replace(' ', "\t")).collect();
            collection.write("qrels.txt", &format!("\u{feff}query_id\tdoc_id\tscore\n{qrels}"));
            collection.write("topics.tsv", &rows("qid,query", plain.read("topics.tsv"), ","));
            collection.write("corpus.tsv", &rows("docid\tpassage", plain.read("corpus.tsv"), "\t"));
        },
        "trec",
    );
    // The layout of rank_llm, as an array.
    same(
        &|collection| {
            let queries: Vec<Value> = super::CANDIDATES
                .lines()
                .map(|line| {
                    let query: Value = serde_json::from_str(line).expect("JSON");
                    let candidates = query["documents"].as_array().expect("documents").iter();
                    let candidates: Vec<Value> = candidates
                        .map(|document| {
                            serde_json::json!({
                                "docid": document["id"], "score": document["score"],
                                "doc": {"contents": document["text"]},
                            })
                        })
                        .collect();
                    serde_json::json!({
                        "query": {"qid": query["id"], "text": query["query"]}, "candidates": candidates,
                    })
                })
                .collect();
            let array = serde_json::to_string_pretty(&queries).expect("JSON");
            collection.write("candidates.jsonl", &array);
        },
        "jsonl",
    );
}

#[test]
fn eval_reads_headers_compressed_collections_and_stray_quotes() {
    let collection = Collection::new();
    let run = collection.eval("trec", "out", "--answer-only");
    assert_eq!(run.code, Some(0), "{run:?}");
    collection.edit("bm25.run", |text| {
        let row = |line: &str| {
            let fields: Vec<&str> = line.split(' ').collect();
            format!("{},\"a, query\",{},{}\n", fields[0], fields[2], fields[4])
        };
        "query_id,query,doc_id,score\n".to_owned() + &text.lines().map(row).collect::<String>()
    });
    let again = collection.eval("trec", "out", "--answer-only");
    assert_eq!((again.code, &again.out), (Some(0), &run.out), "{again:?}");

    collection.write("bm25.run", "q Q0 d 1 2 t\nq Q0 e 2 1 t\n");
    collection.write("queries.tsv", "qid\tquery\nq\t\"sea\nr\tbread\" salt\n");
    collection.write(
        "data/corpus.jsonl",
        "{\"corpus_id\": \"d\", \"text\": \"sea\"}\n{\"corpus_id\": \"e\", \"text\": \"tea\"}\n",
    );
    std::fs::create_dir_all(collection.path("data/qrels")).expect("made");
    for (name, text) in [
        ("data/queries.jsonl.gz", "{\"_id\": \"q\", \"text\": \"sea\"}\n"),
        ("data/qrels/test.tsv.gz", "query-id\tcorpus-id\tscore\nq\td\t1\n"),
    ] {
        std::fs::write(collection.path(name), crate::documents::gzip(text.as_bytes()))
            .expect("written");
    }
    let path = |name: &str| collection.path(name);
    let (run, beir, output) = (path("bm25.run"), path("data"), path("data-out"));
    let arguments = ["eval", "--run", &run, "--beir", &beir, "--output", &output, "--answer-only"];
    let ended = crate::erank(&arguments, b"");
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let (queries, corpus, qrels) =
        (path("queries.tsv"), path("data/corpus.jsonl"), path("data/qrels/test.tsv.gz"));
    let texts = ["--queries", &queries, "--corpus", &corpus, "--qrels", &qrels];
    let arguments = [&["eval", "--run", &run, "--output", &output, "--answer-only"][..], &texts];
    let ended = crate::erank(&arguments.concat(), b"");
    // The text of the query is `"sea`, so that the scores are computed again.
    assert!(ended.err.contains("1 queries, 2 documents, 2 of them to be scored"), "{ended:?}");
}

#[test]
fn eval_lists_a_candidate_whose_text_cannot_be_used() {
    let collection = Collection::new();
    collection.edit("candidates.jsonl", |text| {
        text.replacen("\"text\": \"", "\"text\": 7, \"old\": \"", 1)
    });
    let run = collection.eval("jsonl", "out", "--answer-only --title-field nosuch");
    assert_eq!(run.code, Some(3), "{run:?}");
    assert!(run.err.contains("1 documents could not be scored"), "{}", run.err);
    assert!(run.err.contains("\"text\" is not a string"), "{}", run.err);
    assert!(
        run.err.contains("no document has the field \"nosuch\" of --title-field"),
        "{}",
        run.err
    );
}

#[test]
fn eval_leaves_identical_and_excluded_documents_out() {
    let collection = Collection::new();
    // The query is the best candidate, and the relevant document the next one.
    collection.write("bm25.run", "q Q0 q 1 99 t\nq Q0 x 2 9 t\nq Q0 d 3 5 t\nq Q0 e 4 4 t\n");
    collection.write("qrels.txt", "q 0 d 1\nq 0 x 0\n");
    collection.write("corpus.tsv", "q\tsea\nx\tsea water\nd\tsea salt\ne\tbread\n");
    collection.write("topics.tsv", "q\tsea\n");
    let first_stage = |more: &str| {
        let run = collection.eval("trec", "out", &format!("--answer-only {more}"));
        assert_eq!(run.code, Some(0), "{run:?}");
        (collection.ranking("out/first_stage.run", "q"), run.err)
    };
    let (all, said) = first_stage("--depth 2");
    assert_eq!(all, ["q", "x"]);
    assert!(said.contains("1 candidates have the id of their query"), "{said}");
    assert!(said.contains("--ignore-identical-ids"), "{said}");
    let (others, said) = first_stage("--depth 2 --ignore-identical-ids");
    assert_eq!(others, ["x", "d"]);
    assert!(said.contains("Left out 1 candidates with the id of their query"), "{said}");
    collection
        .write("topics.tsv", "{\"id\": \"q\", \"query\": \"sea\", \"excluded_ids\": [\"x\"]}\n");
    let (others, said) = first_stage("--depth 2 --ignore-identical-ids");
    assert_eq!(others, ["d", "e"]);
    assert!(said.contains("Left out 1 candidates that \"excluded_ids\" names"), "{said}");
    let figure = super::mean(&collection.report("out"), 0, 0);
    assert_eq!(figure, 1.0, "nDCG@10");

    // BEIR's own convention for two of its collections.
    // The name may be that of a link to a folder.
    #[cfg(unix)]
    std::os::unix::fs::symlink("data", collection.path("link-to-quora")).expect("a link");
    std::fs::create_dir(collection.path("data")).expect("made");
    let folders = [("arguana", 3), ("BEIR-Quora", 3), ("scifact", 4)];
    for (folder, expected) in folders.into_iter().chain(cfg!(unix).then_some(("link-to-quora", 3)))
    {
        let file = |name: &str| format!("{folder}/{name}");
        collection.write(&file("queries.jsonl"), "{\"_id\": \"q\", \"text\": \"sea\"}\n");
        let corpus =
            ["q", "x", "d", "e"].map(|id| format!("{{\"_id\": \"{id}\", \"text\": \"sea\"}}\n"));
        collection.write(&file("corpus.jsonl"), &corpus.concat());
        collection.write(&file("qrels/test.tsv"), "query-id\tcorpus-id\tscore\nq\td\t1\n");
        let eval = |more: &str| {
            let words =
                format!("eval --run ./bm25.run --beir ./{folder} --output ./{folder}-out {more}");
            let path = |word: &str| {
                word.strip_prefix("./").map_or(word.into(), |file| collection.path(file))
            };
            let arguments: Vec<String> = words.split_whitespace().map(path).collect();
            let run = crate::erank(&arguments, b"");
            assert_eq!(run.code, Some(0), "{run:?}");
            collection.ranking(&format!("{folder}-out/first_stage.run"), "q").len()
        };
        assert_eq!(eval("--answer-only"), expected, "{folder}");
        assert_eq!(eval("--answer-only --ignore-identical-ids=false"), 4, "{folder}");
    }
}

#[test]
fn eval_records_what_the_last_bits_of_scores_depend_on() {
    let collection = Collection::new();
    let eval = |set: Option<&str>| {
        let arguments = collection.arguments("jsonl", "out", "--answer-only --depth 1");
        let mut command = std::process::Command::new(crate::ERANK);
        command.args(arguments);
        if let Some(set) = set {
            command.env("ERANK_INSTRUCTION_SET", set);
        }
        crate::Ended::new(command.output().expect("it runs"))
    };
    assert_eq!(eval(Some("portable")).code, Some(0));
    assert!(collection.read("out/scores.jsonl").contains("weights, portable kernels"));
    assert_eq!(eval(Some("portable")).code, Some(0));
    collection
        .edit("out/scores.jsonl", |text| text.replacen("portable kernels", "other kernels", 1));
    let refused = eval(Some("portable"));
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.err.contains("description was"), "{}", refused.err);
    // A setting of another version of the command.
    collection.edit("out/scores.jsonl", |text| {
        text.replacen("other kernels", "portable kernels", 1).replacen(
            '{',
            "{\"new_setting\":1,",
            1,
        )
    });
    let refused = eval(Some("portable"));
    assert!(refused.err.contains("new_setting was 1 and is nothing"), "{}", refused.err);
}

#[test]
fn eval_explains_invalid_arguments() {
    let collection = Collection::new();
    let fails = |format: &str, more: &str, said: &str| {
        let run = collection.eval(format, "out", more);
        assert_eq!((run.code, run.out.as_str()), (Some(2), ""), "{run:?}");
        assert!(run.err.contains(said), "{said}: {}", run.err);
    };
    fails("jsonl", "--run ./bm25.run", "--run");
    fails("beir", "--corpus ./corpus.tsv", "--corpus");
    fails("trec", "--measure nDCG@10,ERR@10", "\"ERR@10\" is not a measure");
    fails("trec", "--measure P", "P needs a cutoff");
    fails("trec", "--depth 0", "--depth");
    fails("trec", "--hybrid 2", "between 0");
    let none = crate::erank(&["eval", "--output", "x"], b"");
    assert_eq!(none.code, Some(2));
    for needed in ["--run", "--qrels", "--queries", "--corpus"] {
        assert!(none.err.contains(needed), "{needed}: {}", none.err);
    }
}
