//! The routes and their replies. Where requests must overlap, the backend waits until its test releases it, so no test
//! depends on timing.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use crate::common::{A_MINUTE, Echo, Server, gate, indices, one_at_a_time, post};
use erank_core::testing::answered;
use erank_core::{BackendError, Job, PromptTemplate, ScoringBackend, Sink, Windows};
use erank_serve::{ApiKeys, ServerSettings, Settings, Unscored};
use serde_json::{Value, json};

fn echo() -> Server {
    Server::start(Echo, Settings::default())
}

fn scores(body: &Value) -> Vec<f64> {
    let results = body["results"].as_array().expect("results").iter();
    results.map(|result| result["relevance_score"].as_f64().expect("a score")).collect()
}

#[test]
fn rerank_replies_in_the_format_of_jina_and_cohere() {
    let server = echo();
    let documents = json!(["2 cakes", {"text": "9 bees"}, "", "4 bears"]);
    let question = json!({"query": "honey", "documents": documents, "top_n": 2,
        "return_documents": true, "model": "echo", "user": "me"});
    for path in ["/v1/rerank", "/v2/rerank", "/rerank"] {
        let reply = server.post(path, &question);
        assert_eq!(reply.status, 200, "{reply:?}");
        let body = reply.body;
        assert_eq!(indices(&body), [1, 3]);
        assert_eq!(scores(&body), [0.9, 0.4]);
        assert_eq!(body["results"][0]["document"], json!({"text": "9 bees"}));
        assert_eq!((&body["model"], &body["object"]), (&json!("echo"), &json!("list")));
        assert_eq!(
            (&body["unscored"][0]["index"], &body["unscored"][0]["error"]["code"]),
            (&json!(2), &json!("empty"))
        );
        let warnings = body["meta"]["warnings"].to_string();
        assert!(warnings.contains("user") && warnings.contains("document 2 has no score"));
        assert_eq!(body["meta"]["billed_units"]["search_units"], 1);
    }
}

#[test]
fn unscored_documents_are_last_omitted_or_an_error() {
    let server = echo();
    let question = |unscored: Value| json!({"query": "q", "documents": ["", "3 a", null, "0 b"], "unscored": unscored});
    // By default, the reply is a permutation, and unscored documents have a lower score than all others.
    for choice in [json!(null), json!("last")] {
        let body = server.post("/v1/rerank", question(choice)).body;
        assert_eq!(indices(&body), [1, 3, 0, 2]);
        assert_eq!(scores(&body), [0.3, 0.0, -1.0, -1.0]);
        assert_eq!(body["results"][2]["error"]["code"], "empty");
        assert_eq!(body["results"][3]["error"]["code"], "invalid_document");
    }
    let in_time = json!({"query": "q", "documents": ["3 a"], "unscored": "error", "timeout": 0});
    assert_eq!(server.post("/v1/rerank", in_time).status, 504);
    let body = server.post("/v1/rerank", question(json!("omit"))).body;
    assert_eq!((indices(&body), body["unscored"].as_array().map(Vec::len)), (vec![1, 3], Some(2)));
    let reply = server.post("/v1/rerank", question(json!("error")));
    assert_eq!((reply.status, &reply.body["field"]), (422, &json!("documents[0]")));
    assert_eq!(server.post("/v1/rerank", question(json!("best"))).status, 422);

    let mut settings = Settings::default();
    settings.unscored = Unscored::Omit;
    let server = Server::start(Echo, settings);
    assert_eq!(indices(&server.post("/v1/rerank", question(json!(null))).body), [1, 3]);
}

#[test]
fn unusable_documents_spoil_no_others() {
    let server = echo();
    let body = r#"{"query": "q", "documents": [null, 7, {"body": "1 a"}, ["b"], {"text": 5}, "6 cut \ud83d", "5 d",
        {"text": "4 e", "score": "high"}, {"title": "3", "text": "f", "id": "x"}, true]}"#;
    let reply = server.post("/v1/rerank", body);
    assert_eq!(reply.status, 200, "{reply:?}");
    assert_eq!(indices(&reply.body)[..3], [5, 6, 8]);
    assert_eq!(reply.body["results"][2]["id"], "x");
    let unscored = reply.body["unscored"].as_array().expect("a list");
    let unscored: Vec<u64> = unscored.iter().filter_map(|d| d["index"].as_u64()).collect();
    assert_eq!(unscored, [0, 1, 2, 3, 4, 7, 9]);
    let message = reply.body["unscored"][2]["error"]["message"].as_str().expect("a message");
    assert!(message.contains("rank_fields"), "{message}");
}

#[test]
fn rank_fields_make_the_text() {
    let server = echo();
    let documents = json!([{"title": "8 A", "body": "Bees"}, {"body": "2 b"}, {"text": "c"}]);
    let fields = json!(["title", "body"]);
    let question = json!({"query": "q", "documents": documents, "rank_fields": fields, "return_documents": true});
    let body = server.post("/v1/rerank", question).body;
    assert_eq!(indices(&body), [0, 1, 2]);
    assert_eq!(body["results"][0]["document"]["text"], "8 A\nBees");
    assert_eq!(body["unscored"][0]["index"], 2);
}

