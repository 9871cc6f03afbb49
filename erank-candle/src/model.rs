//! Qwen3's forward pass over a ragged batch.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor, bail};

use crate::candle_ops::CandleOps;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::error::LoadError;
use crate::kernels::attention::Visible;
use crate::kernels::norm::Norm;
use crate::kernels::{InstructionSet, WeightFormat};
use crate::kv_cache::{self, BLOCK_TOKENS, BlockId, KvCache};
use crate::ops::{Attention, Embed, Heads, LinearAdd, NormGateUp, NormLinear, WriteKv};
use crate::weights::{EMBEDDING, Weights};

/// The name of candle's own operations, where one of an instruction set could stand.
pub(crate) const CANDLE: &str = "candle";

/// One sequence's part of a step: some of its tokens, right behind those that the cache holds.
#[derive(Debug, Clone, Copy)]
pub struct Row<'a> {
    /// The tokens to compute, at least one.
    pub tokens: &'a [u32],
    /// The position of the first of them; the cache holds all before.
    pub position: usize,
    /// The sequence's blocks, in order, with room for all its tokens up to the last of these.
    pub blocks: &'a [BlockId],
    /// Of how many tokens, the last ones, the logits are wanted: none while a prompt is only written
    /// to the cache, one to decode the next token, more to check tokens that were guessed.
    pub logits: usize,
}

/// A Qwen3 model with its weights, on the device where it runs.
pub struct Qwen3 {
    config: Config,
    dtype: DType,
    inverse_frequencies: Vec<f32>,
    operations: Operations,
}

/// What the forward pass is made of.
enum Operations {
    /// This crate's kernels, on the CPU.
    Kernels(Kernels),
    /// candle's own, on any device.
    Candle(CandleOps),
}

/// The weights packed for this machine's kernels.
struct Kernels {
    embed: Embed,
    layers: Vec<Layer>,
    output: NormLinear,
    set: InstructionSet,
}

/// One transformer layer, as the operations it is made of.
struct Layer {
    qkv: NormLinear,
    heads: Heads,
    attention_output: LinearAdd,
    gate_up: NormGateUp,
    down: LinearAdd,
}

