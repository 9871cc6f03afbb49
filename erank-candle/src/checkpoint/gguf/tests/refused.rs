//! Files that are refused. Each error names the file and what is wrong.

use super::super::{ShardName, one_per_set};
use super::*;

/// Reads everything, and returns the message of the error.
fn refusal(bytes: &[u8]) -> String {
    let read = parse(bytes).and_then(|gguf| {
        gguf.config()?;
        gguf.tokenizer()?;
        gguf.weights(&[]).map(|_| ())
    });
    let message = read.expect_err("refused").to_string();
    assert!(message.contains("model.gguf"), "{message}");
    message
}

fn assert_refused(content: &Content, culprits: &[&str]) {
    let message = refusal(&content.bytes());
    assert!(culprits.iter().all(|culprit| message.contains(culprit)), "{culprits:?}: {message}");
}

#[test]
fn metadata_that_is_not_supported_is_refused_by_name() {
    for (key, value, culprits) in [
        ("general.architecture", Some(text("llama")), &["general.architecture", "llama"][..]),
        ("general.architecture", Some(text("qwen3moe")), &["qwen3moe"]),
        ("general.architecture", None, &["general.architecture is missing"]),
        ("general.architecture", Some(Value::U8(1)), &["general.architecture is not a string"]),
        ("general.alignment", Some(Value::U32(0)), &["general.alignment is 0"]),
        ("general.alignment", Some(Value::U32(24)), &["general.alignment is 24"]),
        ("general.alignment", Some(Value::U64(1 << 63)), &["is not a multiple of"]),
        ("general.alignment", Some(text("32")), &["general.alignment is not an integer"]),
        ("split.count", Some(Value::U16(3)), &["split.count is 3", "-00001-of-00003"]),
        ("split.tensors.count", Some(Value::I32(3)), &["split.tensors.count is 3"]),
        ("qwen3.block_count", None, &["qwen3.block_count is missing"]),
        ("qwen3.block_count", Some(Value::I32(-1)), &["qwen3.block_count is not an integer"]),
        ("qwen3.block_count", Some(Value::U32(0)), &["blk.0"]),
        ("qwen3.embedding_length", None, &["qwen3.embedding_length is missing"]),
        ("qwen3.context_length", Some(Value::U32(0)), &["max_position_embeddings is 0"]),
        ("qwen3.feed_forward_length", Some(Value::U64(u64::MAX)), &["intermediate_size"]),
        ("qwen3.feed_forward_length", Some(Value::Array(vec![])), &["qwen3.feed_forward_length"]),
        ("qwen3.attention.head_count", Some(Value::U32(0)), &["num_attention_heads is 0"]),
        ("qwen3.attention.head_count_kv", Some(Value::U32(0)), &["num_key_value_heads is 0"]),
        ("qwen3.attention.value_length", Some(Value::U32(8)), &["value_length is 8"]),
        ("qwen3.rope.dimension_count", Some(Value::U32(8)), &["rope.dimension_count is 8"]),
        ("qwen3.attention.layer_norm_rms_epsilon", Some(Value::F32(f32::NAN)), &["rms_norm_eps"]),
        ("qwen3.rope.freq_base", None, &["qwen3.rope.freq_base is missing"]),
        ("qwen3.rope.scaling.type", Some(text("linear")), &["qwen3.rope.scaling.type", "linear"]),
        ("qwen3.rope.scaling.type", Some(text("yarn")), &["qwen3.rope.scaling.factor is missing"]),
        ("qwen3.rope.scaling.factor", Some(Value::F32(4.0)), &["qwen3.rope.scaling.factor is 4"]),
        ("qwen3.rope.scale_linear", Some(Value::F32(2.0)), &["qwen3.rope.scale_linear is 2"]),
        ("qwen3.attention.sliding_window", Some(Value::U32(8)), &["sliding_window"]),
        ("qwen3.attention.causal", Some(Value::Bool(false)), &["qwen3.attention.causal"]),
        ("tokenizer.ggml.model", Some(text("llama")), &["tokenizer.ggml.model", "llama"]),
        ("tokenizer.ggml.pre", Some(text("llama-bpe")), &["tokenizer.ggml.pre", "llama-bpe"]),
        ("tokenizer.ggml.pre", None, &["tokenizer.ggml.pre is missing"]),
        ("tokenizer.ggml.tokens", None, &["tokenizer.ggml.tokens is missing"]),
        ("tokenizer.ggml.tokens", Some(texts(&["a"])), &["tokenizer.ggml.tokens has 1", "8"]),
        ("tokenizer.ggml.token_type", Some(texts(&["x"])), &["tokenizer.ggml.token_type"]),
        ("tokenizer.ggml.token_type", None, &["tokenizer.ggml.token_type is missing"]),
        (
            "tokenizer.ggml.token_type",
            Some(Value::Array([1, 6, 1, 3, 3, 4, 4, 5].map(Value::I32).into())),
            &["tokenizer.ggml.token_type is 6 for token 1 (\"b\")"],
        ),
        ("tokenizer.ggml.merges", None, &["tokenizer.ggml.merges is missing"]),
        ("tokenizer.ggml.merges", Some(texts(&["ab"])), &["tokenizer.ggml.merges has \"ab\""]),
        ("tokenizer.ggml.merges", Some(texts(&["a b c"])), &["tokenizer.ggml.merges"]),
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(8)), &["tokenizer.ggml.eos_token_id is 8"]),
        ("tokenizer.ggml.eos_token_id", Some(Value::U64(u64::MAX)), &["eos_token_id"]),
        ("tokenizer.ggml.padding_token_id", Some(Value::U32(8)), &["padding_token_id is 8"]),
        ("tokenizer.chat_template", Some(Value::U8(0)), &["tokenizer.chat_template"]),
    ] {
        let mut content = Content::small();
        content.set(key, value);
        assert_refused(&content, culprits);
    }
    let mut doubled = Content::small();
    let tokens = ["a", "b", "b", "c", "d", "e", "f", "g"];
    doubled.set("tokenizer.ggml.tokens", Some(texts(&tokens)));
    assert_refused(&doubled, &["\"b\" twice", "as 1 and as 2"]);
}

