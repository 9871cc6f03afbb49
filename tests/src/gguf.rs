//! Checkpoint folders written as GGUF files with candle-core's writer, as llama.cpp's converter writes them.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use candle_core::Device;
use candle_core::quantized::gguf_file::{self, Value};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};
use half::bf16;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

/// The type of the matrices in a file. Norms are F32.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Matrices {
    /// 32-bit floating point.
    F32,
    /// As in the folder.
    Bf16,
}

/// The names in a layer: those of the folder, and those of the file.
const IN_LAYERS: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

type Entry = (String, Value);

/// Writes a folder with one file of BF16 weights as the GGUF file `out`. A byte-level tokenizer is written with
/// its chat template; other tokenizers are left out.
///
/// # Panics
/// Panics if the folder does not hold a Qwen3 with BF16 weights, or the file cannot be written.
pub fn write(folder: &Path, out: &Path, matrices: Matrices) {
    let config = json(&folder.join("config.json")).expect("config.json");
    let mut metadata = metadata(&config);
    if let Some(tokenizer) = json(&folder.join("tokenizer.json"))
        && tokenizer["decoder"]["type"] == "ByteLevel"
    {
        let rows = config["vocab_size"].as_u64().expect("vocab_size") as usize;
        metadata.extend(vocabulary(&tokenizer, rows));
        metadata.push(entry("tokenizer.chat_template", Value::String(chat_template(folder))));
    }
    let bytes = fs::read(folder.join("model.safetensors")).expect("model.safetensors");
    let tensors = SafeTensors::deserialize(&bytes).expect("whole safetensors");
    let tensors: Vec<(String, QTensor)> = tensors
        .tensors()
        .iter()
        .map(|(name, view)| (own_name(name), tensor(view, matrices)))
        .collect();
    let metadata: Vec<_> = metadata.iter().map(|(key, value)| (&**key, value)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(name, tensor)| (&**name, tensor)).collect();
    let mut file = io::BufWriter::new(File::create(out).expect("a new file"));
    gguf_file::write(&mut file, &metadata, &tensors).expect("written");
}

fn json(path: &Path) -> Option<serde_json::Value> {
    Some(serde_json::from_slice(&fs::read(path).ok()?).expect("valid JSON"))
}

fn entry(key: &str, value: Value) -> Entry {
    (key.to_owned(), value)
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

/// Returns the configuration, and the first token that ends a turn.
fn metadata(config: &serde_json::Value) -> Vec<Entry> {
    let number = |key: &str| Value::U32(config[key].as_u64().expect(key) as u32);
    let float = |key: &str| Value::F32(config[key].as_f64().expect(key) as f32);
    let mut entries = vec![
        entry("general.architecture", text("qwen3")),
        entry("general.name", text("a test")),
        entry("qwen3.block_count", number("num_hidden_layers")),
        entry("qwen3.context_length", number("max_position_embeddings")),
        entry("qwen3.embedding_length", number("hidden_size")),
        entry("qwen3.feed_forward_length", number("intermediate_size")),
        entry("qwen3.attention.head_count", number("num_attention_heads")),
        entry("qwen3.attention.head_count_kv", number("num_key_value_heads")),
        entry("qwen3.attention.key_length", number("head_dim")),
        entry("qwen3.attention.value_length", number("head_dim")),
        entry("qwen3.attention.layer_norm_rms_epsilon", float("rms_norm_eps")),
        entry("qwen3.rope.freq_base", float("rope_theta")),
    ];
    if config["eos_token_id"].is_u64() {
        entries.push(entry("tokenizer.ggml.eos_token_id", number("eos_token_id")));
    }
    entries
}

/// Returns the tokens, their types and the merges. Ids without a token are unused.
fn vocabulary(tokenizer: &serde_json::Value, rows: usize) -> Vec<Entry> {
    let mut texts: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
    let mut kinds = vec![UNUSED; rows];
    for (token, id) in tokenizer["model"]["vocab"].as_object().expect("a vocabulary") {
        let id = id.as_u64().expect("an id") as usize;
        (texts[id], kinds[id]) = (token.clone(), NORMAL);
    }
    for token in tokenizer["added_tokens"].as_array().expect("added tokens") {
        let id = token["id"].as_u64().expect("an id") as usize;
        let content = token["content"].as_str().expect("a text");
        let looks_special = content.starts_with("<|") && content.ends_with("|>");
        let is_control = looks_special || token["special"] == true;
        texts[id] = content.to_owned();
        kinds[id] = if is_control { CONTROL } else { USER_DEFINED };
    }
    let merges = tokenizer["model"]["merges"].as_array().expect("merges").iter();
    let merges = merges.map(|pair| match pair {
        serde_json::Value::String(pair) => text(pair),
        pair => text(&[&pair[0], &pair[1]].map(|part| part.as_str().expect("a token")).join(" ")),
    });
    vec![
        entry("tokenizer.ggml.model", text("gpt2")),
        entry("tokenizer.ggml.pre", text("qwen2")),
        entry(
            "tokenizer.ggml.tokens",
            Value::Array(texts.iter().map(|token| text(token)).collect()),
        ),
        entry(
            "tokenizer.ggml.token_type",
            Value::Array(kinds.into_iter().map(Value::I32).collect()),
        ),
        entry("tokenizer.ggml.merges", Value::Array(merges.collect())),
        entry("tokenizer.ggml.add_bos_token", Value::Bool(false)),
    ]
}

fn chat_template(folder: &Path) -> String {
    fs::read_to_string(folder.join("chat_template.jinja")).unwrap_or_else(|_| {
        let config = json(&folder.join("tokenizer_config.json")).expect("tokenizer_config.json");
        config["chat_template"].as_str().expect("a template").to_owned()
    })
}

fn own_name(name: &str) -> String {
    match name {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let rest = name.strip_prefix("model.layers.").and_then(|rest| rest.strip_suffix(".weight"));
    let (layer, part) = rest.and_then(|rest| rest.split_once('.')).expect("a tensor of a layer");
    let (_, own) = IN_LAYERS.iter().find(|(theirs, _)| *theirs == part).expect("a known tensor");
    format!("blk.{layer}.{own}.weight")
}

fn tensor(view: &TensorView<'_>, matrices: Matrices) -> QTensor {
    assert_eq!(view.dtype(), Dtype::BF16);
    let keep = matrices == Matrices::Bf16 && view.shape().len() > 1;
    let (kind, bytes) = match keep {
        true => (GgmlDType::BF16, view.data().to_vec()),
        false => {
            let numbers = view.data().as_chunks().0.iter();
            let bytes =
                numbers.flat_map(|bytes| bf16::from_le_bytes(*bytes).to_f32().to_le_bytes());
            (GgmlDType::F32, bytes.collect())
        }
    };
    let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind).expect("on the CPU");
    QTensor::new(storage, view.shape()).expect("a tensor")
}
