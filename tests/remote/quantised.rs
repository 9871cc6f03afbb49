//! llama.cpp reads the files that `erank quantize` writes, and computes the same from them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use erank_candle::{CandleBackend, CandleSettings, Checkpoint, KvCacheFormat, WeightFormat};
use erank_tests::qwen3_tokenizer;
use erank_tests::random_model::{Layout, RandomModel};
use serde_json::{Value, json};

use crate::llama_cpp::{self, LlamaCpp};

/// The text holds control tokens, several scripts, white space and digits.
const TEXT: &str = "<|im_start|>user\nIs this relevant?  Ja, größer als 1234 \u{2014} \u{6771}\u{4eac} \
                    \u{1f980}\t{\"a\": [0.5]}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n<answer>";

/// Number of the most probable tokens to compare.
const TOP: usize = 20;

/// Writes a random model with Qwen3's tokenizer to `folder`.
fn write_model(folder: &Path, tokenizer: &Path) {
    let config = json!({
        "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 256, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": true, "eos_token_id": 151_645
    });
    let model = RandomModel::new(config).expect("all sizes");
    model.write(folder, Layout::OneFile).expect("written");
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(tokenizer.join(file), folder.join(file)).expect("a copy");
    }
}

/// Returns the most probable tokens after the prompt with their log-probabilities, from a server.
fn top_tokens(server: &LlamaCpp, ids: &[u32]) -> Vec<(u32, f64)> {
    let request = json!({"prompt": ids, "n_predict": 1, "n_probs": TOP, "temperature": 0});
    let reply = server.post("/completion", &request);
    let top = reply["completion_probabilities"][0]["top_logprobs"].as_array();
    let entry = |entry: &Value| {
        let id = entry["id"].as_u64().expect("an id");
        (id as u32, entry["logprob"].as_f64().expect("a number"))
    };
    top.unwrap_or_else(|| panic!("no log-probabilities: {reply}")).iter().map(entry).collect()
}

#[test]
fn llama_cpp_reads_quantised_files_and_gives_the_same_probabilities() {
    let Some(python) = llama_cpp::python() else { return };
    let Some(tokenizer) = qwen3_tokenizer::folder() else { return };
    let folder = tempfile::tempdir().expect("a folder");
    write_model(folder.path(), &tokenizer);
    let checkpoint = Checkpoint::open(folder.path()).expect("a checkpoint");
    // Bounds of the difference of log-probabilities. A token that is not among the most probable ones lies many
    // nats below them. Differences come from activations, which llama.cpp rounds to F16 and BF16 for weights of
    // these types, and to groups of 256 integers for Q4_K; this crate keeps F32 for F16 and has groups of 32.
    for (format, bound) in [
        (WeightFormat::F32, 2e-3),
        (WeightFormat::F16, 0.1),
        (WeightFormat::Bf16, 0.3),
        (WeightFormat::Q8_0, 0.8),
        (WeightFormat::Q4K, 1.5),
    ] {
        let file = folder.path().join(format!("{format}.gguf"));
        let written = checkpoint.write_gguf(&file, format, &mut |_, _| ()).expect("written");
        assert!(written.has_tokenizer && written.other_formats.is_empty(), "{written:?}");
        let server = LlamaCpp::start(&python, &file, 1, 512);
        let mut settings = CandleSettings::default();
        settings.kv_cache = Some(KvCacheFormat::F32);
        settings.kv_cache_memory_bytes = Some(8 << 20);
        let opened = Checkpoint::open(&file).expect("a GGUF file");
        let local = CandleBackend::load(&opened, &settings).expect("a whole model");

        let ids = local.tokenizer().encode_trusted(TEXT).expect("encodable");
        let request = json!({"content": TEXT, "add_special": false, "parse_special": true});
        assert_eq!(server.post("/tokenize", &request)["tokens"], json!(ids), "{format}");

        let theirs = top_tokens(&server, &ids);
        let mut positions = local.most_probable(&ids, 151_936).expect("probabilities");
        let ours = positions.pop().expect("a position");
        let ours: HashMap<u32, f64> =
            ours.iter().map(|token| (token.id, f64::from(token.log_prob))).collect();
        let differences = theirs.iter().map(|(id, log_prob)| (ours[id] - log_prob).abs());
        let largest = differences.fold(0.0, f64::max);
        println!("{format}: the log-probabilities of {TOP} tokens differ by at most {largest:.1e}");
        assert_eq!(theirs.len(), TOP);
        assert!(largest < bound, "{format}: {largest:e}");
    }
}
