//! Validation of `config.json` and `generation_config.json`.

use erank_core::AnswerFormat;
use serde::Deserialize;

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
    /// Number of positions that the model was trained for.
    pub max_position_embeddings: usize,
    /// Epsilon of all RMSNorm layers.
    pub rms_norm_eps: f32,
    /// Base of the wavelengths of the rotary position embedding (RoPE).
    pub rope_theta: f64,
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
        let file: ConfigFile = parse(CONFIG, config)?;
        let generation: GenerationConfigFile = match generation_config {
            Some(bytes) => parse(GENERATION_CONFIG, bytes)?,
            None => GenerationConfigFile::default(),
        };
        let config = Self {
            architecture: file.architecture()?,
            vocab_size: file.vocab_size,
            hidden_size: file.hidden_size,
            intermediate_size: file.intermediate_size,
            num_hidden_layers: file.num_hidden_layers,
            num_attention_heads: file.num_attention_heads,
            num_key_value_heads: file.num_key_value_heads,
            head_dim: file.head_dim.unwrap_or(128), // transformers' default for Qwen3
            max_position_embeddings: file.max_position_embeddings,
            rms_norm_eps: file.rms_norm_eps,
            rope_theta: file.rope_theta()?,
            tie_word_embeddings: file.tie_word_embeddings,
            eos_token_ids: file.eos_token_ids(generation)?,
            label_names: file.label_names(),
        };
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
        // Far above the sizes of existing models, and small enough that products of two sizes do
        // not overflow.
        const LARGEST: usize = 1 << 24;
        for (name, value) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ] {
            if !(1..=LARGEST).contains(&value) {
                return invalid(format!("{name} is {value}; it must be between 1 and {LARGEST}"));
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
        if self.num_attention_heads * self.head_dim > LARGEST {
            return invalid(format!("num_attention_heads × head_dim must be at most {LARGEST}"));
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
        Ok(())
    }
}

/// The keys of `config.json` that matter here, as transformers writes them.
#[derive(Debug, Deserialize)]
struct ConfigFile {
    model_type: String,
    /// transformers' classes. Files that were written by hand may lack the key.
    architectures: Option<Vec<String>>,
    /// Rows of a classifier's head, written as `id2label` unless there are two.
    num_labels: Option<usize>,
    id2label: Option<serde_json::Map<String, serde_json::Value>>,
    vocab_size: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    /// Written by transformers before version 5.
    rope_theta: Option<f64>,
    rope_scaling: Option<RopeFile>,
    /// Written by transformers from version 5 on.
    rope_parameters: Option<RopeFile>,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<TokenIds>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default = "silu")]
    hidden_act: String,
    /// Written for quantised weights.
    quantization_config: Option<serde_json::Value>,
}

fn silu() -> String {
    "silu".into()
}

#[derive(Debug, Deserialize)]
struct RopeFile {
    rope_theta: Option<f64>,
    #[serde(alias = "type")]
    rope_type: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct GenerationConfigFile {
    eos_token_id: Option<TokenIds>,
}

/// One token id, or a list of token ids.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum TokenIds {
    One(u32),
    Many(Vec<u32>),
}

impl TokenIds {
    fn ids(self) -> Vec<u32> {
        match self {
            Self::One(id) => vec![id],
            Self::Many(ids) => ids,
        }
    }
}

impl Default for TokenIds {
    fn default() -> Self {
        Self::Many(Vec::new())
    }
}

impl ConfigFile {
    /// Returns the model's class. Rejects variants that this implementation would compute wrongly.
    fn architecture(&self) -> Result<Architecture, LoadError> {
        if self.model_type != "qwen3" {
            return invalid(format!(
                "model_type is {:?}; only \"qwen3\" (dense) is implemented",
                self.model_type
            ));
        }
        if let Some(quantization) = &self.quantization_config {
            let method = quantization.get("quant_method").unwrap_or(quantization);
            return invalid(format!(
                "quantization_config says that the weights are quantised ({method}), which is not read; \
                 use the model's BF16 or F32 safetensors files, or a GGUF file of it"
            ));
        }
        let architecture = match self.architectures.as_deref() {
            None | Some([]) => Architecture::Qwen3ForCausalLM,
            Some([name]) if name == "Qwen3ForCausalLM" => Architecture::Qwen3ForCausalLM,
            Some([name]) if name == "Qwen3ForSequenceClassification" => {
                Architecture::Qwen3ForSequenceClassification { rows: self.labels()? }
            }
            Some(names) => {
                return invalid(format!(
                    "architectures is {names:?}; only [\"Qwen3ForCausalLM\"] and \
                     [\"Qwen3ForSequenceClassification\"] are implemented"
                ));
            }
        };
        if self.hidden_act != "silu" {
            return invalid(format!(
                "hidden_act is {:?}; only \"silu\" is implemented",
                self.hidden_act
            ));
        }
        if self.attention_bias {
            return invalid("attention_bias is true; biases are not implemented");
        }
        if self.use_sliding_window {
            return invalid("use_sliding_window is true; sliding windows are not implemented");
        }
        for rope in [&self.rope_scaling, &self.rope_parameters].into_iter().flatten() {
            if let Some(kind) = rope.rope_type.as_deref().filter(|kind| *kind != "default") {
                return invalid(format!("rope_type is {kind:?}; only \"default\" is implemented"));
            }
        }
        Ok(architecture)
    }