#[test]
fn text_embeddings_inference_has_its_own_form() {
    let server = echo();
    let question =
        json!({"query": "q", "texts": ["2 a", "", "7 b"], "return_text": true, "truncate": true});
    let reply = server.post("/rerank", &question);
    let expected = json!([{"index": 2, "score": 0.7, "text": "7 b"}, {"index": 0, "score": 0.2, "text": "2 a"},
        {"index": 1, "score": -1.0, "text": ""}]);
    assert_eq!(reply.body, expected);
    let raw = json!({"query": "q", "texts": ["2 a", "7 b"], "raw_scores": true});
    let expected = json!([{"index": 1, "score": 7.0}, {"index": 0, "score": 2.0}]);
    assert_eq!(server.post("/rerank", raw).body, expected);
    let wrong = server.post("/rerank", json!({"query": 1, "texts": ["a"]}));
    assert_eq!((wrong.status, &wrong.body["error_type"]), (422, &json!("validation")));
    assert!(wrong.body["error"].as_str().expect("text").contains("query"));
    let option = server.post("/rerank", json!({"query": "q", "texts": ["a"], "max_tokens": 0}));
    assert_eq!((option.status, &option.body["error_type"]), (422, &json!("validation")));
    let info = server.get("/info").body;
    assert_eq!(
        (&info["model_id"], &info["erank"]["answers"]["largest"]),
        (&json!("echo"), &json!(10))
    );
}

/// Answers 9 if the job is as its instruction demands, and else 1.
struct Demanding;

impl ScoringBackend for Demanding {
    fn name(&self) -> &str {
        "demanding"
    }

    fn score(&self, job: &Job<'_>, sink: &mut dyn Sink) -> Result<(), BackendError> {
        let options = serde_json::to_value(job.options).expect("JSON");
        let demanded: Value = serde_json::from_str(job.prompt.instruction()).unwrap_or_default();
        let is_met = demanded.as_object().is_some_and(|demanded| {
            !demanded.is_empty()
                && demanded.iter().all(|(path, value)| options.pointer(path) == Some(value))
        });
        for sample in 0..job.options.samples {
            let mut completion = answered(if is_met { 9 } else { 1 }, 1.0);
            completion.sample = sample;
            sink.completed(0, Ok(completion));
        }
        Ok(())
    }
}

#[test]
fn options_of_a_request_reach_the_backend() {
    let server = Server::start(Demanding, Settings::default());
    for (field, value, demand) in [
        ("max_tokens", json!(12), json!({"/mode": {"reason": {"max_tokens": 12}}})),
        ("mode", json!("answer_only"), json!({"/mode": "answer_only"})),
        ("max_tokens_per_doc", json!(4), json!({"/max_document_tokens": 4})),
        ("truncate_prompt_tokens", json!(500), json!({"/max_prompt_tokens": 500})),
        ("temperature", json!(0.5), json!({"/sampling/temperature": 0.5})),
        ("top_p", json!(0.5), json!({"/sampling/top_p": 0.5})),
        ("top_k", json!(20), json!({"/sampling/top_k": 20})),
        ("min_p", json!(0.25), json!({"/sampling/min_p": 0.25})),
        ("repetition_penalty", json!(1.5), json!({"/sampling/repetition_penalty": 1.5})),
        ("frequency_penalty", json!(0.5), json!({"/sampling/frequency_penalty": 0.5})),
        ("presence_penalty", json!(0.5), json!({"/sampling/presence_penalty": 0.5})),
        ("seed", json!(7), json!({"/sampling/seed": 7})),
    ] {
        for goal in ["instruction", "instruct"] {
            let question =
                json!({"query": "q", "documents": ["a"], goal: demand.to_string(), field: value});
            let reply = server.post("/v1/rerank", &question);
            assert_eq!(reply.body["meta"]["warnings"], json!([]), "{field}: {reply:?}");
            assert_eq!(scores(&reply.body), [0.9], "{field}");
            let without = json!({"query": "q", "documents": ["a"], goal: demand.to_string()});
            assert_eq!(scores(&server.post("/v1/rerank", &without).body), [0.1], "{field}");
        }
    }
    let samples = json!({"query": "q", "documents": ["a"], "temperature": 0.5, "samples": 3,
        "instruction": json!({"/samples": 3}).to_string()});
    assert_eq!(scores(&server.post("/v1/rerank", samples).body), [0.9]);
    let greedy = json!({"query": "q", "documents": ["a"], "samples": 3});
    assert_eq!(server.post("/v1/rerank", greedy).status, 422);
}

#[test]
fn settings_are_those_of_requests_without_their_own() {
    let mut settings = Settings::default();
    settings.options.max_document_tokens = 99;
    settings.instruction = Some(json!({"/max_document_tokens": 99}).to_string());
    let server = Server::start(Demanding, settings);
    let plain = json!({"query": "q", "documents": ["a"]});
    assert_eq!(scores(&server.post("/v1/rerank", plain).body), [0.9]);
}

