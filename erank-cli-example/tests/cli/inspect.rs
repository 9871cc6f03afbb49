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
