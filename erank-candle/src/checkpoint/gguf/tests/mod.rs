//! Tests of the reader of GGUF files. candle-core's writer makes the files.

mod files;
mod hostile;
mod open;
mod refused;

use std::io::Cursor;

use candle_core::Device;
use candle_core::quantized::gguf_file::{Value, write};
use candle_core::quantized::{GgmlDType, QStorage, QTensor};

use super::Gguf;
use crate::error::LoadError;

/// A small pseudo-random number generator.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed ^ (mixed >> 29)
    }

    fn below(&mut self, limit: usize) -> usize {
        self.next() as usize % limit.max(1)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

/// The contents of a file.
pub(in crate::checkpoint) struct Content {
    metadata: Vec<(String, Value)>,
    tensors: Vec<(String, QTensor)>,
}

impl Content {
    /// Returns a whole model with one layer and eight tokens.
    pub(in crate::checkpoint) fn small() -> Self {
        let metadata = [
            ("general.architecture", text("qwen3")),
            ("qwen3.block_count", Value::U32(1)),
            ("qwen3.context_length", Value::U32(64)),
            ("qwen3.embedding_length", Value::U32(32)),
            ("qwen3.feed_forward_length", Value::U32(64)),
            ("qwen3.attention.head_count", Value::U32(2)),
            ("qwen3.attention.head_count_kv", Value::U32(1)),
            ("qwen3.attention.key_length", Value::U32(16)),
            ("qwen3.attention.value_length", Value::U32(16)),
            ("qwen3.attention.layer_norm_rms_epsilon", Value::F32(1e-6)),
            ("qwen3.rope.freq_base", Value::F32(1e6)),
            ("tokenizer.ggml.model", text("gpt2")),
            ("tokenizer.ggml.pre", text("qwen2")),
            (
                "tokenizer.ggml.tokens",
                texts(&[
                    "a",
                    "b",
                    "ab",
                    "<|endoftext|>",
                    "<|im_end|>",
                    "<think>",
                    "</think>",
                    "[PAD7]",
                ]),
            ),
            (
                "tokenizer.ggml.token_type",
                Value::Array([1, 1, 1, 3, 3, 4, 4, 5].map(Value::I32).into()),
            ),
            ("tokenizer.ggml.merges", texts(&["a b"])),
            ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
            ("tokenizer.ggml.bos_token_id", Value::U32(3)),
            ("tokenizer.ggml.eos_token_id", Value::U32(4)),
            ("tokenizer.ggml.padding_token_id", Value::U32(3)),
            ("tokenizer.chat_template", text("{{ messages[0].content }}<think>")),
        ];
        let layer = [
            ("attn_norm", GgmlDType::F32, &[32][..]),
            ("attn_q", GgmlDType::BF16, &[32, 32]),
            ("attn_k", GgmlDType::F32, &[16, 32]),
            ("attn_v", GgmlDType::Q8_0, &[16, 32]),
            ("attn_output", GgmlDType::F16, &[32, 32]),
            ("attn_q_norm", GgmlDType::F32, &[16]),
            ("attn_k_norm", GgmlDType::F32, &[16]),
            ("ffn_norm", GgmlDType::F32, &[32]),
            ("ffn_gate", GgmlDType::Q4_0, &[64, 32]),
            ("ffn_up", GgmlDType::Q8_0, &[64, 32]),
            ("ffn_down", GgmlDType::F16, &[32, 64]),
        ];
        let mut random = Random(1);
        let mut tensors = vec![
            ("token_embd.weight".to_owned(), tensor(&mut random, GgmlDType::F32, &[8, 32])),
            ("output_norm.weight".to_owned(), tensor(&mut random, GgmlDType::F32, &[32])),
        ];
        for (name, kind, shape) in layer {
            tensors.push((format!("blk.0.{name}.weight"), tensor(&mut random, kind, shape)));
        }
        let metadata = metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Self { metadata, tensors }
    }

    /// Returns the two files of a model.
    pub(in crate::checkpoint) fn two_files() -> [Self; 2] {
        let mut first = Self::small();
        let rest = first.tensors.split_off(5);
        let mut files = [first, Self { metadata: Vec::new(), tensors: rest }];
        for (number, content) in (0..).zip(&mut files) {
            content.set("split.no", Some(Value::U16(number)));
            content.set("split.count", Some(Value::U16(2)));
            content.set("split.tensors.count", Some(Value::I32(13)));
        }
        files
    }

    /// Sets a key, or removes it.
    fn set(&mut self, key: &str, value: Option<Value>) {
        self.metadata.retain(|(other, _)| other != key);
        self.metadata.extend(value.map(|value| (key.to_owned(), value)));
    }

    /// Sets or adds a tensor of F32 numbers.
    fn set_tensor(&mut self, name: &str, shape: &[usize]) {
        self.tensors.retain(|(other, _)| other != name);
        let tensor = tensor(&mut Random(9), GgmlDType::F32, shape);
        self.tensors.push((name.to_owned(), tensor));
    }

    pub(in crate::checkpoint) fn bytes(&self) -> Vec<u8> {
        let metadata: Vec<_> = self.metadata.iter().map(|(key, value)| (&**key, value)).collect();
        let tensors: Vec<_> = self.tensors.iter().map(|(name, tensor)| (&**name, tensor)).collect();
        let mut bytes = Cursor::new(Vec::new());
        write(&mut bytes, &metadata, &tensors).expect("a file in memory");
        bytes.into_inner()
    }
}

fn text(text: &str) -> Value {
    Value::String(text.to_owned())
}

fn texts(texts: &[&str]) -> Value {
    Value::Array(texts.iter().map(|text| self::text(text)).collect())
}

/// Returns a tensor of random bytes with finite numbers and scales.
fn tensor(random: &mut Random, kind: GgmlDType, shape: &[usize]) -> QTensor {
    let numbers: usize = shape.iter().product();
    let mut bytes = random.bytes(numbers / kind.block_size() * kind.type_size());
    // The upper bytes of F16 scales.
    let scales: &[usize] = match kind {
        GgmlDType::Q4K | GgmlDType::Q5K => &[1, 3],
        GgmlDType::Q6K => &[209],
        GgmlDType::F32 => &[3],
        _ => &[1],
    };
    for block in bytes.chunks_mut(kind.type_size()) {
        for scale in scales {
            // The largest exponent means infinity or NaN, so smaller ones are chosen.
            block[*scale] &= 0b1011_1111;
        }
    }
    let storage = QStorage::from_data(bytes.into(), &Device::Cpu, kind).expect("on the CPU");
    QTensor::new(storage, shape).expect("whole blocks")
}

fn parse(bytes: &[u8]) -> Result<Gguf<'_>, LoadError> {
    Gguf::parse([("model.gguf", bytes)].into_iter())
}