#[test]
fn first_stage_weight_fuses_the_scores() {
    let server = echo();
    let documents = json!([{"text": "2 a", "score": 30}, {"text": "3 b", "score": 1}, "9 c"]);
    let question = |weight: f64| json!({"query": "q", "documents": documents, "first_stage_weight": weight, "unscored": "omit"});
    let body = server.post("/v1/rerank", question(0.9)).body;
    assert_eq!(indices(&body), [0, 1]);
    assert_eq!(body["unscored"][0]["error"]["code"], "no_first_stage_score");
    assert_eq!(indices(&server.post("/v1/rerank", question(0.1)).body), [1, 0]);
    assert_eq!(server.post("/v1/rerank", question(1.5)).status, 422);
}

#[test]
fn min_score_lists_documents_apart() {
    let server = echo();
    let question = json!({"query": "q", "documents": ["2 a", "8 b"], "min_score": 0.5});
    let body = server.post("/v1/rerank", question).body;
    assert_eq!((indices(&body), &body["below_min_score"][0]["index"]), (vec![1], &json!(0)));
}

#[test]
fn model_is_the_backend_s_name_or_an_alias() {
    let mut settings = Settings::default();
    settings.aliases = vec!["Alibaba-NLP/ERank-4B".into()];
    let server = Server::start(Echo, settings);
    for (model, status) in [("echo", 200), ("", 200), ("Alibaba-NLP/ERank-4B", 200), ("other", 404)]
    {
        let question = json!({"query": "q", "documents": ["1 a"], "model": model});
        let reply = server.post("/v1/rerank", question);
        assert_eq!(reply.status, status, "{reply:?}");
    }
    let long = json!({"query": "q", "documents": ["1 a"], "model": "x".repeat(3000)});
    let message = server.post("/v1/rerank", long).body["message"].take().to_string();
    assert!(message.contains("Alibaba-NLP/ERank-4B"), "{message}");
    let models = server.get("/v1/models").body;
    assert!(models["data"][0]["created"].as_u64().is_some_and(|seconds| seconds > 1_700_000_000));
    assert_eq!(models["data"][0]["id"], "echo");
    assert_eq!(models["data"][1]["id"], "Alibaba-NLP/ERank-4B");
}

