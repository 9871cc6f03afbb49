//! Qwen3: its tensor names, the order of its layers, and its forward pass.

use candle_core::{Result, Tensor};
use erank_core::Cause;

use super::kv_cache::KvCache;
use super::operations::{ActivationShape, AttentionShape, HeadNorms, Operations};
use super::rotary::RotaryEmbedding;
use super::step::{Row, Step, StepLimits};
use super::{Head, Model, ModelShape};
use crate::checkpoint::config::{Architecture, Config};
use crate::checkpoint::weights::Weights;
use crate::error::LoadError;
use crate::settings::KvCacheFormat;

/// A Qwen3 model whose weights are laid out for the operations `O`.
pub(crate) struct Qwen3<O: Operations> {
    config: Config,
    operations: O,
    kv_cache: KvCacheFormat,
    rotary: RotaryEmbedding,
    /// `[vocab_size, hidden]`.
    embedding: O::Matrix,
    layers: Vec<Layer<O>>,
    norm: O::Norm,
    /// The head, `[vocab_size, hidden]` or `[rows, hidden]`; `None` if the embedding is the output projection as
    /// well.
    output: Option<O::Matrix>,
    /// The bias of a classifier's head, `[rows]`; empty if there is none.
    bias: Vec<f32>,
}

/// The weights of one transformer layer, in the order of their use.
struct Layer<O: Operations> {
    input_norm: O::Norm,
    /// Queries, keys and values, stacked.
    qkv: O::Matrix,
    head_norms: HeadNorms<O::Norm>,
    attention_output: O::Matrix,
    post_attention_norm: O::Norm,
    gate_up: O::GateUp,
    down: O::Matrix,
}

impl<O: Operations> Qwen3<O> {
    /// Loads the weights. Runs on rayon's current thread pool.
    ///
    /// # Errors
    /// Returns an error that names a tensor that is missing, has another shape than `config` says, or does not
    /// fit in memory.
    pub(crate) fn load(
        config: Config,
        weights: &Weights<'_>,
        operations: O,
        kv_cache: KvCacheFormat,
    ) -> std::result::Result<Self, LoadError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let matrix = |name, outputs| operations.load_matrix(weights, &[(name, outputs)], hidden);
        let embedding = matrix("model.embed_tokens.weight", vocab)?;
        let output = match config.architecture {
            Architecture::Qwen3ForCausalLM if config.tie_word_embeddings => None,
            Architecture::Qwen3ForCausalLM => Some(matrix("lm_head.weight", vocab)?),
            Architecture::Qwen3ForSequenceClassification { rows } => {
                Some(matrix("score.weight", rows)?)
            }
        };
        let bias = match config.architecture {
            Architecture::Qwen3ForSequenceClassification { rows }
                if weights.contains("score.bias") =>
            {
                weights.vector("score.bias", rows)?
            }
            _ => Vec::new(),
        };
        let norm =
            operations.load_norm(weights, "model.norm.weight", hidden, config.rms_norm_eps)?;
        let layers = (0..config.num_hidden_layers)
            .map(|index| Layer::load(index, &config, weights, &operations))
            .collect::<std::result::Result<_, _>>()?;
        let rotary = RotaryEmbedding::new(&config);
        Ok(Self { config, operations, kv_cache, rotary, embedding, layers, norm, output, bias })
    }

    fn forward(&self, rows: &[Row<'_>], cache: &KvCache) -> Result<Vec<f32>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let limits = StepLimits {
            positions: self.config.max_position_embeddings,
            vocab_size: self.config.vocab_size,
            blocks: cache.blocks(),
        };
        let step = Step::new(rows, &self.rotary, limits)?;
        let ops = &self.operations;
        let pass = ops.begin(&step, self.activation_shape())?;

        let mut x = ops.embed(&self.embedding, &pass)?; // [tokens, hidden]
        for (layer, kv) in self.layers.iter().zip(cache.layers()) {
            let qkv = ops.project_qkv(&layer.input_norm, &layer.qkv, &x, &pass)?;
            let attended = ops.attend(&layer.head_norms, &qkv, kv, &pass)?;
            x = ops.project_add(&layer.attention_output, &attended, x)?;
            let gated = ops.gate_up(&layer.post_attention_norm, &layer.gate_up, &x, &pass)?;
            x = ops.project_add(&layer.down, &gated, x)?;
        }
        if step.wanted().is_empty() {
            return Ok(Vec::new());
        }
        let x = x.index_select(&Tensor::new(step.wanted(), ops.device())?, 0)?; // [wanted, hidden]
        let head = self.output.as_ref().unwrap_or(&self.embedding);
        let mut logits = ops.project_logits(&self.norm, head, &x)?;
        if !self.bias.is_empty() {
            for row in logits.chunks_exact_mut(self.bias.len()) {
                row.iter_mut().zip(&self.bias).for_each(|(logit, bias)| *logit += bias);
            }
        }
        if let Architecture::Qwen3ForSequenceClassification { rows: 1 } = self.config.architecture {
            // The sigmoid of one logit is the softmax of 0 and the logit.
            return Ok(logits.into_iter().flat_map(|logit| [0.0, logit]).collect());
        }
        Ok(logits)
    }

    fn activation_shape(&self) -> ActivationShape {
        ActivationShape {
            attention: attention_shape(&self.config),
            intermediate: self.config.intermediate_size,
        }
    }
}

