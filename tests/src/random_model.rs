//! Random Qwen3 models whose weights come from a formula, so no weights are stored.
//!
//! `golden/parity.py` makes the same weights from the same formula. Every value is exact in BF16, so one set
//! of weights serves both F32 and BF16 runs:
//!
//! ```text
//! noise(name, i)  = splitmix64(fnv1a64(name) + i)            64-bit, wrapping
//! matrix element  = int8(top byte of noise) / 128 * 2^shift  shift: `matrix_shift`
//! norm weight     = 1 + (top 4 bits of noise - 8) / 16       in 0.5 .. 1.4375; q_norm: twice that
//! token i         = noise("tokens/<length>", i) mod vocab_size
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use half::bf16;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde::Deserialize;
use serde_json::{Value, json};

/// A weight computed by the formula.
pub struct Weight {
    /// One dimension for a norm, two (rows, columns) for a matrix.
    pub shape: Vec<usize>,
    /// The values in row-major order.
    pub values: Vec<bf16>,
}

/// A model defined by its `config.json`; the formula computes its weights.
pub struct RandomModel {
    config: Value,
    sizes: Sizes,
    head: Head,
}

/// The weights that compute the logits.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Head {
    /// The output projection of a language model, unless it shares the embedding's weights.
    LanguageModel,
    Classifier {
        rows: usize,
        has_bias: bool,
    },
}

/// The distribution of a checkpoint's weights over files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// `model.safetensors`.
    OneFile,
    /// Two files and `model.safetensors.index.json`; neighbouring tensors are in different files.
    TwoShards,
}

#[derive(Deserialize)]
struct Sizes {
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    tie_word_embeddings: bool,
}

impl RandomModel {
    /// Creates the model of a `config.json`.
    ///
    /// # Errors
    /// Returns an error if a dimension is missing.
    pub fn new(config: Value) -> serde_json::Result<Self> {
        let sizes = Sizes::deserialize(&config)?;
        Ok(Self { config, sizes, head: Head::LanguageModel })
    }

    /// Replaces the output projection by a classifier's head, `score.weight` with this number of rows, and
    /// `score.bias` if `has_bias`.
    pub fn with_classifier(mut self, rows: usize, has_bias: bool) -> Self {
        self.head = Head::Classifier { rows, has_bias };
        self
    }

    /// Returns the model's `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// Returns the number of tokens in the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.sizes.vocab_size
    }

    /// Returns the prompt of `length` tokens, for which the golden files have logits.
    pub fn tokens(&self, length: usize) -> Vec<u32> {
        let vocab_size = self.sizes.vocab_size as u64;
        noise(&format!("tokens/{length}")).take(length).map(|n| (n % vocab_size) as u32).collect()
    }

    /// Computes all weights of the checkpoint, by name.
    pub fn weights(&self) -> BTreeMap<String, Weight> {
        let weights = self.shapes().into_iter().map(|(name, shape)| {
            let values = if shape.len() == 1 {
                norm_weight(&name, shape[0])
            } else {
                matrix(&name, shape[0], shape[1])
            };
            (name, Weight { shape, values })
        });
        weights.collect()
    }

    /// Writes a folder in the layout of Hugging Face's models: configuration and BF16 weights.
    ///
    /// # Errors
    /// Returns any I/O error.
    pub fn write(&self, folder: &Path, layout: Layout) -> io::Result<()> {
        fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&self.config)?)?;
        let weights = self.weights();
        match layout {
            Layout::OneFile => write_tensors(weights.iter(), &folder.join("model.safetensors")),
            Layout::TwoShards => write_shards(&weights, folder),
        }
    }

    /// Writes a folder with one file of weights, after `change` was applied to each weight.
    ///
    /// # Errors
    /// Returns any I/O error.
    pub fn write_changed(
        &self,
        folder: &Path,
        change: impl Fn(&str, &mut Weight),
    ) -> io::Result<()> {
        fs::write(folder.join("config.json"), serde_json::to_vec_pretty(&self.config)?)?;
        let mut weights = self.weights();
        weights.iter_mut().for_each(|(name, weight)| change(name, weight));
        write_tensors(weights.iter(), &folder.join("model.safetensors"))
    }

    /// Returns the name and shape of every tensor: embedding and norms first, then layer by layer.
    pub fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        let sizes = &self.sizes;
        let (hidden, ffn, head_dim) = (sizes.hidden_size, sizes.intermediate_size, sizes.head_dim);
        let queries = sizes.num_attention_heads * head_dim;
        let keys = sizes.num_key_value_heads * head_dim;

        let mut shapes = vec![
            ("model.embed_tokens.weight".to_owned(), vec![sizes.vocab_size, hidden]),
            ("model.norm.weight".to_owned(), vec![hidden]),
        ];
        match self.head {
            Head::LanguageModel if sizes.tie_word_embeddings => {}
            Head::LanguageModel => {
                shapes.push(("lm_head.weight".to_owned(), vec![sizes.vocab_size, hidden]));
            }
            Head::Classifier { rows, has_bias } => {
                shapes.push(("score.weight".to_owned(), vec![rows, hidden]));
                shapes.extend(has_bias.then(|| ("score.bias".to_owned(), vec![rows])));
            }
        }
        for layer in 0..sizes.num_hidden_layers {
            let of_layer = [
                ("input_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![queries, hidden]),
                ("self_attn.k_proj", vec![keys, hidden]),
                ("self_attn.v_proj", vec![keys, hidden]),
                ("self_attn.q_norm", vec![head_dim]),
                ("self_attn.k_norm", vec![head_dim]),
                ("self_attn.o_proj", vec![hidden, queries]),
                ("post_attention_layernorm", vec![hidden]),
                ("mlp.gate_proj", vec![ffn, hidden]),
                ("mlp.up_proj", vec![ffn, hidden]),
                ("mlp.down_proj", vec![hidden, ffn]),
            ];
            for (name, shape) in of_layer {
                shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
            }
        }
        shapes
    }
}