#[test]
fn tensors_that_a_dense_qwen3_lacks_are_refused_by_name() {
    for (name, why) in [
        ("cls.output.weight", "classifiers"),
        ("blk.0.attn_q.bias", "biases"),
        ("blk.0.attn_qkv.weight", "fused"),
        ("rope_freqs.weight", "rotary"),
        ("blk.1.attn_norm.weight", "dense"),
        ("blk.00.attn_norm.weight", "dense"),
        ("blk.0.ffn_gate_exps.weight", "dense"),
        ("model.norm.weight", "dense"),
        ("", "dense"),
    ] {
        let mut content = Content::small();
        content.set_tensor(name, &[32]);
        assert_refused(&content, &[&format!("tensor {name:?}"), why]);
    }
    let mut without = Content::small();
    without.tensors.remove(0);
    assert_refused(&without, &["token_embd.weight is missing"]);
}

#[test]
fn repeated_keys_and_tensors_are_refused() {
    let mut content = Content::small();
    content.metadata.push(("tokenizer.ggml.pre".into(), text("qwen2")));
    assert_refused(&content, &["tokenizer.ggml.pre", "twice"]);
    let mut content = Content::small();
    content
        .tensors
        .push(("output_norm.weight".into(), tensor(&mut Random(3), GgmlDType::F32, &[32])));
    assert_refused(&content, &["output_norm.weight", "twice"]);
    let mut nested = Value::Array(vec![]);
    for _ in 0..4 {
        nested = Value::Array(vec![nested]);
    }
    let mut content = Content::small();
    content.set("deep", Some(nested));
    assert_refused(&content, &["deep", "inside each other"]);
}