impl<O: Operations> Model for Qwen3<O> {
    fn shape(&self) -> ModelShape {
        shape(&self.config, &self.operations, self.kv_cache)
    }

    fn new_cache(&self, blocks: usize) -> std::result::Result<KvCache, Cause> {
        let block_size = self.operations.block_size(attention_shape(&self.config), self.kv_cache);
        let (layers, device) = (self.layers.len(), self.operations.device());
        Ok(KvCache::new(layers, block_size, self.kv_cache.dtype(), blocks, device)?)
    }

    fn forward(&self, rows: &[Row<'_>], cache: &KvCache) -> std::result::Result<Vec<f32>, Cause> {
        Ok(self.forward(rows, cache)?)
    }
}

impl<O: Operations> Layer<O> {
    fn load(
        index: usize,
        config: &Config,
        weights: &Weights<'_>,
        operations: &O,
    ) -> std::result::Result<Self, LoadError> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let attention = attention_shape(config);
        let (query_width, kv_width) = (attention.query_width(), attention.kv_width());
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let norm = |part: &str, width| {
            operations.load_norm(weights, &name(part), width, config.rms_norm_eps)
        };
        let matrix = |part: &str, outputs, inputs| {
            operations.load_matrix(weights, &[(&name(part), outputs)], inputs)
        };
        let [query, key, value] =
            ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(name);
        let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"].map(name);
        Ok(Self {
            input_norm: norm("input_layernorm", hidden)?,
            qkv: operations.load_matrix(
                weights,
                &[(&query, query_width), (&key, kv_width), (&value, kv_width)],
                hidden,
            )?,
            head_norms: HeadNorms {
                query: norm("self_attn.q_norm", attention.head_dim)?,
                key: norm("self_attn.k_norm", attention.head_dim)?,
            },
            attention_output: matrix("self_attn.o_proj", hidden, query_width)?,
            post_attention_norm: norm("post_attention_layernorm", hidden)?,
            gate_up: operations.load_gate_up(weights, [&gate, &up], intermediate, hidden)?,
            down: matrix("mlp.down_proj", hidden, intermediate)?,
        })
    }
}

/// Returns the sizes of a model that [`Qwen3::load`] loads.
pub(crate) fn shape(
    config: &Config,
    operations: &impl Operations,
    kv_cache: KvCacheFormat,
) -> ModelShape {
    let (head, logits) = match config.architecture {
        Architecture::Qwen3ForCausalLM => (Head::LanguageModel, config.vocab_size),
        Architecture::Qwen3ForSequenceClassification { rows } => (Head::Classifier, rows.max(2)),
    };
    let block_size = operations.block_size(attention_shape(config), kv_cache);
    ModelShape {
        head,
        logits,
        max_tokens: config.max_position_embeddings,
        block_bytes: block_size * config.num_hidden_layers * kv_cache.dtype().size_in_bytes(),
    }
}

fn attention_shape(config: &Config) -> AttentionShape {
    AttentionShape {
        query_heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads,
        head_dim: config.head_dim,
    }
}
