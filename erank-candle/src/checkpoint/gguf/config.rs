//! The configuration of a model from the metadata of its GGUF file.

use super::metadata::Metadata;
use crate::checkpoint::config::{Architecture, Config};
use crate::checkpoint::yarn::Yarn;
use crate::error::LoadError;

pub(super) const ARCHITECTURE: &str = "general.architecture";
pub(super) const LAYERS: &str = "qwen3.block_count";
pub(super) const HIDDEN: &str = "qwen3.embedding_length";
pub(super) const HEADS: &str = "qwen3.attention.head_count";
pub(super) const KEY_LENGTH: &str = "qwen3.attention.key_length";
pub(super) const VALUE_LENGTH: &str = "qwen3.attention.value_length";
pub(super) const KV_HEADS: &str = "qwen3.attention.head_count_kv";
pub(super) const INTERMEDIATE: &str = "qwen3.feed_forward_length";
pub(super) const CONTEXT: &str = "qwen3.context_length";
pub(super) const EPSILON: &str = "qwen3.attention.layer_norm_rms_epsilon";
pub(super) const ROPE_BASE: &str = "qwen3.rope.freq_base";
const ROPE_LENGTH: &str = "qwen3.rope.dimension_count";
pub(super) const ROPE_SCALING: &str = "qwen3.rope.scaling.type";
pub(super) const YARN_FACTOR: &str = "qwen3.rope.scaling.factor";
pub(super) const YARN_ORIGINAL: &str = "qwen3.rope.scaling.original_context_length";
/// A factor besides the one that the scaling implies.
pub(super) const YARN_ATTENTION: &str = "qwen3.rope.scaling.attn_factor";
pub(super) const YARN_BETA_FAST: &str = "qwen3.rope.scaling.yarn_beta_fast";
pub(super) const YARN_BETA_SLOW: &str = "qwen3.rope.scaling.yarn_beta_slow";
/// Keys of variants of YaRN, with the values that change nothing.
const YARN_VARIANTS: [(&str, f64); 3] = [
    ("qwen3.rope.scaling.yarn_ext_factor", 1.0),
    ("qwen3.rope.scaling.yarn_attn_factor", 1.0),
    ("qwen3.rope.scaling.yarn_log_multiplier", 0.0),
];
/// Factors of a linear scaling, with the newer name and the older one.
const ROPE_FACTORS: [&str; 2] = [YARN_FACTOR, "qwen3.rope.scale_linear"];
const SLIDING_WINDOW: &str = "qwen3.attention.sliding_window";
const CAUSAL: &str = "qwen3.attention.causal";
/// Ends of a turn.
pub(super) const EOS: [&str; 2] = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"];
/// Ends of a turn that the metadata may not name, because a file names one.
const EOS_TEXTS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// Refuses other architectures than `qwen3`, and files that are no models.
pub(super) fn check_architecture(metadata: &Metadata<'_>) -> Result<(), LoadError> {
    const TYPE: &str = "general.type";
    match metadata.string(TYPE)? {
        None | Some("model") => {}
        Some("adapter") => {
            return Err(metadata.invalid(
                "it is a LoRA adapter; merge it into its model, for example with llama.cpp's llama-export-lora",
            ));
        }
        Some(other) => {
            return Err(metadata.invalid(format!(
                "{TYPE} is {other:?}; give the file of a model, whose type is \"model\""
            )));
        }
    }
    match metadata.string(ARCHITECTURE)? {
        Some("qwen3") => Ok(()),
        Some(other) => Err(metadata.invalid(format!(
            "{ARCHITECTURE} is {other:?}; only \"qwen3\" (dense) is implemented"
        ))),
        None => Err(metadata.missing(ARCHITECTURE)),
    }
}

/// Returns the number of layers.
pub(super) fn layers(metadata: &Metadata<'_>) -> Result<usize, LoadError> {
    required(metadata, LAYERS)
}

/// Reads the configuration. The number of rows of the embedding and whether the output projection shares its
/// weights come from the tensors.
pub(super) fn config(
    metadata: &Metadata<'_>,
    vocab_size: usize,
    tie_word_embeddings: bool,
) -> Result<Config, LoadError> {
    let number = |key| metadata.number(key)?.ok_or_else(|| metadata.missing(key));
    let (hidden_size, heads) = (required(metadata, HIDDEN)?, required(metadata, HEADS)?);
    let head_dim = head_dim(metadata, hidden_size, heads)?;
    check_variants(metadata)?;
    let trained_for = required(metadata, CONTEXT)?;
    let yarn = match metadata.string(ROPE_SCALING)? {
        Some("yarn") => Some(yarn(metadata, trained_for)?),
        _ => None,
    };
    let config = Config {
        architecture: Architecture::Qwen3ForCausalLM,
        vocab_size,
        hidden_size,
        intermediate_size: required(metadata, INTERMEDIATE)?,
        num_hidden_layers: layers(metadata)?,
        num_attention_heads: heads,
        num_key_value_heads: metadata.integer(KV_HEADS)?.unwrap_or(heads),
        head_dim,
        max_position_embeddings: yarn
            .as_ref()
            .map_or(trained_for, |yarn| yarn.max_positions().max(trained_for)),
        rms_norm_eps: number(EPSILON)? as f32,
        rope_theta: number(ROPE_BASE)?,
        yarn,
        tie_word_embeddings,
        eos_token_ids: eos_token_ids(metadata, vocab_size)?,
        label_names: Vec::new(),
    };
    config.check(metadata.file())?;
    Ok(config)
}

