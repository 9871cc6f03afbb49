//! The files of a model that is small enough to load thousands of times a second: one layer, and one token for each
//! letter.

use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;

use erank_candle::{Checkpoint, WeightFormat};
use serde_json::{Value, json};
use tempfile::TempDir;

const HIDDEN_SIZE: usize = 32;
const INTERMEDIATE_SIZE: usize = 32;
const HEADS: usize = 2;
const KV_HEADS: usize = 1;
const HEAD_DIM: usize = 16;
const VOCAB_SIZE: usize = 64;

/// `tokenizer.json`, with the added tokens of the bundled model.
pub static TOKENIZER: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut file: Value =
        serde_json::from_slice(super::TINY_TOKENIZER).expect("the bundled tokenizer is JSON");
    let letters = ('a'..='z').chain(['.', ' ']);
    let vocab: BTreeMap<String, usize> = letters.map(String::from).zip(0..).collect();
    let added = file["added_tokens"].as_array_mut().expect("a list");
    for (token, id) in added.iter_mut().zip(vocab.len()..) {
        token["id"] = id.into();
    }
    file["model"]["vocab"] = json!(vocab);
    file["model"]["merges"] = json!([]);
    for part in ["normalizer", "pre_tokenizer"] {
        file[part] = Value::Null;
    }
    serde_json::to_vec(&file).expect("a value is JSON")
});

/// `config.json`.
pub static CONFIG: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": false,
        "head_dim": HEAD_DIM, "hidden_act": "silu", "hidden_size": HIDDEN_SIZE,
        "intermediate_size": INTERMEDIATE_SIZE, "max_position_embeddings": 256,
        "num_attention_heads": HEADS, "num_hidden_layers": 1, "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-6, "rope_scaling": null, "rope_theta": 1e6, "sliding_window": null,
        "tie_word_embeddings": true, "torch_dtype": "bfloat16", "use_sliding_window": false,
        "vocab_size": VOCAB_SIZE, "eos_token_id": VOCAB_SIZE - 1,
    });
    serde_json::to_vec_pretty(&config).expect("a value is JSON")
});

/// `model.safetensors`: all numbers are BF16 zeros.
pub static WEIGHTS: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (query, kv) = (HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM);
    let tensors: [(&str, &[usize]); 13] = [
        ("embed_tokens.weight", &[VOCAB_SIZE, HIDDEN_SIZE]),
        ("norm.weight", &[HIDDEN_SIZE]),
        ("layers.0.input_layernorm.weight", &[HIDDEN_SIZE]),
        ("layers.0.post_attention_layernorm.weight", &[HIDDEN_SIZE]),
        ("layers.0.self_attn.q_norm.weight", &[HEAD_DIM]),
        ("layers.0.self_attn.k_norm.weight", &[HEAD_DIM]),
        ("layers.0.self_attn.q_proj.weight", &[query, HIDDEN_SIZE]),
        ("layers.0.self_attn.k_proj.weight", &[kv, HIDDEN_SIZE]),
        ("layers.0.self_attn.v_proj.weight", &[kv, HIDDEN_SIZE]),
        ("layers.0.self_attn.o_proj.weight", &[HIDDEN_SIZE, query]),
        ("layers.0.mlp.gate_proj.weight", &[INTERMEDIATE_SIZE, HIDDEN_SIZE]),
        ("layers.0.mlp.up_proj.weight", &[INTERMEDIATE_SIZE, HIDDEN_SIZE]),
        ("layers.0.mlp.down_proj.weight", &[HIDDEN_SIZE, INTERMEDIATE_SIZE]),
    ];
    let (mut header, mut size) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let end = size + 2 * shape.iter().product::<usize>();
        let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [size, end]});
        header.insert(format!("model.{name}"), tensor);
        size = end;
    }
    let header = Value::Object(header).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.into_bytes());
    file.resize(file.len() + size, 0);
    file
});

/// The same model as a GGUF file with weights in Q8_0.
pub static GGUF: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let folder = folder(&[("config.json", &CONFIG), ("model.safetensors", &WEIGHTS)]);
    let path = folder.path().join("model.gguf");
    let checkpoint = Checkpoint::open(folder.path()).expect("the model can be read");
    checkpoint.write_gguf(&path, WeightFormat::Q8_0, &mut |_, _| {}).expect("a file");
    fs::read(&path).expect("a file")
});

/// Returns a folder with these files and those of the tokenizer.
pub fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let tokenizer: [(&str, &[u8]); 2] =
        [("tokenizer.json", &TOKENIZER), ("tokenizer_config.json", super::TOKENIZER_CONFIG)];
    for (name, content) in files.iter().chain(&tokenizer) {
        fs::write(folder.path().join(name), content).expect("a file");
    }
    folder
}