#[test]
fn errors_name_the_field_and_echo_little() {
    let mut settings = Settings::default();
    (settings.max_body_bytes, settings.max_documents, settings.max_query_bytes) = (4000, 3, 100);
    let server = Server::start(Echo, settings);
    let long = "x".repeat(101);
    for (body, status, field) in [
        ("{".into(), 400, ""),
        (r#"{"query": "q", "documents": ["a"]} x"#.into(), 400, ""),
        (json!([]).to_string(), 422, ""),
        (json!({"documents": ["a"]}).to_string(), 422, "query"),
        (json!({"query": "q"}).to_string(), 422, "documents"),
        (json!({"query": 1, "documents": ["a"]}).to_string(), 422, "query"),
        (json!({"query": " ", "documents": ["a"]}).to_string(), 422, "query"),
        (json!({"query": long, "documents": ["a"]}).to_string(), 422, "query"),
        (
            json!({"query": "q", "documents": ["a"], "instruction": long}).to_string(),
            422,
            "instruction",
        ),
        (json!({"query": "q", "documents": []}).to_string(), 422, "documents"),
        (json!({"query": "q", "documents": "a"}).to_string(), 422, "documents"),
        (json!({"query": "q", "documents": vec!["a"; 4]}).to_string(), 422, "documents"),
        (json!({"query": "q", "documents": ["a"], "top_n": -1}).to_string(), 422, "top_n"),
        (
            json!({"query": "q", "documents": ["a"], "top_n": "x".repeat(3000)}).to_string(),
            422,
            "top_n",
        ),
        (json!({"query": "q", "documents": ["a"], "timeout": -1}).to_string(), 422, "timeout"),
        (
            json!({"query": "q", "documents": ["a"], "temperature": -1}).to_string(),
            422,
            "temperature",
        ),
        (json!({"query": "q", "documents": ["a"], "max_tokens": 0}).to_string(), 422, "max_tokens"),
        (
            json!({"query": "q", "documents": ["a"], "samples": 65, "temperature": 1}).to_string(),
            422,
            "samples",
        ),
        (
            json!({"query": "q", "documents": ["a"], "model": "x".repeat(3000)}).to_string(),
            404,
            "model",
        ),
        (json!({"query": "q", "documents": ["a".repeat(4000)]}).to_string(), 413, ""),
    ] {
        let reply = server.post("/v1/rerank", &body);
        assert_eq!(reply.status, status, "{body}: {reply:?}");
        let message = reply.body["message"].as_str().expect("a message");
        assert!(message.contains(field) && message.len() < 400, "{body}: {message}");
        assert_eq!(reply.body["detail"], message);
        assert_eq!(reply.body["error"]["code"], status);
        assert_eq!(reply.body["field"].as_str().unwrap_or_default(), field, "{body}");
    }
    assert_eq!(server.post("/v1/rerank", json!({"query": "q", "documents": ["1 a"]})).status, 200);
}

#[test]
fn values_have_the_forms_of_other_servers() {
    let server = echo();
    let body = |more: &Value| {
        let mut body = json!({"query": "q", "documents": ["2 a", "7 b"]});
        more.as_object()
            .expect("fields")
            .iter()
            .for_each(|(name, value)| body[name] = value.clone());
        server.post("/v1/rerank", body)
    };
    for (more, pointer, expected) in [
        // RAGFlow's client of Xinference.
        (
            json!({"return_documents": "true", "return_len": "true"}),
            "/results/0/document/text",
            json!("7 b"),
        ),
        (json!({"return_documents": 1}), "/results/0/document/text", json!("7 b")),
        (json!({"return_documents": "False"}), "/results/0/document", Value::Null),
        (json!({"return_reasoning": "on"}), "/results/0/answer", json!(7)),
        (json!({"stream": "0"}), "/results/0/index", json!(1)),
        (json!({"top_n": "1"}), "/results/1", Value::Null),
        (json!({"top_n": " 1.0 "}), "/results/1", Value::Null),
        (json!({"min_score": "0.5"}), "/below_min_score/0/index", json!(0)),
        (json!({"timeout": "0"}), "/results/0/error/code", json!("cancelled")),
        // The defaults of vLLM.
        (
            json!({"max_tokens_per_doc": 0, "truncate_prompt_tokens": -1, "top_n": 0, "user": null}),
            "/meta/warnings",
            json!([]),
        ),
        (json!({"top_k": -1}), "/meta/warnings", json!([])),
        (json!({"rank_fields": []}), "/results/0/relevance_score", json!(0.7)),
        (json!({"texts": null}), "/results/0/relevance_score", json!(0.7)),
        // Voyage's name of the number of results.
        (json!({"top_k": 2}), "/meta/warnings", json!([])),
        (json!({"top_k": 1, "temperature": 0.5}), "/meta/warnings", json!([])),
    ] {
        let reply = body(&more);
        assert_eq!(reply.status, 200, "{more}: {reply:?}");
        assert_eq!(
            reply.body.pointer(pointer).unwrap_or(&Value::Null),
            &expected,
            "{more}: {reply:?}"
        );
    }
    for (field, value) in [
        ("return_documents", json!("maybe")),
        ("stream", json!(2)),
        ("top_n", json!("")),
        ("timeout", json!("soon")),
        ("max_tokens_per_doc", json!(-1)),
        ("truncate_prompt_tokens", json!(0)),
    ] {
        let reply = body(&json!({field: value}));
        assert_eq!((reply.status, &reply.body["field"]), (422, &json!(field)), "{reply:?}");
        assert!(reply.body["message"].as_str().is_some_and(|message| message.starts_with(field)));
    }
    let warnings = body(&json!({"top_k": 1})).body["meta"]["warnings"].to_string();
    assert!(warnings.contains("top_n"), "{warnings}");
    let tei = json!({"query": "q", "texts": ["7 b"], "documents": null, "return_text": "true"});
    assert_eq!(
        server.post("/rerank", tei).body,
        json!([{"index": 0, "score": 0.7, "text": "7 b"}])
    );
    let marked = "\u{feff}{\"query\": \"q\", \"documents\": [\"7 b\"]}";
    assert_eq!(server.post("/v1/rerank", marked).status, 200);
    for number in ["NaN", "-Infinity", "\nNaN", "{\"text\": \"a\", \"score\": NaN}"] {
        let body = format!("{{\"query\": \"q\",\n \"documents\": [\"7 b\",{number}]}}");
        let reply = server.post("/v1/rerank", body);
        let message = reply.body["message"].as_str().unwrap_or_default();
        assert!(reply.status == 400 && message.contains("send null"), "{reply:?}");
    }
}

#[test]
fn blank_instruction_counts_as_missing() {
    let mut settings = Settings::default();
    settings.options.max_document_tokens = 99;
    settings.instruction = Some(json!({"/max_document_tokens": 99}).to_string());
    let server = Server::start(Demanding, settings);
    for (instruction, instruct, score) in
        [("", "", 0.9), (" \n", "", 0.9), ("", "other", 0.1), ("other", "", 0.1)]
    {
        let question = json!({"query": "q", "documents": ["a"], "instruction": instruction, "instruct": instruct});
        assert_eq!(
            scores(&server.post("/v1/rerank", question).body),
            [score],
            "{instruction:?} {instruct:?}"
        );
    }
}

#[test]
fn returned_objects_have_their_fields() {
    let server = echo();
    let body = r#"{"query": "q", "return_documents": true, "stream": false, "documents": [
        {"text": "9 a", "title": "t", "url": "u", "tags": [1,
            "a b\"\\" ], "none": null}, {"body": "8 b"}, {"text": 5, "n": 1}, 7, "3 c"]}"#;
    let expected = [
        json!({"text": "9 a", "title": "t", "url": "u", "tags": [1, "a b\"\\"], "none": null}),
        json!({"body": "8 b", "text": ""}),
        json!({"text": "", "n": 1}),
        json!({"text": ""}),
        json!({"text": "3 c"}),
    ];
    // The title precedes the text, so the first document has no number at its beginning.
    let body = body.replace("\"t\"", "\"9\"");
    let mut reply = server.post("/v1/rerank", &body).body;
    let events = server.post("/v1/rerank", body.replace("false", "true")).body;
    let events = crate::common::events(events.as_str().expect("text"));
    for results in [reply["results"].take(), events.last().expect("one").1["results"].clone()] {
        for result in results.as_array().expect("results") {
            let index = result["index"].as_u64().expect("an index") as usize;
            let mut expected = expected[index].clone();
            if index == 0 {
                expected["title"] = json!("9");
            }
            assert_eq!(result["document"], expected);
        }
    }
    let fields = json!({"query": "q", "return_documents": true, "rank_fields": ["body"],
        "documents": [{"text": "t", "body": "8 b"}, {"body": "6 c"}]});
    let results = server.post("/v1/rerank", fields).body["results"].take();
    assert_eq!(results[0]["document"], json!({"text": "t", "body": "8 b"}));
    assert_eq!(results[1]["document"], json!({"text": "6 c", "body": "6 c"}));
}

