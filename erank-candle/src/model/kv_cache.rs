//! Keys and values of every layer, in blocks of 16 tokens.

use candle_core::{DType, Device, Result, Tensor, bail};
use half::bf16;
use half::vec::HalfBitsVecExt;

use super::aligned::{LINE, aligned};

/// The storage of the KV cache: a fixed number of blocks in every layer.
///
/// The engine's block allocator decides which sequence owns which block. Sequences with a common beginning
/// may share its full blocks, whose tokens no longer change.
#[derive(Debug)]
pub struct KvCache {
    /// One tensor per layer, `[blocks, numbers in a block]`, on the model's device. The model's operations
    /// define the layout of a block.
    layers: Vec<Tensor>,
    blocks: usize,
}

impl KvCache {
    /// Allocates zeroed blocks of `block_size` numbers of type `dtype` (F32, BF16 or U8) in `layers` layers.
    ///
    /// On the CPU, the system provides memory when a block is first written.
    ///
    /// # Errors
    /// Returns an error for another type, for more than 2³² blocks, or if the device has no memory for them.
    pub(crate) fn new(
        layers: usize,
        block_size: usize,
        dtype: DType,
        blocks: usize,
        device: &Device,
    ) -> Result<Self> {
        if u32::try_from(blocks).is_err() {
            bail!("{blocks} KV blocks are too many; block ids are 32-bit numbers");
        }
        let layer = |_| zeros((blocks, block_size), dtype, device);
        Ok(Self { layers: (0..layers).map(layer).collect::<Result<_>>()?, blocks })
    }

    /// Returns the number of blocks.
    pub fn blocks(&self) -> usize {
        self.blocks
    }

    pub(crate) fn layers(&self) -> &[Tensor] {
        &self.layers
    }
}

/// Allocates zeros, `[blocks, numbers]`.
fn zeros(shape: (usize, usize), dtype: DType, device: &Device) -> Result<Tensor> {
    let count = shape.0.checked_mul(shape.1);
    let bytes = count.and_then(|count| count.checked_mul(dtype.size_in_bytes()));
    // A failed allocation of the zeros would end the process. A reservation of the same size, freed at once, reports
    // the failure instead.
    let is_available = |bytes| Vec::<u8>::new().try_reserve_exact(bytes).is_ok();
    let fits = !device.is_cpu() || bytes.is_some_and(is_available);
    let Some(count) = count.filter(|_| fits) else {
        bail!(
            "the system has no memory for {} KV blocks of {} numbers in each layer",
            shape.0,
            shape.1
        )
    };
    match (dtype, device) {
        (DType::F32, Device::Cpu) => aligned(vec![0f32; count + LINE], shape),
        // The system hands out zeroed integers without writing them. Zeroed BF16 would be written.
        (DType::BF16, Device::Cpu) => {
            aligned::<bf16>(vec![0u16; count + LINE].reinterpret_into(), shape)
        }
        (DType::U8, Device::Cpu) => aligned(vec![0u8; count + LINE], shape),
        (DType::F32 | DType::BF16, _) => Tensor::zeros(shape, dtype, device),
        (other, _) => bail!("the KV cache cannot have the type {other:?}; use F32, BF16 or U8"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_allocates_the_given_size_and_rejects_other_types() {
        let cache = KvCache::new(2, 20, DType::BF16, 3, &Device::Cpu).expect("memory");
        let sizes: Vec<usize> = cache.layers().iter().map(Tensor::elem_count).collect();
        assert_eq!((sizes, cache.blocks()), (vec![60, 60], 3));
        assert!(KvCache::new(1, 20, DType::F16, 1, &Device::Cpu).is_err());
        assert!(KvCache::new(1, 1, DType::F32, usize::MAX, &Device::Cpu).is_err());
        for (blocks, block_size) in [(1 << 20, 1 << 30), (1 << 31, 1 << 40)] {
            let error = KvCache::new(1, block_size, DType::BF16, blocks, &Device::Cpu);
            let error = error.expect_err("too large").to_string();
            assert!(error.contains("memory") || error.contains("32-bit"), "{error}");
        }
    }
}