impl Qwen3 {
    /// Loads for the CPU and packs the weights, as F32 or BF16; without a `dtype`, as the checkpoint
    /// has them.
    /// Kernels are those of `instruction_set`, one of [`instruction_sets`](Self::instruction_sets);
    /// without one, of the environment variable `ERANK_INSTRUCTION_SET`, or else the best.
    ///
    /// Runs on rayon's current threads.
    ///
    /// # Errors
    /// [`LoadError`] names the file or the tensor that is missing or not as `config.json` says, or
    /// the instruction set that the machine does not have.
    pub fn load(
        checkpoint: &Checkpoint,
        dtype: Option<DType>,
        instruction_set: Option<&str>,
    ) -> std::result::Result<Self, LoadError> {
        let set = InstructionSet::choose(instruction_set)?;
        let config =
            Config::from_json(&checkpoint.config, checkpoint.generation_config.as_deref())?;
        let weights = Weights::new(&checkpoint.shards)?;
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let format = weights.format(dtype)?;
        let packed = |name| weights.packed(&[(name, vocab)], hidden, format, set).map(Arc::new);
        let table = packed(EMBEDDING)?;
        let output = match config.tie_word_embeddings {
            true => table.clone(),
            false => packed("lm_head.weight")?,
        };
        let norm = norm(&weights, &config, "model.norm.weight", hidden)?;
        let kernels = Kernels {
            embed: Embed { table },
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(&weights, &config, index, format, set))
                .collect::<std::result::Result<_, _>>()?,
            output: NormLinear { norm, weights: output },
            set,
        };
        Ok(Self::new(config, format.into(), Operations::Kernels(kernels)))
    }

    /// Loads for `device`, to run through candle's own operations. On the CPU that is much slower than
    /// [`load`](Self::load)'s kernels, and there to test what other devices run.
    ///
    /// # Errors
    /// [`LoadError`] names the file or the tensor that is missing, not as `config.json` says, or for which
    /// the device has no room.
    pub fn load_on(
        device: &Device,
        checkpoint: &Checkpoint,
        dtype: Option<DType>,
    ) -> std::result::Result<Self, LoadError> {
        let config =
            Config::from_json(&checkpoint.config, checkpoint.generation_config.as_deref())?;
        let weights = Weights::new(&checkpoint.shards)?;
        let dtype = weights.format(dtype)?.into();
        let candle = CandleOps::load(&weights, &config, dtype, device)?;
        Ok(Self::new(config, dtype, Operations::Candle(candle)))
    }

    fn new(config: Config, dtype: DType, operations: Operations) -> Self {
        let inverse_frequencies = inverse_frequencies(&config);
        Self { config, dtype, inverse_frequencies, operations }
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The type of the weights, and of the KV cache that fits: F32 or BF16.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The instruction sets of this machine that there are kernels for, the best first.
    pub fn instruction_sets() -> Vec<&'static str> {
        InstructionSet::available().into_iter().map(InstructionSet::name).collect()
    }

    /// The instruction set that the kernels use, or `"candle"` if candle's own operations are used.
    pub fn instruction_set(&self) -> &'static str {
        match &self.operations {
            Operations::Kernels(kernels) => kernels.set.name(),
            Operations::Candle(_) => CANDLE,
        }
    }

    /// Where the model runs.
    pub fn device(&self) -> &Device {
        match &self.operations {
            Operations::Kernels(_) => &Device::Cpu,
            Operations::Candle(candle) => candle.device(),
        }
    }

    /// A cache for this model with room for `blocks` blocks, on its device and of its type. On the CPU,
    /// memory is taken from the system as blocks are first written.
    ///
    /// # Errors
    /// For more than 2³² blocks, or if the device has no room for them.
    pub fn new_cache(&self, blocks: usize) -> Result<KvCache> {
        match &self.operations {
            Operations::Kernels(_) => KvCache::new(&self.config, self.dtype, blocks),
            Operations::Candle(candle) => {
                KvCache::on_device(&self.config, self.dtype, blocks, candle.device())
            }
        }
    }

    /// Computes `rows` in one step and adds their tokens to `cache`, one of
    /// [`new_cache`](Self::new_cache).
    ///
    /// Returns the wanted logits as F32, `[wanted tokens, vocab_size]`, in the order of the rows.
    /// With kernels, a row's logits have the same bits whatever other rows are in the step and however its
    /// tokens were spread over steps; with candle's operations, the last bits may differ.
    ///
    /// Runs on rayon's current threads.
    ///
    /// # Errors
    /// If a row is empty, goes beyond the model's positions, has a token id that is not in the
    /// vocabulary, or too few blocks, or blocks that `cache` does not have.
    pub fn forward(&self, rows: &[Row<'_>], cache: &KvCache) -> Result<Tensor> {
        let step = Step::new(rows, &self.inverse_frequencies, self.config.max_position_embeddings)?;
        match &self.operations {
            Operations::Kernels(kernels) => kernels.forward(&self.config, &step, cache),
            Operations::Candle(candle) => candle.forward(&self.config, rows, &step, cache),
        }
    }
}

impl Kernels {
    fn forward(&self, config: &Config, step: &Step, cache: &KvCache) -> Result<Tensor> {
        let tokens = Tensor::new(step.tokens.as_slice(), &Device::Cpu)?;

        let room = |width| Tensor::zeros((step.len(), width), DType::F32, &Device::Cpu);
        let query_width = config.num_attention_heads * config.head_dim;
        let kv_width = config.num_key_value_heads * config.head_dim;
        let qkv = room(query_width + 2 * kv_width)?;
        let attended = room(query_width)?;
        let gated = room(config.intermediate_size)?;

        let x = tokens.apply_op1_no_bwd(&self.embed)?; // [tokens, hidden]
        for (layer, kv) in self.layers.iter().zip(cache.layers()) {
            let Layer { heads, .. } = layer;
            qkv.inplace_op2(&x, &layer.qkv)?;
            kv.inplace_op2(&qkv, &WriteKv { heads, step })?;
            attended.inplace_op3(&qkv, kv, &Attention { heads, step })?;
            x.inplace_op2(&attended, &layer.attention_output)?; // x += …
            gated.inplace_op2(&x, &layer.gate_up)?;
            x.inplace_op2(&gated, &layer.down)?; // x += …
        }
        let wanted = Tensor::new(step.wanted.as_slice(), &Device::Cpu)?;
        let x = x.index_select(&wanted, 0)?; // [wanted, hidden]
        let logits =
            Tensor::zeros((wanted.elem_count(), config.vocab_size), DType::F32, &Device::Cpu)?;
        logits.inplace_op2(&x, &self.output)?;
        Ok(logits)
    }
}

