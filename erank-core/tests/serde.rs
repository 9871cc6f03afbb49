//! The JSON shape of requests, options and results, on which programs rely.

use erank_core::testing::{ScriptedBackend, answered};
use erank_core::{
    Aggregation, AnswerDistribution, AnswerFormat, AnswerProbability, Calibration, Cascade,
    Completion, Document, DocumentError, Fusion, Mode, RankedDocument, Ranking, Request, Reranker,
    Sampling, ScoreKind, ScoringOptions, Windows,
};
use serde_json::{Value, from_str, from_value, json, to_string, to_value};

/// Returns the JSON of `value`, after a check that it round-trips.
fn json_of<T: serde::Serialize + serde::de::DeserializeOwned>(value: &T) -> Value {
    let json = to_value(value).expect("JSON");
    let read: T = from_value(json.clone()).expect("the written JSON can be read");
    assert_eq!(to_value(&read).expect("JSON"), json);
    json
}

#[test]
fn request_json() {
    let request = Request::new(
        "jet noise",
        [
            Document::new("Jet noise was measured.").with_id("a").with_first_stage_score(9.1),
            Document::new("Bread."),
        ],
    );
    let expected = json!({
        "query": "jet noise",
        "instruction": null,
        "min_score": null,
        "documents": [
            {"text": "Jet noise was measured.", "id": "a", "first_stage_score": 9.1},
            {"text": "Bread.", "id": null, "first_stage_score": null},
        ],
    });
    assert_eq!(to_value(&request).expect("JSON"), expected);
    let short = r#"{"query": "jet noise", "documents": [
        {"text": "Jet noise was measured.", "id": "a", "first_stage_score": 9.1, "url": "a.html"},
        {"text": "Bread."}]}"#;
    assert_eq!(from_str::<Request<'static>>(short).expect("a request"), request);
    let goal = r#"{"query": "q", "instruction": "i", "min_score": 0.5, "documents": []}"#;
    let goal = from_str::<Request<'static>>(goal).expect("a request");
    assert_eq!((goal.instruction.as_deref(), goal.min_score), (Some("i"), Some(0.5)));
    for incomplete in [r#"{"query": "q"}"#, r#"{"documents": []}"#] {
        assert!(from_str::<Request<'static>>(incomplete).is_err());
    }
}

#[test]
fn first_stage_score_that_is_not_finite_is_null() {
    for score in [f64::NAN, f64::INFINITY] {
        let document = Document::new("a").with_first_stage_score(score);
        let json = to_string(&document).expect("JSON");
        assert_eq!(json, r#"{"text":"a","id":null,"first_stage_score":null}"#);
        let read: Document<'static> = from_str(&json).expect("a document");
        assert_eq!(read.first_stage_score, None);
    }
}

#[test]
fn options_json() {
    let expected = json!({
        "mode": {"reason": {"max_tokens": 4096}},
        "sampling": {
            "temperature": 0.0,
            "top_p": 1.0,
            "top_k": 0,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "frequency_penalty": 0.0,
            "presence_penalty": 0.0,
            "seed": 0,
        },
        "samples": 1,
        "max_query_tokens": 2048,
        "max_document_tokens": 2048,
        "max_prompt_tokens": null,
    });
    assert_eq!(json_of(&ScoringOptions::default()), expected);
    assert_eq!(from_str::<ScoringOptions>("{}").expect("options"), ScoringOptions::default());

    let mut some = ScoringOptions::default();
    some.mode = Mode::AnswerOnly;
    some.sampling.temperature = 0.5;
    let given = r#"{"mode": "answer_only", "sampling": {"temperature": 0.5}}"#;
    assert_eq!(from_str::<ScoringOptions>(given).expect("options"), some);
    let given = r#"{"mode": {"reason": {"max_tokens": 512}}, "max_document_tokens": 1024}"#;
    let mut some = ScoringOptions::default();
    some.mode = Mode::Reason { max_tokens: 512 };
    some.max_document_tokens = 1024;
    assert_eq!(from_str::<ScoringOptions>(given).expect("options"), some);
    for mistake in [r#"{"max_tokens": 9}"#, r#"{"mode": "think"}"#, r#"{"samples": null}"#] {
        assert!(from_str::<ScoringOptions>(mistake).is_err(), "{mistake}");
    }
    assert!(from_str::<Mode>(r#"{"reason": {"max_tokens": 9, "tokens": 9}}"#).is_err());
    assert!(from_str::<Fusion>(r#"{"reciprocal_rank": {"k": 60, "w": 1}}"#).is_err());
    assert!(from_str::<Fusion>(r#"{"z_score": {"first_stage_weight": null}}"#).is_err());
    for mistake in [r#"{"temprature": 1}"#, r#"{"temperature": null}"#] {
        assert!(from_str::<Sampling>(mistake).is_err(), "{mistake}");
    }
}

#[test]
fn fusion_cascade_and_score_json() {
    assert_eq!(json_of(&Fusion::None), json!("none"));
    assert_eq!(json_of(&Fusion::hybrid()), json!({"z_score": {"first_stage_weight": 0.2}}));
    assert_eq!(json_of(&Fusion::reciprocal_rank()), json!({"reciprocal_rank": {"k": 60.0}}));
    assert_eq!(json_of(&Cascade::best(20)), json!({"max_documents": 20, "only_uncertain": false}));
    assert_eq!(
        json_of(&Cascade::uncertain(5)),
        json!({"max_documents": 5, "only_uncertain": true})
    );
    let kinds = [ScoreKind::ProbabilityWeighted, ScoreKind::ExpectedValue, ScoreKind::Integer];
    assert_eq!(json_of(&kinds), json!(["probability_weighted", "expected_value", "integer"]));
    let probabilities = [AnswerProbability::Joint, AnswerProbability::FirstToken];
    assert_eq!(json_of(&probabilities), json!(["joint", "first_token"]));
}

#[test]
fn ranking_json() {
    let mut sure = answered(9, 1.0);
    let impossible = f64::NEG_INFINITY;
    let mut log_probs = vec![impossible; 11];
    log_probs[9] = 0.0;
    sure.answer_distribution = Some(AnswerDistribution::new(log_probs).expect("probabilities"));
    sure.usage.prompt = 100;
    sure.usage.generated = 2;
    let script = [sure, Completion::new("<think>Hm.</think><answer>2</answer>")];
    let reranker = Reranker::builder(ScriptedBackend::new(script))
        .score(ScoreKind::Integer)
        .build()
        .expect("valid");
    let request = Request::new(
        "q",
        [
            Document::new("one").with_id("a").with_first_stage_score(3.5),
            Document::new("two"),
            Document::new("three").with_id("c"),
            Document::new(""),
        ],
    );
    let ranking = reranker.rerank(&request).expect("a ranking");
    let expected = json!({
        "documents": [
            {
                "index": 0,
                "id": "a",
                "score": 9.0,
                "relevance": 0.9,
                "relevance_probability": null,
                "std_dev": 0.0,
                "answer": {
                    "integer": 9,
                    "probability": 1.0,
                    "expected_value": 9.0,
                    "variance": 0.0,
                    "entropy": 0.0,
                    "distribution":
                        [null, null, null, null, null, null, null, null, null, 0.0, null],
                    "reasoning": "",
                },
                "first_stage_score": 3.5,
                "mode": {"reason": {"max_tokens": 4096}},
                "truncated": false,
                "finish_reason": "answered",
                "tokens": {"prompt": 100, "generated": 2},
                "samples": [],
                "windows": [],
            },
            {
                "index": 1,
                "id": null,
                "score": 2.0,
                "relevance": 0.2,
                "relevance_probability": null,
                "std_dev": 0.0,
                "answer": {
                    "integer": 2,
                    "probability": null,
                    "expected_value": null,
                    "variance": null,
                    "entropy": null,
                    "distribution": null,
                    "reasoning": "Hm.",
                },
                "first_stage_score": null,
                "mode": {"reason": {"max_tokens": 4096}},
                "truncated": false,
                "finish_reason": "end_of_turn",
                "tokens": {"prompt": 0, "generated": 0},
                "samples": [],
                "windows": [],
            },
        ],
        "scored_count": 2,
        "below_min_score": [],
        "unscored": [
            {
                "index": 2,
                "id": "c",
                "error": {
                    "code": "backend",
                    "cause": "beyond the end of the script",
                    "message": "the backend failed on the document; see the cause",
                },
            },
            {
                "index": 3,
                "id": null,
                "error": {"code": "empty", "message": "the document is empty; leave it out or give its text"},
            },
        ],
        "partially_scored": [],
        "tokens": {"prompt": 0, "generated": 2},
    });
    assert_eq!(json_of(&ranking), expected);

    let read: Ranking = from_value(expected.clone()).expect("a ranking");
    assert_eq!(read.documents, ranking.documents);
    assert!(matches!(read.unscored[1].error, DocumentError::Empty));

    // A ranked document needs a score that is not null.
    let mut unscored = expected["documents"][0].clone();
    unscored["score"] = Value::Null;
    assert!(from_value::<RankedDocument>(unscored.clone()).is_err());
    unscored.as_object_mut().expect("an object").remove("score");
    assert!(from_value::<RankedDocument>(unscored).is_err());
}

#[test]
fn windows_json() {
    let expected =
        json!({"tokens": 2048, "overlap": 256, "max_windows": 32, "aggregation": "best"});
    assert_eq!(json_of(&Windows::default()), expected);
    assert_eq!(from_str::<Windows>("{}").expect("windows"), Windows::default());
    let mut windows = Windows::with_tokens(2);
    windows.aggregation = Aggregation::MeanOfBest(2);
    assert_eq!(json_of(&windows)["aggregation"], json!({"mean_of_best": 2}));
    assert!(from_str::<Windows>(r#"{"token": 9}"#).is_err());

    let script = ScriptedBackend::new([answered(4, 1.0), answered(8, 1.0)]);
    let reranker = Reranker::builder(script).windows(windows).build().expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a b c d"])).expect("a ranking");
    let document = &json_of(&ranking)["documents"][0];
    let expected = json!([
        {"bytes": {"start": 3, "end": 7}, "score": 8.0},
        {"bytes": {"start": 0, "end": 3}, "score": 4.0},
    ]);
    assert_eq!((&document["score"], &document["windows"]), (&json!(6.0), &expected));
}

#[test]
fn calibration_json() {
    let judged = [(0.0, false), (2.5, true), (5.0, false), (9.0, true)];
    let (kind, answers) = (ScoreKind::ProbabilityWeighted, AnswerFormat::zero_to_ten());
    let calibration =
        Calibration::fit(kind, ScoringOptions::default().mode, &answers, judged).expect("fitted");
    let json = json_of(&calibration);
    let expected = json!({
        "score": "probability_weighted",
        "mode": {"reason": {"max_tokens": 4096}},
        "answer_range": [0, 10],
        "points": [[0.0, 0.0], [2.5, 0.5], [5.0, 0.5], [9.0, 1.0]],
    });
    assert_eq!(json, expected);
    assert_eq!(from_value::<Calibration>(expected).expect("valid"), calibration);

    for (points, said) in [
        (json!([]), "no points"),
        (json!([[0.0, 0.5], [1.0, 0.4]]), "point 1 (from 0)"),
        (json!([[0.0, 0.1], [0.0, 0.4]]), "point 1 (from 0)"),
        (json!([[1.0, 0.1], [2.0, 0.2], [1.5, 0.4]]), "point 2 (from 0)"),
        (json!([[0.0, -0.1]]), "the probability -0.1"),
        (json!([[0.0, 1.1]]), "the probability 1.1"),
        (json!([[-1.0, 0.5]]), "the score -1"),
        (json!([[11.0, 0.5]]), "from 0 to 10"),
        (json!([[null, 0.5]]), "null"),
        (json!([[0.0]]), "length 1"),
    ] {
        let mut invalid = json.clone();
        invalid["points"] = points;
        let error = from_value::<Calibration>(invalid).expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn sample_json() {
    let script = ScriptedBackend::new([answered(4, 1.0), answered(8, 1.0)]);
    let mut options = ScoringOptions::default();
    options.samples = 2;
    options.sampling = Sampling::with_temperature(1.0);
    let reranker = Reranker::builder(script).options(options).build().expect("valid");
    let ranking = reranker.rerank(&Request::new("q", ["a"])).expect("a ranking");
    let expected = json!({
        "score": 8.0,
        "relevance": null,
        "answer": {
            "integer": 8,
            "probability": 1.0,
            "expected_value": null,
            "variance": null,
            "entropy": null,
            "distribution": null,
            "reasoning": "",
        },
        "finish_reason": "answered",
        "tokens": {"prompt": 0, "generated": 0},
    });
    assert_eq!(json_of(&ranking)["documents"][0]["samples"][1], expected);
}
