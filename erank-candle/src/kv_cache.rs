//! Keys and values of every layer, in blocks of 16 tokens.

use candle_core::{DType, Device, Result, Tensor};
use half::bf16;
use half::vec::HalfBitsVecExt;

use crate::config::Config;
use crate::kernels::attention::{self, BlockLayout};
use crate::kernels::buffer::use_large_pages;

/// Tokens that one block holds.
pub const BLOCK_TOKENS: usize = attention::BLOCK_TOKENS;

/// A block of a [`KvCache`]: room for [`BLOCK_TOKENS`] tokens in every layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BlockId(pub(crate) u32);

/// The cache of all sequences: a fixed number of blocks, handed out and taken back.
///
/// Sequences that begin alike may use the same blocks; only full ones, as their tokens no longer
/// change.
#[derive(Debug)]
pub struct KvCache {
    /// By layer, `[blocks, numbers in a block]`, on the device that the model runs on. The kernels' blocks
    /// are [`BlockLayout`]'s, those of candle's operations `[2][16 tokens][kv heads][head_dim]`, keys first.
    layers: Vec<Tensor>,
    /// By block.
    taken: Vec<bool>,
    free: Vec<BlockId>,
}

impl KvCache {
    /// For the kernels: room for `blocks` blocks, in the type `dtype` (F32 or BF16).
    ///
    /// # Errors
    /// For any other type, or more than 2³² blocks.
    pub(crate) fn new(config: &Config, dtype: DType, blocks: usize) -> Result<Self> {
        let shape = (blocks, layout(config).block_size());
        Self::with_layers(config.num_hidden_layers, || zeros(shape, dtype, &Device::Cpu), blocks)
    }

    /// The same for candle's operations, on a device.
    ///
    /// # Errors
    /// As [`new`](Self::new), and if the device has no room for it.
    pub(crate) fn on_device(
        config: &Config,
        dtype: DType,
        blocks: usize,
        device: &Device,
    ) -> Result<Self> {
        let size = 2 * BLOCK_TOKENS * config.num_key_value_heads * config.head_dim;
        Self::with_layers(config.num_hidden_layers, || zeros((blocks, size), dtype, device), blocks)
    }

    fn with_layers(
        layers: usize,
        layer: impl Fn() -> Result<Tensor>,
        blocks: usize,
    ) -> Result<Self> {
        let Ok(count) = u32::try_from(blocks) else { candle_core::bail!("{blocks} KV blocks") };
        Ok(Self {
            layers: (0..layers).map(|_| layer()).collect::<Result<_>>()?,
            taken: vec![false; blocks],
            // Popped from the end: the lowest first.
            free: (0..count).rev().map(BlockId).collect(),
        })
    }

    /// Bytes of one block over all layers, at most: candle's operations need none of the kernels' padding
    /// of heads whose width is no multiple of 16.
    pub fn block_bytes(config: &Config, dtype: DType) -> usize {
        layout(config).block_size() * config.num_hidden_layers * dtype.size_in_bytes()
    }

    /// A block, or `None` if all are taken.
    pub fn take(&mut self) -> Option<BlockId> {
        let block = self.free.pop()?;
        self.taken[block.0 as usize] = true;
        Some(block)
    }

    /// Gives a block back. One that is free already stays so; one that only a larger cache has is
    /// passed over.
    pub fn release(&mut self, block: BlockId) {
        if self.taken.get_mut(block.0 as usize).is_some_and(std::mem::take) {
            self.free.push(block);
        }
    }

    /// Blocks that can be taken.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Blocks in all.
    pub fn blocks(&self) -> usize {
        self.taken.len()
    }

    pub(crate) fn layers(&self) -> &[Tensor] {
        &self.layers
    }
}

/// Zeros `[blocks, numbers]`. On the CPU, memory is taken from the system as it is first written.
fn zeros(shape: (usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    let count = shape.0 * shape.1;
    match (dtype, device) {
        (DType::F32, Device::Cpu) => {
            let mut zeros = vec![0f32; count];
            use_large_pages(&mut zeros);
            Tensor::from_vec(zeros, shape, device)
        }
        (DType::BF16, Device::Cpu) => {
            // Zeroed integers come from the system untouched; zeroed BF16 would be written.
            let mut zeros: Vec<bf16> = vec![0u16; count].reinterpret_into();
            use_large_pages(&mut zeros);
            Tensor::from_vec(zeros, shape, device)
        }
        (DType::F32 | DType::BF16, _) => Tensor::zeros(shape, dtype, device),
        (other, _) => candle_core::bail!("a KV cache of type {other:?}; it is F32 or BF16"),
    }
}

pub(crate) fn layout(config: &Config) -> BlockLayout {
    BlockLayout { kv_heads: config.num_key_value_heads, head_dim: config.head_dim }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        let json = r#"{"model_type": "qwen3", "vocab_size": 8, "hidden_size": 8,
            "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 20, "max_position_embeddings": 64,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6}"#;
        Config::from_json(json.as_bytes(), None).expect("valid")
    }

    #[test]
    fn blocks_are_handed_out_and_return() {
        let mut cache = KvCache::new(&config(), DType::BF16, 2).expect("a cache");
        let first = cache.take().expect("free");
        let second = cache.take().expect("free");
        assert!(first != second && cache.take().is_none());
        cache.release(first);
        cache.release(first); // once too often
        cache.release(BlockId(2)); // another cache's
        assert_eq!(cache.free_blocks(), 1);
        assert_eq!(cache.take(), Some(first));
    }

    #[test]
    fn a_block_has_the_size_that_is_budgeted() {
        let budget = 3 * KvCache::block_bytes(&config(), DType::BF16);
        let bytes = |cache: KvCache| cache.layers.iter().map(|l| l.elem_count() * 2).sum::<usize>();
        assert_eq!(bytes(KvCache::new(&config(), DType::BF16, 3).expect("a cache")), budget);
        let candles = KvCache::on_device(&config(), DType::BF16, 3, &Device::Cpu).expect("a cache");
        assert!(bytes(candles) <= budget);
        assert!(KvCache::new(&config(), DType::F16, 1).is_err());
    }
}