fn required(metadata: &Metadata<'_>, key: &str) -> Result<usize, LoadError> {
    metadata.integer(key)?.ok_or_else(|| metadata.missing(key))
}

/// Returns the width of a head; the default is that of the GGUF specification.
fn head_dim(metadata: &Metadata<'_>, hidden: usize, heads: usize) -> Result<usize, LoadError> {
    let head_dim = match metadata.integer(KEY_LENGTH)? {
        Some(length) => length,
        None => hidden.checked_div(heads).unwrap_or(0),
    };
    for key in [VALUE_LENGTH, ROPE_LENGTH] {
        match metadata.integer(key)? {
            Some(length) if length != head_dim => {
                return Err(metadata.invalid(format!(
                    "{key} is {length}, but the width of a head is {head_dim}; they must be equal"
                )));
            }
            _ => {}
        }
    }
    Ok(head_dim)
}

/// Rejects variants that this implementation would compute wrongly.
fn check_variants(metadata: &Metadata<'_>) -> Result<(), LoadError> {
    let scaling = metadata.string(ROPE_SCALING)?;
    if let Some(kind) = scaling.filter(|kind| !["none", "yarn"].contains(kind)) {
        let reason =
            format!("{ROPE_SCALING} is {kind:?}; only \"none\" and \"yarn\" are implemented");
        return Err(metadata.invalid(reason));
    }
    for key in ROPE_FACTORS {
        let factor = metadata.number(key)?.filter(|_| scaling.is_none());
        if let Some(factor) = factor.filter(|factor| ![0.0, 1.0].contains(factor)) {
            let reason = format!("{key} is {factor}; scaled rotary embeddings are not implemented");
            return Err(metadata.invalid(reason));
        }
    }
    if metadata.integer(SLIDING_WINDOW)?.is_some_and(|window| window > 0) {
        let reason = format!("{SLIDING_WINDOW} is set; sliding windows are not implemented");
        return Err(metadata.invalid(reason));
    }
    if metadata.bool(CAUSAL)? == Some(false) {
        let reason = format!("{CAUSAL} is false; only causal models are implemented");
        return Err(metadata.invalid(reason));
    }
    Ok(())
}

/// Reads the scaling of the rotary embedding, with the meaning and the defaults of llama.cpp.
fn yarn(metadata: &Metadata<'_>, trained_for: usize) -> Result<Yarn, LoadError> {
    for (key, neutral) in YARN_VARIANTS {
        if let Some(value) = metadata.number(key)?.filter(|value| *value != neutral) {
            let reason = format!("{key} is {value}; only {neutral} is implemented");
            return Err(metadata.invalid(reason));
        }
    }
    let number =
        |key, default| -> Result<f64, LoadError> { Ok(metadata.number(key)?.unwrap_or(default)) };
    let factor = metadata.number(YARN_FACTOR)?.ok_or_else(|| metadata.missing(YARN_FACTOR))?;
    let implied = Yarn::default_attention_factor(factor, 1.0);
    Ok(Yarn {
        factor,
        attention_factor: implied * number(YARN_ATTENTION, 1.0)?,
        beta_fast: number(YARN_BETA_FAST, 32.0)?,
        beta_slow: number(YARN_BETA_SLOW, 1.0)?,
        original_max_position_embeddings: metadata.integer(YARN_ORIGINAL)?.unwrap_or(trained_for),
        truncate: true,
    })
}

/// Returns the tokens that end a turn, without duplicates: those that the metadata names, and control tokens
/// with the texts of Qwen's.
fn eos_token_ids(metadata: &Metadata<'_>, vocab_size: usize) -> Result<Vec<u32>, LoadError> {
    let mut ids = Vec::new();
    for key in EOS {
        if let Some(id) = metadata.integer(key)? {
            if id >= vocab_size {
                let reason = format!("{key} is {id}; it must be below {vocab_size}");
                return Err(metadata.invalid(reason));
            }
            ids.push(id);
        }
    }
    let tokens = metadata.strings(super::tokenizer::TOKENS)?;
    let types = metadata.integers(super::tokenizer::TYPES)?;
    if let Some((tokens, types)) = tokens.zip(types) {
        let is_end = |(_, (text, kind)): &(usize, (&str, i128))| {
            *kind == super::tokenizer::CONTROL && EOS_TEXTS.contains(text)
        };
        let named = tokens.zip(types).take(vocab_size).enumerate().filter(is_end);
        ids.extend(named.map(|(id, _)| id));
    }
    let mut unique = Vec::new();
    for id in ids {
        // A vocabulary has at most 2^24 tokens: `Config::check`.
        let id = id as u32;
        if !unique.contains(&id) {
            unique.push(id);
        }
    }
    Ok(unique)
}
