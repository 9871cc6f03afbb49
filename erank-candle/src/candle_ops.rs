//! Qwen3's forward pass through candle's own operations, which every device has.
//!
//! The CPU has [kernels](crate::ops), which are faster and give a row the same bits in any company; here,
//! candle's products choose how they add up by the shapes, so a row's last bits depend on the others.
//!
//! Activations are F32 tensors; a projection rounds its input and its output to the type of its weights.
//! Attention is in F32 over the keys and values as the cache has them.

use candle_core::{DType, Device, Result, Tensor, bail};
use candle_nn::ops::{rms_norm, softmax_last_dim};
use candle_nn::rotary_emb::rope_thd;

use crate::config::Config;
use crate::error::LoadError;
use crate::kv_cache::{BLOCK_TOKENS, KvCache};
use crate::model::{Row, Step};
use crate::weights::{EMBEDDING, Weights};

/// Pairs of a token and a position of the cache that several rows attend to at once, at most: copies of
/// the positions' keys and values take some 16 KiB each in a model of ERank-4B's shape.
const PAIRS_AT_ONCE: usize = 1 << 15;

/// The weights on their device. Matrices are `[outputs, inputs]`.
pub(crate) struct CandleOps {
    device: Device,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    output: Tensor,
}

struct Layer {
    attention_norm: Tensor,
    /// Queries, keys and values, one above the other.
    qkv: Tensor,
    query_norm: Tensor,
    key_norm: Tensor,
    attention_output: Tensor,
    feed_forward_norm: Tensor,
    /// One above the other.
    gate_up: Tensor,
    down: Tensor,
}

