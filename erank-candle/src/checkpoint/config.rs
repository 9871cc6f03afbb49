//! Validation of `config.json` and `generation_config.json`.

use erank_core::AnswerFormat;
use serde_json::{Map, Value};

use super::json;
use super::keys::Keys;
use super::yarn::Yarn;
use crate::error::LoadError;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// A model that this crate runs. The names are those of transformers' classes in `config.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Architecture {
    /// Qwen3 with dense layers as a causal language model.
    Qwen3ForCausalLM,
    /// Qwen3 with dense layers and a classifier's head, which reads the last token. A prompt needs an
    /// [`AnswerFormat`] with as many labels as the classifier, and a [bare](AnswerFormat::bare) answer or the mode
    /// [`AnswerOnly`](erank_core::Mode::AnswerOnly). If [`Config::label_names`] has the names of all labels of the
    /// format, each label gets the row of its name; otherwise labels and rows have the same order.
    Qwen3ForSequenceClassification {
        /// Rows of `score.weight`. With one row, its sigmoid is the probability of the second of two labels.
        rows: usize,
    },
}

/// The sizes of a model, as its checkpoint states them.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Config {
    /// The model's class.
    pub architecture: Architecture,
    /// Number of rows of the embedding. Token ids are smaller than this.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of transformer layers.
    pub num_hidden_layers: usize,
    /// Number of query heads.
    pub num_attention_heads: usize,
    /// Number of KV heads. Each serves the same number of query heads.
    pub num_key_value_heads: usize,
    /// Width of a query, key or value head.
    pub head_dim: usize,
    /// Number of positions that the model was trained for, or that its [`yarn`](Self::yarn) extends them to.
    pub max_position_embeddings: usize,
    /// Epsilon of all RMSNorm layers.
    pub rms_norm_eps: f32,
    /// Base of the wavelengths of the rotary position embedding (RoPE).
    pub rope_theta: f64,
    /// The scaling of the rotary position embedding, if it is scaled.
    pub yarn: Option<Yarn>,
    /// Whether the output projection shares the weights of the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end the model's turn: `eos_token_id` of both files.
    pub eos_token_ids: Vec<u32>,
    /// Names of a classifier's labels, in the order of its rows; empty if the checkpoint does not name them.
    pub label_names: Vec<String>,
}

impl Config {
    /// Parses `config.json` and, if the checkpoint has one, `generation_config.json`.
    ///
    /// The tokens that end a turn are the `eos_token_id`s of both files. The files of Qwen3's base models
    /// differ. One names `<|endoftext|>`, and the other names `<|im_end|>`. A model that was fine-tuned from
    /// them may generate either.
    ///
    /// # Errors
    /// Returns [`LoadError::Invalid`] with the file and the key, if a value is missing or out of
    /// range, or if it asks for a variant of the architecture that is not implemented.
    pub fn from_json(config: &[u8], generation_config: Option<&[u8]>) -> Result<Self, LoadError> {
        let map = parse(config)?;
        let generation = match generation_config {
            Some(bytes) => json::parse(GENERATION_CONFIG, bytes)?,
            None => Map::new(),
        };
        let generation = Keys { file: GENERATION_CONFIG, map: &generation, path: "" };
        let file = ConfigFile::new(&map);
        let mut config = file.config()?;
        config.eos_token_ids = eos_token_ids(&file.0, &generation, config.vocab_size)?;
        config.check(CONFIG)?;
        Ok(config)
    }