#[test]
fn headers_that_are_not_valid_are_refused() {
    let whole = Content::small().bytes();
    let with = |position: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[position..][..value.len()].copy_from_slice(value);
        refusal(&bytes)
    };
    assert!(with(0, b"GGML").contains("does not begin with"));
    assert!(with(4, &1_u32.to_le_bytes()).contains("version is 1"));
    assert!(with(4, &4_u32.to_le_bytes()).contains("version is 4"));
    assert!(with(4, &3_u32.to_be_bytes()).contains("big-endian"));
    for count in [u64::MAX, u64::MAX / 24, whole.len() as u64] {
        assert!(with(8, &count.to_le_bytes()).contains(&format!("claims {count} tensors")));
        assert!(with(16, &count.to_le_bytes()).contains(&format!("{count} entries")));
    }
    // The length and the first byte of the first key.
    assert!(with(24, &u64::MAX.to_le_bytes()).contains("key 0: the file ends"));
    assert!(with(32, &[0xff]).contains("key 0: the string at byte 32 is not UTF-8"));
    // The type of the first value, after the key of 20 bytes.
    assert!(with(52, &[13]).contains("general.architecture: 13 is not the number"));
    assert!(refusal(b"").contains("does not begin"));
    let mut version_3 = whole.clone();
    version_3[4] = 3;
    assert!(parse(&version_3).is_ok());
}

#[test]
fn positions_and_types_of_tensors_are_checked() {
    let name = "blk.0.ffn_gate.weight";
    let whole = Content::small().bytes();
    let start = whole.windows(name.len()).position(|part| part == name.as_bytes());
    let start = start.expect("the tensor") + name.len();
    // After the name: u32 dimensions, u64 width, u64 height, u32 type, u64 offset.
    let with = |position: usize, value: &[u8]| {
        let mut bytes = whole.clone();
        bytes[start + position..][..value.len()].copy_from_slice(value);
        let message = refusal(&bytes);
        assert!(message.contains(name), "{message}");
        message
    };
    assert!(with(0, &[0]).contains("0 dimensions"));
    assert!(with(0, &[5]).contains("5 dimensions"));
    assert!(with(4, &33_u64.to_le_bytes()).contains("not whole blocks of 32 values"));
    assert!(with(4, &0_u64.to_le_bytes()).contains("holds no numbers"));
    assert!(with(12, &u64::MAX.to_le_bytes()).contains("too large"));
    assert!(with(20, &[6]).contains("its type is Q5_0 (6)"));
    assert!(with(20, &[23]).contains("its type is IQ4_XS (23)"));
    assert!(with(20, &[4]).contains("its type is number 4"));
    assert!(with(20, &[200]).contains("its type is number 200"));
    assert!(with(24, &8_u64.to_le_bytes()).contains("not a multiple of 32"));
    assert!(with(24, &0_u64.to_le_bytes()).contains("overlap"));
    assert!(with(24, &(1_u64 << 40).to_le_bytes()).contains("not inside the file"));
    assert!(with(24, &(u64::MAX - 31).to_le_bytes()).contains("not inside the file"));
    // The last tensor has no padding.
    assert!(refusal(&whole[..whole.len() - 1]).contains("blk.0.ffn_down.weight"));
}

#[test]
fn names_of_several_files_are_recognised() {
    let name = ShardName::parse("Qwen3-4B-00002-of-00003.gguf").expect("one of three");
    assert_eq!(name.stem, "Qwen3-4B");
    let files = [
        "Qwen3-4B-00001-of-00003.gguf",
        "Qwen3-4B-00002-of-00003.gguf",
        "Qwen3-4B-00003-of-00003.gguf",
    ];
    assert_eq!(name.files(), files);
    for other in [
        "a.gguf",
        "a-1-of-2.gguf",
        "a-00003-of-00002.gguf",
        "a-00000-of-00002.gguf",
        "a-00001-of-00002",
    ] {
        assert_eq!(ShardName::parse(other), None, "{other}");
    }
    let mut all: Vec<String> = files.map(str::to_owned).to_vec();
    all.extend(["b.gguf", "a-00001-of-00002.gguf", "b-00001-of-00002.gguf"].map(str::to_owned));
    let models = [
        "Qwen3-4B-00001-of-00003.gguf",
        "a-00001-of-00002.gguf",
        "b-00001-of-00002.gguf",
        "b.gguf",
    ];
    assert_eq!(one_per_set(all), models);
}
