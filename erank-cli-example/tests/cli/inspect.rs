//! `erank inspect`.

use crate::erank;

const PROMPT: [&str; 5] =
    ["inspect", "--query", "the jet <|im_end|>", "--document", "A jet \u{9b}."];

#[test]
fn inspect_prints_prompt_and_tokens() {
    let run = erank(&PROMPT, b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    run.assert_harmless();
    assert!(run.out.contains("Here is the query:\nthe jet <|im_end|>\n"), "{}", run.out);
    assert!(run.out.contains(r"A jet \u{9b}."), "{}", run.out);
    let marked: Vec<&str> = run.out.lines().filter(|line| line.contains(" *")).collect();
    // The template's own <|im_end|> is a control token; the one in the query is text.
    assert_eq!(marked.iter().filter(|line| line.contains("<|im_end|>")).count(), 1, "{marked:?}");
    assert!(marked.iter().any(|line| line.contains("<|im_start|>")), "{marked:?}");
}

#[test]
fn inspect_prints_most_probable_tokens_as_json() {
    let run = erank(&[&PROMPT[..], &["--answer-only", "--logprobs", "5", "--json"]].concat(), b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    run.assert_harmless();
    let found = run.json();
    assert!(found["prompt"].as_str().is_some_and(|prompt| prompt.ends_with("<answer>")));
    let tokens = found["tokens"].as_array().expect("tokens");
    assert!(tokens.iter().any(|token| token["control"] == true));
    assert!(tokens.iter().any(|token| token["control"] == false));
    for (position, token) in tokens.iter().enumerate() {
        assert_eq!(token["position"], position);
        let next = token["next"].as_array().expect("next");
        let log_probs: Vec<f64> =
            next.iter().map(|next| next["log_prob"].as_f64().expect("a number")).collect();
        assert_eq!(log_probs.len(), 5);
        assert!(log_probs.is_sorted_by(|a, b| a >= b), "{log_probs:?}");
        let total: f64 = log_probs.iter().map(|log_prob| log_prob.exp()).sum();
        assert!(total > 0.0 && total <= 1.0 + 1e-4, "{total}");
    }
    // The same ids give the same tokens.
    let ids: Vec<String> = tokens.iter().map(|token| token["id"].to_string()).collect();
    let ids = format!("[{}]", ids.join(", "));
    let again = erank(&["inspect", "--ids", "-", "-k", "5", "--json"], ids.as_bytes());
    assert_eq!(again.json()["tokens"], found["tokens"]);
    assert_eq!(again.json()["prompt"], serde_json::Value::Null);
}

#[test]
fn inspect_appends_text_with_control_tokens() {
    let run = erank(&["inspect", "--append", "<think>so</think><answer>", "--json"], b"");
    let found = run.json();
    assert!(found["prompt"].as_str().is_some_and(|prompt| prompt.ends_with("so</think><answer>")));
    let tokens = found["tokens"].as_array().expect("tokens");
    let closing = tokens.iter().rfind(|token| token["text"] == "</think>").expect("it is there");
    assert_eq!(closing["control"], true);
}

#[test]
fn inspect_names_invalid_ids() {
    for (ids, said) in
        [("1,x2", "\"x2\" is not a token id"), ("1 4294967295", "4294967295 is not in")]
    {
        let run = erank(&["inspect", "--ids", ids], b"");
        assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
        assert!(run.err.contains(said), "{}", run.err);
    }
    assert_eq!(erank(&["inspect", "--ids", "1", "--query", "x"], b"").code, Some(2));
}

#[test]
fn inspect_shows_the_cost_of_a_model() {
    let cost = |arguments: &[&str]| {
        let run = erank(&[&["inspect", "--json"], arguments].concat(), b"");
        assert_eq!(run.code, Some(0), "{run:?}");
        run.json()["cost"].clone()
    };
    let own = cost(&["--cache-mb", "3"]);
    let tensors = own["tensors"].as_array().expect("groups");
    let count: u64 = tensors.iter().filter_map(|group| group["count"].as_u64()).sum();
    assert_eq!(count, 46, "4 layers of 11 tensors, the embedding and the last norm: {own}");
    assert_eq!(tensors[0]["file_format"], "BF16");
    assert_eq!(tensors[0]["memory_format"], "BF16");
    let cache = &own["kv_cache"];
    assert_eq!(cache["format"], "BF16");
    assert_eq!(
        cache["bytes_per_token"],
        4 * 2 * 3 * 64 * 2,
        "layers, K and V, heads, width, bytes"
    );
    let of_longest = cache["bytes_per_token"].as_u64().zip(cache["max_tokens"].as_u64());
    assert_eq!(cache["bytes_of_max_tokens"].as_u64(), of_longest.map(|(a, b)| a * b));
    assert!(cache["budget_bytes"].as_u64().is_some_and(|bytes| bytes <= 3 << 20), "{own}");

    let quantised = cost(&["--weights", "q8_0"]);
    let bytes = |cost: &serde_json::Value| cost["weight_bytes"].as_f64().expect("a number");
    let ratio = bytes(&quantised) / bytes(&own);
    assert!((0.53..0.54).contains(&ratio), "34 bytes instead of 64, and norms: {ratio}");

    let run = erank(&["inspect", "--weights", "q8_0"], b"");
    run.assert_harmless();
    assert!(run.out.contains("erank-tiny: Q8_0 weights, "), "{}", run.out);
    assert!(run.out.lines().any(|line| line.starts_with("BF16         Q8_0 ")), "{}", run.out);
    assert!(run.out.contains("KV cache in BF16: 3,072 bytes per token"), "{}", run.out);
}

/// Without log-probabilities, no weights are loaded, but a format that loading refuses is refused.
#[test]
fn inspect_reports_formats_that_cannot_be_loaded() {
    let run = erank(&["inspect", "--weights", "q4_k"], b"");
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    assert!(run.err.contains("only read from files"), "{}", run.err);
}

const COMPARE: [&str; 6] = ["inspect", "--weights", "q8_0", "--compare", "tiny", "--json"];

#[test]
fn compare_of_quantised_model_shows_small_differences() {
    let run = erank(&COMPARE, b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    let found = run.json();
    assert_eq!(found["documents"], 41, "those of the demonstration");
    assert_eq!(found["cost"]["tensors"][0]["memory_format"], "Q8_0");
    assert_eq!(found["compared_with"]["cost"]["tensors"][0]["memory_format"], "BF16");
    let number = |pointer: &str| found.pointer(pointer).and_then(|x| x.as_f64()).expect(pointer);
    assert!((1e-9..1e-2).contains(&number("/kl_divergence/mean")), "{run:?}");
    assert!(number("/kl_divergence/worst") >= number("/kl_divergence/mean"));
    assert!((0.9..=1.0).contains(&number("/kendall_tau/mean")), "{run:?}");
    assert!(number("/kendall_tau/worst") <= number("/kendall_tau/mean"));
    let queries = found["queries"].as_array().expect("queries");
    let documents = queries.iter().flat_map(|query| query["documents"].as_array().expect("some"));
    let changed = documents.filter(|document| document["integers"][0] != document["integers"][1]);
    assert_eq!(found["changed_integers"], changed.count());

    let text = erank(&COMPARE[..5], b"").out;
    assert!(text.contains("Difference to erank-tiny, answers without reasoning, documents: 41"));
    assert!(text.contains("KL divergence of the answers     mean "), "{text}");
}

#[test]
fn compare_of_a_model_with_itself_shows_no_difference() {
    let documents =
        b"{\"id\": \"a\", \"text\": \"The noise of jets.\"}\n{\"text\": \"bread\"}\n{}\n";
    let arguments = ["inspect", "--compare", "tiny", "--docs", "-", "-q", "jet noise", "--json"];
    let run = erank(&arguments, documents);
    assert_eq!(run.code, Some(3), "{run:?}");
    let found = run.json();
    assert_eq!(found["kl_divergence"], serde_json::json!({"mean": 0.0, "worst": 0.0}));
    assert_eq!(found["changed_integers"], 0);
    assert_eq!(found["kendall_tau"], serde_json::json!({"mean": 1.0, "worst": 1.0}));
    assert_eq!(found["queries"][0]["documents"][0]["id"], "a");
    assert_eq!(found["uncompared"][0]["line"], 3);
    assert!(run.err.contains("line 3: "), "{}", run.err);
}

#[test]
fn compare_of_one_document_has_no_tau() {
    let arguments = ["inspect", "--compare", "tiny", "--document", "A jet."];
    let run = erank(&arguments, b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    run.assert_harmless();
    assert!(run.out.contains("documents: 1, queries: 1"), "{}", run.out);
    assert!(run.out.contains("rankings  undefined: no query has two documents"), "{}", run.out);
    let json = erank(&[&arguments[..], &["--json"]].concat(), b"").json();
    assert_eq!(json["kendall_tau"], serde_json::Value::Null);
}

#[test]
fn compare_names_what_cannot_be_compared() {
    let run = erank(&["inspect", "--compare", "/no/where"], b"");
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    assert!(run.err.contains("/no/where"), "{}", run.err);
    let run = erank(&["inspect", "--compare", "tiny", "-q", "x", "--docs", "-"], b"\n");
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    assert!(run.err.contains("standard input has no documents"), "{}", run.err);
    for invalid in [
        &["--docs", "-", "--query", "x"][..],
        &["--compare", "tiny", "--docs", "-"],
        &["--compare", "tiny", "--docs", "-", "-q", "x", "--document", "y"],
        &["--compare", "tiny", "--logprobs", "3"],
    ] {
        assert_eq!(erank(&[&["inspect"], invalid].concat(), b"").code, Some(2), "{invalid:?}");
    }
}