    /// Returns the number of query heads that share a KV head.
    pub fn group_size(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Checks the values that later arithmetic relies on. Errors name `file`.
    pub(super) fn check(&self, file: &str) -> Result<(), LoadError> {
        let invalid = |reason| Err(LoadError::invalid(file, reason));
        // Far above the sizes of existing models, and small enough that products of two sizes do not overflow and
        // that a step's activations fit in memory.
        const MAX_QUERY_WIDTH: usize = 1 << 18;
        for (name, value, largest) in [
            ("vocab_size", self.vocab_size, 1 << 22),
            ("hidden_size", self.hidden_size, 1 << 17),
            ("intermediate_size", self.intermediate_size, 1 << 18),
            ("num_hidden_layers", self.num_hidden_layers, 1 << 12),
            ("num_attention_heads", self.num_attention_heads, 1 << 12),
            ("num_key_value_heads", self.num_key_value_heads, 1 << 12),
            ("head_dim", self.head_dim, 1 << 12),
            ("max_position_embeddings", self.max_position_embeddings, 1 << 24),
        ] {
            if !(1..=largest).contains(&value) {
                return invalid(format!("{name} is {value}; it must be between 1 and {largest}"));
            }
        }
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return invalid(format!(
                "num_attention_heads ({}) is not a multiple of num_key_value_heads ({})",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid(format!("head_dim ({}) must be even", self.head_dim));
        }
        if self.num_attention_heads * self.head_dim > MAX_QUERY_WIDTH {
            return invalid(format!(
                "num_attention_heads × head_dim must be at most {MAX_QUERY_WIDTH}"
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return invalid(format!(
                "rms_norm_eps ({}) must be between 0 and 1",
                self.rms_norm_eps
            ));
        }
        if !(self.rope_theta > 1.0 && self.rope_theta.is_finite()) {
            return invalid(format!(
                "rope_theta ({}) must be a finite number above 1",
                self.rope_theta
            ));
        }
        if let Some(reason) = self.yarn.as_ref().and_then(Yarn::problem) {
            return invalid(reason);
        }
        Ok(())
    }
}

/// `config.json`. Defaults are those of transformers' `Qwen3Config`.
struct ConfigFile<'a>(Keys<'a>);

impl<'a> ConfigFile<'a> {
    fn new(map: &'a Map<String, Value>) -> Self {
        Self(Keys { file: CONFIG, map, path: "" })
    }

    /// Reads all keys but those of `generation_config.json`.
    fn config(&self) -> Result<Config, LoadError> {
        let keys = &self.0;
        let architecture = self.architecture()?;
        self.check_refused_keys()?;
        let num_hidden_layers = keys.required_size("num_hidden_layers")?;
        self.check_layer_types(num_hidden_layers)?;
        let num_attention_heads = keys.required_size("num_attention_heads")?;
        let num_key_value_heads = match keys.get("num_key_value_heads") {
            Some(Value::Null) => num_attention_heads,
            _ => keys.size("num_key_value_heads")?.unwrap_or(32),
        };
        let trained_for = keys.size("max_position_embeddings")?.unwrap_or(32_768);
        let (rope_theta, yarn) = self.rope(trained_for)?;
        Ok(Config {
            architecture,
            vocab_size: keys.required_size("vocab_size")?,
            hidden_size: keys.required_size("hidden_size")?,
            intermediate_size: keys.required_size("intermediate_size")?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim: keys.size("head_dim")?.unwrap_or(128),
            max_position_embeddings: yarn
                .as_ref()
                .map_or(trained_for, |yarn| yarn.max_positions().max(trained_for)),
            rms_norm_eps: keys.number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta,
            yarn,
            tie_word_embeddings: keys.flag("tie_word_embeddings")?.unwrap_or(false),
            eos_token_ids: Vec::new(),
            label_names: self.label_names(),
        })
    }

    /// Returns the model's class.
    fn architecture(&self) -> Result<Architecture, LoadError> {
        let keys = &self.0;
        if keys.get("model_type").and_then(Value::as_str) != Some("qwen3") {
            return keys.wrong("model_type", "only \"qwen3\" (dense) is implemented");
        }
        let names = match keys.non_empty("architectures") {
            None => Vec::new(),
            Some(Value::Array(names)) => names.iter().map(Value::as_str).collect(),
            Some(_) => return keys.wrong("architectures", "it must be a list of names"),
        };
        match names[..] {
            // `AutoModelForCausalLM` makes a language model of these weights, too.
            [] | [Some("Qwen3ForCausalLM" | "Qwen3Model")] => Ok(Architecture::Qwen3ForCausalLM),
            [Some("Qwen3ForSequenceClassification")] => {
                if keys.get("problem_type").and_then(Value::as_str)
                    == Some("multi_label_classification")
                {
                    return keys.wrong(
                        "problem_type",
                        "labels that do not exclude each other are not implemented",
                    );
                }
                Ok(Architecture::Qwen3ForSequenceClassification { rows: self.labels()? })
            }
            _ => keys.wrong(
                "architectures",
                "only [\"Qwen3ForCausalLM\"], [\"Qwen3ForSequenceClassification\"] and [\"Qwen3Model\"] are \
                 implemented",
            ),
        }
    }

    /// Rejects values that ask for a computation that is not implemented.
    fn check_refused_keys(&self) -> Result<(), LoadError> {
        let keys = &self.0;
        for key in QUANTISATION_KEYS {
            if let Some(value) = keys.non_empty(key) {
                let method = value.get("quant_method").unwrap_or(value).to_string();
                let method: String = method.chars().take(80).collect();
                return keys.invalid(format!(
                    "{key} says that the weights are quantised ({method}), which is not read; use the model's \
                     BF16 or F32 safetensors files, or a GGUF file of it"
                ));
            }
        }
        for (key, accepted, reason) in REFUSED_KEYS {
            let Some(value) = keys.get(key) else { continue };
            let is_accepted = accepted.iter().any(|accepted| accepted.equals(value));
            if !is_accepted {
                return keys.wrong(key, reason);
            }
        }
        Ok(())
    }

    /// Checks that all layers attend to all earlier tokens.
    fn check_layer_types(&self, layers: usize) -> Result<(), LoadError> {
        let keys = &self.0;
        if let Some(types) = keys.get("layer_types").filter(|types| !types.is_null()) {
            let Some(types) = types.as_array() else {
                return keys.wrong("layer_types", "it must be a list of names");
            };
            if types.len() != layers {
                return keys.invalid(format!(
                    "layer_types has {} elements, but num_hidden_layers is {layers}",
                    types.len()
                ));
            }
            // "attention" is an older name.
            let is_full =
                |kind: &&Value| matches!(kind.as_str(), Some("full_attention" | "attention"));
            return match types.iter().find(|kind| !is_full(kind)) {
                Some(other) => keys.invalid(format!(
                    "layer_types has {other}; only \"full_attention\" is implemented"
                )),
                None => Ok(()),
            };
        }
        if !keys.flag("use_sliding_window")?.unwrap_or(false) {
            return Ok(());
        }
        let window = match keys.get("sliding_window") {
            Some(Value::Null) => None,
            _ => Some(keys.size("sliding_window")?.unwrap_or(4096)),
        };
        let first = keys.size("max_window_layers")?.unwrap_or(28);
        match window {
            Some(window) if first < layers => {
                keys.invalid(format!(
                    "use_sliding_window is true, so layers from {first} (max_window_layers) on see {window} tokens \
                     (sliding_window); sliding windows are not implemented"
                ))
            }
            _ => Ok(()),
        }
    }

    /// Returns the base of the rotary embedding, and its scaling. `trained_for` is `max_position_embeddings`.
    fn rope(&self, trained_for: usize) -> Result<(f64, Option<Yarn>), LoadError> {
        // Version 5 of transformers writes `rope_parameters`. Where both are given, it reads the older key.
        let key = self.rope_key();
        let empty = Map::new();
        let (map, path) = match key {
            None => (&empty, ""),
            Some(key) => match self.0.get(key) {
                Some(Value::Object(map)) if key == "rope_scaling" => (map, "rope_scaling."),
                Some(Value::Object(map)) => (map, "rope_parameters."),
                _ => return self.0.wrong(key, "it must be an object"),
            },
        };
        let rope = Keys { file: CONFIG, map, path };
        if let Some((name, _)) = map.iter().find(|(_, value)| value.is_object()) {
            return rope.invalid(format!(
                "{name} is an object; rotary embeddings that differ between layers are not implemented"
            ));
        }
        let rope_theta = match rope.number("rope_theta")? {
            Some(theta) => theta,
            None => self.0.number("rope_theta")?.unwrap_or(10_000.0),
        };
        let factor = "partial_rotary_factor";
        for keys in [&self.0, &rope] {
            if keys
                .get(factor)
                .is_some_and(|factor| !factor.is_null() && factor.as_f64() != Some(1.0))
            {
                return keys.wrong(factor, "heads that are rotated in part are not implemented");
            }
        }
        // Version 4 of transformers wrote both keys, and older versions wrote `type` alone.
        let kind = if rope.get("rope_type").is_some() { "rope_type" } else { "type" };
        let yarn = match rope.get(kind).map(Value::as_str) {
            None | Some(Some("default")) => None,
            Some(Some("yarn")) => Some(self.yarn(&rope, trained_for)?),
            Some(_) => {
                return rope.wrong(kind, "only \"default\" and \"yarn\" are implemented");
            }
        };
        Ok((rope_theta, yarn))
    }

    /// Returns the key with the parameters of the rotary embedding that is read, if there is one.
    fn rope_key(&self) -> Option<&'static str> {
        ["rope_scaling", "rope_parameters"].into_iter().find(|key| self.0.non_empty(key).is_some())
    }

    /// Returns the keys of the rotary embedding's parameters that are ignored.
    fn unused_rope_keys(&self) -> Vec<String> {
        let Some(key) = self.rope_key() else { return Vec::new() };
        let Some(map) = self.0.get(key).and_then(Value::as_object) else { return Vec::new() };
        let kind = map.get("rope_type").or_else(|| map.get("type"));
        let is_yarn = kind.and_then(Value::as_str) == Some("yarn");
        let is_read = |name: &str| {
            ["rope_theta", "rope_type", "type", "partial_rotary_factor"].contains(&name)
                || (is_yarn && YARN_KEYS.contains(&name))
        };
        let unused = map.iter().filter(|(name, value)| !is_read(name) && !value.is_null());
        unused.map(|(name, _)| format!("{key}.{name}")).collect()
    }

    fn yarn(&self, rope: &Keys<'_>, trained_for: usize) -> Result<Yarn, LoadError> {
        const ORIGINAL: &str = "original_max_position_embeddings";
        // transformers prefers the key outside of the object.
        let original = match self.0.size(ORIGINAL)? {
            Some(positions) => positions,
            None => rope.whole_number(ORIGINAL)?.unwrap_or(trained_for),
        };
        // vLLM and llama.cpp read these keys, and transformers ignores them, so the model's makers may have meant
        // either. An attention factor of its own leaves no doubt.
        for (key, neutral) in [
            ("attn_factor", Value::from(1.0)),
            ("extrapolation_factor", Value::from(1.0)),
            ("apply_yarn_scaling", Value::Bool(true)),
        ] {
            let value = rope
                .non_empty(key)
                .filter(|value| **value != neutral && value.as_f64() != Some(1.0));
            if value.is_some() && rope.non_empty("attention_factor").is_none() {
                return rope.wrong(
                    key,
                    "vLLM reads this key and transformers ignores it; set attention_factor to the factor that the \
                     model was trained with, and remove this key",
                );
            }
        }
        let factor = match rope.get("factor") {
            Some(Value::Null) => trained_for as f64 / original as f64,
            Some(_) => rope.number("factor")?.unwrap_or_default(),
            None => return rope.invalid("factor is missing, which the rope_type \"yarn\" needs"),
        };
        let attention_factor = match rope.non_empty("attention_factor") {
            Some(_) => rope.number("attention_factor")?.unwrap_or_default(),
            None => {
                let scales =
                    [rope.number_or("mscale", 0.0)?, rope.number_or("mscale_all_dim", 0.0)?];
                match scales {
                    [0.0, _] | [_, 0.0] => Yarn::default_attention_factor(factor, 1.0),
                    [scale, of_all] => {
                        Yarn::default_attention_factor(factor, scale)
                            / Yarn::default_attention_factor(factor, of_all)
                    }
                }
            }
        };
        Ok(Yarn {
            factor,
            attention_factor,
            beta_fast: rope.number_or("beta_fast", 32.0)?,
            beta_slow: rope.number_or("beta_slow", 1.0)?,
            original_max_position_embeddings: original,
            truncate: match rope.get("truncate") {
                None => true,
                Some(Value::Null) => false,
                Some(_) => rope.flag("truncate")?.unwrap_or(true),
            },
        })
    }

    /// Returns the rows of a classifier's head.
    fn labels(&self) -> Result<usize, LoadError> {
        let keys = &self.0;
        let labels = match keys.get("id2label").filter(|names| !names.is_null()) {
            Some(Value::Object(names)) => {
                let count = keys.size("num_labels").unwrap_or_default().unwrap_or(names.len());
                if count != names.len() {
                    return keys.invalid(format!(
                        "num_labels is {count}, but id2label has {} labels; versions of transformers differ in which \
                         of the two they read, so remove the one that does not fit score.weight",
                        names.len()
                    ));
                }
                count
            }
            Some(_) => return keys.wrong("id2label", "it must be an object"),
            None if keys.get("num_labels").is_some_and(Value::is_null) => 2,
            None => keys.size("num_labels")?.unwrap_or(2),
        };
        match labels {
            1..=AnswerFormat::MAX_ANSWERS => Ok(labels),
            labels => keys.invalid(format!(
                "the number of labels (num_labels, id2label) is {labels}; it must be between 1 and {}",
                AnswerFormat::MAX_ANSWERS
            )),
        }
    }

    /// Returns the names of a classifier's labels by row, unless a row has no name.
    fn label_names(&self) -> Vec<String> {
        let Some(names) = self.0.get("id2label").and_then(Value::as_object) else {
            return Vec::new();
        };
        let name = |row: usize| Some(names.get(&row.to_string())?.as_str()?.to_owned());
        (0..names.len()).map(name).collect::<Option<_>>().unwrap_or_default()
    }

    /// Returns what is unusual, as sentences without a full stop.
    fn warnings(&self) -> Vec<String> {
        let keys = &self.0;
        let mut notes = Vec::new();
        let mut unknown: Vec<&str> = keys.map.keys().map(String::as_str).collect();
        unknown.retain(|key| {
            !READ_KEYS.contains(key)
                && !QUANTISATION_KEYS.contains(key)
                && !NEUTRAL_KEYS.contains(key)
                && !REFUSED_KEYS.iter().any(|(refused, ..)| refused == key)
                // Python's own attributes.
                && !key.starts_with('_')
        });
        unknown.sort_unstable();
        if !unknown.is_empty() {
            notes.push(format!(
                "{CONFIG} has keys that transformers' Qwen3 does not read, and they are ignored: {}",
                unknown.join(", ")
            ));
        }
        if keys.non_empty("auto_map").is_some() {
            notes.push(format!("{CONFIG} names code of its own (auto_map), which is not run"));
        }
        let vocab_size = keys.required_size("vocab_size").unwrap_or(usize::MAX);
        let ids = keys.token_ids("eos_token_id").unwrap_or_default();
        let beyond = ids.iter().filter(|id| usize::try_from(**id).is_ok_and(|id| id >= vocab_size));
        let beyond: Vec<String> = beyond.map(ToString::to_string).collect();
        if !beyond.is_empty() {
            notes.push(format!(
                "{CONFIG} has ids of eos_token_id beyond the vocabulary: {}",
                beyond.join(", ")
            ));
        }
        let unused = self.unused_rope_keys();
        if !unused.is_empty() {
            notes.push(format!(
                "{CONFIG} has keys that the rotary embedding does not read, and they are ignored: {}",
                unused.join(", ")
            ));
        }
        notes
    }
}

/// Parses `config.json`.
pub(super) fn parse(config: &[u8]) -> Result<Map<String, Value>, LoadError> {
    json::parse(CONFIG, config)
}

/// Returns what is unusual about `config.json`, as sentences without a full stop.
pub(super) fn warnings(config: &Map<String, Value>) -> Vec<String> {
    ConfigFile::new(config).warnings()
}

/// Returns whether `config.json` says that the embedding is the output projection.
pub(super) fn is_tied(config: &Map<String, Value>) -> bool {
    config.get("tie_word_embeddings") == Some(&Value::Bool(true))
}

/// Returns whether `config.json` names a model without an output projection.
pub(super) fn is_trunk(config: &Map<String, Value>) -> bool {
    config.get("architectures").is_some_and(|names| names[0] == "Qwen3Model")
}

/// Returns the type of weights that `config.json` names, such as "bfloat16". Version 5 of transformers writes `dtype`.
pub(super) fn named_type(config: &Map<String, Value>) -> Option<&str> {
    let named = ["dtype", "torch_dtype"].iter().find_map(|key| config.get(*key)?.as_str());
    named.map(|name| name.trim_start_matches("torch."))
}

/// Returns the tokens that end a turn, without duplicates; `generation_config.json`'s come first.
fn eos_token_ids(
    config: &Keys<'_>,
    generation: &Keys<'_>,
    vocab_size: usize,
) -> Result<Vec<u32>, LoadError> {
    let mut eos_token_ids = Vec::new();
    for keys in [generation, config] {
        for id in keys.token_ids("eos_token_id")? {
            // A model cannot generate a token beyond its vocabulary, and -1 stands for no token.
            let id = u32::try_from(id).ok().filter(|id| (*id as usize) < vocab_size);
            if let Some(id) = id.filter(|id| !eos_token_ids.contains(id)) {
                eos_token_ids.push(id);
            }
        }
    }
    Ok(eos_token_ids)
}

/// A value that a key may have.
enum Accepted {
    Null,
    Flag(bool),
    Text(&'static str),
    /// An empty list or object.
    Empty,
}

impl Accepted {
    fn equals(&self, value: &Value) -> bool {
        match (self, value) {
            (Self::Null, Value::Null) => true,
            (Self::Flag(accepted), Value::Bool(flag)) => accepted == flag,
            (Self::Text(accepted), Value::String(text)) => text == accepted,
            (Self::Empty, Value::Array(list)) => list.is_empty(),
            (Self::Empty, Value::Object(map)) => map.is_empty(),
            _ => false,
        }
    }
}

/// Keys of a YaRN scaling that are read.
const YARN_KEYS: [&str; 8] = [
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "truncate",
];

/// Keys of quantised weights: those of transformers, of its older versions, and of MLX.
const QUANTISATION_KEYS: [&str; 4] =
    ["quantization_config", "compression_config", "quantization", "quant_config"];

/// Keys that may only have values that change nothing, with these values.
const REFUSED_KEYS: [(&str, &[Accepted], &str); 8] = {
    use Accepted::{Empty, Flag, Null, Text};
    [
        ("hidden_act", &[Text("silu"), Text("swish")], "only \"silu\" is implemented"),
        ("attention_bias", &[Flag(false), Null], "biases are not implemented"),
        ("is_causal", &[Flag(true), Null], "only causal models are implemented"),
        ("use_bidirectional_attention", &[Flag(false), Null], "only causal models are implemented"),
        ("is_encoder_decoder", &[Flag(false), Null], "only decoders are implemented"),
        ("per_layer_config", &[Null, Empty], "layers that differ are not implemented"),
        ("pruned_heads", &[Null, Empty], "pruned heads are not implemented"),
        ("use_mrope", &[Flag(false), Null], "multimodal rotary embeddings are not implemented"),
    ]
};

/// Keys that are read.
const READ_KEYS: [&str; 27] = [
    "architectures",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_size",
    "id2label",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "max_window_layers",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_labels",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "problem_type",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sliding_window",
    "tie_word_embeddings",
    "torch_dtype",
    "use_sliding_window",
    "vocab_size",
];

/// Keys that do not change what a Qwen3 model computes for one sequence: training, generation with transformers'
/// own sampler, the form of outputs, and the implementation of attention.
const NEUTRAL_KEYS: [&str; 63] = [
    "add_cross_attention",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bad_words_ids",
    "begin_suppress_tokens",
    "bos_token_id",
    "attention_chunk_size",
    "chain_hidden_post_norm",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "experts_implementation",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "hidden_dropout",
    "initializer_range",
    "is_decoder",
    "label2id",
    "length_penalty",
    "logits_mup_width_multiplier",
    "max_length",
    "min_length",
    "mtp_hidden_states_first",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "pad_token_id",
    "prefix",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tf_legacy_loss",
    "tie_encoder_decoder",
    "token_classification_bias",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers_version",
    "typical_p",
    "unpadded_vocab_size",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Returns the `config.json` of Qwen3-4B.
    fn qwen3_4b() -> Value {
        json!({
            "architectures": ["Qwen3ForCausalLM"], "attention_bias": false,
            "bos_token_id": 151643, "eos_token_id": 151645, "head_dim": 128,
            "hidden_act": "silu", "hidden_size": 2560, "intermediate_size": 9728,
            "max_position_embeddings": 40960, "model_type": "qwen3", "num_attention_heads": 32,
            "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-06,
            "rope_scaling": null, "rope_theta": 1000000, "sliding_window": null,
            "tie_word_embeddings": true, "torch_dtype": "bfloat16",
            "use_sliding_window": false, "vocab_size": 151936
        })
    }

    fn read(config: &Value, generation: Option<&Value>) -> Result<Config, LoadError> {
        let bytes = |value: &Value| value.to_string().into_bytes();
        Config::from_json(&bytes(config), generation.map(bytes).as_deref())
    }

    #[test]
    fn from_json_reads_rope_theta_of_old_and_new_transformers() {
        let old = read(&qwen3_4b(), None).expect("valid");
        assert_eq!((old.group_size(), old.head_dim), (4, 128));
        assert_eq!((old.rope_theta, &old.eos_token_ids[..]), (1e6, &[151645][..]));

        let mut new = qwen3_4b();
        new.as_object_mut().expect("an object").remove("rope_theta");
        new["rope_parameters"] = json!({"rope_theta": 1e6, "rope_type": "default"});
        assert_eq!(read(&new, None).expect("valid"), old);
    }

    #[test]
    fn from_json_counts_the_labels_of_classifiers() {
        let mut config = qwen3_4b();
        config["architectures"] = json!(["Qwen3ForSequenceClassification"]);
        let rows = |config: &Value| match read(config, None).expect("valid").architecture {
            Architecture::Qwen3ForSequenceClassification { rows } => rows,
            other => panic!("{other:?}"),
        };
        assert_eq!(rows(&config), 2);
        config["num_labels"] = json!(3);
        assert_eq!(rows(&config), 3);
        config["id2label"] = json!({"0": "LABEL_0"});
        let error = read(&config, None).expect_err("a contradiction").to_string();
        assert!(error.contains("num_labels is 3, but id2label has 1"), "{error}");
        config.as_object_mut().expect("an object").remove("num_labels");
        assert_eq!(rows(&config), 1);
        let names = |config: &Value| read(config, None).expect("valid").label_names;
        assert_eq!(names(&config), ["LABEL_0"]);
        config["id2label"] = json!({"1": "no", "0": "yes"});
        assert_eq!(names(&config), ["yes", "no"]);
        config["id2label"] = json!({"1": "no", "2": "yes"});
        assert!(names(&config).is_empty(), "row 0 has no name");
        config["id2label"] = json!({});
        let error = read(&config, None).expect_err("no labels").to_string();
        assert!(error.contains("id2label"), "{error}");
    }

    #[test]
    fn from_json_collects_eos_tokens_of_both_files() {
        for (generation, expected) in [
            (json!({"eos_token_id": [151645, 151643]}), vec![151645, 151643]),
            // As in ERank's checkpoints.
            (json!({"eos_token_id": 151643}), vec![151643, 151645]),
            (json!({}), vec![151645]),
        ] {
            let config = read(&qwen3_4b(), Some(&generation)).expect("valid");
            assert_eq!(config.eos_token_ids, expected);
        }
        // Ids that no model can generate do not matter.
        let beyond = read(&qwen3_4b(), Some(&json!({"eos_token_id": [151936, -1]})));
        assert_eq!(beyond.expect("valid").eos_token_ids, [151645]);
    }

    #[test]
    fn from_json_takes_missing_values_from_transformers_defaults() {
        let mut config = qwen3_4b();
        let keys = ["rms_norm_eps", "max_position_embeddings", "rope_theta", "tie_word_embeddings"];
        for key in keys.iter().chain(&["head_dim", "num_key_value_heads", "architectures"]) {
            config.as_object_mut().expect("an object").remove(*key);
        }
        let read = read(&config, None).expect("valid");
        assert_eq!((read.rms_norm_eps, read.max_position_embeddings), (1e-6, 32_768));
        assert_eq!((read.rope_theta, read.head_dim, read.num_key_value_heads), (1e4, 128, 32));
        assert!(!read.tie_word_embeddings);
    }

    #[test]
    fn from_json_reads_rope_as_both_versions_of_transformers_write_it() {
        let yarn = |factor: f64| json!({"rope_type": "yarn", "factor": factor});
        for (scaling, parameters, theta, factor) in [
            (json!(null), json!(null), 1e6, None),
            (json!({}), json!(null), 1e6, None),
            (json!({"rope_type": "default", "rope_theta": 5e5}), json!(null), 5e5, None),
            (json!(null), json!({"rope_type": "default", "rope_theta": 5e5}), 5e5, None),
            (json!({"type": "yarn", "factor": 4}), json!(null), 1e6, Some(4.0)),
            (json!({"type": "yarn", "rope_type": "default"}), json!(null), 1e6, None),
            (
                json!({"type": "yarn", "rope_type": "yarn", "factor": 2.0}),
                json!(null),
                1e6,
                Some(2.0),
            ),
            (json!(null), yarn(4.0), 1e6, Some(4.0)),
            (yarn(2.0), yarn(4.0), 1e6, Some(2.0)),
            (json!({}), yarn(4.0), 1e6, Some(4.0)),
        ] {
            let mut config = qwen3_4b();
            config["rope_scaling"] = scaling;
            config["rope_parameters"] = parameters;
            let read = read(&config, None).expect("valid");
            assert_eq!(
                (read.rope_theta, read.yarn.map(|yarn| yarn.factor)),
                (theta, factor),
                "{config}"
            );
        }
    }

    /// The values are those of transformers 5.23.
    #[test]
    fn from_json_infers_the_values_of_yarn() {
        let yarn = |rope: Value, outside: Value| {
            let mut config = qwen3_4b();
            config["rope_scaling"] = rope;
            config["rope_scaling"]["rope_type"] = json!("yarn");
            for (key, value) in outside.as_object().expect("an object") {
                config[key] = value.clone();
            }
            let config = read(&config, None).expect("valid");
            (config.max_position_embeddings, config.yarn.expect("scaled"))
        };
        let (positions, whole) =
            yarn(json!({"factor": 4.0, "original_max_position_embeddings": 32_768}), json!({}));
        assert_eq!(positions, 131_072);
        assert_eq!(whole.attention_factor, 1.138_629_436_111_989);
        assert_eq!((whole.beta_fast, whole.beta_slow, whole.truncate), (32.0, 1.0, true));
        // Without the original number, that of the file is the original one.
        assert_eq!(yarn(json!({"factor": 2}), json!({})).0, 81_920);
        let outside =
            json!({"original_max_position_embeddings": 1000, "max_position_embeddings": 8000});
        let (positions, inferred) =
            yarn(json!({"factor": null, "original_max_position_embeddings": 2000}), outside);
        assert_eq!((positions, inferred.factor), (8000, 8.0));
        let scales =
            json!({"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.0, "truncate": null});
        let (_, scaled) = yarn(scales, json!({}));
        assert!((scaled.attention_factor - 0.921_042).abs() < 1e-6, "{scaled:?}");
        assert!(!scaled.truncate);
        let given = json!({"factor": 4.0, "attention_factor": 1.5, "beta_fast": 0, "beta_slow": 2});
        let (_, given) = yarn(given, json!({}));
        assert_eq!((given.attention_factor, given.beta_fast, given.beta_slow), (1.5, 32.0, 2.0));
    }

    #[test]
    fn from_json_refuses_other_rotary_embeddings_by_name() {
        for (scaling, expected) in [
            (json!({"rope_type": "linear", "factor": 2.0}), "rope_scaling.rope_type is \"linear\""),
            (json!({"type": "dynamic", "factor": 2.0}), "rope_scaling.type is \"dynamic\""),
            (json!({"rope_type": "llama3", "factor": 2.0}), "llama3"),
            (json!({"rope_type": "longrope"}), "longrope"),
            (json!({"rope_type": null}), "rope_scaling.rope_type is null"),
            (json!({"full_attention": {"rope_type": "default"}}), "rope_scaling.full_attention"),
            (json!({"rope_theta": null}), "rope_scaling.rope_theta is null"),
            (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
            (json!({"rope_type": "yarn"}), "rope_scaling.factor is missing"),
            (json!({"rope_type": "yarn", "factor": "4"}), "rope_scaling.factor is \"4\""),
            (json!({"rope_type": "yarn", "factor": 0}), "factor of YaRN is 0"),
            (json!({"rope_type": "yarn", "factor": 1e300}), "max_position_embeddings"),
            (json!({"rope_type": "yarn", "factor": 4, "attention_factor": -1}), "attention_factor"),
            (json!({"rope_type": "yarn", "factor": 4, "truncate": 1}), "rope_scaling.truncate"),
            (
                json!({"rope_type": "yarn", "factor": 4, "attn_factor": 0.878}),
                "rope_scaling.attn_factor is 0.878; vLLM reads this key",
            ),
            (
                json!({"rope_type": "yarn", "factor": 4, "apply_yarn_scaling": false}),
                "set attention_factor",
            ),
            (json!("yarn"), "rope_scaling is \"yarn\"; it must be an object"),
        ] {
            let mut config = qwen3_4b();
            config["rope_scaling"] = scaling;
            let error = read(&config, None).expect_err("refused").to_string();
            assert!(error.contains("config.json") && error.contains(expected), "{error}");
        }
        for clear in [
            json!({"rope_type": "yarn", "factor": 4, "attn_factor": 1, "extrapolation_factor": 1.0}),
            json!({"rope_type": "yarn", "factor": 4, "attn_factor": 0.878, "attention_factor": 1.0}),
            json!({"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768.0}),
        ] {
            let mut config = qwen3_4b();
            config["rope_scaling"] = clear;
            read(&config, None).expect("valid");
        }
    }

    #[test]
    fn from_json_accepts_windows_only_where_no_layer_has_one() {
        for (window, use_window, first, types, accepted) in [
            (json!(4096), true, 36, json!(null), true),
            (json!(-1), false, 0, json!(null), true),
            (json!(4096), true, 28, json!(null), false),
            (json!(null), true, 0, json!(null), true),
            (json!(4096), false, 0, json!(null), true),
            (json!(4096), true, 0, json!(vec!["full_attention"; 36]), true),
            (json!(null), false, 0, json!(vec!["sliding_attention"; 36]), false),
            (json!(null), false, 0, json!(vec!["chunked_attention"; 36]), false),
            (json!(null), false, 0, json!(["full_attention"]), false),
        ] {
            let mut config = qwen3_4b();
            config["sliding_window"] = window;
            config["use_sliding_window"] = json!(use_window);
            config["max_window_layers"] = json!(first);
            config["layer_types"] = types;
            let read = read(&config, None);
            assert_eq!(read.is_ok(), accepted, "{config}");
            let error = read.err().map_or("layer_types".into(), |error| error.to_string());
            assert!(
                error.contains("layer_types") || error.contains("use_sliding_window"),
                "{error}"
            );
        }
    }

    #[test]
    fn from_json_reads_special_numbers_that_nothing_needs() {
        let config = qwen3_4b().to_string();
        let with = |key: &str| {
            Config::from_json(format!("{{\"{key}\": -Infinity, {}", &config[1..]).as_bytes(), None)
        };
        assert!(with("made_up").is_ok());
        let needed = config.replace("0.000001", "NaN").replace("1e-6", "NaN");
        assert!(needed.contains("NaN"), "{needed}");
        let error = Config::from_json(needed.as_bytes(), None).expect_err("needed").to_string();
        assert!(error.contains("rms_norm_eps is \"NaN\"; it must be a number"), "{error}");
    }

    #[test]
    fn warnings_list_unknown_keys() {
        let mut config = qwen3_4b();
        let found = |config: &Value| warnings(config.as_object().expect("an object")).join("\n");
        assert_eq!(found(&config), "");
        config["num_experts"] = json!(8);
        config["_name_or_path"] = json!("x");
        config["auto_map"] = json!({"AutoModel": "code.Model"});
        config["eos_token_id"] = json!([1, 151936]);
        config["rope_scaling"] =
            json!({"rope_type": "yarn", "factor": 2.0, "factr": 3.0, "mscale": null});
        let notes = found(&config);
        for expected in [
            "ignored: num_experts\n",
            "auto_map",
            "beyond the vocabulary: 151936",
            "ignored: rope_scaling.factr",
        ] {
            assert!(notes.contains(expected), "{notes}");
        }
        config["rope_scaling"] = json!({"factor": 2.0});
        assert!(found(&config).contains("ignored: rope_scaling.factor"));
        let older = parse(br#"{"torch_dtype": "torch.float16"}"#).expect("an object");
        assert_eq!(named_type(&older), Some("float16"));
    }

    #[test]
    fn from_json_reports_unsupported_and_invalid_values() {
        for (setting, value) in [
            ("model_type", json!("qwen3_moe")),
            ("architectures", json!(["Qwen3ForTokenClassification"])),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("is_causal", json!(false)),
            ("is_encoder_decoder", json!(true)),
            ("per_layer_config", json!({"0": {}})),
            ("pruned_heads", json!({"0": [1]})),
            ("partial_rotary_factor", json!(0.5)),
            ("rms_norm_eps", json!(null)),
            ("head_dim", json!(null)),
            ("hidden_size", json!(64.5)),
            ("hidden_size", json!("64")),
            ("num_hidden_layers", json!(1 << 20)),
            ("head_dim", json!(1 << 23)),
            ("tie_word_embeddings", json!("yes")),
            ("eos_token_id", json!("151645")),
            ("rope_theta", json!(null)),
            ("num_key_value_heads", json!(5)),
            ("num_key_value_heads", json!(0)),
            ("head_dim", json!(127)),
            ("vocab_size", json!(u64::MAX)),
            ("rms_norm_eps", json!(-1)),
            ("rope_theta", json!(0)),
            ("eos_token_id", json!([1.5])),
            ("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
            ("compression_config", json!({"format": "pack-quantized"})),
            ("quantization", json!({"group_size": 64, "bits": 4})),
        ] {
            let mut config = qwen3_4b();
            config[setting] = value;
            let error = read(&config, None).expect_err(setting).to_string();
            assert!(error.contains("config.json") && error.contains(setting), "{error}");
        }
        assert!(Config::from_json(b"{", None).is_err());
        assert!(Config::from_json(b"[]", None).is_err());
    }
}