impl Layer {
    fn load(
        weights: &Weights<'_>,
        config: &Config,
        index: usize,
        format: WeightFormat,
        set: InstructionSet,
    ) -> std::result::Result<Self, LoadError> {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let intermediate = config.intermediate_size;
        let query_width = config.num_attention_heads * head_dim;
        let kv_width = config.num_key_value_heads * head_dim;
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let norm = |part: &str, width| norm(weights, config, &name(part), width);
        let matrix = |part: &str, outputs, inputs| {
            weights.packed(&[(&name(part), outputs)], inputs, format, set)
        };

        let qkv = weights.packed(
            &[
                (&name("self_attn.q_proj"), query_width),
                (&name("self_attn.k_proj"), kv_width),
                (&name("self_attn.v_proj"), kv_width),
            ],
            hidden,
            format,
            set,
        )?;
        Ok(Self {
            qkv: NormLinear { norm: norm("input_layernorm", hidden)?, weights: Arc::new(qkv) },
            heads: Heads {
                query_heads: config.num_attention_heads,
                layout: kv_cache::layout(config),
                query_norm: norm("self_attn.q_norm", head_dim)?,
                key_norm: norm("self_attn.k_norm", head_dim)?,
                set,
            },
            attention_output: LinearAdd {
                weights: matrix("self_attn.o_proj", hidden, query_width)?,
            },
            gate_up: NormGateUp {
                norm: norm("post_attention_layernorm", hidden)?,
                gate: matrix("mlp.gate_proj", intermediate, hidden)?,
                up: matrix("mlp.up_proj", intermediate, hidden)?,
            },
            down: LinearAdd { weights: matrix("mlp.down_proj", hidden, intermediate)? },
        })
    }
}

fn norm(
    weights: &Weights<'_>,
    config: &Config,
    name: &str,
    width: usize,
) -> std::result::Result<Norm, LoadError> {
    Ok(Norm { weight: weights.vector(name, width)?, epsilon: config.rms_norm_eps })
}

/// `theta^(−2i / head_dim)`, rounded to F32 as the reference keeps them.
fn inverse_frequencies(config: &Config) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f64 / config.head_dim as f64;
    (0..config.head_dim / 2).map(|i| 1.0 / config.rope_theta.powf(exponent(i)) as f32).collect()
}

/// What a step computes: the rows' tokens, one after another, each with its place.
#[derive(Debug)]
pub(crate) struct Step {
    tokens: Vec<u32>,
    /// By token: its position in its sequence.
    positions: Vec<usize>,
    /// By token: its row.
    rows: Vec<usize>,
    /// By row: its sequence's blocks.
    blocks: Vec<Vec<u32>>,
    /// The tokens, those with common first blocks next to each other.
    attention_order: Vec<usize>,
    /// By token: its place in that order.
    attention_places: Vec<usize>,
    /// The tokens, by the block where they are written.
    write_order: Vec<usize>,
    /// By token, `head_dim / 2` each: the rotary embedding's angles.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half_dim: usize,
    longest_row: usize,
    /// The tokens whose logits are wanted.
    wanted: Vec<u32>,
}