/// Neither a request nor a reply has many times the size of the request's body.
#[test]
fn short_requests_have_short_replies() {
    let server = echo();
    let long = "n".repeat(1_000_000);
    let names: Vec<String> = (0..65).map(|i| i.to_string()).collect();
    let many: String = (0..10_001).map(|i| format!("\"{i}\": 0,")).collect();
    for (body, status, field) in [
        (
            json!({"query": "q", "documents": [{"a": "1"}], "rank_fields": ["a", "b", "a"]})
                .to_string(),
            422,
            "rank_fields",
        ),
        (
            json!({"query": "q", "documents": [{"a": "1"}], "rank_fields": names}).to_string(),
            422,
            "rank_fields",
        ),
        (
            json!({"query": "q", "documents": [{"a": "1"}], "rank_fields": [long]}).to_string(),
            200,
            "",
        ),
        (
            json!({"query": "q", "documents": vec![json!({}); 1000], "rank_fields": [long]})
                .to_string(),
            200,
            "",
        ),
        (
            json!({"query": "q", "documents": [{"text": "1", "score": long}, "2"]}).to_string(),
            200,
            "",
        ),
        (json!({"query": "q", "documents": ["2"], &*long: 1}).to_string(), 200, ""),
        (
            json!({"query": "q", "documents": ["2"], "instruct": {"a": long}}).to_string(),
            422,
            "instruct",
        ),
        (json!({"query": "q", "documents": ["2"], "unscored": long}).to_string(), 422, "unscored"),
        (
            format!("{{\"query\": \"q\", \"documents\": [0{}]}}", ",0".repeat(1_000_000)),
            422,
            "documents",
        ),
        (format!("{{{many} \"query\": \"q\", \"documents\": [\"1\"]}}"), 422, ""),
        (format!("{{\"query\": \"q\", \"documents\": [{{{many} \"text\": \"1\"}}]}}"), 200, ""),
    ] {
        let reply = server.post("/v1/rerank", &body);
        let start = &body[..60];
        assert_eq!(reply.status, status, "{start}");
        assert_eq!(reply.body["field"].as_str().unwrap_or_default(), field, "{start}");
        let length = reply.body.to_string().len();
        assert!(length < if status == 200 { 500_000 } else { 2000 }, "{start}: {length} bytes");
    }
}

#[test]
fn unknown_routes_and_methods_name_the_routes() {
    let server = echo();
    for (reply, status) in [(server.post("/v3/rerank", "{}"), 404), (server.get("/v1/rerank"), 405)]
    {
        assert_eq!(reply.status, status);
        let message = reply.body["message"].as_str().expect("a message");
        assert!(message.contains("/v1/rerank") && message.contains("/metrics"), "{message}");
    }
    // Clients with a base address that ends with a slash.
    let question = json!({"query": "q", "documents": ["1 a"]});
    for path in ["//v1/rerank", "/v1/rerank/", "//rerank", "/v2/rerank/"] {
        assert_eq!(server.post(path, &question).status, 200, "{path}");
    }
}

#[test]
fn api_keys_protect_all_but_the_page_and_the_health() {
    let mut settings = Settings::default();
    settings.api_keys = ApiKeys::new([" first ", "", "second"]);
    let server = Server::start(Echo, settings);
    let question = json!({"query": "q", "documents": ["1 a"]}).to_string();
    let json = ("content-type", "application/json");
    for (header, status) in [
        (("authorization", "Bearer first"), 200),
        (("authorization", "bearer second"), 200),
        (("x-api-key", "second"), 200),
        (("authorization", "Bearer secon"), 401),
        (("authorization", "Basic first"), 401),
        (("authorization", "Bearer "), 401),
        (("x-other", "first"), 401),
    ] {
        let reply = server.request("POST", "/v1/rerank", &[json, header], &question);
        assert_eq!(reply.status, status, "{header:?}: {reply:?}");
    }
    // A gateway adds an authorization of its own.
    for (other, status) in [("Bearer other", 200), ("Basic other", 200), ("Bearer second", 200)] {
        let headers = [json, ("authorization", other), ("x-api-key", "first")];
        let reply = server.request("POST", "/v1/rerank", &headers, &question);
        assert_eq!(reply.status, status, "{other}: {reply:?}");
    }
    let headers = [json, ("authorization", "Bearer other"), ("x-api-key", "another")];
    assert_eq!(server.request("POST", "/v1/rerank", &headers, &question).status, 401);
    for path in ["/", "/health", "/ready", "/openapi.json"] {
        assert_eq!(server.get(path).status, 200, "{path}");
    }
    for path in ["/info", "/metrics", "/v1/models"] {
        assert_eq!(server.get(path).status, 401, "{path}");
    }
}