impl CandleOps {
    pub(crate) fn load(
        weights: &Weights<'_>,
        config: &Config,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let embedding = weights.on_device(&[(EMBEDDING, vocab)], hidden, dtype, device)?;
        Ok(Self {
            output: match config.tie_word_embeddings {
                true => embedding.clone(),
                false => weights.on_device(&[("lm_head.weight", vocab)], hidden, dtype, device)?,
            },
            embedding,
            layers: (0..config.num_hidden_layers)
                .map(|index| Layer::load(weights, config, index, dtype, device))
                .collect::<std::result::Result<_, _>>()?,
            norm: vector(weights, "model.norm.weight", hidden, device)?,
            device: device.clone(),
        })
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Computes `rows`, of which `step` was made, and adds their tokens to `cache`. Returns the wanted
    /// logits as F32, `[wanted tokens, vocab_size]`.
    pub(crate) fn forward(
        &self,
        config: &Config,
        rows: &[Row<'_>],
        step: &Step,
        cache: &KvCache,
    ) -> Result<Tensor> {
        if let Some(id) = step.tokens().iter().find(|id| **id as usize >= config.vocab_size) {
            bail!("token id {id} is not below the vocabulary's {}", config.vocab_size);
        }
        step.check_blocks(cache.blocks())?;
        if rows.is_empty() {
            return Tensor::zeros((0, config.vocab_size), DType::F32, &Device::Cpu);
        }
        let places = Places::new(config, rows, step, &self.device)?;

        let ids = Tensor::new(step.tokens(), &self.device)?;
        let mut x = self.embedding.index_select(&ids, 0)?.to_dtype(DType::F32)?; // [tokens, hidden]
        for (layer, cache) in self.layers.iter().zip(cache.layers()) {
            let attended = layer.attend(config, &x, cache, &places)?;
            x = (x + linear(&attended, &layer.attention_output)?)?;
            let gated = layer.gate(config, &x)?;
            x = (x + linear(&gated, &layer.down)?)?;
        }
        if step.wanted().is_empty() {
            return Tensor::zeros((0, config.vocab_size), DType::F32, &Device::Cpu);
        }
        let x = x.index_select(&Tensor::new(step.wanted(), &self.device)?, 0)?; // [wanted, hidden]
        linear(&rms_norm(&x, &self.norm, config.rms_norm_eps)?, &self.output)
    }
}

impl Layer {
    fn load(
        weights: &Weights<'_>,
        config: &Config,
        index: usize,
        dtype: DType,
        device: &Device,
    ) -> std::result::Result<Self, LoadError> {
        let (hidden, head_dim) = (config.hidden_size, config.head_dim);
        let intermediate = config.intermediate_size;
        let query_width = config.num_attention_heads * head_dim;
        let kv_width = config.num_key_value_heads * head_dim;
        let name = |part: &str| format!("model.layers.{index}.{part}.weight");
        let norm = |part: &str, width| vector(weights, &name(part), width, device);
        let matrix = |parts: &[(&str, usize)], inputs| {
            let names: Vec<_> =
                parts.iter().map(|(part, outputs)| (name(part), *outputs)).collect();
            let parts: Vec<_> = names.iter().map(|(name, outputs)| (&name[..], *outputs)).collect();
            weights.on_device(&parts, inputs, dtype, device)
        };
        Ok(Self {
            attention_norm: norm("input_layernorm", hidden)?,
            qkv: matrix(
                &[
                    ("self_attn.q_proj", query_width),
                    ("self_attn.k_proj", kv_width),
                    ("self_attn.v_proj", kv_width),
                ],
                hidden,
            )?,
            query_norm: norm("self_attn.q_norm", head_dim)?,
            key_norm: norm("self_attn.k_norm", head_dim)?,
            attention_output: matrix(&[("self_attn.o_proj", hidden)], query_width)?,
            feed_forward_norm: norm("post_attention_layernorm", hidden)?,
            gate_up: matrix(
                &[("mlp.gate_proj", intermediate), ("mlp.up_proj", intermediate)],
                hidden,
            )?,
            down: matrix(&[("mlp.down_proj", hidden)], intermediate)?,
        })
    }

    /// `x` as `[tokens, hidden]` → `[tokens, query heads × head_dim]`; adds the tokens to the layer's cache.
    fn attend(
        &self,
        config: &Config,
        x: &Tensor,
        cache: &Tensor,
        places: &Places,
    ) -> Result<Tensor> {
        let (query_heads, kv_heads) = (config.num_attention_heads, config.num_key_value_heads);
        let qkv = linear(&rms_norm(x, &self.attention_norm, config.rms_norm_eps)?, &self.qkv)?;
        // [tokens, heads, head_dim]
        let qkv = qkv.reshape(((), query_heads + 2 * kv_heads, config.head_dim))?;
        let heads = |start, count| qkv.narrow(1, start, count)?.contiguous();
        let normed_and_rotated = |heads: Tensor, norm| {
            let heads = rms_norm(&heads, norm, config.rms_norm_eps)?.unsqueeze(0)?;
            rope_thd(&heads, &places.cos, &places.sin)?.squeeze(0)
        };
        let queries = normed_and_rotated(heads(0, query_heads)?, &self.query_norm)?;
        let keys = normed_and_rotated(heads(query_heads, kv_heads)?, &self.key_norm)?;
        let values = heads(query_heads + kv_heads, kv_heads)?;

        let keys_and_values = Tensor::cat(&[keys, values], 0)?.flatten_from(1)?;
        let slots = cache.reshape(((), kv_heads * config.head_dim))?;
        slots.scatter_set(&places.written, &keys_and_values.to_dtype(cache.dtype())?, 0)?;

        let attended: Vec<Tensor> = places
            .groups
            .iter()
            .map(|group| {
                let queries = queries.narrow(0, group.start, group.rows * group.tokens)?;
                group.attend(config, &queries, cache)
            })
            .collect::<Result<_>>()?;
        Tensor::cat(&attended, 0)
    }

    /// `silu(gate(norm(x))) · up(norm(x))`, `[tokens, intermediate]`.
    fn gate(&self, config: &Config, x: &Tensor) -> Result<Tensor> {
        let y = rms_norm(x, &self.feed_forward_norm, config.rms_norm_eps)?;
        let gate_up = linear(&y, &self.gate_up)?;
        let width = config.intermediate_size;
        gate_up.narrow(1, 0, width)?.silu()? * gate_up.narrow(1, width, width)?
    }
}

/// `x · Wᵀ`, with `x` and the result in F32.
fn linear(x: &Tensor, weights: &Tensor) -> Result<Tensor> {
    x.to_dtype(weights.dtype())?.matmul(&weights.t()?)?.to_dtype(DType::F32)
}

fn vector(
    weights: &Weights<'_>,
    name: &str,
    length: usize,
    device: &Device,
) -> std::result::Result<Tensor, LoadError> {
    Tensor::new(weights.vector(name, length)?, device)
        .map_err(|error| LoadError::tensor(name, format!("not on the device: {error}")))
}

/// Where a step's tokens belong, the same for all layers.
struct Places {
    /// Of the rotary embedding's angles, `[tokens, head_dim / 2]`.
    cos: Tensor,
    sin: Tensor,
    /// The tokens' slots in a layer's cache, their keys' and then their values', each once for every number
    /// in the slot.
    written: Tensor,
    groups: Vec<Group>,
}

impl Places {
    fn new(config: &Config, rows: &[Row<'_>], step: &Step, device: &Device) -> Result<Self> {
        let half = config.head_dim / 2;
        let angles = |numbers: &[f32]| Tensor::from_slice(numbers, ((), half), device);
        let slots = |part| {
            (0..step.len()).map(move |token| {
                let (block, slot) = step.cache_place(token);
                ((2 * block + part) * BLOCK_TOKENS + slot) as u32
            })
        };
        let slots: Vec<u32> = slots(0).chain(slots(1)).collect();
        let kv_width = config.num_key_value_heads * config.head_dim;
        let mut groups = Vec::new();
        let mut start = 0;
        for rows in groups_of(rows) {
            groups.push(Group::new(rows, start, device)?);
            start += rows.len() * rows[0].tokens.len();
        }
        let (cos, sin) = step.rotations();
        Ok(Self {
            cos: angles(cos)?,
            sin: angles(sin)?,
            written: Tensor::from_slice(&slots, (slots.len(), 1), device)?
                .broadcast_as((slots.len(), kv_width))?
                .contiguous()?,
            groups,
        })
    }
}

/// Neighbouring rows with the same number of tokens, which attend together.
struct Group {
    /// Tokens of the step before the first row's.
    start: usize,
    rows: usize,
    /// Of each row.
    tokens: usize,
    /// Of each row: as many as the longest has.
    blocks: usize,
    /// The rows' blocks, one row's after another's. A shorter row's last block stands for those that it
    /// has not.
    ids: Tensor,
    /// Which positions a row holds, `[rows, 1, positions, 1]`. What others left behind them is nothing to
    /// add up, not even with the weight 0: it could be infinite.
    held: Tensor,
    /// Which positions a token sees, `[rows, 1, 1, tokens, positions]`.
    seen: Tensor,
}

impl Group {
    fn new(rows: &[Row<'_>], start: usize, device: &Device) -> Result<Self> {
        let tokens = rows[0].tokens.len();
        let blocks = rows.iter().map(blocks_of).max().unwrap_or(0);
        let positions = blocks * BLOCK_TOKENS;
        let mut ids = Vec::with_capacity(rows.len() * blocks);
        let mut held = Vec::with_capacity(rows.len() * positions);
        let mut seen = Vec::with_capacity(rows.len() * tokens * positions);
        for row in rows {
            let of_row = blocks_of(row);
            ids.extend((0..blocks).map(|index| row.blocks[index.min(of_row - 1)].0));
            let up_to = |end: usize| (0..positions).map(move |position| u8::from(position < end));
            held.extend(up_to(row.position + tokens));
            (1..=tokens).for_each(|token| seen.extend(up_to(row.position + token)));
        }
        Ok(Self {
            start,
            rows: rows.len(),
            tokens,
            blocks,
            ids: Tensor::new(ids, device)?,
            held: Tensor::from_vec(held, (rows.len(), 1, positions, 1), device)?,
            seen: Tensor::from_vec(seen, (rows.len(), 1, 1, tokens, positions), device)?,
        })
    }

    /// Queries `[tokens, query heads, head_dim]` of all rows → `[tokens, query heads × head_dim]`.
    fn attend(&self, config: &Config, queries: &Tensor, cache: &Tensor) -> Result<Tensor> {
        let (kv_heads, head_dim) = (config.num_key_value_heads, config.head_dim);
        let (rows, tokens, heads) = (self.rows, self.tokens, config.group_size());
        let positions = self.blocks * BLOCK_TOKENS;
        let keys_and_values = cache
            .index_select(&self.ids, 0)?
            .reshape(&[rows, self.blocks, 2, BLOCK_TOKENS, kv_heads, head_dim][..])?
            .permute((2, 0, 4, 1, 3, 5))?
            .to_dtype(DType::F32)?
            .contiguous()?
            .reshape((2, rows, kv_heads, positions, head_dim))?;
        let (keys, values) = (keys_and_values.get(0)?, keys_and_values.get(1)?);
        let values = choose(&self.held, &values, 0.0)?;
        // A KV head's query heads, one after another: each the rows of one product.
        let queries = queries
            .reshape((rows, tokens, kv_heads, heads, head_dim))?
            .permute((0, 2, 3, 1, 4))?
            .contiguous()?
            .reshape((rows, kv_heads, heads * tokens, head_dim))?;
        let scores = (queries.matmul(&keys.t()?)? / (head_dim as f64).sqrt())?
            .reshape((rows, kv_heads, heads, tokens, positions))?;
        let weights = softmax_last_dim(&choose(&self.seen, &scores, f32::NEG_INFINITY)?)?;
        weights
            .reshape((rows, kv_heads, heads * tokens, positions))?
            .matmul(&values)?
            .reshape((rows, kv_heads, heads, tokens, head_dim))?
            .permute((0, 3, 1, 2, 4))?
            .reshape((rows * tokens, kv_heads * heads * head_dim))
    }
}

/// The numbers where `which` is not 0, and `otherwise` elsewhere.
fn choose(which: &Tensor, numbers: &Tensor, otherwise: f32) -> Result<Tensor> {
    let otherwise = Tensor::new(otherwise, numbers.device())?.broadcast_as(numbers.shape())?;
    which.broadcast_as(numbers.shape())?.where_cond(numbers, &otherwise)
}

/// The rows in groups: as long as neighbours have the same number of tokens, their blocks, filled up to
/// the longest row's, are at most twice what they need, and [`PAIRS_AT_ONCE`] allows it.
fn groups_of<'a, 'b>(rows: &'a [Row<'b>]) -> Vec<&'a [Row<'b>]> {
    let mut groups = Vec::new();
    let mut start = 0;
    let (mut longest, mut needed) = (0, 0);
    for (index, row) in rows.iter().enumerate() {
        let (blocks, tokens) = (blocks_of(row), row.tokens.len());
        (longest, needed) = (longest.max(blocks), needed + blocks);
        let filled = longest * (index + 1 - start);
        let fits = tokens == rows[start].tokens.len()
            && filled <= 2 * needed
            && filled * BLOCK_TOKENS * tokens <= PAIRS_AT_ONCE;
        if !fits && index > start {
            groups.push(&rows[start..index]);
            (start, longest, needed) = (index, blocks, blocks);
        }
    }
    groups.extend((start < rows.len()).then(|| &rows[start..]));
    groups
}

/// Blocks that hold a row's tokens, those of this step too.
fn blocks_of(row: &Row<'_>) -> usize {
    (row.position + row.tokens.len()).div_ceil(BLOCK_TOKENS)
}

#[cfg(all(test, feature = "tiny-model"))]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::kv_cache::BlockId;
    use crate::model::Qwen3;

    #[test]
    fn rows_share_a_product_as_long_as_little_of_it_is_filling() {
        let blocks = [BlockId(0); 8192];
        let sizes = |rows: &[(usize, usize)]| -> Vec<usize> {
            let tokens = [0; 9000];
            let row = |&(position, count): &(usize, usize)| Row {
                tokens: &tokens[..count],
                position,
                blocks: &blocks,
                logits: 0,
            };
            let rows: Vec<Row<'_>> = rows.iter().map(row).collect();
            groups_of(&rows).iter().map(|group| group.len()).collect()
        };
        assert_eq!(sizes(&[]), [0; 0]);
        assert_eq!(sizes(&[(0, 1), (15, 1), (30, 1), (0, 2), (16, 2)]), [3, 2]);
        // Rows of ten blocks beside rows of one.
        assert_eq!(sizes(&[(150, 1), (0, 1), (0, 1)]), [2, 1]);
        assert_eq!(sizes(&[(150, 1), (150, 1), (0, 1), (0, 1), (0, 1)]), [4, 1]);
        // However long, a row is computed.
        assert_eq!(sizes(&[(100_000, 1), (100_000, 1), (0, 9000)]), [1, 1, 1]);
        assert_eq!(sizes(&[(1 << 13, 1); 8]), [3, 3, 2]);
    }

    #[test]
    fn what_others_left_in_a_block_does_not_count() {
        let model = Qwen3::load_on(&Device::Cpu, &Checkpoint::tiny(), None).expect("bundled");
        let mut cache = model.new_cache(4).expect("a cache");
        let blocks: Vec<BlockId> = std::iter::from_fn(|| cache.take()).collect();
        // The second row is filled up to the first's blocks.
        let rows = [
            Row { tokens: &[7; 20], position: 0, blocks: &blocks[..2], logits: 20 },
            Row { tokens: &[9; 20], position: 0, blocks: &blocks[2..], logits: 20 },
        ];
        let logits = |rows: &[Row<'_>]| -> Vec<Vec<f32>> {
            model.forward(rows, &cache).and_then(|logits| logits.to_vec2()).expect("logits")
        };
        let clean = logits(&rows);
        for layer in cache.layers() {
            let spoilt = Tensor::full(f32::NAN, layer.shape(), &Device::Cpu)
                .and_then(|numbers| numbers.to_dtype(layer.dtype()))
                .expect("numbers");
            layer.slice_set(&spoilt, 0, 0).expect("as large");
        }
        assert_eq!(logits(&rows), clean);
    }

    #[test]
    fn what_cannot_be_computed_is_an_error() {
        let model = Qwen3::load_on(&Device::Cpu, &Checkpoint::tiny(), None).expect("bundled");
        let mut cache = model.new_cache(1).expect("a cache");
        let blocks = [cache.take().expect("a block")];
        let error = |tokens: &[u32], blocks: &[BlockId]| {
            let row = Row { tokens, position: 0, blocks, logits: 1 };
            model.forward(&[row], &cache).expect_err("impossible").to_string()
        };
        assert!(error(&[u32::MAX], &blocks).contains("token id 4294967295"));
        assert!(error(&[0], &[BlockId(1)]).contains("KV block 1"));
    }
}
