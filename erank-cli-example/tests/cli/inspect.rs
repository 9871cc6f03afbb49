//! `erank inspect`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{ERANK, Ended, erank, tiny_with_yes_and_no};

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
    let own = cost(&["--kv-cache-mib", "3"]);
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
        b"[{\"id\": \"a\", \"text\": \"The noise of jets.\"}, {\"text\": \"bread\"}, {}]\n";
    let arguments = ["inspect", "--compare", "tiny", "--docs", "-", "-q", "jet noise", "--json"];
    let run = erank(&arguments, documents);
    assert_eq!(run.code, Some(3), "{run:?}");
    let found = run.json();
    assert_eq!(found["kl_divergence"], serde_json::json!({"mean": 0.0, "worst": 0.0}));
    assert_eq!(found["changed_integers"], 0);
    assert_eq!(found["kendall_tau"], serde_json::json!({"mean": 1.0, "worst": 1.0}));
    assert_eq!(found["queries"][0]["documents"][0]["id"], "a");
    assert_eq!(found["uncompared"][0]["line"], 3);
    assert!(run.err.contains("element 3: "), "{}", run.err);
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

#[test]
fn inspect_compares_a_device_with_the_portable_kernels() {
    for (device, formats) in [
        ("cpu", &["F32", "F32", "BF16", "Q8_0", "BF16"][..]),
        ("cpu-candle", &["F32", "F32", "BF16"]),
    ] {
        let report = erank(&["inspect", "--self-test", "--device", device, "--json"], b"").json();
        assert_eq!(report["passed"], true, "{report}");
        let checks = report["checks"].as_array().expect("checks");
        let weights: Vec<_> = checks.iter().map(|check| check["weights"].as_str()).collect();
        assert_eq!(weights, formats.iter().copied().map(Some).collect::<Vec<_>>());
        for check in checks {
            assert_eq!((&check["documents"], &check["passed"]), (&41.into(), &true.into()));
        }
    }
    let run = erank(&["inspect", "--self-test"], b"");
    assert!(run.out.contains("The self-test passed."), "{}", run.out);
    for other in [&["-m", "tiny"][..], &["--compare", "tiny"], &["-q", "x"], &["--weights", "f32"]]
    {
        let run = erank(&[&["inspect", "--self-test"], other].concat(), b"");
        assert_eq!(run.code, Some(2), "{other:?}");
    }
}

#[test]
fn inspect_ends_with_a_verdict() {
    let run = erank(&["inspect"], b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    run.assert_harmless();
    let (_, verdict) = run.out.split_once("\nVerdict:\n").expect("a verdict");
    for expected in [
        "files         model.safetensors, ",
        "architecture  Qwen3ForCausalLM, a language model: 4 layers",
        "tokenizer     ",
        "template      chat template of tokenizer_config.json; prompt of erank, the default",
        "precision     BF16 weights, ",
        "memory        ",
        "warnings      none",
    ] {
        assert!(verdict.contains(expected), "{expected}: {verdict}");
    }
    assert!(verdict.trim_end().ends_with("none"), "{verdict}");
    let json = erank(&["inspect", "--ids", "1", "--json"], b"").json();
    assert_eq!(json["verdict"]["warnings"], serde_json::json!([]));
    assert!(json["verdict"]["memory"].as_str().is_some_and(|memory| memory.contains("weights")));
}

#[test]
fn inspect_prints_warnings() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = tiny_with_yes_and_no(parent.path(), "my-reranker");
    let path = folder.join("config.json");
    let config = fs::read_to_string(&path).expect("the file");
    let mut config: serde_json::Value = serde_json::from_str(&config).expect("JSON");
    config["num_experts"] = 8.into();
    config["torch_dtype"] = "float32".into();
    config["rope_scaling"] = serde_json::json!({"type": "yarn", "factor": 2.0});
    fs::write(&path, config.to_string()).expect("written");
    fs::write(folder.join("model.safetensors.index.json"), "{}").expect("written");
    let model = folder.to_str().expect("UTF-8");
    let run = erank(&["inspect", "-m", model], b"");
    assert_eq!(run.code, Some(0), "{run:?}");
    run.assert_harmless();
    for expected in [
        "ignored: num_experts",
        "type float32",
        "model.safetensors.index.json",
        "YaRN extends",
        "prompt of qwen3-reranker, because its name contains",
    ] {
        assert!(run.out.contains(expected), "{expected}: {}", run.out);
    }
}