#[test]
fn requests_of_other_sites_are_refused() {
    let mut settings = Settings::default();
    settings.allowed_hosts = vec!["127.0.0.1".into(), "[::1]".into()];
    let server = Server::start(Echo, settings);
    let question = json!({"query": "q", "documents": ["1 a"]}).to_string();
    let json = ("content-type", "application/json");
    let own = format!("http://{}", server.address);
    let host = server.address.to_string();
    for (headers, status) in [
        (vec![json], 200),
        (vec![json, ("origin", own.as_str())], 200),
        (vec![("content-type", "Application/JSON; charset=utf-8")], 200),
        // The name of a proxy that replaces the host.
        (vec![json, ("origin", "https://[::1]")], 200),
        (vec![json, ("origin", "http://evil.example")], 403),
        (vec![json, ("origin", "null")], 403),
        (vec![("content-type", "text/plain")], 415),
        (vec![json, ("content-encoding", "gzip")], 415),
        (vec![], 415),
        (vec![json, ("host", "evil.example")], 403),
        (vec![json, ("host", "evil.example:80"), ("origin", "http://evil.example:80")], 403),
        (vec![json, ("host", host.as_str())], 200),
    ] {
        let reply = server.request("POST", "/v1/rerank", &headers, &question);
        assert_eq!(reply.status, status, "{headers:?}: {reply:?}");
    }
    let probe = server.request("GET", "/health", &[("host", "10.0.0.7")], "");
    assert_eq!(probe.status, 200);
}