    /// Returns the rows of a classifier's head.
    fn labels(&self) -> Result<usize, LoadError> {
        let labels = self.id2label.as_ref().map(serde_json::Map::len).or(self.num_labels);
        // transformers' default is 2.
        match labels.unwrap_or(2) {
            labels @ 1..=AnswerFormat::MAX_ANSWERS => Ok(labels),
            labels => invalid(format!(
                "the number of labels (num_labels, id2label) is {labels}; it must be between 1 and {}",
                AnswerFormat::MAX_ANSWERS
            )),
        }
    }

    /// Returns the names of a classifier's labels by row, unless a row has no name.
    fn label_names(&self) -> Vec<String> {
        let Some(names) = &self.id2label else { return Vec::new() };
        let name = |row: usize| Some(names.get(&row.to_string())?.as_str()?.to_owned());
        (0..names.len()).map(name).collect::<Option<_>>().unwrap_or_default()
    }

    /// Returns the tokens that end a turn, without duplicates; `generation_config.json`'s come first.
    fn eos_token_ids(&self, generation: GenerationConfigFile) -> Result<Vec<u32>, LoadError> {
        let mut eos_token_ids = Vec::new();
        for (file, ids) in
            [(GENERATION_CONFIG, generation.eos_token_id), (CONFIG, self.eos_token_id.clone())]
        {
            for id in ids.unwrap_or_default().ids() {
                if id as usize >= self.vocab_size {
                    let reason = format!("eos_token_id {id} must be below vocab_size");
                    return Err(LoadError::invalid(file, reason));
                }
                if !eos_token_ids.contains(&id) {
                    eos_token_ids.push(id);
                }
            }
        }
        Ok(eos_token_ids)
    }

    fn rope_theta(&self) -> Result<f64, LoadError> {
        let nested = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        nested.or(self.rope_theta).map_or_else(|| invalid("rope_theta is missing"), Ok)
    }
}

fn parse<'a, T: Deserialize<'a>>(file: &str, bytes: &'a [u8]) -> Result<T, LoadError> {
    serde_json::from_slice(bytes)
        .map_err(|source| LoadError::unparsable(file, "cannot be parsed", source))
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, LoadError> {
    Err(LoadError::invalid(CONFIG, reason))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

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
        let beyond = read(&qwen3_4b(), Some(&json!({"eos_token_id": 151936})));
        let error = beyond.expect_err("id outside the vocabulary").to_string();
        assert!(error.contains("generation_config.json"), "{error}");
    }

    #[test]
    fn from_json_reports_unsupported_and_invalid_values() {
        for (setting, value) in [
            ("model_type", json!("qwen3_moe")),
            ("architectures", json!(["Qwen3ForTokenClassification"])),
            ("hidden_act", json!("gelu")),
            ("attention_bias", json!(true)),
            ("use_sliding_window", json!(true)),
            ("num_key_value_heads", json!(5)),
            ("num_key_value_heads", json!(0)),
            ("head_dim", json!(127)),
            ("vocab_size", json!(u64::MAX)),
            ("rms_norm_eps", json!(-1)),
            ("rope_theta", json!(0)),
            ("eos_token_id", json!(151936)),
            ("quantization_config", json!({"quant_method": "gptq", "bits": 4})),
        ] {
            let mut config = qwen3_4b();
            config[setting] = value;
            let error = read(&config, None).expect_err(setting).to_string();
            assert!(error.contains("config.json") && error.contains(setting), "{error}");
        }
        let mut config = qwen3_4b();
        config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 4.0});
        assert!(read(&config, None).expect_err("yarn").to_string().contains("yarn"));
        assert!(Config::from_json(b"{", None).is_err());
        assert!(Config::from_json(b"[]", None).is_err());
    }
}