/// The advice of an error fits its cause.
#[test]
fn inspect_gives_advice_that_fits_the_cause() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = tiny_with_yes_and_no(parent.path(), "model");
    let model = folder.to_str().expect("UTF-8");
    let path = folder.join("config.json");
    let whole = fs::read_to_string(&path).expect("the file");
    let inspect = |config: &str| {
        fs::write(&path, config).expect("written");
        let run = erank(&["inspect", "-m", model, "--logprobs", "1"], b"");
        assert_eq!((run.code, &*run.out), (Some(1), ""), "{run:?}");
        run.err
    };
    for (old, new, expected) in [
        ("\"silu\"", "\"gelu\"", "only \"silu\" is implemented"),
        ("\"silu\"", "\"silu", "download it again"),
        ("{", "{\"quantization_config\": {\"quant_method\": \"awq\"}, ", "a GGUF file of it"),
        ("\"hidden_size\":", "\"hidden_size\": 64, \"x\":", "take all files from the same model"),
    ] {
        let error = inspect(&whole.replacen(old, new, 1));
        assert!(error.contains(expected), "{error}");
        let is_download = expected.contains("download");
        assert_eq!(error.contains("download"), is_download, "{error}");
    }
    let error = inspect("version https://git-lfs.github.com/spec/v1\n");
    assert!(error.contains("git lfs pull"), "{error}");
}

#[test]
fn inspect_reports_weights_that_are_no_numbers() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = tiny_with_yes_and_no(parent.path(), "model");
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("the weights");
    let header = u64::from_le_bytes(*bytes.first_chunk().expect("a header")) as usize + 8;
    bytes[header..].fill(0xff);
    fs::write(&path, bytes).expect("written");
    let model = folder.to_str().expect("UTF-8");
    let run = erank(&["inspect", "-m", model, "--logprobs", "1"], b"");
    assert_eq!((run.code, &*run.out), (Some(1), ""), "{run:?}");
    assert!(run.err.contains("NaN or infinite"), "{}", run.err);
}

#[test]
fn offline_models_come_from_the_cache_alone() {
    let cache = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str], variables: &[(&str, &Path)]| {
        let mut command = Command::new(ERANK);
        command.args(arguments).envs(variables.iter().copied());
        Ended::new(command.output().expect("it starts"))
    };
    let variables = [("HF_HUB_CACHE", cache.path()), ("HF_HUB_OFFLINE", Path::new("1"))];
    for (arguments, variables) in [
        (&["inspect", "-m", "team/model@v1", "--offline"][..], &variables[..1]),
        (&["inspect", "-m", "team/model@v1"], &variables),
        (&["inspect", "--compare", "team/model@v1", "--offline"], &variables[..1]),
        (
            &["quantize", "-m", "team/model@v1", "--offline", "--to", "q8_0", "x.gguf"],
            &variables[..1],
        ),
    ] {
        let run = run(arguments, variables);
        assert_eq!(run.code, Some(1), "{run:?}");
        assert!(run.err.contains("team/model@v1 is not in the hub's cache"), "{}", run.err);
    }
    // The layout of Python's cache.
    let repository = cache.path().join("models--team--model");
    fs::create_dir_all(repository.join("refs")).expect("made");
    fs::create_dir_all(repository.join("snapshots")).expect("made");
    fs::write(repository.join("refs/v1"), "0a1b").expect("written");
    tiny_with_yes_and_no(&repository.join("snapshots"), "0a1b");
    for name in ["team/model@v1", "team/model@0a1b"] {
        let run = run(&["inspect", "-m", name, "--offline", "--json"], &variables[..1]);
        assert_eq!(run.code, Some(0), "{run:?}");
        assert_eq!(run.json()["model"], "team/model");
    }
}