impl Step {
    fn new(rows: &[Row<'_>], inverse_frequencies: &[f32], positions: usize) -> Result<Self> {
        let mut step = Self {
            tokens: Vec::new(),
            positions: Vec::new(),
            rows: Vec::new(),
            blocks: Vec::new(),
            attention_order: Vec::new(),
            attention_places: Vec::new(),
            write_order: Vec::new(),
            cos: Vec::new(),
            sin: Vec::new(),
            half_dim: inverse_frequencies.len(),
            longest_row: 1,
            wanted: Vec::new(),
        };
        for (index, row) in rows.iter().enumerate() {
            let end = row.position.saturating_add(row.tokens.len());
            if row.tokens.is_empty() {
                bail!("row {index} has no tokens");
            }
            if end > positions {
                bail!("row {index} reaches position {end} of a model with {positions}");
            }
            if row.blocks.len() * BLOCK_TOKENS < end {
                bail!("row {index} has {} blocks for {end} tokens", row.blocks.len());
            }
            if row.logits > row.tokens.len() {
                bail!("row {index} wants {} logits of {} tokens", row.logits, row.tokens.len());
            }
            step.longest_row = step.longest_row.max(row.tokens.len());
            step.tokens.extend(row.tokens);
            step.positions.extend(row.position..end);
            step.rows.extend(row.tokens.iter().map(|_| index));
            step.blocks.push(row.blocks.iter().map(|block| block.0).collect());
            let after = step.tokens.len();
            step.wanted.extend((after - row.logits..after).map(|token| token as u32));
            for position in row.position..end {
                // The product is rounded to F32, as the reference's is.
                let angles =
                    inverse_frequencies.iter().map(|frequency| position as f32 * frequency);
                step.cos.extend(angles.clone().map(f32::cos));
                step.sin.extend(angles.map(f32::sin));
            }
        }
        step.attention_order = (0..step.len()).collect();
        step.attention_order.sort_by_key(|token| &step.blocks[step.rows[*token]]);
        step.attention_places = vec![0; step.len()];
        for (place, token) in step.attention_order.iter().enumerate() {
            step.attention_places[*token] = place;
        }
        let mut write_order: Vec<usize> = (0..step.len()).collect();
        write_order.sort_by_key(|token| step.cache_place(*token));
        step.write_order = write_order;
        Ok(step)
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The places of the tokens whose logits are wanted.
    pub(crate) fn wanted(&self) -> &[u32] {
        &self.wanted
    }

    /// Tokens in the step.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Fails if a row names a block that a cache of `count` blocks does not have.
    pub(crate) fn check_blocks(&self, count: usize) -> Result<()> {
        match self.blocks.iter().flatten().find(|block| **block as usize >= count) {
            Some(block) => bail!("KV block {block} of a cache of {count} blocks"),
            None => Ok(()),
        }
    }

    /// The block and the slot there where `token`'s key and value belong.
    pub(crate) fn cache_place(&self, token: usize) -> (usize, usize) {
        let Visible { blocks, position } = self.visible(token);
        (blocks[position / BLOCK_TOKENS] as usize, position % BLOCK_TOKENS)
    }

    /// The tokens block by block, in the order of the cache.
    pub(crate) fn by_block(&self) -> impl Iterator<Item = &[usize]> {
        self.write_order.chunk_by(|a, b| self.cache_place(*a).0 == self.cache_place(*b).0)
    }

    /// What `token` attends to: its sequence's blocks, up to and with its own position.
    pub(crate) fn visible(&self, token: usize) -> Visible<'_> {
        Visible { blocks: &self.blocks[self.rows[token]], position: self.positions[token] }
    }

    /// Tokens of the row that has the most.
    pub(crate) fn longest_row(&self) -> usize {
        self.longest_row
    }

    /// The tokens in an order in which those that see common blocks stand together.
    pub(crate) fn attention_order(&self) -> &[usize] {
        &self.attention_order
    }

    /// Where `token` stands in [`attention_order`](Self::attention_order).
    pub(crate) fn attention_place(&self, token: usize) -> usize {
        self.attention_places[token]
    }

    /// The cosines and sines of `token`'s rotary embedding, `head_dim / 2` each.
    pub(crate) fn rotation(&self, token: usize) -> (&[f32], &[f32]) {
        let range = token * self.half_dim..(token + 1) * self.half_dim;
        (&self.cos[range.clone()], &self.sin[range])
    }

    /// Those of all tokens, one after another.
    pub(crate) fn rotations(&self) -> (&[f32], &[f32]) {
        (&self.cos, &self.sin)
    }
}