#[test]
fn allowed_hosts_are_names_with_or_without_port() {
    let mut settings = Settings::default();
    settings.allowed_hosts =
        vec!["127.0.0.2:80".into(), "[::1]:80".into(), "Name".into(), String::new()];
    let server = Server::start(Echo, settings);
    for (host, status, message) in [
        ("127.0.0.2:8085", 200, ""),
        ("[::1]", 200, ""),
        ("name.:80", 200, ""),
        ("127.0.0.1", 403, "--allowed-host"),
        ("a b", 403, "--allowed-host"),
        ("", 403, "no header host"),
    ] {
        let stream = server
            .raw(&format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"));
        let reply = crate::common::read_to_end(&stream);
        assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{host}: {reply}");
        assert!(reply.contains(message), "{host}: {reply}");
    }
}

#[test]
fn request_id_is_the_client_s_or_new() {
    let server = echo();
    let given = server.request("GET", "/health", &[("x-request-id", "abc-1")], "");
    assert_eq!(given.header("x-request-id"), Some("abc-1"));
    let long = "x".repeat(200);
    for headers in [vec![], vec![("x-request-id", long.as_str())]] {
        let new = server.request("GET", "/health", &headers, "");
        assert!(new.header("x-request-id").is_some_and(|id| (1..100).contains(&id.len())));
    }
    let question = json!({"query": "q", "documents": ["1 a"]}).to_string();
    let headers = [("content-type", "application/json"), ("x-request-id", "abc-2")];
    assert_eq!(server.request("POST", "/v1/rerank", &headers, &question).body["id"], "abc-2");
}

#[test]
fn metrics_count_requests_documents_and_tokens() {
    let server = echo();
    server.post("/v1/rerank", json!({"query": "q", "documents": ["1 a", "2 b", ""]}));
    server.post("/v1/nowhere", "{}");
    let reply = server.get("/metrics");
    let text = reply.body.as_str().expect("text");
    for line in [
        "erank_http_requests_total{route=\"/v1/rerank\",status=\"200\"} 1",
        "erank_http_requests_total{route=\"unknown\",status=\"404\"} 1",
        "erank_http_request_duration_seconds_count{route=\"/v1/rerank\"} 1",
        "erank_documents_total{outcome=\"scored\"} 2",
        "erank_documents_total{outcome=\"empty\"} 1",
        "erank_stops_total{reason=\"end_of_turn\"} 2",
        "erank_requests_running 0",
        "erank_requests_waiting 0",
        "# EOF",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn stream_sends_what_happens_and_then_the_reply() {
    let server = echo();
    let question = json!({"query": "q", "documents": ["2 a", "", "7 b"], "stream": true});
    let reply = server.post("/v1/rerank", &question);
    assert_eq!(reply.header("content-type"), Some("text/event-stream"));
    let events = crate::common::events(reply.body.as_str().expect("text"));
    let names: Vec<&str> = events.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("started", "result"));
    let of = |name: &'static str| {
        let named = events.iter().filter(move |(of, _)| of == name);
        named.map(|(_, data)| data)
    };
    assert_eq!(of("started").next().expect("one")["documents"], 3);
    let thoughts: String =
        of("thought").filter(|t| t["index"] == 2).filter_map(|t| t["text"].as_str()).collect();
    assert_eq!(thoughts, "it says 7");
    // The index is that in the request, although the empty document does not reach the backend.
    let documents: Vec<&Value> = of("document").collect();
    assert_eq!(
        (&documents[0]["index"], &documents[0]["error"]["code"]),
        (&json!(1), &json!("empty"))
    );
    assert_eq!(
        (&documents[2]["index"], &documents[2]["relevance_score"]),
        (&json!(2), &json!(0.7))
    );
    assert_eq!(documents[2]["reasoning"], "it says 7");
    let last = of("progress").next_back().expect("one");
    assert_eq!((&last["documents_done"], &last["documents"]), (&json!(3), &json!(3)));
    let result = of("result").next().expect("one");
    assert_eq!(indices(result), [2, 0, 1]);
    assert_eq!(result["results"][0]["reasoning"], "it says 7");

    let failed = json!({"query": "q", "documents": ["unavailable"], "stream": true});
    let events =
        crate::common::events(server.post("/v1/rerank", failed).body.as_str().expect("text"));
    let (name, data) = events.last().expect("one");
    assert_eq!((name.as_str(), &data["error"]["code"]), ("error", &json!(503)));
}

fn with_windows() -> Server {
    let mut settings = Settings::default();
    settings.windows = Some(Windows::with_tokens(5));
    Server::start(Echo, settings)
}

const OF_THREE_WINDOWS: &str = "2 a b c. 9 d e f. 1 g h i.";

#[test]
fn long_documents_are_scored_by_windows() {
    let server = with_windows();
    let documents = json!(["3 x", OF_THREE_WINDOWS]);
    let body = server.post("/v1/rerank", json!({"query": "q", "documents": documents})).body;
    assert_eq!((indices(&body), scores(&body)), (vec![1, 0], vec![0.9, 0.3]));
    let window = |result: &Value, text: &str| {
        let place = |name: &str| result["windows"][0][name].as_u64().expect("a number") as usize;
        (
            text[place("start")..place("end")].to_owned(),
            result["windows"][0]["relevance_score"].clone(),
        )
    };
    let [long, short] = [&body["results"][0], &body["results"][1]];
    assert_eq!(window(long, OF_THREE_WINDOWS), ("9 d e f. ".to_owned(), json!(0.9)));
    assert_eq!(window(short, "3 x"), ("3 x".to_owned(), json!(0.3)));

    // The scores of text-embeddings-inference come from windows, too.
    let tei = server.post("/rerank", json!({"query": "q", "texts": documents})).body;
    assert_eq!(tei, json!([{"index": 1, "score": 0.9}, {"index": 0, "score": 0.3}]));

    // A request that limits the tokens itself gets truncated documents. This backend truncates nothing.
    for field in ["max_tokens_per_doc", "truncate_prompt_tokens"] {
        let body =
            server.post("/v1/rerank", json!({"query": "q", "documents": documents, field: 5})).body;
        assert_eq!(scores(&body), [0.3, 0.2], "{field}");
        assert_eq!(body["results"][0].get("windows"), None, "{field}");
    }
    let unlimited = json!({"query": "q", "documents": documents, "max_tokens_per_doc": 0,
        "truncate_prompt_tokens": -1});
    assert_eq!(scores(&server.post("/v1/rerank", unlimited).body), [0.9, 0.3]);

    let windows = |server: &Server| server.get("/info").body["erank"]["windows"].clone();
    assert_eq!(windows(&server), json!({"tokens": 5, "max_windows": 32}));
    assert_eq!(windows(&echo()), Value::Null);
}

#[test]
fn streams_report_documents_of_one_window_as_they_are_finished() {
    let documents = json!(["", OF_THREE_WINDOWS, "3 x", OF_THREE_WINDOWS, "5 y"]);
    let question = json!({"query": "q", "documents": documents, "stream": true});
    let reply = with_windows().post("/v1/rerank", &question);
    let events = crate::common::events(reply.body.as_str().expect("text"));
    let of = |name: &str| -> Vec<&Value> {
        events.iter().filter(|(of, _)| of == name).map(|(_, data)| data).collect()
    };
    let documents: Vec<(&Value, &Value)> =
        of("document").iter().map(|data| (&data["index"], &data["relevance_score"])).collect();
    let expected = [(json!(0), Value::Null), (json!(2), json!(0.3)), (json!(4), json!(0.5))];
    assert_eq!(documents, expected.each_ref().map(|(index, score)| (index, score)));
    assert!(of("thought").iter().all(|data| data["index"] == 2 || data["index"] == 4));
    assert_eq!(indices(of("result")[0]), [1, 3, 4, 2, 0]);
}

#[test]
fn failed_window_has_the_status_of_its_own_error() {
    let server = with_windows();
    let documents = json!(["7 x", "2 a b c. broken d e f."]);
    let question =
        |unscored: &str| json!({"query": "q", "documents": documents, "unscored": unscored});
    assert_eq!(server.post("/v1/rerank", question("error")).status, 503);
    let body = server.post("/v1/rerank", question("last")).body;
    assert_eq!(
        (indices(&body), &body["results"][1]["error"]["code"]),
        (vec![0, 1], &json!("window"))
    );
}

#[test]
fn bare_answers_need_no_reasoning() {
    let mut settings = Settings::default();
    settings.template = PromptTemplate::qwen3_reranker();
    let server = Server::start(crate::common::YesOrNo, settings);
    let body = server.post("/v1/rerank", json!({"query": "q", "documents": ["no", "yes"]})).body;
    assert_eq!(indices(&body), [1, 0]);
    let scores = scores(&body);
    assert!((scores[0] - 0.75).abs() < 1e-6 && (scores[1] - 0.25).abs() < 1e-6, "{scores:?}");
    assert_eq!(body["meta"]["warnings"], json!([]));
    assert_eq!(server.get("/info").body["erank"]["thinks"], false);
    let question = json!({"query": "q", "documents": ["no"], "temperature": 0.5, "mode": "reason"});
    let warnings = server.post("/v1/rerank", question).body["meta"]["warnings"].to_string();
    assert!(warnings.contains("temperature") && warnings.contains("mode"), "{warnings}");
}

/// One request runs, one waits in the queue, and the service rejects the others.
#[test]
fn rerank_replies_429_when_the_queue_is_full() {
    let (gate, keeper) = gate();
    let server = Server::start(gate, one_at_a_time());
    let question = json!({"query": "q", "documents": ["a"]});
    thread::scope(|scope| {
        let (sender, replies) = channel();
        let ask = |sender: std::sync::mpsc::Sender<crate::common::Reply>| {
            let (server, question) = (&server, &question);
            scope.spawn(move || {
                sender.send(server.post("/v1/rerank", question)).expect("the test waits");
            });
        };
        ask(sender.clone());
        keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
        (0..4).for_each(|_| ask(sender.clone()));
        for _ in 0..3 {
            let reply = replies.recv_timeout(A_MINUTE).expect("a reply");
            assert_eq!((reply.status, reply.header("retry-after")), (429, Some("1")), "{reply:?}");
        }
        keeper.open();
        for _ in 0..2 {
            let reply = replies.recv_timeout(A_MINUTE).expect("a reply");
            assert_eq!((reply.status, indices(&reply.body)), (200, vec![0]), "{reply:?}");
        }
    });
}

#[test]
fn deadline_leaves_documents_unscored() {
    let (gate, _keeper) = gate();
    let server = Server::start(gate, Settings::default());
    let question = json!({"query": "q", "documents": ["a"], "timeout": 0});
    let reply = server.post("/v1/rerank", question);
    assert_eq!((reply.status, indices(&reply.body)), (200, vec![0]));
    assert_eq!(reply.body["results"][0]["error"]["code"], "cancelled");
}

#[test]
fn largest_settings_are_no_error() {
    let mut settings = Settings::default();
    (settings.max_running, settings.max_waiting) = (usize::MAX, usize::MAX);
    (settings.max_total_body_bytes, settings.request_time) = (usize::MAX, Duration::MAX);
    (settings.body_time, settings.max_documents) = (Duration::MAX, usize::MAX);
    let mut limits = ServerSettings::default();
    limits.max_connections = usize::MAX;
    (limits.write_time, limits.shutdown_time) = (Duration::MAX, Duration::MAX);
    let server = Server::with_limits(Echo, settings, limits);
    for question in [
        json!({"query": "q", "documents": ["1 a"]}),
        json!({"query": "q", "documents": ["1 a"], "timeout": 1e300}),
    ] {
        assert_eq!(server.post("/v1/rerank", question).status, 200);
    }
    assert_eq!(server.get("/info").status, 200);
}

#[test]
fn backend_errors_hide_their_source() {
    let server = echo();
    for (document, status, retry_after) in
        [("unavailable", 503, Some("1")), ("panic", 500, None), ("1 fine", 200, None)]
    {
        let reply = server.post("/v1/rerank", json!({"query": "q", "documents": [document]}));
        assert_eq!((reply.status, reply.header("retry-after")), (status, retry_after));
        assert!(!reply.body.to_string().contains("secret"), "{reply:?}");
    }
}

#[test]
fn shutdown_finishes_running_requests_and_is_not_ready() {
    let (gate, keeper) = gate();
    let mut server = Server::start(gate, one_at_a_time());
    let url = format!("http://{}/v1/rerank", server.address);
    let body = json!({"query": "q", "documents": ["a"]}).to_string();
    let client = thread::spawn(move || post(&url, &body));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    assert_eq!(server.get("/ready").status, 200);
    server.service.stop();
    assert_eq!(server.get("/ready").status, 503);
    server.shut_down();
    keeper.open();
    assert_eq!(client.join().expect("no panic").status, 200);
    assert_eq!(server.join(), 0);
}

#[test]
fn shutdown_ends_whatever_clients_do() {
    let (gate, keeper) = gate();
    let mut limits = ServerSettings::default();
    limits.shutdown_time = Duration::from_millis(300);
    let mut server = Server::with_limits(gate, Settings::default(), limits);
    let body = r#"{"query": "q", "documents": ["a"]}"#;
    let head = |length: usize| {
        format!(
            "POST /v1/rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let half_header = server.raw("POST /v1/rerank HTTP/1.1\r\nhost");
    let half_body = server.raw(&format!("{}{{", head(100)));
    let running = server.raw(&format!("{}{body}", head(body.len())));
    keeper.started.recv_timeout(A_MINUTE).expect("the request starts");
    server.shut_down();
    assert!(server.join() >= 1);
    keeper.cancelled.recv_timeout(A_MINUTE).expect("the work is cancelled");
    drop((half_header, half_body, running));
}