/// Returns a checksum of the BF16 bits of all tensors, equal to that of `golden/parity.py`. It distinguishes
/// a generator that differs from a wrong forward pass.
pub fn checksum(weights: &BTreeMap<String, Weight>) -> String {
    let total = weights.values().fold(0_u64, |total, weight| {
        let weighted =
            (1_u64..).zip(&weight.values).map(|(i, value)| i * u64::from(value.to_bits()));
        total.wrapping_mul(31).wrapping_add(weighted.fold(0, u64::wrapping_add))
    });
    format!("{total:016x}")
}

fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn splitmix64(state: u64) -> u64 {
    let state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ (state >> 31)
}

fn noise(name: &str) -> impl Iterator<Item = u64> + use<> {
    let seed = fnv1a64(name);
    (0..).map(move |i| splitmix64(seed.wrapping_add(i)))
}

/// Returns the kind of a weight: "model.layers.0.mlp.up_proj.weight" → "up_proj".
fn kind(name: &str) -> &str {
    name.rsplit('.').nth(1).unwrap_or(name)
}

/// Returns log2 of a matrix's scale. Inputs of size one give outputs of size about one, times a gain for the
/// kind of weight; `golden/parity.py` explains the gains.
fn matrix_shift(name: &str, columns: usize) -> i32 {
    let gain = match kind(name) {
        "embed_tokens" | "lm_head" => 3,
        "v_proj" | "o_proj" | "gate_proj" | "up_proj" | "down_proj" => 1,
        _ => 0,
    };
    gain - ((columns as f64).log2() / 2.0 + 0.5).floor() as i32
}

fn matrix(name: &str, rows: usize, columns: usize) -> Vec<bf16> {
    let scale = f32::powi(2.0, matrix_shift(name, columns)) / 128.0;
    let signed_top_byte = |n: u64| (n >> 56) as u8 as i8;
    let elements = noise(name).take(rows * columns);
    elements.map(|n| bf16::from_f32(f32::from(signed_top_byte(n)) * scale)).collect()
}

fn norm_weight(name: &str, size: usize) -> Vec<bf16> {
    let scale = if kind(name) == "q_norm" { 2.0 } else { 1.0 };
    let sixteenths = |n: u64| (n >> 60) as f32 - 8.0;
    let elements = noise(name).take(size);
    elements.map(|n| bf16::from_f32((1.0 + sixteenths(n) / 16.0) * scale)).collect()
}

fn write_shards(weights: &BTreeMap<String, Weight>, folder: &Path) -> io::Result<()> {
    let file_of = |index: usize| format!("model-{:05}-of-00002.safetensors", index % 2 + 1);
    for shard in 0..2 {
        let of_shard = weights.iter().skip(shard).step_by(2);
        write_tensors(of_shard, &folder.join(file_of(shard)))?;
    }
    let weight_map: BTreeMap<_, _> =
        weights.keys().enumerate().map(|(index, name)| (name, file_of(index))).collect();
    let bytes: usize = weights.values().map(|weight| weight.values.len() * size_of::<bf16>()).sum();
    let index = json!({ "metadata": { "total_size": bytes }, "weight_map": weight_map });
    fs::write(folder.join("model.safetensors.index.json"), serde_json::to_vec_pretty(&index)?)
}

fn write_tensors<'a>(
    weights: impl Iterator<Item = (&'a String, &'a Weight)>,
    path: &Path,
) -> io::Result<()> {
    let bytes: Vec<_> = weights
        .map(|(name, weight)| {
            let bytes: Vec<u8> =
                weight.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            (name, &weight.shape, bytes)
        })
        .collect();
    let views: Result<Vec<_>, _> = bytes
        .iter()
        .map(|(name, shape, bytes)| {
            TensorView::new(Dtype::BF16, (*shape).clone(), bytes).map(|view| (name.as_str(), view))
        })
        .collect();
    // transformers rejects a file without this entry.
    let about = [("format".to_owned(), "pt".to_owned())].into();
    views
        .and_then(|views| serialize_to_file(views, Some(about), path))
        .map_err(|error| io::Error::other(format!("{}: {error}", path.display())))
}
